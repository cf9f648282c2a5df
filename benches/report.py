"""Run the benches in several passes and write the pages docs/benchmarks*.md, and README's tables.

    python benches/report.py operators
    python benches/report.py loading --data FOLDER
    python benches/report.py models --passes 2
    python benches/report.py training --passes 1

Without a name, all. The operators take about 20 minutes on two cores, the loader as long, the models about 5 for each
pass, of which two are enough, because there the variants take turns, the training loop 4. The machine should have
nothing else to do. FOLDER holds class folders of JPEGs; without it, photographs that scikit-image ships are read.
`--quick` runs everything on small inputs and prints the pages instead: it shows that the benches work, not how fast
anything is.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import corpus
import machine
import torch
from comparison import thread_counts
from suites import SUITES, Suite

import vit_rs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from goals import Goal

BENCHES = Path(__file__).resolve().parent
DOCS = BENCHES.parent / "docs"
README = BENCHES.parent / "README.md"
UNITS = {
    "us/image": "Microseconds for each image.",
    "us/call": "Microseconds for each call.",
    "images/s": "Images a second.",
    "% of a step": "Percent of a step's time.",
}


@dataclass(frozen=True)
class Timing:
    """The times of one variant on one number of threads, in microseconds for each image (or call)."""

    role: str
    unit: str  # that it is shown in
    medians: list[float]  # of each pass
    rounds: list[float]  # of all passes
    paired: bool = False  # with those of the other variants, round by round

    def __str__(self) -> str:
        ends = (min(self.rounds), max(self.rounds))
        if len(self.rounds) > 1:
            low, _, high = statistics.quantiles(self.rounds, n=4, method="inclusive")
            ends = (low, high)
        low, high = sorted(map(self.shown, ends))
        return f"{self.median} ({figure(low)} - {figure(high)})"

    @property
    def median(self) -> str:
        """Return the figure that stands for all."""
        return figure(self.shown(statistics.median(self.medians)))

    def shown(self, microseconds: float) -> float:
        """Convert a time to the unit that it is shown in."""
        if self.unit == "images/s":
            return 1e6 / microseconds
        return microseconds / 1e4 if self.unit == "% of a step" else microseconds  # a share of 1 is kept as a second


Variants: TypeAlias = dict[str, Timing]
Timings: TypeAlias = dict[tuple[str, str], dict[int, Variants]]
"""(table, name) of a comparison -> threads -> its variants, all in the order of the benches."""


def main() -> int:
    """Measure and write; where a bench fails, return pytest's status and write nothing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suites", nargs="*", metavar="PAGE", help=f"{' or '.join(SUITES)} (default: all)")
    parser.add_argument("--passes", type=int, default=5, help="runs of all benches (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder of class folders of JPEGs (default: scikit-image's JPEGs)")
    parser.add_argument("--only", nargs="+", metavar="BENCH", help="modules to run, such as bench_augment; needs --out")
    parser.add_argument("--quick", action="store_true", help="small inputs; prints the pages unless --out is given")
    parser.add_argument("--out", type=Path, help="folder to write the pages to (default: docs/, and README's tables)")
    arguments = parser.parse_args()
    if arguments.passes < 1:
        parser.error(f"--passes: expected at least 1, got {arguments.passes}")
    unknown = [name for name in arguments.suites if name not in SUITES]
    if unknown:
        parser.error(f"expected {' or '.join(SUITES)}, got {', '.join(unknown)}")
    suites = [SUITES[name] for name in arguments.suites or SUITES]
    known = [module for suite in suites for module in suite.modules]
    if not set(arguments.only or ()) <= set(known):
        parser.error(f"--only: expected some of {', '.join(known)}, got {', '.join(arguments.only)}")
    if arguments.only and arguments.out is None and not arguments.quick:
        parser.error("--only: a part must not replace a whole page; give --out too")
    for suite in suites:
        if suite.rows:
            split_readme(README.read_text(encoding="utf-8"), suite)  # fails now, not after the measurement
        modules = [module for module in suite.modules if module in (arguments.only or suite.modules)]
        if modules and (status := report(suite, modules, arguments)) != 0:
            return status
    return 0


def report(suite: Suite, modules: Sequence[str], arguments: argparse.Namespace) -> int:
    """Measure the benches of a page and write it; return pytest's status."""
    about = surroundings(suite, arguments.passes, arguments.data)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.passes):
            print(f"{suite.name}: pass {number + 1} of {arguments.passes}", flush=True)
            path, start = Path(folder) / f"{number}.json", time.perf_counter()
            options = ["--reverse"] if number % 2 == 1 else []
            options += [f"--data={arguments.data.resolve()}"] if arguments.data else []
            status = run_benches(path, modules, options, quick=arguments.quick)
            if status != 0:
                return status
            print(f"{suite.name}: pass {number + 1} took {time.perf_counter() - start:.0f} s", flush=True)
            runs.append(json.loads(path.read_text(encoding="utf-8"))["benchmarks"])
    timings = collect(runs)
    written = page(suite, timings, about, quick=arguments.quick)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / suite.page).write_text(written, encoding="utf-8")
    elif arguments.quick:
        print(written)
    else:
        (DOCS / suite.page).write_text(written, encoding="utf-8")
        if not suite.rows:
            print(f"wrote docs/{suite.page}")
            return 0
        before, after = split_readme(README.read_text(encoding="utf-8"), suite)
        README.write_text(before + "\n".join(readme_lines(suite, timings)) + after, encoding="utf-8")
        print(f"wrote docs/{suite.page} and README's table")
    return 0


def run_benches(path: Path, modules: Sequence[str], options: Sequence[str], *, quick: bool) -> int:
    """Run benches once, in a new process, with their results in a file; return pytest's status."""
    command = [sys.executable, "-m", "pytest", *(str(BENCHES / f"{module}.py") for module in modules), *options]
    command += ["-q", "--benchmark-quiet", "--benchmark-save-data"]
    command += [f"--benchmark-json={path}", f"--benchmark-storage=file://{path.parent}"]
    command += ["--quick", "--benchmark-max-time=0.002", "--benchmark-min-rounds=2"] if quick else []
    return subprocess.run(command, check=False).returncode


def collect(runs: Sequence[Sequence[dict[str, Any]]]) -> Timings:
    """Pool the passes; the first one, which is not reversed, gives the order."""
    timings: Timings = {}
    for bench in (bench for run in runs for bench in run):
        info = bench["extra_info"]
        seconds = info.get("seconds") or bench["stats"]["data"]
        unit = 1e6 / info["images"]
        variants = timings.setdefault((info["table"], info["comparison"]), {}).setdefault(info["threads"], {})
        timing = variants.setdefault(
            info["variant"], Timing(info["role"], info["unit"], [], [], info.get("paired", False))
        )
        timing.medians.append(statistics.median(seconds) * unit)
        timing.rounds.extend(value * unit for value in seconds)
    return timings


def ratios(variants: Variants, peers: Iterable[str]) -> list[float]:
    """Return, for each pass, the time of the fastest of the peers over that of vit_rs.

    Where the variants took turns, return the median of the rounds' ratios with its 95 % interval.
    """
    if ours(variants).paired:
        rounds = zip(*(variants[peer].rounds for peer in peers), strict=True)
        return interval([min(times) / own for times, own in zip(rounds, ours(variants).rounds, strict=True)])
    fastest = [min(times) for times in zip(*(variants[peer].medians for peer in peers), strict=True)]
    return [peer / own for peer, own in zip(fastest, ours(variants).medians, strict=True)]


def interval(values: Sequence[float], samples: int = 2000) -> list[float]:
    """Return the median between the ends of its 95 % interval: the percentile bootstrap's, always the same draws."""
    draws = random.Random(0)
    medians = sorted(statistics.median(draws.choices(values, k=len(values))) for _ in range(samples))
    return [medians[samples * 25 // 1000], statistics.median(values), medians[samples * 975 // 1000]]


def ours(variants: Variants) -> Timing:
    """Return the times of vit_rs."""
    [timing] = [timing for timing in variants.values() if timing.role == "ours"]
    return timing


def peers_of(variants: Variants) -> list[str]:
    """Name the variants that do the same work as vit_rs."""
    return [name for name, timing in variants.items() if timing.role == "peer"]


def page(suite: Suite, timings: Timings, about: Sequence[str], *, quick: bool) -> str:
    """Return the page in Markdown."""
    lines = [f"# {suite.title}", ""]
    lines += ["Written by `python benches/report.py`, which measures everything below; do not edit.", ""]
    lines += ["**A quick run on small inputs: its figures say nothing about speed.**", ""] if quick else []
    lines += [*about, "", "## How it was measured", "", suite.method]
    for table in dict.fromkeys(table for table, _ in timings):
        found = {name: threads for (heading, name), threads in timings.items() if heading == table}
        [unit] = {ours(variants).unit for threads in found.values() for variants in threads.values()}
        lines += ["", f"## {table}", "", UNITS[unit], "", *table_lines(found)]
    lines += ["", f"## {suite.goals_title}", "", *goal_lines(suite.goals, timings)]
    lines += ["", "## Where vit-rs loses", "", *loss_lines(timings), ""]
    return "\n".join(lines)


def table_lines(comparisons: dict[str, dict[int, Variants]]) -> list[str]:
    """Return a table with a row for each variant and two columns for each number of threads."""
    counts = sorted({count for threads in comparisons.values() for count in threads})
    header = [column for count in counts for column in (f"{count} thread{'s' if count > 1 else ''}", "x")]
    lines = [f"| | | {' | '.join(header)} |", f"| --- | --- |{' ---: | ---: |' * len(counts)}"]
    for name, threads in comparisons.items():
        for number, variant in enumerate(dict.fromkeys(name for variants in threads.values() for name in variants)):
            cells = []
            for variants in (threads.get(count, {}) for count in counts):
                timing = variants.get(variant)
                beside = timing is not None and timing.role != "ours"
                cells += ["" if timing is None else str(timing), spread(ratios(variants, [variant])) if beside else ""]
            lines.append(f"| {name if number == 0 else ''} | {variant} | {' | '.join(cells)} |")
    return lines


def goal_lines(goals: Sequence[Goal], timings: Timings) -> list[str]:
    """Return the table of goals: what was asked and what was reached."""
    lines = ["| | times the speed of | asked | reached | |", "| --- | --- | ---: | ---: | --- |"]
    for goal in goals:
        if not all(compared(goal, timings.get(comparison, {})) for comparison in goal.comparisons):
            lines.append(f"| {named(goal)} | {goal.against} | {goal.asked:g} | | not measured |")
            continue
        what, values = reached(goal, timings)
        verdict = "reached" if statistics.median(values) >= goal.asked else "**missed**"
        lines.append(f"| {what} | {goal.against} | {goal.asked:g} | {spread(values)} | {verdict} |")
    return lines


def named(goal: Goal) -> str:
    """Say what a goal is about, and on how many threads where that is not one."""
    return f"{goal}, {goal.threads} threads" if goal.threads > 1 else str(goal)


def compared(goal: Goal, threads: dict[int, Variants]) -> list[str]:
    """Name those variants of a comparison that the goal compares with and that were measured."""
    variants = threads.get(goal.threads, {})
    return [peer for peer in goal.peers or peers_of(variants) if peer in variants]


def reached(goal: Goal, timings: Timings) -> tuple[str, list[float]]:
    """Return what the goal is about and the ratios of the passes."""
    each = {
        comparison: ratios(timings[comparison][goal.threads], compared(goal, timings[comparison]))
        for comparison in goal.comparisons
    }
    if goal.several == "geometric mean":
        return named(goal), [statistics.geometric_mean(values) for values in zip(*each.values(), strict=True)]
    least = min(each, key=lambda comparison: statistics.median(each[comparison]))
    return f"{named(goal)} ({': '.join(least)})" if goal.several == "least" else named(goal), each[least]


def loss_lines(timings: Timings) -> list[str]:
    """Return every peer that took less time than vit_rs, the greatest loss first."""
    losses = []
    for comparison, threads in timings.items():
        for count, variants in threads.items():
            for variant in peers_of(variants):
                values = ratios(variants, [variant])
                row = f"| {': '.join(comparison)} | {count} | {variant} | {spread(values)} |"
                losses.append((statistics.median(values), row))
    rows = [row for ratio, row in sorted(losses) if ratio < 1]
    note = "What does other work, such as a plain copy, is not counted here; the goals compare with it."
    if not rows:
        return [f"To no peer in this run. {note}"]
    note = f"{note} Where the highest ratio is above 1, the passes disagree."
    return [note, "", "| | threads | faster | x |", "| --- | ---: | --- | ---: |", *rows]


def readme_lines(suite: Suite, timings: Timings) -> list[str]:
    """Return README's table of a suite, with a sentence before and after it."""
    lines = [suite.readme.format(processor=machine.processor()), ""]
    width = max(len(row.peers) for row in suite.rows)
    lines += [f"| | vit-rs |{' |' * width}", f"| --- | ---: |{' --- |' * width}"]
    for row in suite.rows:
        variants = timings[row.comparison][row.threads]
        cells = [
            f"{peer}: {variants[peer].median} ({figure(statistics.median(ratios(variants, [peer])))})"
            for peer in row.peers
            if peer in variants
        ]
        lines.append(f"| {row.what} | {ours(variants).median} | {' | '.join(cells + [''] * (width - len(cells)))} |")
    link = f"[docs/{suite.page}](docs/{suite.page})"
    return [*lines, "", f"{link}, written with this table by `benches/report.py`, says how, and where vit-rs loses."]


def split_readme(text: str, suite: Suite) -> tuple[str, str]:
    """Return what stands before and after the table of a suite, the marks included."""
    begin, end = suite.begin, suite.end
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SystemExit(f"README.md: expected {begin} and then {end}, each once")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n", f"\n{end}{rest.partition(end)[2]}"


def surroundings(suite: Suite, passes: int, data: Path | None) -> list[str]:
    """Return what the figures depend on, as a list in Markdown."""
    versions = {name: version(name) for name in suite.peers}
    peers = ", ".join(f"{name} {found}" for name, found in versions.items() if found)
    absent = ", ".join(name for name, found in versions.items() if not found)
    system = f"{platform.system()} {platform.release().partition('-')[0]} on {platform.machine()}"
    features = ", ".join(vit_rs.build_info()["cpu_features"]) or "none"
    cores = max(thread_counts())
    pages = f"transparent huge pages: {machine.huge_pages()}"
    lines = [
        f"- {machine.processor()}, {cores} CPUs; {machine.caches()}; {pages}",
        f"- {system}, Python {platform.python_version()}, torch {torch.__version__}, {peers}",
        f"- vit-rs {vit_rs.__version__} at {machine.commit()}, CPU features used: {features}",
        f"- {dt.datetime.now(dt.timezone.utc):%Y-%m-%d}, {passes} pass{'es' if passes > 1 else ''}",
    ]
    if suite.reads_files:
        lines.append(f"- files: {corpus.described(data)}")
    if absent:
        lines.append(f"- left out, because not installed: {absent}")
    return lines


def version(distribution: str) -> str | None:
    """Return the version of what is installed, if it is."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def figure(value: float) -> str:
    """Return a number with three digits, or with all before its point."""
    return f"{value:.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".")


def spread(values: Sequence[float]) -> str:
    """Return the median with the lowest and the highest."""
    return f"{figure(statistics.median(values))} ({figure(min(values))} - {figure(max(values))})"


if __name__ == "__main__":
    sys.exit(main())
