"""Comparisons of functions of tensors: every variant reads the same input and gives the same result.

Results are the same in dtype, shape and memory order, on the same number of threads; variants that write into a buffer
write into the same one. A floor copies as many bytes, or converts them, without moving any to another place.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from comparison import Comparison, Run, Variant
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

Result = Literal["into a buffer", "a fresh result", "a fresh result, earlier ones held"]
"""Where a result goes: to the same memory in each call; to memory of its own, free again before the next call, so that
an allocator may hand it out once more; or to memory of its own that stays in use, so that the next call needs other."""

HELD_BYTES = 256 << 20  # of results held before the clock starts: more than any variant keeps for its next ones
HELD_ROUNDS = 5
POISON = 77  # written to a buffer before a check: not written again, it differs from what is expected


@dataclass(frozen=True, kw_only=True)
class Operator(Comparison):
    """Variants of the same function, which must give `expected` within `tolerance`."""

    expected: Callable[[], Tensor]
    result: Result
    tolerance: float = 0.0  # absolute; 0: equal to the bit

    def check(self, variant: Variant, run: Run) -> None:
        """Raise AssertionError unless it gives what is expected, in fresh memory or in its buffer."""
        first = torch.as_tensor(run())
        if self.result == "into a buffer":
            first.fill_(POISON)
        result = torch.as_tensor(run())
        if (result.data_ptr() == first.data_ptr()) != (self.result == "into a buffer"):
            raise AssertionError(f"{variant.name}: expected {self.result}")
        if not result.is_contiguous():
            raise AssertionError(f"{variant.name}: the result is not contiguous: strides {result.stride()}")
        rtol = torch.finfo(result.dtype).eps if self.tolerance and result.dtype != torch.float32 else 0.0
        expected = _computed(variant.expected or self.expected)
        torch.testing.assert_close(
            result, expected, rtol=rtol, atol=self.tolerance, msg=lambda text: f"{variant.name}: {text}"
        )

    def time(self, benchmark: Any, run: Run) -> None:
        """Time calls; where results are held, calls that find no memory of a dropped one."""
        if self.result != "a fresh result, earlier ones held":
            super().time(benchmark, run)
            return
        held = [run()]
        size = torch.as_tensor(held[0]).nbytes
        reserve = HELD_BYTES // size + 1
        # Memory that a virtual machine never used before costs it ten times a page fault: use as much as is needed.
        np.ones((reserve + HELD_ROUNDS + 1) * size, dtype=np.uint8)
        held += [run() for _ in range(reserve)]
        benchmark.pedantic(lambda: held.append(run()), rounds=HELD_ROUNDS)


@functools.lru_cache(maxsize=1)
def _computed(expected: Callable[[], Tensor]) -> Tensor:
    """Compute what is expected once for a comparison, and keep no more than one."""
    return expected()
