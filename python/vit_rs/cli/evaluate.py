"""`vit-rs eval`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vit_rs.cli import subjects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs.evaluation import Evaluation

__all__ = ["add_parser"]

# Up to so many classes all are shown, of more the worst ten.
_ALL_CLASSES = 20
_WORST = 10


def add_parser(commands: Any) -> None:
    """Add `vit-rs eval`."""
    command = commands.add_parser(
        "eval",
        help="test a trained model: accuracy, what it confuses, calibration",
        description=(
            "Test a trained classifier on images: top-1 and top-5 accuracy with standard errors, loss, each class,\n"
            "the most frequent confusions, and whether the probabilities are true (calibration error, Brier score).\n"
            "Of a run of vit-rs train, the images that it held out are tested, and prepared as they were there."
        ),
        epilog=(
            "examples:\n"
            "  vit-rs eval runs/photos/model.safetensors --data photos\n"
            "  vit-rs eval runs/photos/model.safetensors --data others --split all --out others.json\n"
            "  vit-rs eval B_16.npz --model vit_base_patch16_224 --data imagenet --device cuda --precision bfloat16\n"
            "  vit-rs eval model.safetensors --data photos --img-size 384"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=_evaluate)
    subjects.add_subject(command)
    subjects.add_images(command)
    command.add_argument(
        "--split",
        choices=("test", "train", "all"),
        default="test",
        help="which of DIR's images; all: of class sub-folders, whatever was held out (default: test)",
    )
    subjects.add_running(command)
    subjects.add_result(command)


def _evaluate(options: argparse.Namespace) -> int:
    from vit_rs import __version__  # noqa: PLC0415  (torch is imported here)
    from vit_rs.evaluation import examine_subject  # noqa: PLC0415

    subject = subjects.subject_asked(options)
    splits, notes = subjects.images_asked(options, subject, training=options.split == "train")
    with subjects.Progress("testing") as progress:
        evaluation, more = examine_subject(
            subject,
            splits,
            options.split,
            batch_size=options.batch_size,
            device=options.device,
            precision=options.precision,
            num_threads=options.threads,
            progress=progress,
        )
    notes = [*(notes if options.split != "all" else ()), *more, *(f"resampled: {line}" for line in subject.resampled)]
    record = {
        "checkpoint": subject.path,
        "model_digest": subject.digest,
        "preprocessing": subject.preprocessing.to_dict(),
        "data": splits.description,
        "split": options.split,
        "precision": options.precision,
        "device": options.device,
        "vit_rs": __version__,
        "notes": notes,
        **evaluation.to_dict(),
    }
    head = f"{subject.path} on the {options.split} images of {splits.description}; {subject.preprocessing}"
    subjects.give_result(options, record, _table(head, evaluation, notes))
    return 0


def _table(head: str, evaluation: Evaluation, notes: Sequence[str]) -> str:
    figures = evaluation.to_dict()
    lines = [head, *(f"Note: {note}" for note in notes), "", f"images             {evaluation.count:>9,}"]
    for key, name in (("top1", "top-1"), ("top5", "top-5")):
        if figures[key] is not None:
            error = figures[f"{key}_standard_error"]
            lines.append(f"{name:<18} {100 * figures[key]:>9.2f} %  (standard error {100 * error:.2f})")
    error = figures["loss_standard_error"]
    lines.append(
        f"loss               {figures['loss']:>9.4f}{'' if error is None else f'    (standard error {error:.4f})'}"
    )
    lines += [
        f"mean confidence    {100 * figures['mean_confidence']:>9.2f} %",
        f"calibration error  {100 * figures['calibration_error']:>9.2f} %  (15 bins)",
        f"Brier score        {figures['brier']:>9.4f}    (0 to 2)",
        "",
    ]
    classes = [item for item in figures["per_class"] if item["count"]]
    title = "class"
    if len(classes) > _ALL_CLASSES:
        classes = sorted(classes, key=lambda item: item["top1"])[:_WORST]
        title = f"the {_WORST} worst of {len(evaluation.classes):,} classes"
    width = max(len(title), *(len(item["class"]) for item in classes))
    lines.append(f"{title:<{width}}  images   top-1")
    lines += [f"{item['class']:<{width}}  {item['count']:>6,}  {100 * item['top1']:>5.1f} %" for item in classes]
    if figures["most_confused"]:
        lines += ["", "most confused"]
        lines += [f"{count:>6,}  {true} taken for {taken}" for true, taken, count in figures["most_confused"]]
    return "\n".join(lines)
