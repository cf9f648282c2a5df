"""What is done to an image before a model sees it, at test time: one description that travels with the weights."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from vit_rs.exceptions import ConfigError
from vit_rs.transforms import CenterCrop, Compose, Normalize, Resize, ResizeKeepRatio, ToDtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vit_rs.transforms import Transform

__all__ = ["Preprocessing", "named_preprocessing"]

_RESIZES = ("crop", "squash")
_FILTERS = ("bilinear", "bicubic", "lanczos")
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input: resized, cut, scaled to 0..1, normalised.

    Attributes:
        img_size: (height, width) of the input, pixels; one number is a square.
        resize: "crop": the shorter side is resized to the input's side over `crop`, and the middle is cut out (for an
            input that is not square, the image is resized to cover it); "squash": the whole image is resized to the
            input's size over `crop`, whatever its shape, and the middle is cut out.
        crop: the share of the resized image's side that is kept, above 0, at most 1.
        interpolation: filter of the resize, antialiased: "bilinear", "bicubic" or "lanczos".
        mean: of the pixels in 0..1, one value for each channel, or one for all.
        std: the same; above 0.

    Raises:
        ConfigError: a value is out of its range; the message names it.

    Source: timm.data.create_transform (crop_pct, crop_mode "center" and "squash"), which rounds the resized side down,
    where this rounds to the nearest, as torchvision's reference scripts (224 / 0.875 = 256).
    """

    img_size: tuple[int, int]
    resize: Literal["crop", "squash"] = "crop"
    crop: float = 1.0
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", _sides(self.img_size))
        if self.resize not in _RESIZES:
            raise ConfigError(f"resize must be one of {', '.join(_RESIZES)}, got {self.resize!r}")
        if self.interpolation not in _FILTERS:
            raise ConfigError(f"interpolation must be one of {', '.join(_FILTERS)}, got {self.interpolation!r}")
        if not _is_number(self.crop) or not 0 < self.crop <= 1:
            raise ConfigError(f"crop must be above 0 and at most 1, got {self.crop!r}")
        for name in ("mean", "std"):
            object.__setattr__(self, name, _channels(name, getattr(self, name)))
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ConfigError(
                f"mean and std need one value for each channel, std above 0, got {self.mean} and {self.std}"
            )

    def geometry(self, side: int | None = None) -> list[Transform]:
        """Return the steps that make an image of `img_size`, still of 8 bits; none where it has that size already.

        Args:
            side: height and width in pixels of every stored image, None where they differ or are not known.
        """
        height, width = self.img_size
        large = round(height / self.crop), round(width / self.crop)
        if (side, side) == large == self.img_size:
            return []
        resize: Transform
        if self.resize == "squash":
            resize = Resize(large, interpolation=self.interpolation)
        elif height == width:
            resize = Resize(large[0], interpolation=self.interpolation)
        else:
            resize = ResizeKeepRatio(large, interpolation=self.interpolation)
        if self.resize == "squash" and large == self.img_size:
            return [resize]
        return [resize, CenterCrop(self.img_size)]

    def transform(self, side: int | None = None) -> Compose:
        """Return the whole transform: images of 8 bits -> float32 (C, height, width), normalised.

        Args:
            side: as in `geometry`.
        """
        return Compose([*self.geometry(side), ToDtype(torch.float32, scale=True), Normalize(self.mean, self.std)])

    def at_size(self, img_size: int | tuple[int, int]) -> Preprocessing:
        """Return the same at another size of the input, in pixels."""
        return dataclasses.replace(self, img_size=_sides(img_size))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields_by_name: Mapping[str, Any]) -> Preprocessing:
        """Return what `to_dict` wrote.

        Raises:
            ConfigError: a field is unknown or missing, or a value is out of its range.
        """
        if not isinstance(fields_by_name, dict):
            raise ConfigError(f"preprocessing: expected a dictionary, got {fields_by_name!r}")
        names = {field.name for field in dataclasses.fields(cls)}
        if names != fields_by_name.keys():
            unknown, missing = sorted(fields_by_name.keys() - names), sorted(names - fields_by_name.keys())
            raise ConfigError(f"preprocessing: unknown fields {unknown or 'none'}, missing {missing or 'none'}")
        return cls(**fields_by_name)

    def __str__(self) -> str:
        height, width = self.img_size
        how = f"{self.resize} {self.crop:g}, {self.interpolation}"
        return f"{height}x{width} px, {how}, mean {_listed(self.mean)}, std {_listed(self.std)}"


def named_preprocessing(name: str, img_size: int | tuple[int, int]) -> Preprocessing:
    """Return how published models of a name are tested: timm's settings.

    ImageNet's mean and standard deviation for DeiT, DeiT-3, DINOv2 and DINOv3, 0.5 for all others; bicubic; the middle
    0.9 of images of up to 224 pixels (0.875 for BiT), and of SigLIP's, all of larger ones.

    Args:
        name: a name of `vit_rs.models.create_model`.
        img_size: side, or (height, width), of the input, pixels.

    Source: the pretrained_cfg of timm's models. Other weights under the same name (MAE's, MoCo v3's, DINO's ViT-S/16
    have ImageNet's mean) may want others.
    """
    mean, std = _IMAGENET if "deit" in name or "dino" in name else _HALF
    height, width = _sides(img_size)
    crop = 0.9 if max(height, width) <= 224 or "siglip" in name else 1.0
    if name.startswith("resnetv2") and crop < 1:
        crop = 0.875
    return Preprocessing((height, width), crop=crop, interpolation="bicubic", mean=mean, std=std)


def _sides(img_size: Any) -> tuple[int, int]:
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size) if _is_list(img_size) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise ConfigError(f"img_size must be a side, or (height, width), in pixels, got {img_size!r}")
    return sides[0], sides[1]


def _channels(name: str, values: Any) -> tuple[float, ...]:
    if not _is_list(values) or not len(values) or not all(_is_number(value) for value in values):
        raise ConfigError(f"{name} must be numbers, one for each channel, got {values!r}")
    return tuple(float(value) for value in values)


def _is_list(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _listed(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:g}" for value in values)
