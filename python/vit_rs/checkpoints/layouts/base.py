"""How a project names and shapes a ViT's weights: one list of rules for a layout, read in both directions.

Our own names are timm's, so a layout says for each of our keys which of theirs make it, and how their axes lie.
Rules are made for a model's anatomy (its depth, the units of its stages) by plain Python; nothing is guessed
from tensors' values.

Letters: D width, H heads, d = D/H, P x Q patch, C channels.
"""

from __future__ import annotations

import abc
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vit_rs.exceptions import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from vit_rs.checkpoints.files import TensorInfo

__all__ = [
    "CONV",
    "COPY",
    "HEADS_BIAS",
    "HEADS_IN",
    "HEADS_OUT",
    "SQUEEZED",
    "TRANSPOSED",
    "Anatomy",
    "Form",
    "Layout",
    "Place",
    "Rule",
    "count_indices",
    "own_anatomy",
    "plain_vit_problems",
    "weight_and_bias",
]


@dataclass(frozen=True)
class Form:
    """A reversible change of axes between their layout and ours.

    Attributes:
        name: What the report calls it; empty for a plain copy.
        read: Their tensor -> ours.
        write: (our tensor, heads H) -> theirs.
        heads_axis: The axis of ours that holds all heads, where theirs has an axis for them; None elsewhere, and
            `write` does not look at H.
    """

    name: str
    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, int], Tensor]
    heads_axis: int | None = None


def _transpose(matrix: Tensor) -> Tensor:
    # Tensor.T warns of other numbers of axes, and goes on.
    if matrix.ndim != 2:
        raise ValueError(f"expected two axes, got shape {tuple(matrix.shape)}")
    return matrix.T


def _split_in(weight: Tensor, heads: int) -> Tensor:
    return _transpose(weight).reshape(weight.shape[1], heads, -1)  # (D, H, d)


def _split_out(weight: Tensor, heads: int) -> Tensor:
    return _transpose(weight).reshape(heads, -1, weight.shape[0])  # (H, d, D)


COPY = Form("", lambda x: x, lambda x, _: x)
# Dense kernels of flax: (in, out).
TRANSPOSED = Form("transposed", _transpose, lambda x, _: _transpose(x))
# Convolution kernels of flax: (height, width, in, out).
CONV = Form("HWIO to OIHW", lambda x: x.permute(3, 2, 0, 1), lambda x, _: x.permute(2, 3, 1, 0))
# Queries, keys, values of flax's attention: kernel (D, H, d), bias (H, d); its output: kernel (H, d, D).
HEADS_IN = Form("heads joined, transposed", lambda x: _transpose(x.flatten(1)), _split_in, heads_axis=0)
HEADS_BIAS = Form("heads joined", lambda x: x.flatten(), lambda x, heads: x.reshape(heads, -1), heads_axis=0)
HEADS_OUT = Form("heads joined, transposed", lambda x: _transpose(x.flatten(0, 1)), _split_out, heads_axis=1)
# Group norms of some files: (1, 1, 1, C).
SQUEEZED = Form("squeezed", lambda x: x.flatten(), lambda x, _: x)


@dataclass(frozen=True)
class Rule:
    """One tensor of ours, and what makes it.

    Attributes:
        ours: Our key.
        theirs: Their keys; several are joined along our first axis, in this order (queries, keys, values).
        form: What is done to each of theirs before they are joined.
        zeros: Which of `theirs` a file may lack, if it has another: zeros then (DINOv3's keys have no bias).
    """

    ours: str
    theirs: tuple[str, ...]
    form: Form = COPY
    zeros: tuple[int, ...] = ()


def weight_and_bias(ours: str, *theirs: str, form: Form = COPY, zeros: tuple[int, ...] = ()) -> tuple[Rule, Rule]:
    """Give the rules of a module's weight and bias, whose names end so on both sides.

    Args:
        ours: Our module.
        *theirs: Their modules, joined in this order.
        form: What is done to the weights; biases are copied.
        zeros: Which of their biases a file may lack.
    """
    return (
        Rule(f"{ours}.weight", tuple(f"{name}.weight" for name in theirs), form),
        Rule(f"{ours}.bias", tuple(f"{name}.bias" for name in theirs), zeros=zeros),
    )


class Anatomy(NamedTuple):
    """What rules are made for.

    Attributes:
        depth: Blocks of the encoder.
        stages: Units in each stage of a ResNet.
        gated: Whether the MLPs are gated (SwiGLU).
        key_bias: Whether a bias of the keys, where the file has one, takes part.
    """

    depth: int
    stages: tuple[int, ...] = ()
    gated: bool = False
    key_bias: bool = True


class Place(NamedTuple):
    """Where a tensor is: its key, and its layer, the index on the first axis, where all layers share one array."""

    key: str
    layer: int | None = None


class Layout(abc.ABC):
    """A project's names.

    Attributes:
        name: What the report calls it, and what overrides the recognition: "hf-vit".
        convention: How the project resamples position tables, a name of `GRID_CONVENTIONS`.
        anchor: A key that every model of this layout has. What stands before it in a file (a dictionary's name, a
            module's) is the section that holds the model.
        wrappers: Modules that may stand before the anchor, while other parts of the model, its head, stand beside
            them ("vit.", "classifier.weight"). A section starts before them, and its keys have lost them.
        aliases: (pattern, replacement) of names from other versions of the project; applied to every key, in order,
            so that rules know one spelling.
    """

    name: str
    convention: str
    anchor: str
    wrappers: tuple[str, ...] = ()
    aliases: tuple[tuple[re.Pattern[str], str], ...] = ()

    @abc.abstractmethod
    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """Whether these keys, taken from behind a section's prefix, are of this layout."""

    def views(self, tensors: Mapping[str, TensorInfo]) -> dict[str, Place]:
        """Give the keys that all other methods see, and where each is: `aliases` applied.

        A layout that keeps all layers in one array gives one key for every layer, and the layer's index. Of two keys
        that would be the same, the second keeps its own name.
        """
        if not self.aliases:
            return {key: Place(key) for key in tensors}
        found: dict[str, Place] = {}
        for key in tensors:
            name = key
            for pattern, replacement in self.aliases:
                name = pattern.sub(replacement, name)
            found[key if name in found or (name != key and name in tensors) else name] = Place(key)
        return found

    @abc.abstractmethod
    def anatomy(self, tensors: Mapping[str, TensorInfo]) -> Anatomy:
        """Count blocks and units."""

    @abc.abstractmethod
    def rules(self, anatomy: Anatomy) -> Iterable[Rule]:
        """Give every rule that a model of this anatomy may need; keys that a file lacks are skipped."""

    def ignored(self, key: str) -> str | None:
        """Why a key is no part of the model (a decoder's, a projector's); None for what should have a rule."""
        del key
        return None

    def optional(self, ours: str) -> str | None:
        """Why a model may do without a tensor of ours that the file makes (a pooler); None for what it must have."""
        del ours
        return None

    def refused(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Say what of our tensors this layout cannot hold although it has names for them; empty if it can."""
        del tensors
        return []

    def wrapped(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give tensors under this layout's names the wrapper that the project's own files have."""
        return tensors

    def prefix_rows(self, tensors: Mapping[str, TensorInfo]) -> int:
        """Rows of the position table before those of the grid, as the project's own models have them."""
        del tensors
        return 1

    def more_tables(self, tensors: Mapping[str, TensorInfo]) -> Iterable[str]:
        """Keys of further tables over the same grid, with the same rows before it (MAE's decoder's)."""
        del tensors
        return ()

    def patch_pixels(self, tensors: Mapping[str, TensorInfo], kernel: tuple[int, int]) -> tuple[int, int]:
        """Pixels (height, width) for each token, given the patch kernel's: more where a ResNet stands before it."""
        del tensors
        return kernel


def count_indices(keys: Collection[str], pattern: str) -> int:
    """Return one more than the greatest index that a pattern's first group finds in keys.

    An index that is not below the number of keys with one is not believed: no file makes us write a billion rules.
    """
    found = re.compile(pattern)
    return _count([int(match[1]) for key in keys if (match := found.match(key)) and len(match[1]) < 9])


def _count(indices: list[int]) -> int:
    return max((index + 1 for index in indices if index < len(indices)), default=0)


def own_anatomy(shapes: Mapping[str, tuple[int, ...]]) -> Anatomy:
    """Count what our own tensors are made for: key -> shape."""
    unit = re.compile(r"(?:patch_embed\.backbone\.)?stages\.([0-9]{1,8})\.blocks\.([0-9]{1,8})\.")
    units: dict[int, list[int]] = {}
    for match in filter(None, map(unit.match, shapes)):
        units.setdefault(int(match[1]), []).append(int(match[2]))
    stages = _count([stage for stage, found in units.items() for _ in found])
    up, down = shapes.get("blocks.0.mlp.fc1.weight", (0, 0)), shapes.get("blocks.0.mlp.fc2.weight", (0, 0))
    return Anatomy(
        depth=count_indices(shapes.keys(), r"blocks\.([0-9]+)\."),
        stages=tuple(_count(units.get(stage, [])) for stage in range(stages)),
        gated=len(up) == len(down) == 2 and up[0] == 2 * down[1] > 0,
    )


def plain_vit_problems(tensors: Mapping[str, Tensor], *, gated_mlp: bool = False) -> list[str]:
    """Say what keeps our tensors from being a ViT with a class token and one position table.

    Args:
        tensors: A model's state dict.
        gated_mlp: Whether its MLPs may be gated.
    """
    problems = [f"{key} is missing" for key in ("cls_token", "pos_embed") if key not in tensors]
    table = tensors.get("pos_embed")
    if table is not None and table.ndim == 3 and table.shape[0] > 1:
        problems.append(f"pos_embed: got {table.shape[0]} tables, expected one")
    if not gated_mlp and own_anatomy({key: tuple(tensor.shape) for key, tensor in tensors.items()}).gated:
        problems.append("blocks.0.mlp: got a gated MLP, expected a plain one")
    return problems


def joined(parts: list[Tensor]) -> Tensor:
    """Join what makes one tensor of ours."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def check_heads(key: str, width: int, heads: int | None) -> int:
    """Return the number of heads to split a tensor by.

    Raises:
        CheckpointError: It is not known, or does not divide the width.
    """
    if heads is None:
        raise CheckpointError(f"{key}: this layout splits the heads, whose number the source does not say: give it")
    if width % heads:
        raise CheckpointError(f"{key}: width {width} is not divisible by {heads} heads")
    return heads
