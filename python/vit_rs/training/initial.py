"""The architecture of a run that starts from one of our own model files: the file says it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vit_rs.checkpoints.files import open_weights
from vit_rs.checkpoints.model_files import saved_model
from vit_rs.exceptions import ConfigError, VitRsError
from vit_rs.models.catalogue import KINDS, kind_of, named_config
from vit_rs.models.presets import PRESETS
from vit_rs.models.resnet import ResNetConfig
from vit_rs.models.vit import ViTConfig
from vit_rs.training.networks import describe, network_config, token_stride

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vit_rs.models.catalogue import Config
    from vit_rs.training.model_config import ModelConfig

__all__ = ["with_architecture"]

# Settings that say what the network is; image size, channels and classes are the data's, rates the recipe's.
_FIELDS = (
    *("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "mlp", "act", "qk_norm", "init_values"),
    *("class_token", "reg_tokens", "global_pool", "fc_norm", "representation_size", "pos_embed", "pos_placement"),
    *("rope", "layers", "width_factor"),
)
# Those of them that a new head brings.
_HEAD_FIELDS = frozenset(("global_pool", "fc_norm", "representation_size"))
# Those of them that a name has to agree with.
_SIZES = ("embed_dim", "depth", "num_heads", "layers", "width_factor")
# Fields of a model's configuration that are none of its architecture.
_FREE = frozenset(
    (
        *("img_size", "in_chans", "num_classes", "init_head_bias", "pos_convention", "dynamic_img_size"),
        *("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    )
)


def with_architecture(model: ModelConfig, asked: Mapping[str, Any]) -> ModelConfig:
    """Return the settings with the architecture of `model.init`, where that is a file of ours.

    Image size, channels, classes and dropout rates stay those of the run. Other projects' files, and a file that cannot
    be read, change nothing: the recipe says what they are, and loading says what is wrong with them. Nor does an
    unknown name, which building the network refuses.

    Args:
        model: the settings.
        asked: field -> value of those that the user has set, which are kept. The file must agree with them, but for the
            patch size, to which kernels are resampled, and with init_head "reset" what belongs to the head: of that, a
            representation layer is kept only where it is asked for, as in the paper's fine-tuning.

    Raises:
        ConfigError: a field that the user has set contradicts the file.
    """
    if model.init is None:
        return model
    try:
        with open_weights(model.init) as file:
            saved = saved_model(file)
    except (VitRsError, OSError):
        return model
    if saved is None:
        return model
    config, name = saved.config, asked.get("name")
    named: Config | None = None
    if name is not None and name not in KINDS:
        try:
            named = named_config(name)
        except ConfigError:
            return model
    wanted = {name: asked[name] for name in _FIELDS if asked.get(name) is not None}
    if isinstance(config, ViTConfig):
        free = {"patch_size"} | (_HEAD_FIELDS if model.init_head == "reset" else set())
        changes: dict[str, Any] = {field: wanted.pop(field) for field in free & wanted.keys()}
        if isinstance(named, ViTConfig):
            changes.setdefault("patch_size", named.patch_size)
        if model.init_head == "reset":
            changes.setdefault("representation_size", getattr(named, "representation_size", None))
        try:
            config = dataclasses.replace(config, img_size=_side(config) * changes.get("patch_size", 1), **changes)
        except ConfigError as error:
            raise ConfigError(f"model: {error}") from error
    held: dict[str, Any] = {field: _held(config, field) for field in _FIELDS}
    for field, value in wanted.items():
        if held[field] != value:
            raise ConfigError(
                f"model.{field}: got {value!r}, the model in model.init ({model.init}) has {held[field]!r}: leave "
                f"model.{field} out, the file says its architecture"
            )
    if not (held["patch_size"] is None or isinstance(held["patch_size"], int)):
        return model  # no setting says it
    agrees = named is None or (
        kind_of(named) == kind_of(config)
        and all(_held(named, size) == held[size] for size in _SIZES if asked.get(size) is None)
    )
    names = (kind_of(config), *PRESETS) if name is None else (name,) if agrees else ()
    found = _described(dataclasses.replace(model, **held), config, names)
    if found is None and name is not None:
        raise ConfigError(
            f"model.name: {name!r} is another than the model in model.init ({model.init}), a {describe(config)}: leave "
            "model.name out, the file says its architecture"
        )
    return model if found is None else found


def _held(config: Config, name: str) -> Any:
    """Return a configuration's value of a setting, None where it has none."""
    if name == "layers":
        return config.layers if isinstance(config, ResNetConfig) else getattr(config, "backbone_layers", None)
    return getattr(config, name, None)


def _described(model: ModelConfig, config: Config, names: Iterable[str]) -> ModelConfig | None:
    """Return the settings under the first name that builds a configuration's architecture; None where none does.

    Some fields (DINOv3's epsilon, DeiT's distillation token) are no settings: only names have them.
    """
    # Rates and initial values, which not every kind has, are the run's.
    plain = dataclasses.replace(model, dropout=0.0, init_head_bias=None)
    for name in names:
        try:
            built = network_config(dataclasses.replace(plain, name=name), img_size=_side(config), channels=3, classes=1)
        except ConfigError:
            continue
        if kind_of(built) == kind_of(config) and _architecture(built) == _architecture(config):
            return dataclasses.replace(model, name=name)
    return None


def _side(config: Config) -> int:
    """Return an image side that the network can have."""
    return 4 * token_stride(config)


def _architecture(config: Config) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _FREE}
