"""Features of augmented training images: what the published linear protocols see, drawn anew in each epoch.

Letters: F features of an image.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import Subset

from vit_rs.data import ImageLoader
from vit_rs.evaluation.features import extract_features
from vit_rs.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToDtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from vit_rs.evaluation.classify import Precision
    from vit_rs.evaluation.features import What
    from vit_rs.evaluation.subject import Subject

__all__ = ["AugmentedImages"]

# Batches of the model whose features are collected before they are handed on.
_BATCHES = 16


@dataclass(frozen=True)
class AugmentedImages:
    """Random crops (8 % to 100 % of the area) and flips, through the frozen model in each epoch.

    Args:
        subject: The model, and the size and normalisation of its images. Its model is moved to `device`.
        source: An ImageFolder or ArrayDataset, or a torch Subset of one (`Splits.train`).
        what: Which features.
        interpolation: Filter of the crops.
        batch_size: Images that the model gets at once.
        device: Where the model runs.
        precision: "bfloat16" runs it under autocast.
        num_threads: Of the image loader; None is one for each core.
    """

    subject: Subject
    source: Any
    what: What = "pre_logits"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    batch_size: int = 256
    device: str | torch.device = "cpu"
    precision: Precision = "float32"
    num_threads: int | None = None

    @property
    def description(self) -> str:
        """What is done to the images, for people."""
        return f"random resized crops (8 % to 100 % of the area, {self.interpolation}) and flips, new in each epoch"

    def epoch(self, indices: Tensor, *, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features (n, F) float32 and labels (n,) of each of these images once, on the CPU.

        Seed and epoch decide order, crops and flips.
        """
        preprocessing = self.subject.preprocessing
        transform = Compose(
            [
                RandomResizedCrop(preprocessing.img_size, interpolation=self.interpolation),
                RandomHorizontalFlip(),
                ToDtype(torch.float32, scale=True),
                Normalize(preprocessing.mean, preprocessing.std),
            ]
        )
        model = self.subject.model.to(self.device)
        with ImageLoader(
            Subset(self.source, indices.tolist()),
            transform,
            batch_size=self.batch_size,
            shuffle=True,
            seed=seed,
            num_threads=self.num_threads,
            device=self.device,
            rank=0,
            world_size=1,
        ) as loader:
            loader.set_epoch(epoch)
            batches = iter(loader)
            for _ in range(0, len(loader), _BATCHES):
                yield extract_features(
                    model,
                    itertools.islice(batches, _BATCHES),
                    device=self.device,
                    what=self.what,
                    precision=self.precision,
                )
