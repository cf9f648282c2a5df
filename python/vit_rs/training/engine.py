"""What one training step does: from a batch to changed weights, for one stage of a run.

The loop around it knows batches, records and saved states; this file knows the model and how it is changed. Nothing
here waits for an asynchronous device: losses and norms stay on it until somebody reads them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from vit_rs.methods import EMA
from vit_rs.training import sharded
from vit_rs.training.optim import build_optimizer, set_schedule

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from vit_rs.models.catalogue import Model
    from vit_rs.training.stages import Stage

__all__ = ["Engine", "Preparation"]


class Engine:
    """A stage's model with its method, optimizer and moving average, and the step that moves them.

    Args:
        stage: what is trained, and how.
        model: what the stage starts with, on its device. With `channels_last` its convolutions' weights are laid out
            anew.
    """

    def __init__(self, stage: Stage, model: Model) -> None:
        config = stage.config
        self.stage = stage
        # As it is saved: never the compiled or wrapped one, which share its parameters.
        self.model = model
        self.device = next(model.parameters()).device
        self.method = stage.method
        self._prepare = Preparation(stage, self.device)
        self._mixed: torch.Tensor | None = None
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        # Before the wrapping: a sharded model cannot be copied.
        self.ema = None if stage.optim.ema_decay is None else EMA(model, stage.optim.ema_decay)
        self._module = stage.parallel.wrap(model)
        self._average = stage.parallel.wrap_average(None if self.ema is None else self.ema.model)
        # After it, since it may replace parameters.
        self.optimizer = build_optimizer(model, stage.optim)
        self._parameters = list(model.parameters())
        self._forward = torch.compile(self._module) if config.compile else self._module
        # Images of the last step, of all processes.
        self.images = 0
        # Wall time of the steps' forward and backward passes and of the optimizer, clipping included.
        self.seconds = 0.0

    @property
    def tested_model(self) -> Model:
        """The model that is tested and saved: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.model

    def examining(self) -> AbstractContextManager[torch.nn.Module]:
        """Return the context in which `tested_model` can be asked for logits and features by all processes together."""
        return self.stage.parallel.examining(self.tested_model, self._module if self.ema is None else self._average)

    def train(self) -> None:
        """Put the model into training mode."""
        self._module.train()

    def step(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Change the weights once, by the gradient of the mean loss over a batch.

        The batch is cut into `accumulation` parts, of sizes that differ by at most one; each counts by its number of
        images, and so does each process's share: several processes take the step that one would. A batch without
        images (none could be read) leaves everything as it is.

        Args:
            images: this process's share of the step's images, as the stage's loader yields them: see `Preparation`.
            labels: int64, (B,).
            step: number of the step in the stage, from 0.

        Returns:
            This process's part in the mean loss over the batch, which is the mean of the processes' parts, and the
            gradient's norm before it was clipped (None where it is not), both detached scalars on the model's device.
        """
        stage = self.stage
        self.images = self._images_of_all(len(labels))
        if not self.images:
            nothing = torch.zeros((), device=self.device)
            return nothing, None if stage.optim.clip_norm is None else nothing
        set_schedule(self.optimizer, learning_rate=stage.learning_rate(step), weight_decay=stage.weight_decay(step))
        images = self._prepare(images)
        if self.method.mixes:
            self._mixed = _reused(self._mixed, images)
        batch = self.method.mix(images, labels, step=step, out=self._mixed)
        parts = batch.split(stage.config.accumulation)
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for index, part in enumerate(parts, start=1):
            with self._sync(last=index == len(parts)):
                with self._precision():
                    loss = self.method.mixed_loss(self._forward, part)
                # 1 for all of a process's images where each has as many: gradients are averaged by process.
                weight = len(part.labels) * stage.parallel.world_size / self.images
                if weight != 1.0:
                    loss = loss * weight
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        norm = None
        if stage.optim.clip_norm is not None:
            norm = sharded.whole(torch.nn.utils.clip_grad_norm_(self._parameters, stage.optim.clip_norm))
        self.optimizer.step()
        self.seconds += time.perf_counter() - start
        if self.ema is not None:
            self.ema.update(self.model)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum(), norm

    def _images_of_all(self, own: int) -> int:
        """Return the images of a step; they differ between processes where unreadable ones are left out."""
        parallel = self.stage.parallel
        if self.stage.config.data.on_error != "skip":
            return own * parallel.world_size
        return int(parallel.total([own])[0])

    def _sync(self, *, last: bool) -> AbstractContextManager[None]:
        return self.stage.parallel.sync(self._module, last=last)

    def _precision(self) -> torch.autocast:
        # One a part: the weights' bfloat16 copies are kept until its context ends.
        half = self.stage.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half)

    @property
    def ema_updates(self) -> int | None:
        """How often the moving average was updated; None where there is none."""
        return None if self.ema is None else self.ema.updates

    def save_parts(self, folder: Path) -> None:
        """Write this process's part of weights, optimizer and moving average into a folder; all processes together."""
        sharded.save(folder, self.model, self.optimizer, None if self.ema is None else self.ema.model)

    def load_parts(self, folder: Path, *, ema_updates: int | None) -> None:
        """Restore what processes, as many or others, wrote by `save_parts`.

        Raises:
            RuntimeError, ValueError: it does not fit the model.
        """
        sharded.load(folder, self.model, self.optimizer, None if self.ema is None else self.ema.model)
        if self.ema is not None and ema_updates is not None:
            self.ema.resume(ema_updates)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimizer and moving average."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            RuntimeError, ValueError: it does not fit the model.
        """
        if self.stage.parallel.sharded:
            sharded.distribute(state, self.model, self.optimizer, None if self.ema is None else self.ema.model)
            if self.ema is not None:
                self.ema.resume(state["ema"]["updates"])
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


class Preparation:
    """From a training batch as its loader yields it to what the method takes.

    Args:
        stage: says what the loader left to do.
        device: where the images are.
    """

    def __init__(self, stage: Stage, device: torch.device) -> None:
        data = stage.config.data
        self._permuted = stage.config.channels_last
        self._normalized = data.normalize_on == "loader"
        # (C, 1, 1) or (1, 1, 1); here, since copying them anew in each step would wait for the device.
        self._floats: torch.Tensor | None = None
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None] for values in (data.mean, data.std))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images as normalised float32, (B, C, H, W); what was normalised here is valid until the next call.

        Args:
            images: (B, C, H, W), or (B, H, W, C) where the run has `channels_last`: the memory stays as it is.
                float32, or u8 where the device normalises: in the loader's order of roundings.
        """
        if self._permuted:
            images = images.permute(0, 3, 1, 2)  # (B, C, H, W)
        if self._normalized:
            return images
        self._floats = _reused(self._floats, images)
        return self._floats.copy_(images).mul_(1 / 255).sub_(self._mean).div_(self._std)


def _reused(memory: torch.Tensor | None, images: torch.Tensor) -> torch.Tensor:
    """Return memory for float32 images: the last batch's, where it fits.

    On a CPU new memory of that size costs several times what is written into it: the system clears it page by page.
    """
    if memory is not None and memory.shape == images.shape and memory.stride() == images.stride():
        return memory
    return torch.empty_like(images, dtype=torch.float32)
