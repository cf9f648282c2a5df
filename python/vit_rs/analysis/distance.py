"""How far a ViT's heads look (arXiv 2010.11929, figure 7, right, and appendix D.7).

Letters: B images, L layers, H heads, T tokens (P prefix tokens, then N patches, gh x gw of them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vit_rs.analysis.attention import each_attention, token_grid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

__all__ = ["attention_distance", "both_distances", "grid_distances", "mean_attention_distance"]


def grid_distances(grid: tuple[int, int], token_hw: tuple[float, float]) -> Tensor:
    """Return the distance of every patch from every other, between their centres, in pixels.

    Args:
        grid: patches, (rows, columns).
        token_hw: pixels of the image for each patch, (height, width).

    Returns:
        (N, N) float64, in raster order.

    Raises:
        ValueError: a number is not above 0.
    """
    if min(grid) < 1 or not min(token_hw) > 0:
        raise ValueError(f"grid and token_hw must be above 0, got {grid} and {token_hw}")
    y, x = (torch.arange(count, dtype=torch.float64) * side for count, side in zip(grid, token_hw, strict=True))
    places = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)  # (N, 2)
    difference = places[:, None] - places
    return torch.hypot(difference[..., 0], difference[..., 1])


def attention_distance(
    weights: Tensor,
    grid: tuple[int, int],
    token_hw: tuple[float, float],
    *,
    num_prefix_tokens: int = 1,
    renormalize: bool = False,
) -> Tensor:
    """Return the mean distance over which each head gathers, in pixels, for each image.

    For each query patch, the distance of each key patch times the attention weight on it, summed; then the mean over
    the queries. Prefix tokens have no place: as queries and as keys they are cut off. The paper's figure does no more,
    so a head that looks at the class token is near 0. With `renormalize` a query's remaining weights are divided by
    their sum first: the mean distance of what it takes from the image.

    Args:
        weights: (B, H, T, T), rows sum to 1; any leading shape.
        grid: patches, (rows, columns).
        token_hw: pixels of the image for each patch, (height, width).
        num_prefix_tokens: P, tokens before the patches'.
        renormalize: False is the paper's definition.

    Returns:
        (B, H), in the weights' dtype, from 0 to the grid's diagonal. A query all of whose weight is on prefix tokens
        counts as 0 in either definition.

    Raises:
        ValueError: the weights are not of so many tokens.

    Source: the authors' code for figure 7, google-research/vision_transformer issue 162.
    """
    prefix, count = num_prefix_tokens, grid[0] * grid[1]
    if weights.ndim < 2 or weights.shape[-2:] != (prefix + count, prefix + count):
        raise ValueError(f"expected weights of {prefix} + {grid[0]}*{grid[1]} tokens, got {tuple(weights.shape)}")
    return both_distances(weights, grid_distances(grid, token_hw).to(weights), prefix)[renormalize]


def mean_attention_distance(
    model: nn.Module,
    images: Tensor | Iterable[Tensor | tuple[Tensor, ...]],
    *,
    renormalize: bool = False,
) -> Tensor:
    """Return the mean attention distance of every head, in pixels, averaged over images (figure 7, right).

    Memory does not grow with depth, nor with the number of batches.

    Args:
        model: as in `vit_rs.analysis.each_attention`.
        images: images (B, C, height, width) on the model's device, or batches of such, or an `ImageLoader`'s batches
            (images, ...). The paper took 128 images.
        renormalize: as in `attention_distance`; False is the paper's definition.

    Returns:
        (L, H) float64 on the CPU.

    Raises:
        AttentionError: the model has no blocks or no grid of patches, or a block's attention cannot be watched.
        ValueError: there are no images, or the model does not take images of that size.
    """
    total: Tensor | None = None
    count = 0
    for batch in [images] if isinstance(images, Tensor) else images:
        pixels = batch if isinstance(batch, Tensor) else batch[0]
        if not len(pixels):
            continue
        tokens = token_grid(model, (pixels.shape[-2], pixels.shape[-1]))
        sums: list[Tensor] = []
        distances = grid_distances(tokens.grid, tokens.token_hw)

        def add(_: int, weights: Tensor, sums: list[Tensor] = sums, distances: Tensor = distances) -> None:
            prefix = weights.shape[-1] - len(distances)
            found = both_distances(weights, distances.to(weights), prefix)[renormalize]  # (B, H)
            sums.append(found.double().sum(dim=0).cpu())

        each_attention(model, pixels, add)
        part = torch.stack(sums)  # (L, H)
        total = part.clone() if total is None else total + part
        count += len(pixels)
    if total is None:
        raise ValueError("no images to measure attention on")
    return total / count


def both_distances(weights: Tensor, pairs: Tensor, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """Return `attention_distance` by both definitions, the paper's and the renormalised one, (B, H) each.

    Args:
        weights: (B, H, T, T), or any leading shape.
        pairs: of `grid_distances`, (N, N), in the weights' dtype and on their device.
        num_prefix_tokens: P; P + N = T.
    """
    patches = weights[..., num_prefix_tokens:, num_prefix_tokens:]
    reach = torch.einsum("...qk,qk->...q", patches, pairs)
    mass = patches.sum(dim=-1)
    divided = torch.where(mass > 0, reach / mass, 0.0)  # 0 / 0 where all of it is on the prefix
    return reach.mean(dim=-1), divided.mean(dim=-1)
