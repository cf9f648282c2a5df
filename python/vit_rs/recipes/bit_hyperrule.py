"""A pre-trained BiT ResNet-50x1 fine-tuned by BiT-HyperRule.

    vit-rs train bit_hyperrule --data DIR --set model.init=BiT-M-R50x1.npz        # 20,000 to 500,000 photographs

The rule asks for nothing but the number and the size of the images.

DIR holds train/ and val/ (or test/), each with a sub-folder for every class. `config()` is the rule for 20,000 to
500,000 photographs; for other data write two lines into a file of your own, and train that:

    from vit_rs.recipes.bit_hyperrule import bit_hyperrule
    def config(): return bit_hyperrule(num_images=50_000, image_area=32 * 32)     # CIFAR

The checkpoint is BiT-M-R50x1.npz of storage.googleapis.com/bit_models; for larger ones set `model.name` too, to
`resnetv2_101x3_bit`, for example.

Hardware: one GPU; `--set accumulation=4` where the batch of 512 does not fit. Time: none is published for one GPU, and
none has been measured with vit-rs.
Result: from that checkpoint 80.68 % on ImageNet, 97.4 % on CIFAR-10, 86.6 % on CIFAR-100 (big_transfer's README,
PyTorch). Not reproduced with vit-rs yet.
Source: arXiv 1912.11370, section 3.3, and big_transfer's bit_hyperrule.py. The tenfold falls come after 30, 60 and 90 %
of the steps, as the paper says; big_transfer's short schedule has them after 40, 60 and 80 % of its 500.
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

__all__ = ["bit_hyperrule", "config"]


def config() -> TrainConfig:
    """Return the recipe for 20,000 to 500,000 photographs."""
    return bit_hyperrule(num_images=100_000, image_area=500 * 375)


def bit_hyperrule(*, num_images: int, image_area: int) -> TrainConfig:
    """Return the settings that BiT-HyperRule gives to a set of images.

    Args:
        num_images: training images.
        image_area: pixels of a typical one, height times width.
    """
    if num_images < 20_000:
        steps, warmup_steps = 500, 100
    elif num_images < 500_000:
        steps, warmup_steps = 10_000, 500
    else:
        steps, warmup_steps = 20_000, 500
    train_resize, img_size = (160, 128) if image_area < 96 * 96 else (512, 480)
    return TrainConfig(
        recipe="bit_hyperrule",
        device="cuda",
        precision="bfloat16",
        channels_last=True,
        steps=steps,
        batch_size=512,
        save_seconds=300,
        model=ModelConfig(name="resnetv2_50x1_bit", init="BiT-M-R50x1.npz", init_head="reset"),
        data=DataConfig(
            img_size=img_size,
            augment="crop",
            train_resize=train_resize,
            flip=0.5,
            eval_resize="squash",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            normalize_on="device",
        ),
        optim=OptimConfig(
            name="sgd",
            lr=0.003,
            momentum=0.9,
            weight_decay=0.0,
            clip_norm=None,
            warmup_steps=warmup_steps,
            schedule="staircase",
        ),
        method=MethodConfig(mixup=0.0 if num_images < 20_000 else 0.1),
        finetune=FinetuneConfig(epochs=0),
        evaluation=EvaluationConfig(batch_size=256, every_epochs=5, shots=0),
    )
