"""How long the job takes: a measured estimate before it starts, one bar over all of it while it runs."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

from vit_rs.training.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from vit_rs.training.stages import Stage

__all__ = ["Progress", "Status", "Workload", "clock", "measure", "threads"]

# A forward pass alone costs about a third of forward and backward: two of the three matrix products are the
# backward's.
_FORWARD_SHARE = 1 / 3
_LINE_SECONDS = 10.0
_REFRESH_SECONDS = 0.5
_PROBE_IMAGES = 8
_PROBE_STEPS = 3
_STEPS = 5


@dataclass(frozen=True)
class Status:
    """What the bar shows: see `text`."""

    stage: str
    size: int
    epoch: int  # 1 for the first
    epochs: int
    loss: float
    images_per_second: float
    wait_share: float  # of the time, 0..1

    def text(self) -> str:
        """Return the status in words."""
        return (
            f"{self.stage} {self.size}px epoch {self.epoch}/{self.epochs}, loss {self.loss:.3f}, "
            f"{self.images_per_second:,.0f} images/s, data wait {self.wait_share:.0%}"
        )


class Workload:
    """The seconds that a run's parts are expected to take, for the bar's scale and the time left.

    Args:
        stages: the run's stages.
        image_seconds: seconds that a training image takes in each stage.
        fewshot_images: images whose features each stage extracts at its end.
    """

    def __init__(self, stages: Sequence[Stage], image_seconds: Sequence[float], *, fewshot_images: int) -> None:
        self._starts: list[float] = []
        self._step_seconds: list[float] = []
        end = 0.0
        for stage, seconds in zip(stages, image_seconds, strict=True):
            tests = -(-stage.epochs // stage.config.evaluation.every_epochs)
            forward_images = tests * len(stage.sources.test)
            images = stage.steps * stage.epoch_images / stage.steps_per_epoch
            trained = seconds * (images + _FORWARD_SHARE * forward_images)
            self._starts.append(end)
            # Tests are spread over the steps: the bar then moves evenly.
            self._step_seconds.append(trained / stage.steps)
            end += trained + _FORWARD_SHARE * seconds * fewshot_images
        self._starts.append(end)

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return self._starts[-1]

    def done(self, stage: int, step: int) -> float:
        """Return the seconds of the run's parts before a step of a stage (given by their numbers from 0)."""
        inside = self._step_seconds[stage] * step if stage < len(self._step_seconds) else 0.0
        return self._starts[stage] + inside


def measure(stage: Stage, *, seconds: float) -> float:
    """Return the seconds that one training image takes, loading included: the lower median of some real steps.

    Not their mean: where another program stops one step for long, the others tell how the run will go. Nothing of it
    stays: model, optimizer and loader are thrown away. All processes of a run do it together.

    Args:
        stage: the stage.
        seconds: time to spend, beyond the steps on few images; up to three times as much where steps are long.
    """
    parallel = stage.parallel
    # Compiling takes longer than it is measured.
    plain = dataclasses.replace(stage, config=dataclasses.replace(stage.config, compile=False))
    engine = Engine(plain, stage.build_model().to(parallel.device))
    probe, whole = math.inf, []
    with stage.train_loader() as loader:
        for step, batch in enumerate(loader):
            images, labels = batch
            if step < _PROBE_STEPS:
                # The first step makes kernels and buffers, the others tell whether a whole one can be afforded; all
                # on few images, since with a large model on a CPU one step can take a minute.
                images, labels = images[:_PROBE_IMAGES], labels[:_PROBE_IMAGES]
                start = before = time.perf_counter()
            loss, _ = engine.step(images, labels, step)
            loss.item()  # wait for an asynchronous device
            before, took = time.perf_counter(), time.perf_counter() - before
            image_seconds = took / (max(1, len(labels)) * parallel.world_size)
            if step < _PROBE_STEPS:
                start, probe = before, min(probe, image_seconds)
                if step == _PROBE_STEPS - 1 and parallel.any(probe * stage.batch_size > seconds):
                    break
                continue
            whole.append(image_seconds)
            enough = seconds if len(whole) >= _STEPS else 3 * seconds
            if parallel.any(before - start > enough):
                break
    return statistics.median_low(whole) if whole else probe


class _Bar(Protocol):
    n: float

    def set_description_str(self, desc: str, refresh: bool = True) -> None: ...

    def close(self) -> None: ...


class Progress:
    """One bar on a terminal; elsewhere a plain line every ten seconds. A context manager.

    Args:
        total: seconds that the whole job is expected to take; the bar's scale.
        done: seconds of it that were done before, by an earlier process.
        enabled: False writes nothing.
        stream: where it is written; None is standard error.
    """

    def __init__(self, total: float, *, done: float, enabled: bool, stream: TextIO | None = None) -> None:
        self._total = total
        self._done = self._initial = done
        self._enabled = enabled
        self._stream = sys.stderr if stream is None else stream
        self._start = self._shown = time.monotonic()
        # Time and seconds done: at the start, later at the last two doublings of the time since.
        self._marks = [(self._start, done)]
        self._bar: _Bar | None = None
        if enabled and self._stream.isatty():
            # Imported when there is a bar to draw.
            from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415

            self._bar = tqdm(
                total=total,
                initial=done,
                file=self._stream,
                # A pseudo-terminal may say that it has no size, and tqdm would draw nothing on it.
                dynamic_ncols=_has_size(self._stream),
                ncols=100,
                nrows=24,
                desc=f"{clock(total - done)} left",
                bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed to show something new."""
        interval = _LINE_SECONDS if self._bar is None else _REFRESH_SECONDS
        return self._enabled and time.monotonic() - self._shown >= interval

    def show(self, done: float, text: str) -> None:
        """Show how far the job is.

        Args:
            done: seconds of the expected total.
            text: what is being done.
        """
        self._shown = time.monotonic()
        self._done = done
        if self._shown - self._start >= 2 * (self._marks[-1][0] - self._start):
            self._marks = [self._marks[-1], (self._shown, done)]
        if self._bar is not None:
            self._bar.n = min(done, self._total)
            self._bar.set_description_str(f"{clock(self._seconds_left())} left, {text}")
        elif self._enabled:
            self._stream.write(f"{done / self._total:4.0%} done, {clock(self._seconds_left())} left: {text}\n")
            self._stream.flush()

    def _seconds_left(self) -> float:
        """Return the expected time left, by the pace of the last half of the time, or somewhat more.

        So a slow beginning (a busy machine, a cold disk) is forgotten. The estimate alone counts before anything is
        done.
        """
        for since, before in (self._marks[0], (self._start, self._initial)):
            if self._done > before:
                pace = (time.monotonic() - since) / (self._done - before)
                return pace * (self._total - self._done)
        return self._total - self._done


def threads(count: int) -> str:
    """Return "1 torch thread", "2 torch threads"."""
    return f"{count} torch thread{'s' if count != 1 else ''}"


def _has_size(stream: TextIO) -> bool:
    try:
        return min(os.get_terminal_size(stream.fileno())) > 0
    except OSError:  # not a real terminal
        return False


def clock(seconds: float) -> str:
    """Return a duration as people write it: "45 s", "3 min 20 s", "2 h 05 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
