"""What a classifier takes single images for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vit_rs.data import ImageLoader
from vit_rs.evaluation.classify import autocasting, evaluating
from vit_rs.exceptions import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from torch import Tensor

    from vit_rs.evaluation.classify import Precision
    from vit_rs.evaluation.subject import Subject

__all__ = ["Prediction", "predict"]

_RGB = 3  # channels of every decoded file


class Prediction(NamedTuple):
    """What an image is taken for.

    Attributes:
        path: the image's file.
        outputs: numbers of the most probable outputs, the best first; none where the image cannot be read.
        classes: their names; their numbers where the checkpoint has no names.
        probabilities: of each, by softmax over all outputs.
        error: why the image cannot be read, None where it was.
    """

    path: str
    outputs: tuple[int, ...]
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str | None = None


def predict(
    subject: Subject,
    paths: Sequence[str],
    *,
    top: int = 5,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[Prediction]:
    """Yield what each image is taken for, in the order of the paths.

    Images are prepared as the subject's test images were; for a model of one channel they are made gray (ITU-R 601).

    Args:
        subject: the model. It is moved to `device`.
        paths: image files; what their names end in does not matter. A file that is missing or damaged gets an error.
        top: most outputs of an image.
        batch_size: images that the model gets at once.
        device: where the model runs.
        precision: "bfloat16" runs it under autocast.
        num_threads: of the image loader; None is one for each core.
        progress: called with (images done, images).

    Raises:
        ConfigError: the model has no head, or `top` is below 1.
        DatasetError: the model takes images of another number of channels.
        CheckpointError: a logit is not a finite number; the message says of which image.
    """
    names = _class_names(subject)
    if top < 1:
        raise ConfigError(f"top must be at least 1, got {top}")
    transform = subject.transform(_RGB)
    model = subject.model.to(device)
    done = failed = 0
    with ImageLoader(
        [(path, 0) for path in paths],
        transform,
        batch_size=batch_size,
        num_threads=num_threads,
        device=device,
        on_error="skip",
        return_index=True,
        rank=0,
        world_size=1,
    ) as loader:
        for images, _, indices in loader:
            places = [int(index) for index in indices]
            # Left before anything is yielded: the caller's own code must not run in inference mode.
            with evaluating(model), autocasting(device, precision):
                logits = model(images[:, : subject.channels]) if places else images.new_empty(0, len(names))
            for place, finite in zip(places, logits.isfinite().all(dim=1).tolist(), strict=True):
                if not finite:
                    raise CheckpointError(f"{subject.path}: a logit of {paths[place]} is not a finite number")
            best = _best(logits.float(), min(top, len(names)))
            found = dict(zip(places, zip(*best, strict=True), strict=True))
            end = min(done + batch_size, len(paths))
            for place in range(done, end):
                if place not in found:
                    # Failures are listed in the order of the samples: the next missing one is the next of them.
                    yield Prediction(paths[place], (), (), (), loader.stats().failures[failed])
                    failed += 1
                    continue
                outputs, probabilities = found[place]
                yield Prediction(
                    paths[place], tuple(outputs), tuple(names[output] for output in outputs), tuple(probabilities)
                )
            done = end
            if progress is not None:
                progress(done, len(paths))


def _best(logits: Tensor, count: int) -> tuple[list[list[int]], list[list[float]]]:
    """Return numbers and probabilities of the largest of logits (B, K) in each row, the first of equal ones first."""
    values, outputs = logits.softmax(dim=1).sort(dim=1, descending=True, stable=True)  # (B, K)
    return outputs[:, :count].tolist(), values[:, :count].tolist()


def _class_names(subject: Subject) -> tuple[str, ...]:
    count = subject.num_classes
    if not count:
        raise ConfigError(f"{subject.path}: the model has no head, so it names no classes")
    return tuple(map(str, range(count))) if subject.classes is None else subject.classes
