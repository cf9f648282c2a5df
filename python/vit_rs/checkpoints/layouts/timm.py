"""Names of timm, which are ours, and of the PyTorch projects whose names are nearly timm's.

Written from the key lists of the projects' public files and from timm 1.0.31.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from vit_rs.checkpoints.layouts.base import Anatomy, Form, Layout, Rule, own_anatomy, weight_and_bias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from vit_rs.checkpoints.files import TensorInfo

__all__ = [
    "DEIT",
    "DEIT3",
    "DINO",
    "DINOV2",
    "DINOV2_REG",
    "DINOV3",
    "MAE",
    "MOCO_V3",
    "TIMM",
    "TIMM_DINOV3",
    "TIMM_RESNET",
    "VIT_RS",
]

_MASK = "mask token of the pre-training"
_ROTARY = "rotary frequencies, which follow from the configuration"


def _modules(*names: str) -> Iterator[str]:
    for name in names:
        yield f"{name}.weight"
        yield f"{name}.bias"


def _block_names(block: str) -> Iterator[str]:
    yield from _modules(f"{block}.norm1", f"{block}.attn.qkv", f"{block}.attn.q_norm", f"{block}.attn.k_norm")
    yield from _modules(f"{block}.attn.proj")
    yield f"{block}.ls1.gamma"
    yield from _modules(f"{block}.norm2", f"{block}.mlp.fc1", f"{block}.mlp.fc2")
    yield f"{block}.ls2.gamma"


def _vit_names(anatomy: Anatomy) -> Iterator[str]:
    """Names of a ViT's or a hybrid's tensors, in the order of timm's state dicts."""
    yield from ("cls_token", "reg_token", "pos_embed", "dist_token")
    yield from _resnet_names("patch_embed.backbone.", anatomy.stages)
    yield from _modules("patch_embed.proj")
    for index in range(anatomy.depth):
        yield from _block_names(f"blocks.{index}")
    yield from _modules("norm", "fc_norm")
    yield "attn_pool.latent"
    yield from _modules(*(f"attn_pool.{name}" for name in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")))
    # timm dropped the representation layer in 2022; files from before have it.
    yield from _modules("pre_logits.fc", "head", "head_dist")


def _resnet_names(prefix: str, stages: tuple[int, ...]) -> Iterator[str]:
    """Names of timm's `resnetv2`; one without stages has no module around its stem."""
    stem = f"{prefix}stem." if stages else prefix
    yield f"{stem}conv.weight"
    yield from _modules(f"{stem}norm")
    for stage, units in enumerate(stages):
        for unit in range(units):
            name = f"{prefix}stages.{stage}.blocks.{unit}"
            yield f"{name}.downsample.conv.weight"
            yield from _modules(f"{name}.downsample.norm")
            for layer in (1, 2, 3):
                yield f"{name}.conv{layer}.weight"
                yield from _modules(f"{name}.norm{layer}")


class Timm(Layout):
    """timm's ViT and hybrids: every name is ours.

    Flat files of DeiT, DINO, MAE's encoder and of models fine-tuned from MAE or MoCo v3 have the same names and are not
    told apart: they are "timm", and who wants another convention says so.
    """

    name = "timm"
    convention = "timm"
    anchor = "patch_embed.proj.weight"

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """Blocks of a ViT: other models of timm begin with the same patch embedding."""
        return "blocks.0.norm1.weight" in tensors

    def anatomy(self, tensors: Mapping[str, TensorInfo]) -> Anatomy:
        """Count blocks and units."""
        return own_anatomy({key: info.shape for key, info in tensors.items()})

    def rules(self, anatomy: Anatomy) -> Iterator[Rule]:
        """Give a rule for every name."""
        for name in _vit_names(anatomy):
            yield Rule(name, (name,))

    def ignored(self, key: str) -> str | None:
        """Nothing, but for buffers of rotary models."""
        return _ROTARY if key.startswith("rope") else None

    def prefix_rows(self, tensors: Mapping[str, TensorInfo]) -> int:
        """Class and distillation token; timm's models with registers embed none of the tokens before the patches."""
        return 0 if "reg_token" in tensors else ("cls_token" in tensors) + ("dist_token" in tensors)

    def patch_pixels(self, tensors: Mapping[str, TensorInfo], kernel: tuple[int, int]) -> tuple[int, int]:
        """Give the kernel's pixels; in a hybrid the stem shrinks by 4, and every stage but the first by 2."""
        if not any(key.startswith("patch_embed.backbone.") for key in tensors):
            return kernel
        stride = 4 * 2 ** max(len(self.anatomy(tensors).stages) - 1, 0)
        return stride * kernel[0], stride * kernel[1]

    def refused(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """More than one table."""
        table = tensors.get("pos_embed")
        if table is not None and table.ndim == 3 and table.shape[0] > 1:
            return [f"pos_embed: got {table.shape[0]} tables, expected one"]
        return []


class VitRs(Timm):
    """Our own files where they hold what timm has no name for: 2-D and relative position encodings."""

    name = "vit-rs"

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """By those names."""
        return "pos_embed_x" in tensors or "blocks.0.attn.relative.table" in tensors

    def rules(self, anatomy: Anatomy) -> Iterator[Rule]:
        """Give a rule for every name."""
        yield from super().rules(anatomy)
        more = ["pos_embed_x", "pos_embed_y", "pos_embed_prefix"]
        more += [f"blocks.{index}.attn.relative.table" for index in range(anatomy.depth)]
        for name in more:
            yield Rule(name, (name,))

    def prefix_rows(self, tensors: Mapping[str, TensorInfo]) -> int:
        """Every token before the patches."""
        registers = tensors["reg_token"].shape[1:2] if "reg_token" in tensors else ()
        return ("cls_token" in tensors) + ("dist_token" in tensors) + sum(registers)

    def refused(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Nothing."""
        del tensors
        return []


class TimmResNet(Timm):
    """timm's `resnetv2`, whose names our BiT has."""

    name = "timm-resnetv2"
    anchor = "stem.conv.weight"

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """A pre-activation ResNet: it ends with a norm, which a hybrid's backbone does not."""
        return "norm.weight" in tensors and "stages.0.blocks.0.conv1.weight" in tensors

    def rules(self, anatomy: Anatomy) -> Iterator[Rule]:
        """Give a rule for every name."""
        yield from (Rule(name, (name,)) for name in _resnet_names("", anatomy.stages))
        yield from (*weight_and_bias("norm", "norm"), *weight_and_bias("head.fc", "head.fc"))

    def prefix_rows(self, tensors: Mapping[str, TensorInfo]) -> int:
        """No table."""
        del tensors
        return 0


class Deit(Timm):
    """DeiT, distilled or not: timm's very names, so that only who asks for it by name gets its convention."""

    name = "deit"
    convention = "mae"

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """Never: nothing tells it from timm's."""
        del tensors
        return False


class Deit3(Timm):
    """DeiT III: the layer scales' factors are the block's own; the class token has no position."""

    name = "deit3"
    convention = "mae"

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """By the factors' names, beside a position table."""
        return "blocks.0.gamma_1" in tensors and "pos_embed" in tensors

    def rules(self, anatomy: Anatomy) -> Iterator[Rule]:
        """Give a rule for every name."""
        for rule in super().rules(anatomy):
            yield _renamed(rule, _GAMMAS)

    def prefix_rows(self, tensors: Mapping[str, TensorInfo]) -> int:
        """None."""
        del tensors
        return 0


_GAMMAS = (("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2"))


def _renamed(rule: Rule, words: tuple[tuple[str, str], ...]) -> Rule:
    """Replace our words in a rule's only name of theirs."""
    name = rule.ours
    for ours, theirs in words:
        name = name.replace(ours, theirs)
    return Rule(rule.ours, (name,))


class TimmDinov3(Timm):
    """DINOv3 in timm (class `Eva`, `vit_small_patch16_dinov3`): gammas as in DeiT III, biases of keys left out.

    Models whose queries and values have no bias either need `qkv_bias=False`.
    """

    name = "timm-dinov3"

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """By the factors' names beside registers, without a position table: places are rotary.

        BEiT and timm's other rotary ViTs, whose frequencies no tensor tells, have no registers.
        """
        return "blocks.0.gamma_1" in tensors and "reg_token" in tensors and "pos_embed" not in tensors

    def anatomy(self, tensors: Mapping[str, TensorInfo]) -> Anatomy:
        """Count blocks."""
        return super().anatomy(tensors)._replace(gated="blocks.0.mlp.fc1_g.weight" in tensors)

    def rules(self, anatomy: Anatomy) -> Iterator[Rule]:
        """Give a rule for every name."""
        for rule in super().rules(anatomy):
            module = rule.ours.removesuffix(".weight").removesuffix(".bias")
            end = rule.ours.removeprefix(module)
            if rule.ours.endswith(".attn.qkv.bias"):
                attention = module.removesuffix(".qkv")
                yield Rule(rule.ours, tuple(f"{attention}.{name}_bias" for name in "qkv"), zeros=(1,))
            elif anatomy.gated and module.startswith("blocks.") and module.endswith(".mlp.fc1"):
                yield Rule(rule.ours, (f"{module}_g{end}", f"{module}_x{end}"))
            else:
                yield _renamed(rule, _GAMMAS)


class Dino(Timm):
    """DINO's training files: sections "teacher/" and "student/", in each the backbone and the projection head.

    Its files of the backbone alone have timm's very names.
    """

    name = "dino"
    convention = "dino"
    wrappers = ("backbone.",)

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """By the projection head beside a backbone."""
        return "head.mlp.0.weight" in tensors and super().recognises(tensors)

    def ignored(self, key: str) -> str | None:
        """The projection head."""
        return "projection head of the pre-training" if key.startswith(("head.mlp.", "head.last_layer.")) else None


class Dinov2(Timm):
    """The files of DINOv2's own repository.

    Blocks may be chunked ("blocks.0.7.": block 7). The class token has a position, the registers have none; with
    them (the layout "dinov2-reg") the project resamples tables otherwise.

    Args:
        registers: Whether the model has registers.
    """

    aliases = ((re.compile(r"^blocks\.[0-9]+\.([0-9]+)\."), r"blocks.\1."),)

    def __init__(self, *, registers: bool) -> None:
        self.registers = registers
        self.name = "dinov2-reg" if registers else "dinov2"
        self.convention = "dinov2_reg" if registers else "dinov2"

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """By layer scales beside a mask token, or the gated MLP's names; MAE has a mask token too."""
        own = "mask_token" in tensors or "blocks.0.mlp.w12.weight" in tensors
        return "blocks.0.ls1.gamma" in tensors and own and self.registers == ("register_tokens" in tensors)

    def anatomy(self, tensors: Mapping[str, TensorInfo]) -> Anatomy:
        """Count blocks."""
        return super().anatomy(tensors)._replace(gated="blocks.0.mlp.w12.weight" in tensors)

    def rules(self, anatomy: Anatomy) -> Iterator[Rule]:
        """Give a rule for every name."""
        words = [("reg_token", "register_tokens")] if self.registers else []
        if anatomy.gated:
            words += [("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")]
        for rule in super().rules(anatomy):
            if self.registers or rule.ours != "reg_token":
                yield _renamed(rule, tuple(words))

    def ignored(self, key: str) -> str | None:
        """The mask token."""
        return _MASK if key == "mask_token" else None

    def prefix_rows(self, tensors: Mapping[str, TensorInfo]) -> int:
        """The class token's."""
        del tensors
        return 1


def _without_keys(bias: Tensor) -> Tensor:
    """Zero the keys' third of a bias (3 D,)."""
    if bias.ndim != 1:
        raise ValueError(f"expected one axis, got shape {tuple(bias.shape)}")
    return bias * torch.tensor([1, 0, 1], dtype=bias.dtype, device=bias.device).repeat_interleave(len(bias) // 3)


# The training multiplies the bias with a buffer that is zero for the keys; what stands there has no effect.
_MASKED = Form("bias of keys zeroed", _without_keys, lambda x, _: x)


class Dinov3(Timm):
    """The files of DINOv3's own repository: registers are "storage tokens", places are rotary."""

    name = "dinov3"

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """By the storage tokens."""
        return "storage_tokens" in tensors and super().recognises(tensors)

    def anatomy(self, tensors: Mapping[str, TensorInfo]) -> Anatomy:
        """Count blocks."""
        gated, masked = "blocks.0.mlp.w1.weight" in tensors, "blocks.0.attn.qkv.bias_mask" in tensors
        return super().anatomy(tensors)._replace(gated=gated, key_bias=not masked)

    def rules(self, anatomy: Anatomy) -> Iterator[Rule]:
        """Give a rule for every name."""
        words = (("reg_token", "storage_tokens"), *((("mlp.fc2", "mlp.w3"),) if anatomy.gated else ()))
        for rule in super().rules(anatomy):
            if rule.ours.endswith(".attn.qkv.bias") and not anatomy.key_bias:
                yield Rule(rule.ours, rule.theirs, _MASKED)
            elif anatomy.gated and rule.ours.startswith("blocks.") and ".mlp.fc1." in rule.ours:
                yield Rule(rule.ours, tuple(rule.ours.replace("fc1", name) for name in ("w1", "w2")))
            else:
                yield _renamed(rule, words)

    def ignored(self, key: str) -> str | None:
        """The mask token, the buffer of the bias, norms of the pre-training."""
        if key == "mask_token":
            return _MASK
        if key.endswith(".attn.qkv.bias_mask"):
            return "buffer that takes the keys' bias away"
        return "norm of the pre-training's local crops" if key.startswith("local_cls_norm.") else super().ignored(key)


class Mae(Timm):
    """MAE's pre-training files; those of the encoder alone, and of fine-tuned models, have timm's very names."""

    name = "mae"
    convention = "mae"

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """By the decoder."""
        return "decoder_embed.weight" in tensors and super().recognises(tensors)

    def ignored(self, key: str) -> str | None:
        """The decoder."""
        if key == "mask_token":
            return _MASK
        return "decoder of the pre-training" if key.startswith("decoder_") else None

    def more_tables(self, tensors: Mapping[str, TensorInfo]) -> Iterable[str]:
        """The decoder's."""
        return ["decoder_pos_embed"] if "decoder_pos_embed" in tensors else []


class MocoV3(Timm):
    """MoCo v3's pre-training files: sections of the base encoder and the momentum encoder; its ViT-S has 12 heads."""

    name = "moco-v3"

    def recognises(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """By the projector, a sequence of layers where other models have their head."""
        return "head.0.weight" in tensors and super().recognises(tensors)

    def ignored(self, key: str) -> str | None:
        """The projector."""
        return "projector of the pre-training" if re.match(r"head\.[0-9]", key) else None


TIMM = Timm()
VIT_RS = VitRs()
TIMM_RESNET = TimmResNet()
TIMM_DINOV3 = TimmDinov3()
DEIT = Deit()
DEIT3 = Deit3()
DINO = Dino()
DINOV2 = Dinov2(registers=False)
DINOV2_REG = Dinov2(registers=True)
DINOV3 = Dinov3()
MAE = Mae()
MOCO_V3 = MocoV3()
