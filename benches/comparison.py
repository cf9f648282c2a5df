"""What a bench compares: variants that do the same work, each checked before it is timed.

The variants of a comparison read the same input and give the same result, in dtype, shape and memory order, on the
same number of threads; those that write into a buffer write into the same one. A floor does less: it copies as many
bytes, or converts them, without moving any to another place.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

Run = Callable[[], Any]
"""The work of one timed call; returns its result, a tensor or a numpy array."""

Result = Literal["into a buffer", "a fresh result", "a fresh result, earlier ones held"]
"""Where a result goes: to the same memory in each call; to memory of its own, free again before the next call, so that
an allocator may hand it out once more; or to memory of its own that stays in use, so that the next call needs other."""

HELD_BYTES = 256 << 20  # of results held before the clock starts: more than any variant keeps for its next ones
HELD_ROUNDS = 5
POISON = 77  # written to a buffer before a check: not written again, it differs from what is expected


@dataclass(frozen=True)
class Variant:
    """One way to do the work. `prepare` makes what a user would make once: buffers, views, matrices."""

    name: str
    prepare: Callable[[], Run]
    role: Literal["ours", "peer", "floor"] = "peer"
    expected: Callable[[], Tensor] | None = None  # of a floor; the others share the comparison's
    one_thread: bool = False  # has no threads to set
    compiles: bool = False  # by torch.compile: takes seconds and a C++ compiler


@dataclass(frozen=True)
class Comparison:
    """Variants of the same work, and what each must give: `expected` within `tolerance`."""

    table: str  # heading that the report puts it under
    name: str
    expected: Callable[[], Tensor]
    variants: tuple[Variant, ...]
    result: Result
    tolerance: float = 0.0  # absolute; 0: equal to the bit
    images: int = 1  # per call: times are stated for one


@dataclass(frozen=True)
class Case:
    """One benchmark: a variant on a number of threads."""

    comparison: Comparison
    variant: Variant
    threads: int

    def __str__(self) -> str:
        return f"{self.comparison.table}, {self.comparison.name}, {self.variant.name}, {self.threads}t"


def thread_counts() -> list[int]:
    """Return 1 and the number of the CPUs that this process may use."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({1, available})


def cases(comparisons: list[Comparison], *, reverse: bool = False) -> list[Case]:
    """Return the benchmarks; those of one comparison and thread count are neighbours in time."""
    found = []
    for comparison in comparisons:
        for threads in thread_counts():
            variants = [variant for variant in comparison.variants if threads == 1 or not variant.one_thread]
            found += [Case(comparison, variant, threads) for variant in (variants[::-1] if reverse else variants)]
    return found


def measure(benchmark: Any, case: Case) -> None:
    """Check the result of a case, then time it with pytest-benchmark's fixture."""
    if case.variant.compiles and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        run = case.variant.prepare()
        check(case.comparison, case.variant, run)
        benchmark.group = f"{case.comparison.table}, {case.comparison.name}, {case.threads} thread(s)"
        benchmark.extra_info.update(
            table=case.comparison.table,
            comparison=case.comparison.name,
            variant=case.variant.name,
            role=case.variant.role,
            threads=case.threads,
            images=case.comparison.images,
        )
        if case.comparison.result == "a fresh result, earlier ones held":
            measure_held(benchmark, run)
        else:
            benchmark(run)
    finally:
        torch.set_num_threads(before)


def measure_held(benchmark: Any, run: Run) -> None:
    """Time calls that find no memory of a dropped result, because every result is held."""
    held = [run()]
    size = torch.as_tensor(held[0]).nbytes
    reserve = HELD_BYTES // size + 1
    # Memory that a virtual machine never used before costs it ten times a page fault: use as much as will be needed.
    np.ones((reserve + HELD_ROUNDS + 1) * size, dtype=np.uint8)
    held += [run() for _ in range(reserve)]
    benchmark.pedantic(lambda: held.append(run()), rounds=HELD_ROUNDS)


def check(comparison: Comparison, variant: Variant, run: Run) -> None:
    """Raise AssertionError unless the variant gives what the comparison expects, in fresh memory or in its buffer."""
    first = torch.as_tensor(run())
    if comparison.result == "into a buffer":
        first.fill_(POISON)
    result = torch.as_tensor(run())
    if (result.data_ptr() == first.data_ptr()) != (comparison.result == "into a buffer"):
        raise AssertionError(f"{variant.name}: expected {comparison.result}")
    if not result.is_contiguous():
        raise AssertionError(f"{variant.name}: the result is not contiguous: strides {result.stride()}")
    rtol = torch.finfo(result.dtype).eps if comparison.tolerance and result.dtype != torch.float32 else 0.0
    expected = _computed(variant.expected or comparison.expected)
    torch.testing.assert_close(
        result, expected, rtol=rtol, atol=comparison.tolerance, msg=lambda text: f"{variant.name}: {text}"
    )


@functools.lru_cache(maxsize=1)
def _computed(expected: Callable[[], Tensor]) -> Tensor:
    """Compute what is expected once for a comparison, and keep no more than one."""
    return expected()
