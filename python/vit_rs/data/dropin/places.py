"""What an image is at a place in a user's chain of transforms, and what becomes of each transform there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from vit_rs.transforms import Transform

__all__ = ["Place", "Step", "UntranslatableError"]


@dataclass(frozen=True)
class Place:
    """What the image is between two transforms.

    Args:
        kind: "pil", a PIL image of mode RGB or L, where operations have Pillow's pixels; "tensor", u8 (C, H, W), where
            they have torch's; "float", the same in a float type.
        channels: 3 or 1.
        wrapped: whether the tensor is a torchvision.tv_tensors.Image.
        dtype: of a tensor's values.
    """

    kind: Literal["pil", "tensor", "float"] = "pil"
    channels: int = 3
    wrapped: bool = False
    dtype: torch.dtype = torch.uint8


class UntranslatableError(Exception):
    """A transform has no equal in vit_rs; the text is the reason, for people."""


@dataclass(frozen=True)
class Step:
    """One of the user's transforms, at its place.

    Args:
        original: the user's object.
        after: what the image is behind it; None where only running it can tell.
        translated: what does the same in vit_rs, none at all where there is nothing to do; None = it stays in Python.
        reason: why it does.
    """

    original: Any
    after: Place | None
    translated: tuple[Transform, ...] | None
    reason: str = ""
