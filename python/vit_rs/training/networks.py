"""From the settings of `model` to a network."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vit_rs.exceptions import ConfigError
from vit_rs.models.catalogue import KINDS, Model, build, kind_of, named_config
from vit_rs.models.hybrid import HybridConfig
from vit_rs.models.resnet import ResNetConfig
from vit_rs.models.vit import ViTConfig

if TYPE_CHECKING:
    from vit_rs.models.catalogue import Config
    from vit_rs.training.model_config import ModelConfig

__all__ = ["build_network", "describe", "network_config", "token_stride"]

# Settings that are no fields of a model's configuration.
_OTHERS = frozenset(
    (
        *("name", "dropout", "drop_path_rate", "grad_checkpointing", "layers"),
        *("init", "init_head", "init_layout", "init_convention", "init_section", "init_img_size"),
    )
)


def network_config(
    model: ModelConfig,
    *,
    img_size: int,
    channels: int,
    classes: int,
    drop_path_rate: float | None = None,
    size_setting: str = "data.img_size",
) -> Config:
    """Return the configuration of the network that the settings describe.

    Args:
        model: the settings.
        img_size: image side in pixels.
        channels: image channels.
        classes: outputs of the head.
        drop_path_rate: in place of `model.drop_path_rate`.
        size_setting: which setting the image side is, for the error message.

    Raises:
        ConfigError: the name is unknown, a field is none of that kind of model's, or values do not fit together.
    """
    fields: dict[str, Any] = {"in_chans": channels, "num_classes": classes}
    asked = {
        item.name: value
        for item in dataclasses.fields(model)
        if item.name not in _OTHERS and (value := getattr(model, item.name)) is not None
    }
    try:
        kind = KINDS[model.name].config if model.name in KINDS else type(named_config(model.name))
    except ConfigError as error:
        raise ConfigError(f'model.name: {error}; or by the names "vit", "hybrid", "bit" and other settings') from error
    if model.layers is not None:
        asked["backbone_layers" if kind is HybridConfig else "layers"] = model.layers
    fields["drop_path_rate"] = model.drop_path_rate if drop_path_rate is None else drop_path_rate
    if issubclass(kind, ViTConfig):
        fields |= {"img_size": img_size, "pos_drop_rate": model.dropout, "proj_drop_rate": model.dropout}
    elif model.dropout:
        asked["dropout"] = model.dropout
    known = {item.name for item in dataclasses.fields(kind)}
    for name in sorted(asked.keys() - known):
        raise ConfigError(f"model.{name}: {model.name!r} is built without it (its fields are those of {kind.__name__})")
    fields |= asked
    try:
        return kind(**fields) if model.name in KINDS else named_config(model.name, **fields)
    except ConfigError as error:
        setting = size_setting if str(error).startswith("img_size") else "model"
        raise ConfigError(f"{setting}: {error}") from error


def build_network(model: ModelConfig, config: Config) -> Model:
    """Return a freshly initialised network on the CPU; its numbers come from torch's global generator."""
    network = build(kind_of(config), config.to_dict())
    network.set_grad_checkpointing(model.grad_checkpointing)
    return network


def token_stride(config: Config) -> int:
    """Return the pixels that an image's side must be a multiple of: a token's, 1 for a ResNet."""
    if isinstance(config, ResNetConfig):
        return 1
    patch = max(config.patch_hw)
    return patch * config.backbone_stride if isinstance(config, HybridConfig) else patch


def describe(config: Config) -> str:
    """Return a network in a few words, for people."""
    if isinstance(config, ResNetConfig):
        return f"BiT ResNet of {sum(config.layers)} blocks, width x{config.width_factor}"
    vit = f"ViT of {config.depth} blocks, width {config.embed_dim}"
    if isinstance(config, HybridConfig):
        return f"{vit}, behind a ResNet of {sum(config.backbone_layers)} blocks, 1/{token_stride(config)}"
    return f"{vit}, patch {config.patch_size}"
