"""Linear probes: schedules in closed form, candidates side by side as alone, planted clusters, logistic regression."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from vit_rs.evaluation import ProbeInput, linear_probe, logistic_regression
from vit_rs.evaluation.linear_probe import PROTOCOLS, _batches, _Candidate, _Run, lr_factor
from vit_rs.evaluation.logistic import C_GRID, fit_logistic


def clusters(count: int, width: int, classes: int, seed: int, *, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


def stream(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, number)).generate_state(1)[0]))


@pytest.fixture
def short(monkeypatch):
    """DINOv2's protocol in 30 steps, with two learning rates."""
    plan = dataclasses.replace(PROTOCOLS["dinov2"], epochs=2, epoch_steps=15, base_lrs=(1e-4, 0.5))
    monkeypatch.setitem(PROTOCOLS, "dinov2", plan)


# Schedules


def test_mae_rises_for_ten_epochs_and_falls_with_every_step():
    plan, steps = PROTOCOLS["mae"], 78  # of ImageNet
    assert [lr_factor(plan, step, steps) for step in (0, 39, 390, 780)] == [0.0, 0.05, 0.5, 1.0]
    assert lr_factor(plan, 10 * steps + 40 * steps, steps) == pytest.approx(0.5)
    last = 90 * steps - 1
    assert lr_factor(plan, last, steps) == pytest.approx(0.5 * (1 + math.cos(math.pi * (1 - 1 / (80 * steps)))))


def test_moco_v3_changes_with_the_epoch():
    plan = PROTOCOLS["mocov3"]
    assert {lr_factor(plan, step, 10) for step in range(10)} == {1.0}
    assert lr_factor(plan, 459, 10) == 0.5 * (1 + math.cos(math.pi * 45 / 90)) == pytest.approx(0.5)


def test_dinov2_is_torchs_cosine():
    plan = dataclasses.replace(PROTOCOLS["dinov2"], epochs=2)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, eta_min=0)
    for step in range(40):
        assert lr_factor(plan, step, 20) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_the_published_numbers():
    mae, moco, dino = PROTOCOLS["mae"], PROTOCOLS["mocov3"], PROTOCOLS["dinov2"]
    assert (mae.optimizer, mae.base_lrs, mae.batch_size, mae.epochs, mae.batch_norm) == (
        "lars",
        (0.1,),
        16384,
        90,
        True,
    )
    assert (moco.optimizer, moco.base_lrs, moco.batch_size, moco.epochs) == ("sgd", (3.0,), 1024, 90)
    assert (len(dino.base_lrs), min(dino.base_lrs), max(dino.base_lrs)) == (13, 1e-5, 0.1)
    assert (dino.batch_size, dino.epochs * dino.epoch_steps) == (1024, 12500)
    assert (len(C_GRID), C_GRID[0], C_GRID[-1]) == (45, 1e-6, pytest.approx(1e5))


# Training


def test_it_is_a_linear_layer_trained_by_sgd():
    (x, y), test = clusters(60, 5, 3, seed=1), clusters(30, 5, 3, seed=2)
    got = linear_probe(x, y, *test, protocol="mocov3", seeds=(4,), epochs=3, batch_size=25)
    layer = nn.Linear(5, 3)
    nn.init.normal_(layer.weight, std=0.01, generator=stream(4, 0))
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 3.0 * 25 / 256 * 0.5 * (1 + math.cos(math.pi * epoch / 3))
        order = torch.randperm(60, generator=stream(4, 1 + epoch))
        for batch in order.split(25):  # the last one has 10
            loss = F.cross_entropy(layer(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert got["seeds"][0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert got["top1"] == pytest.approx((layer(test[0]).argmax(1) == test[1]).double().mean().item(), abs=1e-12)
    protocol = got["protocol"]
    assert (protocol["steps"], protocol["lrs"], protocol["batch_size"]) == (9, [3.0 * 25 / 256], 25)


@pytest.mark.parametrize("name", ["mae", "dinov2"])
def test_candidates_side_by_side_are_as_alone(name):
    x, y = clusters(50, 6, 3, seed=1)
    plan = dataclasses.replace(PROTOCOLS[name], epochs=5, warmup_epochs=1, epoch_steps=2, batch_size=25)
    candidates = [_Candidate(ProbeInput("a", 0, 4), 0.5), _Candidate(ProbeInput("a", 0, 4), 5.0)]
    candidates += [_Candidate(ProbeInput("b", 2, 6), 0.5)]

    def trained(chosen, weights):
        run = _Run(plan, chosen, 3, images=50, width=6, device="cpu")
        for weight, first in zip(run.classifiers.weights, weights, strict=True):
            weight.data.copy_(first)
        for _ in run.train(lambda _: [(x[:25], y[:25]), (x[25:], y[25:])]):
            pass
        return [weight.detach() for weight in run.classifiers.weights]

    first = [0.1 * torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    together = trained(candidates, first)
    for candidate, weight, result in zip(candidates, first, together, strict=True):
        torch.testing.assert_close(trained([candidate], [weight])[0], result, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[0], together[1], rtol=1e-2)


@pytest.mark.slow
def test_planted_clusters_are_found_whatever_the_features_scale():
    train, test = clusters(20000, 8, 7, seed=1, spread=0.1), clusters(70, 8, 7, seed=2, spread=0.1)
    got = linear_probe(
        1e3 * train[0] + 5, train[1], 1e3 * test[0] + 5, test[1], protocol="mae", seeds=(0, 1), epochs=80
    )
    assert (got["top1"], got["top5"]) == (1.0, 1.0)
    assert (got["stderr"], got["top5_stderr"]) == (0.0, 0.0)
    features = "trained on features of the test transform; published: random crops and flips in each epoch"
    assert got["deviations"] == [features, "80 epochs; published: 90"]
    assert got["protocol"]["warmup_epochs"] == pytest.approx(80 / 9)


def test_few_images_are_one_batch():
    train, test = clusters(70, 8, 7, seed=1, spread=0.1), clusters(70, 8, 7, seed=2, spread=0.1)
    got = linear_probe(*train, *test, protocol="mae")
    assert got["deviations"][1] == "batch of 70 (there are 70 images); published: 16,384"
    assert got["protocol"]["lrs"] == [pytest.approx(0.1 * 70 / 256)]
    assert got["protocol"]["steps"] == 90


def test_the_best_candidate_is_chosen_without_the_test_images(short):
    (useful, labels), (test, targets) = clusters(200, 4, 4, seed=1, spread=0.3), clusters(80, 4, 4, seed=2, spread=0.3)
    noise = torch.randn(280, 4, generator=torch.Generator().manual_seed(5))
    train, test = torch.cat([noise[:200], useful], 1), torch.cat([noise[200:], test], 1)
    parts = [ProbeInput("noise", 0, 4), ProbeInput("useful", 4, 8), ProbeInput("both", 0, 8)]
    got = linear_probe(train, labels, test, targets, protocol="dinov2", inputs=parts, seeds=(0, 1, 2))
    assert all(entry["chosen"]["input"] != "noise" and entry["chosen"]["base_lr"] == 0.5 for entry in got["seeds"])
    assert got["top1"] > 0.9
    assert got["stderr"] == pytest.approx(np.std([e["top1"] for e in got["seeds"]], ddof=1) / math.sqrt(3))
    assert [(c["input"], c["base_lr"]) for c in got["candidates"]] == list(
        itertools.product(("noise", "useful", "both"), (1e-4, 0.5))
    )
    wrong = linear_probe(train, labels, test, (targets + 1) % 4, protocol="dinov2", inputs=parts, seeds=(0, 1, 2))
    assert [entry["chosen"] for entry in wrong["seeds"]] == [entry["chosen"] for entry in got["seeds"]]
    assert wrong["top1"] < 0.1
    assert (got["protocol"]["batch_size"], got["protocol"]["holdout"]) == (180, 0.1)


def test_a_seed_gives_the_same_again_and_another_seed_another():
    train, test = clusters(90, 5, 3, seed=1, spread=2.0), clusters(200, 5, 3, seed=2, spread=2.0)
    runs = [linear_probe(*train, *test, protocol="mocov3", seeds=(seed,), epochs=2) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0]["seeds"][0]["train_loss"] != runs[2]["seeds"][0]["train_loss"]


def test_what_diverged_is_not_chosen(monkeypatch):
    train, test = clusters(40, 5, 3, seed=1, spread=0.1), clusters(30, 5, 3, seed=2, spread=0.1)
    plan = dataclasses.replace(PROTOCOLS["dinov2"], epochs=1, epoch_steps=20, base_lrs=(1e38, 0.5))
    monkeypatch.setitem(PROTOCOLS, "dinov2", plan)
    train, test = (1e3 * train[0], train[1]), (1e3 * test[0], test[1])
    got = linear_probe(*train, *test, protocol="dinov2")
    assert got["candidates"][0]["top1"] == got["candidates"][0]["heldout_top1"] == [None]
    assert got["seeds"][0]["chosen"]["base_lr"] == 0.5
    monkeypatch.setitem(PROTOCOLS, "dinov2", dataclasses.replace(plan, base_lrs=(1e38,)))
    with pytest.raises(ValueError, match="the probe diverged: weights are not finite at learning rates"):
        linear_probe(*train, *test, protocol="dinov2")


class Fake:
    """Training images whose features are drawn anew, in pieces of seven."""

    description = "drawn anew"

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features, self.labels = features, labels
        self.asked: list[tuple[int, int, int]] = []

    def epoch(self, indices: Tensor, *, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked.append((len(indices), seed, epoch))
        yield from zip(self.features[indices].split(7), self.labels[indices].split(7), strict=True)


def test_augmented_images_are_asked_for_in_each_epoch(short):
    train, test = clusters(60, 5, 3, seed=1, spread=0.1), clusters(30, 5, 3, seed=2, spread=0.1)
    images = Fake(*train)
    got = linear_probe(*train, *test, protocol="mocov3", seeds=(5,), epochs=3, augmented=images)
    assert images.asked == [(60, 5, 0), (60, 5, 1), (60, 5, 2)]
    assert got["images"] == "drawn anew"
    assert got["protocol"]["interpolation"] == "bilinear"
    assert not any("random crops" in line for line in got["deviations"])
    whole = linear_probe(*train, *test, protocol="dinov2", augmented=images)  # 54 of 60: none of the held-out ones
    assert images.asked[3:] == [(54, 0, epoch) for epoch in range(30)]
    rows: list[Tensor] = []

    def some(indices: Tensor) -> Tensor:
        rows.append(indices)
        return train[0][indices]

    assert linear_probe(some, train[1], *test, protocol="dinov2", augmented=images) == whole
    assert linear_probe(some, train[1], *test, protocol="mocov3", seeds=(5,), epochs=3, augmented=images) == got
    assert [len(indices) for indices in rows] == [6]  # no features of what is trained on


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("size", [1, 3, 7, 10, 29, 30])
def test_batches_are_the_pieces_joined_and_cut(size, drop_last):
    x = torch.arange(29)
    pieces = [(part[:, None], part) for part in x.split([4, 1, 10, 7, 7])]
    got = list(_batches(pieces, size, drop_last=drop_last))
    expected = [part for part in x.split(size) if len(part) == size or not drop_last]
    assert [labels.tolist() for _, labels in got] == [part.tolist() for part in expected]
    assert all(torch.equal(features[:, 0], labels) for features, labels in got)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "simclr"}, "protocol must be one of mae, mocov3, dinov2, got 'simclr'"),
        ({"seeds": ()}, "seeds is empty"),
        ({"train_features": lambda rows: torch.zeros(len(rows), 4)}, "got a function: that is for augmented images"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1}, "a batch norm needs batches of at least 2 images, got 1"),
        ({"inputs": [ProbeInput("x", 2, 5)]}, "input 'x' is from 2 to 5, but there are 4 features"),
        ({"test_labels": torch.tensor([0, 1, 2, 0])}, "class 2 has 0 training images"),
        ({"train_labels": torch.zeros(10).long(), "test_labels": torch.zeros(4).long()}, "at least two classes"),
        ({"test_features": torch.full((4, 4), torch.inf)}, "test features are not finite"),
        ({"protocol": "dinov2", "train_labels": torch.tensor([0] * 9 + [1])}, "class '1' has 1 image"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {
        "train_features": torch.randn(10, 4),
        "train_labels": torch.arange(10) % 2,
        "test_features": torch.randn(4, 4),
        "test_labels": torch.tensor([0, 1, 1, 0]),
    }
    with pytest.raises(ValueError, match=message):
        linear_probe(**{**arguments, **changes})


# Logistic regression


@pytest.mark.parametrize(("c", "tolerance"), [(1e-4, 1e-5), (0.01, 1e-4), (1.0, 1e-3)])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_weights_are_scikit_learns(c, tolerance, classes):
    x, y = clusters(300, 6, classes, seed=1, spread=1.5)
    x = (x * torch.tensor([1.0, 30.0, 0.1, 1.0, 1.0, 0.0]) + 5).double()  # unlike scales, a mean, a dead feature
    model = fit_logistic(x, y, classes, c=c)
    peer = LogisticRegression(C=c, tol=1e-12, solver="newton-cg", max_iter=1000).fit(x.numpy(), y.numpy())
    logits = x.numpy() @ model.weights.numpy() + model.bias.numpy()
    expected = peer.predict_log_proba(x.numpy())
    if classes > 2:  # with two, scikit-learn's penalty is that of one difference of weights
        np.testing.assert_allclose(F.log_softmax(torch.tensor(logits), 1).numpy(), expected, rtol=0, atol=tolerance)
    from_elsewhere = fit_logistic(x, y, classes, c=c, start=model._replace(weights=model.weights + 0.1))
    torch.testing.assert_close(from_elsewhere.weights, model.weights, rtol=0, atol=tolerance)
    value = float(F.cross_entropy(torch.tensor(logits), y) + model.weights.square().sum() / (2 * c * 300))
    nudged = model.weights + 1e-3 * torch.randn(6, classes, generator=torch.Generator().manual_seed(0)).double()
    worse = F.cross_entropy(x @ nudged + model.bias, y) + nudged.square().sum() / (2 * c * 300)
    assert float(worse) > value


def test_it_is_the_optimum_whatever_the_features_scales():
    x, y = clusters(400, 8, 4, seed=3, spread=2.0)
    x = x.double() * torch.tensor([1e-6, 1e6, 1.0, 1.0, 1e-3, 1e3, 0.0, 1.0]) + torch.arange(8.0)
    x[:, 7] = x[:, 2]  # twice the same
    model = fit_logistic(x, y, 4, c=100.0)
    assert model.converged
    weights, bias = model.weights.clone().requires_grad_(), model.bias.clone().requires_grad_()
    (F.cross_entropy(x @ weights + bias, y) + weights.square().sum() / (2 * 100 * 400)).backward()
    # In units in which the curvature along each axis is of the order of 1.
    centred = x - x.mean(0)
    curvature = centred.square().mean(0) + 1 / (100 * 400)
    assert (weights.grad - x.mean(0)[:, None] * bias.grad).abs().div(curvature.sqrt()[:, None]).max() < 1e-6
    assert bias.grad.abs().max() < 1e-6
    short = fit_logistic(x, y, 4, c=100.0, max_steps=2)
    assert (short.steps, short.converged) == (2, False)
    same = torch.ones(40, 3).double()  # nothing to learn but how many there are of each
    assert fit_logistic(same, torch.arange(40) % 4 // 3, 2, c=1.0).bias.diff().item() == pytest.approx(-math.log(3))


@pytest.mark.parametrize(("images", "width", "classes"), [(200, 10, 4), (4, 300, 2)])
def test_converged_is_the_optimum_where_classes_are_told_apart(images, width, classes):
    x, y = clusters(images, width, classes, seed=2, spread=0.1)
    c, x = 1e5, x.double()
    model = fit_logistic(x, y, classes, c=c)
    assert model.converged
    # With two classes scikit-learn's penalty is that of their weights' difference.
    peer = LogisticRegression(C=c * (2 if classes == 2 else 1), tol=1e-10, max_iter=20000).fit(x.numpy(), y.numpy())
    theirs = torch.from_numpy(peer.coef_.T), torch.from_numpy(peer.intercept_)
    if classes == 2:
        theirs = tuple(torch.cat([-value / 2, value / 2], dim=-1) for value in theirs)

    def value(weights, bias):
        return float(c * F.cross_entropy(x @ weights + bias, y, reduction="sum") + weights.square().sum() / 2)

    assert value(model.weights, model.bias) < 1.00001 * value(*theirs)


def test_the_strength_is_chosen_on_held_out_training_images():
    train, test = clusters(210, 30, 7, seed=1, spread=2.5), clusters(210, 30, 7, seed=2, spread=2.5)
    got = logistic_regression(*train, *test, grid=(100.0, 1e-3, 1e-8), seeds=(0, 1))
    assert [candidate["C"] for candidate in got["candidates"]] == [1e-8, 1e-3, 100.0]
    for number, entry in enumerate(got["seeds"]):
        scores = [candidate["heldout_top1"][number] for candidate in got["candidates"]]
        assert entry["chosen"]["C"] == (1e-8, 1e-3, 100.0)[int(np.argmax(scores))]
        peer = LogisticRegression(C=entry["chosen"]["C"], tol=1e-10, max_iter=5000).fit(*(t.numpy() for t in train))
        assert entry["top1"] == pytest.approx(peer.score(*(t.numpy() for t in test)), abs=0.005)
        assert entry["converged"]
    wrong = logistic_regression(*train, test[0], (test[1] + 1) % 7, grid=(100.0, 1e-3, 1e-8), seeds=(0, 1))
    assert [entry["chosen"] for entry in wrong["seeds"]] == [entry["chosen"] for entry in got["seeds"]]


def test_weak_strengths_far_past_the_best_are_not_tried():
    x, y = torch.eye(4, dtype=torch.float64).repeat(30, 1), torch.arange(4).repeat(30)
    told: list[tuple[int, int]] = []
    got = logistic_regression(
        x, y, x, y, grid=(1e-3, 1e-1, 1.0, 10.0), seeds=(0,), progress=lambda *done: told.append(done)
    )
    # The first one is right about all images; a thousand times it is the last one tried.
    assert [len(candidate["heldout_top1"]) for candidate in got["candidates"]] == [1, 1, 1, 0]
    assert got["seeds"][0]["chosen"] == {"C": 1e-3}
    assert any("were not tried" in line for line in got["deviations"])
    assert told[-1] == (5, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": ()}, r"C must be one or more numbers over 0, got \(\)"),
        ({"grid": (1.0, 0.0)}, r"C must be one or more numbers over 0, got \(1\.0, 0\.0\)"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"seeds": ()}, "seeds is empty"),
    ],
)
def test_bad_arguments_of_logistic_regression_are_refused(changes, message):
    data = clusters(20, 4, 2, seed=0)
    with pytest.raises(ValueError, match=message):
        logistic_regression(*data, *data, **changes)
