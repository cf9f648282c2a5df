"""Samples into batches: what the user's collate_fn does, and who may call it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import default_collate, default_convert
from torch.utils.data._utils import collate as torchs

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Collation", "collate_function", "is_torchs"]

_FETCH = "torch.utils.data._utils.fetch"
_REBUILT = (
    "this is torch's DataLoader, rebuilt from a vit_rs.data.DataLoader: it would decode and transform in Python, with "
    "other random numbers. accelerate's prepare() and skip_first_batches() do that, what is built on them "
    "(transformers' Trainer), and Ray's prepare_data_loader(). Do not give them the loader: prepare model and "
    "optimizer only, move the batches to the device, and use a DistributedSampler where there are several processes "
    "(docs/drop-in.md). If torch's loader is what you want, use torch.utils.data.DataLoader"
)


class Collation:
    """A collate_fn that works for its own loader and for anybody's direct calls, and refuses torch's loader.

    It equals the function that it stands for, and is not that object.

    Frameworks that rebuild a loader copy its attributes to a new one of torch's: `collate_fn` is the one of them that
    torch calls. In all else this object stands for the function: attributes are read from it and set on it, and
    isinstance takes one for the other.

    Args:
        function: takes a list of samples and returns a batch.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        object.__setattr__(self, "function", function)

    def __call__(self, samples: Any) -> Any:
        """Return the batch of some samples.

        Raises:
            RuntimeError: torch's DataLoader is calling.
        """
        frame = sys._getframe(1)  # noqa: SLF001  (who calls is the question)
        while frame is not None:
            if frame.f_globals.get("__name__") == _FETCH:
                raise RuntimeError(_REBUILT)
            frame = frame.f_back  # type: ignore[assignment]
        return collate_function(self)(samples)

    @property  # type: ignore[misc]  # as unittest.mock does it
    def __class__(self) -> type:
        return type(collate_function(self))

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "function"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(collate_function(self), name, value)

    def __reduce__(self) -> tuple[type, tuple[Any]]:
        return Collation, (collate_function(self),)

    def __eq__(self, other: object) -> bool:
        return bool(collate_function(self) == collate_function(other))

    def __hash__(self) -> int:
        return hash(collate_function(self))

    def __repr__(self) -> str:
        return f"Collation({collate_function(self)!r})"


def collate_function(collate_fn: Any) -> Callable[[Any], Any]:
    """Return what a loader's `collate_fn` stands for; a function that was set in its place stands for itself."""
    function = object.__getattribute__(collate_fn, "function") if type(collate_fn) is Collation else collate_fn
    return cast("Callable[[Any], Any]", function)


def is_torchs(collate_fn: Any) -> bool:
    """Tell whether a loader's `collate_fn` is one of torch's two, and runs no code of the user's."""
    function = collate_function(collate_fn)
    return function is default_convert or (function is default_collate and _stacks())


def _stacks() -> bool:
    """Tell whether default_collate still does torch's own to samples of (image, integer).

    Its documentation shows how to put other functions into `default_collate_fn_map`.
    """
    table = torchs.default_collate_fn_map

    def used(wanted: type) -> Any:
        return table.get(wanted) or next((table[kind] for kind in table if issubclass(wanted, kind)), None)

    tv_tensors = sys.modules.get("torchvision.tv_tensors")
    images = [torch.Tensor] if tv_tensors is None else [torch.Tensor, tv_tensors.Image]
    return (
        used(tuple) is None
        and used(int) is torchs.collate_int_fn
        and all(used(kind) is torchs.collate_tensor_fn for kind in images)
    )
