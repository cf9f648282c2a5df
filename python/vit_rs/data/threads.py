"""How many threads this process may run at once."""

from __future__ import annotations

import os

__all__ = ["default_threads", "usable_cpus"]


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """Return this process's share of the usable CPUs, at least 1: torchrun's LOCAL_WORLD_SIZE processes divide them."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not processes.isdecimal() or int(processes) < 1:
        raise ValueError(f"LOCAL_WORLD_SIZE must be a number of processes, got {processes!r}")
    return max(1, usable_cpus() // int(processes))
