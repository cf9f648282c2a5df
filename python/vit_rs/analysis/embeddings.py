"""What the learned embeddings look like (arXiv 2010.11929, section 4.5 and figure 7).

Letters: N patches (gh x gw of them), P prefix tokens that have a position, D width, C channels, p x q patch,
K components.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_rs.models import VisionTransformer
from vit_rs.models.pos_encoding import position_table

__all__ = [
    "NeighbourSimilarity",
    "PatchFilters",
    "PositionTable",
    "neighbour_similarity",
    "patch_filters",
    "position_note",
    "position_similarity",
    "position_tables",
]


class NeighbourSimilarity(NamedTuple):
    """How similar the positions of neighbouring patches are.

    Attributes:
        neighbours: The mean cosine similarity of patches that share an edge, -1..1.
        others: That of all other pairs.
        nearest: Of how many patches, 0..1, the most similar other one is a neighbour.
        by_chance: What `nearest` would be if the most similar ones were drawn.
    """

    neighbours: float
    others: float
    nearest: float
    by_chance: float


class PatchFilters(NamedTuple):
    """The principal components of a patch embedding's filters.

    Attributes:
        components: (K, C, p, q) float32 on the CPU, unit vectors, the greatest variance first.
        explained_variance_ratio: (min(D, C p q),) float64 on the CPU: each component's share of the variance, those
            that are not among `components` included. Sums to 1; all zeros if the filters do not differ.
        mean: (C, p, q) float32 on the CPU, the mean filter.
    """

    components: Tensor
    explained_variance_ratio: Tensor
    mean: Tensor


class PositionTable(NamedTuple):
    """What a model adds to its tokens for their positions.

    Attributes:
        name: Where it is added: "input" (of the first layer), "every layer", or "layer 1" and so on.
        table: (P + N, D) on the CPU, in the model's dtype; the patches row by row.
        grid: The patches' (gh, gw).
        num_prefix_tokens: P.
    """

    name: str
    table: Tensor
    grid: tuple[int, int]
    num_prefix_tokens: int


@torch.no_grad()
def patch_filters(weight: Tensor, count: int = 28) -> PatchFilters:
    """Return the principal components of the patch embedding's D filters.

    The filters are D observations of C p q variables. Their mean is subtracted first: the paper does not say whether
    it did so; without it the first component of many models is the mean filter. A component's sign is arbitrary: the
    element of largest magnitude is made positive. So is, but for its length, one whose share of the variance is 0.
    Computed in float64.

    Source: arXiv 2010.11929, figure 7 (left): the "first 28 principal components" of the embedding filters. Agrees
    with scikit-learn's `PCA().fit(weight.flatten(1))` up to signs.

    Args:
        weight: (D, C, p, q), floating point: `patch_embed.proj.weight` of a ViT.
        count: Components to return, at least 1.

    Returns:
        K = min(count, D, C p q) components, with the variance of all.

    Raises:
        ValueError: The weight has another shape, or values that are not finite, or `count` is below 1.
    """
    if weight.ndim != 4 or weight.numel() == 0 or not weight.is_floating_point():
        raise ValueError(
            f"expected a floating-point patch embedding (D, C, p, q), got {tuple(weight.shape)} of {weight.dtype}"
        )
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    filters = weight.detach().cpu().double().flatten(1)  # (D, Cpq)
    broken = int(filters.isfinite().logical_not().sum())
    if broken:
        raise ValueError(f"the patch embedding {tuple(weight.shape)} has {broken} values that are not finite")
    mean = filters.mean(dim=0)
    _, deviations, directions = torch.linalg.svd(filters - mean, full_matrices=False)
    # Equal filters still differ from their mean by its rounding.
    noise = torch.finfo(torch.float64).eps * max(filters.shape) * filters.abs().max()
    spread = deviations[0]
    ratio = (deviations / spread).square() if spread > noise else torch.zeros_like(deviations)
    ratio = ratio / ratio.sum().clamp(min=1.0)
    components = directions[:count]  # (K, Cpq)
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    components = components * torch.where(largest < 0.0, -1.0, 1.0)
    shape = weight.shape[1:]
    return PatchFilters(components.float().reshape(-1, *shape), ratio, mean.float().reshape(shape))


@torch.no_grad()
def position_tables(model: nn.Module) -> list[PositionTable]:
    """Return the absolute position tables of a model, ours or timm's, as they are added to the tokens.

    One at the input, one for every layer of `pos_placement="every"`; learned or sin-cos. Tables of rows and of columns
    ("2d", and the "factorized" of timm's NaFlex) are returned as the sum or concatenation that is added. For the grid
    that the tables were made for, which is that of the model's image size.

    Args:
        model: A `VisionTransformer`, a `HybridViT`, or a timm model with the attribute `pos_embed`.

    Returns:
        The tables in the order of the layers; empty if there is none, or none whose grid is known: `position_note` says
        why.
    """
    if isinstance(model, VisionTransformer):
        config = model.config
        tables = position_table(model, config, config.grid_size)
        if tables is None:
            return []
        names = {
            "stem": ["input"],
            "shared": ["every layer"],
            "every": [f"layer {layer}" for layer in range(1, config.depth + 1)],
        }[config.pos_placement]
        return [
            PositionTable(name, table.detach().cpu(), config.grid_size, config.embedded_prefix_tokens)
            for name, table in zip(names, tables, strict=True)
        ]
    return _timm_tables(model)


def _timm_tables(model: nn.Module) -> list[PositionTable]:
    owner = getattr(model, "embeds", model)  # NaFlex keeps its tables there
    rows, columns = getattr(owner, "pos_embed_y", None), getattr(owner, "pos_embed_x", None)
    table = getattr(owner, "pos_embed", None)
    if isinstance(rows, Tensor) and isinstance(columns, Tensor):  # factorized: (1, gh, D) and (1, gw, D)
        table = rows.unsqueeze(2) + columns.unsqueeze(1)  # (1, gh, gw, D)
    if not isinstance(table, Tensor):
        return []
    table = table.detach().cpu()[0]
    if table.ndim == 3 and table.shape[2] == getattr(model, "num_features", None):  # NaFlex, SAM, VOLO: (gh, gw, D)
        return [PositionTable("input", table.flatten(0, 1), (table.shape[0], table.shape[1]), 0)]
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if table.ndim != 2 or grid is None:
        return []
    # All rows that are not the patches' are the prefix's: whether it has any differs between timm's models.
    prefix = table.shape[0] - grid[0] * grid[1]
    return [] if prefix < 0 else [PositionTable("input", table, (grid[0], grid[1]), prefix)]


def position_note(model: nn.Module) -> str | None:
    """Say in a sentence what `position_tables` cannot show of a model's positions.

    Args:
        model: As in `position_tables`.

    Returns:
        Why there is no table: offsets in the attention, rotations, no encoding at all, or one that is not known here;
        or what there is beside the table. None if the tables are all.
    """
    relative = any("rel_pos" in name or "relative" in name for name, _ in model.named_parameters())
    rotary = model.config.rope if isinstance(model, VisionTransformer) else getattr(model, "rope", None) is not None
    ways = []
    if relative:
        ways.append("the attention of the layers sees the offsets between patches (a relative encoding)")
    if rotary:
        ways.append("queries and keys are rotated by the patches' places (a rotary encoding)")
    has_table = bool(position_tables(model))
    if ways:
        start = "Beside the table, " if has_table else "No table is added to the tokens: "
        return f"{start}{' and '.join(ways)}."
    if has_table:
        return None
    if isinstance(model, VisionTransformer) or getattr(getattr(model, "embeds", model), "pos_embed", ...) is None:
        return "The model has no position encoding: it sees its patches as a bag, without their places."
    return f"{type(model).__name__} has no position table that is known here."


@torch.no_grad()
def position_similarity(pos_embed: Tensor, grid: tuple[int, int], num_prefix_tokens: int = 1) -> Tensor:
    """Return the cosine similarity of every patch's position embedding with every other's.

    Source: arXiv 2010.11929, figure 7 (centre); the class token's entry is left out.

    Args:
        pos_embed: (1, num_prefix_tokens + N, D) or (num_prefix_tokens + N, D), floating point.
        grid: (gh, gw) with gh * gw = N.
        num_prefix_tokens: Entries before the patches' own.

    Returns:
        (gh, gw, gh, gw) float32 on the CPU, in -1..1: element [i, j] is the map of patch (row i, column j) to
        all patches. A position of length zero has similarity 0 to all.

    Raises:
        ValueError: The shape does not fit the grid.
    """
    table = pos_embed[0] if pos_embed.ndim == 3 and pos_embed.shape[0] == 1 else pos_embed
    gh, gw = grid
    if table.ndim != 2 or table.shape[0] != num_prefix_tokens + gh * gw:
        raise ValueError(
            f"expected a position embedding (1, {num_prefix_tokens} + {gh}*{gw}, D), got {tuple(pos_embed.shape)}"
        )
    directions = F.normalize(table[num_prefix_tokens:].detach().cpu().double(), dim=1)  # (N, D)
    similarity = (directions @ directions.T).clamp(-1.0, 1.0)  # rounding only: 1 + 2e-16 is no cosine
    return similarity.float().reshape(gh, gw, gh, gw)


def neighbour_similarity(similarity: Tensor) -> NeighbourSimilarity:
    """Return how much more similar the positions of neighbouring patches are than others.

    Neighbours share an edge. Left-right symmetric training images, or random flips, make mirrored patches similar too.

    Args:
        similarity: (gh, gw, gh, gw), of `position_similarity`.

    Raises:
        ValueError: The shape is another, or there are fewer than three patches, which have no others.
    """
    if similarity.ndim != 4 or similarity.shape[:2] != similarity.shape[2:]:
        raise ValueError(f"expected similarities (gh, gw, gh, gw), got {tuple(similarity.shape)}")
    gh, gw = similarity.shape[:2]
    count = gh * gw
    if count < 3:
        raise ValueError(f"a grid of {gh}x{gw} patches has no patches that are not neighbours")
    maps = similarity.reshape(count, count)
    place = torch.arange(count)
    rows, columns = (place // gw).float(), (place % gw).float()
    steps = (rows[:, None] - rows).abs() + (columns[:, None] - columns).abs()  # (N, N)
    beside, itself = steps == 1, steps == 0
    nearest = maps.masked_fill(itself, -torch.inf).argmax(dim=1)
    return NeighbourSimilarity(
        neighbours=maps[beside].double().mean().item(),
        others=maps[~(beside | itself)].double().mean().item(),
        nearest=beside[place, nearest].double().mean().item(),
        by_chance=beside.double().sum().item() / (count * (count - 1)),
    )
