"""Whose resampling to follow: the named conventions, and what is left to choose without one.

Every resampling of a grid in the field is `out = A_h . grid . A_w^T`. Projects differ in A alone: filter, antialiasing,
corners, and, in DINO's case, a size with 0.1 added. Weights learned with one of them want the same one again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_rs.ops._arguments import check_choice, check_number

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GRID_CONVENTIONS", "PATCH_CONVENTIONS", "Convention", "resolve"]


@dataclass(frozen=True)
class Convention:
    """What a resampling does along an axis; rows and columns are treated alike.

    Attributes:
        interpolation: "bicubic" or "bilinear".
        antialias: Whether the filter widens where the axis shrinks and is renormalised inside the border. Without, it
            keeps its width, and samples outside take the border's value.
        a: Coefficient of the cubic, its slope at distance 1; None for "bilinear".
        align_corners: Whether the first and last samples of both sides coincide, rather than the outer edges of their
            cells ("half-pixel").
        offset: Added to the new size where the step is derived from it: a step is `old / (new + offset)` samples.
    """

    interpolation: str
    antialias: bool
    a: float | None
    align_corners: bool = False
    offset: float = 0.0


_ANTIALIASED_CUBIC_A = -0.5
_PLAIN_CUBIC_A = -0.75

_TIMM = Convention("bicubic", antialias=True, a=_ANTIALIASED_CUBIC_A)
_PLAIN_CUBIC = Convention("bicubic", antialias=False, a=_PLAIN_CUBIC_A)
_SHIFTED_CUBIC = Convention("bicubic", antialias=False, a=_PLAIN_CUBIC_A, offset=0.1)
_PLAIN_LINEAR = Convention("bilinear", antialias=False, a=None)
_ANTIALIASED_LINEAR = Convention("bilinear", antialias=True, a=None)

GRID_CONVENTIONS: Mapping[str, Convention] = {
    "timm": _TIMM,
    "timm_npz": _PLAIN_LINEAR,
    "jax": Convention("bilinear", antialias=False, a=None, align_corners=True),
    "flexi": _ANTIALIASED_LINEAR,
    "siglip2": _ANTIALIASED_LINEAR,
    "dino": _SHIFTED_CUBIC,
    "dinov2": _SHIFTED_CUBIC,
    "dinov2_reg": _TIMM,
    "hf": _PLAIN_CUBIC,
    "mae": _PLAIN_CUBIC,
    "torchvision": Convention("bicubic", antialias=False, a=_PLAIN_CUBIC_A, align_corners=True),
}
"""Conventions of position embeddings, by the project whose numbers they give.

- timm: pytorch-image-models, `timm/layers/pos_embed.py`, `resample_abs_pos_embed`: `F.interpolate`, bicubic,
  antialiased, half-pixel.
- timm_npz: pytorch-image-models, `timm/models/vision_transformer.py`, `_load_weights`, which reads Google's .npz files:
  bilinear without antialiasing, half-pixel. Not what the authors of those files do: that is "jax".
- jax: google-research/vision_transformer, `vit_jax/checkpoint.py`, `interpolate_posembed`, and big_vision,
  `models/vit.py`, `resample_posemb`: `scipy.ndimage.zoom(order=1)`, bilinear between aligned corners. scipy's own
  result ends in a row and column of zeros for some sizes, such as 16 to 30, where its last position rounds to beyond
  the border (scipy 1.17); the last sample is meant there, and taken here.
- flexi: big_vision, `models/proj/flexi/vit.py`, `_Model`: `jax.image.resize(..., "linear")`, bilinear, antialiased,
  half-pixel. FlexiViT's patch kernels are resized otherwise: see `PATCH_CONVENTIONS`.
- siglip2: big_vision, `models/proj/image_text/naflex_vit.py`, `_pos_emb_resize`: `jax.image.scale_and_translate`,
  bilinear, antialiased. The same numbers as "flexi".
- dino: facebookresearch/dino, `vision_transformer.py`, `interpolate_pos_encoding`: `F.interpolate`, bicubic without
  antialiasing, with `scale_factor=(new + 0.1) / old`, by which a step is old / (new + 0.1) samples.
- dinov2: facebookresearch/dinov2, `dinov2/models/vision_transformer.py`, `interpolate_pos_encoding` with
  `interpolate_offset=0.1` and `interpolate_antialias=False`, as in the models without registers. "dino"'s numbers.
- dinov2_reg: the same with `interpolate_offset=0.0` and `interpolate_antialias=True`, as `dinov2/hub/backbones.py` sets
  them for the models with registers. "timm"'s numbers.
- hf: transformers, `models/vit/modeling_vit.py` and `models/dinov2/modeling_dinov2.py`, `interpolate_pos_encoding`:
  `F.interpolate` to a size, bicubic without antialiasing, half-pixel. Its `modeling_dinov2_with_registers.py`
  antialiases: "dinov2_reg".
- mae: facebookresearch/mae, `util/pos_embed.py`, `interpolate_pos_embed`, and deit, whose models it was taken from.
  "hf"'s numbers.
- torchvision: `torchvision/models/vision_transformer.py`, `interpolate_embeddings`: `F.interpolate`, bicubic without
  antialiasing, between aligned corners.
"""

PATCH_CONVENTIONS: Mapping[str, Convention] = {"timm": _TIMM, "timm_npz": _PLAIN_LINEAR, "flexi": _PLAIN_LINEAR}
"""Conventions of patch kernels: the image resize that a resized kernel undoes.

- timm: pytorch-image-models, `timm/layers/patch_embed.py`, `resample_patch_embed`: bicubic, antialiased.
- timm_npz: what its `_load_weights` asks of that function: bilinear without antialiasing.
- flexi: big_vision, `models/proj/flexi/vit.py`, `resample_patchemb`: `tf.image.resize(..., "bilinear")`, which does not
  antialias, unlike the resize of FlexiViT's position embeddings. "timm_npz"'s numbers.
"""


def resolve(  # noqa: PLR0917  the settings, in the order of the public functions
    conventions: Mapping[str, Convention],
    name: str | None,
    interpolation: str | None,
    antialias: bool | None,
    align_corners: bool | None,
    a: float | None,
    offset: float | None = None,
) -> Convention:
    """Give the settings of a named convention, or, without a name, timm's with the given ones in their place.

    Raises:
        ValueError: There is no such name, a setting differs from the named convention's, or is out of range, or two
            exclude each other.
        TypeError: `a` or `offset` is no number, or a flag no bool.
    """
    for knob, given in (("antialias", antialias), ("align_corners", align_corners)):
        if given is not None and not isinstance(given, bool):
            raise TypeError(f"{knob} must be True or False, got {given!r}")
    if name is not None:
        if not isinstance(name, str) or name not in conventions:
            check_choice(name, "convention", tuple(conventions))
        convention = conventions[name]
        _check_agrees(name, "interpolation", convention.interpolation, interpolation)
        _check_agrees(name, "antialias", convention.antialias, antialias)
        _check_agrees(name, "align_corners", convention.align_corners, align_corners)
        _check_agrees(name, "a", convention.a, a)
        _check_agrees(name, "offset", convention.offset, offset)
        return convention
    if interpolation is None and antialias is None and align_corners is None and a is None and offset is None:
        return _TIMM
    interpolation = "bicubic" if interpolation is None else interpolation
    antialias = True if antialias is None else antialias
    check_choice(interpolation, "interpolation", ("bicubic", "bilinear"))
    if align_corners and antialias:
        raise ValueError("align_corners and antialias exclude each other: give antialias=False")
    if interpolation == "bilinear":
        if a is not None:
            raise ValueError(f"a belongs to bicubic interpolation, got a={a} with 'bilinear'")
    elif a is None:
        a = _ANTIALIASED_CUBIC_A if antialias else _PLAIN_CUBIC_A
    else:
        _check_finite(a, "a")
    if offset is None:
        offset = 0.0
    else:
        _check_finite(offset, "offset")
    if align_corners and offset != 0.0:
        raise ValueError(f"align_corners sets the step itself and excludes offset, got offset={offset}")
    return Convention(interpolation, antialias, a, align_corners=bool(align_corners), offset=offset)


def _check_finite(value: float, name: str) -> None:
    check_number(value, name)
    # Comparisons rather than math.isfinite: a compiler may trace these numbers as symbols.
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")


def _check_agrees(name: str, knob: str, value: object, given: object) -> None:
    if given is not None and given != value:
        raise ValueError(f"convention {name!r} has {knob}={value!r}, got {knob}={given!r}")
