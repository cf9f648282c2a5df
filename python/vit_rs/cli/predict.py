"""`vit-rs predict`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_rs.cli import subjects
from vit_rs.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs.evaluation import Prediction

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add `vit-rs predict`."""
    command = commands.add_parser(
        "predict",
        help="say what images show: classes and probabilities",
        description=(
            "Print the most probable classes of images, prepared as the model's test images were. Classes have their\n"
            "names from the checkpoint, or the numbers of the model's outputs."
        ),
        epilog=(
            "examples:\n"
            "  vit-rs predict runs/photos/model.safetensors cat.jpg dog.png\n"
            "  vit-rs predict runs/photos/model.safetensors folder/ --top 1 --json\n"
            "  vit-rs predict B_16-224.npz --model vit_base_patch16_224 photo.jpg\n\n"
            "Exit status: 0; 1 where an image cannot be read, the others are printed; 2 for another error."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=_predict)
    subjects.add_subject(command)
    command.add_argument("images", nargs="+", metavar="IMAGE", help="a file, or a folder with images at any depth")
    command.add_argument("--top", type=int, default=5, metavar="K", help="most classes of an image (default: 5)")
    subjects.add_running(command)
    subjects.add_result(command)


def _predict(options: argparse.Namespace) -> int:
    from vit_rs.evaluation import predict  # noqa: PLC0415  (torch is imported here)

    paths = _files(options.images)
    subject = subjects.subject_asked(options)
    with subjects.Progress("predicting") as progress:
        predictions = list(
            predict(
                subject,
                paths,
                top=options.top,
                batch_size=min(options.batch_size, len(paths)),
                device=options.device,
                precision=options.precision,
                num_threads=options.threads,
                progress=progress,
            )
        )
    record = {
        "checkpoint": subject.path,
        "model_digest": subject.digest,
        "preprocessing": subject.preprocessing.to_dict(),
        "predictions": [_record(prediction) for prediction in predictions],
    }
    subjects.give_result(options, record, _table([each for each in predictions if each.error is None]))
    sys.stdout.flush()  # what was found stands before what was not
    errors = [prediction.error for prediction in predictions if prediction.error is not None]
    for error in errors:
        print(f"vit-rs: error: {error}", file=sys.stderr)
    return int(bool(errors))


def _files(images: Sequence[str]) -> list[str]:
    """Return the image files that are named, or lie in folders that are; whether they can be read is seen later."""
    from vit_rs.data.folder import image_files  # noqa: PLC0415  (torch is imported here)

    files: list[str] = []
    for image in images:
        found = image_files(image) if Path(image).is_dir() else [image]
        if not found:
            raise ConfigError(f"{image}: no image in this folder")
        files += found
    return files


def _record(prediction: Prediction) -> dict[str, Any]:
    if prediction.error is not None:
        return {"image": prediction.path, "error": prediction.error}
    best = zip(prediction.outputs, prediction.classes, prediction.probabilities, strict=True)
    return {
        "image": prediction.path,
        "classes": [{"output": output, "class": name, "probability": share} for output, name, share in best],
    }


def _table(predictions: Sequence[Prediction]) -> str:
    lines = []
    for prediction in predictions:
        lines.append(prediction.path)
        best = zip(prediction.classes, prediction.probabilities, strict=True)
        lines += [f"  {100 * share:6.2f} %  {name}" for name, share in best]
    return "\n".join(lines)
