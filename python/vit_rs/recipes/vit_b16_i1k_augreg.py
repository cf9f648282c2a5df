"""ViT-B/16 on ImageNet-1k in 300 epochs: "How to train your ViT?" with augmentation medium2.

    torchrun --nproc-per-node 8 -m vit_rs train vit_b16_i1k_augreg --data DIR --set accumulation=2

DIR holds train/ and val/, each with a sub-folder for every class. `accumulation` cuts each process's share of the batch
of 4096 into as many parts, for GPUs with too little memory for it; it does not change the result.

Hardware: several GPUs. Time: about 80 hours on a TPUv3-8, an estimate: the 6.5 hours of vit_s16_i1k there, times 300/90
epochs, times 17.5/4.6 for the operations of an image (GFLOPs of DeiT III's table). Not measured with vit-rs.
Result: its authors publish this run in a figure only (figure 4 of the paper). For comparison, ViT-B/16 as in the first
paper, 300 epochs without this augmentation, has 74.79 % at 224 px (vision_transformer, thread 62).
Source: arXiv 2106.10270; settings of big_vision's configs/vit_i1k.py for B/16, whose augmentation is the paper's
medium2: RandAugment of 2 operations at magnitude 15, mixup 0.5. As there, no dropout and no stochastic depth.

Other sizes and their augmentation there: `--set model.name=vit_tiny_patch16_224 --set data.randaugment_magnitude=0
--set method.mixup=0` (Ti/16, light1); S/32 takes mixup 0.2 (medium1); S/16, B/32 and L/16 that of B/16. Set
`model.representation_size` to the model's width with them.

The loss is each class's own yes or no (sigmoid), for which the head's biases start at -6.9, about -log(1000). What
differs from that file is what differs in vit_s16_i1k.
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
        recipe="vit_b16_i1k_augreg",
        device="cuda",
        precision="bfloat16",
        compile=True,
        epochs=300,
        batch_size=4096,
        log_every=50,
        save_seconds=600,
        model=ModelConfig(name="vit_base_patch16_224", representation_size=768, act="gelu_tanh", init_head_bias=-6.9),
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
        method=MethodConfig(loss="sigmoid", mixup=0.5),
        finetune=FinetuneConfig(epochs=0),
        evaluation=EvaluationConfig(batch_size=512, every_epochs=10, fewshot_pool=65),
    )
