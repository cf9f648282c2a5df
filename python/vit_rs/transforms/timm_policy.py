"""timm's automatic augmentation: operations whose strength varies around a magnitude, by Pillow's pixels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vit_rs import _core
from vit_rs.transforms import _arguments as check
from vit_rs.transforms.base import PixelTransform
from vit_rs.transforms.lowering import pixel_ops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs._core import Op

__all__ = ["TimmOp", "TimmRandAugment", "timm_policy"]

SAMPLING = ("nearest", "bilinear", "bicubic")
# The operations of timm's RandAugment, by the name of the set; "Increasing" ones grow with the magnitude.
_PLAIN = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
_GROWING = {"Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"}
_INCREASING = tuple(f"{name}Increasing" if name in _GROWING else name for name in _PLAIN)
_WEIGHTS = {
    **{"Rotate": 3.0, "ShearX": 2.0, "ShearY": 2.0, "TranslateXRel": 1.0, "TranslateYRel": 1.0},
    **{"ColorIncreasing": 0.25, "SharpnessIncreasing": 0.25, "AutoContrast": 0.25},
    **{"SolarizeIncreasing": 0.05, "SolarizeAdd": 0.05, "ContrastIncreasing": 0.05, "BrightnessIncreasing": 0.05},
    **{"Equalize": 0.05, "PosterizeIncreasing": 0.05, "Invert": 0.05},
}


@dataclass(frozen=True)
class TimmOp(PixelTransform):
    """Apply one of timm's operations, with a probability, at a strength around a magnitude.

    Source: timm.data.auto_augment.AugmentOp of timm 1.0.15 to 1.0.31 (Apache 2.0): the same names, strengths, signs and
    probabilities. It works on PIL images: so the pixels are Pillow's, bit for bit, whatever a Compose says. Where
    PosterizeIncreasing keeps no bits the image becomes black, as with Pillow before 13; since then timm itself fails
    there.

    Args:
        name: timm's name of the operation, such as "ShearX" or "ColorIncreasing"; all but its Gaussian blurs.
        p: how often, 0..1.
        magnitude: the strength; 10 is what timm's ranges are made for.
        magnitude_std: standard deviation of the normal distribution around the magnitude from which one is drawn for
            each image; math.inf: uniform from 0 to the magnitude.
        magnitude_max: the largest magnitude; the smallest is 0.
        interpolation: how affine maps read pixels: "nearest", "bilinear", "bicubic", or several of them, one of which is
            drawn for each image.
        fill: value, or (red, green, blue), 0..255, of what lies outside after affine maps.
        translate_const: the shift of "TranslateX" and "TranslateY" at magnitude 10, pixels.
        translate_pct: the shift of "TranslateXRel" and "TranslateYRel" at magnitude 10, a share of width and height.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a name, number or colour that makes no sense; (in a Compose) a place behind ToDtype or ToTensor.
    """

    name: str
    p: float = 0.5
    magnitude: float = 10.0
    magnitude_std: float = 0.0
    magnitude_max: float = 10.0
    interpolation: str | Sequence[str] = ("bilinear", "bicubic")
    fill: int | Sequence[int] = (128, 128, 128)
    translate_const: float = 250.0
    translate_pct: float = 0.45

    def __post_init__(self) -> None:
        given = (self.interpolation,) if isinstance(self.interpolation, str) else self.interpolation
        names = check.sequence("interpolation", given, "a name or a sequence of names")
        fill = check.colour(self.fill)
        if fill is None:
            raise TypeError("fill must be an int in 0..255 or three of them, got None")
        self._keep(
            p=check.probability(self.p),
            magnitude=check.number("magnitude", self.magnitude),
            magnitude_std=check.number("magnitude_std", self.magnitude_std),
            magnitude_max=check.number("magnitude_max", self.magnitude_max),
            interpolation=tuple(check.choice("interpolation", name, SAMPLING) for name in names),
            fill=fill,
            translate_const=check.number("translate_const", self.translate_const),
            translate_pct=check.number("translate_pct", self.translate_pct),
        )
        self._op()

    def _op(self) -> Op:
        return _core.timm_op(
            self.name,
            p=self.p,
            magnitude=self.magnitude,
            magnitude_std=self.magnitude_std,
            magnitude_max=self.magnitude_max,
            interpolation=list(self.interpolation),
            fill=check.rgb(self.fill) or [0, 0, 0],
            translate_const=self.translate_const,
            translate_pct=self.translate_pct,
        )


@dataclass(frozen=True)
class TimmRandAugment(PixelTransform):
    """Apply some of timm's operations, drawn for each image.

    Source: timm.data.auto_augment.RandAugment. `timm_policy("rand-m9-mstd0.5-inc1")` makes the usual ones.

    Args:
        ops: of which is drawn, each a TimmOp or another transform of pixels.
        num_layers: how many operations, one after another.
        weights: how likely each is, relative to the others; then none comes twice. None: all alike, and the same one may
            come again.

    Raises:
        TypeError: a transform that is not one of pixels, or an argument of another wrong kind.
        ValueError: nothing to draw from, another number of weights, a negative one, or fewer above 0 than num_layers.
    """

    ops: Sequence[PixelTransform]
    num_layers: int = 2
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        self._keep(
            ops=check.sequence("ops", self.ops, "a sequence of transforms"),
            num_layers=check.whole("num_layers", self.num_layers, 0),
        )
        if self.weights is not None:
            self._keep(weights=check.numbers("weights", self.weights, "a number for each operation, or None"))
        self._op()

    def _op(self) -> Op:
        weights = None if self.weights is None else list(self.weights)
        return _core.timm_rand_augment(pixel_ops(self.ops), self.num_layers, weights)


def timm_policy(
    config: str,
    *,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    interpolation: str = "random",
) -> TimmRandAugment:
    """Return the policy that a string of timm's `auto_augment` stands for.

    Source: timm.data.auto_augment.rand_augment_transform, with the parameters that timm.data.create_transform gives it.

    Args:
        config: "rand" and sections behind dashes: "m9" magnitude (10), "n3" operations for each image (2), "p0.7"
            probability of each (0.5), "mstd0.5" standard deviation of the magnitude (0; above 100: uniform from 0 to the
            magnitude), "mmax15" largest magnitude (10), "inc1" strengths that grow with the magnitude (0), "tweights"
            timm's weights of the operations. The usual one is "rand-m9-mstd0.5-inc1".
        mean: of the training's Normalize, 0..1: the colour of what lies outside a turned or shifted image.
        interpolation: of affine maps, "bilinear" or "bicubic"; "random": one of both for each image.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a section that is none of these, or a name that makes no sense.
    """
    policy, *sections = config.split("-")
    if policy != "rand":
        raise ValueError(f"config must start with 'rand', got {config!r}")
    options: dict[str, Any] = {"m": 10.0, "n": 2, "p": 0.5, "mstd": 0.0, "mmax": 10.0, "inc": 0, "t": None}
    for section in sections:
        weights = section if section == "tweights" else None
        found = re.fullmatch(r"(m|n|p|mstd|mmax|inc)(\d+(?:\.\d*)?)", section)
        if weights is None and found is None:
            raise ValueError(
                f"each section of config must be m, n, p, mstd, mmax or inc and a number, or tweights; got {section!r}"
            )
        if found is not None:
            whole = found[1] in ("m", "n", "mmax", "inc")
            options[found[1]] = int(found[2]) if whole else float(found[2])
        options["t"] = weights or options["t"]
    names = tuple(_WEIGHTS) if options["t"] else _INCREASING if options["inc"] else _PLAIN
    both = ("bilinear", "bicubic")
    colour = check.numbers("mean", mean, "three numbers in 0..1", (3,))
    ops = [
        TimmOp(
            name,
            p=options["p"],
            magnitude=options["m"],
            magnitude_std=options["mstd"] if options["mstd"] <= 100 else math.inf,  # noqa: PLR2004  (timm's limit)
            magnitude_max=options["mmax"] or 10.0,
            interpolation=both if interpolation == "random" else interpolation,
            fill=[min(255, round(255 * value)) for value in colour],
        )
        for name in names
    ]
    return TimmRandAugment(ops, options["n"], tuple(_WEIGHTS.values()) if options["t"] else None)
