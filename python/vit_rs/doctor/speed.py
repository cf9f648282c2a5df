"""Images per second of the loader and of torchvision with a DataLoader, side by side on the same files."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import Subset

from vit_rs.data import ImageLoader, LoaderStats
from vit_rs.doctor import peer
from vit_rs.exceptions import VitRsError
from vit_rs.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToDtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from vit_rs.doctor.files import Files
    from vit_rs.doctor.report import Progress

__all__ = ["Speed", "best_threads", "measure", "medians", "thread_counts"]

BATCH_SIZE = 64
TRAINING = Compose(
    [
        RandomResizedCrop(224),
        RandomHorizontalFlip(),
        ToDtype(torch.float32, scale=True),
        Normalize(peer.MEAN, peer.STD),
    ]
)
# The least number of rounds, after a first one, whose median means something.
_LEAST_ROUNDS = 3
# Enough for the threads' pipeline to fill and run; more tell nothing new.
_LEAST_BATCHES, _MOST_BATCHES = 4, 64
_ENOUGH = 0.95


@dataclass
class Speed:
    """Images per second in each round, by number of threads or worker processes.

    Attributes:
        tried: images looked at before; those that not all contestants can decode completely are not measured.
        usable: those that are, so that all do the same work.
        images: images in an epoch of a round; repeated where there are fewer.
        ours: of the loader.
        torchvision: of a DataLoader; empty where it could not be measured, and `torchvision_missing` says why.
        stats: the loader's own statistics of its last round, by number of threads.
    """

    tried: int = 0
    usable: int = 0
    images: int = 0
    ours: dict[int, list[float]] = field(default_factory=dict)
    torchvision: dict[int, list[float]] = field(default_factory=dict)
    torchvision_missing: str | None = None
    stats: dict[int, LoaderStats] = field(default_factory=dict)


class _Contestant(Protocol):
    def run(self) -> int: ...
    def close(self) -> None: ...


class _Ours:
    def __init__(self, files: Files, indices: list[int], threads: int) -> None:
        # A map-style data set, though not of torch's class.
        subset: Subset[Any] = Subset(files.source, indices)  # type: ignore[arg-type]
        self.loader = ImageLoader(subset, TRAINING, batch_size=BATCH_SIZE, num_threads=threads, on_error="skip")

    def run(self) -> int:
        return sum(len(labels) for _, labels in self.loader)

    def close(self) -> None:
        self.loader.close()


def thread_counts(most: int) -> list[int]:
    """Return 1, 2, 4, ... and `most`."""
    return sorted({1 << power for power in range(most.bit_length()) if 1 << power <= most} | {most})


def best_threads(rates: dict[int, float], consumer: float | None) -> int | None:
    """Return the smallest number of threads that gives what can be had, or what is asked for.

    Args:
        rates: images per second by number of threads.
        consumer: images per second that the consumer takes; None: the fewest threads with 95 % of the best rate.

    Returns:
        A number of threads; None where none of them feeds the consumer.
    """
    asked = _ENOUGH * max(rates.values()) if consumer is None else consumer
    return min((threads for threads, rate in rates.items() if rate >= asked), default=None)


def measure(files: Files, speed: Speed, threads: list[int], seconds: float, progress: Progress) -> None:
    """Measure in interleaved rounds, for about `seconds`, and note in `speed` what is found.

    Without a single image that all contestants can decode, nothing is measured.
    """
    speed.torchvision_missing = None if peer.version("torchvision") else "not installed, or it cannot be imported"
    with_peer = speed.torchvision_missing is None
    price = _price(files, with_peer) * sum(1 / count for count in threads)
    batches = int(seconds / (_LEAST_ROUNDS + 2) / price / BATCH_SIZE)  # the first of them chooses the images
    images = BATCH_SIZE * min(max(batches, _LEAST_BATCHES, 2 * max(threads)), _MOST_BATCHES)
    end = time.monotonic() + seconds
    usable = _usable(files, images, speed, with_peer, progress)
    if not usable:
        return
    speed.images = images
    indices: list[int] = np.resize(usable, images).tolist()

    # Processes are forked before the loader's threads exist.
    peers = {
        count: peer.TorchvisionLoader(files, indices, batch_size=BATCH_SIZE, workers=count)
        for count in (threads if with_peer else ())
    }
    ours = {count: _Ours(files, indices, count) for count in threads}
    contests: list[tuple[dict[int, list[float]], int, _Contestant]] = []
    contests += [(speed.torchvision, count, contestant) for count, contestant in peers.items()]
    contests += [(speed.ours, count, contestant) for count, contestant in ours.items()]
    try:
        rounds = 0
        while rounds <= _LEAST_ROUNDS or time.monotonic() < end:
            for place, (rates, count, contestant) in enumerate(contests):
                progress("speed", rounds * len(contests) + place, (_LEAST_ROUNDS + 1) * len(contests))
                if rates is speed.torchvision and speed.torchvision_missing:
                    continue
                start = time.perf_counter()
                try:
                    done = contestant.run()
                except Exception as error:
                    if rates is not speed.torchvision:
                        raise
                    reason = (str(error) or type(error).__name__).splitlines()[0]
                    speed.torchvision_missing = f"its DataLoader failed: {reason}"
                    speed.torchvision.clear()
                    continue
                if rounds:  # the first round starts threads and processes, and fills the page cache
                    rates.setdefault(count, []).append(done / (time.perf_counter() - start))
                    if rates is speed.ours:
                        speed.stats[count] = ours[count].loader.stats()
            rounds += 1
    finally:
        for _, _, contestant in contests:
            contestant.close()


def _usable(files: Files, most: int, speed: Speed, with_peer: bool, progress: Progress) -> list[int]:
    """Return those of at most `most` images that all contestants can decode to the last pixel, and count in `speed`."""
    chosen, usable = files.spread(most).tolist(), []
    for done, index in enumerate(chosen):
        progress("images to measure", done, len(chosen))
        try:
            if not with_peer or peer.open_image(files.read(index)) is not None:
                files.source[index]
                usable.append(index)
        except (VitRsError, OSError):
            continue
    speed.tried, speed.usable = len(chosen), len(usable)
    return usable


def _price(files: Files, with_peer: bool) -> float:
    """Return about how many seconds of a core an image costs all contestants together."""
    theirs = peer.training_transform() if with_peer else None

    def do(data: bytes) -> None:
        TRAINING(data)
        if theirs is not None and (image := peer.open_image(data)) is not None:
            theirs(image)

    prices = []
    for index in files.spread(8):
        try:
            data = files.read(int(index))
            do(data)  # the first call of all makes more than the transform
            prices.append(_timed(lambda data=data: do(data)))  # type: ignore[misc]
        except (VitRsError, OSError):  # noqa: PERF203
            continue
    return max(statistics.mean(prices), 1e-6) if prices else 0.01


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def medians(rates: dict[int, list[float]]) -> dict[int, float]:
    """Return the median rate by number of threads."""
    return {count: statistics.median(values) for count, values in rates.items() if values}
