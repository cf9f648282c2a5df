"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929, section 3.1).

State-dict names, configuration fields and methods are timm's; the initialisation is that of the paper's own
code (vision_transformer, flax). An image and its patches are the same input, because the patch embedding is a
linear map of the flattened patch: `model(images)` equals `model(patchify(images, P, order="cpq"))`.

Letters: B batch, C channels, P x Q patch, N patches (gh x gw of them), T = 1 + N tokens, D width, H heads,
K classes.
"""

from __future__ import annotations

import math
import operator
import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit_rs.exceptions import ConfigError
from vit_rs.models.encoder import LAYER_NORM_EPS, Block
from vit_rs.ops import patchify

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PatchEmbed", "ViTConfig", "VisionTransformer", "create_model"]

# Width, depth, heads. B, L and H: the paper's table 1; Ti and S: DeiT (arXiv 2012.12877).
_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
# Standard deviation of a unit normal cut at +-2: flax divides by it, so that the cut variable has std 1.
_TRUNCATED_STD = 0.87962566103423978
_RATES = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")


@dataclass(frozen=True)
class ViTConfig:
    """Configure a `VisionTransformer`; names, meanings and defaults are timm's, the default size is ViT-B/16.

    The paper's dropout rate p (table 3: after every dense layer except qkv, and after the position embedding)
    is `pos_drop_rate=p, proj_drop_rate=p`.

    Attributes:
        img_size: Image side, or (height, width), in pixels; a multiple of the patch size.
        patch_size: Patch side, or (height, width), in pixels.
        in_chans: Image channels.
        num_classes: Outputs of the head; 0 builds no head, and the logits are the pooled features.
        embed_dim: Width D of the tokens.
        depth: Number of blocks.
        num_heads: Attention heads; D must be a multiple of it.
        mlp_ratio: Hidden width of the MLP over D. The product is truncated to an integer, as in timm.
        qkv_bias: Whether the query, key and value projections have a bias.
        global_pool: "token" reads the class token after the final norm (the paper). "avg" averages the patch
            tokens and norms the average by `fc_norm`, with no norm before (timm, MAE).
        act: "gelu" (erf; timm, torchvision) or "gelu_tanh" (flax's `nn.gelu`: for weights trained in JAX).
        drop_rate: Dropout before the head.
        pos_drop_rate: Dropout after the position embedding.
        proj_drop_rate: Dropout after the attention's output projection and after both layers of the MLP.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 in the first.
        init_head_bias: Initial value of the head's bias; -10 with a sigmoid loss starts at a small loss
            (big_vision's recipes).

    Raises:
        ConfigError: A value is out of its range, or two do not fit together.
    """

    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    global_pool: Literal["token", "avg"] = "token"
    act: Literal["gelu", "gelu_tanh"] = "gelu"
    drop_rate: float = 0.0
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    init_head_bias: float = 0.0

    def __post_init__(self) -> None:
        for name in ("img_size", "patch_size"):
            pair = _pair(name, getattr(self, name))
            # One spelling per value: configurations that mean the same compare equal, also after JSON.
            object.__setattr__(self, name, pair[0] if pair[0] == pair[1] else pair)
        for name in ("in_chans", "num_classes", "embed_dim", "depth", "num_heads"):
            least = 0 if name == "num_classes" else 1
            object.__setattr__(self, name, _integer(name, getattr(self, name), least))
        for name in ("mlp_ratio", "init_head_bias", *_RATES):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name in _RATES:
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not isinstance(self.qkv_bias, bool):
            raise ConfigError(f"qkv_bias must be true or false, got {self.qkv_bias!r}")
        for name, known in (("global_pool", ("token", "avg")), ("act", ("gelu", "gelu_tanh"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        (height, width), (p, q) = self.image_hw, self.patch_hw
        if height % p or width % q:
            raise ConfigError(
                f"img_size {height}x{width} is not divisible by patch_size {p}x{q}: "
                f"the nearest sizes that are: {_nearest(height, p)} high, {_nearest(width, q)} wide"
            )
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if self.mlp_hidden_dim < 1:
            raise ConfigError(f"mlp_ratio {self.mlp_ratio} of embed_dim {self.embed_dim} leaves no hidden unit")

    @classmethod
    def from_name(cls, name: str, **overrides: Any) -> ViTConfig:
        """Return the configuration that a timm name such as "vit_base_patch16_224" stands for.

        Args:
            name: `vit_{tiny,small,base,large,huge}_patch{P}_{img}`.
            **overrides: Fields to set in place of the named ones.

        Raises:
            ConfigError: The name is not of that form, or a value is out of range.
            TypeError: An override is no field of the configuration.
        """
        match = re.fullmatch(r"vit_([a-z0-9]+)_patch([0-9]+)_([0-9]+)", name)
        if match is None or match[1] not in _SIZES:
            raise ConfigError(
                f"unknown model {name!r}: expected vit_SIZE_patchP_IMG with SIZE one of {', '.join(_SIZES)}, "
                "for example vit_base_patch16_224; other sizes are built by VisionTransformer(ViTConfig(...))"
            )
        unknown = sorted(overrides.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise TypeError(f"ViTConfig has no field {', '.join(unknown)}")
        embed_dim, depth, num_heads = _SIZES[match[1]]
        named = {"patch_size": int(match[2]), "img_size": int(match[3])}
        return cls(**{**named, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ViTConfig:
        """Return the configuration that `to_dict` wrote; fields that are not given take their defaults.

        Raises:
            ConfigError: A key is no field, or a value is out of range.
        """
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"ViTConfig has no field {', '.join(unknown)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(self)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Image (height, width) in pixels."""
        return _pair("img_size", self.img_size)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Patch (height, width) in pixels."""
        return _pair("patch_size", self.patch_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches per image, (rows, columns)."""
        return self.image_hw[0] // self.patch_hw[0], self.image_hw[1] // self.patch_hw[1]

    @property
    def num_patches(self) -> int:
        """Patches per image, N."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def patch_dim(self) -> int:
        """Values per flattened patch, C*P*Q."""
        return self.in_chans * self.patch_hw[0] * self.patch_hw[1]

    @property
    def mlp_hidden_dim(self) -> int:
        """Hidden width of the MLP."""
        # Truncated as in timm; the margin keeps a ratio written as hidden/width from losing a unit.
        return int(self.embed_dim * self.mlp_ratio + 1e-6)


def create_model(name: str, **overrides: Any) -> VisionTransformer:
    """Build a freshly initialised ViT by timm's name.

    Args:
        name: `vit_{tiny,small,base,large,huge}_patch{P}_{img}`, for example "vit_base_patch16_224".
        **overrides: Fields of `ViTConfig` to set in place of the named ones, for example `num_classes=10`.

    Returns:
        The model, on torch's default device and dtype. Its random numbers come from torch's global generator.

    Raises:
        ConfigError: The name is unknown (the message lists the sizes), or a value is out of range.
        TypeError: An override is no field of the configuration.
    """
    return VisionTransformer(ViTConfig.from_name(name, **overrides))


class VisionTransformer(nn.Module):
    """Classify images, or sequences of their patches, by a Transformer encoder.

    Input: images (B, C, height, width), or patches (B, N, P*Q*C) in order "cpq" (channel slowest: that of
    `patch_embed.proj.weight` (D, C, P, Q)); floating point, normalised. Output: logits (B, K).

    Source: arXiv 2010.11929, equations 1 to 4; graph and names of timm's VisionTransformer.

    Args:
        config: Sizes and options.
    """

    num_prefix_tokens = 1  # the class token

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        self.embed_dim = self.num_features = config.embed_dim
        self.global_pool = config.global_pool
        self.grad_checkpointing = False
        D = config.embed_dim

        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, D))
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_prefix_tokens + config.num_patches, D))
        self.pos_drop = nn.Dropout(config.pos_drop_rate)
        self.blocks = nn.Sequential(
            *[
                Block(
                    D,
                    config.num_heads,
                    mlp_hidden_dim=config.mlp_hidden_dim,
                    qkv_bias=config.qkv_bias,
                    act=config.act,
                    proj_drop=config.proj_drop_rate,
                    attn_drop=config.attn_drop_rate,
                    drop_path=config.drop_path_rate * index / max(config.depth - 1, 1),
                )
                for index in range(config.depth)
            ]
        )
        pooled = config.global_pool == "avg"
        self.norm = nn.Identity() if pooled else nn.LayerNorm(D, eps=LAYER_NORM_EPS)
        self.fc_norm = nn.LayerNorm(D, eps=LAYER_NORM_EPS) if pooled else nn.Identity()
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = nn.Linear(D, config.num_classes) if config.num_classes else nn.Identity()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw fresh weights as the paper's code does.

        Patch kernel LeCun normal; every D x D and MLP matrix Xavier uniform (query, key and value each by
        itself: drawn as one fused matrix they would be sqrt(2) too small); MLP biases N(0, 1e-6); position
        embedding N(0, 0.02); class token and head zero, so that all classes start equal.

        Source: google-research/vision_transformer, vit_jax/models_vit.py, and flax's initialisers.
        """
        config = self.config
        std = math.sqrt(1.0 / config.patch_dim) / _TRUNCATED_STD
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=std, a=-2.0 * std, b=2.0 * std)
        nn.init.zeros_(self.patch_embed.proj.bias)
        nn.init.zeros_(self.cls_token)
        nn.init.normal_(self.pos_embed, std=0.02)
        for block in self.blocks:
            block = cast("Block", block)
            for kernel in (*block.attn.qkv.weight.chunk(3), block.attn.proj.weight):
                nn.init.xavier_uniform_(kernel)
            for dense in (block.attn.qkv, block.attn.proj):
                if dense.bias is not None:
                    nn.init.zeros_(dense.bias)
            for dense in (block.mlp.fc1, block.mlp.fc2):
                nn.init.xavier_uniform_(dense.weight)
                nn.init.normal_(dense.bias, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)
            nn.init.constant_(self.head.bias, config.init_head_bias)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that timm's recipes never decay (nor do they decay vectors)."""
        return {"pos_embed", "cls_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass, not keeping its activations: less memory, more time."""
        self.grad_checkpointing = enable

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits.

        Args:
            x: Images (B, C, height, width), or patches (B, N, P*Q*C) in order "cpq"; floating point.

        Returns:
            Logits (B, K); with `num_classes=0` the pooled features (B, D).

        Raises:
            ValueError: The shape is neither.
            TypeError: The values are integers: scale and normalise them first.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return all tokens after the last block, (B, 1 + N, D), class token first.

        They have passed the final norm when `global_pool` is "token"; with "avg" their average is normed, by
        `forward_head`. Input and errors as in `forward`.
        """
        x = self._embed(x)  # (B, T, D)
        for block in self.blocks:
            x = self._run(block, x)
        return cast("Tensor", self.norm(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of the tokens that `forward_features` gave.

        Args:
            x: Tokens (B, 1 + N, D).
            pre_logits: Stop before the linear head.

        Returns:
            Logits (B, K), or the pooled features (B, D).
        """
        x = x[:, 0] if self.global_pool == "token" else x[:, self.num_prefix_tokens :].mean(dim=1)  # (B, D)
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else cast("Tensor", self.head(x))  # (B, K)

    @overload
    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: Literal[False] = False,
        norm: bool = False,
    ) -> list[Tensor]: ...

    @overload
    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        *,
        return_prefix_tokens: Literal[True],
        norm: bool = False,
    ) -> list[tuple[Tensor, Tensor]]: ...

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Tensor] | list[tuple[Tensor, Tensor]]:
        """Return the patch tokens after some blocks, in the blocks' order (the interface of DINO and timm).

        Args:
            x: Images or patches, as in `forward`.
            n: The last n blocks, or the indices of the blocks; -1 is the last.
            reshape: Give (B, D, gh, gw) in place of (B, N, D).
            return_prefix_tokens: Give pairs (patch tokens, class token (B, 1, D)).
            norm: Pass the tokens through the final norm (nothing with `global_pool="avg"`, as in timm).

        Raises:
            ValueError: A block does not exist, or the input's shape is wrong.
        """
        depth = len(self.blocks)
        if isinstance(n, int):
            if not 1 <= n <= depth:
                raise ValueError(f"n must be from 1 to {depth} (the model's blocks), got {n}")
            wanted = set(range(depth - n, depth))
        else:
            outside = [index for index in n if not -depth <= index < depth]
            if outside:
                raise ValueError(f"blocks {outside} do not exist: the model has {depth}, numbered from 0")
            wanted = {index % depth for index in n}
        x = self._embed(x)  # (B, T, D)
        found: list[tuple[Tensor, Tensor]] = []
        for index, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            x = self._run(block, x)
            if index in wanted:
                tokens = self.norm(x) if norm else x
                found.append((tokens[:, self.num_prefix_tokens :], tokens[:, : self.num_prefix_tokens]))
        if reshape:
            gh, gw = self.config.grid_size
            shape = (x.shape[0], gh, gw, self.embed_dim)
            found = [(tokens.reshape(shape).permute(0, 3, 1, 2), prefix) for tokens, prefix in found]
        return found if return_prefix_tokens else [tokens for tokens, _ in found]

    def _embed(self, x: Tensor) -> Tensor:
        """Return the encoder's input (equation 1): class token and embedded patches, plus their positions."""
        x = self.patch_embed(x)  # (B, N, D)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)  # (B, T, D)
        return cast("Tensor", self.pos_drop(x + self.pos_embed))

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return cast("Tensor", checkpoint(block, x, use_reentrant=False))
        return cast("Tensor", block(x))


class PatchEmbed(nn.Module):
    """Embed images or patches: (B, C, height, width) or (B, N, P*Q*C) -> (B, N, D).

    Args:
        config: Sizes; the grid is fixed by `img_size` and `patch_size`.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.img_size = config.image_hw
        self.patch_size = config.patch_hw
        self.grid_size = config.grid_size
        self.num_patches = config.num_patches
        self.proj = _PatchProjection(config)
        self._image_shape = (config.in_chans, *config.image_hw)
        self._patches_shape = (config.num_patches, config.patch_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedded patches, row by row, without position."""
        if not x.is_floating_point():
            raise TypeError(f"expected floating-point images or patches, got {x.dtype}: scale them first")
        if x.ndim == 4 and x.shape[1:] == self._image_shape:
            x = patchify(x, self.patch_size, order="cpq")
        elif x.ndim != 3 or x.shape[1:] != self._patches_shape:
            image, patches = ", ".join(map(str, self._image_shape)), ", ".join(map(str, self._patches_shape))
            raise ValueError(
                f"expected images (B, {image}) or patches (B, {patches}) in order 'cpq', got {tuple(x.shape)}"
            )
        return cast("Tensor", self.proj(x))  # (B, N, D)


class _PatchProjection(nn.Module):
    """The linear map E of a flattened patch; the weight has a convolution's shape (D, C, P, Q), as timm's."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.embed_dim, config.in_chans, *config.patch_hw))
        self.bias = nn.Parameter(torch.empty(config.embed_dim))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, C*P*Q) -> (B, N, D)."""
        return F.linear(patches, self.weight.flatten(1), self.bias)


def _integer(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"{name} must be an integer, got {value!r}")
    number = operator.index(value)
    if number < least:
        raise ConfigError(f"{name} must be at least {least}, got {number}")
    return number


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _pair(name: str, value: object) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ConfigError(f"{name} must be one integer or (height, width), got {value!r}")
        return _integer(name, value[0], 1), _integer(name, value[1], 1)
    side = _integer(name, value, 1)
    return side, side


def _nearest(size: int, patch: int) -> str:
    below = size - size % patch
    if below == size:
        return str(size)
    return f"{below} or {below + patch}" if below else str(patch)
