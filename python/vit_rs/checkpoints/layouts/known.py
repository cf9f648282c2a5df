"""Every layout that is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vit_rs.checkpoints.layouts.bit import BIG_TRANSFER, BIG_VISION_BIT
from vit_rs.checkpoints.layouts.google import BIG_VISION, NAFLEX, VISION_TRANSFORMER
from vit_rs.checkpoints.layouts.hf import HF_DEIT, HF_DINOV2, HF_DINOV2_REG, HF_DINOV3, HF_VIT, hf_layout
from vit_rs.checkpoints.layouts.timm import (
    DEIT,
    DEIT3,
    DINO,
    DINOV2,
    DINOV2_REG,
    DINOV3,
    MAE,
    MOCO_V3,
    TIMM,
    TIMM_DINOV3,
    TIMM_RESNET,
    VIT_RS,
)
from vit_rs.checkpoints.layouts.torchvision import TORCHVISION

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from vit_rs.checkpoints.layouts.base import Layout

__all__ = ["LAYOUTS", "google_layout", "layout_named", "layout_to_write"]

LAYOUTS: tuple[Layout, ...] = (
    HF_DINOV3,
    HF_DINOV2_REG,
    HF_DINOV2,
    HF_DEIT,
    HF_VIT,
    TORCHVISION,
    DINOV3,
    DINOV2_REG,
    DINOV2,
    DINO,
    MAE,
    MOCO_V3,
    TIMM_DINOV3,
    DEIT3,
    DEIT,
    VIT_RS,
    TIMM,
    TIMM_RESNET,
    NAFLEX,
    VISION_TRANSFORMER,
    BIG_VISION,
    BIG_TRANSFER,
    BIG_VISION_BIT,
)
"""Asked in this order whether they recognise a file's keys: the most specific first."""


def layout_named(name: str) -> Layout:
    """Return a layout by its name.

    Raises:
        ValueError: There is none; the message lists the names.
    """
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise ValueError(f"layout must be one of {', '.join(repr(each.name) for each in LAYOUTS)}, got {name!r}")


def layout_to_write(project: Literal["timm", "hf", "torchvision"], tensors: Mapping[str, Tensor]) -> Layout:
    """Return a project's layout for our tensors, which say what model they are.

    Layer scales and no position table are DINOv3, whose names differ from the other ViTs' in timm and at Hugging Face.
    """
    if project == "hf":
        return hf_layout(tensors)
    if project == "torchvision":
        return TORCHVISION
    if "stem.conv.weight" in tensors:
        return TIMM_RESNET
    rotary = "blocks.0.ls1.gamma" in tensors and not any(key.startswith("pos_embed") for key in tensors)
    return TIMM_DINOV3 if rotary else TIMM


def google_layout(tensors: Collection[str], prefix_rows: int) -> Layout:
    """Return the layout in which Google's own code would hold a model of ours.

    The position table has a row for the class token in vision_transformer's, and none in big_vision's. Hybrids are
    vision_transformer's alone; one whose class token has no row is told nowhere, and gets big_vision's.

    Args:
        tensors: The model's state dict, or its keys.
        prefix_rows: How many tokens before the patches have a row in the position table.
    """
    if "stem.conv.weight" in tensors:
        return BIG_TRANSFER
    hybrid = any(key.startswith("patch_embed.backbone.") for key in tensors)
    return VISION_TRANSFORMER if prefix_rows or (hybrid and "cls_token" not in tensors) else BIG_VISION
