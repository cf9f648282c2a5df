"""A run that was stopped, in any way and at any place, ends as one that was not: weights and records, to the bit."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch

from vit_rs.checkpoints.state import load_state
from vit_rs.cli import main
from vit_rs.evaluation import evaluate, extract_features
from vit_rs.training import loop

SETTINGS = (
    "torch_threads=1",
    "model.embed_dim=16",
    "model.depth=2",
    "model.num_heads=2",
    "model.dropout=0.1",
    "model.drop_path_rate=0.2",
    "data.per_class=10",
    "batch_size=4",
    "epochs=3",
    "method.mixup=0.2",
    "method.cutmix=1",
    "optim.ema_decay=0.9",
    "optim.warmup_epochs=1",
    "finetune.epochs=2",
    "finetune.img_size=42",
    "finetune.batch_size=4",
    "finetune.drop_path_rate=0.2",
    "evaluation.every_epochs=2",
    "evaluation.fewshot_seeds=0",
)
STEPS_PER_EPOCH = 25

# A run that kills itself, so that the place is exact: after a step (before it is saved), or in the few-shot evaluation.
SUICIDE = """
import os, signal, sys
from vit_rs.cli import main
from vit_rs.training import loop

name, place = sys.argv[1], sys.argv[2]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def train_step(self, images, labels, original=loop.StageLoop._train_step):
    original(self, images, labels)
    if self.stage.name == name and str(self.step) == place:
        die()

def fewshot_result(stage, *args, original=loop.fewshot_result, **kwargs):
    if stage.name == name and place == "fewshot":
        die()
    return original(stage, *args, **kwargs)

loop.StageLoop._train_step = train_step
loop._SAVING_SHARE = float("inf")
loop.fewshot_result = fewshot_result
sys.exit(main(sys.argv[3:]))
"""


def command(folder, *settings):
    asked = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    return ["train", "--out", str(folder), *asked]


def newest(folder):
    [path] = (folder / "states").iterdir()
    return load_state(path)


def killed(name, place, arguments):
    process = subprocess.run(
        [sys.executable, "-c", SUICIDE, name, str(place), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr


def timeless(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def assert_same_run(one, other):
    assert timeless(one) == timeless(other)
    for name in ("model.safetensors", "model-42px.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    """Runs without figures, which take longer than a tiny run; states are saved whenever one is due."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vit_rs.cli.train._draw", lambda _folder: ())
        patch.setattr(loop, "_SAVING_SHARE", math.inf)  # a state where one is due, however short the run
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(folder)) == 0
    return folder


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.slow
@pytest.mark.parametrize("save_seconds", [0, 1000])
def test_killed_and_resumed_is_uninterrupted(uninterrupted, tmp_path, save_seconds, capsys):
    folder = tmp_path / "run"
    killed("pretrain", 38, command(folder, f"save_seconds={save_seconds}"))
    assert newest(folder)["step"] == (37 if save_seconds == 0 else STEPS_PER_EPOCH)
    killed("pretrain", "fewshot", ["train", "--resume", "--out", str(folder)])
    killed("finetune", 40, ["train", "--resume", "--out", str(folder)])
    state = newest(folder)
    assert (state["stage"], state["step"]) == (1, 39 if save_seconds == 0 else STEPS_PER_EPOCH)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')  # as if killed while writing
    assert main(["train", "--resume", "--out", str(folder)]) == 0
    assert_same_run(folder, uninterrupted)
    assert "Resuming" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "step", "signum"),
    [
        pytest.param("pretrain", 2, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("pretrain", STEPS_PER_EPOCH, signal.SIGTERM, marks=pytest.mark.slow),
        ("finetune", 33, signal.SIGTERM),
    ],
)
def test_a_signal_saves_first(uninterrupted, tmp_path, monkeypatch, capsys, *, name, step, signum):
    folder = tmp_path / "run"

    def train_step(self, images, labels, original=loop.StageLoop._train_step):
        original(self, images, labels)
        if (self.stage.name, self.step) == (name, step):
            signal.raise_signal(signum)

    with monkeypatch.context() as patch:
        patch.setattr(loop.StageLoop, "_train_step", train_step)
        assert main(command(folder)) == 128 + signum
    last = capsys.readouterr().err.splitlines()[-1]
    how = f"go on with: vit-rs train --resume --out {folder}"
    assert last == f"vit-rs: stopped by {signum.name}, and saved; {how}"
    assert newest(folder)["step"] == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert main(["train", "--resume", "--out", str(folder)]) == 0
    assert_same_run(folder, uninterrupted)


def test_a_signal_during_a_test_or_the_features_saves_first(uninterrupted, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    signums = {"evaluate": iter((None, signal.SIGINT)), "extract_features": iter((None, None, signal.SIGTERM))}

    def interrupted(name, original):
        def examine(*args, **kwargs):
            signum = next(signums[name], None)
            if signum is not None:
                signal.raise_signal(signum)
            return original(*args, **kwargs)

        return examine

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "save_due", lambda *_: False)  # as if saving took long
        for name, original in (("evaluate", evaluate), ("extract_features", extract_features)):
            patch.setattr(f"vit_rs.training.shared_evaluation.{name}", interrupted(name, original))
        resume = ["train", "--resume", "--out", str(folder)]
        assert main(command(folder)) == 130
        assert newest(folder)["step"] == 3 * STEPS_PER_EPOCH
        assert main(resume) == 143
        state = newest(folder)
        assert (state["stage"], state["step"]) == (1, 2 * STEPS_PER_EPOCH)
        assert main(resume) == 0
    assert_same_run(folder, uninterrupted)


def test_a_signal_before_training_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vit_rs.training.job.measure", lambda *_a, **_k: signal.raise_signal(signal.SIGINT))
    assert main(command(tmp_path / "a/b")) == 130
    assert capsys.readouterr().err == "vit-rs: stopped by SIGINT before anything was trained\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_again(uninterrupted, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop.StageLoop, "finish", lambda _self: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
            main(command(folder))
    assert {path.name for path in folder.iterdir()} == {"config.json", "metrics.jsonl"}
    assert main(["train", "--resume", "--out", str(folder)]) == 0
    assert_same_run(folder, uninterrupted)


def test_the_number_of_torch_threads_is_kept(uninterrupted, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    threads = torch.get_num_threads()

    def train_step(self, images, labels, original=loop.StageLoop._train_step):
        original(self, images, labels)
        if self.step == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.StageLoop, "_train_step", train_step)
        assert main(command(folder)) == 143
    assert newest(folder)["identity"]["torch_threads"] == 1
    assert torch.get_num_threads() == threads


def test_a_damaged_state_is_refused(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"

    def train_step(self, images, labels, original=loop.StageLoop._train_step):
        original(self, images, labels)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.StageLoop, "_train_step", train_step)
        main(command(folder))
    (folder / "states/step-000000001.pt").write_bytes(b"nonsense")
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vit-rs: error: ")
    assert "step-000000001.pt" in error
    assert "there is no other state" in error
    assert error.count("\n") == 1
