"""A hybrid, ResNet-26 and ViT-S/32, on ImageNet-1k in 300 epochs with AugReg's settings.

    torchrun --nproc-per-node 8 -m vit_rs train hybrid_r26_s32_i1k --data DIR
    torchrun --nproc-per-node 8 -m vit_rs train hybrid_r26_s32_i1k --data DIR --set model.name=vit_base_r50_s16_224

DIR holds train/ and val/, each with a sub-folder for every class. A ResNet of 26 layers turns each 32 x 32 pixels into
a token: a ViT-S sees 49 of them.

Hardware: one or more GPUs. Time: about 12 hours on a TPUv3-8, an estimate: the 6.5 hours of vit_s16_i1k there, times
300/90 epochs, times 300/560 for the speeds that vision_transformer's README states for S/16 and R26+S/32 (at 384 px).
Result: none is published for this run. Pre-trained on ImageNet-21k by the same settings, then fine-tuned at 384 px, the
model has 83.85 % (vision_transformer's README).
Source: the optimizer of arXiv 2106.10270, which is one for all models, as in big_vision's configs/vit_i1k.py; that file
has no hybrid, and the augmentation is its choice for S/32 (medium1): RandAugment of 2 operations at magnitude 15, mixup
0.2. The paper's own hybrids (arXiv 2010.11929, table 3) were trained on JFT: batch 4096, rate 8e-4 for R50+B, linear
decay, weight decay 0.1, 7 epochs.
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
        recipe="hybrid_r26_s32_i1k",
        device="cuda",
        precision="bfloat16",
        channels_last=True,
        epochs=300,
        batch_size=4096,
        log_every=50,
        save_seconds=600,
        model=ModelConfig(name="vit_small_r26_s32_224", act="gelu_tanh", init_head_bias=-6.9),
        data=DataConfig(
            img_size=224,
            augment="resized_crop",
            min_scale=0.05,
            max_aspect=4 / 3,
            flip=0.5,
            randaugment_layers=2,
            randaugment_magnitude=15,
            eval_crop=224 / 256,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            normalize_on="device",
        ),
        optim=OptimConfig(
            name="adamw",
            lr=1e-3,
            weight_decay=0.1,
            betas=(0.9, 0.999),
            clip_norm=1.0,
            warmup_steps=10_000,
            schedule="cosine",
        ),
        method=MethodConfig(loss="sigmoid", mixup=0.2),
        finetune=FinetuneConfig(epochs=0),
        evaluation=EvaluationConfig(batch_size=512, every_epochs=10, fewshot_pool=65),
    )
