"""Linear probes: a linear classifier trained by gradient descent on frozen features, by published protocols.

MAE's, MoCo v3's and DINOv2's, each a `ProbeProtocol` that says where it comes from. (Logistic regression, DINOv2's
other linear protocol, is in `logistic`.)

Letters: B batch, N images, F features of an image, K classes, C candidates that are trained side by side.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vit_rs.data.splits import split_by_class
from vit_rs.evaluation.labelled import check_pair, check_seeds, label_ranks, mean, standard_error
from vit_rs.methods import LARS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor
    from torch.optim import Optimizer

__all__ = ["PROTOCOLS", "ProbeInput", "ProbeProtocol", "TrainingImages", "linear_probe", "lr_factor"]

# Elements of the largest table of scores that is made at once.
_TABLE = 2**24


@dataclass(frozen=True)
class ProbeProtocol:
    """How a linear classifier is trained.

    Attributes:
        source: Where the numbers come from.
        optimizer: "lars" or "sgd"; both without weight decay.
        base_lrs: Learning rates for 256 images; one candidate each. They grow with the batch.
        batch_size: Images in a step; all of them where there are fewer.
        epochs: Epochs; the last step's rate is near 0.
        epoch_steps: Steps of an epoch, however many images there are; None is one pass over the images.
        warmup_epochs: Over which the rate rises from 0 in a line; a half cosine follows.
        lr_by: Whether the rate changes with every "step" or "epoch".
        batch_norm: Whether a batch norm without weights (eps 1e-6) stands before the classifier.
        drop_last: Whether a last, smaller batch of a pass is left out.
        interpolation: Filter of the random crops, where the published protocol's crops are asked for.
        momentum: Of the optimizer.
        weight_std: Of the normal distribution that the first weights are drawn from; biases start at 0.
        holdout: Share of each class's training images on which the best candidate is chosen; without effect
            where there is one.
    """

    source: str
    optimizer: Literal["lars", "sgd"]
    base_lrs: tuple[float, ...]
    batch_size: int
    epochs: int
    epoch_steps: int | None = None
    warmup_epochs: float = 0
    lr_by: Literal["step", "epoch"] = "step"
    batch_norm: bool = False
    drop_last: bool = True
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    momentum: float = 0.9
    weight_std: float = 0.01
    holdout: float = 0.1


PROTOCOLS = {
    "mae": ProbeProtocol(
        source="arXiv 2111.06377, appendix A.1; facebookresearch/mae, FINETUNE.md",
        optimizer="lars",
        base_lrs=(0.1,),
        batch_size=16384,
        epochs=90,
        warmup_epochs=10,
        batch_norm=True,
    ),
    "mocov3": ProbeProtocol(
        source="arXiv 2104.02057; facebookresearch/moco-v3, CONFIG.md and main_lincls.py",
        optimizer="sgd",
        base_lrs=(3.0,),
        batch_size=1024,
        epochs=90,
        lr_by="epoch",
        drop_last=False,
        interpolation="bilinear",
    ),
    "dinov2": ProbeProtocol(
        source="arXiv 2304.07193; facebookresearch/dinov2, dinov2/eval/linear.py",
        optimizer="sgd",
        base_lrs=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
        batch_size=1024,
        epochs=10,
        epoch_steps=1250,
    ),
}


@dataclass(frozen=True)
class ProbeInput:
    """A part of the features that a classifier sees: those from `start` to before `end`."""

    name: str
    start: int
    end: int


class TrainingImages(Protocol):
    """Images whose features are drawn anew for every epoch: augmented ones."""

    @property
    def description(self) -> str:
        """What is done to the images, for people."""

    def epoch(self, indices: Tensor, *, seed: int, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield features (n, F) and labels (n,) of each of these images once, in pieces of any size.

        Seed and epoch decide the order and the augmentation.
        """


@dataclass(frozen=True)
class _Candidate:
    """One of the classifiers that are trained side by side."""

    part: ProbeInput
    base_lr: float


def linear_probe(
    train_features: Tensor | Callable[[Tensor], Tensor],
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    protocol: str = "mae",
    inputs: Sequence[ProbeInput] = (),
    seeds: Sequence[int] = (0,),
    epochs: int | None = None,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    augmented: TrainingImages | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Train linear classifiers on frozen features and test them, by a published protocol.

    Training sees the given features, which are those of the test transform: fast, and the same for every
    epoch. The published protocols see random crops and flips through the frozen model in each epoch: give
    `augmented` for that. The difference is named in the result.

    Where a protocol has several candidates (learning rates, inputs), the best is chosen on a part held out of
    the training images, which none is trained on, and never on the test images. (DINOv2's code chooses by
    the images that it reports, ImageNet's validation set.) Of equals the first one is taken. A candidate
    that diverged is not chosen.

    Args:
        train_features: (N, F) floating point, for example of `load_or_extract`. With `augmented` nothing is trained on
            them; it may then be what returns the rows (n, F) of some indices (n,), and is asked for those of the
            held-out images only, or for none.
        train_labels: (N,) integers 0..K-1.
        test_features: (M, F).
        test_labels: (M,) integers 0..K-1.
        protocol: A name of PROTOCOLS.
        inputs: Parts of the features that classifiers are trained on; without them one: all features.
        seeds: Each draws first weights, order of the images, and the held-out part.
        epochs: In place of the protocol's; the warm-up shrinks with them.
        batch_size: In place of the protocol's; the learning rate follows it.
        device: Where the classifiers are trained.
        augmented: The training images of the published protocol; the same ones in the same order as
            `train_features`, which then serve to choose, where there is a choice.
        progress: Called with (steps done, steps) of all seeds.

    Returns:
        What JSON can hold: "protocol", every detail of it, as it was run; "images", what was trained on;
        "deviations" from what was published; "top1", "top5" (None with 5 classes or fewer), fractions 0..1, means
        over the seeds, with "stderr" and "top5_stderr" (None for one seed); "seeds", what each seed gave and
        chose; "candidates", accuracies of each, by seed.

    Raises:
        ValueError: Features and labels do not fit (see `check_pair`), an argument is out of range, a class
            has too few images to hold one out, or every candidate diverged.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    published = PROTOCOLS[protocol]
    check_seeds(seeds)
    table = None if callable(train_features) else train_features
    if table is None and augmented is None:
        raise ValueError("expected train_features as a table (N, F), got a function: that is for augmented images")
    num_classes, width = check_pair(table, train_labels, test_features, test_labels), test_features.shape[1]
    plan = _shortened(published, epochs, batch_size)
    candidates = [_Candidate(part, lr) for part in inputs or [ProbeInput("features", 0, width)] for lr in plan.base_lrs]
    _check_inputs(candidates, width)
    whole = torch.arange(len(train_labels))
    runs = []
    for number, seed in enumerate(seeds):
        kept, held_out = whole, whole[:0]
        if len(candidates) > 1:
            names = [str(label) for label in range(num_classes)]
            first, second = split_by_class(train_labels.tolist(), names, share=plan.holdout, seed=seed)
            kept, held_out = torch.tensor(first), torch.tensor(second)
        run = _Run(plan, candidates, num_classes, images=len(kept), width=width, device=device)
        run.start(seed)
        pieces = augmented
        if table is not None and pieces is None:
            pieces = _KeptFeatures(table, train_labels, torch.device(device), run.batch_size)
        done = number * run.steps
        for step in run.train(lambda epoch, s=seed, k=kept, p=pieces: p.epoch(k, seed=s, epoch=epoch)):  # type: ignore[misc]
            if progress is not None:
                progress(done + step, len(seeds) * run.steps)
        chosen_by = None
        if len(held_out):
            features = train_features(held_out) if callable(train_features) else train_features[held_out]
            chosen_by = run.accuracies(features, train_labels[held_out])
        runs.append((seed, run, chosen_by, run.accuracies(test_features, test_labels)))
    return _record(protocol, published, candidates, runs, augmented, train_images=len(whole))


def lr_factor(protocol: ProbeProtocol, step: int, steps_per_epoch: int) -> float:
    """Return what the learning rate is multiplied by at a step: a linear warm-up, then half a cosine to 0."""
    epoch = step / steps_per_epoch
    if protocol.lr_by == "epoch":
        epoch = math.floor(epoch)
    if epoch < protocol.warmup_epochs:
        return epoch / protocol.warmup_epochs
    past = (epoch - protocol.warmup_epochs) / (protocol.epochs - protocol.warmup_epochs)
    return 0.5 * (1.0 + math.cos(math.pi * past))


class _KeptFeatures:
    """Features that are the same in every epoch, in batches of an order that seed and epoch decide."""

    description = "the features of the test transform, the same in every epoch"

    def __init__(self, features: Tensor, labels: Tensor, device: torch.device, batch_size: int) -> None:
        self.features, self.labels = features.detach().float().to(device), labels.long().to(device)
        self.batch_size = batch_size

    def epoch(self, indices: Tensor, *, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = _generator(seed, 1 + epoch)
        order = indices[torch.randperm(len(indices), generator=generator)].to(self.features.device)
        for batch in torch.split(order, self.batch_size):
            yield self.features[batch], self.labels[batch]


class _Classifiers(nn.Module):
    """Candidates side by side: a weight (K, part) and a bias (K,) each; those of one input are one product."""

    def __init__(self, candidates: Sequence[_Candidate], num_classes: int, width: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.candidates, self.num_classes = candidates, num_classes
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6) if batch_norm else nn.Identity()
        sizes = [candidate.part.end - candidate.part.start for candidate in candidates]
        self.weights = nn.ParameterList(torch.empty(num_classes, size) for size in sizes)
        self.biases = nn.ParameterList(torch.zeros(num_classes) for _ in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C, K) of features (B, F)."""
        x = self.norm(x)
        logits = []
        numbered = itertools.groupby(range(len(self.candidates)), key=lambda number: self.candidates[number].part)
        for part, numbers in numbered:
            places = list(numbers)
            weight = torch.cat([self.weights[i] for i in places])  # (n K, part)
            bias = torch.cat([self.biases[i] for i in places])  # (n K,)
            product = F.linear(x[:, part.start : part.end], weight, bias)  # (B, n K)
            logits.append(product.view(len(x), len(places), self.num_classes))
        return torch.cat(logits, dim=1)


class _Run:
    """The training of all candidates with one seed."""

    def __init__(
        self,
        plan: ProbeProtocol,
        candidates: Sequence[_Candidate],
        num_classes: int,
        *,
        images: int,
        width: int,
        device: str | torch.device,
    ) -> None:
        self.plan, self.device = plan, torch.device(device)
        self.batch_size = min(plan.batch_size, images)
        if plan.batch_norm and self.batch_size < 2:
            raise ValueError("a batch norm needs batches of at least 2 images, got 1")
        per_pass = images // self.batch_size if plan.drop_last else math.ceil(images / self.batch_size)
        self.steps_per_epoch = plan.epoch_steps or per_pass
        self.steps = plan.epochs * self.steps_per_epoch
        self.classifiers = _Classifiers(candidates, num_classes, width, batch_norm=plan.batch_norm)
        self.lrs = [candidate.base_lr * self.batch_size / 256 for candidate in candidates]
        self.last_loss = math.nan

    def start(self, seed: int) -> None:
        """Draw the first weights."""
        generator = _generator(seed, 0)
        for weight in self.classifiers.weights:
            nn.init.normal_(weight, std=self.plan.weight_std, generator=generator)
        self.classifiers.to(self.device)

    def train(self, passes: Callable[[int], Iterable[tuple[Tensor, Tensor]]]) -> Iterator[int]:
        """Train, and yield the number of steps done after each.

        Args:
            passes: Features and labels of a pass over the images, in pieces of any size.
        """
        optimizer = self._optimizer()
        self.classifiers.train()
        step, loss = 0, torch.tensor(math.nan)
        for number in itertools.count():
            before = step
            for features, labels in _batches(passes(number), self.batch_size, drop_last=self.plan.drop_last):
                factor = lr_factor(self.plan, step, self.steps_per_epoch)
                for group, lr in zip(optimizer.param_groups, self.lrs, strict=True):
                    group["lr"] = lr * factor
                logits = self.classifiers(features.to(self.device))  # (B, C, K)
                targets = labels.to(self.device)[:, None].expand(-1, logits.shape[1])  # (B, C)
                # Each candidate's own mean: none feels the others.
                loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / len(labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                yield step
                if step == self.steps:
                    self.last_loss = float(loss.detach()) / logits.shape[1]
                    return
            if step == before:
                raise ValueError(f"a pass over the training images gave no batch of {self.batch_size}")

    def accuracies(self, features: Tensor, labels: Tensor) -> list[tuple[float, float] | None]:
        """Return each candidate's top-1 and top-5 accuracy, None of one that diverged."""
        self.classifiers.eval()
        count, classes = len(self.lrs), self.classifiers.num_classes
        hits = torch.zeros(2, count, dtype=torch.int64, device=self.device)
        rows = max(1, _TABLE // (count * classes))
        with torch.inference_mode():
            for x, y in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
                logits = self.classifiers(x.detach().float().to(self.device)).flatten(0, 1)  # (B C, K)
                ranks = label_ranks(logits, y.long().to(self.device).repeat_interleave(count)).view(-1, count)
                hits += torch.stack([(ranks < 1).sum(0), (ranks < 5).sum(0)])
        top1, top5 = (hits.double() / len(labels)).tolist()
        sound = [bool(torch.isfinite(weight).all()) for weight in self.classifiers.weights]
        return [pair if ok else None for pair, ok in zip(zip(top1, top5, strict=True), sound, strict=True)]

    def _optimizer(self) -> Optimizer:
        groups = [
            {"params": [weight, bias]}
            for weight, bias in zip(self.classifiers.weights, self.classifiers.biases, strict=True)
        ]
        if self.plan.optimizer == "lars":
            return LARS(groups, lr=0.0, momentum=self.plan.momentum)
        return torch.optim.SGD(groups, lr=0.0, momentum=self.plan.momentum)


def _batches(pieces: Iterable[tuple[Tensor, Tensor]], size: int, *, drop_last: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of a size from pieces of any size, in their order."""
    waiting: list[tuple[Tensor, Tensor]] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece[1])
        if count < size:
            continue
        features, labels = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*waiting, strict=True))
        whole = count - count % size
        yield from zip(torch.split(features[:whole], size), torch.split(labels[:whole], size), strict=True)
        count -= whole
        waiting = [(features[whole:], labels[whole:])] if count else []
    if count and not drop_last:
        features, labels = (torch.cat(parts) for parts in zip(*waiting, strict=True))
        yield features, labels


def _shortened(published: ProbeProtocol, epochs: int | None, batch_size: int | None) -> ProbeProtocol:
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    epochs, batch_size = epochs or published.epochs, batch_size or published.batch_size
    warmup = published.warmup_epochs * epochs / published.epochs
    return dataclasses.replace(published, epochs=epochs, batch_size=batch_size, warmup_epochs=warmup)


def _check_inputs(candidates: Sequence[_Candidate], width: int) -> None:
    for part in {candidate.part for candidate in candidates}:
        if not 0 <= part.start < part.end <= width:
            raise ValueError(f"input {part.name!r} is from {part.start} to {part.end}, but there are {width} features")


def _generator(seed: int, stream: int) -> torch.Generator:
    """Return one of a run's sources of random numbers: 0 of the weights, 1 + epoch of the orders."""
    # Hashed: torch's generator on the CPU takes the lower 32 bits alone.
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, stream)).generate_state(1)[0]))


def _record(
    name: str,
    published: ProbeProtocol,
    candidates: Sequence[_Candidate],
    runs: list[tuple[int, _Run, list[tuple[float, float] | None] | None, list[tuple[float, float] | None]]],
    augmented: TrainingImages | None,
    *,
    train_images: int,
) -> dict[str, Any]:
    """Return the result as `linear_probe` describes it."""
    by_seed = []
    for seed, run, chosen_by, tested in runs:
        best = _best(chosen_by or tested, run.lrs)
        top1, top5 = tested[best] or (math.nan, math.nan)
        entry: dict[str, Any] = {"seed": seed, "top1": top1, "top5": top5 if _has_top5(run) else None}
        entry["train_loss"] = run.last_loss if math.isfinite(run.last_loss) else None
        if chosen_by is not None:
            entry["chosen"] = {"input": candidates[best].part.name, "base_lr": candidates[best].base_lr}
            entry["heldout_top1"] = (chosen_by[best] or (None,))[0]
        by_seed.append(entry)
    run = runs[0][1]
    top5s = [entry["top5"] for entry in by_seed if entry["top5"] is not None]
    top1s = [entry["top1"] for entry in by_seed]
    return {
        "protocol": {
            "name": name,
            **dataclasses.asdict(run.plan),
            "batch_size": run.batch_size,
            "lrs": run.lrs,
            "lr_rule": "base_lr x batch_size / 256",
            "weight_decay": 0.0,
            "steps": run.steps,
            "steps_per_epoch": run.steps_per_epoch,
            "inputs": [dataclasses.asdict(part) for part in dict.fromkeys(c.part for c in candidates)],
            "holdout": run.plan.holdout if len(candidates) > 1 else 0.0,
            "interpolation": run.plan.interpolation if augmented else None,
        },
        "images": augmented.description if augmented else _KeptFeatures.description,
        "deviations": _deviations(published, run, augmented, train_images),
        "top1": mean(top1s),
        "stderr": standard_error(top1s),
        "top5": mean(top5s) if top5s else None,
        "top5_stderr": standard_error(top5s) if top5s else None,
        "seeds": by_seed,
        "candidates": [
            {
                "input": candidate.part.name,
                "base_lr": candidate.base_lr,
                "heldout_top1": [None if by is None else (by[place] or (None,))[0] for _, _, by, _ in runs],
                "top1": [(tested[place] or (None,))[0] for _, _, _, tested in runs],
            }
            for place, candidate in enumerate(candidates)
        ],
    }


def _best(accuracies: Sequence[tuple[float, float] | None], lrs: Sequence[float]) -> int:
    sound = [place for place, pair in enumerate(accuracies) if pair is not None]
    if not sound:
        raise ValueError(f"the probe diverged: weights are not finite at learning rates {lrs}")
    return max(sound, key=lambda place: (accuracies[place] or (0.0,))[0])


def _has_top5(run: _Run) -> bool:
    return run.classifiers.num_classes > 5


def _deviations(published: ProbeProtocol, run: _Run, augmented: TrainingImages | None, train_images: int) -> list[str]:
    """Return what differs from the published protocol, a line each."""
    found = []
    if augmented is None:
        found.append("trained on features of the test transform; published: random crops and flips in each epoch")
    if run.batch_size != published.batch_size:
        why = f" (there are {train_images:,} images)" if run.batch_size < run.plan.batch_size else ""
        found.append(f"batch of {run.batch_size:,}{why}; published: {published.batch_size:,}")
    if run.plan.epochs != published.epochs:
        found.append(f"{run.plan.epochs} epochs; published: {published.epochs}")
    if len(run.lrs) > 1:
        found.append("the candidate is chosen on held-out training images; published: on the images it is tested on")
    return found
