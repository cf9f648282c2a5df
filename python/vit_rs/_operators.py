"""The `torch.library` operators behind `vit_rs.ops`: kernels, shapes for tracing, gradients.

Each operator has a CPU kernel, which calls Rust, and a kernel in plain torch for every other device. The number of
threads is read inside the CPU kernel, never in traced code. Arguments come from the dispatcher: positional, sizes as
lists; `vit_rs.ops` has checked them, and Rust checks again what it relies on.
"""

# ruff: noqa: PLR0917  the dispatcher hands its arguments over by position
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.library import Library

from vit_rs import _core, _reference

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "interpolation_matrix",
    "patchify",
    "patchify_out",
    "resample_abs_pos_embed",
    "resample_densely",
    "unpatchify",
    "unpatchify_out",
]


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


def _check_apart(source: Tensor, out: Tensor) -> None:
    distance = out.data_ptr() - source.data_ptr()
    if -out.nbytes < distance < source.nbytes:
        raise ValueError("out shares memory with the input")


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
    if mean is not None and torch.float64 in (images.dtype, out.dtype):
        _patchify_out_torch(images, patch_size, order, layout, mean, std, dtype, num_threads, out)
        return
    images, layout = _in_place(images, layout)
    if out.numel() == 0:
        return
    _check_apart(images, out)
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
        return
    _core.patchify_converted(
        _bytes(images),
        _bytes(out),
        image_dtype=_name(images.dtype),
        patch_dtype=_name(out.dtype),
        mean=mean,
        std=std,
        **geometry,
    )


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
    P, Q = patch_size
    patches = _reference.patchify(images, (P, Q), order=order, layout=layout, mean=mean, std=std, dtype=dtype)
    out.copy_(patches)


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
    out = _patchify_empty(images, patch_size, layout=layout, dtype=dtype)
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
    patches = patches.contiguous()
    if out.numel() == 0:
        return
    _check_apart(patches, out)
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


def _unpatchify_out_torch(
    patches: Tensor,
    image_size: list[int],
    patch_size: list[int],
    order: str,
    layout: str,
    num_threads: int | None,
    out: Tensor,
) -> None:
    out.copy_(_unpatchify_torch(patches, image_size, patch_size, order, layout, num_threads))


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
    out = _unpatchify_empty(patches, image_size, patch_size, order, layout)
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


def _resample_cpu(
    posemb: Tensor,
    new_size: list[int],
    old_size: list[int],
    num_prefix_tokens: int = 1,
    interpolation: str = "bicubic",
    antialias: bool = True,
) -> Tensor:
    if posemb.dtype == torch.float64:
        return resample_densely(posemb, new_size, old_size, num_prefix_tokens, interpolation, antialias)
    source = posemb.float().contiguous()
    B, _, D = source.shape
    target = source.new_empty(B, num_prefix_tokens + new_size[0] * new_size[1], D)
    _core.resample_tokens(
        source.view(-1).numpy(),
        target.view(-1).numpy(),
        batch=B,
        prefix=num_prefix_tokens,
        channels=D,
        old_size=(old_size[0], old_size[1]),
        new_size=(new_size[0], new_size[1]),
        interpolation=interpolation,
        antialias=antialias,
        align_corners=False,
        a=None,
        scale=(None, None),
        num_threads=torch.get_num_threads(),
    )
    return target.to(posemb.dtype)


def resample_densely(
    posemb: Tensor,
    new_size: list[int] | tuple[int, int],
    old_size: list[int] | tuple[int, int],
    num_prefix_tokens: int = 1,
    interpolation: str = "bicubic",
    antialias: bool = True,
) -> Tensor:
    """Resample a grid by two matrix products: any device, differentiable, visible to compilers."""
    compute = torch.promote_types(posemb.dtype, torch.float32)
    matrices = [
        interpolation_matrix(old, new, interpolation, antialias, False, None, None).to(posemb.device, compute)
        for old, new in zip(old_size, new_size, strict=True)
    ]
    return _apply(posemb, matrices, old_size, num_prefix_tokens)


def _apply(
    posemb: Tensor, matrices: list[Tensor], old_size: list[int] | tuple[int, int], num_prefix_tokens: int
) -> Tensor:
    vertical, horizontal = matrices
    B, _, D = posemb.shape
    # Autocast would take the products, and with them the table, to half precision.
    with torch.autocast(posemb.device.type, enabled=False):
        grid = posemb[:, num_prefix_tokens:].to(vertical.dtype)
        grid = horizontal @ grid.reshape(B, old_size[0], old_size[1], D)  # (B, h, new w, D)
        grid = vertical @ grid.flatten(2)  # (B, new h, new w * D)
    grid = grid.reshape(B, vertical.shape[0] * horizontal.shape[0], D).to(posemb.dtype)
    return torch.cat([posemb[:, :num_prefix_tokens], grid], dim=1)


def _resample_fake(
    posemb: Tensor,
    new_size: list[int],
    old_size: list[int],  # noqa: ARG001  the operator's signature
    num_prefix_tokens: int = 1,
    interpolation: str = "bicubic",  # noqa: ARG001
    antialias: bool = True,  # noqa: ARG001
) -> Tensor:
    return posemb.new_empty(posemb.shape[0], num_prefix_tokens + new_size[0] * new_size[1], posemb.shape[2])


def _resample_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001  torch's signature
    _, *ctx.resampling = inputs


def _resample_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    new_size, old_size, num_prefix_tokens, interpolation, antialias = ctx.resampling
    compute = torch.promote_types(grad.dtype, torch.float32)
    transposed = [
        interpolation_matrix(old, new, interpolation, antialias, False, None, None).T.to(grad.device, compute)
        for old, new in zip(old_size, new_size, strict=True)
    ]
    return _apply(grad, transposed, new_size, num_prefix_tokens), None, None, None, None, None


def _matrix(
    in_size: int,
    out_size: int,
    interpolation: str = "bicubic",
    antialias: bool = True,
    align_corners: bool = False,
    a: float | None = None,
    scale: float | None = None,
) -> Tensor:
    matrix = _core.interpolation_matrix(
        in_size,
        out_size,
        interpolation=interpolation,
        antialias=antialias,
        align_corners=align_corners,
        a=a,
        scale=scale,
    )
    return torch.from_numpy(matrix).view(out_size, in_size)


def _matrix_fake(in_size: int, out_size: int, *settings: object) -> Tensor:  # noqa: ARG001  the operator's signature
    return torch.empty(out_size, in_size, dtype=torch.float64)


def _nothing(*arguments: object) -> None:
    """Tell the shapes of an operator that returns nothing."""


# Typed as Any: torch leaves the methods of Library untyped.
_LIBRARY: Any = Library("vit_rs", "DEF")  # type: ignore[no-untyped-call]


def _register(
    signature: str,
    cpu: Callable[..., Any] | None,
    elsewhere: Callable[..., Any],
    fake: Callable[..., Any],
    gradient: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
) -> Any:
    """Define one operator and give it its kernels; `elsewhere` serves every device without a kernel of its own."""
    name = signature[: signature.index("(")]
    _LIBRARY.define(signature)
    _LIBRARY.impl(name, elsewhere, "CompositeExplicitAutograd")
    if cpu is not None:
        _LIBRARY.impl(name, cpu, "CPU")
    torch.library.register_fake(f"vit_rs::{name}", fake, lib=_LIBRARY)
    if gradient is not None:
        backward, setup = gradient
        torch.library.register_autograd(f"vit_rs::{name}", backward, setup_context=setup, lib=_LIBRARY)
    return getattr(torch.ops.vit_rs, name).default


patchify = _register(
    "patchify(Tensor images, SymInt[2] patch_size, str order='pqc', str layout='NCHW', float[]? mean=None, "
    "float[]? std=None, ScalarType? dtype=None, int? num_threads=None) -> Tensor",
    _patchify_cpu,
    _patchify_torch,
    _patchify_empty,
    (_patchify_backward, _patchify_setup),
)
patchify_out = _register(
    "patchify_out(Tensor images, SymInt[2] patch_size, str order, str layout, float[]? mean, float[]? std, "
    "ScalarType? dtype, int? num_threads, Tensor(a!) out) -> ()",
    _patchify_out_cpu,
    _patchify_out_torch,
    _nothing,
)
unpatchify = _register(
    "unpatchify(Tensor patches, SymInt[2] image_size, SymInt[2] patch_size, str order='pqc', str layout='NCHW', "
    "int? num_threads=None) -> Tensor",
    _unpatchify_cpu,
    _unpatchify_torch,
    _unpatchify_empty,
    (_unpatchify_backward, _unpatchify_setup),
)
unpatchify_out = _register(
    "unpatchify_out(Tensor patches, SymInt[2] image_size, SymInt[2] patch_size, str order, str layout, "
    "int? num_threads, Tensor(a!) out) -> ()",
    _unpatchify_out_cpu,
    _unpatchify_out_torch,
    _nothing,
)
resample_abs_pos_embed = _register(
    "resample_abs_pos_embed(Tensor posemb, SymInt[2] new_size, SymInt[2] old_size, int num_prefix_tokens=1, "
    "str interpolation='bicubic', bool antialias=True) -> Tensor",
    _resample_cpu,
    resample_densely,
    _resample_fake,
    (_resample_backward, _resample_setup),
)
interpolation_matrix = _register(
    "interpolation_matrix(SymInt in_size, SymInt out_size, str interpolation='bicubic', bool antialias=True, "
    "bool align_corners=False, float? a=None, float? scale=None) -> Tensor",
    None,
    _matrix,
    _matrix_fake,
)
