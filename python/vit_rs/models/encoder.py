"""The Transformer encoder's block: attention and MLP, pre-norm, each with a residual (arXiv 2010.11929).

Letters: B batch, T tokens, D width, H heads.
"""

from __future__ import annotations

from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LAYER_NORM_EPS", "Attention", "Block", "DropPath", "Mlp"]

LAYER_NORM_EPS = 1e-6  # flax's default, kept by timm, torchvision and MAE; torch's own default is 1e-5


class Block(nn.Module):
    """Add attention's, then the MLP's update to each token (equations 2 and 3). (B, T, D) -> (B, T, D).

    Args:
        dim: Width D.
        num_heads: Heads H; D is a multiple of it.
        mlp_hidden_dim: Hidden width of the MLP.
        qkv_bias: Whether queries, keys and values have a bias.
        act: "gelu" (erf) or "gelu_tanh".
        proj_drop: Dropout after the attention's output projection and after both layers of the MLP.
        attn_drop: Dropout of the attention weights.
        drop_path: Probability with which a sample skips each of the two updates in training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_hidden_dim: int,
        qkv_bias: bool = True,
        act: Literal["gelu", "gelu_tanh"] = "gelu",
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, proj_drop=proj_drop, attn_drop=attn_drop)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, mlp_hidden_dim, act=act, drop=proj_drop)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens with both updates added."""
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return cast("Tensor", x + self.drop_path2(self.mlp(self.norm2(x))))


class Attention(nn.Module):
    """Multi-head self-attention (appendix A). (B, T, D) -> (B, T, D).

    Queries, keys and values come from one matrix, as in timm.

    Args:
        dim: Width D.
        num_heads: Heads H; D is a multiple of it.
        qkv_bias: Whether queries, keys and values have a bias.
        proj_drop: Dropout after the output projection.
        attn_drop: Dropout of the attention weights.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each token gathered from all."""
        B, T, D = x.shape
        qkv = self.qkv(x).reshape(B, T, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, D/H) each
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0)
        x = x.transpose(1, 2).reshape(B, T, D)
        return cast("Tensor", self.proj_drop(self.proj(x)))


class Mlp(nn.Module):
    """Two dense layers with a GELU between them. (B, T, D) -> (B, T, D).

    Args:
        dim: Width D.
        hidden_dim: Width between the layers.
        act: "gelu" (erf) or "gelu_tanh".
        drop: Dropout after each layer.
    """

    def __init__(
        self, dim: int, hidden_dim: int, *, act: Literal["gelu", "gelu_tanh"] = "gelu", drop: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU(approximate="tanh" if act == "gelu_tanh" else "none")
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return each token's own update."""
        x = self.drop1(self.act(self.fc1(x)))  # (B, T, hidden)
        return cast("Tensor", self.drop2(self.fc2(x)))


class DropPath(nn.Module):
    """In training, zero a sample's update with probability `rate`, else scale it by 1 / (1 - rate).

    Args:
        rate: Probability, in [0, 1).

    Source: Deep Networks with Stochastic Depth, arXiv 1603.09382; scaled while training, as timm does.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        """Show the rate in the module's repr."""
        return f"rate={self.rate:.3g}"
