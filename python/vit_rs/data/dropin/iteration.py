"""One pass over a DataLoader: indices from Python's samplers, work in Rust, batches in the samplers' order."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vit_rs import distributed
from vit_rs._core import BatchTimeoutError, FeedError
from vit_rs.data.dropin.assembly import Assembly, Received
from vit_rs.data.dropin.index_stream import IndexStream
from vit_rs.data.dropin.python_stages import PythonStages
from vit_rs.data.dropin.state import FINISHED, Progress, check_sampler_epoch, origins

if TYPE_CHECKING:
    from typing_extensions import Self

    from vit_rs.data.dropin.engines import Engine, EnginePool, EngineSize
    from vit_rs.data.dropin.index_stream import Pulled
    from vit_rs.data.dropin.plan import Plan

__all__ = ["DataLoaderIterator"]

# A process's draws start here times its rank: ranks with one base seed draw different numbers.
_DRAWS_PER_RANK = 2**40


@dataclass
class _Asked:
    """A batch that was asked for.

    Args:
        pulled: what the sampler wanted.
        number: of the batch among those that the engine makes in this epoch; None = it has nothing to do for it.
        memory: page-locked, that it is written into.
        batch: what the engine gave, once it has.
    """

    pulled: Pulled
    number: int | None = None
    memory: torch.Tensor | None = None
    batch: list[Any] = field(default_factory=list)


class DataLoaderIterator:
    """Iterator over a loader's batches; one with persistent workers is started over by each `iter(loader)`.

    Args:
        loader: a vit_rs.data.DataLoader, as its attributes are now.
        plan: what it does.
        pool: its engines.
        size: of the engine that is wanted.
        state: from `state_dict`, to go on from.
    """

    def __init__(
        self, loader: Any, plan: Plan, pool: EnginePool, size: EngineSize, state: dict[str, Any] | None = None
    ) -> None:
        self._pool = pool
        self._label = f"enumerate(DataLoader)#{type(self).__name__}.__next__"
        self._release: weakref.finalize[Any, Any] | None = None
        self.restart(loader, plan, size, state, first=True)

    def restart(
        self, loader: Any, plan: Plan, size: EngineSize, state: dict[str, Any] | None = None, *, first: bool = False
    ) -> None:
        """Begin an epoch; one under way is abandoned."""
        self._give_back(finished=False)
        # Until all went well: the engine is another iteration's now.
        self._closed = True
        self._plan = plan
        self._lookahead = size.prefetch
        self._timeout = loader.timeout
        self._pin = _pins(loader)
        stream = IndexStream(loader, plan.opened.opened.samples)
        self.progress = self._begin(loader, stream, state, first=first)
        self._ahead: deque[_Asked] = deque()
        self._pushed = 0
        self._warned = False
        engine = self._engine = self._pool.lend(plan, size)
        self._release = weakref.finalize(self, _give_up, stream, self._pool, engine)
        self._release.atexit = False
        engine.start(seed=self.progress.base_seed, epoch=self.progress.epoch)
        self.stages = PythonStages(plan.pipeline, plan.opened.target_transform, loader.worker_init_fn)
        self._assembly = Assembly(
            plan, engine, self.stages, loader.collate_fn, batched=loader.batch_sampler is not None, pin=self._pin
        )
        self._index_sampler = stream.sampler
        self._more = True
        self._closed = False
        if loader.num_workers > 0:
            self._fill()

    def _begin(self, loader: Any, stream: IndexStream, state: dict[str, Any] | None, *, first: bool) -> Progress:
        if state is not None and (state[FINISHED] or state["exhausted"]):
            stream.restore_given(state["given"])
        if state is None or state[FINISHED]:
            # Persistent workers keep their base seed.
            base_seed, epoch = (0, -1) if first else (self.progress.base_seed, self.progress.epoch)
            if state is not None and loader.persistent_workers:
                base_seed, epoch = state["base_seed"], state["epoch"]
            seed = stream.begin(draw_base_seed=epoch < 0)
            return Progress(
                stream,
                base_seed=base_seed if seed is None else seed,
                epoch=epoch + 1,
                seeded=seed is not None,
                sampler_state=stream.sampler_state(),
            )
        check_sampler_epoch(loader, state)
        made = Progress(
            stream,
            base_seed=state["base_seed"],
            epoch=state["epoch"],
            seeded=state["seeded"],
            batches=state["batches"],
            samples=state["samples"],
            exhausted=state["exhausted"],
            sampler_state=state["sampler"],
        )
        if state["exhausted"]:
            stream.stay_at_end()
        elif state["sampler"] is not None and stream.stateful is not None:
            stream.resume_sampler(state["sampler"], drawn=made.samples)
        else:
            stream.resume(batches=made.batches, drawn=made.samples, origins=origins(state), base_seed_drawn=made.seeded)
        return made

    def __iter__(self) -> Self:
        return self

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self._index_sampler)

    def __next__(self) -> Any:
        with torch.autograd.profiler.record_function(self._label):
            return self._next()

    def _next(self) -> Any:
        if self.progress.finished:
            raise StopIteration
        if self._closed or self._engine.closed:
            raise RuntimeError("this iteration ended when the DataLoader was closed, or a state loaded")
        self._warn_of_other_threads()
        # The error of a batch that a signal's exception came behind.
        self._leave_failed()
        self._fill()
        if not self._ahead:
            self._finish()
            raise StopIteration
        asked = self._ahead[0]
        received = self._received(asked)
        self._advance()
        if asked.pulled.error is not None:
            raise asked.pulled.error
        try:
            return self._assembly.batch(received)
        except StopIteration as error:
            # It would end the epoch as if there were no more batches.
            raise RuntimeError(f"the user's code raised StopIteration: {error}") from error

    def _received(self, asked: _Asked) -> Received:
        """Return a batch from the engine; an empty one where there is none to wait for."""
        pulled = asked.pulled
        first_key = (self.progress.base_seed, self.progress.epoch, _first_draw(pulled))
        if asked.number is None:
            return Received([], pulled.positions, None, first_key, None)
        failure = None
        try:
            if not asked.batch:
                # One step of the interpreter: no signal's exception comes between a batch and where it is kept.
                asked.batch.extend(map(self._engine.core.next_batch, (self._timeout or None,)))
        except BatchTimeoutError as error:
            raise RuntimeError(f"DataLoader timed out after {self._timeout} seconds") from error
        except FeedError as error:
            failure = error.args
        except BaseException:
            self._leave_failed()
            raise
        if failure is not None:
            self._leave_failed()
            # Outside the handler: the exception keeps its own context.
            raise self._engine.opened.feeder.error(*failure)  # type: ignore[union-attr]
        if asked.batch[0] is None:
            raise RuntimeError("the engine ended before the sampler did")
        [images], positions, labels = asked.batch[0]
        if not np.array_equal(positions, pulled.positions):
            raise RuntimeError("a signal's exception came between a batch and its request: begin a new iteration")
        return Received(images, positions, labels, first_key, asked.memory)

    def _leave_failed(self) -> None:
        """Go on behind a batch whose error the engine raised; what a signal's handler raises is not counted there."""
        if not self._ahead or not self._engine.own or self._engine.closed:
            return
        asked = self._ahead[0]
        if asked.number is not None and not asked.batch and asked.number < self._engine.core.handed_over:
            self._advance()

    def _advance(self) -> None:
        """Count a batch as done, and ask for another one as torch does: before this one is handed over."""
        self._pull()
        pulled = self._ahead.popleft().pulled
        progress = self.progress
        progress.batches += 1
        progress.samples += len(pulled.positions)
        progress.sampler_state = pulled.sampler_state
        progress.exhausted = not self._more and not self._ahead
        progress.stream.handed_over()

    def fix_order(self) -> None:
        """Have the sampler draw now what it draws for its first index: a state without that is none."""
        if not self._closed and not self._ahead and not self.progress.batches:
            self._pull()

    def _fill(self) -> None:
        while self._more and len(self._ahead) < self._lookahead:
            self._pull()

    def _pull(self) -> None:
        if not self._more:
            return
        pulled = self.progress.stream.next()
        if pulled is None:
            self._more = False
            self._engine.core.end()
            return
        asked = _Asked(pulled)
        if len(pulled.positions):
            first = _first_draw(pulled)
            draws = np.arange(first, first + len(pulled.positions), dtype=np.uint64)
            if self._pin and self._engine.dense:
                asked.memory = self._pinned_memory(len(pulled.positions))
                self._engine.core.push(pulled.positions, draws, memory=[asked.memory.numpy()])
            else:
                self._engine.core.push(pulled.positions, draws)
            asked.number = self._pushed
            self._pushed += 1
        self._ahead.append(asked)

    def _pinned_memory(self, count: int) -> torch.Tensor:
        [shape] = self._engine.core.shapes
        size = count * int(np.prod(shape)) * self._plan.lowered.dtype.itemsize
        # Not on the device that torch.set_default_device names.
        return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)

    def _warn_of_other_threads(self) -> None:
        if self._warned or not self.stages.any or threading.current_thread() is threading.main_thread():
            return
        self._warned = True
        warnings.warn(
            "transforms that run in Python seed the generators of torch, random and numpy for each sample and put them "
            "back: batches are asked for in another thread than the main one, whose random numbers change meanwhile",
            stacklevel=4,
        )

    def _finish(self) -> None:
        self.progress.finished = True
        self.progress.stream.finish()
        # The engine notes the epoch's end.
        self._engine.core.next_batch()
        self._give_back(finished=True)

    def _give_back(self, *, finished: bool) -> None:
        if self._release is not None and self._release.detach() is not None:
            self.take_back()
            self._pool.give_back(self._engine, finished=finished)

    def take_back(self) -> None:
        """Bring generators back to where the consumer is: another iteration begins, maybe."""
        self.progress.stream.take_back()

    def close(self) -> None:
        """End this iteration; its engine is free for the next one."""
        self._closed = True
        self._give_back(finished=self.progress.finished)

    @property
    def engine(self) -> Engine | None:
        """The engine at work; None when the iteration is over."""
        return self._engine if self._release is not None and self._release.alive else None

    def __getstate__(self) -> Any:
        raise NotImplementedError(f"{type(self).__name__} cannot be pickled")


def _give_up(stream: IndexStream, pool: EnginePool, engine: Engine) -> None:
    """Clean up behind an iteration that was left before its end."""
    stream.take_back()
    pool.give_back(engine)


def _first_draw(pulled: Pulled) -> int:
    return distributed.rank() * _DRAWS_PER_RANK + pulled.first_draw


def _pins(loader: Any) -> bool:
    """Tell whether batches are page-locked, with torch's own warnings where they cannot be: once, as from one place."""
    if not loader.pin_memory:
        return False
    if loader.pin_memory_device:
        warnings.warn(
            "pin_memory_device is deprecated, the current accelerator will be used as the device,"
            f"ignore pin_memory_device='{loader.pin_memory_device}'.",
            stacklevel=2,
        )
    if not torch.accelerator.is_available():
        warnings.warn(
            "'pin_memory' argument is set as true but no accelerator is found, "
            "then device pinned memory won't be used.",
            stacklevel=2,
        )
        return False
    if torch.accelerator.current_accelerator().type == "mps":  # type: ignore[union-attr]  # there is one
        warnings.warn(
            "'pin_memory' argument is set as true but not supported on MPS now, device pinned memory won't be used.",
            stacklevel=2,
        )
        return False
    return True
