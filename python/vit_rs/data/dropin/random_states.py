"""The generators that everybody shares: torch's default one, `random`'s and numpy's; kept, seeded and brought back.

numpy's is the legacy one: it is what transforms draw from.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

__all__ = [
    "RandomStates",
    "preserved",
    "seed_all",
    "with_arrays",
    "with_tuples",
    "without_arrays",
    "without_tuples",
]


@dataclass(frozen=True)
class RandomStates:
    """What the three generators' states were at some time. CUDA's generators are never touched."""

    torch: torch.Tensor
    python: tuple[Any, ...]
    numpy: dict[str, Any]

    @classmethod
    def now(cls) -> Self:
        """Return the present states."""
        return cls(torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False))  # noqa: NPY002

    def same_as(self, other: RandomStates) -> bool:
        """Tell whether these are the same states."""
        mine, theirs = self.numpy, other.numpy
        return (
            torch.equal(self.torch, other.torch)
            and self.python == other.python
            and np.array_equal(mine["state"]["key"], theirs["state"]["key"])
            and mine["state"]["pos"] == theirs["state"]["pos"]
            and (mine["has_gauss"], mine["gauss"]) == (theirs["has_gauss"], theirs["gauss"])
        )

    def restore(self) -> None:
        """Bring them back."""
        torch.set_rng_state(self.torch)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002

    def plain(self) -> dict[str, Any]:
        """Return them as tensors, lists, texts and numbers, which `torch.load(weights_only=True)` takes."""
        return {"torch": self.torch, "python": without_tuples(self.python), "numpy": without_arrays(self.numpy)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """Return what `plain` was made of."""
        return cls(plain["torch"], with_tuples(plain["python"]), with_arrays(plain["numpy"]))


def without_tuples(state: tuple[Any, ...]) -> list[Any]:
    """Return a state of `random`'s with a list for its tuples."""
    version, internal, gauss = state
    return [version, list(internal), gauss]


def with_tuples(state: list[Any]) -> tuple[Any, ...]:
    """Return the state that `without_tuples` returned a list for."""
    version, internal, gauss = state
    return version, tuple(internal), gauss


def without_arrays(state: Any) -> Any:
    """Return a state of numpy's with lists for its arrays, which torch's safe reader does not take."""
    if isinstance(state, dict):
        return {name: without_arrays(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, (np.ndarray, np.generic)) else state


def with_arrays(state: Any) -> Any:
    """Return the state that `without_arrays` returned lists for."""
    if isinstance(state, dict):
        return {name: with_arrays(value) for name, value in state.items()}
    # All are of unsigned numbers of 32 or 64 bits.
    return np.array(state, dtype=np.uint64) if isinstance(state, list) else state


@contextmanager
def preserved() -> Iterator[None]:
    """Leave the generators behind as they were, whatever happens inside."""
    states = RandomStates.now()
    try:
        yield
    finally:
        states.restore()


def seed_all(seed: int) -> None:
    """Seed all three with a 64-bit number; numpy takes its lower half."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
