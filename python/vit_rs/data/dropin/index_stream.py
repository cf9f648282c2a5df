"""Batches of indices, pulled from the samplers when torch pulls them, and pulled again when a loader resumes."""

from __future__ import annotations

import copy
import itertools
import operator
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from vit_rs.data.dropin.random_states import RandomStates, preserved
from vit_rs.data.dropin.sampler_generators import generator_state, generators_in, same_state, set_generator_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vit_rs.data.order import Index

__all__ = ["IndexStream", "Origin", "Pulled"]

# They draw from the generators that everybody shares when iteration starts or the first index is asked for, and never
# behind that.
_DRAWING_FIRST = {
    *(list, tuple, range),
    *(DistributedSampler, RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler),
}
# Where torch has users give generators.
_GIVEN = {"generator", "sampler.generator", "sampler.sampler.generator"}


@dataclass(frozen=True)
class Origin:
    """The states of all generators that a sampler may draw from, at one time."""

    shared: RandomStates
    # Of the generators that the loader and its samplers hold, by where they are.
    given: dict[str, Any]


@dataclass
class Pulled:
    """One batch that a sampler asked for.

    Args:
        positions: of its samples in the data set, u64.
        first_draw: number of samples drawn before it in this epoch.
        error: what stands in its place.
        sampler_state: the sampler's own state behind it.
    """

    positions: Index
    first_draw: int
    error: BaseException | None = None
    sampler_state: Any = None


class IndexStream:
    """What a loader's samplers give in one epoch.

    torch calls `iter` on the index sampler, draws the base seed, and with workers calls `iter` again: so do we.

    Args:
        loader: a DataLoader of torch's attributes.
        samples: length of the data set.
    """

    def __init__(self, loader: Any, samples: int) -> None:
        # Not the loader: it knows its iteration, and would be in a cycle with it.
        self._generator = loader.generator
        self._workers = loader.num_workers
        self._generators: dict[str, Any] | None = None
        self._samples = samples
        self._batched = loader.batch_sampler is not None
        self.sampler = loader.batch_sampler if self._batched else loader.sampler
        self._iterator: Iterator[Any] | None = None
        self._drawn = 0
        self._exhausted = False
        self.at_start: Origin | None = None
        self.at_first: Origin | None = None
        # Without workers torch asks for no batch ahead: what was drawn for those that nobody took is taken back. The
        # generators' states before each pull whose batch is not handed over, and behind the last one.
        self._takes_back = not self._workers
        self._before: deque[dict[str, Any]] = deque()
        self._after: dict[str, Any] = {}
        # Whether the sampler was seen to draw from the shared generators behind its first batch.
        self.draws_along = False
        inner = self.sampler.sampler if type(self.sampler) is BatchSampler else self.sampler
        self._watched = self.stateful is None and type(inner) not in _DRAWING_FIRST

    @property
    def stateful(self) -> Any:
        """The sampler that keeps its own state; None where there is none."""
        inner = self.sampler.sampler if type(self.sampler) is BatchSampler else None
        for sampler in (self.sampler, inner):
            if callable(getattr(sampler, "state_dict", None)) and callable(getattr(sampler, "load_state_dict", None)):
                return sampler
        return None

    def sampler_state(self) -> Any:
        """Return the state that a sampler keeps of itself, which it may change later; None where there is none."""
        return None if self.stateful is None else copy.deepcopy(self.stateful.state_dict())

    @property
    def generators(self) -> dict[str, Any]:
        """The generators that loader and samplers hold, by where they are, each once."""
        if self._generators is None:
            self._generators = generators_in(generator=self._generator, sampler=self.sampler)
        return self._generators

    def given(self) -> dict[str, Any]:
        """Return their states."""
        return {name: generator_state(generator) for name, generator in self.generators.items()}

    def begin(self, *, draw_base_seed: bool) -> int | None:
        """Start the epoch as torch does, and return the base seed, if one is to be drawn."""
        self.at_start = self._origin()
        return self._begin(draw_base_seed=draw_base_seed)

    def _begin(self, *, draw_base_seed: bool) -> int | None:
        base_seed = None
        if draw_base_seed:
            self._iterator = iter(self.sampler)
            base_seed = int(torch.empty((), dtype=torch.int64).random_(generator=self._generator).item())
        if self._workers > 0 or not draw_base_seed:
            self._iterator = iter(self.sampler)
        return base_seed

    def resume(self, *, batches: int, drawn: int, origins: tuple[Origin, Origin | None], base_seed_drawn: bool) -> None:
        """Start the epoch again as it started, and go on behind its first `batches` batches.

        The shared generators stay what they are; the given ones end as they were then.

        Raises:
            ValueError: the sampler has fewer batches.
        """
        self.at_start, self.at_first = origins
        with preserved():
            self._restore(self.at_start)
            self._begin(draw_base_seed=base_seed_drawn)
            if self.at_first is not None:
                self._restore(self.at_first)
            # A sampler may draw when its first index is asked for.
            skipped = [*itertools.islice(self._iterator or (), max(batches, 1))]
        if len(skipped) < batches:
            raise ValueError(f"the state was taken after {batches} batches, the sampler now has {len(skipped)}")
        if not batches:
            self._iterator = itertools.chain(skipped, self._iterator or ())
        self._drawn = drawn

    def stay_at_end(self) -> None:
        """Have no batch: all were handed over."""
        self.at_start = self.at_first = self._origin()
        self._exhausted = True

    def resume_sampler(self, state: Any, *, drawn: int) -> None:
        """Go on where a sampler with its own state was."""
        self.stateful.load_state_dict(state)
        self.at_start = self.at_first = self._origin()
        self._iterator = iter(self.sampler)
        self._drawn = drawn

    def next(self) -> Pulled | None:
        """Return the next batch; None at the end. What a sampler raises is raised in its batch's turn."""
        if self._exhausted or self._iterator is None:
            return None
        if self._takes_back:
            self._before.append(self.given())
        shared = None
        if self.at_first is None:
            self.at_first = self._origin()
        elif self._watched:
            shared = RandomStates.now()
        try:
            return self._next()
        finally:
            if self._takes_back:
                self._after = self.given()
            if shared is not None and not shared.same_as(RandomStates.now()):
                self.draws_along, self._watched = True, False

    def _next(self) -> Pulled | None:
        try:
            wanted = next(self._iterator)  # type: ignore[arg-type]  # `next` has looked
            positions = self._positions(list(wanted) if self._batched else [wanted])
        except StopIteration:
            self._exhausted = True
            return None
        except Exception as error:  # noqa: BLE001  (raised when its batch is asked for)
            return Pulled(np.empty(0, np.uint64), self._drawn, error)
        pulled = Pulled(positions, self._drawn, sampler_state=self.sampler_state())
        self._drawn += len(positions)
        return pulled

    def handed_over(self) -> None:
        """Count a batch as the consumer's: what was drawn for it stays drawn."""
        if self._before:
            self._before.popleft()

    def finish(self) -> None:
        """Let all stay drawn: the consumer has seen the end."""
        self._before.clear()

    def take_back(self) -> None:
        """Bring held generators to what they were before the first batch that nobody got, where nobody drew since.

        The shared ones stay what they are.
        """
        if self._takes_back and self._before:
            for name, state in self._before[0].items():
                generator = self.generators[name]
                if name in self._after and same_state(generator_state(generator), self._after[name]):
                    set_generator_state(generator, state)
        self._takes_back = False
        self._before.clear()

    def _positions(self, indices: list[Any]) -> Index:
        numbers = [operator.index(index) for index in indices]
        for number in numbers:
            if not -self._samples <= number < self._samples:
                raise IndexError(f"index {number} is out of range for a data set of {self._samples} samples")
        positions = np.array(numbers, dtype=np.int64)
        return np.where(positions < 0, positions + self._samples, positions).astype(np.uint64)

    def _origin(self) -> Origin:
        # Samplers may make or be given generators later.
        self._generators = None
        return Origin(RandomStates.now(), self.given())

    def _restore(self, origin: Origin) -> None:
        origin.shared.restore()
        self.restore_given(origin.given)

    def restore_given(self, states: dict[str, Any]) -> None:
        """Bring the generators that loader and samplers hold to what they were.

        One that a sampler makes when it is iterated is left to the sampler.

        Raises:
            ValueError: torch's arguments gave more or fewer of them.
        """
        generators = self.generators
        there, here = _GIVEN & states.keys(), _GIVEN & generators.keys()
        if len(there) != len(here):
            raise ValueError(
                f"the state was taken with {len(there)} generators given to loader and samplers, here are {len(here)}"
            )
        for name in states.keys() & generators.keys():
            set_generator_state(generators[name], states[name])
