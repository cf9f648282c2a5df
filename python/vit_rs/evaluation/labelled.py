"""Features with labels: the checks, ranks and standard errors that the probes have in common.

Letters: N images, D width, K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["check_pair", "check_seeds", "label_ranks", "mean", "standard_error"]

# Features are checked in parts, so that no mask of the whole table is made.
_ROWS = 65536


def check_pair(
    train_features: Tensor | None,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    per_class: int = 1,
) -> int:
    """Return the number of classes K of training and test features.

    Args:
        train_features: (N, D) floating point; None where they are not at hand.
        train_labels: (N,) integers 0..K-1.
        test_features: (M, D).
        test_labels: (M,) integers 0..K-1.
        per_class: Training images that each class must have at least.

    Raises:
        ValueError: Shapes do not fit, a feature is not finite, a label is negative, there is only one class,
            or a class has fewer training images than `per_class`.
    """
    _check("train", train_features, train_labels)
    _check("test", test_features, test_labels)
    if train_features is not None and train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"features differ in width: train {tuple(train_features.shape)}, test {tuple(test_features.shape)}"
        )
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    if num_classes < 2:
        raise ValueError("all images are of class 0: a probe needs at least two classes")
    counts = np.bincount(train_labels.cpu().numpy(), minlength=num_classes)
    if counts.min() < per_class:
        scarce = int(counts.argmin())
        wanted = f"too few for {per_class} shots" if per_class > 1 else "at least 1 is needed"
        raise ValueError(f"class {scarce} has {counts[scarce]} training images, {wanted}")
    return num_classes


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ValueError unless there are seeds, all of them at least 0."""
    if not seeds:
        raise ValueError("seeds is empty: at least one draw is needed")
    if min(seeds) < 0:
        raise ValueError(f"seeds must be at least 0, got {tuple(seeds)}")


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Return each label's place (N,) among the scores (N, K), 0 the best; of equal scores the lower class is first.

    Source: the order of a stable descending sort; rank 0 is numpy's argmax.
    """
    own = scores.gather(1, labels[:, None])  # (N, 1)
    before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(dim=1)


def mean(values: Sequence[float]) -> float:
    """Return the mean of one or more values."""
    return float(np.mean(values))


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean, s / sqrt(n) with s of n - 1 degrees; None for a single value."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _check(name: str, features: Tensor | None, labels: Tensor) -> None:
    table = (len(labels), 1) if features is None else tuple(features.shape)
    if len(table) != 2 or labels.ndim != 1 or table[0] != len(labels) or len(labels) == 0:
        raise ValueError(
            f"expected {name} features (N, D) and labels (N,) with N > 0, got {table} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.min() < 0:
        raise ValueError(f"{name} labels must be integers from 0, got {labels.dtype} from {labels.min()}")
    if features is None:
        return
    if not features.is_floating_point():
        raise ValueError(f"expected {name} features of floating point, got {features.dtype}")
    for start in range(0, len(features), _ROWS):
        finite = torch.isfinite(features[start : start + _ROWS]).all(dim=1)
        if not finite.all():
            row = start + int(finite.logical_not().nonzero()[0])
            raise ValueError(f"{name} features are not finite: the first such image is number {row}")
