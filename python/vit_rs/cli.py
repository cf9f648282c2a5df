"""The command `vit-rs`.

Errors that a user can mend are one line on standard error and exit status 2; a signal ends with 128 + its
number; anything else is a bug, and keeps its traceback. torch is imported only by what computes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_rs.exceptions import ConfigError, VitRsError
from vit_rs.recipes import recipe_config, recipe_names, recipe_summary
from vit_rs.training.run_folder import newest_unfinished, read_config
from vit_rs.training.values import apply_settings, get_setting, parse_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vit_rs.training.config import TrainConfig

__all__ = ["main"]

_BUNDLED_RECIPE, _FOLDER_RECIPE = "fashion_mnist", "image_folder"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: what follows `vit-rs`; None takes the process's own.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except MemoryError as error:
        return _fail(f"not enough memory: {error}" if str(error) else "not enough memory")
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # torch's own MemoryError
            raise
        return _fail("not enough memory: " + str(error).splitlines()[0])
    except VitRsError as error:
        return _fail(str(error))
    except OSError as error:
        if error.strerror is None or error.filename is None:
            return _fail(str(error))
        return _fail(f"{error.strerror}: {error.filename}")
    except KeyboardInterrupt as stop:
        print(f"vit-rs: {stop or 'stopped'}", file=sys.stderr)
        return 128 + getattr(stop, "signum", 2)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vit-rs",
        description="Vision Transformers: train, fine-tune at a higher resolution, carry checkpoints, examine data.",
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_train(commands)
    _add_resample(commands)
    _add_convert(commands)
    _add_doctor(commands)
    return parser


def _add_train(commands: Any) -> None:
    recipes = "\n".join(f"  {name:<15} {recipe_summary(name)}" for name in recipe_names())
    train = commands.add_parser(
        "train",
        help="train a ViT, evaluate it, fine-tune it at a higher resolution",
        description=(
            "Train a Vision Transformer, evaluate it, fine-tune it at a higher resolution, evaluate again.\n"
            "Without arguments: a small ViT on the bundled Fashion-MNIST images, in minutes on two CPU cores."
        ),
        epilog=(
            f"recipes:\n{recipes}\n\n"
            "examples:\n"
            "  vit-rs train\n"
            "  vit-rs train --data photos/ --set data.img_size=128 --set model.size=small\n"
            "  vit-rs train --set optim.lr=3e-4 --set epochs=20 --out runs/short --seed 1\n"
            "  vit-rs train --resume --out runs/short\n\n"
            "A run's folder holds config.json (every setting), metrics.jsonl, the models as safetensors,\n"
            "summary.json, summary.md and figures/."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.set_defaults(run=_train)
    train.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="what to run, see below; without it fashion_mnist, or image_folder for a folder of photos",
    )
    train.add_argument(
        "--data",
        metavar="DIR",
        help="class sub-folders of JPEGs or PNGs, or train/ and val/ with such, or IDX files; without it the "
        "bundled images",
    )
    train.add_argument("--out", type=Path, metavar="DIR", help="the run's folder; without it runs/RECIPE-NNN")
    train.add_argument("--seed", type=int, metavar="N", help="seed of weights, order, augmentation (default: 0)")
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out, or with the newest unfinished one under runs/; the result is the "
        "same as without the interruption",
    )
    train.add_argument("--device", metavar="D", help="torch device, for example cpu, cuda, mps (default: cpu)")
    train.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads of the image loader (default: one a core); no result depends on them",
    )
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="change one setting of the recipe, named as in config.json; may be repeated",
    )
    train.add_argument("--list", action="store_true", help="list the recipes and exit")


def _add_resample(commands: Any) -> None:
    resample = commands.add_parser(
        "resample",
        help="carry a checkpoint to another image or patch size, in its own format",
        description=(
            "Write a file of weights again for images, or patches, of another size: position tables and patch kernels\n"
            "are resampled the way of the project that the file comes from, every other tensor keeps its bytes.\n"
            "Reads safetensors, torch.save's files and .npz, of Google, timm, torchvision, Hugging Face, DeiT, MAE,\n"
            "MoCo v3 and DINO. OUT may be IN."
        ),
        epilog=(
            "examples:\n"
            "  vit-rs resample B_16.npz B_16-384.npz --img-size 384\n"
            "  vit-rs resample vit.safetensors wide.safetensors --img-size 240x640 --convention timm\n"
            "  vit-rs resample dinov2.pth dinov2-p16.pth --img-size 224 --patch-size 16"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    resample.set_defaults(run=_resample)
    _add_files(resample)
    size = "N[xM]"
    resample.add_argument(
        "--img-size", type=_size, required=True, metavar=size, help="image side, or heightxwidth, in pixels"
    )
    resample.add_argument("--patch-size", type=_size, metavar="P[xQ]", help="patch side, or heightxwidth")
    resample.add_argument(
        "--convention", metavar="NAME", help="how to resample, for example timm, jax, dinov2 (default: the file's own)"
    )
    resample.add_argument(
        "--from-img-size", type=_size, metavar=size, help="image size of the old weights, where the file cannot say it"
    )


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="write a checkpoint under another project's names",
        description=(
            "Write a file's weights under another project's names: timm's and Hugging Face's as safetensors, Google's\n"
            "as .npz. Values keep their bits; what the target has no place for is an error that lists it."
        ),
        epilog=(
            "examples:\n"
            "  vit-rs convert B_16.npz vit_b16.safetensors --to timm\n"
            "  vit-rs convert vit_small.safetensors S_16.npz --to npz --num-heads 6\n"
            "  vit-rs convert vit.safetensors model.safetensors --to hf --drop head"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.set_defaults(run=_convert)
    _add_files(convert)
    convert.add_argument("--to", choices=("timm", "npz", "hf"), required=True, help="whose names")
    convert.add_argument(
        "--num-heads", type=int, metavar="H", help="attention heads, for npz, where the file cannot say them"
    )
    convert.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out what the target has no place for, by its name or the beginning of it; may be repeated",
    )
    convert.add_argument(
        "--from-img-size",
        type=_size,
        metavar="N[xM]",
        help="image size of the weights, where the target has other rows and the file cannot say it",
    )


def _add_files(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="IN", help="the file of weights")
    command.add_argument("out", metavar="OUT", help="the file to write; its folder must exist")
    command.add_argument(
        "--section", metavar="NAME", help='which model, where the file holds several, for example "teacher"'
    )
    command.add_argument("--layout", metavar="NAME", help="whose names the file has, where that is not recognised")


def _add_doctor(commands: Any) -> None:
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


def _train(options: argparse.Namespace) -> int:
    if options.list:
        for name in recipe_names():
            print(f"{name:<15} {recipe_summary(name)}")
        return 0
    out: Path | None = options.out
    if options.resume:
        out = newest_unfinished() if out is None else out
        config = read_config(out)
        _check_unchanged(config, options, out)
        if options.threads is not None:
            config = dataclasses.replace(config, loader_threads=options.threads)
    else:
        config = recipe_config(options.recipe or _recipe_for(options.data))
        config = apply_settings(config, _asked_settings(config, options))
    config = config.validated()

    from vit_rs.training import train  # noqa: PLC0415  (torch is imported here, after the arguments were checked)
    from vit_rs.training.summary import summary_table  # noqa: PLC0415

    summary = train(config, out, resume=options.resume, draw=_draw)
    print(summary_table(summary))
    for stage in summary["stages"]:
        if "skipped" in stage["fewshot"]:
            print(f"{stage['stage']}: no few-shot result: {stage['fewshot']['skipped']}")
    print(f"Everything is in {summary['folder']}{os.sep}: start with summary.md.")
    print(f"Try next: {_next_step(config)}")
    return 0


def _resample(options: argparse.Namespace) -> int:
    from vit_rs.checkpoints import resize_checkpoint  # noqa: PLC0415  (torch is imported here)

    return _carry(
        lambda: resize_checkpoint(
            options.source,
            img_size=options.img_size,
            patch_size=options.patch_size,
            convention=options.convention,
            out=options.out,
            from_img_size=options.from_img_size,
            section=options.section,
            layout=options.layout,
        )
    )


def _convert(options: argparse.Namespace) -> int:
    from vit_rs.checkpoints import convert  # noqa: PLC0415  (torch is imported here)

    return _carry(
        lambda: convert(
            options.source,
            options.out,
            to=options.to,
            num_heads=options.num_heads,
            drop=options.drop,
            from_img_size=options.from_img_size,
            section=options.section,
            layout=options.layout,
        )
    )


def _carry(checkpoint: Callable[[], object]) -> int:
    """Change a checkpoint and print what happened."""
    try:
        report = checkpoint()
    except ValueError as error:  # what was asked for is impossible
        return _fail(str(error))
    print(report)
    return 0


def _size(text: str) -> tuple[int, int]:
    """Return "384" or "240x640" as (height, width)."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})(?:x([1-9][0-9]{0,5}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected N or HEIGHTxWIDTH in pixels, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


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


def _recipe_for(data: str | None) -> str:
    """Return the recipe that fits the data where none is named: IDX files are small gray images."""
    if data is None or any(Path(data).glob("train-images-idx3-ubyte*")):
        return _BUNDLED_RECIPE
    return _FOLDER_RECIPE


def _asked_settings(config: TrainConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Return path -> value of everything that the command line asks for."""
    values = parse_settings(config, options.settings)
    flags = {
        "data.path": ("--data", None if options.data is None else str(Path(options.data).resolve())),
        "seed": ("--seed", options.seed),
        "device": ("--device", options.device),
        "loader_threads": ("--threads", options.threads),
    }
    for path, (flag, value) in flags.items():
        if value is None:
            continue
        if path in values:
            raise ConfigError(f"{path} is set twice: by {flag} and by --set")
        values[path] = value
    return values


def _check_unchanged(config: TrainConfig, options: argparse.Namespace, out: Path) -> None:
    """Raise where the command line contradicts the run that is resumed; loader threads may change."""
    if options.recipe is not None and options.recipe != config.recipe:
        raise ConfigError(f"{out} holds a run of {config.recipe}, got {options.recipe}")
    for path, value in _asked_settings(config, options).items():
        stored = get_setting(config, path)
        if path != "loader_threads" and value != stored:
            raise ConfigError(
                f"--resume keeps the settings of {out}: {path} is {stored!r} there, got {value!r}; "
                "start a new run to change it"
            )


def _draw(folder: Path) -> Sequence[Path]:
    """Draw the figures of a run; matplotlib is imported only now."""
    from vit_rs.analysis.report import draw_run  # noqa: PLC0415

    return draw_run(folder)


def _next_step(config: TrainConfig) -> str:
    if config.data.path is None:
        return "your own images, vit-rs train --data DIR (a sub-folder of JPEGs or PNGs for each class)"
    if config.recipe == _BUNDLED_RECIPE:
        return "a larger model, --set model.embed_dim=192 --set model.depth=6"
    return (
        f"more pixels, --set data.img_size={2 * config.data.img_size}, or trained weights, "
        "--set model.init=CHECKPOINT --set model.init_head=reset"
    )


def _fail(message: str) -> int:
    line = " ".join(message.split())  # one line, whatever a library put into its message
    print(f"vit-rs: error: {line}", file=sys.stderr)
    return 2


class _Version(argparse.Action):
    """Print the version; the compiled core, which knows it, is imported only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, _values: object, _option: str | None = None
    ) -> None:
        from vit_rs import __version__  # noqa: PLC0415

        print(f"vit-rs {__version__}")
        parser.exit()
