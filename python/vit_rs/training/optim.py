"""The optimizer of a stage: which parameters are decayed, and AdamW over them.

Source: AdamW, arXiv 1711.05101. Weight decay on matrices only, as big_vision and timm do it: biases and
norms are vectors, and class token and position embedding are positions in space rather than maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vit_rs.training.config import OptimConfig

__all__ = ["build_optimizer", "is_decayed", "parameter_groups"]

_UNDECAYED = frozenset(("cls_token", "dist_token", "reg_token", "mask_token"))


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Return whether weight decay applies to a parameter, by its name and number of dimensions."""
    last = name.rsplit(".", 1)[-1]
    position = last.startswith("pos_embed") or ".relative." in name
    return parameter.ndim > 1 and not position and last not in _UNDECAYED


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the two groups of trainable parameters, decayed and not, each in the order of the model."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [p for name, p in trained if is_decayed(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if not is_decayed(name, p)], "weight_decay": 0.0},
    ]


def build_optimizer(model: torch.nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return AdamW over the model's trainable parameters.

    On CPU and CUDA the fused kernel updates all of them in one call: on small models the unfused one costs
    more than the model's own forward pass.
    """
    device = next(model.parameters()).device
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=device.type in ("cpu", "cuda"),
    )
