"""Hugging Face's names, as their published files have them; models of transformers 5 have others in memory.

Written from transformers 5.23 and the key lists of published files.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vit_rs.checkpoints.layouts.base import (
    Anatomy,
    Layout,
    Rule,
    count_indices,
    plain_vit_problems,
    weight_and_bias,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from vit_rs.checkpoints.files import TensorInfo

__all__ = ["HF_DEIT", "HF_DINOV2", "HF_DINOV2_REG", "HF_DINOV3", "HF_VIT", "hf_layout"]

_MASK = "mask token of the pre-training"
_ATTENTION = tuple(
    (re.compile(rf"\.attention\.{new}\."), f".attention.{old}.")
    for new, old in (
        ("q_proj", "attention.query"),
        ("k_proj", "attention.key"),
        ("v_proj", "attention.value"),
        ("o_proj", "output.dense"),
    )
)


def _alias(pattern: str, replacement: str) -> tuple[re.Pattern[str], str]:
    return re.compile(pattern), replacement


class HfVit(Layout):
    """ViT and DeiT: with a classifier, with a pooler, or with the decoder of masked image modelling or MAE.

    The pooler, a dense layer and a tanh on the class token, is our representation layer.

    Args:
        distilled: DeiT, whose position table has a row for the distillation token.
    """

    convention = "hf"
    anchor = "embeddings.patch_embeddings.projection.weight"
    aliases = (
        _alias(r"^layers\.", "encoder.layer."),
        *_ATTENTION,
        _alias(r"^(encoder\.layer\.[0-9]+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
        _alias(r"^(encoder\.layer\.[0-9]+)\.mlp\.fc2\.", r"\1.output.dense."),
    )

    def __init__(self, *, distilled: bool) -> None:
        self.distilled = distilled
        self.name = "hf-deit" if distilled else "hf-vit"
        self.wrappers = ("deit.",) if distilled else ("vit.",)

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """By the norms' names, and the distillation token."""
        deit = "embeddings.distillation_token" in tensors
        return "encoder.layer.0.layernorm_before.weight" in tensors and deit == self.distilled

    def anatomy(self, tensors: Mapping[str, TensorInfo]) -> Anatomy:
        """Count blocks."""
        return Anatomy(count_indices(tensors.keys(), r"encoder\.layer\.([0-9]+)\."))

    def rules(self, anatomy: Anatomy) -> Iterator[Rule]:
        """Give a rule for every name."""
        yield Rule("cls_token", ("embeddings.cls_token",))
        if self.distilled:
            yield Rule("dist_token", ("embeddings.distillation_token",))
        yield Rule("pos_embed", ("embeddings.position_embeddings",))
        yield from weight_and_bias("patch_embed.proj", "embeddings.patch_embeddings.projection")
        for index in range(anatomy.depth):
            ours, theirs = f"blocks.{index}", f"encoder.layer.{index}"
            yield from weight_and_bias(f"{ours}.norm1", f"{theirs}.layernorm_before")
            yield from _attention(ours, theirs)
            yield from weight_and_bias(f"{ours}.norm2", f"{theirs}.layernorm_after")
            yield from weight_and_bias(f"{ours}.mlp.fc1", f"{theirs}.intermediate.dense")
            yield from weight_and_bias(f"{ours}.mlp.fc2", f"{theirs}.output.dense")
        yield from weight_and_bias("norm", "layernorm")
        yield from weight_and_bias("pre_logits.fc", "pooler.dense")
        if self.distilled:
            yield from weight_and_bias("head", "cls_classifier")
            yield from weight_and_bias("head_dist", "distillation_classifier")
        yield from weight_and_bias("head", "classifier")

    def ignored(self, key: str) -> str | None:
        """The mask token and the decoder."""
        if key == "embeddings.mask_token":
            return _MASK
        return "decoder of the pre-training" if key.startswith("decoder.") else None

    def optional(self, ours: str) -> str | None:
        """The pooler, which files have whose model was not trained with it."""
        return "the pooler" if ours.startswith("pre_logits.") else None

    def prefix_rows(self, tensors: Mapping[str, TensorInfo]) -> int:
        """The class token's, and the distillation token's."""
        return ("embeddings.cls_token" in tensors) + self.distilled

    def more_tables(self, tensors: Mapping[str, TensorInfo]) -> Iterable[str]:
        """That of MAE's decoder."""
        return ["decoder.decoder_pos_embed"] if "decoder.decoder_pos_embed" in tensors else []

    def refused(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """A model that is no plain ViT, or has a representation layer and a head: a pooler has no classifier."""
        problems = plain_vit_problems(tensors)
        if "pre_logits.fc.weight" in tensors and "head.weight" in tensors:
            problems.append("got pre_logits.fc and head, expected one of them")
        return problems

    def wrapped(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put the encoder under its module where a classifier stands beside it."""
        return _beside_classifier(tensors, self.wrappers[0])


class HfDinov2(Layout):
    """DINOv2; the class token has a position, the registers have none.

    The classifier of its models reads the class token and the average of the patches together, which ours has no
    place for.

    Args:
        registers: Whether the model has registers, which makes it another model to Hugging Face.
    """

    anchor = "embeddings.patch_embeddings.projection.weight"
    aliases = (*_ATTENTION, _alias(r"\.mlp\.down_proj\.", ".mlp.weights_out."))

    def __init__(self, *, registers: bool) -> None:
        self.registers = registers
        self.name = "hf-dinov2-reg" if registers else "hf-dinov2"
        self.convention = "dinov2_reg" if registers else "hf"
        self.wrappers = ("dinov2_with_registers.",) if registers else ("dinov2.",)

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """By the layer scales' names, and the registers."""
        registers = "embeddings.register_tokens" in tensors
        return "encoder.layer.0.layer_scale1.lambda1" in tensors and registers == self.registers

    def anatomy(self, tensors: Mapping[str, TensorInfo]) -> Anatomy:
        """Count blocks."""
        gated = "encoder.layer.0.mlp.weights_out.weight" in tensors
        return Anatomy(count_indices(tensors.keys(), r"encoder\.layer\.([0-9]+)\."), gated=gated)

    def rules(self, anatomy: Anatomy) -> Iterator[Rule]:
        """Give a rule for every name."""
        yield Rule("cls_token", ("embeddings.cls_token",))
        if self.registers:
            yield Rule("reg_token", ("embeddings.register_tokens",))
        yield Rule("pos_embed", ("embeddings.position_embeddings",))
        yield from weight_and_bias("patch_embed.proj", "embeddings.patch_embeddings.projection")
        for index in range(anatomy.depth):
            ours, theirs = f"blocks.{index}", f"encoder.layer.{index}"
            yield from weight_and_bias(f"{ours}.norm1", f"{theirs}.norm1")
            yield from _attention(ours, theirs)
            yield Rule(f"{ours}.ls1.gamma", (f"{theirs}.layer_scale1.lambda1",))
            yield from weight_and_bias(f"{ours}.norm2", f"{theirs}.norm2")
            if anatomy.gated:
                # One matrix in files, two in the models of transformers 5.
                yield from weight_and_bias(f"{ours}.mlp.fc1", f"{theirs}.mlp.weights_in")
                yield from weight_and_bias(f"{ours}.mlp.fc1", f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj")
                yield from weight_and_bias(f"{ours}.mlp.fc2", f"{theirs}.mlp.weights_out")
            else:
                yield from weight_and_bias(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1")
                yield from weight_and_bias(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2")
            yield Rule(f"{ours}.ls2.gamma", (f"{theirs}.layer_scale2.lambda1",))
        yield from weight_and_bias("norm", "layernorm")

    def ignored(self, key: str) -> str | None:
        """The mask token and the classifier."""
        if key == "embeddings.mask_token":
            return _MASK
        return "classifier of class token and average together" if key.startswith("classifier.") else None

    def refused(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """A model without class token, a single table, or layer scales."""
        problems = plain_vit_problems(tensors, gated_mlp=True)
        return problems if "blocks.0.ls1.gamma" in tensors else [*problems, "blocks.0.ls1.gamma is missing"]


class HfDinov3(Layout):
    """DINOv3's ViT: places are rotary, keys have no bias."""

    name = "hf-dinov3"
    convention = "timm"
    anchor = "embeddings.patch_embeddings.weight"
    aliases = (_alias(r"^model\.layer\.", "layer."),)

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """By the layer scales' names."""
        return "layer.0.layer_scale1.lambda1" in tensors

    def anatomy(self, tensors: Mapping[str, TensorInfo]) -> Anatomy:
        """Count blocks."""
        gated = "layer.0.mlp.gate_proj.weight" in tensors
        return Anatomy(count_indices(tensors.keys(), r"layer\.([0-9]+)\."), gated=gated)

    def rules(self, anatomy: Anatomy) -> Iterator[Rule]:
        """Give a rule for every name."""
        yield Rule("cls_token", ("embeddings.cls_token",))
        yield Rule("reg_token", ("embeddings.register_tokens",))
        yield from weight_and_bias("patch_embed.proj", "embeddings.patch_embeddings")
        for index in range(anatomy.depth):
            ours, theirs = f"blocks.{index}", f"layer.{index}"
            yield from weight_and_bias(f"{ours}.norm1", f"{theirs}.norm1")
            parts = tuple(f"{theirs}.attention.{name}_proj" for name in "qkv")
            yield from weight_and_bias(f"{ours}.attn.qkv", *parts, zeros=(1,))
            yield from weight_and_bias(f"{ours}.attn.proj", f"{theirs}.attention.o_proj")
            yield Rule(f"{ours}.ls1.gamma", (f"{theirs}.layer_scale1.lambda1",))
            yield from weight_and_bias(f"{ours}.norm2", f"{theirs}.norm2")
            up = ("gate_proj", "up_proj") if anatomy.gated else ("up_proj",)
            yield from weight_and_bias(f"{ours}.mlp.fc1", *(f"{theirs}.mlp.{name}" for name in up))
            yield from weight_and_bias(f"{ours}.mlp.fc2", f"{theirs}.mlp.down_proj")
            yield Rule(f"{ours}.ls2.gamma", (f"{theirs}.layer_scale2.lambda1",))
        yield from weight_and_bias("norm", "norm")

    def ignored(self, key: str) -> str | None:
        """The mask token."""
        return _MASK if key == "embeddings.mask_token" else None

    def prefix_rows(self, tensors: Mapping[str, TensorInfo]) -> int:
        """No table."""
        del tensors
        return 0


def _attention(ours: str, theirs: str) -> Iterator[Rule]:
    parts = tuple(f"{theirs}.attention.attention.{name}" for name in ("query", "key", "value"))
    yield from weight_and_bias(f"{ours}.attn.qkv", *parts)
    yield from weight_and_bias(f"{ours}.attn.proj", f"{theirs}.attention.output.dense")


def _beside_classifier(tensors: dict[str, Tensor], wrapper: str) -> dict[str, Tensor]:
    heads = ("classifier.", "cls_classifier.", "distillation_classifier.")
    if not any(key.startswith(heads) for key in tensors):
        return tensors
    return {key if key.startswith(heads) else wrapper + key: tensor for key, tensor in tensors.items()}


HF_VIT = HfVit(distilled=False)
HF_DEIT = HfVit(distilled=True)
HF_DINOV2 = HfDinov2(registers=False)
HF_DINOV2_REG = HfDinov2(registers=True)
HF_DINOV3 = HfDinov3()


def hf_layout(tensors: Mapping[str, Tensor]) -> Layout:
    """Return the model of Hugging Face's that our tensors are: by the distillation token, layer scales, registers."""
    if "dist_token" in tensors:
        return HF_DEIT
    if "blocks.0.ls1.gamma" not in tensors:
        return HF_VIT
    if "pos_embed" not in tensors:
        return HF_DINOV3
    return HF_DINOV2_REG if "reg_token" in tensors else HF_DINOV2
