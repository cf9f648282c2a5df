"""Which network a run trains, and what it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vit_rs.training.checks import above, at_least, within

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ModelConfig"]


@dataclass(frozen=True)
class ModelConfig:
    """The network. Image size, channels and classes come from the data.

    None leaves a field as the named model has it. Fields are those of `vit_rs.models.ViTConfig`, `HybridConfig` and
    `ResNetConfig`; one that the named kind of model does not have is an error.
    """

    # A name that vit_rs.models.create_model takes, for example "vit_small_patch16_224", "vit_base_r50_s16_224",
    # "resnetv2_50x1_bit"; or "vit", "hybrid", "bit": the class's own defaults with the fields below.
    name: str = "vit"
    # Side of a patch in pixels (of the feature map in a hybrid); divides every image size of the run.
    patch_size: int | None = None
    # Width of a token.
    embed_dim: int | None = None
    # Number of transformer blocks.
    depth: int | None = None
    # Attention heads of a block; divides embed_dim.
    num_heads: int | None = None
    # Width of a block's MLP, in units of embed_dim.
    mlp_ratio: float | None = None
    # Two dense layers, or a gated unit (DINOv2's giant, DINOv3's largest).
    mlp: Literal["mlp", "swiglu"] | None = None
    # The MLP's activation; weights that were trained in JAX want gelu_tanh.
    act: Literal["gelu", "gelu_tanh"] | None = None
    # Whether queries and keys are normed.
    qk_norm: bool | None = None
    # Initial layer scale; none builds none.
    init_values: float | None = None
    # Whether there is a class token; without it global_pool must be avg or map.
    class_token: bool | None = None
    # Number of registers: learned tokens that nothing reads.
    reg_tokens: int | None = None
    # What the head reads: the class token, the mean of the patch tokens, or attention pooling.
    global_pool: Literal["token", "avg", "map"] | None = None
    # True norms the pooled vector (MAE), False all tokens before pooling (the paper).
    fc_norm: bool | None = None
    # Width of a dense layer with tanh before the head.
    representation_size: int | None = None
    # The position encoding, and where it is added (the paper's appendix D.4).
    pos_embed: Literal["1d", "2d", "relative", "sincos2d_bv", "sincos2d_moco", "sincos2d_mae", "none"] | None = None
    pos_placement: Literal["stem", "every", "shared"] | None = None
    # Whether queries and keys are rotated by the patch's place.
    rope: bool | None = None
    # Blocks of a hybrid's ResNet stages, or of a BiT ResNet's.
    layers: tuple[int, ...] | None = None
    # What multiplies the ResNet's channels.
    width_factor: int | None = None
    # Initial value of the head's bias: about -log(classes) suits loss=sigmoid.
    init_head_bias: float | None = None
    # Dropout after every dense layer except qkv, and on the embedded tokens.
    dropout: float = 0.0
    # Stochastic depth of the last block; earlier blocks get linearly less, the first none.
    drop_path_rate: float = 0.0
    # Whether blocks are computed a second time in the backward pass, in place of keeping their activations.
    grad_checkpointing: bool = False
    # Checkpoint to start from instead of random weights: any file that load_pretrained reads; its position embedding is
    # interpolated where needed. A file that vit-rs wrote, given on the command line, sets the fields above that say
    # what the network is.
    init: str | None = None
    # The checkpoint's head: kept, or left out for a new one because it was trained for other classes, and with it a
    # representation layer that is not asked for.
    init_head: Literal["keep", "reset"] = "keep"
    # Answers to what load_pretrained cannot know: the layout, resampling convention and section of the file, and the
    # image side in pixels that its weights were trained at.
    init_layout: str | None = None
    init_convention: str | None = None
    init_section: str | None = None
    init_img_size: int | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) for every value that cannot be used, whatever the model."""
        for name in (
            "patch_size",
            "embed_dim",
            "depth",
            "num_heads",
            "representation_size",
            "width_factor",
            "init_img_size",
        ):
            yield from at_least(self, name, 1)
        yield from at_least(self, "reg_tokens", 0)
        if self.layers is not None and any(count < 1 for count in self.layers):
            yield "layers", f"expected values of at least 1, got {self.layers}"
        if self.embed_dim is not None and self.num_heads is not None and self.embed_dim % max(self.num_heads, 1):
            yield "num_heads", f"{self.num_heads} heads do not divide embed_dim {self.embed_dim}"
        yield from above(self, "mlp_ratio", 0.0)
        yield from within(self, "dropout", 0.0, 1.0, open_high=True)
        yield from within(self, "drop_path_rate", 0.0, 1.0, open_high=True)
        if self.init is None:
            for name in ("init_layout", "init_convention", "init_section", "init_img_size"):
                if getattr(self, name) is not None:
                    yield name, f"{getattr(self, name)!r} is for model.init, which is none"
