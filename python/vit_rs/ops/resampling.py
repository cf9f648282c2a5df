"""Resampling of position embeddings and patch kernels: Rust on the CPU, plain torch elsewhere."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vit_rs.ops import _resample_operators
from vit_rs.ops._arguments import Size, check_integer, check_number, check_tensor, pair, shape_of, transformed
from vit_rs.ops._library import exporting, known
from vit_rs.ops.conventions import GRID_CONVENTIONS, PATCH_CONVENTIONS, resolve

__all__ = ["interpolation_matrix", "resample_abs_pos_embed", "resample_patch_embed"]

_LOGGER = logging.getLogger(__name__)
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Scale: TypeAlias = float | Sequence[float]
"""One number for both axes, or (rows, columns)."""


def resample_abs_pos_embed(  # noqa: PLR0917  timm's signature
    posemb: Tensor,
    new_size: Size,
    old_size: Size | None = None,
    num_prefix_tokens: int = 1,
    interpolation: str | None = None,
    antialias: bool | None = None,
    verbose: bool = False,
    *,
    convention: str | None = None,
    align_corners: bool | None = None,
    a: float | None = None,
    scale: Scale | None = None,
    offset: float | None = None,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """Resample the grid of position embeddings to another grid; prefix tokens stay.

    Weights want the resampling that they were trained with: `convention` names it. Without a name, the settings are
    timm's, and each can be changed. With a name, a setting may be repeated but not changed.

    Grids are compared as (rows, columns), never as numbers of tokens: (2, 8) to (4, 4) is resampled. Equal grids give a
    copy of the table under every convention, as the originals do, DINO's offset notwithstanding; only a `scale` or
    `offset` given without a convention is applied there too.

    float32 is computed in float32, half precision too, and rounded once; float64 in float64. Weights are computed in
    float64 always. On the CPU sparse weights are applied in Rust; on other devices, in float64 and in compiled or
    exported graphs the same weights are two small matrix products, which agree to float32 rounding where the table is
    finite. Differentiable.

    Args:
        posemb: (1, N, D) or (B, N, D), floating; N = `num_prefix_tokens` + rows*columns of the old grid.
        new_size: (rows, columns) of the new grid, or one number for both.
        old_size: (rows, columns) of the old grid. Default: a square.
        num_prefix_tokens: tokens before the grid (class token, registers), copied unchanged.
        interpolation: "bicubic" or "bilinear".
        antialias: widen the filter where the grid shrinks.
        verbose: log the sizes, at level INFO, as timm does.
        convention: whose resampling to follow, a name of `vit_rs.ops.conventions.GRID_CONVENTIONS`: "timm", "timm_npz",
            "jax", "flexi", "siglip2", "dino", "dinov2", "dinov2_reg", "hf", "mae" or "torchvision".
        align_corners: the corners of both grids coincide, instead of the outer edges of their cells; excludes
            `antialias`. (torch takes both and then aligns no corner.)
        a: coefficient of the cubic. Default: -0.5 with antialiasing, -0.75 without, as in torch.
        scale: old grid steps for each new one, along both axes or (rows, columns), in place of `old / new`: torch's
            1 / `scale_factor`.
        offset: added to the new sizes where steps are derived from them, old / (new + offset): DINO's 0.1.
        compute_dtype: torch.float32 or torch.float64, in place of the dtype above. float32 for a float64 table is
            what timm does. The result keeps the dtype of `posemb` in any case.

    Returns:
        (B, `num_prefix_tokens` + new rows*columns, D), dtype and device of `posemb`.

    Raises:
        ValueError: a size, name or number is out of range, the old grid is not given and not square, or does not make
            N, or a setting contradicts the convention or another setting; or, where a graph of open sizes is
            exported under an offset, the example has the table's own grid.
        TypeError: `posemb` is not a floating tensor, or a size, a number or `compute_dtype` is of no such type.

    Example:
        >>> resample_abs_pos_embed(torch.zeros(1, 197, 768), (24, 24), convention="jax").shape
        torch.Size([1, 577, 768])

    Source: arXiv 2010.11929, section 3.2; each convention's own is named in `GRID_CONVENTIONS`.
    """
    _check_floating(posemb, "posemb")
    shape = shape_of(posemb)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"posemb must be (batch, tokens, width), none of them 0, got shape {shape}")
    settings = resolve(GRID_CONVENTIONS, convention, interpolation, antialias, align_corners, a, offset)
    check_integer(num_prefix_tokens, "num_prefix_tokens")
    tokens = shape[1] - num_prefix_tokens
    if num_prefix_tokens < 0 or tokens < 1:
        raise ValueError(
            f"num_prefix_tokens must be 0 to {shape[1] - 1} for {shape[1]} tokens, got {num_prefix_tokens}"
        )
    new = pair(new_size, "new_size")
    if old_size is None:
        side = _side(tokens)
        if side * side != tokens:
            whole = _side(shape[1])
            hint = f", or num_prefix_tokens=0 if all {shape[1]} are" if whole * whole == shape[1] else ""
            raise ValueError(
                f"posemb has {shape[1]} tokens, {num_prefix_tokens} of them prefix; the other {tokens} are no "
                f"square grid: give old_size=(rows, columns){hint}"
            )
        old = (side, side)
    else:
        old = pair(old_size, "old_size")
        if old[0] * old[1] != tokens:
            raise ValueError(
                f"old_size {old[0]}x{old[1]} makes {old[0] * old[1]} tokens, but posemb has {shape[1]} tokens, "
                f"{num_prefix_tokens} of them prefix: {tokens} in the grid"
            )
    steps = None
    if scale is not None:
        steps = _steps(scale, convention, offset, align_corners)
    elif settings.offset != 0.0:
        _check_offset(settings.offset, "new_size", new)
    if compute_dtype is not None:
        _check_compute_dtype(compute_dtype)
    recording = exporting()
    own_step = steps is not None or (convention is None and settings.offset != 0.0)
    # An exported graph's symbolic sizes are left open where equal grids are no case of their own.
    compared = settings.offset != 0.0 or not recording or all(map(known, new))
    if not own_step and compared and old == new:
        if recording and not all(map(known, new)):
            raise ValueError(
                f"the grid of the example, {int(old[0])}x{int(old[1])}, is the table's own, a case apart where "
                f"steps have an offset ({settings.offset}): export with open sizes from an example of another grid"
            )
        return posemb.clone(memory_format=torch.contiguous_format)
    if verbose:
        _LOGGER.info("resampled position embeddings: %s to %s", old, new)
    # A compiler sees through two matrix products, and can export them; an operator is a wall to it.
    dense = recording or torch.compiler.is_compiling() or transformed(posemb)
    resample = _resample_operators.resample_densely if dense else _resample_operators.resample_abs_pos_embed
    resampled: Tensor = resample(
        posemb,
        new,
        old,
        num_prefix_tokens,
        settings.interpolation,
        settings.antialias,
        settings.align_corners,
        settings.a,
        steps,
        settings.offset,
        compute_dtype,
    )
    return resampled


def resample_patch_embed(
    patch_embed: Tensor,
    new_size: Size,
    interpolation: str | None = None,
    antialias: bool | None = None,
    verbose: bool = False,
    *,
    convention: str | None = None,
    align_corners: bool | None = None,
    a: float | None = None,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """Resize patch-embedding kernels, so that resized patches keep their tokens: FlexiViT's pseudo-inverse resize.

    With B the matrix that resizes a patch, flattened, the new kernel is pinv(B^T) w. Where patches grow, every token of
    a patch resized by B is the old token. Where they shrink, that holds for no kernel in general, and this one is the
    closest over white noise. B is a Kronecker product of one matrix an axis, and so is its pseudo-inverse: two P x P
    ones are computed, in float64, and kept for the next call, rather than one of P^2 x P^2.

    The dtype rule is that of `resample_abs_pos_embed`: the kernel is multiplied in float32, float64 in itself. Equal
    sizes give a copy. Differentiable.

    Args:
        patch_embed: (out channels, in channels, P, Q), floating: the weight of a `Conv2d`.
        new_size: (height, width) of the new patch in pixels, or one number for both.
        interpolation: "bicubic" or "bilinear": how the images, or patches, are resized.
        antialias: widen the filter where patches shrink.
        verbose: log the sizes, at level INFO.
        convention: whose resize to undo, a name of `vit_rs.ops.conventions.PATCH_CONVENTIONS`. None and "timm" are
            `timm.layers.resample_patch_embed`, bicubic and antialiased; "timm_npz" and "flexi" are bilinear without
            antialiasing.
        align_corners: the corner pixels of both sizes coincide; excludes `antialias`.
        a: coefficient of the cubic. Default: -0.5 with antialiasing, -0.75 without, as in torch.
        compute_dtype: torch.float32 or torch.float64, in place of the dtype above.

    Returns:
        (out channels, in channels, new height, new width), dtype and device of `patch_embed`.

    Raises:
        ValueError: a size, name or number is out of range, or a setting contradicts the convention or another setting.
        TypeError: `patch_embed` is not a floating tensor, or a size, `a` or `compute_dtype` is of no such type.

    Example:
        >>> resample_patch_embed(torch.ones(1, 1, 2, 2), 4, "bilinear", False).sum().item()
        4.0

    Source: FlexiViT, arXiv 2212.08013, section 3.4.
    """
    _check_floating(patch_embed, "patch_embed")
    shape = shape_of(patch_embed)
    if len(shape) != 4 or 0 in shape:
        raise ValueError(
            f"patch_embed must be (out channels, in channels, height, width), none of them 0, got shape {shape}"
        )
    settings = resolve(PATCH_CONVENTIONS, convention, interpolation, antialias, align_corners, a)
    old, new = shape[2:], pair(new_size, "new_size")
    if compute_dtype is not None:
        _check_compute_dtype(compute_dtype)
    if old == new:
        return patch_embed.clone(memory_format=torch.contiguous_format)
    if verbose:
        _LOGGER.info("resized patch embeddings: %s to %s", old, new)
    compute = torch.promote_types(patch_embed.dtype, torch.float32) if compute_dtype is None else compute_dtype
    knobs = (settings.interpolation, settings.antialias, settings.align_corners, settings.a)
    vertical, horizontal = (
        _resample_operators.patch_axis_matrix(old[axis], new[axis], *knobs, dtype=compute).to(patch_embed.device)
        for axis in (0, 1)
    )
    resized = _resample_operators.apply_to_rows_and_columns(patch_embed, vertical, horizontal)
    return resized.to(patch_embed.dtype)


def interpolation_matrix(
    in_size: int,
    out_size: int,
    *,
    convention: str | None = None,
    interpolation: str | None = None,
    antialias: bool | None = None,
    align_corners: bool | None = None,
    a: float | None = None,
    scale: float | None = None,
    offset: float | None = None,
) -> Tensor:
    """Make the matrix that resamples one axis: `out = matrix @ samples`.

    A resize of a grid is one such product along each axis. Positions and weights are computed in float64. The settings
    are those of `resample_abs_pos_embed`. With an offset, the matrix of equal sizes is not the identity, under
    `convention="dino"` neither: an axis keeps its size, but not its samples, where the grid's other axis changes.

    Args:
        in_size: samples before, 1 to 2**24.
        out_size: samples after, 1 to 2**24.
        convention: as in `resample_abs_pos_embed`. None: timm's settings, with the given ones in their place.
        interpolation: "bicubic" or "bilinear".
        antialias: widen the filter where the axis shrinks; excludes `align_corners`.
        align_corners: the first and last samples of both sides coincide; excludes `scale` and `offset`.
        a: coefficient of the cubic. Default: -0.5 with antialiasing, -0.75 without, as in torch.
        scale: input samples for each output sample, in place of `in_size / out_size` (torch's `1 / scale_factor`).
        offset: added to `out_size` where the step is derived from it; excludes `scale`.

    Returns:
        (out_size, in_size), float64, on the CPU, at most 2**27 values; each row sums to 1.

    Raises:
        ValueError: a size, name or number is out of range, or a setting contradicts the convention or another setting.
        TypeError: a size or a number is none.

    Example:
        >>> interpolation_matrix(2, 3, convention="jax").tolist()
        [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    settings = resolve(GRID_CONVENTIONS, convention, interpolation, antialias, align_corners, a, offset)
    for name, size in (("in_size", in_size), ("out_size", out_size)):
        check_integer(size, name)
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    step = None
    if scale is not None:
        check_number(scale, "scale")
        [step, _] = _steps(scale, convention, offset, align_corners)
    elif settings.offset != 0.0:
        _check_offset(settings.offset, "out_size", (out_size,))
    knobs = (settings.interpolation, settings.antialias, settings.align_corners, settings.a, step, settings.offset)
    return _resample_operators.axis_matrix(in_size, out_size, *knobs, dtype=torch.float64)


def _check_floating(tensor: Tensor, name: str) -> None:
    check_tensor(tensor, name)
    if tensor.dtype not in _FLOATING:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")


def _side(tokens: int) -> int:
    """Give the side of a square of so many tokens, or of the next smaller one."""
    if torch.compiler.is_compiling():
        side: int = torch.sym_int(torch.sym_sqrt(tokens))
        return side
    return math.isqrt(tokens)


def _check_compute_dtype(dtype: torch.dtype) -> None:
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"compute_dtype must be None, torch.float32 or torch.float64, got {dtype!r}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"compute_dtype must be None, torch.float32 or torch.float64, got {dtype}")


def _steps(scale: Scale, convention: str | None, offset: float | None, align_corners: bool | None) -> list[float]:
    """Check the given scale against the other settings; give it for (rows, columns)."""
    if convention is not None:
        raise ValueError(f"convention {convention!r} derives its scale from the sizes, got scale={scale}")
    if align_corners:
        raise ValueError(f"align_corners sets the step itself and excludes scale, got scale={scale}")
    if offset:
        raise ValueError(f"scale and offset exclude each other, got scale={scale} and offset={offset}")
    given: Any = scale if isinstance(scale, (tuple, list)) else (scale, scale)
    for step in given:
        check_number(step, "scale", "a number or (rows, columns)")
    steps = [float(step) for step in given]
    if len(steps) != 2:
        raise ValueError(f"scale must be a number or (rows, columns), got {scale}")
    # Comparisons rather than math.isfinite: a compiler may trace these numbers as symbols.
    if not all(0.0 < step < math.inf for step in steps):
        raise ValueError(f"scale must be finite and above 0, got {scale}")
    return steps


def _check_offset(offset: float, name: str, sizes: tuple[int, ...]) -> None:
    if any(size + offset <= 0.0 for size in sizes):
        times = "x".join(map(str, sizes))
        raise ValueError(f"{name} plus offset must be above 0, got {times} and offset={offset}")
