"""`vit-rs train`."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_rs.cli.settings import settings_page
from vit_rs.exceptions import ConfigError
from vit_rs.recipes import config_from_file, is_file_name, recipe_config, recipe_names, recipe_summary
from vit_rs.training.run_folder import newest_unfinished, read_config
from vit_rs.training.values import apply_settings, get_setting, parse_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs.training.config import TrainConfig

__all__ = ["add_parser"]

_BUNDLED_RECIPE, _FOLDER_RECIPE = "fashion_mnist", "image_folder"
# Settings that name a folder or a file.
_PATHS = ("data.path", "model.init")


def add_parser(commands: Any) -> None:
    """Add `vit-rs train`."""
    recipes = "\n".join(f"  {line}" for line in _recipe_lines())
    train = commands.add_parser(
        "train",
        help="train a ViT, evaluate it, fine-tune it at a higher resolution",
        description=(
            "Train a Vision Transformer, evaluate it, fine-tune it at a higher resolution, evaluate again.\n"
            "Without arguments: a small ViT on the bundled Fashion-MNIST images, in minutes on two CPU cores."
        ),
        epilog=(
            f"recipes:\n{recipes}\n"
            "A recipe of your own is a .py file with config(), like those in vit_rs/recipes; a run's config.json\n"
            "starts the same run again.\n\n"
            "examples:\n"
            "  vit-rs train\n"
            "  vit-rs train --data photos/ --set data.img_size=128 --set model.name=vit_small_patch16_224\n"
            "  vit-rs train --set optim.lr=3e-4 --set epochs=20 --out runs/short --seed 1\n"
            "  vit-rs train --resume --out runs/short\n"
            "  vit-rs train image_folder --settings\n"
            "  vit-rs train my_recipe.py --data photos/\n"
            "  vit-rs train runs/short/config.json --seed 2\n\n"
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
        help="what to run: a name (see below), a .py file or a config.json; without it fashion_mnist, or image_folder "
        "for a folder of photos",
    )
    train.add_argument(
        "--data",
        metavar="DIR",
        help="class sub-folders of JPEGs or PNGs, or train/ and val/ with such, or tar shards train-*.tar and "
        "val-*.tar, or IDX files; without it the bundled images",
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
    train.add_argument(
        "--settings",
        action="store_true",
        dest="show_settings",
        help="print every setting of the recipe, what it means and what it takes, and exit",
    )


def _recipe_lines() -> list[str]:
    """Return each recipe's name and first line."""
    names = recipe_names()
    width = max(map(len, names))
    return [f"{name:<{width}}  {recipe_summary(name)}" for name in names]


def _train(options: argparse.Namespace) -> int:
    if options.list:
        print("\n".join(_recipe_lines()))
        return 0
    out: Path | None = options.out
    if options.resume:
        out = newest_unfinished() if out is None else out
        config = read_config(out)
        _check_unchanged(config, options, out)
        if options.threads is not None:
            config = dataclasses.replace(config, loader_threads=options.threads)
    else:
        config = _recipe(options.recipe or _recipe_for(options.data))
        own = {path: get_setting(config, path) for path in _PATHS}
        asked = _asked_settings(config, options)
        config = apply_settings(config, _located({**own, **asked}))
        if asked.get("model.init") is not None:  # a recipe's own is for the recipe's network
            from vit_rs.training.initial import with_architecture  # noqa: PLC0415  (torch is imported here)

            fields = {path.removeprefix("model."): asked[path] for path in asked if path.startswith("model.")}
            config = dataclasses.replace(config, model=with_architecture(config.model, fields))
    config = config.validated()
    if options.show_settings:
        print(settings_page(config))
        return 0

    try:
        from vit_rs import distributed  # noqa: PLC0415  (torch is imported here, after the arguments were checked)
        from vit_rs.training import train  # noqa: PLC0415
        from vit_rs.training.summary import summary_table, unreadable_line  # noqa: PLC0415
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped before training began") from None

    try:
        summary = train(config, out, resume=options.resume, draw=_draw)
    except ConfigError as error:
        named = options.device is not None or any(text.split("=")[0].strip() == "device" for text in options.settings)
        if named or not str(error).startswith(f"device {config.device!r} cannot be used"):
            raise
        source = "the run" if options.resume else f"the recipe {config.recipe}"
        raise ConfigError(f"{error}; {source} asks for it: --device cpu trains on the processor") from error
    if not distributed.is_main():
        return 0
    print(summary_table(summary))
    line = unreadable_line(summary)
    if line is not None:
        print(line)
    for stage in summary["stages"]:
        if "skipped" in stage["fewshot"]:
            print(f"{stage['stage']}: no few-shot result: {stage['fewshot']['skipped']}")
    print(f"Everything is in {summary['folder']}{os.sep}: start with summary.md.")
    print(f"Try next: {_next_step(config)}")
    return 0


def _recipe(name: str) -> TrainConfig:
    """Return the configuration of a recipe that is given by name, or by the path of a file."""
    return config_from_file(Path(name)) if is_file_name(name) else recipe_config(name)


def _recipe_for(data: str | None) -> str:
    """Return the recipe that fits the data where none is named: IDX files are small gray images."""
    if data is None or any(Path(data).glob("train-images-idx3-ubyte*")):
        return _BUNDLED_RECIPE
    return _FOLDER_RECIPE


def _asked_settings(config: TrainConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Return path -> value of everything that the command line asks for."""
    values = parse_settings(config, options.settings)
    flags = {
        "data.path": ("--data", options.data),
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


def _located(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings with absolute paths: a run goes on from any directory."""
    return {
        path: str(Path(value).resolve()) if path in _PATHS and value is not None else value
        for path, value in values.items()
    }


def _check_unchanged(config: TrainConfig, options: argparse.Namespace, out: Path) -> None:
    """Raise where the command line contradicts the run that is resumed; loader threads may change."""
    if options.recipe is not None:
        asked = _recipe(options.recipe).recipe if is_file_name(options.recipe) else options.recipe
        if asked != config.recipe:
            raise ConfigError(f"{out} holds a run of {config.recipe}, got {asked}")
    for path, value in _located(_asked_settings(config, options)).items():
        stored = get_setting(config, path)
        if path != "loader_threads" and value != stored:
            raise ConfigError(
                f"--resume keeps the settings of {out}: {path} is {stored!r} there, got {value!r}; "
                "start a new run to change it"
            )


def _draw(folder: Path) -> Sequence[Path]:
    """Draw the figures of a run; matplotlib is imported only now."""
    from vit_rs.analysis.run_figures import draw_run  # noqa: PLC0415

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
