"""The ViT's configuration and the catalogue of names: one spelling per value, and errors that say what was wrong."""

import json

import numpy as np
import pytest

from vit_rs.exceptions import ConfigError
from vit_rs.models import ViTConfig, create_model, named_config
from vit_rs.models.presets import PRESETS


def test_names_stand_for_configurations() -> None:
    config = named_config("vit_small_patch8_64", num_classes=7, depth=2)
    assert (config.embed_dim, config.num_heads, config.depth, config.num_classes) == (384, 6, 2, 7)
    assert (config.grid_size, config.num_patches) == ((8, 8), 64)
    assert create_model("vit_tiny_patch16_224", img_size=32, depth=1).config.grid_size == (2, 2)


def test_presets_are_configurations_and_take_overrides() -> None:
    for name in PRESETS:
        assert named_config(name).to_dict().items() >= PRESETS[name].items()
    config = named_config("vit_base_patch14_reg4_dinov2", num_classes=3, img_size=(28, 42))
    assert (config.grid_size, config.num_classes, config.reg_tokens, config.init_values) == ((2, 3), 3, 4, 1e-5)
    assert named_config("vit_giant_patch14_dinov2").mlp_hidden_dim == 8192
    assert named_config("vit_so400m_patch14_siglip_384").img_size == 378
    assert named_config("vit_huge_plus_patch16_dinov3").mlp_hidden_dim == 2 * 5120


def test_imagenet_21k_names_have_a_representation_layer() -> None:
    config = named_config("vit_large_patch32_224_in21k")
    assert (config.num_classes, config.representation_size) == (21843, 1024)


# A value other than the default for every field: JSON must lose none of them.
CHANGED = {
    "img_size": (32, 64),
    "patch_size": (8, 16),
    "in_chans": 1,
    "num_classes": 0,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 3.5,
    "mlp": "swiglu",
    "act": "gelu_tanh",
    "qkv_bias": False,
    "qk_norm": True,
    "init_values": 1e-5,
    "norm_eps": 1e-12,
    "class_token": False,
    "distilled": True,
    "reg_tokens": 4,
    "no_embed_class": True,
    "pos_embed": "2d",
    "pos_placement": "every",
    "pos_convention": "torchvision",
    "rope": True,
    "rope_theta": 50.0,
    "dynamic_img_size": True,
    "global_pool": "avg",
    "fc_norm": True,
    "representation_size": 7,
    "drop_rate": 0.1,
    "pos_drop_rate": 0.2,
    "proj_drop_rate": 0.3,
    "attn_drop_rate": 0.4,
    "drop_path_rate": 0.5,
    "init_head_bias": -10.0,
}
NEEDED = {  # what a value needs beside it
    "class_token": {"global_pool": "avg"},
    "patch_size": {"img_size": (32, 64)},
    "num_heads": {"embed_dim": 24},
    "pos_placement": {"pos_embed": "1d"},
}


def test_configurations_survive_json() -> None:
    assert CHANGED.keys() == ViTConfig().to_dict().keys()
    for name, value in CHANGED.items():
        config = ViTConfig(**{**NEEDED.get(name, {}), name: value})
        assert getattr(config, name) == value != getattr(ViTConfig(), name)
        again = ViTConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert hash(again) == hash(config)
        assert repr(again) == repr(config)


def test_one_spelling_per_value() -> None:
    assert ViTConfig(img_size=(224, 224)) == ViTConfig(img_size=224)
    assert ViTConfig(img_size=[32, 64], mlp_ratio=3).img_size == (32, 64)
    assert isinstance(ViTConfig(mlp_ratio=3).mlp_ratio, float)
    assert isinstance(ViTConfig(num_classes=np.int64(3)).num_classes, int)


def test_configurations_of_earlier_versions_load() -> None:
    """Files written before the fields that follow `init_head_bias` here hold these alone."""
    written = (
        '{"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10, "embed_dim": 64, "depth": 6, '
        '"num_heads": 4, "mlp_ratio": 2.0, "act": "gelu", "qkv_bias": true, "global_pool": "avg", "drop_rate": 0.0, '
        '"pos_drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.0, "drop_path_rate": 0.0, '
        '"init_head_bias": 0.0}'
    )
    config = ViTConfig.from_dict(json.loads(written))
    assert (config.grid_size, config.pos_embed, config.class_token, config.norms_pooled) == ((4, 4), "1d", True, True)
    assert config.to_dict().items() >= json.loads(written).items()


def test_mlp_width_is_timms_and_exact() -> None:
    assert ViTConfig(embed_dim=1152, num_heads=16, mlp_ratio=3.7362).mlp_hidden_dim == 4304
    assert ViTConfig(embed_dim=1408, num_heads=16, mlp_ratio=48 / 11).mlp_hidden_dim == 6144
    for hidden in range(100, 400):
        assert ViTConfig(embed_dim=102, num_heads=1, mlp_ratio=hidden / 102).mlp_hidden_dim == hidden


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": 225}, r"img_size 225x225 is not divisible by patch_size 16x16.*224 or 240 high"),
        ({"img_size": (32, 8)}, r"img_size 32x8 .*32 high, 16 wide"),
        ({"img_size": 0}, "img_size must be at least 1, got 0"),
        ({"img_size": (1, 2, 3)}, r"img_size must be one integer or \(height, width\), got \(1, 2, 3\)"),
        ({"patch_size": "16"}, "patch_size must be an integer, got '16'"),
        ({"num_heads": 5}, "embed_dim 768 is not divisible by num_heads 5"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"depth": 2.0}, r"depth must be an integer, got 2\.0"),
        ({"in_chans": True}, "in_chans must be an integer, got True"),
        ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
        ({"global_pool": "max"}, "global_pool must be one of token, avg, map, got 'max'"),
        ({"act": "relu"}, "act must be one of gelu, gelu_tanh, got 'relu'"),
        ({"qkv_bias": 1}, "qkv_bias must be true or false, got 1"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\), got 1\.0"),
        ({"drop_rate": float("nan")}, "drop_rate must be a finite number, got nan"),
        ({"mlp_ratio": 0.001}, r"mlp_ratio 0\.001 .*no hidden unit"),
        ({"mlp_ratio": 1.0, "embed_dim": 9, "num_heads": 1, "mlp": "swiglu"}, "mlp='swiglu' halves .* got 9"),
        ({"mlp": "moe"}, "mlp must be one of mlp, swiglu, got 'moe'"),
        ({"reg_tokens": -1}, "reg_tokens must be at least 0, got -1"),
        ({"qk_norm": None}, "qk_norm must be true or false, got None"),
        ({"fc_norm": 1}, "fc_norm must be true or false, got 1"),
        ({"rope": "yes"}, "rope must be true or false, got 'yes'"),
        ({"init_values": float("inf")}, "init_values must be a finite number, got inf"),
        ({"norm_eps": 0.0}, r"norm_eps and rope_theta must be above 0, got 0\.0 and 100\.0"),
        ({"rope_theta": -1}, r"norm_eps and rope_theta must be above 0, got 1e-06 and -1\.0"),
        ({"representation_size": 0}, "representation_size must be at least 1, got 0"),
        ({"class_token": False}, "global_pool='token' reads the class token, but class_token is false"),
        (
            {"class_token": False, "distilled": True, "global_pool": "avg"},
            "distilled=True reads the class token, but class_token is false",
        ),
        ({"distilled": True, "global_pool": "avg"}, "distilled=True reads two tokens: global_pool must be 'token'"),
        ({"distilled": True, "representation_size": 3}, "distilled=True reads two tokens.*representation_size None"),
        ({"global_pool": "map", "mlp": "swiglu"}, "global_pool='map' has a plain MLP.*mlp must be 'mlp'"),
        ({"pos_embed": "3d"}, "pos_embed must be one of 1d, 2d, relative, sincos2d_bv, .*, none, got '3d'"),
        ({"pos_placement": "last"}, "pos_placement must be one of stem, every, shared, got 'last'"),
        ({"pos_convention": "scipy"}, "pos_convention must be one of .*timm.*, got 'scipy'"),
        ({"pos_embed": "none", "pos_placement": "shared"}, "pos_placement 'shared' needs a learned table, got 'none'"),
        ({"pos_embed": "relative", "pos_placement": "every"}, "'every' needs a learned table, got 'relative'"),
        ({"pos_embed": "sincos2d_bv", "pos_placement": "every"}, "'every' needs a learned table, got 'sincos2d_bv'"),
        (
            {"pos_embed": "2d", "embed_dim": 9, "num_heads": 3},
            "pos_embed '2d' needs an embed_dim divisible by 2, got 9",
        ),
        (
            {"pos_embed": "sincos2d_mae", "embed_dim": 6, "num_heads": 3},
            "pos_embed 'sincos2d_mae' needs an embed_dim divisible by 4, got 6",
        ),
        ({"rope": True, "embed_dim": 18, "num_heads": 3}, "rope needs a head width divisible by 4, got 18 / 3 = 6"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        ViTConfig(**changes)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vit-base-patch16-224", "vit_base_patch16_224"),
        ("vit_base_patch14_dino_v2", "vit_base_patch14_dinov2"),
        ("deit_tiny_patch16_distilled_224", "deit_tiny_distilled_patch16_224"),
        ("resnetv2_50x1_bitt", "resnetv2_50x1_bit"),
    ],
)
def test_unknown_names_say_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown model '{name}': did you mean .*{nearest}"):
        create_model(name)


@pytest.mark.parametrize("name", ["vit_medium_patch16_224", "vit_base_16_224", "resnet50", "", "vit_base_patch16"])
def test_unknown_names_list_the_sizes(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown model.*tiny, small, base, large, so400m, huge, giant, gigantic"):
        create_model(name)


def test_unknown_fields_are_named() -> None:
    with pytest.raises(TypeError, match="no field image_size"):
        create_model("vit_tiny_patch16_224", image_size=32)
    with pytest.raises(ConfigError, match="no field colour"):
        ViTConfig.from_dict({"colour": 1})
