"""The peers of bench_loader.py: from a folder of JPEGs to batches in the training process, each in its fastest form.

Each maker takes whether the images are random crops or the plain ones that prove its pixels, as in peers_transform.py.
"""

from __future__ import annotations

import functools
import io
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from loading import MEAN, SIZE, STD, Epochs, Pipeline, Proof
from peers_transform import dali_pipeline, torchvision_chain
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corpus import Corpus
    from torch import Tensor

CENTRE = SIZE / 256
SHARDS = 8
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def peers(corpus: Corpus, proof: Corpus, batch: int, workers: int, dtype: torch.dtype) -> tuple[Pipeline, ...]:
    """Return the peers' variants that give this dtype."""
    options = {"batch": batch, "workers": workers, "dtype": dtype}
    # Name, loader, largest and mean distance of its pictures from torchvision's in units of 1/255, modules.
    tensors = ("DataLoader, torchvision v2, tensors", functools.partial(dataloader, tensors=True), 0, 0.0, ())
    dali = ("DALI, image_random_crop", DaliEpochs, 2, 0.5, ("nvidia.dali",))
    others = [
        ("DataLoader, torchvision v2, PIL", functools.partial(dataloader, tensors=False), 1, 0.2, ()),
        ("webdataset, torchvision v2, PIL", webdataset, 1, 0.2, ("webdataset",)),
    ]
    makers = [others[0], tensors, dali, others[1]] if dtype == torch.float32 else [tensors, dali]
    found = [
        Pipeline(
            name,
            functools.partial(_epochs, make, corpus, options),
            needs=needs,
            proof=Proof(functools.partial(_plain, make, proof, dtype), largest, mean),
        )
        for name, make, largest, mean, needs in makers
    ]
    if dtype == torch.float32:
        # Its files are encoded again and its resize is INTER_AREA, from a square of the middle.
        ffcv_proof = Proof(functools.partial(_plain, ffcv, proof, dtype), 255, 6.0)
        found.append(
            Pipeline(
                "FFCV, jpg",
                functools.partial(_epochs, ffcv, corpus, options),
                expected=functools.partial(centre_squares, proof),
                needs=("ffcv",),
                proof=ffcv_proof,
                channels_last=True,
            )
        )
    return tuple(found)


def _epochs(make: Any, corpus: Corpus, options: dict[str, Any]) -> Epochs:
    return Epochs(make(corpus, training=True, **options))


def _plain(make: Any, proof: Corpus, dtype: torch.dtype) -> Tensor:
    """Return the pictures of the proof, in the order of the files, as one batch."""
    loader = make(proof, training=False, batch=len(proof), workers=1, dtype=dtype)
    return torch.cat([batch[0] for batch in loader]).contiguous()


def pil_image(path: str) -> Image.Image:
    """Open a file as torchvision's own loader does."""
    with Image.open(path) as image:
        return image.convert("RGB")


def decoded(path: str) -> Tensor:
    """Decode a JPEG file to a tensor with torchvision."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file  # noqa: PLC0415

    return decode_jpeg(read_file(path), ImageReadMode.RGB)


def dataloader(
    corpus: Corpus, *, batch: int, workers: int, dtype: torch.dtype, training: bool, tensors: bool
) -> torch.utils.data.DataLoader[Any]:
    """Return torch's DataLoader on torchvision's ImageFolder."""
    from torchvision.datasets import ImageFolder  # noqa: PLC0415

    chain = torchvision_chain("bilinear", training=training, tensors=tensors, dtype=dtype)
    dataset = ImageFolder(str(corpus.root), chain, loader=decoded if tensors else pil_image)
    return torch.utils.data.DataLoader(
        dataset, batch, shuffle=training, num_workers=workers, persistent_workers=True, drop_last=False
    )


class DaliEpochs:
    """DALI's pipeline on its own file reader; prefetches two batches."""

    def __init__(self, corpus: Corpus, *, batch: int, workers: int, dtype: torch.dtype, training: bool) -> None:
        from nvidia.dali import fn  # noqa: PLC0415

        if len(corpus) % batch:
            raise ValueError(f"{len(corpus)} files: expected a multiple of {batch}, the size of every batch")
        self.batches = len(corpus) // batch

        def source() -> Any:
            return fn.readers.file(file_root=str(corpus.root), random_shuffle=training, initial_fill=corpus_fill)

        corpus_fill = min(len(corpus), 1024)
        self.pipeline = dali_pipeline(source, batch=batch, threads=workers, dtype=dtype, training=training, prefetch=2)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the (images, labels) of an epoch."""
        for _ in range(self.batches):
            images, labels = self.pipeline.run()
            yield torch.from_dlpack(images.as_tensor()), torch.from_dlpack(labels.as_tensor())


def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="vit-rs-bench-")
    _FOLDERS.append(folder)  # removed when the process ends
    return Path(folder.name)


@functools.cache
def shards(corpus: Corpus) -> list[str]:
    """Write the files into tar shards, and return their paths."""
    from webdataset import TarWriter  # noqa: PLC0415

    folder, count = _folder(), min(SHARDS, len(corpus))
    paths = [str(folder / f"{shard:03}.tar") for shard in range(count)]
    for shard, path in enumerate(paths):
        with TarWriter(path) as writer:
            # Neighbours stay together, so that the shards in their order are the files in theirs.
            for index in range(shard * len(corpus) // count, (shard + 1) * len(corpus) // count):
                label = str(corpus.labels[index]).encode()
                writer.write({"__key__": f"{index:06}", "jpg": corpus.contents[index], "cls": label})
    return paths


def webdataset(corpus: Corpus, *, batch: int, workers: int, dtype: torch.dtype, training: bool) -> Any:
    """Return webdataset's loader on shards; the last batch of each worker may be smaller."""
    import webdataset as wds  # noqa: PLC0415

    chain = torchvision_chain("bilinear", training=training, tensors=False, dtype=dtype)

    def image(data: bytes) -> Tensor:
        return chain(Image.open(io.BytesIO(data)).convert("RGB"))

    dataset = wds.WebDataset(shards(corpus), shardshuffle=SHARDS if training else False)
    dataset = dataset.shuffle(256) if training else dataset
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(image, int).batched(batch)
    return wds.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=True)


@functools.cache
def beton(corpus: Corpus) -> str:
    """Write the files as FFCV's data set, and return its path."""
    from ffcv.fields import IntField, RGBImageField  # noqa: PLC0415
    from ffcv.writer import DatasetWriter  # noqa: PLC0415
    from torchvision.datasets import ImageFolder  # noqa: PLC0415

    path = str(_folder() / "images.beton")
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=95), "label": IntField()}
    DatasetWriter(path, fields, num_workers=1).from_indexed_dataset(ImageFolder(str(corpus.root)))
    return path


def ffcv(corpus: Corpus, *, batch: int, workers: int, dtype: torch.dtype, training: bool) -> Any:
    """Return FFCV's loader on its own copy of the files, f32 alone."""
    from ffcv import transforms as F  # noqa: PLC0415
    from ffcv.fields import decoders  # noqa: PLC0415
    from ffcv.loader import Loader, OrderOption  # noqa: PLC0415

    if dtype != torch.float32:
        raise ValueError(f"expected torch.float32, got {dtype}")
    mean, std = 255 * np.array(MEAN), 255 * np.array(STD)
    images = [decoders.CenterCropRGBImageDecoder((SIZE, SIZE), ratio=CENTRE)]
    if training:
        images = [decoders.RandomResizedCropRGBImageDecoder((SIZE, SIZE)), F.RandomHorizontalFlip()]
    images += [F.NormalizeImage(mean, std, np.float32), F.ToTensor(), F.ToTorchImage()]
    labels = [decoders.IntDecoder(), F.ToTensor(), F.Squeeze()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Loader(
            beton(corpus),
            batch_size=batch,
            num_workers=workers,
            order=OrderOption.RANDOM if training else OrderOption.SEQUENTIAL,
            os_cache=True,
            drop_last=False,
            pipelines={"image": images, "label": labels},
        )


def centre_squares(proof: Corpus) -> Tensor:
    """Return what FFCV's CenterCropRGBImageDecoder makes of the files, by torchvision."""
    from torchvision.transforms import v2  # noqa: PLC0415

    pictures = []
    values = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    for path in proof.paths:
        image = decoded(str(path))
        side = int(CENTRE * min(image.shape[1:]))
        square = v2.functional.center_crop(image, [side, side])
        pictures.append(values(v2.functional.resize(square, [SIZE, SIZE], antialias=True)))
    return torch.stack(pictures)
