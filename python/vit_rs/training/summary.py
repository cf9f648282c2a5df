"""What came of a run: from its records to summary.json, summary.md and the table on the terminal."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch

from vit_rs import __version__, distributed
from vit_rs.training.metrics import unreadable_images
from vit_rs.training.progress import clock, threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs.data.splits import Splits
    from vit_rs.training.config import TrainConfig

__all__ = ["build_summary", "summary_markdown", "summary_table", "unreadable_line"]

_HEADER = ("stage", "image", "epochs", "test top-1", "few-shot top-1", "checkpoint")

# Unreadable images that a summary names.
_EXAMPLES = 10


def build_summary(
    config: TrainConfig, sources: Splits, records: Sequence[dict[str, Any]], *, seconds: float
) -> dict[str, Any]:
    """Return the run's summary; only "time" and "environment" depend on more than settings and images.

    Args:
        config: the run's configuration.
        sources: its images.
        records: its metrics.jsonl.
        seconds: time spent on it.
    """
    stages = []
    for result in (record for record in records if record["kind"] == "result"):
        tests = [r for r in records if r["kind"] == "test" and r["stage"] == result["stage"]]
        stage = {key: value for key, value in result.items() if key not in ("kind", "time")}
        first, last = tests[0], tests[-1]
        if first["step"] == 0:
            stage["top1_before"] = first["test_top1"]
        stage |= {"top1": last["test_top1"], "loss": last["test_loss"], "test_images": last["test_images"]}
        stages.append({**stage, "time": result["time"]})
    unreadable = unreadable_images(records)
    return {
        "recipe": config.recipe,
        "seed": config.seed,
        "data": {
            "description": sources.description,
            "train_images": len(sources.train),
            "test_images": len(sources.test),
            "classes": sources.classes,
            # Training images, each counted once.
            "unreadable": len(unreadable),
            "unreadable_examples": sorted(unreadable)[:_EXAMPLES],
        },
        "stages": stages,
        "time": {"seconds": seconds},
        "environment": {
            "vit_rs": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": config.device,
            "processes": distributed.world_size(),
            "torch_threads": torch.get_num_threads(),
        },
    }


def summary_table(summary: dict[str, Any]) -> str:
    """Return the results as a table of plain text."""
    rows = [_HEADER, *_rows(summary)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def summary_markdown(summary: dict[str, Any], figures: Sequence[str]) -> str:
    """Return the summary as a page in Markdown.

    Args:
        summary: what `build_summary` returned.
        figures: paths of the figures, relative to the page.
    """
    environment = summary["environment"]
    lines = [
        f"# {summary['recipe']}, seed {summary['seed']}",
        "",
        f"Images: {summary['data']['description']}.",
        "",
        "| " + " | ".join(_HEADER) + " |",
        "|" + " --- |" * len(_HEADER),
        *("| " + " | ".join(row) + " |" for row in _rows(summary)),
        "",
    ]
    data = summary["data"]
    if data["unreadable"]:
        which = "; for example" if data["unreadable"] > len(data["unreadable_examples"]) else ""
        lines += [f"{_unreadable(summary)}{which}:", ""]
        lines += [*(f"- {line}" for line in data["unreadable_examples"]), ""]
    for stage in summary["stages"]:
        if stage["test_images"] < data["test_images"]:
            tested = f"tested on {stage['test_images']:,} of {data['test_images']:,} images"
            lines += [f"{stage['stage']}: {tested}; the others could not be read.", ""]
        if "skipped" in stage["fewshot"]:
            lines += [f"{stage['stage']}: no few-shot result: {stage['fewshot']['skipped']}.", ""]
    machine = f"{environment['device']}, {threads(environment['torch_threads'])}, {environment['machine']}"
    versions = ", ".join(f"{name} {environment[name]}" for name in ("vit_rs", "torch", "python"))
    lines += [f"Time: {clock(summary['time']['seconds'])} ({machine}; {versions}).", ""]
    for figure in figures:
        lines += [f"![{figure}]({figure})", ""]
    return "\n".join(lines)


def unreadable_line(summary: dict[str, Any]) -> str | None:
    """Return a line on images that could not be read, None where all could."""
    tested = [stage["test_images"] for stage in summary["stages"]]
    missing = summary["data"]["test_images"] - min(tested, default=summary["data"]["test_images"])
    parts = [_unreadable(summary)] if summary["data"]["unreadable"] else []
    if missing:
        parts.append(f"{missing:,} of {summary['data']['test_images']:,} test images could not be read")
    return "; ".join(parts) + ": summary.md says more, vit-rs doctor --full lists them" if parts else None


def _unreadable(summary: dict[str, Any]) -> str:
    data = summary["data"]
    return f"{data['unreadable']:,} of {data['train_images']:,} training images could not be read"


def _rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for stage in summary["stages"]:
        size = f"{stage['size']} px"
        if "top1_before" in stage:
            rows.append((f"before {stage['stage']}", size, "0", _percent(stage["top1_before"]), "", ""))
        fewshot = stage["fewshot"]
        few = "-" if "skipped" in fewshot else f"{_percent(fewshot['top1'])} ({fewshot['shots']} shots)"
        rows.append((stage["stage"], size, str(stage["epochs"]), _percent(stage["top1"]), few, stage["checkpoint"]))
    return rows


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
