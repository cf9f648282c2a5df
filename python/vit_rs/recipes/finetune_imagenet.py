"""A pre-trained ViT fine-tuned on ImageNet at 384 px as in the ViT paper.

    torchrun --nproc-per-node 8 -m vit_rs train finetune_imagenet --data DIR --set model.init=ViT-B_16.npz

DIR holds train/ and val/, each with a sub-folder for every class. `model.init` is the checkpoint to start from:
Google's ViT-B_16.npz (storage.googleapis.com/vit_models/imagenet21k), any other file that `load_pretrained` reads, or
one of a run of vit_i21k; `model.name` says its architecture (`vit_large_patch16_384`, `vit_base_r50_s16_384`, ...). Its
head is left out for a new one of zeros, its position embedding is interpolated to 24 x 24. Weights that were not
trained in JAX want `--set model.act=gelu`.

Hardware: one or more GPUs; `--set accumulation=8` where the batch of 512 does not fit. Time: its authors' is 6.5 hours
for B/16 on A100s (vision_transformer's README, which does not say how many); none has been measured with vit-rs.
Result: 84.53 % top-1 from that file, B/32 81.66 %, L/16 84.47 % (vision_transformer's README). R50+B/16 85.08 % with
`--set model.dropout=0.1`, 83.72 % without. Not reproduced with vit-rs yet.
Source: arXiv 2010.11929, table 4 and appendix B.1.1: SGD with momentum 0.9, no weight decay, batch 512, cosine to 0
after 500 steps of warm-up, gradients clipped at norm 1, 20k steps; the rate is the best of 0.003, 0.01, 0.03 and 0.06
on 1 % of the training images held out. Its 0.03 is vision_transformer's default, as are crop, test and pixel range:
Inception's crop of 5 to 100 % of the area, test images squashed to the square, pixels in -1..1.

The paper's best results (table 2: 512 px for L/16, 518 px for H/14) also average the weights: `--set
optim.ema_decay=0.9999`.

finetune_cifar and finetune_small are the same with other steps.
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
        recipe="finetune_imagenet",
        device="cuda",
        precision="bfloat16",
        compile=True,
        steps=20_000,
        batch_size=512,
        save_seconds=300,
        model=ModelConfig(
            name="vit_base_patch16_384",
            act="gelu_tanh",  # as the published weights were trained
            init="ViT-B_16.npz",
            init_head="reset",
        ),
        data=DataConfig(
            img_size=384,
            augment="resized_crop",
            min_scale=0.05,
            max_aspect=4 / 3,
            flip=0.5,
            eval_resize="squash",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            normalize_on="device",
        ),
        optim=OptimConfig(
            name="sgd",
            lr=0.03,
            momentum=0.9,
            weight_decay=0.0,
            clip_norm=1.0,
            warmup_steps=500,
            schedule="cosine",
        ),
        method=MethodConfig(),
        finetune=FinetuneConfig(epochs=0),
        evaluation=EvaluationConfig(batch_size=256, every_epochs=1, shots=0),
    )
