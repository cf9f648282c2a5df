"""What an image is at a place in a user's chain of transforms, and what becomes of each transform there."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from vit_rs.transforms import Transform

__all__ = ["Place", "Step", "UntranslatableError", "place_of"]


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
    """A transform has no equal in vit_rs; the text is the reason, for people.

    Args:
        reason: the text.
        after: what the image is expected to be behind the transform; None: what it was before.
    """

    def __init__(self, reason: str, after: Place | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class Step:
    """One of the user's transforms, at its place.

    Args:
        original: the user's object.
        after: what the image is behind it; where it stays in Python, what is expected.
        translated: what does the same in vit_rs, none at all where there is nothing to do; None = it stays in Python.
        reason: why it does.
    """

    original: Any
    after: Place
    translated: tuple[Transform, ...] | None
    reason: str = ""


def place_of(image: Any) -> Place | None:
    """Return what an image is; None for anything that no place describes.

    These are PIL images of mode L or RGB, and uint8 or float tensors (C, H, W) on the CPU, C = 1 or 3, of at least one
    pixel, if they are plain or tv_tensors.Image.
    """
    if isinstance(image, torch.Tensor):
        return _place_of_tensor(image)
    pil = sys.modules.get("PIL.Image")
    if pil is None or not isinstance(image, pil.Image) or image.mode not in ("L", "RGB") or 0 in image.size:
        return None
    return Place("pil", 1 if image.mode == "L" else 3)


def _place_of_tensor(image: torch.Tensor) -> Place | None:
    tv_tensors = sys.modules.get("torchvision.tv_tensors")
    wrapped = tv_tensors is not None and type(image) is tv_tensors.Image
    if not wrapped and type(image) is not torch.Tensor:
        return None
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape or image.device.type != "cpu":
        return None
    if image.dtype == torch.uint8:
        return Place("tensor", image.shape[0], wrapped)
    if image.is_floating_point():
        return Place("float", image.shape[0], wrapped, image.dtype)
    return None
