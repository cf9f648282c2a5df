"""MixUp and CutMix: bit-equal to torchvision v2 under the same seed."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv

from vit_rs import patchify
from vit_rs import transforms as t
from vit_rs.data import ArrayDataset, ImageLoader

PAIRS = [(t.MixUp, tv.MixUp), (t.CutMix, tv.CutMix)]


def batch(count: int = 7, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 24, 31, generator=generator)
    return images.to(dtype), torch.randint(10, (count,), generator=generator)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_bit_equal_to_torchvision(ours, theirs, dtype, alpha):
    images, labels = batch(dtype=dtype)
    before = images.clone()
    mixing, expected_mixing = ours(alpha=alpha, num_classes=10), theirs(alpha=float(alpha), num_classes=10)
    for seed in range(25):
        torch.manual_seed(seed)
        mixed, soft = mixing(images, labels)
        torch.manual_seed(seed)
        expected, expected_soft = expected_mixing(images, labels)
        assert torch.equal(mixed, expected)
        assert torch.equal(soft, expected_soft)
        assert soft.dtype == torch.float32
        # As many numbers were drawn.
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        mixing(images, labels)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_labels_that_are_shares_already(ours, theirs):
    images, labels = batch()
    for shares in (torch.nn.functional.one_hot(labels, 10), torch.rand(len(labels), 10, dtype=torch.float64)):
        for classes in (None, 10):
            torch.manual_seed(3)
            mixed, soft = ours(num_classes=classes)(images, shares)
            torch.manual_seed(3)
            expected, expected_soft = theirs(num_classes=classes)(images, shares)
            assert torch.equal(mixed, expected)
            assert torch.equal(soft, expected_soft)
            assert soft.dtype == expected_soft.dtype


def test_cutmix_of_bytes():
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    labels = torch.arange(5)
    torch.manual_seed(1)
    mixed, _ = t.CutMix(num_classes=5)(images, labels)
    torch.manual_seed(1)
    expected, _ = tv.CutMix(num_classes=5)(images, labels)
    assert torch.equal(mixed, expected)


def test_mixup_of_patches_is_mixup_of_images():
    images, labels = batch(4)
    images = images[..., :24]
    torch.manual_seed(5)
    mixed, soft = t.MixUp(num_classes=10)(images, labels)
    torch.manual_seed(5)
    patches, soft_of_patches = t.MixUp(num_classes=10)(patchify(images, 8), labels)
    assert torch.equal(patches, patchify(mixed, 8))
    assert torch.equal(soft, soft_of_patches)


@pytest.mark.parametrize("mixing", [t.MixUp(num_classes=10), t.CutMix(num_classes=10)])
@pytest.mark.parametrize("count", [0, 1])
def test_batches_without_a_partner(mixing, count):
    images, labels = batch(count)
    mixed, soft = mixing(images, labels)
    # An image mixed with itself.
    torch.testing.assert_close(mixed, images)
    torch.testing.assert_close(soft, torch.nn.functional.one_hot(labels, 10).float())


@pytest.mark.parametrize("mixing", [t.MixUp(num_classes=10), t.CutMix(num_classes=10)])
def test_batches_of_a_loader(mixing):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    source = ArrayDataset(pixels, np.arange(8, dtype=np.int64))
    chain = t.Compose([t.RandomHorizontalFlip(), t.ToDtype(torch.float32, scale=True)])
    with ImageLoader(source, chain, batch_size=4, num_threads=1) as loader:
        for images, labels in loader:
            mixed, soft = mixing(images, labels)
            assert mixed.shape == images.shape
            torch.testing.assert_close(soft.sum(1), torch.ones(4))
            assert torch.equal(soft.argmax(1) == labels, soft[range(4), labels] >= 0.5)


@pytest.mark.parametrize("mixing", [t.MixUp, t.CutMix])
def test_labels_of_other_whole_types(mixing):
    torch.manual_seed(3)
    expected = mixing(num_classes=10)(IMAGES, LABELS)[1]
    for dtype in (torch.int32, torch.uint8):
        torch.manual_seed(3)
        assert torch.equal(mixing(num_classes=np.int64(10))(IMAGES, LABELS.to(dtype))[1], expected)


IMAGES, LABELS = batch()
ERRORS = {
    "alpha must be a finite number above 0, got 0": lambda: t.MixUp(alpha=0, num_classes=10),
    "alpha must be a finite number above 0, got nan": lambda: t.CutMix(alpha=float("nan")),
    "num_classes must be an int of at least 1, got 0": lambda: t.MixUp(num_classes=0),
    "MixUp needs num_classes for labels (B,)": lambda: t.MixUp()(IMAGES, LABELS),
    "labels (B, num_classes) have 4 classes, num_classes is 10": lambda: t.CutMix(num_classes=10)(
        IMAGES, torch.zeros(7, 4)
    ),
    "labels must be (B,) or (B, num_classes), got ()": lambda: t.MixUp(num_classes=10)(IMAGES, torch.tensor(1)),
    "needs a label for each image, got 7 images and 3 labels": lambda: t.CutMix(num_classes=10)(IMAGES, LABELS[:3]),
    "MixUp takes float images (B, C, H, W) or patches (B, N, D), got torch.uint8": lambda: t.MixUp(num_classes=10)(
        IMAGES.to(torch.uint8), LABELS
    ),
    "patch vectors (B, N, D) have no rows and columns to cut": lambda: t.CutMix(num_classes=10)(
        patchify(IMAGES[..., :24], 8), LABELS
    ),
    "labels must be in 0..4 for num_classes=5, got 9": lambda: t.MixUp(num_classes=5)(IMAGES, torch.full((7,), 9)),
    "labels must be in 0..9 for num_classes=10, got 10": lambda: t.CutMix(num_classes=10)(IMAGES, torch.arange(4, 11)),
    "labels must be in 0..9 for num_classes=10, got -1": lambda: t.CutMix(num_classes=10)(IMAGES, LABELS - 1 - LABELS),
    "labels (B,) must be whole numbers, as int64, got torch.float32": lambda: t.MixUp(num_classes=10)(
        IMAGES, LABELS.float()
    ),
    "labels (B,) must be whole numbers, as int64, got torch.bool": lambda: t.CutMix(num_classes=10)(IMAGES, LABELS > 4),
    "CutMix takes images (B, C, H, W) of at least one pixel, got (7, 3, 0, 31)": lambda: t.CutMix(num_classes=10)(
        IMAGES[:, :, :0], LABELS
    ),
    "needs a label for each image, got 0 images and 7 labels": lambda: t.MixUp(num_classes=10)(
        IMAGES[0, 0, 0, 0], LABELS
    ),
}


@pytest.mark.parametrize("text", list(ERRORS))
def test_errors_say_what_was_expected(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        ERRORS[text]()


def test_other_kinds_are_refused():
    with pytest.raises(TypeError, match=r"num_classes must be an int of at least 1, got 2\.5"):
        t.CutMix(num_classes=2.5)
    with pytest.raises(TypeError, match="alpha must be a finite number above 0, got 'much'"):
        t.MixUp(alpha="much")
    with pytest.raises(TypeError, match="CutMix takes tensors of images and labels, got ndarray and Tensor"):
        t.CutMix(num_classes=10)(IMAGES.numpy(), LABELS)
    with pytest.raises(
        TypeError, match=r"expected a transform of vit_rs.transforms, got vit_rs.transforms.mixing.MixUp"
    ):
        t.Compose([t.MixUp(num_classes=10)])
