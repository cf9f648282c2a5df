"""The paper's hybrids: a Transformer over the feature map of a ResNet (arXiv 2010.11929, section 3.1).

The ResNet is vision_transformer's: group norm, standardised kernels, activation after the block (`Bottleneck`),
TensorFlow's padding. State-dict names are timm's.

Letters: B batch, C channels, N patches (gh x gw of them), P x Q patch of the feature map, F features, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_rs.exceptions import ConfigError
from vit_rs.models import _values as values
from vit_rs.models.resnet import (
    STANDARDIZATIONS,
    Bottleneck,
    ConvConfig,
    Stage,
    Standardization,
    Stem,
    check_images,
    init_resnet,
    make_stages,
    num_features,
    stage_depths,
)
from vit_rs.models.vit import VisionTransformer, ViTConfig
from vit_rs.ops import resample_patch_embed

__all__ = ["HybridConfig", "HybridEmbed", "HybridViT"]


@dataclass(frozen=True)
class HybridConfig(ViTConfig):
    """Configure a `HybridViT`; the default is R50+ViT-B/16. Fields that are not listed are `ViTConfig`'s.

    Attributes:
        img_size: Image side, or (height, width), in pixels. Other than for a ViT it need not be a multiple of
            `token_hw`: the ResNet rounds up.
        patch_size: Patch side, or (height, width), in positions of the feature map.
        backbone_layers: Blocks of each of the ResNet's stages: (3, 4, 9) ends at 1/16 of the image's side (R50 without
            stage 4, its layers in stage 3), (3, 4, 6, 3) and (2, 2, 2, 2) at 1/32, () is the stem alone, at 1/4.
        width_factor: What multiplies the ResNet's channels.
        standardization: As in `ResNetConfig`; "flax" (with `act="gelu_tanh"`) is what Google's weights were trained
            with, "timm" what timm makes of them.

    Raises:
        ConfigError: A value is out of its range, or two do not fit together.
    """

    patch_size: int | tuple[int, int] = 1
    backbone_layers: tuple[int, ...] = (3, 4, 9)
    width_factor: int = 1
    standardization: Standardization = "timm"

    def __post_init__(self) -> None:
        self._set("backbone_layers", stage_depths("backbone_layers", self.backbone_layers, least_stages=0))
        self._set("width_factor", values.integer("width_factor", self.width_factor, 1))
        values.choice("standardization", self.standardization, tuple(STANDARDIZATIONS))
        super().__post_init__()

    @property
    def backbone_stride(self) -> int:
        """Pixels of the image for each position of the feature map, along each side."""
        return 4 << max(len(self.backbone_layers) - 1, 0)

    @property
    def feature_hw(self) -> tuple[int, int]:
        """The feature map's (height, width)."""
        height, width = self.image_hw
        return -(-height // self.backbone_stride), -(-width // self.backbone_stride)

    @property
    def token_hw(self) -> tuple[int, int]:
        """Pixels of the image, (height, width), for each token: the ResNet's stride times the patch."""
        return self.backbone_stride * self.patch_hw[0], self.backbone_stride * self.patch_hw[1]

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches per image, (rows, columns)."""
        return self.feature_hw[0] // self.patch_hw[0], self.feature_hw[1] // self.patch_hw[1]

    def _check_size(self) -> None:
        (height, width), (P, Q) = self.feature_hw, self.patch_hw
        if height % P or width % Q:
            image = "x".join(map(str, self.image_hw))
            raise ConfigError(
                f"img_size {image} gives a feature map of {height}x{width} at stride {self.backbone_stride}, "
                f"which is not divisible by patch_size {P}x{Q}"
            )


class HybridViT(VisionTransformer):
    """Classify images by a Transformer encoder over the feature map of a ResNet.

    Input: images (B, C, height, width), floating point, normalised; no patches. Output: logits (B, K). All else is
    `VisionTransformer`'s.

    Source: arXiv 2010.11929, section 3.1; google-research/vision_transformer; graph and names of timm's hybrids.

    Args:
        config: Sizes and options.
    """

    config: HybridConfig

    def __init__(self, config: HybridConfig) -> None:
        if not isinstance(config, HybridConfig):
            raise TypeError(f"HybridViT needs a HybridConfig, got {type(config).__name__}")
        super().__init__(config)

    def _make_patch_embed(self, config: ViTConfig) -> nn.Module:
        return HybridEmbed(cast("HybridConfig", config))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw fresh weights: the ResNet's by `init_resnet`, the Transformer's by `init_vit`."""
        init_resnet(self.patch_embed)
        super().init_weights()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block, the ResNet's too, in the backward pass: less memory, more time."""
        super().set_grad_checkpointing(enable)
        for module in self.patch_embed.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable


class HybridEmbed(nn.Module):
    """Embed images by a ResNet and a linear map of its feature map's patches: (B, C, height, width) -> (B, N, D).

    Args:
        config: Sizes and options.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.stride = config.backbone_stride
        self.in_chans = config.in_chans
        self.dynamic_img_size = config.dynamic_img_size
        # As in timm, a stem alone is the backbone itself: its keys have no "stem.".
        self.backbone: nn.Module = _Backbone(config) if config.backbone_layers else _stem(config)
        features = num_features(config.backbone_layers, config.width_factor)
        self.proj = _FeatureProjection(features, config.patch_hw, config.embed_dim)
        self.set_input_size(config.image_hw, config.patch_hw)

    def set_input_size(self, image_hw: tuple[int, int], patch_hw: tuple[int, int]) -> None:
        """Take images of another size; a kernel for other patches is resized by FlexiViT's method.

        Args:
            image_hw: The image's (height, width) in pixels.
            patch_hw: The patch's (height, width) in positions of the feature map, whose sides it divides.
        """
        weight = self.proj.weight
        if tuple(weight.shape[2:]) != patch_hw:
            resized = resample_patch_embed(weight.detach(), patch_hw)
            self.proj.weight = nn.Parameter(resized, requires_grad=weight.requires_grad)
        self.img_size = image_hw
        self.patch_size = patch_hw
        self.token_hw = (self.stride * patch_hw[0], self.stride * patch_hw[1])
        feature_hw = [-(-side // self.stride) for side in image_hw]
        self.grid_size = (feature_hw[0] // patch_hw[0], feature_hw[1] // patch_hw[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the embedded patches, row by row, without position, and their grid (rows, columns).

        Raises:
            ValueError: The images have another size (with `dynamic_img_size`: neither the configuration's size nor
                a multiple of the pixels per token) or other channels, or are no images but patches.
            TypeError: The values are integers.
        """
        if x.ndim == 3:
            raise ValueError(
                f"a hybrid takes images (B, {self.in_chans}, height, width), and no patches of them, "
                f"got {tuple(x.shape)}"
            )
        check_images(x, self.in_chans)
        (height, width), (p, q), grid = x.shape[2:], self.token_hw, self.grid_size
        # Divisible sizes are not compared with the model's own: exported graphs have symbols for them.
        if self.dynamic_img_size and not (height % p or width % q):
            grid = (height // p, width // q)
        elif (height, width) != self.img_size:
            raise ValueError(self._expected(x))
        x = self.proj(self.backbone(x))  # (B, D, gh, gw)
        return x.flatten(2).transpose(1, 2), grid  # (B, N, D)

    def _expected(self, x: Tensor) -> str:
        height, width = self.img_size
        if self.dynamic_img_size:
            sizes = f"multiples of {self.token_hw[0]} high and of {self.token_hw[1]} wide, or {height}x{width}"
            return f"expected images of {sizes}, got {x.shape[2]}x{x.shape[3]}"
        other = f"expected images of {height}x{width}, got {x.shape[2]}x{x.shape[3]}"
        return f"{other}; dynamic_img_size=True takes other sizes"


class _Backbone(nn.Module):
    """The ResNet before a Transformer: (B, C, height, width) -> (B, F, height / stride, width / stride), rounded up."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.stem = _stem(config)
        self.stages = make_stages(
            Bottleneck, config.backbone_layers, config.width_factor, ConvConfig("same", config.standardization)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x


def _stem(config: HybridConfig) -> Stem:
    return Stem(config.in_chans, config.width_factor, ConvConfig("same", config.standardization), normed=True)


class _FeatureProjection(nn.Module):
    """The linear map E of a patch of the feature map, as a convolution whose stride is its kernel (D, F, P, Q)."""

    def __init__(self, features: int, patch_hw: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(embed_dim, features, *patch_hw))
        self.bias = nn.Parameter(torch.empty(embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, gh * P, gw * Q) -> (B, D, gh, gw)."""
        return F.conv2d(x, self.weight, self.bias, stride=self.weight.shape[2:])
