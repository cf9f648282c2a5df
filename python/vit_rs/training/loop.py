"""The one training loop: every stage of every run goes through it, and can stop and go on after any step.

Everything that the next step depends on is in the state that `save` writes: weights, optimizer, averaged
weights, position in the data, torch's random numbers, sums that are not yet recorded. Mixup, crops, order
and learning rate are functions of the step. So a run that was killed and resumed ends with the weights, to
the bit, of one that was not.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vit_rs.checkpoints import save_checkpoint
from vit_rs.exceptions import CheckpointError, ConfigError, DatasetError
from vit_rs.training.engine import Engine
from vit_rs.training.fewshot import fewshot_result
from vit_rs.training.interruption import Interrupted
from vit_rs.training.progress import Status
from vit_rs.training.shared_evaluation import shared_test
from vit_rs.training.sources import preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vit_rs.models.catalogue import Model
    from vit_rs.training.interruption import SignalGuard
    from vit_rs.training.metrics import MetricsLog
    from vit_rs.training.parallel import Parallel
    from vit_rs.training.progress import Progress, Workload
    from vit_rs.training.run_folder import RunFolder
    from vit_rs.training.stages import Stage
    from vit_rs.training.states import SavedStates

__all__ = ["Run", "StageLoop"]

# Saving takes at most this share of the time.
_SAVING_SHARE = 1 / 50
_BEST = "model-best.safetensors"
# Steps in a row, all of whose images are unreadable, after which a run does not go on without them.
_MOST_EMPTY_STEPS = 20


@dataclass
class Run:
    """What the stages of a run share.

    Attributes:
        folder: where everything is written.
        states: the saved states.
        parallel: the processes.
        log: the records; None where another process writes them.
        progress: the bar.
        workload: the bar's scale.
        guard: notes signals.
        identity: what a state must have been saved with to be resumed: configuration, data, threads.
        seconds_before: time that earlier processes spent on the run.
        best: highest test accuracy so far, 0..1.
    """

    folder: RunFolder
    states: SavedStates
    parallel: Parallel
    log: MetricsLog | None
    progress: Progress
    workload: Workload
    guard: SignalGuard
    identity: dict[str, Any]
    seconds_before: float
    best: float = -1.0

    def __post_init__(self) -> None:
        self._start = self._saved_at = time.perf_counter()
        self._saving_seconds = 0.0  # that the last save took

    @property
    def seconds(self) -> float:
        """Time spent on the run so far."""
        return self.seconds_before + time.perf_counter() - self._start

    def record(self, record: dict[str, Any]) -> None:
        """Append a record, on the process that writes them."""
        with self.parallel.together():
            if self.log is not None:
                self.log.append(record)

    def save_due(self, seconds: float) -> bool:
        """Return whether so many seconds have passed since the last save, and saving would not take too large a share.

        Args:
            seconds: between two states.
        """
        passed = time.perf_counter() - self._saved_at
        return passed >= max(seconds, self._saving_seconds / _SAVING_SHARE)

    def save(self, step: int, state: dict[str, Any], parts: Callable[[Path], None] | None = None) -> None:
        """Write a state, atomically, after the records that it counts.

        Args:
            step: of all stages together.
            state: what it consists of.
            parts: see `SavedStates.save`.
        """
        start = time.perf_counter()
        with self.parallel.together():
            if self.log is not None:
                self.log.sync()
        shared = {
            "identity": self.identity,
            "world_size": self.parallel.world_size,
            "records": None if self.log is None else self.log.count,
            "seconds": self.seconds,
            "best": self.best,
        }
        self.states.save(step, {**shared, **state}, self.parallel, parts=parts)
        self._saved_at = time.perf_counter()
        self._saving_seconds = self._saved_at - start


class StageLoop:
    """Train one stage, test it, and save its model.

    Args:
        stage: what to do.
        run: where to write.
        model: what the stage starts with, on the run's device.
        state: what `save` wrote in the middle of this stage, or None.
        test_first: whether to test the model before the first step: it has learned something already.
        steps_before: steps of the stages before this one.

    Raises:
        CheckpointError: if the state does not fit the model.
    """

    def __init__(
        self,
        stage: Stage,
        run: Run,
        model: Model,
        *,
        state: dict[str, Any] | None,
        test_first: bool,
        steps_before: int,
    ) -> None:
        self.stage = stage
        self.run = run
        self.parallel = stage.parallel
        self.steps_before = steps_before
        self.engine = Engine(stage, model)
        self.device = self.engine.device
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
        # Steps since the last record that had images; steps in a row for which this process had none; images of the
        # epoch that are recorded as unreadable; the step of the last state.
        self.seen_steps = 0
        self._empty_steps = 0
        self._reported = 0
        self._saved_step = 0
        if state is not None:
            self._restore(state)
        self._timer = _Timer(self.engine)

    def finish(self) -> None:
        """Do what is left of the stage: steps, tests, checkpoint, few-shot result.

        Raises:
            Interrupted: after a signal; what was done is saved.
            ConfigError: if the loss is not a finite number any more.
            DecodeError: if an image cannot be read.
            DatasetError: if none of many steps can.
        """
        # A signal is looked at between steps and between batches of a test: nothing is left half-done.
        self.run.guard.deferred = True
        try:
            while True:
                self._test_if_due()
                if self._at_end:
                    break
                self._train_epoch()
            self._record_result()
            self._go_on()
        finally:
            self.run.guard.deferred = False
            self.loader.close()
            self.test_loader.close()

    def _train_epoch(self) -> None:
        self.engine.train()
        self._reported = 0
        # A stage of so many steps may end within an epoch.
        batches = itertools.islice(self.loader, self.stage.steps - self.step)
        for images, labels in self._timer.waiting(batches):
            self._train_step(images, labels)
            if self._at_end or self.step % self.stage.steps_per_epoch == 0:
                continue  # the batches are at their end too: see below
            self._stop_or_save(self.stage.config.save_seconds)
        self._record_unreadable()
        self._stop_or_save(0.0)

    def _stop_or_save(self, save_seconds: float) -> None:
        """Save where that is due or a signal has come to any process; after a signal, stop on all."""
        due = self.run.save_due(save_seconds)
        signum, save = self.parallel.stop_or_save(self.run.guard.pending, save=due)
        if save or signum is not None:
            self._save()
        if signum is not None:
            raise Interrupted(signum)

    def _go_on(self) -> None:
        """Raise, on all processes, where a signal has come to any."""
        signum, _ = self.parallel.stop_or_save(self.run.guard.pending, save=False)
        if signum is not None:
            raise Interrupted(signum)

    @contextlib.contextmanager
    def _examining(self) -> Iterator[torch.nn.Module]:
        """Give the model to test; where a signal stops that, the steps that no state has yet are saved first."""
        try:
            with self.engine.examining() as model:
                yield model
        except Interrupted:
            if self._saved_step != self.step:
                self._save()
            raise

    def _train_step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        loss, norm = self.engine.step(images, labels, self.step)
        self.loss_sum += loss
        if norm is not None:
            self.norm_sum += norm
        self.step += 1
        self._count(len(labels))
        self._timer.images += self.engine.images
        if self.step % self.log_interval == 0:
            self._record_training()
        if self.run.progress.is_due:
            self._show(self._status(loss.item()))

    def _record_training(self) -> None:
        loss, norm = self._finite_sums()
        steps = self.seen_steps
        if steps == 0:
            return  # nothing was learned, there is no loss to tell
        record: dict[str, Any] = {
            "kind": "train",
            "stage": self.stage.name,
            "epoch": self._epoch,
            "step": self.step,
            "train_loss": loss / steps,
            "learning_rate": self.stage.learning_rate(self.step - 1),
            "weight_decay": self.stage.weight_decay(self.step - 1),
        }
        if self.stage.optim.clip_norm is not None:
            record["grad_norm"] = norm / steps
        record["time"] = {"seconds": self.run.seconds, **self._timer.interval()}
        self.run.record(record)
        self.loss_sum.zero_()
        self.norm_sum.zero_()
        self.seen_steps = 0

    def _count(self, images: int) -> None:
        """Note whether a step had images; where none has come for long here, they are gone, and the run ends."""
        self.seen_steps += self.engine.images > 0
        if images:
            self._empty_steps = 0
            return
        self._empty_steps += 1
        if self._empty_steps == min(_MOST_EMPTY_STEPS, self.stage.steps_per_epoch):
            failure = next(reversed(self.loader.stats().failures), "nothing was noted")
            raise DatasetError(f"no image of the last {self._empty_steps} steps could be read: {failure}")

    def _record_unreadable(self) -> None:
        """Record the images that were left out or replaced since the last such record: nothing is lost in silence."""
        if self.stage.config.data.on_error == "raise":
            return
        failures = self.loader.stats().failures
        new = failures[self._reported :]
        self._reported = len(failures)
        lines = [line for part in self.parallel.gather(new) for line in part]
        if lines:
            known = set() if self.run.log is None else self.run.log.unreadable
            self.run.record(
                {
                    "kind": "unreadable",
                    "stage": self.stage.name,
                    "epoch": self._epoch,
                    "step": self.step,
                    # Times that one was met: substitution may draw one twice.
                    "images": len(lines),
                    # Those that no earlier record of the run names.
                    "new": [line for line in dict.fromkeys(lines) if line not in known],
                }
            )

    def _test_if_due(self) -> None:
        epoch, rest = divmod(self.step, self.stage.steps_per_epoch)
        every = self.stage.config.evaluation.every_epochs
        due = self.test_first if self.step == 0 else (not rest and epoch % every == 0) or self._at_end
        if not due or self.tested_step == self.step:
            return
        start = time.perf_counter()
        images = len(self.stage.sources.test)
        with self._examining() as model:
            result = shared_test(self.stage, model, self.test_loader, images=images, go_on=self._go_on)
        self.run.record(
            {
                "kind": "test",
                "stage": self.stage.name,
                "epoch": self._epoch,
                "step": self.step,
                "test_top1": result["top1"],
                "test_loss": result["loss"],
                "test_images": result["count"],
                "time": {"seconds": self.run.seconds, "test_seconds": time.perf_counter() - start},
            }
        )
        self.tested_step = self.step
        if result["top1"] > self.run.best:
            self.run.best = result["top1"]
            if self.stage.config.keep_best:
                self._save_model(_BEST, {"step": self.step, "test_top1": result["top1"]})

    def _record_result(self) -> None:
        """Save the stage's model, record what it is worth, and leave a state at the next stage's start."""
        stage = self.stage
        self._show(f"{stage.name} {stage.size}px: few-shot evaluation")
        self._save_model(stage.checkpoint, {})
        start = time.perf_counter()
        with self._examining() as model:
            fewshot = fewshot_result(stage, model, self.test_loader, go_on=self._go_on)
        self.run.record(
            {
                "kind": "result",
                "stage": stage.name,
                "size": stage.size,
                "epochs": stage.epochs,
                "steps": stage.steps,
                "parameters": sum(parameter.numel() for parameter in self.engine.model.parameters()),
                "checkpoint": stage.checkpoint,
                "fewshot": fewshot,
                "time": {
                    "seconds": self.run.seconds,
                    "fewshot_seconds": time.perf_counter() - start,
                    **self._timer.total(),
                },
            }
        )
        self.run.save(self.steps_before + self.step, {"stage": stage.index + 1})

    def _save_model(self, name: str, details: dict[str, Any]) -> None:
        """Write the tested model, whole, from the first process."""
        stage = self.stage
        data = stage.config.data
        metadata = {
            "recipe": stage.config.recipe,
            "seed": stage.config.seed,
            "stage": stage.name,
            "classes": stage.sources.classes,
            "preprocessing": preprocessing(data, stage.size).to_dict(),
            # How to find the images that the model never saw.
            "split": {"holdout": data.holdout, "split_seed": data.split_seed, "per_class": data.per_class},
            **details,
        }
        model = self.engine.tested_model
        if self.parallel.sharded:
            weights = self.parallel.whole_state(model)
            if weights is not None:
                with torch.device("meta"):
                    model = stage.build_model()
                model.load_state_dict(weights, assign=True)
        with self.parallel.together():
            if self.parallel.is_main:
                save_checkpoint(self.run.folder.path / name, model, metadata=metadata)

    def _save(self) -> None:
        self._finite_sums()  # a state that cannot be gone on from would replace one that can
        self._record_unreadable()
        own = {
            "rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "loss_sum": self.loss_sum.item(),
            "norm_sum": self.norm_sum.item(),
            "seen_steps": self.seen_steps,
        }
        state = {
            "stage": self.stage.index,
            "step": self.step,
            "tested_step": self.tested_step,
            "loader": self.loader.state_dict(),
            "processes": self.parallel.gather(own),
        }
        step = self.steps_before + self.step
        if self.parallel.sharded:
            self.run.save(step, {**state, "ema_updates": self.engine.ema_updates}, self.engine.save_parts)
        else:
            self.run.save(step, {**state, **(self.engine.state_dict() if self.parallel.is_main else {})})
        self._saved_step = self.step

    def _restore(self, state: dict[str, Any]) -> None:
        path = state["path"]
        try:
            if "ema_updates" in state:
                self.engine.load_parts(path, ema_updates=state["ema_updates"])
            else:
                self.engine.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: does not fit the model: {error}") from error
        self.loader.load_state_dict(state["loader"])
        self.step = self._saved_step = state["step"]
        self.tested_step = state["tested_step"]
        saved = state["processes"]
        # Each process's own where there are as many as then; else sums are spread evenly and dropout is drawn anew.
        same = len(saved) == self.parallel.world_size
        own = saved[self.parallel.rank] if same else None
        for name, total in (("loss_sum", self.loss_sum), ("norm_sum", self.norm_sum)):
            total.fill_(own[name] if own is not None else sum(process[name] for process in saved) / len(saved))
        self.seen_steps = saved[0]["seen_steps"]  # the same on each
        if own is None:
            self.parallel.seed(self.stage.stream, self.step)
            return
        torch.set_rng_state(own["rng"])
        if own["device_rng"] is not None:
            torch.cuda.set_rng_state(own["device_rng"], self.device)

    def _finite_sums(self) -> tuple[float, float]:
        """Return the sums of losses and norms since the last record, as means over the processes.

        Raises:
            ConfigError: one of them is not finite; on all processes.
        """
        loss: float = self.parallel.mean(self.loss_sum.item())
        norm: float = self.parallel.mean(self.norm_sum.item())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            name = "optim.lr" if self.stage.index == 0 else f"{self.stage.name}.optim.lr"
            what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
            with self.parallel.together():
                raise ConfigError(
                    f"training diverged: {what} at step {self.step} of {self.stage.name}; "
                    f"set a lower {name} (it is {self.stage.optim.lr:g}) or a longer warm-up"
                )
        return loss, norm

    @property
    def _epoch(self) -> int:
        """The epoch that the last step was in, 1 for the first; 0 before it."""
        return -(-self.step // self.stage.steps_per_epoch)

    @property
    def _at_end(self) -> bool:
        return self.step == self.stage.steps

    def _status(self, loss: float) -> str:
        rates = self._timer.total()
        return Status(
            stage=self.stage.name,
            size=self.stage.size,
            epoch=self._epoch,
            epochs=self.stage.epochs,
            loss=loss,
            images_per_second=rates["images_per_second"],
            wait_share=rates["wait_share"],
        ).text()

    def _show(self, text: str) -> None:
        self.run.progress.show(self.run.workload.done(self.stage.index, self.step), text)


class _Timer:
    """Where the time of a process's training steps goes."""

    def __init__(self, engine: Engine) -> None:
        self.images = 0
        self._engine = engine
        self._wait = 0.0
        self._steps = 0.0
        self._step_start: float | None = None  # inside a step
        self._mark = (0, 0.0, 0.0, 0.0)

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
        """Return images_per_second, and wait_share and loop_share of the time, since the start.

        wait_share is the time spent waiting for batches; loop_share is that and all else that is not a forward or
        backward pass or the optimizer's.
        """
        return _rates(*self._now())

    def interval(self) -> dict[str, float]:
        """Return the same since the last call."""
        now, mark = self._now(), self._mark
        self._mark = now
        return _rates(now[0] - mark[0], now[1] - mark[1], now[2] - mark[2], now[3] - mark[3])

    def _now(self) -> tuple[int, float, float, float]:
        """Return images, seconds inside steps, seconds waited, seconds computed."""
        begun = 0.0 if self._step_start is None else time.perf_counter() - self._step_start
        return self.images, self._steps + begun, self._wait, self._engine.seconds


def _rates(images: int, steps: float, wait: float, computed: float) -> dict[str, float]:
    seconds = steps + wait
    if seconds == 0.0:
        return {"images_per_second": 0.0, "wait_share": 0.0, "loop_share": 0.0}
    return {
        "images_per_second": images / seconds,
        "wait_share": wait / seconds,
        "loop_share": 1.0 - computed / seconds,
    }
