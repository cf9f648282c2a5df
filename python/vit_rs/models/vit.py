"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929, section 3.1).

State-dict names, configuration fields and methods are timm's; the initialisation is that of the paper's own
code (vision_transformer, flax). An image and its patches are the same input, because the patch embedding is a
linear map of the flattened patch: `model(images)` equals `model(patchify(images, P, order="cpq"))`.

Letters: B batch, C channels, P x Q patch, N patches (gh x gw of them), T tokens (prefix tokens, then patches),
D width, H heads, K classes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsIndex, cast, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit_rs.exceptions import ConfigError
from vit_rs.models import _values as values
from vit_rs.models.encoder import Block, BlockConfig
from vit_rs.models.heads import AttentionPool, PreLogits
from vit_rs.models.initialisation import init_heads, init_vit
from vit_rs.models.patch_embed import PatchEmbed
from vit_rs.models.pos_encoding import (
    position_table,
    register_tables,
    resampled_state,
    rotary_table,
    set_tables,
)
from vit_rs.ops.conventions import GRID_CONVENTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = ["ViTConfig", "VisionTransformer"]

_RATES = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
_POS_EMBED = ("1d", "2d", "relative", "sincos2d_bv", "sincos2d_moco", "sincos2d_mae", "none")
_PLACEMENTS = ("stem", "every", "shared")


@dataclass(frozen=True)
class ViTConfig(values.Configuration):
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
        mlp_ratio: Hidden width of the MLP over D. The product is truncated to an integer, as in timm. With
            `mlp="swiglu"` it counts gate and value together, as in timm.
        mlp: "mlp", two dense layers with a GELU, or "swiglu" (DINOv2's giant, DINOv3's largest).
        act: "gelu" (erf; timm, torchvision) or "gelu_tanh" (flax's `nn.gelu`: for weights trained in JAX).
        qkv_bias: Whether the query, key and value projections have a bias.
        qk_norm: Whether the queries and keys of each head are normed (ViT-22B, arXiv 2302.05442).
        init_values: Initial value of the layer scale (arXiv 2103.17239); None builds none.
        norm_eps: Epsilon of the layer norms: 1e-6 in flax, timm, torchvision and MAE; Hugging Face's ViT has
            1e-12, DINOv3 1e-5.
        class_token: Whether a learned token is put before the patches.
        distilled: Whether DeiT's distillation token and its head follow the class token (arXiv 2012.12877);
            the logits are the mean of both heads.
        reg_tokens: Registers, learned tokens after these (arXiv 2309.16588).
        no_embed_class: Whether only patches have a position, and not the tokens before them.
        pos_embed: "1d" learned in raster order (the paper's and everybody's), "2d" (learned tables of width D/2
            for columns and rows, concatenated), "relative" (1-D offsets, in every layer's attention),
            "sincos2d_bv", "sincos2d_moco" or "sincos2d_mae" (fixed), "none" (a bag of patches). Appendix D.4.
        pos_placement: Where a table is added: at the "stem", at "every" layer's input with its own table, or
            "shared": one table at every layer's input. "1d" and "2d"; sin-cos at the stem or shared.
        pos_convention: How the table is resampled for images of another size, a name of
            `vit_rs.ops.conventions.GRID_CONVENTIONS`.
        rope: Whether queries and keys are rotated by the patch's place (rotary, 2-D, as in DINOv3).
        rope_theta: Base of the rotary frequencies.
        dynamic_img_size: Whether images of any size that the patch divides are taken, the table resampled.
        global_pool: "token" reads the class token, "avg" averages the patch tokens, "map" gathers by attention.
        fc_norm: True norms the pooled vector (MAE and timm's "avg"), False all tokens before pooling (the paper,
            and the GAP of vision_transformer and big_vision); None is True for "avg" and False otherwise.
        representation_size: Width of a dense layer with tanh before the head; None has none (appendix D.1's
            ImageNet-21k files have one).
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
    mlp: Literal["mlp", "swiglu"] = "mlp"
    act: Literal["gelu", "gelu_tanh"] = "gelu"
    qkv_bias: bool = True
    qk_norm: bool = False
    init_values: float | None = None
    norm_eps: float = 1e-6
    class_token: bool = True
    distilled: bool = False
    reg_tokens: int = 0
    no_embed_class: bool = False
    pos_embed: Literal["1d", "2d", "relative", "sincos2d_bv", "sincos2d_moco", "sincos2d_mae", "none"] = "1d"
    pos_placement: Literal["stem", "every", "shared"] = "stem"
    pos_convention: str = "timm"
    rope: bool = False
    rope_theta: float = 100.0
    dynamic_img_size: bool = False
    global_pool: Literal["token", "avg", "map"] = "token"
    fc_norm: bool | None = None
    representation_size: int | None = None
    drop_rate: float = 0.0
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    init_head_bias: float = 0.0

    def __post_init__(self) -> None:
        for name in ("img_size", "patch_size"):
            pair = values.pair(name, getattr(self, name))
            # One spelling per value: configurations that mean the same compare equal, also after JSON.
            self._set(name, pair[0] if pair[0] == pair[1] else pair)
        for name in ("in_chans", "num_classes", "embed_dim", "depth", "num_heads", "reg_tokens"):
            least = 0 if name in ("num_classes", "reg_tokens") else 1
            self._set(name, values.integer(name, getattr(self, name), least))
        for name in ("mlp_ratio", "init_head_bias", "norm_eps", "rope_theta"):
            self._set(name, values.number(name, getattr(self, name)))
        for name in _RATES:
            self._set(name, values.rate(name, getattr(self, name)))
        for name in ("qkv_bias", "qk_norm", "class_token", "distilled", "no_embed_class", "rope", "dynamic_img_size"):
            values.flag(name, getattr(self, name))
        if self.init_values is not None:
            self._set("init_values", values.number("init_values", self.init_values))
        if self.representation_size is not None:
            size = values.integer("representation_size", self.representation_size, 1)
            self._set("representation_size", size)
        if self.fc_norm is not None:
            values.flag("fc_norm", self.fc_norm)
        for name, known in (
            ("global_pool", ("token", "avg", "map")),
            ("act", ("gelu", "gelu_tanh")),
            ("mlp", ("mlp", "swiglu")),
            ("pos_embed", _POS_EMBED),
            ("pos_placement", _PLACEMENTS),
            ("pos_convention", tuple(GRID_CONVENTIONS)),
        ):
            values.choice(name, getattr(self, name), known)
        self._check_together()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_together(self) -> None:
        """Raise where two values do not fit together."""
        self._check_size()
        D, heads = self.embed_dim, self.num_heads
        if D % heads:
            raise ConfigError(f"embed_dim {D} is not divisible by num_heads {heads}")
        if self.mlp_hidden_dim < 1:
            raise ConfigError(f"mlp_ratio {self.mlp_ratio} of embed_dim {D} leaves no hidden unit")
        if self.mlp == "swiglu" and self.mlp_hidden_dim % 2:
            raise ConfigError(
                f"mlp='swiglu' halves the hidden width, got {self.mlp_hidden_dim} (mlp_ratio x embed_dim)"
            )
        if self.norm_eps <= 0.0 or self.rope_theta <= 0.0:
            raise ConfigError(f"norm_eps and rope_theta must be above 0, got {self.norm_eps} and {self.rope_theta}")
        if not self.class_token and (self.global_pool == "token" or self.distilled):
            reading = "distilled=True" if self.distilled else "global_pool='token'"
            raise ConfigError(f"{reading} reads the class token, but class_token is false")
        if self.distilled and (self.global_pool != "token" or self.representation_size is not None):
            raise ConfigError("distilled=True reads two tokens: global_pool must be 'token', representation_size None")
        if self.global_pool == "map" and self.mlp != "mlp":
            raise ConfigError("global_pool='map' has a plain MLP of the same width: mlp must be 'mlp'")
        fixed, learned = self.pos_embed.startswith("sincos"), self.pos_embed in ("1d", "2d")
        if self.pos_placement != "stem" and not (learned or (fixed and self.pos_placement == "shared")):
            raise ConfigError(f"pos_placement {self.pos_placement!r} needs a learned table, got {self.pos_embed!r}")
        for name, parts, needed in ((self.pos_embed, 4, fixed), ("2d", 2, self.pos_embed == "2d")):
            if needed and D % parts:
                raise ConfigError(f"pos_embed {name!r} needs an embed_dim divisible by {parts}, got {D}")
        if self.rope and (D // heads) % 4:
            raise ConfigError(f"rope needs a head width divisible by 4, got {D} / {heads} = {D // heads}")

    def _check_size(self) -> None:
        (height, width), (p, q) = self.image_hw, self.patch_hw
        if height % p or width % q:
            raise ConfigError(
                f"img_size {height}x{width} is not divisible by patch_size {p}x{q}: "
                f"the nearest sizes that are: {_nearest(height, p)} high, {_nearest(width, q)} wide"
            )

    @property
    def image_hw(self) -> tuple[int, int]:
        """Image (height, width) in pixels."""
        return values.pair("img_size", self.img_size)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Patch (height, width): in pixels, or, behind a backbone, in positions of its feature map."""
        return values.pair("patch_size", self.patch_size)

    @property
    def token_hw(self) -> tuple[int, int]:
        """Pixels of the image, (height, width), for each token: the patch, times a backbone's stride."""
        return self.patch_hw

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches per image, (rows, columns)."""
        return self.image_hw[0] // self.token_hw[0], self.image_hw[1] // self.token_hw[1]

    @property
    def num_patches(self) -> int:
        """Patches per image, N."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class token, distillation token, registers."""
        return int(self.class_token) + int(self.distilled) + self.reg_tokens

    @property
    def embedded_prefix_tokens(self) -> int:
        """Rows of the position table before those of the grid."""
        return 0 if self.no_embed_class else self.num_prefix_tokens

    @property
    def norms_pooled(self) -> bool:
        """Whether the final norm comes after pooling (`fc_norm`), and not before."""
        return self.global_pool == "avg" if self.fc_norm is None else self.fc_norm

    @property
    def mlp_hidden_dim(self) -> int:
        """Hidden width of the MLP."""
        # Truncated as in timm; the margin keeps a ratio written as hidden/width from losing a unit.
        return int(self.embed_dim * self.mlp_ratio + 1e-6)


class _Places(NamedTuple):
    """What the blocks are told of positions: the grid, tables to add (L, rows, D), rotations (2, N, d)."""

    grid: tuple[int, int]
    tables: Tensor | None
    rotation: Tensor | None


class VisionTransformer(nn.Module):
    """Classify images, or sequences of their patches, by a Transformer encoder.

    Input: images (B, C, height, width), or patches (B, N, P*Q*C) in order "cpq" (channel slowest: that of
    `patch_embed.proj.weight` (D, C, P, Q)); floating point, normalised. Output: logits (B, K).

    Source: arXiv 2010.11929, equations 1 to 4; graph and names of timm's VisionTransformer.

    Args:
        config: Sizes and options.
    """

    cls_token: nn.Parameter | None
    dist_token: nn.Parameter | None
    reg_token: nn.Parameter | None
    # The position tables, as `config.pos_embed` has them: `pos_encoding.register_tables`.
    pos_embed: Tensor | None
    pos_embed_x: Tensor
    pos_embed_y: Tensor
    pos_embed_prefix: Tensor | None

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        self.embed_dim = self.num_features = config.embed_dim
        self.num_prefix_tokens = config.num_prefix_tokens
        self.global_pool = config.global_pool
        self.grad_checkpointing = False
        D, eps = config.embed_dim, config.norm_eps
        relative = config.pos_embed == "relative"
        blocks = BlockConfig(
            dim=D,
            num_heads=config.num_heads,
            mlp_hidden_dim=config.mlp_hidden_dim,
            mlp=config.mlp,
            act=config.act,
            qkv_bias=config.qkv_bias,
            qk_norm=config.qk_norm,
            init_values=config.init_values,
            norm_eps=eps,
            proj_drop=config.proj_drop_rate,
            attn_drop=config.attn_drop_rate,
            relative_grid=config.grid_size if relative else None,
            relative_convention=config.pos_convention,
        )
        last = max(config.depth - 1, 1)

        self.patch_embed = self._make_patch_embed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, D)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, config.reg_tokens, D)) if config.reg_tokens else None
        register_tables(self, config)
        # After the table, as in timm's state dict; it stands before the registers in the sequence.
        self.dist_token = nn.Parameter(torch.empty(1, 1, D)) if config.distilled else None
        self.pos_drop = nn.Dropout(config.pos_drop_rate)
        self.blocks = nn.ModuleList(
            Block(blocks, drop_path=config.drop_path_rate * index / last) for index in range(config.depth)
        )
        self.norm = nn.Identity() if config.norms_pooled else nn.LayerNorm(D, eps=eps)
        self.attn_pool = AttentionPool(blocks) if config.global_pool == "map" else None
        self.fc_norm = nn.LayerNorm(D, eps=eps) if config.norms_pooled else nn.Identity()
        size = config.representation_size
        self.pre_logits = PreLogits(D, size) if size else nn.Identity()
        self.head_drop = nn.Dropout(config.drop_rate)
        self._make_heads(config)
        self.init_weights()

    def _make_patch_embed(self, config: ViTConfig) -> nn.Module:
        return PatchEmbed(
            config.image_hw,
            config.patch_hw,
            in_chans=config.in_chans,
            embed_dim=config.embed_dim,
            dynamic_img_size=config.dynamic_img_size,
        )

    def _make_heads(self, config: ViTConfig) -> None:
        width, classes = config.representation_size or config.embed_dim, config.num_classes
        self.head = nn.Linear(width, classes) if classes else nn.Identity()
        if config.distilled:
            self.head_dist = nn.Linear(width, classes) if classes else nn.Identity()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw fresh weights as the paper's code does; see `vit_rs.models.initialisation.init_vit`."""
        init_vit(self, self.config)

    def no_weight_decay(self) -> set[str]:
        """Return what timm's recipes never decay (besides vectors): the sequence's tokens and position tables.

        The attention pool's query is no token of the sequence: it is not among them, as in timm.
        """
        never = ("pos_embed", "cls_token", "dist_token", "reg_token")
        return {name for name, _ in self.named_parameters() if name.startswith(never) or ".relative." in name}

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """Return the head; of a distilled model both heads, as timm does."""
        return (self.head, self.head_dist) if self.config.distilled else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one, initialised as a new model's; `config` follows.

        Args:
            num_classes: Outputs of the new head; 0 leaves none.
            global_pool: How the tokens are pooled from now on; None as before. Where the final norm stands stays as
                it is, as in timm: its weights are trained for that place.

        Raises:
            ConfigError: The values do not fit the model, or "map" is asked of a model without an attention pool.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if pool == "map" and self.attn_pool is None:
            raise ConfigError("global_pool='map' needs an attention pool, which this model was built without")
        fc_norm = self.config.fc_norm if pool == self.global_pool else self.config.norms_pooled
        config = replace(self.config, num_classes=num_classes, global_pool=cast("Any", pool), fc_norm=fc_norm)
        like = next(self.blocks.parameters())
        with like.device, torch.no_grad():
            self._make_heads(config)
            init_heads(self, config)
        for head in (self.head, getattr(self, "head_dist", self.head)):
            head.to(like.dtype).train(self.training)
        self.config, self.num_classes, self.global_pool = config, config.num_classes, config.global_pool
        if pool != "map":
            self.attn_pool = None

    @torch.no_grad()
    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make the model one for images, or patches, of another size, in place; `config` follows.

        Position tables are resampled by `config.pos_convention` (fixed ones too, as in timm), the patch kernel by
        FlexiViT's resize, `vit_rs.resample_patch_embed`. What changes is a new parameter with the old one's dtype,
        device and `requires_grad`: give it to the optimiser anew.

        Args:
            img_size: Image side, or (height, width), in pixels; None keeps it.
            patch_size: Patch side, or (height, width), in pixels; None keeps it.

        Raises:
            ConfigError: The sizes do not fit; nothing has changed then.
        """
        old = self.config
        new = replace(
            old,
            img_size=old.img_size if img_size is None else img_size,
            patch_size=old.patch_size if patch_size is None else patch_size,
        )
        tensors, resampled = resampled_state(self.state_dict(), old, new)
        cast("PatchEmbed", self.patch_embed).set_input_size(new.image_hw, new.patch_hw)
        set_tables(self, {key: tensors[key] for key, _, _ in resampled}, new.grid_size)
        self.config = new

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
        """Return all tokens after the last block, (B, T, D): class token, distillation token, registers, patches.

        They have passed the final norm, but with `fc_norm` (the default of "avg"), where `forward_head` norms the
        average. Input and errors as in `forward`.
        """
        x, places = self._embed(x)  # (B, T, D)
        for index, block in enumerate(self.blocks):
            x = self._run(index, block, x, places)
        return cast("Tensor", self.norm(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of the tokens that `forward_features` gave.

        Args:
            x: Tokens (B, T, D).
            pre_logits: Stop before the linear head.

        Returns:
            Logits (B, K), or the pooled features: (B, D), or (B, R) with a representation layer.
        """
        if self.config.distilled:
            return self._distilled_head(x, pre_logits)
        if self.attn_pool is not None:
            x = self.attn_pool(x[:, self.num_prefix_tokens :])
        else:
            x = x[:, 0] if self.global_pool == "token" else x[:, self.num_prefix_tokens :].mean(dim=1)  # (B, D)
        x = self.head_drop(self.pre_logits(self.fc_norm(x)))
        return x if pre_logits else cast("Tensor", self.head(x))  # (B, K)

    def _distilled_head(self, x: Tensor, pre_logits: bool) -> Tensor:
        """Average what the class token's head and the distillation token's say (arXiv 2012.12877, section 4)."""
        first, second = (self.head_drop(token) for token in self.fc_norm(x[:, :2]).unbind(1))  # (B, D) each
        if not pre_logits:
            first, second = self.head(first), self.head_dist(second)
        return cast("Tensor", (first + second) / 2)

    @overload
    def get_intermediate_layers(
        self,
        x: Tensor,
        n: SupportsIndex | Sequence[SupportsIndex] = 1,
        reshape: bool = False,
        return_prefix_tokens: Literal[False] = False,
        norm: bool = False,
    ) -> list[Tensor]: ...

    @overload
    def get_intermediate_layers(
        self,
        x: Tensor,
        n: SupportsIndex | Sequence[SupportsIndex] = 1,
        reshape: bool = False,
        *,
        return_prefix_tokens: Literal[True],
        norm: bool = False,
    ) -> list[tuple[Tensor, Tensor]]: ...

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: SupportsIndex | Sequence[SupportsIndex] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Tensor] | list[tuple[Tensor, Tensor]]:
        """Return the patch tokens after some blocks, in the blocks' order (the interface of DINO and timm).

        Args:
            x: Images or patches, as in `forward`.
            n: The last n blocks, or the indices of the blocks; -1 is the last.
            reshape: Give (B, D, gh, gw) in place of (B, N, D).
            return_prefix_tokens: Give pairs (patch tokens, tokens before them (B, prefix, D)).
            norm: Pass the tokens through the final norm (nothing with `fc_norm`, as in timm).

        Raises:
            ValueError: A block does not exist, or the input's shape is wrong.
        """
        depth = len(self.blocks)
        if isinstance(n, Iterable):
            indices = [operator.index(index) for index in n]
            outside = [index for index in indices if not -depth <= index < depth]
            if outside:
                raise ValueError(f"blocks {outside} do not exist: the model has {depth}, numbered from 0")
            wanted = {index % depth for index in indices}
        else:
            last = operator.index(n)
            if not 1 <= last <= depth:
                raise ValueError(f"n must be from 1 to {depth} (the model's blocks), got {last}")
            wanted = set(range(depth - last, depth))
        x, places = self._embed(x)  # (B, T, D)
        found: list[tuple[Tensor, Tensor]] = []
        for index, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            x = self._run(index, block, x, places)
            if index in wanted:
                tokens = self.norm(x) if norm else x
                found.append((tokens[:, self.num_prefix_tokens :], tokens[:, : self.num_prefix_tokens]))
        if reshape:
            shape = (x.shape[0], *places.grid, self.embed_dim)
            found = [(tokens.reshape(shape).permute(0, 3, 1, 2), prefix) for tokens, prefix in found]
        return found if return_prefix_tokens else [tokens for tokens, _ in found]

    def _embed(self, x: Tensor) -> tuple[Tensor, _Places]:
        """Return the encoder's input (equation 1), and what the blocks are told of positions."""
        config = self.config
        x, grid = self.patch_embed(x)  # (B, N, D)
        tables = position_table(self, config, grid)
        rotation = None
        if config.rope:
            width = config.embed_dim // config.num_heads
            rotation = rotary_table(grid, width, theta=config.rope_theta, dtype=x.dtype, device=x.device)
        prefix = [
            token.expand(x.shape[0], -1, -1)
            for token in (self.cls_token, self.dist_token, self.reg_token)
            if token is not None
        ]
        if tables is not None and config.no_embed_class:
            x = x + tables[:1]
            if config.pos_placement != "stem":
                tables = nn.functional.pad(tables, (0, 0, self.num_prefix_tokens, 0))  # for the layers that follow
        if prefix:
            x = torch.cat((*prefix, x), dim=1)  # (B, T, D)
        if tables is not None and not config.no_embed_class:
            x = x + tables[:1]
        return self.pos_drop(x), _Places(grid, tables if config.pos_placement != "stem" else None, rotation)

    def _run(self, index: int, block: nn.Module, x: Tensor, places: _Places) -> Tensor:
        if places.tables is not None and index:
            x = x + places.tables[index if len(places.tables) > 1 else 0]
        if self.grad_checkpointing and torch.is_grad_enabled():
            return cast("Tensor", checkpoint(block, x, places.grid, places.rotation, use_reentrant=False))
        return cast("Tensor", block(x, places.grid, places.rotation))


def _nearest(size: int, patch: int) -> str:
    below = size - size % patch
    if below == size:
        return str(size)
    return f"{below} or {below + patch}" if below else str(patch)
