"""`vit-rs resample` and `vit-rs convert`: from one file of weights to another."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vit_rs.cli.arguments import size_pair
from vit_rs.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add `vit-rs resample` and `vit-rs convert`."""
    _add_resample(commands)
    _add_convert(commands)


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
        "--img-size", type=size_pair, required=True, metavar=size, help="image side, or heightxwidth, in pixels"
    )
    resample.add_argument("--patch-size", type=size_pair, metavar="P[xQ]", help="patch side, or heightxwidth")
    resample.add_argument(
        "--convention", metavar="NAME", help="how to resample, for example timm, jax, dinov2 (default: the file's own)"
    )
    resample.add_argument(
        "--from-img-size",
        type=size_pair,
        metavar=size,
        help="image size of the old weights, where the file cannot say it",
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
        type=size_pair,
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
        raise ConfigError(str(error)) from error
    print(report)
    return 0
