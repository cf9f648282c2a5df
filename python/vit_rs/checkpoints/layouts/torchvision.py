"""torchvision's names (torchvision 0.29, `models/vision_transformer.py`, and its files from before 0.13)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vit_rs.checkpoints.layouts.base import Anatomy, Layout, Rule, count_indices, plain_vit_problems, weight_and_bias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from vit_rs.checkpoints.files import TensorInfo

__all__ = ["TORCHVISION"]


class Torchvision(Layout):
    """torchvision's ViT; its variant with a convolutional stem has no `conv_proj.weight` and is not read."""

    name = "torchvision"
    convention = "torchvision"
    anchor = "conv_proj.weight"
    aliases = (
        (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
        (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
    )

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """By the position table's name."""
        return "encoder.pos_embedding" in tensors

    def anatomy(self, tensors: Mapping[str, TensorInfo]) -> Anatomy:
        """Count blocks."""
        return Anatomy(count_indices(tensors.keys(), r"encoder\.layers\.encoder_layer_([0-9]+)\."))

    def rules(self, anatomy: Anatomy) -> Iterator[Rule]:
        """Give a rule for every name."""
        yield Rule("cls_token", ("class_token",))
        yield Rule("pos_embed", ("encoder.pos_embedding",))
        yield from weight_and_bias("patch_embed.proj", "conv_proj")
        for index in range(anatomy.depth):
            ours, theirs = f"blocks.{index}", f"encoder.layers.encoder_layer_{index}"
            yield from weight_and_bias(f"{ours}.norm1", f"{theirs}.ln_1")
            for name in ("weight", "bias"):
                yield Rule(f"{ours}.attn.qkv.{name}", (f"{theirs}.self_attention.in_proj_{name}",))
            yield from weight_and_bias(f"{ours}.attn.proj", f"{theirs}.self_attention.out_proj")
            yield from weight_and_bias(f"{ours}.norm2", f"{theirs}.ln_2")
            yield from weight_and_bias(f"{ours}.mlp.fc1", f"{theirs}.mlp.0")
            yield from weight_and_bias(f"{ours}.mlp.fc2", f"{theirs}.mlp.3")
        yield from weight_and_bias("norm", "encoder.ln")
        yield from weight_and_bias("pre_logits.fc", "heads.pre_logits")
        yield from weight_and_bias("head", "heads.head")

    def refused(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """A model without a class token or a single table, and gated MLPs."""
        return plain_vit_problems(tensors)


TORCHVISION = Torchvision()
