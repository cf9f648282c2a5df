"""The Transformer encoder's block: attention and MLP, pre-norm, each with a residual (arXiv 2010.11929).

Letters: B batch, T tokens, D width, H heads, d = D/H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_rs.models.pos_encoding import RelativeKeys, rotate
from vit_rs.ops._library import exporting

__all__ = ["Attention", "Block", "BlockConfig", "DropPath", "LayerScale", "Mlp", "SwiGlu"]


@dataclass(frozen=True)
class BlockConfig:
    """What all blocks of an encoder share; fields mean what `ViTConfig`'s of the same name do.

    Attributes:
        dim: Width D.
        num_heads: Heads H; D is a multiple of it.
        mlp_hidden_dim: Width of the MLP's first layer (with "swiglu" gate and value together, as in timm).
        mlp: "mlp" or "swiglu".
        act: "gelu" (erf) or "gelu_tanh".
        qkv_bias: Whether queries, keys and values have a bias.
        qk_norm: Whether each head's queries and keys are normed.
        init_values: Initial layer scale; None has no layer scale.
        norm_eps: Epsilon of the norms.
        proj_drop: Dropout after the attention's output projection and after both layers of the MLP.
        attn_drop: Dropout of the attention weights.
        relative_grid: Grid of the relative position encoding; None has none.
        relative_convention: How its tables are resampled for another grid.
    """

    dim: int
    num_heads: int
    mlp_hidden_dim: int
    mlp: Literal["mlp", "swiglu"] = "mlp"
    act: Literal["gelu", "gelu_tanh"] = "gelu"
    qkv_bias: bool = True
    qk_norm: bool = False
    init_values: float | None = None
    norm_eps: float = 1e-6
    proj_drop: float = 0.0
    attn_drop: float = 0.0
    relative_grid: tuple[int, int] | None = None
    relative_convention: str = "timm"


class Block(nn.Module):
    """Add attention's, then the MLP's update to each token (equations 2 and 3). (B, T, D) -> (B, T, D).

    Args:
        config: What all blocks share.
        drop_path: Probability with which a sample skips each of the two updates in training.
    """

    def __init__(self, config: BlockConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        scale = config.init_values
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config.dim, scale) if scale is not None else nn.Identity()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = SwiGlu(config) if config.mlp == "swiglu" else Mlp(config)
        self.ls2 = LayerScale(config.dim, scale) if scale is not None else nn.Identity()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None, rotation: Tensor | None = None) -> Tensor:
        """Return the tokens with both updates added.

        Args:
            x: Tokens, those of the grid last.
            grid: The patches' (rows, columns), which a relative encoding needs.
            rotation: Cosines and sines of the rotary encoding (2, N, d), of `pos_encoding.rotary_table`.
        """
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), grid, rotation)))
        return cast("Tensor", x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))))


class Attention(nn.Module):
    """Multi-head self-attention (appendix A). (B, T, D) -> (B, T, D).

    Queries, keys and values come from one matrix, as in timm.

    Args:
        config: Sizes and options.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        D, d = config.dim, config.dim // config.num_heads
        self.num_heads = config.num_heads
        self.attn_drop = config.attn_drop
        self.qkv = nn.Linear(D, 3 * D, bias=config.qkv_bias)
        self.q_norm = nn.LayerNorm(d, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(d, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        relative, convention = config.relative_grid, config.relative_convention
        self.relative = RelativeKeys(relative, d, convention) if relative is not None else None
        self.proj = nn.Linear(D, D)
        self.proj_drop = nn.Dropout(config.proj_drop)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None, rotation: Tensor | None = None) -> Tensor:
        """Return what each token gathered from all; arguments as in `Block.forward`."""
        B, T, D = x.shape
        q, k, v = self.queries_keys_values(x, rotation)
        bias = None if self.relative is None or grid is None else self.relative(q, grid)  # (B, H, T, T)
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        x = x.transpose(1, 2)  # (B, T, H, d)
        if bias is not None and exporting():
            x = x.clone(memory_format=torch.contiguous_format)  # ONNX's exporter has another layout in its attention
        return cast("Tensor", self.proj_drop(self.proj(x.reshape(B, T, D))))

    def queries_keys_values(self, x: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the heads compare and gather: (B, H, T, d) each, normed and rotated."""
        B, T, D = x.shape
        # Cut along the last axis: their gradients are then joined by one copy into the order that qkv's backward reads.
        q, k, v = (part.reshape(B, T, self.num_heads, D // self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        q, k, v = (heads.transpose(1, 2) for heads in (self.q_norm(q), self.k_norm(k), v))  # (B, H, T, d) each
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q, k, v


class Mlp(nn.Module):
    """Two dense layers with a GELU between them. (B, T, D) -> (B, T, D).

    Args:
        config: Sizes and options.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.mlp_hidden_dim)
        self.act = nn.GELU(approximate="tanh" if config.act == "gelu_tanh" else "none")
        self.drop1 = nn.Dropout(config.proj_drop)
        self.fc2 = nn.Linear(config.mlp_hidden_dim, config.dim)
        self.drop2 = nn.Dropout(config.proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return each token's own update."""
        x = self.drop1(self.act(self.fc1(x)))  # (B, T, hidden)
        return cast("Tensor", self.drop2(self.fc2(x)))


class SwiGlu(nn.Module):
    """A gated MLP: fc2(silu(gate) * value), gate and value from one matrix. (B, T, D) -> (B, T, D).

    Source: arXiv 2002.05202; the packing (gate first) of timm's SwiGLUPacked and DINOv2.

    Args:
        config: Sizes; `mlp_hidden_dim` counts gate and value together.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.mlp_hidden_dim)
        self.drop1 = nn.Dropout(config.proj_drop)
        self.fc2 = nn.Linear(config.mlp_hidden_dim // 2, config.dim)
        self.drop2 = nn.Dropout(config.proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return each token's own update."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return cast("Tensor", self.drop2(self.fc2(self.drop1(F.silu(gate) * value))))


class LayerScale(nn.Module):
    """Multiply each channel by a learned factor (arXiv 2103.17239). (..., D) -> (..., D).

    Args:
        dim: Width D.
        init_value: What every factor starts with.
    """

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.init_value = init_value
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every factor to the initial value."""
        nn.init.constant_(self.gamma, self.init_value)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled values."""
        return x * self.gamma


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
