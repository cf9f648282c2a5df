"""Logistic regression on frozen features: DINOv2's other linear protocol, without a learning rate to tune.

Letters: N images, F features of an image, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from vit_rs.data.splits import split_by_class
from vit_rs.evaluation.labelled import check_pair, check_seeds, label_ranks, mean, standard_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = ["C_DECADES", "C_GRID", "LogisticModel", "fit_logistic", "logistic_regression"]

_SOURCE = "arXiv 2304.07193; facebookresearch/dinov2, dinov2/eval/log_regression.py"

# DINOv2's: 45 powers of ten from 1e-6 to 1e5.
C_GRID = tuple(10.0 ** (-6 + 11 * place / 44) for place in range(45))
# One of each power of ten: a quarter of the work.
C_DECADES = tuple(10.0**power for power in range(-6, 6))
_HOLDOUT = 0.1
_MAX_STEPS = 1000
# Largest entry of the mean objective's gradient, in axes where its curvature is of the order of 1.
_TOLERANCE = 1e-7
# While the strength is chosen: predictions are settled long before the weights.
_CHOICE_TOLERANCE = 1e-5
# The choice ends where C is so many times the best so far: weaker regularisation overfits more, and takes the longest.
_PAST_THE_BEST = 1000
_ROWS = 65536


class LogisticModel(NamedTuple):
    """A fitted classifier: logits are x @ weights + bias."""

    weights: Tensor  # (F, K) float64
    bias: Tensor  # (K,) float64
    steps: int  # of L-BFGS


def logistic_regression(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    grid: Sequence[float] = C_GRID,
    seeds: Sequence[int] = (0,),
    max_steps: int = _MAX_STEPS,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Fit L2-regularised logistic regressions to frozen features and test the best.

    The strength is chosen on a tenth of each class's training images, held out by the seed; the classifier
    with it is then fitted to all training images. Of equals the strongest regularisation is taken. Features are
    taken as they are, in float64.

    Source: DINOv2's log_regression.py (cuML's, tol 1e-12, at most 1,000 iterations), which holds out a tenth
    of all images, whatever their classes.

    Args:
        train_features: (N, F) floating point, for example of `load_or_extract`.
        train_labels: (N,) integers 0..K-1.
        test_features: (M, F).
        test_labels: (M,) integers 0..K-1.
        grid: Inverse strengths C: C times the sum of the cross-entropies plus half the weights' square is least.
        seeds: Each holds out another tenth.
        max_steps: Most iterations of L-BFGS for each fit.
        device: Where it is computed, in float64.
        progress: Called with (fits done, fits) of all seeds.

    Returns:
        What JSON can hold: as `linear_probe`, with C in place of the learning rate; a C far past the best one is not
        tried, and has no accuracy for that seed.

    Raises:
        ValueError: Features and labels do not fit (see `check_pair`), an argument is out of range, or a class has
            too few images to hold one out.
    """
    check_seeds(seeds)
    if not grid or not min(grid) > 0:
        raise ValueError(f"C must be one or more numbers over 0, got {tuple(grid)}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    num_classes = check_pair(train_features, train_labels, test_features, test_labels)
    x, y = train_features.detach().to(device, torch.float64), train_labels.long().to(device)
    x_test, y_test = test_features.detach().to(device), test_labels.long().to(device)
    values = sorted(set(grid))
    names = [str(label) for label in range(num_classes)]
    fits, done = len(seeds) * (len(values) + 1), 0

    def fit(
        features: Tensor, labels: Tensor, c: float, start: LogisticModel | None, *, tolerance: float
    ) -> LogisticModel:
        nonlocal done
        model = fit_logistic(features, labels, num_classes, c=c, start=start, max_steps=max_steps, tolerance=tolerance)
        done += 1
        if progress is not None:
            progress(done, fits)
        return model

    by_seed: list[dict[str, Any]] = []
    heldout: list[list[float]] = []
    for seed in seeds:
        first, second = split_by_class(train_labels.tolist(), names, share=_HOLDOUT, seed=seed)
        model: LogisticModel | None = None
        scores = []
        # The optimum is one for each C; the last one's is only a near place to start from.
        for c in values:
            model = fit(x[first], y[first], c, model, tolerance=_CHOICE_TOLERANCE)
            scores.append(_accuracy(model, x[second], y[second])[0])
            best = max(range(len(scores)), key=lambda place: scores[place])
            if c >= _PAST_THE_BEST * values[best]:
                break
        done += len(values) - len(scores)
        model = fit(x, y, values[best], model, tolerance=_TOLERANCE)
        top1, top5 = _accuracy(model, x_test, y_test)
        heldout.append(scores)
        by_seed.append(
            {
                "seed": seed,
                "top1": top1,
                "top5": top5 if num_classes > 5 else None,
                "chosen": {"C": values[best]},
                "heldout_top1": scores[best],
                "steps": model.steps,
                "converged": model.steps < max_steps,
            }
        )
    deviations = ["the held-out tenth is of each class; published: of all images"]
    if min(len(scores) for scores in heldout) < len(values):
        deviations.append(f"strengths C over {_PAST_THE_BEST:,} times the best so far were not tried; published: all")
    if values != list(C_GRID):
        deviations.append(f"{len(values)} strengths C; published: {len(C_GRID)}, from 1e-6 to 1e5")
    top1s = [entry["top1"] for entry in by_seed]
    top5s = [entry["top5"] for entry in by_seed if entry["top5"] is not None]
    return {
        "protocol": {
            "name": "logistic",
            "source": _SOURCE,
            "objective": "C x sum of cross-entropies + |weights|^2 / 2; the bias is free",
            "optimizer": "L-BFGS with strong Wolfe line search, float64",
            "grid": values,
            "max_steps": max_steps,
            "tolerance": _TOLERANCE,
            "tolerance_of_the_choice": _CHOICE_TOLERANCE,
            "holdout": _HOLDOUT,
        },
        "images": "the features of the test transform",
        "deviations": deviations,
        "top1": mean(top1s),
        "stderr": standard_error(top1s),
        "top5": mean(top5s) if top5s else None,
        "top5_stderr": standard_error(top5s) if top5s else None,
        "seeds": by_seed,
        "candidates": [
            {"C": c, "heldout_top1": [scores[place] for scores in heldout if place < len(scores)]}
            for place, c in enumerate(values)
        ],
    }


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    c: float,
    start: LogisticModel | None = None,
    max_steps: int = _MAX_STEPS,
    tolerance: float = _TOLERANCE,
) -> LogisticModel:
    """Return the multinomial logistic regression that minimises c * sum of cross-entropies + |weights|^2 / 2.

    Args:
        features: (N, F) float64.
        labels: (N,) int64.
        num_classes: K.
        c: Inverse strength, over 0.
        start: Where to begin; None is 0.
        max_steps: Most iterations of L-BFGS.
        tolerance: Of the largest entry of the mean objective's gradient, in axes where its curvature is about 1.

    Source: scikit-learn's LogisticRegression, the same objective.
    """
    # In the features' principal axes, each divided by the root of its variance and ridge, the objective is nearly
    # round: tens of iterations in place of thousands. A rotation leaves |weights|^2 as it is, and the bias is free:
    # the optimum is the same.
    center = features.mean(dim=0)
    x = features - center
    ridge = 1 / (c * len(x))
    variances, axes = torch.linalg.eigh(x.T @ x / len(x))
    scale = (variances.clamp(min=0) + ridge).rsqrt()[:, None]  # (F, 1)
    x = x @ (axes * scale.T)
    if start is None:
        v, bias = x.new_zeros(x.shape[1], num_classes), x.new_zeros(num_classes)
    else:
        v, bias = axes.T @ start.weights / scale, start.bias + center @ start.weights
    v.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [v, bias],
        max_iter=max_steps,
        max_eval=2 * max_steps,
        tolerance_grad=tolerance,
        tolerance_change=1e-15,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = F.cross_entropy(torch.addmm(bias, x, v), labels) + (scale * v).square().sum() * ridge / 2
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    fitted = axes @ (scale * v).detach()
    steps = int(optimizer.state[v]["n_iter"])
    return LogisticModel(fitted, bias.detach() - center @ fitted, steps)


def _accuracy(model: LogisticModel, features: Tensor, labels: Tensor) -> tuple[float, float]:
    ranks = torch.cat(
        [
            label_ranks(torch.addmm(model.bias, x.double(), model.weights), y)
            for x, y in zip(torch.split(features, _ROWS), torch.split(labels, _ROWS), strict=True)
        ]
    )
    return float((ranks < 1).double().mean()), float((ranks < 5).double().mean())
