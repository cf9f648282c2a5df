"""Logistic regression on frozen features: DINOv2's other linear protocol, without a learning rate to tune.

Letters: N images, F features of an image, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

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
# Of the objective's value: what its sum is known to. The shortest step along a direction that is tried.
_ROUNDING = 1e-14
_SHORTEST = 1e-9


class LogisticModel(NamedTuple):
    """A fitted classifier: logits are x @ weights + bias."""

    weights: Tensor  # (F, K) float64
    bias: Tensor  # (K,) float64
    steps: int  # of conjugate gradients
    converged: bool  # whether the gradient is as small as was asked for


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
        max_steps: Most steps of conjugate gradients for each fit.
        device: Where it is computed, in float64 (what leads the way to the optimum in float32).
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

    def fit(problem: _Problem, c: float, start: LogisticModel | None, *, tolerance: float) -> LogisticModel:
        nonlocal done
        model = problem.fit(c, start, max_steps=max_steps, tolerance=tolerance)
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
        problem = _Problem(x[first], y[first], num_classes)
        # The optimum is one for each C; the last one's is only a near place to start from.
        for c in values:
            model = fit(problem, c, model, tolerance=_CHOICE_TOLERANCE)
            scores.append(_accuracy(model, x[second], y[second])[0])
            best = max(range(len(scores)), key=lambda place: scores[place])
            if c >= _PAST_THE_BEST * values[best]:
                break
        done += len(values) - len(scores)
        del problem  # its tables go before the next ones come
        problem = _Problem(x, y, num_classes)
        model = fit(problem, values[best], model, tolerance=_TOLERANCE)
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
                "converged": model.converged,
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
            "optimizer": "Newton's method by conjugate gradients, float64",
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
        max_steps: Most steps of conjugate gradients, each a product with the Hessian.
        tolerance: Of the largest entry of the mean objective's gradient, in axes where its curvature is about 1; times
            the root of the objective's mean where that is under 1.

    Source: scikit-learn's LogisticRegression, the same objective.
    """
    return _Problem(features, labels, num_classes).fit(c, start, max_steps=max_steps, tolerance=tolerance)


class _Problem:
    """Images and labels as every strength sees them: in the principal axes of the centred features, classes first.

    A rotation leaves |weights|^2 as it is, and the bias is free: the optimum is the same. Along an axis the mean
    objective's curvature is about its variance times a class's mean p (1 - p), plus the ridge: to divide by that is all
    that conjugate gradients need to be quick. Products (K, F) x (F, N) are faster than (N, F) x (F, K) where classes
    are few, and a softmax over the first dimension of (K, N) many times faster than over the last of (N, K).
    """

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        self.labels, self.num_classes = labels[None], num_classes  # (1, N)
        self.center = features.mean(dim=0)
        x = features - self.center
        variances, self.axes = torch.linalg.eigh(x.T @ x / len(x))
        self.variances = variances.clamp(min=0)  # (F,)
        self.x = self.axes.T @ x.T  # (F, N)
        del x  # tables of this size are what memory goes to, as those of (K, N) below
        # Curvature only leads the way: float32 will do, in units in which no feature is too large or too small for it.
        floor = self.variances.max() * torch.finfo(variances.dtype).eps
        self.units = torch.where(self.variances > floor, self.variances, 1.0).sqrt()  # (F,)
        self.small = torch.empty_like(self.x, dtype=torch.float32)  # (F, N)
        torch.div(self.x, self.units[:, None], out=self.small)

    def fit(self, c: float, start: LogisticModel | None, *, max_steps: int, tolerance: float) -> LogisticModel:
        """Return the optimum, by Newton's method; arguments as in `fit_logistic`."""
        width, images = self.x.shape
        ridge = 1 / (c * images)
        weights, bias = self.x.new_zeros(self.num_classes, width), self.x.new_zeros(self.num_classes, 1)
        if start is not None:
            weights, bias = start.weights.T @ self.axes, (start.bias + self.center @ start.weights)[:, None]
        point = _without_mean(torch.cat([weights, bias], dim=1))  # (K, F + 1)
        penalty = self.x.new_full((width + 1,), ridge)
        penalty[-1] = 0
        variances = torch.cat([self.variances, self.variances.new_ones(1)])
        units = (variances + penalty).rsqrt()  # in which the curvature is of the order of 1
        logits = self._logits(point)  # (K, N)
        value, steps = self._value(logits, point, penalty), 0
        while True:
            p = logits.softmax(dim=0)  # (K, N)
            spread = p.square().neg_().add_(p).mean(dim=1, keepdim=True)  # of p (1 - p): (K, 1)
            small = p.float()
            residual = p.scatter_add_(0, self.labels, -torch.ones_like(p[:1]))
            gradient = torch.cat([residual @ self.x.T, residual.sum(dim=1, keepdim=True)], dim=1) / images
            gradient = _without_mean(gradient) + penalty * point
            largest = float((gradient * units).abs().max())
            # Where classes are told apart, curvature falls with the value: the gradient must fall with its root.
            enough = tolerance * min(1.0, value) ** 0.5
            if largest <= enough or steps >= max_steps:
                break
            direction, products = _newton_direction(
                lambda at, small=small: self._curvature(small, at) + penalty * at,  # type: ignore[misc]
                gradient,
                1 / (spread * variances + penalty + torch.finfo(p.dtype).tiny),
                tolerance=min(0.1, largest**0.5),
                max_steps=max_steps - steps,
            )
            steps += products
            del p, small, residual
            # Along a direction logits are linear: a trial costs no product with the features.
            along, slope, t = self._logits(direction), float((gradient * direction).sum()), 1.0
            while t > _SHORTEST:
                found = self._value(torch.add(logits, along, alpha=t), point + t * direction, penalty)
                if found <= value + 1e-4 * t * slope + _ROUNDING * abs(value):
                    break
                t /= 2
            else:
                break
            point, value = point + t * direction, found
            del along, logits
            logits = self._logits(point)
        weights, bias = (self.axes @ point[:, :-1].T), point[:, -1]
        return LogisticModel(weights, bias - self.center @ weights, steps, largest <= enough)

    def _logits(self, point: Tensor) -> Tensor:
        return torch.addmm(point[:, -1:], point[:, :-1], self.x)  # (K, N)

    def _value(self, logits: Tensor, point: Tensor, penalty: Tensor) -> float:
        losses = logits.logsumexp(dim=0) - logits.gather(0, self.labels)[0]  # (N,)
        return float(losses.mean() + (penalty * point.square()).sum() / 2)

    def _curvature(self, p: Tensor, at: Tensor) -> Tensor:
        """Return the product of the mean cross-entropy's Hessian, at probabilities p (K, N), with (K, F + 1)."""
        small = at.float()
        u = torch.addmm(small[:, -1:], (at[:, :-1] * self.units).float(), self.small)  # (K, N)
        u = p * (u - (p * u).sum(dim=0))
        weights = (u @ self.small.T).double() * self.units
        return _without_mean(torch.cat([weights, u.sum(dim=1, keepdim=True).double()], dim=1)) / p.shape[1]


def _without_mean(values: Tensor) -> Tensor:
    """Return values (K, ...) less their mean over the classes.

    Logits that grow by the same in all classes change nothing: the optimum is where the ridge makes the mean 0, and no
    rounding may lead away into a direction in which the cross-entropy is flat.
    """
    return values - values.mean(dim=0)


def _newton_direction(
    product: Callable[[Tensor], Tensor], gradient: Tensor, inverse: Tensor, *, tolerance: float, max_steps: int
) -> tuple[Tensor, int]:
    """Return minus the inverse Hessian times the gradient, roughly, by conjugate gradients; and their steps.

    Args:
        product: With the Hessian.
        gradient: Of any shape.
        inverse: Of the Hessian's diagonal, roughly.
        tolerance: What may be left of the gradient.
        max_steps: At least 1.
    """
    direction, left = torch.zeros_like(gradient), -gradient
    scaled = _without_mean(inverse * left)
    along, size = scaled, float((left * scaled).sum())
    enough, step = tolerance**2 * size, 0
    while step < max_steps:
        step += 1
        bent = product(along)
        bend = float((along * bent).sum())
        if bend <= 0:  # flat, as far as float32 tells
            break
        direction = direction + size / bend * along
        left = left - size / bend * bent
        scaled = _without_mean(inverse * left)
        size, before = float((left * scaled).sum()), size
        if size <= enough:
            break
        along = scaled + size / before * along
    return (direction if step > 1 or bend > 0 else along), step


def _accuracy(model: LogisticModel, features: Tensor, labels: Tensor) -> tuple[float, float]:
    ranks = torch.cat(
        [
            label_ranks(torch.addmm(model.bias, x.double(), model.weights), y)
            for x, y in zip(torch.split(features, _ROWS), torch.split(labels, _ROWS), strict=True)
        ]
    )
    return float((ranks < 1).double().mean()), float((ranks < 5).double().mean())
