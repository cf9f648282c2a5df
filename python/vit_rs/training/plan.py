"""What is said before a run starts: what will be done, where, how long it takes, and what may be a slip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vit_rs.training.networks import describe
from vit_rs.training.progress import clock, threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vit_rs.training.stages import Stage

__all__ = ["notices", "plan"]


def plan(stages: Sequence[Stage], parameters: int, folder: Path, seconds: float, *, resumed: bool) -> str:
    """Return one line on what will be done, where, and how long it takes.

    Args:
        stages: the run's stages.
        parameters: of its model.
        folder: the run's.
        seconds: that are left.
        resumed: whether an earlier process began.
    """
    size = f"{parameters / 1e6:.2f} M parameters"
    network = f"{describe(stages[0].network_config())}, {size}"
    steps = ", then ".join(f"{_length(stage)} at {stage.size} px" for stage in stages)
    parallel = stages[0].parallel
    each = threads(torch.get_num_threads())
    place = f"this machine ({each})"
    if parallel.world_size > 1:
        shared = "FSDP2" if parallel.sharded else "DDP"
        place = f"{parallel.world_size} processes ({shared}, {parallel.device.type}, {each} each)"
    verb, left = ("Resuming", "left ") if resumed else ("Training", "")
    return (
        f"{verb} {folder}: {stages[0].sources.description}; {network}; {steps}; about {clock(seconds)} {left}on {place}"
    )


def _length(stage: Stage) -> str:
    count, unit = (stage.epochs, "epoch") if stage.planned_steps is None else (stage.planned_steps, "step")
    return f"{count:,} {unit}{'s' if count > 1 else ''}"


def notices(stages: Sequence[Stage]) -> Iterator[str]:
    """Yield a line for each setting that is legal, and is more often a slip than meant."""
    for stage in stages:
        prefix = "" if stage.index == 0 else f"{stage.name}."
        images = len(stage.sources.train)
        if stage.batch_size > images:
            processes = stage.parallel.world_size
            shared = f"; {processes} processes see some of them twice" if images % processes else ""
            yield (
                f"Note: {prefix}batch_size: a step takes {stage.batch_size} images, there are {images}: each step sees "
                f"all of them{shared}"
            )
        if stage.warmup_steps >= stage.steps:
            name = "warmup_epochs" if stage.optim.warmup_steps is None else "warmup_steps"
            yield (
                f"Note: {prefix}optim.{name}: the warm-up of {stage.warmup_steps} steps does not end within the "
                f"{stage.steps} of the stage: optim.lr is never reached"
            )
    if len(stages) > 1 and stages[1].size == stages[0].size:
        yield f"Note: finetune.img_size: {stages[1].size} px, as in the first stage: the resolution does not rise"
