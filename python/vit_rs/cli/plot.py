"""`vit-rs plot`: several runs in one figure, from what their folders hold."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_rs.cli.tables import aligned
from vit_rs.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from vit_rs.analysis.curves import RunCurves

__all__ = ["add_parser"]

_AXES = {"step": "Step", "epoch": "Epoch", "images": "Images", "seconds": "Seconds"}
_MOST_SETTINGS = 4  # that a legend's line names


def add_parser(commands: Any) -> None:
    """Add `vit-rs plot`."""
    plot = commands.add_parser(
        "plot",
        help="draw the curves of runs in one figure",
        description=(
            "Draw training loss, test loss, test accuracy and learning rate of runs in one figure, and print their\n"
            "last and best values. The legend says in which settings the runs differ. Runs may be unfinished."
        ),
        epilog=("examples:\n  vit-rs plot runs/fashion_mnist-001\n  vit-rs plot runs/* --x seconds --out compared.pdf"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plot.set_defaults(run=_plot)
    plot.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    plot.add_argument(
        "--out",
        type=Path,
        default=Path("curves.png"),
        metavar="FILE",
        help="the figure, .png, .svg or .pdf (default: curves.png)",
    )
    plot.add_argument("--x", choices=tuple(_AXES), default="step", help="what the curves are over (default: step)")


def _plot(options: argparse.Namespace) -> int:
    from vit_rs.analysis.curves import comparison_figure  # noqa: PLC0415  (torch is imported here)
    from vit_rs.analysis.figures import save_figure  # noqa: PLC0415

    settings = [_settings(folder) for folder in options.runs]
    names = _names(options.runs)
    differences = _differences(settings)
    runs = []
    for folder, name, values, differing in zip(options.runs, names, settings, differences, strict=True):
        label = f"{name} ({differing})" if differing else name
        runs.append(_run(folder, label, values, options.x))
    try:
        save_figure(comparison_figure(runs, xlabel=_AXES[options.x]), options.out)
    except ValueError as error:  # no such format
        raise ConfigError(str(error)) from error
    print(_table(names, runs, options.x))
    print(f"The figure is {options.out}.")
    return 0


def _run(folder: Path, label: str, settings: Mapping[str, Any], x: str) -> RunCurves:
    from vit_rs.analysis.curves import RunCurves, run_curves  # noqa: PLC0415
    from vit_rs.training.metrics import read_metrics  # noqa: PLC0415

    file = folder / "metrics.jsonl"
    if not file.is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/metrics.jsonl"))
        hint = f"; there are runs in it: {', '.join(str(folder / name) for name in inside[:3])}" if inside else ""
        raise ConfigError(f"{folder} is no run's folder: there is no {file.name} in it{hint}")
    records = read_metrics(file)
    stages = run_curves(records, place=_place(records, settings, folder, x), joined=x != "seconds")
    if not stages:
        raise ConfigError(f"{file}: nothing to draw: no record has a value yet")
    return RunCurves(label, stages)


def _place(
    records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], folder: Path, x: str
) -> Callable[[Mapping[str, Any]], float | None]:
    """Return what gives a record its place on the x axis, within its stage but for seconds."""
    if x == "seconds":
        return lambda record: (record.get("time") or {}).get("seconds")
    if x == "step":
        return lambda record: record.get("step")
    if x == "images":
        sizes = {"pretrain": settings.get("batch_size"), "finetune": settings.get("finetune.batch_size")}
        if None in sizes.values() or settings.get("batch_of", "global") != "global":
            raise ConfigError(f"{folder}: its config.json does not say how many images a step has: choose another --x")
        return lambda record: _times(record.get("step"), sizes.get(str(record.get("stage"))))
    # Steps of an epoch in each stage: no record's epoch has fewer, and one of an epoch's end has as many.
    longest: dict[Any, int] = {}
    told = set()  # not within the first epoch, before a test
    for record in records:
        if record.get("epoch"):
            stage = record.get("stage")
            longest[stage] = max(longest.get(stage, 1), math.ceil(record["step"] / record["epoch"]))
            if record.get("kind") == "test" or record["epoch"] > 1:
                told.add(stage)

    def epoch(record: Mapping[str, Any]) -> float | None:
        stage = record.get("stage")
        return _times(record.get("step"), 1 / longest[stage]) if stage in told else record.get("epoch")

    return epoch


def _times(step: float | None, factor: float | None) -> float | None:
    return None if step is None or factor is None else step * factor


def _settings(folder: Path) -> dict[str, Any]:
    """Return path -> value of a run's settings, as JSON has them: runs of other versions may have others."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON: {error}") from error
    return dict(_flat(config, ""))


def _flat(value: Any, path: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(path, value)]
    return [pair for name, inner in value.items() for pair in _flat(inner, f"{path}.{name}" if path else name)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' own names, or as much of their paths as tells them apart."""
    paths = [folder.resolve().parts for folder in folders]
    names = []
    for own in paths:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in set(paths)) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return names


def _differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each run the settings in which the runs differ: "optim.lr 0.001, seed 2"."""
    known = dict.fromkeys(name for values in settings for name in values)  # in the order of config.json
    names = [name for name in known if any(values.get(name) != settings[0].get(name) for values in settings)]
    told = []
    for values in settings:
        texts = [f"{name} {json.dumps(values[name])}".replace('"', "") for name in names if name in values]
        more = len(texts) - _MOST_SETTINGS
        told.append(", ".join(texts[:_MOST_SETTINGS]) + (f" and {more} more" if more > 0 else ""))
    return told


def _table(names: Sequence[str], runs: Sequence[RunCurves], x: str) -> str:
    rows = [("run", x, "train loss", "test loss", "best test loss", "test top-1", "best test top-1")]
    for name, run in zip(names, runs, strict=True):
        train, test, top1 = (run.points(key) for key in ("train_loss", "test_loss", "test_top1"))
        end = max(points[-1, 0] for points in (train, test, top1, run.points("learning_rate")) if len(points))
        rows.append(
            (
                name,
                f"{end:,.6g}",
                f"{train[-1, 1]:.4f}" if len(train) else "-",
                f"{test[-1, 1]:.4f}" if len(test) else "-",
                _best(test, lambda values: values.argmin(), lambda value: f"{value:.4f}"),
                f"{top1[-1, 1]:.2%}" if len(top1) else "-",
                _best(top1, lambda values: values.argmax(), lambda value: f"{value:.2%}"),
            )
        )
    return aligned(rows)


def _best(points: NDArray[Any], choose: Callable[[NDArray[Any]], Any], text: Callable[[float], str]) -> str:
    """Return the best value and where it was reached."""
    if not len(points):
        return "-"
    best = choose(points[:, 1])
    return f"{text(points[best, 1])} at {points[best, 0]:,.6g}"
