"""What is done to the colours and pixels of a training image, after its crop and flip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_rs.transforms import ColorJitter, RandomErasing, ThreeAugment, TimmOp, TimmRandAugment, timm_policy

if TYPE_CHECKING:
    from vit_rs.training.data_config import DataConfig
    from vit_rs.transforms import Transform
    from vit_rs.transforms.base import PixelTransform

__all__ = ["erasing", "pixel_augmentations", "randaugment"]

# big_vision's operations but Cutout, under timm's names; the strengths of both are the same functions of the magnitude,
# but for SolarizeAdd beyond 11.
_OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness"),
    *("Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel", "SolarizeAdd"),
)
# big_vision gives shifts and cut-outs in pixels of images of 224: here they are shares of the side.
_SIDE = 224
_TRANSLATE = 100 / _SIDE
_CUTOUT = 80 / _SIDE


def pixel_augmentations(config: DataConfig) -> list[Transform]:
    """Return the changes of 8-bit pixels that the settings ask for, in their order."""
    chosen: list[Transform] = []
    if config.three_augment:
        chosen.append(ThreeAugment())
    if config.color_jitter > 0:
        chosen.append(ColorJitter(*[config.color_jitter] * 3))
    if config.randaugment_layers > 0:
        chosen.append(randaugment(config))
    return chosen


def erasing(config: DataConfig) -> list[Transform]:
    """Return what follows the normalisation: a rectangle of noise, as timm's RandomErasing in mode "pixel"."""
    if config.erase == 0:
        return []
    return [RandomErasing(config.erase, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value="random")]


def randaugment(config: DataConfig) -> Transform:
    """Return the RandAugment (arXiv 1909.13719) that the settings ask for.

    "big_vision" applies every drawn operation, always at the magnitude itself, of 10 for timm's strongest; above 10 it
    goes on growing. Source: big_vision's pp/archive/autoaugment.py, `distort_image_with_randaugment`. The pixels are
    Pillow's, not TensorFlow's; shifts and cut-outs are the same share of the side at every image size; a cut-out lies
    within the image, where big_vision's may reach over its border; SolarizeAdd adds 128 at most, as timm's does, where
    big_vision's adds 11 for each unit of the magnitude (165 at 15).

    "timm" is the usual policy of DeiT, MAE and timm's own recipes, rand-mM-nN-mstd0.5-inc1: each drawn operation is
    applied to every second image, at a magnitude drawn around M; images are turned and shifted by the filter that
    resizes them, as timm.data.create_transform has it.
    """
    layers, magnitude = config.randaugment_layers, config.randaugment_magnitude
    if config.randaugment == "timm":
        mean = config.mean if len(config.mean) == 3 else config.mean[:1] * 3
        policy = f"rand-m{magnitude:.0f}-n{layers}-mstd0.5-inc1"
        return timm_policy(policy, mean=mean, interpolation=config.interpolation)
    operations: list[PixelTransform] = [
        TimmOp(
            name,
            p=1.0,
            magnitude=magnitude,
            magnitude_max=max(magnitude, 1.0),
            interpolation="nearest",
            translate_pct=_TRANSLATE,
        )
        for name in _OPERATIONS
    ]
    return TimmRandAugment([*operations, _cutout(magnitude)], layers)


def _cutout(magnitude: float) -> RandomErasing:
    """Return a grey square whose side grows with the magnitude; of magnitude 0 it changes nothing."""
    side = min(_CUTOUT * magnitude / 10, 0.95)  # a rectangle is drawn where it is smaller than the image
    return RandomErasing(float(side > 0), scale=(side**2, side**2), ratio=(1, 1), value=128)
