"""Automatic augmentation policies: operations drawn from a fixed set for each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vit_rs import _core
from vit_rs.transforms import _arguments as check
from vit_rs.transforms.base import PixelTransform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs._core import Op
    from vit_rs.transforms.affine import Sampling

__all__ = ["AugMix", "AutoAugment", "RandAugment", "ThreeAugment", "TrivialAugmentWide"]


@dataclass(frozen=True)
class RandAugment(PixelTransform):
    """Apply some operations, drawn for each image, all at one strength.

    Source: torchvision.transforms.v2.RandAugment (arXiv 1909.13719): the same 14 operations, strengths and signs.

    Args:
        num_ops: how many operations, one after another; the same one may come again.
        magnitude: the strength, 0 to num_magnitude_bins - 1.
        num_magnitude_bins: how many strengths there are, at least 2.
        interpolation: "nearest" or "bilinear", or torchvision's InterpolationMode.
        fill: value, or (red, green, blue), 0..255, of what lies outside a turned or shifted image; None: black.
        v1: whether solarize's thresholds are those of torchvision.transforms, the older half of torchvision: on PIL
            images some of them let one gray value more or less pass.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a number, name or colour that makes no sense.
    """

    num_ops: int = 2
    magnitude: int = 9
    num_magnitude_bins: int = 31
    interpolation: Sampling = "nearest"
    fill: int | Sequence[int] | None = None
    v1: bool = False

    def __post_init__(self) -> None:
        self._keep(
            num_ops=check.whole("num_ops", self.num_ops, 0),
            magnitude=check.whole("magnitude", self.magnitude, 0),
            num_magnitude_bins=check.whole("num_magnitude_bins", self.num_magnitude_bins, 2),
            interpolation=check.choice("interpolation", self.interpolation, check.SAMPLING),
            fill=check.colour(self.fill),
            v1=check.flag("v1", self.v1),
        )
        self._op()

    def _op(self) -> Op:
        counts = self.num_ops, self.magnitude, self.num_magnitude_bins
        return _core.rand_augment(*counts, self.interpolation, check.rgb(self.fill), self.v1)


@dataclass(frozen=True)
class TrivialAugmentWide(PixelTransform):
    """Apply one operation, drawn for each image, at a strength drawn for each image.

    Source: torchvision.transforms.v2.TrivialAugmentWide (arXiv 2103.10158): the same 14 operations, strengths and
    signs.

    Args:
        num_magnitude_bins: how many strengths there are, at least 2.
        interpolation: "nearest" or "bilinear", or torchvision's InterpolationMode.
        fill: value, or (red, green, blue), 0..255, of what lies outside a turned or shifted image; None: black.
        v1: whether solarize's thresholds are those of torchvision.transforms, the older half of torchvision: on PIL
            images some of them let one gray value more or less pass.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a number, name or colour that makes no sense.
    """

    num_magnitude_bins: int = 31
    interpolation: Sampling = "nearest"
    fill: int | Sequence[int] | None = None
    v1: bool = False

    def __post_init__(self) -> None:
        self._keep(
            num_magnitude_bins=check.whole("num_magnitude_bins", self.num_magnitude_bins, 2),
            interpolation=check.choice("interpolation", self.interpolation, check.SAMPLING),
            fill=check.colour(self.fill),
            v1=check.flag("v1", self.v1),
        )
        self._op()

    def _op(self) -> Op:
        return _core.trivial_augment_wide(self.num_magnitude_bins, self.interpolation, check.rgb(self.fill), self.v1)


@dataclass(frozen=True)
class AutoAugment(PixelTransform):
    """Apply one of 25 pairs of operations that were found for a data set, each with its probability and strength.

    Source: torchvision.transforms.v2.AutoAugment (arXiv 1805.09501): the same pairs.

    Args:
        policy: "imagenet", "cifar10" or "svhn", or torchvision's AutoAugmentPolicy.
        interpolation: "nearest" or "bilinear", or torchvision's InterpolationMode.
        fill: value, or (red, green, blue), 0..255, of what lies outside a turned or shifted image; None: black.
        v1: whether solarize's thresholds are those of torchvision.transforms, the older half of torchvision: on PIL
            images some of them let one gray value more or less pass.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a name or colour that makes no sense.
    """

    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet"
    interpolation: Sampling = "nearest"
    fill: int | Sequence[int] | None = None
    v1: bool = False

    def __post_init__(self) -> None:
        self._keep(
            policy=check.choice("policy", self.policy, ("imagenet", "cifar10", "svhn")),
            interpolation=check.choice("interpolation", self.interpolation, check.SAMPLING),
            fill=check.colour(self.fill),
            v1=check.flag("v1", self.v1),
        )
        self._op()

    def _op(self) -> Op:
        return _core.auto_augment(self.policy, self.interpolation, check.rgb(self.fill), self.v1)


@dataclass(frozen=True)
class AugMix(PixelTransform):
    """Mix the image with chains of operations on it.

    Source: torchvision.transforms.v2.AugMix (arXiv 1912.02781): the same operations, strengths and distributions, the
    sum computed in float32 in the same order and cut to 8 bits. As there, PIL images are mixed as tensors, so that the
    operations have torch's pixels.

    Args:
        severity: operations have one of the first so many of 10 strengths, 1..10.
        mixture_width: how many chains.
        chain_depth: how many operations in each chain; 0 or less: 1 to 3, drawn.
        alpha: parameter of the Dirichlet distributions from which the weights of image and chains are drawn.
        all_ops: brightness, colour, contrast and sharpness too.
        interpolation: "nearest" or "bilinear", or torchvision's InterpolationMode.
        fill: value, or (red, green, blue), 0..255, of what lies outside a turned or shifted image; None: black.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a number, name or colour that makes no sense.
    """

    severity: int = 3
    mixture_width: int = 3
    chain_depth: int = -1
    alpha: float = 1.0
    all_ops: bool = True
    interpolation: Sampling = "bilinear"
    fill: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        self._keep(
            severity=check.whole("severity", self.severity, 1),
            mixture_width=check.whole("mixture_width", self.mixture_width, 1),
            chain_depth=check.whole("chain_depth", self.chain_depth),
            alpha=check.number("alpha", self.alpha),
            all_ops=check.flag("all_ops", self.all_ops),
            interpolation=check.choice("interpolation", self.interpolation, check.SAMPLING),
            fill=check.colour(self.fill),
        )
        self._op()

    def _op(self) -> Op:
        return _core.aug_mix(
            self.severity,
            self.mixture_width,
            self.chain_depth if self.chain_depth > 0 else None,
            self.alpha,
            self.all_ops,
            self.interpolation,
            check.rgb(self.fill),
        )


@dataclass(frozen=True)
class ThreeAugment(PixelTransform):
    """Grayscale, solarize or blur, one of the three for each image.

    Source: 3-Augment of DeiT III (arXiv 2204.07118, section 3.2), which timm calls "3a". Each is as likely as the
    others. Values from 128 on are inverted; the blur's standard deviation is uniform in 0.1..2 pixels, its kernel 13
    pixels wide, three of the largest standard deviations to each side. The paper's flip and colour jitter (0.3) are
    transforms of their own: `RandomHorizontalFlip()` and `ColorJitter(0.3, 0.3, 0.3)` beside this one.
    """

    def _op(self) -> Op:
        choices = [
            _core.random_color("grayscale", 1.0),
            _core.random_solarize(128.0, 1.0),
            _core.gaussian_blur((13, 13), (0.1, 2.0)),
        ]
        return _core.random_choice([[choice] for choice in choices], [1.0, 1.0, 1.0])
