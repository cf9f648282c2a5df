"""The bar, the plain lines instead of it, and the estimate of the time."""

from __future__ import annotations

import io
import itertools
import time
from types import SimpleNamespace

import pytest

from vit_rs.recipes import fashion_mnist
from vit_rs.training import progress as module
from vit_rs.training.engine import Engine
from vit_rs.training.progress import Progress, Status, Workload, clock, measure
from vit_rs.training.sources import open_sources
from vit_rs.training.stages import build_stages
from vit_rs.training.values import apply_settings, parse_settings


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def time_flies(monkeypatch):
    """Every look at the clock is six seconds later."""
    ticks = itertools.count(step=6.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


def stages(*settings):
    config = fashion_mnist.config()
    config = apply_settings(config, parse_settings(config, ["data.per_class=13", "batch_size=16", *settings]))
    config = config.validated()
    return build_stages(config, open_sources(config.data))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_for_people(seconds, text):
    assert clock(seconds) == text


def test_the_status_in_words():
    status = Status("pretrain", 28, 3, 80, 1.23456, 5210.4, 0.013)
    expected = "pretrain 28px epoch 3/80, loss 1.235, 5,210 images/s, data wait 1%"
    assert status.text() == expected


def test_plain_lines_where_there_is_no_terminal(time_flies):
    stream = io.StringIO()
    with Progress(100.0, done=0.0, enabled=True, stream=stream) as bar:
        assert not bar.is_due  # 6 s
        assert bar.is_due  # 12 s
        bar.show(50.0, "half")
    assert stream.getvalue() == " 50% done, 24 s left: half\n"


@pytest.mark.parametrize("busy", [0.0, 200.0])
def test_a_busy_beginning_is_forgotten(monkeypatch, busy):
    now, stream = [0.0], io.StringIO()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(module, "clock", lambda seconds: f"{seconds:.0f}")
    bar = Progress(2000.0, done=0.0, enabled=True, stream=stream)
    for _ in range(100):  # ten seconds each, of which ten are done, or one while the machine is busy
        now[0] += 10
        bar.show(bar._done + (1 if now[0] <= busy else 10), "")
    left = [float(line.split()[2]) for line in stream.getvalue().splitlines()]
    assert left[-1] == pytest.approx(2000 - bar._done)
    assert left[0] == pytest.approx(10 * 1999 if busy else 1990)
    bar.show(bar._done, "nothing done since")
    assert float(stream.getvalue().splitlines()[-1].split()[2]) > 0


def test_a_bar_on_a_terminal():
    stream = Terminal()
    with Progress(100.0, done=25.0, enabled=True, stream=stream) as bar:
        bar.show(50.0, "half")
        bar.show(120.0, "more than was expected")
    text = stream.getvalue()
    assert " 25%" in text
    assert "| 1 min 15 s left" in text  # before anything is known but the estimate
    assert " 50%" in text
    assert "100%" in text
    assert "left, half" in text


def test_silence():
    stream = Terminal()
    with Progress(100.0, done=0.0, enabled=False, stream=stream) as bar:
        bar.show(50.0, "half")
    assert stream.getvalue() == ""


def test_the_workload_counts_every_part():
    first, second = stages("epochs=4", "finetune.epochs=2", "evaluation.every_epochs=3")
    work = Workload([first, second], [0.5, 2.0], fewshot_images=30)
    # 8 batches of 16 an epoch; tests after epochs 3 and 4, and after epoch 2.
    one = 0.5 * (4 * 128 + (2 * 1000) / 3) + 0.5 * 10
    two = 2.0 * (2 * second.epoch_images + 1000 / 3) + 2.0 * 10
    assert work.total == pytest.approx(one + two)
    assert work.done(0, 0) == 0.0
    assert work.done(0, first.steps) == pytest.approx(one - 0.5 * 10)
    assert work.done(1, 0) == pytest.approx(one)
    assert work.done(2, 0) == work.total


def test_measuring_takes_real_steps(monkeypatch):
    first, second = stages("model.depth=1", "model.embed_dim=16", "model.num_heads=2")
    for stage in (first, second):
        assert 1e-7 < measure(stage, seconds=0.1) < 1.0
    # One step that another program stopped does not count.
    real, late = Engine.step, []

    def stopped(self, images, labels, step):
        if step == 4:
            time.sleep(0.3)
            late.append(step)
        return real(self, images, labels, step)

    monkeypatch.setattr(Engine, "step", stopped)
    assert measure(first, seconds=0.1) < 0.3 / (3 * 16)  # the mean of as many steps would be at least this
    assert late
    # Where a step takes longer than the time to spend, a part of one must do.
    assert 1e-7 < measure(first, seconds=1e-9) < 1.0


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "steps", "images"), [(16, True, 8, 128), (130, True, 1, 130), (200, False, 1, 130)]
)
def test_an_epoch_leaves_out_its_smaller_batch(batch_size, drop_last, steps, images):
    config = fashion_mnist.config()
    settings = ["data.per_class=13", f"batch_size={batch_size}", "finetune.epochs=0"]
    config = apply_settings(config, parse_settings(config, settings)).validated()
    (stage,) = build_stages(config, open_sources(config.data))
    assert (stage.drop_last, stage.steps_per_epoch, stage.epoch_images) == (drop_last, steps, images)
    with stage.train_loader() as loader:
        assert len(loader) == steps
        assert sum(len(labels) for _, labels in loader) == images
