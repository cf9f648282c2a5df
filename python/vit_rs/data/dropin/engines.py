"""Engines for the iterations of one loader: threads outlive an epoch, and two iterations never share any."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vit_rs._core import MAX_PIXELS, Loader
from vit_rs.data.dropin.datasets import open_dataset

if TYPE_CHECKING:
    from vit_rs.data.dropin.plan import Plan

__all__ = ["Engine", "EnginePool", "EngineSize"]


@dataclass(frozen=True)
class EngineSize:
    """How large an engine is.

    Args:
        threads: that decode.
        prefetch: batches made ahead of the consumer.
        batch_size: samples in a batch, as far as it is known.
    """

    threads: int
    prefetch: int
    batch_size: int


class Engine:
    """The Rust threads of one iteration at a time.

    Args:
        plan: what they do.
        size: how many they are.
    """

    def __init__(self, plan: Plan, size: EngineSize) -> None:
        self.plan = plan
        self.size = size
        self.closed = False
        self._process = os.getpid()
        # A Python data set's requests go to one engine: each has its own feed.
        opened = plan.opened.opened if plan.opened.opened.feeder is None else open_dataset(plan.dataset).opened
        self.opened = opened
        view = plan.view()

        def core(*, ragged: bool) -> Loader:
            return Loader(
                opened.core,
                opened.subset,
                [view],
                batch_size=size.batch_size,
                num_threads=size.threads,
                prefetch=size.prefetch,
                max_pixels=MAX_PIXELS,
                exif=False,
                fast=False,
                on_error="raise",
                ragged=ragged,
            )

        self.dense = not plan.pipeline.python
        if self.dense:
            try:
                self.core = core(ragged=False)
            except ValueError:
                # Images of different sizes; any other reason is raised by the second attempt, too.
                self.dense = False
        if not self.dense:
            self.core = core(ragged=True)

    @property
    def own(self) -> bool:
        """Whether the threads are this process's: a forked child has none of them."""
        return self._process == os.getpid()

    def fits(self, plan: Plan, size: EngineSize) -> bool:
        """Whether it can do what a plan says."""
        return self.own and self.size == size and self.plan.same_engine(plan)

    def start(self, *, seed: int, epoch: int) -> None:
        """Begin an epoch; one under way is abandoned."""
        feeder = self.opened.feeder
        if feeder is not None:
            feeder.forget()
        self.core.start(seed=seed, epoch=epoch)
        if feeder is not None:
            feeder.start()

    def abandon(self) -> None:
        """End the epoch under way."""
        self.core.start(seed=0, epoch=0)
        self.core.end()

    def close(self) -> None:
        """End the threads."""
        self.closed = True
        if self.own:
            self.core.close()
            if self.opened.feeder is not None:
                self.opened.feeder.close()


class EnginePool:
    """The engines of one loader: lent to its iterations, and one kept between them."""

    def __init__(self) -> None:
        self._free: Engine | None = None
        self._lent: weakref.WeakSet[Engine] = weakref.WeakSet()
        # What the engine counted that was given back last.
        self.counted: dict[str, Any] | None = None

    def lend(self, plan: Plan, size: EngineSize) -> Engine:
        """Return an engine for a plan: the free one, if it fits."""
        engine, self._free = self._free, None
        if engine is not None and not engine.fits(plan, size):
            if engine.own:
                engine.close()
            engine = None
        if engine is None:
            engine = Engine(plan, size)
        engine.plan = plan
        self._lent.add(engine)
        return engine

    def example(self, plan: Plan, size: EngineSize) -> Engine:
        """Return an engine that is as one for this plan would be, without taking it."""
        free = self._free
        for engine in [*self._lent, *([] if free is None else [free])]:
            if engine.fits(plan, size):
                engine.plan = plan
                return engine
        # Its threads have not been started.
        return Engine(plan, size)

    def give_back(self, engine: Engine, *, finished: bool = False) -> None:
        """Take an engine back from an iteration that has ended."""
        self._lent.discard(engine)
        if engine.closed or not engine.own:
            return
        self.counted = engine.core.stats()
        if self._free is not None:
            engine.close()
            return
        if not finished:
            engine.abandon()
        self._free = engine

    def close(self) -> None:
        """End all engines, those of iterations under way too."""
        engines = [*self._lent, *([] if self._free is None else [self._free])]
        self._free = None
        self._lent.clear()
        for engine in engines:
            engine.close()
