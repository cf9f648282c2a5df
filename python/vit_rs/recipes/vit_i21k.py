"""ViT-B/16 pre-trained on ImageNet-21k as in the ViT paper, 90 epochs.

    torchrun --nproc-per-node 8 -m vit_rs train vit_i21k --data DIR --set accumulation=2

DIR holds train/ and val/, each with a sub-folder for every one of its classes (21,841 to 21,843, by the release).
Without val/, `--set data.holdout=0.005` holds half a percent of each class out. The head has as many outputs as there
are classes. What it learns is then fine-tuned: recipe finetune_imagenet with `--set
model.init=runs/.../model.safetensors`.

Hardware: several GPUs. Time: about 280 hours on a TPUv3-8, an estimate: that of vit_b16_i1k_augreg, times 90 * 14.2
million over 300 * 1.28 million images. Not measured with vit-rs.
Result: its authors' B/16 has 47.88 % top-1 on held-out images of ImageNet-21k at 224 px (vision_transformer, thread 62)
and, fine-tuned at 384 px, 83.97 % on ImageNet (paper, table 5). Not reproduced with vit-rs yet.
Source: arXiv 2010.11929, table 3: Adam, batch 4096, rate 1e-3 with linear decay, weight decay 0.03, dropout 0.1, 10k
steps of warm-up, a hidden layer with tanh before the head. From big_vision's configs/vit_i21k.py, since the paper does
not say: the sigmoid loss, the head's biases of -10 (about -log(21843)), the crop, and the clipping at norm 1, which the
paper states for ImageNet-1k only. AugReg's (arXiv 2106.10270) instead, which has no hidden layer: `--set
model.representation_size=none --set model.dropout=0 --set optim.weight_decay=0.1 --set optim.schedule=cosine --set
data.randaugment_layers=2 --set method.mixup=0.2 --set epochs=300` (light2; weight decay 0.1 is that file's 1e-4 in
AdamW's terms; that file pools by the mean, the published weights by the class token).
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
        recipe="vit_i21k",
        device="cuda",
        precision="bfloat16",
        compile=True,
        epochs=90,
        batch_size=4096,
        log_every=50,
        save_seconds=600,
        keep_states=2,
        model=ModelConfig(
            name="vit_base_patch16_224", representation_size=768, act="gelu_tanh", dropout=0.1, init_head_bias=-10.0
        ),
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
            name="adamw",
            lr=1e-3,
            weight_decay=0.03,
            betas=(0.9, 0.999),
            clip_norm=1.0,
            warmup_steps=10_000,
            schedule="linear",
        ),
        method=MethodConfig(loss="sigmoid"),
        finetune=FinetuneConfig(epochs=0),
        # Few-shot on 21,843 classes is no protocol of anybody's: `vit-rs fewshot` does it on ImageNet.
        evaluation=EvaluationConfig(batch_size=512, every_epochs=5, shots=0),
    )
