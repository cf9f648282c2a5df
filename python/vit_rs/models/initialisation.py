"""Fresh weights as the paper's own code draws them (vision_transformer, flax; big_vision for what came later)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from vit_rs.models.encoder import Block, LayerScale, SwiGlu
from vit_rs.models.pos_encoding import init_tables

if TYPE_CHECKING:
    from vit_rs.models.heads import AttentionPool, PreLogits
    from vit_rs.models.vit import VisionTransformer, ViTConfig

__all__ = ["init_heads", "init_vit", "lecun_normal"]

# Standard deviation of a unit normal cut at +-2: flax divides by it, so that the cut variable has std 1.
_TRUNCATED_STD = 0.87962566103423978


def init_vit(model: VisionTransformer, config: ViTConfig) -> None:
    """Draw every parameter of a ViT; the random numbers come from torch's global generator.

    Patch kernel and representation layer LeCun normal; every D x D and MLP matrix Xavier uniform (query, key and
    value, or gate and value, each by itself: drawn as one fused matrix they would be too small); MLP biases
    N(0, 1e-6); learned positions N(0, 0.02); class token and head zero, so that all classes start equal. Registers
    and the distillation token N(0, 0.02): equal tokens would stay equal for ever.

    Source: google-research/vision_transformer, vit_jax/models_vit.py, and flax's initialisers; the attention pool
    as big_vision's MAPHead.
    """
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, LayerScale)):
            module.reset_parameters()
    patches = cast("nn.Linear", model.patch_embed.proj)
    lecun_normal(patches.weight)
    nn.init.zeros_(patches.bias)
    if model.cls_token is not None:
        nn.init.zeros_(model.cls_token)
    for token in (model.dist_token, model.reg_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)
    init_tables(model, config)
    for block in model.blocks:
        _init_block(cast("Block", block))
    if model.attn_pool is not None:
        _init_attention_pool(model.attn_pool)
    if config.representation_size is not None:
        representation = cast("PreLogits", model.pre_logits).fc
        lecun_normal(representation.weight)
        nn.init.zeros_(representation.bias)
    init_heads(model, config)


def init_heads(model: VisionTransformer, config: ViTConfig) -> None:
    """Set the linear head, or both of a distilled model, to zero but for the configured bias."""
    for name in ("head", "head_dist"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, config.init_head_bias)


def lecun_normal(weight: Tensor) -> None:
    """Fill a weight (out, in, ...) as flax's lecun_normal: variance 1 / fan-in, cut at two deviations."""
    std = math.sqrt(1.0 / math.prod(weight.shape[1:])) / _TRUNCATED_STD
    nn.init.trunc_normal_(weight, std=std, a=-2.0 * std, b=2.0 * std)


def _init_block(block: Block) -> None:
    for kernel in (*block.attn.qkv.weight.chunk(3), block.attn.proj.weight):
        nn.init.xavier_uniform_(kernel)
    for dense in (block.attn.qkv, block.attn.proj):
        if dense.bias is not None:
            nn.init.zeros_(dense.bias)
    _init_mlp(block.mlp)


def _init_mlp(mlp: nn.Module) -> None:
    first, second = cast("nn.Linear", mlp.fc1), cast("nn.Linear", mlp.fc2)
    for kernel in (*first.weight.chunk(2 if isinstance(mlp, SwiGlu) else 1), second.weight):
        nn.init.xavier_uniform_(kernel)
    for dense in (first, second):
        nn.init.normal_(dense.bias, std=1e-6)


def _init_attention_pool(pool: AttentionPool) -> None:
    nn.init.xavier_uniform_(pool.latent[0])
    for kernel in (pool.q.weight, *pool.kv.weight.chunk(2), pool.proj.weight):
        nn.init.xavier_uniform_(kernel)
    for dense in (pool.q, pool.kv, pool.proj):
        nn.init.zeros_(dense.bias)
    _init_mlp(pool.mlp)
