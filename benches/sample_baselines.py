"""Compare the main job with two baselines on the same bundled split, and write the first part of docs/results.md.

    python benches/sample_baselines.py

fits a 5-nearest-neighbour classifier and logistic regression (scikit-learn) on the raw pixels of the bundled
training images, runs `vit-rs train` with the default recipe once for each of three seeds, and tests all of
them on the bundled test images. Only training images choose anything: logistic regression's C comes from
cross-validation on them, the ViT's figure is that of its last weights. About 20 minutes on two cores.
`--runs FOLDER` keeps the runs there; runs that are finished already are read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from results_page import ROOT, settings_of, versions, write_part
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier

from vit_rs.data import sample_dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

MARGIN = 2.0  # points by which every seed has to beat every baseline
REGULARISATION = (0.003, 0.01, 0.03, 0.1, 1.0)


@dataclass(frozen=True)
class Row:
    """One line of the table: a method, its test top-1 in percent for each seed, the seconds of each."""

    method: str
    top1: list[float]
    seconds: list[float]
    note: str


def main() -> int:
    """Measure, write the page, return 1 if the main job misses its margin."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of the main job (default: 0 1 2)")
    parser.add_argument("--runs", type=Path, help="folder to keep the runs in (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results.md", help="page (default: %(default)s)")
    parser.add_argument("--baselines-only", action="store_true", help="print the baselines; run and write nothing")
    arguments = parser.parse_args()
    baselines = run_baselines()
    for row in baselines:
        print(f"{row.method}: {row.top1[0]:.1f} % in {row.seconds[0]:.1f} s ({row.note})", flush=True)
    if arguments.baselines_only:
        return 0
    if not arguments.seeds:
        parser.error("--seeds: expected at least one")
    if arguments.runs is not None:
        summaries = run_seeds(arguments.seeds, arguments.runs)
    else:
        with tempfile.TemporaryDirectory() as folder:
            summaries = run_seeds(arguments.seeds, Path(folder))
    ours = vit_rows(summaries)
    margin = min(ours[-1].top1) - max(row.top1[0] for row in baselines)
    write_part(arguments.out, "sample", page([*baselines, *ours], summaries, margin))
    print(f"worst seed beats the best baseline by {margin:.1f} points; wrote {arguments.out}")
    return 0 if margin >= MARGIN else 1


def run_baselines() -> list[Row]:
    """Return the two baselines' rows: pixels in 0..1, flattened, without augmentation."""
    (train, train_labels), (test, test_labels) = pixels("train"), pixels("test")
    neighbours = KNeighborsClassifier(n_neighbors=5)
    start = time.perf_counter()
    neighbours.fit(train, train_labels)
    top1 = 100 * neighbours.score(test, test_labels)
    rows = [Row("5 nearest neighbours, raw pixels", [top1], [time.perf_counter() - start], "Euclidean")]
    folds = StratifiedKFold(n_splits=3, shuffle=True, random_state=0)
    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": REGULARISATION}, cv=folds)
    start = time.perf_counter()
    search.fit(train, train_labels)
    top1 = 100 * search.score(test, test_labels)
    note = f"C = {search.best_params_['C']:g} by 3-fold cross-validation on the training images"
    rows.append(Row("logistic regression, raw pixels", [top1], [time.perf_counter() - start], note))
    return rows


def pixels(split: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return ((N, 784) f32 in 0..1, (N,) labels) of a bundled split."""
    source = sample_dataset(split)
    return source.images.reshape(len(source), -1).astype(np.float32) / 255, np.asarray(source.targets)


def run_seeds(seeds: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Run the main job once for each seed, as a user would, and return the summaries."""
    summaries = []
    for seed in seeds:
        run = folder / f"seed-{seed}"
        if not (run / "summary.json").is_file():
            command = [sys.executable, "-m", "vit_rs", "train", "--seed", str(seed), "--out", str(run)]
            print(" ".join(command), flush=True)
            subprocess.run(command, check=True)
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        if summary["seed"] != seed:
            raise SystemExit(f"{run}: expected a run of seed {seed}, got one of seed {summary['seed']}")
        summaries.append(summary)
    if len({json.dumps(settings(folder / f"seed-{seed}"), sort_keys=True) for seed in seeds}) > 1:
        raise SystemExit(f"{folder}: the runs differ in more than the seed; remove them and run all again")
    return summaries


def settings(run: Path) -> dict[str, Any]:
    """Return a run's configuration without its seed."""
    return {path: value for path, value in settings_of(run).items() if path != "seed"}


def vit_rows(summaries: Sequence[dict[str, Any]]) -> list[Row]:
    """Return one row for each stage of the main job; the last one is its result."""
    rows = []
    for index, stage in enumerate(summaries[0]["stages"]):
        stages = [summary["stages"][index] for summary in summaries]
        shots = stage["fewshot"]["shots"]
        few = [100 * each["fewshot"]["top1"] for each in stages]
        rows.append(
            Row(
                f"ViT, {stage['stage']}, {stage['size']} px, {stage['epochs']} epochs",
                [100 * each["top1"] for each in stages],
                [summary["time"]["seconds"] for summary in summaries],
                f"{shots}-shot on its frozen features: {np.mean(few):.1f} %",
            )
        )
    return rows


def page(rows: Sequence[Row], summaries: Sequence[dict[str, Any]], margin: float) -> str:
    """Return the page in Markdown."""
    data, environment = summaries[0]["data"], summaries[0]["environment"]
    count = data["test_images"]
    best = rows[-1].top1
    error = np.sqrt(np.mean(best) * (100 - np.mean(best)) / count)
    seeds = ", ".join(str(summary["seed"]) for summary in summaries)
    images = (
        f"{data['train_images']} training and {count} test images of Fashion-MNIST "
        "(`vit_rs.data.sample_dataset`), the same for every method. Test top-1 in percent; one value for "
        f"each seed ({seeds}) of the ViT. With {count} test images, a value has a standard error of "
        f"{error:.1f} points. Seconds are those of a whole job: all stages, tests and figures of the ViT; "
        "cross-validation and test of the baselines."
    )
    lines = [
        "# Results on the bundled images",
        "",
        "Written by `python benches/sample_baselines.py`, which runs every method below; do not edit.",
        "",
        images,
        "",
        "| method | test top-1 (%) | mean | seconds | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        values = ", ".join(f"{value:.1f}" for value in row.top1)
        seconds = f"{np.median(row.seconds):.3g}"
        lines.append(f"| {row.method} | {values} | {np.mean(row.top1):.1f} | {seconds} | {row.note} |")
    verdict = f"The worst seed of the ViT's last stage is {margin:.1f} points above the better baseline."
    return "\n".join([*lines, "", verdict, "", versions(environment["torch_threads"]), ""])


if __name__ == "__main__":
    sys.exit(main())
