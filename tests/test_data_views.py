"""How a batch of views is handed over: a tuple for each MultiCrop, whatever the number of its views."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vit_rs.data import ArrayDataset, ImageLoader
from vit_rs.transforms import Compose, MultiCrop, RandomCrop

CROP = RandomCrop(6)


def first(transform, **options) -> tuple:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    with ImageLoader(ArrayDataset(pixels, np.arange(5)), transform, batch_size=5, num_threads=1, **options) as loader:
        return next(iter(loader))


@pytest.mark.parametrize("one", [MultiCrop([CROP]), MultiCrop([(CROP, 1)])])
def test_one_view_is_a_tuple_of_one(one):
    plain, _ = first(CROP)
    views, labels = first(one)
    assert isinstance(views, tuple)
    assert [torch.equal(view, plain) for view in views] == [True]
    assert labels.tolist() == list(range(5))
    views, _, indices = first(one, return_index=True)
    assert len(views) == 1
    assert indices.tolist() == list(range(5))


@pytest.mark.parametrize("transform", [None, CROP, Compose([CROP]), Compose([])])
def test_without_a_multi_crop_it_is_a_tensor(transform):
    images, _ = first(transform)
    assert isinstance(images, torch.Tensor)


def test_several_views_without_a_good_sample():
    source = [(b"broken", 0)] * 3
    with ImageLoader(source, MultiCrop([(CROP, 2), RandomCrop(4)]), batch_size=2, on_error="skip") as loader:
        batches = list(loader)
    assert [[tuple(view.shape) for view in views] for views, _ in batches] == [
        [(0, 3, 6, 6), (0, 3, 6, 6), (0, 3, 4, 4)]
    ] * 2
    assert all(labels.shape == (0,) for _, labels in batches)
