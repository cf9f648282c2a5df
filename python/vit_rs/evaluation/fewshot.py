"""Few-shot accuracy in closed form: regularised least squares on frozen features.

The protocol of the ViT paper's few-shot figures (arXiv 2010.11929, sections 4.1 and 4.3), in the version of
big_vision's `evaluators/fewshot_lsr.py`: its whitening, its constant feature, its ridge and its draws.

Letters: N images, D width, K classes, R = min(N, D + 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from vit_rs.data.splits import members_of_classes
from vit_rs.evaluation.labelled import check_pair, check_seeds, mean, standard_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = [
    "L2",
    "L2_GRID",
    "PROTOCOL",
    "FewShotResult",
    "GridScore",
    "LeastSquares",
    "draw_shots",
    "fewshot_lsr",
    "fit_lsr",
]

# big_vision's fixed strength, and the grid that the same protocol searched before it was fixed (V-MoE's code).
L2 = 2.0**10
L2_GRID = tuple(2.0**power for power in range(-10, 20))

# A constant feature this large is a bias that the ridge hardly shrinks.
_BIAS_FEATURE = 100.0
_STD_FLOOR = 1e-5
# What stands in a record beside shots, seeds and l2.
PROTOCOL = {
    "source": "arXiv 2010.11929, section 4.1; google-research/big_vision, evaluators/fewshot_lsr.py",
    "draw": "numpy.random.default_rng(seed).permutation of each class's images, in the order of the classes",
    "whitening": "mean and standard deviation (ddof 0) + 1e-5 of the drawn images",
    "bias_feature": _BIAS_FEATURE,
    "targets": "+1, -1",
    "solver": "eigh in float64",
}
# Rows of the test features that are scored at once.
_ROWS = 4096


class GridScore(TypedDict):
    """Accuracies 0..1 at one strength of the ridge, with the fields of FewShotResult."""

    l2: float
    top1: float
    stderr: float | None
    per_seed: list[float]


class FewShotResult(TypedDict):
    """Accuracies 0..1 at one number of shots.

    The mean over the seeds; its standard error (None for one seed); each seed's in their order; the same at
    each other strength that was asked for.
    """

    top1: float
    stderr: float | None
    per_seed: list[float]
    grid: list[GridScore]


@dataclass(frozen=True)
class LeastSquares:
    """A ridge regression at every strength at once: one eigendecomposition, of the smaller of X^T X and X X^T.

    Attributes:
        mean: (D,) float64, the features' mean.
        std: (D,) their standard deviation (ddof 0) plus 1e-5.
        eigenvalues: (R,).
        left: (D + 1, R).
        right: (R, K); the weights are left / (eigenvalues + l2) @ right.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    left: NDArray[np.float64]
    right: NDArray[np.float64]

    def weights(self, l2: float) -> NDArray[np.float64]:
        """Return the weights (D + 1, K) at a strength over 0; the last row belongs to the constant feature of 100."""
        _check_l2(l2)
        weights: NDArray[np.float64] = (self.left / (self.eigenvalues + l2)) @ self.right
        return weights

    def whiten(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return features (M, D) as the weights take them: (M, D + 1) float64."""
        x = (features.astype(np.float64) - self.mean) / self.std
        return np.pad(x, ((0, 0), (0, 1)), constant_values=_BIAS_FEATURE)


def fit_lsr(features: NDArray[np.floating], labels: NDArray[np.integer], num_classes: int) -> LeastSquares:
    """Fit the few-shot classifier to images.

    Args:
        features: (N, D) floating point, finite.
        labels: (N,) integers 0..K-1.
        num_classes: K.

    Returns:
        What gives the weights for every strength of the ridge; solved in float64.

    Source: google-research/big_vision, evaluators/fewshot_lsr.py (which solves in float32).
    """
    x = features.astype(np.float64)
    center, std = x.mean(axis=0), x.std(axis=0) + _STD_FLOOR
    x = np.pad((x - center) / std, ((0, 0), (0, 1)), constant_values=_BIAS_FEATURE)  # (N, D + 1)
    targets = 2.0 * np.eye(num_classes)[labels] - 1.0  # (N, K)
    # (X^T X + l2 I)^-1 X^T Y equals X^T (X X^T + l2 I)^-1 Y: the smaller matrix is the cheaper one.
    if x.shape[0] >= x.shape[1]:
        eigenvalues, vectors = np.linalg.eigh(x.T @ x)
        return LeastSquares(center, std, eigenvalues, vectors, vectors.T @ (x.T @ targets))
    eigenvalues, vectors = np.linalg.eigh(x @ x.T)
    return LeastSquares(center, std, eigenvalues, x.T @ vectors, vectors.T @ targets)


def draw_shots(labels: NDArray[np.integer], num_classes: int, *, shots: int, seed: int) -> NDArray[np.int64]:
    """Return the indices of one draw: `shots` images of class 0, then of class 1, and so on.

    `numpy.random.default_rng(seed)` permutes each class's images, class after class, and the first are taken:
    ten shots contain the five of the same seed. Labels alone decide: only the drawn images need features.

    Source: google-research/big_vision, evaluators/fewshot_lsr.py.
    """
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(members)[:shots] for members in members_of_classes(labels, num_classes)])


def fewshot_lsr(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    shots: Sequence[int] = (5,),
    seeds: Sequence[int] = (0, 1, 2),
    l2: float = L2,
    grid: Sequence[float] = (),
    draws: Mapping[int, NDArray[np.int64]] | None = None,
) -> dict[int, FewShotResult]:
    """Return the test accuracy of a linear classifier fitted to a few images per class.

    Features are whitened by the mean and standard deviation of the drawn images and get a constant feature of
    100; the targets are +1 for the class and -1 for the others.

    The result is the accuracy at the fixed strength `l2`. Those of the `grid` cost no further decomposition
    and are reported beside it: to choose the best of them by these test images would be to train on them.

    Source: google-research/big_vision, evaluators/fewshot_lsr.py.

    Args:
        train_features: (N, D) floating point, for example of `extract_features`.
        train_labels: (N,) integers 0..K-1.
        test_features: (M, D).
        test_labels: (M,) integers 0..K-1.
        shots: Training images per class; each is evaluated on the same draws, so 10 shots contain the 5.
        seeds: One draw each, see `draw_shots`.
        l2: Strength of the ridge, over 0.
        grid: Further strengths, for example L2_GRID.
        draws: For each seed the training images of its draw, max(shots) of each class as `draw_shots` returns
            them; None draws here, from `train_labels`. For draws from more images than have features.

    Returns:
        By number of shots, fractions 0..1.

    Raises:
        ValueError: Shapes do not fit, a feature is not finite, a label is negative, an argument is out of
            range, or a class has fewer training images than shots.
    """
    if not shots or min(shots) < 1:
        raise ValueError(f"shots must be positive numbers of images per class, got {tuple(shots)}")
    check_seeds(seeds)
    for strength in (l2, *grid):
        _check_l2(strength)
    num_classes = check_pair(train_features, train_labels, test_features, test_labels, per_class=max(shots))
    x_train, y_train = train_features.detach().cpu(), train_labels.cpu().numpy()
    x_test, y_test = test_features.detach().cpu(), test_labels.cpu().numpy()

    strengths = (l2, *grid)
    scores: dict[int, list[list[float]]] = {k: [] for k in shots}  # by shots: seeds x strengths
    for seed in seeds:
        draw = draw_shots(y_train, num_classes, shots=max(shots), seed=seed) if draws is None else draws[seed]
        drawn = draw.reshape(num_classes, max(shots))
        for k, by_seed in scores.items():
            chosen = drawn[:, :k].reshape(-1)
            # float64 at once: numpy has no bfloat16.
            model = fit_lsr(x_train[chosen].double().numpy(), y_train[chosen], num_classes)
            by_seed.append(_accuracies(model, x_test, y_test, strengths))
    return {k: _result(by_seed, strengths) for k, by_seed in scores.items()}


def _accuracies(model: LeastSquares, x: Tensor, y: NDArray[np.integer], strengths: Sequence[float]) -> list[float]:
    """Return the accuracy on features (M, D) with labels (M,) at each strength."""
    weights = [model.weights(l2) for l2 in strengths]
    correct = np.zeros(len(strengths), dtype=np.int64)
    for start in range(0, len(y), _ROWS):
        design, labels = model.whiten(x[start : start + _ROWS].double().numpy()), y[start : start + _ROWS]
        correct += [int(((design @ w).argmax(axis=1) == labels).sum()) for w in weights]
    return [int(count) / len(y) for count in correct]


def _result(by_seed: list[list[float]], strengths: Sequence[float]) -> FewShotResult:
    columns = [list(column) for column in zip(*by_seed, strict=True)]
    fixed, *others = [(mean(column), standard_error(column), column) for column in columns]
    grid: list[GridScore] = [
        {"l2": l2, "top1": top1, "stderr": stderr, "per_seed": per_seed}
        for l2, (top1, stderr, per_seed) in zip(strengths[1:], others, strict=True)
    ]
    top1, stderr, per_seed = fixed
    return {"top1": top1, "stderr": stderr, "per_seed": per_seed, "grid": grid}


def _check_l2(l2: float) -> None:
    if not 0 < l2 < math.inf:
        raise ValueError(f"l2 must be finite and over 0, got {l2}")
