"""Models: plain `nn.Module`s whose configuration is a frozen dataclass in the model's own file."""

from __future__ import annotations

from vit_rs.models.vit import VisionTransformer, ViTConfig, create_model

__all__ = ["ViTConfig", "VisionTransformer", "create_model"]
