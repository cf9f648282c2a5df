"""The optimizer of a stage: which parameters are decayed, how fast each layer learns, and what moves them.

Source: AdamW, arXiv 1711.05101; LARS, see vit_rs.methods.lars. Weight decay on matrices only, as big_vision and timm
do it: biases and norms are vectors, and class token and position embedding are positions in space rather than maps.
Layer-wise decay of the learning rate as in BEiT, arXiv 2106.08254, section 3.1, and MAE.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from vit_rs.methods import LARS
from vit_rs.training.sharded import in_parts

if TYPE_CHECKING:
    from vit_rs.training.config import OptimConfig

__all__ = ["build_optimizer", "is_decayed", "layer_numbers", "parameter_groups", "set_schedule"]

_UNDECAYED = frozenset(("cls_token", "dist_token", "reg_token", "mask_token"))
# Where images become tokens; a hybrid's ResNet is a part of its patch embedding.
_EMBEDDING = re.compile(r"(patch_embed|stem|cls_token|dist_token|reg_token|mask_token|pos_embed)")
_LAYER = re.compile(r"(?:blocks|stages)\.(\d+)\.")


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Return whether weight decay applies to a parameter, by its name and number of dimensions."""
    last = name.rsplit(".", 1)[-1]
    position = last.startswith("pos_embed") or ".relative." in name
    return parameter.ndim > 1 and not position and last not in _UNDECAYED


def layer_numbers(model: torch.nn.Module) -> dict[str, int]:
    """Return the layer of each parameter, by its name.

    Patch and position embedding and tokens are layer 0, block i is layer i + 1, and what follows the blocks (norm,
    pooling, head) is layer L + 1. A BiT ResNet's layers are its stages.

    Raises:
        ValueError: if the model has neither blocks nor stages.
    """
    names = [name for name, _ in model.named_parameters()]
    inside = {name: int(match[1]) + 1 for name in names if (match := _LAYER.match(name))}
    if not inside:
        raise ValueError(f"expected a model with parameters under blocks.0 or stages.0, got {type(model).__name__}")
    last = max(inside.values()) + 1
    return {name: 0 if _EMBEDDING.match(name) else inside.get(name, last) for name in names}


def parameter_groups(
    model: torch.nn.Module, weight_decay: float, *, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups, decayed and not, each in the order of the model.

    Args:
        model: its parameters keep the names of `vit_rs.models`.
        weight_decay: of the decayed groups.
        layer_decay: d; layer l of 0..L + 1 (see `layer_numbers`) has groups of its own, with "lr_scale"
            d ** (L + 1 - l). None makes two groups with 1.

    Returns:
        Groups of at least one parameter: "params", "weight_decay", "lr_scale", and "decayed", whether weight decay
        applies to them.
    """
    layers = None if layer_decay is None else layer_numbers(model)
    deepest = 0 if layers is None else max(layers.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = 0 if layers is None else layers[name]
        decayed = is_decayed(name, parameter)
        if (layer, decayed) not in groups:
            scale = 1.0 if layer_decay is None else layer_decay ** (deepest - layer)
            decay = weight_decay if decayed else 0.0
            groups[layer, decayed] = {"params": [], "weight_decay": decay, "lr_scale": scale, "decayed": decayed}
        groups[layer, decayed]["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], not key[1]))]


def build_optimizer(model: torch.nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimizer over the model's trainable parameters.

    On CPU and CUDA AdamW's and SGD's fused kernels update all of them in one call: on small models the unfused ones
    cost more than the model's own forward pass.
    """
    groups = parameter_groups(model, config.weight_decay, layer_decay=config.layer_decay)
    parameter = next(model.parameters())
    fused = parameter.device.type in ("cpu", "cuda")
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
    if config.name == "sgd":
        # torch has no fused SGD of parameters in parts.
        fused = fused and not in_parts(parameter)
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    return LARS(groups, lr=config.lr, momentum=config.momentum)


def set_schedule(optimizer: torch.optim.Optimizer, *, learning_rate: float, weight_decay: float) -> None:
    """Set the rate, times its scale, and the decay, where it applies, of every group of `parameter_groups`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
        if group["decayed"]:
            group["weight_decay"] = weight_decay
