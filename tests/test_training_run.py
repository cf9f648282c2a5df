"""Whole runs, tiny ones: what they leave behind, that they repeat, and that failing ones leave nothing."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from vit_rs.checkpoints import load_model
from vit_rs.exceptions import CheckpointError, ConfigError, DecodeError
from vit_rs.recipes import fashion_mnist, image_folder
from vit_rs.training import TrainConfig, train
from vit_rs.training.metrics import read_metrics
from vit_rs.training.values import apply_settings, parse_settings

TINY = (
    "torch_threads=1",  # as fast at this size, and steadier on a busy machine
    "model.embed_dim=16",
    "model.depth=2",
    "model.num_heads=2",
    "model.dropout=0.1",
    "model.drop_path_rate=0.1",
    "data.per_class=10",
    "batch_size=32",
    "epochs=3",
    "method.mixup=0.2",
    "optim.ema_decay=0.9",
    "optim.warmup_epochs=1",
    "finetune.epochs=2",
    "finetune.img_size=42",
    "finetune.batch_size=32",
    "evaluation.every_epochs=2",
    "evaluation.fewshot_seeds=0,1",
)


def tiny(*settings: str) -> TrainConfig:
    config = fashion_mnist.config()
    config = apply_settings(config, parse_settings(config, TINY))
    return apply_settings(config, parse_settings(config, settings))


def timeless(folder):
    return [{k: v for k, v in record.items() if k != "time"} for record in read_metrics(folder / "metrics.jsonl")]


def assert_same_run(one, other):
    assert timeless(one) == timeless(other)
    for name in ("model.safetensors", "model-42px.safetensors"):
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    stream = io.StringIO()
    summary = train(tiny(), folder, stream=stream)
    return folder, summary, stream.getvalue()


def test_a_run_leaves_everything_in_its_folder(finished):
    folder, summary, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "model-42px.safetensors",
        "summary.json",
        "summary.md",
    }
    assert TrainConfig.from_json((folder / "config.json").read_text(), source="x") == tiny().validated()
    assert json.loads((folder / "summary.json").read_text()) == {
        key: value for key, value in summary.items() if key != "folder"
    }
    page = (folder / "summary.md").read_text()
    assert "| finetune | 42 px | 2 |" in page
    assert "| before finetune | 42 px | 0 |" in page


def test_the_summary_gives_both_stages(finished):
    _, summary, _ = finished
    first, second = summary["stages"]
    assert (first["stage"], first["size"], first["epochs"], first["steps"]) == ("pretrain", 28, 3, 9)
    assert (second["stage"], second["size"], second["epochs"], second["steps"]) == ("finetune", 42, 2, 6)
    assert 0.0 <= second["top1_before"] <= 1.0
    assert "top1_before" not in first
    for stage in (first, second):
        assert 0.0 <= stage["top1"] <= 1.0
        assert stage["fewshot"]["shots"] == 5
        assert len(stage["fewshot"]["top1_per_seed"]) == 2
        assert 0.0 <= stage["time"]["wait_share"] <= 1.0
    assert second["parameters"] > first["parameters"]  # more positions


def test_the_records_tell_the_run(finished):
    folder, _, _ = finished
    records = read_metrics(folder / "metrics.jsonl")
    steps = [(r["stage"], r["step"]) for r in records if r["kind"] == "train"]
    assert steps == [("pretrain", s) for s in range(1, 10)] + [("finetune", s) for s in range(1, 7)]
    tests = [(r["stage"], r["epoch"]) for r in records if r["kind"] == "test"]
    assert tests == [("pretrain", 2), ("pretrain", 3), ("finetune", 0), ("finetune", 2)]
    losses = [r["train_loss"] for r in records if r["kind"] == "train"]
    assert losses[0] == pytest.approx(math.log(10), abs=0.1)  # a zero head knows nothing
    assert all(r["grad_norm"] > 0 for r in records if r["kind"] == "train")
    assert all(r["time"]["seconds"] > 0 for r in records)


def test_the_plan_is_stated_first(finished):
    folder, _, text = finished
    plan = text.splitlines()[0]
    assert plan.startswith(f"Training {folder}: the bundled Fashion-MNIST subset: 100 training and 1,000 test images")
    assert "3 epochs at 28 px, then 2 epochs at 42 px; about " in plan
    assert "\r" not in text
    assert "\x1b" not in text


def test_the_saved_model_is_the_tested_one(finished):
    folder, summary, _ = finished
    model = load_model(folder / "model-42px.safetensors")
    assert model.config.img_size == 42
    assert sum(parameter.numel() for parameter in model.parameters()) == summary["stages"][1]["parameters"]


def test_it_says_so_where_one_thread_is_faster(tmp_path, monkeypatch):
    monkeypatch.setattr("vit_rs.training.job.measure", lambda *_a, **_k: 1e-3 * torch.get_num_threads())
    settings = ("epochs=1", "finetune.epochs=0", "torch_threads=none")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        stream = io.StringIO()
        train(tiny(*settings), tmp_path / "a", stream=stream)
        assert "one torch thread is 2.0 times as fast as 2 now" in stream.getvalue()
        torch.set_num_threads(1)
        stream = io.StringIO()
        train(tiny(*settings), tmp_path / "b", stream=stream)
        assert "times as fast" not in stream.getvalue()
    finally:
        torch.set_num_threads(threads)


def test_nothing_depends_on_loader_threads(finished, tmp_path):
    folder, _, _ = finished
    train(dataclasses.replace(tiny(), loader_threads=1), tmp_path / "a", progress=False)
    train(dataclasses.replace(tiny(), loader_threads=3), tmp_path / "b", progress=False)
    assert_same_run(folder, tmp_path / "a")
    assert_same_run(folder, tmp_path / "b")


def test_another_seed_is_another_run(finished, tmp_path):
    folder, _, _ = finished
    train(tiny("seed=1", "finetune.epochs=0"), tmp_path / "a", progress=False)
    assert timeless(tmp_path / "a")[:3] != timeless(folder)[:3]
    assert not (tmp_path / "a/model-42px.safetensors").exists()


def test_a_finished_run_is_left_alone(finished):
    folder, summary, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    stream = io.StringIO()
    assert train(tiny(), folder, resume=True, stream=stream) == summary
    assert f"{folder} is finished already" in stream.getvalue()
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(ConfigError, match="in use"):
        train(tiny(), folder)
    with pytest.raises(ConfigError, match=r"other settings.*: epochs is 3 there, got 4"):
        train(tiny("epochs=4"), folder, resume=True)


def test_no_few_shot_result_where_a_class_is_too_small(tmp_path):
    summary = train(tiny("data.per_class=3", "epochs=1", "finetune.epochs=0"), tmp_path / "a", progress=False)
    assert "has 3 training image(s), fewer than 5" in summary["stages"][0]["fewshot"]["skipped"]
    assert "no few-shot result" in (tmp_path / "a/summary.md").read_text()


def test_a_model_learns(tmp_path):
    config = tiny(
        "data.per_class=40",
        "epochs=12",
        "optim.lr=5e-3",
        "method.mixup=0",
        "method.cutmix=0",
        "finetune.epochs=0",
        "data.padding=0",
        "model.embed_dim=32", "model.dropout=0", "model.drop_path_rate=0",
    )  # fmt: skip
    summary = train(config, tmp_path / "a", progress=False)
    assert summary["stages"][0]["top1"] > 0.4  # chance is 0.1


def test_training_goes_on_from_a_checkpoint(finished, tmp_path):
    folder, _, _ = finished
    checkpoint = folder / "model.safetensors"
    config = tiny(f"model.init={checkpoint}", "data.img_size=35", "epochs=1", "finetune.epochs=0")
    summary = train(config, tmp_path / "a", progress=False)
    assert "top1_before" in summary["stages"][0]
    with pytest.raises(CheckpointError, match="does not fit the model"):
        train(tiny(f"model.init={checkpoint}", "model.depth=3"), tmp_path / "b", progress=False)
    with pytest.raises(FileNotFoundError):
        train(tiny(f"model.init={tmp_path / 'none'}"), tmp_path / "b", progress=False)
    torch.save({"a": load_file(checkpoint), "b": load_file(checkpoint)}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"several models.*\(the setting is model.init_section\)"):
        train(tiny(f"model.init={tmp_path / 'two.pth'}"), tmp_path / "b", progress=False)
    weights = load_file(checkpoint)
    weights["head.weight"], weights["head.bias"] = torch.zeros(3, 16), torch.zeros(3)
    save_file(weights, tmp_path / "three.safetensors")
    other = tiny(f"model.init={tmp_path / 'three.safetensors'}", "epochs=1", "finetune.epochs=0")
    with pytest.raises(CheckpointError, match=r"head.weight: got \(3, 16\), expected \(10, 16\)"):
        train(other, tmp_path / "b", progress=False)
    assert not (tmp_path / "b").exists()
    other = dataclasses.replace(other, model=dataclasses.replace(other.model, init_head="reset"))
    train(other, tmp_path / "b", progress=False)


def test_a_device_that_cannot_compute(tmp_path):
    with pytest.raises(ConfigError, match="device 'meta' cannot be used"):
        train(tiny("device=meta"), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("out", ["runs/deep/a", "empty"])
def test_a_broken_image_in_the_first_epoch_leaves_nothing(tmp_path, out):
    Image = pytest.importorskip("PIL.Image")
    data, empty = tmp_path / "data", tmp_path / "empty"
    empty.mkdir()
    for name in ("a", "b"):
        (data / name).mkdir(parents=True)
        for number in range(12):
            Image.effect_noise((24, 24), 50).convert("RGB").save(data / name / f"{number}.jpg")
    broken = data / "b" / "5.jpg"
    broken.write_bytes(broken.read_bytes()[:-40])
    config = apply_settings(
        image_folder.config(),
        parse_settings(
            image_folder.config(),
            [
                "torch_threads=1",
                "data.img_size=16",
                "model.embed_dim=48",
                "model.depth=1",
                "batch_size=4",
                "epochs=1",
                "finetune.epochs=0",
                "data.split_seed=1",
            ],
        ),
    )
    with pytest.raises(DecodeError, match=r"5\.jpg"):
        train(config_with(config, data), tmp_path / out, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "empty"}
    assert not list(empty.iterdir())


def config_with(config, data):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(data)))


def test_a_later_failure_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise DecodeError("7.jpg: truncated")

    with monkeypatch.context() as patch:
        patch.setattr("vit_rs.training.shared_evaluation.evaluate", fail)
        with pytest.raises(
            DecodeError,
            match=r"7.jpg: truncated \(vit-rs doctor --full .*on_error=skip .*\); the last .* go on with: .*--resume",
        ):
            train(tiny(), tmp_path / "a", progress=False)
    assert len(list((tmp_path / "a/states").iterdir())) == 1
    train(tiny(), tmp_path / "a", resume=True, progress=False)
    train(tiny(), tmp_path / "b", progress=False)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_divergence_is_said_and_not_saved(tmp_path):
    config = tiny("optim.lr=1e30", "optim.warmup_epochs=0", "optim.clip_norm=none", "optim.weight_decay=0")
    with pytest.raises(
        ConfigError, match=r"training diverged: the loss is (nan|inf).*set a lower optim.lr \(it is 1e\+30\)"
    ):
        train(config, tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_resuming_needs_the_same_images(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "vit_rs.training.shared_evaluation.evaluate", lambda *_a, **_k: (_ for _ in ()).throw(DecodeError("x"))
        )
        with pytest.raises(DecodeError):
            train(tiny(), tmp_path / "a", progress=False)
    config = (tmp_path / "a/config.json").read_text().replace('"per_class": 10', '"per_class": 20')
    (tmp_path / "a/config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"was saved with other settings, training images \(100, now 200\)"):
        train(tiny("data.per_class=20"), tmp_path / "a", resume=True, progress=False)
