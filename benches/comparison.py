"""What a bench compares: variants that do the same work, each checked before it is timed.

A subclass of Comparison says what "the same work" means and how it is checked: `operators.Operator` for functions of
tensors, `loading.Loading` for image files, `augmentation.Augmentation` for changes to one image.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import pytest
import torch

Run = Callable[[], Any]
"""The work of one timed call; returns its result. One that holds threads or processes ends them in its `close`."""

Role = Literal["ours", "form", "peer", "floor"]
"""`ours` is what the others are compared with; a form is vit_rs used in another way; a floor does other work than is
asked, such as a plain copy. Only peers can be lost to."""

Unit = Literal["us/image", "us/call", "images/s", "% of a step"]


@dataclass(frozen=True)
class Variant:
    """One way to do the work. `prepare` makes what a user would make once: buffers, views, pipelines."""

    name: str
    prepare: Callable[[], Run]
    role: Role = "peer"
    expected: Callable[[], Any] | None = None  # where it differs from the comparison's
    one_thread: bool = False  # has no threads to set
    compiles: bool = False  # by torch.compile: takes seconds and a C++ compiler
    needs: tuple[str, ...] = ()  # modules without which it is left out
    own_clock: bool = False  # a run returns the seconds of its rounds: another program measures them


@dataclass(frozen=True, kw_only=True)
class Comparison(ABC):
    """Variants of the same work."""

    table: str  # heading that the report puts it under
    name: str
    variants: tuple[Variant, ...]
    images: int = 1  # per call: times are stated for one
    unit: Unit = "us/image"
    threads: tuple[int, ...] = ()  # numbers of threads to measure; empty: `thread_counts`
    torch_threads: int | None = None  # where they are not torch's, the number that torch has
    rounds: int | None = None  # of one call each; None: as pytest-benchmark chooses
    paired: bool = False  # the variants took turns: round n of one was measured beside round n of the other

    @abstractmethod
    def check(self, variant: Variant, run: Run) -> None:
        """Raise AssertionError unless the variant does the work of the comparison."""

    def time(self, benchmark: Any, run: Run) -> None:
        """Time a run that was called before, with pytest-benchmark's fixture."""
        if self.rounds is None:
            benchmark(run)
        else:
            benchmark.pedantic(run, rounds=self.rounds)


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


def installed(modules: tuple[str, ...]) -> bool:
    """Say whether all of these modules can be imported."""
    return all(find_spec(module.partition(".")[0]) and find_spec(module) for module in modules)


def cases(comparisons: list[Comparison], *, reverse: bool = False) -> list[Case]:
    """Return the benchmarks; those of one comparison and thread count are neighbours in time."""
    found = []
    for comparison in comparisons:
        for threads in comparison.threads or thread_counts():
            variants = [
                variant
                for variant in comparison.variants
                if (threads == 1 or not variant.one_thread) and installed(variant.needs)
            ]
            found += [Case(comparison, variant, threads) for variant in (variants[::-1] if reverse else variants)]
    return found


def measure(benchmark: Any, case: Case) -> None:
    """Check the result of a case, then time it with pytest-benchmark's fixture."""
    if case.variant.compiles and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    comparison, variant = case.comparison, case.variant
    before = torch.get_num_threads()
    torch.set_num_threads(comparison.torch_threads or case.threads)
    run = None
    try:
        run = variant.prepare()
        benchmark.group = f"{comparison.table}, {comparison.name}, {case.threads} thread(s)"
        benchmark.extra_info.update(
            table=comparison.table,
            comparison=comparison.name,
            variant=variant.name,
            role=variant.role,
            threads=case.threads,
            images=comparison.images,
            unit=comparison.unit,
            paired=comparison.paired,
        )
        if variant.own_clock:
            benchmark.extra_info["seconds"] = benchmark.pedantic(run, rounds=1)
        else:
            comparison.check(variant, run)
            comparison.time(benchmark, run)
    finally:
        close(run)
        torch.set_num_threads(before)


def close(run: Run | None) -> None:
    """End the threads and processes of a run, if it has any."""
    getattr(run, "close", lambda: None)()
