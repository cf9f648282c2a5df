"""Whole epochs from a folder of JPEGs to batches of 64 in the training process, beside the peers: two threads.

    pytest benches/bench_loader.py --data FOLDER

Files lie in the page cache. An epoch before the clock starts is not timed: it starts processes and compiles. Images are
random crops of 224 x 224, f32 normalised, or u8 for a normalisation on the device.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from bench_transform import BOUNDS, chain, plain_pictures
from comparison import Comparison, Role, measure
from corpus import Corpus, gathered
from goals import F32_BATCHES, U8_BATCHES
from loading import Epochs, Loading, Pipeline, Proof
from peers_loading import peers

from vit_rs.data import ImageFolder, ImageLoader

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

QUICK = {"count": 8, "proofs": 4, "rounds": 2, "batch": 4}


def comparisons(
    data: Path | None = None,
    count: int = 1280,
    proofs: int = 16,
    rounds: int = 3,
    *,
    batch: int = 64,
    workers: int = 2,
) -> list[Comparison]:
    """Return what is compared: `count` files of `data`, the pixels of `proofs` of them checked."""
    corpus, proof = gathered(data, count), gathered(data, proofs)
    make = functools.partial(vit_rs_batches, corpus=corpus, proof=proof, batch=batch, workers=workers)
    f32, u8 = torch.float32, torch.uint8
    variants = {
        F32_BATCHES: (make("vit_rs", f32), *peers(corpus, proof, batch, workers, f32)),
        U8_BATCHES: (make("vit_rs", u8), make("vit_rs, f32", f32, "form"), *peers(corpus, proof, batch, workers, u8)),
    }
    return [
        Loading(
            table=table,
            name=name,
            variants=variants[table, name],
            images=count,
            unit="images/s",
            threads=(workers,),
            torch_threads=1,
            rounds=rounds,
            expected=functools.partial(plain_pictures, proof, "bilinear"),
            dtype=torch.float32 if (table, name) == F32_BATCHES else torch.uint8,
        )
        for table, name in variants
    ]


def bench_loader(benchmark, case):
    measure(benchmark, case)


def vit_rs_batches(
    name: str, dtype: torch.dtype, role: Role = "ours", *, corpus: Corpus, proof: Corpus, batch: int, workers: int
) -> Pipeline:
    """Return ImageLoader on the folder."""

    def prepare() -> Epochs:
        transform = chain("bilinear", training=True, dtype=dtype)
        made = ImageLoader(ImageFolder(corpus.root), transform, batch_size=batch, shuffle=True, num_threads=workers)
        return Epochs(made, made.close)

    def plain() -> Tensor:
        transform = chain("bilinear", training=False, dtype=dtype)
        with ImageLoader(ImageFolder(proof.root), transform, batch_size=len(proof), num_threads=1) as made:
            return torch.cat([images for images, _ in made])

    return Pipeline(name, prepare, role, proof=Proof(plain, *BOUNDS), dtype=dtype)
