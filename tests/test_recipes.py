"""The recipes' settings are those that were published; each builds its network."""

from __future__ import annotations

import importlib

import pytest
import torch

from vit_rs.exceptions import ConfigError
from vit_rs.recipes import recipe_config, recipe_names
from vit_rs.recipes.bit_hyperrule import bit_hyperrule
from vit_rs.training.networks import build_network, network_config
from vit_rs.training.values import apply_settings, get_setting, parse_settings

# Written down from the sources, not from the recipes. big_vision's: configs/{vit_s16_i1k,vit_i1k,vit_i21k,bit_i1k}.py.
INCEPTION_CROP = {
    "data.img_size": 224,
    "data.augment": "resized_crop",
    "data.min_scale": 0.05,
    "data.max_aspect": 4 / 3,
    "data.interpolation": "bilinear",
    "data.flip": 0.5,
    "data.mean": (0.5, 0.5, 0.5),
    "data.std": (0.5, 0.5, 0.5),
    # The short side to 256, then the middle 224.
    "data.eval_resize": "crop",
    "data.eval_crop": 0.875,
}
ADAM = {
    "optim.name": "adamw",
    "optim.lr": 0.001,
    "optim.lr_batch": None,
    "optim.betas": (0.9, 0.999),
    "optim.eps": 1e-8,
    "optim.clip_norm": 1.0,
    "optim.warmup_steps": 10_000,
    "optim.final_lr": 0.0,
    "optim.layer_decay": None,
    "optim.ema_decay": None,
}
PLAIN = {"method.label_smoothing": 0.0, "method.mixup": 0.0, "method.cutmix": 0.0, "data.randaugment_layers": 0}
# arXiv 2010.11929, table 4 and B.1.1; vision_transformer's input_pipeline.py and configs/common.py.
PAPER_FINETUNING = {
    **INCEPTION_CROP,
    **PLAIN,
    "data.img_size": 384,
    "data.eval_resize": "squash",
    "data.eval_crop": 1.0,
    "batch_size": 512,
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.weight_decay": 0.0,
    "optim.clip_norm": 1.0,
    "optim.schedule": "cosine",
    "optim.final_lr": 0.0,
    "optim.ema_decay": None,
    "method.loss": "softmax",
    "model.dropout": 0.0,
    "model.init_head": "reset",
    "model.representation_size": None,
}
PUBLISHED = {
    "vit_s16_i1k": {
        **INCEPTION_CROP,
        **ADAM,
        "epochs": 90,
        "batch_size": 1024,
        "optim.weight_decay": 0.0001 / 0.001,
        "optim.schedule": "cosine",
        "data.randaugment": "big_vision",
        "data.randaugment_layers": 2,
        "data.randaugment_magnitude": 10.0,
        "method.loss": "softmax",
        "method.mixup": 0.2,
        "method.cutmix": 0.0,
        "method.label_smoothing": 0.0,
        "model.class_token": False,
        "model.global_pool": "avg",
        "model.fc_norm": False,
        "model.pos_embed": "sincos2d_bv",
        "model.representation_size": 384,
        "model.dropout": 0.0,
        "model.drop_path_rate": 0.0,
        "model.init_head_bias": None,
    },
    "vit_b16_i1k_augreg": {
        **INCEPTION_CROP,
        **ADAM,
        "epochs": 300,
        "batch_size": 4096,
        "optim.weight_decay": 0.0001 / 0.001,
        "optim.schedule": "cosine",
        "data.randaugment_layers": 2,
        "data.randaugment_magnitude": 15.0,
        "method.loss": "sigmoid",
        "method.mixup": 0.5,
        "method.cutmix": 0.0,
        "model.init_head_bias": -6.9,
        "model.global_pool": None,
        "model.representation_size": 768,
        "model.dropout": 0.0,
        "model.drop_path_rate": 0.0,
    },
    "vit_i21k": {  # arXiv 2010.11929, table 3
        **INCEPTION_CROP,
        **ADAM,
        **PLAIN,
        "epochs": 90,
        "batch_size": 4096,
        "optim.weight_decay": 0.03,
        "optim.schedule": "linear",
        "method.loss": "sigmoid",
        "model.init_head_bias": -10.0,
        "model.dropout": 0.1,
        "model.representation_size": 768,
    },
    "hybrid_r26_s32_i1k": {
        **INCEPTION_CROP,
        **ADAM,
        "epochs": 300,
        "batch_size": 4096,
        "optim.weight_decay": 0.1,
        "optim.schedule": "cosine",
        "data.randaugment_layers": 2,
        "data.randaugment_magnitude": 15.0,
        "method.loss": "sigmoid",
        "method.mixup": 0.2,
        "model.init_head_bias": -6.9,
    },
    "resnet50x1_i1k": {
        **INCEPTION_CROP,
        **PLAIN,
        "epochs": 90,
        "batch_size": 4096,
        "optim.name": "sgd",
        "optim.momentum": 0.9,
        "optim.lr": 0.1,
        "optim.lr_batch": 256,
        "optim.weight_decay": 0.0001,
        "optim.clip_norm": 1.0,
        "optim.warmup_steps": 1000,
        "optim.schedule": "cosine",
        "method.loss": "softmax",
    },
    "finetune_imagenet": {**PAPER_FINETUNING, "steps": 20_000, "optim.lr": 0.03, "optim.warmup_steps": 500},
    "finetune_cifar": {**PAPER_FINETUNING, "steps": 10_000, "optim.lr": 0.01, "optim.warmup_steps": 500},
    "finetune_small": {**PAPER_FINETUNING, "steps": 500, "optim.lr": 0.003, "optim.warmup_steps": 100},
    "finetune_mae": {  # arXiv 2111.06377, table 9; rate and layer decay of the published run of B/16
        "epochs": 100,
        "batch_size": 1024,
        "optim.name": "adamw",
        "optim.lr": 5e-4,
        "optim.lr_batch": 256,
        "optim.betas": (0.9, 0.999),
        "optim.weight_decay": 0.05,
        "optim.layer_decay": 0.65,
        "optim.clip_norm": None,
        "optim.warmup_epochs": 5.0,
        "optim.warmup_steps": None,
        "optim.schedule": "cosine",
        "data.img_size": 224,
        "data.randaugment": "timm",
        "data.randaugment_layers": 2,
        "data.randaugment_magnitude": 9.0,
        "data.erase": 0.25,
        "data.mean": (0.485, 0.456, 0.406),
        "data.std": (0.229, 0.224, 0.225),
        "method.loss": "softmax",
        "method.label_smoothing": 0.1,
        "method.mixup": 0.8,
        "method.cutmix": 1.0,
        "model.drop_path_rate": 0.1,
        "model.global_pool": "avg",
        "model.fc_norm": True,
        "model.init_head": "reset",
    },
    "bit_hyperrule": {  # arXiv 1912.11370, section 3.3; big_transfer's bit_hyperrule.py and bit_pytorch/train.py
        "batch_size": 512,
        "optim.name": "sgd",
        "optim.lr": 0.003,
        "optim.momentum": 0.9,
        "optim.weight_decay": 0.0,
        "optim.clip_norm": None,
        "optim.schedule": "staircase",
        "steps": 10_000,
        "optim.warmup_steps": 500,
        "method.mixup": 0.1,
        "method.loss": "softmax",
        "data.augment": "crop",
        "data.train_resize": 512,
        "data.img_size": 480,
        "data.flip": 0.5,
        "data.eval_resize": "squash",
        "data.mean": (0.5, 0.5, 0.5),
        "data.std": (0.5, 0.5, 0.5),
        "model.init_head": "reset",
    },
}
# Classes of the data, and the parameters: those of torchvision and timm for 1000 classes, plus or minus what the recipe
# and the classes change, written as sums.
PARAMETERS = {
    # No class token, no learned positions; a layer of 384 x 384 more.
    "vit_s16_i1k": (1000, 22_050_664 - 384 - 197 * 384 + 384 * 385),
    "vit_b16_i1k_augreg": (1000, 86_567_656 + 768 * 769),
    "vit_i21k": (21_843, 86_567_656 + 768 * 769 + 20_843 * 769),
    "hybrid_r26_s32_i1k": (1000, 36_431_912),  # timm's vit_small_r26_s32_224
    "resnet50x1_i1k": (1000, 25_549_352),  # timm's resnetv2_50x1_bit
    "finetune_imagenet": (37, 86_859_496 - 963 * 769),
    "finetune_mae": (1000, 86_567_656),
}


def test_every_recipe_is_in_the_tables():
    ours = {"fashion_mnist", "image_folder"}  # nobody's but ours
    assert {name for name in recipe_names() if not name.startswith("fashion_mnist_")} == PUBLISHED.keys() | ours


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_settings_are_the_published_ones(name):
    config = recipe_config(name).validated()
    differing = {
        key: (got, wanted)
        for key, wanted in PUBLISHED[name].items()
        if (got := get_setting(config, key)) != (pytest.approx(wanted) if isinstance(wanted, float) else wanted)
    }
    assert not differing
    assert config.finetune.epochs == 0  # one stage
    assert (config.device, config.precision) == ("cuda", "bfloat16")


# One of each kind of network always: the others differ in sizes.
OFTEN = ("vit_s16_i1k", "hybrid_r26_s32_i1k", "finetune_mae")


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in PARAMETERS]
)
def test_the_network_can_be_built(name):
    config = recipe_config(name)
    classes, parameters = PARAMETERS[name]
    channels = len(config.data.mean)
    size = config.data.img_size
    network = network_config(config.model, img_size=size, channels=channels, classes=classes)
    with torch.device("meta"):
        model = build_network(config.model, network)
        assert model(torch.zeros(2, channels, size, size)).shape == (2, classes)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters


@pytest.mark.parametrize(
    ("images", "area", "expected"),
    [
        (19_999, 96 * 96 - 1, (500, 100, 0.0, 160, 128)),
        (20_000, 96 * 96, (10_000, 500, 0.1, 512, 480)),
        (499_999, 32 * 32, (10_000, 500, 0.1, 160, 128)),
        (500_000, 500 * 375, (20_000, 500, 0.1, 512, 480)),
    ],
)
def test_bit_hyperrule_follows_the_data(images, area, expected):
    config = bit_hyperrule(num_images=images, image_area=area).validated()
    data = config.data
    got = (config.steps, config.optim.warmup_steps, config.method.mixup, data.train_resize, data.img_size)
    assert got == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_docstring_says_what_a_reader_asks(name):
    text = importlib.import_module(f"vit_rs.recipes.{name}").__doc__
    for part in (f"vit_rs train {name}", "Hardware:", "Time:", "Result:", "Source:", "arXiv "):
        assert part.replace("vit_rs train", "train") in text, part
    # The settings that it tells readers to give are settings, with values that they take.
    words = text.replace("\n", " ").replace("`", " ").split()
    given = [words[i + 1].rstrip(",;)") for i, word in enumerate(words) if word.lstrip("(") == "--set"]
    config = recipe_config(name)
    for setting in given:
        apply_settings(config, parse_settings(config, [setting]))
    with pytest.raises(ConfigError):
        parse_settings(config, ["optim.rate=1"])
