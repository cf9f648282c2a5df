"""Run script.py with torch's DataLoader and with vit_rs's, and print side by side what its loaders give, and how fast.

    python examples/dropin/compare.py [--data DIR] [--rounds 5]

DIR holds train/ and val/; without it both are made of scikit-image's photographs, too few to measure a speed by.
"""

import argparse
import statistics
import sys
import time
import types
from pathlib import Path

import torch

SCRIPT = Path(__file__).resolve().parent / "script.py"
sys.path.insert(0, str(SCRIPT.parent.parent))
from photographs import data_folder  # noqa: E402

THEIRS, OURS = "from torch.utils.data import DataLoader\n", "from vit_rs.data import DataLoader\n"


def imported(line: str) -> types.ModuleType:
    """Return the script as a module, with this line in place of the one that imports DataLoader."""
    before, after = SCRIPT.read_text(encoding="utf-8").split(THEIRS)
    module = types.ModuleType("script")
    exec(compile(before + line + after, str(SCRIPT), "exec"), module.__dict__)
    return module


def rate(loader) -> float:
    """Return the images a second of one epoch."""
    start = time.perf_counter()
    count = sum(len(labels) for _, labels in loader)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5, help="epochs to time of both loaders, by turns")
    rounds, data = parser.parse_known_args()[0].rounds, data_folder()
    scripts = imported(THEIRS), imported(OURS)
    print("| | classes, length, labels | values that differ | torch, images/s | vit_rs, images/s | times |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for form in scripts[0].FORMS:
        pairs = [script.loaders(str(data / "train"), str(data / "val"), form) for script in scripts]
        (images, labels), (others, other_labels) = [map(torch.cat, zip(*val, strict=True)) for _, val in pairs]
        a, b = [(val.dataset.classes, len(val), len(train)) for train, val in pairs]
        same = "equal" if a == b and torch.equal(labels, other_labels) else "**different**"
        differ = f"{int((images != others).sum())} of {images.numel()}"
        times = [[rate(train) for train, _ in pairs] for _ in range(rounds + 1)][1:]  # the first starts the workers
        theirs, ours = (statistics.median(column) for column in zip(*times, strict=True))
        times = statistics.median(ours / theirs for theirs, ours in times)
        print(f"| {form} | {same} | {differ} | {theirs:.0f} | {ours:.0f} | {times:.2f} |", flush=True)


if __name__ == "__main__":
    main()
