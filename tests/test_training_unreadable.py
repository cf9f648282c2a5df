"""Runs whose images cannot all be read: what is left out is counted and named, and nothing is trained on nothing."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vit_rs.checkpoints import load_model
from vit_rs.exceptions import DatasetError, DecodeError
from vit_rs.recipes import fashion_mnist
from vit_rs.training import job, train
from vit_rs.training.engine import Engine
from vit_rs.training.metrics import MetricsLog, read_metrics, unreadable_images
from vit_rs.training.parallel import Parallel
from vit_rs.training.shared_evaluation import shared_features, shared_test
from vit_rs.training.sources import open_sources
from vit_rs.training.stages import build_stages
from vit_rs.training.summary import unreadable_line
from vit_rs.training.values import apply_settings, parse_settings

TINY = (
    *("torch_threads=1", "loader_threads=1", "epochs=2", "batch_size=2", "log_every=2", "finetune.epochs=0"),
    *("model.embed_dim=16", "model.depth=1", "model.num_heads=2", "model.patch_size=4", "data.img_size=8"),
    *("data.mean=0.5", "data.std=0.5", "evaluation.shots=0", "method.mixup=0.5", "optim.warmup_epochs=0"),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make class folders train/ and val/ of six and two images, of which some are cut off in the middle."""
    monkeypatch.setattr(job, "_MEASURE_SECONDS", 0.0)

    def made(*broken):
        rng = np.random.default_rng(0)
        for name in [f"train/{label}/{i}" for label in "ab" for i in range(3)] + ["val/a/0", "val/b/0"]:
            path = tmp_path / "data" / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            data = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(data, "JPEG")
            path.write_bytes(data.getvalue()[: 300 if name in broken else None])
        return tmp_path / "data"

    return made


def config(root, *settings):
    base = fashion_mnist.config()
    base = apply_settings(base, parse_settings(base, [*TINY, f"data.path={root}"]))
    return apply_settings(base, parse_settings(base, settings))


def run(root, out, *settings):
    summary = train(config(root, *settings), out, progress=False)
    return summary, read_metrics(out / "metrics.jsonl")


def test_by_default_the_run_ends_and_names_the_image(folder, tmp_path):
    with pytest.raises(DecodeError, match=r"train.b.1\.jpg"):
        run(folder("train/b/1"), tmp_path / "run")


@pytest.mark.parametrize("on_error", ["skip", "substitute"])
def test_what_was_left_out_is_counted_and_named(folder, tmp_path, on_error):
    root = folder("train/a/0", "train/b/1", "val/b/0")
    summary, records = run(root, tmp_path / "run", f"data.on_error={on_error}")
    unreadable = [record for record in records if record["kind"] == "unreadable"]
    assert [(record["epoch"], record["step"]) for record in unreadable] == [(1, 3), (2, 6)]
    # Substitution may draw the other one of the two.
    assert all(record["images"] == 2 if on_error == "skip" else record["images"] >= 2 for record in unreadable)
    # Two images, however often they were met.
    named = sorted(line for record in unreadable for line in record["new"])
    assert [next(name for name in ("a/0", "b/1") if f"{name}.jpg" in line) for line in named] == ["a/0", "b/1"]
    assert (summary["data"]["unreadable"], summary["data"]["unreadable_examples"]) == (2, named)
    assert summary["stages"][0]["test_images"] == 1  # not a second image in the place of the other
    page = (tmp_path / "run" / "summary.md").read_text()
    assert "2 of 6 training images could not be read:\n\n- " in page
    assert unreadable_line(summary).startswith("2 of 6 training images could not be read; 1 of 2 test images could not")
    assert "pretrain: tested on 1 of 2 images; the others could not be read." in page


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk of Linux")
def test_a_full_disk_names_the_records(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append({"kind": "unreadable", "new": ["a", "b"]})
    log.close()
    log = MetricsLog(path, keep=1)
    assert log.unreadable == {"a", "b"}  # a resumed run names none twice
    log._file.close()
    log._file = Path("/dev/full").open("a")  # noqa: SIM115  (the log closes it)
    with pytest.raises(OSError, match="No space left") as caught:
        log.append({"kind": "train"})
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="No space left"):
        log.close()


def test_records_of_older_versions_still_count():
    records = [{"kind": "unreadable", "images": 4, "examples": ["a", "b"]}, {"kind": "unreadable", "new": ["b", "c"]}]
    assert unreadable_images(records) == {"a", "b", "c"}


def test_a_step_without_images_changes_nothing(folder, tmp_path):
    root = folder("train/a/0", "train/b/1")
    settings = ("data.on_error=skip", "batch_size=1", "log_every=1", "optim.ema_decay=0.5")
    [stage] = build_stages(config(root, *settings), open_sources(config(root).data), Parallel("ddp", "cpu"))
    engine = Engine(stage, stage.initial_model(None))
    engine.step(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]), 0)
    before = {name: value.clone() for name, value in engine.model.state_dict().items()}
    average = {name: value.clone() for name, value in engine.tested_model.state_dict().items()}
    loss, norm = engine.step(torch.empty(0, 3, 8, 8), torch.empty(0, dtype=torch.int64), 1)
    assert (loss, norm) == (0.0, 0.0)
    assert all(torch.equal(before[name], value) for name, value in engine.model.state_dict().items())
    assert all(torch.equal(average[name], value) for name, value in engine.tested_model.state_dict().items())


def test_empty_batches_count_as_steps_and_not_in_the_loss(folder, tmp_path):
    root = folder("train/a/0", "train/b/1")
    settings = ("data.on_error=skip", "batch_size=1", "epochs=10", "method.mixup=0", "optim.lr=1e-6")
    _, records = run(root, tmp_path / "run", *settings)
    training = [record for record in records if record["kind"] == "train"]
    assert (training[-1]["step"], training[0]["train_loss"]) == (60, pytest.approx(math.log(2), rel=1e-3))
    # A third of the images cannot be read: means over all steps would be lower.
    assert all(record["train_loss"] == pytest.approx(math.log(2), rel=0.01) for record in training)
    assert all(p.isfinite().all() for p in load_model(tmp_path / "run" / "model.safetensors").parameters())


@pytest.mark.parametrize("broken", [("train/a/0", "train/a/1"), ("train/a/0", "train/a/1", "train/a/2")])
def test_too_few_readable_images_of_a_class_have_no_few_shot_result(folder, tmp_path, broken):
    settings = ("data.on_error=skip", "evaluation.shots=2", "evaluation.fewshot_seeds=0", "epochs=1")
    summary, _ = run(folder(*broken), tmp_path / "run", *settings)
    left = 3 - len(broken)
    assert summary["stages"][0]["fewshot"] == {
        "skipped": f"class 'a' has {left} training image(s), fewer than 2, that can be read"
    }


class Other(Parallel):
    """The second of two processes; the first one's part in the sums and gathered values is given."""

    def __init__(self, sums, gathered):
        super().__init__("ddp", "cpu")
        self.rank, self.world_size, self.sums, self.gathered = 1, 2, sums, gathered

    def total(self, values):
        return [own + theirs for own, theirs in zip(values, self.sums, strict=True)]

    def gather(self, value):
        return [self.gathered, value]


@pytest.mark.parametrize("broken", [["val/b/0"], ["val/a/0", "val/b/0"]])
def test_a_process_none_of_whose_images_can_be_read(folder, broken):
    everything = len(broken) == 2
    features = (torch.empty(0), torch.empty(0).long()) if everything else (torch.ones(1, 16), torch.tensor([0]))
    process = Other([0.0, 0.0, 0.0] if everything else [1.0, 1.0, 0.25], features)
    given = config(folder(*broken), "data.on_error=skip", "batch_size=4")
    [stage] = build_stages(given, open_sources(given.data), process)
    model, asked = stage.initial_model(None), []
    with stage.test_loader() as loader:
        for shared, expected in (
            (shared_test, {"top1": 1.0, "loss": 0.25, "count": 1}),
            (shared_features, features),
        ):
            if everything:
                with pytest.raises(DatasetError, match=r"none of 2 images to test with could be read: .*val.b.0\.jpg"):
                    shared(stage, model, loader, images=2, go_on=lambda: asked.append(1))
                continue
            got = shared(stage, model, loader, images=2, go_on=lambda: asked.append(1))
            assert got == expected if shared is shared_test else all(map(torch.equal, got, expected))
    assert len(asked) == 2  # as often as the other process


def test_a_lone_process_without_a_readable_test_image_says_so(folder, tmp_path):
    with pytest.raises(DatasetError, match=r"none of 2 images to test with could be read: .*\.jpg"):
        run(folder("val/a/0", "val/b/0"), tmp_path / "run", "data.on_error=skip")


def test_training_on_nothing_is_an_error(folder, tmp_path):
    root = folder(*(f"train/{label}/{i}" for label in "ab" for i in range(3)))
    with pytest.raises(DatasetError, match=r"no image of the last 3 steps could be read: .*\.jpg"):
        run(root, tmp_path / "run", "data.on_error=skip")
