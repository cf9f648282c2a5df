"""`vit-rs fewshot`, `knn` and `probe`: the numbers of the library's functions, records, errors of one line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vit_rs.checkpoints import save_checkpoint
from vit_rs.cli import main
from vit_rs.data import sample_dataset
from vit_rs.data.splits import open_splits
from vit_rs.evaluation import Preprocessing, fewshot_lsr, knn_classify, load_or_extract, open_subject, pixel_features
from vit_rs.models import VisionTransformer, ViTConfig


def saved(path, *, side: int, channels: int, split: dict | None = None, **fields) -> str:
    torch.manual_seed(0)
    config = ViTConfig(
        img_size=side, patch_size=7, in_chans=channels, embed_dim=8, depth=2, num_heads=2, num_classes=4, **fields
    )
    preprocessing = Preprocessing((side, side), mean=(0.5,) * channels, std=(0.3,) * channels).to_dict()
    save_checkpoint(path, VisionTransformer(config), metadata={"preprocessing": preprocessing, "split": split})
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four classes of colours in train/ and val/, and a ViT without training."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for level, name in enumerate(("ash", "elm", "fir", "oak")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 90, (16, 20, 3)) + 50 * level
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{number}.png")
    saved(root / "model.safetensors", side=14, channels=3)
    saved(root / "average.safetensors", side=14, channels=3, class_token=False, global_pool="avg")
    return root


def result(capsys, command, folder, *arguments, model="model"):
    given = [command, str(folder / f"{model}.safetensors"), "--data", str(folder), "--no-cache", "--json"]
    assert main([*given, *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def features(folder):
    subject, splits = open_subject(folder / "model.safetensors"), open_splits(folder)
    return subject, splits, (*load_or_extract(subject, splits.train), *load_or_extract(subject, splits.test))


def test_fewshot_runs_on_the_bundled_images(tmp_path, capsys):
    path = saved(tmp_path / "m.safetensors", side=28, channels=1)
    out = tmp_path / "few.json"
    options = ["--shots", "1,2", "--seeds", "0,1", "--baseline", "14", "--cache", tmp_path / "kept", "--out", out]
    assert main(["fewshot", path, *map(str, options)]) == 0
    table = capsys.readouterr().out
    assert "bundled Fashion-MNIST" in table
    assert "features top-1" in table
    assert "pixels top-1" in table
    got = json.loads(out.read_text())
    pixels = got["baseline"]["2"]
    assert 0.3 < pixels["top1"] < 0.7  # ten classes, two images of each
    assert f"{100 * pixels['top1']:.2f} %" in table
    assert (got["test_images"], got["classes"]) == (1000, sample_dataset("test").classes)
    assert got["protocol"]["l2"] == 1024
    assert got["protocol"]["bias_feature"] == 100
    assert got["baseline_preprocessing"]["img_size"] == [14, 14]
    assert len(got["results"]["1"]["grid"]) == 30
    assert len(list((tmp_path / "kept" / "features").iterdir())) == 2  # drawn and test images


def test_fewshot_with_the_drawn_images_alone_is_that_with_all(folder, capsys):
    _, _, tensors = features(folder)
    got = result(capsys, "fewshot", folder, "--shots", "1,3", "--seeds", "0,5", "--grid", "1,1024", "--l2", "7")
    expected = fewshot_lsr(*tensors, shots=(1, 3), seeds=(0, 5), l2=7.0, grid=(1.0, 1024.0))
    assert got["results"] == {str(k): value for k, value in expected.items()}


def test_knn_and_its_baseline(folder, capsys):
    subject, splits, tensors = features(folder)
    got = result(capsys, "knn", folder, "--k", "1,10", "--temperature", "0.2", "--baseline")
    assert got["results"] == {str(k): v for k, v in knn_classify(*tensors, k=(1, 10), temperature=0.2).items()}
    pixels = [pixel_features(part, subject.preprocessing, channels=3) for part in (splits.train, splits.test)]
    assert pixels[0].features.shape == (48, 3 * 14 * 14)
    expected = knn_classify(*pixels[0], *pixels[1], k=(1, 10), temperature=0.2)
    assert got["baseline"] == {str(k): v for k, v in expected.items()}
    assert got["baseline"]["1"]["top1"] > 0.4
    assert (got["protocol"]["temperature"], got["protocol"]["k"]) == (0.2, [1, 10])


def test_a_run_on_few_images_is_probed_on_all(folder, capsys):
    split = {"holdout": 0.3, "split_seed": 5, "per_class": 3}
    saved(folder / "few.safetensors", side=14, channels=3, split=split)
    got = result(capsys, "knn", folder, "--k", "1", model="few")
    assert (got["train_images"], got["test_images"]) == (48, 16)
    [note] = got["notes"]
    assert "used the first 3 training images of each class: these are all (--per-class 3 takes as many)" in note
    got = result(capsys, "knn", folder, "--k", "1", "--per-class", 3, model="few")
    assert (got["train_images"], got["test_images"], got["notes"]) == (12, 16, [])
    few = [str(folder / "few.safetensors"), "--data", str(folder), "--json"]
    for part, count, about in (("test", 16, False), ("train", 48, True)):  # test images are the same with or without
        assert main(["eval", *few, "--split", part]) == 0
        got = json.loads(capsys.readouterr().out)
        assert (got["count"], any("--per-class 3" in note for note in got["notes"])) == (count, about)


def test_what_few_images_cannot_give_is_left_out_of_the_default(folder, capsys):
    fewshot = result(capsys, "fewshot", folder)
    assert list(fewshot["results"]) == ["1", "5", "10"]
    assert fewshot["notes"] == ["--shots 25 of the default left out: class 'ash' has 12 training images"]
    knn = result(capsys, "knn", folder)
    assert list(knn["results"]) == ["10", "20"]
    assert knn["notes"] == ["--k 100,200 of the default left out: there are 48 training images"]
    fewest = result(capsys, "knn", folder, "--per-class", 2)
    assert list(fewest["results"]) == ["8"]
    assert fewest["notes"] == ["--k 10,20,100,200 of the default left out: there are 8 training images"]


def test_a_cache_that_cannot_be_written_is_told_once(folder, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    given = ["knn", str(folder / "model.safetensors"), "--data", str(folder), "--k", "5"]
    assert main([*given, "--cache", str(tmp_path / "file"), "--json"]) == 0
    [note] = json.loads(capsys.readouterr().out)["notes"]
    assert note == f"the features are not kept: Not a directory: {tmp_path / 'file' / 'features'}"


@pytest.mark.parametrize("features_of", ["pooled", "cls"])
def test_probe_of_each_kind_of_features(folder, capsys, features_of):
    got = result(capsys, "probe", folder, "--protocol", "mocov3", "--epochs", 30, "--features", features_of)
    assert got["results"]["protocol"]["steps"] == 30
    assert got["results"]["top1"] > 0.25
    assert got["features"] == features_of


@pytest.mark.parametrize("strengths", [3, 12])
def test_logistic_regression_is_the_default(folder, capsys, monkeypatch, strengths):
    from vit_rs.evaluation import logistic

    monkeypatch.setattr(logistic, "C_DECADES", logistic.C_DECADES[:strengths])
    got = result(capsys, "probe", folder)
    assert got["results"]["protocol"]["name"] == "logistic"
    assert len(got["results"]["candidates"]) == strengths
    assert f"{strengths} strengths C; published: 45, from 1e-6 to 1e5" in got["results"]["deviations"]
    assert got["results"]["top1"] > 0.25


def test_dinov2_takes_what_the_model_has(folder, capsys, monkeypatch):
    import dataclasses

    from vit_rs.evaluation.linear_probe import PROTOCOLS

    short = dataclasses.replace(PROTOCOLS["dinov2"], epoch_steps=3, base_lrs=(0.1, 1.0))
    monkeypatch.setitem(PROTOCOLS, "dinov2", short)
    got = result(capsys, "probe", folder, "--protocol", "dinov2", "--seeds", "0,1")
    parts = [(part["start"], part["end"]) for part in got["results"]["protocol"]["inputs"]]
    assert parts == [(8, 16), (8, 24), (0, 16), (0, 24)]
    assert len(got["results"]["candidates"]) == 8
    assert got["results"]["stderr"] is not None
    augmented = result(capsys, "probe", folder, "--protocol", "dinov2", "--augment")
    assert augmented["results"]["seeds"][0]["heldout_top1"] is not None
    got = result(capsys, "probe", folder, "--protocol", "dinov2", model="average")
    assert got["features"] == ["mean of patches"]
    assert any("no class token" in note for note in got["notes"])


def test_augmented_probe_is_the_same_again(folder, capsys):
    options = ["--protocol", "mae", "--epochs", 2, "--augment", "--probe-batch", 20]
    first, second = (result(capsys, "probe", folder, *options) for _ in range(2))
    assert first == second
    assert first["results"]["images"].startswith("random resized crops (8 % to 100 % of the area, bicubic)")
    assert first["results"]["protocol"]["steps"] == 4  # the last eight are left out
    # The images to train on go through the model augmented, and only so.
    kept = folder / "kept"
    given = ["probe", str(folder / "model.safetensors"), "--data", str(folder), "--cache", str(kept)]
    assert main([*given, *map(str, options)]) == 0
    assert len(list((kept / "features").iterdir())) == 1
    capsys.readouterr()
    plain = result(capsys, "probe", folder, *(option for option in options if option != "--augment"))
    assert plain["results"]["seeds"][0]["train_loss"] != first["results"]["seeds"][0]["train_loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fewshot", "--shots", "13"), "--shots 13: class 'ash' has 12 training images, too few for 13 shots"),
        (("fewshot", "--shots", "0"), "--shots must be at least 1, got 0"),
        (("fewshot", "--shots", "1", "--l2", "-1"), "l2 must be finite and over 0, got -1.0"),
        (("fewshot", "--shots", "1", "--grid", "1,inf"), "l2 must be finite and over 0, got inf"),
        (("knn", "--k", "10,200"), "--k 200: there are only 48 training images"),
        (("knn", "--k", "5", "--temperature", "0"), "temperature must be finite and over 0, got 0.0"),
        (("knn", "--k", "5", "--temperature", "inf"), "temperature must be finite and over 0, got inf"),
        (("probe", "--augment"), "--augment is for a protocol that trains in epochs, not for logistic"),
        (("probe", "--epochs", "0"), "--epochs is for a protocol that trains in epochs, not for logistic"),
        (
            ("probe", "--protocol", "mae", "--strengths", "decades"),
            "--strengths is for logistic, not for mae, which has no C to choose",
        ),
        (
            ("probe", "--protocol", "dinov2", "--features", "cls"),
            "--features cls: dinov2 says its own: class tokens of the last blocks, mean of the patches",
        ),
        (("probe", "--protocol", "mae", "--epochs", "-1"), "epochs must be at least 1, got -1"),
    ],
)
def test_errors_are_one_line(folder, capsys, arguments, message):
    command, *options = arguments
    assert main([command, str(folder / "model.safetensors"), "--data", str(folder), "--no-cache", *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"vit-rs: error: {message}\n")


def test_a_class_token_is_not_made_up(folder, capsys):
    path = str(folder / "average.safetensors")
    assert main(["probe", path, "--data", str(folder), "--no-cache", "--protocol", "mae", "--features", "cls"]) == 2
    assert "has no class token" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "1,,2", "a", "-1", "1.5"])
def test_lists_of_numbers_are_checked(value, capsys):
    with pytest.raises(SystemExit):
        main(["knn", "x", f"--k={value}"])
    assert "expected whole numbers with commas between them" in capsys.readouterr().err


def test_a_table_of_pixels_that_is_too_large_is_refused(folder):
    splits = open_splits(folder)
    with pytest.raises(ValueError, match=r"48 images of 9999x9999 take 54 GiB, expected at most 8"):
        pixel_features(splits.train, Preprocessing((9999, 9999)), channels=3)
