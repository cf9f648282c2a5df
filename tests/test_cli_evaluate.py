"""`vit-rs eval`: the run's own figures again, classes matched by name, errors of one line."""

from __future__ import annotations

import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vit_rs.checkpoints import load_model, save_checkpoint
from vit_rs.cli import main, subjects
from vit_rs.evaluation import Preprocessing
from vit_rs.models import VisionTransformer, ViTConfig
from vit_rs.training.metrics import read_metrics

SETTINGS = (
    *("torch_threads=1", "model.embed_dim=16", "model.depth=1", "model.num_heads=2", "batch_size=16", "epochs=2"),
    *("finetune.epochs=0", "evaluation.shots=0", "optim.lr=0.01", "data.img_size=14", "data.eval_crop=0.875"),
    *("model.patch_size=7", "data.holdout=0.3", "data.split_seed=7"),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four classes of plain colours with noise: some are told apart, some are not."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for level, name in enumerate(("ash", "elm", "fir", "oak")):
        (root / name).mkdir()
        for number in range(10):
            pixels = rng.integers(0, 160, (20, 24, 3)) + 20 * level
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """The folder of a tiny run on the photographs."""
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vit_rs.cli.train._draw", lambda _folder: ())
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        assert main(["train", "image_folder", "--data", str(photos), "--out", str(out), *settings]) == 0
    return out


def result(capsys, *arguments: object) -> dict:
    assert main(["eval", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys, *arguments: object) -> str:
    assert main(["eval", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("vit-rs: error: ")
    assert err.count("\n") == 1
    return err


def test_it_says_what_the_run_said(run, photos, capsys, tmp_path):
    *_, record = (record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "test")
    got = result(capsys, run / "model.safetensors", "--data", photos, "--out", tmp_path / "e.json", "--threads", 1)
    assert (got["top1"], got["count"]) == (record["test_top1"], record["test_images"])
    assert got["loss"] == pytest.approx(record["test_loss"], rel=1e-6)
    assert got["preprocessing"] == Preprocessing((14, 14), crop=0.875, mean=MEAN, std=STD).to_dict()
    assert "held out by seed 7" in got["data"]
    assert (got["count"], got["top5"], got["notes"], got["split"]) == (12, None, [], "test")
    assert json.loads((tmp_path / "e.json").read_text()) == got


# Those of the recipe image_folder.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_the_table(run, photos, capsys):
    assert main(["eval", str(run / "model.safetensors"), "--data", str(photos), "--img-size", "21"]) == 0
    out, err = capsys.readouterr()
    assert "21x21 px" in out
    for words in ("Note: resampled: pos_embed", "top-1  ", "calibration error", "Brier score", "fir  ", "taken for"):
        assert words in out
    assert not err


def test_other_parts_and_other_splits(run, photos, capsys):
    path = run / "model.safetensors"
    parts = {part: result(capsys, path, "--data", photos, "--split", part) for part in ("test", "train", "all")}
    assert {part: got["count"] for part, got in parts.items()} == {"test": 12, "train": 28, "all": 40}
    both = np.add(parts["test"]["confusion"], parts["train"]["confusion"])
    np.testing.assert_array_equal(both, parts["all"]["confusion"])
    assert not parts["test"]["notes"]
    other = result(capsys, path, "--data", photos, "--holdout", 0.5)
    assert other["count"] == 20
    assert "may have seen test images" in other["notes"][0]


def test_a_result_that_cannot_be_written_is_printed(run, photos, capsys, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "e.json")

    monkeypatch.setattr("vit_rs.checkpoints.atomic_write", full)
    assert main(["eval", str(run / "model.safetensors"), "--data", str(photos), "--out", str(tmp_path / "e.json")]) == 2
    out, err = capsys.readouterr()
    assert "calibration error" in out
    assert err == "vit-rs: error: No space left on device: e.json\n"


def test_a_file_without_the_split_says_so(run, photos, capsys, tmp_path):
    save_checkpoint(tmp_path / "m.safetensors", load_model(run / "model.safetensors"))
    options = ("--data", photos, "--mean", "0.5", "--std", "0.5")
    [held_out, unnamed] = result(capsys, tmp_path / "m.safetensors", *options)["notes"]
    assert "does not say which images were held out of its training" in held_out
    assert "does not name its outputs" in unnamed
    assert result(capsys, tmp_path / "m.safetensors", *options, "--split-seed", 7)["notes"] == [unnamed]
    assert result(capsys, tmp_path / "m.safetensors", *options, "--split", "all")["notes"] == [unnamed]


def rearranged(photos, root, order):
    """Make a file of a model whose outputs have the folder's names in another order; its weights are constant."""
    torch.manual_seed(0)
    model = VisionTransformer(ViTConfig(img_size=14, patch_size=7, num_classes=4, embed_dim=8, depth=1, num_heads=2))
    torch.nn.init.normal_(model.head.weight)
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight[order])
    names = sorted(path.name for path in photos.iterdir())
    metadata = {"classes": [names[i] for i in order], "preprocessing": Preprocessing((14, 14)).to_dict()}
    save_checkpoint(root / "m.safetensors", model, metadata=metadata)
    return root / "m.safetensors"


def test_classes_are_matched_by_name(photos, capsys, tmp_path):
    plain = result(capsys, rearranged(photos, tmp_path, [0, 1, 2, 3]), "--data", photos, "--split", "all")
    order = [2, 0, 3, 1]
    other = result(capsys, rearranged(photos, tmp_path, order), "--data", photos, "--split", "all")
    assert other["top1"] == plain["top1"]
    assert other["loss"] == pytest.approx(plain["loss"])
    np.testing.assert_array_equal(np.array(plain["confusion"])[order][:, order], other["confusion"])
    assert [item["class"] for item in other["per_class"]] == ["fir", "ash", "oak", "elm"]
    assert other["notes"] == ["the images' classes come in another order: matched by name"]
    assert plain["notes"] == []


def test_other_people_s_files(photos, capsys, tmp_path):
    model = VisionTransformer(
        ViTConfig(img_size=32, patch_size=16, num_classes=4, embed_dim=192, depth=12, num_heads=3)
    )
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    named = ("--model", "vit_tiny_patch16_224", "--img-size", "32", "--data", photos, "--crop", "1")
    got = result(capsys, tmp_path / "m.safetensors", *named, "--num-classes", 4, "--precision", "bfloat16")
    assert got["preprocessing"]["interpolation"] == "bicubic"
    assert (got["preprocessing"]["crop"], got["precision"]) == (1.0, "bfloat16")
    assert "head.weight: got (4, 192), expected (1000, 192)" in fails(capsys, tmp_path / "m.safetensors", *named)


def test_errors_are_one_line(run, photos, capsys, tmp_path):
    path = run / "model.safetensors"
    for name in ("ash", "yew", "fir", "oak"):
        (tmp_path / "trees" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (20, 20)).save(tmp_path / "trees" / name / f"{number}.png")
    message = fails(capsys, path, "--data", tmp_path / "trees")
    assert "only the model has 'elm'; only the images have 'yew'" in message
    shutil.copytree(photos, tmp_path / "more")
    shutil.copytree(photos / "elm", tmp_path / "more" / "yew")
    assert fails(capsys, path, "--data", tmp_path / "more").endswith("are of 5: only the images have 'yew'\n")
    message = fails(capsys, path)
    assert "takes images of 3 channel(s); the bundled images, which are used without --data, have 1: give" in message
    assert "no such data folder" in fails(capsys, path, "--data", tmp_path / "none")
    assert "no such checkpoint" in fails(capsys, tmp_path / "none")
    assert "holdout must be above 0 and below 1, got 2.0" in fails(capsys, path, "--data", photos, "--holdout", 2)
    for device in ("gpu", "meta", "opencl", "vulkan"):  # unknown, without numbers, retired, not in our torch
        assert len(fails(capsys, path, "--device", device).partition(f"device {device!r} cannot be used: ")[2]) > 20
    assert "is not divisible by patch_size" in fails(capsys, path, "--data", photos, "--img-size", "20")
    assert "needs a model's name" in fails(capsys, path, "--num-classes", 3)
    assert "convention must be one of" in fails(capsys, path, "--convention", "x", "--img-size", "21")
    (photos / "elm" / "0.png").rename(tmp_path / "0.png")
    (photos / "elm" / "0.png").write_bytes(b"no image")
    try:
        assert "0.png" in fails(capsys, path, "--data", photos, "--split", "all")
    finally:
        (tmp_path / "0.png").replace(photos / "elm" / "0.png")


@pytest.mark.parametrize(
    "wrong",
    [
        *(("--mean", "a"), ("--batch-size", "0"), ("--split", "val"), ("--threads", "-1")),
        *(("--out", "none/e.json"), ("--out", "."), ("--img-size", "0")),
    ],
)
def test_arguments_that_argparse_refuses(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["eval", "m.safetensors", *wrong])
    assert stop.value.code == 2
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        subjects.os, "access", lambda path, _mode: str(path) != str(tmp_path)
    )  # root may write anywhere
    (tmp_path / "link.json").symlink_to(tmp_path / "inner" / "e.json")
    (tmp_path / "inner").mkdir()
    assert subjects._new_file(str(tmp_path / "link.json")) == tmp_path / "link.json"
    with pytest.raises(SystemExit):
        main(["eval", "m.safetensors", "--out", str(tmp_path / "e.json")])
    told = capsys.readouterr().err
    assert f"argument --out: cannot write {tmp_path / 'e.json'}: nothing can be written into {tmp_path}" in told


def test_progress_is_told_of_long_work_only(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(subjects.time, "monotonic", lambda: now[0])
    with subjects.Progress("testing") as progress:
        for seconds, done in ((1, 10), (3, 30), (4, 40), (34, 340), (100, 1000)):
            now[0] = float(seconds)
            progress(done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "vit-rs: testing: 30 of 1,000 images, 97 s left",
        "vit-rs: testing: 340 of 1,000 images, 66 s left",
        "vit-rs: testing: 1,000 of 1,000 images, 0 s left",
    ]
