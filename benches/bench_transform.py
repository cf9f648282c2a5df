"""From the bytes of JPEGs to normalised random crops beside the peers: 224 x 224, one and two threads.

    pytest benches/bench_transform.py --data FOLDER

Every variant reads the same files from memory. The chain is RandomResizedCrop, antialiased, RandomHorizontalFlip,
ToDtype and Normalize. The native loop is Rust's own bench, `loader_limit`, which needs cargo and the sources.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import torch
from comparison import Comparison, Role, Variant, measure
from corpus import Corpus, gathered
from goals import BICUBIC, BILINEAR, NATIVE, ONE_THREAD
from loading import MEAN, SIZE, STD, EachFile, Epochs, Loading, Pipeline, Proof
from machine import ROOT
from peers_transform import peers, torchvision_tensor
from torch import Tensor

from vit_rs import transforms
from vit_rs.data import ImageLoader

if TYPE_CHECKING:
    from pathlib import Path

QUICK = {"count": 8, "proofs": 4, "rounds": 2, "native": False}
BOUNDS = (1.0, 0.1)  # of the proof: equal where torchvision's resize takes its AVX2 path
NATIVE_BENCH = ROOT / "rust" / "vit-rs-core" / "benches" / "loader_limit.rs"


def comparisons(
    data: Path | None = None, count: int = 256, proofs: int = 16, rounds: int = 3, *, native: bool = True
) -> list[Comparison]:
    """Return what is compared: `count` files of `data`, the pixels of `proofs` of them checked."""
    corpus, proof = gathered(data, count), gathered(data, proofs)
    return [
        compared(corpus, proof, threads, interpolation, rounds, native=native)
        for interpolation in ("bilinear", "bicubic")
        for threads in (1, 2)
    ]


def bench_transform(benchmark, case):
    measure(benchmark, case)


def compared(
    corpus: Corpus, proof: Corpus, threads: int, interpolation: str, rounds: int, *, native: bool
) -> Comparison:
    """Compare on a number of threads."""
    table, name = BILINEAR if interpolation == "bilinear" else BICUBIC

    variants: list[Variant] = [
        vit_rs_loader("vit_rs", corpus, proof, threads=threads, interpolation=interpolation),
        vit_rs_loader(ONE_THREAD, corpus, proof, threads=1, interpolation=interpolation, role="form"),
        vit_rs_loader("vit_rs, bilinear", corpus, proof, threads=threads, interpolation="bilinear", role="form"),
        vit_rs_callable(corpus, proof, threads, interpolation),
        *peers(corpus, proof, threads, interpolation),
    ]
    if interpolation == "bilinear" and threads == 1 and native and NATIVE_BENCH.exists() and shutil.which("cargo"):
        variants.append(Variant(NATIVE, lambda: functools.partial(native_seconds, corpus), "floor", own_clock=True))
    superfluous = {ONE_THREAD} if threads == 1 else set()
    superfluous |= {"vit_rs, bilinear"} if interpolation == "bilinear" else set()
    return Loading(
        table=table,
        name=name,
        variants=tuple(variant for variant in variants if variant.name not in superfluous),
        images=len(corpus),
        unit="images/s",
        threads=(threads,),
        torch_threads=1,
        rounds=rounds,
        expected=functools.partial(plain_pictures, proof, interpolation),
        dtype=torch.float32,
    )


def plain_pictures(proof: Corpus, interpolation: str) -> Tensor:
    """Return torchvision's pictures for the proof."""
    return torch.stack([*map(torchvision_tensor(interpolation, training=False), proof.contents)])


def chain(interpolation: Any, *, training: bool, dtype: torch.dtype = torch.float32) -> transforms.Compose:
    """Return vit_rs's transforms from an image to a crop, f32 normalised or u8."""
    steps: list[Any] = [transforms.Resize((256, 256), interpolation=interpolation), transforms.CenterCrop(SIZE)]
    if training:
        crop = transforms.RandomResizedCrop(SIZE, interpolation=interpolation)
        steps = [crop, transforms.RandomHorizontalFlip()]
    if dtype == torch.float32:
        steps += [transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(MEAN, STD)]
    return transforms.Compose(steps)


def loader(corpus: Corpus, transform: transforms.Compose, batch_size: int, threads: int, *, shuffle: bool) -> Any:
    """Return an ImageLoader of the files in memory."""
    source = [*zip(corpus.contents, corpus.labels, strict=True)]
    return ImageLoader(source, transform, batch_size=batch_size, shuffle=shuffle, num_threads=threads)


def vit_rs_loader(
    name: str, corpus: Corpus, proof: Corpus, *, threads: int, interpolation: str, role: Role = "ours"
) -> Pipeline:
    """Return ImageLoader on files in memory, in batches of 64."""

    def prepare() -> Epochs:
        made = loader(corpus, chain(interpolation, training=True), 64, threads, shuffle=True)
        return Epochs(made, made.close)

    def plain() -> Tensor:
        with loader(proof, chain(interpolation, training=False), len(proof), 1, shuffle=False) as made:
            return torch.cat([images for images, _ in made])

    expected = functools.partial(plain_pictures, proof, interpolation)
    return Pipeline(name, prepare, role, expected, proof=Proof(plain, *BOUNDS))


def vit_rs_callable(corpus: Corpus, proof: Corpus, threads: int, interpolation: str) -> Pipeline:
    """Return the same chain called for one file at a time."""

    def plain() -> Tensor:
        return torch.stack([*map(chain(interpolation, training=False), proof.contents)])

    def prepare() -> EachFile:
        return EachFile(chain(interpolation, training=True), corpus.contents, threads)

    return Pipeline("vit_rs, transform(bytes)", prepare, "form", proof=Proof(plain, *BOUNDS))


def native_seconds(corpus: Corpus) -> list[float]:
    """Return the seconds that Rust's bench of the bare loop would take for all files."""
    command = ["cargo", "bench", "--quiet", "--package", "vit-rs-core", "--bench", "loader_limit", "--"]
    command.append(str(corpus.root))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [len(corpus) / native_rate(done.stdout)]


def native_rate(printed: str) -> float:
    """Return the bilinear images a second of the bare loop, from what Rust's bench prints.

    Raises:
        ValueError: it prints something else.
    """
    found = re.search(r"^bilinear\s.*?\bbare\s+([\d.]+)", printed, re.MULTILINE)
    if found is None:
        raise ValueError(f"expected a line 'bilinear ... bare RATE ...' from the native loop, got {printed!r}")
    return float(found[1])
