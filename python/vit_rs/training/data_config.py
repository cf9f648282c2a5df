"""Which images a run learns from and is tested on, and what is done to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vit_rs.training.checks import at_least, within

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DataConfig"]


@dataclass(frozen=True)
class DataConfig:
    """The images: where they are, how large they enter the model, and how they are augmented."""

    # Folder of class sub-folders, of train/ and val/, of IDX files, or of tar shards (train-*.tar and val-*.tar); None
    # is the bundled Fashion-MNIST subset.
    path: str | None = None
    # Side in pixels of the square that the model is trained on.
    img_size: int = 28
    # "shift": a random window of the zero-padded image; "resized_crop": a random part of it, resized
    # (Inception's crop); "crop": resized to train_resize, a random window of it (the paper's fine-tuning).
    augment: Literal["shift", "resized_crop", "crop"] = "shift"
    # "shift": zero pixels added on every side at img_size; another image size scales them.
    padding: int = 2
    # "crop": side in pixels of the square that images are resized to before the window is taken; another image
    # size scales it.
    train_resize: int | None = None
    # "resized_crop": smallest part of the image's area that is drawn; the largest is 1.
    min_scale: float = 0.08
    # "resized_crop": largest width over height, and height over width, of that part.
    max_aspect: float = 4 / 3
    # Filter of every resize.
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    # Chance that an image is mirrored left to right.
    flip: float = 0.5
    # RandAugment: operations an image (0 is off) and their magnitude, on the scale of big_vision (0..30) and timm
    # (0..10), which is the same.
    randaugment_layers: int = 0
    randaugment_magnitude: float = 10.0
    # Whose: "big_vision" applies each operation that was drawn, at that magnitude; "timm" every second one, at a
    # magnitude drawn around it (rand-m9-mstd0.5-inc1 where that is 9).
    randaugment: Literal["big_vision", "timm"] = "big_vision"
    # Strength of random brightness, contrast and saturation; 0 is off, 0.3 draws factors of 0.7..1.3.
    color_jitter: float = 0.0
    # Whether one of grey, solarize, blur is drawn for each image (DeiT III).
    three_augment: bool = False
    # Chance that a rectangle of the image is erased, after normalisation.
    erase: float = 0.0
    # Test images: "crop": the short side is resized to img_size / eval_crop, then the middle is cut out (eval_crop 1
    # keeps all of the short side); "squash": both sides are, whatever the image's shape (vision_transformer).
    eval_resize: Literal["crop", "squash"] = "crop"
    eval_crop: float = 1.0
    # Mean and standard deviation of the pixels in 0..1, one value for each channel, or one for all.
    mean: tuple[float, ...] = (0.2860,)
    std: tuple[float, ...] = (0.3530,)
    # Where training images become normalised floats: in the loader's threads, or on the model's device, which a quarter
    # of the bytes is then copied to.
    normalize_on: Literal["loader", "device"] = "loader"
    # An image that cannot be read ends the run, is left out, or has another one in its place.
    on_error: Literal["raise", "skip", "substitute"] = "raise"
    # Share of each class that is held out for testing where the folder has no val/ or test/.
    holdout: float = 0.2
    # Seed of that split: apart from the run's seed, so that runs with several seeds share their test images.
    split_seed: int = 0
    # Use the first so many training images of each class; None uses all.
    per_class: int | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) for every value that cannot be used."""
        yield from at_least(self, "img_size", 1)
        yield from at_least(self, "padding", 0)
        if self.augment == "crop":
            if self.train_resize is None:
                yield "train_resize", 'augment "crop" needs the side that images are resized to, got none'
            yield from at_least(self, "train_resize", self.img_size)
        elif self.train_resize is not None:
            yield "train_resize", f'{self.train_resize} is for augment "crop", got augment {self.augment!r}'
        yield from within(self, "min_scale", 0.0, 1.0, open_low=True)
        yield from at_least(self, "max_aspect", 1.0)
        yield from within(self, "flip", 0.0, 1.0)
        yield from at_least(self, "randaugment_layers", 0)
        yield from within(self, "randaugment_magnitude", 0.0, 30.0)
        if self.randaugment == "timm" and (self.randaugment_magnitude % 1 or self.randaugment_magnitude > 10):
            yield "randaugment_magnitude", f"timm's are whole numbers of 0..10, got {self.randaugment_magnitude:g}"
        yield from at_least(self, "color_jitter", 0.0)
        yield from within(self, "erase", 0.0, 1.0)
        yield from within(self, "eval_crop", 0.0, 1.0, open_low=True)
        yield from within(self, "holdout", 0.0, 1.0, open_low=True, open_high=True)
        yield from at_least(self, "split_seed", 0)
        yield from at_least(self, "per_class", 1)
        if not self.mean:
            yield "mean", "expected one value, or one for each channel, got none"
        if len(self.std) != len(self.mean):
            yield "std", f"expected as many values as mean, {len(self.mean)}, got {len(self.std)}"
        if any(value <= 0 for value in self.std):
            yield "std", f"expected values above 0, got {self.std}"
        if self.normalize_on == "device" and self.erase > 0:
            yield "erase", "rectangles are erased after normalisation: expected 0 with normalize_on=device"
