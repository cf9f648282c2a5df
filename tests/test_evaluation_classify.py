"""What a classifier did, against scikit-learn and plain counting."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor, nn

from vit_rs.evaluation import Evaluation, evaluate, examine
from vit_rs.exceptions import CheckpointError


def batches(logits: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(logits.split(size), labels.split(size), strict=True))


def drawn(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are right more often than not, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = 2.0 * torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 2.0
    return logits, labels


@pytest.mark.parametrize(("count", "classes", "size"), [(500, 12, 64), (37, 6, 37), (64, 3, 1)])
def test_figures_are_scikit_learn_s(count: int, classes: int, size: int) -> None:
    logits, labels = drawn(count, classes)
    got = examine(nn.Identity(), batches(logits, labels, size))
    p, y, every = logits.double().softmax(1).numpy(), labels.numpy(), list(range(classes))
    assert got.count == count
    assert got.top1 == pytest.approx(metrics.accuracy_score(y, p.argmax(1)), abs=1e-12)
    if classes > 5:
        assert got.top5 == pytest.approx(metrics.top_k_accuracy_score(y, p, k=5, labels=every), abs=1e-12)
    else:
        assert got.top5 is None
    # Probabilities are float32: a few parts in 10^7 of each.
    assert got.loss == pytest.approx(metrics.log_loss(y, p, labels=every), rel=1e-6)
    assert got.brier == pytest.approx(((p - np.eye(classes)[y]) ** 2).sum(1).mean(), rel=1e-6)
    assert got.mean_confidence == pytest.approx(p.max(1).mean(), rel=1e-6)
    matrix = metrics.confusion_matrix(y, p.argmax(1), labels=every)
    np.testing.assert_array_equal(got.confusion(), matrix)
    for row, item in zip(matrix, got.per_class(), strict=True):
        assert (item["count"], item["correct"]) == (row.sum(), row[int(item["class"])])
    cheap = evaluate(nn.Identity(), batches(logits, labels, size))
    assert cheap == {
        "top1": got.top1,
        "loss": pytest.approx(got.loss, rel=1e-12),
        "count": count,
        **({} if got.top5 is None else {"top5": got.top5}),
    }


def test_calibration_error_by_the_paper_s_definition() -> None:
    logits, labels = drawn(2000, 10)
    got = examine(nn.Identity(), batches(logits, labels, 300))
    p = logits.softmax(1)
    confidence, right = p.amax(1).double().numpy(), (p.argmax(1) == labels).numpy()
    expected = 0.0
    for m, item in enumerate(got.reliability()):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        assert item.images == inside.sum()
        if inside.any():
            assert item.accuracy == pytest.approx(right[inside].mean(), abs=1e-12)
            assert item.confidence == pytest.approx(confidence[inside].mean(), rel=1e-6)
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert got.calibration_error == pytest.approx(expected, abs=1e-7)
    assert got.calibration_error > 0.01  # these logits are no probabilities


def test_a_bin_has_its_upper_edge_and_the_first_both() -> None:
    edges = np.linspace(0.0, 1.0, 16)
    zero = np.zeros(16)
    whole = np.zeros(16, np.int64)
    got = Evaluation(whole, whole, whole, zero, edges, zero, classes=("a", "b"))
    assert [item.images for item in got.reliability()] == [2] + [1] * 14


def test_certain_classifiers_are_in_the_last_bin() -> None:
    logits = 200.0 * torch.eye(4)
    right = examine(nn.Identity(), [(logits, torch.arange(4))])
    assert (right.calibration_error, right.brier, right.top1) == (0.0, 0.0, 1.0)
    assert [item.images for item in right.reliability()] == [0] * 14 + [4]
    wrong = examine(nn.Identity(), [(logits, torch.tensor([1, 0, 3, 2]))], classes=["a", "b", "c", "d"])
    assert (wrong.calibration_error, wrong.brier, wrong.top1) == (1.0, 2.0, 0.0)
    assert wrong.most_confused(2) == [("a", "b", 1), ("b", "a", 1)]


def test_of_equal_logits_the_first_class_wins() -> None:
    got = examine(nn.Identity(), [(torch.zeros(8, 8), torch.arange(8))])
    assert got.ranks.tolist() == list(range(8))
    assert got.predicted.tolist() == [0] * 8
    assert (got.top1, got.top5) == (1 / 8, 5 / 8)


def test_the_record_is_json_and_states_standard_errors() -> None:
    logits, labels = drawn(400, 7)
    labels = labels.clamp(max=5)  # no image of the last class
    record = json.loads(json.dumps(examine(nn.Identity(), batches(logits, labels, 64)).to_dict(), allow_nan=False))
    share = record["top1"]
    assert record["top1_standard_error"] == pytest.approx((share * (1 - share) / 400) ** 0.5)
    losses = nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    assert record["loss_standard_error"] == pytest.approx(losses.std().item() / 20, rel=1e-5)
    assert record["per_class"][6] == {
        "class": "6",
        "count": 0,
        "correct": 0,
        "top1": None,
        "top1_standard_error": None,
    }
    assert np.sum(record["confusion"]) == 400
    many = examine(nn.Identity(), [(torch.zeros(2, 3000), torch.tensor([0, 2999]))]).to_dict()
    assert many["confusion"] is None
    assert many["most_confused"] == [["2999", "0", 1]]


def test_one_image_has_no_standard_error_of_the_loss() -> None:
    record = examine(nn.Identity(), [(torch.zeros(1, 3), torch.tensor([1]))]).to_dict()
    assert record["loss_standard_error"] is None


def test_bfloat16_runs_the_model_and_not_the_softmax() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 9)
    loader = [(torch.randn(50, 16), torch.randint(0, 9, (50,)))]
    got = examine(model, loader, precision="bfloat16")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(loader[0][0])
    assert logits.dtype == torch.bfloat16
    expected = nn.functional.cross_entropy(logits.double(), loader[0][1], reduction="none")
    np.testing.assert_allclose(got.losses, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(got.losses, examine(model, loader).losses)
    with pytest.raises(ValueError, match="precision must be 'float32' or 'bfloat16', got 'half'"):
        examine(model, loader, precision="half")  # type: ignore[arg-type]


@pytest.mark.parametrize("measure", [evaluate, examine])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_an_error_that_names_the_image(measure, bad: float) -> None:
    logits, labels = drawn(20, 4)
    logits[7, 2] = bad
    logits[15] = bad
    with pytest.raises(CheckpointError, match="the logits of 2 of 20 images are NaN or infinite, the first is image 7"):
        measure(nn.Identity(), batches(logits, labels, 6))


@pytest.mark.parametrize("measure", [evaluate, examine])
@pytest.mark.parametrize("bad", [-1, 4])
def test_labels_without_a_logit_are_an_error(measure, bad: int) -> None:
    logits, labels = drawn(20, 4)
    labels[11] = bad
    with pytest.raises(ValueError, match=f"image 11 has the label {bad}: expected 0 to 3, one for each logit"):
        measure(nn.Identity(), batches(logits, labels, 6))


def test_names_progress_and_emptiness() -> None:
    loader = batches(*drawn(10, 4), 4)
    done: list[int] = []
    assert examine(nn.Identity(), loader, classes="abcd", progress=done.append).classes == ("a", "b", "c", "d")
    assert done == [4, 8, 10]
    with pytest.raises(ValueError, match="expected 4 names of classes, one for each logit, got 3"):
        examine(nn.Identity(), loader, classes="abc")
    with pytest.raises(ValueError, match="no images to evaluate"):
        examine(nn.Identity(), [])
    with pytest.raises(ValueError, match=r"expected logits \(2, classes\) for 2 labels, got \(2, 0\)"):
        examine(nn.Identity(), [(torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64))])
