"""A model of which each process holds a part: FSDP2, and its states on disk.

Source: torch.distributed.fsdp.fully_shard (block by block, then the rest, as its documentation advises) and
torch.distributed.checkpoint.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vit_rs.exceptions import CheckpointError
from vit_rs.models.resnet import BiTResNet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vit_rs.models.catalogue import Model

__all__ = [
    "distribute",
    "examining",
    "in_parts",
    "load",
    "save",
    "shard",
    "sync_gradients",
    "whole",
    "whole_state",
    "works_on_cpu",
]


class _Sharded(nn.Module):
    """A sharded model: hooks on this module gather the weights that belong to no block.

    They are not on the model itself, whose features and logits are two calls.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, *, pre_logits: bool = False) -> torch.Tensor:
        if not pre_logits:
            logits = cast("torch.Tensor", self.model(images))
            # A ResNet's are a view, which FSDP2's hooks warn of.
            return logits.clone() if isinstance(self.model, BiTResNet) else logits
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)


class _Examined(nn.Module):
    """A sharded model with the methods that evaluation calls."""

    def __init__(self, sharded: nn.Module) -> None:
        super().__init__()
        self.sharded = sharded

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._run(images, pre_logits=False)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the pooled features: `forward_head` has nothing left to do."""
        return self._run(images, pre_logits=True)

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return the pooled features as they are."""
        if not pre_logits:
            raise ValueError("logits are what the model itself returns")
        return features

    def _run(self, images: torch.Tensor, *, pre_logits: bool) -> torch.Tensor:
        # Weights that were first gathered in inference mode could not be trained any more.
        with torch.inference_mode(mode=False), torch.no_grad():
            return cast("torch.Tensor", self.sharded(images, pre_logits=pre_logits))


def works_on_cpu() -> bool:
    """Return whether this torch shards on CPUs: torch 2.6 asks their streams for what they lack."""
    return hasattr(torch.cpu.Stream, "record_event")


def shard(model: Model, device: str, world_size: int) -> nn.Module:
    """Leave each process its part of every parameter, in place; return the module to call.

    Args:
        model: the same weights on every process.
        device: "cpu" or "cuda".
        world_size: number of processes.
    """
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415  (seconds of imports)
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    mesh = init_device_mesh(device, (world_size,))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    return cast("nn.Module", fully_shard(_Sharded(model), mesh=mesh))


def _blocks(model: Model) -> Iterator[nn.Module]:
    """Yield the modules that are gathered one after the other: transformer blocks, a ResNet's stages."""
    if isinstance(model, BiTResNet):
        yield from model.stages
        return
    yield from model.blocks
    backbone = getattr(model.patch_embed, "backbone", None)  # a hybrid's, which has stages but where it is a mere stem
    yield from getattr(backbone, "stages", ())


def sync_gradients(sharded: nn.Module, *, enable: bool) -> None:
    """Say whether the next backward pass sums the gradients over the processes."""
    cast("Any", sharded).set_requires_gradient_sync(enable)


@contextlib.contextmanager
def examining(sharded: nn.Module) -> Iterator[nn.Module]:
    """Give the model for evaluation; every process makes the same number of calls."""
    try:
        yield _Examined(sharded)
    finally:
        cast("Any", sharded).reshard()


def in_parts(tensor: torch.Tensor) -> bool:
    """Return whether each process has a part of a tensor: whether it is torch's DTensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with the parts of all processes, where it has parts; else as it is."""
    return cast("torch.Tensor", cast("Any", tensor).full_tensor()) if in_parts(tensor) else tensor


def whole_state(model: nn.Module) -> dict[str, Any]:
    """Return the weights whole, on the CPU, on the first process; nothing on the others."""
    from torch.distributed.checkpoint.state_dict import (  # noqa: PLC0415
        StateDictOptions,
        get_model_state_dict,
    )

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None) -> None:
    """Write every process's part of weights, optimizer and averaged weights into a folder."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_saver import save as save_parts  # noqa: PLC0415

    with _failing(folder):
        save_parts(_state(model, optimizer, average), storage_writer=FileSystemWriter(folder))


@contextlib.contextmanager
def _failing(folder: Path) -> Iterator[None]:
    """Raise what went wrong on any process in place of torch's exception, which is none that is caught as such.

    Raises:
        OSError, CheckpointError: the first process's failure, the folder named.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415

    try:
        yield
    except CheckpointException as error:
        rank, (reason, _) = min(error.failures.items())
        text = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
        if isinstance(reason, OSError):
            raise OSError(reason.errno, f"process {rank}: {reason.strerror}", str(folder)) from error
        raise CheckpointError(f"{folder}: process {rank}: {text}") from error


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None) -> None:
    """Read what `save` wrote, under any number of processes, one included.

    Raises:
        RuntimeError, ValueError: it does not fit, or cannot be read.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_state_dict  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_loader import load as load_parts  # noqa: PLC0415

    state = _state(model, optimizer, average)
    with _failing(folder), warnings.catch_warnings():
        # A process that goes on alone is what it warns of.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        load_parts(state, storage_reader=FileSystemReader(folder))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    if average is not None:
        set_model_state_dict(average, state["average"])


def distribute(
    state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> None:
    """Give each process its part of a state that one process, or several with the whole model, saved.

    Args:
        state: "model", "optimizer" and "ema", as `Engine.state_dict` returned them there; on every process.
        model: the sharded model.
        optimizer: its optimizer.
        average: the sharded average.

    Raises:
        RuntimeError, ValueError, KeyError: it does not fit.
    """
    from torch.distributed.checkpoint.state_dict import (  # noqa: PLC0415
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    moments = state["optimizer"]
    named: dict[str, Any] = {
        "state": {order[index]: values for index, values in moments["state"].items()},
        "param_groups": [
            {**group, "params": [order[index] for index in group["params"]]} for group in moments["param_groups"]
        ],
    }
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, state["model"], options=options)
    set_optimizer_state_dict(model, optimizer, named, options=options)
    if average is not None:
        set_model_state_dict(average, state["ema"]["model"], options=options)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict  # noqa: PLC0415

    weights, moments = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": moments}
    if average is not None:
        state["average"] = get_model_state_dict(average)
    return state
