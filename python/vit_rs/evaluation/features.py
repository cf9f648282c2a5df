"""The frozen features of a model, for probes that never touch its weights.

Letters: B batch, N images, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from vit_rs.evaluation.classify import evaluating

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["extract_features"]


class _Backbone(Protocol):
    def forward_features(self, x: Tensor) -> Tensor: ...

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor: ...


def extract_features(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], *, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return the pre-logits of every image that a loader yields, and its label.

    Args:
        model: A model with `forward_features` and `forward_head(..., pre_logits=True)` (ours, or timm's),
            already on `device`. It runs in evaluation mode; afterwards every module is in the mode that it
            was in.
        loader: Batches (images (B, ...), labels (B,)). For a probe: without shuffling or augmentation.
        device: Where to put the batches.

    Returns:
        Features (N, D) float32 and labels (N,) int64, on the CPU, in the loader's order.

    Raises:
        ValueError: The loader yields nothing.
        TypeError: The model has no `forward_features` or `forward_head`.
    """
    if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        raise TypeError(f"{type(model).__name__} has no forward_features and forward_head to take features from")
    backbone = cast("_Backbone", model)
    features: list[Tensor] = []
    targets: list[Tensor] = []
    with evaluating(model):
        for images, labels in loader:
            tokens = backbone.forward_features(images.to(device, non_blocking=True))
            features.append(backbone.forward_head(tokens, pre_logits=True).float().cpu())  # (B, D)
            targets.append(labels.cpu())
    if not features:
        raise ValueError("the loader yielded no images to take features from")
    # Ordinary tensors, which autograd accepts, in place of inference ones: a linear probe trains on them.
    return torch.cat(features).clone(), torch.cat(targets).long().clone()
