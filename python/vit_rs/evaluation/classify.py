"""How well a classifier does: accuracy, cross-entropy, what it confuses, and whether its confidence is true.

Letters: B batch, N images, K classes.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_rs.evaluation.labelled import label_ranks
from vit_rs.exceptions import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["Evaluation", "Precision", "ReliabilityBin", "autocasting", "evaluate", "evaluating", "examine"]

Precision = Literal["float32", "bfloat16"]

_TOP = 5
# Guo et al.'s number of bins, arXiv 1706.04599, table 1.
_BINS = 15
# The table of confusions has K x K entries: of so many classes 32 MB.
_MOST_CONFUSED = 2048


class ReliabilityBin(NamedTuple):
    """The images whose largest probability is in (low, high]; means of none are None."""

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Evaluation:
    """What a classifier did with N images, as counted; everything else is computed from it.

    Attributes:
        labels: (N,) int64, the true classes.
        predicted: (N,) int64, the class of the largest logit; the first of equals.
        ranks: (N,) int64, the place of the true class among the logits, 0 is the first; of equals, lower classes
            stand first.
        losses: (N,) float64, cross-entropy in nats.
        confidences: (N,) float64, largest probability.
        brier_scores: (N,) float64, sum over the classes of (probability - truth)^2, 0..2.
        classes: the K classes' names.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    ranks: NDArray[np.int64]
    losses: NDArray[np.float64]
    confidences: NDArray[np.float64]
    brier_scores: NDArray[np.float64]
    classes: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def top1(self) -> float:
        """Share of the images whose largest logit is their class's, 0..1."""
        return float((self.ranks == 0).mean())

    @property
    def top5(self) -> float | None:
        """Share of the images whose class is among the five largest logits; None of five or fewer classes."""
        return float((self.ranks < _TOP).mean()) if len(self.classes) > _TOP else None

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats."""
        return float(self.losses.mean())

    @property
    def loss_standard_error(self) -> float | None:
        """Standard error of the loss; None of one image."""
        return float(self.losses.std(ddof=1) / math.sqrt(self.count)) if self.count > 1 else None

    @property
    def mean_confidence(self) -> float:
        """Mean of the largest probabilities."""
        return float(self.confidences.mean())

    @property
    def brier(self) -> float:
        """Mean Brier score over all classes, 0 (certain and right) to 2 (certain and wrong).

        Source: G. W. Brier, Monthly Weather Review 78 (1950), equation 2. (scikit-learn halves it for two classes.)
        """
        return float(self.brier_scores.mean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: the mean of |accuracy - confidence| over 15 bins, weighted by their counts.

        Source: arXiv 1706.04599, equation 3.
        """
        gap = 0.0
        for item in self.reliability():
            if item.accuracy is not None and item.confidence is not None:
                gap += item.images * abs(item.accuracy - item.confidence)
        return gap / self.count

    def reliability(self) -> list[ReliabilityBin]:
        """Return 15 bins of equal width of the largest probability: what was claimed, and what was true."""
        edges = np.linspace(0.0, 1.0, _BINS + 1)
        place = np.clip(np.digitize(self.confidences, edges, right=True) - 1, 0, _BINS - 1)
        counts = np.bincount(place, minlength=_BINS)
        confidence = np.bincount(place, self.confidences, _BINS)
        right = np.bincount(place, self.ranks == 0, _BINS)
        return [
            ReliabilityBin(
                float(edges[i]),
                float(edges[i + 1]),
                int(n),
                float(confidence[i] / n) if n else None,
                float(right[i] / n) if n else None,
            )
            for i, n in enumerate(counts)
        ]

    def confusion(self) -> NDArray[np.int64]:
        """Return (K, K): how many images of class i (row) were taken for class j (column)."""
        K = len(self.classes)
        return np.bincount(self.labels * K + self.predicted, minlength=K * K).reshape(K, K)

    def most_confused(self, count: int = 10) -> list[tuple[str, str, int]]:
        """Return (class, taken for, how often) of the most frequent errors, the largest first."""
        wrong = self.labels != self.predicted
        K = len(self.classes)
        pairs, counts = np.unique(self.labels[wrong] * K + self.predicted[wrong], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:count]
        return [(self.classes[pairs[i] // K], self.classes[pairs[i] % K], int(counts[i])) for i in order]

    def per_class(self) -> list[dict[str, Any]]:
        """Return each class's name, count, correct, and top1 with its standard error (None without an image)."""
        counts = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        right = np.bincount(self.labels, self.ranks == 0, len(self.classes)).astype(int).tolist()
        return [
            {
                "class": name,
                "count": count,
                "correct": correct,
                "top1": correct / count if count else None,
                "top1_standard_error": _binomial_error(correct / count, count) if count else None,
            }
            for name, count, correct in zip(self.classes, counts, right, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as a dictionary that JSON can hold; the table of confusions of up to 2048 classes.

        Standard errors are those of a binomial, sqrt(p (1 - p) / N); the loss's is that of a mean.
        """
        top5 = self.top5
        return {
            "count": self.count,
            "top1": self.top1,
            "top1_standard_error": _binomial_error(self.top1, self.count),
            "top5": top5,
            "top5_standard_error": None if top5 is None else _binomial_error(top5, self.count),
            "loss": self.loss,
            "loss_standard_error": self.loss_standard_error,
            "mean_confidence": self.mean_confidence,
            "calibration_error": self.calibration_error,
            "brier": self.brier,
            "reliability": [item._asdict() for item in self.reliability()],
            "per_class": self.per_class(),
            "most_confused": [list(item) for item in self.most_confused()],
            "confusion": self.confusion().tolist() if len(self.classes) <= _MOST_CONFUSED else None,
        }


def evaluate(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], *, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Return accuracy and mean cross-entropy over all images that a loader yields.

    Every image counts once, however the batches are cut. In a distributed run the figures are those of this
    process's own loader.

    Args:
        model: Images (B, ...) -> logits (B, K), already on `device`. It runs in evaluation mode; afterwards
            every module is in the mode that it was in.
        loader: Batches (images (B, ...), labels (B,) int64 in 0..K-1).
        device: Where to put the batches.

    Returns:
        "top1": fraction 0..1 of the images whose largest logit is their label's; "top5": of those whose label's is
        among the five largest, where there are more than five classes; "loss": mean cross-entropy in nats; "count":
        number of images.

    Raises:
        ValueError: The loader yields nothing, a batch's logits are not (B, K), or a label is not in 0..K-1.
        CheckpointError: A logit is NaN or infinite; the message says of which image.
    """
    K, columns = _columns(model, loader, device=device, scores=_ranked)
    ranks, losses = columns["ranks"], columns["losses"]
    result = {
        "top1": int((ranks == 0).sum()) / len(ranks),
        "loss": losses.double().mean().item(),
        "count": len(ranks),
    }
    return result | ({"top5": int((ranks < _TOP).sum()) / len(ranks)} if K > _TOP else {})


def examine(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    progress: Callable[[int], object] | None = None,
    image_name: Callable[[int], str] | None = None,
) -> Evaluation:
    """Return what a classifier does with all images that a loader yields.

    Batches stream: of each image a few numbers are kept, not its logits.

    Args:
        model: as in `evaluate`.
        loader: as there.
        classes: the K classes' names; None numbers them.
        device: where to put the batches.
        precision: "bfloat16" runs the model under autocast; probabilities are computed in float32.
        progress: called with the number of images done after each batch.
        image_name: what to call the i-th image of the loader in an error; None is its number.

    Raises:
        ValueError, CheckpointError: as `evaluate`; or there are not as many names as logits.
    """
    K, columns = _columns(
        model, loader, device=device, scores=_calibrated, precision=precision, progress=progress, image_name=image_name
    )
    names = tuple(str(i) for i in range(K)) if classes is None else tuple(classes)
    if len(names) != K:
        raise ValueError(f"expected {K} names of classes, one for each logit, got {len(names)}")
    whole = {name: columns[name].long().numpy() for name in ("labels", "predicted", "ranks")}
    real = {name: columns[name].double().numpy() for name in ("losses", "confidences", "brier_scores")}
    return Evaluation(**whole, **real, classes=names)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation and inference mode; give back each module's own mode at the end."""
    # Module by module: `model.train()` would also wake the parts that their owner froze in evaluation mode.
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def autocasting(device: str | torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Return the context that a model runs in: autocast to bfloat16, or nothing.

    Raises:
        ValueError: The precision is neither.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be 'float32' or 'bfloat16', got {precision!r}")
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def _ranked(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return ranks and losses, (B,) each, of logits (B, K) float32 and labels (B,) in 0..K-1."""
    return {"ranks": label_ranks(logits, labels), "losses": F.cross_entropy(logits, labels, reduction="none")}


def _calibrated(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return `_ranked`'s, and predicted, confidences and Brier scores, (B,) each."""
    probabilities = logits.softmax(dim=1)
    error = probabilities.scatter_add(1, labels[:, None], torch.full_like(probabilities[:, :1], -1.0))
    return {
        **_ranked(logits, labels),
        "predicted": logits.argmax(dim=1),
        "confidences": probabilities.amax(dim=1),
        "brier_scores": error.square().sum(dim=1),
    }


def _columns(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    device: str | torch.device,
    scores: Callable[[Tensor, Tensor], dict[str, Tensor]],
    precision: Precision = "float32",
    progress: Callable[[int], object] | None = None,
    image_name: Callable[[int], str] | None = None,
) -> tuple[int, dict[str, Tensor]]:
    """Return K, and of all images in order their labels and scores, on the CPU; checked."""
    batches: list[dict[str, Tensor]] = []
    K = done = 0
    with evaluating(model), autocasting(device, precision):
        for images, labels in loader:
            targets = labels.to(device, non_blocking=True)
            logits = model(images.to(device, non_blocking=True))  # (B, K)
            if logits.ndim != 2 or logits.shape[0] != targets.shape[0] or not logits.shape[1]:
                raise ValueError(
                    f"expected logits ({targets.shape[0]}, classes) for {targets.shape[0]} labels, "
                    f"got {tuple(logits.shape)}"
                )
            K = logits.shape[1]
            # Kept on the device, looked at at the end: no wait for the device within the loop. So a label without a
            # logit must do no harm until then.
            with torch.autocast(torch.device(device).type, enabled=False):
                found = scores(logits.float(), targets.clamp(0, K - 1))
            batches.append({**found, "labels": targets, "finite": logits.isfinite().all(dim=1)})
            done += len(labels)
            if progress is not None:
                progress(done)
    if not done:
        raise ValueError("the loader yielded no images to evaluate")
    columns = {name: torch.cat([batch[name] for batch in batches]).cpu() for name in batches[0]}
    name_of = image_name or (lambda index: f"image {index}")
    if not columns["finite"].all():
        first = int(columns["finite"].logical_not().nonzero()[0])
        count = int(columns["finite"].logical_not().sum())
        raise CheckpointError(
            f"the logits of {count} of {done} images are NaN or infinite, the first is {name_of(first)}"
        )
    outside = ((columns["labels"] < 0) | (columns["labels"] >= K)).nonzero().flatten().tolist()
    if outside:
        label = int(columns["labels"][outside[0]])
        raise ValueError(f"{name_of(outside[0])} has the label {label}: expected 0 to {K - 1}, one for each logit")
    return K, columns


def _binomial_error(share: float, count: int) -> float:
    """Return the standard error of a share of independent images."""
    return math.sqrt(share * (1.0 - share) / count)
