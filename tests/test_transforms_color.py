"""Colours: the pixels of torchvision on uint8 tensors and on PIL images, bit for bit; its distributions."""

from __future__ import annotations

import re

import numpy as np
import pytest
import skimage.data
import torch
import torchvision.transforms as tv1
import torchvision.transforms.v2 as tv
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from scipy import stats

from vit_rs import transforms as t
from vit_rs.transforms.lowering import lower

# torch adds and multiplies with one rounding where its kernels are compiled so; elsewhere a value may be off by one.
TORCH_TOLERANCE = 0 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 1


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


IMAGES = {
    "astronaut": skimage.data.astronaut()[90:310, 100:330],
    "coffee": skimage.data.coffee()[100:301, 150:350],
    "cat": skimage.data.chelsea(),
    "noise": noise(61, 97, 3),
    "gray noise": np.repeat(noise(40, 41, 1), 3, axis=2),
    "constant": np.full((17, 20, 3), 77, np.uint8),
    "white": np.full((5, 6, 3), 255, np.uint8),
    "two values": noise(30, 31, 3) // 128 * 9 + 100,
    "1 x 1": noise(1, 1, 3),
    "1 x 9": noise(1, 9, 3),
    "9 x 1": noise(9, 1, 3),
    "2 x 5": noise(2, 5, 3),
    "3 x 3": noise(3, 3, 3),
}
FACTORS = [0.0, 0.3, 0.6180339, 1.0, 1.4, 2.75]


def jitter(**factors: float) -> t.ColorJitter:
    return t.ColorJitter(**{name: (factor, factor) for name, factor in factors.items()})


def grayscale(image):
    return tvf.rgb_to_grayscale(image, tvf.get_num_channels(image))


# Name: ours, theirs. torchvision draws factors as f32.
CASES = {
    **{
        f"{name} {f}": (jitter(**{name: f}), tv.ColorJitter(**{name: (f, f)}))
        for name in ("brightness", "contrast", "saturation")
        for f in FACTORS
    },
    **{f"sharpness {f}": (t.RandomAdjustSharpness(f, 1.0), lambda x, f=f: tvf.adjust_sharpness(x, f)) for f in FACTORS},
    **{f"hue {f}": (jitter(hue=f), tv.ColorJitter(hue=(f, f))) for f in (-0.5, -0.31, -0.001, 0.04, 0.25, 0.4999, 0.5)},
    **{f"posterize {b}": (t.RandomPosterize(b, 1.0), lambda x, b=b: tvf.posterize(x, b)) for b in (1, 4, 8)},
    **{
        f"solarize {v}": (t.RandomSolarize(v, 1.0), lambda x, v=v: tvf.solarize(x, v))
        for v in (-3.0, 0, 100.5, 128, 254.1, 255)
    },
    "invert": (t.RandomInvert(1.0), tvf.invert),
    "autocontrast": (t.RandomAutocontrast(1.0), tvf.autocontrast),
    "equalize": (t.RandomEqualize(1.0), tvf.equalize),
    "grayscale": (t.Grayscale(num_output_channels=3), grayscale),
    "random grayscale": (t.RandomGrayscale(1.0), grayscale),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(CASES))
def test_pixels_are_torchvisions_on_tensors(name, channels):
    ours, theirs = CASES[name]
    for kind, image in IMAGES.items():
        tensor = torch.from_numpy(image[..., :channels]).permute(2, 0, 1).contiguous()
        got, expected = ours(tensor), theirs(tensor)
        assert (got.int() - expected.int()).abs().max() <= TORCH_TOLERANCE, kind


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", list(CASES))
def test_pixels_are_pillows_on_pil_images(name, mode):
    ours, theirs = CASES[name]
    for kind, image in IMAGES.items():
        pil = Image.fromarray(image if mode == "RGB" else np.ascontiguousarray(image[..., 0]))
        got, expected = ours(pil), theirs(pil)
        assert got.mode == expected.mode == mode
        assert np.array_equal(np.asarray(got), np.asarray(expected)), kind


def test_no_colour_differs():
    # Every fifth value of each channel, and the largest.
    axis = np.append(np.arange(0, 256, 5), [254, 255]).astype(np.uint8)
    colours = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(len(axis), -1, 3)
    tensor, pil = torch.from_numpy(colours).permute(2, 0, 1), Image.fromarray(colours)
    for turn in np.linspace(-0.5, 0.5, 8):
        ours = jitter(hue=float(turn), saturation=1.0 + float(turn))
        for image, tolerance in ((tensor, TORCH_TOLERANCE), (pil, 0)):
            for step in (t.ColorJitter(hue=ours.hue), t.ColorJitter(saturation=ours.saturation)):
                (name, (number,)) = plans(step, 1)[0][0]
                expected = {"hue": tvf.adjust_hue, "saturation": tvf.adjust_saturation}[name](image, number)
                difference = np.asarray(step(image)).astype(int) - np.asarray(expected)
                assert np.abs(difference).max() <= tolerance, (name, number)


def test_posterize_keeps_no_bit():
    image = torch.from_numpy(noise(3, 8, 8))
    assert torch.equal(t.RandomPosterize(0, 1.0)(image), tvf.posterize(image, 0))


@pytest.mark.parametrize("library", [tv, tv1])
def test_ranges_of_one_number_give_torchvisions_pixels(library):
    # Its transforms draw them as f32, which has none of these.
    def pair(module):
        return [
            module.ColorJitter((1.1, 1.1)),
            module.ColorJitter(contrast=(0.7, 0.7)),
            module.ColorJitter(saturation=(1.4, 1.4)),
            module.ColorJitter(hue=(0.07, 0.07)),
            module.GaussianBlur(5, (1.3, 1.3)),
            module.RandomRotation((20.1, 20.1), center=(70.3, 81.7)),
            module.RandomAffine((-33.3, -33.3), None, (1.3, 1.3), (5.1, 5.1, -7.7, -7.7)),
        ]

    for ours, theirs in zip(pair(t), pair(library), strict=True):
        for kind in ("cat", "noise"):
            tensor = torch.from_numpy(IMAGES[kind]).permute(2, 0, 1).contiguous()
            pil = Image.fromarray(IMAGES[kind])
            difference = (ours(tensor).int() - theirs(tensor).int()).abs()
            if isinstance(ours, t.GaussianBlur):  # sums in another order, on PIL images too
                assert difference.max() <= 1
                assert (difference > 0).float().mean() <= 4e-4, (theirs, kind)
                continue
            if library is tv:  # v1 has other colours on tensors
                assert difference.max() <= TORCH_TOLERANCE, (theirs, kind)
            assert np.array_equal(np.asarray(ours(pil)), np.asarray(theirs(pil))), (theirs, kind)


def plans(transform: t.Transform, count: int) -> list[list[tuple[str, list[float]]]]:
    view = lower(transform).view()
    return [view.draw_plan((8, 8), 3, 0, draw, 0)[0] for draw in range(count)]


@pytest.mark.parametrize(
    "options",
    [
        {"brightness": 0.4, "contrast": 1.5, "saturation": (0.2, 0.9), "hue": 0.1},
        {"brightness": (1.2, 1.2), "hue": (-0.5, 0.3)},
    ],
)
def test_jitter_is_distributed_as_torchvisions(options):
    drawn, count = plans(t.ColorJitter(**options), 3000), 3000
    torch.manual_seed(0)
    theirs = tv.ColorJitter(**options)
    params = [theirs.make_params([]) for _ in range(count)]
    for name in options:
        a = [dict(steps)[name][0] for steps in drawn]
        b = [param[f"{name}_factor"] for param in params]
        if len(set(b)) == 1:
            assert set(a) == set(b) == {float(np.float32(1.2))}
        else:
            assert stats.ks_2samp(a, b).pvalue > 1e-3, name
    # All orders are equally likely.
    _, counts = np.unique([" ".join(name for name, _ in steps) for steps in drawn], return_counts=True)
    assert len(counts) == {2: 2, 4: 24}[len(options)]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_jitter_of_nothing_does_nothing():
    assert plans(t.ColorJitter(0, 0.0, (1, 1), (0, 0)), 5) == [[]] * 5
    assert tv.ColorJitter(0, 0.0, (1, 1), (0, 0)).hue is None


def test_jitter_applies_its_steps_in_order():
    chain = t.ColorJitter(0.4, 0.4, 0.4, 0.1)
    image = torch.from_numpy(IMAGES["cat"]).permute(2, 0, 1).contiguous()
    for draw in range(6):
        torch.manual_seed(draw)
        got = chain(image)
        torch.manual_seed(draw)
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        expected = image
        for name, (number,) in lower(chain).view().draw_plan(tuple(image.shape[1:]), seed, 0, 0, 0)[0]:
            expected = getattr(tvf, f"adjust_{name}")(expected, number)
        # A value that is off by one may be turned or stretched by what follows.
        assert (got.int() - expected.int()).abs().max() <= 8 * TORCH_TOLERANCE


PROBABLE = {
    "grayscale": t.RandomGrayscale,
    "invert": t.RandomInvert,
    "posterize": lambda p: t.RandomPosterize(3, p),
    "solarize": lambda p: t.RandomSolarize(99.5, p),
    "autocontrast": t.RandomAutocontrast,
    "equalize": t.RandomEqualize,
    "sharpness": lambda p: t.RandomAdjustSharpness(1.5, p),
}


@pytest.mark.parametrize("name", list(PROBABLE))
def test_probabilities(name):
    for p in (0.0, 0.3, 1.0):
        drawn = plans(PROBABLE[name](p), 3000)
        count = sum(len(steps) for steps in drawn)
        assert stats.binomtest(count, 3000, p).pvalue > 1e-3 if 0 < p < 1 else count == 3000 * p
    numbers = {"posterize": [3.0], "solarize": [99.5], "sharpness": [1.5]}
    assert drawn[0] == [(name, numbers.get(name, []))]


def test_defaults_are_torchvisions():
    assert t.RandomGrayscale().p == tv.RandomGrayscale().p
    for name in ("RandomInvert", "RandomAutocontrast", "RandomEqualize"):
        assert getattr(t, name)().p == getattr(tv, name)().p
    for name in ("RandomPosterize", "RandomSolarize", "RandomAdjustSharpness"):
        assert getattr(t, name)(2).p == getattr(tv, name)(2).p


ERRORS = {
    "brightness must not be negative if it is a single number, got -0.1": lambda: t.ColorJitter(brightness=-0.1),
    "contrast must not be negative if it is a single number, got nan": lambda: t.ColorJitter(contrast=float("nan")),
    "contrast must be a number or (min, max), got (1, 2, 3)": lambda: t.ColorJitter(contrast=(1, 2, 3)),
    "saturation must be (low, high) with 0 <= low <= high, got (1.5, 0.5)": lambda: t.ColorJitter(
        saturation=(1.5, 0.5)
    ),
    "brightness must be (low, high) with 0 <= low <= high, got (-1, 2)": lambda: t.ColorJitter((-1, 2)),
    "brightness must be (low, high) with 0 <= low <= high, got (0, inf)": lambda: t.ColorJitter(float("inf")),
    "hue must be (low, high) with -0.5 <= low <= high <= 0.5, got (-0.6, 0.6)": lambda: t.ColorJitter(hue=0.6),
    "num_output_channels must be 3, got 1: images keep their channels": t.Grayscale,
    "bits must be an int in 0..8, got 9": lambda: t.RandomPosterize(9),
    "threshold must be at most 255, got 256": lambda: t.RandomSolarize(256),
    "threshold must be at most 255, got NaN": lambda: t.RandomSolarize(float("nan")),
    "sharpness_factor must be finite and at least 0, got -1": lambda: t.RandomAdjustSharpness(-1),
    "p must be a probability in 0..=1, got 1.5": lambda: t.RandomInvert(1.5),
    "p must be a probability in 0..=1, got NaN": lambda: t.RandomGrayscale(float("nan")),
}


@pytest.mark.parametrize("text", list(ERRORS))
def test_errors_say_what_was_expected(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        ERRORS[text]()
