"""The engine's arrays as what a script expects: PIL images, tensors, samples and batches."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import default_collate

from vit_rs.data.dropin.collation import collate_function, is_torchs
from vit_rs.data.dropin.python_stages import wrapped
from vit_rs.data.image_info import image_info, keeps_info

if TYPE_CHECKING:
    from vit_rs.data.dropin.engines import Engine
    from vit_rs.data.dropin.places import Place
    from vit_rs.data.dropin.plan import Plan
    from vit_rs.data.dropin.python_stages import PythonStages, SampleKey

__all__ = ["Assembly", "Received"]

Array = np.ndarray[Any, Any]


class Received:
    """One batch as the engine gave it.

    Args:
        images: one array of all samples, or a list of arrays.
        positions: of the samples in the data set.
        labels: of the samples, where they come with the images.
        first_key: of the first sample's random numbers; those of the others count on.
        pinned: the page-locked bytes that the array lies in.
    """

    def __init__(
        self,
        images: Any,
        positions: Array,
        labels: Array | None,
        first_key: SampleKey,
        pinned: torch.Tensor | None,
    ) -> None:
        self.images = images
        self.positions = positions
        self.labels = labels
        self.first_key = first_key
        self.pinned = pinned


class Assembly:
    """Make a loader's batches of what the engine gives.

    Args:
        plan: what the engine did and what is left to do.
        engine: which engine.
        stages: what is left to do in Python.
        collate_fn: the loader's.
        batched: whether the loader has batches, or gives single samples (batch_size=None).
        pin: whether what is handed over is copied to page-locked memory.
    """

    def __init__(
        self, plan: Plan, engine: Engine, stages: PythonStages, collate_fn: Any, *, batched: bool, pin: bool
    ) -> None:
        self._plan = plan
        self._engine = engine
        self._stages = stages
        self._collate = collate_function(collate_fn)
        self._batched = batched
        self._pin = pin
        self._dtype = plan.lowered.dtype
        # What Python fed is gone when the image is there.
        self._info = engine.opened.feeder is None and keeps_info(plan.pipeline.prefix)

    def batch(self, received: Received) -> Any:
        """Return what the consumer gets."""
        if not len(received.positions):
            return self._collated([], received.first_key)
        default = self._batched and self._collate is default_collate and is_torchs(default_collate)
        if default and self._engine.dense:
            return self._dense(received)
        images, labels = self._samples(received, gather=default)
        if isinstance(images, torch.Tensor):
            made = [images, _batch_of(labels)]
        elif self._batched:
            made = self._collated(list(zip(images, labels, strict=True)), received.first_key)
        else:
            made = self._collated((images[0], labels[0]), received.first_key)
        return _pinned(made) if self._pin else made

    def _collated(self, samples: Any, first_key: SampleKey) -> Any:
        if is_torchs(self._collate):
            return self._collate(samples)
        return self._stages.collate(self._collate, samples, first_key)

    def _dense(self, received: Received) -> list[Any]:
        """Return what default_collate would make of the samples, without making them."""
        if self._stages.any:
            nothing = [None] * len(received.positions)
            _, listed = self._stages.run(nothing, self._labels(received), received.first_key, self._name(received))
            labels = _batch_of(listed)
        elif self._plan.opened.targets is not None:
            labels = _batch_of(self._labels(received))
        else:
            labels = torch.from_numpy(self._label_array(received))
        if self._pin:
            # The images are page-locked already.
            labels = _pinned(labels)
        return [self._tensor(received), labels]

    def _samples(self, received: Received, *, gather: bool) -> tuple[Any, list[Any]]:
        """Return the samples' images and labels as the data set would; `gather` as in PythonStages.run."""
        place = self._plan.handed_over
        if self._engine.dense and place.kind != "pil":
            images: Any = [wrapped(image, place) for image in self._tensor(received)]
        else:
            positions = received.positions.tolist()
            images = [self._image(*given, place) for given in zip(received.images, positions, strict=True)]
        labels = self._labels(received)
        if not self._stages.any:
            return images, labels
        return self._stages.run(images, labels, received.first_key, self._name(received), gather=gather)

    def _image(self, array: Array, position: int, place: Place) -> Any:
        if place.kind == "pil":
            # Pillow comes with torchvision, and is needed for such images only.
            image = importlib.import_module("PIL.Image").fromarray(array[..., 0] if array.shape[2] == 1 else array)
            if self._info:
                image.info = self._read_info(position)
            return image
        tensor = _typed(torch.from_numpy(array), self._dtype)
        return wrapped(tensor.permute(2, 0, 1) if self._plan.layout == "NHWC" else tensor, place)

    def _read_info(self, position: int) -> dict[str, Any]:
        try:
            encoded = self._engine.opened.core.encoded(self._index(position))
        except ValueError:
            # A data set in memory holds pixels, of which there is nothing else to say.
            return {}
        return image_info(encoded)

    def _index(self, position: int) -> int:
        """Return where in the engine's source a sample of the data set is."""
        subset = self._engine.opened.subset
        return position if subset is None else int(subset[position])

    def _tensor(self, received: Received) -> torch.Tensor:
        """Return a dense batch's images."""
        array: Array = received.images
        if received.pinned is None:
            return _typed(torch.from_numpy(array), self._dtype)
        return received.pinned[: array.nbytes].view(self._dtype).view(array.shape)

    def _label_array(self, received: Received) -> Array:
        if received.labels is not None:
            return received.labels
        return self._plan.opened.opened.labels[received.positions]

    def _labels(self, received: Received) -> list[Any]:
        targets = self._plan.opened.targets
        if targets is None:
            return self._label_array(received).tolist()  # type: ignore[no-any-return]
        return [targets[position] for position in received.positions.tolist()]

    def _name(self, received: Received) -> Any:
        def name(number: int) -> str:
            position = int(received.positions[number])
            return f"sample {position} of the data set ({self._engine.opened.core.name(self._index(position))})"

        return name


def _batch_of(labels: list[Any]) -> Any:
    """Return labels as default_collate does those of samples, which zip makes a tuple: texts come back as it."""
    collate: Any = default_collate
    return collate(tuple(labels))


def _typed(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return half floats, which numpy has no type for, as what they are."""
    return tensor.view(dtype) if tensor.dtype == torch.uint16 else tensor


def _pinned(data: Any) -> Any:
    from torch.utils.data._utils.pin_memory import pin_memory  # noqa: PLC0415  (its rules for containers are the contract)

    return pin_memory(data)  # type: ignore[no-untyped-call]
