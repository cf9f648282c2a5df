"""What the training loop costs: the main thread's time outside forward pass, backward pass and optimizer step.

    pytest benches/bench_loop.py --data FOLDER

`vit-rs train` and a plain torch loop with torchvision and torch's DataLoader train a ViT-Ti/16 with AdamW on the same
JPEGs, in batches of 64 random crops, on two threads (two worker processes there). Waits for batches count as the
loop's. Both are timed from outside: by wrappers around the loss of the model's output, `Tensor.backward` and the
optimizers' steps; beside it stands what the loop's own timers say. Takes 38 steps and a test of 64 images in all.
"""

from __future__ import annotations

import functools
import io
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from comparison import Comparison, Run, Variant, measure
from corpus import Corpus, gathered
from goals import LOOP, LOOP_LIMIT, LOOP_SPEED, TORCH_LOOP
from loading import MEAN, STD
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from vit_rs.methods import Supervised
from vit_rs.models import create_model
from vit_rs.training import train
from vit_rs.training.config import DataConfig, EvaluationConfig, FinetuneConfig, ModelConfig, OptimConfig, TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODEL = "vit_tiny_patch16_224"
WARM_STEPS = 3
LIMIT = 0.02  # of a step
QUICK = {
    "changes": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    "size": 32,
    "count": 24,
    "batch": 2,
    "rounds": 3,
    "held_out": 0.2,
}


@dataclass(frozen=True, kw_only=True)
class Loops(Comparison):
    """Training loops. Their runs return one number for each step, all from one measurement."""

    def check(self, variant: Variant, run: Run) -> None:
        """Raise AssertionError unless there is a number for each step."""
        if len(run()) != self.rounds:
            raise AssertionError(f"{variant.name}: expected {self.rounds} steps, got {len(run())}")


class Setting(NamedTuple):
    """What is trained."""

    data: Path | None
    changes: tuple[tuple[str, Any], ...]  # to the ViT-Ti/16
    size: int
    count: int  # of files
    batch: int
    rounds: int  # steps that are looked at
    held_out: float  # share of the files that vit-rs tests the model on at its end


class Steps(NamedTuple):
    """The last steps of a loop: seconds from forward pass to forward pass, and what part of them was the loop's."""

    seconds: list[float]
    shares: list[float]


def comparisons(
    data: Path | None = None,
    *,
    changes: dict[str, Any] | None = None,
    size: int = 224,
    count: int = 1290,
    batch: int = 64,
    rounds: int = 15,
    held_out: float = 0.05,
) -> list[Comparison]:
    """Return what is compared: the loops' own shares of a step, and the speed of all."""
    setting = Setting(data, tuple((changes or {}).items()), size, count, batch, rounds, held_out)

    def reading(index: int, field: int) -> Callable[[], Run]:
        return lambda: lambda: measured(setting, torch.get_num_threads())[index][field]

    loops = (("vit_rs", "ours", 0, ()), (TORCH_LOOP, "peer", 2, ("torchvision",)))
    shares = [Variant(each, reading(index, 1), role, needs=needs, own_clock=True) for each, role, index, needs in loops]
    shares.insert(1, Variant("vit_rs, by its own timers", reading(1, 1), "form", own_clock=True))
    shares.append(Variant(LOOP_LIMIT, lambda: lambda: [LIMIT] * rounds, "floor", own_clock=True))
    speeds = [Variant(each, reading(index, 0), role, needs=needs, own_clock=True) for each, role, index, needs in loops]
    common: dict[str, Any] = {"threads": (2,), "rounds": rounds}
    return [
        Loops(table=LOOP[0], name=LOOP[1], variants=tuple(shares), unit="% of a step", **common),
        Loops(table=LOOP_SPEED[0], name=LOOP_SPEED[1], variants=tuple(speeds), images=batch, unit="images/s", **common),
    ]


def bench_loop(benchmark, case):
    measure(benchmark, case)


@functools.lru_cache(maxsize=1)
def measured(setting: Setting, threads: int) -> tuple[Steps, Steps, Steps | None]:
    """Return the steps of our loop from outside, those by its own timers, and those of the plain loop."""
    corpus = gathered(setting.data, setting.count)
    with tempfile.TemporaryDirectory(prefix="vit-rs-bench-") as folder:
        root = in_two_classes(corpus, Path(folder) / "images")
        ours, own = our_steps(setting, threads, root, Path(folder) / "run")
        try:
            import torchvision  # noqa: F401, PLC0415  a peer's
        except ImportError:
            return ours, own, None
        return ours, own, plain_steps(setting, threads, root)


def in_two_classes(corpus: Corpus, root: Path) -> Path:
    """Put the files into two class folders by turns: a training wants two, and all of scikit-image's are in one."""
    for number, path in enumerate(corpus.paths):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        os.link(path, folder / path.name)
    return root


class Clock:
    """Watches the steps of the loop that runs inside its context."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.inside: list[float] = []
        self._handles: list[Any] = []
        self._since = 0.0

    def __enter__(self) -> Clock:  # noqa: PYI034  typing's Self needs Python 3.11
        self._backward = mock.patch.object(torch.Tensor, "backward", self.part(torch.Tensor.backward))
        self._backward.start()
        self._handles = [
            register_optimizer_step_pre_hook(lambda *_: self._start()),
            register_optimizer_step_post_hook(lambda *_: self._stop()),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._backward.stop()
        for handle in self._handles:
            handle.remove()

    def forward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function that makes the loss, with which each step begins."""
        timed = self.part(function)

        @functools.wraps(function)
        def first(*arguments: Any, **named: Any) -> Any:
            self.begun.append(time.perf_counter())
            self.inside.append(0.0)
            return timed(*arguments, **named)

        return first

    def part(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time is not the loop's."""

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            self._start()
            try:
                return function(*arguments, **named)
            finally:
                self._stop()

        return timed

    def _start(self) -> None:
        self._since = time.perf_counter()

    def _stop(self) -> None:
        self.inside[-1] += time.perf_counter() - self._since

    def last(self, rounds: int) -> Steps:
        """Return the last steps but one: the last has no end."""
        seconds = [end - begin for begin, end in zip(self.begun[:-1], self.begun[1:], strict=True)][-rounds:]
        inside = self.inside[:-1][-rounds:]
        return Steps(seconds, [1.0 - part / whole for part, whole in zip(inside, seconds, strict=True)])


def our_steps(setting: Setting, threads: int, root: Path, run: Path) -> tuple[Steps, Steps]:
    """Train with vit_rs; return its steps as seen from outside, and by the records that it writes."""
    config = TrainConfig(
        recipe="bench_loop",
        torch_threads=threads,
        loader_threads=threads,
        steps=WARM_STEPS + setting.rounds + 1,
        batch_size=setting.batch,
        log_every=1,
        model=ModelConfig(name=MODEL, **dict(setting.changes)),
        data=DataConfig(
            path=str(root),
            img_size=setting.size,
            augment="resized_crop",
            mean=MEAN,
            std=STD,
            holdout=setting.held_out,
        ),
        optim=OptimConfig(clip_norm=None, warmup_epochs=0.0),
        finetune=FinetuneConfig(epochs=0),
        evaluation=EvaluationConfig(shots=0, batch_size=setting.batch),
    )
    with Clock() as clock, mock.patch.object(Supervised, "mixed_loss", clock.forward(Supervised.mixed_loss)):
        summary = train(config, run, stream=io.StringIO())
    if summary["stages"][0]["steps"] != config.steps:
        raise AssertionError(f"expected {config.steps} steps, got {summary['stages'][0]['steps']}")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    times = [record["time"] for record in map(json.loads, lines) if record["kind"] == "train"][-setting.rounds - 1 : -1]
    own = Steps([setting.batch / one["images_per_second"] for one in times], [one["loop_share"] for one in times])
    return clock.last(setting.rounds), own


def plain_steps(setting: Setting, threads: int, root: Path) -> Steps:
    """Train as torch's tutorials do."""
    from torchvision.datasets import ImageFolder  # noqa: PLC0415  left out where it is not installed
    from torchvision.transforms import v2  # noqa: PLC0415

    chain = [v2.RandomResizedCrop(setting.size), v2.RandomHorizontalFlip(), v2.ToImage()]
    chain += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    loader = torch.utils.data.DataLoader(
        ImageFolder(str(root), v2.Compose(chain)), setting.batch, shuffle=True, drop_last=True, num_workers=threads
    )
    model = create_model(MODEL, img_size=setting.size, num_classes=2, **dict(setting.changes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    losses: list[float] = []
    with Clock() as clock:
        loss_of = clock.forward(lambda images, labels: F.cross_entropy(model(images), labels))
        batches: Iterator[Any] = iter(loader)
        for _ in range(WARM_STEPS + setting.rounds + 1):
            images, labels = next(batches)
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(images, labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    del batches
    if not torch.tensor(losses).isfinite().all():
        raise AssertionError(f"expected finite losses, got a median of {statistics.median(losses)}")
    return clock.last(setting.rounds)
