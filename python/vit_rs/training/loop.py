"""The one training loop: every stage of every run goes through it, and can stop and go on after any step.

Everything that the next step depends on is in the state that `save` writes: weights, optimizer, averaged
weights, position in the data, torch's random numbers, sums that are not yet recorded. Mixup, crops, order
and learning rate are functions of the step. So a run that was killed and resumed ends with the weights, to
the bit, of one that was not.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vit_rs.checkpoints import save_checkpoint
from vit_rs.checkpoints.state import save_state
from vit_rs.evaluation import evaluate
from vit_rs.exceptions import CheckpointError, ConfigError
from vit_rs.methods import EMA
from vit_rs.training.fewshot import fewshot_result
from vit_rs.training.optim import build_optimizer
from vit_rs.training.progress import Status
from vit_rs.training.stages import pairs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vit_rs.models import VisionTransformer
    from vit_rs.training.interruption import SignalGuard
    from vit_rs.training.metrics import MetricsLog
    from vit_rs.training.progress import Progress, Workload
    from vit_rs.training.run_folder import RunFolder
    from vit_rs.training.stages import Stage

__all__ = ["Run", "StageLoop"]


@dataclass
class Run:
    """What the stages of a run share.

    Attributes:
        folder: where everything is written.
        log: the records.
        progress: the bar.
        workload: the bar's scale.
        guard: notes signals.
        identity: what a state must have been saved with to be resumed: configuration, data, threads.
        seconds_before: time that earlier processes spent on the run.
    """

    folder: RunFolder
    log: MetricsLog
    progress: Progress
    workload: Workload
    guard: SignalGuard
    identity: dict[str, Any]
    seconds_before: float

    def __post_init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent on the run so far."""
        return self.seconds_before + time.perf_counter() - self._start

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, atomically, after the records that it counts."""
        self.log.sync()
        shared = {"identity": self.identity, "records": self.log.count, "seconds": self.seconds}
        save_state(self.folder.state, {**shared, **state})


class StageLoop:
    """Train one stage, test it, and save its model.

    Args:
        stage: what to do.
        run: where to write.
        model: what the stage starts with, on the run's device.
        state: what `save` wrote in the middle of this stage, or None.
        test_first: whether to test the model before the first step: it has learned something already.

    Raises:
        CheckpointError: if the state does not fit the model.
    """

    def __init__(
        self,
        stage: Stage,
        run: Run,
        model: VisionTransformer,
        *,
        state: dict[str, Any] | None,
        test_first: bool,
    ) -> None:
        self.stage = stage
        self.run = run
        self.model = model
        self.device = next(model.parameters()).device
        self.method = stage.method
        self.optimizer = build_optimizer(model, stage.optim)
        self.ema = None if stage.optim.ema_decay is None else EMA(model, stage.optim.ema_decay)
        self.parameters = list(model.parameters())
        self.loader = stage.train_loader()
        self.test_loader = stage.test_loader()
        self.test_first = test_first
        self.step = 0
        self.tested_step = -1
        # A short stage has at least ten records, or one for each step: enough for a curve.
        self.log_interval = max(1, min(stage.config.log_every, stage.steps // 10))
        # Sums since the last record: read only when one is due, since reading waits for an asynchronous
        # device.
        self.loss_sum = torch.zeros((), device=self.device)
        self.norm_sum = torch.zeros((), device=self.device)
        if state is not None:
            self._restore(state)
        self._saved_at = time.monotonic()
        self._timer = _Timer()

    @property
    def tested_model(self) -> VisionTransformer:
        """The model that is tested and saved: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.model

    def finish(self) -> None:
        """Do what is left of the stage: steps, tests, checkpoint, few-shot result.

        Raises:
            Interrupted: after a signal; what was done is saved.
            ConfigError: if the loss is not a finite number any more.
            DecodeError: if an image cannot be read.
        """
        try:
            while True:
                self._test_if_due()
                if self.step == self.stage.steps:
                    break
                self._train_epoch()
            self._record_result()
        finally:
            self.loader.close()
            self.test_loader.close()

    def _train_epoch(self) -> None:
        self.model.train()
        guard = self.run.guard
        guard.deferred = True
        try:
            for images, labels in self._timer.waiting(iter(self.loader)):
                self._train_step(images, labels)
                if self.step % self.stage.steps_per_epoch == 0:
                    continue  # the loader is at its end too: saved below
                save_due = time.monotonic() - self._saved_at >= self.stage.config.save_seconds
                if save_due or guard.pending is not None:
                    self._save()
                    guard.raise_if_pending()
            self._save()
            guard.raise_if_pending()
        finally:
            guard.deferred = False

    def _train_step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        rate = self.stage.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.method.loss(self.model, images, labels, step=self.step)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.stage.optim.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.stage.optim.clip_norm)
            self.norm_sum += norm
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.loss_sum += loss.detach()
        self.step += 1
        self._timer.images += len(labels)
        if self.step % self.log_interval == 0:
            self._record_training(rate)
        if self.run.progress.is_due:
            self._show(self._status(loss.item()))

    def _record_training(self, rate: float) -> None:
        loss = self._finite_loss() / self.log_interval
        record: dict[str, Any] = {
            "kind": "train",
            "stage": self.stage.name,
            "epoch": self._epoch,
            "step": self.step,
            "train_loss": loss,
            "learning_rate": rate,
        }
        if self.stage.optim.clip_norm is not None:
            record["grad_norm"] = self.norm_sum.item() / self.log_interval
        record["time"] = {"seconds": self.run.seconds, **self._timer.interval()}
        self.run.log.append(record)
        self.loss_sum.zero_()
        self.norm_sum.zero_()

    def _test_if_due(self) -> None:
        epoch, rest = divmod(self.step, self.stage.steps_per_epoch)
        if rest or self.tested_step == self.step:
            return
        every = self.stage.config.evaluation.every_epochs
        due = self.test_first if epoch == 0 else epoch % every == 0 or epoch == self.stage.epochs
        if not due:
            return
        start = time.perf_counter()
        result = evaluate(self.tested_model, pairs(self.test_loader), device=self.device)
        self.run.log.append(
            {
                "kind": "test",
                "stage": self.stage.name,
                "epoch": epoch,
                "step": self.step,
                "test_top1": result["top1"],
                "test_loss": result["loss"],
                "test_images": result["count"],
                "time": {"seconds": self.run.seconds, "test_seconds": time.perf_counter() - start},
            }
        )
        self.tested_step = self.step

    def _record_result(self) -> None:
        """Save the stage's model, record what it is worth, and leave a state at the next stage's start."""
        stage = self.stage
        self._show(f"{stage.name} {stage.size}px: few-shot evaluation")
        data = stage.config.data
        metadata = {
            "recipe": stage.config.recipe,
            "seed": stage.config.seed,
            "stage": stage.name,
            "classes": stage.sources.classes,
            "mean": list(data.mean),
            "std": list(data.std),
            "eval_crop": data.eval_crop,
        }
        save_checkpoint(self.run.folder.path / stage.checkpoint, self.tested_model, metadata=metadata)
        start = time.perf_counter()
        self.run.log.append(
            {
                "kind": "result",
                "stage": stage.name,
                "size": stage.size,
                "epochs": stage.epochs,
                "steps": stage.steps,
                "parameters": sum(parameter.numel() for parameter in self.parameters),
                "checkpoint": stage.checkpoint,
                "fewshot": fewshot_result(stage, self.tested_model, self.test_loader, device=self.device),
                "time": {
                    "seconds": self.run.seconds,
                    "fewshot_seconds": time.perf_counter() - start,
                    **self._timer.total(),
                },
            }
        )
        self.run.save({"stage": stage.index + 1})

    def _save(self) -> None:
        self._finite_loss()  # a state that cannot be gone on from would replace one that can
        self.run.save(
            {
                "stage": self.stage.index,
                "step": self.step,
                "tested_step": self.tested_step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
                "loader": self.loader.state_dict(),
                "rng": torch.get_rng_state(),
                "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
                "loss_sum": self.loss_sum,
                "norm_sum": self.norm_sum,
            }
        )
        self._saved_at = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.run.folder.state}: does not fit the model: {error}") from error
        self.loader.load_state_dict(state["loader"])
        self.step = state["step"]
        self.tested_step = state["tested_step"]
        self.loss_sum.copy_(state["loss_sum"])
        self.norm_sum.copy_(state["norm_sum"])
        torch.set_rng_state(state["rng"])
        if state["device_rng"] is not None:
            torch.cuda.set_rng_state(state["device_rng"], self.device)

    def _finite_loss(self) -> float:
        """Return the sum of losses since the last record; raise where it, or the gradient, is not finite."""
        loss: float = self.loss_sum.item()
        norm: float = self.norm_sum.item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            name = "optim.lr" if self.stage.index == 0 else f"{self.stage.name}.optim.lr"
            what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
            raise ConfigError(
                f"training diverged: {what} at step {self.step} of {self.stage.name}; "
                f"set a lower {name} (it is {self.stage.optim.lr:g}) or a longer warm-up"
            )
        return loss

    @property
    def _epoch(self) -> int:
        """The epoch that the last step was in, 1 for the first."""
        return max(0, self.step - 1) // self.stage.steps_per_epoch + 1

    def _status(self, loss: float) -> str:
        return Status(
            stage=self.stage.name,
            size=self.stage.size,
            epoch=self._epoch,
            epochs=self.stage.epochs,
            loss=loss,
            **self._timer.total(),
        ).text()

    def _show(self, text: str) -> None:
        self.run.progress.show(self.run.workload.done(self.stage.index, self.step), text)


class _Timer:
    """Speed, and the share of the time spent waiting for data, of the training steps of one process."""

    def __init__(self) -> None:
        self.images = 0
        self._wait = 0.0
        self._steps = 0.0
        self._step_start: float | None = None  # inside a step
        self._mark = (0, 0.0, 0.0)

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches, timing how long each was waited for and worked on."""
        asked = time.perf_counter()
        for batch in batches:
            self._step_start = time.perf_counter()
            self._wait += self._step_start - asked
            yield batch
            asked = time.perf_counter()
            self._steps += asked - self._step_start
            self._step_start = None

    def total(self) -> dict[str, float]:
        """Return images_per_second and wait_share since the start."""
        return _rates(*self._now())

    def interval(self) -> dict[str, float]:
        """Return images_per_second and wait_share since the last call."""
        now, mark = self._now(), self._mark
        self._mark = now
        return _rates(now[0] - mark[0], now[1] - mark[1], now[2] - mark[2])

    def _now(self) -> tuple[int, float, float]:
        """Return images, seconds inside steps, seconds waited."""
        begun = 0.0 if self._step_start is None else time.perf_counter() - self._step_start
        return self.images, self._steps + begun, self._wait


def _rates(images: int, steps: float, wait: float) -> dict[str, float]:
    seconds = steps + wait
    if seconds == 0.0:
        return {"images_per_second": 0.0, "wait_share": 0.0}
    return {"images_per_second": images / seconds, "wait_share": wait / seconds}
