"""What turns the encoder's tokens into one vector, beside the class token and the average.

Letters: B batch, T tokens, D width, H heads, R width of the representation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_rs.models.encoder import Mlp

if TYPE_CHECKING:
    from vit_rs.models.encoder import BlockConfig

__all__ = ["AttentionPool", "PreLogits"]


class AttentionPool(nn.Module):
    """Multi-head attention pooling: a learned query gathers from all tokens, an MLP follows. (B, T, D) -> (B, D).

    Source: big_vision, models/vit.py, MAPHead (arXiv 2106.04560); names of timm's AttentionPoolLatent.

    Args:
        config: Sizes and options of the encoder's blocks; the MLP is always the plain one, and nothing is dropped.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        D = config.dim
        self.num_heads = config.num_heads
        self.latent = nn.Parameter(torch.empty(1, 1, D))
        self.q = nn.Linear(D, D)
        self.kv = nn.Linear(D, 2 * D)
        self.proj = nn.Linear(D, D)
        self.norm = nn.LayerNorm(D, eps=config.norm_eps)
        self.mlp = Mlp(replace(config, proj_drop=0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled vector."""
        B, T, D = x.shape
        q = self.q(self.latent).reshape(1, 1, self.num_heads, -1).transpose(1, 2).expand(B, -1, -1, -1)
        k, v = (
            part.reshape(B, T, self.num_heads, D // self.num_heads).transpose(1, 2)  # (B, H, T, d)
            for part in self.kv(x).chunk(2, dim=-1)
        )
        x = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, D))
        return cast("Tensor", x + self.mlp(self.norm(x)))


class PreLogits(nn.Module):
    """The dense layer and tanh before the head of models trained on ImageNet-21k. (B, D) -> (B, R).

    Source: vision_transformer, vit_jax/models_vit.py, `representation_size`; the name that timm once gave it.

    Args:
        dim: Width D.
        representation_size: Width R.
    """

    def __init__(self, dim: int, representation_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, representation_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the representation."""
        return torch.tanh(self.fc(x))
