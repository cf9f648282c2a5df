"""Figures from arrays: each function returns a `matplotlib.figure.Figure`, `save_figure` writes it.

No pyplot: no global state, no window, no backend to choose; matplotlib is imported when a figure is asked
for. Letters: B images, C channels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vit_rs.checkpoints import atomic_write

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

__all__ = ["image_batch_figure", "image_pixels", "mosaic", "new_figure", "save_figure"]


def image_batch_figure(
    images: ArrayLike | torch.Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    max_images: int = 64,
    heading: str | None = None,
) -> Figure:
    """Draw a batch of images as the model saw it.

    Args:
        images: (B, C, height, width) with 1 or 3 channels: u8 0..255, or floating point 0..1, or normalised
            floating point with its `mean` and `std`.
        mean: Per channel (or one for all), as they were subtracted.
        std: Per channel (or one for all), as they were divided by.
        titles: One per image, such as its label.
        columns: Images beside each other.
        max_images: Draw the first so many.
        heading: A line over all.

    Raises:
        ValueError: The shape is another, only one of `mean` and `std` is given, `titles` are too few, or
            values lie outside 0..1 after `mean` and `std` were undone (by more than rounding).
    """
    pixels = image_pixels(images, mean=mean, std=std)
    if titles is not None and len(titles) < min(len(pixels), max_images):
        raise ValueError(f"got {len(titles)} titles for {min(len(pixels), max_images)} images")
    if columns < 1 or max_images < 1:
        raise ValueError(f"columns and max_images must be at least 1, got {columns} and {max_images}")
    pixels = pixels[:max_images]  # (B, height, width, C)
    columns = min(columns, len(pixels))
    rows = math.ceil(len(pixels) / columns)
    cell = 1.25
    height = cell * pixels.shape[1] / pixels.shape[2] + (0.15 if titles is not None else 0.0)
    figure = new_figure(cell * columns, height * rows + (0.35 if heading else 0.0), gap=0.02)
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if number < len(pixels):
            picture = pixels[number]
            axes.imshow(picture.squeeze(2) if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            if titles is not None:
                axes.set_title(titles[number], fontsize=7, pad=2)
    if heading:
        figure.suptitle(heading, fontsize=10)
    return figure


def image_pixels(
    images: ArrayLike | torch.Tensor, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """Return images (B, C, height, width) as (B, height, width, C) in 0..1; arguments and errors as above."""
    tensor = images.detach().cpu() if isinstance(images, torch.Tensor) else torch.as_tensor(np.asarray(images))
    if tensor.ndim != 4 or tensor.shape[1] not in (1, 3) or tensor.numel() == 0:
        raise ValueError(f"expected images (B, 1 or 3, height, width), got {tuple(tensor.shape)}")
    if (mean is None) != (std is None):
        raise ValueError("mean and std go together: got only one of them")
    if tensor.dtype == torch.uint8:
        if mean is not None:
            raise ValueError("u8 images are not normalised: mean and std are for floating-point ones")
        values = tensor.float() / 255.0
    elif tensor.is_floating_point():
        values = tensor.float()
        if mean is not None and std is not None:
            scale, offset = (torch.tensor(list(each), dtype=torch.float32) for each in (std, mean))
            values = values * scale.view(-1, 1, 1) + offset.view(-1, 1, 1)
    else:
        raise ValueError(f"expected u8 or floating-point images, got {tensor.dtype}")
    least, most = values.min().item(), values.max().item()
    if not (least >= -0.01 and most <= 1.01):
        raise ValueError(f"values from {least:.3g} to {most:.3g} lie outside 0..1: pass the mean and std of the images")
    return values.clamp(0.0, 1.0).permute(0, 2, 3, 1).numpy()


def mosaic(tiles: NDArray[np.float32], columns: int, *, gap: int = 1, fill: float = math.nan) -> NDArray[np.float32]:
    """Return tiles beside each other as one image: an axes for each would take seconds.

    Args:
        tiles: (n, height, width) or (n, height, width, C), n at least 1; row by row, the last row may be short.
        columns: Tiles beside each other, at least 1.
        gap: Empty pixels between two.
        fill: Their value, in all channels.

    Returns:
        (rows (height + gap) - gap, columns (width + gap) - gap), and C if the tiles have it.
    """
    n, height, width = tiles.shape[:3]
    rows = math.ceil(n / columns)
    padded = np.full((rows * columns, height + gap, width + gap, *tiles.shape[3:]), fill, np.float32)
    padded[:n, :height, :width] = tiles
    padded = padded.reshape(rows, columns, *padded.shape[1:]).swapaxes(1, 2)
    image: NDArray[np.float32] = padded.reshape(rows * (height + gap), columns * (width + gap), *tiles.shape[3:])
    return image[: rows * (height + gap) - gap, : columns * (width + gap) - gap]


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 200) -> None:
    """Write a figure, atomically, in the format that the file's suffix names (.png, .pdf, .svg, ...).

    Args:
        figure: The figure.
        path: The file; its folder must exist.
        dpi: Dots per inch of pixel formats.

    Raises:
        ValueError: matplotlib does not know the suffix.
        FileNotFoundError: The folder does not exist.
    """
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in figure.canvas.get_supported_filetypes():
        known = ", ".join(sorted(figure.canvas.get_supported_filetypes()))
        raise ValueError(f"{path}: unknown figure format {suffix!r}, known are {known}")
    atomic_write(path, lambda file: figure.savefig(file, format=suffix, dpi=dpi))


def new_figure(width: float, height: float, *, gap: float = 0.04, compress: bool = False) -> Figure:
    """Return an empty figure of so many inches; `compress` draws panels of fixed aspect together."""
    # Here and not at the top of the file: matplotlib takes longer to import than vit-rs.
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    layout = ConstrainedLayoutEngine(w_pad=gap, h_pad=gap, hspace=0.0, wspace=0.0, compress=compress)
    return Figure(figsize=(width, height), layout=layout)
