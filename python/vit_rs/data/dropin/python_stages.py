"""The user's own Python on images and labels: in the thread that asks for a batch, in sample order, seeded by sample."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from vit_rs._core import sample_seed
from vit_rs.data.dropin.chain import place_of
from vit_rs.data.dropin.random_states import preserved, seed_all
from vit_rs.transforms.calling import call

if TYPE_CHECKING:
    from collections.abc import Callable

    from vit_rs.data.dropin.chain import Pipeline

__all__ = ["PythonStages", "SampleKey"]

# What a sample's key is used for beside the engine's own numbers.
_PYTHON, _SUFFIX = 0, 1

SampleKey = tuple[int, int, int]


class PythonStages:
    """The part of a loader's work that is Python.

    The generators that everybody shares are seeded for each sample, and are what they were when the batch is done. Only
    torch's CPU generator is: nothing here touches CUDA.

    Args:
        pipeline: the chain; its Python span and what follows it.
        target_transform: of the labels.
        worker_init_fn: called with 0 before the first sample, as torch calls it in a worker process.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        target_transform: Callable[[Any], Any] | None,
        worker_init_fn: Callable[[int], None] | None,
    ) -> None:
        self._pipeline = pipeline
        self._target_transform = target_transform
        self._worker_init_fn = worker_init_fn
        # Nanoseconds in each stage, in target_transform and in the suffix; number of samples.
        self.spent = [0] * len(pipeline.python)
        self.spent_on_labels = 0
        self.spent_on_suffix = 0
        self.samples = 0

    @property
    def any(self) -> bool:
        """Whether there is anything to run."""
        return bool(self._pipeline.python) or self._target_transform is not None

    def run(
        self, images: list[Any], labels: list[Any], keys: list[SampleKey], name: Callable[[int], str]
    ) -> tuple[list[Any], list[Any]]:
        """Return the samples' images and labels behind all of the user's transforms.

        Args:
            images: what the engine made of them.
            labels: as the data set has them.
            keys: (seed, epoch, draw) of each.
            name: says which sample a position in these lists is, for notes on errors.
        """
        done_images: list[Any] = []
        done_labels: list[Any] = []
        with preserved():
            if self._worker_init_fn is not None:
                seed_all(keys[0][0])
                self._worker_init_fn(0)
                self._worker_init_fn = None
            for number, (image, label, key) in enumerate(zip(images, labels, keys, strict=True)):
                seed_all(sample_seed(*key, _PYTHON))
                try:
                    done_images.append(self._image(image, key) if self._pipeline.python else image)
                    done_labels.append(self._label(label))
                except BaseException as error:
                    if hasattr(error, "add_note"):
                        error.add_note(f"raised for {name(number)}")
                    raise
                self.samples += 1
        return done_images, done_labels

    def _image(self, image: Any, key: SampleKey) -> Any:
        before = perf_counter_ns()
        for number, stage in enumerate(self._pipeline.python):
            image = stage(image)
            after = perf_counter_ns()
            self.spent[number] += after - before
            before = after
        if self._pipeline.suffix is None:
            pass
        elif place_of(image) == self._pipeline.after_python:
            image = call(self._pipeline.suffix, image, seed=sample_seed(*key, _SUFFIX))
        else:
            # Not what was expected: the user's own transforms take it as it is.
            for original in self._pipeline.rest:
                image = original(image)
        self.spent_on_suffix += perf_counter_ns() - before
        return image

    def _label(self, label: Any) -> Any:
        if self._target_transform is None:
            return label
        before = perf_counter_ns()
        label = self._target_transform(label)
        self.spent_on_labels += perf_counter_ns() - before
        return label
