"""timm's operations: its pixels at the same strengths, its frequencies, its fitting resizes, its erasing."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from PIL import __version__ as pillow_version
from scipy import stats
from timm.data import auto_augment, random_erasing
from timm.data import transforms as timm_transforms

from vit_rs import transforms as t
from vit_rs.data.dropin.chain import Place
from vit_rs.data.dropin.timm_transforms import translate
from vit_rs.transforms.lowering import lower

# Pillow 13 refuses to keep no bits: with it timm's PosterizeIncreasing fails at magnitudes from 10 on, and its
# Posterize at those below 2.5.
KEEPS_NO_BITS = int(pillow_version.split(".")[0]) < 13
FILL = (124, 116, 104)
SAMPLINGS = {"nearest": 0, "bilinear": 2, "bicubic": 3}
AFFINE = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "TranslateXRel", "TranslateYRel")
SIZES = [(61, 37), (3, 50), (2, 2), (1, 1), (40, 224)]


def photograph(height: int, width: int) -> Image.Image:
    """Return smooth colours with noise: neither all values nor a few."""
    generator = np.random.default_rng(7)
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    smooth = 110 + 60 * np.sin(x / 9 + c) + 50 * np.cos(y / 7 - c)
    return Image.fromarray(np.clip(smooth + generator.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8))


def pair(name: str, magnitude: float, mode: str = "bicubic", **hparams: float):
    """Return our translation of one of timm's operations that always comes, and timm's."""
    hparams = {"translate_const": 100, "magnitude_max": 30, **hparams}
    theirs = auto_augment.AugmentOp(
        name, 1.0, magnitude, {"img_mean": FILL, "interpolation": SAMPLINGS[mode], **hparams}
    )
    ((policy,), _) = translate(auto_augment.RandAugment([theirs]), Place())
    return policy.ops[0], theirs


def both_signs(operation, image: Image.Image) -> list[np.ndarray]:
    """Return timm's results, for either sign."""
    results = []
    for drawn in (0.1, 0.9):
        with mock.patch.object(random, "random", lambda drawn=drawn: drawn):
            results.append(np.asarray(operation(image)))
    return results


@pytest.mark.parametrize("name", [name for name in auto_augment.NAME_TO_OP if name != "GaussianBlurRand"])
def test_pixels_are_timms(name):
    for mode in SAMPLINGS if name in AFFINE else ("bicubic",):
        for magnitude in (0, 1, 3.3, 5, 7.77, 9, 9.99, 10, 14.2, 30):
            ours, theirs = pair(name, magnitude, mode)
            bits = theirs.level_fn(magnitude, theirs.hparams)[0] if name.startswith("Posterize") else 8
            for size in SIZES:
                image = photograph(*size)
                if bits <= 0 and not KEEPS_NO_BITS:
                    with pytest.raises(ValueError, match="bits must be"):
                        theirs(image)
                    assert not np.asarray(ours(image)).any()
                    continue
                expected = both_signs(theirs, image)
                made = [np.asarray(ours(image)) for _ in range(4)]
                for result in made:
                    assert any(np.array_equal(result, one) for one in expected), (mode, magnitude, size)


def test_a_random_blur_is_pillows():
    ours, theirs = pair("GaussianBlurRand", 7.0)
    image = photograph(37, 61)
    for seed in range(20):
        torch.manual_seed(seed)
        result = np.asarray(ours(image))
        torch.manual_seed(seed)
        drawn = int(torch.empty((), dtype=torch.int64).random_().item())
        ((name, (radius,)),) = lower(ours).view().draw_plan((37, 61), drawn, 0, 0, 0)[0]
        assert name == "box_blur"
        with mock.patch.object(random, "uniform", lambda *_, radius=radius: radius):
            assert np.array_equal(result, np.asarray(theirs(image)))


def test_pixels_are_pillows_on_tensors_too():
    image = photograph(37, 61)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for name in ("Rotate", "ContrastIncreasing", "ColorIncreasing"):
        ours, _ = pair(name, 9, "bilinear")
        for seed in range(4):
            torch.manual_seed(seed)
            expected = np.asarray(ours(image))
            torch.manual_seed(seed)
            assert np.array_equal(ours(tensor).permute(1, 2, 0).numpy(), expected)


def strengths(name: str, calls: list[tuple]) -> list[float]:
    """Return what timm's functions were called with, as the number of the step that does the same; NaN: none."""
    numbers = []
    for args in calls:
        number = float(args[0])
        if name == "Desaturate":
            number = 1 - number
        if name.startswith("Posterize"):
            number = max(number, 0.0) if number < 8 else np.nan
        elif name.startswith("Solarize") and name != "SolarizeAdd":
            number = number if number < 256 else np.nan
        elif name == "GaussianBlurRand":
            number = random.uniform(0.1, 2 * number)
        elif name in AFFINE and number == 0:
            number = np.nan
        numbers.append(number)
    return numbers


def number(name: str, steps: list, size: tuple[int, int]) -> float:
    """Return the same of our steps."""
    if not steps:
        return np.nan
    ((_, numbers),) = steps
    if name not in AFFINE:
        return numbers[0]
    a, b, c, d, _, f = numbers[:6]
    shifts = {"TranslateX": c, "TranslateY": f, "TranslateXRel": c / size[1], "TranslateYRel": f / size[0]}
    return {"ShearX": b, "ShearY": d, "Rotate": np.degrees(np.arctan2(b, a)) * -1, **shifts}[name]


@pytest.mark.parametrize("magnitude_std", [0.0, 0.5, 3.0, float("inf")])
@pytest.mark.parametrize(
    "name", [name for name in auto_augment.NAME_TO_OP if name not in ("AutoContrast", "Equalize", "Invert")]
)
def test_strengths_are_drawn_as_timms(name, magnitude_std):
    count, size = 1500, (40, 50)
    ours, theirs = pair(name, 8.6, "bilinear", magnitude_std=magnitude_std, magnitude_max=10)
    view = lower(ours).view()
    drawn = np.array([number(name, view.draw_plan(size, 1, 0, draw, 0)[0], size) for draw in range(count)])
    calls: list[tuple] = []
    theirs.aug_fn = lambda _, *args, **__: calls.append(args)
    random.seed(2)
    for _ in range(count):
        theirs(None)
    expected = np.array(strengths(name, calls))
    missing = [int(np.isnan(numbers).sum()) for numbers in (drawn, expected)]
    if sum(missing):
        assert stats.fisher_exact([[missing[0], count - missing[0]], [missing[1], count - missing[1]]]).pvalue > 1e-4
    drawn, expected = (np.round(numbers[~np.isnan(numbers)], 9) for numbers in (drawn, expected))
    if len(drawn) and len(expected):
        assert stats.ks_2samp(drawn, expected).pvalue > 1e-4
    if magnitude_std == 0 and name != "GaussianBlurRand":
        # Nothing but the sign is drawn.
        assert set(drawn) == set(expected)


def test_probability_and_interpolation():
    view = lower(t.TimmOp("ShearX", p=0.3, magnitude=5)).view()
    plans = [view.draw_plan((9, 9), 0, 0, draw, 0)[0] for draw in range(3000)]
    applied = [steps[0][1] for steps in plans if steps]
    assert stats.binomtest(len(applied), 3000, 0.3).pvalue > 1e-3
    # Bilinear and bicubic, either sign.
    counts = Counter((numbers[8], numbers[1] > 0) for numbers in applied)
    assert counts.keys() == {(1.0, True), (1.0, False), (2.0, True), (2.0, False)}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def names_of(steps: list) -> tuple[str, ...]:
    return tuple(name for name, _ in steps)


STEPS = {"Invert": "invert", "Equalize": "equalize", "AutoContrast": "autocontrast", "SolarizeAdd": "solarize_add"}


@pytest.mark.parametrize("weights", [None, [0.5, 0.25, 0.2, 0.05]])
def test_rand_augment_draws_as_timms(weights):
    count = 3000
    operations = [auto_augment.AugmentOp(name, 0.8, 9, {"img_mean": FILL}) for name in STEPS]
    theirs = auto_augment.RandAugment(operations, 2, None if weights is None else np.array(weights))
    ((ours,), _) = translate(theirs, Place())
    view = lower(ours).view()
    drawn = Counter(names_of(view.draw_plan((9, 9), 0, 0, draw, 0)[0]) for draw in range(count))
    made: list[str] = []
    for operation in operations:
        operation.aug_fn = lambda _, *__, name=operation.name, **___: made.append(STEPS[name])
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002  (timm draws from it)
    expected: Counter = Counter()
    for _ in range(count):
        made.clear()
        theirs(None)
        expected[tuple(made)] += 1
    keys = sorted(drawn.keys() | expected.keys())
    table = [[counts[key] for key in keys] for counts in (drawn, expected)]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    if weights is not None:
        assert not any(len(key) == 2 and key[0] == key[1] for key in keys)


@pytest.mark.parametrize("mode", ["bilinear", "random"])
@pytest.mark.parametrize(
    "config",
    [
        "rand",
        "rand-m9-mstd0.5-inc1",
        "rand-m15-n3-p0.7-mmax30-inc1",
        "rand-m7-mstd101",
        "rand-m5-n1-tweights",
        "rand-m9-t3a",
        "rand-n3-inc1-t3aw",
        "augmix-m5-w4-d2",
        "augmix-a0.3-mstd1.5",
        "3a",
    ],
)
def test_config_strings_are_timms(config, mode):
    mean = (0.48145466, 0.4578275, 0.40821073)
    # As timm.data.transforms_factory gives them.
    given = {"translate_const": 100, "img_mean": tuple(min(255, round(255 * value)) for value in mean)}
    if mode != "random":
        given["interpolation"] = SAMPLINGS[mode]
    if config.startswith("augmix"):
        given["translate_pct"] = 0.3
        theirs = auto_augment.augment_and_mix_transform(config, given)
    elif config.startswith("rand"):
        theirs = auto_augment.rand_augment_transform(config, given)
    else:
        theirs = auto_augment.auto_augment_transform(config, given)
    ((expected,), _) = translate(theirs, Place())
    ours = t.timm_policy(config, mean=mean, interpolation=mode)
    weights = getattr(expected, "weights", None)
    if weights is not None:
        assert np.allclose(np.array(ours.weights) / sum(ours.weights), weights, rtol=1e-12)
        ours = dataclasses.replace(ours, weights=weights)
    if config.startswith("augmix"):
        # The same operations in another order.
        assert sorted(map(repr, ours.ops)) == sorted(map(repr, expected.ops))
        ours = dataclasses.replace(ours, ops=expected.ops)
    assert ours == expected


@pytest.mark.parametrize("width", [1, 3])
def test_augmix_is_timms(width):
    """Weights and operations are those that were drawn; sums and blends are timm's own."""
    operations = auto_augment.augmix_ops(5, {"img_mean": FILL, "interpolation": 2})
    theirs = auto_augment.AugMixAugment(operations, width=width)
    ((ours,), _) = translate(theirs, Place())
    image = photograph(44, 44)
    for seed in range(15):
        torch.manual_seed(seed)
        result = np.asarray(ours(image))
        torch.manual_seed(seed)
        drawn = int(torch.empty((), dtype=torch.int64).random_().item())
        (_, (share, _)), (_, (keep, chains)), *steps = lower(ours).view().draw_plan((44, 44), drawn, 0, 0, 0)[0]
        assert (keep, chains) == (0, width)
        weights, made = [], []
        for _ in range(width):
            (name, (weight, length)), *steps = steps
            assert name == "chain"
            weights.append(weight)
            chain = image
            for step in steps[: int(length)]:
                chain = replayed(chain, *step)
            made.append(chain)
            steps = steps[int(length) :]
        chains = iter([[lambda _, chain=chain: chain] for chain in made])
        theirs.depth = 1
        with mock.patch.object(np.random, "choice", lambda *_, chains=chains, **__: next(chains)):
            expected = theirs._apply_basic(image, np.float32(weights), np.float32(share))
        assert np.array_equal(result, np.asarray(expected))


def replayed(image: Image.Image, name: str, numbers: list[float]) -> Image.Image:
    """Carry out a step by Pillow's functions."""
    enhancers = {"saturation": "Color", "contrast": "Contrast", "brightness": "Brightness", "sharpness": "Sharpness"}
    if name in enhancers:
        return getattr(ImageEnhance, enhancers[name])(image).enhance(numbers[0])
    if name == "affine":
        inverse, (height, width, sampling) = numbers[:6], numbers[6:]
        mode = Image.Resampling(SAMPLINGS[list(SAMPLINGS)[int(sampling)]])
        return image.transform((int(width), int(height)), Image.Transform.AFFINE, inverse, mode, fillcolor=FILL)
    if name == "posterize":
        return ImageOps.posterize(image, int(numbers[0]))
    if name == "solarize":
        return ImageOps.solarize(image, int(numbers[0]))
    assert name in ("equalize", "autocontrast", "invert")
    return getattr(ImageOps, name)(image)


FITS = {
    "ratio": lambda: timm_transforms.ResizeKeepRatio((30, 44)),
    "ratio longest": lambda: timm_transforms.ResizeKeepRatio((30, 44), longest=1.0, interpolation="bicubic"),
    "ratio between": lambda: timm_transforms.ResizeKeepRatio(35, longest=0.3, interpolation="lanczos"),
    "center": lambda: timm_transforms.CenterCropOrPad((33, 44), fill=FILL),
    "center gray": lambda: timm_transforms.CenterCropOrPad(41, fill=9),
    "center reflect": lambda: timm_transforms.CenterCropOrPad((120, 41), padding_mode="reflect"),
    "center edge": lambda: timm_transforms.CenterCropOrPad((41, 130), padding_mode="edge"),
    "center symmetric": lambda: timm_transforms.CenterCropOrPad((200, 170), padding_mode="symmetric"),
    "trim": lambda: timm_transforms.TrimBorder(9),
}


@pytest.mark.parametrize("name", list(FITS))
def test_images_are_made_to_fit_as_by_timm(name):
    theirs = FITS[name]()
    ((ours,), _) = translate(theirs, Place())
    for size in [(61, 37), (37, 61), (40, 44), (33, 44), (20, 300), (41, 41), (30, 21)]:
        image = photograph(*size)
        assert np.array_equal(np.asarray(ours(image)), np.asarray(theirs(image))), size


@pytest.mark.parametrize("size", [(61, 37), (47, 44), (50, 50)])
def test_a_random_window_is_timms(size):
    theirs = timm_transforms.RandomCropOrPad((50, 40), fill=FILL, padding_mode="constant")
    ((ours,), _) = translate(theirs, Place())
    image, count = photograph(*size), 1500
    random.seed(4)
    places = Counter(theirs.get_params(image, theirs.size) for _ in range(count))
    steps = [lower(ours).view().draw_plan(size, 0, 0, draw, 0)[0] for draw in range(count)]
    drawn = Counter(tuple(int(number) for number in step[0][1][:2]) if step else (0, 0) for step in steps)
    assert drawn.keys() == places.keys()
    table = [[counts[key] for key in places] for counts in (drawn, places)]
    assert len(places) == 1 or stats.chi2_contingency(table).pvalue > 1e-3
    expected = set()
    for top, left in places:
        made = timm_transforms.crop_or_pad(image, top, left, 50, 40, FILL, "constant")
        expected.add(np.asarray(made).tobytes())
    assert {np.asarray(ours(image)).tobytes() for _ in range(30)} <= expected


def test_random_resizes_are_drawn_as_timms():
    theirs = timm_transforms.ResizeKeepRatio(
        (300, 400),
        random_scale_prob=0.4,
        random_scale_range=(0.6, 1.2),
        random_scale_area=True,
        random_aspect_prob=0.7,
        random_aspect_range=(0.8, 1.3),
    )
    ((ours,), _) = translate(theirs, Place())
    size, count = (900, 700), 2000
    steps = [lower(ours).view().draw_plan(size, 0, 0, draw, 0)[0] for draw in range(count)]
    drawn = np.array([step[0][1] if step else size for step in steps])
    random.seed(6)
    options = [
        theirs.random_scale_prob,
        theirs.random_scale_range,
        theirs.random_scale_area,
        theirs.random_aspect_prob,
        theirs.random_aspect_range,
    ]
    image = Image.new("L", size[::-1])
    expected = np.array([theirs.get_params(image, theirs.size, theirs.longest, *options) for _ in range(count)])
    for axis in (0, 1):
        assert stats.ks_2samp(drawn[:, axis], expected[:, axis]).pvalue > 1e-3
    assert stats.ks_2samp(drawn[:, 0] / drawn[:, 1], expected[:, 0] / expected[:, 1]).pvalue > 1e-3


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_is_timms(mode):
    theirs = random_erasing.RandomErasing(0.7, mode=mode, min_count=1, max_count=3, device="cpu")
    ((ours,), _) = translate(theirs, Place("float", dtype=torch.float32))
    chain = t.Compose([t.ToDtype(torch.float32), ours])
    size, count = (64, 48), 1200
    image = torch.full((3, *size), 255, dtype=torch.uint8)
    torch.manual_seed(7)
    random.seed(7)
    made = torch.stack([chain(image) for _ in range(count)])
    expected = torch.stack([theirs(image.float()) for _ in range(count)])
    erased = [(images[:, 0] != 255).flatten(1).sum(1).numpy() for images in (made, expected)]
    assert stats.ks_2samp(*erased).pvalue > 1e-3
    # Where it happens: every place as often.
    shares = [(images[:, 0] != 255).float().mean(0) for images in (made, expected)]
    assert (shares[0] - shares[1]).abs().max() < 5 * np.sqrt(0.5 * 0.5 * 2 / count)
    values = [images[images != 255].numpy() for images in (made, expected)]
    if mode == "const":
        assert not values[0].any()
        return
    if mode == "pixel":
        assert stats.kstest(values[0][::7], stats.norm.cdf).pvalue > 1e-3
        return
    # One colour for each rectangle: at most three in an image and channel.
    colours = [[len(channel.unique()) - 1 for channel in image] for image in made[:200]]
    assert max(max(counts) for counts in colours) <= 3
    first = np.unique(values[0])
    assert stats.kstest(first, stats.norm.cdf).pvalue > 1e-3


def test_one_rectangle_is_torchvisions():
    """The numbers of a single rectangle are what they were before there could be several."""
    plain = t.Compose([t.ToDtype(torch.float32), t.RandomErasing(1.0, value=0.0)])
    image = torch.full((3, 40, 40), 255, dtype=torch.uint8)
    for count in (1, (1, 1)):
        several = t.Compose([t.ToDtype(torch.float32), t.RandomErasing(1.0, value=0.0, count=count)])
        for seed in range(5):
            torch.manual_seed(seed)
            expected = plain(image)
            torch.manual_seed(seed)
            assert torch.equal(several(image), expected)


ERRORS = {
    "name must be one of AutoContrast, Equalize, Invert": lambda: t.TimmOp("Rotatee"),
    "p must be a probability in 0..=1, got 2": lambda: t.TimmOp("Rotate", 2.0),
    "magnitude_std must be at least 0, got -1": lambda: t.TimmOp("Rotate", magnitude_std=-1.0),
    "magnitude_max must be finite, got inf": lambda: t.TimmOp("Rotate", magnitude_max=float("inf")),
    "interpolation must be 'nearest', 'bilinear' or 'bicubic', got 'box'": lambda: t.TimmOp(
        "Rotate", interpolation="box"
    ),
    "interpolation needs at least one name": lambda: t.TimmOp("Rotate", interpolation=()),
    "fill must be an int in 0..255, three of them or None, got (1, 2)": lambda: t.TimmOp("Rotate", fill=(1, 2)),
    "num_layers must be an int of at least 0, got -1": lambda: t.TimmRandAugment([t.TimmOp("Rotate")], -1),
    "at least one transform is needed here": lambda: t.TimmRandAugment([]),
    "each of the 1 operations needs a weight": lambda: t.TimmRandAugment([t.TimmOp("Rotate")], 1, (1.0, 1.0)),
    "width must be an int of at least 1, got 0": lambda: t.TimmAugMix([t.TimmOp("Rotate")], width=0),
    "alpha must be positive and finite, got 0": lambda: t.TimmAugMix([t.TimmOp("Rotate")], alpha=0.0),
    "config must be '3a' or begin with 'rand' or 'augmix', got 'v0'": lambda: t.timm_policy("v0"),
    "m, n, p, mstd, mmax or inc and a number, or tweights or t3a or t3aw; got 'x3'": lambda: t.timm_policy("rand-x3"),
    "section 'm9.5' of config must have a whole number": lambda: t.timm_policy("rand-m9.5"),
    "m, w, d, a or mstd and a number; got 'b1'": lambda: t.timm_policy("augmix-b1"),
    "needs 8-bit pixels: put it before ToDtype": lambda: t.Compose([t.ToDtype(torch.float32), t.TimmOp("Rotate")]),
    "longest must be in 0..=1, got 2": lambda: t.ResizeKeepRatio(9, 2.0),
    "random_scale_range must be (low, high)": lambda: t.ResizeKeepRatio(9, random_scale_range=(2, 1)),
    "padding_mode must be 'constant', 'edge', 'reflect' or 'symmetric', got 'wrap'": lambda: t.CenterCropOrPad(
        9, padding_mode="wrap"
    ),
    "size must be a positive int or (height, width) of two, got 0": lambda: t.RandomCropOrPad(0),
    "border_size must be an int of at least 0, got -2": lambda: t.TrimBorder(-2),
    "nothing is left of 10 x 10": lambda: t.TrimBorder(5)(Image.new("RGB", (10, 10))),
    "count must be (fewest, most) with 1 <= fewest <= most <= 1024, got (3, 2)": lambda: t.RandomErasing(count=(3, 2)),
    "count must be a positive int or (fewest, most) of two, got 0": lambda: t.RandomErasing(count=0),
}


@pytest.mark.parametrize("text", list(ERRORS))
def test_errors_say_what_was_expected(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        ERRORS[text]()


@pytest.mark.parametrize(
    "make",
    [
        lambda: t.TimmOp("Rotate", fill=None),
        lambda: t.TimmOp("Rotate", p="often"),
        lambda: t.TimmOp(3),
        lambda: t.TimmRandAugment([t.ToDtype(torch.float32)]),
        lambda: t.TimmAugMix([t.TimmOp("Rotate")], depth=1.5),
        lambda: t.TrimBorder(1.5),
    ],
)
def test_wrong_kinds_are_type_errors(make):
    with pytest.raises(TypeError):
        make()
