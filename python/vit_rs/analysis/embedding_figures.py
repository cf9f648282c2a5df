"""Figures of what the embeddings have learnt: filters of the patches, similarity of the positions.

Letters: D width, C channels, p x q patch, K components, gh x gw patches.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from vit_rs.analysis.figures import mosaic, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

__all__ = ["patch_filters_figure", "position_similarity_figure", "raw_filters_figure"]


def position_similarity_figure(
    similarity: ArrayLike,
    *,
    title: str = "Position embedding similarity",
    limits: tuple[float, float] = (-1.0, 1.0),
) -> Figure:
    """Draw the maps of `position_similarity` at their patches' own places: a grid of grids.

    Source: arXiv 2010.11929, figure 7 (centre), with its colour scale of -1 to 1.

    Args:
        similarity: (gh, gw, gh, gw), -1..1; any size, also non-square.
        title: A line over it.
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
    picture = mosaic(maps.reshape(gh * gw, gh, gw), gw, gap=gap)
    aspect = picture.shape[1] / picture.shape[0]
    width, height = min(6.0, 6.0 * aspect), min(6.0, 6.0 / aspect)
    wide = aspect > 2.0  # the colour bar goes along the longer side
    figure = new_figure(width + (0.6 if wide else 1.6), height + (1.5 if wide else 0.7), compress=True)
    axes = figure.subplots()
    image = axes.imshow(picture, cmap="viridis", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    for axis, count in ((axes.yaxis, gh), (axes.xaxis, gw)):
        every = max(1, math.ceil(count / 16))
        places = range(0, count, every)
        axis.set_ticks([place * (count + gap) + (count - 1) / 2 for place in places])
        axis.set_ticklabels([str(place + 1) for place in places])
        axis.set_tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title=title, xlabel="Input patch column", ylabel="Input patch row")
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


def patch_filters_figure(
    components: ArrayLike,
    explained_variance_ratio: ArrayLike | None = None,
    *,
    title: str = "Embedding filters: principal components",
) -> Figure:
    """Draw the principal components of `patch_filters` as tiles, and how much of the variance they explain.

    A tile's values are scaled by its own largest magnitude: 0 is the middle grey, in each channel.

    Source: arXiv 2010.11929, figure 7 (left).

    Args:
        components: (K, C, p, q), finite, with 1 channel (grey) or 3 (RGB); row by row.
        explained_variance_ratio: (n,) with n at least K, in 0..1, in the order of the components; without it only
            the tiles are drawn.
        title: A line over the tiles.

    Raises:
        ValueError: An array has another shape, or values that are not finite.
    """
    tiles = _tiles(components)
    picture = _filter_mosaic(tiles)
    if explained_variance_ratio is None:
        figure = new_figure(*_fitted(picture, max(tiles.shape[1:3]), 6.0))
        _draw_tiles(figure.subplots(), picture, title)
        return figure
    ratio = np.asarray(explained_variance_ratio, np.float64)
    if ratio.ndim != 1 or len(ratio) < len(tiles) or not np.isfinite(ratio).all():
        raise ValueError(
            f"expected the finite variance ratios (n,) of at least {len(tiles)} components, got {ratio.shape}"
        )
    width, height = _fitted(picture, max(tiles.shape[1:3]), 5.5)
    figure = new_figure(width + 4.2, max(height, 3.2))
    left, right = figure.subplots(1, 2, width_ratios=(width, 4.2))
    _draw_tiles(left, picture, title)
    number = np.arange(1, len(ratio) + 1)
    cumulative = 100.0 * np.cumsum(ratio)
    right.plot(number, cumulative, color="#0072B2", label="cumulative")
    right.plot(number, 100.0 * ratio, "o-", color="#D55E00", markersize=2.5, linewidth=0.8, label="each")
    shown = f"{len(tiles)} shown: {cumulative[len(tiles) - 1]:.1f} %"
    right.axvline(len(tiles), color="#606060", linewidth=0.8, linestyle=":", label=shown)
    right.set_title("Explained variance", fontsize="medium")
    right.set(xlabel="Component", ylabel="Variance (%)", ylim=(0.0, 105.0))
    if len(ratio) > 64:
        right.set_xscale("log")
        right.xaxis.set_major_formatter("{x:g}")
    else:
        right.locator_params(axis="x", integer=True)
    right.spines[["top", "right"]].set_visible(False)
    right.grid(visible=True, linewidth=0.5, alpha=0.4)
    right.legend(frameon=False, fontsize="small")
    return figure


def raw_filters_figure(weight: ArrayLike, *, max_filters: int = 256, title: str | None = None) -> Figure:
    """Draw the patch embedding's filters themselves, in their order, as tiles.

    A tile's values are scaled by its own largest magnitude: 0 is the middle grey, in each channel. A filter that is
    all but zero looks as strong as the others.

    Args:
        weight: (D, C, p, q), finite, with 1 channel (grey) or 3 (RGB).
        max_filters: Draw the first so many, at least 1.
        title: A line over them; None says how many there are.

    Raises:
        ValueError: The weight has another shape, or values that are not finite, or `max_filters` is below 1.
    """
    if max_filters < 1:
        raise ValueError(f"max_filters must be at least 1, got {max_filters}")
    tiles = _tiles(weight)
    if title is None:
        first = f"The first {max_filters} of " if max_filters < len(tiles) else ""
        title = f"{first}{len(tiles)} embedding filters"
    picture = _filter_mosaic(tiles[:max_filters])
    figure = new_figure(*_fitted(picture, max(tiles.shape[1:3]), 7.0))
    _draw_tiles(figure.subplots(), picture, title)
    return figure


def _tiles(filters: ArrayLike) -> NDArray[np.float32]:
    """Return filters (n, C, p, q) as tiles (n, p, q, 3) in 0..1."""
    values = np.asarray(filters, np.float32)
    if values.ndim != 4 or values.size == 0 or values.shape[1] not in (1, 3):
        raise ValueError(f"expected filters (n, 1 or 3 channels, p, q), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"filters {values.shape} have values that are not finite")
    largest = np.abs(values).max(axis=(1, 2, 3), keepdims=True)
    scaled = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0.0)
    return np.broadcast_to((0.5 + 0.5 * scaled).transpose(0, 2, 3, 1), (len(values), *values.shape[2:], 3))


def _filter_mosaic(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lay tiles (n, p, q, 3) out: a little wider than high, with as few empty places as can be."""
    n, height, width = tiles.shape[:3]
    square = math.sqrt(n * height / width)  # columns of a square
    candidates = range(max(1, math.ceil(square)), max(1, math.ceil(square), math.floor(1.8 * square)) + 1)
    columns = min(n, min(candidates, key=lambda columns: -n % columns))
    gap = max(1, round(0.1 * max(height, width)))
    return mosaic(tiles, columns, gap=gap, fill=1.0)


def _fitted(picture: NDArray[np.float32], tile: int, side: float) -> tuple[float, float]:
    """Return the inches of a figure of one picture and its title.

    The picture's longer side has `side` inches, or less: the longer side of a tile, `tile` pixels, at most 1.2.
    """
    height, width = picture.shape[:2]
    scale = min(side / max(height, width), 1.2 / tile)
    return max(scale * width + 0.1, 3.2), scale * height + 0.35


def _draw_tiles(axes: Axes, picture: NDArray[np.float32], title: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize="medium")
    axes.set_anchor("N")
