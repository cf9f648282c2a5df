"""Models: plain `nn.Module`s whose configuration is a frozen dataclass in the model's own file."""

from __future__ import annotations

from vit_rs.models.catalogue import create_model, named_config
from vit_rs.models.hybrid import HybridConfig, HybridViT
from vit_rs.models.resnet import BiTResNet, ResNetConfig
from vit_rs.models.vit import VisionTransformer, ViTConfig

__all__ = [
    "BiTResNet",
    "HybridConfig",
    "HybridViT",
    "ResNetConfig",
    "ViTConfig",
    "VisionTransformer",
    "create_model",
    "named_config",
]
