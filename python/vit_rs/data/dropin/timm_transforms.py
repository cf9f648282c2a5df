"""timm's own transforms as those of vit_rs: what `timm.data.create_transform` puts beside torchvision's.

They work on PIL images, with Pillow's pixels; `RandomErasing` works on the tensor behind them. On tensors timm's
geometry goes torchvision's v1 way, in floating point: it is left in Python there. Parameters are read from the objects
when they are translated.

Source: timm 1.0.15 to 1.0.31, timm/data/transforms.py, auto_augment.py and random_erasing.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from vit_rs import transforms as ours
from vit_rs.data.dropin.exact import change_of, library_module
from vit_rs.data.dropin.places import Place, UntranslatableError
from vit_rs.transforms import Transform

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["translate"]

Translation = tuple[tuple[Transform, ...], Place]

# Pillow's numbers of the filters that its affine maps have.
_SAMPLINGS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def translate(transform: Any, place: Place) -> Translation | None:
    """Translate one of timm's transforms at its place.

    Args:
        transform: the user's object.
        place: what the image is when it comes there.

    Returns:
        What does the same in vit_rs and what the image is behind it; None for an object that is not of timm.

    Raises:
        UntranslatableError: it has no equal in vit_rs at this place.
    """
    kind = type(transform)
    if library_module(kind, "timm.data") is None:
        return None
    name = kind.__name__
    try:
        return _translated(name, transform, place)
    except (AttributeError, KeyError, TypeError, UntranslatableError, ValueError) as error:
        raise UntranslatableError(str(error), _expected(name, transform, place)) from error


def _translated(name: str, transform: Any, place: Place) -> Translation:
    if (changed := change_of(transform)) is not None:
        raise UntranslatableError(changed)
    if name in _CONVERSIONS:
        return _CONVERSIONS[name](transform, place)
    if name in _OPERATIONS:
        return (_operation(name, transform, place),), place
    raise UntranslatableError("vit_rs has no such transform")


def _expected(name: str, transform: Any, place: Place) -> Place:
    """Return what a transform that stays in Python is expected to make of the image."""
    if place.kind != "pil" or name not in _CONVERSIONS:
        return place
    dtype = {"MaybeToTensor": torch.get_default_dtype()}.get(name, getattr(transform, "dtype", torch.uint8))
    return Place("float" if dtype.is_floating_point else "tensor", place.channels, dtype=dtype)


# Conversions: what the image is changes.


def _maybe_to_tensor(_: Any, place: Place) -> Translation:
    if place.kind != "pil":
        return (), place
    if torch.get_default_dtype() != torch.float32:
        raise UntranslatableError(f"it makes {torch.get_default_dtype()}, the default dtype: vit_rs makes float32")
    return (ours.ToTensor(),), Place("float", place.channels, dtype=torch.float32)


def _maybe_pil_to_tensor(_: Any, place: Place) -> Translation:
    if place.kind != "pil":
        return (), place
    return (ours.PILToTensor(),), Place("tensor", place.channels)


def _to_tensor(transform: Any, place: Place) -> Translation:
    if place.kind != "pil":
        raise UntranslatableError("timm raises TypeError here: it takes a PIL image")
    if transform.dtype not in (torch.uint8, torch.float32):
        raise UntranslatableError(f"it makes {transform.dtype}, where vit_rs takes uint8 and float32")
    made = (ours.PILToTensor(),), Place("tensor", place.channels)
    if transform.dtype == torch.uint8:
        return made
    conversion = ours.ToDtype(torch.float32, scale=False)
    return (*made[0], conversion), Place("float", place.channels, dtype=torch.float32)


_CONVERSIONS: dict[str, Callable[[Any, Place], Translation]] = {
    "MaybePILToTensor": _maybe_pil_to_tensor,
    "MaybeToTensor": _maybe_to_tensor,
    "ToTensor": _to_tensor,
}


# Operations on pixels: the image stays what it is.


def _operation(name: str, transform: Any, place: Place) -> Transform:
    if name != "RandomErasing" and place.kind != "pil":
        raise UntranslatableError(
            "vit_rs has its pixels on PIL images, and here it comes behind a conversion to a tensor"
        )
    return _OPERATIONS[name](transform, place)


def _random_resized_crop(transform: Any, _: Place) -> Transform:
    size = transform.size
    if not isinstance(size, Sequence) or len(size) != 2:
        raise UntranslatableError(f"size={size}: timm resizes the shorter side to one number")
    made = ours.RandomResizedCrop(size, transform.scale, transform.ratio)
    return _interpolated(transform, made)


def _resize_keep_ratio(transform: Any, _: Place) -> Transform:
    made = ours.ResizeKeepRatio(
        transform.size,
        transform.longest,
        "bilinear",
        transform.random_scale_prob,
        transform.random_scale_range,
        bool(transform.random_scale_area),
        transform.random_aspect_prob,
        transform.random_aspect_range,
    )
    return _interpolated(transform, made)


def _interpolated(transform: Any, made: ours.RandomResizedCrop | ours.ResizeKeepRatio) -> Transform:
    """Return a resize with its filter; with several, of which one is drawn, a choice of as many."""
    given = transform.interpolation
    filters = given if isinstance(given, (list, tuple)) else [given]
    if any(isinstance(each, str) for each in filters):
        raise UntranslatableError(f"torchvision raises TypeError here: interpolation={given!r} was set later")
    names: list[Any] = [getattr(each, "value", each) for each in filters]
    choices = [replace(made, interpolation=name) for name in names]
    return choices[0] if len(choices) == 1 else ours.RandomChoice(choices)


def _center_crop_or_pad(transform: Any, place: Place) -> Transform:
    return ours.CenterCropOrPad(transform.size, _fill(transform.fill, place), transform.padding_mode)


def _random_crop_or_pad(transform: Any, place: Place) -> Transform:
    return ours.RandomCropOrPad(transform.size, _fill(transform.fill, place), transform.padding_mode)


def _fill(fill: Any, place: Place) -> Any:
    if isinstance(fill, Sequence) and len(fill) != place.channels:
        raise UntranslatableError(f"a fill of {len(fill)} values for {place.channels} channels")
    return fill


def _random_erasing(transform: Any, place: Place) -> Transform:
    if place.kind != "float":
        raise UntranslatableError("it erases uint8 values here: vit_rs has timm's noise for floats")
    if place.dtype != torch.float32:
        raise UntranslatableError(f"in {place.dtype}, where vit_rs computes in float32")
    if torch.device(transform.device).type != "cpu":
        raise UntranslatableError(f"it draws on device {transform.device}, and images are on the CPU")
    low, high = transform.log_aspect_ratio
    return ours.RandomErasing(
        transform.probability,
        (transform.min_area, transform.max_area),
        (math.exp(low), math.exp(high)),
        "random" if transform.per_pixel else "random_color" if transform.rand_color else 0.0,
        (transform.min_count, transform.max_count),
    )


def _rand_augment(transform: Any, place: Place) -> Transform:
    return ours.TimmRandAugment(
        [_augment_op(op, place) for op in transform.ops], transform.num_layers, transform.choice_weights
    )


def _auto_augment(transform: Any, place: Place) -> Transform:
    chains = [[_augment_op(op, place) for op in chain] for chain in transform.policy]
    return ours.RandomChoice([chain[0] if len(chain) == 1 else ours.Compose(chain) for chain in chains])


def _aug_mix(transform: Any, place: Place) -> Transform:
    if transform.blended:
        raise UntranslatableError("blended=True blends chain by chain: vit_rs has the other way alone")
    ops = [_augment_op(op, place) for op in transform.ops]
    return ours.TimmAugMix(ops, float(transform.alpha), transform.width, transform.depth)


def _augment_op(op: Any, place: Place) -> ours.TimmOp:
    """Translate an operation of a policy."""
    module = sys.modules["timm.data.auto_augment"]
    if type(op) is not module.AugmentOp:
        raise UntranslatableError(f"it holds {type(op).__module__}.{type(op).__qualname__}, not timm's AugmentOp")
    if (changed := change_of(op)) is not None:
        raise UntranslatableError(changed)
    if op.aug_fn is not module.NAME_TO_OP[op.name] or op.level_fn is not module.LEVEL_TO_ARG[op.name]:
        raise UntranslatableError(f"its {op.name} has functions of its own")
    if others := sorted(set(op.kwargs) - {"fillcolor", "resample"}):
        raise UntranslatableError(f"its {op.name} has more arguments: {', '.join(others)}")
    fill, resample = op.kwargs["fillcolor"], op.kwargs["resample"]
    if not isinstance(fill, Sequence) or len(fill) != 3 or place.channels != 3:
        raise UntranslatableError(f"fillcolor {fill} on an image of {place.channels} channels: vit_rs takes RGB alone")
    samplings = resample if isinstance(resample, (list, tuple)) else [resample]
    return ours.TimmOp(
        op.name,
        p=float(op.prob),
        magnitude=float(op.magnitude),
        magnitude_std=float(op.magnitude_std),
        magnitude_max=float(op.magnitude_max or module._LEVEL_DENOM),  # noqa: SLF001  (timm's own default)
        interpolation=[_SAMPLINGS.get(int(each), str(each)) for each in samplings],
        fill=fill,
        **_shift(op),
    )


def _shift(op: Any) -> dict[str, float]:
    """Return the parameter of the operations that shift."""
    if op.name in ("TranslateX", "TranslateY"):
        return {"translate_const": float(op.hparams["translate_const"])}
    if op.name in ("TranslateXRel", "TranslateYRel"):
        return {"translate_pct": float(op.hparams.get("translate_pct", 0.45))}
    return {}


_OPERATIONS: dict[str, Callable[[Any, Place], Transform]] = {
    "AugMixAugment": _aug_mix,
    "AutoAugment": _auto_augment,
    "CenterCropOrPad": _center_crop_or_pad,
    "RandAugment": _rand_augment,
    "RandomCropOrPad": _random_crop_or_pad,
    "RandomErasing": _random_erasing,
    "RandomResizedCropAndInterpolation": _random_resized_crop,
    "ResizeKeepRatio": _resize_keep_ratio,
    "TrimBorder": lambda transform, _: ours.TrimBorder(transform.border_size),
}
