"""A torchvision script's batches of 64, with torch's DataLoader and with vit_rs's: one changed import, two threads.

    pytest benches/bench_dropin.py --data FOLDER

Both loaders are given the same ImageFolder with the same transforms. Files lie in the page cache. An epoch before the
clock starts is not timed: it starts processes and threads. The proof is the evaluation chain of the same library and
form; it must be torch's, value for value.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import PIL
import torch
from comparison import Comparison, measure
from corpus import Corpus, gathered
from goals import DROPIN_TABLE, TORCH_LOADER
from loading import MEAN, SIZE, STD, Epochs, Loading, Pipeline, Proof
from PIL import ImageFilter
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from vit_rs.data import DataLoader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

QUICK = {"count": 8, "proofs": 4, "rounds": 2, "batch": 4}


@dataclass(frozen=True)
class Form:
    """A way of writing the chain; `chain` makes that of the training or of the evaluation."""

    name: str
    chain: Callable[[bool], Any]
    needs: tuple[str, ...] = ()


def torchvision_chain(training: bool, *, library: Any = v2, first: tuple[Any, ...] = (), last: tuple[Any, ...]) -> Any:
    """Return the usual chain, with `first` before the crop and `last` between it and Normalize."""
    steps = [library.Resize(256), library.CenterCrop(SIZE)]
    if training:
        steps = [library.RandomResizedCrop(SIZE), library.RandomHorizontalFlip()]
    return library.Compose([*first, *steps, *last, library.Normalize(MEAN, STD)])


def timm_chain(training: bool, **options: Any) -> Any:
    """Return timm's own, with bicubic interpolation."""
    from timm.data import create_transform  # noqa: PLC0415  left out where it is not installed

    return create_transform(
        SIZE, is_training=training, interpolation="bicubic", **options if training else {"crop_pct": SIZE / 256}
    )


def sharpened(image: Any) -> Any:
    """Stand for a user's own function of a PIL image: Pillow does the work, Python calls it."""
    return image.filter(ImageFilter.SHARPEN)


def forms() -> list[Form]:
    """Return the forms that the installed libraries can run."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    usual = functools.partial
    found = [
        Form("PIL", usual(torchvision_chain, last=(v2.ToImage(), to_float))),
        Form("tensors", usual(torchvision_chain, first=(v2.ToImage(),), last=(to_float,))),
        Form("PIL, v1", usual(torchvision_chain, library=v1, last=(v1.ToTensor(),))),
        Form("PIL, a function in Python", usual(torchvision_chain, last=(sharpened, v2.ToImage(), to_float))),
        Form("timm, bicubic", usual(timm_chain, color_jitter=None), ("timm",)),
    ]
    if int(PIL.__version__.partition(".")[0]) < 13:  # with Pillow 13 timm's policies fail in timm
        found.append(Form("timm, bicubic, rand-m9", usual(timm_chain, auto_augment="rand-m9-mstd0.5-inc1"), ("timm",)))
    return found


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
    found = []
    for form in forms():
        theirs = functools.partial(torch.utils.data.DataLoader, num_workers=workers, persistent_workers=True)
        ours = functools.partial(DataLoader, num_workers=workers, persistent_workers=True)
        expected = functools.partial(plain, theirs, form, proof)
        variants = [
            Pipeline(
                name,
                functools.partial(epochs, loader, form, corpus, batch),
                role,
                needs=form.needs,
                proof=Proof(functools.partial(plain, loader, form, proof), 0.0, 0.0),
                expected=expected,
            )
            for name, loader, role in (("vit_rs", ours, "ours"), (TORCH_LOADER, theirs, "peer"))
        ]
        found.append(
            Loading(
                table=DROPIN_TABLE,
                name=form.name,
                variants=tuple(variants),
                images=count,
                unit="images/s",
                threads=(workers,),
                torch_threads=1,
                rounds=rounds,
                expected=expected,
                dtype=torch.float32,
            )
        )
    return found


def bench_dropin(benchmark, case):
    measure(benchmark, case)


def epochs(loader: Callable[..., Any], form: Form, corpus: Corpus, batch: int) -> Epochs:
    """Return epochs of random crops, shuffled."""
    made = loader(ImageFolder(str(corpus.root), form.chain(True)), batch_size=batch, shuffle=True)
    return Epochs(made, getattr(made, "close", lambda: None))


def plain(loader: Callable[..., Any], form: Form, proof: Corpus) -> Tensor:
    """Return the pictures of the proof, in the order of the files, as one batch."""
    return torch.cat([images for images, _ in loader(ImageFolder(str(proof.root), form.chain(False)), len(proof))])
