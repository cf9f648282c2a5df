"""Copies to a CUDA device on a stream of their own, one batch ahead of the consumer: they pass while it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Copier", "CudaCopier", "copied_ahead"]

Begun = TypeVar("Begun")


class Copier(Protocol[Begun]):
    """How tensors get to a device."""

    def begin(self, tensors: Sequence[torch.Tensor]) -> Begun:
        """Start to copy tensors of the CPU; they may be let go of at once."""

    def hand_over(self, begun: Begun) -> tuple[torch.Tensor, ...]:
        """Return the copies, for use on the current stream."""


class _Copies(NamedTuple):
    tensors: tuple[torch.Tensor, ...]
    done: torch.cuda.Event


class CudaCopier:
    """Copies through pinned memory, asynchronously, on a side stream.

    Pinned memory and the copies come from torch's caching allocators: the first is reused when its copy is done, the
    second when both streams are done with it.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self, tensors: Sequence[torch.Tensor]) -> _Copies:
        """Start to copy tensors of the CPU; they may be let go of at once."""
        with torch.cuda.stream(self._stream):
            copies = tuple(tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors)
            return _Copies(copies, self._stream.record_event())

    def hand_over(self, begun: _Copies) -> tuple[torch.Tensor, ...]:
        """Return the copies, for use on the current stream, which waits for them; nothing else does."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(begun.done)
        for tensor in begun.tensors:
            tensor.record_stream(stream)  # they were allocated on the side stream
        return begun.tensors


def copied_ahead(
    batches: Iterator[Sequence[torch.Tensor]], copier: Copier[Begun]
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield copies of batches, each begun before the one before it is yielded.

    An error comes at its own batch: the one that was copied ahead of it is yielded first.
    """
    ahead: list[Begun] = []
    failure = None
    more = True
    while more:
        try:
            batch = next(batches, None)
        except Exception as error:  # noqa: BLE001  (raised below)
            batch, failure = None, error
        more = batch is not None
        if batch is not None:
            ahead.append(copier.begin(batch))
            del batch  # its memory is the loader's again
        if ahead and (len(ahead) > 1 or not more):
            yield copier.hand_over(ahead.pop(0))
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # it knows this frame
