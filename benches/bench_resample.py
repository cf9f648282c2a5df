"""Resampling of position embeddings beside timm, F.interpolate, SciPy and two matrix products: width 768, f32.

    pytest benches/bench_resample.py

Every variant takes the table (1, 1 + n*n, D) and gives a fresh one with the class token in place. Expected values are
those of F.interpolate in float64. The two matrix products are the honest baseline: anyone can have them in plain torch
by keeping the weights, so here they have theirs before the clock starts, while vit_rs computes its own each time.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from comparison import Comparison, Run, Variant, measure
from operators import Operator
from torch import Tensor

import vit_rs

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZES = ((14, 16), (14, 24), (14, 32), (16, 37), (37, 16), (37, 24), (37, 32), (37, 74))
QUICK = {"sizes": ((3, 5), (5, 2)), "aligned_sizes": ((3, 5), (5, 2)), "width": 8}
TOLERANCE = 5e-5  # of values up to 5: torch computes positions in f32, which costs up to 7e-6 on a unit-normal table


def comparisons(
    sizes: Sequence[tuple[int, int]] = SIZES,
    aligned_sizes: Sequence[tuple[int, int]] = ((14, 24), (37, 16), (37, 74)),
    width: int = 768,
) -> list[Comparison]:
    """Return what is compared: grids of old x old to new x new."""
    bicubic = [resampled(old, new, width, antialias=antialias) for antialias in (True, False) for old, new in sizes]
    bilinear = [aligned(old, new, width) for old, new in aligned_sizes]
    return [*bicubic, *bilinear, resampled(1, 2, 8, antialias=True)]


def bench_resample(benchmark, case):
    measure(benchmark, case)


@functools.cache
def random_table(side: int, width: int) -> Tensor:
    """Return the same (1, 1 + side*side, D) for every variant, unit-normal."""
    return torch.randn(1, 1 + side * side, width, generator=torch.Generator().manual_seed(0))


def interpolated(table: Tensor, old: int, new: int, *, channels_last: bool = True, **options: Any) -> Tensor:
    """Resample with F.interpolate, on the table's own memory (channels-last) or on a planar copy."""
    D = table.shape[2]
    grid = table[:, 1:].reshape(1, old, old, D).permute(0, 3, 1, 2)
    if not channels_last:
        grid = grid.contiguous()
    grid = F.interpolate(grid, size=(new, new), **options)
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).reshape(1, new * new, D)], dim=1)


def expected_table(old: int, new: int, width: int, **options: Any) -> Tensor:
    return interpolated(random_table(old, width).double(), old, new, **options).float()


def weights(old: int, new: int, **options: Any) -> Tensor:
    """Return the (new, old) matrix of one axis: F.interpolate's answer to an identity, computed in float64."""
    samples = torch.eye(old, dtype=torch.float64)[None, :, :, None]  # channel j is input sample j
    samples = samples.expand(1, old, old, 2).contiguous(memory_format=torch.channels_last)
    return F.interpolate(samples, size=(new, 2), **options)[0, :, :, 0].T.float().contiguous()


def resampled(old: int, new: int, width: int, *, antialias: bool) -> Comparison:
    """Compare bicubic resampling in timm's convention."""
    options = {"mode": "bicubic", "antialias": antialias}

    def ours() -> Run:
        table = random_table(old, width)
        return lambda: vit_rs.resample_abs_pos_embed(table, (new, new), (old, old), antialias=antialias)

    def timm() -> Run:
        from timm.layers import resample_abs_pos_embed  # noqa: PLC0415  imported for seconds, so where it is used

        table = random_table(old, width)
        return lambda: resample_abs_pos_embed(table, [new, new], [old, old], antialias=antialias)

    table = f"Position embeddings, bicubic, {'antialiased' if antialias else 'not antialiased'}"
    return Operator(
        table="Position embeddings, a call with next to no work" if old == 1 else table,
        name=f"{old} x {old} -> {new} x {new}, D = {width}",
        expected=lambda: expected_table(old, new, width, **options),
        variants=(
            Variant("vit_rs", ours, "ours"),
            Variant("timm", timm, needs=("timm",)),
            *interpolations(old, new, width, **options),
            *products(old, new, width, **options),
        ),
        result="a fresh result",
        unit="us/call",
        tolerance=TOLERANCE,
    )


def aligned(old: int, new: int, width: int) -> Comparison:
    """Compare bilinear resampling with aligned corners: scipy.ndimage.zoom(order=1), as in the paper's own code."""
    options = {"mode": "bilinear", "align_corners": True}

    def ours() -> Run:
        table = random_table(old, width)
        return lambda: vit_rs.resample_abs_pos_embed(table, (new, new), (old, old), convention="jax")

    def scipy() -> Run:
        from scipy.ndimage import zoom  # noqa: PLC0415  imported where it is used, as timm

        table = random_table(old, width)
        grid, factors = table[0, 1:].view(old, old, width).numpy(), (new / old, new / old, 1)

        def run() -> Tensor:
            out = torch.empty(1, 1 + new * new, width)
            out[:, :1] = table[:, :1]
            zoom(grid, factors, order=1, output=out[0, 1:].view(new, new, width).numpy())
            return out

        return run

    return Operator(
        table='Position embeddings, convention="jax"',
        name=f"{old} x {old} -> {new} x {new}, D = {width}",
        expected=lambda: expected_table(old, new, width, **options),
        variants=(
            Variant("vit_rs", ours, "ours"),
            Variant("SciPy, zoom(order=1)", scipy, one_thread=True, needs=("scipy",)),
            *interpolations(old, new, width, **options),
            *products(old, new, width, **options),
        ),
        result="a fresh result",
        unit="us/call",
        tolerance=TOLERANCE,
    )


def interpolations(old: int, new: int, width: int, **options: Any) -> tuple[Variant, ...]:
    """Return F.interpolate on the table's own memory, as timm calls it, and on a planar copy."""

    def variant(*, channels_last: bool) -> Run:
        table = random_table(old, width)
        return lambda: interpolated(table, old, new, channels_last=channels_last, **options)

    return (
        Variant("F.interpolate, channels-last", lambda: variant(channels_last=True)),
        Variant("F.interpolate, planar", lambda: variant(channels_last=False)),
    )


def products(old: int, new: int, width: int, **options: Any) -> tuple[Variant, ...]:
    """Return two matrix products with kept weights, in the three forms that were fastest at one size or another."""
    matrix = functools.partial(weights, old, new, **options)

    def rows_first() -> Run:
        table, W = random_table(old, width), matrix()
        rows, batch = table[0, 1:].view(old, old * width), W.expand(new, new, old)

        def run() -> Tensor:
            out = torch.empty(1, 1 + new * new, width)
            out[:, :1] = table[:, :1]
            torch.bmm(batch, torch.mm(W, rows).view(new, old, width), out=out[0, 1:].view(new, new, width))
            return out

        return run

    def columns_first() -> Run:
        table, W = random_table(old, width), matrix()
        grid = table[0, 1:].view(old, old, width)

        def run() -> Tensor:
            out = torch.empty(1, 1 + new * new, width)
            out[:, :1] = table[:, :1]
            torch.mm(W, torch.matmul(W, grid).view(old, new * width), out=out[0, 1:].view(new, new * width))
            return out

        return run

    def concatenated() -> Run:
        table, W = random_table(old, width), matrix()
        token, rows = table[:, :1], table[0, 1:].view(old, old * width)

        def run() -> Tensor:
            grid = torch.matmul(W, torch.mm(W, rows).view(new, old, width))
            return torch.cat([token, grid.view(1, new * new, width)], dim=1)

        return run

    return (
        Variant("two cached matmuls, rows first", rows_first),
        Variant("two cached matmuls, columns first", columns_first),
        Variant("two cached matmuls, torch.cat", concatenated),
    )
