"""ViT-Ti/16 from random weights on a folder of class sub-folders with JPEGs or PNGs.

    vit-rs train --data DIR
    vit-rs train --data DIR --set data.img_size=224 --set model.name=vit_small_patch16_224 --set epochs=100

DIR holds one sub-folder for each class, or train/ and val/ (or test/) with one for each class. Without val/,
a fifth of each class is held out for testing, the same fifth for every seed.

Hardware: any; two CPU cores train about 100 images a second at 96 px, a GPU is asked for by --device cuda.
Time: stated before it starts, from a few measured steps.
Result: a ViT has no built-in idea of locality, and a few thousand images teach it little: expect clearly
less than from pre-trained weights, which `--set model.init=CHECKPOINT --set model.init_head=reset` starts
from.

The settings are DeiT's for small data (arXiv 2012.12877, table 9), without those that pay off on a million images:
96 px for speed, a milder crop than 0.08 because small sets have few images to spare, mixup and stochastic depth kept.
"""

from __future__ import annotations

from vit_rs.training.config import (
    DataConfig,
    EvaluationConfig,
    FinetuneConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

__all__ = ["config"]


def config() -> TrainConfig:
    """Return the recipe."""
    return TrainConfig(
        recipe="image_folder",
        epochs=30,
        batch_size=64,
        model=ModelConfig(name="vit_tiny_patch16_224", drop_path_rate=0.1),
        data=DataConfig(
            img_size=96,
            augment="resized_crop",
            min_scale=0.25,
            flip=0.5,
            eval_crop=0.875,
            mean=(0.485, 0.456, 0.406),  # ImageNet's, as published checkpoints expect
            std=(0.229, 0.224, 0.225),
        ),
        optim=OptimConfig(lr=5e-4, weight_decay=0.05, warmup_epochs=3, schedule="cosine", clip_norm=1.0),
        method=MethodConfig(label_smoothing=0.1, mixup=0.2),
        finetune=FinetuneConfig(
            epochs=3,
            batch_size=64,
            drop_path_rate=0.1,
            optim=OptimConfig(lr=5e-5, weight_decay=0.05, warmup_epochs=0.5, schedule="cosine"),
            method=MethodConfig(label_smoothing=0.1),
        ),
        evaluation=EvaluationConfig(batch_size=128, every_epochs=3),
    )
