"""What a process of a distributed run needs to know, and to tell the others; without `torch.distributed`: it is alone.

Processes are started by torchrun, or by whatever sets its environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
MASTER_PORT). Nothing here is initialised unasked.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Link", "is_initialized", "is_launched", "is_main", "is_supervised", "lost_connection", "rank", "world_size"]

# How long a process waits for one that is alive but silent. One that ended is noticed at once: its connections close.
_TIMEOUT = timedelta(minutes=30)
_FAILURE = "failure"
# What gloo, NCCL and the store say of a process that is gone.
_LOST = (
    *("connection closed by peer", "connection reset by peer", "connection refused", "broken pipe"),
    *("timed out", "timeout", "ncclremoteerror", "remote process exited", "connection was likely closed"),
    *("failed to recv", "failed to send", "socket error", "connectfullmesh failed"),
)


def is_initialized() -> bool:
    """Return whether a default process group of `torch.distributed` exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number in the default process group, or 0 where there is none."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Return the number of processes in the default process group, or 1 where there is none."""
    return dist.get_world_size() if is_initialized() else 1


def is_launched() -> bool:
    """Return whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def is_supervised() -> bool:
    """Return whether a launcher, which passes signals on, started this process, perhaps as the only one."""
    return is_launched() or "TORCHELASTIC_RUN_ID" in os.environ


def is_main() -> bool:
    """Return whether this is the process that speaks for all: rank 0, also before and after the group's life."""
    return rank() == 0 if is_initialized() else not is_launched() or int(os.environ["RANK"]) == 0


def lost_connection(error: BaseException) -> bool:
    """Return whether a collective failed because another process is gone, or silent for too long."""
    if isinstance(error, dist.DistNetworkError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST)


class Link:
    """The processes of a run, connected: a group for small messages between their CPUs, and a board for failures.

    The group is gloo's whatever the device: its collectives fail as soon as a process is gone, and wait for no stream.
    Every method that does not say otherwise is a collective: all processes call it, in the same order.

    Args:
        device: "cpu" or "cuda": what the default group, made where there is none, is for.
    """

    def __init__(self, device: str) -> None:
        self._owned = not is_initialized()
        self._store: Any = None
        if self._owned:
            # Not at the top: a torch without torch.distributed has none of it.
            from torch.distributed.distributed_c10d import PrefixStore  # noqa: PLC0415
            from torch.distributed.rendezvous import rendezvous  # noqa: PLC0415

            store, number, count = next(rendezvous("env://", timeout=_TIMEOUT))
            store.set_timeout(_TIMEOUT)
            # A process may train several times: each time has its own names in the store, which outlives them.
            turn = (store.add("vit_rs/joined", 1) - 1) // count
            self._store = PrefixStore(f"vit_rs/{turn}", store)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
                store=PrefixStore("group", self._store),
                rank=number,
                world_size=count,
                timeout=_TIMEOUT,
            )
        self.rank, self.world_size = rank(), world_size()
        self._group: Any = dist.new_group(backend="gloo", timeout=_TIMEOUT)

    def largest(self, *values: int) -> list[int]:
        """Return the largest of each value over the processes."""
        numbers = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self._group)
        return [int(number) for number in numbers.tolist()]

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over the processes, in float64; the same bits on each."""
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, group=self._group)
        return [float(number) for number in numbers.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in the order of the ranks."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def from_first(self, value: Any) -> Any:
        """Return the first process's value."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def tell(self, failure: dict[str, Any]) -> None:
        """Leave word of why this process ends, for those whose collectives fail because of it. No collective."""
        if self._store is not None:
            # The first failure is the cause of the others.
            self._store.compare_set(_FAILURE, "", json.dumps({"rank": self.rank, **failure}))

    def told(self) -> dict[str, Any] | None:
        """Return what a process that ended has left word of. No collective.

        Raises:
            RuntimeError: the process that keeps the board is gone too.
        """
        if self._store is None or not self._store.check([_FAILURE]):
            return None
        failure: dict[str, Any] = json.loads(self._store.get(_FAILURE))
        return failure

    def close(self, *, failed: bool) -> None:
        """Let go of the others; after a failure, without waiting for what is still under way on a device."""
        dist.destroy_process_group(self._group)
        if self._owned and not (failed and "nccl" in dist.get_backend_config()):
            dist.destroy_process_group()
