"""Figures from arrays: each function returns a `matplotlib.figure.Figure`, `save_figure` writes it.

No pyplot: no global state, no window, no backend to choose; matplotlib is imported when a figure is asked
for. Letters: B images, C channels, gh x gw patches.
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

__all__ = ["image_batch_figure", "new_figure", "position_similarity_figure", "save_figure"]


def position_similarity_figure(similarity: ArrayLike, *, limits: tuple[float, float] = (-1.0, 1.0)) -> Figure:
    """Draw the maps of `position_similarity` at their patches' own places: a grid of grids.

    Source: arXiv 2010.11929, figure 7 (centre), with its colour scale of -1 to 1.

    Args:
        similarity: (gh, gw, gh, gw), -1..1; any size, also non-square.
        limits: Values of the two ends of the colour scale.

    Returns:
        One panel and its colour bar; rows and columns are counted from 1.

    Raises:
        ValueError: The array is not (gh, gw, gh, gw).
    """
    maps = np.asarray(similarity, dtype=np.float32)
    if maps.ndim != 4 or maps.shape[:2] != maps.shape[2:] or maps.size == 0:
        raise ValueError(f"expected similarities (gh, gw, gh, gw), got {maps.shape}")
    gh, gw = maps.shape[:2]
    # One image for all maps, empty lines between them: an axes per patch would take seconds at 24 x 24.
    gap = max(1, round(0.1 * max(gh, gw)))
    mosaic = np.full((gh * (gh + gap) - gap, gw * (gw + gap) - gap), np.nan, np.float32)
    for row in range(gh):
        for column in range(gw):
            top, left = row * (gh + gap), column * (gw + gap)
            mosaic[top : top + gh, left : left + gw] = maps[row, column]
    aspect = mosaic.shape[1] / mosaic.shape[0]
    width, height = min(6.0, 6.0 * aspect), min(6.0, 6.0 / aspect)
    wide = aspect > 2.0  # the colour bar goes along the longer side
    figure = new_figure(width + (0.6 if wide else 1.6), height + (1.5 if wide else 0.7), compress=True)
    axes = figure.subplots()
    image = axes.imshow(mosaic, cmap="viridis", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    for axis, count in ((axes.yaxis, gh), (axes.xaxis, gw)):
        every = max(1, math.ceil(count / 16))
        places = range(0, count, every)
        axis.set_ticks([place * (count + gap) + (count - 1) / 2 for place in places])
        axis.set_ticklabels([str(place + 1) for place in places])
        axis.set_tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title="Position embedding similarity", xlabel="Input patch column", ylabel="Input patch row")
    figure.colorbar(
        image,
        ax=axes,
        label="Cosine similarity",
        orientation="horizontal" if wide else "vertical",
        ticks=np.linspace(*limits, 5),
        aspect=30,
        pad=0.02,
    )
    return figure


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
    pixels = _pixels(images, mean, std)
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


def _pixels(
    images: ArrayLike | torch.Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> NDArray[np.float32]:
    """Return (B, height, width, C) in 0..1."""
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
