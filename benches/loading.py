"""Comparisons of ways from image files to normalised images, each of which shows its pixels before it is timed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from comparison import Comparison, Run, Variant
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224

OneImage = Callable[[bytes], Tensor]
"""From an encoded file to an image, (3, SIZE, SIZE)."""


@dataclass(frozen=True)
class Outcome:
    """What a run made: how many images, and the last of them or the last batch."""

    images: int
    last: Tensor


@dataclass(frozen=True)
class Proof:
    """What a pipeline makes of files without randomness: resize to 256 x 256, keep the middle, normalise if it is f32.

    `images` gives (N, 3, SIZE, SIZE), f32 normalised or u8, as the pipeline does. Their distance from torchvision's is
    bounded in units of 1/255, at every pixel (`largest`) and on average (`mean`).
    """

    images: Callable[[], Tensor]
    largest: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class Pipeline(Variant):
    """A variant that reads files. `expected` gives the proof's pictures where they are not the comparison's."""

    proof: Proof | None = None
    channels_last: bool = False  # in memory, where that is a peer's fastest form
    dtype: torch.dtype | None = None  # where it is not the comparison's


@dataclass(frozen=True, kw_only=True)
class Loading(Comparison):
    """Variants that make `images` random crops of the same files, f32 normalised or u8."""

    expected: Callable[[], Tensor]  # the proof's pictures by torchvision
    dtype: torch.dtype

    def check(self, variant: Variant, run: Run) -> None:
        """Raise AssertionError unless pictures, number, shape, dtype and memory order are right."""
        order, dtype = torch.contiguous_format, self.dtype
        if isinstance(variant, Pipeline):
            order = torch.channels_last if variant.channels_last else order
            dtype = variant.dtype or dtype
            if variant.proof is not None:
                compare(variant.name, variant.proof, _computed(variant.expected or self.expected), dtype)
        outcome = run()
        result = outcome.last if outcome.last.ndim == 4 else outcome.last[None]
        if outcome.images != self.images:
            raise AssertionError(f"{variant.name}: expected {self.images} images, got {outcome.images}")
        shape = (3, SIZE, SIZE)
        if result.dtype != dtype or result.shape[1:] != shape or not result.is_contiguous(memory_format=order):
            raise AssertionError(
                f"{variant.name}: expected {dtype} images of 3 x {SIZE} x {SIZE} in {order}, got {result.dtype}, "
                f"{tuple(result.shape)}, strides {result.stride()}"
            )
        low, high = result.aminmax()
        if low == high or (dtype == torch.float32 and (low < -2.2 or high > 2.7)):
            raise AssertionError(f"{variant.name}: values from {low} to {high} are not those of normalised pictures")


def compare(name: str, proof: Proof, expected: Tensor, dtype: torch.dtype) -> None:
    """Raise AssertionError unless the pictures are of this type and those expected, within the bounds of the proof."""
    images = proof.images()
    if images.shape != expected.shape or images.dtype != dtype:
        raise AssertionError(
            f"{name}: expected {dtype} {tuple(expected.shape)}, got {images.dtype} {tuple(images.shape)}"
        )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    if dtype == torch.uint8:
        images = (images / 255 - mean) / std  # what is expected is normalised
    difference = (images - expected).abs() * std * 255
    largest, average = difference.max().item(), difference.mean().item()
    if largest > proof.largest + 1e-3 or average > proof.mean + 1e-4:  # f32's roundings
        raise AssertionError(
            f"{name}: expected pictures within {proof.largest} of torchvision's and {proof.mean} on average, in units "
            f"of 1/255, got {largest:.2f} and {average:.3f}"
        )


@functools.lru_cache(maxsize=4)
def _computed(expected: Callable[[], Tensor]) -> Tensor:
    return expected()


class EachFile:
    """Make an image of each file in a Python loop, or in one loop for each of several Python threads."""

    def __init__(self, transform: OneImage, files: Sequence[bytes], threads: int) -> None:
        self.transform = transform
        self.shares = [files[start::threads] for start in range(threads)]
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __call__(self) -> Outcome:
        """Return the outcome of one pass over the files."""
        if self.pool is None:
            return self._share(self.shares[0])
        outcomes = list(self.pool.map(self._share, self.shares))
        return Outcome(sum(outcome.images for outcome in outcomes), outcomes[0].last)

    def _share(self, files: Sequence[bytes]) -> Outcome:
        for data in files:
            image = self.transform(data)
        return Outcome(len(files), image)

    def close(self) -> None:
        """End the threads."""
        if self.pool is not None:
            self.pool.shutdown()


class Epochs:
    """Take every batch of an epoch from a loader that can be iterated again and again."""

    def __init__(self, loader: Iterable[Sequence[Tensor]], end: Callable[[], None] = lambda: None) -> None:
        self.loader = loader
        self.end = end

    def __call__(self) -> Outcome:
        """Return the outcome of one epoch."""
        count = 0
        for batch in self.loader:
            images = batch[0]
            count += len(images)
        return Outcome(count, images)

    def close(self) -> None:
        """End the loader, and drop it: some end their processes only then."""
        self.end()
        self.loader = ()
