"""Weights from a file into a model of another resolution: copied where they fit, resampled where they can be.

Two grids are compared as (rows, columns), never by their number of tokens: 2x8 is not 4x4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from vit_rs.checkpoints.io import Weights, read_weights
from vit_rs.exceptions import CheckpointError
from vit_rs.ops import resample_abs_pos_embed
from vit_rs.ops.conventions import GRID_CONVENTIONS

if TYPE_CHECKING:
    import os

    from torch import Tensor

    from vit_rs.models import VisionTransformer, ViTConfig

__all__ = ["LoadReport", "Resampling", "load_pretrained"]

_POS_EMBED = "pos_embed"
_HEAD = "head."


class Resampling(NamedTuple):
    """One resampled table: its key, the grids (rows, columns) it came from and went to, and how."""

    key: str
    from_grid: tuple[int, int]
    to_grid: tuple[int, int]
    convention: str


@dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did with each key; `str()` of it is meant to be read.

    Attributes:
        path: The file.
        format: What the file was recognised as.
        used: Keys copied as they were.
        resampled: Keys that changed their grid.
        dropped: Keys of the file that the model did not take.
        missing: Keys of the model that kept their own values.
    """

    path: str
    format: str
    used: tuple[str, ...]
    resampled: tuple[Resampling, ...]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.path} ({self.format}): {len(self.used)} tensors copied"]
        lines += [f"  resampled {key}: {_times(old)} -> {_times(new)}, {how}" for key, old, new, how in self.resampled]
        if self.dropped:
            lines.append(f"  dropped from the file: {_listed(self.dropped)}")
        if self.missing:
            lines.append(f"  left as they were in the model: {_listed(self.missing)}")
        return "\n".join(lines)


def load_pretrained(
    model: VisionTransformer,
    path: str | os.PathLike[str],
    *,
    img_size: int | tuple[int, int] | None = None,
    convention: str | None = None,
    head: Literal["keep", "reset"] = "keep",
    strict: bool = True,
) -> LoadReport:
    """Fill a model with the weights of a file, at the model's own resolution.

    Reads safetensors (ours, or any with timm's names) and state dicts of `torch.save`. The position embedding
    is resampled when the grid of the file differs from the model's. The file's grid is, in this order: that
    of its own configuration; `img_size` over the patch size; the square one, if its number of positions is a
    square and the model's grid does not have as many positions in another shape. The model is changed only
    after everything has been checked.

    Args:
        model: The model to fill; its grid is the one to arrive at.
        path: The file.
        img_size: The image size that the file's weights were trained at, where the file cannot say it.
        convention: How to resample, as in `vit_rs.resample_abs_pos_embed`; None is its default (timm's).
        head: "keep" takes the file's head, which must fit. "reset" drops it and leaves the model's own, as
            fine-tuning to other classes does.
        strict: Whether every key of the model must be in the file and the other way round. Without it they
            are listed in the report. Shapes must fit in any case.

    Returns:
        What happened to each key.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, does not fit (the message lists missing and unexpected keys, and
            shapes got and expected), or does not say its grid.
        ValueError: An argument is none of the values above.
    """
    if head not in ("keep", "reset"):
        raise ValueError(f"head must be 'keep' or 'reset', got {head!r}")
    if convention is not None and convention not in GRID_CONVENTIONS:
        names = ", ".join(map(repr, GRID_CONVENTIONS))
        raise ValueError(f"convention must be one of {names}, got {convention!r}")
    weights = read_weights(path)
    expected: dict[str, Tensor] = model.state_dict()
    dropped = [key for key in weights.tensors if key not in expected]
    missing = [key for key in expected if key not in weights.tensors]
    allowed_drops: list[str] = []
    if head == "reset":
        allowed_drops = [key for key in weights.tensors if key.startswith(_HEAD)]
        dropped = [key for key in dropped if not key.startswith(_HEAD)]
        missing = [key for key in missing if not key.startswith(_HEAD)]
    problems = []
    if strict and missing:
        problems.append(f"missing: {_listed(missing)}")
    if strict and dropped:
        problems.append(f"unexpected: {_listed(dropped)}")
    if not strict and len(missing) == len(expected):
        problems.append("no key of the model is in the file")

    if strict and weights.config is not None:
        # Equal shapes do not mean equal models: these two change the function and not one shape.
        for name in ("num_heads", "act"):
            got, want = getattr(weights.config, name), getattr(model.config, name)
            if got != want:
                problems.append(f"{name}: got {got}, expected {want}")
    skipped = {*dropped, *allowed_drops}
    taken = {key: tensor for key, tensor in weights.tensors.items() if key not in skipped}
    for key, tensor in taken.items():
        own = expected[key]
        axes = slice(None, None, 2) if key == _POS_EMBED and tensor.ndim == 3 else slice(None)
        if tensor.shape[axes] != own.shape[axes]:
            hint = " (head='reset' leaves the model's own head)" if key.startswith(_HEAD) else ""
            problems.append(f"{key}: got {tuple(tensor.shape)}, expected {tuple(own.shape)}{hint}")
        elif not tensor.is_floating_point():
            problems.append(f"{key}: got {tensor.dtype}, expected {own.dtype}")
    if problems:
        raise CheckpointError(f"{path} does not fit the model: {_listed(problems, separator='; ')}")

    resampled = []
    if _POS_EMBED in taken:
        config = model.config
        old = _source_grid(taken[_POS_EMBED], weights, config, img_size, str(path))
        if old != config.grid_size:
            taken[_POS_EMBED] = resample_abs_pos_embed(
                taken[_POS_EMBED],
                config.grid_size,
                old,
                num_prefix_tokens=model.num_prefix_tokens,
                convention=convention,
            )
            resampled.append(Resampling(_POS_EMBED, old, config.grid_size, convention or "timm"))
    model.load_state_dict(taken, strict=False)
    changed = {entry.key for entry in resampled}
    return LoadReport(
        path=str(path),
        format=weights.format,
        used=tuple(key for key in expected if key in taken and key not in changed),
        resampled=tuple(resampled),
        dropped=(*dropped, *allowed_drops),
        missing=tuple(key for key in expected if key not in taken),
    )


def _source_grid(
    pos_embed: Tensor, weights: Weights, config: ViTConfig, img_size: int | tuple[int, int] | None, path: str
) -> tuple[int, int]:
    """Return the grid of the file's position embedding (1, 1 + gh*gw, D), or ask for it by an error."""
    positions = max(pos_embed.shape[1] - 1, 0)
    told = weights.config.grid_size if weights.config is not None else None
    if img_size is not None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        P, Q = config.patch_hw
        if height % P or width % Q:
            raise ValueError(f"img_size {height}x{width} is not divisible by the patch size {P}x{Q}")
        asked = (height // P, width // Q)
        if told is not None and told != asked:
            raise CheckpointError(
                f"{path}: img_size {height}x{width} means a grid of {_times(asked)}, "
                f"but the file's own configuration says {_times(told)}"
            )
        told = asked
    if told is not None:
        if told[0] * told[1] != positions:
            raise CheckpointError(
                f"{path}: {_POS_EMBED} has {positions} positions beside the class token's, "
                f"a grid of {_times(told)} has {told[0] * told[1]}"
            )
        return told
    side = math.isqrt(positions)
    square_is_sure = positions != config.num_patches or config.grid_size == (side, side)
    if side * side == positions and positions and square_is_sure:
        return side, side
    raise CheckpointError(
        f"{path}: {_POS_EMBED} has {positions} positions beside the class token's, and the file does not say "
        f"their grid (the model's is {_times(config.grid_size)}): pass img_size=(height, width), the image "
        "size that these weights were trained at"
    )


def _times(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"


def _listed(items: list[str] | tuple[str, ...], most: int = 8, separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more
