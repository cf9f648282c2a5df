"""From a transform to what the engine is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from vit_rs._core import View
from vit_rs.transforms.base import PixelTransform, Transform
from vit_rs.transforms.erasing import RandomErasing
from vit_rs.transforms.multi_crop import MultiCrop
from vit_rs.transforms.values import Normalize, PILToTensor, ToDtype, ToTensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vit_rs._core import Op

__all__ = ["Kernels", "Lowered", "is_multi", "lower", "lower_views", "pixel_ops"]

# Whose pixels; see `Compose`.
Kernels = Literal["torch", "pillow", "pillow12"]


@dataclass(frozen=True)
class Lowered:
    """One view's chain, as the engine takes it."""

    ops: list[Op]
    float_ops: list[Op]
    to_dtype: ToDtype | ToTensor | None
    # Done to values as they are written, after all operations but the erasing ones.
    normalize: Normalize | None
    kernels: Kernels | None
    # The first operation behind a PILToTensor.
    tensors_from: int | None

    @property
    def dtype(self) -> torch.dtype:
        """The type of the values at the chain's end."""
        return torch.uint8 if self.to_dtype is None else self.to_dtype.dtype

    @property
    def unit(self) -> Literal["one", "multiplied", "divided"] | None:
        """What 8-bit values are measured in as floats; None where they stay bytes."""
        if self.to_dtype is None:
            return None
        if isinstance(self.to_dtype, ToTensor):
            return "divided"
        return "multiplied" if self.to_dtype.scale else "one"

    def view(
        self,
        *,
        dtype: torch.dtype | None = None,
        layout: str = "NCHW",
        patch: tuple[int, int] | None = None,
        kernels: Kernels = "torch",
    ) -> View:
        """Return the engine's view; `kernels` where the chain names none."""
        normalize = self.normalize
        return View(
            self.ops,
            self.float_ops,
            kernels=self.kernels or kernels,
            tensors_from=self.tensors_from,
            unit=self.unit,
            normalize=None if normalize is None else (list(normalize.mean), list(normalize.std)),
            dtype=str(dtype or self.dtype).removeprefix("torch."),
            layout=layout,
            patch=patch,
        )


def lower(transform: Transform | None) -> Lowered:
    """Split a chain for one view into operations on 8-bit pixels and what happens to the values at last.

    Raises:
        TypeError: something that is not a transform of vit_rs.
        ValueError: an order that cannot be carried out.
    """
    ops: list[Op] = []
    floats: list[Normalize | PixelTransform] = []
    to_dtype: ToDtype | ToTensor | None = None
    tensors_from: int | None = None
    for step in () if transform is None else _steps(transform):
        if isinstance(step, PILToTensor):
            if tensors_from is None:
                tensors_from = len(ops)
        elif isinstance(step, (ToDtype, ToTensor)):
            if to_dtype is not None:
                raise ValueError(f"{step} is a second conversion; one ToDtype or ToTensor is possible")
            to_dtype = None if step.dtype == torch.uint8 else step
        elif isinstance(step, (Normalize, PixelTransform)):
            if to_dtype is not None:
                floats.append(step)
            elif isinstance(step, PixelTransform):
                ops.append(step._op())  # noqa: SLF001  (a method of our own classes)
            else:
                raise ValueError(
                    f"{step} needs float values: put ToDtype(torch.float32, scale=True) or ToTensor() before it"
                )
        else:
            raise ValueError(  # noqa: TRY004  (a transform, but in a wrong place)
                f"{step} makes several views: it stands alone, and what all views share stands in each"
            )
    # What stands at the end of most chains is done while values are written: no float image is made.
    first = floats[0] if floats else None
    normalize = first if isinstance(first, Normalize) else None
    rest = floats if normalize is None else floats[1:]
    if not all(isinstance(step, RandomErasing) for step in rest):
        normalize, rest = None, floats
    float_ops = [step._op() for step in rest]  # noqa: SLF001
    return Lowered(ops, float_ops, to_dtype, normalize, getattr(transform, "kernels", None), tensors_from)


def is_multi(transform: Transform | None) -> bool:
    """Tell whether a transform makes a tuple of views, if only of one."""
    return isinstance(transform, MultiCrop)


def lower_views(transform: Transform | None) -> list[Lowered]:
    """Return the chain of each view: several under a MultiCrop, else one."""
    if isinstance(transform, MultiCrop):
        return [lower(chain) for chain, count in transform.counted() for _ in range(count)]
    return [lower(transform)]


def pixel_ops(transforms: Iterable[Transform]) -> list[Op]:
    """Return the operations of transforms that stand inside another one.

    Raises:
        TypeError: one that is not a transform of pixels.
        ValueError: there are none, or a Compose names kernels.
    """
    ops = []
    for transform in transforms:
        kernels = getattr(transform, "kernels", None)
        if kernels is not None:
            raise ValueError(
                f"a chain has one kind of kernels: give kernels={kernels!r} to the outermost Compose, not to one "
                "inside another transform"
            )
        for step in _steps(transform):
            if not isinstance(step, PixelTransform):
                raise TypeError(f"only transforms of pixels can stand here, got {step}")
            ops.append(step._op())  # noqa: SLF001
    if not ops:
        raise ValueError("at least one transform is needed here")
    return ops


def _steps(transform: Transform) -> Iterable[Transform]:
    if not isinstance(transform, Transform):
        kind = type(transform)
        raise TypeError(f"expected a transform of vit_rs.transforms, got {kind.__module__}.{kind.__name__}")
    return transform.steps()
