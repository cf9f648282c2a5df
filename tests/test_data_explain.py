"""ImageLoader.explain: the plan in words, short, aligned, and with the numbers that the loader then uses."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from vit_rs.data import ArrayDataset, ImageFolder, ImageLoader, Patches
from vit_rs.transforms import (
    CenterCrop,
    Compose,
    MultiCrop,
    Normalize,
    RandomApply,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    Resize,
    ToDtype,
)

TAIL = [ToDtype(torch.float32, scale=True), Normalize([0.5], [0.25])]
TRAIN = Compose([RandomResizedCrop(32), RandomHorizontalFlip(), *TAIL])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ImageFolder:
    root = tmp_path_factory.mktemp("folder")
    (root / "a").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 256, (40, 60 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "a" / f"{number}.png")
    return ImageFolder(root)


def rows(text: str) -> dict[str, str]:
    """Return name -> text of each line that has a name, the first of each."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        found.setdefault(line[:12].strip(), line[12:])
    return found


def test_the_plan_in_words(folder):
    with ImageLoader(folder, TRAIN, batch_size=4, shuffle=True, seed=7, num_threads=2) as loader:
        text = loader.explain()
    lines = text.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 120
    told = rows(text)
    assert told["source"].endswith("6 images, 1 classes)")
    assert told["order"] == "shuffled by (seed 7, epoch 0); 2 batches of 4, the last one may be smaller"
    assert told["decode"].startswith("by content to 8-bit RGB, only the region that the views need")
    assert told["on error"].startswith("raise: ")
    assert told["view 0"] == "with torch's kernels"
    steps = re.findall(r"^  (u8|float|emit) +(\w+)", text, re.MULTILINE)
    assert steps == [
        ("u8", "RandomResizedCrop"),
        ("u8", "RandomHorizontalFlip"),
        ("emit", "ToDtype"),
        ("emit", "Normalize"),
    ]
    assert told["batch"] == "float32 (4, 3, 32, 32), NCHW; written once, handed over without a copy"
    assert told["threads"].startswith("2 in Rust, on ")
    assert told["memory"] == "49.2 kB a batch; 4 are kept for reuse, 197 kB"
    assert told["cost"] == "not measured: the loader has not run yet"


def test_the_example_is_the_first_sample_as_it_will_be_made(folder):
    transform = RandomResizedCrop(20)
    with ImageLoader(folder, transform, batch_size=3, shuffle=True, seed=3, return_index=True) as loader:
        text = loader.explain()
        [images, _, indices] = next(iter(loader))
    path = folder.samples[int(indices[0])][0]
    assert f"the epoch's first sample, {path}," in re.sub(r"\s+", " ", text)
    assert f"{60 + int(indices[0])} x 40 pixels" in re.sub(r"\s+", " ", text)
    [crop] = re.findall(r"Crop\(Rect \{ top: (\d+), left: (\d+), height: (\d+), width: (\d+) \}\)", text)
    assert "Resize { size: Size { height: 20, width: 20 }, filter: Bilinear, rounding: Torch }" in text
    top, left, height, width = map(int, crop)
    pixels, _ = folder[int(indices[0])]
    part = pixels[:, top : top + height, left : left + width]
    assert torch.equal(images[0], Resize((20, 20))(part))


def test_views_kernels_and_layout(folder):
    small = Compose([RandomResizedCrop(16), RandomApply([RandomVerticalFlip()]), *TAIL], kernels="pillow")
    views = MultiCrop([(TRAIN, 2), small])
    with ImageLoader(folder, views, batch_size=2, layout=Patches(8), dtype=torch.float16, drop_last=True) as loader:
        text = loader.explain()
    told = rows(text)
    assert told["views 0-1"] == "with torch's kernels"
    assert "view 2      with pillow's kernels" in text
    assert "float16 (2, 16, 192), Patches(patch_size=8, order='cpq')" in text
    assert "float16 (2, 4, 192), Patches(patch_size=8, order='cpq')" in text
    assert "RandomApply(transforms=(RandomVerticalFlip(p=0.5),), p=0.5)" in text
    assert told["order"] == "as in the source; 3 batches of 2, a last batch that is not full is left out"
    assert len(text.splitlines()) < 40


def test_ranks_subsets_and_the_epoch_that_comes():
    data = Subset(ArrayDataset(np.zeros((10, 8, 8, 1), np.uint8), np.zeros(10, np.int64)), [2, 4, 6])
    with ImageLoader(data, batch_size=2, rank=1, world_size=2, num_threads=1) as loader:
        loader.set_epoch(5)
        told = rows(loader.explain())
        assert told["source"] == "3 samples of ArrayDataset(10 images, 8x8x1, 1 classes)"
        assert "rank 1 of 2; 1 batches of 2" in told["order"]
        assert told["view 0"].endswith("nothing is done to its pixels") or "nothing is done" in loader.explain()
        for _ in loader:
            pass
        assert re.fullmatch(
            r"read \d+, decode .* us of thread time an image, in 2 images of epoch 5", rows(loader.explain())["cost"]
        )


def test_what_cannot_be_drawn_is_said(tmp_path):
    (tmp_path / "a").mkdir()
    bad = tmp_path / "a" / "bad.jpg"
    bad.write_bytes(b"nonsense")
    with ImageLoader(ImageFolder(tmp_path), CenterCrop(8), batch_size=1, num_threads=1) as loader:
        assert f"none: {bad}: no known image format" in re.sub(r"\s+", " ", loader.explain())
        bad.unlink()
        assert "none: " in loader.explain()
    empty = ArrayDataset(np.zeros((0, 4, 4), np.uint8), np.zeros(0, np.int64))
    with ImageLoader(empty, batch_size=3) as loader:
        assert rows(loader.explain())["example"] == "none: the epoch has no sample that could be read now"


def test_explaining_does_not_disturb(folder):
    with ImageLoader(folder, TRAIN, batch_size=2, shuffle=True, num_threads=1) as loader:
        plain = [images.clone() for images, _ in loader]
    with ImageLoader(folder, TRAIN, batch_size=2, shuffle=True, num_threads=1) as loader:
        loader.explain()
        explained = []
        for images, _ in loader:
            loader.explain()
            explained.append(images.clone())
        assert loader.state_dict()["epoch"] == 1
    assert all(torch.equal(a, b) for a, b in zip(plain, explained, strict=True))
