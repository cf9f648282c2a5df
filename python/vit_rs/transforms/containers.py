"""Transforms made of transforms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from vit_rs import _core
from vit_rs.transforms import _arguments as check
from vit_rs.transforms.base import PixelTransform, Transform
from vit_rs.transforms.lowering import Kernels, lower, pixel_ops

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vit_rs._core import Op

__all__ = ["Compose", "RandomApply", "RandomChoice", "RandomOrder"]


@dataclass(frozen=True)
class Compose(Transform):
    """Several transforms, one after another.

    Source: torchvision.transforms.v2.Compose.

    Args:
        transforms: what happens, in order. What stands before ToDtype or ToTensor works on 8-bit pixels, what stands
            behind it on floats.
        kernels: whose pixels the operations give where libraries differ in the last bits: "torch" (torchvision on
            uint8 tensors) or "pillow" (torchvision on PIL images, up to a PILToTensor in the chain). That is Pillow 13;
            "pillow12" is Pillow before it, whose resizes differ in a few values where the height shrinks more than the
            width. None: those of the installed Pillow when called on a PIL image, else "torch".

    Raises:
        TypeError: something that is not a transform of vit_rs.
        ValueError: an order that cannot be carried out, such as Normalize before ToDtype.
    """

    transforms: Sequence[Transform]
    kernels: Kernels | None = None

    def __post_init__(self) -> None:
        self._keep(transforms=check.sequence("transforms", self.transforms, "a sequence of transforms"))
        if self.kernels is not None and self.kernels not in get_args(Kernels):
            raise ValueError(f"kernels must be 'torch', 'pillow', 'pillow12' or None, got {self.kernels!r}")
        chain = lower(self)
        if chain.to_dtype is not None:
            # It stands alone: whether operations go with the values at their place can be told.
            chain.view()

    def steps(self) -> Iterator[Transform]:
        """Yield all transforms, those of a Compose inside one by one."""
        for transform in self.transforms:
            if not isinstance(transform, Transform):
                kind = type(transform)
                raise TypeError(f"expected a transform of vit_rs.transforms, got {kind.__module__}.{kind.__name__}")
            if isinstance(transform, Compose) and transform.kernels not in (self.kernels, None):
                raise ValueError(
                    f"a chain has one kind of kernels: {self.kernels!r} here, {transform.kernels!r} in a Compose inside"
                )
            yield from transform.steps()


@dataclass(frozen=True)
class RandomApply(PixelTransform):
    """All of these with probability `p`, or none.

    Source: torchvision.transforms.v2.RandomApply.

    Args:
        transforms: of pixels, in order.
        p: how often, 0..1.

    Raises:
        TypeError: a transform that is not one of pixels, or an argument of another wrong kind.
        ValueError: a Compose inside that names kernels; `p` outside 0..1, or nothing to apply.
    """

    transforms: Sequence[Transform]
    p: float = 0.5

    def __post_init__(self) -> None:
        self._keep(
            transforms=check.sequence("transforms", self.transforms, "a sequence of transforms"),
            p=check.probability(self.p),
        )
        self._op()

    def _op(self) -> Op:
        return _core.random_apply(pixel_ops(self.transforms), self.p)


@dataclass(frozen=True)
class RandomChoice(PixelTransform):
    """One of these, drawn for each image.

    Source: torchvision.transforms.v2.RandomChoice.

    Args:
        transforms: of pixels; each may be a Compose.
        p: how likely each is, relative to the others; None: all alike.

    Raises:
        TypeError: a transform that is not one of pixels, or an argument of another wrong kind.
        ValueError: a Compose inside that names kernels; nothing to choose from, another number of probabilities, a
            negative one, or none above 0.
    """

    transforms: Sequence[Transform]
    p: Sequence[float] | None = None

    def __post_init__(self) -> None:
        self._keep(transforms=check.sequence("transforms", self.transforms, "a sequence of transforms"))
        if self.p is not None:
            self._keep(p=check.numbers("p", self.p, "a number for each transform, or None"))
        self._op()

    def _op(self) -> Op:
        weights = [1.0] * len(self.transforms) if self.p is None else list(self.p)
        return _core.random_choice([pixel_ops([transform]) for transform in self.transforms], weights)


@dataclass(frozen=True)
class RandomOrder(PixelTransform):
    """All of these, in an order drawn for each image.

    Source: torchvision.transforms.v2.RandomOrder.

    Args:
        transforms: of pixels.

    Raises:
        TypeError: a transform that is not one of pixels, or an argument of another wrong kind.
        ValueError: a Compose inside that names kernels; nothing to apply.
    """

    transforms: Sequence[Transform]

    def __post_init__(self) -> None:
        self._keep(transforms=check.sequence("transforms", self.transforms, "a sequence of transforms"))
        self._op()

    def _op(self) -> Op:
        return _core.random_order(pixel_ops(self.transforms))
