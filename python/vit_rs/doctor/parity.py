"""Whether pixels are the same as Pillow's and torchvision's, on the user's own images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from vit_rs.doctor import peer
from vit_rs.exceptions import VitRsError
from vit_rs.transforms import CenterCrop, Compose, Normalize, Resize, ToDtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from vit_rs.data import ImageFolder, TarShards
    from vit_rs.doctor.files import Files
    from vit_rs.doctor.report import Progress

__all__ = ["Parity", "compare"]

Pixels: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"

_MOST = 32

EVALUATION = Compose([Resize(256), CenterCrop(224), ToDtype(torch.float32, scale=True), Normalize(peer.MEAN, peer.STD)])


@dataclass(frozen=True)
class Parity:
    """Differences to other libraries, on `images` images that both could decode and transform.

    Attributes:
        images: number of images compared.
        pillow: Pillow's version.
        decode_max: largest difference of a decoded value to Pillow's, of 255.
        decode_equal: share of pixels that are equal, 0..1.
        torchvision: its version; None where it is not installed, and `transform_max` is None then.
        transform_max: largest difference of a value after Resize(256), CenterCrop(224), ToDtype(float32), Normalize to
            torchvision's tensor kernels, both from Pillow's pixels.
    """

    images: int
    pillow: str
    decode_max: int
    decode_equal: float
    torchvision: str | None
    transform_max: float | None


def compare(files: Files, progress: Progress) -> Parity | None:
    """Compare on at most 32 images; None where Pillow is not installed, or no image could be compared."""
    pillow, torchvision = peer.version("PIL"), peer.version("torchvision")
    if pillow is None:
        return None
    evaluation = None if torchvision is None else peer.evaluation_transform()
    chosen = files.spread(_MOST)
    images, worst, equal, pixels, transform_worst = 0, 0, 0, 0, 0.0
    for done, index in enumerate(chosen):
        progress("parity", done, len(chosen))
        try:
            theirs = peer.pillow_pixels(files.read(int(index)))
            if theirs is None:
                continue
            ours = _decode(files.source, int(index))
            transformed = _transform_difference(theirs, evaluation)
        except (VitRsError, OSError, ValueError):  # the last of images so thin that resizing would make billions
            continue
        images += 1
        difference = np.abs(ours.astype(np.int16) - theirs)
        worst = max(worst, int(difference.max()))
        equal += int((difference.max(axis=2) == 0).sum())
        pixels += difference.shape[0] * difference.shape[1]
        transform_worst = max(transform_worst, transformed)
    if not images:
        return None
    transform_max = None if evaluation is None else transform_worst
    return Parity(images, pillow, worst, equal / pixels, torchvision, transform_max)


def _transform_difference(image: Pixels, evaluation: Callable[[torch.Tensor], torch.Tensor] | None) -> float:
    """Return the largest difference of a value after the transform; 0 without torchvision's."""
    if evaluation is None:
        return 0.0
    tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    return float((EVALUATION(tensor) - evaluation(tensor)).abs().max())


def _decode(source: ImageFolder | TarShards, index: int) -> Pixels:
    return source[index][0].permute(1, 2, 0).numpy()
