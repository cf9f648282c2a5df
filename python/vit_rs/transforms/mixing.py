"""Batches mixed with themselves: MixUp and CutMix, on any device, and what they share with `vit_rs.methods`.

Letters: B batch, C channels, H and W the image's height and width, N patches, D values of a patch, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from vit_rs.transforms import _arguments as check

__all__ = ["CutMix", "MixUp", "paste"]


def paste(
    images: torch.Tensor,
    order: torch.Tensor,
    rows: tuple[int, int],
    columns: tuple[int, int],
    *,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, float]:
    """Return images with a rectangle of their partners pasted in, and the share of their area that is left.

    Args:
        images: (B, C, H, W); not written to.
        order: number of each image's partner, int64, (B,).
        rows: first row of the rectangle and the first one below it.
        columns: first column of the rectangle and the first one right of it.
        out: memory for what is returned, as `images`; None takes new.
    """
    (top, bottom), (left, right) = rows, columns
    mixed = images.clone() if out is None else out.copy_(images)
    mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right].index_select(0, order)
    height, width = images.shape[-2:]
    return mixed, 1.0 - (bottom - top) * (right - left) / (height * width)


@dataclass(frozen=True, kw_only=True)
class _Mixing:
    alpha: float = 1.0
    num_classes: int | None = None

    def __post_init__(self) -> None:
        expected = "a finite number above 0"
        alpha = check.number("alpha", self.alpha, expected)
        if not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"alpha must be {expected}, got {self.alpha!r}")
        object.__setattr__(self, "alpha", alpha)
        if self.num_classes is not None:
            object.__setattr__(self, "num_classes", check.whole("num_classes", self.num_classes, 1))

    def _draw_share(self) -> float:
        """Draw the first image's share from torch's default generator."""
        alpha = torch.tensor([float(self.alpha)])
        return float(torch.distributions.Beta(alpha, alpha).sample(()))

    def _check(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        name = type(self).__name__
        if not isinstance(images, torch.Tensor) or not isinstance(labels, torch.Tensor):
            kinds = f"{type(images).__name__} and {type(labels).__name__}"
            raise TypeError(f"{name} takes tensors of images and labels, got {kinds}")
        if labels.ndim not in (1, 2):
            raise ValueError(f"labels must be (B,) or (B, num_classes), got {tuple(labels.shape)}")
        count = len(images) if images.ndim else 0
        if count != len(labels):
            raise ValueError(f"{name} needs a label for each image, got {count} images and {len(labels)} labels")
        if labels.ndim == 1:
            self._check_numbers(labels)
        if labels.ndim == 2 and self.num_classes not in (labels.shape[1], None):
            raise ValueError(
                f"labels (B, num_classes) have {labels.shape[1]} classes, num_classes is {self.num_classes}"
            )

    def _check_numbers(self, labels: torch.Tensor) -> None:
        if self.num_classes is None:
            raise ValueError(f"{type(self).__name__} needs num_classes for labels (B,)")
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"labels (B,) must be whole numbers, as int64, got {labels.dtype}; shares are (B, K)")
        # On another device the check would have to wait for it, batch by batch.
        if labels.device.type == "cpu" and len(labels):
            least, most = (int(label) for label in labels.long().aminmax())
            if least < 0 or most >= self.num_classes:
                raise ValueError(
                    f"labels must be in 0..{self.num_classes - 1} for num_classes={self.num_classes}, "
                    f"got {least if least < 0 else most}"
                )

    def _mix_labels(self, labels: torch.Tensor, share: float) -> torch.Tensor:
        if labels.ndim == 1:
            labels = F.one_hot(labels.long(), self.num_classes or -1)  # (B, K)
        if not labels.is_floating_point():
            labels = labels.float()
        return _blend(labels, share)


def _blend(values: torch.Tensor, share: float) -> torch.Tensor:
    """Return `share` of each row and the rest of the one before it, in torchvision's order of roundings."""
    return values.roll(1, 0).mul_(1.0 - share).add_(values.mul(share))


@dataclass(frozen=True, kw_only=True)
class MixUp(_Mixing):
    """Blend each image of a batch, and its label, with the one before it.

    `images, labels = MixUp(num_classes=10)(images, labels)`. One share is drawn for a batch, from Beta(alpha, alpha).
    Partners are neighbours: batches should be shuffled.

    Source: torchvision.transforms.v2.MixUp (arXiv 1710.09412), bit-equal under the same seed of torch.

    Args:
        alpha: of the Beta distribution, above 0; near 0, images stay almost as they are.
        num_classes: number of classes K; may be None when labels are (B, K) already.

    Raises:
        TypeError: `alpha` that is not a number, or `num_classes` that is not a whole one.
        ValueError: `alpha` or `num_classes` out of range.
    """

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch.

        Args:
            images: float, (B, C, H, W), or patch vectors (B, N, D); not written to.
            labels: int64, or another whole type, (B,), 0 <= label < K; or shares (B, K).

        Returns:
            The images mixed, and soft labels (B, K): float32 for whole labels.

        Raises:
            TypeError: something that is not a tensor.
            ValueError: a shape or type that does not go with this; a label outside 0..K-1, for labels on the CPU (other
                devices are not waited for).
        """
        self._check(images, labels)
        if images.ndim not in (3, 4) or not images.is_floating_point():
            raise ValueError(
                f"MixUp takes float images (B, C, H, W) or patches (B, N, D), got {images.dtype} {tuple(images.shape)}"
            )
        share = self._draw_share()
        return _blend(images, share), self._mix_labels(labels, share)


@dataclass(frozen=True, kw_only=True)
class CutMix(_Mixing):
    """Paste a rectangle of the image before it into each image of a batch, and mix labels by the areas.

    One rectangle is drawn for a batch: its area from Beta(alpha, alpha), its centre uniformly; what lies outside the
    image is cut off. Partners are neighbours: batches should be shuffled.

    Source: torchvision.transforms.v2.CutMix (arXiv 1905.04899), bit-equal under the same seed of torch.

    Args:
        alpha: of the Beta distribution, above 0.
        num_classes: number of classes K; may be None when labels are (B, K) already.

    Raises:
        TypeError: `alpha` that is not a number, or `num_classes` that is not a whole one.
        ValueError: `alpha` or `num_classes` out of range.
    """

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch.

        Args:
            images: (B, C, H, W) of any type; not written to.
            labels: int64, or another whole type, (B,), 0 <= label < K; or shares (B, K).

        Returns:
            The images mixed, and soft labels (B, K): float32 for whole labels.

        Raises:
            TypeError: something that is not a tensor.
            ValueError: a shape or type of labels that does not go with this; images without pixels; patch vectors,
                which have no rows and columns; a label outside 0..K-1, for labels on the CPU (other devices are not
                waited for).
        """
        self._check(images, labels)
        if images.ndim != 4:
            raise ValueError(
                f"CutMix takes images (B, C, H, W), got {tuple(images.shape)}: patch vectors (B, N, D) have no rows "
                "and columns to cut; mix before patchify, or take MixUp"
            )
        if 0 in images.shape[-2:]:
            raise ValueError(f"CutMix takes images (B, C, H, W) of at least one pixel, got {tuple(images.shape)}")
        share = self._draw_share()
        height, width = images.shape[-2:]
        middle_x, middle_y = int(torch.randint(width, (1,))), int(torch.randint(height, (1,)))
        half = 0.5 * math.sqrt(1.0 - share)
        half_width, half_height = int(half * width), int(half * height)
        rows = max(middle_y - half_height, 0), min(middle_y + half_height, height)
        columns = max(middle_x - half_width, 0), min(middle_x + half_width, width)
        # Each image's partner is the one before it.
        order = torch.arange(len(images), device=images.device).roll(1)
        mixed, left_over = paste(images, order, rows, columns)
        return mixed, self._mix_labels(labels, left_over)
