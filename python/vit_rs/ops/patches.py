"""Patchify and unpatchify: Rust on the CPU, plain torch elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from vit_rs import _reference
from vit_rs.ops import _patch_operators
from vit_rs.ops._arguments import Size, check_choice, check_integer, check_tensor, pair, shape_of, transformed
from vit_rs.ops._library import exporting

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ["patchify", "unpatchify"]

Order: TypeAlias = Literal["pqc", "cpq"]
Layout: TypeAlias = Literal["NCHW", "NHWC"]
PerChannel: TypeAlias = float | Sequence[float]
"""One number for all channels, or one for each."""

_CONVERTIBLE = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    thread; on any other device, and in exported graphs, in plain torch. The result does not depend on the number of
    threads.

    On the CPU a result cannot be resized in place. Large ones lie in huge pages, and up to 128 MiB of the memory of
    results that nobody holds any more are kept for the next.

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
        options: dict[str, Any] = {
            "order": order,
            "layout": layout,
            "mean": mean,
            "std": std,
            "dtype": dtype,
            "num_threads": num_threads,
        }
        return _on_numpy(patchify, images, patch_size, out=out, **options)
    check_tensor(images, "images")
    check_choice(order, "order", ("pqc", "cpq"))
    check_choice(layout, "layout", ("NCHW", "NHWC"))
    _check_threads(num_threads)
    if images.ndim != 4:
        expected = "(batch, channels, height, width)" if layout == "NCHW" else "(batch, height, width, channels)"
        raise ValueError(f"images must be {expected}, got shape {shape_of(images)}")
    (P, Q), (B, C, H, W) = pair(patch_size, "patch_size"), _batch_shape(images, layout)
    _check_divides(H, W, P, Q)
    if C == 0:
        raise ValueError(f"images must have at least 1 channel, got shape {shape_of(images)}")
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
    options = {"order": order, "layout": layout, "mean": offsets, "std": scales, "dtype": target}
    arguments = (images, (P, Q), order, layout, offsets, scales, target, num_threads)
    if out is None:
        if exporting() or transformed(images):
            return _reference.patchify(images, (P, Q), **options)
        patches: Tensor = _patch_operators.patchify(*arguments)
        return patches
    out = _checked_out(out, (B, (H // P) * (W // Q), P * Q * C), target, images)
    if exporting():
        return out.copy_(_reference.patchify(images, (P, Q), **options))
    _patch_operators.patchify_out(*arguments, out)
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
    check_tensor(patches, "patches")
    check_choice(order, "order", ("pqc", "cpq"))
    check_choice(layout, "layout", ("NCHW", "NHWC"))
    _check_threads(num_threads)
    if patches.ndim != 3:
        raise ValueError(f"patches must be (batch, patches, values), got shape {shape_of(patches)}")
    (H, W), (P, Q) = pair(image_size, "image_size"), pair(patch_size, "patch_size")
    _check_divides(H, W, P, Q)
    B, N, length = shape_of(patches)
    if (H // P) * (W // Q) != N:
        raise ValueError(
            f"images of {H}x{W} have {H // P}x{W // Q} = {(H // P) * (W // Q)} patches of {P}x{Q}, got {N} patches"
        )
    if length == 0 or length % (P * Q) != 0:
        raise ValueError(f"a patch of {P}x{Q} has a multiple of {P * Q} values, got {length}")
    arguments = (patches, (H, W), (P, Q), order, layout, num_threads)
    if out is None:
        if exporting() or transformed(patches):
            return _reference.unpatchify(patches, (H, W), (P, Q), order=order, layout=layout)
        images: Tensor = _patch_operators.unpatchify(*arguments)
        return images
    C = length // (P * Q)
    out = _checked_out(out, (B, C, H, W) if layout == "NCHW" else (B, H, W, C), patches.dtype, patches)
    if exporting():
        return out.copy_(_reference.unpatchify(patches, (H, W), (P, Q), order=order, layout=layout))
    _patch_operators.unpatchify_out(*arguments, out)
    return out


def _check_threads(num_threads: int | None) -> None:
    if num_threads is None:
        return
    check_integer(num_threads, "num_threads")
    if num_threads < 1:
        raise ValueError(f"num_threads must be None or at least 1, got {num_threads}")
    if num_threads >= 2**31:
        raise ValueError(f"num_threads must be below 2**31, got {num_threads}")


def _check_divides(H: int, W: int, P: int, Q: int) -> None:
    if H % P != 0 or W % Q != 0 or H == 0 or W == 0:
        raise ValueError(f"patches of {P}x{Q} do not divide images of {H}x{W} (height x width)")


def _checked_out(out: object, shape: tuple[int, ...], dtype: torch.dtype, source: Tensor) -> Tensor:
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a tensor as the input is, got {type(out).__name__}")
    got = (shape_of(out), out.dtype, out.device, out.is_contiguous())
    if got != (shape, dtype, source.device, True):
        raise ValueError(
            f"out must be contiguous, {shape}, {dtype}, on {source.device}; got "
            f"{'contiguous' if got[3] else 'strided'}, {got[0]}, {got[1]}, on {got[2]}"
        )
    if not torch.compiler.is_compiling() and (out.is_conj() or out.is_neg()):
        raise ValueError("out must hold its own values, got a conjugate or negative view")
    if transformed(source) or transformed(out):
        raise RuntimeError("out= is not differentiable: call without out under torch.func and forward-mode gradients")
    if torch.is_grad_enabled() and (source.requires_grad or out.requires_grad):
        raise RuntimeError("out= is not differentiable: call under torch.no_grad(), or without out")
    return out


def _batch_shape(images: Tensor, layout: str) -> tuple[int, int, int, int]:
    """Batch, channels, height and width of images of either layout."""
    B, x, y, z = shape_of(images)
    return (B, x, y, z) if layout == "NCHW" else (B, z, x, y)


def _per_channel(value: PerChannel, channels: int, name: str) -> list[float]:
    given: Any = value.tolist() if isinstance(value, (np.ndarray, np.generic, Tensor)) else value
    if isinstance(given, str):
        raise TypeError(f"{name} must be a number or a sequence of numbers, got {value!r}")
    values = [float(number) for number in given] if isinstance(given, Iterable) else [float(given)]
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
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not (array.flags.writeable and array.flags.aligned) or any(stride < 0 for stride in array.strides):
        array = array.copy()
    if out is None:
        result: NDArray[Any] = function(torch.from_numpy(array), *sizes, **options).numpy()
        return result
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array as the input is, got {type(out).__name__}")
    flags = out.flags
    if not (flags.writeable and flags.aligned and flags.c_contiguous and out.dtype.isnative):
        raise ValueError("out must be writeable, aligned, contiguous and of native byte order")
    function(torch.from_numpy(array), *sizes, out=torch.from_numpy(out), **options)
    return out
