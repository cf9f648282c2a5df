"""`vit-rs doctor`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

from vit_rs.exceptions import ConfigError

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add `vit-rs doctor`."""
    doctor = commands.add_parser(
        "doctor",
        help="examine your images: what they are, how fast they load, whether any is damaged",
        description=(
            "Examine a folder of images, or tar shards: count kinds and sizes, compare pixels with Pillow and\n"
            "torchvision, measure the loader beside torchvision and a DataLoader, and say how many threads to use.\n"
            "Pillow and torchvision are compared with where they are installed."
        ),
        epilog=(
            "examples:\n"
            "  vit-rs doctor photos/\n"
            "  vit-rs doctor 'train-{000..099}.tar' --full\n\n"
            "Exit status: 0; 1 where --full found damaged images; 2 for an error; 130 after Ctrl-C."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.set_defaults(run=_doctor)
    doctor.add_argument(
        "data", metavar="DATA", help="class sub-folders of images, or shards.tar, quoted braces for several"
    )
    doctor.add_argument("--full", action="store_true", help="decode every image completely, and list the damaged ones")
    doctor.add_argument(
        "--seconds", type=float, default=20.0, metavar="N", help="about how long speed is measured (default: 20)"
    )
    doctor.add_argument("--threads", type=int, metavar="N", help="most threads to try (default: the usable CPUs)")
    doctor.add_argument(
        "--consumer",
        type=float,
        metavar="RATE",
        help="images/s that your training takes, if it is known",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON in place of the table")


def _doctor(options: argparse.Namespace) -> int:
    for name in ("seconds", "threads", "consumer"):
        value = getattr(options, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"--{name} must be above 0, got {value}")
    from vit_rs.data.threads import usable_cpus  # noqa: PLC0415  (torch is imported here)
    from vit_rs.doctor import Report, examine, open_files  # noqa: PLC0415

    files = open_files(options.data)
    report = Report(options.data, usable_cpus(), options.consumer)
    status = 0
    try:
        examine(
            files,
            report,
            full=options.full,
            seconds=options.seconds,
            threads=options.threads,
            progress=_doctor_progress,
        )
    except KeyboardInterrupt:
        status = 130
    finally:
        _doctor_progress("", 0, 0)
    print(json.dumps(report.as_dict(), indent=2) if options.json else report)
    return status or int(report.damage is not None and bool(report.damage.damaged))


def _doctor_progress(part: str, done: int, total: int) -> None:
    """Tell on standard error how far the doctor has come, in one line that is written over."""
    if sys.stderr.isatty():
        share = f"{part}: {min(done / total, 1):.0%}" if total else ""
        print(f"\r\x1b[K{share}", end="", file=sys.stderr, flush=True)
    elif total and not done:
        print(f"vit-rs: {part}", file=sys.stderr)
