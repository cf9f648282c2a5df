"""Whole models beside timm's, with the same weights: a training step's forward and backward pass, and inference.

    pytest benches/bench_models.py

f32 on the CPU, in torch's eager mode; where there is a CUDA device, on it too, in bf16 (autocast), eager and compiled.
Logits and all gradients are compared before the clock starts, in f32 on the CPU, eager, for either device. The two
models take turns, round by round, and in each other round the other one begins, so that what else the machine does
falls on both: the ratios are those of the rounds.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from comparison import Comparison, Run, Variant, measure
from torch import Tensor, nn

from vit_rs.models import create_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TRAINING, INFERENCE = "Forward and backward pass, f32, 224 x 224", "Inference, f32, 224 x 224"
MODELS = (("vit_small_patch16_224", 8), ("vit_base_patch16_224", 4))
ON_CUDA = {
    TRAINING: "Forward and backward pass on CUDA, bf16 autocast, 224 x 224",
    INFERENCE: "Inference on CUDA, bf16 autocast, 224 x 224",
}
CUDA_BATCHES = 16  # times the CPU's
ROUNDS = 15
QUICK = {"models": (("vit_tiny_patch16_224", 2),), "rounds": 3, "changes": {"depth": 2, "img_size": 32}, "cuda": False}


@dataclass(frozen=True, kw_only=True)
class Alternation(Comparison):
    """Models that take turns. Their runs return the seconds of all rounds, which are measured once for both."""

    def check(self, variant: Variant, run: Run) -> None:
        """Raise AssertionError unless the models agree; measures them, which begins with the comparison."""
        if len(run()) != self.rounds:
            raise AssertionError(f"{variant.name}: expected {self.rounds} rounds")


class Setting(NamedTuple):
    """What is measured: a model in a table, on so many images and in so many rounds."""

    table: str
    name: str
    batch: int
    rounds: int
    changes: tuple[tuple[str, Any], ...]  # to the named configuration
    training: bool
    device: str = "cpu"
    autocast: bool = False  # to bfloat16
    compiled: bool = False


def comparisons(
    models: Sequence[tuple[str, int]] = MODELS,
    rounds: int = ROUNDS,
    changes: dict[str, Any] | None = None,
    cuda: bool | None = None,
) -> list[Comparison]:
    """Return what is compared: for each (name, batch) a training step and inference; `cuda` None: where it is there."""
    changed = tuple((changes or {}).items())
    settings = [
        Setting(table, name, batch, rounds, changed, table == TRAINING)
        for table in (TRAINING, INFERENCE)
        for name, batch in models
    ]
    if torch.cuda.is_available() if cuda is None else cuda:
        settings += [
            one._replace(
                table=ON_CUDA[one.table],
                batch=CUDA_BATCHES * one.batch,
                device="cuda",
                autocast=True,
                compiled=compiled,
            )
            for one in settings
            for compiled in (False, True)
        ]
    return [alternation(setting) for setting in settings]


def bench_models(benchmark, case):
    measure(benchmark, case)


def alternation(setting: Setting) -> Comparison:
    """Return one comparison of our model with timm's."""

    def seconds(index: int) -> Run:
        return lambda: measured(setting, torch.get_num_threads())[index]

    return Alternation(
        table=setting.table,
        name=f"{setting.name}, batches of {setting.batch}" + (", compiled" if setting.compiled else ""),
        variants=(
            Variant("vit_rs", lambda: seconds(0), role="ours", own_clock=True, compiles=setting.compiled),
            Variant("timm", lambda: seconds(1), needs=("timm",), own_clock=True, compiles=setting.compiled),
        ),
        images=setting.batch,
        threads=() if setting.device == "cpu" else (1,),
        unit="images/s",
        rounds=setting.rounds,
        paired=True,
    )


@functools.lru_cache(maxsize=1)
def measured(setting: Setting, threads: int) -> tuple[list[float], list[float]]:  # noqa: ARG001  a part of the key
    """Check both models, then time them by turns; return the seconds of our rounds and of timm's."""
    models = pair(setting.name, dict(setting.changes))
    images, labels = inputs(models[0], setting.batch)
    few = slice(None) if setting.device == "cpu" else slice(4)  # large batches take the CPU long
    check(*models, images[few], labels[few])
    images, labels = images.to(setting.device), labels.to(setting.device)
    if setting.compiled:
        torch.compiler.reset()  # or what earlier settings compiled counts against the limit of recompilations
    step = training_step if setting.training else inference_step
    runs: list[Callable[[], float]] = []
    for model in models:
        model.train(setting.training).to(setting.device)
        timed = torch.compile(model) if setting.compiled else model
        runs.append(functools.partial(step, timed, images, labels, setting.autocast))
    for _ in range(2 if setting.device == "cpu" else 10):
        for run in runs:
            run()
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(setting.rounds):
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            times[index].append(runs[index]())
    return times


def pair(name: str, changes: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Return our model and timm's of the same name, with the same random weights."""
    import timm  # noqa: PLC0415  left out where it is not installed

    torch.manual_seed(0)
    ours, theirs = create_model(name, **changes), timm.create_model(name, **changes)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.02)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(model: nn.Module, batch: int) -> tuple[Tensor, Tensor]:
    """Return the same normalised images and labels for both."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *model.config.image_hw, generator=generator)
    return images, torch.randint(model.num_classes, (batch,), generator=generator)


def check(ours: nn.Module, theirs: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Raise AssertionError unless logits and all gradients are equal, but for the order of sums."""
    found = []
    for model in (ours.eval(), theirs.eval()):
        logits = model(images)
        F.cross_entropy(logits, labels).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        found.append({"logits": logits.detach(), **gradients})
        model.zero_grad(set_to_none=True)
    for name, expected in found[1].items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            found[0][name], expected, rtol=0, atol=1e-4 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


def now(device: torch.device) -> float:
    """Return the clock's seconds when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def training_step(model: nn.Module, images: Tensor, labels: Tensor, autocast: bool = False) -> float:
    """Return the seconds of forward pass, loss and backward pass, each gradient in new memory."""
    start = now(images.device)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    seconds = now(images.device) - start
    model.zero_grad(set_to_none=True)
    return seconds


def inference_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,  # noqa: ARG001  as training_step
    autocast: bool = False,
) -> float:
    """Return the seconds of a forward pass in inference mode."""
    start = now(images.device)
    with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        model(images)
    return now(images.device) - start
