"""Figures of what runs recorded: one run with its stages, or several runs beside each other.

A record is one line of metrics.jsonl, all keys optional: "stage" (str; records without it form one stage), "step" (int,
steps done within the stage; default: the record's number in it), and the numbers "train_loss", "test_loss" (nats),
"test_top1" (fraction 0..1) and "learning_rate". A record gives a point to each curve whose key it has with a finite
value; other keys are ignored.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from vit_rs.analysis.figures import new_figure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["CURVES", "RunCurves", "StageCurves", "comparison_figure", "run_curves", "training_curves"]

CURVES = ("train_loss", "test_loss", "test_top1", "learning_rate")

# Okabe and Ito's colours: told apart in print and by colour-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
_GREY = "#606060"
_SMOOTH_POINTS = 100  # a curve of more points is noise: its running mean is drawn over it


class StageCurves(NamedTuple):
    """The curves of one stage.

    Attributes:
        name: the stage's.
        start: where it begins on the x axis: where the stage before ended.
        points: key of `CURVES` -> float64 (n, 2), x and value in the order of the records; n may be 0.
    """

    name: str
    start: float
    points: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class RunCurves:
    """The curves of a run, for `comparison_figure`.

    Attributes:
        label: what the legend calls it.
        stages: its stages in their order.
    """

    label: str
    stages: Sequence[StageCurves]

    def points(self, key: str) -> NDArray[np.float64]:
        """Return a curve over all stages, float64 (n, 2)."""
        return np.concatenate([np.empty((0, 2)), *(stage.points[key] for stage in self.stages)])


def run_curves(
    records: Sequence[Mapping[str, Any]],
    *,
    place: Callable[[Mapping[str, Any]], float | None] | None = None,
    joined: bool = True,
) -> list[StageCurves]:
    """Return the curves of a run, its stages behind each other.

    Args:
        records: see the module.
        place: a record's place on the x axis, None leaves it out; without it its step.
        joined: whether a stage whose places start again, at or below where the one before ended, is shifted behind it;
            place 0 then falls on that end. False takes the places as they are.
    """
    grouped: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for record in records:
        members = grouped.setdefault(str(record.get("stage", "")), [])
        x = record.get("step", len(members)) if place is None else place(record)
        members.append((math.nan if x is None else float(x), record))
    stages: list[StageCurves] = []
    end = 0.0
    for name, members in grouped.items():
        points: dict[str, list[tuple[float, float]]] = {key: [] for key in CURVES}
        for x, record in members:
            for key, curve in points.items():
                value = record.get(key)
                if isinstance(value, int | float) and math.isfinite(value) and math.isfinite(x):
                    curve.append((x, float(value)))
        places = [x for curve in points.values() for x, _ in curve]
        if not places:
            continue
        shift = end if joined and stages and min(places) <= end else 0.0
        arrays = {key: np.array(curve, np.float64).reshape(-1, 2) for key, curve in points.items()}
        for array in arrays.values():
            array[:, 0] += shift
        stages.append(StageCurves(name, end if stages else min(places), arrays))
        end = shift + max(places)
    return stages


def training_curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw loss, test accuracy and learning rate of a run over its steps.

    Args:
        records: at least one of them with one of the four numbers; see the module. Stages follow each other in the
            order of the records: one whose steps start again is drawn behind the one before.

    Returns:
        Three panels beside each other; a panel without values says so.

    Raises:
        ValueError: No record has anything to draw.
    """
    stages = run_curves(records)
    if not stages:
        raise ValueError(f"nothing to draw: none of {len(records)} records has one of {', '.join(CURVES)}")
    figure = new_figure(12, 3.6)
    loss, accuracy, rate = figure.subplots(1, 3)
    for number, stage in enumerate(stages):
        color = _COLORS[number % len(_COLORS)]
        label = f"{stage.name}, " if len(stages) > 1 else ""
        _draw_noisy(loss, stage.points["train_loss"], color, f"{label}train")
        _draw(loss, stage.points["test_loss"], color, f"{label}test", "o--")
        _draw(accuracy, _percent(stage.points["test_top1"]), color, f"{label}test", "o-")
        _draw(rate, stage.points["learning_rate"], color, stage.name if len(stages) > 1 else "schedule", "-")
    # Of the last model, which is the one kept: the best of all tests would be a choice made on the test images.
    tested = [value for stage in stages for value in stage.points["test_top1"][:, 1]]
    last = f", {100.0 * tested[-1]:.2f} % at last" if tested else ""
    for axes, title, label in (
        (loss, "Loss", "Cross-entropy (nats)"),
        (accuracy, "Test accuracy" + last, "Top-1 (%)"),
        (rate, "Learning rate", "Learning rate"),
    ):
        axes.set(title=title, xlabel="Step", ylabel=label)
        for stage in stages[1:]:
            axes.axvline(stage.start, color=_GREY, linewidth=0.8, linestyle=":")
        _finish(axes, legend=True)
    return figure


def comparison_figure(runs: Sequence[RunCurves], *, xlabel: str = "Step") -> Figure:
    """Draw several runs in the same panels: training loss, test loss, test accuracy, learning rate.

    A run has one colour and kind of line, given by the legend below the panels. A training loss of many points is drawn
    as its running mean over a pale line. Where a run's later stages begin there is a dotted line in its colour.

    Args:
        runs: each with at least one point; any number.
        xlabel: what the x axis counts.

    Raises:
        ValueError: there is no run, or one has nothing to draw.
    """
    if not runs:
        raise ValueError("nothing to draw: no runs")
    for run in runs:
        if not run.stages:
            raise ValueError(f"nothing to draw: {run.label} has none of {', '.join(CURVES)}")
    from matplotlib.lines import Line2D  # noqa: PLC0415  (as in new_figure)

    figure = new_figure(11, 7 + 0.22 * len(runs))
    grid = figure.subplots(2, 2)
    styles = itertools.cycle(itertools.product(_LINES, _COLORS))  # colours first
    legend: list[Line2D] = []
    for run, (style, color) in zip(runs, styles, strict=False):
        # matplotlib leaves names with an underscore in front out of legends.
        label = f" {run.label}" if run.label.startswith("_") else run.label
        legend.append(Line2D([], [], color=color, linestyle=style, label=label))
        for axes, key in zip(grid.flat, CURVES, strict=True):
            for stage in run.stages:  # apart: nothing was measured between them
                points = stage.points[key]
                if key == "train_loss":
                    _draw_noisy(axes, points, color, label, style)
                elif key == "learning_rate":
                    _draw(axes, points, color, label, style)
                else:
                    _draw(axes, _percent(points) if key == "test_top1" else points, color, label, f"o{style}")
            for stage in run.stages[1:]:
                axes.axvline(stage.start, color=color, linewidth=0.8, linestyle=":", alpha=0.6)
    titles = ("Training loss", "Test loss", "Test accuracy", "Learning rate")
    labels = ("Cross-entropy (nats)", "Cross-entropy (nats)", "Top-1 (%)", "Learning rate")
    for axes, title, ylabel in zip(grid.flat, titles, labels, strict=True):
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        _finish(axes, legend=False)
    figure.legend(handles=legend, loc="outside lower center", frameon=False, fontsize="small")
    return figure


def _percent(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points * (1.0, 100.0)


def _draw_noisy(axes: Axes, points: NDArray[np.float64], color: str, label: str, style: str = "-") -> None:
    if len(points) <= _SMOOTH_POINTS:
        _draw(axes, points, color, label, style)
        return
    steps, values = points.T
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    # A window of 5 % that shrinks at both ends: the curve keeps its length and is never shifted.
    half = len(values) // 40
    sums = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, index[::-1]), half)
    smooth = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    axes.plot(steps, smooth, style, color=color, label=label)


def _draw(axes: Axes, points: NDArray[np.float64], color: str, label: str, style: str) -> None:
    if len(points):
        axes.plot(points[:, 0], points[:, 1], style, color=color, label=label, markersize=3.5)


def _finish(axes: Axes, *, legend: bool) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.grid(visible=True, linewidth=0.5, alpha=0.4)
        if legend:
            axes.legend(frameon=False, fontsize="small")
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=_GREY)
