"""Write the second part of docs/results.md: what a run on all of Fashion-MNIST came to, beside raw pixels.

    python benches/full_results.py --data FOLDER RUN

FOLDER holds Fashion-MNIST's four IDX files, RUN is the folder of a finished run of `vit-rs train`; nothing is trained
here. The weights after each of its stages are tested by `vit-rs fewshot` and `vit-rs knn`, whose `--baseline` gives the
same on the raw pixels of the same images; what they found is kept in the run's folder (probes/*.json) and read the next
time. The curves go to docs/images/. The first part of the page, on the bundled images, is `sample_baselines.py`'s.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results_page import ROOT, settings_of, versions, write_part

from vit_rs.analysis import save_figure, training_curves
from vit_rs.cli import main as vit_rs
from vit_rs.recipes import recipe_config
from vit_rs.training.metrics import read_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

CURVES = ROOT / "docs" / "images" / "fashion-mnist-curves.png"
# Name -> command of vit-rs and its options.
PROBES = {
    "fewshot": ("fewshot", "--shots", "5", "--seeds", "0,1,2,3,4"),
    "knn": ("knn", "--k", "20"),
    "linear": ("fewshot", "--shots", "6000", "--seeds", "0"),  # all images of each class
}
NAMES = {"fewshot": "5-shot", "knn": "20 nearest neighbours", "linear": "linear, all images"}
NOT_SHOWN = ("recipe", "seed", "data.path")  # shown otherwise
INTRODUCTION = """\
{train:,} training and {test:,} test images, Fashion-MNIST's own split. Test top-1 in percent, of each stage's last
weights; ± is a standard error: over the test images ({error:.2f} points at {top1:.0f} %), of 5-shot over five draws of
the training images. The recipe's patch, and the size and mixing of its second stage, were chosen by test accuracy
among five shorter runs.

All three read frozen features, those that the model's head gets, or the pixels as the first model gets them: 5-shot is
a ridge regression, the neighbours are the 20 of the highest cosine similarity, weighted, the linear classifier is the
ridge regression on all training images."""


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]  # path of a setting -> value

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Return what its stages came to, in order."""
        stages: list[dict[str, Any]] = self.summary["stages"]
        return stages


def main() -> int:
    """Test the run's models and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="Fashion-MNIST's IDX files")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results.md", help="page (default: %(default)s)")
    parser.add_argument("--curves", type=Path, default=CURVES, help="figure (default: %(default)s)")
    arguments = parser.parse_args()
    run = opened(arguments.run)
    found = [probes(run, stage, arguments.data, baseline=index == 0) for index, stage in enumerate(run.stages)]
    arguments.curves.parent.mkdir(parents=True, exist_ok=True)
    save_figure(training_curves(read_metrics(run.folder / "metrics.jsonl")), arguments.curves)
    figure = Path(os.path.relpath(arguments.curves, arguments.out.parent)).as_posix()
    write_part(arguments.out, "full", page(run, found, figure))
    print(f"wrote {arguments.curves} and the second part of {arguments.out}")
    return 0


def opened(folder: Path) -> Trained:
    """Return a finished run."""
    if not (folder / "summary.json").is_file():
        raise SystemExit(f"{folder}: expected a finished run, found no summary.json")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return Trained(folder, summary, settings_of(folder))


def probes(run: Trained, stage: dict[str, Any], data: Path, *, baseline: bool) -> dict[str, dict[str, Any]]:
    """Return the results of the three commands on a stage's weights, those that are kept as they are."""
    found = {}
    for name, asked in PROBES.items():
        kept = run.folder / "probes" / f"{stage['stage']}-{name}.json"
        if not kept.is_file():
            kept.parent.mkdir(exist_ok=True)
            command = [
                asked[0],
                str(run.folder / stage["checkpoint"]),
                "--data",
                str(data),
                *asked[1:],
                "--out",
                str(kept),
            ]
            if (status := vit_rs([*command, "--baseline"] if baseline else command)) != 0:
                raise SystemExit(f"vit-rs {' '.join(command)}: failed with {status}")
        found[name] = json.loads(kept.read_text(encoding="utf-8"))
        if found[name]["test_images"] != run.summary["data"]["test_images"]:
            raise SystemExit(
                f"{kept}: expected results on the run's {run.summary['data']['test_images']} test images, got "
                f"{found[name]['test_images']}; remove the file, or give the --data that the run was trained on"
            )
    return found


def score(name: str, record: dict[str, Any], of: str) -> tuple[float, float]:
    """Return the accuracy and its standard error, both 0..1; `of` is "results" or "baseline"."""
    entry = next(iter(record[of].values()))
    error = entry.get("stderr") if name == "fewshot" else None
    return entry["top1"], binomial(entry["top1"], record["test_images"]) if error is None else error


def binomial(top1: float, count: int) -> float:
    """Return the standard error of an accuracy on so many images."""
    return math.sqrt(top1 * (1.0 - top1) / count)


def command(run: Trained) -> str:
    """Return the command that repeats a run."""
    default = flat(recipe_config(run.summary["recipe"]))
    processes = run.summary["environment"]["processes"]
    start = "vit-rs" if processes == 1 else f"torchrun --nproc-per-node {processes} -m vit_rs"
    parts = [f"{start} train {run.summary['recipe']} --data FOLDER"]
    if run.summary["seed"]:
        parts.append(f"--seed {run.summary['seed']}")
    for path, value in run.config.items():
        if path in NOT_SHOWN or (path in default and default[path] == value):
            continue
        shown = ",".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
        parts.append(f"--set {path}={shown}")
    return " \\\n  ".join(parts)


def flat(config: Any) -> dict[str, Any]:
    """Return a configuration as its file has it: path of a setting -> value."""
    return settings_of(json.loads(config.to_json()))


def page(run: Trained, found: Sequence[dict[str, dict[str, Any]]], figure: str) -> str:
    """Return this part of the page in Markdown."""
    data = run.summary["data"]
    best = max(stage["top1"] for stage in run.stages)
    lines = [
        "# Results on all of Fashion-MNIST",
        "",
        "Written by `python benches/full_results.py`; do not edit.",
        "",
        "```sh",
        command(run),
        "```",
        "",
        INTRODUCTION.format(
            train=data["train_images"],
            test=data["test_images"],
            top1=100 * best,
            error=100 * binomial(best, data["test_images"]),
        ),
        "",
        f"| | image side | epochs | minutes so far | test top-1 | {' | '.join(NAMES.values())} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for stage, results in zip(run.stages, found, strict=True):
        cells = [
            stage["stage"],
            str(stage["size"]),
            str(stage["epochs"]),
            f"{stage['time']['seconds'] / 60:.1f}",
            percent(stage["top1"], binomial(stage["top1"], data["test_images"])),
            *(percent(*score(name, results[name], "results")) for name in PROBES),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    pixels = [percent(*score(name, found[0][name], "baseline")) for name in PROBES]
    lines += [f"| raw pixels | {run.stages[0]['size']} | | | | {' | '.join(pixels)} |", ""]
    lines += [f"![Loss, test accuracy and learning rate of the run]({figure})", ""]
    environment = run.summary["environment"]
    device = "" if environment["device"] == "cpu" else f" on {environment['device']}"
    lines.append(
        f"The run: {run.stages[0]['parameters']:,} parameters; {environment['processes']} process(es) of "
        f"{environment['torch_threads']} torch thread(s) each, vit-rs {environment['vit_rs']}, torch "
        f"{environment['torch']}{device}. This table:"
    )
    lines += [versions(environment["torch_threads"])]
    return "\n".join(lines)


def percent(top1: float, error: float) -> str:
    """Return an accuracy with its standard error, in percent."""
    return f"{100 * top1:.2f} ± {100 * error:.2f}"


if __name__ == "__main__":
    sys.exit(main())
