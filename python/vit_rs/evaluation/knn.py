"""Weighted nearest neighbours on frozen features: DINO's k-NN protocol.

Letters: N training images, M test images, B of them at once, D width, K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch
import torch.nn.functional as F

from vit_rs.evaluation.labelled import check_pair, label_ranks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

__all__ = ["NEIGHBOURS", "PROTOCOL", "KnnResult", "Votes", "knn_classify", "knn_votes"]

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07

# What stands in a record beside k and temperature.
PROTOCOL = {
    "source": "arXiv 2104.14294; facebookresearch/dino, eval_knn.py",
    "similarity": "cosine of L2-normalised features; candidates in float32, order in float64, equal ones by index",
    "weight": "exp(similarity / temperature)",
}

# Elements of the largest table that is made at once, 64 MiB in float32.
_TABLE = 2**24
# Candidates beyond the k nearest of float32 that float64 puts into order.
_SPARE = 32


class KnnResult(TypedDict):
    """Accuracies 0..1 at one number of neighbours; top5 is there where there are more than 5 classes."""

    top1: float
    top5: float | None


class Votes(NamedTuple):
    """What the neighbours of some test images say."""

    start: int  # number of the first of these images
    neighbours: Tensor  # (B, max k) int64, nearest first
    votes: dict[int, Tensor]  # by k: (B, K) float64


def knn_classify(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    chunk: int | None = None,
) -> dict[int, KnnResult]:
    """Return the accuracy of a vote of the k nearest training images, weighted by exp(cosine / temperature).

    It is computed where `train_features` is, and does not depend on `chunk`.

    Source: facebookresearch/dino, eval_knn.py (arXiv 2104.14294), whose top-5 is that of the
    classes in order of their votes. There the order of equal similarities is left to the device; here the
    lower index comes first, of images and of classes.

    Args:
        train_features: (N, D) floating point, for example of `extract_features`; L2-normalised here.
        train_labels: (N,) integers 0..K-1.
        test_features: (M, D).
        test_labels: (M,) integers 0..K-1.
        k: Numbers of neighbours, at most N; all are read from one pass.
        temperature: Over 0.
        chunk: Test images at once; None is what fits about half a gigabyte.

    Returns:
        By number of neighbours, fractions 0..1.

    Raises:
        ValueError: Shapes do not fit, a feature is not finite, a label is negative, a class has no training
            image, there is only one class, or an argument is out of range.
    """
    num_classes = check_pair(train_features, train_labels, test_features, test_labels)
    ranks: dict[int, list[Tensor]] = {number: [] for number in k}
    for part in knn_votes(
        train_features,
        train_labels,
        test_features,
        num_classes=num_classes,
        k=k,
        temperature=temperature,
        chunk=chunk,
    ):
        for number, votes in part.votes.items():
            labels = test_labels[part.start : part.start + len(votes)].to(votes.device)
            ranks[number].append(label_ranks(votes, labels))
    results: dict[int, KnnResult] = {}
    for number, parts in ranks.items():
        places = torch.cat(parts)
        top5 = float((places < 5).double().mean()) if num_classes > 5 else None
        results[number] = {"top1": float((places == 0).double().mean()), "top5": top5}
    return results


def knn_votes(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    num_classes: int,
    k: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    chunk: int | None = None,
) -> Iterator[Votes]:
    """Yield the neighbours and votes of the test images, a chunk of them at a time.

    The products are of float32; those that come near the k-th are computed again in float64, which decides:
    neighbours are those of a search in float64 throughout, whatever the chunk and the device.

    A vote is exp((s - s1) / temperature), s being the cosine similarity and s1 that of the image's nearest
    neighbour: DINO's weight up to a factor for each image, and safe at every temperature.

    Args:
        train_features: (N, D) floating point, finite.
        train_labels: (N,) integers 0..K-1.
        test_features: (M, D).
        num_classes: K.
        k: Numbers of neighbours, at most N.
        temperature: Over 0.
        chunk: Test images at once; None is what fits about half a gigabyte.

    Raises:
        ValueError: An argument is out of range.
    """
    count, width = train_features.shape
    if not k or min(k) < 1:
        raise ValueError(f"k must be positive numbers of neighbours, got {tuple(k)}")
    if max(k) > count:
        raise ValueError(f"k = {max(k)} neighbours were asked for, but there are only {count} training images")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be finite and over 0, got {temperature}")
    if chunk is None:
        chunk = max(1, _TABLE // max(count, (max(k) + _SPARE) * width, num_classes))
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    device = train_features.device
    single = F.normalize(train_features.detach().float(), dim=1)
    labels = train_labels.to(device)
    for start in range(0, len(test_features), chunk):
        queries = test_features[start : start + chunk].detach().to(device)
        similarities, neighbours = _nearest(train_features.detach(), single, queries, max(k))
        weights = torch.exp((similarities - similarities[:, :1]) / temperature)  # (B, k)
        classes = labels[neighbours]  # (B, k)
        votes, counted = weights.new_zeros(len(queries), num_classes), 0
        by_number: dict[int, Tensor] = {}
        for number in sorted(set(k)):
            votes = votes.scatter_add(1, classes[:, counted:number], weights[:, counted:number])
            by_number[number], counted = votes, number
        yield Votes(start, neighbours, {number: by_number[number] for number in k})


def _nearest(train: Tensor, single: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return similarities (B, k) float64 and indices (B, k) of the nearest training images, nearest first.

    Args:
        train: (N, D) as they came.
        single: (N, D) float32, normalised.
        queries: (B, D).
        k: At most N.
    """
    products = F.normalize(queries.float(), dim=1) @ single.T  # (B, N)
    candidates = min(len(train), k + _SPARE)
    rough, indices = products.topk(candidates, dim=1)  # (B, candidates)
    # By index first: the stable sort by similarity then keeps equal ones in that order.
    indices = indices.sort(dim=1).values
    exact = _similarities(train, queries, indices)
    order = exact.sort(dim=1, descending=True, stable=True)
    similarities, neighbours = order.values[:, :k], indices.gather(1, order.indices[:, :k])
    if candidates < len(train):
        # An image that is no candidate can be nearer than the k-th only where the last candidate is as near as that.
        floor = similarities[:, -1] - _float32_error(queries.shape[1])  # (B,)
        for row in (rough[:, -1].double() >= floor).nonzero().flatten().tolist():
            close = (products[row].double() >= floor[row]).nonzero().T  # (1, C), by index
            parts = torch.split(close, max(1, _TABLE // queries.shape[1]), dim=1)
            exact = torch.cat([_similarities(train, queries[row : row + 1], part) for part in parts], dim=1)
            order = exact.sort(dim=1, descending=True, stable=True)
            similarities[row], neighbours[row] = order.values[0, :k], close[0, order.indices[0, :k]]
    return similarities, neighbours


def _float32_error(width: int) -> float:
    """Return a bound of the error of a cosine in float32: of two norms and a product, and of inputs made coarser."""
    coarse = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}  # TF32 and bfloat16 inputs
    return (width + 8) * torch.finfo(torch.float32).eps + coarse[torch.get_float32_matmul_precision()]


def _similarities(train: Tensor, queries: Tensor, indices: Tensor) -> Tensor:
    """Return the cosines (B, C) float64 of queries (B, D) and the training images (N, D) of indices (B, C)."""
    rows = max(1, _TABLE // (indices.shape[1] * queries.shape[1]))
    parts = []
    for start in range(0, len(queries), rows):
        near = F.normalize(train[indices[start : start + rows]].double(), dim=2)  # (rows, C, D)
        own = F.normalize(queries[start : start + rows].double(), dim=1)[:, None]  # (rows, 1, D)
        # Not a matrix product, whose rounding may depend on the place: equal images are to be equally near.
        parts.append((near * own).sum(dim=2))
    return torch.cat(parts)
