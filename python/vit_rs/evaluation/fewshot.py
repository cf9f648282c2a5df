"""Few-shot accuracy in closed form: regularised least squares on frozen features.

The protocol of the ViT paper's few-shot figures (arXiv 2010.11929, sections 4.1 and 4.3), in the version of
big_vision's `evaluators/fewshot_lsr.py`: its whitening, its constant feature, its ridge and its draws.

Letters: N images, D width, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["FewShotResult", "fewshot_lsr"]

# A constant feature this large is a bias that the ridge hardly shrinks.
_BIAS_FEATURE = 100.0
_STD_FLOOR = 1e-5


class FewShotResult(TypedDict):
    """Accuracies 0..1 at one number of shots: the mean over the seeds, and each seed's in their order."""

    top1: float
    per_seed: list[float]


def fewshot_lsr(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    shots: Sequence[int] = (5,),
    seeds: Sequence[int] = (0, 1, 2),
    l2: float = 2**10,
) -> dict[int, FewShotResult]:
    """Return the test accuracy of a linear classifier fitted to a few images per class.

    Per seed, `numpy.random.default_rng(seed)` permutes each class's images, class after class, and the first
    k are taken. Features are whitened by the mean and standard deviation (ddof 0, plus 1e-5) of those images
    and get a constant feature of 100; the targets are +1 for the class and -1 for the others; the ridge is
    solved in float64 by the eigenvectors of the smaller of X^T X and X X^T.

    Source: google-research/big_vision, evaluators/fewshot_lsr.py (which solves in float32).

    Args:
        train_features: (N, D) floating point, for example of `extract_features`.
        train_labels: (N,) integers 0..K-1.
        test_features: (M, D).
        test_labels: (M,) integers 0..K-1.
        shots: Training images per class; each is evaluated on the same draws, so 10 shots contain the 5.
        seeds: One draw each.
        l2: Strength of the ridge, over 0.

    Returns:
        By number of shots: {"top1": mean over the seeds, "per_seed": [...]}, fractions 0..1.

    Raises:
        ValueError: Shapes do not fit, a feature is not finite, a label is negative, an argument is out of
            range, or a class has fewer training images than shots.
    """
    x_train, y_train = _checked("train", train_features, train_labels)
    x_test, y_test = _checked("test", test_features, test_labels)
    if x_train.shape[1] != x_test.shape[1]:
        raise ValueError(
            f"features differ in width: train {tuple(train_features.shape)}, test {tuple(test_features.shape)}"
        )
    if not shots or min(shots) < 1:
        raise ValueError(f"shots must be positive numbers of images per class, got {tuple(shots)}")
    if not seeds:
        raise ValueError("seeds is empty: at least one draw is needed")
    if not l2 > 0:
        raise ValueError(f"l2 must be over 0, got {l2}")
    num_classes = int(max(y_train.max(), y_test.max())) + 1
    counts = np.bincount(y_train, minlength=num_classes)
    if counts.min() < max(shots):
        scarce = int(counts.argmin())
        raise ValueError(f"class {scarce} has {counts[scarce]} training images, too few for {max(shots)} shots")

    top1: dict[int, list[float]] = {k: [] for k in shots}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        draws = [rng.permutation(np.flatnonzero(y_train == label)) for label in range(num_classes)]
        for k, scores in top1.items():
            chosen = np.concatenate([draw[:k] for draw in draws])
            mean, std, weights = _fit(x_train[chosen], y_train[chosen], num_classes, l2)
            x = np.pad((x_test - mean) / std, ((0, 0), (0, 1)), constant_values=_BIAS_FEATURE)
            predicted = (x @ weights).argmax(axis=1)
            scores.append(float((predicted == y_test).mean()))
    return {k: {"top1": float(np.mean(scores)), "per_seed": scores} for k, scores in top1.items()}


def _fit(
    x: NDArray[np.float64], y: NDArray[np.int64], num_classes: int, l2: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (D,), std (D,) and ridge weights (D + 1, K) of images x (N, D) with labels y (N,)."""
    mean, std = x.mean(axis=0), x.std(axis=0) + _STD_FLOOR
    x = np.pad((x - mean) / std, ((0, 0), (0, 1)), constant_values=_BIAS_FEATURE)  # (N, D + 1)
    targets = 2.0 * np.eye(num_classes)[y] - 1.0  # (N, K)
    # (X^T X + l2 I)^-1 X^T Y equals X^T (X X^T + l2 I)^-1 Y: the smaller matrix is the cheaper one.
    if x.shape[0] >= x.shape[1]:
        eigenvalues, vectors = np.linalg.eigh(x.T @ x)
        left, right = vectors, vectors.T @ (x.T @ targets)
    else:
        eigenvalues, vectors = np.linalg.eigh(x @ x.T)
        left, right = x.T @ vectors, vectors.T @ targets
    return mean, std, (left / (eigenvalues + l2)) @ right


def _checked(name: str, features: Tensor, labels: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    if features.ndim != 2 or labels.ndim != 1 or len(features) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"expected {name} features (N, D) and labels (N,) with N > 0, "
            f"got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.min() < 0:
        raise ValueError(f"{name} labels must be integers from 0, got {labels.dtype} from {labels.min()}")
    finite = torch.isfinite(features).all(dim=1)
    if not finite.all():
        row = int(finite.logical_not().nonzero()[0])
        raise ValueError(f"{name} features are not finite: the first such image is number {row}")
    return features.detach().cpu().double().numpy(), labels.detach().cpu().long().numpy()
