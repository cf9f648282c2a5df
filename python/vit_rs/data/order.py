"""Which samples of an epoch's order belong to which process, from wherever the epoch goes on."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Index", "share", "share_length"]

Index = np.ndarray[Any, np.dtype[np.uint64]]


def share(order: Index, consumed: int, *, rank: int, world_size: int, drop_last: bool) -> Index:
    """Return what is this rank's of an epoch whose first `consumed` samples are done: u64, (share_length(...),).

    Ranks take turns in the order. Without `drop_last`, samples from the order's start fill the last turn: always those,
    so that an interrupted epoch repeats the samples that it would have repeated.

    Source: torch.utils.data.DistributedSampler, for consumed = 0.
    """
    left = order[consumed:]
    if drop_last:
        left = left[: len(left) // world_size * world_size]
    else:
        left = np.concatenate([left, np.resize(order, -len(left) % world_size)])
    return np.ascontiguousarray(left[rank::world_size])


def share_length(samples: int, *, world_size: int, drop_last: bool) -> int:
    """Return how many of `samples` samples each rank gets."""
    return samples // world_size if drop_last else -(-samples // world_size)
