"""The operators behind the resampling of position embeddings and patch kernels: kernels, shapes, gradients.

Three ways lead to the same numbers. On the CPU and in float32 Rust applies sparse weights. Elsewhere, in float64 and in
compiled graphs the weights are dense matrices, multiplied by torch; they are kept on their device, and a graph takes
them from an operator with symbolic sizes. In exported graphs of known sizes the matrices are constants, so that the
graph runs where vit-rs is not installed.
"""

# ruff: noqa: PLR0917  the dispatcher hands its arguments over by position
from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vit_rs import _core
from vit_rs.ops._library import eager, exporting, known, register
from vit_rs.ops._memory import new_result
from vit_rs.ops._traced_matrix import traced_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "apply_to_rows_and_columns",
    "axis_matrix",
    "interpolation_matrix",
    "patch_axis_matrix",
    "patch_resize_matrix",
    "resample_abs_pos_embed",
    "resample_densely",
]


def _compute_dtype(given: torch.dtype | None, dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if given is None else given


def _steps(
    old_size: Sequence[int], new_size: Sequence[int], scale: Sequence[float] | None, offset: float
) -> tuple[float | None, float | None]:
    """Input samples for each output sample along rows and columns; None is the quotient of the sizes."""
    if scale is not None:
        return scale[0], scale[1]
    if offset == 0.0:
        return None, None
    return old_size[0] / (new_size[0] + offset), old_size[1] / (new_size[1] + offset)


def _resample_cpu(
    posemb: Tensor,
    new_size: list[int],
    old_size: list[int],
    num_prefix_tokens: int = 1,
    interpolation: str = "bicubic",
    antialias: bool = True,
    align_corners: bool = False,
    a: float | None = None,
    scale: list[float] | None = None,
    offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    dtype = posemb.dtype
    if _compute_dtype(compute_dtype, dtype) == torch.float64:
        settings = (interpolation, antialias, align_corners, a, scale, offset, compute_dtype)
        return resample_densely(posemb, new_size, old_size, num_prefix_tokens, *settings)
    source = posemb.to(torch.float32).contiguous()
    B, _, D = source.shape
    old, new = (old_size[0], old_size[1]), (new_size[0], new_size[1])
    target = new_result(source, (B, num_prefix_tokens + new[0] * new[1], D), torch.float32)
    _core.resample_tokens(
        source.view(-1).numpy(),
        target.view(-1).numpy(),
        batch=B,
        prefix=num_prefix_tokens,
        channels=D,
        old_size=old,
        new_size=new,
        interpolation=interpolation,
        antialias=antialias,
        align_corners=align_corners,
        a=a,
        scale=_steps(old, new, scale, offset),
        num_threads=torch.get_num_threads(),
    )
    if dtype == torch.float32:
        return target
    result = new_result(posemb, (B, target.shape[1], D), dtype).copy_(target)
    if dtype == torch.float64:
        result[:, :num_prefix_tokens] = posemb[:, :num_prefix_tokens]  # lowering the precision is the grid's affair
    return result


def resample_densely(
    posemb: Tensor,
    new_size: Sequence[int],
    old_size: Sequence[int],
    num_prefix_tokens: int = 1,
    interpolation: str = "bicubic",
    antialias: bool = True,
    align_corners: bool = False,
    a: float | None = None,
    scale: Sequence[float] | None = None,
    offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """Resample a grid by two matrix products: any device, differentiable, visible to compilers."""
    knobs = (interpolation, antialias, align_corners, a, scale, offset)
    compute = _compute_dtype(compute_dtype, posemb.dtype)
    vertical, horizontal = _matrices(old_size, new_size, *knobs, dtype=compute, device=posemb.device)
    return _resample_tokens(posemb, vertical, horizontal, old_size, num_prefix_tokens)


def _matrices(
    old_size: Sequence[int],
    new_size: Sequence[int],
    interpolation: str,
    antialias: bool,
    align_corners: bool,
    a: float | None,
    scale: Sequence[float] | None,
    offset: float,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor]:
    knobs = (interpolation, antialias, align_corners, a)
    steps = (None, None) if scale is None else scale
    return [
        _device_matrix(old_size[axis], new_size[axis], *knobs, steps[axis], offset, dtype=dtype, device=device)
        for axis in (0, 1)
    ]


# A model has a few sizes. Made anew, their matrices would be copied to the device in every forward and backward pass.
_KEPT_VALUES = 2**16


def _device_matrix(in_size: int, out_size: int, *settings: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make the matrix of one axis, or take the kept one: nobody may change it. Graphs have it from the operator."""
    if exporting():
        return axis_matrix(in_size, out_size, *settings, dtype=dtype).to(device)
    make = _kept_matrix if eager() and in_size * out_size <= _KEPT_VALUES else interpolation_matrix
    matrix: Tensor = make(in_size, out_size, *settings, dtype=dtype, device=device)
    return matrix


def _fresh_matrix(in_size: int, out_size: int, *settings: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # or no later backward pass could use it
        # In two steps: not every device has the float64 that the matrices are made in.
        return torch.from_numpy(_weights(in_size, out_size, *settings)).to(dtype).to(device)


_kept_matrix = functools.lru_cache(maxsize=64)(_fresh_matrix)


def _resample_tokens(
    posemb: Tensor, vertical: Tensor, horizontal: Tensor, old_size: Sequence[int], num_prefix_tokens: int
) -> Tensor:
    B, _, D = posemb.shape
    grid = posemb[:, num_prefix_tokens:].to(vertical.dtype).reshape(B, old_size[0], old_size[1], D)
    with _full_precision(posemb.device):
        grid = horizontal @ grid  # (B, h, new w, D)
        grid = vertical @ grid.flatten(2)  # (B, new h, new w * D)
    grid = grid.reshape(B, vertical.shape[0] * horizontal.shape[0], D).to(posemb.dtype)
    return torch.cat([posemb[:, :num_prefix_tokens], grid], dim=1)


def apply_to_rows_and_columns(values: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Multiply the last two dimensions, (h, w), by one matrix each, in the matrices' dtype."""
    with _full_precision(values.device):
        return vertical @ (values.to(vertical.dtype) @ horizontal.T)


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Keep autocast, where it is on, from taking the products, and with them the table, to half precision."""
    on = device.type != "meta" and torch.is_autocast_enabled(device.type)  # meta tensors know no autocast
    return torch.autocast(device.type, enabled=False) if on else contextlib.nullcontext()


def _resample_fake(
    posemb: Tensor,
    new_size: list[int],
    old_size: list[int],  # noqa: ARG001  the operator's signature
    num_prefix_tokens: int = 1,
    *settings: object,  # noqa: ARG001
) -> Tensor:
    return posemb.new_empty(posemb.shape[0], num_prefix_tokens + new_size[0] * new_size[1], posemb.shape[2])


def _resample_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001  torch's signature
    _, *ctx.resampling = inputs


def _resample_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    new_size, old_size, num_prefix_tokens, *settings, compute_dtype = ctx.resampling
    compute = _compute_dtype(compute_dtype, grad.dtype)
    vertical, horizontal = _matrices(old_size, new_size, *settings, dtype=compute, device=grad.device)
    return _resample_tokens(grad, vertical.T, horizontal.T, new_size, num_prefix_tokens), *[None] * 10


def axis_matrix(in_size: int, out_size: int, *settings: Any, dtype: torch.dtype) -> Tensor:
    """Make the matrix of one axis; in an exported graph a constant, or, of open sizes, torch's own arithmetic."""
    if exporting():
        make = _constant_matrix if known(in_size) and known(out_size) else _traced_matrix
        return make(in_size, out_size, *settings, dtype=dtype)
    matrix: Tensor = interpolation_matrix(in_size, out_size, *settings)
    return matrix.to(dtype)


def patch_axis_matrix(in_size: int, out_size: int, *settings: Any, dtype: torch.dtype) -> Tensor:
    """Make the matrix that resizes one axis of a patch kernel; a constant in an exported graph."""
    if exporting() and known(in_size) and known(out_size):
        return _constant_patch_matrix(in_size, out_size, *settings, dtype=dtype)
    matrix: Tensor = patch_resize_matrix(in_size, out_size, *settings)
    return matrix.to(dtype)


def _constant_matrix(in_size: int, out_size: int, *settings: Any, dtype: torch.dtype) -> Tensor:
    return torch.tensor(_weights(in_size, out_size, *settings), dtype=dtype)


def _traced_matrix(in_size: int, out_size: int, *settings: Any, dtype: torch.dtype) -> Tensor:
    return traced_matrix(in_size, out_size, *settings).to(dtype)


def _constant_patch_matrix(in_size: int, out_size: int, *settings: Any, dtype: torch.dtype) -> Tensor:
    return torch.tensor(_patch_weights(in_size, out_size, *settings), dtype=dtype)


# What `torch.compiler.assume_constant_result` does, which would import the compiler with this module.
_constant_matrix._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001
_constant_patch_matrix._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001


def _weights(
    in_size: int,
    out_size: int,
    interpolation: str = "bicubic",
    antialias: bool = True,
    align_corners: bool = False,
    a: float | None = None,
    scale: float | None = None,
    offset: float = 0.0,
) -> NDArray[np.float64]:
    if scale is None and offset != 0.0:
        scale = in_size / (out_size + offset)
    matrix = _core.interpolation_matrix(
        in_size,
        out_size,
        interpolation=interpolation,
        antialias=antialias,
        align_corners=align_corners,
        a=a,
        scale=scale,
    )
    return matrix.reshape(out_size, in_size)


def _matrix(
    in_size: int,
    out_size: int,
    *settings: Any,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    if dtype is None and device is None:
        return torch.from_numpy(_weights(in_size, out_size, *settings))
    place: dict[str, Any] = {"dtype": dtype or torch.float64, "device": device or torch.device("cpu")}
    if in_size * out_size > _KEPT_VALUES or not eager():
        return _fresh_matrix(in_size, out_size, *settings, **place)
    # A copy, on the device: what calls an operator may write into its result, and compilers do.
    return _kept_matrix(in_size, out_size, *settings, **place).clone()


# A patch has few sizes, and its pseudo-inverse is the costly part of a resize.
@functools.lru_cache(maxsize=32)
def _patch_weights(in_size: int, out_size: int, *settings: Any) -> NDArray[np.float64]:
    weights = _weights(in_size, out_size, *settings)
    inverse: NDArray[np.float64] = np.linalg.pinv(weights.T, rcond=max(weights.shape) * np.finfo(np.float64).eps)
    inverse.flags.writeable = False
    return inverse


def _patch_matrix(in_size: int, out_size: int, *settings: Any) -> Tensor:
    return torch.from_numpy(_patch_weights(in_size, out_size, *settings).copy())


def _matrix_fake(
    in_size: int,
    out_size: int,
    *settings: object,  # noqa: ARG001  the operator's signature
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    return torch.empty(out_size, in_size, dtype=dtype or torch.float64, device=device)


resample_abs_pos_embed = register(
    "resample_abs_pos_embed(Tensor posemb, SymInt[2] new_size, SymInt[2] old_size, int num_prefix_tokens=1, "
    "str interpolation='bicubic', bool antialias=True, bool align_corners=False, float? a=None, float[]? scale=None, "
    "float offset=0.0, ScalarType? compute_dtype=None) -> Tensor",
    _resample_cpu,
    resample_densely,
    _resample_fake,
    (_resample_backward, _resample_setup),
)
interpolation_matrix = register(
    "interpolation_matrix(SymInt in_size, SymInt out_size, str interpolation='bicubic', bool antialias=True, "
    "bool align_corners=False, float? a=None, float? scale=None, float offset=0.0, *, ScalarType? dtype=None, "
    "Device? device=None) -> Tensor",
    None,
    _matrix,
    _matrix_fake,
)
patch_resize_matrix = register(
    "patch_resize_matrix(SymInt in_size, SymInt out_size, str interpolation='bicubic', bool antialias=True, "
    "bool align_corners=False, float? a=None) -> Tensor",
    None,
    _patch_matrix,
    _matrix_fake,
)
