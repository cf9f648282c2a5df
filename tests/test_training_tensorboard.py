"""Records for TensorBoard: the numbers of metrics.jsonl, each step once whatever was interrupted."""

from __future__ import annotations

import json
import sys

import pytest

from vit_rs.exceptions import ConfigError, DecodeError
from vit_rs.recipes import fashion_mnist
from vit_rs.training import train
from vit_rs.training.metrics import MetricsLog, read_metrics
from vit_rs.training.tensorboard import check_tensorboard
from vit_rs.training.values import apply_settings, parse_settings


def tiny(*settings):
    config = fashion_mnist.config()
    shared = ("model.embed_dim=16", "model.depth=1", "data.per_class=6", "batch_size=8", "epochs=2", "tensorboard=true")
    return apply_settings(config, parse_settings(config, [*shared, "evaluation.shots=0", *settings]))


def shown(folder):
    """Return tag -> [(step, value), ...] as TensorBoard shows a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def record(step, kind="train", **values):
    return {
        "kind": kind,
        "stage": "pretrain",
        "epoch": 1,
        "step": step,
        **values,
        "time": {"seconds": 1.0, "rate": 2.0},
    }


def test_a_missing_package_is_said_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=r'pip install "vit-rs\[tensorboard\]".*tensorboard=false does without'):
        train(tiny(), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_broken_package_is_said_too(monkeypatch):
    class Broken:
        def find_spec(self, name, *_):
            if name == "torch.utils.tensorboard":
                raise TypeError("Descriptors cannot be created directly")

    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ConfigError, match=r"cannot be imported \(Descriptors cannot be created directly\)"):
        check_tensorboard()


def test_without_it_nothing_is_written(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(record(1))
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_each_step_is_shown_once_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    path, board = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    log = MetricsLog(path, tensorboard=board)
    for step in (1, 2):
        log.append(record(step, train_loss=2.0 / step, learning_rate=0.1))
    log.append(record(2, "test", test_top1=0.5))  # before the state is saved, the next after it
    log.sync()
    log.append(record(2, "test", test_loss=0.25))
    log.append(record(3, train_loss=9.0))
    log.close()
    with path.open("a") as file:
        file.write('{"kind": "tr')  # killed while writing
    log = MetricsLog(path, keep=3, tensorboard=board)
    log.append(record(2, "test", test_loss=0.25))
    log.append(record(3, train_loss=0.5))
    log.append({**record(0), "stage": "finetune", "train_loss": 3.0})
    log.close()
    scalars = shown(board / "pretrain")
    assert scalars["train_loss"] == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert scalars["test_top1"] == [(2, 0.5)]
    assert scalars["test_loss"] == [(2, 0.25)]
    assert scalars["time/rate"] == [(1, 2.0), (2, 2.0), (2, 2.0), (2, 2.0), (3, 2.0)]  # three records of step 2
    assert shown(board / "finetune")["train_loss"] == [(0, 3.0)]
    assert "epoch" not in scalars
    assert "time/seconds" not in scalars


@pytest.mark.slow
def test_a_run_that_was_interrupted(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("vit_rs.training.loop.shared_test", lambda *_a, **_k: (_ for _ in ()).throw(DecodeError("x")))
        with pytest.raises(DecodeError):
            train(tiny("finetune.epochs=1"), run, progress=False)
    train(tiny("finetune.epochs=1"), run, resume=True, progress=False)
    records = read_metrics(run / "metrics.jsonl")
    for stage in ("pretrain", "finetune"):
        scalars = shown(run / "tensorboard" / stage)
        for key in ("train_loss", "learning_rate", "test_top1"):
            want = [(r["step"], r[key]) for r in records if r["stage"] == stage and key in r]
            assert scalars[key] == [(step, pytest.approx(value, rel=1e-6)) for step, value in want]  # float32
    assert json.loads((run / "config.json").read_text())["tensorboard"] is True


def test_the_package_is_enough():
    pytest.importorskip("tensorboard")
    check_tensorboard()
