"""ImageLoader: batches decoded, augmented and written by Rust threads, handed over without a copy."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from vit_rs import distributed
from vit_rs._core import MAX_PIXELS, FeedError, Loader
from vit_rs.data import explanation
from vit_rs.data.device_copies import CudaCopier, copied_ahead
from vit_rs.data.order import share, share_length
from vit_rs.data.sources import open_source
from vit_rs.data.statistics import LoaderStats
from vit_rs.data.threads import default_threads
from vit_rs.transforms.lowering import is_multi, lower_views

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from vit_rs.data.order import Index
    from vit_rs.data.sources import ImageSource
    from vit_rs.transforms import Transform

__all__ = ["ImageLoader", "Patches"]

# More is a slip: nobody has as many threads, or memory for as many batches.
_MOST_THREADS = _MOST_BATCHES = 2**16
_MOST = 2**63 - 1
_MOST_U64 = 2**64 - 1


@dataclass(frozen=True)
class Patches:
    """A batch layout: patch vectors (B, N, P*P*C), as `vit_rs.patchify` gives them and a ViT takes them.

    Args:
        patch_size: side, or (height, width), pixels.
        order: of the values in a patch: "cpq" (channel, row, column: that of a Conv2d kernel, and of our ViT) or "pqc".
    """

    patch_size: int | tuple[int, int]
    order: Literal["cpq", "pqc"] = "cpq"


class ImageLoader:
    """Iterate over a source in batches: (images, labels), or (images, labels, indices) with `return_index`.

    Images are (B, C, H, W) in the transform's type, or a tuple of such views under a MultiCrop; labels int64, (B,).
    Rust threads read, decode, augment and write each sample straight into its batch; the batch's memory returns for
    reuse when its last tensor is gone. Threads start with the first batch and live until `close`; no process is
    started.

    A sample's pixels depend on (seed, epoch, its index in `source`) and on nothing else: not on threads, prefetch,
    batch size or restarts.

    Each iteration is one epoch; the next one starts the next epoch, whether this one was finished or left after a
    batch. A loader runs one iteration at a time: a new one, `set_epoch` and `load_state_dict` end the one under way.

    Args:
        source: an ImageFolder, ArrayDataset, TarShards, ImageTable or EncodedDataset, a list of (path or bytes, label),
            or a torch Subset of one.
        transform: what happens to each image; None leaves it as it is. It must end in one size for all images.
        batch_size: samples in a batch; below 2**63.
        shuffle: draw a new order each epoch.
        seed: of the order and of every augmentation; 0 <= seed < 2**64.
        num_threads: decoding threads, at most 4096; None = the CPUs that this process may use, divided by torchrun's
            LOCAL_WORLD_SIZE.
        drop_last: leave out a last batch that is not full.
        dtype: type of the images; None = the transform's. float16 and bfloat16 are rounded once, from float32.
        layout: "NCHW", "NHWC" or Patches(patch_size, order=...).
        device: where the tensors are handed over. CUDA batches are pinned and copied on a stream of their own, one
            batch ahead; the stream that is current when a batch is taken waits for its copy, the CPU does not.
        rank: this process's share; None = torch.distributed's, if it is initialised, else 0.
        world_size: number of shares. Without `drop_last`, the first samples are repeated until shares are equal, as
            torch's DistributedSampler does.
        on_error: what becomes of unreadable samples. "raise" raises at their batch, "skip" leaves them out (the batch
            is shorter; one without a good sample is yielded too, with 0 images, so that all ranks make as many steps),
            "substitute" draws another one of `source` for their place (and leaves them out after 16 bad draws);
            `stats().failures` lists these two.
        decode: "exact" gives the pixels of a full decode. "fast" decodes a JPEG at a half, a quarter or an eighth of
            its size where all views shrink it at least that much: quicker for photographs of several megapixels, and
            other pixels (docs/data-loader.md states how far).
        exif: turn images upright as their EXIF orientation says, and draw crops in the upright image. Off, as in
            Pillow and torchvision's ImageFolder.
        max_pixels: images with more are errors (decompression bombs); below 2**63.
        return_index: yield each sample's index in `source` too, int64, (B,).
        prefetch: batches made ahead of the consumer, at most 2**16.

    Raises:
        TypeError: a source or transform of another kind, or a number that is not an integer.
        ValueError: an argument out of its range, or a transform without a fixed output size.
        DecodeError: (while iterating) an image cannot be decoded; the message names it.
        OSError: (while iterating) a file cannot be read.
        Exception: (while iterating) whatever the data set in an EncodedDataset raises.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        num_threads: int | None = None,
        drop_last: bool = False,
        dtype: torch.dtype | None = None,
        layout: Literal["NCHW", "NHWC"] | Patches = "NCHW",
        device: str | torch.device = "cpu",
        rank: int | None = None,
        world_size: int | None = None,
        on_error: Literal["raise", "skip", "substitute"] = "raise",
        decode: Literal["exact", "fast"] = "exact",
        exif: bool = False,
        max_pixels: int = MAX_PIXELS,
        return_index: bool = False,
        prefetch: int = 2,
    ) -> None:
        if decode not in ("exact", "fast"):
            raise ValueError(f"decode must be 'exact' or 'fast', got {decode!r}")
        self.source = source
        self.transform = transform
        self.batch_size = _integer("batch_size", batch_size, 1, _MOST)
        self.shuffle = shuffle
        self.seed = _integer("seed", seed, 0, _MOST_U64)
        self._cpus = default_threads()
        threads = self._cpus if num_threads is None else num_threads
        self.num_threads = _integer("num_threads", threads, 1, _MOST_THREADS)
        self.drop_last = drop_last
        self.layout = layout
        self.on_error = on_error
        self.decode = decode
        self.exif = exif
        self.max_pixels = _integer("max_pixels", max_pixels, 1, _MOST)
        self.prefetch = _integer("prefetch", prefetch, 1, _MOST_BATCHES)
        self.device = torch.device(device)
        self.rank = distributed.rank() if rank is None else rank
        self.world_size = distributed.world_size() if world_size is None else world_size
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in 0..world_size - 1, got {self.rank} of {self.world_size}")
        self.return_index = return_index
        opened = open_source(source, keep_errors=on_error == "raise")
        self._samples = opened.samples
        self._labels = opened.labels
        self._feeder = opened.feeder
        self._reader = opened.reader
        self._multi = is_multi(transform)
        chains = lower_views(transform)
        self._dtypes = [chain.dtype if dtype is None else dtype for chain in chains]
        patch_size = layout.patch_size if isinstance(layout, Patches) else None
        patch = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
        order = layout.order if isinstance(layout, Patches) else layout
        self._loader = Loader(
            opened.core,
            opened.subset,
            [chain.view(dtype=dtype, layout=order, patch=patch) for chain in chains],
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            prefetch=self.prefetch,
            max_pixels=self.max_pixels,
            exif=exif,
            fast=decode == "fast",
            on_error=on_error,
        )
        self._epoch = 0
        # Samples of the epoch's order that were done when it was started or resumed; batches yielded since.
        self._consumed = 0
        self._yielded = 0
        self._resuming = False
        self._iteration = 0
        self._closed = False

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images; of the first view, where there are several."""
        return self._dtypes[0]

    @property
    def dtypes(self) -> list[torch.dtype]:
        """Type of the images, view by view."""
        return list(self._dtypes)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Dimensions of one image in a batch; of the first view, where there are several."""
        return tuple(self._loader.shapes[0])

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, on this rank; one that was resumed has only what is left."""
        return self._batches_in(self._samples)

    def _batches_in(self, samples: int) -> int:
        length = share_length(samples, world_size=self.world_size, drop_last=self.drop_last)
        return length // self.batch_size if self.drop_last else -(-length // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Start the next epoch, or go on in the one that `load_state_dict` named."""
        if self._yielded:
            self._stand(self._epoch + 1)
        self._resuming = False
        self._iteration += 1
        if self._feeder is not None:
            self._feeder.forget()
        self._loader.start(seed=self.seed, epoch=self._epoch)
        self._loader.push(self._order(), batch_size=self.batch_size, drop_last=self.drop_last)
        self._loader.end()
        if self._feeder is not None:
            self._feeder.start()
        return self._batches(self._iteration)

    def _batches(self, iteration: int) -> Iterator[tuple[Any, ...]]:
        made: Iterator[Sequence[torch.Tensor]] = self._made(iteration)
        if self.device.type == "cuda":
            made = copied_ahead(made, CudaCopier(self.device))
        for tensors in made:
            self._check_running(iteration)  # what was copied ahead may be of an iteration that has ended
            self._yielded += 1
            views = len(self._dtypes)
            yield (tuple(tensors[:views]), *tensors[views:]) if self._multi else tuple(tensors)
        self._stand(self._epoch + 1)

    def _check_running(self, iteration: int) -> None:
        if iteration != self._iteration:
            what = "the ImageLoader was closed" if self._closed else "the same ImageLoader was started or set anew"
            raise RuntimeError(f"this iteration ended when {what}")

    def _made(self, iteration: int) -> Iterator[list[torch.Tensor]]:
        """Yield each batch as it is made: views, labels and, where they are asked for, indices."""
        while True:
            self._check_running(iteration)
            failure = None
            try:
                batch = self._loader.next_batch()
            except FeedError as error:
                failure = error.args
            if iteration != self._iteration:
                continue
            if failure is not None and self._feeder is not None:
                # Outside the handler: the exception keeps its own context.
                raise self._feeder.error(*failure)
            if batch is None:
                return
            views, positions, labels = batch
            yield self._tensors(views, positions, self._labels[positions] if labels is None else labels)

    def _stand(self, epoch: int, consumed: int = 0) -> None:
        self._epoch = epoch
        self._consumed = consumed
        self._yielded = 0

    def _tensors(
        self, views: list[np.ndarray[Any, Any]], positions: Index, labels: np.ndarray[Any, np.dtype[np.int64]]
    ) -> list[torch.Tensor]:
        tensors = [torch.from_numpy(view) for view in views]
        # The core writes half types as their bits.
        tensors = [
            tensor.view(dtype) if tensor.dtype == torch.uint16 else tensor
            for tensor, dtype in zip(tensors, self._dtypes, strict=True)
        ]
        tensors.append(torch.from_numpy(labels))
        if self.return_index:
            tensors.append(torch.from_numpy(positions.astype(np.int64)))
        return tensors if self.device.type in ("cpu", "cuda") else [tensor.to(self.device) for tensor in tensors]

    def _order(self) -> Index:
        if self.shuffle:
            order = self._loader.permutation(self.seed, self._epoch)
        else:
            order = np.arange(self._samples, dtype=np.uint64)
        return share(order, self._consumed, rank=self.rank, world_size=self.world_size, drop_last=self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of `epoch`; from its first batch, unless a loaded state stands in that epoch.

        An iteration under way ends.

        Raises:
            ValueError: not 0 <= epoch < 2**64.
        """
        epoch = _integer("epoch", epoch, 0, _MOST_U64)
        self._iteration += 1
        if self._resuming and epoch == self._epoch:
            return
        self._stand(epoch)
        self._resuming = False

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, how many samples of its order all ranks together have consumed, and what they are of.

        Ranks in step stand at the same place: the state of one is the state of all.
        """
        ended = self._yielded and self._yielded == self._batches_in(self._samples - self._consumed)
        done = self._yielded * self.batch_size * self.world_size
        epoch, consumed = (self._epoch + 1, 0) if ended else (self._epoch, self._consumed + done)
        return {"epoch": epoch, "consumed": consumed, **self._identity()}

    def _identity(self) -> dict[str, int]:
        """Return what must be the same for a state to mean the same samples."""
        return {"seed": self.seed, "samples": self._samples, "shuffle": int(self.shuffle)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration go on where `state` was taken. An iteration under way ends.

        With the same batch size, world size and `drop_last`, the batches are those that would have come. With others,
        the samples of the epoch that are left are distributed anew: over ceil(left / (world_size * batch_size)) batches
        on each rank, or its floor with `drop_last`.

        Raises:
            ValueError: a state of a loader with another seed, number of samples or order, or one that lies outside an
                epoch.
            TypeError: a value in it is not an integer.
        """
        identity = self._identity()
        missing = sorted({"epoch", "consumed", *identity} - state.keys())
        if missing:
            raise ValueError(f"the state lacks {', '.join(missing)}")
        differing = [name for name, value in identity.items() if state[name] != value]
        if differing:
            listed = "; ".join(f"{name} is {state[name]} there, {identity[name]} here" for name in differing)
            raise ValueError(f"the state is of another loader: {listed}")
        epoch = _integer("the state's epoch", state["epoch"], 0, _MOST_U64)
        consumed = _integer("the state's consumed", state["consumed"], 0, self._samples)
        self._iteration += 1
        self._stand(epoch, consumed)
        self._resuming = True

    def stats(self) -> LoaderStats:
        """Return what was done in the current or last epoch, and what held it up.

        It may be called at any time and from any thread; it costs microseconds.
        """
        counted = self._loader.stats()
        return LoaderStats.from_core(counted, threads=self.num_threads, cpus=self._cpus, reader=self._reader)

    def explain(self) -> str:
        """Return in words what this loader does, with the numbers drawn for the current epoch's first sample.

        That sample is read for it, and not decoded; nothing else is done.
        """
        order = self._order()
        # A Python data set is asked for its samples in an epoch only, in their order.
        first = int(order[0]) if len(order) and self._feeder is None else None
        return explanation.explain(self, self._loader, epoch=self._epoch, first=first)

    def close(self) -> None:
        """End the threads. The loader cannot be iterated afterwards; batches stay valid."""
        self._iteration += 1
        self._closed = True
        self._loader.close()
        if self._feeder is not None:
            self._feeder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _integer(name: str, value: Any, least: int, most: int) -> int:
    """Return an argument as an int.

    Raises:
        TypeError: it is something else.
        ValueError: it is not in least..most.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not least <= number <= most:
        power = most.bit_length()
        bound = f"2**{power} - 1" if power > 32 and most + 1 == 2**power else str(most)
        raise ValueError(f"{name} must be in {least}..{bound}, got {number}")
    return number
