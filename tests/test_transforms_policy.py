"""Augmentation policies: torchvision v2's operations, strengths and frequencies, and its pixels on the same numbers."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from scipy import stats
from torchvision.transforms.v2.functional import _geometry

from vit_rs import transforms as t
from vit_rs.transforms import calling
from vit_rs.transforms.lowering import lower

COLOURS = {"Brightness": "brightness", "Color": "saturation", "Contrast": "contrast", "Sharpness": "sharpness"}


def steps_of(transform: t.Transform, size: tuple[int, int], count: int, seed: int = 0, kernels="torch") -> list[list]:
    view = lower(transform).view(kernels=kernels)
    return [view.draw_plan(size, seed, 0, draw, 0)[0] for draw in range(count)]


def step(name: str, strength: float, size: tuple[int, int], mode: str, kernels: str = "torch") -> list:
    """Return the steps that torchvision's operation `name` at this strength is."""
    height, width = size
    if name in COLOURS:
        return [(COLOURS[name], [1.0 + strength])]
    if name == "Posterize":
        return [("posterize", [float(int(strength))])]
    if name == "Solarize":
        # torch compares pixels in float32, Pillow in float64.
        threshold = 255.0 * strength
        return [("solarize", [float(math.ceil(np.float32(threshold) if kernels == "torch" else threshold))])]
    if name in ("AutoContrast", "Equalize", "Invert"):
        return [(name.lower(), [])]
    if name == "Identity":
        return []
    center, angle, translate, shear = [width * 0.5, height * 0.5], 0.0, [0.0, 0.0], [0.0, 0.0]
    if name in ("ShearX", "ShearY"):
        center, shear[name == "ShearY"] = [0.0, 0.0], math.degrees(math.atan(strength))
    elif name in ("TranslateX", "TranslateY"):
        translate[name == "TranslateY"] = float(int(strength))
    else:
        assert name == "Rotate"
        # Without a shear the angles of the two functions differ in their sign alone.
        angle = -strength
    matrix = _geometry._get_inverse_affine_matrix(center, angle, translate, 1.0, shear)
    if np.array_equal(matrix, [1, 0, 0, 0, 1, 0]):
        return []
    return [("affine", [*matrix, height, width, float(mode == "bilinear")])]


def rounded(steps: list) -> tuple:
    """Return steps as a key; Pillow's rotation has other last digits."""
    return tuple((name, *(round(float(number), 9) + 0.0 for number in numbers)) for name, numbers in steps)


def strengths(space: dict, name: str, bins: int, size: tuple[int, int]) -> list[float]:
    """Return torchvision's strengths of an operation, with their signs."""
    function, signed = space[name]
    values = function(bins, *size)
    values = [0.0] if values is None else [float(value) for value in values]
    return values + [-value for value in values] if signed else values


def replay(image, plan: list, named: dict, policy, mode: str):
    """Carry out drawn steps with torchvision's own operations; they are recognised by their numbers."""
    for single in plan:
        name, strength = named[rounded([single])]
        image = policy._apply_image_or_video_transform(
            image, name, strength, interpolation=tv.InterpolationMode(mode), fill=policy._fill
        )
    return image


def names(space: dict, bins: int, size: tuple[int, int], mode: str, kernels: str) -> dict:
    """Return (operation, strength) of the steps that can be drawn."""
    return {
        rounded(step(name, strength, size, mode, kernels)): (name, strength)
        for name in space
        for strength in strengths(space, name, bins, size)
    }


def call_seeded(transform: t.Transform, image, seed: int, kernels: str) -> tuple[object, list]:
    """Call a transform, and return the result and the steps that were drawn for it."""
    torch.manual_seed(seed)
    drawn = calling._seed()
    torch.manual_seed(seed)
    size = tuple(tvf.get_size(image))
    return transform(image), lower(transform).view(kernels=kernels).draw_plan(size, drawn, 0, 0, 0)[0]


def photograph(height: int, width: int, channels: int) -> np.ndarray:
    """Return smooth colours with noise: neither all values nor a few."""
    generator = np.random.default_rng(7)
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    smooth = 110 + 60 * np.sin(x / 9 + c) + 50 * np.cos(y / 7 - c)
    return np.clip(smooth + generator.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


SVHN = tv.AutoAugmentPolicy.SVHN
POLICIES = {
    "rand": lambda *look: (t.RandAugment(1, 9, 31, *look), tv.RandAugment(1, 9, 31, *look), 31),
    "rand twice": lambda *look: (t.RandAugment(2, 14, 15, *look), tv.RandAugment(2, 14, 15, *look), 15),
    "trivial": lambda *look: (t.TrivialAugmentWide(31, *look), tv.TrivialAugmentWide(31, *look), 31),
    "auto": lambda *look: (t.AutoAugment("imagenet", *look), tv.AutoAugment(interpolation=look[0], fill=look[1]), 10),
    "auto svhn": lambda *look: (t.AutoAugment(SVHN, *look), tv.AutoAugment(SVHN, *look), 10),
}


@pytest.mark.parametrize("name", list(POLICIES))
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernels", ["torch", "pillow"])
def test_pixels_are_torchvisions(name, mode, channels, kernels):
    array = photograph(48, 60, channels)
    image = torch.from_numpy(array).permute(2, 0, 1)
    if kernels == "pillow":
        image = Image.fromarray(array if channels == 3 else array[..., 0])
    ours, theirs, bins = POLICIES[name](mode, None)
    named = names(theirs._AUGMENTATION_SPACE, bins, (48, 60), mode, kernels)
    for seed in range(40):
        result, plan = call_seeded(ours, image, seed, kernels)
        expected = replay(image, plan, named, theirs, mode)
        difference = np.abs(np.asarray(result).astype(int) - np.asarray(expected).astype(int))
        affine = [at for at, (step, _) in enumerate(plan) if step == "affine"]
        if affine and mode == "bilinear" and kernels == "torch":
            # Within one level, rarely (see test_transforms_affine.py); what comes behind it may spread that level.
            assert difference.max() <= 1 or affine[0] < len(plan) - 1, plan
            assert (difference > 0).mean() <= 0.01, plan
        else:
            assert not difference.any(), plan


def recorded(policy, size: tuple[int, int], count: int) -> list[list[tuple[str, float]]]:
    """Return the operations and strengths that torchvision draws, without carrying them out."""
    calls: list[tuple[str, float]] = []

    def record(image, name, strength, **_):
        calls.append((name, strength))
        return image

    policy._apply_image_or_video_transform = record
    image, draws = torch.zeros(3, *size, dtype=torch.uint8), []
    for _ in range(count):
        calls.clear()
        policy(image)
        draws.append(list(calls))
    return draws


def same_frequencies(ours: Counter, theirs: Counter) -> bool:
    """Whether two counts can be of one distribution; what is rare is counted together."""
    keys = ours.keys() | theirs.keys()
    rare = {key for key in keys if ours[key] + theirs[key] < 20}
    table = [[counts[key] for key in keys - rare] + [sum(counts[key] for key in rare)] for counts in (ours, theirs)]
    columns = np.array(table)
    return stats.chi2_contingency(columns[:, columns.sum(axis=0) > 0]).pvalue > 1e-3


@pytest.mark.parametrize("name", list(POLICIES))
def test_operations_are_as_frequent_as_torchvisions(name):
    size, count = (33, 51), 3000
    ours, theirs, _ = POLICIES[name]("nearest", None)
    drawn = Counter(rounded(steps) for steps in steps_of(ours, size, count, seed=2))
    torch.manual_seed(5)
    made = [
        [single for name, strength in draw for single in step(name, strength, size, "nearest")]
        for draw in recorded(theirs, size, count)
    ]
    expected = Counter(rounded(steps) for steps in made)
    assert same_frequencies(drawn, expected)
    # Every step that is drawn is one of torchvision's, to the last digit.
    singles = {single for steps in expected for single in steps}
    if name == "rand":
        assert {single for steps in drawn for single in steps} == singles


def test_every_strength_is_torchvisions():
    size = (45, 64)
    for bins in (2, 3, 10, 31, 50):
        space = tv.TrivialAugmentWide._AUGMENTATION_SPACE
        expected = names(space, bins, size, "nearest", "torch")
        drawn = {rounded(steps) for steps in steps_of(t.TrivialAugmentWide(bins), size, 200 * bins)}
        assert drawn <= expected.keys()
        assert len(drawn) > 0.9 * len(expected)
    for magnitude in range(0, 31, 3):
        expected = names(tv.RandAugment._AUGMENTATION_SPACE, 31, size, "nearest", "torch")
        assert {rounded(steps) for steps in steps_of(t.RandAugment(1, magnitude), size, 200)} <= expected.keys()


@pytest.mark.parametrize("policy", list(tv.AutoAugmentPolicy))
def test_auto_augment_has_torchvisions_pairs(policy):
    size = (40, 40)
    theirs = tv.AutoAugment(policy)
    possible = set()
    for pair in theirs._policies:
        sequences: list[list] = [[]]
        for name, _, bin_ in pair:
            values = strengths(theirs._AUGMENTATION_SPACE, name, 10, size)
            chosen = {values[bin_ or 0], values[(bin_ or 0) - (len(values) // 2 if len(values) == 20 else 0)]}
            sequences += [[*before, *step(name, value, size, "nearest")] for before in sequences for value in chosen]
        possible |= {rounded(sequence) for sequence in sequences}
    drawn = {rounded(steps) for steps in steps_of(t.AutoAugment(policy.value), size, 2000)}
    assert drawn <= possible
    assert drawn == {rounded(steps) for steps in steps_of(t.AutoAugment(policy), size, 2000)}


def mixes(steps: list) -> tuple[float, list[tuple[float, list]]]:
    """Return the weight of the image, and weight and steps of each chain."""
    (name, (keep, chains)), *rest = steps
    assert name == "mix"
    found = []
    for _ in range(int(chains)):
        (name, (weight, length)), *rest = rest
        assert name == "chain"
        found.append((weight, rest[: int(length)]))
        rest = rest[int(length) :]
    assert not rest
    return keep, found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernels", ["torch", "pillow"])
def test_augmix_mixes_as_torchvision(channels, kernels):
    array = photograph(40, 52, channels)
    image = torch.from_numpy(array).permute(2, 0, 1)
    given = image if kernels == "torch" else Image.fromarray(array if channels == 3 else array[..., 0])
    ours, theirs = t.AugMix(severity=5), tv.AugMix(severity=5)
    named = names(theirs._AUGMENTATION_SPACE, 10, (40, 52), "bilinear", "torch")
    for seed in range(12):
        result, plan = call_seeded(ours, given, seed, kernels)
        keep, chains = mixes(plan)
        mix = torch.tensor(keep, dtype=torch.float32) * image
        for weight, steps in chains:
            chain = replay(image, steps, named, theirs, "bilinear")
            mix.add_(torch.tensor(weight, dtype=torch.float32) * chain)
        ours_image = result if kernels == "torch" else tvf.pil_to_tensor(result)
        difference = (ours_image.int() - mix.to(torch.uint8).int()).abs()
        # Bilinear sampling differs in few pixels, by a level times the chain's weight and what comes behind it.
        assert (difference > 0).float().mean() <= 0.01, plan
        assert difference.float().mean() <= 0.02, plan


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_augmix_draws_as_torchvision(alpha):
    count, width = 2500, 3
    drawn = [mixes(steps) for steps in steps_of(t.AugMix(alpha=alpha, mixture_width=width), (30, 30), count)]
    keep = np.array([keep for keep, _ in drawn])
    shares = np.array([[weight for weight, _ in chains] for _, chains in drawn])
    assert np.allclose(keep + shares.sum(axis=1), 1, atol=1e-5)
    assert stats.kstest(keep, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    torch.manual_seed(1)
    sampled = (
        torch._sample_dirichlet(torch.full((count, width), alpha))
        * torch._sample_dirichlet(torch.full((count, 2), alpha))[:, 1:]
    )
    for axis in range(width):
        assert stats.ks_2samp(shares[:, axis], sampled[:, axis].numpy()).pvalue > 1e-3
    assert abs(np.corrcoef(keep, shares[:, 0] / (1 - keep + 1e-9))[0, 1]) < 4 / math.sqrt(count)


@pytest.mark.parametrize("options", [{}, {"all_ops": False}, {"severity": 10, "chain_depth": 2, "mixture_width": 1}])
def test_augmix_operations_are_as_frequent_as_torchvisions(options):
    size, count = (30, 42), 1200
    ours, theirs = t.AugMix(**options), tv.AugMix(**options)
    chains = [chain for steps in steps_of(ours, size, count) for _, chain in mixes(steps)[1]]
    drawn = Counter(rounded([single]) for chain in chains for single in chain)
    torch.manual_seed(3)
    theirs_steps = [
        single for draw in recorded(theirs, size, count) for each in draw for single in step(*each, size, "bilinear")
    ]
    assert same_frequencies(drawn, Counter(rounded([single]) for single in theirs_steps))
    if not options:
        # Steps that change nothing are left out of chains of 1 to 3: shifts, turns and shears at the first strength.
        assert {len(chain) for chain in chains} == {0, 1, 2, 3}


def test_three_augment_is_one_of_three():
    plans = steps_of(t.ThreeAugment(), (32, 32), 3000)
    assert all(len(plan) == 1 for plan in plans)
    counts = Counter(plan[0][0] for plan in plans)
    assert counts.keys() == {"grayscale", "solarize", "gaussian_blur"}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    assert {tuple(numbers) for ((name, numbers),) in plans if name == "solarize"} == {(128.0,)}
    blurs = np.array([numbers for ((name, numbers),) in plans if name == "gaussian_blur"])
    assert (blurs[:, :2] == 13).all()
    assert stats.kstest(blurs[:, 2], stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
    image = torch.from_numpy(photograph(20, 20, 3)).permute(2, 0, 1)
    assert t.ThreeAugment()(image).shape == image.shape


def test_fill_reaches_the_operations():
    image = torch.full((3, 40, 40), 200, dtype=torch.uint8)

    def corners(transform: t.Transform) -> list[list[int]]:
        torch.manual_seed(0)
        made = [transform(image) for _ in range(200)]
        return [pixels[:, y, x].tolist() for pixels in made for y in (0, -1) for x in (0, -1)]

    for transform in (
        t.TrivialAugmentWide(fill=(1, 2, 3)),
        t.RandAugment(1, 30, fill=(1, 2, 3)),
        t.AutoAugment("svhn", fill=(1, 2, 3)),
    ):
        filled, black = corners(transform), corners(dataclasses.replace(transform, fill=None))
        assert [1, 2, 3] in filled
        assert [0, 0, 0] in black
        if not isinstance(transform, t.AutoAugment):
            # One operation, none of which makes 200 black: what is black was left without the colour. The second one
            # of a pair may change the colour.
            assert [0, 0, 0] not in filled
            assert [1, 2, 3] not in black


ERRORS = {
    "num_ops must be an int of at least 0, got -1": lambda: t.RandAugment(-1),
    "num_ops must be 0..=1024, got 2000": lambda: t.RandAugment(2000),
    "magnitude must be below num_magnitude_bins = 31, got 31": lambda: t.RandAugment(2, 31),
    "num_magnitude_bins must be an int of at least 2, got 1": lambda: t.TrivialAugmentWide(1),
    "num_magnitude_bins must be in 2..=65536, got 100000": lambda: t.TrivialAugmentWide(100000),
    "policy must be 'imagenet', 'cifar10' or 'svhn', got 'mnist'": lambda: t.AutoAugment("mnist"),
    "severity must be in 1..=10, got 11": lambda: t.AugMix(11),
    "severity must be an int of at least 1, got 0": lambda: t.AugMix(0),
    "mixture_width must be an int of at least 1, got 0": lambda: t.AugMix(mixture_width=0),
    "chain_depth must be in 1..=1024, got 5000": lambda: t.AugMix(chain_depth=5000),
    "alpha must be positive and finite, got 0": lambda: t.AugMix(alpha=0.0),
    "interpolation must be 'nearest' or 'bilinear', got 'bicubic'": lambda: t.RandAugment(interpolation="bicubic"),
    "fill must be an int in 0..255, three of them or None, got -1": lambda: t.AugMix(fill=-1),
}


@pytest.mark.parametrize("text", list(ERRORS))
def test_errors_say_what_was_expected(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        ERRORS[text]()
