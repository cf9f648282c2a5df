"""`vit-rs analyze`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_rs.cli import subjects
from vit_rs.cli.arguments import natural, positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs.analysis.embeddings import PositionTable
    from vit_rs.evaluation import Subject

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add `vit-rs analyze`."""
    command = commands.add_parser(
        "analyze",
        help="look inside a model: filters, position embeddings, attention",
        description=(
            "Write a folder that shows what a model has learnt (figure 7 of arXiv 2010.11929, and more): principal\n"
            "components of its patch embedding, similarity of its position embeddings, mean attention distance of\n"
            "every head, attention maps and rollout. report.html holds all of it in one file, and lets you click on\n"
            "patches to see where they look; figures/ has PNG and SVG, arrays/ the numbers (.npz)."
        ),
        epilog=(
            "examples:\n"
            "  vit-rs analyze runs/photos/model.safetensors --data photos --out look\n"
            "  vit-rs analyze B_16.npz --model vit_base_patch16_224 --data imagenet/val --out look\n"
            "  vit-rs analyze B_16.npz --model vit_base_patch16_224 --img-size 384 --out before-and-after\n"
            "  vit-rs analyze model.safetensors --data cat.jpg dog.jpg --shown 2 --out look"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=_analyze)
    subjects.add_subject(command)
    command.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="images, or folders with images at any depth, or one folder of IDX files or tar shards; without it the "
        "bundled test images for a model of one channel, and for others nothing that needs images",
    )
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to write")
    command.add_argument("--overwrite", action="store_true", help="replace what an earlier analysis wrote there")
    command.add_argument(
        "--images", type=positive, default=128, metavar="N", help="how many images, evenly spread (default: 128)"
    )
    command.add_argument(
        "--shown", type=natural, default=4, metavar="N", help="how many of them are drawn and explored (default: 4)"
    )
    command.add_argument(
        "--filters", type=positive, default=28, metavar="K", help="principal components of the filters (default: 28)"
    )
    subjects.add_running(command, batch_size=None)


def _analyze(options: argparse.Namespace) -> int:
    from vit_rs.analysis.images import choose_images  # noqa: PLC0415
    from vit_rs.analysis.output_folder import check_folder  # noqa: PLC0415
    from vit_rs.analysis.overview import MARKER, analyze  # noqa: PLC0415  (torch is imported here)

    check_folder(options.out, marker=MARKER, overwrite=options.overwrite)  # before all the work
    subject = subjects.subject_asked(options)
    images = None
    if options.data is not None or subject.channels == 1:
        images = choose_images(options.data, options.images)
    with subjects.Progress("analysing") as progress, subjects.mendable():
        record = analyze(
            subject,
            options.out,
            images=images,
            before=_before(options, subject),
            filters=options.filters,
            shown=options.shown,
            batch_size=options.batch_size,
            device=options.device,
            precision=options.precision,
            num_threads=options.threads,
            overwrite=options.overwrite,
            progress=progress,
        )
    print(_summary(record, options.out))
    sys.stdout.flush()
    for failure in record.get("attention_distance", {}).get("unreadable", ()):
        print(f"vit-rs: warning: left out: {failure}", file=sys.stderr)
    return 0


def _before(options: argparse.Namespace, subject: Subject) -> Sequence[PositionTable]:
    """Return the position tables of the file, where they were resampled to another image size."""
    from vit_rs.analysis import position_tables  # noqa: PLC0415  (torch is imported here)
    from vit_rs.models import ViTConfig  # noqa: PLC0415

    if not subject.resampled:
        return ()
    if subject.file_grid is not None:
        rows, columns = subject.file_grid
        config = subject.model.config
        assert isinstance(config, ViTConfig)  # noqa: S101  (nothing else has a grid)
        height, width = config.token_hw
        return position_tables(subjects.subject_asked(options, img_size=(rows * height, columns * width)).model)
    options = argparse.Namespace(**{**vars(options), "img_size": None})
    named = subjects.subject_asked(options)  # of timm's, whose files do not tell their grid
    return () if named.resampled else position_tables(named.model)


def _summary(record: dict[str, Any], out: Path) -> str:
    filters, positions = record["patch_filters"], record["position_embeddings"]
    height, width = record["preprocessing"]["img_size"]
    lines = [f"{record['checkpoint']}: {height}x{width} px, images: {record['data']}"]
    if "note" in filters:
        lines.append(f"filters      {filters['note']}")
    else:
        hold = f"{filters['components']} principal components of {filters['kernel']} hold"
        lines.append(f"filters      {hold} {filters['explained_variance']:.1%} of the variance")
    if positions["note"]:
        lines.append(f"positions    {positions['note']}")
    lines += [
        f"positions    {found['table']}: mean cosine similarity of neighbours {_rounded(found['neighbours'])}, "
        f"of others {_rounded(found['others'])}"
        for found in positions["tables"]
    ]
    if "attention_distance" in record:
        layers = record["attention_distance"]["layers"]
        lines.append(f"attention    mean distance of the heads in pixels (least, mean, most; of {height}x{width}):")
        for layer in layers:
            heads = layer["heads"]
            lines.append(
                f"  layer {layer['layer']:>3} {min(heads):7.1f} {sum(heads) / len(heads):7.1f} {max(heads):7.1f}"
            )
    else:
        lines.append(f"attention    {record['attention_note']}")
    memory = record["peak_memory_bytes"]
    peak = "" if memory is None else f", peak memory {memory / 1e9:.2f} GB"
    lines.append(f"{record['seconds']:.1f} s{peak}; open {out / 'report.html'}")
    return "\n".join(lines)


def _rounded(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # and never -0.00
