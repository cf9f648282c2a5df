"""Testing a model by all processes of a run: each image is counted once, by one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vit_rs.evaluation import evaluate, extract_features
from vit_rs.exceptions import DatasetError
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

    Raises:
        DatasetError: none of the images can be read; on all processes.
    """
    parallel = stage.parallel
    count, correct, loss = 0.0, 0.0, 0.0
    batches = _InStep(stage, loader, images, go_on)
    try:
        result = evaluate(model, batches, device=parallel.device)
    except ValueError:
        if not batches.came_to_nothing:
            raise
    else:
        if parallel.world_size == 1:
            return {name: result[name] for name in ("top1", "loss", "count")}
        count = result["count"]
        correct, loss = round(result["top1"] * count), result["loss"] * count
    count, correct, loss = parallel.total([count, correct, loss])
    batches.check(int(count))
    return {"top1": correct / count, "loss": loss / count, "count": int(count)}


def shared_features(
    stage: Stage, model: torch.nn.Module, loader: ImageLoader, *, images: int, go_on: Callable[[], None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features (N, D) and labels (N,) of all processes' images, in their order; arguments as above."""
    parallel = stage.parallel
    batches = _InStep(stage, loader, images, go_on)
    try:
        features, labels = extract_features(model, batches, device=parallel.device)
    except ValueError:
        if not batches.came_to_nothing:
            raise
        features, labels = torch.empty(0), torch.empty(0, dtype=torch.int64)
    if parallel.world_size == 1 and len(labels):
        return features, labels
    parts = [part for part in parallel.gather((features, labels)) if len(part[1])]
    batches.check(len(parts))
    return parallel.interleave([part[0] for part in parts]), parallel.interleave([part[1] for part in parts])


class _InStep:
    """The loader's batches, then empty ones: every process asks a sharded model equally often.

    Attributes:
        came_to_nothing: whether all were given and no image was among them: there are fewer images than processes, or
            none of this one's can be read, which is for all processes together to judge.
    """

    def __init__(self, stage: Stage, loader: ImageLoader, images: int, go_on: Callable[[], None]) -> None:
        self.stage, self.loader, self.images, self.go_on = stage, loader, images, go_on
        self.came_to_nothing = False

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        stage, parallel = self.stage, self.stage.parallel
        batches, came = 0, 0
        for batch in pairs(self.loader):
            batches += 1
            came += len(batch[1])
            self.go_on()
            yield batch
        most = -(-self.images // parallel.world_size)
        empty = torch.empty(0, stage.sources.channels, stage.size, stage.size, device=parallel.device)
        for _ in range(batches, -(-most // self.loader.batch_size)):
            self.go_on()
            if parallel.sharded:
                yield empty, torch.empty(0, dtype=torch.int64, device=parallel.device)
        self.came_to_nothing = not came

    def check(self, came: int) -> None:
        """Raise, on all processes, a DatasetError where no image came to any of them."""
        if came:
            return
        failure = next(reversed(self.loader.stats().failures), "nothing was noted")
        with self.stage.parallel.together():
            raise DatasetError(f"none of {self.images} images to test with could be read: {failure}")
