"""Training and test images from folders of tar shards."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from vit_rs.data import ImageLoader
from vit_rs.data.splits import open_splits
from vit_rs.evaluation.feature_bank import source_digest
from vit_rs.exceptions import DatasetError
from vit_rs.transforms import Resize


def shard(path, labels, mode="w"):
    """Write PNGs of 8 x 8 pixels, whose red is ten times the label, and their labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:
        for number, label in enumerate(labels):
            image = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), 10 * label, np.uint8)).save(image, "PNG")
            for ending, data in (("png", image.getvalue()), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{number:04}.{ending}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("pattern", ["{part}-{number}.tar", "{part}/{number}.tar", "{part}/shard-{number}.TAR"])
@pytest.mark.parametrize("part", ["val", "test"])
def test_shards_beside_each_other_or_in_folders(tmp_path, pattern, part):
    for number, labels in enumerate([[0, 1, 2], [2, 1]]):
        shard(tmp_path / pattern.format(part="train", number=number), labels)
    shard(tmp_path / pattern.format(part=part, number=0), [1, 0])
    splits = open_splits(tmp_path)
    assert (splits.train_targets, splits.test_targets) == ([0, 1, 2, 2, 1], [1, 0])
    assert (splits.channels, splits.side, splits.classes) == (3, None, ["0", "1", "2"])
    assert (splits.numbered, splits.seeded) == (True, False)
    assert f"5 training and 2 test images (the shards of {part}), 3 classes" in splits.description
    with ImageLoader(splits.train, Resize((8, 8)), batch_size=5) as loader:
        images, labels = next(iter(loader))
    assert (images[:, 0, 0, 0] == 10 * labels).all()


def test_without_test_shards_a_share_is_held_out(tmp_path):
    shard(tmp_path / "train-0.tar.gz", [0, 1] * 10, "w:gz")
    splits = open_splits(tmp_path, holdout=0.2, per_class=3)
    assert (len(splits.train), sorted(splits.test_targets)) == (6, [0, 0, 1, 1])
    assert splits.seeded
    assert not set(splits.train.indices) & set(splits.test.indices)
    with ImageLoader(splits.train, Resize((8, 8)), batch_size=6, shuffle=True) as loader:
        images, labels = next(iter(loader))
    assert (images[:, 0, 0, 0] == 10 * labels).all()


def test_test_labels_must_be_known(tmp_path):
    shard(tmp_path / "train-0.tar", [0, 1])
    shard(tmp_path / "val-0.tar", [0, 4])
    with pytest.raises(DatasetError, match="the label 4 in val is above all training labels"):
        open_splits(tmp_path)


def test_the_digest_of_shards_follows_their_content(tmp_path):
    first, second = shard(tmp_path / "train-0.tar", [0, 1]), shard(tmp_path / "val-0.tar", [0, 1])
    before = open_splits(tmp_path)
    assert source_digest(before.train) == source_digest(open_splits(tmp_path).train) != source_digest(before.test)
    shard(first, [1, 0])
    after = open_splits(tmp_path)
    assert source_digest(after.train) != source_digest(before.train)
    assert source_digest(after.test) == source_digest(before.test)
    assert second.exists()
