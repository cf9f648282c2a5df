"""What a script changed in torchvision's or timm's classes and objects counts: it stays in Python."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import timm.data.auto_augment
import timm.data.transforms
import torch
import torchvision.transforms as v1
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torchvision.transforms import v2

from vit_rs.data.dropin.chain import Pipeline, Place

PIL, TENSOR = Place(), Place("tensor")
FLOAT = Place("float", dtype=torch.float32)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8))
IMAGES = {
    "pil": IMAGE,
    "tensor": v2.functional.pil_to_tensor(IMAGE),
    "float": v2.functional.to_dtype(v2.functional.pil_to_tensor(IMAGE), torch.float32, scale=True),
}


def reason(transform, place: Place = PIL) -> str | None:
    """Return why a transform stays in Python; None if it does not."""
    pipeline = Pipeline.of(transform, place)
    return pipeline.steps[0].reason if pipeline.python else None


def mine(*_):
    return 0, 0, 1, 1


# It bears the name of torchvision's function, module and all.
@functools.wraps(v2.Transform.forward)
def wrapping(self, *inputs):
    return inputs[0]


@pytest.mark.parametrize(
    ("kind", "name", "put", "transform"),
    [
        (v1.Resize, "forward", mine, v1.Resize(9)),
        (v2.Resize, "transform", mine, v2.Resize(9)),
        (v2.Transform, "forward", wrapping, v2.Resize(9)),
        (v1.ToTensor, "__call__", mine, v1.ToTensor()),
        (v1.RandomResizedCrop, "get_params", staticmethod(mine), v1.RandomResizedCrop(9)),
        (v2.RandomResizedCrop, "make_params", functools.partial(mine), v2.RandomResizedCrop(9)),
        (v2.RandomApply, "forward", mine, v2.RandomApply([v2.CenterCrop(9)])),
        (v1.Compose, "__call__", mine, v1.Compose([v1.CenterCrop(9)])),
        (torch.nn.Sequential, "forward", mine, torch.nn.Sequential(v1.CenterCrop(9))),
        (timm.data.transforms.TrimBorder, "forward", mine, timm.data.transforms.TrimBorder(1)),
        (
            timm.data.auto_augment.AugmentOp,
            "__call__",
            mine,
            timm.data.auto_augment.auto_augment_transform("original", {}),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_method_put_on_a_librarys_class(kind, name, put, transform, monkeypatch):
    assert reason(transform) is None
    monkeypatch.setattr(kind, name, put)
    assert f"{kind.__name__}.{name} was replaced by" in reason(transform)
    monkeypatch.undo()
    assert reason(transform) is None


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_hooks_of_all_modules(register):
    hook = register(lambda *_: None)
    try:
        assert "torch has global forward" in reason(v2.Resize(9))
        # What is no module has no hooks.
        assert reason(v1.ToTensor()) is None
    finally:
        hook.remove()
    assert reason(v2.Resize(9)) is None


def test_harmless_changes_are_none(monkeypatch):
    monkeypatch.setattr(v2.Resize, "extra_repr", mine)
    resize = v2.Resize(9)
    resize.note = "my own"
    resize.eval()
    assert reason(resize) is None


def later(transform, **attributes):
    """Return a transform with attributes that were set after it was made."""
    vars(transform).update(attributes)
    return transform


# What fails in torchvision, or in the libraries below it.
FAILING = [
    (PIL, later(v1.RandomCrop(9), size=9), "size=9 was set later"),
    (TENSOR, later(v2.RandomCrop(9), size=9), "size=9 was set later"),
    (PIL, later(v1.Resize(9), interpolation="bicubic"), "its v1 class takes no name, got 'bicubic'"),
    (TENSOR, later(v1.RandomAffine(9), interpolation="nearest"), "its v1 class takes no name"),
    (PIL, later(v1.ColorJitter(), brightness=0.4), "brightness=0.4 was set later"),
    (TENSOR, later(v2.ColorJitter(), hue=0.4), "hue=0.4 was set later"),
    (PIL, later(v1.RandomApply([v1.CenterCrop(9)]), p="1"), "p='1' is not a number"),
    (PIL, later(v2.RandomApply([v2.CenterCrop(9)]), p="1"), "p='1' is not a number"),
    (TENSOR, v1.RandomCrop(9, 2, fill=(7,)), "fill=(7,) is not one number"),
    (TENSOR, v1.RandomCrop(9, 2, fill=[7]), "fill=[7] is not one number"),
    (TENSOR, later(v1.RandomRotation(9), fill=None), "fill=None was set later"),
    (FLOAT, later(v1.RandomAffine(9), fill=None), "fill=None was set later"),
    (FLOAT, v1.Normalize([0.0] * 3, [1e-50] * 3), "in float32 means must be finite, and std finite and not 0"),
    (PIL, v1.Compose([None]), "NoneType is not a transform"),
    (
        PIL,
        later(timm.data.transforms.RandomResizedCropAndInterpolation(9), interpolation="bicubic"),
        "interpolation='bicubic' was set later",
    ),
]


@pytest.mark.parametrize(("place", "transform", "why"), FAILING, ids=lambda value: type(value).__name__)
def test_what_fails_there_is_left_to_fail_there(place, transform, why):
    assert why in reason(transform, place)
    with pytest.raises((AttributeError, IndexError, KeyError, TypeError, ValueError)):
        transform(IMAGES[place.kind])


# What has other values there than vit_rs would give.
OTHER = [
    (PIL, timm.data.transforms.RandomResizedCropAndInterpolation((9,)), "timm resizes the shorter side"),
    (PIL, later(timm.data.transforms.RandomResizedCropAndInterpolation(9), size=9), "timm resizes the shorter side"),
    (PIL, v1.RandomPosterize(0), "bits=0: Pillow 13 raises an error here"),
    (TENSOR, v2.RandomSolarize(-1), "threshold=-1: torch takes it as a byte"),
    (TENSOR, v1.RandomSolarize(256), "threshold=256: torch takes it as a byte"),
    (FLOAT, v2.Normalize([1e40] * 3, [1.0] * 3), "in float32 means must be finite"),
    (FLOAT, v2.Normalize([0.0] * 3, [1e-50] * 3), "in float32 means must be finite, and std finite and not 0"),
]


@pytest.mark.parametrize(("place", "transform", "why"), OTHER, ids=lambda value: type(value).__name__)
def test_arguments_at_the_edge_stay_in_python(place, transform, why):
    assert why in reason(transform, place)


@pytest.mark.parametrize("half", [v1, v2])
def test_arguments_inside_the_edge_do_not(half):
    assert reason(half.RandomSolarize(255), TENSOR) is None
    assert reason(half.RandomSolarize(-1), PIL) is None
    assert reason(half.RandomPosterize(0), TENSOR) is None
    assert reason(half.RandomRotation(9), TENSOR) is None
    assert reason(later(half.RandomRotation(9), fill=None), PIL) is None
    assert reason(half.RandomCrop(9, 2, fill=7), TENSOR) is None
