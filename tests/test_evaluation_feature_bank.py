"""Kept features: the model's own, computed once, and never given out when anything has changed."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import Subset

from vit_rs.data import ArrayDataset, ImageFolder
from vit_rs.evaluation import ClassTokens, Preprocessing, Subject, default_cache, extract_features, load_or_extract
from vit_rs.evaluation.feature_bank import source_digest
from vit_rs.evaluation.subject import model_digest
from vit_rs.exceptions import CheckpointError, DatasetError, DecodeError
from vit_rs.models import BiTResNet, ResNetConfig, VisionTransformer, ViTConfig

CONFIG = ViTConfig(img_size=8, patch_size=4, num_classes=3, embed_dim=12, depth=3, num_heads=3, reg_tokens=2)


@pytest.fixture
def model(randomised) -> VisionTransformer:
    return randomised(VisionTransformer(CONFIG))


def subject_of(model) -> Subject:
    return Subject(model, Preprocessing((8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)), None, model_digest(model))


def pixels(count: int = 11) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


def arrays(count: int = 11) -> ArrayDataset:
    return ArrayDataset(pixels(count), np.arange(count) % 3)


def forbidden(*_: object) -> None:
    raise AssertionError("the model ran")


def inputs() -> torch.Tensor:
    images = torch.from_numpy(pixels()).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    return (images - mean[:, None, None]) / std[:, None, None]


# Which features


@pytest.mark.parametrize("batch_size", [4, 256])
def test_pre_logits(model, batch_size) -> None:
    got = load_or_extract(subject_of(model), arrays(), batch_size=batch_size)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(inputs()), pre_logits=True)
    torch.testing.assert_close(got.features, expected, rtol=1e-5, atol=1e-5)
    assert (got.features.dtype, got.labels.dtype) == (torch.float32, torch.int64)
    assert got.labels.tolist() == [i % 3 for i in range(11)]
    assert not got.features.is_inference()
    assert not got.labels.is_inference()


@pytest.mark.parametrize(
    ("what", "places"),
    [
        (ClassTokens(), [0]),
        (ClassTokens(3), [0, 1, 2]),
        (ClassTokens(2, average=True), [1, 2, "average"]),
        (ClassTokens(0, average=True), ["average"]),
    ],
)
def test_tokens_of_the_last_blocks(model, what, places) -> None:
    got = load_or_extract(subject_of(model), arrays(), what=what).features
    with torch.no_grad():
        layers = model.get_intermediate_layers(inputs(), 3, return_prefix_tokens=True, norm=True)
    blocks = [prefix[:, 0] for _, prefix in layers[3 - what.blocks :]] if what.blocks else []
    expected = torch.cat([*blocks, *([layers[-1][0].mean(1)] if what.average else [])], dim=1)
    assert got.shape == (11, 12 * len(places))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_features_that_a_model_does_not_have(randomised) -> None:
    with pytest.raises(ValueError, match="expected features of at least one kind"):
        ClassTokens(0)
    with pytest.raises(ValueError, match=r"at most 3 blocks \(the model's\), got 4"):
        load_or_extract(subject_of(VisionTransformer(CONFIG)), arrays(), what=ClassTokens(4))
    averaging = ViTConfig(**{**CONFIG.to_dict(), "class_token": False, "global_pool": "avg"})
    with pytest.raises(TypeError, match="has no class token"):
        load_or_extract(subject_of(VisionTransformer(averaging)), arrays(), what=ClassTokens())
    resnet = subject_of(BiTResNet(ResNetConfig(layers=(1,), num_classes=2)))
    with pytest.raises(TypeError, match="BiTResNet has no get_intermediate_layers"):
        load_or_extract(resnet, arrays(), what=ClassTokens())
    with pytest.raises(TypeError, match="what must be 'pre_logits' or ClassTokens"):
        load_or_extract(resnet, arrays(), what="cls")  # type: ignore[arg-type]


def test_the_number_of_images_is_checked(model) -> None:
    loader = [(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))] * 2
    for count in (3, 5):
        with pytest.raises(ValueError, match=f"yielded 4 images, expected {count}"):
            extract_features(model, loader, count=count)
    features, _ = extract_features(model, loader, count=4)
    assert torch.equal(features, extract_features(model, loader)[0])


# The cache


def test_the_model_runs_once(model, tmp_path) -> None:
    subject, done = subject_of(model), []
    first = load_or_extract(
        subject, arrays(), cache=tmp_path / "new" / "cache", batch_size=4, progress=lambda *n: done.append(n)
    )
    assert done == [(4, 11), (8, 11), (11, 11)]
    again = load_or_extract(subject, arrays(), cache=tmp_path / "new" / "cache", progress=forbidden, tell=forbidden)
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.labels, again.labels)
    [file] = (tmp_path / "new" / "cache").rglob("*.*")
    assert file.suffix == ".safetensors"


@pytest.fixture
def filled(model, tmp_path):
    """A folder with the features of `model` and `arrays()`, and a function that tells whether others came from it."""
    load_or_extract(subject_of(model), arrays(), cache=tmp_path)

    def hit(subject=None, source=None, **options) -> bool:
        runs = []
        load_or_extract(
            subject or subject_of(model),
            arrays() if source is None else source,
            cache=tmp_path,
            progress=lambda *n: runs.append(n),
            **options,
        )
        return not runs

    return hit


def test_anything_that_matters_is_another_key(filled, model) -> None:
    assert filled()
    assert filled(batch_size=3, num_threads=1)
    relabelled = ArrayDataset(pixels(), np.arange(11) % 2, classes="abc")
    repainted = pixels()
    repainted[5, 3, 3, 1] ^= 1
    subject = subject_of(model)
    moved = dataclasses.replace(subject.preprocessing, mean=(0.4, 0.5, 0.61))
    for source in (relabelled, ArrayDataset(repainted, np.arange(11) % 3), Subset(arrays(), range(10))):
        assert not filled(source=source)
    for options in ({"what": ClassTokens()}, {"what": ClassTokens(1, average=True)}, {"precision": "bfloat16"}):
        assert not filled(**options)
    assert not filled(subject=dataclasses.replace(subject, preprocessing=moved))
    with torch.no_grad():
        model.norm.bias[0] += 1e-6
    assert not filled(subject=subject_of(model))


def damaged_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def with_other(**changes):
    def change(path) -> None:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        save_file({**load_file(path), **changes}, path, metadata=metadata)

    return change


def of_another_model(path) -> None:
    tensors = load_file(path)
    save_file(tensors, path, metadata={"vit_rs_features": '{"identity": "another"}'})


@pytest.mark.parametrize(
    "damage",
    [
        damaged_bit,
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b""),
        of_another_model,
        lambda path: save_file(load_file(path), path),
        lambda path: save_file({"features": torch.zeros(2)}, path, metadata={"vit_rs_features": "["}),
        with_other(labels=torch.zeros(11, dtype=torch.int64)),
        with_other(features=torch.zeros(10, 12)),
        with_other(features=torch.zeros(11, 12, dtype=torch.float64)),
    ],
)
def test_unsound_files_are_computed_anew_and_replaced(model, tmp_path, damage) -> None:
    expected = load_or_extract(subject_of(model), arrays(), cache=tmp_path)
    [file] = tmp_path.rglob("*.safetensors")
    damage(file)
    told: list[str] = []
    again = load_or_extract(subject_of(model), arrays(), cache=tmp_path, tell=told.append)
    assert torch.equal(again.features, expected.features)
    [line] = told
    assert str(file) in line
    assert "computed anew" in line
    load_or_extract(subject_of(model), arrays(), cache=tmp_path, progress=forbidden, tell=forbidden)


def test_the_digest_is_that_of_the_images_in_their_order(tmp_path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(pixels(1)[0]).save(tmp_path / name / "0.png")
    for whole in (arrays(2), ImageFolder(tmp_path), ImageFolder(f"{tmp_path}/")):
        digests = [source_digest(Subset(whole, chosen)) for chosen in ([0, 1], [1, 0], [0], [1], [])]
        assert len(set(digests)) == 5
        assert source_digest(whole) == digests[0]
        assert source_digest(Subset(Subset(whole, [1, 0]), [1])) == digests[2]
    assert source_digest(ImageFolder(f"{tmp_path}/")) == source_digest(ImageFolder(tmp_path))


def test_a_changed_file_of_a_folder_is_noticed(tmp_path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(pixels(1)[0]).save(tmp_path / name / "0.png")
    digest = source_digest(ImageFolder(tmp_path))
    assert source_digest(ImageFolder(tmp_path)) == digest
    path = tmp_path / "a" / "0.png"
    found = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # size and time of content are the old ones
    if os.name == "posix":
        assert source_digest(ImageFolder(tmp_path)) != digest
    path.rename(tmp_path / "b" / "1.png")
    Image.fromarray(pixels(1)[0]).save(path)
    assert len({digest, source_digest(ImageFolder(tmp_path)), source_digest(Subset(ImageFolder(tmp_path), [0]))}) == 3
    with pytest.raises(
        TypeError, match="expected an ImageFolder, TarShards, an ArrayDataset, or a Subset of one, got list"
    ):
        source_digest([])


def test_an_interrupted_extraction_leaves_nothing(model, tmp_path) -> None:
    def stop(done: int, _total: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_or_extract(subject_of(model), arrays(), cache=tmp_path, batch_size=4, progress=stop)
    assert not list(tmp_path.rglob("*.*"))


def test_a_folder_that_cannot_be_written_is_told_and_no_error(model, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    told: list[str] = []
    got = load_or_extract(subject_of(model), arrays(), cache=tmp_path / "file", tell=told.append)
    assert torch.equal(got.features, load_or_extract(subject_of(model), arrays()).features)
    assert len(told) == 1
    assert told[0].startswith("the features are not kept: ")


def test_the_default_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "vit-rs"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_cache() == tmp_path / "home/.cache/vit-rs"


# Errors


def test_images_that_cannot_be_used(model, tmp_path) -> None:
    with pytest.raises(DatasetError, match="has no images"):
        load_or_extract(subject_of(model), Subset(arrays(), []))
    with pytest.raises(DatasetError, match=r"takes images of 3 channel\(s\), got images of 1"):
        load_or_extract(subject_of(model), ArrayDataset(pixels()[..., :1], np.zeros(11, int)))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(DecodeError, match=r"0\.png"):
        load_or_extract(subject_of(model), ImageFolder(tmp_path), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_features_that_are_not_finite_name_the_image(model, tmp_path) -> None:
    for number, value in enumerate((0, 255)):
        (tmp_path / "images/a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / "images/a" / f"{number}.png")
    folder = ImageFolder(tmp_path / "images")
    with torch.no_grad():
        model.norm.bias[:] = float("nan")
    with pytest.raises(CheckpointError, match=r"features of .*0\.png are not finite"):
        load_or_extract(subject_of(model), folder, cache=tmp_path / "cache")
    with pytest.raises(CheckpointError, match=r"features of .*1\.png are not finite"):
        load_or_extract(subject_of(model), Subset(folder, [1]), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
