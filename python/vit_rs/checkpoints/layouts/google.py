"""Google's ViTs as .npz: vision_transformer's and big_vision's files of all ages, hybrids included.

Sources: google-research/vision_transformer, `vit_jax/models_vit.py`, `models_resnet.py`, `checkpoint.py`;
google-research/big_vision, `models/vit.py` (`fix_old_checkpoints`, `scan_to_pyloop`) and
`models/proj/image_text/naflex_vit.py`.

The files differ in four ways, each on its own:

- How modules of a block are counted: all together before flax had Linen (LayerNorm_0, MultiHeadDotProductAttention_1,
  LayerNorm_2, MlpBlock_3), each class for itself since (LayerNorm_0, LayerNorm_1, MlpBlock_0).
- Where the position table is: inside the encoder, which gets the class token too, so that the table has a row for it
  ("Transformer/posembed_input/pos_embedding", once "Transformer/pos_embedding"), or at the root, added before the class
  token is put there ("pos_embedding"). A few files of the time between have it at the root, with the row.
- Whether each layer has its tensors, or all layers one tensor with a leading axis (flax's scan).
- Whether a MAP head is a module, or its parts lie at the root.

Letters: D width, P patch side, C channels, N patches.
"""

from __future__ import annotations

import re
from math import isqrt
from typing import TYPE_CHECKING

from vit_rs.checkpoints.layouts.base import (
    CONV,
    COPY,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    SQUEEZED,
    TRANSPOSED,
    Anatomy,
    Form,
    Layout,
    Place,
    Rule,
    count_indices,
    own_anatomy,
)
from vit_rs.checkpoints.layouts.bit import units_of_stages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from vit_rs.checkpoints.files import TensorInfo

__all__ = ["BIG_VISION", "NAFLEX", "VISION_TRANSFORMER"]

_RGB = 3
_STACKED = "Transformer/encoderblock/"
# Deeper than any ViT; an axis that says more is no axis of layers, and gets no keys.
_MOST_LAYERS = 1024


def _read_dense_patches(kernel: Tensor) -> Tensor:
    """(P*P*C, D), the patch in order height, width, channel -> (D, C, P, P), for square RGB patches."""
    side = isqrt(kernel.shape[0] // _RGB)
    if kernel.ndim != 2 or _RGB * side * side != kernel.shape[0]:
        raise ValueError(f"expected a kernel (P*P*{_RGB}, D) over square RGB patches, got {tuple(kernel.shape)}")
    return kernel.reshape(side, side, _RGB, -1).permute(3, 2, 0, 1)


def _write_square_grid(table: Tensor, _: int) -> Tensor:
    side = isqrt(table.shape[1])
    if side * side != table.shape[1]:
        raise ValueError(f"expected the table (1, N, D) of a square grid, got {tuple(table.shape)}")
    return table.reshape(side, side, -1)


_DENSE_PATCHES = Form("HWC rows to OIHW", _read_dense_patches, lambda x, _: x.permute(2, 3, 1, 0).flatten(0, 2))
_GRID = Form("grid in rows", lambda x: x.flatten(0, -2)[None], _write_square_grid)


class _Flax(Layout):
    """What all of Google's ViTs have in common; modules are counted as Linen does unless a subclass says otherwise."""

    convention = "jax"
    anchor = "embedding/kernel"
    attention = "MultiHeadDotProductAttention_0"
    second_norm = "LayerNorm_1"
    mlp = "MlpBlock_0"
    positions = "pos_embedding"
    patches = CONV
    table = COPY

    def __init__(self) -> None:
        block = r"^(Transformer/encoderblock(?:_[0-9]+)?/)"
        self.aliases = (
            (re.compile(block + r"MultiHeadDotProductAttention_[01]/"), rf"\1{self.attention}/"),
            (re.compile(block + r"LayerNorm_[12]/"), rf"\1{self.second_norm}/"),
            (re.compile(block + r"MlpBlock_[03]/"), rf"\1{self.mlp}/"),
            # The parts of a MAP head are there once each, so that their numbers say nothing.
            (
                re.compile(r"^(?:MAPHead_0/)?(MultiHeadDotProductAttention|LayerNorm|MlpBlock)_[0-9]+/"),
                r"MAPHead_0/\1_0/",
            ),
            (re.compile(r"^probe$"), "MAPHead_0/probe"),
        )

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """Whether there are a patch embedding and the blocks of an encoder."""
        return self.anchor in tensors and "Transformer/encoderblock_0/LayerNorm_0/scale" in tensors

    def views(self, tensors: Mapping[str, TensorInfo]) -> dict[str, Place]:
        """Spell a file's keys as this layout does; a tensor of all layers is one key for each."""
        places = super().views(tensors)
        for name in [name for name in places if name.startswith(_STACKED)]:
            shape = tensors[places[name].key].shape
            # Where an axis is empty, the others may say anything at no cost.
            layers = shape[0] if shape and 0 not in shape and shape[0] <= _MOST_LAYERS else 0
            names = [name.replace("encoderblock", f"encoderblock_{layer}", 1) for layer in range(layers)]
            if names and not any(each in places for each in names):
                stacked = places.pop(name)
                places |= {each: Place(stacked.key, layer) for layer, each in enumerate(names)}
        return places

    def anatomy(self, tensors: Mapping[str, TensorInfo]) -> Anatomy:
        """Count the encoder's blocks, and a hybrid's units."""
        return Anatomy(count_indices(tensors, r"Transformer/encoderblock_([0-9]+)/"), units_of_stages(tensors))

    def rules(self, anatomy: Anatomy) -> Iterator[Rule]:
        """Give the rules of class token, MAP head, representation layer and a hybrid's ResNet, whatever a file has."""
        yield from _resnet(anatomy.stages)
        yield Rule("patch_embed.proj.weight", ("embedding/kernel",), self.patches)
        yield Rule("patch_embed.proj.bias", ("embedding/bias",))
        yield Rule("cls_token", ("cls",))
        yield Rule("pos_embed", (self.positions,), self.table)
        for index in range(anatomy.depth):
            ours, theirs = f"blocks.{index}.", f"Transformer/encoderblock_{index}/"
            yield from _norm(ours + "norm1", theirs + "LayerNorm_0")
            yield from _heads(ours + "attn.qkv", theirs + self.attention, ("query", "key", "value"))
            yield from _heads_out(ours + "attn.proj", theirs + self.attention)
            yield from _norm(ours + "norm2", theirs + self.second_norm)
            yield from _mlp(ours + "mlp", theirs + self.mlp)
        yield from _norm("norm", "Transformer/encoder_norm")
        pool = "MAPHead_0/MultiHeadDotProductAttention_0"
        yield Rule("attn_pool.latent", ("MAPHead_0/probe",))
        yield from _heads("attn_pool.q", pool, ("query",))
        yield from _heads("attn_pool.kv", pool, ("key", "value"))
        yield from _heads_out("attn_pool.proj", pool)
        yield from _norm("attn_pool.norm", "MAPHead_0/LayerNorm_0")
        yield from _mlp("attn_pool.mlp", "MAPHead_0/MlpBlock_0")
        yield from _dense("pre_logits.fc", "pre_logits")
        yield from _dense("head", "head")

    def refused(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """One table only, a plain MLP, and biases on queries, keys and values: flax's modules always have them."""
        found = []
        table = tensors.get("pos_embed")
        if table is not None and table.ndim == 3 and table.shape[0] > 1:
            found.append(f"pos_embed: got {table.shape[0]} tables, expected one")
        if own_anatomy({key: tuple(tensor.shape) for key, tensor in tensors.items()}).gated:
            found.append("blocks.0.mlp.fc1.weight: got the two halves of a gated MLP, expected a plain one")
        qkv = "blocks.0.attn.qkv."
        if qkv + "weight" in tensors and qkv + "bias" not in tensors:
            found.append(f"{qkv}bias: got none, expected one")
        return found

    def patch_pixels(self, tensors: Mapping[str, TensorInfo], kernel: tuple[int, int]) -> tuple[int, int]:
        """Give the kernel's pixels; in a hybrid the root shrinks by 4, and every stage but the first by 2."""
        if "conv_root/kernel" not in tensors:
            return kernel
        stride = 4 * 2 ** max(len(units_of_stages(tensors)) - 1, 0)
        return stride * kernel[0], stride * kernel[1]


class _VisionTransformer(_Flax):
    """vision_transformer: the paper's, AugReg's and the hybrids' files, and big_vision's of before 2022.

    The table is inside the encoder, and has a row for the class token. Written with the counting of the published
    files, which all their readers take.
    """

    name = "vision_transformer"
    attention = "MultiHeadDotProductAttention_1"
    second_norm = "LayerNorm_2"
    mlp = "MlpBlock_3"
    positions = "Transformer/posembed_input/pos_embedding"

    def __init__(self) -> None:
        super().__init__()
        self.aliases += ((re.compile(r"^Transformer/pos_embedding$"), self.positions),)

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """Whether the position table is inside the encoder."""
        return super().recognises(tensors) and self.positions in tensors

    def prefix_rows(self, tensors: Mapping[str, TensorInfo]) -> int:
        """One row for the class token, where there is one."""
        return int("cls" in tensors)


class _BigVision(_Flax):
    """big_vision: class token apart from the table, average or MAP head; SigLIP's and LiT's image towers.

    Files without a table are taken for these: sin-cos positions are in none. FlexiViT's have the same names, and
    nothing in them says that their convention is "flexi".
    """

    name = "big_vision"

    def prefix_rows(self, tensors: Mapping[str, TensorInfo]) -> int:
        """No row, but in the files of the time between, which are told as big_vision tells them: by a square and one.

        Source: big_vision, `models/vit.py`, `fix_old_checkpoints`.
        """
        table = tensors.get(self.positions)
        if table is None or "cls" not in tensors or len(table.shape) < 2:
            return 0
        return int(not _is_square(table.shape[-2]) and _is_square(table.shape[-2] - 1))


class _NaFlex(_BigVision):
    """big_vision's NaFlex (SigLIP 2): patches enter a dense layer, and the table (rows, columns, D) is a grid."""

    name = "big_vision_naflex"
    convention = "siglip2"
    patches = _DENSE_PATCHES
    table = _GRID

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """Whether the patch embedding has two axes."""
        return super().recognises(tensors) and len(tensors[self.anchor].shape) == 2

    def prefix_rows(self, tensors: Mapping[str, TensorInfo]) -> int:
        """No row: there is no class token."""
        del tensors
        return 0


VISION_TRANSFORMER = _VisionTransformer()
BIG_VISION = _BigVision()
NAFLEX = _NaFlex()


def _is_square(count: int) -> bool:
    return count >= 0 and isqrt(count) ** 2 == count


def _resnet(stages: tuple[int, ...]) -> Iterator[Rule]:
    """Rules of a hybrid's ResNet; timm names the lone root of R+Ti otherwise than the root of a ResNet."""
    root = "patch_embed.backbone." + ("stem." if stages else "")
    yield Rule(root + "conv.weight", ("conv_root/kernel",), CONV)
    yield from _norm(root + "norm", "gn_root", SQUEEZED)
    for stage, units in enumerate(stages):
        for unit in range(units):
            ours = f"patch_embed.backbone.stages.{stage}.blocks.{unit}."
            theirs = f"block{stage + 1}/unit{unit + 1}/"
            for number in "123":
                yield Rule(f"{ours}conv{number}.weight", (f"{theirs}conv{number}/kernel",), CONV)
                yield from _norm(f"{ours}norm{number}", f"{theirs}gn{number}", SQUEEZED)
            yield Rule(ours + "downsample.conv.weight", (theirs + "conv_proj/kernel",), CONV)
            yield from _norm(ours + "downsample.norm", theirs + "gn_proj", SQUEEZED)


def _norm(ours: str, theirs: str, form: Form = COPY) -> Iterable[Rule]:
    return Rule(ours + ".weight", (theirs + "/scale",), form), Rule(ours + ".bias", (theirs + "/bias",), form)


def _dense(ours: str, theirs: str) -> Iterable[Rule]:
    return Rule(ours + ".weight", (theirs + "/kernel",), TRANSPOSED), Rule(ours + ".bias", (theirs + "/bias",))


def _mlp(ours: str, theirs: str) -> Iterable[Rule]:
    return *_dense(ours + ".fc1", theirs + "/Dense_0"), *_dense(ours + ".fc2", theirs + "/Dense_1")


def _heads(ours: str, theirs: str, parts: tuple[str, ...]) -> Iterable[Rule]:
    return (
        Rule(ours + ".weight", tuple(f"{theirs}/{part}/kernel" for part in parts), HEADS_IN),
        Rule(ours + ".bias", tuple(f"{theirs}/{part}/bias" for part in parts), HEADS_BIAS),
    )


def _heads_out(ours: str, theirs: str) -> Iterable[Rule]:
    return Rule(ours + ".weight", (theirs + "/out/kernel",), HEADS_OUT), Rule(ours + ".bias", (theirs + "/out/bias",))
