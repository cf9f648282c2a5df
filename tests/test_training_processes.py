"""Several processes that train one model: as one would, to the bit where promised; stopped and failing together.

The processes are started by torchrun, with gloo, on this machine. A launch costs seconds: each does several runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_rs.checkpoints import load_model
from vit_rs.checkpoints.state import load_state
from vit_rs.recipes import fashion_mnist
from vit_rs.training import train
from vit_rs.training.sharded import works_on_cpu
from vit_rs.training.values import apply_settings, parse_settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torchrun, gloo, SIGKILL")

FSDP2 = works_on_cpu()
needs_fsdp2 = pytest.mark.skipif(not FSDP2, reason="this torch does not shard on CPUs")

# Without dropout, mixup and cutmix, which each process draws for its own share.
PLAIN = {
    "torch_threads": "1",
    "loader_threads": "1",
    "model.embed_dim": "16",
    "model.depth": "2",
    "model.num_heads": "2",
    "model.dropout": "0",
    "model.drop_path_rate": "0",
    "method.mixup": "0",
    "method.cutmix": "0",
    "data.per_class": "10",
    "batch_size": "4",
    "epochs": "2",
    "log_every": "1",
    "optim.ema_decay": "0.9",
    "optim.warmup_epochs": "1",
    "finetune.epochs": "0",
    "evaluation.batch_size": "100",
    "evaluation.every_epochs": "1",
    "evaluation.fewshot_seeds": "0",
}
DRAWN = {
    **PLAIN,
    "model.dropout": "0.1",
    "model.drop_path_rate": "0.1",
    "method.mixup": "0.2",
    "method.cutmix": "1",
    "finetune.epochs": "1",
    "finetune.img_size": "42",
    "finetune.batch_size": "4",
    "keep_states": "2",
    "keep_best": "true",
    "accumulation": "2",
}

# Each process of a launch does the runs of a plan one after the other. In a run something may happen to a process
# after a step: a signal, or an error. What came of each run is written by each process.
WORKER = """
import errno, faulthandler, io, json, os, signal, sys
faulthandler.dump_traceback_later(900, exit=True)
from pathlib import Path
from vit_rs.recipes import fashion_mnist
from vit_rs.exceptions import DatasetError
from vit_rs.training import job, loop, states, train
from vit_rs.training.interruption import Interrupted
from vit_rs.training.values import apply_settings, parse_settings

rank = int(os.environ["RANK"])
plan = json.loads(Path(sys.argv[1]).read_text())
happening = {}
original_step, original_save, original_sources = loop.StageLoop._train_step, states.save_state, job.open_sources
original_test = loop.shared_test

def train_step(self, images, labels):
    original_step(self, images, labels)
    if happening.get("step") == self.step + self.steps_before and rank in happening["ranks"] and not in_test():
        what = happening["what"]
        if what == "error":
            raise OSError(errno.EIO, "cannot be read", "image.png")
        signal.raise_signal(signal.Signals[what])

def in_test():
    return happening.get("in_test", False)

def shared_test(*args, **kwargs):
    if in_test() and rank in happening["ranks"]:
        signal.raise_signal(signal.Signals[happening["what"]])
    return original_test(*args, **kwargs)

def save_due(self, seconds, original=loop.Run.save_due):
    return not in_test() and original(self, seconds)

loop.shared_test, loop.Run.save_due = shared_test, save_due

def save_state(path, state):
    if happening.get("what") == "full disk" and state.get("step") == happening["step"]:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    original_save(path, state)

def open_sources(config):
    if happening.get("what") == "unreadable" and rank in happening["ranks"]:
        raise DatasetError("photos: expected at least two classes, got 1: cat")
    return original_sources(config)

job.open_sources = open_sources
loop.StageLoop._train_step = train_step
states.save_state = save_state
loop._SAVING_SHARE = float("inf")
for run in plan:
    happening = run.get("happening", {})
    base = fashion_mnist.config()
    config = apply_settings(base, parse_settings(base, [f"{k}={v}" for k, v in run["settings"].items()]))
    told, result = io.StringIO(), {}
    try:
        summary = train(config, run["folder"], resume=run.get("resume", False), stream=told)
        result["seconds"] = summary["time"]["seconds"]
    except (Exception, Interrupted) as error:
        result.update(error=type(error).__name__, message=str(error))
    result["told"] = told.getvalue()
    Path(run["folder"] + f".{rank}.json").write_text(json.dumps(result))
"""


def config_of(settings):
    base = fashion_mnist.config()
    return apply_settings(base, parse_settings(base, [f"{name}={value}" for name, value in settings.items()]))


def launched(root, plan, *, processes=2):
    """Start torchrun on a plan."""
    (root / "worker.py").write_text(WORKER)
    (root / "plan.json").write_text(json.dumps([{**run, "folder": str(run["folder"])} for run in plan]))
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)),
            *(str(root / "worker.py"), str(root / "plan.json")),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process, *, seconds=960):
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return output


def completed(root, plan, **kwargs):
    process = launched(root, plan, **kwargs)
    output = ended(process)
    assert process.returncode == 0, output


def results(folder):
    return [json.loads(folder.with_name(f"{folder.name}.{rank}.json").read_text()) for rank in range(2)]


def alone(folder, settings, *, resume=False, stop_after=None):
    """Train in this process."""
    config = config_of(settings)
    if stop_after is None:
        return train(config, folder, resume=resume, progress=False)
    from vit_rs.training import loop
    from vit_rs.training.interruption import Interrupted

    def train_step(self, images, labels, original=loop.StageLoop._train_step):
        original(self, images, labels)
        if self.step == stop_after:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.StageLoop, "_train_step", train_step)
        with pytest.raises(Interrupted):
            train(config, folder, progress=False)
    return None


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def assert_near(one, other, *, tolerance=1e-5):
    """The same records; numbers within the tolerance, which leaves sums their order."""
    first, second = records(one), records(other)
    assert len(first) == len(second)
    for mine, theirs in zip(first, second, strict=True):
        assert mine.keys() == theirs.keys()
        for key in ("train_loss", "grad_norm", "test_loss"):
            if key in mine:
                assert mine[key] == pytest.approx(theirs[key], abs=tolerance)
        for key in ("step", "learning_rate", "test_images", "epoch", "kind"):
            assert mine.get(key) == theirs.get(key)


def assert_same(one, other):
    assert records(one) == records(other)
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == sorted(path.name for path in other.glob("*.safetensors"))
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def states(folder):
    return sorted(path.name for path in (folder / "states").iterdir())


def happens(what, step, *ranks, in_test=False):
    return {"what": what, "step": step, "ranks": list(ranks), "in_test": in_test}


def unreadable(root):
    """Settings of a run whose images cannot all be read, and are left out: processes have unequally many."""
    rng = np.random.default_rng(0)
    for index in range(24):
        path = root / f"photos/{'train' if index < 20 else 'val'}/{'ab'[index % 2]}/{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(path)
        if index in (3, 4, 9, 14):
            path.write_bytes(path.read_bytes()[:300])
    return {
        **PLAIN,
        "data.path": str(root / "photos"),
        "data.on_error": "skip",
        "data.mean": "0.5",
        "data.std": "0.5",
        "epochs": "5",
        "accumulation": "2",
        "evaluation.shots": "0",
    }


def test_two_processes_train_as_one(tmp_path):
    settings = {**PLAIN, "epochs": "1", "evaluation.shots": "0"}
    together, one = tmp_path / "together", tmp_path / "alone"
    completed(tmp_path, [{"folder": together, "settings": settings}])
    alone(one, settings)
    assert_near(together, one)
    first, second = results(together)
    assert "2 processes (DDP, cpu, 1 torch thread each)" in first["told"]
    assert second["told"] == ""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def killed(root):
    """Runs whose processes were all killed after a step, one launch each."""
    folders = {"ddp": 38, "fsdp2": 61} if FSDP2 else {"ddp": 38}
    for parallel, step in folders.items():
        run = {
            "folder": root / f"killed-{parallel}",
            "settings": {**DRAWN, "parallel": parallel, "save_seconds": "0"},
            "happening": happens("SIGKILL", step, 0, 1),
        }
        process = launched(root, [run])
        ended(process)
        assert process.returncode != 0
        suffix = "" if parallel == "fsdp2" else ".pt"
        assert [name for name in states(run["folder"]) if not name.startswith(".")] == [
            f"step-{number:09}{suffix}" for number in (step - 2, step - 1)
        ]
    (root / "killed-ddp/states/.step-000000038.abc.tmp").mkdir()  # as if killed while saving
    return root


@pytest.fixture(scope="module")
def runs(root, killed):
    """All runs that end without taking their processes with them, in one launch; what each process said of each."""
    alone(root / "one-then-two", PLAIN, stop_after=13)
    alone(root / "one", PLAIN)
    fsdp2 = {**DRAWN, "parallel": "fsdp2"}
    plan = [
        {"folder": root / "plain-ddp", "settings": PLAIN},
        {"folder": root / "plain-fsdp2", "settings": {**PLAIN, "parallel": "fsdp2"}},
        {"folder": root / "process", "settings": {**PLAIN, "batch_of": "process", "batch_size": "2"}},
        {"folder": root / "whole-ddp", "settings": DRAWN},
        {"folder": root / "whole-fsdp2", "settings": fsdp2},
        {"folder": root / "killed-ddp", "settings": {**DRAWN, "save_seconds": "0"}, "resume": True},
        {"folder": root / "killed-fsdp2", "settings": {**fsdp2, "save_seconds": "0"}, "resume": True},
        {"folder": root / "signal", "settings": DRAWN, "happening": happens("SIGTERM", 11, 1)},
        {"folder": root / "one-then-two", "settings": PLAIN, "resume": True},
        {"folder": root / "two-then-one", "settings": PLAIN, "happening": happens("SIGINT", 13, 0)},
        {
            "folder": root / "two-then-one-fsdp2",
            "settings": {**PLAIN, "parallel": "fsdp2"},
            "happening": happens("SIGINT", 13, 0),
        },
        {
            "folder": root / "process-then-one",
            "settings": {**PLAIN, "batch_of": "process", "batch_size": "2"},
            "happening": happens("SIGINT", 13, 1),
        },
        {"folder": root / "odd", "settings": {**PLAIN, "batch_size": "5"}},
        {
            "folder": root / "full",
            "settings": {**DRAWN, "save_seconds": "0"},
            "happening": happens("full disk", 9),
        },
        {
            "folder": root / "full-fsdp2",
            "settings": {**fsdp2, "save_seconds": "0"},
            "happening": happens("full disk", 9),
        },
        {"folder": root / "error", "settings": {**DRAWN, "save_seconds": "0"}, "happening": happens("error", 7, 1)},
        {"folder": root / "unreadable", "settings": PLAIN, "happening": happens("unreadable", 0, 1)},
        {"folder": root / "unequal", "settings": unreadable(root)},
        {"folder": root / "stopped-in-a-test", "settings": DRAWN, "happening": happens("SIGTERM", 50, 0, in_test=True)},
        {"folder": root / "stopped-in-a-test", "settings": DRAWN, "resume": True},
        {"folder": root / "after-all", "settings": {**PLAIN, "epochs": "1"}},
    ]
    completed(root, [run for run in plan if FSDP2 or run["settings"].get("parallel") != "fsdp2"])
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain-ddp", "process", pytest.param("plain-fsdp2", marks=needs_fsdp2)])
def test_losses_agree_with_one_process(runs, name):
    assert sum(record["kind"] == "train" for record in records(runs / "one")) == 50
    assert_near(runs / name, runs / "one")
    assert load_model(runs / name / "model.safetensors").config == load_model(runs / "one/model.safetensors").config


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp2", marks=needs_fsdp2)])
def test_killed_and_resumed_is_uninterrupted(runs, parallel):
    assert_same(runs / f"killed-{parallel}", runs / f"whole-{parallel}")
    assert not (runs / f"killed-{parallel}/states").exists()


@pytest.mark.slow
@needs_fsdp2
def test_fsdp2_trains_as_ddp(runs):
    assert_near(runs / "whole-fsdp2", runs / "whole-ddp")


@pytest.mark.slow
def test_processes_with_unequally_many_images_train_as_one(runs):
    alone(runs / "unequal-alone", unreadable(runs))
    kept = ("train", "test")
    one, other = ([r for r in records(runs / name) if r["kind"] in kept] for name in ("unequal-alone", "unequal"))
    assert len(one) == len(other) == 30
    for mine, theirs in zip(one, other, strict=True):
        for key in ("train_loss", "grad_norm", "test_loss"):
            assert mine.get(key) == pytest.approx(theirs.get(key), abs=1e-5)


@pytest.mark.slow
def test_a_signal_during_a_test_stops_all_and_loses_nothing(runs):
    assert_same(runs / "stopped-in-a-test", runs / "whole-ddp")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(runs):
    for result in results(runs / "signal"):
        assert result["error"] == "Interrupted"
        assert result["message"].startswith("stopped by SIGTERM, and saved; go on with: vit-rs train --resume")
    assert states(runs / "signal") == ["step-000000011.pt"]
    completed(runs, [{"folder": runs / "signal", "settings": DRAWN, "resume": True}])
    assert_same(runs / "signal", runs / "whole-ddp")


@pytest.mark.slow
def test_other_numbers_of_processes_go_on(runs):
    assert (
        "Note: step-000000013.pt was saved by 1 process, and 2 processes go on"
        in (results(runs / "one-then-two")[0]["told"])
    )
    assert_near(runs / "one-then-two", runs / "one")
    alone(runs / "two-then-one", PLAIN, resume=True)
    assert_near(runs / "two-then-one", runs / "one")


@pytest.mark.slow
@needs_fsdp2
def test_one_process_goes_on_from_parts(runs):
    folder = runs / "two-then-one-fsdp2"
    assert states(folder) == ["step-000000013"]
    alone(folder, {**PLAIN, "parallel": "fsdp2"}, resume=True)
    assert_near(folder, runs / "one")


@pytest.mark.slow
def test_batches_of_a_process_need_as_many_processes(runs):
    from vit_rs.exceptions import ConfigError

    folder = runs / "process-then-one"
    with pytest.raises(ConfigError, match=r"was saved by 2 processes of 2 images each .* resume with 2 processes"):
        alone(folder, {**PLAIN, "batch_of": "process", "batch_size": "2"}, resume=True)
    assert states(folder) == ["step-000000013.pt"]


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided_is_an_error_before_anything_is_made(runs):
    assert [result["error"] for result in results(runs / "odd")] == ["ConfigError", "OtherProcessError"]
    for result in results(runs / "odd"):
        assert "batch_size: 5 images cannot be divided evenly among 2 processes" in result["message"]
        assert "for example 4 or 6" in result["message"]
    assert not (runs / "odd").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", pytest.param("full-fsdp2", marks=needs_fsdp2)])
def test_a_full_disk_leaves_the_last_state(runs, name):
    suffix = "" if "fsdp2" in name else ".pt"
    assert states(runs / name) == [f"step-00000000{step}{suffix}" for step in (7, 8)]
    first, second = results(runs / name)
    assert "No space left on device" in first["message"]
    assert "the last checkpoint is kept: go on with" in first["message"]
    assert second["message"].startswith("process 0 of this run failed: ")
    assert "No space left on device" in second["message"]


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(runs):
    first, second = results(runs / "error")
    assert "image.png" in second["message"]
    assert first["error"] == "OtherProcessError"
    assert "process 1 of this run failed: [Errno 5] cannot be read: 'image.png'" in first["message"]
    assert "the last checkpoint is kept" in first["message"]
    assert (runs / "after-all/summary.json").is_file()


@pytest.mark.slow
def test_an_error_before_training_ends_all(runs):
    first, second = results(runs / "unreadable")
    assert first["message"] == "process 1 of this run failed: photos: expected at least two classes, got 1: cat"
    assert second["error"] == "DatasetError"
    assert not (runs / "unreadable").exists()


@pytest.mark.slow
def test_a_lost_process_ends_the_others(root, killed):
    folder = root / "lost"
    run = {
        "folder": folder,
        "settings": {**PLAIN, "epochs": "400", "save_seconds": "0"},
        "happening": happens("SIGKILL", 30, 1),
    }
    start = time.monotonic()
    process = launched(root, [run])
    ended(process, seconds=600)
    assert process.returncode != 0
    assert time.monotonic() - start < 500  # far less than the half hour that a silent process is waited for
    result = json.loads((root / "lost.0.json").read_text())
    assert result["error"] == "VitRsError"
    assert result["message"].startswith("a process of this run was lost")
    assert "the last checkpoint is kept: go on with" in result["message"]
    assert load_state(folder / "states" / states(folder)[-1])["step"] in (29, 30)


@pytest.mark.slow
def test_a_signal_to_torchrun_stops_and_saves(runs):
    folder = runs / "agent"
    process = launched(runs, [{"folder": folder, "settings": {**DRAWN, "epochs": "400"}}])
    deadline = time.monotonic() + 400
    while not (folder / "metrics.jsonl").is_file() or len(records(folder)) < 5:
        if time.monotonic() > deadline:
            process.terminate()
            pytest.fail(f"training did not begin: {ended(process, seconds=300)}")
        time.sleep(0.1)
    # As a cluster does: to all, so that torchrun's own comes to its processes a second time.
    children = [int(number) for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) == 2
    for number in (*children, process.pid, *children):
        os.kill(number, signal.SIGTERM)
    ended(process, seconds=300)
    [name] = states(folder)
    for result in results(folder):
        assert result["message"].startswith("stopped by SIGTERM, and saved")
    last = load_state(folder / "states" / name)
    assert last["world_size"] == len(last["processes"]) == 2
