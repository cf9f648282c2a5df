"""What the rows of a position table are: those of some prefix tokens, then the grid's, row by row.

Grids are compared as (rows, columns), never by their number of tokens: 2x8 is not 4x4. Where a file does not say
which grid its table has, and more than one is possible, nothing is guessed: an error asks.

Letters: L tables (1, or one for each layer), D width.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, NamedTuple

import torch

from vit_rs.exceptions import CheckpointError
from vit_rs.ops import resample_abs_pos_embed, resample_patch_embed
from vit_rs.ops.conventions import PATCH_CONVENTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

__all__ = [
    "Arranged",
    "TableRows",
    "Token",
    "arranged",
    "check_patch",
    "computable",
    "grid_of_image",
    "patch_convention",
    "prefix_tokens",
    "require_finite",
    "resampled_kernel",
    "resampled_rows",
    "size_pair",
    "table_rows",
    "times",
]

# Beyond any image, and before the memory for its table is asked for: 1024 x 1024 patches.
_MOST_POSITIONS = 2**20
# FlexiViT's resize solves for a matrix of new by old positions of the kernel.
_MOST_PATCH_POSITIONS = 2**14
_TOKEN_KEYS = ("cls_token", "dist_token", "reg_token")


class Token(NamedTuple):
    """A token before the patches: its key among ours, and which one of that tensor (registers are several)."""

    key: str
    number: int


class TableRows(NamedTuple):
    """What the rows of a table are: one for each of these tokens, then those of the grid (rows, columns)."""

    prefix: tuple[Token, ...]
    grid: tuple[int, int]


def prefix_tokens(shapes: Mapping[str, Sequence[int]]) -> tuple[Token, ...]:
    """Return the tokens before the patches, in a model's order, from the shapes of its tensors by our keys."""
    return tuple(
        Token(key, number)
        for key in _TOKEN_KEYS
        if key in shapes
        for number in range(shapes[key][1] if len(shapes[key]) == 3 else 1)
    )


def table_rows(
    count: int,
    tokens: Sequence[Token],
    *,
    standard: int,
    told: tuple[int, int] | None = None,
    embedded: int | None = None,
    target: tuple[int, int] | None = None,
    where: str,
    ask: str,
) -> TableRows:
    """Find out what the rows of a table are.

    Args:
        count: The table's rows.
        tokens: The tokens before the patches of the model in the file.
        standard: How many of them have a row in the project's own files.
        told: The grid, where the file's configuration or the caller says it.
        embedded: How many tokens have a row in the model that is filled, if there is one.
        target: The grid to arrive at. A square one with as many positions is not taken for granted.
        where: Start of an error's message: file and key.
        ask: What to pass if the grid is not known.

    Raises:
        CheckpointError: The rows cannot be those of the grid told, or nothing says which grid it is.
    """
    tokens = tuple(tokens)
    registers = sum(token.key == "reg_token" for token in tokens)
    classes = sum(token.key == "cls_token" for token in tokens)
    possible = sorted({0, classes, len(tokens) - registers, len(tokens)})
    if told is not None:
        prefix = count - told[0] * told[1]
        if prefix not in possible:
            several = " or ".join(map(str, possible))
            raise CheckpointError(
                f"{where} has {count} rows; a grid of {times(told)} has {told[0] * told[1]}, and before it there may "
                f"be {several} of the class token and the like, not {prefix}"
            )
        return TableRows(tokens[:prefix], told)
    squares = {prefix for prefix in possible if _is_square(count - prefix)}
    expected = squares & {standard, standard if embedded is None else embedded}
    if len(squares) == 1 and expected:
        [prefix] = expected
        side = math.isqrt(count - prefix)
        if target is None or target == (side, side) or target[0] * target[1] != side * side:
            return TableRows(tokens[:prefix], (side, side))
    beside = f", {standard} of them before the grid's in files of this kind" if standard else ""
    arrive = "" if target is None else f" (the one to arrive at is {times(target)})"
    raise CheckpointError(f"{where} has {count} rows{beside}, and nothing says which grid they are of{arrive}: {ask}")


def grid_of_image(
    img_size: int | Sequence[int], patch: tuple[int, int], stride: tuple[int, int] = (1, 1), name: str = "img_size"
) -> tuple[int, int]:
    """Return the grid (rows, columns) of an image.

    Args:
        img_size: Image side, or (height, width), in pixels.
        patch: Patch (height, width), in positions of what the patches are cut from.
        stride: Pixels for each such position, along each axis: 1 for images, more where a ResNet, which rounds up,
            stands before.
        name: What the caller calls `img_size`.

    Raises:
        ValueError: The size is not one or two positive integers, not divisible, or of more patches than any image.
    """
    height, width = size_pair(img_size, name)
    rows, columns = -(-height // stride[0]), -(-width // stride[1])
    if rows % patch[0] or columns % patch[1]:
        behind = f" (of a feature map of {rows}x{columns})" if stride != (1, 1) else ""
        raise ValueError(f"{name} {height}x{width} is not divisible by the patch size {times(patch)}{behind}")
    grid = rows // patch[0], columns // patch[1]
    if grid[0] * grid[1] > _MOST_POSITIONS:
        raise ValueError(
            f"{name} {height}x{width} means {times(grid)} patches of {times(patch)}, expected at most {_MOST_POSITIONS}"
        )
    return grid


def check_patch(patch: tuple[int, int], name: str = "patch_size") -> None:
    """Raise a ValueError if a patch is greater than any that a kernel is resampled to."""
    if patch[0] * patch[1] > _MOST_PATCH_POSITIONS:
        raise ValueError(
            f"{name} {times(patch)} has {patch[0] * patch[1]} pixels, expected at most {_MOST_PATCH_POSITIONS}"
        )


class Arranged(NamedTuple):
    """A table with the rows that are wanted before the grid.

    Attributes:
        table: (L, wanted + grid, D).
        tokens: The tokens that took a row in, by key; those that did not are left out.
        merged: Tokens whose row was added to the token itself.
        filled: Tokens whose new row is zero.
        dropped: Tokens whose row has no place.
    """

    table: Tensor
    tokens: dict[str, Tensor]
    merged: tuple[str, ...]
    filled: tuple[str, ...]
    dropped: tuple[str, ...]


def arranged(
    table: Tensor,
    have: Sequence[Token],
    want: Sequence[Token],
    tokens: Mapping[str, Tensor],
    *,
    placement: str = "stem",
) -> Arranged:
    """Give a table the rows that a model wants before the grid, without a change of what the model computes.

    A row that the table lacks is zero. A row whose token should have none is added to the token, which is what the
    model does with it (in the stem; what is added at every layer's input is more than one addition); one of zeros is
    let go.

    Args:
        table: (L, rows, D), L of 1 where a row must be merged.
        have: Tokens of the table's first rows.
        want: Tokens that shall have a row, in this order.
        tokens: The tokens themselves, (1, count, D) by key.
        placement: Where the model adds the table, its `pos_placement`.

    Raises:
        ValueError: A row that is added at every layer's input would have to be merged.
    """
    have, want = tuple(have), tuple(want)
    if have == want:
        return Arranged(table, {}, (), (), ())
    zero = table.new_zeros(table.shape[0], 1, table.shape[2])
    rows = [table[:, have.index(token), None] if token in have else zero for token in want]
    changed: dict[str, Tensor] = {}
    dropped = []
    for position, token in enumerate(have):
        if token in want or not table[:, position].any():
            continue
        if token.key not in tokens:
            dropped.append(token)
            continue
        if table.shape[0] != 1:
            raise ValueError(f"a row of {table.shape[0]} tables cannot be added to {token.key}")
        if placement != "stem":
            raise ValueError(
                f"its row for {token.key} is added at every layer's input (pos_placement={placement!r}), which the "
                "token itself cannot take in"
            )
        if token.key not in changed:
            changed[token.key] = tokens[token.key].clone()
        changed[token.key][:, token.number] += table[:, position]
    return Arranged(
        torch.cat((*rows, table[:, len(have) :]), dim=1),
        changed,
        tuple(changed),
        _keys(token for token in want if token not in have),
        _keys(dropped),
    )


def resampled_rows(table: Tensor, rows: TableRows, grid: tuple[int, int], convention: str) -> Tensor:
    """Return a table (L, rows, D) at another grid; the very table where the grid is the same."""
    if grid == rows.grid:
        return table
    wide = table.float() if table.dtype.itemsize < 2 else table  # nothing is computed in float8
    new = resample_abs_pos_embed(wide, grid, rows.grid, num_prefix_tokens=len(rows.prefix), convention=convention)
    return new.to(table.dtype)


def resampled_kernel(weight: Tensor, patch: tuple[int, int], convention: str) -> Tensor:
    """Return a patch kernel (D, C, P, Q) at another patch size, by the way that goes with a grid's convention."""
    wide = weight.float() if weight.dtype.itemsize < 2 else weight
    return resample_patch_embed(wide, patch, convention=patch_convention(convention)).to(weight.dtype)


def patch_convention(convention: str) -> str:
    """Return how patch kernels are resampled where tables are by this convention."""
    if convention in PATCH_CONVENTIONS:
        return convention
    return "flexi" if convention in ("jax", "siglip2") else "timm"


def computable(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor in a dtype to compute in: at least float32, or its own or `dtype`, whichever is wider."""
    wide = torch.float32 if tensor.dtype.itemsize < 2 else tensor.dtype  # float8 promotes to nothing
    wide = torch.promote_types(wide, torch.float32)
    return tensor.to(wide if dtype is None else torch.promote_types(wide, dtype))


def require_finite(tensor: Tensor, where: str) -> None:
    """Raise a CheckpointError that starts with `where` if a value is NaN or infinite."""
    # A sum is a quarter of the price, and misses neither; it may overflow where all values are finite.
    if not tensor.is_floating_point():
        return
    tensor = tensor.float() if tensor.dtype.itemsize < 2 else tensor  # nothing is computed in float8
    if math.isfinite(tensor.sum().item()):
        return
    finite = torch.isfinite(tensor)
    if not finite.all():
        count = int((~finite).sum())
        raise CheckpointError(f"{where}: {count} of {tensor.numel()} values are NaN or infinite")


def size_pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """Return one size, or (height, width), as a pair.

    Raises:
        ValueError: It is not one or two positive integers.
    """
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    try:
        pair = tuple(operator.index(side) for side in sides if not isinstance(side, bool))
    except TypeError:
        pair = ()
    if len(sides) != 2 or len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} must be one positive integer or (height, width), got {value!r}")
    return pair[0], pair[1]


def times(size: Sequence[int]) -> str:
    """Write a size as "14x14"."""
    return "x".join(map(str, size))


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _keys(tokens: Iterable[Token]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(token.key for token in tokens))
