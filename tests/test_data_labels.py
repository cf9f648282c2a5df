"""Labels: negative ones are handed over and name no class; what does not fit is named."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from vit_rs.data import ArrayDataset, EncodedDataset, ImageFolder, ImageLoader
from vit_rs.transforms import CenterCrop

LABELS = [2, -1, 0, -100, -(2**63), 2**63 - 1]


@pytest.fixture(scope="module")
def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


def labels_of(source) -> list[int]:
    with ImageLoader(source, CenterCrop(8), batch_size=4) as loader:
        return torch.cat([labels for _, labels in loader]).tolist()


def test_labels_of_64_bits_are_handed_over(png):
    samples = [(png, label) for label in LABELS]
    assert labels_of(samples) == LABELS
    assert labels_of(EncodedDataset(samples)) == LABELS
    pixels = np.zeros((6, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="is more than 1000000: name the classes"):
        ArrayDataset(pixels, LABELS)
    assert labels_of(ArrayDataset(pixels[:5], LABELS[:5])) == LABELS[:5]


def test_only_labels_from_0_on_are_classes():
    pixels = np.zeros((3, 8, 8), np.uint8)
    assert ArrayDataset(pixels, [-1, 1, -100]).classes == ["0", "1"]
    assert ArrayDataset(pixels, [-1, -1, -2]).classes == []
    assert ArrayDataset(pixels, [-1, 1, 0], classes=["cat", "dog"]).classes == ["cat", "dog"]
    assert ArrayDataset(pixels, [-1, 1, 0])[0][1] == -1


@pytest.mark.parametrize("label", [2**63, -(2**63) - 1, 2**70])
def test_labels_beyond_64_bits_are_named(png, tmp_path, label):
    text = re.escape(f"the label of sample 1 must fit 64 bits, got {label}")
    samples = [(png, 0), (png, label)]
    with pytest.raises(ValueError, match=text):
        ImageLoader(samples, CenterCrop(8), batch_size=1)
    for on_error in ("raise", "skip"):
        loader = ImageLoader(EncodedDataset(samples), CenterCrop(8), batch_size=2, on_error=on_error)
        with loader, pytest.raises(ValueError, match=text):
            next(iter(loader))
    (tmp_path / "a").mkdir()
    for number in range(2):
        (tmp_path / "a" / f"{number}.png").write_bytes(png)
    folder = ImageFolder(tmp_path)
    folder.samples[1] = (folder.samples[1][0], label)
    with pytest.raises(ValueError, match=text):
        ImageLoader(folder, CenterCrop(8), batch_size=1)
