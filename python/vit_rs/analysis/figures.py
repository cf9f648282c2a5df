"""Figures from arrays: each function returns a `matplotlib.figure.Figure`, `save_figure` writes it.

No pyplot: no global state, no window, no backend to choose; matplotlib is imported when a figure is asked
for. Letters: B images, C channels, gh x gw patches.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vit_rs.checkpoints import atomic_write

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

__all__ = ["image_batch_figure", "position_similarity_figure", "save_figure", "training_curves"]

# Okabe and Ito's colours: told apart in print and by colour-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#606060"
_SMOOTH_POINTS = 100  # a curve of more points is noise: its running mean is drawn over it


def training_curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw loss, test accuracy and learning rate of a run over its steps.

    A record is one line of metrics.jsonl; all keys are optional: "stage" (str; records without it form one
    stage), "step" (int; default: the record's number in its stage), "epoch", and the numbers "train_loss",
    "test_loss" (nats), "test_top1" (fraction 0..1) and "learning_rate". A record gives a point to each curve
    whose key it has with a finite value; other keys are ignored. Stages follow each other in the order of the
    records: one whose steps start again at or below where the one before ended is drawn behind it.

    Args:
        records: At least one of them with one of the four numbers.

    Returns:
        Three panels beside each other; a panel without values says so.

    Raises:
        ValueError: No record has anything to draw.
    """
    stages = _stages(records)
    if not any(series for _, _, curves in stages for series in curves.values()):
        raise ValueError(f"nothing to draw: none of {len(records)} records has one of {', '.join(_CURVES)}")
    figure = _new_figure(12, 3.6)
    loss, accuracy, rate = figure.subplots(1, 3)
    for number, (name, _, curves) in enumerate(stages):
        color = _COLORS[number % len(_COLORS)]
        label = f"{name}, " if len(stages) > 1 else ""
        _draw_noisy(loss, curves["train_loss"], color, f"{label}train")
        _draw(loss, curves["test_loss"], color, f"{label}test", "o--")
        top1 = [(step, 100.0 * value) for step, value in curves["test_top1"]]
        _draw(accuracy, top1, color, f"{label}test", "o-")
        _draw(rate, curves["learning_rate"], color, name if len(stages) > 1 else "schedule", "-")
    # Of the last model, which is the one kept: the best of all tests would be a choice made on the test images.
    tested = [value for _, _, curves in stages for _, value in curves["test_top1"]]
    last = f", {100.0 * tested[-1]:.2f} % at last" if tested else ""
    for axes, title, label in (
        (loss, "Loss", "Cross-entropy (nats)"),
        (
            accuracy,
            "Test accuracy" + last,
            "Top-1 (%)",
        ),
        (rate, "Learning rate", "Learning rate"),
    ):
        axes.set(title=title, xlabel="Step", ylabel=label)
        for _, start, _ in stages[1:]:
            axes.axvline(start, color=_GREY, linewidth=0.8, linestyle=":")
        _finish(axes)
    return figure


_CURVES = ("train_loss", "test_loss", "test_top1", "learning_rate")
_Curves = dict[str, list[tuple[float, float]]]


def _stages(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, _Curves]]:
    """Return (name, first step, points per curve) of each stage, its steps behind those of the one before."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        grouped.setdefault(str(record.get("stage", "")), []).append(record)
    stages: list[tuple[str, float, _Curves]] = []
    end = -math.inf
    for name, members in grouped.items():
        steps = [float(record.get("step", number)) for number, record in enumerate(members)]
        shift = end - min(steps) + 1.0 if min(steps) <= end else 0.0
        steps = [step + shift for step in steps]
        curves: _Curves = {key: [] for key in _CURVES}
        for step, record in zip(steps, members, strict=True):
            for key, points in curves.items():
                value = record.get(key)
                if isinstance(value, (int, float)) and math.isfinite(value):
                    points.append((step, float(value)))
        stages.append((name, min(steps), curves))
        end = max(steps)
    return stages


def _draw_noisy(axes: Axes, points: list[tuple[float, float]], color: str, label: str) -> None:
    if len(points) <= _SMOOTH_POINTS:
        _draw(axes, points, color, label, "-")
        return
    steps, values = (np.array(column) for column in zip(*points, strict=True))
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    # A window of 5 % that shrinks at both ends: the curve keeps its length and is never shifted.
    half = len(values) // 40
    sums = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, index[::-1]), half)
    smooth = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    axes.plot(steps, smooth, color=color, label=label)


def _draw(axes: Axes, points: list[tuple[float, float]], color: str, label: str, style: str) -> None:
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, style, color=color, label=label, markersize=3.5)


def _finish(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.grid(visible=True, linewidth=0.5, alpha=0.4)
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=_GREY)


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
    figure = _new_figure(width + (0.6 if wide else 1.6), height + (1.5 if wide else 0.7), compress=True)
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
    figure = _new_figure(cell * columns, height * rows + (0.35 if heading else 0.0), gap=0.02)
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


def _new_figure(width: float, height: float, *, gap: float = 0.04, compress: bool = False) -> Figure:
    """Return an empty figure of so many inches; `compress` draws panels of fixed aspect together."""
    # Here and not at the top of the file: matplotlib takes longer to import than vit-rs.
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    layout = ConstrainedLayoutEngine(w_pad=gap, h_pad=gap, hspace=0.0, wspace=0.0, compress=compress)
    return Figure(figsize=(width, height), layout=layout)
