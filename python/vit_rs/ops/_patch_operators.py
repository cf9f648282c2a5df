"""The operators behind `patchify` and `unpatchify`: kernels, shapes for tracing, gradients."""

# ruff: noqa: PLR0917  the dispatcher hands its arguments over by position
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vit_rs import _core, _reference
from vit_rs.ops._library import register
from vit_rs.ops._memory import new_result

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["patchify", "patchify_out", "unpatchify", "unpatchify_out"]


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """View the memory of a contiguous tensor of any dtype; numpy knows no bfloat16."""
    view: NDArray[np.uint8] = tensor.view(-1).view(torch.uint8).numpy()
    return view


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _threads(num_threads: int | None) -> int:
    return torch.get_num_threads() if num_threads is None else num_threads


def _in_place(images: Tensor, layout: str) -> tuple[Tensor, str]:
    """Give the images as contiguous memory, and its layout; copied only if no layout has their strides."""
    if not images.is_contiguous():
        other, axes = ("NHWC", (0, 2, 3, 1)) if layout == "NCHW" else ("NCHW", (0, 3, 1, 2))
        permuted = images.permute(axes)
        if permuted.is_contiguous():
            return permuted, other
    return images.contiguous(), layout


def _modified(out: Tensor) -> None:
    """Tell autograd, which the engine writes past: a graph that saved the old values must not be run backward."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def _check_apart(source: Tensor, out: Tensor) -> None:
    if source.numel() == 0 or source.device != out.device:
        return
    (start, end), (out_start, out_end) = _extent(source), _extent(out)
    if start < out_end and out_start < end:
        raise ValueError("out shares memory with the input")


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Give the first address of a tensor's values, and the one behind the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _check_conversion(
    images: Tensor, mean: list[float] | None, std: list[float] | None, dtype: torch.dtype | None
) -> None:
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std belong together, got {mean} and {std}")
    if mean is None and dtype not in (None, images.dtype):
        raise ValueError(f"without mean and std values keep their dtype, {images.dtype}, got {dtype}")


def _patches_shape(images: Tensor, patch_size: list[int], layout: str) -> tuple[int, int, int]:
    B, C, H, W = images.shape if layout == "NCHW" else (images.shape[i] for i in (0, 3, 1, 2))
    P, Q = patch_size
    return B, (H // P) * (W // Q), P * Q * C


def _images_shape(patches: Tensor, image_size: list[int], patch_size: list[int], layout: str) -> tuple[int, ...]:
    C = patches.shape[2] // (patch_size[0] * patch_size[1])
    H, W = image_size
    return (patches.shape[0], C, H, W) if layout == "NCHW" else (patches.shape[0], H, W, C)


def _patchify_out_cpu(
    images: Tensor,
    patch_size: list[int],
    order: str,
    layout: str,
    mean: list[float] | None,
    std: list[float] | None,
    dtype: torch.dtype | None,
    num_threads: int | None,
    out: Tensor,
) -> None:
    _check_conversion(images, mean, std, out.dtype)
    _check_apart(images, out)
    if mean is not None and torch.float64 in (images.dtype, out.dtype):
        _patchify_out_torch(images, patch_size, order, layout, mean, std, dtype, num_threads, out)
        return
    images, layout = _in_place(images, layout)
    if out.numel() == 0:
        return
    B, C, H, W = images.shape if layout == "NCHW" else (images.shape[i] for i in (0, 3, 1, 2))
    geometry: dict[str, Any] = {
        "shape": (B, C, H, W),
        "patch_size": (patch_size[0], patch_size[1]),
        "order": order,
        "layout": layout,
        "num_threads": _threads(num_threads),
    }
    if mean is None or std is None:
        _core.patchify(_bytes(images), _bytes(out), element_size=images.element_size(), **geometry)
    else:
        _core.patchify_converted(
            _bytes(images),
            _bytes(out),
            image_dtype=_name(images.dtype),
            patch_dtype=_name(out.dtype),
            mean=mean,
            std=std,
            **geometry,
        )
    _modified(out)


def _patchify_out_torch(
    images: Tensor,
    patch_size: list[int],
    order: str,
    layout: str,
    mean: list[float] | None,
    std: list[float] | None,
    dtype: torch.dtype | None,
    num_threads: int | None,  # noqa: ARG001  the operator's signature
    out: Tensor,
) -> None:
    _check_conversion(images, mean, std, out.dtype)
    _check_apart(images, out)
    P, Q = patch_size
    patches = _reference.patchify(images, (P, Q), order=order, layout=layout, mean=mean, std=std, dtype=dtype)
    out.copy_(patches)
    _modified(out)


def _patchify_empty(
    images: Tensor,
    patch_size: list[int],
    order: str = "pqc",  # noqa: ARG001  the operator's signature
    layout: str = "NCHW",
    mean: list[float] | None = None,  # noqa: ARG001
    std: list[float] | None = None,  # noqa: ARG001
    dtype: torch.dtype | None = None,
    num_threads: int | None = None,  # noqa: ARG001
) -> Tensor:
    shape = _patches_shape(images, patch_size, layout)
    return images.new_empty(shape, dtype=images.dtype if dtype is None else dtype)


def _patchify_cpu(
    images: Tensor,
    patch_size: list[int],
    order: str = "pqc",
    layout: str = "NCHW",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    dtype: torch.dtype | None = None,
    num_threads: int | None = None,
) -> Tensor:
    out = new_result(images, _patches_shape(images, patch_size, layout), images.dtype if dtype is None else dtype)
    _patchify_out_cpu(images, patch_size, order, layout, mean, std, dtype, num_threads, out)
    return out


def _patchify_torch(
    images: Tensor,
    patch_size: list[int],
    order: str = "pqc",
    layout: str = "NCHW",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    dtype: torch.dtype | None = None,
    num_threads: int | None = None,  # noqa: ARG001  the operator's signature
) -> Tensor:
    _check_conversion(images, mean, std, dtype)
    P, Q = patch_size
    return _reference.patchify(images, (P, Q), order=order, layout=layout, mean=mean, std=std, dtype=dtype)


def _patchify_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001  torch's signature
    images, patch_size, order, layout, _, std, _, num_threads = inputs
    ctx.image_size = list(images.shape[2:] if layout == "NCHW" else images.shape[1:3])
    ctx.dtype, ctx.std = images.dtype, std
    ctx.patching = (patch_size, order, layout, num_threads)


def _patchify_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    patch_size, order, layout, num_threads = ctx.patching
    # Divided before it is rounded: a large gradient over a large std fits a half type, the gradient alone may not.
    images: Tensor = unpatchify(grad, ctx.image_size, patch_size, order, layout, num_threads)
    if ctx.std is not None:
        std = torch.tensor(ctx.std, dtype=torch.promote_types(grad.dtype, torch.float32), device=grad.device)
        images = images / std.view((-1, 1, 1) if layout == "NCHW" else (-1,))
    return images.to(ctx.dtype), None, None, None, None, None, None, None


def _unpatchify_out_cpu(
    patches: Tensor,
    image_size: list[int],
    patch_size: list[int],
    order: str,
    layout: str,
    num_threads: int | None,
    out: Tensor,
) -> None:
    _check_apart(patches, out)
    patches = patches.contiguous()
    if out.numel() == 0:
        return
    P, Q = patch_size
    _core.unpatchify(
        _bytes(patches),
        _bytes(out),
        element_size=patches.element_size(),
        shape=(patches.shape[0], patches.shape[2] // (P * Q), image_size[0], image_size[1]),
        patch_size=(P, Q),
        order=order,
        layout=layout,
        num_threads=_threads(num_threads),
    )
    _modified(out)


def _unpatchify_out_torch(
    patches: Tensor,
    image_size: list[int],
    patch_size: list[int],
    order: str,
    layout: str,
    num_threads: int | None,
    out: Tensor,
) -> None:
    _check_apart(patches, out)
    out.copy_(_unpatchify_torch(patches, image_size, patch_size, order, layout, num_threads))
    _modified(out)


def _unpatchify_empty(
    patches: Tensor,
    image_size: list[int],
    patch_size: list[int],
    order: str = "pqc",  # noqa: ARG001  the operator's signature
    layout: str = "NCHW",
    num_threads: int | None = None,  # noqa: ARG001
) -> Tensor:
    return patches.new_empty(_images_shape(patches, image_size, patch_size, layout))


def _unpatchify_cpu(
    patches: Tensor,
    image_size: list[int],
    patch_size: list[int],
    order: str = "pqc",
    layout: str = "NCHW",
    num_threads: int | None = None,
) -> Tensor:
    out = new_result(patches, _images_shape(patches, image_size, patch_size, layout), patches.dtype)
    _unpatchify_out_cpu(patches, image_size, patch_size, order, layout, num_threads, out)
    return out


def _unpatchify_torch(
    patches: Tensor,
    image_size: list[int],
    patch_size: list[int],
    order: str = "pqc",
    layout: str = "NCHW",
    num_threads: int | None = None,  # noqa: ARG001  the operator's signature
) -> Tensor:
    (H, W), (P, Q) = image_size, patch_size
    return _reference.unpatchify(patches, (H, W), (P, Q), order=order, layout=layout)


def _unpatchify_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001  torch's signature
    _, _, patch_size, order, layout, num_threads = inputs
    ctx.patching = (patch_size, order, layout)
    ctx.num_threads = num_threads


def _unpatchify_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    patch_size, order, layout = ctx.patching
    return patchify(grad, patch_size, order, layout, None, None, None, ctx.num_threads), None, None, None, None, None


def _nothing(*arguments: object) -> None:
    """Tell the shapes of an operator that returns nothing."""


patchify = register(
    "patchify(Tensor images, SymInt[2] patch_size, str order='pqc', str layout='NCHW', float[]? mean=None, "
    "float[]? std=None, ScalarType? dtype=None, int? num_threads=None) -> Tensor",
    _patchify_cpu,
    _patchify_torch,
    _patchify_empty,
    (_patchify_backward, _patchify_setup),
)
patchify_out = register(
    "patchify_out(Tensor images, SymInt[2] patch_size, str order, str layout, float[]? mean, float[]? std, "
    "ScalarType? dtype, int? num_threads, Tensor(a!) out) -> ()",
    _patchify_out_cpu,
    _patchify_out_torch,
    _nothing,
)
unpatchify = register(
    "unpatchify(Tensor patches, SymInt[2] image_size, SymInt[2] patch_size, str order='pqc', str layout='NCHW', "
    "int? num_threads=None) -> Tensor",
    _unpatchify_cpu,
    _unpatchify_torch,
    _unpatchify_empty,
    (_unpatchify_backward, _unpatchify_setup),
)
unpatchify_out = register(
    "unpatchify_out(Tensor patches, SymInt[2] image_size, SymInt[2] patch_size, str order, str layout, "
    "int? num_threads, Tensor(a!) out) -> ()",
    _unpatchify_out_cpu,
    _unpatchify_out_torch,
    _nothing,
)
