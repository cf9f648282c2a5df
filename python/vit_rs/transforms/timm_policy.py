"""timm's automatic augmentation: operations whose strength varies around a magnitude, by Pillow's pixels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vit_rs import _core
from vit_rs.transforms import _arguments as check
from vit_rs.transforms.base import PixelTransform
from vit_rs.transforms.containers import RandomChoice
from vit_rs.transforms.lowering import pixel_ops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs._core import Op

__all__ = ["TimmAugMix", "TimmOp", "TimmRandAugment", "timm_policy"]

SAMPLING = ("nearest", "bilinear", "bicubic")
# The operations of timm's RandAugment, by the name of the set; "Increasing" ones grow with the magnitude.
_PLAIN = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
_GROWING = {"Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"}
_INCREASING = tuple(f"{name}Increasing" if name in _GROWING else name for name in _PLAIN)
# The operations of other sets, and their weights; where these are equal one may be drawn twice.
_SETS = {
    "weights": {
        "Rotate": 3.0,
        "ShearX": 2.0,
        "ShearY": 2.0,
        **dict.fromkeys(("TranslateXRel", "TranslateYRel"), 1.0),
        **dict.fromkeys(("ColorIncreasing", "SharpnessIncreasing", "AutoContrast"), 0.25),
        **dict.fromkeys(("SolarizeIncreasing", "SolarizeAdd", "ContrastIncreasing", "BrightnessIncreasing"), 0.05),
        **dict.fromkeys(("Equalize", "PosterizeIncreasing", "Invert"), 0.05),
    },
    "3a": dict.fromkeys(("SolarizeIncreasing", "Desaturate", "GaussianBlur"), 1.0),
    "3aw": {
        **dict.fromkeys(("SolarizeIncreasing", "Desaturate", "GaussianBlur"), 6.0),
        "Rotate": 3.0,
        **dict.fromkeys(("ShearX", "ShearY"), 2.0),
        **dict.fromkeys(("PosterizeIncreasing", "AutoContrast", "ColorIncreasing", "SharpnessIncreasing"), 1.0),
        **dict.fromkeys(("ContrastIncreasing", "BrightnessIncreasing", "Equalize", "Invert"), 1.0),
    },
}


@dataclass(frozen=True)
class TimmOp(PixelTransform):
    """Apply one of timm's operations, with a probability, at a strength around a magnitude.

    Source: timm.data.auto_augment.AugmentOp of timm 1.0.15 to 1.0.31 (Apache 2.0): the same names, strengths, signs and
    probabilities. It works on PIL images: so the pixels are Pillow's, bit for bit, whatever a Compose says. Where
    PosterizeIncreasing keeps no bits the image becomes black, as with Pillow before 13; since then timm itself fails
    there.

    Args:
        name: timm's name of the operation, such as "ShearX" or "ColorIncreasing".
        p: how often, 0..1.
        magnitude: the strength; 10 is what timm's ranges are made for.
        magnitude_std: standard deviation of the normal distribution around the magnitude from which one is drawn for
            each image; math.inf: uniform from 0 to the magnitude.
        magnitude_max: the largest magnitude; the smallest is 0.
        interpolation: how affine maps read pixels: "nearest", "bilinear" or "bicubic", or several of them, of which one
            is drawn for each image.
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
        weights: how likely each is, relative to the others; then none comes twice. None: all alike, and the same one
            may come again.

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


@dataclass(frozen=True)
class TimmAugMix(PixelTransform):
    """Mix chains of timm's operations on the image, and the mix with the image.

    Source: timm.data.auto_augment.AugMixAugment, not blended (arXiv 1912.02781): the chains' sum in float32 in the same
    order, cut to 8 bits, and Pillow's Image.blend. `timm_policy("augmix-m3-w3")` makes the usual ones.

    Args:
        ops: of which is drawn, each a TimmOp or another transform of pixels that leaves the image's size alone.
        alpha: parameter of the distributions of the weights: Dirichlet of the chains', beta of the mix's.
        width: how many chains.
        depth: how many operations in each chain; 0 or less: 1 to 3, drawn.

    Raises:
        TypeError: a transform that is not one of pixels, or an argument of another wrong kind.
        ValueError: nothing to draw from, or a number that makes no sense.
    """

    ops: Sequence[PixelTransform]
    alpha: float = 1.0
    width: int = 3
    depth: int = -1

    def __post_init__(self) -> None:
        self._keep(
            ops=check.sequence("ops", self.ops, "a sequence of transforms"),
            alpha=check.number("alpha", self.alpha),
            width=check.whole("width", self.width, 1),
            depth=check.whole("depth", self.depth),
        )
        self._op()

    def _op(self) -> Op:
        depth = self.depth if self.depth > 0 else None
        return _core.timm_aug_mix(pixel_ops(self.ops), self.alpha, self.width, depth)


def timm_policy(
    config: str, *, mean: Sequence[float] = (0.485, 0.456, 0.406), interpolation: str = "random"
) -> TimmRandAugment | TimmAugMix | RandomChoice:
    """Return the policy that a string of timm's `auto_augment` stands for.

    Source: timm.data.auto_augment, with the parameters that timm.data.create_transform gives it.

    Args:
        config: a policy's name and its parameters, in sections behind dashes:
            "rand" with "m9" magnitude (10), "n3" operations for each image (2), "p0.7" probability of each (0.5),
            "mstd0.5" standard deviation of the magnitude (0; above 100: uniform from 0 to the magnitude), "mmax15"
            largest magnitude (10), "inc1" strengths that grow with the magnitude (0), "tweights", "t3a" or "t3aw"
            another set of operations; the usual one is "rand-m9-mstd0.5-inc1";
            "augmix" with "m5" magnitude (3), "w4" width (3), "d2" depth (-1), "a0.5" alpha (1), "mstd0.5" (uniform);
            "3a": solarize, gray or blur, for DeiT III (arXiv 2204.07118).
        mean: of the training's Normalize, 0..1: the colour of what lies outside a turned or shifted image.
        interpolation: of affine maps, "bilinear" or "bicubic"; "random": one of both for each image.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: another policy, a section that is none of these, or a name that makes no sense.
    """
    name, *sections = config.split("-")
    shared: dict[str, Any] = {
        "interpolation": ("bilinear", "bicubic") if interpolation == "random" else interpolation,
        "fill": [min(255, round(255 * value)) for value in check.numbers("mean", mean, "three numbers in 0..1", (3,))],
    }
    if name == "rand":
        return _rand_augment(sections, shared)
    if name == "augmix":
        return _aug_mix(sections, shared)
    if config == "3a":
        ops = ("Solarize", 5.0), ("Desaturate", 10.0), ("GaussianBlurRand", 10.0)
        return RandomChoice([TimmOp(name, 1.0, magnitude, **shared) for name, magnitude in ops])
    raise ValueError(f"config must be '3a' or begin with 'rand' or 'augmix', got {config!r}")


def _rand_augment(sections: list[str], shared: dict[str, Any]) -> TimmRandAugment:
    sets = {f"t{name}": ops for name, ops in _SETS.items()}
    chosen = [sets[section] for section in sections if section in sets]
    given = _numbers(
        [section for section in sections if section not in sets],
        {"m": 10, "n": 2, "p": 0.5, "mstd": 0.0, "mmax": 10, "inc": 0},
        f"m, n, p, mstd, mmax or inc and a number, or {' or '.join(sets)}",
    )
    ops: dict[str, float] = chosen[0] if chosen else dict.fromkeys(_INCREASING if given["inc"] else _PLAIN, 1.0)
    made = [
        TimmOp(
            name,
            p=given["p"],
            magnitude=given["m"],
            magnitude_std=given["mstd"] if given["mstd"] <= 100 else math.inf,
            magnitude_max=given["mmax"] or 10,
            **shared,
        )
        for name in ops
    ]
    weighted = len(set(ops.values())) > 1
    return TimmRandAugment(made, int(given["n"]), tuple(ops.values()) if weighted else None)


def _aug_mix(sections: list[str], shared: dict[str, Any]) -> TimmAugMix:
    given = _numbers(sections, {"m": 3, "w": 3, "d": -1, "a": 1.0, "mstd": math.inf}, "m, w, d, a or mstd and a number")
    made = [
        TimmOp(
            name, 1.0, given["m"], given["mstd"], translate_pct=0.3 if name.startswith("Translate") else 0.45, **shared
        )
        for name in _INCREASING
        if name not in ("Invert", "SolarizeAdd")
    ]
    return TimmAugMix(made, given["a"], int(given["w"]), int(given["d"]))


def _numbers(sections: list[str], defaults: dict[str, float], expected: str) -> dict[str, float]:
    """Return the numbers of sections such as m9; those whose default is an int are whole."""
    numbers = dict(defaults)
    for section in sections:
        found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d*)?)", section)
        if found is None or found[1] not in defaults:
            raise ValueError(f"each section of config must be {expected}; got {section!r}")
        whole = isinstance(defaults[found[1]], int)
        try:
            numbers[found[1]] = int(found[2]) if whole else float(found[2])
        except ValueError:
            raise ValueError(f"section {section!r} of config must have a whole number") from None
    return numbers
