"""Training and test images of a folder, beside what the tests of the training settings say of them."""

from __future__ import annotations

import gzip
import shutil
import struct

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Subset

from vit_rs.data import ArrayDataset, ImageFolder
from vit_rs.data.splits import common_side, image_channels, open_splits, split_by_class
from vit_rs.evaluation.fewshot import draw_shots
from vit_rs.exceptions import DatasetError


@pytest.fixture
def folder(tmp_path):
    for name, count in (("a", 5), ("b", 4)):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "d" / name / f"{number}.png")
    return tmp_path / "d"


def test_the_bundled_images_have_their_own_test_images_and_names():
    splits = open_splits()
    assert (splits.seeded, splits.numbered, splits.side, splits.channels) == (False, False, 28, 1)
    assert splits.test_targets == [splits.test[i][1] for i in range(1000)]
    assert splits.classes[0] == "T-shirt/top"


def test_a_folder_is_split_by_a_seed(folder):
    splits = open_splits(folder, holdout=0.4, split_seed=3, per_class=1)
    assert (splits.seeded, splits.numbered, splits.side, splits.channels) == (True, False, None, 3)
    assert (splits.train_targets, splits.test_targets) == ([0, 1], [0, 0, 1, 1])
    assert open_splits(str(folder), holdout=0.4, split_seed=3).test.indices == splits.test.indices
    assert "40% of each class, held out by seed 3" in splits.description


def test_hidden_folders_are_no_classes_and_hold_no_images(folder):
    before = open_splits(folder)
    for hidden in (".ipynb_checkpoints", ".empty", "a/.ipynb_checkpoints"):
        (folder / hidden).mkdir()
    for hidden in (".ipynb_checkpoints", "a/.ipynb_checkpoints"):
        shutil.copy(folder / "a/0.png", folder / hidden / "0-checkpoint.png")
    after = open_splits(folder)
    assert (after.classes, after.train_targets, after.test_targets) == (
        before.classes,
        before.train_targets,
        before.test_targets,
    )
    assert after.train.dataset.samples == before.train.dataset.samples
    # torchvision's rule stays that of ImageFolder.
    with pytest.raises(DatasetError, match=r"no image in class folder \.empty"):
        ImageFolder(folder)
    (folder / ".empty").rmdir()
    assert ImageFolder(folder).classes == [".ipynb_checkpoints", "a", "b"]
    (folder / "bare").mkdir()
    with pytest.raises(DatasetError, match=r"no image in class folder bare \(endings that count: \.jpg"):
        open_splits(folder)


def test_a_folder_of_hidden_folders_alone(tmp_path):
    (tmp_path / ".git").mkdir()
    with pytest.raises(DatasetError, match=r"no class folders in it but hidden ones: \.git"):
        open_splits(tmp_path)


def test_idx_files_have_numbers_for_names(tmp_path):
    for split, count in (("train", 6), ("t10k", 4)):
        with gzip.open(tmp_path / f"{split}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">BBBBIII", 0, 0, 8, 3, count, 5, 7) + bytes(count * 35))
        with gzip.open(tmp_path / f"{split}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">BBBBI", 0, 0, 8, 1, count) + bytes(i % 2 for i in range(count)))
    splits = open_splits(tmp_path)
    assert (splits.seeded, splits.numbered, splits.side, splits.classes) == (False, True, None, ["0", "1"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout": 0.0}, "holdout must be above 0 and below 1, got 0.0"),
        ({"holdout": 1.0}, "holdout must be above 0 and below 1, got 1.0"),
        ({"split_seed": -1}, "split_seed must be 0 or more, got -1"),
        ({"per_class": 0}, "per_class must be 1 or more, got 0"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        open_splits(None, **options)


def test_sides_and_channels_are_known_of_arrays(folder):
    square = ArrayDataset(np.zeros((2, 6, 6), np.uint8), [0, 1])
    oblong = ArrayDataset(np.zeros((2, 6, 7, 3), np.uint8), [0, 1])
    sources = (square, Subset(Subset(square, [1]), [0]), oblong, ImageFolder(folder))
    assert [(common_side(source), image_channels(source)) for source in sources] == [
        (6, 1),
        (6, 1),
        (None, 3),
        (None, 3),
    ]


@pytest.mark.parametrize("seed", [0, 7])
def test_splits_and_draws_are_those_of_a_scan_for_each_class(seed):
    labels = np.random.default_rng(seed).integers(0, 20, 500)
    # As they were drawn from the start: results that were published must not move.
    rng, draws, held_out = np.random.default_rng(seed), [], []
    for label in range(20):
        members = np.flatnonzero(labels == label)
        draws += rng.permutation(members)[:3].tolist()
        count = max(1, round(0.2 * len(members)))
        held_out += np.random.default_rng((seed, label)).permutation(members)[:count].tolist()
    kept = [index for index in range(500) if index not in held_out]
    assert split_by_class(labels.tolist(), list("abcdefghijklmnopqrst"), share=0.2, seed=seed) == (
        kept,
        sorted(held_out),
    )
    got = draw_shots(labels, 20, shots=3, seed=seed)
    assert (got.tolist(), got.dtype) == (draws, np.int64)
