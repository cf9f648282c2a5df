"""How a ViT knows where its patches are: the paper's encodings (appendix D.4), sin-cos tables, rotary angles.

Letters: B batch, T tokens, N patches (gh x gw of them), P prefix tokens, D width, H heads, d = D/H, L tables
(one for every layer, or one).
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_rs.ops import resample_abs_pos_embed
from vit_rs.ops._library import eager, exporting, known

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vit_rs.models.vit import VisionTransformer, ViTConfig

__all__ = [
    "RelativeKeys",
    "init_tables",
    "position_table",
    "register_tables",
    "resample_relative",
    "resampled_state",
    "rotary_table",
    "rotate",
    "set_tables",
    "sincos_2d",
]

# Deviation of fresh learned tables: vision_transformer's (the paper's).
_STD = 0.02
_SINCOS = "sincos2d_"
# Values of the largest rotary table that is kept: 128 x 128 patches, heads of 64.
_KEPT_VALUES = 2**21


def register_tables(model: VisionTransformer, config: ViTConfig) -> None:
    """Give a model the parameters, or the buffer, of its position encoding; `init_tables` fills them.

    "1d": `pos_embed` (L, P + N, D). Sin-cos: a buffer of the same name and shape, for it is saved but never trained.
    "2d": `pos_embed_x` (L, gw, D/2), `pos_embed_y` (L, gh, D/2) and `pos_embed_prefix` (L, P, D), the class token's
    and the others' own rows. "relative" has a table in every block (`RelativeKeys`), "none" nothing.
    """
    tables = config.depth if config.pos_placement == "every" else 1
    rows, D = config.embedded_prefix_tokens, config.embed_dim
    if config.pos_embed == "1d":
        model.pos_embed = nn.Parameter(torch.empty(tables, rows + config.num_patches, D))
    elif config.pos_embed.startswith(_SINCOS):
        model.register_buffer("pos_embed", torch.empty(tables, rows + config.num_patches, D))
    else:
        model.pos_embed = None
    if config.pos_embed == "2d":
        gh, gw = config.grid_size
        model.pos_embed_x = nn.Parameter(torch.empty(tables, gw, D // 2))
        model.pos_embed_y = nn.Parameter(torch.empty(tables, gh, D // 2))
        model.pos_embed_prefix = nn.Parameter(torch.empty(tables, rows, D)) if rows else None


def init_tables(model: VisionTransformer, config: ViTConfig) -> None:
    """Fill what `register_tables` made: learned tables N(0, 0.02), fixed ones with their numbers, prefix rows 0."""
    tables = [model.pos_embed]
    if config.pos_embed == "2d":
        tables = [model.pos_embed_x, model.pos_embed_y, model.pos_embed_prefix]
    for table in tables:
        if table is not None and not config.pos_embed.startswith(_SINCOS):
            nn.init.normal_(table, std=_STD)
        elif table is not None:
            fixed = sincos_2d(config.grid_size, config.embed_dim, config.pos_embed.removeprefix(_SINCOS))
            with torch.no_grad():
                table.copy_(F.pad(fixed, (0, 0, config.embedded_prefix_tokens, 0)))
    for module in model.modules():
        if isinstance(module, RelativeKeys):
            module.reset_parameters()


def set_tables(model: VisionTransformer, tensors: Mapping[str, Tensor], grid: tuple[int, int]) -> None:
    """Put tables of another grid in place of a model's own, by their names; `requires_grad` stays.

    Args:
        model: Model with an encoding.
        tensors: Tables of the new grid, of `resampled_state`.
        grid: That grid.
    """
    for key, table in tensors.items():
        owner, _, name = key.rpartition(".")
        module = model.get_submodule(owner)
        current = getattr(module, name)
        trained = isinstance(current, nn.Parameter)
        setattr(module, name, nn.Parameter(table, requires_grad=current.requires_grad) if trained else table)
    for module in model.modules():
        if isinstance(module, RelativeKeys):
            module.grid_size = grid


def position_table(model: VisionTransformer, config: ViTConfig, grid: tuple[int, int]) -> Tensor | None:
    """Return what is added to the tokens, (L, P + N, D), or (L, N, D) with `no_embed_class`; None adds nothing.

    For another grid than the model's, tables are resampled by `config.pos_convention`: "1d" and sin-cos as a grid,
    "2d" each table along its own axis. For the model's own grid they are taken as they are.
    """
    if config.pos_embed == "2d":
        gh, gw = config.grid_size
        x = _resample_axis(model.pos_embed_x, grid[1], gw, config.pos_convention)
        y = _resample_axis(model.pos_embed_y, grid[0], gh, config.pos_convention)
        shape = (x.shape[0], grid[0], grid[1], -1)
        table = torch.cat((x.unsqueeze(1).expand(shape), y.unsqueeze(2).expand(shape)), dim=-1).flatten(1, 2)
        prefix = model.pos_embed_prefix
        return table if prefix is None else torch.cat((prefix, table), dim=1)
    return None if model.pos_embed is None else _resample_grid(model.pos_embed, grid, config)


def _resample_grid(table: Tensor, grid: tuple[int, int], config: ViTConfig) -> Tensor:
    if _same(grid, config.grid_size):
        return table
    return resample_abs_pos_embed(
        table,
        grid,
        config.grid_size,
        num_prefix_tokens=config.embedded_prefix_tokens,
        convention=config.pos_convention,
    )


def _resample_axis(table: Tensor, new: int, old: int, convention: str) -> Tensor:
    """Resample a table of one axis, (L, old, D/2) -> (L, new, D/2)."""
    if _same((1, new), (1, old)):
        return table
    return resample_abs_pos_embed(table, (1, new), (1, old), num_prefix_tokens=0, convention=convention)


def _same(grid: tuple[int, int], native: tuple[int, int]) -> bool:
    """Tell whether nothing is to be resampled; an exported graph's open sizes are not asked, which would close them."""
    return not (exporting() and not all(map(known, grid))) and grid == native


def sincos_2d(grid: tuple[int, int], dim: int, variant: str, temperature: float = 10000.0) -> Tensor:
    """Return a fixed table of sines and cosines of the patches' columns x and rows y.

    The three published ones differ, with K = D/4, k = 0 .. K-1:

    - "bv": [sin x w, cos x w, sin y w, cos y w], w_k = T^-(k / (K - 1)).
    - "mae": the same with w_k = T^-(k / K).
    - "moco": [sin y w, cos y w, sin x w, cos x w], w_k = T^-(k / K): what it names w runs along the rows. (On grids
      that are not square its own code gives the patches each other's places; here they keep theirs.)

    Args:
        grid: Patches' (rows, columns).
        dim: Width D, a multiple of 4.
        variant: "bv", "moco" or "mae".
        temperature: T.

    Returns:
        (N, D), float64, on the CPU; row by row.

    Raises:
        ValueError: The variant is none of these, or D is no multiple of 4.

    Source: big_vision, models/vit.py, `posemb_sincos_2d`; the papers of MoCo v3 (arXiv 2104.02057) and MAE
    (arXiv 2111.06377), whose tables it gives.
    """
    if variant not in ("bv", "moco", "mae"):
        raise ValueError(f"variant must be one of bv, moco, mae, got {variant!r}")
    if dim % 4 or dim < 4:
        raise ValueError(f"dim must be a multiple of 4, got {dim}")
    gh, gw = grid
    steps = dim // 4
    last = max(steps - 1, 1) if variant == "bv" else steps
    cpu = torch.device("cpu")
    # By its definition 1 / T^e, rather than T^-e: the originals' rounding.
    omega = 1.0 / temperature ** (torch.arange(steps, dtype=torch.float64, device=cpu) / last)
    y, x = (
        torch.cat((angles.sin(), angles.cos()), dim=1)  # (g, D/2)
        for angles in (torch.arange(side, dtype=torch.float64, device=cpu)[:, None] * omega for side in (gh, gw))
    )
    y, x = y[:, None].expand(gh, gw, -1), x[None].expand(gh, gw, -1)
    return torch.cat((y, x) if variant == "moco" else (x, y), dim=-1).flatten(0, 1)  # (N, D)


def rotary_table(
    grid: tuple[int, int], head_dim: int, *, theta: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return cosines and sines of the patches' angles, (2, N, d), which `rotate` takes.

    A patch's centre has a coordinate c in [-1, 1] along each axis; its angles are 2 pi c w_k with
    w_k = theta^-(4k/d), k = 0 .. d/4 - 1. A row is [rows' angles, columns' angles] twice.

    Computed in float64, and rounded once. Without a compiler the table, if it is not very large, is kept for the next
    call: do not change it.

    Args:
        grid: Patches' (rows, columns); a compiler's symbols too.
        head_dim: Width d of a head, a multiple of 4.
        theta: Base of the frequencies.
        dtype: Floating dtype of the result.
        device: Device of the result.

    Source: DINOv3, arXiv 2508.10104, section 3.2, without its random shifts and scales.
    """
    if eager():
        small = 2 * grid[0] * grid[1] * head_dim <= _KEPT_VALUES
        return (_kept_rotary_table if small else _exact_rotary_table)(grid, head_dim, theta, dtype, device)
    # Not every device has float64.
    exact = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
    return _rotary_table(grid, head_dim, theta, exact, device).to(dtype)


def _exact_rotary_table(
    grid: tuple[int, int], head_dim: int, theta: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    with torch.inference_mode(mode=False):  # or no later backward pass could use it
        return _rotary_table(grid, head_dim, theta, torch.float64, torch.device("cpu")).to(dtype).to(device)


_kept_rotary_table = functools.lru_cache(maxsize=32)(_exact_rotary_table)


def _rotary_table(
    grid: tuple[int, int], head_dim: int, theta: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    exponents = torch.arange(head_dim // 4, dtype=dtype, device=device) * (4.0 / head_dim)
    omega = (2.0 * math.pi) / theta**exponents
    gh, gw = grid
    axes = []
    for side in (gh, gw):
        centre = (torch.arange(side, dtype=dtype, device=device) + 0.5) * (2.0 / side) - 1.0
        angles = centre[:, None] * omega
        axes.append(torch.stack((angles.cos(), angles.sin())))  # (2, g, d/4)
    y, x = axes
    half = torch.cat((y[:, :, None].expand(-1, gh, gw, -1), x[:, None].expand(-1, gh, gw, -1)), dim=-1)
    return torch.cat((half, half), dim=-1).flatten(1, 2)  # (2, N, d)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the patches' queries or keys (B, H, T, d); the tokens before the N patches stay.

    Each pair of channels (c, c + d/2) turns by its angle.

    Args:
        x: Queries or keys, the patches last.
        rotation: Of `rotary_table`, (2, N, d).
    """
    cos, sin = rotation.unbind(0)  # (N, d) each
    prefix = x.shape[2] - cos.shape[0]
    patches = x[:, :, prefix:]
    first, second = patches.chunk(2, dim=-1)
    turned = (patches * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
    return torch.cat((x[:, :, :prefix], turned), dim=2) if prefix else turned


class RelativeKeys(nn.Module):
    """The paper's relative encoding: q . r(offset) is added to q . k, before the softmax.

    A learned vector r for each difference p_q - p_k of places in raster order, -(N - 1) .. N - 1, one table for all
    heads of a layer. The paper leaves open what a class token's offset is: here pairs with a token before the patches
    get nothing, so that the last layer's table learns only where the patches' tokens are read.

    On another grid the table is resampled (`resample_relative`).

    Args:
        grid: The patches' (rows, columns).
        head_dim: Width d of a head.
        convention: How the table is resampled for another grid.

    Source: arXiv 2010.11929, appendix D.4 ("relative positional embeddings").
    """

    def __init__(self, grid: tuple[int, int], head_dim: int, convention: str = "timm") -> None:
        super().__init__()
        self.grid_size = grid
        self.convention = convention
        self.table = nn.Parameter(torch.empty(2 * grid[0] * grid[1] - 1, head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table: N(0, 0.02)."""
        nn.init.normal_(self.table, std=_STD)

    def forward(self, q: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, H, T, d) -> what is added to the scaled logits, (B, H, T, T).

        Args:
            q: Queries, not scaled; the patches last.
            grid: The patches' (rows, columns).
        """
        B, H, T, d = q.shape
        N = grid[0] * grid[1]
        prefix = T - N
        table = resample_relative(self.table, grid, self.grid_size, self.convention)
        # Key j of query i wants offset i - j: row 2N-2 - (N-1 - i + j) of the table. Of the flipped one, padded to
        # rows of 2N, it lies at i * 2N + (N-1 - i + j) = (N-1) + i * (2N-1) + j: a view, and no (N, N, d) gather.
        table = F.pad(table.flip(0), (0, 0, 0, 1)) * d**-0.5  # (2N, d)
        logits = (q[:, :, prefix:] @ table.to(q.dtype).T).flatten(2)  # (B, H, N * 2N)
        logits = logits[:, :, N - 1 : N - 1 + N * (2 * N - 1)].reshape(B, H, N, 2 * N - 1)[..., :N]
        return F.pad(logits, (prefix, 0, prefix, 0))

    def extra_repr(self) -> str:
        """Show the grid in the module's repr."""
        return f"grid_size={self.grid_size}, convention={self.convention!r}"


def resample_relative(table: Tensor, new: tuple[int, int], old: tuple[int, int], convention: str) -> Tensor:
    """Resample a table of relative offsets to another grid, (2N - 1, d) -> (2N' - 1, d).

    Ours; nobody published one. Raster offsets p_q - p_k are spread to (dy, dx) with p_q - p_k = dy gw + dx, a grid of
    (2gh - 1, 2gw - 1), which is resampled as any other. Of the two (dy, dx) that share a raster offset of the new
    grid, the one with the smaller |dx| gives its vector (of equal ones, that with the smaller |dy|).
    """
    if _same(new, old):
        return table
    (oh, ow), (nh, nw) = old, new
    # Offset (dy, dx) of the old grid stands in row (dy + oh-1) * ow + (dx + ow-1): windows of 2ow-1 rows, ow apart.
    spread = table.unfold(0, 2 * ow - 1, ow).permute(0, 2, 1)  # (2oh-1, 2ow-1, d)
    spread = resample_abs_pos_embed(
        spread.flatten(0, 1)[None],
        (2 * nh - 1, 2 * nw - 1),
        (2 * oh - 1, 2 * ow - 1),
        num_prefix_tokens=0,
        convention=convention,
    )[0]
    # Offsets 0 .. N'-1, as (dy, dx) with dx >= 0 or, wrapped, < 0; the negative ones mirror them.
    dy, dx = torch.arange(nh, device=table.device)[:, None], torch.arange(nw, device=table.device)
    wraps = ((2 * dx > nw) & (dy < nh - 1)).long()  # (nh, nw)
    place = ((dy + wraps) * (2 * nw - 1) + dx - nw * wraps).flatten()
    centre = (nh - 1) * (2 * nw - 1) + nw - 1
    return spread[centre + torch.cat((-place[1:].flip(0), place))]


def resampled_state(
    tensors: Mapping[str, Tensor], old: ViTConfig, new: ViTConfig, convention: str | None = None
) -> tuple[dict[str, Tensor], list[tuple[str, tuple[int, int], tuple[int, int]]]]:
    """Return a state dictionary of our own names whose position tables fit another configuration's grid.

    Args:
        tensors: Tensors by their names in a model of `old`; those that are no position tables come back as they are.
        old: Configuration that the tables fit.
        new: Configuration of the grid that they shall fit; the encodings must be the same.
        convention: How tables are resampled; None is `new.pos_convention`.

    Returns:
        The tensors, and for each that was resampled its name, its old and its new grid: (rows, columns), for the tables
        of "2d" (1, columns) and (rows, 1).

    Raises:
        ValueError: The configurations have other encodings, or a table does not fit `old`; names table and shapes.
    """
    for name in ("pos_embed", "embedded_prefix_tokens", "embed_dim"):
        if getattr(old, name) != getattr(new, name):
            raise ValueError(f"{name} must be the same in both, got {getattr(old, name)!r} and {getattr(new, name)!r}")
    convention = new.pos_convention if convention is None else convention
    (oh, ow), (nh, nw) = old.grid_size, new.grid_size
    result, resampled = dict(tensors), []
    for key, table in tensors.items():
        if key == "pos_embed":
            rows = old.embedded_prefix_tokens
            grids, expected = ((oh, ow), (nh, nw)), (rows + oh * ow, old.embed_dim)
        elif key == "pos_embed_x":
            grids, rows, expected = ((1, ow), (1, nw)), 0, (ow, old.embed_dim // 2)
        elif key == "pos_embed_y":
            grids, rows, expected = ((oh, 1), (nh, 1)), 0, (oh, old.embed_dim // 2)
        elif key.endswith(".attn.relative.table"):
            grids, rows, expected = ((oh, ow), (nh, nw)), 0, (2 * oh * ow - 1, old.embed_dim // old.num_heads)
        else:
            continue
        if tuple(table.shape[-2:]) != expected or table.ndim != (2 if ".relative." in key else 3):
            wanted = ", ".join(map(str, expected))
            raise ValueError(f"{key} must be (..., {wanted}) on a grid of {oh}x{ow}, got {tuple(table.shape)}")
        if grids[0] == grids[1]:
            continue
        if ".relative." in key:
            result[key] = resample_relative(table, grids[1], grids[0], convention)
        else:
            result[key] = resample_abs_pos_embed(
                table, grids[1], grids[0], num_prefix_tokens=rows, convention=convention
            )
        resampled.append((key, *grids))
    return result, resampled
