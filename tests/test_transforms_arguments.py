"""Arguments of transforms: what they may be, what they are kept as, and what wrong ones are told."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv

from vit_rs import transforms as t
from vit_rs.transforms.lowering import is_multi, lower

FLIP = t.RandomHorizontalFlip()
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
TO_FLOAT = t.ToDtype(torch.float32, scale=True)

# What stands in the message, and what raises it: a wrong value is a ValueError, a wrong kind a TypeError.
VALUES = {
    "max_size must be greater than size, which is the shorter side, got 32 and 32": lambda: t.Resize(32, max_size=32),
    "max_size must be an int where size is None, got None": lambda: t.Resize(None),
    "max_size must be None where size is (height, width), got 60": lambda: t.Resize((8, 9), "bilinear", 60),
    "max_size must be an int of at least 1, got 0": lambda: t.Resize(None, max_size=0),
    "antialias must be True or None, got 60": lambda: t.Resize(32, "bilinear", None, 60),
    "antialias must be True or None, got False": lambda: t.RandomResizedCrop(32, antialias=False),
    "antialias must be True or None, got 1": lambda: t.RandomResizedCrop(32, antialias=1),
    "interpolation must be 'bilinear', 'bicubic' or 'lanczos', got 'nearest'": lambda: t.Resize(
        4, tv.InterpolationMode.NEAREST
    ),
    "interpolation must be 'bilinear', 'bicubic' or 'lanczos', got 2": lambda: t.RandomResizedCrop(4, interpolation=2),
    "interpolation must be 'nearest' or 'bilinear', got 'lanczos'": lambda: t.RandomRotation(
        4, tv.InterpolationMode.LANCZOS
    ),
    "interpolation must be 'nearest' or 'bilinear', got None": lambda: t.AugMix(interpolation=None),
    "padding_mode must be 'constant', 'edge', 'reflect' or 'symmetric', got 1": lambda: t.RandomCrop(4, padding_mode=1),
    f"size must be a positive int or (height, width) of two that fit 64 bits, got {2**70}": lambda: t.Resize(2**70),
    "size must be a positive int or (height, width) of two, got []": lambda: t.Resize([]),
    f"padding must be an int >= 0, or 2 or 4 of them, got {2**70}": lambda: t.RandomCrop(4, padding=2**70),
    f"num_ops must be an int of at least 0 that fits 64 bits, got {2**70}": lambda: t.RandAugment(2**70),
    f"chain_depth must be an int that fits 64 bits, got {2**70}": lambda: t.AugMix(chain_depth=2**70),
    f"chain_depth must be an int that fits 64 bits, got {-(2**70)}": lambda: t.AugMix(chain_depth=-(2**70)),
    "p must be a probability in 0..=1, got inf": lambda: t.RandomInvert(10**400),
    "p must be a probability in 0..=1, got 1.5": lambda: t.RandomVerticalFlip(1.5),
    "a view must be a transform or (transform, number of views), got (Random": lambda: t.MultiCrop([(FLIP, 1, 1)]),
    "scale must be two numbers, got [0.5]": lambda: t.RandomResizedCrop(4, scale=[0.5]),
    "ratio must be two numbers, got (1, 2, 3)": lambda: t.RandomErasing(ratio=(1, 2, 3)),
    "mean and std need one value for each channel": lambda: t.Normalize([0.5], [0.5, 0.5]),
}
KINDS = {
    "size must be a positive int or (height, width) of two, got 2.5": lambda: t.Resize(2.5),
    "size must be a positive int or (height, width) of two, got '32'": lambda: t.Resize("32"),
    "size must be a positive int or (height, width) of two, got (3, True)": lambda: t.RandomResizedCrop((3, True)),
    "size must be a positive int or (height, width) of two, got True": lambda: t.CenterCrop(True),
    "size must be a positive int or (height, width) of two, got None": lambda: t.RandomCrop(None),
    "scale must be two numbers, got 0.5": lambda: t.RandomResizedCrop(4, scale=0.5),
    "padding must be an int >= 0, or 2 or 4 of them, got 1.5": lambda: t.RandomCrop(4, padding=1.5),
    "fill must be an int in 0..255, three of them or None, got 0.5": lambda: t.RandomCrop(4, fill=0.5),
    "fill must be an int in 0..255, three of them or None, got 'red'": lambda: t.RandomAffine(4, fill="red"),
    "pad_if_needed must be True or False, got 'yes'": lambda: t.RandomCrop(4, pad_if_needed="yes"),
    "kernel_size must be a positive int or (width, height) of two, got 3.0": lambda: t.GaussianBlur(3.0),
    "sigma must be a number or (min, max), got None": lambda: t.GaussianBlur(3, None),
    "degrees must be one number or 2 of them, got None": lambda: t.RandomRotation(None),
    "center must be two numbers, got 4": lambda: t.RandomAffine(3, center=4),
    "shear must be one number or 2 or 4 of them, got 'x'": lambda: t.RandomAffine(3, shear="x"),
    "brightness must be a number or (min, max), got (0.5, '1')": lambda: t.ColorJitter((0.5, "1")),
    "mean must be a sequence of numbers, one for each channel, got 0.5": lambda: t.Normalize(0.5, 0.5),
    "mean must be a sequence of numbers, one for each channel, got 'abc'": lambda: t.Normalize("abc", "abc"),
    "p must be a probability in 0..=1, got None": lambda: t.RandomHorizontalFlip(None),
    "p must be a probability in 0..=1, got 'a'": lambda: t.RandomInvert("a"),
    "p must be a probability in 0..=1, got [0.5]": lambda: t.RandomApply([FLIP], [0.5]),
    "p must be a number for each transform, or None, got 0.5": lambda: t.RandomChoice([FLIP], 0.5),
    "bits must be an int in 0..8, got True": lambda: t.RandomPosterize(True),
    "bits must be an int in 0..8, got 2.5": lambda: t.RandomPosterize(2.5),
    "threshold must be a number, got '128'": lambda: t.RandomSolarize("128"),
    "sharpness_factor must be a number, got None": lambda: t.RandomAdjustSharpness(None),
    "num_output_channels must be an int, got '3'": lambda: t.Grayscale("3"),
    "num_ops must be an int of at least 0, got 2.0": lambda: t.RandAugment(2.0),
    "all_ops must be True or False, got 1": lambda: t.AugMix(all_ops=1),
    "value must be a number, one for each channel, 'random' or 'random_color', got True": lambda: t.RandomErasing(
        value=True
    ),
    "dtype must be torch.float32, float16, bfloat16 or uint8, got 'float32'": lambda: t.ToDtype("float32"),
    "scale must be True or False, got 255": lambda: t.ToDtype(torch.float32, 255),
    "transforms must be a sequence of transforms, got RandomHorizontalFlip(p=0.5)": lambda: t.Compose(FLIP),
    "transforms must be a sequence of transforms, got RandomVerticalFlip": lambda: t.RandomApply(
        t.RandomVerticalFlip()
    ),
    "transforms must be a sequence of transforms, got 'flip'": lambda: t.RandomOrder("flip"),
    "views must be a sequence of views, got RandomHorizontalFlip": lambda: t.MultiCrop(FLIP),
    "a number of views must be an int of at least 1, got 1.0": lambda: t.MultiCrop([(FLIP, 1.0)]),
}


@pytest.mark.parametrize("text", list(VALUES))
def test_wrong_values(text):
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        VALUES[text]()


@pytest.mark.parametrize("text", list(KINDS))
def test_wrong_kinds(text):
    with pytest.raises(TypeError, match="^" + re.escape(text)):
        KINDS[text]()


# The same transform in several words, the first those of plain Python.
SAME = [
    [t.Resize(5), t.Resize(np.int64(5)), t.Resize([5]), t.Resize(np.array(5)), t.Resize(5, antialias=True)],
    [
        t.Resize((5, 6), "bicubic"),
        t.Resize(np.array([5, 6]), tv.InterpolationMode.BICUBIC),
        t.Resize([5, 6], "bicubic"),
    ],
    [t.Resize(5, "bilinear", None, True), t.Resize(5)],
    [
        t.RandomResizedCrop(4, (0.5, 1.0), (1.0, 2.0), "lanczos"),
        t.RandomResizedCrop(4, [0.5, 1], np.array([1, 2]), tv.InterpolationMode.LANCZOS),
    ],
    [t.CenterCrop((4, 5)), t.CenterCrop(torch.Size([4, 5])), t.CenterCrop(range(4, 6))],
    [
        t.RandomCrop(4, padding=(1, 2), fill=(1, 2, 3)),
        t.RandomCrop(4, padding=[1, np.uint8(2)], fill=torch.arange(1, 4)),
    ],
    [t.RandomErasing(scale=(0.1, 0.2), value=(1, 2, 3)), t.RandomErasing(scale=[0.1, 0.2], value=np.array([1, 2, 3]))],
    [t.GaussianBlur(3, (1, 2)), t.GaussianBlur(np.int32(3), [1.0, 2.0])],
    [t.ColorJitter(0.25, (0.5, 1.5)), t.ColorJitter(np.float32(0.25), [0.5, 1.5])],
    [t.RandomRotation(30), t.RandomRotation(np.float64(30), tv.InterpolationMode.NEAREST)],
    [t.RandomRotation((-5, 5), center=(1, 2)), t.RandomRotation([-5, 5], center=[1, 2])],
    [
        t.RandomAffine((0, 9), (0.1, 0.2), (0.5, 2), (1, 2, 3, 4), "bilinear", (1, 2, 3), (4, 5)),
        t.RandomAffine([0, 9], [0.1, 0.2], [0.5, 2], [1, 2, 3, 4], tv.InterpolationMode.BILINEAR, [1, 2, 3], [4, 5]),
    ],
    [t.RandAugment(2, 9, fill=7), t.RandAugment(np.int64(2), np.int8(9), fill=[7])],
    [t.AutoAugment("svhn"), t.AutoAugment(tv.AutoAugmentPolicy.SVHN)],
    [t.RandomHorizontalFlip(1), t.RandomHorizontalFlip(np.float32(1))],
    [t.RandomPosterize(4), t.RandomPosterize(np.uint8(4))],
    [
        t.Normalize((0.5, 0.25), (1, 2)),
        t.Normalize([0.5, 0.25], np.array([1, 2])),
        t.Normalize([0.5, 0.25], [1.0, 2.0]),
    ],
    [t.RandomChoice([FLIP, FLIP], (1, 2)), t.RandomChoice((FLIP, FLIP), np.array([1, 2]))],
    [t.MultiCrop([(FLIP, 2), FLIP]), t.MultiCrop(([FLIP, np.int64(2)], FLIP))],
    [t.Compose([FLIP, FLIP]), t.Compose(iter((FLIP, FLIP)))],
]


@pytest.mark.parametrize("same", SAME, ids=lambda same: type(same[0]).__name__)
def test_other_words_make_the_same_transform(same):
    first = same[0]
    for other in same[1:]:
        assert other == first
        assert hash(other) == hash(first)
        assert repr(other) == repr(first)
    for again in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert again == first
        assert hash(again) == hash(first)


def test_other_arguments_make_another_transform():
    assert t.Resize(5) != t.Resize((5, 5))
    assert t.Resize(5) != t.Resize(5, "bicubic")
    assert t.Normalize([0.5], [0.5]) != t.Normalize([0.5], [0.25])
    assert len({t.Resize(5), t.Resize([5]), t.Resize(6)}) == 2


LISTS = {
    "size": t.Resize,
    "padding": lambda given: t.RandomCrop(4, padding=given),
    "kernel_size": t.GaussianBlur,
    "degrees": t.RandomRotation,
    "center": lambda given: t.RandomRotation(3, center=given),
    "shear": lambda given: t.RandomAffine(3, shear=given),
    "brightness": t.ColorJitter,
    "mean": lambda given: t.Normalize(given, [0.5, 0.5]),
    "std": lambda given: t.Normalize([0.5, 0.5], given),
    "ratio": lambda given: t.RandomResizedCrop(4, ratio=given),
    "value": lambda given: t.RandomErasing(value=given),
}


@pytest.mark.parametrize("name", list(LISTS))
def test_later_changes_of_a_list_change_nothing(name):
    for given in ([1, 3], np.array([1, 3])):
        transform = LISTS[name](given)
        assert getattr(transform, name) == (1, 3)
        before = repr(transform), hash(transform)
        given[1] = 77
        assert (repr(transform), hash(transform)) == before
        assert transform == LISTS[name]([1, 3])


def test_fill_and_views_do_not_follow_their_lists():
    fill, view = [1, 2, 3], [FLIP, 2]
    filled, views = t.RandomCrop(4, fill=fill), t.MultiCrop([view])
    fill[0], view[1] = 9, 9
    assert filled.fill == (1, 2, 3)
    assert views.views == ((FLIP, 2),)


def test_no_fill_is_black_as_in_torchvision():
    image = torch.full((3, 4, 4), 200, dtype=torch.uint8)
    made = t.RandomCrop(8, padding=2, fill=None)(image)
    assert torch.equal(made, tv.RandomCrop(8, padding=2, fill=None)(image))
    assert made[0, 0, 0] == 0


@pytest.mark.parametrize("mode", ["BILINEAR", "BICUBIC"])
def test_interpolation_modes_do_what_their_names_do(mode):
    mode = tv.InterpolationMode[mode]
    assert np.array_equal(t.Resize((9, 8), mode)(PIXELS), t.Resize((9, 8), mode.value)(PIXELS))
    ours, other = (t.RandomResizedCrop(9, interpolation=each) for each in (mode, mode.value))
    assert lower(ours).view().draw_plan((20, 30), 0, 0, 0, 0) == lower(other).view().draw_plan((20, 30), 0, 0, 0, 0)


@pytest.mark.parametrize("outer", [t.RandomApply, t.RandomChoice, t.RandomOrder])
def test_kernels_of_a_compose_inside_another_transform_are_refused(outer):
    text = "a chain has one kind of kernels: give kernels='pillow' to the outermost Compose"
    inside = t.Compose([t.Resize(8)], kernels="pillow")
    with pytest.raises(ValueError, match=text):
        outer([inside])
    with pytest.raises(ValueError, match=text):
        t.Compose([outer([FLIP, inside])], kernels="pillow")
    named = t.Compose([outer([t.Compose([t.Resize(8)])])], kernels="pillow")
    assert lower(named).kernels == "pillow"


def test_a_multi_crop_of_one_view_gives_a_tuple_of_one():
    one = t.MultiCrop([t.CenterCrop(8)])
    assert is_multi(one)
    for image in (PIXELS, torch.from_numpy(PIXELS).permute(2, 0, 1)):
        made = one(image)
        assert isinstance(made, tuple)
        assert len(made) == 1
        assert type(made[0]) is type(image)
    (floats,) = t.MultiCrop([t.Compose([t.CenterCrop(8), TO_FLOAT])])(PIXELS)
    assert floats.dtype == torch.float32


def test_other_transforms_give_no_tuple():
    for transform in (t.CenterCrop(8), t.Compose([t.CenterCrop(8)]), t.Compose([])):
        assert not is_multi(transform)
        assert isinstance(transform(PIXELS), np.ndarray)
    assert not is_multi(None)
