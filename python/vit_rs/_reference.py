"""The operators in plain torch: oracle of the tests, peer of the benches, path of other devices and exported graphs.

Arguments are those of `vit_rs.ops`, already checked. B batch, C channels, H W image, P Q patch, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["interpolation_matrix", "patchify", "resample_abs_pos_embed", "unpatchify"]


def patchify(
    images: Tensor,
    patch_size: tuple[int, int],
    *,
    order: str = "pqc",
    layout: str = "NCHW",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Cut images into flattened patches, (B, N, P*Q*C), fresh and contiguous.

    With `mean` and `std` (one value a channel), uint8 is first multiplied by 1/255; computed in float32, or in
    float64 if either side is, and rounded once to `dtype`.
    """
    P, Q = patch_size
    if mean is not None and std is not None:
        images = _normalize(images, layout, mean, std, dtype or images.dtype)
    if layout == "NHWC":
        B, H, W, C = images.shape
        grid = images.reshape(B, H // P, P, W // Q, Q, C)
        axes = (0, 1, 3, 2, 4, 5) if order == "pqc" else (0, 1, 3, 5, 2, 4)
    else:
        B, C, H, W = images.shape
        grid = images.reshape(B, C, H // P, P, W // Q, Q)
        axes = (0, 2, 4, 3, 5, 1) if order == "pqc" else (0, 2, 4, 1, 3, 5)
    patches = grid.permute(axes).clone(memory_format=torch.contiguous_format)  # (B, H/P, W/Q, ...)
    return patches.view(B, (H // P) * (W // Q), P * Q * C)


def _normalize(images: Tensor, layout: str, mean: list[float], std: list[float], dtype: torch.dtype) -> Tensor:
    compute = torch.float64 if torch.float64 in (images.dtype, dtype) else torch.float32
    values = images.to(compute)
    if images.dtype == torch.uint8:
        values = values * (1.0 / 255.0)
    shape = (-1,) if layout == "NHWC" else (-1, 1, 1)
    offset = torch.tensor(mean, dtype=compute, device=images.device).view(shape)
    scale = torch.tensor(std, dtype=compute, device=images.device).view(shape)
    return ((values - offset) / scale).to(dtype)


def unpatchify(
    patches: Tensor,
    image_size: tuple[int, int],
    patch_size: tuple[int, int],
    *,
    order: str = "pqc",
    layout: str = "NCHW",
) -> Tensor:
    """Put flattened patches together into images, (B, C, H, W) or (B, H, W, C), fresh and contiguous."""
    (H, W), (P, Q) = image_size, patch_size
    B, C = patches.shape[0], patches.shape[2] // (P * Q)
    if order == "pqc":
        grid = patches.reshape(B, H // P, W // Q, P, Q, C)
        axes = (0, 5, 1, 3, 2, 4) if layout == "NCHW" else (0, 1, 3, 2, 4, 5)
    else:
        grid = patches.reshape(B, H // P, W // Q, C, P, Q)
        axes = (0, 3, 1, 4, 2, 5) if layout == "NCHW" else (0, 1, 4, 2, 5, 3)
    images = grid.permute(axes).clone(memory_format=torch.contiguous_format)
    return images.view((B, C, H, W) if layout == "NCHW" else (B, H, W, C))


def resample_abs_pos_embed(  # noqa: PLR0917  timm's signature
    posemb: Tensor,
    new_size: tuple[int, int],
    old_size: tuple[int, int],
    num_prefix_tokens: int = 1,
    interpolation: str = "bicubic",
    antialias: bool = True,
    *,
    align_corners: bool = False,
    offset: float = 0.0,
) -> Tensor:
    """Resample the grid of (B, prefix + rows*columns, D) position embeddings with `F.interpolate`.

    An offset goes into the scale factors, as DINO has it. Computed in float32, float64 in itself. The grid is
    channels-last in memory, for which one channel is doubled: the antialiased kernel that torch 2.15 has for contiguous
    NCHW is wrong where the output is one column wide.
    """
    prefix, grid = posemb[:, :num_prefix_tokens], posemb[:, num_prefix_tokens:]
    grid = grid if grid.dtype == torch.float64 else grid.float()
    grid = grid.reshape(posemb.shape[0], *old_size, posemb.shape[2]).permute(0, 3, 1, 2)  # (B, D, h, w)
    D = grid.shape[1]
    grid = grid.expand(-1, max(D, 2), -1, -1).contiguous(memory_format=torch.channels_last)
    options: dict[str, Any] = {"mode": interpolation, "antialias": antialias, "align_corners": align_corners}
    if offset == 0.0:
        grid = F.interpolate(grid, size=new_size, **options)
    else:
        factors = tuple((new + offset) / old for old, new in zip(old_size, new_size, strict=True))
        grid = F.interpolate(grid, scale_factor=factors, **options)
    grid = grid[:, :D].permute(0, 2, 3, 1).flatten(1, 2)  # (B, h*w, D)
    return torch.cat([prefix, grid.to(posemb.dtype)], dim=1)


def interpolation_matrix(
    in_size: int,
    out_size: int,
    *,
    interpolation: str = "bicubic",
    antialias: bool = True,
    align_corners: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Resize an identity with `F.interpolate`, in float64: column j is the response to input sample j."""
    samples = torch.eye(in_size, dtype=torch.float64)[None, :, :, None]  # channel j is input sample j: (1, in, in, 1)
    samples = samples.contiguous(memory_format=torch.channels_last)
    if scale is None:
        resized = F.interpolate(
            samples, size=(out_size, 1), mode=interpolation, antialias=antialias, align_corners=align_corners
        )
    else:
        resized = F.interpolate(
            samples, scale_factor=(1.0 / scale, 1.0), mode=interpolation, antialias=antialias, align_corners=False
        )
    return resized[0, :, :, 0].T  # (out, in)
