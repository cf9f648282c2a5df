"""Gaussian blur: torchvision's within one level, nearly everywhere equal."""

from __future__ import annotations

import re

import numpy as np
import pytest
import skimage.data
import torch
import torchvision.transforms.v2 as tv
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from scipy import stats

from vit_rs import transforms as t
from vit_rs.transforms.lowering import lower

IMAGES = {
    "astronaut": skimage.data.astronaut()[90:310, 100:330],
    "cat": skimage.data.chelsea()[:200, :211],
    "noise": np.random.default_rng(0).integers(0, 256, (101, 97, 3), dtype=np.uint8),
    "constant": np.full((30, 31, 3), 203, np.uint8),
    "small": np.random.default_rng(1).integers(0, 256, (13, 12, 3), dtype=np.uint8),
}
KERNELS = [(1, 1.0), (3, 0.8), (9, 2.0), (23, 0.1), (23, 1.3), (23, 9.0), ((5, 11), 1.5), ((11, 1), 4.0)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pil", [False, True])
@pytest.mark.parametrize(("kernel", "sigma"), KERNELS)
def test_pixels_are_torchvisions(kernel, sigma, pil, channels):
    sides = [kernel, kernel] if isinstance(kernel, int) else list(kernel)
    different = total = 0
    for kind, image in IMAGES.items():
        if max(sides) // 2 >= min(image.shape[:2]):
            continue
        pixels = np.ascontiguousarray(image[..., 0]) if channels == 1 else image
        given = Image.fromarray(pixels) if pil else torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)
        got = np.asarray(t.GaussianBlur(kernel, sigma)(given)).astype(int)
        expected = np.asarray(tvf.gaussian_blur(given, sides, [sigma, sigma]))
        assert np.abs(got - expected).max() <= 1, kind
        different += np.count_nonzero(got != expected)
        total += got.size
    # Float32 sums in another order round to the other side of a half now and then.
    assert different <= 1 + 4e-4 * total, (different, total)


def test_a_small_image_is_mirrored_repeatedly():
    image = np.random.default_rng(2).integers(0, 256, (3, 2, 3), dtype=np.uint8)
    wide = np.pad(image, ((12, 12), (12, 12), (0, 0)), mode="reflect")
    with pytest.raises(RuntimeError, match="Padding size"):
        tvf.gaussian_blur(torch.from_numpy(image).permute(2, 0, 1), [9, 9], [3.0, 3.0])
    got = t.GaussianBlur(9, 3.0)(image)
    expected = tvf.gaussian_blur(torch.from_numpy(wide).permute(2, 0, 1), [9, 9], [3.0, 3.0])[:, 12:15, 12:14]
    assert np.abs(got.astype(int) - expected.permute(1, 2, 0).numpy()).max() <= 1


def test_sigma_is_distributed_as_torchvisions():
    view = lower(t.GaussianBlur((5, 9), (0.3, 1.7))).view()
    drawn = [view.draw_plan((8, 8), 0, 0, draw, 0)[0] for draw in range(3000)]
    assert all(len(steps) == 1 and steps[0][0] == "gaussian_blur" for steps in drawn)
    # Height first; the two sigmas are one draw.
    numbers = np.array([steps[0][1] for steps in drawn])
    assert np.array_equal(numbers[:, :2], np.tile([9.0, 5.0], (3000, 1)))
    assert np.array_equal(numbers[:, 2], numbers[:, 3])
    torch.manual_seed(0)
    theirs = tv.GaussianBlur((5, 9), (0.3, 1.7))
    assert stats.ks_2samp(numbers[:, 2], [theirs.make_params([])["sigma"][0] for _ in range(3000)]).pvalue > 1e-3
    assert t.GaussianBlur(3).sigma == tuple(tv.GaussianBlur(3).sigma)


ERRORS = {
    "kernel_size must be odd and in 1..=65535, got 4": lambda: t.GaussianBlur(4),
    "kernel_size must be odd and in 1..=65535, got 65537": lambda: t.GaussianBlur(65537),
    "kernel_size must be a positive int or (width, height) of two, got 0": lambda: t.GaussianBlur(0),
    "sigma must be (low, high) with 0 < low <= high, got (0, 0)": lambda: t.GaussianBlur(3, 0),
    "sigma must be (low, high) with 0 < low <= high, got (2, 1)": lambda: t.GaussianBlur(3, (2.0, 1.0)),
    "sigma must be a number or (min, max), got (1, 2, 3)": lambda: t.GaussianBlur(3, (1, 2, 3)),
}


@pytest.mark.parametrize("text", list(ERRORS))
def test_errors_say_what_was_expected(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        ERRORS[text]()
