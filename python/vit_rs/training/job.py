"""A run from configuration to summary: check, make the folder, go through the stages, report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch

from vit_rs.checkpoints.state import load_state
from vit_rs.exceptions import CheckpointError, ConfigError, VitRsError
from vit_rs.training.fewshot import fewshot_images
from vit_rs.training.interruption import Interrupted, SignalGuard
from vit_rs.training.loop import Run, StageLoop
from vit_rs.training.metrics import MetricsLog, read_metrics
from vit_rs.training.progress import Progress, Workload, clock, measure, threads
from vit_rs.training.run_folder import RunFolder, read_config
from vit_rs.training.sources import open_sources
from vit_rs.training.stages import build_stages
from vit_rs.training.summary import build_summary, summary_markdown
from vit_rs.training.values import get_setting, setting_names

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from vit_rs.training.config import TrainConfig
    from vit_rs.training.sources import Sources
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

    Everything that can be wrong is looked for before the folder is made. The state is saved at the end of
    every epoch, at least every `config.save_seconds`, and on SIGINT and SIGTERM; a run that goes on from it
    ends with the same weights, to the bit, on the same kind of machine. torch's number of threads is set for
    the duration of the call, its global random generator is seeded.

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
        Interrupted: after a signal (it is a KeyboardInterrupt); the message says how to go on.
    """
    config = config.validated()
    if resume:
        if workdir is None:
            raise ConfigError("resume needs the run's folder: pass workdir")
        _check_same(read_config(Path(workdir)), config, Path(workdir))
    _check_device(config.device)
    sources = open_sources(config.data)
    stages = build_stages(config, sources)
    parameters = _check_models(stages)
    if resume and workdir is not None:
        folder = RunFolder.reopen(Path(workdir))
    else:
        folder = RunFolder.create(config, None if workdir is None else Path(workdir))
    write = _writer(stream, enabled=progress)
    with folder:
        if folder.is_finished:
            write(f"{folder.path} is finished already: see {folder.path / 'summary.md'}")
            return _with_folder(json.loads(folder.summary.read_text()), folder)
        with _tidied(folder, resumed=resume), SignalGuard() as guard:
            state = load_state(folder.state) if resume and folder.state.is_file() else None
            count = config.torch_threads if state is None else state["identity"]["torch_threads"]
            with _torch_threads(count):
                identity = _identity(config, sources)
                if state is not None and state["identity"] != identity:
                    raise CheckpointError(
                        f"{folder.state} was saved with other {_differences(state['identity'], identity)}: "
                        "the run cannot go on as if nothing had happened"
                    )
                image_seconds = [measure(stage, seconds=_MEASURE_SECONDS / len(stages)) for stage in stages]
                workload = Workload(stages, image_seconds, fewshot_images=fewshot_images(stages[0]))
                start, step = (0, 0) if state is None else (state["stage"], state.get("step", 0))
                done = workload.done(start, step)
                write(_plan(stages, parameters, folder, workload.total - done, resumed=resume))
                hint = None if resume else _thread_hint(stages[0], image_seconds[0])
                if hint is not None:
                    write(hint)
                log = MetricsLog(folder.metrics, keep=0 if state is None else state["records"])
                bar = Progress(workload.total, done=done, enabled=progress, stream=stream)
                with contextlib.closing(log), bar:
                    seconds = 0.0 if state is None else state["seconds"]
                    run = Run(folder, log, bar, workload, guard, identity, seconds_before=seconds)
                    for stage in stages[start:]:
                        inside = state is not None and stage.index == start and "model" in state
                        _run_stage(stage, stages, run, state if inside else None)
                    bar.show(workload.total, "drawing figures")
                    figures = () if draw is None else draw(folder.path)
                summary = build_summary(config, sources, read_metrics(folder.metrics), seconds=run.seconds)
        names = [figure.relative_to(folder.path).as_posix() for figure in figures]
        folder.write_text("summary.md", summary_markdown(summary, names))
        # Last: a folder with summary.json is a finished run.
        folder.write_text("summary.json", json.dumps(summary, indent=2) + "\n")
        folder.state.unlink()
        return _with_folder(summary, folder)


def _run_stage(stage: Stage, stages: Sequence[Stage], run: Run, state: dict[str, Any] | None) -> None:
    """Run one stage from the start, or from a state saved inside it."""
    if stage.index == 0:
        model_config = stage.config.model
        start_from = None if model_config.init is None else Path(model_config.init)
        head = model_config.init_head
    else:
        start_from, head = run.folder.path / stages[stage.index - 1].checkpoint, "keep"
    model = stage.initial_model(None if state is not None else start_from, head=head)
    StageLoop(stage, run, model, state=state, test_first=start_from is not None).finish()


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
    if stage.config.torch_threads is not None or stage.config.device != "cpu" or count == 1:
        return None
    with _torch_threads(1):
        alone = measure(stage, seconds=_HINT_SECONDS)
    if image_seconds < 1.5 * alone:
        return None
    return (
        f"Note: one torch thread is {image_seconds / alone:.1f} times as fast as {count} now, other programs may be "
        "using the cores; --set torch_threads=1 uses one"
    )


def _plan(stages: Sequence[Stage], parameters: int, folder: RunFolder, seconds: float, *, resumed: bool) -> str:
    """Return one line on what will be done, where, and how long it takes."""
    model = stages[0].config.model
    size = f"{parameters / 1e6:.2f} M parameters"
    network = f"ViT of {model.depth} blocks, width {model.embed_dim}, patch {model.patch_size}, {size}"
    steps = ", then ".join(
        f"{stage.epochs} epoch{'s' if stage.epochs > 1 else ''} at {stage.size} px" for stage in stages
    )
    verb, left = ("Resuming", "left ") if resumed else ("Training", "")
    return (
        f"{verb} {folder.path}: {stages[0].sources.description}; {network}; {steps}; "
        f"about {clock(seconds)} {left}on this machine ({threads(torch.get_num_threads())})"
    )


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=torch.device(name))
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device: {name!r} cannot be used: {reason}") from error


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


def _identity(config: TrainConfig, sources: Sources) -> dict[str, Any]:
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
def _tidied(folder: RunFolder, *, resumed: bool) -> Iterator[None]:
    """Remove the folder of a run that fails before anything is saved; else say how to go on."""
    how = f"go on with: vit-rs train --resume --out {folder.path}"
    try:
        yield
    except Interrupted as stop:
        name = signal.Signals(stop.signum).name
        if resumed or folder.state.is_file():
            raise Interrupted(stop.signum, f"stopped by {name}, and saved; {how}") from None
        folder.discard()
        raise Interrupted(stop.signum, f"stopped by {name} before anything was trained") from None
    except (VitRsError, OSError) as error:
        if resumed or folder.state.is_file():
            kind = type(error) if isinstance(error, VitRsError) else VitRsError
            raise kind(f"{error}; the last checkpoint is kept: {how}") from error
        folder.discard()
        raise


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


def _writer(stream: TextIO | None, *, enabled: bool) -> Callable[[str], None]:
    target = sys.stderr if stream is None else stream

    def write(line: str) -> None:
        if enabled:
            target.write(line + "\n")
            target.flush()

    return write


def _with_folder(summary: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    return {**summary, "folder": str(folder.path)}
