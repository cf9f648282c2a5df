"""What a loader does, in words: what a user prints before trusting it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Subset

from vit_rs.data.statistics import byte_text
from vit_rs.data.threads import usable_cpus
from vit_rs.exceptions import VitRsError
from vit_rs.transforms import MultiCrop, Normalize, ToDtype, ToTensor, Transform

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vit_rs._core import Loader
    from vit_rs.data.loader import ImageLoader
    from vit_rs.data.statistics import LoaderStats

__all__ = ["Row", "explain", "thread_times", "wrapped_rows"]

_WIDTH = 120
_INDENT = 12
_ON_ERROR = {
    "raise": "an unreadable sample is an error at its batch",
    "skip": "unreadable samples are left out of their batches and listed in stats()",
    "substitute": "another sample stands in for an unreadable one, which stats() lists",
}

Row = tuple[str, str]


def explain(loader: ImageLoader, core: Loader, *, epoch: int, first: int | None) -> str:
    """Return the text of `ImageLoader.explain`.

    Args:
        loader: what is explained.
        core: its engine.
        epoch: the current epoch.
        first: index in the source of the epoch's first sample; None where it is not to be read.
    """
    return wrapped_rows(_rows(loader, core, epoch, first))


def thread_times(stats: LoaderStats) -> str:
    """Return what the threads took for an image, stage by stage."""
    stages = ("read", "decode", "augment", "emit")
    times = ", ".join(f"{stage} {getattr(stats, stage + '_us'):,.0f}" for stage in stages)
    return f"{times} us of thread time an image, in {stats.images:,} images"


def wrapped_rows(rows: Iterable[Row]) -> str:
    """Return rows of a name and a text as lines that are not too long."""
    lines: list[str] = []
    for name, text in rows:
        lines += textwrap.wrap(
            text,
            _WIDTH,
            initial_indent=f"{name:<{_INDENT}}",
            subsequent_indent=" " * (_INDENT + 2),
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _rows(loader: ImageLoader, core: Loader, epoch: int, first: int | None) -> Iterator[Row]:
    yield "source", _source(loader.source)
    yield "order", _order(loader, epoch)
    yield "decode", _decoding(loader)
    yield "on error", f"{loader.on_error}: {_ON_ERROR[loader.on_error]}"
    chains = list(_chains(loader.transform))
    for chain in chains:
        yield from _view(loader, core, chain)
    yield "threads", _threads(loader)
    size = sum(size for size, _ in core.memory)
    kept = sum(size * number for size, number in core.memory)
    slots = core.memory[0][1]
    yield "memory", f"{byte_text(size)} a batch; {slots} are kept for reuse, {byte_text(kept)}"
    yield "cost", _cost(loader)
    yield from _example(core, loader.seed, epoch, first, [chain.view for chain in chains])


def _source(source: Any) -> str:
    if type(source) is Subset:
        return f"{len(source):,} samples of {_source(source.dataset)}"
    if isinstance(source, (list, tuple)):
        return f"a list of {len(source):,} samples"
    return textwrap.shorten(repr(source), 200)


def _order(loader: ImageLoader, epoch: int) -> str:
    order = f"shuffled by (seed {loader.seed}, epoch {epoch})" if loader.shuffle else "as in the source"
    if loader.world_size > 1:
        order += f", rank {loader.rank} of {loader.world_size}"
    last = "a last batch that is not full is left out" if loader.drop_last else "the last one may be smaller"
    return f"{order}; {len(loader):,} batches of {loader.batch_size}, {last}"


def _threads(loader: ImageLoader) -> str:
    cpus, share = usable_cpus(), loader.stats().cpus
    usable = f"{cpus} usable CPU{'s' * (cpus > 1)}"
    on = usable if share == cpus else f"{share} of {usable}, this process's share"
    return f"{loader.num_threads} in Rust, on {on}; up to {loader.prefetch} batches ahead"


def _decoding(loader: ImageLoader) -> str:
    exactly = "its pixels as in a full decode" if loader.decode == "exact" else "JPEGs scaled where views shrink them"
    upright = "applied" if loader.exif else "not applied"
    return (
        f"by content to 8-bit RGB, only the region that the views need, {exactly}; "
        f"EXIF orientation {upright}; at most {loader.max_pixels:,} pixels"
    )


@dataclass(frozen=True)
class _Chain:
    """The steps of one view, or of several that are made alike."""

    steps: list[Transform]
    kernels: str
    view: int
    count: int


def _chains(transform: Transform | None) -> Iterator[_Chain]:
    steps = [] if transform is None else list(transform.steps())
    kernels = getattr(transform, "kernels", None) or "torch"
    if len(steps) != 1 or not isinstance(steps[0], MultiCrop):
        yield _Chain(steps, kernels, 0, 1)
        return
    view = 0
    for chain, count in steps[0].counted():
        yield _Chain(list(chain.steps()), getattr(chain, "kernels", None) or kernels, view, count)
        view += count


def _view(loader: ImageLoader, core: Loader, chain: _Chain) -> Iterator[Row]:
    first, last = chain.view, chain.view + chain.count - 1
    yield f"view {first}" if first == last else f"views {first}-{last}", f"with {chain.kernels}'s kernels"
    place = "u8"
    for step in chain.steps:
        if isinstance(step, (ToDtype, ToTensor)) and step.dtype != torch.uint8:
            place = "float"
        yield f"  {'emit' if isinstance(step, (ToDtype, ToTensor, Normalize)) else place}", repr(step)
    shape = (loader.batch_size, *core.shapes[first])
    layout = loader.layout if isinstance(loader.layout, str) else repr(loader.layout)
    dtype = str(loader.dtypes[first]).removeprefix("torch.")
    handed = "handed over without a copy" if loader.device.type == "cpu" else f"then copied to {loader.device}"
    yield "  batch", f"{dtype} {shape}, {layout}; written once, {handed}"


def _cost(loader: ImageLoader) -> str:
    stats = loader.stats()
    if not stats.images:
        return "not measured: the loader has not run yet"
    return f"{thread_times(stats)} of epoch {stats.epoch}"


def _example(core: Loader, seed: int, epoch: int, first: int | None, views: list[int]) -> Iterator[Row]:
    if first is None:
        yield "example", "none: the epoch has no sample that could be read now"
        return
    try:
        name, (height, width), plans = core.describe(first, first, seed=seed, epoch=epoch)
    except (VitRsError, OSError, ValueError) as error:
        yield "example", f"none: {error}"
        return
    yield "example", f"the epoch's first sample, {name}, {width} x {height} pixels"
    for view in views:
        for number, step in enumerate(plans[view] or ["nothing is done to its pixels"]):
            yield "" if number else f"  view {view}", step
