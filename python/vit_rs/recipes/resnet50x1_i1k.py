"""BiT's ResNet-50x1 on ImageNet-1k in 90 epochs, the convolutional baseline of the ViT paper.

    torchrun --nproc-per-node 8 -m vit_rs train resnet50x1_i1k --data DIR
    torchrun --nproc-per-node 8 -m vit_rs train resnet50x1_i1k --data DIR --set model.name=resnetv2_101x1_bit

DIR holds train/ and val/, each with a sub-folder for every class. Pre-activation ResNet with group normalisation and
standardised weights: no statistics are shared between the images of a batch, so that any batch size does.

Hardware: one or more GPUs. Time: its authors' is about 32 minutes on a TPUv3-128; none has been measured with vit-rs.
Result: its authors publish none of this run at 224 px without fine-tuning.
Source: arXiv 1912.11370; settings of big_vision's configs/bit_i1k.py: SGD with momentum 0.9, rate 0.1 for every 256
images of a batch of 4096, cosine, 1000 steps of warm-up, gradients clipped at norm 1. (The paper's own: rate 0.03 for
every 256 images, 5000 steps of warm-up, tenfold falls after 30, 60 and 80 of 90 epochs.)

Weight decay is 1e-4, added to the gradient. That file's 1e-4 * 4096 / 256 is taken off the weights beside the step,
times the schedule alone; with momentum 0.9 a decay in the gradient acts ten times, 1.6 * 1e-4 * 10 in sum, the same.
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
        recipe="resnet50x1_i1k",
        device="cuda",
        precision="bfloat16",
        channels_last=True,
        epochs=90,
        batch_size=4096,
        log_every=50,
        save_seconds=600,
        model=ModelConfig(name="resnetv2_50x1_bit"),
        data=DataConfig(
            img_size=224,
            augment="resized_crop",
            min_scale=0.05,
            max_aspect=4 / 3,
            flip=0.5,
            eval_crop=224 / 256,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            normalize_on="device",
        ),
        optim=OptimConfig(
            name="sgd",
            lr=0.1,
            lr_batch=256,
            momentum=0.9,
            weight_decay=1e-4,
            clip_norm=1.0,
            warmup_steps=1000,
            schedule="cosine",
        ),
        method=MethodConfig(),
        finetune=FinetuneConfig(epochs=0),
        evaluation=EvaluationConfig(batch_size=512, every_epochs=5, fewshot_pool=65),
    )
