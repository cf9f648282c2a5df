"""BiT's pre-activation ResNets as .npz: Big Transfer's published files, and big_vision's own.

Sources: google-research/big_transfer, `bit_pytorch/models.py`; google-research/big_vision, `models/bit_paper.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from vit_rs.checkpoints.layouts.base import CONV, COPY, SQUEEZED, TRANSPOSED, Anatomy, Form, Layout, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from vit_rs.checkpoints.files import TensorInfo

__all__ = ["BIG_TRANSFER", "BIG_VISION_BIT", "units_of_stages"]

_UNIT = re.compile(r"(?:resnet/)?block([1-9])/unit([0-9]{1,4})/")

# TensorFlow numbers the layers of a graph where two models were built in one: "standardized_conv2d_17".
# Every layer is alone in its place, so that the numbers say nothing.
_NUMBERED = re.compile(r"(?<=/)(standardized_conv2d|group_norm|conv2d)_[0-9]+(?=/)")


class _Names(NamedTuple):
    """Where things are: in a unit, then outside; "{0}" is the place in the unit, a, b, c or 1, 2, 3."""

    places: str
    unit: str
    norm: str
    kernel: str
    projection: str
    scale: str
    offset: str
    root: str
    last_norm: str
    head: str


_TENSORFLOW = _Names(
    places="abc",
    unit="resnet/block{}/unit{:02d}/",
    norm="{}/group_norm",
    kernel="{}/standardized_conv2d/kernel",
    projection="a/proj/standardized_conv2d/kernel",
    scale="gamma",
    offset="beta",
    root="resnet/root_block/standardized_conv2d/kernel",
    last_norm="resnet/group_norm",
    head="resnet/head/conv2d",
)
_FLAX = _Names(
    places="123",
    unit="block{}/unit{:02d}/",
    norm="gn{}",
    kernel="conv{}/kernel",
    projection="conv_proj/kernel",
    scale="scale",
    offset="bias",
    root="root_block/conv_root/kernel",
    last_norm="norm-pre-head",
    head="head",
)

# timm's head is a convolution of one pixel; big_vision's a dense layer.
_DENSE_HEAD = Form(
    "transposed",
    lambda x: TRANSPOSED.read(x)[:, :, None, None],
    lambda x, heads: TRANSPOSED.write(x[:, :, 0, 0], heads),
)


def _unsqueeze(vector: Tensor, _: int) -> Tensor:
    return vector[None, None, None]


_FOUR_AXES = Form(SQUEEZED.name, SQUEEZED.read, _unsqueeze)


class _Bit(Layout):
    """A BiT ResNet in one of two spellings."""

    convention = "jax"
    aliases = ((_NUMBERED, r"\1"),)

    def __init__(self, name: str, names: _Names, *, norms: Form, head: Form) -> None:
        self.name = name
        self.anchor = f"{names.last_norm}/{names.scale}"
        self._names = names
        self._norms = norms
        self._head = head

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """Whether the last norm and units are there."""
        return self.anchor in tensors and bool(units_of_stages(tensors))

    def anatomy(self, tensors: Mapping[str, TensorInfo]) -> Anatomy:
        """Count the units of each stage; there is no encoder."""
        return Anatomy(0, units_of_stages(tensors))

    def rules(self, anatomy: Anatomy) -> Iterator[Rule]:
        """Give the rules of every unit's projection too, which the first of a stage has alone."""
        names = self._names
        yield Rule("stem.conv.weight", (names.root,), CONV)
        for stage, units in enumerate(anatomy.stages):
            for unit in range(units):
                ours, theirs = f"stages.{stage}.blocks.{unit}.", names.unit.format(stage + 1, unit + 1)
                yield Rule(ours + "downsample.conv.weight", (theirs + names.projection,), CONV)
                for number, place in enumerate(names.places, 1):
                    yield from self._norm(f"{ours}norm{number}", theirs + names.norm.format(place))
                    yield Rule(f"{ours}conv{number}.weight", (theirs + names.kernel.format(place),), CONV)
        yield from self._norm("norm", names.last_norm)
        yield Rule("head.fc.weight", (names.head + "/kernel",), self._head)
        yield Rule("head.fc.bias", (names.head + "/bias",))

    def prefix_rows(self, tensors: Mapping[str, TensorInfo]) -> int:
        """No position table, so no row."""
        del tensors
        return 0

    def _norm(self, ours: str, theirs: str) -> tuple[Rule, Rule]:
        return (
            Rule(ours + ".weight", (f"{theirs}/{self._names.scale}",), self._norms),
            Rule(ours + ".bias", (f"{theirs}/{self._names.offset}",), self._norms),
        )


BIG_TRANSFER = _Bit("big_transfer", _TENSORFLOW, norms=COPY, head=CONV)
BIG_VISION_BIT = _Bit("big_vision_bit", _FLAX, norms=_FOUR_AXES, head=_DENSE_HEAD)


def units_of_stages(keys: Iterable[str]) -> tuple[int, ...]:
    """Count the units of each stage in keys such as "block1/unit01/...", which are numbered from 1."""
    found = {(int(unit[1]), int(unit[2])) for unit in map(_UNIT.match, keys) if unit}
    stages: list[int] = []
    while (len(stages) + 1, 1) in found:
        units = 1
        while (len(stages) + 1, units + 1) in found:
            units += 1
        stages.append(units)
    return tuple(stages)
