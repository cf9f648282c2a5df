"""A model to examine: weights from a file, with what its images must look like and what its outputs mean."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from vit_rs.checkpoints import load_model, load_pretrained
from vit_rs.checkpoints.files import open_weights
from vit_rs.checkpoints.model_files import saved_model
from vit_rs.evaluation.preprocessing import Preprocessing, named_preprocessing
from vit_rs.evaluation.timm_models import PREFIX, model_channels, open_timm, timm_knows
from vit_rs.exceptions import CheckpointError, ConfigError, DatasetError
from vit_rs.models import BiTResNet, ResNetConfig, VisionTransformer, ViTConfig, create_model
from vit_rs.models.catalogue import build, kind_of
from vit_rs.transforms import Compose, Grayscale

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from torch import nn

    from vit_rs.checkpoints import LoadReport
    from vit_rs.checkpoints.model_files import SavedModel

__all__ = ["Subject", "model_digest", "open_subject"]

# What a BiT ResNet is tested at where nobody says otherwise; a ViT's configuration has its size.
_RESNET_SIZE = 224
_OURS = (VisionTransformer, BiTResNet)
_CHUNK_BYTES = 1 << 26
_KERNEL = "patch_embed.proj.weight"
# What `load_pretrained` says of heads, in the arguments of `open_subject`.
_HEAD_HINTS = {
    "head='reset' leaves the model's own head": "num_classes says how many outputs the head has, 0 leaves it out",
    "head='reset' leaves the model's own": "num_classes=0 leaves it out",
    "head='reset' drops the head": "num_classes=0 leaves it out",
}


@dataclass(frozen=True)
class Subject:
    """A model to examine.

    Attributes:
        model: ours or timm's; in evaluation mode, on the CPU, in float32.
        preprocessing: what is done to an image before the model sees it.
        classes: the outputs' names in their order; None where the file does not say them.
        digest: SHA-256 of what the model computes: its configuration and weights, as `model_digest`.
        path: the file.
        split: holdout, split_seed and per_class of the run that trained it (arguments of
            `vit_rs.data.splits.open_splits`): which images it was not trained on. Empty where the file does not say.
        resampled: what was resampled to another image size, for people.
        file_grid: the (rows, columns) of the file's position table, where it was resampled.
    """

    model: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    digest: str
    path: str = ""
    split: Mapping[str, Any] = field(default_factory=dict)
    resampled: tuple[str, ...] = ()
    file_grid: tuple[int, int] | None = None

    @property
    def channels(self) -> int:
        """Channels of the images that the model takes."""
        model = self.model
        return model.config.in_chans if isinstance(model, _OURS) else model_channels(model)

    @property
    def num_classes(self) -> int:
        """Outputs of the model's head; 0 where it has none."""
        model: Any = self.model
        outputs: int = model.config.num_classes if isinstance(model, _OURS) else model.num_classes
        return outputs

    def transform(self, channels: int, side: int | None = None) -> Compose:
        """Return the test transform of images that are read with so many channels.

        A model of one channel sees RGB images in gray (ITU-R 601): three equal channels, of which it takes the first.

        Args:
            channels: of the images.
            side: as in `Preprocessing.transform`.

        Raises:
            DatasetError: the model takes images of another number of channels.
        """
        transform = self.preprocessing.transform(side)
        if self.channels == 1 and channels == 3:
            return Compose([Grayscale(num_output_channels=3), *transform.transforms])
        self.check_channels(channels)
        return transform

    def check_channels(self, channels: int) -> None:
        """Raise a DatasetError unless images of so many channels are what the model takes."""
        if channels != self.channels:
            raise DatasetError(f"the model takes images of {self.channels} channel(s), got images of {channels}")


def open_subject(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    resize: str | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    section: str | None = None,
    layout: str | None = None,
    convention: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Subject:
    """Open a file of weights as a model to examine.

    A file that `vit-rs train` wrote says everything. Of one by `save_checkpoint` without metadata, mean and std must
    be told. Of anybody else's, `name` says what the model is; its images are then prepared as `named_preprocessing`
    does for that name. Arguments go before what is known.

    Args:
        path: the file.
        name: a name of `vit_rs.models.create_model`, for example "vit_base_patch16_224"; None for our own files.
            "timm:" and a name of timm's, with or without a tag, is timm's own model, where timm is installed: weights
            are renamed and resampled, and images prepared, as timm does for it.
        img_size: image size in pixels; other than the file's, position embeddings are resampled to it.
        num_classes: outputs of the head, with `name`; None is the named model's own number. 0 leaves the head out: for
            features of a file without a head, or with one of another kind.
        resize: "crop" or "squash"; this and the next four as in `Preprocessing`.
        crop: share of the resized image's side that is kept.
        interpolation: filter of the resize.
        mean: one value for each channel, or one for all.
        std: the same.
        section: which model in the file, as in `vit_rs.checkpoints.load_pretrained`; with `name` only.
        layout: whose names the file has; with `name` only, and not with timm's models.
        convention: how positions are resampled; None is the way of the project that the file comes from. Not with
            timm's models.
        overrides: fields of the configuration in place of the named model's, or arguments of timm's; with `name` only.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged or does not fit the model; it is not ours, and no `name` was given; it does
            not say mean and std.
        ConfigError: the name is unknown, or a value is out of its range; timm is needed and not installed.
        ValueError: the convention is unknown, or an argument needs `name`.
    """
    asked = {"resize": resize, "crop": crop, "interpolation": interpolation, "mean": mean, "std": std}
    asked = {key: value for key, value in asked.items() if value is not None}
    if name is not None:
        changes = {**(overrides or {}), **({} if num_classes is None else {"num_classes": num_classes})}
        if name.startswith(PREFIX):
            for key, told in {"layout": layout, "convention": convention}.items():
                if told is not None:
                    raise ConfigError(f"{key}={told!r} does not apply to {name}: timm has its own way")
            return _open_timm(path, name, img_size=img_size, overrides=changes, asked=asked, section=section)
        return _open_named(
            path,
            name,
            img_size=img_size,
            overrides=changes,
            asked=asked,
            section=section,
            layout=layout,
            convention=convention,
        )
    needing = {"num_classes": num_classes, "section": section, "layout": layout, "overrides": overrides or None}
    for key, value in needing.items():
        if value is not None:
            raise ValueError(f"{key}={value!r} is for the files of others, and needs a model's name")
    return _open_ours(path, img_size, asked, convention)


def model_digest(model: nn.Module, *, architecture: object = None) -> str:
    """Return the SHA-256 of a model's kind, configuration, and tensors in their order: names, types, shapes, bytes.

    Equal digests mean equal functions, whichever files the weights came from. About 1 GB of weights a second.

    Args:
        model: ours, or another with `architecture`.
        architecture: what stands for kind and configuration, as JSON can hold it; None where the model is ours.

    Raises:
        TypeError: the model is not ours, and nothing stands for its configuration.
    """
    described = architecture
    if described is None:
        if not isinstance(model, _OURS):
            raise TypeError(f"expected a model of vit_rs.models, or its architecture, got a {type(model).__name__}")
        described = [kind_of(model), model.config.to_dict()]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for key, tensor in model.state_dict().items():
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = np.asarray(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8))
        for start in range(0, len(data), _CHUNK_BYTES):
            digest.update(data[start : start + _CHUNK_BYTES].data)
    return digest.hexdigest()


def _open_ours(
    path: str | os.PathLike[str],
    img_size: int | tuple[int, int] | None,
    asked: dict[str, Any],
    convention: str | None,
) -> Subject:
    with open_weights(path) as file:
        saved = saved_model(file)
    if saved is None:
        raise CheckpointError(
            f"{path}: the file does not say what model it holds: give the model's name (--model NAME), for example "
            "vit_base_patch16_224"
        )
    preprocessing = _saved_preprocessing(path, saved, asked)
    if img_size is not None:
        preprocessing = preprocessing.at_size(img_size)
    config = saved.config
    report: LoadReport | None = None
    if isinstance(config, ViTConfig) and config.image_hw != preprocessing.img_size:
        model = build(saved.kind, {**config.to_dict(), "img_size": preprocessing.img_size})
        report = load_pretrained(model, path, convention=convention)
    else:
        model = load_model(path)
    return Subject(
        model=model.float().eval(),
        preprocessing=preprocessing,
        classes=_saved_classes(path, saved),
        digest=model_digest(model),
        path=str(path),
        split=_saved_split(path, saved),
        **_resampled(report, config),
    )


def _open_named(
    path: str | os.PathLike[str],
    name: str,
    *,
    img_size: int | tuple[int, int] | None,
    overrides: dict[str, Any],
    asked: dict[str, Any],
    section: str | None,
    layout: str | None,
    convention: str | None,
) -> Subject:
    if not Path(path).exists():  # before a large model is built
        raise FileNotFoundError(f"no such checkpoint: {path}")
    resnet = name.startswith("resnetv2")
    if img_size is not None and not resnet:
        overrides["img_size"] = img_size
    try:
        model = create_model(name, **overrides)
    except TypeError as error:  # an override that is no field
        raise ConfigError(str(error)) from error
    except ConfigError as error:
        if str(error).startswith("unknown model") and timm_knows(name):
            raise ConfigError(f"{name!r} is no model of vit-rs, but timm has one: {PREFIX}{name}") from error
        raise
    head: Literal["keep", "reset"] = "reset" if model.config.num_classes == 0 else "keep"
    try:
        report = load_pretrained(model, path, head=head, section=section, layout=layout, convention=convention)
    except CheckpointError as error:
        text = str(error)
        for hint, ours in _HEAD_HINTS.items():
            text = text.replace(hint, ours)
        raise CheckpointError(text) from error
    size = model.config.image_hw if isinstance(model.config, ViTConfig) else img_size or _RESNET_SIZE
    preprocessing = replace(named_preprocessing(name, size), **asked)
    _check_channels(preprocessing, model.config.in_chans)
    return Subject(
        model=model.float().eval(),
        preprocessing=preprocessing,
        classes=None,
        digest=model_digest(model),
        path=str(path),
        **_resampled(report, model.config),
    )


def _resampled(report: LoadReport | None, config: ViTConfig | ResNetConfig) -> dict[str, Any]:
    """Return the fields of a Subject that tell what was resampled to a model's size."""
    if report is None:
        return {}
    file_grid = None
    tables = [entry for entry in report.resampled if entry.key != _KERNEL]
    if tables and isinstance(config, ViTConfig):
        rows, columns = config.grid_size
        for entry in tables:  # those of a "2d" encoding have one axis each, and only those that changed are told
            rows = entry.from_size[0] if entry.from_size[0] != entry.to_size[0] else rows
            columns = entry.from_size[1] if entry.from_size[1] != entry.to_size[1] else columns
        file_grid = rows, columns
    return {
        "resampled": tuple(f"{entry.key} {entry.from_size} -> {entry.to_size}" for entry in report.resampled),
        "file_grid": file_grid,
    }


def _open_timm(
    path: str | os.PathLike[str],
    name: str,
    *,
    img_size: int | tuple[int, int] | None,
    overrides: dict[str, Any],
    asked: dict[str, Any],
    section: str | None,
) -> Subject:
    opened = open_timm(path, name, img_size=img_size, asked=asked, section=section, overrides=overrides)
    _check_channels(opened.preprocessing, model_channels(opened.model))
    return Subject(
        model=opened.model,
        preprocessing=opened.preprocessing,
        classes=None,
        digest=model_digest(opened.model, architecture=opened.architecture),
        path=str(path),
        resampled=opened.resampled,
    )


def _saved_preprocessing(path: str | os.PathLike[str], saved: SavedModel, asked: dict[str, Any]) -> Preprocessing:
    known = saved.metadata.get("preprocessing")
    try:
        if known is not None:
            preprocessing = replace(Preprocessing.from_dict(known), **asked)
        elif "mean" not in asked or "std" not in asked:
            raise CheckpointError(
                f"{path}: the file does not say how images are prepared for its model: give mean and std of the pixels "
                "in 0..1"
            )
        else:
            size = saved.config.image_hw if isinstance(saved.config, ViTConfig) else (_RESNET_SIZE, _RESNET_SIZE)
            preprocessing = Preprocessing(size, **asked)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    _check_channels(preprocessing, saved.config.in_chans)
    return preprocessing


def _check_channels(preprocessing: Preprocessing, channels: int) -> None:
    if len(preprocessing.mean) not in (1, channels):
        raise ConfigError(
            f"mean and std: the model takes images of {channels} channel(s), got {len(preprocessing.mean)} values"
        )


def _saved_classes(path: str | os.PathLike[str], saved: SavedModel) -> tuple[str, ...] | None:
    classes = saved.metadata.get("classes")
    if classes is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(item, str) for item in classes):
        raise CheckpointError(f"{path}: expected classes as a list of names, got {classes!r}")
    if len(classes) != saved.config.num_classes:
        raise CheckpointError(f"{path}: {len(classes)} names of classes for {saved.config.num_classes} outputs")
    return tuple(classes)


def _saved_split(path: str | os.PathLike[str], saved: SavedModel) -> dict[str, Any]:
    split = saved.metadata.get("split")
    if split is None:
        return {}
    if not isinstance(split, dict) or split.keys() != {"holdout", "split_seed", "per_class"}:
        raise CheckpointError(f"{path}: expected split as holdout, split_seed and per_class, got {split!r}")
    holdout, seed, per_class = split["holdout"], split["split_seed"], split["per_class"]
    sound = (
        type(holdout) in (int, float)
        and 0 < holdout < 1
        and type(seed) is int
        and seed >= 0
        and (per_class is None or (type(per_class) is int and per_class >= 1))
    )
    if not sound:
        raise CheckpointError(
            f"{path}: expected split with holdout between 0 and 1, split_seed of at least 0, and per_class of at least "
            f"1 or None, got {split!r}"
        )
    return split
