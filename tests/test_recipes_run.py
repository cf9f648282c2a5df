"""Each family of recipes trains: the recipe itself, shrunk to images of 8 pixels and a few steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from vit_rs.checkpoints import load_model, save_checkpoint
from vit_rs.models import ResNetConfig, ViTConfig
from vit_rs.models.catalogue import build
from vit_rs.recipes import recipe_config
from vit_rs.training import job, train
from vit_rs.training.metrics import read_metrics
from vit_rs.training.values import apply_settings, parse_settings

SHRUNK = (
    *("device=cpu", "precision=float32", "compile=false", "torch_threads=1", "loader_threads=1", "log_every=1"),
    *("data.img_size=8", "batch_size=8", "accumulation=2", "evaluation.shots=0", "evaluation.batch_size=8"),
)
EPOCHS = ("epochs=1", "optim.warmup_steps=1")
VIT = ("model.name=vit", "model.embed_dim=16", "model.depth=2", "model.num_heads=2", "model.patch_size=4")
RESNET = ("model.name=bit", "model.layers=1")
FAMILIES = {
    "vit_s16_i1k": (*VIT, *EPOCHS, "model.representation_size=16"),
    "vit_b16_i1k_augreg": (*VIT, *EPOCHS, "model.representation_size=16"),
    "vit_i21k": (*VIT, *EPOCHS, "model.representation_size=16"),
    "hybrid_r26_s32_i1k": ("model.name=hybrid", *VIT[1:4], "model.patch_size=1", "model.layers=1", *EPOCHS),
    "resnet50x1_i1k": (*RESNET, *EPOCHS),
    "finetune_imagenet": (*VIT, "steps=3", "optim.warmup_steps=1", "optim.ema_decay=0.9999", "model.act=gelu"),
    "finetune_mae": (*VIT, "epochs=1", "optim.warmup_epochs=0.5"),
    "bit_hyperrule": (*RESNET, "steps=5", "optim.warmup_steps=1", "data.train_resize=10"),
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of train/ and val/: 24 and 6 noisy images of three classes."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for label in range(3):
            (root / part / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, (10, 12, 3)) + 70 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / f"class{label}" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Checkpoints of five classes and 12 pixels, to be fine-tuned: (of a ViT, of a ResNet)."""
    root = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    fields = {"img_size": 12, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    vit = build("vit", ViTConfig(**fields, representation_size=16).to_dict())
    save_checkpoint(root / "vit.safetensors", vit)
    resnet = build("bit", ResNetConfig(layers=(1,), num_classes=5).to_dict())
    save_checkpoint(root / "resnet.safetensors", resnet)
    return {"vit": root / "vit.safetensors", "bit": root / "resnet.safetensors"}


# What these go through, the others do too, but for their sizes.
OFTEN = ("vit_s16_i1k", "hybrid_r26_s32_i1k", "finetune_mae", "bit_hyperrule")


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_recipe_trains(name, photographs, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_MEASURE_SECONDS", 0.0)
    config = recipe_config(name)
    settings = [*SHRUNK, *FAMILIES[name], f"data.path={photographs}"]
    if config.model.init is not None:
        settings.append(f"model.init={pretrained['bit' if 'bit' in name else 'vit']}")
    config = apply_settings(config, parse_settings(config, settings))
    summary = train(config, tmp_path / "run", progress=False)
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["step"] for r in records] == list(range(1, (config.steps or 3) + 1))
    assert all(math.isfinite(r["train_loss"]) for r in records)
    peak = config.optim.lr * 8 / (config.optim.lr_batch or 8)
    assert max(r["learning_rate"] for r in records) == pytest.approx(peak)
    model = load_model(tmp_path / "run" / "model.safetensors")
    assert 0.0 <= summary["stages"][0]["top1"] <= 1.0
    weights = torch.cat([p.detach().flatten() for p in model.head.parameters()])
    assert weights.isfinite().all()
    # It begins at zero, and at the recipe's bias.
    assert (weights - (config.model.init_head_bias or 0.0)).abs().max() > 0
