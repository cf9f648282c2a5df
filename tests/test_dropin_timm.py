"""timm's `create_transform` in Rust: all values of its evaluation, and its training replayed from the drawn numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from skimage import data
from timm.data import auto_augment, create_transform, random_erasing
from timm.data import transforms as timm_transforms
from timm.data.transforms_factory import transforms_imagenet_train

from vit_rs import transforms as t
from vit_rs.data.dropin.chain import Pipeline, Place
from vit_rs.data.dropin.places import UntranslatableError
from vit_rs.data.dropin.timm_transforms import translate
from vit_rs.transforms.calling import call
from vit_rs.transforms.lowering import lower

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
FILL = (124, 116, 104)
PHOTOGRAPHS = [
    Image.fromarray(np.ascontiguousarray(pixels))
    for pixels in (
        data.astronaut()[:333, :401],
        data.cat()[:200],
        data.coffee()[:, :150],
        data.chelsea()[:100, :90],
    )
]
RGB, FLOAT = Place(), Place("float", dtype=torch.float32)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [224, (3, 224, 160), (96, 128)])
def test_evaluation_is_timms(size, crop_mode, interpolation):
    for options in ({}, {"crop_pct": 1.0}, {"crop_pct": 0.9, "crop_border_pixels": 4}, {"normalize": False}):
        theirs = create_transform(size, crop_mode=crop_mode, interpolation=interpolation, **options)
        pipeline = Pipeline.of(theirs, RGB)
        assert not pipeline.python, pipeline.steps
        for image in PHOTOGRAPHS:
            ours, expected = pipeline.prefix(image), theirs(image)
            assert ours.dtype == expected.dtype
            assert torch.equal(ours, expected), (options, image.size)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
def test_training_without_augmentation_is_timms(interpolation):
    theirs = create_transform((3, 100, 120), is_training=True, no_aug=True, interpolation=interpolation)
    pipeline = Pipeline.of(theirs, RGB)
    assert not pipeline.python
    assert all(torch.equal(pipeline.prefix(image), theirs(image)) for image in PHOTOGRAPHS)


TRAINING = {
    "plain": {},
    "rand": {"auto_augment": "rand-m9-mstd0.5-inc1"},
    "rand and jitter": {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "color_jitter": (0.3, 0.3, 0.3, 0.1)},
    "rand uniform": {"auto_augment": "rand-m7-n3-mstd101", "interpolation": "bicubic", "re_prob": 0.5, "re_count": 3},
    "original": {"auto_augment": "original-mstd0.5", "interpolation": "bicubic"},
    "originalr": {"auto_augment": "originalr"},
    "v0": {"auto_augment": "v0r", "vflip": 0.5},
    "3a": {"auto_augment": "3a", "color_jitter": 0.3},
    "keep ratio": {"train_crop_mode": "rkrc", "hflip": 0.0},
    "keep ratio at random": {"train_crop_mode": "rkrr", "auto_augment": "rand-m9-inc1-tweights"},
    "gray": {"grayscale_prob": 0.3, "color_jitter_prob": 0.8},
}


@pytest.mark.parametrize("name", list(TRAINING))
def test_training_is_what_was_drawn(name):
    """The numbers are ours; what they stand for is done again by Pillow and torchvision, bit for bit."""
    options = TRAINING[name]
    theirs = create_transform(96, is_training=True, **options)
    pipeline = Pipeline.of(theirs, RGB)
    assert not pipeline.python
    assert pipeline.suffix is None
    assert pipeline.end == FLOAT
    mode = Image.Resampling[options.get("interpolation", "bilinear").upper()]
    view = lower(pipeline.prefix).view()
    kinds = set()
    for seed in range(60):
        image = PHOTOGRAPHS[seed % len(PHOTOGRAPHS)]
        result = call(pipeline.prefix, image, seed=seed)
        steps, float_steps = view.draw_plan(image.size[::-1], seed, 0, 0, 0)
        kinds |= {step for step, _ in (*steps, *float_steps)}
        for step, numbers in steps:
            image = replayed(image, step, numbers, mode)
        expected = torchvision.transforms.functional.to_tensor(image)
        expected = torchvision.transforms.functional.normalize(expected, MEAN, STD)
        for step, numbers in float_steps:
            assert step == "erase"
            top, left, height, width, value = map(int, numbers)
            expected[:, top : top + height, left : left + width] = value
        assert torch.equal(result, expected), (seed, steps)
    # Nothing was left out.
    assert ("erase" in kinds) == ("re_prob" in options)
    assert {"flip_horizontal"} <= kinds or name == "keep ratio"
    assert len(kinds) > 8 or not name.startswith(("rand", "v0", "original"))


def replayed(image: Image.Image, name: str, numbers: list[float], mode: Image.Resampling) -> Image.Image:
    """Carry out a step by Pillow's functions; `mode` is that of resizes."""
    enhancers = {"saturation": "Color", "contrast": "Contrast", "brightness": "Brightness", "sharpness": "Sharpness"}
    if name in enhancers:
        return getattr(ImageEnhance, enhancers[name])(image).enhance(numbers[0])
    if name == "affine":
        inverse, (height, width, sampling) = numbers[:6], numbers[6:]
        reading = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[int(sampling)]
        return image.transform((int(width), int(height)), Image.Transform.AFFINE, inverse, reading, fillcolor=FILL)
    if name in ("equalize", "autocontrast", "invert"):
        return getattr(ImageOps, name)(image)
    steps = {
        "crop": lambda top, left, height, width: image.crop((left, top, left + width, top + height)),
        "resize": lambda height, width: image.resize((int(width), int(height)), mode),
        "window": lambda *numbers: timm_transforms.crop_or_pad(image, *map(int, numbers), padding_mode="reflect"),
        "flip_horizontal": lambda: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "flip_vertical": lambda: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        # Of no bits nothing is left; Pillow 13 refuses to say so.
        "posterize": lambda bits: ImageOps.posterize(image, int(bits)) if bits else Image.new("RGB", image.size),
        "solarize": lambda threshold: ImageOps.solarize(image, int(threshold)),
        "solarize_add": lambda add: auto_augment.solarize_add(image, int(add)),
        "box_blur": lambda radius: image.filter(ImageFilter.GaussianBlur(radius)),
        "hue": lambda turn: torchvision.transforms.functional.adjust_hue(image, turn),
        "grayscale": lambda: ImageOps.grayscale(image).convert("RGB"),
    }
    return steps[name](*numbers)


def test_crops_are_drawn_as_timms():
    """Means of the corners and sides; and the middle of an image that has no part of an allowed ratio."""
    theirs = timm_transforms.RandomResizedCropAndInterpolation(32, scale=(0.3, 0.9), interpolation="random")
    ((ours,), place) = translate(theirs, RGB)
    assert place == RGB
    assert ours == t.RandomChoice(
        [t.RandomResizedCrop((32, 32), (0.3, 0.9), interpolation=name) for name in ("bilinear", "bicubic")]
    )
    random.seed(1)
    size, count = (60, 90), 2000
    expected = np.array(
        [theirs.get_params(Image.new("RGB", size[::-1]), theirs.scale, theirs.ratio) for _ in range(count)]
    )
    plans = [lower(ours).view(kernels="pillow").draw_plan(size, 5, 0, draw, 0)[0] for draw in range(count)]
    drawn = np.array([plan[0][1] for plan in plans])
    for axis in range(4):
        assert abs(drawn[:, axis].mean() - expected[:, axis].mean()) < 4 * expected[:, axis].std() * (2 / count) ** 0.5
    image = PHOTOGRAPHS[0].resize((200, 20))
    whole = timm_transforms.RandomResizedCropAndInterpolation(16, scale=(0.9, 0.9))
    assert np.array_equal(np.asarray(translate(whole, RGB)[0][0](image)), np.asarray(whole(image)))


CONVERSIONS = {
    "MaybeToTensor": (timm_transforms.MaybeToTensor(), RGB, FLOAT),
    "MaybeToTensor of a tensor": (timm_transforms.MaybeToTensor(), FLOAT, FLOAT),
    "MaybePILToTensor": (timm_transforms.MaybePILToTensor(), RGB, Place("tensor")),
    "MaybePILToTensor of a tensor": (timm_transforms.MaybePILToTensor(), Place("tensor"), Place("tensor")),
    "ToTensor": (timm_transforms.ToTensor(), RGB, FLOAT),
    "ToTensor of bytes": (timm_transforms.ToTensor(torch.uint8), RGB, Place("tensor")),
}


@pytest.mark.parametrize("name", list(CONVERSIONS))
def test_conversions_are_timms(name):
    theirs, before, after = CONVERSIONS[name]
    made, place = translate(theirs, before)
    assert place == after
    if before == RGB:
        ours, expected = t.Compose(made)(PHOTOGRAPHS[3]), theirs(PHOTOGRAPHS[3])
        assert ours.dtype == expected.dtype
        assert torch.equal(ours, expected)
    else:
        assert made == ()


class OwnErasing(random_erasing.RandomErasing):
    """A subclass, which may do anything."""


class OwnOp(auto_augment.AugmentOp):
    """The same."""


def changed(op: auto_augment.AugmentOp, **changes: object) -> auto_augment.RandAugment:
    for name, value in changes.items():
        setattr(op, name, value)
    return auto_augment.RandAugment([op])


HPARAMS = {"img_mean": FILL, "translate_const": 100}
LEFT = {
    "vit_rs has no such transform": (timm_transforms.ToNumpy(), RGB),
    "vit_rs has no such transform ": (timm_transforms.RandomPad((9, 9)), RGB),
    "behind a conversion to a tensor": (timm_transforms.ResizeKeepRatio(9), Place("tensor")),
    "behind a conversion to a tensor ": (auto_augment.rand_augment_transform("rand"), FLOAT),
    "interpolation must be 'bilinear', 'bicubic' or 'lanczos', got 'box'": (
        timm_transforms.RandomResizedCropAndInterpolation(9, interpolation="box"),
        RGB,
    ),
    "scale must be (low, high)": (timm_transforms.RandomResizedCropAndInterpolation(9, scale=(0.5, 1.5)), RGB),
    "a fill of 3 values for 1 channels": (timm_transforms.CenterCropOrPad(9, fill=FILL), Place(channels=1)),
    "it erases uint8 values here": (random_erasing.RandomErasing(device="cpu"), Place("tensor")),
    "it draws on device cuda": (random_erasing.RandomErasing(), FLOAT),
    "in torch.float16, where vit_rs computes in float32": (
        random_erasing.RandomErasing(device="cpu"),
        Place("float", dtype=torch.float16),
    ),
    "it makes torch.float16": (timm_transforms.ToTensor(torch.float16), RGB),
    "timm raises TypeError here": (timm_transforms.ToTensor(), FLOAT),
    "test_dropin_timm.OwnOp, not timm's AugmentOp": (changed(OwnOp("Rotate", hparams=HPARAMS)), RGB),
    "its Rotate has functions of its own": (
        changed(auto_augment.AugmentOp("Rotate", hparams=HPARAMS), aug_fn=auto_augment.invert),
        RGB,
    ),
    "its Rotate has more arguments: center": (
        changed(
            auto_augment.AugmentOp("Rotate", hparams=HPARAMS), kwargs={"fillcolor": FILL, "resample": 2, "center": 1}
        ),
        RGB,
    ),
    "interpolation must be 'nearest', 'bilinear' or 'bicubic', got '1'": (
        auto_augment.rand_augment_transform("rand", {**HPARAMS, "interpolation": 1}),
        RGB,
    ),
    "on an image of 1 channels: vit_rs takes RGB alone": (
        auto_augment.rand_augment_transform("rand", HPARAMS),
        Place(channels=1),
    ),
    "p must be a probability": (changed(auto_augment.AugmentOp("Rotate", hparams=HPARAMS), prob=-0.5), RGB),
    "blended=True blends chain by chain": (auto_augment.augment_and_mix_transform("augmix-b1", dict(HPARAMS)), RGB),
}


@pytest.mark.parametrize("reason", list(LEFT))
def test_what_stays_in_python_has_a_reason(reason):
    transform, place = LEFT[reason]
    with pytest.raises(UntranslatableError) as caught:
        translate(transform, place)
    assert reason.strip() in str(caught.value)


def test_changed_objects_stay_in_python():
    erasing = random_erasing.RandomErasing(device="cpu")
    erasing._erase = lambda *_: None
    with pytest.raises(UntranslatableError, match="this RandomErasing has a _erase of its own"):
        translate(erasing, FLOAT)
    assert translate(OwnErasing(device="cpu"), FLOAT) is None
    assert translate(torchvision.transforms.ToTensor(), RGB) is None
    assert translate(len, RGB) is None


def test_a_default_dtype_is_timms():
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UntranslatableError, match=r"it makes torch\.float64, the default dtype") as caught:
            translate(timm_transforms.MaybeToTensor(), RGB)
    finally:
        torch.set_default_dtype(torch.float32)
    assert caught.value.after == Place("float", dtype=torch.float64)


def test_three_stages_are_translated():
    """With `separate` timm returns three chains; the second goes on with a PIL image."""
    stages = transforms_imagenet_train(64, separate=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.5)
    place = RGB
    for stage in stages:
        pipeline = Pipeline.of(stage, place)
        assert not pipeline.python
        place = pipeline.end
    assert place == FLOAT


def test_parameters_are_read_when_translated():
    """Schedules change a policy's magnitude between epochs."""
    policy = auto_augment.rand_augment_transform("rand-m9", dict(HPARAMS))
    before = translate(policy, RGB)
    for op in policy.ops:
        op.magnitude = 3
    assert {op.magnitude for op in translate(policy, RGB)[0][0].ops} == {3.0}
    assert {op.magnitude for op in before[0][0].ops} == {9.0}
