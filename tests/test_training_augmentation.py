"""What the settings of `data` do to a training image, and to a test image."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vit_rs.data import ArrayDataset, ImageLoader
from vit_rs.exceptions import ConfigError
from vit_rs.recipes import fashion_mnist
from vit_rs.training import DataConfig
from vit_rs.training.augmentation import randaugment
from vit_rs.training.sources import eval_transform, train_transform
from vit_rs.training.values import apply_settings, parse_settings
from vit_rs.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    Normalize,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ThreeAugment,
    TimmRandAugment,
    ToDtype,
    timm_policy,
)

FLOATS = [ToDtype(torch.float32, scale=True), Normalize((0.5,), (0.5,))]


def data(**changes):
    return DataConfig(**{"img_size": 16, "mean": (0.5,), "std": (0.5,), "flip": 0.0, **changes})


def pictures(count, channels=3, side=20):
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    return ArrayDataset(pixels, np.arange(count, dtype=np.int64) % 2)


def batch(source, transform, **options):
    with ImageLoader(source, transform, batch_size=len(source), num_threads=1, **options) as loader:
        return next(iter(loader))[0]


def test_crops_use_the_filter_that_is_asked_for():
    config = data(augment="resized_crop", min_scale=0.05, max_aspect=1.5, interpolation="bicubic")
    crop = RandomResizedCrop(16, scale=(0.05, 1.0), ratio=(1 / 1.5, 1.5), interpolation="bicubic")
    assert train_transform(config, 16, None) == Compose([crop, *FLOATS])
    config = data(padding=2, interpolation="bicubic")
    assert train_transform(config, 16, None) == Compose([Resize(16, "bicubic"), RandomCrop(16, padding=2), *FLOATS])


def test_a_window_of_the_squashed_image():
    config = data(augment="crop", train_resize=20, flip=0.5)
    expected = [Resize((20, 20)), RandomCrop(16), RandomHorizontalFlip(0.5), *FLOATS]
    assert train_transform(config, 16, None) == Compose(expected)
    assert train_transform(config, 24, None).transforms[0] == Resize((30, 30))  # another stage's size scales it
    assert train_transform(config, 16, 20) == Compose(expected[1:])  # nothing to resize
    assert batch(pictures(3), train_transform(config, 16, 20)).shape == (3, 3, 16, 16)


def test_colours_follow_the_geometry_and_erasing_the_normalisation():
    config = data(augment="crop", train_resize=16, three_augment=True, color_jitter=0.3, erase=0.25)
    assert train_transform(config, 16, 16) == Compose(
        [
            RandomCrop(16),
            ThreeAugment(),
            ColorJitter(0.3, 0.3, 0.3),
            *FLOATS,
            RandomErasing(0.25, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value="random"),
        ]
    )


def test_pixels_may_be_left_for_the_device_to_normalise():
    config = data(normalize_on="device", randaugment_layers=2)
    assert batch(pictures(2), train_transform(config, 16, 20)).dtype == torch.uint8
    assert batch(pictures(2), eval_transform(config, 16, 20)).dtype == torch.float32


def test_test_images_are_cropped_or_squashed():
    assert eval_transform(data(eval_crop=0.8), 16, None) == Compose([Resize(20), CenterCrop((16, 16)), *FLOATS])
    squash = data(eval_resize="squash", interpolation="bicubic")
    assert eval_transform(squash, 16, None) == Compose([Resize((16, 16), "bicubic"), *FLOATS])
    assert eval_transform(squash, 16, 16) == Compose(FLOATS)


def test_timm_s_randaugment_is_the_usual_policy():
    config = data(randaugment="timm", randaugment_layers=2, randaugment_magnitude=9.0, mean=(0.4, 0.5, 0.6))
    usual = {"config": "rand-m9-n2-mstd0.5-inc1", "mean": (0.4, 0.5, 0.6)}
    assert randaugment(config) == timm_policy(**usual, interpolation="bilinear")
    # timm.data.create_transform gives the policy the filter of the crop.
    bicubic = dataclasses.replace(config, interpolation="bicubic")
    assert randaugment(bicubic) == timm_policy(**usual, interpolation="bicubic")
    grey = data(randaugment="timm", randaugment_layers=1, randaugment_magnitude=9.0)
    assert batch(pictures(8, channels=1), train_transform(grey, 16, 20)).shape == (8, 1, 16, 16)


# What big_vision's `level_to_arg` gives, written down from its formulas; a shift is a share of 224 pixels.
BIG_VISION = {
    "Rotate": lambda m: 30 * m / 10,
    "Posterize": lambda m: int(4 * m / 10),
    "Solarize": lambda m: min(int(256 * m / 10), 256),  # no value is 256 or more
    "Color": lambda m: 1.8 * m / 10 + 0.1,
    "Contrast": lambda m: 1.8 * m / 10 + 0.1,
    "Brightness": lambda m: 1.8 * m / 10 + 0.1,
    "Sharpness": lambda m: 1.8 * m / 10 + 0.1,
    "ShearX": lambda m: 0.3 * m / 10,
    "ShearY": lambda m: 0.3 * m / 10,
    "TranslateXRel": lambda m: 100 / 224 * m / 10,
    "TranslateYRel": lambda m: 100 / 224 * m / 10,
    "SolarizeAdd": lambda m: int(110 * m / 10),
}


@pytest.mark.parity
@pytest.mark.parametrize("magnitude", [1.0, 5.0, 10.0, 15.0, 20.0])
def test_big_vision_s_strengths_are_those_of_timm_s_operations(magnitude):
    policies = pytest.importorskip("timm.data.auto_augment")
    policy = randaugment(data(randaugment_layers=2, randaugment_magnitude=magnitude))
    assert isinstance(policy, TimmRandAugment)
    assert (policy.num_layers, policy.weights, len(policy.ops)) == (2, None, 16)
    *operations, cutout = policy.ops
    assert {op.name for op in operations} == BIG_VISION.keys() | {"AutoContrast", "Equalize", "Invert"}
    for op in operations:
        assert (op.p, op.magnitude, op.magnitude_std, op.magnitude_max) == (1.0, magnitude, 0.0, magnitude)
        assert (op.interpolation, op.fill) == (("nearest",), (128, 128, 128))
        level = policies.LEVEL_TO_ARG[op.name]
        if level is None:
            continue
        (value, *_) = level(magnitude, {"translate_pct": op.translate_pct})
        wanted = BIG_VISION[op.name](magnitude)
        # timm stops at 128 where big_vision goes on; bits beyond 8 change nothing.
        wanted = min(wanted, 128) if op.name == "SolarizeAdd" else wanted
        assert abs(value) == pytest.approx(wanted, rel=1e-6), op.name
    # A square of 2 * int(40 * magnitude / 10) of 224 pixels.
    side = 2 * int(40 * magnitude / 10) / 224
    assert cutout == RandomErasing(1.0, scale=cutout.scale, ratio=(1, 1), value=128)
    assert cutout.scale == pytest.approx((side**2, side**2))


@pytest.mark.parametrize("magnitude", [0.0, 10.0, 30.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_of_any_magnitude_runs(magnitude, channels):
    source = pictures(64, channels)
    config = data(augment="crop", train_resize=20, img_size=20, randaugment_layers=1, randaugment_magnitude=magnitude)
    plain = batch(source, eval_transform(config, 20, 20))
    changed = (batch(source, train_transform(config, 20, 20)) != plain).flatten(1).any(1).double().mean()
    # Every image gets an operation; of magnitude 0, and on grey images, several of the 16 change nothing.
    assert changed > {0.0: 0.3, 10.0: 0.6, 30.0: 0.6}[magnitude]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["randaugment=timm", "randaugment_magnitude=9.5"], "timm's are whole numbers of 0..10, got 9.5"),
        (["randaugment=timm", "randaugment_magnitude=15"], "timm's are whole numbers of 0..10, got 15"),
        (["randaugment_magnitude=31"], r"randaugment_magnitude: expected a value in \[0, 30\], got 31"),
        (["augment=crop"], 'augment "crop" needs the side'),
        (["augment=crop", "train_resize=20"], "train_resize: expected at least 28, got 20"),
        (["train_resize=32"], 'is for augment "crop"'),
        (["normalize_on=device", "erase=0.5"], "erased after normalisation"),
        (["randaugment=best"], "randaugment"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    config = fashion_mnist.config()
    with pytest.raises(ConfigError, match=message):
        apply_settings(config, parse_settings(config, [f"data.{line}" for line in settings])).validated()
