"""The user's own Python on images and labels: in the thread that asks for a batch, in order, seeded by sample."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import torch

from vit_rs._core import sample_seed
from vit_rs.data.dropin.collation import is_torchs
from vit_rs.data.dropin.places import place_of
from vit_rs.data.dropin.random_states import preserved, seed_all
from vit_rs.data.image_info import keeps_info
from vit_rs.transforms.calling import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vit_rs.data.dropin.chain import Pipeline
    from vit_rs.data.dropin.places import Place
    from vit_rs.transforms import Compose, Transform

__all__ = ["PythonStages", "SampleKey", "runs_python", "wrapped"]

# What a sample's key is used for beside the engine's own numbers.
_PYTHON, _SUFFIX, _COLLATION = 0, 1, 2

SampleKey = tuple[int, int, int]


class PythonStages:
    """The part of a loader's work that is Python.

    The generators that everybody shares are seeded for each sample, and are what they were when the batch is done. Only
    torch's CPU generator is: nothing here touches CUDA. torch runs in one thread meanwhile, as in its own workers.

    Args:
        pipeline: the chain; its Python span and what follows it.
        target_transform: of the labels.
        worker_init_fn: called with 0 before anything else, as torch calls it in a worker process.
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
        # What the engine does behind the user's Python, by what the images are there.
        self._suffixes: dict[Place | None, tuple[Compose | None, Place, bool] | None] = {}
        # Nanoseconds in each stage, in target_transform and in the suffix; number of samples.
        self.spent = [0] * len(pipeline.python)
        self.spent_on_labels = 0
        self.spent_on_suffix = 0
        self.samples = 0

    @property
    def any(self) -> bool:
        """Whether there is anything to run on samples."""
        return bool(self._pipeline.python) or self._target_transform is not None

    @property
    def microseconds(self) -> float:
        """Mean time for a sample: the user's Python and what follows it."""
        spent = sum(self.spent) + self.spent_on_labels + self.spent_on_suffix
        return spent / 1e3 / self.samples if self.samples else 0.0

    def run(
        self,
        images: list[Any],
        labels: list[Any],
        first_key: SampleKey,
        name: Callable[[int], str],
        *,
        gather: bool = False,
    ) -> tuple[Any, list[Any]]:
        """Return the samples' images and labels behind all of the user's transforms.

        Args:
            images: what the engine made of them.
            labels: as the data set has them.
            first_key: (seed, epoch, draw) of the first; the others' draws count on.
            name: says which sample a position in these lists is, for notes on errors.
            gather: return the images as one tensor, where the engine makes tensors of one shape behind the user's
                Python: they are written into it.
        """
        done_images: list[Any] = []
        done_labels: list[Any] = []
        gathered = _Gathered(len(images)) if gather and self._pipeline.python else None
        with _as_in_a_worker():
            self._begin(first_key)
            seed, epoch, first_draw = first_key
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                key = (seed, epoch, first_draw + number)
                seed_all(sample_seed(*key, _PYTHON))
                try:
                    done_images.append(self._image(image, key, gathered) if self._pipeline.python else image)
                    done_labels.append(self._label(label))
                except BaseException as error:
                    if hasattr(error, "add_note"):
                        error.add_note(f"raised for {name(number)}")
                    raise
                self.samples += 1
        whole = None if gathered is None else gathered.whole
        return done_images if whole is None else whole, done_labels

    def collate(self, collate_fn: Callable[[Any], Any], samples: Any, first_key: SampleKey) -> Any:
        """Return what the user's collate_fn makes of samples, of which the first has the key `first_key`."""
        with _as_in_a_worker():
            self._begin(first_key)
            seed_all(sample_seed(*first_key, _COLLATION))
            return collate_fn(samples)

    def _begin(self, first_key: SampleKey) -> None:
        if self._worker_init_fn is not None:
            seed_all(first_key[0])
            self._worker_init_fn(0)
            self._worker_init_fn = None

    def _image(self, image: Any, key: SampleKey, gathered: _Gathered | None) -> Any:
        before = perf_counter_ns()
        for number, stage in enumerate(self._pipeline.python):
            image = stage(image)
            after = perf_counter_ns()
            self.spent[number] += after - before
            before = after
        if self._pipeline.rest:
            image = self._behind_python(image, key, gathered)
            self.spent_on_suffix += perf_counter_ns() - before
        return image

    def _behind_python(self, image: Any, key: SampleKey, gathered: _Gathered | None) -> Any:
        place = place_of(image)
        if place not in self._suffixes:
            self._suffixes[place] = None if place is None else self._suffix(place)
        found = self._suffixes[place]
        if found is None:
            # The engine has nothing for such an image: the user's own transforms take it as it is.
            for original in self._pipeline.rest:
                image = original(image)
            return image
        suffix, end, keeps = found
        if suffix is None:
            return wrapped(image, end)
        seed = sample_seed(*key, _SUFFIX)
        made = call(suffix, image, seed=seed) if gathered is None else gathered.add(suffix, image, seed)
        if keeps:
            made.info = image.info.copy()
        return wrapped(made, end)

    def _suffix(self, place: Place) -> tuple[Compose | None, Place, bool] | None:
        """Return Pipeline.behind, and whether PIL images that stay such keep their info."""
        behind = self._pipeline.behind(place)
        if behind is None:
            return None
        suffix, end = behind
        return suffix, end, suffix is not None and end.kind == "pil" and keeps_info(suffix)

    @property
    def surprises(self) -> dict[Place | None, bool]:
        """What images were behind the user's Python beside what was expected; whether the engine went on with them."""
        found = {place: suffix is not None for place, suffix in self._suffixes.items()}
        found.pop(self._pipeline.after_python, None)
        return found

    def _label(self, label: Any) -> Any:
        if self._target_transform is None:
            return label
        before = perf_counter_ns()
        label = self._target_transform(label)
        self.spent_on_labels += perf_counter_ns() - before
        return label


@contextmanager
def _as_in_a_worker() -> Iterator[None]:
    """Run torch in one thread, as its worker processes do: more would compete with the threads that decode.

    That number, and the shared generators, are afterwards what they were before.
    """
    threads = torch.get_num_threads()
    with preserved():
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


class _Gathered:
    """A batch that images are written into one by one; the first one decides on their shape and type."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._done = 0
        self._batch: torch.Tensor | None = None

    def add(self, suffix: Transform, image: Any, seed: int) -> Any:
        """Return what the suffix makes of an image, which is a part of the batch if it fits."""
        if self._batch is None:
            first = call(suffix, image, seed=seed)
            if isinstance(first, torch.Tensor) and self._count:
                self._batch = torch.empty((self._count, *first.shape), dtype=first.dtype, device="cpu")
                self._batch[0] = first
                self._done = 1
            return first
        place = self._batch[self._done] if self._done < self._count else self._batch[:0]
        held = place if place.dtype in (torch.uint8, torch.float32) else place.view(torch.uint16)
        try:
            call(suffix, image, seed=seed, out=held.numpy())
        except ValueError:
            # An image of another size, or one that does not fit the suffix: this call says which.
            self._count = -1
            return call(suffix, image, seed=seed)
        self._done += 1
        return place

    @property
    def whole(self) -> torch.Tensor | None:
        """The batch; None if some image is not in it."""
        return self._batch if self._done == self._count else None


def runs_python(pipeline: Pipeline, target_transform: Any, collate_fn: Any) -> bool:
    """Tell whether any code of the user's is run: only then is worker_init_fn called."""
    return bool(pipeline.python) or target_transform is not None or not is_torchs(collate_fn)


def wrapped(image: Any, place: Place) -> Any:
    """Return a tensor as torchvision's Image where its transforms would."""
    if not place.wrapped or not isinstance(image, torch.Tensor):
        return image
    # Whoever has such a transform has loaded torchvision.
    return sys.modules["torchvision.tv_tensors"].Image(image, device=image.device)
