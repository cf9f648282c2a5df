"""Interpolation matrices by torch's own arithmetic: for exported graphs, whose sizes are known when they run."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["traced_matrix"]


def traced_matrix(  # noqa: PLR0917  the settings, in the operator's order
    in_size: int,
    out_size: int,
    interpolation: str = "bicubic",
    antialias: bool = True,
    align_corners: bool = False,
    a: float | None = None,
    scale: float | None = None,
    offset: float = 0.0,
) -> Tensor:
    """Return what `_core.interpolation_matrix` returns, (out, in), float64, to its rounding; sizes may be symbols."""
    new = torch.arange(out_size, dtype=torch.float64)[:, None]  # (out, 1)
    old = torch.arange(in_size, dtype=torch.float64)  # (in)
    if align_corners:
        # A single output sample takes the first.
        return _plain(new * (in_size - 1) / (new[-1] + (out_size == 1)), old, in_size, interpolation, a)
    step = scale if scale is not None else in_size / (out_size + offset)
    if not antialias:
        return _plain((new + 0.5) * step - 0.5, old, in_size, interpolation, a)
    width = (torch.ones_like(new) * step).clamp(min=1.0)  # of the filter, in old samples
    weights = _filter((old + 0.5 - (new + 0.5) * step) / width, interpolation, a)
    return weights / weights.sum(dim=1, keepdim=True)


def _plain(place: Tensor, old: Tensor, in_size: int, interpolation: str, a: float | None) -> Tensor:
    """Weigh the nearest samples; those outside are the border's."""
    floor = place.floor()
    matrix = torch.zeros_like(place * old)
    for tap in (0.0, 1.0) if interpolation == "bilinear" else (-1.0, 0.0, 1.0, 2.0):
        sample = floor + tap
        weight = _filter(place - sample, interpolation, a)
        matrix = matrix + torch.where(sample.clamp(0.0, in_size - 1.0) == old, weight, 0.0)
    return matrix


def _filter(distance: Tensor, interpolation: str, a: float | None) -> Tensor:
    x = distance.abs()
    if interpolation == "bilinear" or a is None:
        return (1.0 - x).clamp(min=0.0)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    return torch.where(x <= 1.0, near, torch.where(x < 2.0, far, 0.0))
