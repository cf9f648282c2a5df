"""Run the benches in several passes and write docs/benchmarks.md, and README's table of operators.

    python benches/report.py

About 20 minutes on two cores, which should have nothing else to do. `--quick` runs everything on small inputs and
prints the page instead: it shows that the benches work, not how fast anything is.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import machine
import torch
from comparison import thread_counts
from goals import GOALS, README_ROWS, Goal

import vit_rs

if TYPE_CHECKING:
    from collections.abc import Sequence

BENCHES = Path(__file__).resolve().parent
PAGE = BENCHES.parent / "docs" / "benchmarks.md"
README = BENCHES.parent / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"

METHOD = """\
## How it was measured

Every variant's result is compared with the same computation in plain torch before it is timed. The variants of a row
group read the same input and give the same dtype, shape and memory order on the same number of threads; those that
write into a buffer write into the same one. A fresh result is allocated and freed within the time, page faults
included. vit_rs keeps the memory of large results that were dropped for later ones, so such a call finds its pages in
place; "earlier ones held" means that no result is dropped, so that each call needs new memory. Plain copies and casts
do less than the others: they move no value to another place. What can be made once is made before the time: views,
matrices, compiled code.

pytest-benchmark times rounds of at least 0.5 ms for 0.15 s, at least five, and five calls where results are held, with
Python's garbage collector off. Other work on a machine comes and goes, so the variants of a row group run directly one
after another; the whole is repeated in passes, each in a new process, and every second pass runs the variants in
reverse order. A time is the median over the passes of a pass's median round; in parentheses stand the quartiles of all
rounds. A ratio, `x`, is the variant's time over that of vit_rs in the same pass: the median over the passes, in
parentheses the lowest and the highest. Above 1, vit_rs is faster.

The threads of torch wait for each other, so other work on the machine slows torch on several threads down by more than
its share: those figures mean something only where the machine had nothing else to do."""


@dataclass(frozen=True)
class Timing:
    """The times of one variant on one number of threads, in microseconds for each image (or call)."""

    role: str
    medians: list[float]  # of each pass
    rounds: list[float]  # of all passes

    def __str__(self) -> str:
        low, _, high = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return f"{figure(statistics.median(self.medians))} ({figure(low)} - {figure(high)})"


Variants: TypeAlias = dict[str, Timing]
Timings: TypeAlias = dict[tuple[str, str], dict[int, Variants]]
"""(table, name) of a comparison -> threads -> its variants, all in the order of the benches."""


def main() -> int:
    """Measure and write; where a bench fails, return pytest's status and write nothing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--passes", type=int, default=5, help="runs of all benches (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small inputs; prints the page unless --out is given")
    parser.add_argument("--out", type=Path, help="page to write (default: docs/benchmarks.md and README's table)")
    arguments = parser.parse_args()
    if arguments.passes < 1:
        parser.error(f"--passes: expected at least 1, got {arguments.passes}")
    split_readme(README.read_text(encoding="utf-8"))  # fails now, not after the measurement
    about = surroundings(arguments.passes)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.passes):
            print(f"pass {number + 1} of {arguments.passes}", flush=True)
            path = Path(folder) / f"{number}.json"
            status = run_benches(path, reverse=number % 2 == 1, quick=arguments.quick)
            if status != 0:
                return status
            runs.append(json.loads(path.read_text(encoding="utf-8"))["benchmarks"])
    timings = collect(runs)
    written = page(timings, about, quick=arguments.quick)
    if arguments.out is not None:
        arguments.out.write_text(written, encoding="utf-8")
    elif arguments.quick:
        print(written)
    else:
        PAGE.write_text(written, encoding="utf-8")
        before, after = split_readme(README.read_text(encoding="utf-8"))
        README.write_text(before + "\n".join(readme_lines(timings)) + after, encoding="utf-8")
        print("wrote docs/benchmarks.md and README's table")
    return 0


def run_benches(path: Path, *, reverse: bool, quick: bool) -> int:
    """Run every bench once, in a new process, with its results in a file; return pytest's status."""
    command = [sys.executable, "-m", "pytest", str(BENCHES), "-q", "--benchmark-quiet", "--benchmark-save-data"]
    command += [f"--benchmark-json={path}", f"--benchmark-storage=file://{path.parent}"]
    command += ["--reverse"] if reverse else []
    command += ["--quick", "--benchmark-max-time=0.002", "--benchmark-min-rounds=2"] if quick else []
    return subprocess.run(command, check=False).returncode


def collect(runs: Sequence[Sequence[dict[str, Any]]]) -> Timings:
    """Pool the passes; the first one, which is not reversed, gives the order."""
    timings: Timings = {}
    for bench in (bench for run in runs for bench in run):
        info, stats = bench["extra_info"], bench["stats"]
        unit = 1e6 / info["images"]
        variants = timings.setdefault((info["table"], info["comparison"]), {}).setdefault(info["threads"], {})
        timing = variants.setdefault(info["variant"], Timing(info["role"], [], []))
        timing.medians.append(stats["median"] * unit)
        timing.rounds.extend(value * unit for value in stats["data"])
    return timings


def ratios(variants: Variants, peers: Sequence[str]) -> list[float]:
    """Return, for each pass, the time of the fastest of the peers over that of vit_rs."""
    fastest = [min(times) for times in zip(*(variants[peer].medians for peer in peers), strict=True)]
    return [peer / own for peer, own in zip(fastest, ours(variants).medians, strict=True)]


def ours(variants: Variants) -> Timing:
    """Return the times of vit_rs."""
    [timing] = [timing for timing in variants.values() if timing.role == "ours"]
    return timing


def page(timings: Timings, about: Sequence[str], *, quick: bool) -> str:
    """Return the page in Markdown."""
    lines = ["# Benchmarks of the operators", ""]
    lines += ["Written by `python benches/report.py`, which measures everything below; do not edit.", ""]
    lines += ["**A quick run on small inputs: its figures say nothing about speed.**", ""] if quick else []
    lines += [*about, "", METHOD]
    for table in dict.fromkeys(table for table, _ in timings):
        found = {name: threads for (heading, name), threads in timings.items() if heading == table}
        unit = "call" if table.startswith("Position") else "image"
        lines += ["", f"## {table}", "", f"Microseconds for each {unit}.", "", *table_lines(found)]
    lines += ["", "## Goals, on one thread", "", *goal_lines(timings)]
    lines += ["", "## Where vit-rs loses", "", *loss_lines(timings), ""]
    return "\n".join(lines)


def table_lines(comparisons: dict[str, dict[int, Variants]]) -> list[str]:
    """Return a table with a row for each variant and two columns for each number of threads."""
    counts = sorted({count for threads in comparisons.values() for count in threads})
    header = [column for count in counts for column in (f"{count} thread{'s' if count > 1 else ''}", "x")]
    lines = [f"| | | {' | '.join(header)} |", f"| --- | --- |{' ---: | ---: |' * len(counts)}"]
    for name, threads in comparisons.items():
        for number, variant in enumerate(threads[1]):
            cells = []
            for variants in (threads[count] for count in counts):
                timing = variants.get(variant)
                beside = timing is not None and timing.role != "ours"
                cells += ["" if timing is None else str(timing), spread(ratios(variants, [variant])) if beside else ""]
            lines.append(f"| {name if number == 0 else ''} | {variant} | {' | '.join(cells)} |")
    return lines


def goal_lines(timings: Timings) -> list[str]:
    """Return the table of goals: what was asked and what was reached."""
    lines = ["| | times the speed of | asked | reached | |", "| --- | --- | ---: | ---: | --- |"]
    for goal in GOALS:
        if not all(comparison in timings for comparison in goal.comparisons):
            lines.append(f"| {goal} | {goal.against} | {goal.asked:g} | | not measured |")
            continue
        what, values = reached(goal, timings)
        verdict = "reached" if statistics.median(values) >= goal.asked else "**missed**"
        lines.append(f"| {what} | {goal.against} | {goal.asked:g} | {spread(values)} | {verdict} |")
    return lines


def reached(goal: Goal, timings: Timings) -> tuple[str, list[float]]:
    """Return what the goal is about and the ratios of the passes."""
    each = {comparison: ratios(timings[comparison][1], goal.peers) for comparison in goal.comparisons}
    if goal.several == "geometric mean":
        return str(goal), [statistics.geometric_mean(values) for values in zip(*each.values(), strict=True)]
    least = min(each, key=lambda comparison: statistics.median(each[comparison]))
    return f"{goal} ({': '.join(least)})" if goal.several == "least" else str(goal), each[least]


def loss_lines(timings: Timings) -> list[str]:
    """Return every peer that took less time than vit_rs, the greatest loss first."""
    losses = []
    for comparison, threads in timings.items():
        for count, variants in threads.items():
            for variant in (name for name, timing in variants.items() if timing.role == "peer"):
                values = ratios(variants, [variant])
                row = f"| {': '.join(comparison)} | {count} | {variant} | {spread(values)} |"
                losses.append((statistics.median(values), row))
    rows = [row for ratio, row in sorted(losses) if ratio < 1]
    note = "Plain copies and casts, which do less, are not counted here; the goals compare with the copies."
    if not rows:
        return [f"To no peer in this run. {note}"]
    note = f"{note} Where the highest ratio is above 1, the passes disagree."
    return [note, "", "| | threads | faster | x |", "| --- | ---: | --- | ---: |", *rows]


def readme_lines(timings: Timings) -> list[str]:
    """Return README's table of operators, with a sentence before and after it."""
    lines = [
        f"Microseconds on one thread of {machine.processor()}: for an image of 3 x 224 x 224 in a batch of 64, P = 16;",
        "for a table of position embeddings. In parentheses: how many times the time of vit-rs.",
        "",
        "| | vit-rs | | |",
        "| --- | ---: | --- | --- |",
    ]
    for what, comparison, peers in README_ROWS:
        variants = timings[comparison][1]
        cells = [
            f"{peer}: {figure(statistics.median(variants[peer].medians))} "
            f"({figure(statistics.median(ratios(variants, [peer])))})"
            for peer in peers
        ]
        lines.append(f"| {what} | {figure(statistics.median(ours(variants).medians))} | {' | '.join(cells)} |")
    link = "[docs/benchmarks.md](docs/benchmarks.md)"
    return [*lines, "", f"{link}, written with this table by `benches/report.py`, says how, and where vit-rs loses."]


def split_readme(text: str) -> tuple[str, str]:
    """Return what stands before and after the table of operators, the marks included."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"README.md: expected {BEGIN} and then {END}, each once")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n", f"\n{END}{rest.partition(END)[2]}"


def surroundings(passes: int) -> list[str]:
    """Return what the figures depend on, as a list in Markdown."""
    peers = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "timm", "einops", "scipy"))
    system = f"{platform.system()} {platform.release().partition('-')[0]} on {platform.machine()}"
    features = ", ".join(vit_rs.build_info()["cpu_features"]) or "none"
    cores = max(thread_counts())
    pages = f"transparent huge pages: {machine.huge_pages()}"
    return [
        f"- {machine.processor()}, {cores} CPUs; {machine.caches()}; {pages}",
        f"- {system}, Python {platform.python_version()}, torch {torch.__version__}, {peers}",
        f"- vit-rs {vit_rs.__version__} at {machine.commit()}, CPU features used: {features}",
        f"- {dt.datetime.now(dt.timezone.utc):%Y-%m-%d}, {passes} pass{'es' if passes > 1 else ''}",
    ]


def figure(value: float) -> str:
    """Return a number with three digits, or with all before its point."""
    return f"{value:.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".")


def spread(values: Sequence[float]) -> str:
    """Return the median with the lowest and the highest."""
    return f"{figure(statistics.median(values))} ({figure(min(values))} - {figure(max(values))})"


if __name__ == "__main__":
    sys.exit(main())
