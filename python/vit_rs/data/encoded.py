"""Any map-style Python data set of encoded images, read by one Python thread for the Rust loader."""

from __future__ import annotations

import atexit
import operator
import os
import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from vit_rs._core import Feed, decode_image
from vit_rs.data.items import item

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["EncodedDataset", "Feeder"]

# How long the interpreter's exit waits for a data set that is at work, seconds.
_EXIT_SECONDS = 1.0


class _MapStyle(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class EncodedDataset:
    """Let a loader read a map-style Python data set whose items are (encoded image, label).

    One Python thread of the loader calls `dataset[i]`, in the order of the batches and ahead of them by at most the
    batches that are prefetched; Rust threads decode and augment what it returns. So the data set needs no lock and is
    not copied to other processes; if it is slower than the rest, it sets the pace. An exception in it is raised at the
    batch that the sample belongs to, with its type and traceback; with on_error="skip" or "substitute" it counts as a
    bad sample, unless it is no `Exception` (SystemExit) or a MemoryError: these are raised always.

    Torch's, numpy's and random's generators are not seeded for it: what it draws is its own affair, and is not part of
    a loader's promise to repeat itself.

    Args:
        dataset: has `len(dataset)`, and gives (image, label) for `dataset[i]`. image: the bytes of a JPEG, PNG or WebP,
            as bytes, bytearray, memoryview, or a one-dimensional u8 array or tensor; label: a 64-bit integer,
            negative where it is no class.
        classes: the classes' names, index = label, where they are of use.
        transform: what `encoded[i]` does to the image, a PIL image of mode RGB, as in torchvision's data sets; the
            drop-in DataLoader does the same. ImageLoader has a transform of its own.
        target_transform: the same for the label, a Python int.

    Raises:
        TypeError: the data set has no length or cannot be indexed.
    """

    def __init__(
        self,
        dataset: _MapStyle,
        *,
        classes: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        for name in ("__len__", "__getitem__"):
            if not hasattr(dataset, name):
                raise TypeError(f"a map-style data set has {name}, {type(dataset).__name__} does not")
        self.dataset = dataset
        self.classes: list[str] | None = None if classes is None else list(classes)
        self.transform = transform
        self.target_transform = target_transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return (image, label).

        image: u8 RGB, (3, H, W), values 0..255; with a transform, what that makes of a PIL image of mode RGB.

        Raises:
            DecodeError: the bytes are not a readable image.
        """
        data, label = _checked(self.dataset[index], index)
        return item(decode_image(data, name=f"sample {index}"), label, self.transform, self.target_transform)

    def __repr__(self) -> str:
        return f"EncodedDataset({type(self.dataset).__name__}: {len(self)} images)"


class Feeder:
    """Serve one loader's requests to a data set, from a thread that ends with the loader.

    Args:
        dataset: as in EncodedDataset.
        keep_errors: keep exceptions of bad samples, so that they can be raised; else their texts must do.
    """

    def __init__(self, dataset: _MapStyle, *, keep_errors: bool) -> None:
        self.feed = Feed(len(dataset))
        self._dataset = dataset
        self._keep_errors = keep_errors
        self._errors: dict[int, BaseException] = {}
        self._thread: _Thread | None = None

    def start(self) -> None:
        """Start the thread, if it does not run."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = _Thread(self.feed, self._dataset, self._errors, keep_errors=self._keep_errors)
            self._thread.start()

    def forget(self) -> None:
        """Let go of the exceptions of an epoch that is over."""
        self._errors.clear()

    def error(self, ticket: int, text: str) -> BaseException:
        """Return the exception that answered a request."""
        error = self._errors.pop(ticket, None)
        if error is None:
            return RuntimeError(text)
        if hasattr(error, "add_note"):
            error.add_note(f"raised for {text.partition(':')[0]} of the data set")
        return error

    def close(self) -> None:
        """End the thread; one inside the data set ends after this sample."""
        self.forget()
        if self._thread is not None:
            self._thread.end()


class _Thread(threading.Thread):
    """The thread of a Feeder, to which it has no reference: a loader that nobody holds takes its feed along."""

    def __init__(self, feed: Feed, dataset: _MapStyle, errors: dict[int, BaseException], *, keep_errors: bool) -> None:
        # A daemon, so that a data set that hangs cannot keep the process.
        super().__init__(name="vit-rs-feeder", daemon=True)
        self._feed = feed
        self._dataset = dataset
        self._errors = errors
        self._keep_errors = keep_errors
        self._process = os.getpid()

    def start(self) -> None:
        # The thread must not wait inside the extension any more when the interpreter goes.
        atexit.register(self._leave)
        super().start()

    def run(self) -> None:
        try:
            while (request := self._feed.next_request()) is not None:
                self._serve(*request)
        finally:
            atexit.unregister(self._leave)

    def _serve(self, ticket: int, index: int) -> None:
        try:
            item = self._dataset[index]
        except BaseException as error:  # noqa: BLE001  (it belongs to the thread that waits for this sample)
            # Another sample can stand in for a bad one, not for a process that is to end or has no memory.
            bad_sample = isinstance(error, Exception) and not isinstance(error, MemoryError)
            if self._keep_errors or not bad_sample:
                self._errors[ticket] = error
            self._feed.fail(ticket, f"{type(error).__name__}: {error}", bad_sample)
            return
        try:
            data, label = _checked(item, index)
        except Exception as error:  # noqa: BLE001
            # Not a bad sample but a wrong data set: never skipped.
            self._errors[ticket] = error
            self._feed.fail(ticket, f"{type(error).__name__}: {error}", False)
            return
        self._feed.reply(ticket, data, label)

    def end(self) -> None:
        # In a forked child there is no such thread, and another one may have held the feed's lock.
        if os.getpid() == self._process:
            self._feed.close()

    def _leave(self) -> None:
        self.end()
        if os.getpid() == self._process:
            self.join(_EXIT_SECONDS)


def _checked(item: Any, index: int) -> tuple[bytes, int]:
    """Return an item's bytes and label.

    Raises:
        TypeError: it is something else.
        ValueError: the label does not fit.
    """
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise TypeError(f"sample {index} must be (encoded image, label), got {type(item).__name__}")
    data, label = item
    try:
        number = operator.index(label)
    except TypeError:
        raise TypeError(f"the label of sample {index} must be an integer, got {type(label).__name__}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"the label of sample {index} must fit 64 bits, got {number}")
    if isinstance(data, bytes):
        return data, number
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data), number
    if isinstance(data, torch.Tensor) and data.dtype == torch.uint8 and data.ndim == 1:
        return data.cpu().numpy().tobytes(), number
    if isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 1:
        return data.tobytes(), number
    raise TypeError(f"the image of sample {index} must be encoded bytes or a 1-d u8 array, got {_described(data)}")


def _described(value: Any) -> str:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"{type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
    return type(value).__name__
