"""Saved states: complete or not there, the last few kept; a damaged one says how to go on; what a run says of them."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import signal

import pytest
import torch
from safetensors import safe_open

from vit_rs.exceptions import CheckpointError
from vit_rs.recipes import fashion_mnist
from vit_rs.training import loop, states, train
from vit_rs.training.interruption import Interrupted
from vit_rs.training.parallel import Parallel
from vit_rs.training.plan import notices
from vit_rs.training.sources import open_sources
from vit_rs.training.stages import build_stages
from vit_rs.training.states import SavedStates
from vit_rs.training.values import apply_settings, parse_settings

ALONE = Parallel("ddp", "cpu")
TINY = (
    *("torch_threads=1", "model.embed_dim=16", "model.depth=1", "model.num_heads=2", "model.dropout=0.1"),
    *("data.per_class=10", "batch_size=20", "epochs=3", "finetune.epochs=0", "optim.warmup_epochs=1"),
    *("evaluation.every_epochs=1", "evaluation.shots=0", "save_seconds=0", "keep_states=3", "keep_best=true"),
)


def tiny(*settings):
    config = fashion_mnist.config()
    for group in (TINY, settings):
        config = apply_settings(config, parse_settings(config, group))
    return config


@pytest.fixture
def saved(tmp_path):
    kept = SavedStates(tmp_path / "states", keep=2)
    for step in (5, 10, 1_234_567_890_123):
        kept.save(step, {"step": step, "weights": torch.full((3,), float(step))}, ALONE)
    return kept


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_ones_are_kept(saved):
    assert names(saved.folder) == ["step-000000010.pt", "step-1234567890123.pt"]
    assert saved.newest().name == "step-1234567890123.pt"
    assert saved.load(saved.newest())["step"] == 1_234_567_890_123


def test_without_any_there_is_none(tmp_path):
    empty = SavedStates(tmp_path / "states", keep=1)
    assert empty.paths() == []
    assert empty.newest() is None
    empty.clean()
    empty.remove()


def in_parts(folder):
    (folder / "part").write_bytes(b"12345")


def test_a_state_in_parts_is_a_folder(saved):
    saved.save(2_000_000_000_000, {"step": 7}, ALONE, parts=in_parts)
    newest = saved.newest()
    assert names(newest) == ["part", "run.pt"]
    assert saved.load(newest) == {"step": 7}
    # At a stage's end a file of the same step follows it.
    saved.save(2_000_000_000_000, {"step": 8}, ALONE)
    assert saved.load(saved.newest()) == {"step": 8}
    saved.save(2_000_000_000_001, {"step": 9}, ALONE, parts=in_parts)
    assert names(saved.folder) == ["step-2000000000000.pt", "step-2000000000001"]
    saved.remove()
    assert not saved.folder.exists()


def test_a_damaged_one_says_how_to_go_on(saved):
    newest = saved.newest()
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{newest.name}.*delete .*{newest.name} to go on from .*step-000000010"):
        saved.load(newest)
    newest.unlink()
    last = saved.newest()
    last.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"there is no other state .keep_states keeps more.: train again"):
        saved.load(last)


@pytest.mark.parametrize("damage", ["cut", "gone", "unfinished"])
def test_a_damaged_folder_says_so(saved, damage):
    saved.save(2_000_000_000_000, {"step": 7}, ALONE, parts=in_parts)
    newest = saved.newest()
    if damage == "cut":
        (newest / "part").write_bytes(b"1234")
        message = "part: damaged: expected 5 bytes, got 4"
    elif damage == "gone":
        (newest / "part").unlink()
        message = "part: damaged: expected 5 bytes, got no file"
    else:
        (newest / "run.pt").unlink()
        message = "run.pt"
    with pytest.raises(CheckpointError, match=rf"{message}.*to go on from the state before it, step-1234567890123.pt"):
        saved.load(newest)


@pytest.mark.parametrize("parts", [None, in_parts])
def test_a_full_disk_leaves_the_others(saved, monkeypatch, parts):
    before = names(saved.folder)

    def full(path, _state):
        path.with_name("half").write_bytes(b"1") if parts else None
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(states, "save_state", full)
    with pytest.raises(OSError, match="No space left on device"):
        saved.save(3_000_000_000_000, {}, ALONE, parts=parts)
    assert names(saved.folder) == before


def test_what_a_killed_process_left_is_removed(saved):
    before = names(saved.folder)
    (saved.folder / ".step-000000011.pt.0a1b.tmp").write_bytes(b"half")
    half = saved.folder / ".step-000000012.0a1b.tmp"
    half.mkdir()
    in_parts(half)
    assert [path.name for path in saved.paths()] == before  # none of them is a state
    saved.clean()
    assert names(saved.folder) == before


@pytest.fixture
def saving_always(monkeypatch):
    monkeypatch.setattr(loop, "_SAVING_SHARE", math.inf)


@pytest.fixture
def stopped(tmp_path, monkeypatch, saving_always):
    """A run that a signal stopped after 8 steps."""

    def train_step(self, images, labels, original=loop.StageLoop._train_step):
        original(self, images, labels)
        if self.step == 8:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.StageLoop, "_train_step", train_step)
        with pytest.raises(Interrupted):
            train(tiny(), tmp_path / "run", progress=False)
    return tmp_path / "run"


def timeless(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def test_a_run_goes_on_from_the_state_before_a_damaged_one(stopped, tmp_path):
    assert names(stopped / "states") == [f"step-00000000{step}.pt" for step in (6, 7, 8)]
    newest = stopped / "states/step-000000008.pt"
    newest.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"delete .*step-000000008.pt to go on from .*step-000000007.pt"):
        train(tiny(), stopped, resume=True, progress=False)
    assert newest.read_bytes() == b"nonsense"
    newest.unlink()
    train(tiny(), stopped, resume=True, progress=False)
    train(tiny(), tmp_path / "whole", progress=False)
    assert timeless(stopped) == timeless(tmp_path / "whole")
    for name in ("model.safetensors", "model-best.safetensors"):
        assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # The best is the first with the highest test accuracy.
    tests = [record for record in timeless(stopped) if record["kind"] == "test"]
    best = max(tests, key=lambda record: (record["test_top1"], -record["step"]))
    with safe_open(stopped / "model-best.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["vit_rs"])["metadata"]
    assert metadata["test_top1"] == best["test_top1"]
    assert metadata["step"] == best["step"]
    assert not (stopped / "states").exists()


def test_resuming_without_a_state_says_so(stopped):
    for path in (stopped / "states").iterdir():
        path.unlink()
    stream = io.StringIO()
    train(tiny(), stopped, resume=True, stream=stream)
    assert f"Nothing was saved in {stopped}: the run starts from the beginning\n" in stream.getvalue()
    assert sum(record["kind"] == "test" for record in timeless(stopped)) == 3


def test_a_full_disk_ends_a_run_with_its_last_state(tmp_path, monkeypatch, saving_always):
    original = states.save_state

    def full(path, state):
        if state.get("step") == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(path, state)

    monkeypatch.setattr(states, "save_state", full)
    with pytest.raises(Exception, match=r"No space left on device: .*; the last checkpoint is kept: go on with: "):
        train(tiny(), tmp_path / "run", progress=False)
    assert names(tmp_path / "run/states") == [f"step-00000000{step}.pt" for step in (2, 3, 4)]


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(states, "save_state", lambda *_args: None)
    run = loop.Run(*[None] * 8, seconds_before=0.0)  # type: ignore[arg-type]
    now = [100.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    run._saved_at, run._saving_seconds = 100.0, 2.0
    for passed, seconds, due in ((99.0, 30.0, False), (100.0, 30.0, True), (100.0, 101.0, False), (99.0, 0.0, False)):
        now[0] = 100.0 + passed
        assert run.save_due(seconds) is due


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            ("epochs=1", "optim.warmup_epochs=2"),
            "optim.warmup_epochs: the warm-up of 10 steps does not end within the 5",
        ),
        (("epochs=1", "optim.warmup_steps=5"), "optim.warmup_steps: the warm-up of 5 steps does not end within the 5"),
        (
            ("batch_size=128", "optim.warmup_epochs=0"),
            "batch_size: a step takes 128 images, there are 100: each step sees all of them",
        ),
        (
            ("finetune.epochs=1", "finetune.img_size=28", "finetune.batch_size=20"),
            "finetune.img_size: 28 px, as in the first stage",
        ),
    ],
)
def test_likely_slips_are_noted(settings, line):
    config = tiny("finetune.optim.warmup_epochs=0", *settings).validated()
    [notice] = notices(build_stages(config, open_sources(config.data)))
    assert line in notice


def test_other_settings_are_not_noted():
    config = tiny().validated()
    assert not list(notices(build_stages(config, open_sources(config.data))))


def test_several_processes_are_noted_where_they_see_an_image_twice():
    config = tiny("batch_size=120", "optim.warmup_epochs=0").validated()
    stage = build_stages(config, open_sources(config.data))[0]
    parallel = Parallel("ddp", "cpu")
    parallel.world_size = 3
    [notice] = notices([dataclasses.replace(stage, parallel=parallel)])
    assert notice.endswith("; 3 processes see some of them twice")
