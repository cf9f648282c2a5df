"""Evaluation: the numbers of a hand count, and the few-shot protocol against independent solvers."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from vit_rs.evaluation import evaluate, extract_features, fewshot_lsr, fit_lsr
from vit_rs.evaluation.fewshot import L2_GRID
from vit_rs.models import VisionTransformer, ViTConfig


def batches(images: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(size), labels.split(size), strict=True))


def tiny_model() -> VisionTransformer:
    torch.manual_seed(0)
    config = ViTConfig(
        img_size=8, patch_size=4, num_classes=5, embed_dim=12, depth=2, num_heads=3, proj_drop_rate=0.5, drop_rate=0.5
    )
    model = VisionTransformer(config)
    nn.init.normal_(model.head.weight)
    return model


# Classification


@pytest.mark.parametrize("size", [1, 4, 7, 23, 100])
def test_evaluate_counts_every_image_once(size: int) -> None:
    torch.manual_seed(1)
    model, images, labels = tiny_model(), torch.randn(23, 3, 8, 8), torch.randint(0, 5, (23,))
    got = evaluate(model, batches(images, labels, size))
    with torch.no_grad():
        logits = model.eval()(images)
    assert got["count"] == 23
    assert got["top1"] == (logits.argmax(1) == labels).sum().item() / 23
    assert got["loss"] == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-6)


def test_perfect_and_hopeless_classifiers() -> None:
    labels = torch.arange(4).repeat(3)
    logits = 20.0 * F.one_hot(labels).float()
    assert evaluate(nn.Identity(), batches(logits, labels, 5))["top1"] == 1.0
    assert evaluate(nn.Identity(), batches(logits, (labels + 1) % 4, 5))["top1"] == 0.0
    even = evaluate(nn.Identity(), batches(torch.zeros(12, 4), labels, 5))
    assert even["loss"] == pytest.approx(np.log(4))


def test_half_precision_logits_are_summed_in_float() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    logits = torch.tensor([[0.0, 8.0]]).expand(1000, 2).bfloat16()
    assert evaluate(nn.Identity(), batches(logits, labels, 1000))["loss"] == pytest.approx(8.000335, rel=1e-6)


@pytest.mark.parametrize("measure", [evaluate, extract_features])
def test_every_module_gets_its_own_mode_back(measure: object) -> None:
    model = tiny_model().train()
    model.blocks[0].eval()  # a frozen part
    before = [module.training for module in model.modules()]
    loader = batches(torch.randn(3, 3, 8, 8), torch.zeros(3, dtype=torch.int64), 2)
    measure(model, loader)
    assert [module.training for module in model.modules()] == before

    def failing() -> Iterator[tuple[Tensor, Tensor]]:
        yield loader[0]
        assert not model.training
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        measure(model, failing())
    assert [module.training for module in model.modules()] == before
    assert not torch.is_inference_mode_enabled()


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images to evaluate"):
        evaluate(tiny_model(), [])
    with pytest.raises(ValueError, match="no images to take features from"):
        extract_features(tiny_model(), [])
    with pytest.raises(ValueError, match=r"expected logits \(2, classes\) for 2 labels, got \(2, 3, 4\)"):
        evaluate(nn.Identity(), [(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))])


# Features


def test_features_are_the_pre_logits_in_order() -> None:
    torch.manual_seed(2)
    model, images, labels = tiny_model(), torch.randn(9, 3, 8, 8), torch.arange(9) % 5
    features, targets = extract_features(model, batches(images, labels, 4))
    assert (features.shape, features.dtype, targets.dtype) == ((9, 12), torch.float32, torch.int64)
    assert torch.equal(targets, labels)
    with torch.no_grad():
        logits = model.eval()(images)
        torch.testing.assert_close(model.head(features), logits, rtol=1e-5, atol=1e-5)
    probe = nn.Linear(12, 5)  # ordinary tensors: a probe can train on them
    F.cross_entropy(probe(features), targets).backward()
    assert probe.weight.grad is not None


def test_features_need_a_backbone() -> None:
    with pytest.raises(TypeError, match="Linear has no forward_features and forward_head"):
        extract_features(nn.Linear(2, 2), [])


# Few-shot regression


def clusters(count: int, width: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    return centres[labels] + 1.5 * torch.randn(count, width, generator=generator), labels


def whitened(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return np.concatenate([(x - mean) / std, np.full((len(x), 1), 100.0)], axis=1)


@pytest.mark.parametrize(("count", "width"), [(10, 40), (60, 40), (41, 40), (40, 40), (300, 7)])
@pytest.mark.parametrize("l2", [1024.0, 0.5])
def test_the_weights_are_those_of_a_direct_solve(count: int, width: int, l2: float) -> None:
    features, labels = clusters(count, width, 5, seed=0)
    x, y = features.double().numpy(), labels.numpy()
    fitted = fit_lsr(x, y, 5)
    mean, std, weights = fitted.mean, fitted.std, fitted.weights(l2)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, x.std(0, ddof=0) + 1e-5, rtol=1e-12)
    design, targets = whitened(x, mean, std), np.where(y[:, None] == np.arange(5), 1.0, -1.0)
    direct = np.linalg.solve(design.T @ design + l2 * np.eye(width + 1), design.T @ targets)
    np.testing.assert_allclose(weights, direct, rtol=1e-7, atol=1e-9)
    ridge = Ridge(alpha=l2, fit_intercept=False, solver="svd").fit(design, targets)
    np.testing.assert_allclose(weights, ridge.coef_.T, rtol=1e-7, atol=1e-9)


def test_accuracy_follows_the_protocol_step_by_step() -> None:
    (train, train_labels), (test, test_labels) = clusters(90, 16, 6, seed=1), clusters(120, 16, 6, seed=2)
    shuffle = torch.randperm(90, generator=torch.Generator().manual_seed(5))
    train, train_labels = train[shuffle], train_labels[shuffle]
    got = fewshot_lsr(train, train_labels, test, test_labels, shots=(1, 5), seeds=(0, 3))
    for k in (1, 5):
        accuracies = []
        for seed in (0, 3):
            rng = np.random.default_rng(seed)
            chosen = []
            for label in range(6):
                chosen += list(rng.permutation(np.where(train_labels.numpy() == label)[0])[:k])
            x, y = train[chosen].double().numpy(), train_labels[chosen].numpy()
            mean, std = x.mean(0), x.std(0) + 1e-5
            design = whitened(x, mean, std)
            targets = 2.0 * np.eye(6)[y] - 1.0
            weights = np.linalg.solve(design.T @ design + 1024.0 * np.eye(17), design.T @ targets)
            predicted = (whitened(test.double().numpy(), mean, std) @ weights).argmax(1)
            accuracies.append((predicted == test_labels.numpy()).mean())
        assert got[k]["per_seed"] == accuracies
        assert got[k]["top1"] == np.mean(accuracies)
        assert got[k]["stderr"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2)  # of two values
    assert list(got) == [1, 5]
    assert got[5]["top1"] > got[1]["top1"] > 1 / 6


@pytest.mark.parametrize(("shots", "width"), [(4, 40), (25, 12)])  # fewer images than features, and more
def test_the_whole_grid_comes_from_one_decomposition(monkeypatch, shots: int, width: int) -> None:
    train, test = clusters(150, width, 5, seed=1), clusters(90, width, 5, seed=2)
    calls, eigh = [], np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: calls.append(len(matrix)) or eigh(matrix))
    got = fewshot_lsr(*train, *test, shots=(shots,), seeds=(0, 1), grid=L2_GRID)[shots]
    assert calls == [min(5 * shots, width + 1)] * 2
    assert [score["l2"] for score in got["grid"]] == list(L2_GRID)
    assert {key: got["grid"][20][key] for key in ("top1", "stderr", "per_seed")} == {
        key: got[key] for key in ("top1", "stderr", "per_seed")
    }
    for score in got["grid"]:
        single = fewshot_lsr(*train, *test, shots=(shots,), seeds=(0, 1), l2=score["l2"])[shots]
        assert single["per_seed"] == score["per_seed"]
    assert len({score["top1"] for score in got["grid"]}) > 1


def test_one_seed_has_no_standard_error_and_no_grid_is_asked_for() -> None:
    got = fewshot_lsr(*clusters(50, 8, 5, seed=1), *clusters(50, 8, 5, seed=2), seeds=(3,))[5]
    assert got["stderr"] is None
    assert got["grid"] == []


def test_bfloat16_features_are_solved_in_double() -> None:
    (train, labels), test = clusters(50, 8, 5, seed=1), clusters(50, 8, 5, seed=2)
    half = fewshot_lsr(train.bfloat16(), labels, test[0].bfloat16(), test[1])
    assert half == fewshot_lsr(train.bfloat16().double(), labels, test[0].bfloat16().double(), test[1])


def test_defaults_are_five_shots_three_seeds_and_1024() -> None:
    train, test = clusters(50, 8, 5, seed=1), clusters(50, 8, 5, seed=2)
    got = fewshot_lsr(*train, *test)
    assert got == fewshot_lsr(*train, *test, shots=[5], seeds=[0, 1, 2], l2=1024)
    assert len(got[5]["per_seed"]) == 3


def test_float32_features_and_constant_ones_are_no_trouble() -> None:
    train, labels = clusters(30, 8, 3, seed=1)
    train[:, 2] = 7.0  # a dead feature: standard deviation 0
    exact = fewshot_lsr(train.double(), labels, train.double(), labels, shots=(10,), l2=1.0)
    assert fewshot_lsr(train, labels, train, labels, shots=(10,), l2=1.0) == exact
    assert exact[10]["top1"] > 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_features": torch.zeros(9, 4)}, r"train features \(N, D\) and labels \(N,\).*got \(9, 4\) and \(10,\)"),
        ({"train_features": torch.zeros(10)}, r"got \(10,\) and \(10,\)"),
        ({"test_features": torch.zeros(0, 4), "test_labels": torch.zeros(0).long()}, r"N > 0, got \(0, 4\)"),
        ({"test_features": torch.zeros(4, 5)}, r"differ in width: train \(10, 4\), test \(4, 5\)"),
        ({"train_labels": torch.zeros(10)}, r"train labels must be integers from 0, got torch\.float32"),
        ({"test_labels": torch.tensor([0, 1, -1, 0])}, "test labels must be integers from 0, got torch.int64 from -1"),
        ({"test_labels": torch.tensor([0, 1, 2, 0])}, "class 2 has 0 training images, too few for 5 shots"),
        ({"shots": (5, 6)}, "class 0 has 5 training images, too few for 6 shots"),
        ({"shots": ()}, r"shots must be positive .* got \(\)"),
        ({"shots": (0,)}, r"shots must be positive .* got \(0,\)"),
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": (0, -1)}, r"seeds must be at least 0, got \(0, -1\)"),
        ({"grid": (1.0, -1.0)}, r"l2 must be finite and over 0, got -1\.0"),
        ({"train_labels": torch.zeros(10).long(), "test_labels": torch.zeros(4).long()}, "needs at least two classes"),
        ({"train_features": torch.zeros(10, 4).long()}, r"train features of floating point, got torch\.int64"),
        ({"l2": 0.0}, r"l2 must be finite and over 0, got 0\.0"),
        ({"l2": float("nan")}, "l2 must be finite and over 0, got nan"),
        ({"l2": float("inf")}, "l2 must be finite and over 0, got inf"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, object], message: str) -> None:
    arguments = {
        "train_features": torch.randn(10, 4),
        "train_labels": torch.arange(10) % 2,
        "test_features": torch.randn(4, 4),
        "test_labels": torch.tensor([0, 1, 1, 0]),
    }
    with pytest.raises(ValueError, match=message):
        fewshot_lsr(**{**arguments, **changes})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["train", "test"])
def test_features_that_are_not_finite_are_refused(value: float, part: str) -> None:
    arrays = {name: clusters(10, 4, 2, seed=0) for name in ("train", "test")}
    arrays[part][0][7, 2] = value
    with pytest.raises(ValueError, match=f"{part} features are not finite: the first such image is number 7"):
        fewshot_lsr(*arrays["train"], *arrays["test"])
