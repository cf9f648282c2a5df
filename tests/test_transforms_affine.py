"""Affine transforms: torchvision v2's pixels on tensors, Pillow's on PIL images, torchvision's distributions."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from scipy import stats

from vit_rs import transforms as t
from vit_rs.transforms.lowering import lower

SIZES = [(64, 64), (37, 61), (90, 20), (1, 7), (1, 1), (2, 2)]


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, channels), dtype=np.uint8)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


def as_pil(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array if array.shape[2] == 3 else array[..., 0])


def drawn(transform: t.Transform, size: tuple[int, int], count: int, kernels="torch") -> np.ndarray:
    """Return the numbers of the step of each of `count` plans; where a plan has none, those of the identity."""
    view = lower(transform).view(kernels=kernels)
    plans = [view.draw_plan(size, 3, 0, draw, 0)[0] for draw in range(count)]
    identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, *size, 0.0]
    return np.array([plan[0][1] if plan else identity for plan in plans])


def check(ours: torch.Tensor, theirs: torch.Tensor, mode: str, what: object) -> None:
    """Nearest pixels are torchvision's.

    Bilinear ones are within 1 of them: its sums have one rounding where ours have two, which can be seen where a sum
    lies in the middle between two levels. Simple shears and scalings have many such.
    """
    assert ours.shape == theirs.shape, what
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= (mode == "bilinear"), what
    assert (difference > 0).sum() <= 2 + 5e-3 * difference.numel(), what


ANGLES = [13.0, -77.5, 45.0, 30.0, 90.0, 180.0, 270.0, -90.0, 0.0, 360.0, 200.3]


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_rotation_is_torchvisions_and_pillows(mode, channels, size):
    array = pixels(*size, channels)
    for fill in (None, 0, 9):
        for angle in ANGLES:
            for expand in (False, True):
                for center in (None, (3.0, 5.5)):
                    what = (fill, angle, expand, center)
                    ours = t.RandomRotation((angle, angle), mode, expand, center, fill)
                    # The transform, which draws angles as f32.
                    theirs = tv.RandomRotation((angle, angle), tv.InterpolationMode(mode), expand, center, fill)
                    check(ours(as_tensor(array)), theirs(as_tensor(array)), mode, what)
                    assert np.array_equal(np.asarray(ours(as_pil(array))), np.asarray(theirs(as_pil(array)))), what


# Angle, scale, shear along x and y; among them shears whose coordinates are ties between two pixels, and scalings that
# Pillow draws by another loop.
MAPS = [
    (0.0, 1.0, (20.0, 0.0)),
    (0.0, 1.0, (0.0, -30.0)),
    (0.0, 1.0, (math.degrees(math.atan(0.2)), 0.0)),
    (0.0, 1.0, (0.0, math.degrees(math.atan(0.5)))),
    (10.0, 1.3, (5.0, 7.0)),
    (-170.0, 0.3, (0.0, 0.0)),
    (0.0, 2.0, (0.0, 0.0)),
    (0.0, 0.37, (0.0, 0.0)),
    (45.0, 1e-4, (0.0, 0.0)),
    (33.0, 1e4, (0.0, 0.0)),
]


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_affine_is_torchvisions_and_pillows(mode, channels, size):
    array = pixels(*size, channels)
    for fill in (None, 7):
        for angle, scale, shear in MAPS:
            for center in (None, (0.0, 0.0), (4.0, 1.5)):
                what = (fill, angle, scale, shear, center)
                both = (shear[0], shear[0], shear[1], shear[1])
                numbers = ((angle, angle), None, (scale, scale), both)
                ours = t.RandomAffine(*numbers, mode, fill, center)
                theirs = tv.RandomAffine(*numbers, tv.InterpolationMode(mode), fill, center)
                check(ours(as_tensor(array)), theirs(as_tensor(array)), mode, what)
                assert np.array_equal(np.asarray(ours(as_pil(array))), np.asarray(theirs(as_pil(array)))), what


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("kind", [as_tensor, as_pil])
def test_shifts_are_whole_pixels(mode, kind):
    array = pixels(30, 41)
    transform = t.RandomAffine(0, translate=(0.3, 0.5), interpolation=mode, fill=(1, 2, 3))
    kernels = "torch" if kind is as_tensor else "pillow"
    shifted = [
        np.asarray(tvf.affine(kind(array), 0.0, [x, y], 1.0, [0.0, 0.0], tv.InterpolationMode(mode), [1, 2, 3]))
        for y in range(-15, 16)
        for x in range(-12, 13)
    ]
    for _ in range(20):
        ours = np.asarray(transform(kind(array)))
        assert any(np.array_equal(ours, image) for image in shifted)
    numbers = drawn(transform, (30, 41), 2000, kernels)
    moves = -numbers[:, [2, 5]]
    assert np.array_equal(moves, moves.round())
    theirs = tv.RandomAffine(0, translate=(0.3, 0.5))
    expected = np.array([theirs.make_params([kind(array)])["translate"] for _ in range(2000)])
    assert {*moves[:, 0]} == set(range(-12, 13))
    for ours_axis, theirs_axis in zip(moves.T, expected.T, strict=True):
        assert stats.ks_2samp(ours_axis, theirs_axis).pvalue > 1e-3


def test_expanded_sizes_are_torchvisions():
    # Only sizes: a tensor of one channel, many angles.
    for size in ((64, 64), (37, 61), (200, 333), (500, 375), (1, 9)):
        image = torch.zeros(1, *size, dtype=torch.uint8)
        for angle in np.linspace(-180, 180, 49):
            ours = t.RandomRotation((angle, angle), expand=True)
            assert ours(image).shape == tvf.rotate(image, float(angle), expand=True).shape, (size, angle)
            pil = Image.new("L", size[::-1])
            assert ours(pil).size == tvf.rotate(pil, float(angle), expand=True).size, (size, angle)


def test_numbers_are_distributed_as_torchvisions():
    count, size = 3000, (40, 50)
    numbers = drawn(t.RandomRotation((-20, 70)), size, count)
    assert stats.kstest(np.degrees(np.arctan2(numbers[:, 3], numbers[:, 0])), stats.uniform(-20, 90).cdf).pvalue > 1e-3
    numbers = drawn(t.RandomAffine(25, scale=(0.5, 2.0)), size, count)
    angle = np.degrees(np.arctan2(-numbers[:, 3], numbers[:, 0]))
    scale = 1 / np.hypot(numbers[:, 0], numbers[:, 3])
    assert stats.kstest(angle, stats.uniform(-25, 50).cdf).pvalue > 1e-3
    assert stats.kstest(scale, stats.uniform(0.5, 1.5).cdf).pvalue > 1e-3
    # The map back: the shear along x stands in the first row, that along y in the second.
    numbers = drawn(t.RandomAffine(0, shear=(-30, 10, 0, 40)), size, count)
    assert stats.kstest(np.degrees(np.arctan(numbers[:, 3])), stats.uniform(0, 40).cdf).pvalue > 1e-3
    assert stats.kstest(np.degrees(np.arctan(numbers[:, 1])), stats.uniform(-30, 40).cdf).pvalue > 1e-3
    for shear in (15, (-15, 15)):
        numbers = drawn(t.RandomAffine(0, shear=shear), size, count)
        assert not numbers[:, 3].any()
        assert stats.kstest(np.degrees(np.arctan(numbers[:, 1])), stats.uniform(-15, 30).cdf).pvalue > 1e-3


def test_names_are_torchvisions_too():
    ours = t.RandomRotation(5, interpolation=tv.InterpolationMode.BILINEAR)
    assert drawn(ours, (4, 4), 1)[0, -1] == 1
    assert drawn(t.RandomRotation(5), (4, 4), 1)[0, -1] == 0


ERRORS = {
    "degrees must not be negative if it is a single number, got -3": lambda: t.RandomRotation(-3),
    "degrees must be one number or 2 of them, got (1, 2, 3)": lambda: t.RandomRotation((1, 2, 3)),
    "degrees must be (low, high) with low <= high, got (5, 2)": lambda: t.RandomRotation((5, 2)),
    "interpolation must be 'nearest' or 'bilinear', got 'bicubic'": lambda: t.RandomAffine(3, interpolation="bicubic"),
    "fill must be an int in 0..255, three of them or None, got 256": lambda: t.RandomRotation(3, fill=256),
    "center must be two numbers, got (1,)": lambda: t.RandomRotation(3, center=(1,)),
    "center must be a point (x, y), got (inf, 0)": lambda: t.RandomRotation(3, center=(math.inf, 0)),
    "translate must be two shares in 0..=1, of width and height, got (0.1, 1.5)": lambda: t.RandomAffine(
        0, translate=(0.1, 1.5)
    ),
    "scale must be (low, high) with 0 < low <= high, got (0, 2)": lambda: t.RandomAffine(0, scale=(0, 2)),
    "shear must be one number or 2 or 4 of them, got (1, 2, 3)": lambda: t.RandomAffine(0, shear=(1, 2, 3)),
    "shear must be (low, high) with low <= high, got (4, 3)": lambda: t.RandomAffine(0, shear=(1, 2, 4, 3)),
}


@pytest.mark.parametrize("text", list(ERRORS))
def test_errors_say_what_was_expected(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        ERRORS[text]()
