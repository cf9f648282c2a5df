"""A pre-trained ViT fine-tuned on CIFAR-10 or CIFAR-100 at 384 px as in the ViT paper.

    vit-rs train finetune_cifar --data DIR --set model.init=ViT-B_16.npz
    vit-rs train finetune_cifar --data DIR --set model.init=ViT-B_16.npz --set steps=500 --set optim.warmup_steps=50

DIR holds train/ and test/, each with a sub-folder for every class: CIFAR's images as PNGs, or any set of some ten
thousand images. All else is as in finetune_imagenet, which says where the checkpoint comes from, and how to give
another one.

Hardware: one or more GPUs. Time: its authors' is 2.2 hours for B/16 on A100s, 17 minutes for 500 steps
(vision_transformer's README); none has been measured with vit-rs.
Result: from Google's ViT-B_16.npz 99.02 % on CIFAR-10 and 92.06 % on CIFAR-100; after 500 steps, of which 50 are
warm-up, 98.59 % and 89.17 %; after 1000, of which 100, 98.86 % and 91.15 % (vision_transformer's README). Not
reproduced with vit-rs yet.
Source: arXiv 2010.11929, table 4: 10k steps, the rate the best of 0.001, 0.003, 0.01 and 0.03 on 2 % of the training
images held out; 0.01 is vision_transformer's for B/16 on CIFAR-10 (its default for others is 0.03).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vit_rs.recipes import finetune_imagenet

if TYPE_CHECKING:
    from vit_rs.training.config import TrainConfig

__all__ = ["config"]


def config() -> TrainConfig:
    """Return the recipe."""
    base = finetune_imagenet.config()
    return dataclasses.replace(
        base,
        recipe="finetune_cifar",
        steps=10_000,
        optim=dataclasses.replace(base.optim, lr=0.01),
        evaluation=dataclasses.replace(base.evaluation, every_epochs=10),
    )
