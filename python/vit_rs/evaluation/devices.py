"""Which torch devices can be computed on."""

from __future__ import annotations

import torch

from vit_rs.exceptions import ConfigError

__all__ = ["check_device"]


def check_device(name: str) -> None:
    """Raise where a torch device cannot compute.

    Args:
        name: what `torch.device` takes, for example "cuda:1".

    Raises:
        ConfigError: torch does not know it, was built without it, finds no such hardware; or it keeps no numbers, as
            "meta".
    """
    try:
        torch.ones(1, device=torch.device(name)).add(1).item()
    # torch asserts where it was built without the device, and imports what a device from elsewhere is to bring.
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]  # lists of all backends follow
        raise ConfigError(f"device {name!r} cannot be used: {reason}") from error
