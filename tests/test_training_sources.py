"""Which images a run trains and tests on, and what is said where they cannot be used."""

from __future__ import annotations

import gzip
import struct
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from vit_rs.data import ImageLoader
from vit_rs.data.splits import first_of_each_class, split_by_class
from vit_rs.exceptions import ConfigError, DatasetError
from vit_rs.training import DataConfig
from vit_rs.training.sources import eval_transform, open_sources, train_transform


def image_folder(root, counts, size=(40, 30)):
    """Make a folder of class sub-folders with so many PNGs each."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((size[1], size[0], 3), 10 * number, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def idx_folder(root, counts, side=8):
    """Make a folder of IDX files with so many images in the splits "train" and "t10k"."""
    root.mkdir()
    for split, count in counts.items():
        pixels = np.arange(count * side * side, dtype=np.uint32).astype(np.uint8)
        with gzip.open(root / f"{split}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">BBBBIII", 0, 0, 8, 3, count, side, side) + pixels.tobytes())
        with gzip.open(root / f"{split}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">BBBBI", 0, 0, 8, 1, count) + bytes(i % 2 for i in range(count)))
    return root


def folder_config(root, **changes):
    return DataConfig(**{"path": str(root), "img_size": 16, "mean": (0.5,), "std": (0.5,), **changes})


def test_the_bundled_images():
    sources = open_sources(DataConfig())
    assert (len(sources.train), len(sources.test)) == (6000, 1000)
    assert (sources.channels, sources.side, len(sources.classes)) == (1, 28, 10)
    assert "6,000 training and 1,000 test images" in sources.description


def test_a_share_of_each_class_is_held_out(tmp_path):
    root = image_folder(tmp_path / "d", {"a": 10, "b": 5, "c": 2})
    sources = open_sources(folder_config(root, holdout=0.2))
    assert (len(sources.train), len(sources.test)) == (13, 4)
    assert Counter(sources.train_targets) == {0: 8, 1: 4, 2: 1}
    assert not set(sources.train.indices) & set(sources.test.indices)
    assert "20% of each class, held out by seed 0" in sources.description
    again = open_sources(folder_config(root, holdout=0.2))
    assert again.test.indices == sources.test.indices
    other = open_sources(folder_config(root, holdout=0.2, split_seed=1))
    assert other.test.indices != sources.test.indices


@pytest.mark.parametrize("part", ["val", "validation", "test"])
def test_train_and_val_folders(tmp_path, part):
    image_folder(tmp_path / "train", {"a": 3, "b": 2})
    image_folder(tmp_path / part, {"a": 1, "b": 1})
    sources = open_sources(folder_config(tmp_path))
    assert (len(sources.train), len(sources.test)) == (5, 2)
    assert sources.classes == ["a", "b"]
    assert f"those in {part}/" in sources.description


def test_train_alone_is_split(tmp_path):
    image_folder(tmp_path / "train", {"a": 4, "b": 4})
    sources = open_sources(folder_config(tmp_path, holdout=0.25))
    assert (len(sources.train), len(sources.test)) == (6, 2)


def test_a_class_may_be_called_train(tmp_path):
    image_folder(tmp_path, {"train": 3, "tram": 3})
    assert open_sources(folder_config(tmp_path)).classes == ["train", "tram"]


def test_idx_files(tmp_path):
    root = idx_folder(tmp_path / "d", {"train": 6, "t10k": 4})
    sources = open_sources(folder_config(root))
    assert (len(sources.train), len(sources.test), sources.channels, sources.side) == (6, 4, 1, 8)


def test_idx_labels_must_be_known(tmp_path):
    root = idx_folder(tmp_path / "d", {"train": 6, "t10k": 4})
    with gzip.open(root / "t10k-labels-idx1-ubyte.gz", "wb") as file:
        file.write(struct.pack(">BBBBI", 0, 0, 8, 1, 4) + bytes([0, 1, 5, 0]))
    with pytest.raises(DatasetError, match="test label 5 is above all training labels"):
        open_sources(folder_config(root))


def test_a_few_images_of_each_class(tmp_path):
    sources = open_sources(DataConfig(per_class=3))
    assert Counter(sources.train_targets) == dict.fromkeys(range(10), 3)
    assert len(sources.test) == 1000
    root = image_folder(tmp_path / "d", {"a": 10, "b": 5})
    assert Counter(open_sources(folder_config(root, per_class=4)).train_targets) == {0: 4, 1: 4}


def test_first_of_each_class():
    assert first_of_each_class([0, 1, 0, 0, 1, 2], range(6), 2) == [0, 1, 2, 4, 5]
    assert first_of_each_class([0, 1, 0, 0, 1, 2], [3, 2, 0], 2) == [3, 2]


def test_a_split_depends_on_each_class_alone():
    targets = [0] * 20 + [1] * 30
    kept, held = split_by_class(targets, ["a", "b"], share=0.2, seed=4)
    assert sorted(kept + held) == list(range(50))
    assert [targets[i] for i in held].count(0) == 4
    more = split_by_class([*targets, *[2] * 10], ["a", "b", "c"], share=0.2, seed=4)[1]
    assert [i for i in more if i < 50] == held
    assert split_by_class([0, 0, 1, 1], ["a", "b"], share=0.01, seed=0)[1][0] in (0, 1)
    assert len(split_by_class([0, 0, 1, 1], ["a", "b"], share=0.99, seed=0)[0]) == 2


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data folder"):
        open_sources(folder_config(tmp_path / "none"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="expected a data folder, got a file"):
        open_sources(folder_config(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty"):
        open_sources(folder_config(tmp_path / "empty"))
    image_folder(tmp_path / "one", {"a": 3, "b": 0})
    with pytest.raises(DatasetError, match="b"):
        open_sources(folder_config(tmp_path / "one"))
    image_folder(tmp_path / "few", {"a": 3, "b": 1})
    with pytest.raises(DatasetError, match=r"class 'b' has 1 image.*at least 2 are needed"):
        open_sources(folder_config(tmp_path / "few"))
    image_folder(tmp_path / "single", {"a": 3})
    with pytest.raises(DatasetError, match="expected at least two classes, got 1: a"):
        open_sources(folder_config(tmp_path / "single"))


def test_train_and_val_must_agree(tmp_path):
    image_folder(tmp_path / "train", {"a": 2, "b": 2})
    image_folder(tmp_path / "val", {"a": 2, "c": 2})
    with pytest.raises(DatasetError, match=r"missing \['b'\], unexpected \['c'\]"):
        open_sources(folder_config(tmp_path))


def test_unsorted_validation_images_are_not_taken_for_a_class(tmp_path):
    image_folder(tmp_path / "train", {"a": 2, "b": 2})
    image_folder(tmp_path, {"val": 2})
    with pytest.raises(DatasetError, match="val"):
        open_sources(folder_config(tmp_path))


def test_half_a_set_of_idx_files(tmp_path):
    root = idx_folder(tmp_path / "d", {"train": 6})
    with pytest.raises(FileNotFoundError, match="t10k-images"):
        open_sources(folder_config(root))


def test_mean_and_std_fit_the_channels():
    with pytest.raises(ConfigError, match=r"data.mean: the images have 1 channel\(s\), got 3 values"):
        open_sources(DataConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))


@pytest.mark.parametrize("augment", ["shift", "resized_crop"])
@pytest.mark.parametrize("size", [28, 42])
def test_the_transforms_give_the_model_s_size(augment, size):
    config = DataConfig(augment=augment, per_class=2)
    sources = open_sources(config)
    for transform in (
        train_transform(config, size, sources.side),
        eval_transform(config, size, sources.side),
        eval_transform(DataConfig(eval_crop=0.875), size, sources.side),
    ):
        with ImageLoader(sources.train, transform, batch_size=4) as loader:
            images, _ = next(iter(loader))
        assert images.shape == (4, 1, size, size)
        assert images.dtype == torch.float32


def test_photographs_of_any_shape(tmp_path):
    root = image_folder(tmp_path / "d", {"a": 3, "b": 3}, size=(50, 20))
    for augment in ("shift", "resized_crop"):
        config = folder_config(root, augment=augment)
        sources = open_sources(config)
        assert (sources.channels, sources.side) == (3, None)
        for transform in (train_transform(config, 24, None), eval_transform(config, 24, None)):
            with ImageLoader(sources.train, transform, batch_size=2) as loader:
                images, _ = next(iter(loader))
            assert images.shape == (2, 3, 24, 24)


def test_a_test_image_is_only_normalised():
    config = DataConfig()
    sources = open_sources(config)
    with ImageLoader(sources.test, eval_transform(config, 28, sources.side), batch_size=1) as loader:
        images, _ = next(iter(loader))
    expected = (sources.test[0][0].float() / 255 - 0.2860) / 0.3530
    torch.testing.assert_close(images[0], expected, rtol=0, atol=1e-6)
