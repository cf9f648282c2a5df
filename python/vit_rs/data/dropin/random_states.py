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

__all__ = ["RandomStates", "preserved", "seed_all"]


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
        """Return them as tensors, lists and numbers, which `torch.load(weights_only=True)` takes."""
        version, internal, gauss = self.python
        numbers = self.numpy["state"]
        return {
            "torch": self.torch,
            "python": [version, list(internal), gauss],
            "numpy": {
                "key": torch.from_numpy(numbers["key"].astype(np.int64)),
                "pos": int(numbers["pos"]),
                "has_gauss": int(self.numpy["has_gauss"]),
                "gauss": float(self.numpy["gauss"]),
            },
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """Return what `plain` was made of."""
        version, internal, gauss = plain["python"]
        numpy = plain["numpy"]
        return cls(
            plain["torch"],
            (version, tuple(internal), gauss),
            {
                "bit_generator": "MT19937",
                "state": {"key": numpy["key"].numpy().astype(np.uint32), "pos": numpy["pos"]},
                "has_gauss": numpy["has_gauss"],
                "gauss": numpy["gauss"],
            },
        )


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
