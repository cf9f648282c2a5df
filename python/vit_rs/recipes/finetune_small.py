"""A pre-trained ViT fine-tuned on a few thousand images (Pets, Flowers, your own) as in the paper.

    vit-rs train finetune_small --data DIR --set model.init=ViT-B_16.npz

DIR holds train/ and val/ (or test/), each with a sub-folder for every class; or only those sub-folders: then a fifth of
each class is held out for testing. All else is as in finetune_imagenet, which says where the checkpoint comes from, and
how to give another one.

Hardware: one GPU. Time: about 17 minutes for B/16 on A100s, an estimate: that of as many steps of finetune_cifar.
Result: ViT-B/32 of AugReg, fine-tuned with other crops, has 93.78 % on Pets and 99.43 % on Flowers (big_vision's
configs/transfer.py). Not reproduced with vit-rs yet.
Source: arXiv 2010.11929, table 4: 500 steps, the rate the best of 0.001, 0.003, 0.01 and 0.03 on 10 % of the training
images held out; 100 steps of warm-up are those of vision_transformer's configs/augreg.py. Of that grid, 0.003 is what
big_vision states as best on Pets and Flowers.
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
        recipe="finetune_small",
        steps=500,
        optim=dataclasses.replace(base.optim, lr=0.003, warmup_steps=100),
        evaluation=dataclasses.replace(base.evaluation, every_epochs=10),
    )
