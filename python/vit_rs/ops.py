"""Patchify, unpatchify and position-embedding resampling: Rust on the CPU, plain torch elsewhere.

Each is a `torch.library` operator (`torch.ops.vit_rs.*`) with a fake kernel and a gradient, so it works eagerly, under
autograd and under `torch.compile(fullgraph=True)`. The functions here check arguments and give defaults; the operators
behind them do the work. No result shares memory with an argument. Nothing may write to an argument during a call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from vit_rs import _operators

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ["interpolation_matrix", "patchify", "resample_abs_pos_embed", "unpatchify"]

Size: TypeAlias = int | Sequence[int]
"""One number for both sides, or (height, width)."""
Order: TypeAlias = Literal["pqc", "cpq"]
Layout: TypeAlias = Literal["NCHW", "NHWC"]
PerChannel: TypeAlias = float | Sequence[float]
"""One number for all channels, or one for each."""

_CONVERTIBLE = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTERPOLATIONS = ("bicubic", "bilinear")
_CONVENTIONS = ("timm",)


@overload
def patchify(
    images: Tensor,
    patch_size: Size,
    *,
    order: Order = "pqc",
    layout: Layout = "NCHW",
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    num_threads: int | None = None,
) -> Tensor: ...


@overload
def patchify(
    images: NDArray[Any],
    patch_size: Size,
    *,
    order: Order = "pqc",
    layout: Layout = "NCHW",
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    dtype: torch.dtype | DTypeLike | None = None,
    out: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]: ...


def patchify(
    images: Tensor | NDArray[Any],
    patch_size: Size,
    *,
    order: Order = "pqc",
    layout: Layout = "NCHW",
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    dtype: torch.dtype | DTypeLike | None = None,
    out: Tensor | NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> Tensor | NDArray[Any]:
    """Cut images into flattened patches, in raster order.

    With `mean`, `std` or a floating `dtype`, values are converted in the same pass: uint8 is multiplied by 1/255 (as
    torchvision's `ToDtype(scale=True)` does, with or without `mean`), then `mean` is subtracted, then the result is
    divided by `std`. That is computed in float32 and rounded once to `dtype`; if either side is float64, in float64
    and in plain torch. Without any of the three, values move as they are, whatever the dtype.

    The result is always a fresh copy (or `out`), even where a view would do. Images in NCHW, NHWC and channels-last
    strides are read in place; those with any other strides are copied to contiguous memory first, and so is a numpy
    array that is read-only, unaligned or reversed. On the CPU the work is done in Rust, in threads above 1 MiB per
    thread; on any other device in plain torch. The result does not depend on the number of threads.

    Differentiable with respect to floating `images`: the gradient is `unpatchify`, divided by `std`.

    Args:
        images: (B, C, H, W), or (B, H, W, C) with `layout="NHWC"`; B may be 0. Tensor or numpy array.
        patch_size: side of the patches in pixels, or (height, width). Must divide (H, W).
        order: order inside a patch. "pqc": row, column, channel (MAE, the paper's flattened patch); "cpq": channel,
            row, column (a flattened `Conv2d` kernel).
        layout: order of the dimensions of `images`.
        mean: subtracted, in units of [0, 1] for uint8 images; one number, or one for each channel. Default 0.
        std: divided by; finite and not 0. Default 1.
        dtype: dtype of the result. Default: that of `images`, but float32 for uint8 with `mean` or `std`.
        out: contiguous array of the result's shape and dtype to write to, sharing no memory with `images`; not
            differentiable.
        num_threads: most threads to use, on the CPU. Default: `torch.get_num_threads()`.

    Returns:
        (B, N, P*Q*C) with N = (H/P)*(W/Q), on the device of `images`; a numpy array if `images` is one.

    Raises:
        ValueError: a shape, size, order, layout, mean, std or thread count is out of range, or `out` does not fit.
        TypeError: `images` is no array, or there is no conversion between the dtypes.
        RuntimeError: `out` is given while autograd records `images` or `out`.

    Example:
        >>> patchify(torch.arange(8.0).view(1, 2, 1, 4), (1, 2)).tolist()
        [[[0.0, 4.0, 1.0, 5.0], [2.0, 6.0, 3.0, 7.0]]]

    Source: arXiv 2010.11929, section 3.1.
    """
    if isinstance(images, np.ndarray):
        options = {
            "order": order,
            "layout": layout,
            "mean": mean,
            "std": std,
            "dtype": dtype,
            "num_threads": num_threads,
        }
        return _on_numpy(patchify, images, patch_size, out=out, **options)
    _check_tensor(images, "images")
    _check_choice(order, "order", ("pqc", "cpq"))
    _check_choice(layout, "layout", ("NCHW", "NHWC"))
    _check_threads(num_threads)
    if images.ndim != 4:
        expected = "(batch, channels, height, width)" if layout == "NCHW" else "(batch, height, width, channels)"
        raise ValueError(f"images must be {expected}, got shape {_shape(images)}")
    (P, Q), (B, C, H, W) = _pair(patch_size, "patch_size"), _batch_shape(images, layout)
    _check_divides(H, W, P, Q)
    if C == 0:
        raise ValueError(f"images must have at least 1 channel, got shape {_shape(images)}")
    normalizing = mean is not None or std is not None
    target = torch.float32 if normalizing and images.dtype == torch.uint8 else images.dtype
    if dtype is not None:
        target = _torch_dtype(dtype)
    offsets = scales = None
    if normalizing or target != images.dtype:
        if images.dtype not in _CONVERTIBLE or target not in _CONVERTIBLE or not target.is_floating_point:
            raise TypeError(
                "patchify converts uint8, float16, bfloat16, float32 and float64 images to a floating dtype, "
                f"got {images.dtype} to {target}"
            )
        offsets = _per_channel(0.0 if mean is None else mean, C, "mean")
        scales = _per_channel(1.0 if std is None else std, C, "std")
        if 0.0 in scales:
            raise ValueError(f"std must not be 0, got {scales}")
    arguments = (images, (P, Q), order, layout, offsets, scales, target, num_threads)
    if out is None:
        patches: Tensor = _operators.patchify(*arguments)
        return patches
    _check_out(out, (B, (H // P) * (W // Q), P * Q * C), target, images)
    _operators.patchify_out(*arguments, out)
    return out


@overload
def unpatchify(
    patches: Tensor,
    image_size: Size,
    patch_size: Size,
    *,
    order: Order = "pqc",
    layout: Layout = "NCHW",
    out: Tensor | None = None,
    num_threads: int | None = None,
) -> Tensor: ...


@overload
def unpatchify(
    patches: NDArray[Any],
    image_size: Size,
    patch_size: Size,
    *,
    order: Order = "pqc",
    layout: Layout = "NCHW",
    out: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]: ...


def unpatchify(
    patches: Tensor | NDArray[Any],
    image_size: Size,
    patch_size: Size,
    *,
    order: Order = "pqc",
    layout: Layout = "NCHW",
    out: Tensor | NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> Tensor | NDArray[Any]:
    """Put flattened patches together into images: the inverse of `patchify` without conversion.

    Takes every dtype. Copies and threads are those of `patchify`. Differentiable; the gradient is `patchify`.

    Args:
        patches: (B, N, P*Q*C), N = (H/P)*(W/Q); B may be 0. Tensor or numpy array.
        image_size: side of the images in pixels, or (height, width).
        patch_size: side of the patches in pixels, or (height, width). Must divide `image_size`.
        order: order inside a patch, as in `patchify`.
        layout: order of the dimensions of the result.
        out: contiguous array of the result's shape and dtype to write to, sharing no memory with `patches`; not
            differentiable.
        num_threads: most threads to use, on the CPU. Default: `torch.get_num_threads()`.

    Returns:
        (B, C, H, W), or (B, H, W, C) with `layout="NHWC"`; a numpy array if `patches` is one.

    Raises:
        ValueError: a shape, size, order, layout or thread count is out of range, or `out` does not fit.
        TypeError: `patches` is no array.
        RuntimeError: `out` is given while autograd records `patches` or `out`.
    """
    if isinstance(patches, np.ndarray):
        options = {"order": order, "layout": layout, "num_threads": num_threads}
        return _on_numpy(unpatchify, patches, image_size, patch_size, out=out, **options)
    _check_tensor(patches, "patches")
    _check_choice(order, "order", ("pqc", "cpq"))
    _check_choice(layout, "layout", ("NCHW", "NHWC"))
    _check_threads(num_threads)
    if patches.ndim != 3:
        raise ValueError(f"patches must be (batch, patches, values), got shape {_shape(patches)}")
    (H, W), (P, Q) = _pair(image_size, "image_size"), _pair(patch_size, "patch_size")
    _check_divides(H, W, P, Q)
    B, N, length = patches.shape
    if (H // P) * (W // Q) != N:
        raise ValueError(
            f"images of {H}x{W} have {H // P}x{W // Q} = {(H // P) * (W // Q)} patches of {P}x{Q}, got {N} patches"
        )
    if length == 0 or length % (P * Q) != 0:
        raise ValueError(f"a patch of {P}x{Q} has a multiple of {P * Q} values, got {length}")
    arguments = (patches, (H, W), (P, Q), order, layout, num_threads)
    if out is None:
        images: Tensor = _operators.unpatchify(*arguments)
        return images
    C = length // (P * Q)
    _check_out(out, (B, C, H, W) if layout == "NCHW" else (B, H, W, C), patches.dtype, patches)
    _operators.unpatchify_out(*arguments, out)
    return out


def resample_abs_pos_embed(  # noqa: PLR0917  timm's signature
    posemb: Tensor,
    new_size: Size,
    old_size: Size | None = None,
    num_prefix_tokens: int = 1,
    interpolation: str = "bicubic",
    antialias: bool = True,
    *,
    convention: str | None = None,
) -> Tensor:
    """Resample the grid of position embeddings to another grid; prefix tokens stay.

    Grids are compared as (rows, columns), never as numbers of tokens: (2, 8) to (4, 4) is resampled. Half precision is
    computed in float32 and rounded once; float64 is computed in float64. The result is a fresh copy, also where the
    grids are equal.

    On the CPU sparse weights are applied in Rust; on other devices, in float64 and in compiled or exported graphs the
    same weights are two small matrix products, which agree to float32 rounding. Differentiable.

    Args:
        posemb: (1, N, D) or (B, N, D), floating; N = `num_prefix_tokens` + rows*columns of the old grid.
        new_size: (rows, columns) of the new grid, or one number for both.
        old_size: (rows, columns) of the old grid. Default: a square.
        num_prefix_tokens: tokens before the grid (class token, registers), copied unchanged.
        interpolation: "bicubic" (a = -0.5 with antialiasing, -0.75 without, as in torch) or "bilinear".
        antialias: widen the filter where the grid shrinks.
        convention: whose resampling to follow. None and "timm" are `timm.layers.resample_abs_pos_embed`.

    Returns:
        (B, `num_prefix_tokens` + new rows*columns, D), dtype and device of `posemb`.

    Raises:
        ValueError: a size or name is out of range, the old grid is not given and not square, or does not make N.
        TypeError: `posemb` is not a floating tensor.

    Example:
        >>> resample_abs_pos_embed(torch.zeros(1, 197, 768), (24, 24)).shape
        torch.Size([1, 577, 768])

    Source: arXiv 2010.11929, section 3.2; the numbers are those of `timm.layers.resample_abs_pos_embed`, timm 1.0.
    """
    _check_tensor(posemb, "posemb")
    if not posemb.is_floating_point():
        raise TypeError(f"posemb must be floating, got {posemb.dtype}")
    if posemb.ndim != 3 or 0 in posemb.shape:
        raise ValueError(f"posemb must be (batch, tokens, width), none of them 0, got shape {_shape(posemb)}")
    if convention is not None:
        _check_choice(convention, "convention", _CONVENTIONS)
    _check_choice(interpolation, "interpolation", _INTERPOLATIONS)
    tokens = posemb.shape[1] - num_prefix_tokens
    if num_prefix_tokens < 0 or tokens < 1:
        raise ValueError(
            f"num_prefix_tokens must be 0 to {posemb.shape[1] - 1} for {posemb.shape[1]} tokens, "
            f"got {num_prefix_tokens}"
        )
    new = _pair(new_size, "new_size")
    if old_size is None:
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ValueError(
                f"posemb has {posemb.shape[1]} tokens, {num_prefix_tokens} of them prefix; the other {tokens} are no "
                "square grid: give old_size=(rows, columns)"
            )
        old = (side, side)
    else:
        old = _pair(old_size, "old_size")
        if old[0] * old[1] != tokens:
            raise ValueError(
                f"old_size {old[0]}x{old[1]} makes {old[0] * old[1]} tokens, but posemb has {posemb.shape[1]} tokens, "
                f"{num_prefix_tokens} of them prefix: {tokens} in the grid"
            )
    if old == new:
        return posemb.clone(memory_format=torch.contiguous_format)
    # A compiler sees through two matrix products, and can export them; an operator is a wall to it.
    compiling = torch.compiler.is_compiling()
    resample = _operators.resample_densely if compiling else _operators.resample_abs_pos_embed
    resampled: Tensor = resample(posemb, new, old, num_prefix_tokens, interpolation, antialias)
    return resampled


def interpolation_matrix(
    in_size: int,
    out_size: int,
    *,
    convention: str | None = None,
    interpolation: str = "bicubic",
    antialias: bool = True,
    align_corners: bool = False,
    a: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """Make the matrix that resamples one axis: `out = matrix @ samples`.

    A resize of a grid is one such product along each axis. Positions and weights are computed in float64.

    Args:
        in_size: samples before, 1 to 2**24.
        out_size: samples after, 1 to 2**24.
        convention: None or "timm", as in `resample_abs_pos_embed`.
        interpolation: "bicubic" or "bilinear".
        antialias: widen the filter where the axis shrinks; excludes `align_corners`.
        align_corners: the first and last samples of both sides coincide; excludes `scale`.
        a: coefficient of the cubic. Default: -0.5 with antialiasing, -0.75 without, as in torch.
        scale: input samples for each output sample, in place of `in_size / out_size` (torch's `1 / scale_factor`).

    Returns:
        (out_size, in_size), float64, on the CPU; each row sums to 1.

    Raises:
        ValueError: a size, name or number is out of range, or two settings contradict each other.

    Example:
        >>> interpolation_matrix(2, 3, interpolation="bilinear", antialias=False, align_corners=True).tolist()
        [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    if convention is not None:
        _check_choice(convention, "convention", _CONVENTIONS)
    _check_choice(interpolation, "interpolation", _INTERPOLATIONS)
    for name, size in (("in_size", in_size), ("out_size", out_size)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    settings = (interpolation, antialias, align_corners, a, scale)
    matrix: Tensor = _operators.interpolation_matrix(in_size, out_size, *settings)
    return matrix


def _check_tensor(value: object, name: str) -> None:
    if not isinstance(value, Tensor):
        kinds = "a tensor" if name == "posemb" else "a tensor or a numpy array"
        raise TypeError(f"{name} must be {kinds}, got {type(value).__name__}")


def _check_choice(value: str, name: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_threads(num_threads: int | None) -> None:
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads must be None or at least 1, got {num_threads}")


def _check_divides(H: int, W: int, P: int, Q: int) -> None:
    if H % P != 0 or W % Q != 0 or H == 0 or W == 0:
        raise ValueError(f"patches of {P}x{Q} do not divide images of {H}x{W} (height x width)")


def _check_out(out: object, shape: tuple[int, ...], dtype: torch.dtype, source: Tensor) -> None:
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a tensor as the input is, got {type(out).__name__}")
    got = (_shape(out), out.dtype, out.device, out.is_contiguous())
    if got != (shape, dtype, source.device, True):
        raise ValueError(
            f"out must be contiguous, {shape}, {dtype}, on {source.device}; got "
            f"{'contiguous' if got[3] else 'strided'}, {got[0]}, {got[1]}, on {got[2]}"
        )
    if torch.is_grad_enabled() and (source.requires_grad or out.requires_grad):
        raise RuntimeError("out= is not differentiable: call under torch.no_grad(), or without out")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _batch_shape(images: Tensor, layout: str) -> tuple[int, int, int, int]:
    """Batch, channels, height and width of images of either layout."""
    B, x, y, z = images.shape
    return (B, x, y, z) if layout == "NCHW" else (B, z, x, y)


def _pair(value: Size, name: str) -> tuple[int, int]:
    integer = (int, np.integer, torch.SymInt)
    pair = (value, value) if isinstance(value, integer) else value
    if not isinstance(pair, (tuple, list)) or any(not isinstance(side, integer) for side in pair):
        raise TypeError(f"{name} must be an integer or (height, width), got {value!r}")
    if len(pair) != 2:
        raise ValueError(f"{name} must be an integer or (height, width), got {value!r}")
    height, width = pair
    if height < 1 or width < 1:
        raise ValueError(f"{name} must be at least 1, got {height}x{width}")
    return height, width


def _per_channel(value: PerChannel, channels: int, name: str) -> list[float]:
    values = [float(value)] * channels if isinstance(value, (int, float)) else [float(number) for number in value]
    if len(values) == 1:
        values = values * channels
    if len(values) != channels:
        raise ValueError(f"{name} must have 1 or {channels} values, one for each channel, got {len(values)}")
    # Comparisons rather than math.isfinite: a compiler may trace these numbers as symbols.
    if not all(-math.inf < number < math.inf for number in values):
        raise ValueError(f"{name} must be finite, got {values}")
    return values


def _torch_dtype(dtype: torch.dtype | DTypeLike) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _on_numpy(function: Any, array: NDArray[Any], *sizes: Size, out: object, **options: Any) -> NDArray[Any]:
    """Call `function` on views of numpy memory."""
    if options.get("dtype") == torch.bfloat16:
        raise TypeError("numpy has no bfloat16: give a tensor, or another dtype")
    if not (array.flags.writeable and array.flags.aligned) or any(stride < 0 for stride in array.strides):
        array = array.copy()
    if out is None:
        result: NDArray[Any] = function(torch.from_numpy(array), *sizes, **options).numpy()
        return result
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array as the input is, got {type(out).__name__}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable")
    function(torch.from_numpy(array), *sizes, out=torch.from_numpy(out), **options)
    return out
