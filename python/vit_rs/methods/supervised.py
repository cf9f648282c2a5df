"""Supervised classification: label smoothing, mixup and cutmix, cross-entropy over classes or of each class.

Letters: B batch, C channels, H and W the image's height and width, K classes.

Source: label smoothing, arXiv 1512.00567, section 7; mixup, arXiv 1710.09412; cutmix, arXiv 1905.04899. As
in the reference implementations one share is drawn for a whole batch, and the partner images are the batch
in another order. Each class's own cross-entropy (sigmoid) is summed over the classes, as in big_vision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from vit_rs.transforms.mixing import paste

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["MixedBatch", "Supervised"]


class MixedBatch(NamedTuple):
    """A batch as the model sees it. The target is share * labels + (1 - share) * partner_labels."""

    images: torch.Tensor  # (B, C, H, W)
    labels: torch.Tensor  # (B,) int64
    partner_labels: torch.Tensor  # (B,) int64
    share: float  # of the first label, 0..1

    def split(self, parts: int) -> list[MixedBatch]:
        """Return the batch in so many parts, views of sizes that differ by at most one; some may be empty."""
        if parts == 1:
            return [self]
        tensors = zip(*(tensor.tensor_split(parts) for tensor in self[:3]), strict=True)
        return [MixedBatch(images, labels, partners, self.share) for images, labels, partners in tensors]


@dataclass(frozen=True)
class Supervised:
    """Cross-entropy between a classifier's logits and smoothed, perhaps mixed labels.

    What is drawn for a batch depends on the seed and on the step alone: nothing has to be saved for a
    resumed run, and a batch can be made again for a figure.

    Args:
        label_smoothing: share of the target that is spread evenly over all classes, 0..1.
        mixup: alpha of the Beta(alpha, alpha) that draws the share of the first image; 0 is off.
        cutmix: the same for a pasted rectangle; with both on, each batch draws one of them.
        seed: integers that name the stream of random numbers.
        activation: what makes probabilities of logits: softmax, over all classes, or sigmoid, class by class.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    seed: tuple[int, ...] = (0,)
    activation: Literal["softmax", "sigmoid"] = "softmax"

    @property
    def mixes(self) -> bool:
        """Whether images are mixed at all."""
        return self.mixup > 0.0 or self.cutmix > 0.0

    def mix(
        self, images: torch.Tensor, labels: torch.Tensor, *, step: int, out: torch.Tensor | None = None
    ) -> MixedBatch:
        """Return the batch with every image blended with, or partly covered by, another one.

        Args:
            images: float, (B, C, H, W); not written to.
            labels: int64, (B,).
            step: number of the batch.
            out: memory for the mixed images, as `images`; None takes new.
        """
        if not self.mixes:
            return MixedBatch(images, labels, labels, 1.0)
        rng = np.random.default_rng((*self.seed, step))
        cut = self.cutmix > 0.0 and (self.mixup == 0.0 or rng.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = float(rng.beta(alpha, alpha))
        order = torch.from_numpy(rng.permutation(len(labels)))
        if labels.is_cuda:  # from pinned memory the copy is not waited for
            order = order.pin_memory().to(labels.device, non_blocking=True)
        if not cut:
            mixed = torch.index_select(images, 0, order, out=out).lerp_(images, share)
            return MixedBatch(mixed, labels, labels[order], share)
        height, width = images.shape[-2:]
        rows = _interval(height, share, rng)
        columns = _interval(width, share, rng)
        # The rectangle is clipped at the border: the target follows the area that was really pasted.
        mixed, share = paste(images, order, rows, columns, out=out)
        return MixedBatch(mixed, labels, labels[order], share)

    def loss(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, step: int) -> torch.Tensor:
        """Return the batch's mean loss, a scalar with gradient.

        Args:
            model: maps images to logits, (B, K).
            images: float, (B, C, H, W).
            labels: int64, (B,), 0 <= label < K.
            step: number of the batch.
        """
        return self.mixed_loss(model, self.mix(images, labels, step=step))

    def mixed_loss(self, model: Callable[[torch.Tensor], torch.Tensor], batch: MixedBatch) -> torch.Tensor:
        """Return the mean loss of what `mix` returned, a scalar with gradient; 0 for a batch without images.

        The loss is computed in float32, whatever the logits' type.
        """
        logits = model(batch.images).float()  # (B, K)
        if len(batch.labels) == 0:
            return logits.sum()
        loss = self._loss(logits, batch.labels)
        if batch.share == 1.0:
            return loss
        return batch.share * loss + (1.0 - batch.share) * self._loss(logits, batch.partner_labels)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.activation == "softmax":
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        # -t log p - (1 - t) log(1 - p) = softplus(z) - t z for the logit z: no dense target t, (B, K), is made.
        hit = logits.gather(1, labels[:, None])[:, 0]  # (B,)
        target = (1.0 - self.label_smoothing) * hit + self.label_smoothing * logits.mean(dim=1)
        return (F.softplus(logits).sum(dim=1) - target).mean()


def _interval(side: int, share: float, rng: np.random.Generator) -> tuple[int, int]:
    """Return (start, end) of a cut of sqrt(1 - share) of the side around a uniform centre, clipped to it."""
    length = round(side * (1.0 - share) ** 0.5)
    centre = int(rng.integers(side))
    start = centre - length // 2
    return max(0, start), min(side, start + length)
