"""torchvision's transforms in a drop-in loader's chain: the same values as torchvision's own, and the same parameters.

Every transform that draws numbers is compared in a form that leaves nothing to chance. What the drawn numbers are is
tested with the transforms of vit_rs, whose parameters are compared here.
"""

from __future__ import annotations

import random
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import skimage.data
import torch
import torchvision
import torchvision.transforms as v1
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from vit_rs import transforms as t
from vit_rs.data.dropin import torchvision_transforms
from vit_rs.data.dropin.chain import Pipeline, Place, UntranslatableError, place_of
from vit_rs.data.dropin.torchvision_transforms import translate

if TYPE_CHECKING:
    from collections.abc import Iterable

HALVES = {"v1": v1, "v2": v2}
MODE = v1.InterpolationMode
PIL, TENSOR = Place(), Place("tensor")
FLOAT = Place("float", dtype=torch.float32)
GRAY = Place("pil", 1)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def seeds():
    torch.manual_seed(5)
    random.seed(5)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


IMAGES = {
    "astronaut": Image.fromarray(skimage.data.astronaut()[90:310, 100:330]),
    "coffee": Image.fromarray(skimage.data.coffee()[100:301, 150:297]),
    "square": Image.fromarray(skimage.data.chelsea()[20:160, 130:270]),
    "tiny": Image.fromarray(noise(3, 5, 3)),
    "gray": Image.fromarray(skimage.data.camera()[40:141, 200:320]),
    "gray noise": Image.fromarray(noise(33, 32)),
}


def tensor_of(image: Image.Image) -> torch.Tensor:
    return v2.functional.pil_to_tensor(image).contiguous()


def values(image: Any) -> np.ndarray:
    return np.asarray(image)


def run(pipeline: Pipeline, image: Any) -> Any:
    """Transform an image by a pipeline that has no Python in it."""
    assert pipeline.first_python is None, [step.reason for step in pipeline.steps]
    return pipeline.prefix(image)


def check_same(transform: Any, image: Any, within: float = 0.0, share: float = 1.0) -> None:
    """Compare a transform and what it is translated to: values, and what the image is behind it."""
    pipeline = Pipeline.of(transform, place_of(image))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anti-alias option is always applied")
        expected = transform(image.copy() if isinstance(image, Image.Image) else image.clone())
    made = run(pipeline, image)
    assert place_of(expected) == pipeline.end
    assert values(made).shape == values(expected).shape
    assert values(made).dtype == values(expected).dtype
    difference = np.abs(values(made).astype(float) - values(expected).astype(float))
    assert difference.max() <= within
    assert (difference > 0).mean() <= share


# What makes a transform from one half of torchvision. Nothing is left to chance; numbers that are drawn from a range of
# one value are exact in float32, which is what torchvision draws.
EQUAL = {
    "Resize 40": lambda v: v.Resize(40),
    "Resize [41]": lambda v: v.Resize([41]),
    "Resize larger": lambda v: v.Resize((301, 299)),
    "Resize bicubic": lambda v: v.Resize((31, 77), MODE.BICUBIC),
    "CenterCrop": lambda v: v.CenterCrop(90),
    "CenterCrop odd": lambda v: v.CenterCrop((91, 60)),
    "CenterCrop larger": lambda v: v.CenterCrop((333, 100)),
    **{
        f"RandomCrop {mode}": lambda v, mode=mode: v.Compose(
            [v.CenterCrop((30, 33)), v.RandomCrop((38, 39), (3, 4), False, (7 if mode == "constant" else 0), mode)]
        )
        for mode in ("constant", "edge", "reflect", "symmetric")
    },
    "RandomCrop four sides": lambda v: v.Compose([v.CenterCrop(30), v.RandomCrop((34, 37), [1, 2, 6, 2], fill=9)]),
    "RandomHorizontalFlip": lambda v: v.RandomHorizontalFlip(1.0),
    "RandomVerticalFlip": lambda v: v.RandomVerticalFlip(p=1.0),
    "no flip": lambda v: v.RandomVerticalFlip(p=0.0),
    "brightness": lambda v: v.ColorJitter(brightness=(1.375, 1.375)),
    "contrast": lambda v: v.ColorJitter(contrast=(0.3125, 0.3125)),
    "saturation": lambda v: v.ColorJitter(saturation=(1.75, 1.75)),
    "hue": lambda v: v.ColorJitter(hue=(0.125, 0.125)),
    "no jitter": lambda v: v.ColorJitter(),
    "RandomGrayscale": lambda v: v.RandomGrayscale(1.0),
    "RandomInvert": lambda v: v.RandomInvert(1.0),
    "RandomPosterize": lambda v: v.RandomPosterize(3, 1.0),
    "RandomSolarize": lambda v: v.RandomSolarize(100.5, 1.0),
    "RandomAdjustSharpness": lambda v: v.RandomAdjustSharpness(1.9, 1.0),
    "RandomAutocontrast": lambda v: v.RandomAutocontrast(1.0),
    "RandomEqualize": lambda v: v.RandomEqualize(1.0),
    "RandomRotation": lambda v: v.RandomRotation((33.25, 33.25), fill=7),
    "RandomRotation 90": lambda v: v.RandomRotation((90, 90)),
    "RandomRotation expand": lambda v: v.RandomRotation((-12, -12), expand=True, fill=200),
    "RandomRotation center": lambda v: v.RandomRotation((-12, -12), center=(10, 20.5)),
    "RandomAffine": lambda v: v.RandomAffine((-9, -9), None, (1.25, 1.25), (3, 3, 4, 4), fill=9),
    "RandomAffine x": lambda v: v.RandomAffine((5, 5), (0, 0), None, (-8, -8), center=(0, 0)),
    "Compose": lambda v: v.Compose([v.Resize(50), v.Compose([v.CenterCrop(40), v.RandomInvert(1.0)])]),
    "RandomApply": lambda v: v.RandomApply([v.RandomInvert(1.0), v.Compose([v.CenterCrop(40)])], 1.0),
    "RandomApply none": lambda v: v.RandomApply([v.CenterCrop(40)], p=0.0),
    "RandomChoice": lambda v: v.RandomChoice([v.CenterCrop(40), v.RandomInvert(1.0), v.Resize(9)], [0, 1, 0]),
    "RandomOrder": lambda v: v.RandomOrder([v.RandomInvert(1.0), v.RandomHorizontalFlip(1.0)]),
    "Sequential": lambda v: torch.nn.Sequential(v.Resize(30), torch.nn.Sequential(v.CenterCrop(20))),
}
# Those that torchvision's v1 classes do otherwise to uint8 tensors.
V1_TENSOR_IN_PYTHON = {
    *("Resize 40", "Resize [41]", "Resize larger", "Resize bicubic", "Compose", "RandomChoice", "Sequential"),
    *("saturation", "hue", "RandomAdjustSharpness", "RandomAutocontrast"),
}
ONLY_V2 = {
    "Resize names": lambda v: v.Resize(40, interpolation="bicubic"),
    "Resize numbers": lambda v: v.Resize((37, 40), interpolation=Image.Resampling.LANCZOS),
    "Identity": lambda v: v.Identity(),
    "RGB": lambda v: v.Compose([v.CenterCrop(10), v.RGB()]),
}
FOR_PIL = {
    "Resize lanczos": lambda v: v.Resize(45, MODE.LANCZOS),
    "Resize without antialias": lambda v: v.Resize(45, antialias=False),
    "Resize with None": lambda v: v.Resize(45, antialias=None),
    "bilinear rotation": lambda v: v.RandomRotation((33.25, 33.25), MODE.BILINEAR, fill=3),
    "bilinear affine": lambda v: v.RandomAffine((-9, -9), None, (1.25, 1.25), (3, 3, 4, 4), MODE.BILINEAR),
}


def is_gray(image: Image.Image) -> bool:
    return image.mode == "L"


def of_both(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, half) for name in names for half in HALVES if half == "v2" or name not in ONLY_V2]


@pytest.mark.parametrize(("name", "half"), of_both([*EQUAL, *FOR_PIL, *ONLY_V2]))
def test_a_pil_image_comes_out_as_torchvisions(name, half):
    transform = {**EQUAL, **FOR_PIL, **ONLY_V2}[name](HALVES[half])
    for image in IMAGES.values():
        if not (name == "RGB" and is_gray(image)):
            check_same(transform, image)


@pytest.mark.parametrize(("name", "half"), of_both([*EQUAL, *ONLY_V2]))
def test_a_tensor_comes_out_as_torchvisions(name, half):
    transform = {**EQUAL, **ONLY_V2}[name](HALVES[half])
    if half == "v1" and name in V1_TENSOR_IN_PYTHON:
        reasons = [step.reason for step in Pipeline.of(transform, TENSOR).steps]
        assert any("torchvision's v1 class" in reason for reason in reasons)
        return
    for image in IMAGES.values():
        if not (name == "RGB" and is_gray(image)):
            check_same(transform, tensor_of(image))


@pytest.mark.parametrize("half", HALVES)
def test_blurs_are_within_their_bound(half):
    blur = HALVES[half].GaussianBlur((5, 9), (1.3, 1.3))
    for name, image in IMAGES.items():
        if name != "tiny":
            check_same(blur, image, within=1, share=2e-4)
            check_same(blur, tensor_of(image), within=1, share=2e-4)


@pytest.mark.parametrize("half", HALVES)
def test_bilinear_maps_of_tensors_are_within_their_bound(half):
    turn = HALVES[half].RandomRotation((33.25, 33.25), MODE.BILINEAR)
    map_ = HALVES[half].RandomAffine((-9, -9), None, (1.25, 1.25), (3, 3, 4, 4), MODE.BILINEAR)
    for image in IMAGES.values():
        check_same(turn, tensor_of(image), within=1, share=0.005)
        check_same(map_, tensor_of(image), within=1, share=0.005)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("interpolation", [MODE.BILINEAR, MODE.BICUBIC])
def test_crops_of_the_whole_image_resize_it(half, interpolation):
    crop = HALVES[half].RandomResizedCrop((50, 61), (1.0, 1.0), (1.0, 1.0), interpolation)
    square = IMAGES["square"]
    check_same(crop, square)
    if half == "v2":
        check_same(crop, tensor_of(square))


# From an image to values, in the forms that training scripts have.
TO_VALUES = {
    "v1": lambda: v1.Compose([v1.Resize(64), v1.CenterCrop(56), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
    "v1 tensor": lambda: v1.Compose(
        [v1.PILToTensor(), v1.CenterCrop(56), v1.ConvertImageDtype(torch.float32), v1.Normalize(list(MEAN), STD)]
    ),
    "v2": lambda: v2.Compose(
        [v2.Resize(64), v2.CenterCrop(56), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    ),
    "v2 tensor": lambda: v2.Compose(
        [v2.ToImage(), v2.Resize(64), v2.CenterCrop(56), v2.ConvertImageDtype(), v2.Normalize(MEAN, STD)]
    ),
    "v2 both": lambda: v2.Compose(
        [v2.Resize(90, MODE.BICUBIC), v2.PILToTensor(), v2.Resize((50, 40)), v2.ToDtype(torch.float32)]
    ),
    "v2 half": lambda: v2.Compose([v2.PILToTensor(), v2.Resize(30), v2.ToDtype(torch.float16, scale=True)]),
    "v2 bfloat16": lambda: v2.Compose([v2.Resize(30), v2.ToImage(), v2.ToDtype(torch.bfloat16, scale=True)]),
    "v2 no values": lambda: v2.Compose([v2.ToDtype(torch.float32), v2.ToImage(), v2.ToDtype(torch.uint8)]),
    "pure": lambda: v2.Compose(
        [v2.ToImage(), v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, True), v2.ToPureTensor()]
    ),
    "only tensor": v1.ToTensor,
    "one mean": lambda: v1.Compose([v1.ToTensor(), v1.Normalize(0.4, 0.3)]),
    "tensor mean": lambda: v1.Compose([v1.ToTensor(), v1.Normalize(torch.tensor([0.4]), torch.tensor([0.3]))]),
    "flip behind": lambda: v1.Compose([v1.ToTensor(), v1.RandomHorizontalFlip(1.0), v1.CenterCrop(20)]),
    "crop behind": lambda: v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, True), v2.CenterCrop(20), v2.RandomCrop(24, 2, fill=1)]
    ),
    "as passed": lambda: v2.Compose([v2.ToImage(), v2.PILToTensor(), v2.ToTensor(), v2.ToImage()]),
}


@pytest.mark.parametrize("name", TO_VALUES)
@pytest.mark.filterwarnings("ignore:The transform `ToTensor:UserWarning")
def test_values_are_torchvisions(name):
    transform = TO_VALUES[name]()
    for image in IMAGES.values():
        if is_gray(image) and "Normalize" in repr(transform) and "0.485" in repr(transform):
            continue  # Three means for one channel.
        pipeline = Pipeline.of(transform, place_of(image))
        expected, made = transform(image), run(pipeline, image)
        assert place_of(expected) == pipeline.end
        if not isinstance(made, torch.Tensor):
            made = tensor_of(made)
        assert made.dtype == expected.dtype
        torch.testing.assert_close(made, torch.Tensor(expected).to(made.dtype), rtol=0, atol=0)


# Bound on floats: docs/transforms.md, "Where an operation stands".
BEHIND = {
    "Resize": lambda v: v.Resize((37, 55)),
    "jitter": lambda v: v.ColorJitter(contrast=(0.3125, 0.3125)),
    "saturation": lambda v: v.ColorJitter(saturation=(1.3, 1.3)),
    "sharpness": lambda v: v.RandomAdjustSharpness(1.7, 1.0),
    "solarize": lambda v: v.RandomSolarize(0.5, 1.0),
    "rotation": lambda v: v.RandomRotation((20, 20), fill=1),
    "blur": lambda v: v.GaussianBlur(3, (1.0, 1.0)),
}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", BEHIND)
def test_operations_on_floats_are_within_their_bounds(name, half):
    transform = v1.Compose([v1.ToTensor(), BEHIND[name](HALVES[half])])
    for image in (IMAGES["coffee"], IMAGES["gray"]):
        made, expected = run(Pipeline.of(transform, place_of(image)), image), transform(image)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-4 if name == "blur" else 1e-5)


def outcomes(transform: Any, image: Any, count: int) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for _ in range(count):
        made = values(transform(image)).tobytes()
        found[made] = found.get(made, 0) + 1
    return found


POLICIES = {
    "rand": lambda v: v.RandAugment(1, 3, 10),
    "rand 31": lambda v: v.RandAugment(1, 4, 31, fill=[1, 2, 3]),
    "trivial": lambda v: v.TrivialAugmentWide(4),
    "auto": lambda v: v.AutoAugment(v.AutoAugmentPolicy.IMAGENET),
}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", POLICIES)
def test_policies_come_to_the_same_images(name, half):
    # Every gray value is there, as thresholds of v1 and v2 differ by one on PIL images.
    pixels = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16, 1) + np.array([0, 80, 160], np.uint8)
    image = Image.fromarray(pixels)
    transform = POLICIES[name](HALVES[half])
    ours = outcomes(Pipeline.of(transform, PIL).prefix, image, 3000)
    theirs = outcomes(transform, image, 1500)
    # What theirs show three times comes in ours with a probability of 1 - exp(-6) at least, if it can.
    missing = [count for made, count in theirs.items() if made not in ours and count > 4]
    more = [count for made, count in ours.items() if made not in theirs and count > 8]
    assert not missing
    assert not more


# A rectangle of one pixel, at any of 16 places.
ERASING = {"scale": (0.05, 0.06), "ratio": (1.0, 1.0), "p": 1.0}
FEW = {
    "erasing": lambda v: v.RandomErasing(value=3, **ERASING),
    "erasing colours": lambda v: v.RandomErasing(value=(1, 2, 3.7), **ERASING),
    "orders": lambda v: v.RandomOrder([v.RandomInvert(0.5), v.RandomSolarize(99), v.RandomPosterize(2)]),
    "choices": lambda v: v.RandomChoice([v.RandomInvert(), v.Compose([v.CenterCrop(4)]), v.RandomSolarize(99, 1.0)]),
    "crops": lambda v: v.RandomCrop((4, 3), (1, 0), fill=9),
    "large crops": lambda v: v.RandomCrop(6, pad_if_needed=True),
}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", FEW)
def test_drawn_numbers_come_to_the_same_images(name, half):
    image = Image.fromarray(noise(4, 4, 3))
    starts = [image] if half == "v2" or "erasing" not in name else []
    transform = FEW[name](HALVES[half])
    for start in [*starts, tensor_of(image)]:
        # The rarest comes once in 48 times.
        ours = outcomes(Pipeline.of(transform, place_of(start)).prefix, start, 1000)
        assert ours.keys() == outcomes(transform, start, 1000).keys()


@pytest.mark.parametrize("half", HALVES)
def test_erasing_before_and_behind_normalize(half):
    erase, normalize = HALVES[half].RandomErasing(value=(0.5, 1, 2), **ERASING), HALVES[half].Normalize(MEAN, STD)
    image = Image.fromarray(noise(4, 4, 3))
    for chain in ([erase, normalize], [normalize, erase]):
        transform = v1.Compose([v1.ToTensor(), *chain])
        ours = outcomes(Pipeline.of(transform, PIL).prefix, image, 400)
        assert ours.keys() == outcomes(transform, image, 400).keys()


# What a transform of either half becomes on PIL images.
PARAMETERS = {
    "Resize": (lambda v: v.Resize((3, 4), MODE.LANCZOS), t.Resize((3, 4), "lanczos")),
    "Resize one side": (lambda v: v.Resize([7]), t.Resize(7)),
    "RandomResizedCrop": (
        lambda v: v.RandomResizedCrop([8], (0.1, 0.5), [0.5, 2.0], MODE.BICUBIC, antialias=None),
        t.RandomResizedCrop((8, 8), (0.1, 0.5), (0.5, 2.0), "bicubic"),
    ),
    "RandomCrop": (
        lambda v: v.RandomCrop(8, [1, 2, 3, 4], True, (5, 6, 7)),
        t.RandomCrop((8, 8), (1, 2, 3, 4), True, (5, 6, 7)),
    ),
    "RandomCrop two": (
        lambda v: v.RandomCrop((8, 9), (1, 2), padding_mode="edge"),
        {
            "v1": t.RandomCrop((8, 9), (1, 2), padding_mode="edge"),
            "v2": t.RandomCrop((8, 9), (1, 2, 1, 2), padding_mode="edge"),
        },
    ),
    "flip": (lambda v: v.RandomHorizontalFlip(0.25), t.RandomHorizontalFlip(0.25)),
    "ColorJitter": (
        lambda v: v.ColorJitter(0.5, (0.75, 2.0), 1.5, 0.25),
        t.ColorJitter((0.5, 1.5), (0.75, 2.0), (0.0, 2.5), (-0.25, 0.25)),
    ),
    "Grayscale": (lambda v: v.Grayscale(3), t.Grayscale(3)),
    "RandomGrayscale": (lambda v: v.RandomGrayscale(), t.RandomGrayscale(0.1)),
    "RandomRotation": (
        lambda v: v.RandomRotation(7, MODE.BILINEAR, True, (1, 2), (9, 9, 8)),
        t.RandomRotation((-7, 7), "bilinear", True, (1, 2), (9, 9, 8)),
    ),
    "RandomAffine": (
        lambda v: v.RandomAffine((1, 2), (0.1, 0.2), (0.5, 2), 5, MODE.BILINEAR, 3.0, [4, 5]),
        t.RandomAffine((1, 2), (0.1, 0.2), (0.5, 2), (-5, 5), "bilinear", 3, (4, 5)),
    ),
    "RandomAffine y": (
        lambda v: v.RandomAffine(0, shear=[1, 2, 3, 4]),
        t.RandomAffine((0, 0), shear=(1, 2, 3, 4)),
    ),
    "GaussianBlur": (lambda v: v.GaussianBlur([3, 5], 2), t.GaussianBlur((3, 5), (2, 2))),
    "GaussianBlur range": (lambda v: v.GaussianBlur(7, (0.5, 1)), t.GaussianBlur((7, 7), (0.5, 1))),
    "RandomPosterize": (lambda v: v.RandomPosterize(3, 0.25), t.RandomPosterize(3, 0.25)),
    "RandomSolarize": (lambda v: v.RandomSolarize(99.5), t.RandomSolarize(99.5, 0.5)),
    "RandomAdjustSharpness": (lambda v: v.RandomAdjustSharpness(0, 0.25), t.RandomAdjustSharpness(0, 0.25)),
    "RandomInvert": (lambda v: v.RandomInvert(0.25), t.RandomInvert(0.25)),
    "RandomEqualize": (lambda v: v.RandomEqualize(0.25), t.RandomEqualize(0.25)),
    "RandomAutocontrast": (lambda v: v.RandomAutocontrast(0.25), t.RandomAutocontrast(0.25)),
    "RandAugment": (
        lambda v: v.RandAugment(3, 4, 5, MODE.BILINEAR, [6.0]),
        {half: t.RandAugment(3, 4, 5, "bilinear", 6, v1=half == "v1") for half in HALVES},
    ),
    "TrivialAugmentWide": (
        lambda v: v.TrivialAugmentWide(5, fill=[1, 2, 3]),
        {half: t.TrivialAugmentWide(5, fill=(1, 2, 3), v1=half == "v1") for half in HALVES},
    ),
    "AutoAugment": (
        lambda v: v.AutoAugment(v.AutoAugmentPolicy.SVHN),
        {half: t.AutoAugment("svhn", v1=half == "v1") for half in HALVES},
    ),
}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_torchvisions(name, half):
    make, expected = PARAMETERS[name]
    made, after = translate(make(HALVES[half]), PIL)
    assert made == (expected[half] if isinstance(expected, dict) else expected,)
    assert after == PIL


def test_aug_mix_has_torchvisions_parameters():
    mix = v2.AugMix(4, 5, 6, 0.5, False, MODE.NEAREST, {torch.Tensor: 7, "others": 8})
    expected = t.AugMix(4, 5, 6, 0.5, False, "nearest", 7)
    assert translate(mix, PIL) == ((expected,), PIL)
    # It mixes PIL images as tensors, with tensors' fill.
    assert translate(v2.AugMix(fill={Image.Image: 3}), PIL) == ((t.AugMix(),), PIL)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("given", "expected"), [(0, 0.0), (3, 3.0), ("random", "random"), ((1, 2, 3), (1.0, 2.0, 3.0)), ([0.5], (0.5,))]
)
def test_erasing_has_torchvisions_parameters(given, expected, half):
    erasing = HALVES[half].RandomErasing(0.25, (0.1, 0.2), [0.5, 2.0], given)
    ((made,), after) = translate(erasing, FLOAT)
    as_one = made.value[0] if isinstance(made.value, tuple) and len(made.value) == 1 else made.value
    wanted = expected[0] if isinstance(expected, tuple) and len(expected) == 1 else expected
    assert as_one == wanted
    assert (made.p, made.scale, made.ratio, after) == (0.25, (0.1, 0.2), (0.5, 2.0), FLOAT)


def test_a_fill_is_that_of_the_images_type():
    fills = {Image.Image: 1, tv_tensors.Image: (2, 3, 4), "others": 5}
    turn = v2.RandomRotation(9, fill=fills)
    found = [translate(turn, place)[0][0].fill for place in (PIL, TENSOR, Place("tensor", wrapped=True), FLOAT)]
    assert found == [1, 5, (2, 3, 4), 5]
    assert translate(v2.RandomRotation(9, fill={tv_tensors.Image: 2}), PIL)[0][0].fill is None


HALF = Place("float", dtype=torch.float16)
WRAPPED = Place("tensor", wrapped=True)
# A place, a transform, and what the reason why it stays in Python says.
REFUSED = [
    (PIL, v1.Resize(9, MODE.NEAREST), "interpolation must be 'bilinear', 'bicubic' or 'lanczos', got 'nearest'"),
    (PIL, v2.Resize(9, "box"), "got 'box'"),
    (TENSOR, v1.Resize(9), "v1 class resizes uint8 tensors in floating point"),
    (TENSOR, v1.RandomResizedCrop(9), "v1 class resizes uint8 tensors in floating point"),
    (TENSOR, v2.Resize(9, antialias=False), "antialias=False on a tensor: vit_rs always antialiases"),
    (TENSOR, v2.RandomResizedCrop(9, antialias=None), "antialias=None on a tensor: vit_rs always antialiases"),
    (FLOAT, v1.Resize(9, MODE.LANCZOS), "v1 class has no Lanczos filter for tensors"),
    (PIL, v1.RandomRotation(9, MODE.BICUBIC), "interpolation must be 'nearest' or 'bilinear', got 'bicubic'"),
    (PIL, v1.RandomRotation(9, fill=0.5), "fill=0.5: vit_rs takes whole numbers"),
    (PIL, v2.RandomAffine(9, fill=(1, 2)), "a fill of 2 values for 3 channels"),
    (GRAY, v1.RandomAffine(9, fill=(1, 2, 3)), "a fill of 3 values for 1 channels"),
    (PIL, v1.RandomCrop(9, fill=300), "fill must be an int in 0..255"),
    (TENSOR, v1.RandomCrop(9, 2, fill=(1, 2, 3)), "torchvision raises an error here: fill=(1, 2, 3)"),
    (TENSOR, v2.RandomCrop(9, 2, fill=(1, 2, 3), padding_mode="edge"), "torchvision raises an error here"),
    (PIL, v1.RandomErasing(), "torchvision raises an error here: its v1 class takes a tensor"),
    (FLOAT, v2.RandomErasing(value=[1.0, 2.0]), "value=[1.0, 2.0] for 3 channels"),
    (PIL, v1.Normalize(MEAN, STD), "torchvision raises TypeError here: it takes a float tensor"),
    (TENSOR, v2.Normalize(MEAN, STD), "torchvision raises TypeError here: it takes a float tensor"),
    (FLOAT, v1.Normalize([0.5, 0.5], STD), "2 means and 3 deviations for 3 channels"),
    (FLOAT, v1.Normalize(MEAN, (0.0, 1.0, 1.0)), "std finite and not 0"),
    (HALF, v2.Normalize(MEAN, STD), "in torch.float16, where vit_rs computes in float32"),
    (HALF, v2.RandomHorizontalFlip(), "in torch.float16, where vit_rs computes in float32"),
    (TENSOR, v1.ToTensor(), "torchvision raises TypeError here: it takes a PIL image"),
    (TENSOR, v1.PILToTensor(), "torchvision raises TypeError here: it takes a PIL image"),
    (PIL, v1.ConvertImageDtype(torch.float32), "torchvision raises TypeError here: it takes a tensor"),
    (TENSOR, v1.ConvertImageDtype(torch.float16), "torch.float16: torchvision's v1 class divides in that type"),
    (TENSOR, v2.ToDtype(torch.int64), "dtype must be torch.float32, float16, bfloat16 or uint8, got torch.int64"),
    (FLOAT, v2.ToDtype(torch.float16), "a second conversion, from torch.float32 to torch.float16"),
    (FLOAT, v2.ToDtype(torch.uint8, scale=True), "a second conversion, from torch.float32 to torch.uint8"),
    (WRAPPED, v2.ToDtype({tv_tensors.Mask: torch.int64}), "torchvision raises ValueError here: no dtype for images"),
    (PIL, v1.Grayscale(), "num_output_channels must be 3, got 1"),
    (GRAY, v1.Grayscale(3), "an image of one channel stays one in vit_rs"),
    (GRAY, v2.RGB(), "an image of one channel stays one in vit_rs"),
    (TENSOR, v1.ColorJitter(hue=0.1), "v1 class rounds saturation and hue of uint8 tensors otherwise"),
    (TENSOR, v1.RandomAdjustSharpness(2), "v1 class rounds sharpness of uint8 tensors otherwise"),
    (TENSOR, v1.RandomAutocontrast(), "v1 class rounds stretched contrast of uint8 tensors otherwise"),
    (TENSOR, v1.RandAugment(), "v1 class rounds saturation and sharpness of uint8 tensors otherwise"),
    (PIL, v1.AugMix(), "v1 class rounds saturation, sharpness and contrast of uint8 tensors otherwise"),
    (FLOAT, v1.RandAugment(), "torchvision raises TypeError here: its v1 class takes uint8 tensors"),
    (FLOAT, v1.RandomPosterize(4), "torchvision raises TypeError here: its v1 class takes uint8 tensors"),
    (FLOAT, v1.RandomEqualize(), "torchvision raises TypeError here: its v1 class takes uint8 tensors"),
    (PIL, v2.RandomSolarize(256.0), "threshold must be at most 255"),
    (WRAPPED, v1.RandomHorizontalFlip(), "makes a plain tensor of a tv_tensors.Image, or not, as drawn"),
    (PIL, v1.Lambda(len), "runs builtins.len"),
    (PIL, v2.Lambda(np.asarray), "runs numpy.asarray"),
    (PIL, v1.RandomPerspective(), "vit_rs has no such transform"),
    (PIL, v1.Pad(3), "vit_rs has no such transform"),
    (TENSOR, v2.GaussianNoise(), "vit_rs has no such transform"),
]


@pytest.mark.parametrize(("place", "transform", "reason"), REFUSED, ids=lambda value: type(value).__name__)
def test_what_has_no_equal_is_refused_with_the_reason(place, transform, reason):
    # Solarize's threshold is checked where the chain is known: Pipeline holds it in Python.
    refused = Pipeline.of(transform, place)
    assert refused.python == (transform,)
    assert reason in refused.steps[0].reason


def test_parameters_that_torchvision_keeps_twice_are_compared():
    crop, erasing, policy = v2.RandomResizedCrop(9), v2.RandomErasing(), v1.AutoAugment()
    crop.ratio, erasing.ratio = (0.5, 2.0), (0.5, 2.0)
    policy.policies = policy.policies[:3]
    with pytest.raises(UntranslatableError, match=r"ratio=\(0.5, 2.0\) was set later"):
        translate(crop, PIL)
    with pytest.raises(UntranslatableError, match=r"ratio=\(0.5, 2.0\) was set later"):
        translate(erasing, FLOAT)
    with pytest.raises(UntranslatableError, match="pairs of operations are not those of its policy"):
        translate(policy, PIL)


def test_the_default_dtype_is_that_of_to_tensor():
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UntranslatableError, match="the default dtype") as caught:
            translate(v1.ToTensor(), PIL)
    finally:
        torch.set_default_dtype(torch.float32)
    assert caught.value.after == Place("float", dtype=torch.float64)


# What is expected behind transforms that stay in Python.
EXPECTED = [
    (PIL, v1.Grayscale(), Place("pil", 1)),
    (TENSOR, v1.ToPILImage(), PIL),
    (FLOAT, v2.ToPILImage(), PIL),
    (WRAPPED, v2.Grayscale(1), Place("tensor", 1, wrapped=True)),
    (GRAY, v2.RGB(), PIL),
    (TENSOR, v1.ConvertImageDtype(torch.float16), HALF),
    (FLOAT, v2.ToDtype(torch.float16), HALF),
    (PIL, v1.RandomPerspective(), PIL),
]


@pytest.mark.parametrize(("place", "transform", "after"), EXPECTED, ids=lambda value: type(value).__name__)
def test_what_is_expected_behind_a_transform_in_python_is_what_comes(place, transform, after):
    image = IMAGES["gray" if place.channels == 1 else "coffee"]
    if place.kind != "pil":
        image = tensor_of(image)
    if place.kind == "float":
        image = image.to(place.dtype) / 255
    if place.wrapped:
        image = tv_tensors.Image(image)
    assert place_of(image) == place
    assert Pipeline.of(transform, place).after_python == after
    assert place_of(transform(image)) == after


def test_only_torchvisions_transforms_are_translated():
    assert translate(len, PIL) is None
    assert translate(torch.nn.Identity(), PIL) is None
    assert translate(v2.functional.horizontal_flip, PIL) is None
    Claiming = type("Resize", (v1.CenterCrop,), {"__module__": "torchvision.transforms.transforms"})
    assert translate(Claiming(3), PIL) is None


def test_resizes_in_floating_point_stay_in_python(monkeypatch):
    """Some versions of torchvision have no uint8 kernel on some CPUs, such as 0.21 with AVX-512."""
    probe = torchvision_transforms._resizes_alike.__wrapped__
    real = v2.functional.resize
    assert all(map(probe, ("bilinear", "bicubic"))) or torchvision.__version__ < "0.22"

    def in_floats(image, *args, **options):
        return real(image.float(), *args, **options).round().clamp(0, 255).to(torch.uint8)

    monkeypatch.setattr(v2.functional, "resize", in_floats)
    assert not any(map(probe, ("bilinear", "bicubic")))
    monkeypatch.setattr(torchvision_transforms, "_resizes_alike", probe)
    with pytest.raises(UntranslatableError, match="floating point on this CPU"):
        translate(v2.Resize((9, 13), antialias=True), Place("tensor"))
    # Pillow's are the same everywhere.
    assert translate(v2.Resize((9, 13)), Place("pil"))
