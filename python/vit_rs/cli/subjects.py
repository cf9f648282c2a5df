"""What the commands that examine a trained model share: which model, which images, and where the result goes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_rs.cli.arguments import numbers, positive, size_pair
from vit_rs.exceptions import ConfigError, VitRsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Self

    from vit_rs.data.splits import Splits
    from vit_rs.evaluation import Subject

__all__ = [
    "Progress",
    "add_images",
    "add_result",
    "add_running",
    "add_subject",
    "give_result",
    "images_asked",
    "mendable",
    "subject_asked",
]


def add_subject(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say which model, and how images are prepared for it."""
    command.add_argument("checkpoint", metavar="CKPT", help="the file of weights, of any layout that resample reads")
    command.add_argument(
        "--model",
        metavar="NAME",
        help="what the file holds, for example vit_base_patch16_224; timm:NAME is timm's own model, where timm is "
        "installed; not needed for the files of vit-rs train",
    )
    command.add_argument(
        "--img-size",
        type=size_pair,
        metavar="N[xM]",
        help="image side, or heightxwidth, in pixels; positions are resampled to another than the file's",
    )
    command.add_argument("--num-classes", type=int, metavar="K", help="outputs of --model's head; 0 leaves it out")
    command.add_argument("--mean", type=numbers, metavar="M,...", help="of the pixels in 0..1, for each channel")
    command.add_argument("--std", type=numbers, metavar="S,...", help="standard deviation of the same")
    command.add_argument("--resize", choices=("crop", "squash"), help="keep the aspect ratio and cut, or squash")
    command.add_argument("--crop", type=float, metavar="C", help="share of the resized side that is kept, up to 1")
    command.add_argument("--interpolation", choices=("bilinear", "bicubic", "lanczos"), help="filter of the resize")
    command.add_argument("--section", metavar="NAME", help='which model in the file, for example "teacher"')
    command.add_argument("--layout", metavar="NAME", help="whose names the file has, where it is not recognised")
    command.add_argument("--convention", metavar="NAME", help="how positions are resampled (default: the file's own)")


def subject_asked(
    options: argparse.Namespace, *, features_only: bool = False, img_size: tuple[int, int] | None = None
) -> Subject:
    """Open the model that the arguments name.

    Args:
        options: the arguments of `add_subject`.
        features_only: leave the head of a named model out, unless --num-classes says something else.
        img_size: in place of --img-size.
    """
    from vit_rs.evaluation import open_subject  # noqa: PLC0415  (torch is imported here)
    from vit_rs.evaluation.devices import check_device  # noqa: PLC0415

    check_device(options.device)
    num_classes = options.num_classes
    if features_only and options.model is not None and num_classes is None:
        num_classes = 0
    with mendable():
        return open_subject(
            options.checkpoint,
            name=options.model,
            img_size=img_size or options.img_size,
            num_classes=num_classes,
            resize=options.resize,
            crop=options.crop,
            interpolation=options.interpolation,
            mean=options.mean,
            std=options.std,
            section=options.section,
            layout=options.layout,
            convention=options.convention,
        )


def add_images(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say which images."""
    command.add_argument(
        "--data",
        metavar="DIR",
        help="class sub-folders of JPEGs or PNGs, or train/ and val/ with such, or IDX files, or tar shards; without "
        "it the bundled images",
    )
    command.add_argument(
        "--holdout",
        type=float,
        metavar="SHARE",
        help="of each class that is held out for testing where DIR has no val/ (default: the checkpoint's, or 0.2)",
    )
    command.add_argument(
        "--split-seed", type=int, metavar="N", help="seed of that split (default: the checkpoint's, or 0)"
    )
    command.add_argument(
        "--per-class", type=positive, metavar="N", help="use the first N training images of each class (default: all)"
    )


def images_asked(options: argparse.Namespace, subject: Subject, *, training: bool = True) -> tuple[Splits, list[str]]:
    """Open the images that the arguments name, split as in the run that trained the model; and say where that fails.

    That run's split keeps the test images apart from those that the model has seen. How few training images it took is
    no part of that, and would be a surprise on other images: all are used unless options.per_class says otherwise.

    Args:
        options: the arguments of `add_images`.
        subject: the model.
        training: whether the training images are looked at.
    """
    from vit_rs.data.splits import open_splits  # noqa: PLC0415  (torch is imported here)

    trained = dict(subject.split)
    per_class = trained.pop("per_class", None)
    asked = {"holdout": options.holdout, "split_seed": options.split_seed}
    split = {**trained, **{name: value for name, value in asked.items() if value is not None}}
    with mendable():
        splits = open_splits(options.data, **split, per_class=options.per_class)
    if options.data is None and splits.channels != subject.channels:
        raise ConfigError(
            f"the model takes images of {subject.channels} channel(s); the bundled images, which are used without "
            f"--data, have {splits.channels}: give a folder, --data DIR"
        )
    notes = []
    if training and per_class is not None and options.per_class is None:
        notes.append(
            f"the run that trained the model used the first {per_class} training images of each class: these are all "
            f"(--per-class {per_class} takes as many)"
        )
    if splits.seeded and any(split[name] != value for name, value in trained.items()):
        notes.append("the split is not that of the run that trained the model: it may have seen test images")
    if splits.seeded and not subject.split and options.split_seed is None:
        notes.append(
            "the checkpoint does not say which images were held out of its training: if it was trained on these, it "
            "may have seen test images (--split-seed and --holdout of its training keep them apart)"
        )
    return splits, notes


def add_running(command: argparse.ArgumentParser, *, batch_size: int | None = 256) -> None:
    """Add the arguments that say how the model runs; without a batch size, it is chosen by what is computed."""
    default = "by the number of tokens" if batch_size is None else str(batch_size)
    command.add_argument(
        "--batch-size", type=positive, default=batch_size, metavar="B", help=f"images at once (default: {default})"
    )
    command.add_argument("--device", default="cpu", metavar="D", help="torch device, for example cuda (default: cpu)")
    command.add_argument("--threads", type=positive, metavar="N", help="of the image loader (default: one a core)")
    command.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 is faster where the hardware has it, by autocast (default: float32)",
    )


def add_result(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say where the result goes."""
    command.add_argument("--json", action="store_true", help="print JSON in place of the table")
    command.add_argument("--out", type=_new_file, metavar="FILE.json", help="write the JSON into this file too")


def give_result(options: argparse.Namespace, record: Mapping[str, Any], table: str) -> None:
    """Print the table, or the record as JSON, and write the record into --out."""
    text = json.dumps(record, indent=2, allow_nan=False)
    try:
        if options.out is not None:
            from vit_rs.checkpoints import atomic_write  # noqa: PLC0415  (torch is imported here)

            atomic_write(options.out, f"{text}\n".encode())
    finally:  # a full disk must not cost the result
        print(text if options.json else table)


class Progress:
    """Tells on standard error how far a long computation has come: one line, written over; silent for short ones.

    Args:
        what: what is done, for the line.
        unit: what is counted.
    """

    def __init__(self, what: str, unit: str = "images") -> None:
        self.what, self.unit = what, unit
        self._start = time.monotonic()
        self._shown = False
        self._due = self._start + 2.0

    def __call__(self, done: int, total: int) -> None:
        """Note that so many of all are done."""
        now = time.monotonic()
        if now < self._due and not (self._shown and done == total):
            return
        terminal = sys.stderr.isatty()
        self._due = now + (0.2 if terminal else 30.0)
        self._shown = True
        left = (now - self._start) * (total - done) / max(1, done)
        line = f"{self.what}: {done:,} of {total:,} {self.unit}, {left:,.0f} s left"
        print(f"\r\x1b[K{line}" if terminal else f"vit-rs: {line}", end="" if terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown and sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def mendable() -> Iterator[None]:
    """Turn a ValueError into a ConfigError: what was asked for is impossible, something else can be asked for."""
    try:
        yield
    except VitRsError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _new_file(text: str) -> Path:
    """Return the path of a file that can be written: better now than after the work."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {path.parent} does not exist")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, expected a file to write")
    folder = Path(os.path.realpath(path)).parent  # where a link leads to; the file is written beside, then renamed
    if not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {text}: nothing can be written into {folder}")
    return path
