"""What a PIL image says of itself beside its pixels, `image.info`: EXIF, resolution, colour profile, comments."""

from __future__ import annotations

import importlib
import io
from typing import TYPE_CHECKING, Any

from vit_rs import transforms as ours

if TYPE_CHECKING:
    from vit_rs.transforms import Transform

__all__ = ["image_info", "keeps_info"]

# What torchvision and timm do with methods of PIL images that keep it. What makes a new image (padding, brightness,
# contrast, hue, three gray channels, blur through a tensor) loses it.
_KEEPING = (
    *(ours.CenterCrop, ours.CenterCropOrPad, ours.RandomCropOrPad, ours.RandomResizedCrop, ours.TrimBorder),
    *(ours.Resize, ours.ResizeKeepRatio),
    *(ours.RandomAffine, ours.RandomHorizontalFlip, ours.RandomRotation, ours.RandomVerticalFlip),
    *(ours.RandomAdjustSharpness, ours.RandomAutocontrast, ours.RandomEqualize, ours.RandomInvert),
    *(ours.RandomPosterize, ours.RandomSolarize),
)
_HEADER, _SIGNATURE = 12, 8


def image_info(encoded: bytes) -> dict[str, Any]:
    """Return the info of an image that was opened and converted to RGB.

    Only the header is read, except of the few images of which that is not all.

    Args:
        encoded: a file's content.

    Raises:
        PIL.UnidentifiedImageError: Pillow does not read it.

    Source: PIL.Image.open(file).convert("RGB").info
    """
    with importlib.import_module("PIL.Image").open(io.BytesIO(encoded)) as image:
        info: dict[str, Any] = image.info
        # Pillow converts the transparent colour, too.
        whole = image.mode == "RGB" or "transparency" not in info
        if image.format == "WEBP":
            whole = whole and not image.is_animated
            # As decoding does.
            info.update(timestamp=0, duration=0)
        elif image.format == "PNG":
            whole = whole and not _has_chunks_behind_pixels(encoded)
        elif image.format not in ("JPEG", "MPO"):
            whole = False
        return info if whole else image.convert("RGB").info


def _has_chunks_behind_pixels(png: bytes) -> bool:
    """Tell whether something beside the end follows the pixels of a PNG: Pillow reads that when it decodes."""
    at, kind, pixels = _SIGNATURE, b"", False
    while at + _HEADER <= len(png) and kind != b"IEND":
        kind = png[at + 4 : at + 8]
        if pixels and kind not in (b"IDAT", b"IEND"):
            return True
        pixels = pixels or kind == b"IDAT"
        at += _HEADER + int.from_bytes(png[at : at + 4], "big")
    return False


def keeps_info(transform: Transform) -> bool:
    """Tell whether the libraries' own form of a transform always keeps the info of a PIL image.

    CenterCrop and those that pad by name count as keeping it: of an image smaller than the crop, they do not.
    """
    if isinstance(transform, (ours.Compose, ours.RandomApply, ours.RandomChoice, ours.RandomOrder)):
        return all(map(keeps_info, transform.transforms))
    if isinstance(transform, ours.ColorJitter):
        return not (transform.brightness or transform.contrast or transform.hue)
    if isinstance(transform, ours.RandomCrop):
        return transform.padding is None and not transform.pad_if_needed
    return isinstance(transform, _KEEPING)
