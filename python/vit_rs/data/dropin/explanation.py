"""What a drop-in DataLoader does, in words: what is fused in Rust, what stays in Python and why, what it costs."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import default_collate

from vit_rs.data.dropin.collation import collate_function, is_torchs
from vit_rs.data.dropin.python_stages import runs_python
from vit_rs.data.explanation import thread_times, wrapped_rows
from vit_rs.data.statistics import byte_text
from vit_rs.data.threads import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vit_rs.data.dropin.engines import Engine
    from vit_rs.data.dropin.places import Place, Step
    from vit_rs.data.dropin.plan import Plan
    from vit_rs.data.dropin.python_stages import PythonStages
    from vit_rs.data.explanation import Row
    from vit_rs.data.statistics import LoaderStats

__all__ = ["explain"]

_KERNELS = {"pil": "Rust, Pillow's kernels", "tensor": "Rust, torch's kernels", "float": "Rust, torch's kernels"}
_STAGE = max(map(len, _KERNELS.values())) + 2

_DECODE = "by content to 8-bit pixels, only the region that the transforms need, its pixels as in a full decode"


def explain(loader: Any, engine: Engine, stats: LoaderStats | None, stages: PythonStages | None) -> str:
    """Return the text of `DataLoader.explain`.

    Args:
        loader: what is explained.
        engine: one that does what the loader does now.
        stats: of the current or last iteration; None before the first.
        stages: what ran in Python there.
    """
    plan = engine.plan
    measured = stages if stages is not None and stages.samples else None
    rows: list[Row] = [
        ("data set", plan.opened.describe),
        ("order", _order(loader)),
        ("decode", _DECODE),
        *_chain(plan, measured),
        ("labels", _labels(plan, measured)),
        ("batch", _batch(loader, engine)),
        ("random", _randomness(loader, plan)),
        ("threads", _threads(loader, engine)),
        ("memory", _memory(engine)),
        ("cost", _cost(plan, stats, measured)),
        *_unused(loader, plan),
    ]
    return wrapped_rows(rows)


def _order(loader: Any) -> str:
    if loader.batch_sampler is None:
        return f"{_named(loader.sampler)} gives single samples, batch_size is None"
    if loader.batch_size is None:
        return f"{_named(loader.batch_sampler)} gives batches"
    last = "one that is not full is left out" if loader.drop_last else "the last one may be smaller"
    return f"{_named(loader.sampler)}, batches of {loader.batch_size}, {last}"


def _chain(plan: Plan, measured: PythonStages | None) -> Iterator[Row]:
    """Yield a row for each of the user's transforms."""
    pipeline = plan.pipeline
    if not pipeline.steps:
        yield "transform", "none"
    place, first = pipeline.start, pipeline.first_python or 0
    for number, step in enumerate(pipeline.steps):
        stage = pipeline.stage(number)
        where = "Python" if stage == "python" else _where(step, place)
        text = f"{where:<{_STAGE}}{_shown(step.original)}"
        if stage == "python":
            text += f"; because {step.reason}"
            if measured is not None:
                text += f"; {measured.spent[number - first] / measured.samples / 1000:,.0f} us an image"
        yield "" if number else "transform", text
        place = step.after
    if measured is not None:
        for seen, ours in measured.surprises.items():
            went_on = "with its kernels for those" if ours else "in Python"
            yield (
                "",
                f"Python made {_kind(seen)} there, not {_kind(pipeline.after_python)}: the rest was done {went_on}",
            )


def _kind(place: Place | None) -> str:
    """Return what images of a place are called."""
    if place is None:
        return "something else than images"
    channels = "gray" if place.channels == 1 else "RGB"
    if place.kind == "pil":
        return f"PIL images ({channels})"
    kind = "tv_tensors.Image" if place.wrapped else "tensors"
    return f"{kind} of {str(place.dtype).removeprefix('torch.')} ({channels})"


def _where(step: Step, place: Place) -> str:
    return _KERNELS[place.kind] if step.translated else "nothing to do"


def _labels(plan: Plan, measured: PythonStages | None) -> str:
    kind = "as the data set has them" if plan.opened.targets is not None else "integers"
    if plan.opened.target_transform is None:
        return kind
    text = f"{kind}, then target_transform in Python: {_shown(plan.opened.target_transform)}"
    return text if measured is None else f"{text}; {measured.spent_on_labels / measured.samples / 1000:,.1f} us a label"


def _batch(loader: Any, engine: Engine) -> str:
    collate = collate_function(loader.collate_fn)
    default = collate is default_collate and is_torchs(collate)
    if engine.dense:
        image = f"{str(engine.plan.lowered.dtype).removeprefix('torch.')} {tuple(engine.core.shapes[0])}"
        if default:
            return f"images of {image}, written into the batch by the threads, handed over without a copy"
        made = f"images of {image}, views of a batch that the threads write"
    else:
        python = engine.plan.pipeline.python
        made = f"each image in memory of its own: {'Python goes on with it' if python else 'their sizes differ'}"
        if default and engine.plan.pipeline.suffix is not None:
            return f"{made}, and Rust writes what it makes of that into the batch"
    return f"{made}; {_named(collate)} gets the samples"


def _randomness(loader: Any, plan: Plan) -> str:
    source = "torch's default generator" if loader.generator is None else "the generator that was given"
    text = f"base seed from {source} at each iteration; a sample's numbers depend on it and on the place in the epoch"
    if runs_python(plan.pipeline, plan.opened.target_transform, loader.collate_fn):
        text += "; torch's, random's and numpy's generators are seeded so for your Python, and restored"
    return text


def _threads(loader: Any, engine: Engine) -> str:
    cpus, size = usable_cpus(), engine.size
    return (
        f"{size.threads} in Rust (num_workers={loader.num_workers}), on {cpus} usable CPU{'s' * (cpus > 1)}; up to "
        f"{size.prefetch} batches ahead; Python's transforms run in the thread that asks for a batch"
    )


def _memory(engine: Engine) -> str:
    if not engine.dense:
        return "images lie in buffers that are used again"
    [(size, number)] = engine.core.memory
    return f"{byte_text(size)} a batch; {number} are kept for reuse, {byte_text(size * number)}"


def _cost(plan: Plan, stats: LoaderStats | None, measured: PythonStages | None) -> str:
    if stats is None or not stats.images:
        return "not measured: the loader has not run yet"
    text = thread_times(stats)
    if measured is None:
        return text
    python = sum(measured.spent) + measured.spent_on_labels
    text += f"; Python {python / measured.samples / 1000:,.0f} us of the consumer's time"
    if plan.pipeline.suffix is not None:
        text += f", and Rust behind it {measured.spent_on_suffix / measured.samples / 1000:,.0f} us"
    return text


def _unused(loader: Any, plan: Plan) -> Iterator[Row]:
    """Yield rows for arguments that have no effect here."""
    python = runs_python(plan.pipeline, plan.opened.target_transform, loader.collate_fn)
    if loader.worker_init_fn is not None:
        called = "called once for each iteration, with 0" if python else "not called: nothing of yours runs in Python"
        yield "", f"worker_init_fn is {called}"
    if loader.multiprocessing_context is not None:
        yield "", "multiprocessing_context is not used: there are no processes"
    if not loader.in_order:
        yield "", "in_order=False is not used: batches come in order"
    if loader.pin_memory:
        there = torch.accelerator.is_available()
        yield "", f"pin_memory: {'batches are page-locked' if there else 'not used: there is no accelerator'}"


def _named(thing: Any) -> str:
    """Return the name of a function, or of an object's class."""
    return getattr(thing, "__qualname__", None) or type(thing).__name__


def _shown(thing: Any) -> str:
    """Return how an object shows itself, without an address."""
    shown = repr(thing)
    return _named(thing) if shown.startswith("<") else textwrap.shorten(shown, 200)
