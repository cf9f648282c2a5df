"""Batches of indices, pulled from the samplers when torch pulls them, and pulled again when a loader resumes."""

from __future__ import annotations

import copy
import itertools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import BatchSampler

from vit_rs.data.dropin.random_states import RandomStates, preserved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vit_rs.data.order import Index

__all__ = ["IndexStream", "Origin", "Pulled"]


@dataclass(frozen=True)
class Origin:
    """The states of all generators that a sampler may draw from, at one time."""

    shared: RandomStates
    # Of the generators that were given to the loader or its samplers.
    given: list[torch.Tensor]


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
        self._samples = samples
        self._batched = loader.batch_sampler is not None
        self.sampler = loader.batch_sampler if self._batched else loader.sampler
        self._iterator: Iterator[Any] | None = None
        self._drawn = 0
        self._exhausted = False
        self.at_start: Origin | None = None
        self.at_first: Origin | None = None

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
    def generators(self) -> list[torch.Generator]:
        """The generators that the user gave, each once."""
        owners = [self.sampler, getattr(self.sampler, "sampler", None)]
        found = [self._generator, *(getattr(owner, "generator", None) for owner in owners)]
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())

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
        if self.at_first is None:
            self.at_first = self._origin()
        try:
            wanted = next(self._iterator)
            positions = self._positions(list(wanted) if self._batched else [wanted])
        except StopIteration:
            self._exhausted = True
            return None
        except Exception as error:  # noqa: BLE001  (raised when its batch is asked for)
            return Pulled(np.empty(0, np.uint64), self._drawn, error)
        pulled = Pulled(positions, self._drawn, sampler_state=self.sampler_state())
        self._drawn += len(positions)
        return pulled

    def _positions(self, indices: list[Any]) -> Index:
        positions = np.array([operator.index(index) for index in indices], dtype=np.int64)
        outside = (positions < -self._samples) | (positions >= self._samples)
        if outside.any():
            raise IndexError(f"index {positions[outside][0]} is out of range for a data set of {self._samples} samples")
        return np.where(positions < 0, positions + self._samples, positions).astype(np.uint64)

    def _origin(self) -> Origin:
        return Origin(RandomStates.now(), [generator.get_state() for generator in self.generators])

    def _restore(self, origin: Origin) -> None:
        origin.shared.restore()
        self.restore_given(origin.given)

    def restore_given(self, states: list[torch.Tensor]) -> None:
        """Bring the generators that the user gave to what they were.

        Raises:
            ValueError: there were more or fewer of them.
        """
        generators = self.generators
        if len(generators) != len(states):
            raise ValueError(
                f"the state was taken with {len(states)} generators given to loader and samplers, here are "
                f"{len(generators)}"
            )
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
