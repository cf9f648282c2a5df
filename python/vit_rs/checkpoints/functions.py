"""What a model computes beside its weights, and which projects can say it.

Some fields of a configuration change the function and no tensor's name or shape. A target that cannot say them would
read the weights without a complaint and compute something else: that is refused. What a target says in its own
config.json or code (activation, epsilon) is noted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_rs.models import ViTConfig

if TYPE_CHECKING:
    from collections.abc import Collection

    from vit_rs.checkpoints.layouts.base import Layout
    from vit_rs.models.catalogue import Config

__all__ = ["function_notes", "function_problems"]

_GOOGLE = ("vision_transformer", "big_vision")
_ROTARY = ("timm-dinov3", "hf-dinov3")
# What models of a layout have where nobody says otherwise: activation and norms' epsilon.
_USUAL = {
    "timm": ("gelu", 1e-6),
    "timm-dinov3": ("gelu", 1e-5),
    "hf-vit": ("gelu", 1e-12),
    "hf-deit": ("gelu", 1e-12),
    "hf-dinov2": ("gelu", 1e-6),
    "hf-dinov2-reg": ("gelu", 1e-6),
    "hf-dinov3": ("gelu", 1e-5),
    "vision_transformer": ("gelu_tanh", 1e-6),
    "big_vision": ("gelu_tanh", 1e-6),
}


def function_problems(config: Config, target: Layout, keys: Collection[str]) -> list[str]:
    """Say what of a model's function a target cannot express although it has a place for all tensors.

    Args:
        config: The model's configuration.
        target: The layout to write.
        keys: The tensors that are written, under our names.

    Returns:
        A line for each such field; empty if the target computes what the model does.
    """
    if not isinstance(config, ViTConfig):
        return []
    problems = []
    name = target.name
    if config.pos_placement != "stem":
        problems.append(f"pos_placement: got {config.pos_placement!r}, expected 'stem'")
    rotary = name in _ROTARY
    if config.rope != rotary:
        problems.append(f"rope: got {config.rope}, expected {rotary}")
    pool = f"global_pool: got {config.global_pool!r}"
    if name in _GOOGLE:
        if config.class_token and config.global_pool != "token":
            problems.append(f"{pool} beside a class token, expected 'token', or no class token")
        if name == "big_vision" and config.pos_embed == "none":
            problems.append("pos_embed: got 'none', expected a table")
    elif name.startswith("hf") and config.global_pool == "avg" and "head.weight" in keys:
        problems.append(f"{pool} before a head, expected 'token'")
    return problems


def function_notes(config: Config, target: Layout) -> tuple[str, ...]:
    """Say what of a model's function a target has elsewhere: in config.json, in code, in an argument.

    Args:
        config: The model's configuration.
        target: The layout that is written.
    """
    if not isinstance(config, ViTConfig):
        pairs = (("padding", config.padding, "fixed"), ("standardization", config.standardization, "timm"))
        return _note([f"{field}={value!r}" for field, value, usual in pairs if value != usual], "code")
    act, eps = _USUAL.get(target.name, (config.act, config.norm_eps))
    wanted = [f"act={config.act!r}"] if config.act != act else []
    wanted += [f"norm_eps={config.norm_eps:g}"] if config.norm_eps != eps else []
    wanted += [f"rope_theta={config.rope_theta:g}"] if config.rope and config.rope_theta != 100.0 else []
    if target.name.startswith("hf"):
        wanted.append(f"num_heads={config.num_heads}")
        wanted += [f"global_pool={config.global_pool!r}"] if config.global_pool != "token" else []
        return _note(wanted, "config.json")
    if target.name not in _GOOGLE:
        wanted += [f"num_heads={config.num_heads}"]
    wanted += [f"pos_embed={config.pos_embed!r}"] if config.pos_embed == "none" else []
    wanted += [f"global_pool={config.global_pool!r}"] if config.global_pool != "token" else []
    wanted += [f"fc_norm={config.norms_pooled}"] if config.global_pool == "avg" else []
    wanted += ["mlp='swiglu'"] if config.mlp != "mlp" else []
    return _note(wanted, "the model that is built")


def _note(wanted: list[str], where: str) -> tuple[str, ...]:
    return (f"no tensor says {', '.join(wanted)}: {where} must",) if wanted else ()
