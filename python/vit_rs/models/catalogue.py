"""Models by the names that the field knows them by: timm's."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vit_rs.exceptions import ConfigError
from vit_rs.models.hybrid import HybridConfig, HybridViT
from vit_rs.models.presets import PRESETS, SIZES, size
from vit_rs.models.resnet import BiTResNet, ResNetConfig
from vit_rs.models.vit import VisionTransformer, ViTConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KINDS", "Config", "Model", "build", "create_model", "kind_of", "named_config"]

Config = ViTConfig | ResNetConfig
Model = VisionTransformer | BiTResNet


class Kind(NamedTuple):
    """A kind of model: the class of its configuration, and its own."""

    config: type[Config]
    model: type[Model]


# What a model's file calls its kind. A class stands before those it is derived from.
KINDS: Final[Mapping[str, Kind]] = {
    "hybrid": Kind(HybridConfig, HybridViT),
    "vit": Kind(ViTConfig, VisionTransformer),
    "bit": Kind(ResNetConfig, BiTResNet),
}

# Width, the ResNet's blocks in each stage, patch on its feature map. vision_transformer's and the paper's; the number
# after "s" is timm's (its r_s16_p8 has 4 x 8 = 32 pixels per token).
_HYBRIDS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "vit_tiny_r_s16_p8": ("tiny", (), 8),
    "vit_small_r26_s32": ("small", (2, 2, 2, 2), 1),
    "vit_base_r26_s32": ("base", (2, 2, 2, 2), 1),
    "vit_base_r50_s16": ("base", (3, 4, 9), 1),
    "vit_base_r50_s32": ("base", (3, 4, 6, 3), 1),
    "vit_large_r50_s16": ("large", (3, 4, 9), 1),
    "vit_large_r50_s32": ("large", (3, 4, 6, 3), 1),
}
# BiT's depths; the 200 is the paper's largest baseline.
_RESNETS: dict[str, tuple[int, ...]] = {
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
    "200": (3, 24, 36, 3),
}


def named_config(name: str, **overrides: Any) -> Config:
    """Return the configuration that a timm name such as "vit_base_patch16_224" stands for.

    Args:
        name: `vit_{tiny,small,base,large,so400m,huge,giant,gigantic}_patch{P}_{img}`, with `_in21k` the paper's
            ImageNet-21k models, which have a representation layer; a name of `vit_rs.models.presets.PRESETS`, for
            example `vit_base_patch14_dinov2`; a hybrid's, for example `vit_base_r50_s16_384`; or BiT's
            `resnetv2_{50,101,152,200}x{1,2,3,4}_bit`.
        **overrides: Fields to set in place of the named ones.

    Raises:
        ConfigError: The name is unknown (the message lists what there is), or a value is out of range.
        TypeError: An override is no field of the configuration.
    """
    if name in PRESETS:
        return _made(ViTConfig, PRESETS[name], overrides)
    sized = re.fullmatch(r"(vit_.+)_([0-9]+)", name)
    if sized is not None and sized[1] in _HYBRIDS:
        return _made(HybridConfig, {**_hybrid(sized[1]), "img_size": int(sized[2])}, overrides)
    resnet = re.fullmatch(r"resnetv2_([0-9]+)x([1-4])_bit", name)
    if resnet is not None and resnet[1] in _RESNETS:
        return _made(ResNetConfig, {"layers": _RESNETS[resnet[1]], "width_factor": int(resnet[2])}, overrides)
    match = re.fullmatch(r"vit_([a-z0-9]+)_patch([0-9]+)_([0-9]+)(_in21k)?", name)
    if match is None or match[1] not in SIZES:
        raise ConfigError(_unknown(name))
    named = {"patch_size": int(match[2]), "img_size": int(match[3]), **size(match[1])}
    if match[4]:
        named.update(num_classes=21843, representation_size=named["embed_dim"])
    return _made(ViTConfig, named, overrides)


def _unknown(name: str) -> str:
    patches, pixels = (8, 14, 16, 32), (224, 384)
    plain = [f"vit_{side}_patch{patch}_{image}" for side in SIZES for patch in patches for image in pixels]
    hybrids = [f"{hybrid}_{image}" for hybrid in _HYBRIDS for image in pixels]
    resnets = [f"resnetv2_{depth}x{width}_bit" for depth in _RESNETS for width in (1, 2, 3, 4)]
    near = difflib.get_close_matches(name, [*plain, *PRESETS, *hybrids, *resnets])
    return (
        f"unknown model {name!r}{': did you mean ' + ' or '.join(near) + '?' if near else ':'} There are "
        f"vit_SIZE_patchP_IMG with SIZE one of {', '.join(SIZES)}; DeiT's, DeiT-3's, DINOv2's, SigLIP's and DINOv3's, "
        f"which vit_rs.models.presets.PRESETS lists; the hybrids {', '.join(_HYBRIDS)}, with _IMG; and "
        f"resnetv2_DEPTHxWIDTH_bit with DEPTH one of {', '.join(_RESNETS)} and WIDTH 1 to 4. Other sizes are built by "
        "VisionTransformer(ViTConfig(...)), HybridViT(HybridConfig(...)), BiTResNet(ResNetConfig(...))"
    )


def _hybrid(name: str) -> dict[str, Any]:
    side, layers, patch = _HYBRIDS[name]
    return {"backbone_layers": layers, "patch_size": patch, **size(side)}


def _made(config: type[Config], named: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
    unknown = sorted(overrides.keys() - {field.name for field in fields(config)})
    if unknown:
        raise TypeError(f"{config.__name__} has no field {', '.join(unknown)}")
    return config(**{**named, **overrides})


def create_model(name: str, **overrides: Any) -> Model:
    """Build a freshly initialised model by timm's name.

    Args:
        name: As in `named_config`, for example "vit_base_patch16_224".
        **overrides: Fields of the configuration to set in place of the named ones, for example `num_classes=10`.

    Returns:
        The model, on torch's default device and dtype. Its random numbers come from torch's global generator.

    Raises:
        ConfigError: The name is unknown (the message lists what there is), or a value is out of range.
        TypeError: An override is no field of the configuration.
    """
    return _model(named_config(name, **overrides))


def build(kind: str, fields_by_name: Mapping[str, Any]) -> Model:
    """Build a freshly initialised model from what a file says of it.

    Args:
        kind: A key of `KINDS`.
        fields_by_name: The configuration's fields, as its `to_dict` wrote them.

    Raises:
        ConfigError: The kind is unknown, a key is no field, or a value is out of range.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of model {kind!r}: expected one of {', '.join(KINDS)}")
    return _model(KINDS[kind].config.from_dict(fields_by_name))


def kind_of(thing: Model | Config) -> str:
    """Return the kind of a model or of a configuration, a key of `KINDS`.

    Raises:
        TypeError: It is neither.
    """
    for name, classes in KINDS.items():
        if isinstance(thing, tuple(classes)):
            return name
    raise TypeError(f"expected one of our models or its configuration, got {type(thing).__name__}")


def _model(config: Config) -> Model:
    build_it: Any = KINDS[kind_of(config)].model
    model: Model = build_it(config)
    return model
