"""Networks from the settings of `model`: every kind, the named ones, other image sizes, weights of other projects."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vit_rs.checkpoints import save_checkpoint
from vit_rs.exceptions import CheckpointError, ConfigError
from vit_rs.models import BiTResNet, VisionTransformer, create_model
from vit_rs.models.hybrid import HybridConfig, HybridViT
from vit_rs.models.resnet import ResNetConfig
from vit_rs.models.vit import ViTConfig
from vit_rs.recipes import fashion_mnist
from vit_rs.training import ModelConfig
from vit_rs.training.networks import build_network, describe, network_config, token_stride
from vit_rs.training.sources import open_sources
from vit_rs.training.stages import build_stages, finetune_size
from vit_rs.training.values import apply_settings, parse_settings

TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2}
HYBRID = ModelConfig(name="hybrid", layers=(1, 1), **TINY)
BIT = ModelConfig(name="bit", layers=(1, 1))


def config_of(model, size=32, channels=3, classes=5, **options):
    return network_config(model, img_size=size, channels=channels, classes=classes, **options)


@pytest.mark.parametrize(
    ("model", "kind", "stride"),
    [
        (ModelConfig(patch_size=8, **TINY), VisionTransformer, 8),
        (ModelConfig(patch_size=8, global_pool="avg", class_token=False, **TINY), VisionTransformer, 8),
        (ModelConfig(patch_size=8, rope=True, reg_tokens=2, mlp="swiglu", **TINY), VisionTransformer, 8),
        (HYBRID, HybridViT, 8),
        (dataclasses.replace(HYBRID, patch_size=2), HybridViT, 16),
        (BIT, BiTResNet, 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_each_kind_is_built_and_learns(model, kind, stride, channels):
    config = config_of(model, channels=channels)
    assert token_stride(config) == stride
    torch.manual_seed(0)
    network = build_network(dataclasses.replace(model, grad_checkpointing=True), config)
    assert type(network) is kind
    logits = network(torch.randn(2, channels, 32, 32))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for name, parameter in network.named_parameters() if "head" in name)


def test_a_setting_reaches_the_network():
    model = ModelConfig(
        patch_size=16,
        mlp_ratio=2.0,
        act="gelu_tanh",
        qk_norm=True,
        fc_norm=True,
        representation_size=24,
        pos_placement="shared",
        init_head_bias=-4.0,
        dropout=0.1,
        drop_path_rate=0.2,
        **TINY,
    )
    config = config_of(model)
    assert config == ViTConfig(
        img_size=32,
        patch_size=16,
        in_chans=3,
        num_classes=5,
        mlp_ratio=2.0,
        act="gelu_tanh",
        qk_norm=True,
        fc_norm=True,
        representation_size=24,
        pos_placement="shared",
        init_head_bias=-4.0,
        pos_drop_rate=0.1,
        proj_drop_rate=0.1,
        drop_path_rate=0.2,
        **TINY,
    )
    assert config_of(model, drop_path_rate=0.0).drop_path_rate == 0.0  # a stage's own
    assert config_of(ModelConfig(name="hybrid", layers=(1,), width_factor=2)) == HybridConfig(
        img_size=32, num_classes=5, backbone_layers=(1,), width_factor=2
    )
    assert config_of(ModelConfig(name="bit", drop_path_rate=0.3)) == ResNetConfig(num_classes=5, drop_path_rate=0.3)


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_base_r50_s16_224", "vit_base_patch14_dinov2"])
def test_a_named_model_is_that_of_create_model(name):
    config = config_of(ModelConfig(name=name), size=112, classes=7)
    with torch.device("meta"):
        assert config == create_model(name, img_size=112, num_classes=7).config
    changed = config_of(ModelConfig(name=name, depth=3), size=112, classes=7)
    assert changed == dataclasses.replace(config, depth=3)


def test_a_named_resnet():
    assert config_of(ModelConfig(name="resnetv2_50x1_bit", width_factor=2)).width_factor == 2


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ModelConfig(**TINY, patch_size=16), "ViT of 2 blocks, width 16, patch 16"),
        (HYBRID, "ViT of 2 blocks, width 16, behind a ResNet of 2 blocks, 1/8"),
        (BIT, "BiT ResNet of 2 blocks, width x1"),
    ],
)
def test_a_network_in_words(model, words):
    assert describe(config_of(model)) == words


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (ModelConfig(name="vit_smal_patch16_224"), 32, r"model\.name: unknown model .*mean vit_small_patch16_224"),
        (ModelConfig(name="resnet"), 32, r'model\.name: unknown model .*or by the names "vit", "hybrid", "bit"'),
        (ModelConfig(width_factor=2), 32, r"model\.width_factor: 'vit' is built without it .* of ViTConfig"),
        (ModelConfig(layers=(1,)), 32, r"model\.layers: 'vit' is built without it"),
        (ModelConfig(name="bit", embed_dim=16), 32, r"model\.embed_dim: 'bit' is built without it"),
        (ModelConfig(name="bit", dropout=0.1), 32, r"model\.dropout: 'bit' is built without it"),
        (ModelConfig(patch_size=7), 30, r"data\.img_size: img_size 30x30 is not divisible by .*28 or 35"),
        (dataclasses.replace(HYBRID, patch_size=3), 32, r"data\.img_size: .*feature map of 4x4 at stride 8"),
        (ModelConfig(class_token=False), 32, r"model: global_pool='token' reads the class token"),
        (ModelConfig(embed_dim=16), 32, r"model: embed_dim 16 is not divisible by num_heads 12"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_explained(model, size, message):
    with pytest.raises(ConfigError, match=message):
        config_of(model, size=size)


def run(*settings):
    config = fashion_mnist.config()
    return apply_settings(config, parse_settings(config, ["data.per_class=2", *settings])).validated()


@pytest.fixture(scope="module")
def sources():
    return open_sources(run().data)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ([], 35),  # the recipe's own
        (["finetune.img_size=none"], 42),  # six patches of 7
        (["finetune.img_size=none", "data.img_size=14"], 21),
        (["finetune.img_size=none", "data.img_size=35"], 56),  # 7.5 patches are rounded to even
        (["model.name=hybrid", "model.patch_size=1", "model.layers=1,1", "finetune.img_size=none"], 40),
        (["model.name=hybrid", "model.patch_size=2", "model.layers=1,1", "finetune.img_size=none"], 48),
    ],
)
def test_the_second_stage_is_half_as_large_again(sources, settings, size):
    config = run(*settings)
    assert finetune_size(config, sources) == size
    assert [stage.size for stage in build_stages(config, sources)] == [config.data.img_size, size]


def test_a_resnet_takes_any_size(sources):
    model = ("model.name=bit", "model.layers=1", "model.patch_size=none", "model.embed_dim=none", "model.depth=none")
    config = run(*model, "model.num_heads=none", "model.global_pool=none", "finetune.img_size=none", "data.img_size=27")
    assert finetune_size(config, sources) == 40


def test_the_setting_of_a_stage_is_named(sources):
    stages = build_stages(run("finetune.img_size=44"), sources)
    stages[0].network_config()
    with pytest.raises(ConfigError, match=r"finetune\.img_size: img_size 44x44 is not divisible by patch_size 7x7"):
        stages[1].network_config()


def start(sources, path, *settings):
    stage = build_stages(run(f"model.init={path}", *settings), sources)[0]
    return stage.initial_model(stage.config.model.init, head=stage.config.model.init_head)


def test_weights_of_several_models_in_a_file_are_asked_for_by_name(sources, tmp_path):
    stage = build_stages(run(), sources)[0]
    torch.manual_seed(0)
    first, second = (stage.build_model().state_dict() for _ in range(2))
    torch.save({"a": first, "b": second}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"several models.*\(the setting is model\.init_section\)"):
        start(sources, tmp_path / "two.pth")
    model = start(sources, tmp_path / "two.pth", "model.init_section=b")
    assert torch.equal(model.blocks[0].attn.qkv.weight, second["blocks.0.attn.qkv.weight"])
    with pytest.raises(ConfigError, match=r"model\.init: .*nonsense"):
        start(sources, tmp_path / "two.pth", "model.init_section=b", "model.init_convention=nonsense")
    with pytest.raises((ConfigError, CheckpointError), match="nonsense"):
        start(sources, tmp_path / "two.pth", "model.init_section=b", "model.init_layout=nonsense")


def test_weights_of_another_resolution_say_theirs(sources, tmp_path):
    stage = build_stages(run("data.img_size=35"), sources)[0]
    torch.manual_seed(0)
    table = stage.build_model().state_dict()["pos_embed"]
    weights = build_stages(run(), sources)[0].build_model().state_dict()
    torch.save(weights, tmp_path / "bare.pth")
    model = start(sources, tmp_path / "bare.pth", "data.img_size=35", "model.init_img_size=28")
    assert model.pos_embed.shape == table.shape
    with pytest.raises((ConfigError, CheckpointError), match="pos_embed has 17 rows; a grid of 8x8 has 64"):
        start(sources, tmp_path / "bare.pth", "data.img_size=35", "model.init_img_size=56")


def test_a_head_for_other_classes_is_made_anew(sources, tmp_path):
    config = dataclasses.replace(build_stages(run(), sources)[0].network_config(), num_classes=3)
    save_checkpoint(tmp_path / "three.safetensors", VisionTransformer(config))
    with pytest.raises(CheckpointError, match=r"head\.weight: got \(3, 64\), expected \(10, 64\)"):
        start(sources, tmp_path / "three.safetensors")
    model = start(sources, tmp_path / "three.safetensors", "model.init_head=reset")
    assert model.head.weight.shape == (10, 64)
