"""ImageFolder: torchvision's classes, order and conditions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from vit_rs.data import ArrayDataset, ImageFolder
from vit_rs.exceptions import DatasetError, DecodeError

if TYPE_CHECKING:
    from pathlib import Path


def make(root: Path, files: list[str]) -> Path:
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8 + number, 9, 3), number * 10, np.uint8)
        Image.fromarray(pixels).save(path, "PNG" if path.suffix.lower() == ".png" else "JPEG")
    return root


def test_listing_equals_torchvision(tmp_path):
    files = ["b/2.JPG", "b/1.png", "a/x/z.jpeg", "a/x-y/k.jpg", "a/w.jpg", "a/x/é.jpg", "C/deep/er/1.jpg", "a/B.jpg"]
    root = make(tmp_path, files)
    (root / "b" / "notes.txt").write_text("x")
    (root / "loose.jpg").write_bytes(b"")
    (root / "b" / "linked").symlink_to(root / "C")
    ours, theirs = ImageFolder(root), torchvision.datasets.ImageFolder(str(root))
    assert ours.classes == theirs.classes
    assert ours.class_to_idx == theirs.class_to_idx
    assert ours.samples == theirs.samples
    assert ours.targets == theirs.targets
    assert len(ours) == len(theirs)
    image, label = ours[3]
    assert image.dtype == torch.uint8
    assert label == theirs[3][1]
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(theirs[3][0]))


def test_extensions_and_empty_classes(tmp_path):
    root = make(tmp_path, ["a/1.jpg", "b/1.png"])
    (root / "c").mkdir()
    with pytest.raises(DatasetError, match=re.escape(f"{root}: no image in class folder c (endings that count: .jpg")):
        ImageFolder(root)
    assert ImageFolder(root, allow_empty=True).classes == ["a", "b", "c"]
    assert len(ImageFolder(root, extensions=[".PNG"], allow_empty=True)) == 1
    with pytest.raises(DatasetError, match="class folder a, c "):
        ImageFolder(root, extensions=[".png"])


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'none'}: no such folder")):
        ImageFolder(tmp_path / "none")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(NotADirectoryError, match="not a folder"):
        ImageFolder(file)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DatasetError, match=r"no class folders in it; images belong into one sub-folder a class"):
        ImageFolder(tmp_path / "bare")


def test_broken_file_is_named(tmp_path):
    root = make(tmp_path, ["a/1.jpg"])
    path = root / "a" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DecodeError, match=re.escape(str(path)) + ".*truncated"):
        ImageFolder(root)[0]


def test_array_dataset():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    data = ArrayDataset(pixels, torch.arange(5))
    assert data.images.shape == (5, 4, 3, 1)
    assert data.classes == ["0", "1", "2", "3", "4"]
    image, label = data[2]
    assert torch.equal(image[0], torch.from_numpy(pixels[2]))
    assert label == 2
    assert "5 images, 4x3x1" in repr(data)
    kept = np.zeros((2, 4, 4, 3), np.uint8)
    assert ArrayDataset(kept, [0, 0]).images is not None
    assert np.shares_memory(ArrayDataset(kept, [0, 0]).images, kept)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64])
def test_labels_of_any_integer_type(dtype):
    assert ArrayDataset(np.zeros((3, 4, 4), np.uint8), np.array([0, 2, 1], dtype)).targets == [0, 2, 1]


@pytest.mark.parametrize(
    ("images", "labels", "classes", "error", "text"),
    [
        (
            np.zeros((2, 4, 4), np.float32),
            [0, 1],
            None,
            TypeError,
            "images must be uint8 with values 0..255, got float32",
        ),
        (np.zeros((4, 4), np.uint8), [0], None, ValueError, "got (4, 4)"),
        (np.zeros((2, 4, 4, 2), np.uint8), [0, 1], None, ValueError, "C = 1 or 3"),
        (np.zeros((2, 0, 4), np.uint8), [0, 1], None, ValueError, "H, W > 0"),
        (np.zeros((2, 4, 4), np.uint8), [0], None, ValueError, "labels must be (2,), one for each image, got (1,)"),
        (np.zeros((2, 4, 4), np.uint8), [0.0, 1.0], None, TypeError, "labels must be integers, got float64"),
        (np.zeros((2, 4, 4), np.uint8), [0, 10**9], None, ValueError, "name the classes if that is meant"),
        (np.zeros((2, 4, 4), np.uint8), [0, 2], ["a", "b"], ValueError, "label 2 has no name: only 2 classes"),
    ],
)
def test_array_dataset_errors(images, labels, classes, error, text):
    with pytest.raises(error, match=re.escape(text)):
        ArrayDataset(images, labels, classes=classes)
