"""Weighted nearest neighbours against a brute-force search in numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from vit_rs.evaluation import knn_classify
from vit_rs.evaluation.knn import knn_votes
from vit_rs.evaluation.labelled import label_ranks


def clusters(count: int, width: int, classes: int, seed: int, *, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


def brute_force(
    train: Tensor, labels: Tensor, test: Tensor, *, k: int, classes: int, temperature: float = 0.07
) -> tuple[np.ndarray, np.ndarray]:
    """Return neighbours (M, k) and votes (M, K), one image after another in float64."""
    x, q, y = train.double().numpy(), test.double().numpy(), labels.numpy()
    x = x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-12)
    neighbours, votes = [], []
    for row in q:
        similarity = (x * (row / max(np.sqrt((row**2).sum()), 1e-12))).sum(1)
        nearest = np.lexsort((np.arange(len(x)), -similarity))[:k]
        vote = np.zeros(classes)
        for i in nearest:
            vote[y[i]] += np.exp(similarity[i] / temperature)
        neighbours.append(nearest)
        votes.append(vote)
    return np.array(neighbours), np.array(votes)


@pytest.mark.parametrize("chunk", [None, 1, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbours_and_votes_are_those_of_brute_force(chunk: int | None, dtype: torch.dtype) -> None:
    (train, labels), (test, targets) = clusters(400, 24, 7, seed=1), clusters(45, 24, 7, seed=2)
    train, test = train.to(dtype), test.to(dtype)
    parts = list(knn_votes(train, labels, test, num_classes=7, k=(20, 5, 400), chunk=chunk))
    assert [part.start for part in parts] == list(range(0, 45, chunk or 45))
    got = knn_classify(train, labels, test, targets, k=(20, 5, 400), chunk=chunk)
    assert list(got) == [20, 5, 400]
    for k, result in got.items():
        neighbours, expected = brute_force(train, labels, test, k=k, classes=7)
        assert np.array_equal(torch.cat([part.neighbours for part in parts])[:, :k].numpy(), neighbours)
        votes = torch.cat([part.votes[k] for part in parts]).numpy()
        shares = expected / expected.sum(1, keepdims=True)
        np.testing.assert_allclose(votes / votes.sum(1, keepdims=True), shares, rtol=0, atol=1e-6)
        assert np.array_equal(votes.argmax(1), expected.argmax(1))
        order = np.argsort(-expected, axis=1, kind="stable")
        assert result["top1"] == pytest.approx((order[:, 0] == targets.numpy()).mean(), abs=1e-12)
        assert result["top5"] == pytest.approx((order[:, :5] == targets.numpy()[:, None]).any(1).mean(), abs=1e-12)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_what_float32_cannot_tell_apart_is_decided_by_float64(precision: str) -> None:
    # All within 1e-9 of each other, far under float32's step: its own order would be that of noise.
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 64, generator=generator, dtype=torch.float64)
    train = base + 1e-9 * torch.randn(300, 64, generator=generator, dtype=torch.float64)
    test = base + 0.1 * torch.randn(9, 64, generator=generator, dtype=torch.float64)
    labels = torch.arange(300) % 3
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        [part] = knn_votes(train, labels, test, num_classes=3, k=(10,))
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(part.neighbours.numpy(), brute_force(train, labels, test, k=10, classes=3)[0])


def test_equal_images_are_taken_by_their_index() -> None:
    point = torch.randn(1, 33, generator=torch.Generator().manual_seed(3))
    train = torch.cat([-point.expand(50, -1), point.expand(150, -1)])
    labels = torch.arange(200) % 4
    [part] = knn_votes(train, labels, point.expand(3, -1), num_classes=4, k=(6,))
    assert part.neighbours.tolist() == [[50, 51, 52, 53, 54, 55]] * 3
    assert part.votes[6].tolist() == [[1.0, 1.0, 2.0, 2.0]] * 3  # labels 2, 3, 0, 1, 2, 3
    assert knn_classify(train, labels, point, torch.tensor([2]), k=(6,))[6] == {"top1": 1.0, "top5": None}
    assert knn_classify(train, labels, point, torch.tensor([3]), k=(6,))[6] == {"top1": 0.0, "top5": None}


def test_a_collapsed_model_has_the_lowest_indices_everywhere() -> None:
    [part] = knn_votes(torch.ones(100, 4), torch.arange(100) % 2, torch.ones(5, 4), num_classes=2, k=(3,))
    assert part.neighbours.tolist() == [[0, 1, 2]] * 5


def test_planted_clusters_are_found_and_a_cold_temperature_is_one_neighbour() -> None:
    (train, labels), (test, targets) = (
        clusters(200, 16, 8, seed=1, spread=0.05),
        clusters(64, 16, 8, seed=2, spread=0.05),
    )
    perfect = {"top1": 1.0, "top5": 1.0}
    assert knn_classify(train, labels, test, targets, k=(1, 20)) == {1: perfect, 20: perfect}
    (train, labels), (test, targets) = clusters(200, 16, 8, seed=1), clusters(64, 16, 8, seed=2)
    got = knn_classify(train, labels, test, targets, k=(1, 50), temperature=1e-7)  # DINO's weight would overflow
    assert got[50]["top1"] == got[1]["top1"]


def test_ranks_are_those_of_a_stable_sort() -> None:
    scores = torch.randint(0, 4, (50, 9), generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(50) % 9
    order = np.argsort(-scores.numpy(), axis=1, kind="stable")
    assert label_ranks(scores, labels).tolist() == [list(row).index(y) for row, y in zip(order, labels, strict=True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": ()}, r"k must be positive numbers of neighbours, got \(\)"),
        ({"k": (3, 0)}, r"k must be positive numbers of neighbours, got \(3, 0\)"),
        ({"k": (5, 11)}, "k = 11 neighbours were asked for, but there are only 10 training images"),
        ({"temperature": 0.0}, r"temperature must be finite and over 0, got 0\.0"),
        ({"temperature": float("inf")}, "temperature must be finite and over 0, got inf"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"test_labels": torch.tensor([0, 1, 2, 0])}, "class 2 has 0 training images, at least 1 is needed"),
        ({"train_features": torch.full((10, 4), torch.nan)}, "train features are not finite: .* number 0"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, object], message: str) -> None:
    arguments = {
        "train_features": torch.randn(10, 4),
        "train_labels": torch.arange(10) % 2,
        "test_features": torch.randn(4, 4),
        "test_labels": torch.tensor([0, 1, 1, 0]),
        "k": (3,),
    }
    with pytest.raises(ValueError, match=message):
        knn_classify(**{**arguments, **changes})
