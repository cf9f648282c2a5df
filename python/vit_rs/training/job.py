"""A run from configuration to summary: check, make the folder, go through the stages, report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import torch

from vit_rs import distributed
from vit_rs.exceptions import CheckpointError, ConfigError, DecodeError, VitRsError
from vit_rs.training.fewshot import fewshot_images
from vit_rs.training.interruption import Interrupted, SignalGuard
from vit_rs.training.loop import Run, StageLoop
from vit_rs.training.metrics import MetricsLog, read_metrics
from vit_rs.training.parallel import connected
from vit_rs.training.plan import notices, plan
from vit_rs.training.progress import Progress, Workload, measure
from vit_rs.training.run_folder import RunFolder, read_config
from vit_rs.training.sources import open_sources
from vit_rs.training.stages import build_stages, finetune_size
from vit_rs.training.states import SavedStates
from vit_rs.training.summary import build_summary, summary_markdown
from vit_rs.training.tensorboard import check_tensorboard
from vit_rs.training.values import get_setting, setting_names

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from vit_rs.data.splits import Splits
    from vit_rs.training.config import TrainConfig
    from vit_rs.training.parallel import Parallel
    from vit_rs.training.stages import Stage

__all__ = ["train"]

# Time for measuring the speed before the run starts, shared by the stages.
_MEASURE_SECONDS = 1.2
_HINT_SECONDS = 0.3


def train(
    config: TrainConfig,
    workdir: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    draw: Callable[[Path], Sequence[Path]] | None = None,
    progress: bool = True,
    stream: TextIO | None = None,
) -> dict[str, Any]:
    """Train, test, fine-tune at a higher resolution, test again, and leave everything in one folder.

    Everything that can be wrong is looked for before the folder is made. The state is saved at the ends of
    epochs and every `config.save_seconds`, where saving takes no more than a fiftieth of the time, and always at
    the end of a stage and on SIGINT and SIGTERM; a run that goes on from it ends with the same weights, to the bit,
    on the same kind of machine. torch's number of threads is set for the duration of the call, its global random
    generator is seeded.

    Processes that torchrun started train together: each calls this function with the same arguments, on a file system
    that they share. The first one writes; what ends one ends all.

    Args:
        config: what to do.
        workdir: the run's folder, new or empty; None takes the first free runs/<recipe>-NNN.
        resume: go on with the run in `workdir`, whose configuration must be the same (loader threads apart).
            A finished run is left as it is.
        draw: called with the folder when all is trained; draws figures in it and returns their paths.
        progress: whether to write the plan and the progress.
        stream: where to; None is standard error.

    Returns:
        The summary, as in summary.json; with the folder's path under "folder".

    Raises:
        ConfigError: a setting cannot be used; the folder is in use; training diverged.
        DatasetError, DecodeError: the images cannot be used; FileNotFoundError if they are missing.
        CheckpointError: weights or state do not fit.
        OtherProcessError: another process of the run failed, with this one's error where that came to several.
        VitRsError: another process of the run was lost.
        Interrupted: after a signal (it is a KeyboardInterrupt); the message says how to go on.
    """
    config = config.validated()
    if resume and workdir is None:
        raise ConfigError("resume needs the run's folder: pass workdir")
    with connected(config.parallel, config.device) as parallel:
        where = None if workdir is None else Path(workdir)
        job = _Job(config, parallel, resume=resume, draw=draw, progress=progress and parallel.is_main, stream=stream)
        return job.run(where)


class _Saved(NamedTuple):
    """A run's states, and the one that it goes on from."""

    states: SavedStates
    newest: dict[str, Any] | None


class _Job:
    """One process's part in a run; arguments as in `train`."""

    def __init__(
        self,
        config: TrainConfig,
        parallel: Parallel,
        *,
        resume: bool,
        draw: Callable[[Path], Sequence[Path]] | None,
        progress: bool,
        stream: TextIO | None,
    ) -> None:
        self.config = config
        self.parallel = parallel
        self.resume = resume
        self.draw = draw
        self.progress = progress
        self.stream = sys.stderr if stream is None else stream

    def run(self, workdir: Path | None) -> dict[str, Any]:
        """Do all of it; return the summary."""
        with self.parallel.together():
            try:
                stages, parameters = self._prepared(workdir)
            except KeyboardInterrupt:
                raise Interrupted(signal.SIGINT, "stopped before training began") from None
        with self._folder(workdir) as folder:
            if self.parallel.from_main(lambda: folder.is_finished):
                self._write(f"{folder.path} is finished already: see {folder.path / 'summary.md'}")
                return _with_folder(json.loads(folder.summary.read_text()), folder)
            states = SavedStates(folder.states, keep=self.config.keep_states)
            with (
                _tidied(folder, states, self.parallel, resumed=self.resume),
                SignalGuard(supervised=distributed.is_supervised()) as guard,
                self.parallel.watched(),
                _damage_explained(resumed=self.resume),
            ):
                state = self._state(states)
                count = self.config.torch_threads if state is None else state["identity"]["torch_threads"]
                with _torch_threads(count):
                    summary, figures = self._trained(
                        stages, parameters, folder, saved=_Saved(states, state), guard=guard
                    )
            names = [figure.relative_to(folder.path).as_posix() for figure in figures]
            with self.parallel.together():
                folder.write_text("summary.md", summary_markdown(summary, names))
                # Last: a folder with summary.json is a finished run.
                folder.write_text("summary.json", json.dumps(summary, indent=2) + "\n")
                if self.parallel.is_main:
                    states.remove()
            return _with_folder(summary, folder)

    def _prepared(self, workdir: Path | None) -> tuple[list[Stage], int]:
        """Look for everything that can be wrong; return the stages and the number of parameters."""
        config, parallel = self.config, self.parallel
        if config.tensorboard and parallel.is_main:
            check_tensorboard()
        sources = open_sources(config.data)
        if config.finetune.epochs:
            size = finetune_size(config, sources)
            config = dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, img_size=size))
            self.config = config
        if self.resume and workdir is not None:
            _check_same(read_config(workdir), config, workdir)
        stages = build_stages(config, sources, parallel)
        return stages, _check_models(stages)

    def _folder(self, workdir: Path | None) -> RunFolder:
        """Return the run's folder, made and held by the first process."""
        held: list[RunFolder] = []

        def take() -> Path:
            reopened = workdir if self.resume else None
            held.append(RunFolder.create(self.config, workdir) if reopened is None else RunFolder.reopen(reopened))
            return held[0].path

        path = self.parallel.from_main(take)
        return held[0] if held else RunFolder.shared(path)

    def _state(self, states: SavedStates) -> dict[str, Any] | None:
        """Return the newest state, None where the run starts from the beginning."""
        if not self.resume:
            return None

        def newest() -> Path | None:
            states.clean()
            return states.newest()

        path = self.parallel.from_main(newest)
        if path is None:
            self._write(f"Nothing was saved in {states.folder.parent}: the run starts from the beginning")
            return None
        with self.parallel.together():
            state = {**states.load(path), "path": path}
            before, now = state["world_size"], self.parallel.world_size
            if before != now and self.config.batch_of == "process":
                raise ConfigError(
                    f"{path} was saved by {_processes(before)} of {self.config.batch_size} images each (batch_of is "
                    f"process): with {_processes(now)} a batch would be another; resume with {_processes(before)}"
                )
        if before != now:
            self._write(
                f"Note: {path.name} was saved by {_processes(before)}, and {_processes(now)} go on: batches, their "
                "order and the learning rate stay; dropout, mixup and the last bits of sums differ"
            )
        return state

    def _trained(
        self, stages: Sequence[Stage], parameters: int, folder: RunFolder, *, saved: _Saved, guard: SignalGuard
    ) -> tuple[dict[str, Any], Sequence[Path]]:
        """Go through the stages; return the summary and the paths of the figures."""
        parallel, sources = self.parallel, stages[0].sources
        states, state = saved
        identity = _identity(self.config, sources)
        with parallel.together():
            if state is not None and state["identity"] != identity:
                raise CheckpointError(
                    f"{state['path']} was saved with other {_differences(state['identity'], identity)}: "
                    "the run cannot go on as if nothing had happened"
                )
        image_seconds = [measure(stage, seconds=_MEASURE_SECONDS / len(stages)) for stage in stages]
        workload = Workload(stages, image_seconds, fewshot_images=fewshot_images(stages[0]))
        start, step = (0, 0) if state is None else (state["stage"], state.get("step", 0))
        done = workload.done(start, step)
        self._write(plan(stages, parameters, folder.path, workload.total - done, resumed=self.resume))
        for line in notices(stages):
            self._write(line)
        hint = None if self.resume else _thread_hint(stages[0], image_seconds[0])
        if hint is not None:
            self._write(hint)
        with parallel.together():
            kept = 0 if state is None else state["records"]
            board = folder.tensorboard if self.config.tensorboard else None
            log = MetricsLog(folder.metrics, keep=kept, tensorboard=board) if parallel.is_main else None
        bar = Progress(workload.total, done=done, enabled=self.progress, stream=self.stream)
        with contextlib.closing(log) if log is not None else contextlib.nullcontext(), bar:
            run = Run(
                folder,
                states,
                parallel,
                log,
                bar,
                workload,
                guard,
                identity,
                seconds_before=0.0 if state is None else state["seconds"],
                best=-1.0 if state is None else state["best"],
            )
            for stage in stages[start:]:
                inside = state is not None and stage.index == start and "step" in state
                _run_stage(stage, stages, run, state if inside else None)
            bar.show(workload.total, "drawing figures")
            figures = parallel.from_main(lambda: () if self.draw is None else tuple(self.draw(folder.path)))
        summary = parallel.from_main(
            lambda: build_summary(self.config, sources, read_metrics(folder.metrics), seconds=run.seconds)
        )
        return summary, figures

    def _write(self, line: str) -> None:
        if self.progress:
            self.stream.write(line + "\n")
            self.stream.flush()


def _run_stage(stage: Stage, stages: Sequence[Stage], run: Run, state: dict[str, Any] | None) -> None:
    """Run one stage from the start, or from a state saved inside it."""
    if stage.index == 0:
        model_config = stage.config.model
        start_from = None if model_config.init is None else Path(model_config.init)
        head = model_config.init_head
    else:
        start_from, head = run.folder.path / stages[stage.index - 1].checkpoint, "keep"
    with stage.parallel.together():
        model = stage.initial_model(None if state is not None else start_from, head=head)
    if not stage.parallel.is_main:  # the first draws as a lone one would
        stage.parallel.seed(stage.stream)
    steps_before = sum(earlier.steps for earlier in stages[: stage.index])
    StageLoop(stage, run, model, state=state, test_first=start_from is not None, steps_before=steps_before).finish()


def _check_models(stages: Sequence[Stage]) -> int:
    """Raise where a stage's model cannot be built or filled; return the number of parameters of the first."""
    with torch.device("meta"):  # shapes only: a large model's random weights take seconds
        models = [stage.build_model() for stage in stages]
    model = stages[0].config.model
    if model.init is not None:
        stages[0].initial_model(model.init, head=model.init_head)
    return sum(parameter.numel() for parameter in models[0].parameters())


def _thread_hint(stage: Stage, image_seconds: float) -> str | None:
    """Return a line that says so where one torch thread is clearly faster than the default number.

    The threads of an operator wait for each other: where other programs use the cores, a small model is tens
    of times slower on all cores than on one. The number is not changed unasked, since results depend on it.
    """
    count = torch.get_num_threads()
    alone = stage.parallel.world_size == 1
    if stage.config.torch_threads is not None or stage.config.device != "cpu" or count == 1 or not alone:
        return None
    with _torch_threads(1):
        seconds = measure(stage, seconds=_HINT_SECONDS)
    if image_seconds < 1.5 * seconds:
        return None
    return (
        f"Note: one torch thread is {image_seconds / seconds:.1f} times as fast as {count} now, other programs may be "
        "using the cores; --set torch_threads=1 uses one"
    )


def _check_same(stored: TrainConfig, config: TrainConfig, folder: Path) -> None:
    """Raise unless the configurations agree; the number of loader threads never changes a result."""
    differing = [
        name
        for name in setting_names(type(config))
        if name != "loader_threads" and get_setting(stored, name) != get_setting(config, name)
    ]
    if differing:
        listed = "; ".join(
            f"{name} is {get_setting(stored, name)!r} there, got {get_setting(config, name)!r}" for name in differing
        )
        raise ConfigError(f"{folder} holds a run with other settings, which resuming keeps: {listed}")


def _identity(config: TrainConfig, sources: Splits) -> dict[str, Any]:
    """Return what must not change between saving a state and going on from it."""
    settings = dataclasses.replace(config, loader_threads=None)
    return {
        "settings": settings.to_json(),
        "training images": len(sources.train),
        "test images": len(sources.test),
        "classes": sources.classes,
        "torch_threads": torch.get_num_threads(),
    }


def _differences(saved: dict[str, Any], current: dict[str, Any]) -> str:
    return ", ".join(
        name if name == "settings" else f"{name} ({saved.get(name)}, now {value})"
        for name, value in current.items()
        if saved.get(name) != value
    )


@contextlib.contextmanager
def _tidied(folder: RunFolder, states: SavedStates, parallel: Parallel, *, resumed: bool) -> Iterator[None]:
    """Remove the folder of a run that fails before anything is saved; else say how to go on."""
    how = f"go on with: vit-rs train --resume --out {folder.path}"
    try:
        yield
    except Interrupted as stop:
        name = signal.Signals(stop.signum).name
        if resumed or states.newest() is not None:
            saved = ", and saved" if states.newest() is not None else ""
            raise Interrupted(stop.signum, f"stopped by {name}{saved}; {how}") from None
        folder.discard()
        raise Interrupted(stop.signum, f"stopped by {name} before anything was trained") from None
    except (VitRsError, OSError) as error:
        if "go on" in str(error) or not parallel.is_main:
            raise
        if resumed or states.newest() is not None:
            kind = type(error) if isinstance(error, VitRsError) else VitRsError
            raise kind(f"{error}; the last checkpoint is kept: {how}") from error
        folder.discard()
        raise


@contextlib.contextmanager
def _damage_explained(*, resumed: bool) -> Iterator[None]:
    """Say what can be done about an image that cannot be read; a resumed run keeps its settings."""
    try:
        yield
    except DecodeError as error:
        skip = "" if resumed else "; --set data.on_error=skip leaves them out"
        raise DecodeError(f"{error} (vit-rs doctor --full lists all such images{skip})") from error


@contextlib.contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    """Set the threads of a torch operator for a while; None leaves them."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"


def _with_folder(summary: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    return {**summary, "folder": str(folder.path)}
