"""torch's DataLoader with the work in Rust: the import that a training script changes."""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch.utils.data

from vit_rs.data.dropin import explanation
from vit_rs.data.dropin.collation import Collation, collate_function
from vit_rs.data.dropin.engines import EnginePool, EngineSize
from vit_rs.data.dropin.iteration import DataLoaderIterator
from vit_rs.data.dropin.places import UntranslatableError
from vit_rs.data.dropin.plan import Plan, current_plan
from vit_rs.data.dropin.state import FINISHED, check_state, set_sampler_epoch, state_of
from vit_rs.data.statistics import LoaderStats
from vit_rs.data.threads import default_threads, usable_cpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from torch.utils.data import Dataset, Sampler
    from typing_extensions import Self

    from vit_rs.data.dropin.python_stages import PythonStages
    from vit_rs.data.dropin.state import Progress

__all__ = ["DataLoader"]

T_co = TypeVar("T_co", covariant=True)

# Batches made ahead without workers, where torch makes none: one is worked at while another one waits.
_LOOKAHEAD = 2


class DataLoader(torch.utils.data.DataLoader[T_co]):
    """torch.utils.data.DataLoader whose images are read, decoded and transformed by Rust threads.

    It takes torchvision's image data sets with torchvision's or timm's transforms as they are. What has an equal in
    Rust is done there, with the same pixels; what has none runs as Python at its place in the chain: `explain` says
    which. Order, batches, labels and seeds are torch's. docs/drop-in.md has the whole contract.

    A sample's random numbers depend on the base seed, which is drawn from `generator` when an iteration starts, and on
    the sample's place in the epoch: not on threads or prefetch. Python transforms, `target_transform` and
    `worker_init_fn` run in the thread that asks for a batch; torch's, random's and numpy's generators are seeded for
    each sample, and are afterwards what they were before.

    Args:
        dataset: map-style.
        batch_size: as in torch; None gives single samples.
        shuffle: as in torch.
        sampler: as in torch.
        batch_sampler: as in torch.
        num_workers: threads that decode; 0 is one thread, too.
        collate_fn: gets the list of samples, as in torch. Without one, batches are handed over as they were written.
        pin_memory: write batches into page-locked memory, where there is an accelerator.
        drop_last: as in torch.
        timeout: seconds to wait for a batch; 0 waits for ever.
        worker_init_fn: called once for an iteration, with 0, if anything of yours runs in Python.
        multiprocessing_context: checked as torch does; there are no processes.
        generator: where the order and the base seed are drawn from; None = torch's default generator.
        prefetch_factor: batches made ahead for each thread; None and 0 = 2.
        persistent_workers: keep one base seed over all epochs, as torch's persistent workers do. Threads live on
            between epochs in any case.
        pin_memory_device: deprecated by torch, which warns of it; not used: memory is locked for the accelerator that
            there is.
        in_order: accepted; batches come in order always.
        fallback: "torch" gives torch's own DataLoader, with a warning, for what cannot be read by Rust.

    Raises:
        TypeError: the data set cannot be read by Rust; the message says why.
        ValueError: as torch does, for arguments that contradict each other.
        DecodeError: (while iterating) an image cannot be decoded; the message names it.
        OSError: (while iterating) a file cannot be read.
        Exception: (while iterating) whatever the user's code raises, with a note on the sample.

    Source: torch.utils.data.DataLoader; `state_dict` follows torchdata.stateful_dataloader.StatefulDataLoader.
    """

    _iterator: DataLoaderIterator | None  # type: ignore[assignment]  # where torch keeps its own

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return torch's own loader where it must do and the user said that it may."""
        made = super().__new__(cls)
        if cls is DataLoader and kwargs.get("fallback") == "torch" and (args or "dataset" in kwargs):
            dataset = kwargs["dataset"] if "dataset" in kwargs else args[0]
            try:
                plan = current_plan(dataset, None)
            except UntranslatableError as error:
                warnings.warn(
                    f"this is torch's own DataLoader, by fallback='torch': {error}", UserWarning, stacklevel=2
                )
                return torch.utils.data.DataLoader(*args, **{k: v for k, v in kwargs.items() if k != "fallback"})
            made.__dict__["_running"] = _Running(plan)
        return made

    def __init__(  # noqa: PLR0917  (torch's signature)
        self,
        dataset: Dataset[T_co],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        fallback: Literal["torch"] | None = None,
    ) -> None:
        if fallback not in (None, "torch"):
            raise ValueError(f"fallback must be None or 'torch', got {fallback!r}")
        # Older versions have no in_order; what is not torch's default is handed on.
        newer: dict[str, Any] = {} if in_order else {"in_order": False}
        super().__init__(
            dataset,
            batch_size,
            shuffle,
            sampler,
            batch_sampler,
            num_workers,
            None if collate_fn is None else collate_function(collate_fn),
            pin_memory,
            drop_last,
            timeout,
            worker_init_fn,
            multiprocessing_context,
            generator,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device,
            **newer,
        )
        self.in_order = in_order
        self.fallback = fallback
        # What changes later lives in here: wrappers record what is set on a loader, and set it on another one.
        running: _Running | None = self.__dict__.pop("_running", None)
        if running is None:
            try:
                running = _Running(_planned(dataset, None))
            except TypeError as error:
                if fallback is None:
                    raise
                # __new__ makes torch's loader where one of this very class was asked for.
                raise TypeError(f"{error}; a subclass such as {type(self).__name__} cannot fall back") from error
        self._running = running
        self.collate_fn = Collation(self.collate_fn)

    def __iter__(self) -> DataLoaderIterator:  # type: ignore[override]  # torch's is a private class
        """Start an epoch, or go on in the one that `load_state_dict` named."""
        running = self._running
        if running.initial is not None:
            iterator, running.initial = running.initial, None
            return iterator
        last = None if running.current is None else running.current()
        if last is not None:
            last.take_back()
        plan, state = self._plan(), running.state
        persistent = self.persistent_workers and self.num_workers > 0
        if persistent and self._iterator is not None:
            iterator = self._iterator
            iterator.restart(self, plan, self._size(), state)
        else:
            iterator = DataLoaderIterator(self, plan, running.pool, self._size(), state)
            if persistent:
                self._iterator = iterator
        # Not before it was used: the reason why it could not be may be mended.
        running.state = None
        running.current = weakref.ref(iterator)
        running.progress = iterator.progress
        running.stages = iterator.stages
        return iterator

    def _plan(self) -> Plan:
        """Return what is to be done now: data set and transforms may have been changed."""
        self._running.plan = _planned(self.dataset, self._running.plan)
        return self._running.plan

    def _size(self) -> EngineSize:
        workers = max(self.num_workers, 1)
        batch_size = 1 if self.batch_sampler is None else getattr(self.batch_sampler, "batch_size", 1)
        return EngineSize(
            threads=workers,
            prefetch=_LOOKAHEAD if self.num_workers == 0 else (self.prefetch_factor or _LOOKAHEAD) * workers,
            batch_size=batch_size if isinstance(batch_size, int) and batch_size > 0 else 1,
        )

    def check_worker_number_rationality(self) -> None:
        """Warn where there would be more threads than CPUs, as torch does for worker processes."""
        cpus = usable_cpus()
        if self.num_workers > cpus:
            warnings.warn(
                f"this DataLoader will decode in {self.num_workers} threads on {cpus} usable CPUs: more threads than "
                "CPUs make nothing faster, but where files are slow to read",
                stacklevel=3,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return where the current iteration stands: numbers, texts, lists, dictionaries and tensors.

        Batches that were handed over count, made ones do not. Before the first iteration, one is started, which the
        next `iter` returns. After the last batch the rest is empty until the end was seen by the consumer; a state of
        a finished iteration starts the next epoch. torch's default generator is the script's to save.

        Source: torchdata.stateful_dataloader.StatefulDataLoader.
        """
        running = self._running
        progress = running.progress
        if progress is None:
            running.initial = iter(self)
            progress = running.initial.progress
        iterator = None if running.current is None else running.current()
        if iterator is not None:
            iterator.fix_order()
        if progress.stream.draws_along and not progress.finished:
            warnings.warn(
                "the sampler draws from the generators of torch, random or numpy for each index, which a state cannot "
                "bring back: give the sampler a state_dict and load_state_dict",
                stacklevel=2,
            )
        return state_of(self, progress)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration go on where `state` was taken; {} forgets a state that was loaded.

        Raises:
            ValueError: it is of another loader; the message says what differs.
        """
        running = self._running
        if state:
            check_state(self, state)
            if not state[FINISHED]:
                set_sampler_epoch(self, state)
        running.leave()
        if self._iterator is not None:
            self._iterator = None
        running.progress = None
        running.state = state or None

    def stats(self) -> LoaderStats:
        """Return what was done in the current or last iteration, and what held it up.

        Raises:
            RuntimeError: there was none yet.
        """
        running = self._running
        iterator = None if running.current is None else running.current()
        engine = None if iterator is None else iterator.engine
        counted = running.pool.counted if engine is None or not engine.own else engine.core.stats()
        if counted is None:
            raise RuntimeError("the loader has not run yet")
        return LoaderStats.from_core(
            counted,
            threads=self._size().threads,
            cpus=default_threads(),
            reader=running.plan.opened.opened.reader,
            python_us=0.0 if running.stages is None else running.stages.microseconds,
        )

    def explain(self) -> str:
        """Return in words what this loader does, transform by transform, and what each costs once it has run."""
        running = self._running
        engine = running.pool.example(self._plan(), self._size())
        try:
            stats = self.stats()
        except RuntimeError:
            stats = None
        return explanation.explain(self, engine, stats, running.stages)

    def close(self) -> None:
        """End all threads and iterations. The next `iter` starts anew; batches stay valid, and so does `state_dict`."""
        self._running.leave()
        self._running.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_running"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__["_running"] = _Running(_planned(self.dataset, None))


class _Running:
    """What of a loader changes while it is used."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.pool = EnginePool()
        self.current: weakref.ref[DataLoaderIterator] | None = None
        self.progress: Progress | None = None
        self.stages: PythonStages | None = None
        # Started by state_dict before its time.
        self.initial: DataLoaderIterator | None = None
        # Loaded, and not iterated yet.
        self.state: dict[str, Any] | None = None

    def leave(self) -> None:
        """End the iteration that is under way."""
        iterator = None if self.current is None else self.current()
        if iterator is not None:
            iterator.close()
        self.initial = None


def _planned(dataset: Any, last: Plan | None) -> Plan:
    """Return the plan for a data set.

    Raises:
        TypeError: it has none.
    """
    try:
        return current_plan(dataset, last)
    except UntranslatableError as error:
        raise TypeError(str(error)) from error
