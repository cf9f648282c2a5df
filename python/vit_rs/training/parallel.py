"""Several processes that train one model: who does what, and how they end together.

Each process has its share of every batch. With "ddp" each holds the whole model and gradients are averaged; with
"fsdp2" each holds a part of every block's weights. One process is the case of no others: nothing is wrapped or sent.

Source: torch's DistributedDataParallel and fully_shard; processes are started by torchrun.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vit_rs import distributed
from vit_rs.evaluation.devices import check_device
from vit_rs.exceptions import ConfigError, OtherProcessError, VitRsError
from vit_rs.training import sharded
from vit_rs.training.interruption import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vit_rs.models.catalogue import Model

__all__ = ["Parallel", "connected"]

Value = TypeVar("Value")


class Parallel:
    """This process's place among those of a run.

    Args:
        kind: how several processes share the model.
        device: this process's own.
        link: to the others; None where there are none.

    Attributes:
        device: this process's own.
        rank: number of this process, 0 <= rank < world_size.
        world_size: number of processes.
        sharded: whether each process holds only a part of the weights.
    """

    def __init__(
        self, kind: Literal["ddp", "fsdp2"], device: str | torch.device, link: distributed.Link | None = None
    ) -> None:
        self._link = link
        self.device = torch.device(device)
        self.rank = 0 if link is None else link.rank
        self.world_size = 1 if link is None else link.world_size
        self.sharded = link is not None and kind == "fsdp2"

    @property
    def is_main(self) -> bool:
        """Whether this process writes files, records and the bar."""
        return self.rank == 0

    def wrap(self, model: Model) -> nn.Module:
        """Return the module to call in training. Sharding replaces the model's parameters, in place."""
        if self._link is None:
            return model
        if self.sharded:
            return sharded.shard(model, self.device.type, self.world_size)
        devices = None if self.device.type == "cpu" else [self.device]
        return DistributedDataParallel(model, devices, gradient_as_bucket_view=True)

    def wrap_average(self, model: Model | None) -> nn.Module | None:
        """Return what to call for a moving average, which is never trained: sharded as the model is, or itself."""
        return sharded.shard(model, self.device.type, self.world_size) if self.sharded and model is not None else model

    @contextlib.contextmanager
    def sync(self, module: nn.Module, *, last: bool) -> Iterator[None]:
        """Run one part of an accumulated step; gradients are averaged over the processes in the last one's.

        Args:
            module: what `wrap` returned.
            last: whether this is the step's last part.
        """
        if isinstance(module, DistributedDataParallel) and not last:
            with module.no_sync():
                yield
            return
        if self.sharded:
            sharded.sync_gradients(module, enable=last)
        yield

    @contextlib.contextmanager
    def examining(self, model: Model, wrapped: nn.Module | None) -> Iterator[nn.Module]:
        """Give a model as evaluation wants it: logits, and features, of images.

        Args:
            model: the model.
            wrapped: what `wrap` returned for it, None for one that was not wrapped.
        """
        if not self.sharded or wrapped is None:
            yield model
            return
        with sharded.examining(wrapped) as module:
            yield module

    def whole_state(self, model: nn.Module) -> dict[str, Any] | None:
        """Return the model's weights, whole and on the CPU, on the first process; None on the others."""
        if self.sharded:
            state = sharded.whole_state(model)
            return state if self.is_main else None
        return dict(model.state_dict()) if self.is_main else None

    def share(self, values: Sequence[Value]) -> list[Value]:
        """Return this process's part of a sequence: processes take turns, none is given twice."""
        return list(values[self.rank :: self.world_size])

    def interleave(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the rows of all processes' parts in the order that `share` cut them from."""
        order = sorted((row, rank) for rank, part in enumerate(parts) for row in range(len(part)))
        starts = [sum(len(part) for part in parts[:rank]) for rank in range(len(parts))]
        return torch.cat(list(parts))[[starts[rank] + row for row, rank in order]]

    def seed(self, *numbers: int) -> None:
        """Seed torch's generators by some numbers and the rank: no two processes draw the same dropout."""
        # All bits of the numbers in each bit of the seed: torch's generator on the CPU takes the low 32.
        [seed] = np.random.SeedSequence((*numbers, self.rank)).generate_state(1)
        torch.manual_seed(int(seed))

    def stop_or_save(self, signum: int | None, *, save: bool) -> tuple[int | None, bool]:
        """Agree on whether to stop, which a signal to any process asks for, and to save, which the first one decides.

        Returns:
            The signal that any of the processes got, or None; whether to save.
        """
        if self._link is None:
            return signum, save
        stop, saving = self._link.largest(signum or 0, int(save and self.is_main))
        return stop or None, bool(saving)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process."""
        return flag if self._link is None else bool(self._link.largest(int(flag))[0])

    def mean(self, value: float) -> float:
        """Return the mean over the processes, the same on each."""
        return value if self._link is None else self._link.total([value])[0] / self.world_size

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums over the processes, the same on each."""
        return list(values) if self._link is None else self._link.total(values)

    def gather(self, value: Value) -> list[Value]:
        """Return every process's value, in the order of the ranks."""
        return [value] if self._link is None else self._link.gather(value)

    def from_main(self, make: Callable[[], Value]) -> Value:
        """Return what the first process makes, on every process; an error there is an error on all."""
        with self.together():
            value = make() if self.is_main else None
        return cast("Value", value if self._link is None else self._link.from_first(value))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Do something without a collective in it; where it fails on one process, raise on every one.

        Raises:
            OtherProcessError: it failed on another process; the message is that one's. Also where it failed here, in
                the same words.
        """
        if self._link is None:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001  (told to the others, then raised)
            failure = error
        try:
            failures = self._link.gather(None if failure is None else _described(failure))
        except RuntimeError as error:
            raise (error if failure is None else failure) from None  # the others are gone: say what is wrong here
        for rank, described in enumerate(failures):
            said = failure is not None and (rank >= self.rank or described != failures[self.rank])
            if described is not None and not said:
                raise _raised({"rank": rank, **described}) from failure
        if failure is not None:
            raise failure

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Tell the others of what ends this process, and say what ended them where that is why it ends.

        Raises:
            OtherProcessError: another process failed.
            VitRsError: another process was lost.
            Interrupted: another process was stopped by a signal.
        """
        if self._link is None:
            yield
            return
        try:
            yield
        except BaseException as error:
            told = None
            if distributed.lost_connection(error):
                with contextlib.suppress(RuntimeError):
                    told = self._link.told()
                raise (_lost(error) if told is None else _raised(told)) from error
            with contextlib.suppress(RuntimeError):  # the board is gone: nobody is left to be told
                self._link.tell(_described(error))
            raise


@contextlib.contextmanager
def connected(kind: Literal["ddp", "fsdp2"], device: str) -> Iterator[Parallel]:
    """Connect to the other processes that torchrun started, if it did, for as long as the context lasts.

    Args:
        kind: how they share the model.
        device: the setting; "cuda" is each process's own, by its number on the machine.

    Raises:
        ConfigError: the device cannot be used, or not by several processes or in this way.
    """
    if not (distributed.is_launched() or distributed.is_initialized()):
        check_device(device)
        yield Parallel(kind, device)
        return
    if device != "cpu" and not device.startswith("cuda"):
        raise ConfigError(f"device: several processes run on cpu or cuda, got {device!r}")
    if kind == "fsdp2" and device == "cpu" and not sharded.works_on_cpu():
        raise ConfigError(
            f"parallel: fsdp2 runs on CPUs with torch 2.7 or newer, this is {torch.__version__}; expected ddp"
        )
    if device.startswith("cuda:"):
        raise ConfigError(f"device: several processes have one GPU each: expected cuda, got {device!r}")
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        check_device(device)
        torch.cuda.set_device(device)
    link = distributed.Link(torch.device(device).type)
    failed = True
    try:
        parallel = Parallel(kind, device, link)
        with parallel.watched():
            yield parallel
        failed = False
    finally:
        link.close(failed=failed)


def _described(error: BaseException) -> dict[str, Any]:
    if isinstance(error, Interrupted):
        return {"signal": error.signum, "text": str(error)}
    known = isinstance(error, (VitRsError, OSError))
    return {"signal": None, "text": str(error) if known else f"{type(error).__name__}: {error}"}


def _raised(failure: Mapping[str, Any]) -> BaseException:
    """Return the error with which a process ends because another one did."""
    if failure["signal"] is not None:
        return Interrupted(failure["signal"], failure["text"])
    return OtherProcessError(f"process {failure['rank']} of this run failed: {failure['text']}")


def _lost(error: BaseException) -> VitRsError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return VitRsError(
        f"a process of this run was lost: it was killed, or its machine or network failed (torch says: {reason})"
    )
