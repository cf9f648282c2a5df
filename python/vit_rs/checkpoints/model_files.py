"""Our own model files: safetensors, the state dict under timm's names, and the model's configuration beside it.

The configuration is JSON in one metadata entry, "vit_rs": {"format_version", "model", "config", "metadata"}. A model is
also written as Google's .npz, which holds no configuration.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from vit_rs.checkpoints.files import open_weights, write_npz, write_safetensors
from vit_rs.checkpoints.functions import function_problems
from vit_rs.checkpoints.layouts.known import google_layout
from vit_rs.checkpoints.layouts.translation import translated_back
from vit_rs.exceptions import CheckpointError, ConfigError
from vit_rs.models import ViTConfig
from vit_rs.models.catalogue import KINDS, build, kind_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from vit_rs.checkpoints.files import WeightsFile
    from vit_rs.models.catalogue import Config, Model

__all__ = [
    "METADATA_KEY",
    "SavedModel",
    "check_model",
    "check_suffix",
    "load_model",
    "metadata_entry",
    "save_checkpoint",
    "saved_model",
]

METADATA_KEY = "vit_rs"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class SavedModel:
    """What a file of ours says about its model.

    Attributes:
        kind: The model's class, a key of `vit_rs.models.catalogue.KINDS`: "vit", "hybrid", "bit".
        config: Its configuration.
        metadata: What the writer kept beside it.
    """

    kind: str
    config: Config
    metadata: dict[str, Any]


def save_checkpoint(path: str | os.PathLike[str], model: Model, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a model as safetensors, its configuration inside the file's metadata, atomically.

    Equal weights, configuration and metadata give equal bytes. A path that ends in .npz gets Google's layout
    (vision_transformer's, big_vision's where the class token has no position, Big Transfer's for a BiT ResNet), which
    `load_pretrained` and Google's own code read, and which has no configuration.

    Args:
        path: The file; its folder must exist.
        model: The model, on any device; a compiled or distributed model's own module.
        metadata: Anything that JSON can hold, kept beside the configuration (mean and std, class names, ...).

    Raises:
        TypeError: `metadata` holds what JSON cannot, or the model is none of ours.
        FileNotFoundError: The folder does not exist.
        CheckpointError: Google's layout has no place for a part of the model, or cannot say its function (average
            pooling beside a class token, rotary positions, ...); the message lists it.
        ValueError: There is metadata for an .npz, the path ends as a file of torch.save's, or the model is on the meta
            device.
    """
    kind = check_model(model)
    config = model.config
    check_suffix(path, "npz" if Path(path).suffix == ".npz" else "safetensors")
    if Path(path).suffix == ".npz":
        if metadata:
            raise ValueError(f"{path}: Google's .npz has no place for metadata, got {', '.join(metadata)}")
        state = model.state_dict()
        rows, heads = (config.embedded_prefix_tokens, config.num_heads) if isinstance(config, ViTConfig) else (0, None)
        target = google_layout(state, rows)
        theirs = translated_back(state, target, heads=heads)
        problems = function_problems(config, target, state)
        if problems:
            raise CheckpointError(f"the layout {target.name} cannot hold this model: {'; '.join(problems)}")
        write_npz(path, theirs)
        return
    saved = SavedModel(kind, config, dict(metadata or {}))
    write_safetensors(path, model.state_dict(), {METADATA_KEY: metadata_entry(saved)})


def load_model(path: str | os.PathLike[str]) -> Model:
    """Rebuild the model that `save_checkpoint` wrote, in its weights' dtype, on the CPU, in training mode.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, was not written by `save_checkpoint`, or its weights do not fit
            its configuration.
    """
    with open_weights(path) as file:
        saved = saved_model(file)
        if saved is None:
            raise CheckpointError(
                f"{path}: no model configuration in the file (metadata entry {METADATA_KEY!r}): "
                "build the model and fill it by load_pretrained"
            )
        # A configuration is believed only as far as the file has tensors for it: a false depth builds nothing.
        for part, key in _last_parts(saved.config).items():
            if key not in file.tensors:
                raise CheckpointError(f"{path}: the configuration says {part}, the weights do not")
        try:
            with torch.device("meta"):
                model = build(saved.kind, saved.config.to_dict())
            model.load_state_dict({key: file.read(key).clone() for key in file.tensors}, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path}: the weights do not fit their own configuration: {reason}") from error
    return model


def check_model(model: object) -> str:
    """Return a model's kind, as `kind_of`.

    Raises:
        TypeError: It is none of ours; of a wrapped one the message says where it is.
        ValueError: It is on the meta device, and has no weights.
    """
    try:
        kind = kind_of(cast("Model", model))
    except TypeError as error:
        for wrapper in ("_orig_mod", "module"):  # torch.compile's; DistributedDataParallel's, DataParallel's
            if isinstance(getattr(model, wrapper, None), torch.nn.Module):
                raise TypeError(
                    f"expected one of our models, got {type(model).__name__} around one: pass model.{wrapper}"
                ) from error
        raise
    if any(tensor.is_meta for tensor in cast("Model", model).state_dict().values()):
        raise ValueError("the model is on the meta device, without weights: model.to_empty(device=...) gives it memory")
    return kind


_SUFFIXES = {".safetensors": "safetensors", ".npz": "npz", ".pth": "torch", ".pt": "torch", ".bin": "torch"}


def check_suffix(out: str | os.PathLike[str], container: str) -> None:
    """Raise a ValueError if the name of a file to write says another container than it will have."""
    named = _SUFFIXES.get(Path(out).suffix.lower(), container)
    if named != container:
        raise ValueError(f"{out}: the file will be {container}, but its name says {named}: choose another ending")


def saved_model(file: WeightsFile) -> SavedModel | None:
    """Return what a file of ours says about its model; None where the file is not ours.

    Raises:
        CheckpointError: It is damaged, or of a later version.
    """
    text = file.metadata.get(METADATA_KEY)
    return None if text is None else _parsed(file.path, text)


def metadata_entry(saved: SavedModel) -> str:
    """Return the text of the metadata entry `METADATA_KEY`.

    Raises:
        TypeError: The metadata holds what JSON cannot.
    """
    entry = {
        "format_version": _FORMAT_VERSION,
        "model": saved.kind,
        "config": saved.config.to_dict(),
        "metadata": saved.metadata,
    }
    return json.dumps(entry, sort_keys=True)


def _parsed(path: Path, text: str) -> SavedModel:
    damaged = f"{path}: damaged metadata entry {METADATA_KEY!r}"
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{damaged}: {error}") from error
    version = entry.get("format_version") if isinstance(entry, dict) else None
    if version != _FORMAT_VERSION:
        raise CheckpointError(f"{damaged}: format version {version}, this vit-rs reads {_FORMAT_VERSION}")
    config, extra = entry.get("config"), entry.get("metadata")
    if not isinstance(config, dict) or not isinstance(extra, dict):
        raise CheckpointError(f"{damaged}: no configuration in it")
    kind = entry.get("model", "vit")  # files of the first versions do not say it
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(f"{damaged}: got model {kind!r}, this vit-rs reads {', '.join(KINDS)}")
    try:
        return SavedModel(kind, KINDS[kind].config.from_dict(config), extra)
    except ConfigError as error:
        raise CheckpointError(f"{damaged}: {error}") from error


def _last_parts(config: Config) -> dict[str, str]:
    """Return a key of the last block that a configuration asks for, by the words that say how many there are."""
    if isinstance(config, ViTConfig):
        parts = {f"depth {config.depth}": f"blocks.{config.depth - 1}.norm1.weight"}
        stages, prefix = getattr(config, "backbone_layers", ()), "patch_embed.backbone."
    else:
        parts, stages, prefix = {}, config.layers, ""
    for stage, units in enumerate(stages):
        parts[f"{units} blocks in stage {stage}"] = f"{prefix}stages.{stage}.blocks.{units - 1}.conv1.weight"
    return parts
