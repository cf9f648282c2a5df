"""A subject on a folder's images: are they what its outputs mean, and were they kept from its training?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch.utils.data import Subset

from vit_rs.data import ImageLoader
from vit_rs.data.splits import common_side
from vit_rs.evaluation.classify import Evaluation, examine
from vit_rs.evaluation.feature_bank import image_name
from vit_rs.exceptions import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from vit_rs.data.splits import Splits
    from vit_rs.evaluation.classify import Precision
    from vit_rs.evaluation.subject import Subject

__all__ = ["Examination", "chosen_images", "examine_subject", "outputs_of_labels"]

Part = Literal["test", "train", "all"]


class Examination(NamedTuple):
    """What came of it, and what a reader has to know beside it, a line each."""

    evaluation: Evaluation
    notes: tuple[str, ...]


def examine_subject(
    subject: Subject,
    splits: Splits,
    part: Part = "test",
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Examination:
    """Return how well a subject classifies a folder's images.

    Args:
        subject: the model. It is moved to `device`.
        splits: the images. Their classes must be the model's; they are matched by name.
        part: "test", "train", or "all" images of a folder without test images of its own.
        batch_size: images that the model gets at once.
        device: where the model runs.
        precision: "bfloat16" runs it under autocast.
        num_threads: of the image loader; None is one for each core.
        progress: called with (images done, images).

    Raises:
        DatasetError: the images have other classes, or another number of channels, than the model; "all" is asked of a
            folder with test images of its own.
        DecodeError: an image cannot be decoded.
        CheckpointError: a logit is not a finite number; the message says of which image.
    """
    images = chosen_images(splits, part)
    subject.check_channels(splits.channels)
    outputs, note = outputs_of_labels(subject, splits)
    notes = [] if note is None else [note]
    names = subject.classes
    if names is None:
        names = tuple(splits.classes)
    count = len(images)
    with ImageLoader(
        images,
        subject.preprocessing.transform(common_side(images)),
        batch_size=batch_size,
        num_threads=num_threads,
        device=device,
        rank=0,
        world_size=1,
    ) as loader:
        evaluation = examine(
            subject.model.to(device),
            _relabelled(loader, outputs),
            classes=names,
            device=device,
            precision=precision,
            progress=None if progress is None else lambda done: progress(done, count),
            image_name=lambda index: image_name(images, index),
        )
    return Examination(evaluation, tuple(notes))


def chosen_images(splits: Splits, part: Part) -> Subset[tuple[Tensor, int]]:
    """Return the images that a part names.

    Raises:
        DatasetError: "all" is asked of a folder with test images of its own.
        ValueError: there is no such part.
    """
    if part == "test":
        return splits.test
    if part == "train":
        return splits.train
    if part != "all":
        raise ValueError(f"part must be 'test', 'train' or 'all', got {part!r}")
    if not splits.seeded:
        raise DatasetError(f"{splits.description}: there is no 'all' of a folder with its own test images")
    dataset: Any = splits.test.dataset
    return Subset(dataset, range(len(dataset)))


def outputs_of_labels(subject: Subject, splits: Splits) -> tuple[list[int], str | None]:
    """Return the model's output for each label of the images, and what to say about how they were matched.

    Raises:
        DatasetError: the classes are not the same; the message names those that only one of them has.
    """
    outputs = subject.num_classes
    if not outputs:
        raise DatasetError(f"{subject.path}: the model has no head, so it names no classes: it can be probed")
    same = list(range(outputs))
    if subject.classes is None or splits.numbered:
        if len(splits.classes) != outputs:
            raise DatasetError(f"the model tells {outputs} classes apart, the images are of {len(splits.classes)}")
        if subject.classes is None:
            return same, "the file does not name its outputs: they are taken in the order of the images' classes"
        if list(subject.classes) != splits.classes:
            return same, "the images' classes have numbers only: they are taken in the order of the model's outputs"
        return same, None
    if list(subject.classes) == splits.classes:
        return same, None
    missing, unknown = (
        [name for name in these if name not in set(others)]
        for these, others in ((subject.classes, splits.classes), (splits.classes, subject.classes))
    )
    if missing or unknown:
        raise DatasetError(
            f"the model tells {outputs} classes apart, the images are of {len(splits.classes)}: "
            + "; ".join(
                f"only the {side} {has} {_some(names)}"
                for side, has, names in (("model", "has", missing), ("images", "have", unknown))
                if names
            )
        )
    places = {name: place for place, name in enumerate(subject.classes)}
    return [places[name] for name in splits.classes], "the images' classes come in another order: matched by name"


def _relabelled(loader: Iterable[tuple[Tensor, Tensor]], outputs: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    table = torch.tensor(outputs)
    for images, labels in loader:
        yield images, table.to(labels.device)[labels]


def _some(names: list[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
