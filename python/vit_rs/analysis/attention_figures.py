"""Figures of what the layers attend to: how far, where each head looks, what reaches the output.

Letters: B images, C channels, L layers, H heads, gh x gw patches.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from vit_rs.analysis.figures import image_pixels, mosaic, new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

__all__ = ["attention_distance_figure", "attention_heads_figure", "rollout_figure"]

_SHOWN_SIDE = 224  # pixels of an image in a figure of many: more would not be seen


def attention_distance_figure(
    distances: ArrayLike,
    *,
    title: str | None = None,
    width: float | None = None,
    uniform: float | None = None,
    layers: Sequence[int] | None = None,
) -> Figure:
    """Draw the mean attention distance of every head against the depth of its layer, a dot for each.

    Source: arXiv 2010.11929, figure 7 (right). The heads' numbers mean nothing across layers, hence a dot's colour is
    its head's number only to find it again.

    Args:
        distances: (L, H), finite, at least 0, in pixels.
        title: A line over it.
        width: The image's width in pixels: the axis then ends at 0.6 of it, so that figures of one size compare,
            or above the largest distance. (Uniform attention has 0.52 of a square's side.)
        uniform: The distance of uniform attention in pixels, drawn as a line.
        layers: The layers' numbers, counted from 1; without them 1 to L.

    Raises:
        ValueError: The array is not (L, H), or has a value that is no distance, or `layers` are not L.
    """
    values = np.asarray(distances, np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"expected distances (L, H), got {values.shape}")
    if not (np.isfinite(values).all() and (values >= 0.0).all()):
        raise ValueError(
            f"distances {values.shape} must be finite and at least 0, got {values.min()} to {values.max()}"
        )
    numbers = _layer_numbers(layers, len(values))
    heads = values.shape[1]
    figure = new_figure(max(4.5, min(9.0, 0.28 * len(values) + 2.5)), 3.8)
    axes = figure.subplots()
    colors = _head_colors(heads)
    dots = axes.scatter(
        np.repeat(numbers, heads),
        values.ravel(),
        c=np.tile(np.arange(1, heads + 1), len(values)),
        cmap=colors,
        vmin=0.5,
        vmax=heads + 0.5,
        s=18,
        alpha=0.85,
        linewidths=0,
        zorder=2,
    )
    if uniform is not None:
        axes.axhline(uniform, color="#606060", linewidth=0.9, linestyle="--", label="uniform attention", zorder=1)
        axes.legend(frameon=False, fontsize="small", loc="lower right")
    top = max(values.max(), 0.0 if uniform is None else uniform) * 1.05
    margin = max(0.7, 0.03 * (max(numbers) - min(numbers)))
    axes.set(
        title=title or "",
        xlabel="Network depth (layer)",
        ylabel="Mean attention distance (pixels)",
        xlim=(min(numbers) - margin, max(numbers) + margin),
        ylim=(0.0, max(top, 0.6 * width if width is not None else 0.0) or 1.0),
    )
    if layers is None or len(numbers) > 16:
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    else:
        axes.set_xticks(numbers)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, linewidth=0.5, alpha=0.4)
    every = math.ceil(heads / 16)
    figure.colorbar(dots, ax=axes, label="Head", ticks=range(1, heads + 1, every), aspect=30, pad=0.02)
    return figure


def _head_colors(heads: int) -> Colormap:
    import matplotlib as mpl  # noqa: PLC0415  (as in new_figure)
    from matplotlib.colors import ListedColormap  # noqa: PLC0415

    return ListedColormap(mpl.colormaps["viridis"](np.linspace(0.0, 0.92, heads)))


def _layer_numbers(layers: Sequence[int] | None, count: int) -> list[int]:
    numbers = list(range(1, count + 1)) if layers is None else list(layers)
    if len(numbers) != count:
        raise ValueError(f"got {len(numbers)} layers' numbers for {count} layers")
    return numbers


def attention_heads_figure(
    maps: ArrayLike,
    *,
    image: ArrayLike | None = None,
    title: str | None = None,
    layers: Sequence[int] | None = None,
) -> Figure:
    """Draw the attention of one token, such as the class token, to the patches: a map for each layer and head.

    Each map is scaled by its own maximum, for a head that spreads its attention would be all but black beside one
    that does not.

    Args:
        maps: (L, H, gh, gw), finite, at least 0.
        image: (C, height, width), 1 or 3 channels, u8 or 0..1: the image, drawn beside them.
        title: One line or more, over all.
        layers: The layers' numbers, counted from 1; without them 1 to L.

    Raises:
        ValueError: An array has another shape or values, or `layers` are not L.
    """
    values = np.asarray(maps, np.float32)
    if values.ndim != 4 or values.size == 0:
        raise ValueError(f"expected attention maps (L, H, gh, gw), got {values.shape}")
    tiles = _relative_to_maximum(values)
    count, heads, gh, gw = values.shape
    numbers = _layer_numbers(layers, count)
    gap = max(1, round(0.1 * max(gh, gw)))
    picture = mosaic(tiles.reshape(count * heads, gh, gw), heads, gap=gap)
    # At most 1 inch for a map's longer side, the whole within 7.5 x 10.
    scale = min(1.0 / max(gh, gw), 7.5 / picture.shape[1], 10.0 / picture.shape[0])
    width, height = scale * picture.shape[1], scale * picture.shape[0]
    beside, high = 0.0, max(height + 0.85, 1.8)
    if image is not None:
        pixels = image_pixels(torch.as_tensor(image)[None])[0]
        beside = min(max(height, 1.4), 2.4)
        high = max(high, beside * min(pixels.shape[0] / pixels.shape[1], 2.0) + 0.1)
    figure = new_figure(beside + width + 1.4, high)
    if image is not None:
        left, axes = figure.subplots(1, 2, width_ratios=(beside, width + 1.4))
        _show(left, pixels)
        left.set_anchor("N")
    else:
        axes = figure.subplots()
    axes.set_anchor("NW")
    shown = axes.imshow(picture, cmap="viridis", vmin=0.0, vmax=1.0, interpolation="nearest")
    for axis, names, side in ((axes.yaxis, numbers, gh), (axes.xaxis, range(1, heads + 1), gw)):
        every = max(1, math.ceil(0.16 / (scale * (side + gap))))
        places = range(0, len(names), every)
        axis.set_ticks([place * (side + gap) + (side - 1) / 2 for place in places])
        axis.set_ticklabels([str(names[place]) for place in places])
        axis.set_tick_params(length=0, labelsize="small")
    axes.spines[:].set_visible(False)
    axes.set(xlabel="Head", ylabel="Layer")
    if title:
        figure.suptitle(title, fontsize="medium")  # over the image too: the maps alone may be narrow
    bar = axes.inset_axes((1.0 + 0.1 / width, 0.0, 0.12 / width, 1.0))  # as high as the maps
    figure.colorbar(shown, cax=bar, label="Relative attention", ticks=(0.0, 0.5, 1.0))
    return figure


def rollout_figure(images: ArrayLike, maps: ArrayLike, *, max_images: int = 16, title: str | None = None) -> Figure:
    """Draw images, each beside itself multiplied by its attention rollout.

    A map is scaled by its maximum and enlarged bilinearly. Images of more than 224 pixels are reduced for the figure.

    Source: arXiv 2010.11929, figures 6 and 14, appendix D.8.

    Args:
        images: (B, C, height, width), 1 or 3 channels, u8 or 0..1.
        maps: (B, gh, gw), finite, at least 0.
        max_images: Draw the first so many, at least 1.
        title: A line over them.

    Raises:
        ValueError: An array has another shape or values, or their B differ, or `max_images` is below 1.
    """
    if max_images < 1:
        raise ValueError(f"max_images must be at least 1, got {max_images}")
    values, given = np.asarray(maps, np.float32), tuple(np.shape(images))
    if values.ndim != 3 or values.size == 0 or given[:1] != values.shape[:1]:
        raise ValueError(f"expected images (B, C, height, width) and maps (B, gh, gw), got {given} and {values.shape}")
    weights = torch.from_numpy(_relative_to_maximum(values[:max_images]))[:, None]  # (B, 1, gh, gw)
    pixels = torch.from_numpy(image_pixels(torch.as_tensor(images)[:max_images])).permute(0, 3, 1, 2)
    height, width = pixels.shape[2:]
    scale = min(1.0, _SHOWN_SIDE / max(height, width))
    if scale < 1.0:
        height, width = max(1, round(scale * height)), max(1, round(scale * width))
        pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True).clamp_(0.0, 1.0)  # rounding
    attended = pixels * F.interpolate(weights, (height, width), mode="bilinear")
    tiles = torch.stack((pixels, attended), dim=1).flatten(0, 1).permute(0, 2, 3, 1)  # (2B, height, width, C)
    # Inches: a square has 1.05, images of another shape about its area, few ones more.
    tile = 1.05 * min(max(math.sqrt(width / height), 0.6), 2.0) * (1.5 if len(pixels) <= 2 else 1.0)
    pairs = min(len(pixels), max(1, int(8.5 / (2.0 * tile))))
    gap = max(1, round(0.03 * width))
    picture = mosaic(tiles.numpy(), 2 * pairs, gap=gap, fill=1.0)
    across = max(2.0 * pairs * tile, 2.5)
    figure = new_figure(across, across * picture.shape[0] / picture.shape[1] + (0.45 if title else 0.2))
    axes = figure.subplots()
    _show(axes, picture)
    for number in range(2 * pairs):
        axes.text(
            number * (width + gap) + width / 2,
            -gap,
            "Attention" if number % 2 else "Input",
            ha="center",
            va="bottom",
            fontsize="small",
        )
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure


def _relative_to_maximum(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale maps (..., gh, gw) by their own maxima, to 0..1; a map of zeros stays."""
    if not (np.isfinite(maps).all() and (maps >= 0.0).all()):
        raise ValueError(f"attention maps {maps.shape} must be finite and at least 0, got {maps.min()} to {maps.max()}")
    largest = maps.max(axis=(-2, -1), keepdims=True)
    scaled: NDArray[np.float32] = np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0.0)
    return scaled


def _show(axes: Axes, picture: NDArray[np.float32]) -> None:
    """Draw an image (height, width, 1 or 3), 0..1."""
    axes.imshow(picture.squeeze(2) if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
