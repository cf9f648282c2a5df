"""What a process of a distributed run needs to know; without `torch.distributed`: that it is alone."""

from __future__ import annotations

import torch.distributed as dist

__all__ = ["is_initialized", "rank", "world_size"]


def is_initialized() -> bool:
    """Return whether a default process group of `torch.distributed` exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number in the default process group, or 0 where there is none."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Return the number of processes in the default process group, or 1 where there is none."""
    return dist.get_world_size() if is_initialized() else 1
