"""Testing a model by all processes of a run: each image is counted once, by one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vit_rs.evaluation import evaluate, extract_features
from vit_rs.training.stages import pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vit_rs.data import ImageLoader
    from vit_rs.training.stages import Stage

__all__ = ["shared_features", "shared_test"]


def shared_test(
    stage: Stage, model: torch.nn.Module, loader: ImageLoader, *, images: int, go_on: Callable[[], None]
) -> dict[str, float]:
    """Return top1, loss and count as `evaluate` does, of all processes' images together.

    Args:
        stage: whose images they are.
        model: as `Parallel.examining` gives it.
        loader: of this process's share.
        images: number of all processes' images.
        go_on: called before each batch, equally often by each process; raises where the test is to stop.
    """
    parallel = stage.parallel
    count, correct, loss = 0.0, 0.0, 0.0
    try:
        result = evaluate(model, _in_step(stage, loader, images, go_on), device=parallel.device)
    except ValueError:
        if images > parallel.rank:
            raise  # else: fewer images than processes, and none for this one
    else:
        if parallel.world_size == 1:
            return {name: result[name] for name in ("top1", "loss", "count")}
        count = result["count"]
        correct, loss = round(result["top1"] * count), result["loss"] * count
    count, correct, loss = parallel.total([count, correct, loss])
    return {"top1": correct / count, "loss": loss / count, "count": int(count)}


def shared_features(
    stage: Stage, model: torch.nn.Module, loader: ImageLoader, *, images: int, go_on: Callable[[], None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features (N, D) and labels (N,) of all processes' images, in their order; arguments as above."""
    parallel = stage.parallel
    try:
        features, labels = extract_features(model, _in_step(stage, loader, images, go_on), device=parallel.device)
    except ValueError:
        if images > parallel.rank:
            raise
        features, labels = torch.empty(0), torch.empty(0, dtype=torch.int64)
    if parallel.world_size == 1:
        return features, labels
    parts = [part for part in parallel.gather((features, labels)) if len(part[1])]
    return parallel.interleave([part[0] for part in parts]), parallel.interleave([part[1] for part in parts])


def _in_step(
    stage: Stage, loader: ImageLoader, images: int, go_on: Callable[[], None]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the loader's batches, then empty ones: every process asks a sharded model equally often."""
    batches, count = 0, loader.batch_size
    for batch in pairs(loader):
        batches += 1
        go_on()
        yield batch
    most = -(-images // stage.parallel.world_size)
    empty = torch.empty(0, stage.sources.channels, stage.size, stage.size, device=stage.parallel.device)
    for _ in range(batches, -(-most // count)):
        go_on()
        if stage.parallel.sharded:
            yield empty, torch.empty(0, dtype=torch.int64, device=stage.parallel.device)
