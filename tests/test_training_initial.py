"""A run that starts from a model of ours has its architecture, whatever the recipe says."""

from __future__ import annotations

import dataclasses

import pytest
from PIL import Image

from vit_rs.checkpoints import load_model, save_checkpoint
from vit_rs.cli import main
from vit_rs.exceptions import CheckpointError, ConfigError
from vit_rs.models import BiTResNet, VisionTransformer, create_model
from vit_rs.models.hybrid import HybridConfig, HybridViT
from vit_rs.models.resnet import ResNetConfig
from vit_rs.models.vit import ViTConfig
from vit_rs.recipes import finetune_small
from vit_rs.training import ModelConfig
from vit_rs.training.initial import with_architecture
from vit_rs.training.networks import network_config
from vit_rs.training.run_folder import read_config
from vit_rs.training.sources import open_sources
from vit_rs.training.stages import build_stages

TINY = {"img_size": 32, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2}
DINOV3 = "vit_small_patch16_dinov3"
MODELS = [
    VisionTransformer(ViTConfig(**TINY, patch_size=8)),
    VisionTransformer(
        ViTConfig(**TINY, patch_size=8, class_token=False, global_pool="avg", act="gelu_tanh", mlp_ratio=2.0)
    ),
    VisionTransformer(
        ViTConfig(**TINY, patch_size=16, pos_embed="2d", qk_norm=True, reg_tokens=1, pos_convention="jax")
    ),
    VisionTransformer(ViTConfig(**TINY, representation_size=8, init_values=0.1, mlp="swiglu", rope=True)),
    create_model("deit_tiny_distilled_patch16_224", **TINY),
    create_model(DINOV3, **TINY),
    HybridViT(HybridConfig(**TINY, backbone_layers=(1, 1), patch_size=2)),
    BiTResNet(ResNetConfig(layers=(1, 1), width_factor=1, num_classes=5)),
]


def saved(path, model):
    save_checkpoint(path, model)
    return str(path)


def base(path, **fields):
    return dataclasses.replace(finetune_small.config().model, init=path, **fields)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_the_architecture_is_the_file_s(tmp_path, model):
    path = saved(tmp_path / "m.safetensors", model)
    got = with_architecture(base(path, init_head="keep", drop_path_rate=0.25), {})
    built = network_config(got, img_size=64, channels=1, classes=3).to_dict()
    free = {"in_chans": 1, "num_classes": 3, "drop_path_rate": 0.25, "pos_convention": "timm"}
    if "img_size" in built:
        free |= {"img_size": 64}
    wanted = {**model.config.to_dict(), **{name: free[name] for name in free if name in built}}
    if "distilled" in wanted:
        wanted["dynamic_img_size"] = built["dynamic_img_size"]
    assert built == wanted
    # Once more: what a config.json holds stays as it is.
    assert with_architecture(got, {}) == got


def test_what_the_user_sets_has_to_agree(tmp_path):
    model = MODELS[0]
    path = saved(tmp_path / "m.safetensors", model)
    fields = {"embed_dim": 16, "depth": 2, "name": "vit"}
    assert with_architecture(base(path, **fields), fields).embed_dim == 16
    for asked, message in (
        ({"embed_dim": 192}, r"model\.embed_dim: got 192, the model in model\.init \(.*m\.safetensors\) has 16: leave"),
        ({"layers": (1,)}, r"model\.layers: got \(1,\), .* has None"),
        ({"global_pool": "avg"}, r"model\.global_pool: got 'avg', .* has 'token'"),
        (
            {"name": "vit_tiny_patch16_224"},
            r"model\.name: 'vit_tiny_patch16_224' is another .*of 2 blocks, width 16",
        ),
        ({"name": "bit"}, r"model\.name: 'bit' is another"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_architecture(base(path, **{"init_head": "keep", **asked}), asked)


def test_a_new_head_and_another_patch_size_may_be_asked_for(tmp_path):
    asked = {"global_pool": "avg", "fc_norm": True, "patch_size": 16}
    path = saved(tmp_path / "m.safetensors", MODELS[0])
    got = with_architecture(base(path, init_head="reset", **asked), asked)
    assert (got.global_pool, got.fc_norm, got.patch_size, got.embed_dim, got.depth) == ("avg", True, 16, 16, 2)


def test_a_new_head_is_without_a_representation_layer(tmp_path):
    path = saved(tmp_path / "m.safetensors", create_model("vit_tiny_patch16_224_in21k", depth=1, num_classes=5))
    for asked, size in (
        ({}, None),
        ({"representation_size": 192}, 192),
        ({"name": "vit_tiny_patch16_224_in21k", "depth": 1}, 192),
    ):
        assert with_architecture(base(path, **asked), asked).representation_size == size
    assert with_architecture(base(path, init_head="keep"), {}).representation_size == 192


def test_a_named_model_may_be_named(tmp_path):
    """The name stays: the same command line with --resume asks for it again."""
    path = saved(tmp_path / "m.safetensors", create_model("vit_tiny_patch16_224", img_size=32, depth=1))
    for asked, patch in (
        ({"name": "vit_tiny_patch16_384"}, 16),
        ({"name": "vit_tiny_patch8_224"}, 8),
        ({"name": "vit_tiny_patch16_224", "patch_size": 8}, 8),
    ):
        got = with_architecture(base(path, **asked), {"depth": 1, **asked})
        assert (got.name, got.patch_size, got.embed_dim, got.depth) == (asked["name"], patch, 192, 1)
    with pytest.raises(ConfigError, match=r"model\.name: 'deit_tiny_distilled_patch16_224' is another"):
        with_architecture(base(path), {"name": "deit_tiny_distilled_patch16_224", "depth": 1})


def test_an_unknown_name_is_left_for_the_network_to_refuse(tmp_path):
    model = base(saved(tmp_path / "m.safetensors", MODELS[0]), name="vit_tinny_patch16_224")
    assert with_architecture(model, {"name": model.name}) is model
    with pytest.raises(ConfigError, match="unknown model 'vit_tinny_patch16_224'"):
        network_config(model, img_size=64, channels=3, classes=3)


def test_a_setting_that_the_kind_has_not_is_named(tmp_path):
    got = with_architecture(base(saved(tmp_path / "m.safetensors", MODELS[-1]), init_head_bias=-7.0), {})
    assert got.name == "bit"
    with pytest.raises(ConfigError, match=r"model\.init_head_bias: 'bit' is built without it"):
        network_config(got, img_size=64, channels=3, classes=3)


def test_files_of_others_and_no_files_change_nothing(tmp_path):
    (tmp_path / "damaged.safetensors").write_bytes(b"no weights")
    save_checkpoint(tmp_path / "google.npz", MODELS[0])
    for init in (None, *(str(tmp_path / name) for name in ("damaged.safetensors", "google.npz", "none.npz"))):
        model = ModelConfig(embed_dim=7, init=init)
        assert with_architecture(model, {}) is model
    odd = VisionTransformer(ViTConfig(**TINY, patch_size=(8, 16)))
    model = base(saved(tmp_path / "odd.safetensors", odd))
    assert with_architecture(model, {}) == model


def test_a_head_of_other_classes_is_answered_by_the_setting(tmp_path):
    path = saved(tmp_path / "m.safetensors", MODELS[0])
    model = with_architecture(base(path, init_head="keep"), {})
    config = dataclasses.replace(finetune_small.config(), model=model, device="cpu")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=None, mean=(0.5,), std=(0.5,)))
    [stage] = build_stages(config, open_sources(config.data))
    with pytest.raises(CheckpointError, match=r"--set model\.init_head=reset leaves the model's own head"):
        stage.initial_model(path)


def test_a_recipe_goes_on_from_ones_own_model(tmp_path, monkeypatch):
    monkeypatch.setattr("vit_rs.cli.train._draw", lambda _folder: ())
    monkeypatch.setattr("vit_rs.training.job._MEASURE_SECONDS", 0.0)
    monkeypatch.setattr("vit_rs.training.job._HINT_SECONDS", 0.0)
    path = saved(tmp_path / "m.safetensors", MODELS[0])
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "data" / name)
    settings = (
        *("device=cpu", f"model.init={path}", "data.img_size=16", f"data.path={tmp_path / 'data'}"),
        *(
            "steps=2",
            "batch_size=2",
            "accumulation=1",
            "compile=false",
            "torch_threads=1",
            "precision=float32",
            "optim.warmup_steps=1",
        ),
        *("finetune.epochs=0", "evaluation.shots=0"),
    )
    arguments = [part for setting in settings for part in ("--set", setting)]
    with monkeypatch.context() as patch:
        patch.setattr("vit_rs.training.loop.StageLoop.finish", lambda _self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["train", "finetune_small", "--out", str(tmp_path / "run"), *arguments])
    assert main(["train", "--resume", "--out", str(tmp_path / "run"), "--set", f"model.init={path}"]) == 0
    written = read_config(tmp_path / "run").model
    assert (written.name, written.embed_dim, written.depth, written.act) == ("vit", 16, 2, "gelu")
    assert load_model(tmp_path / "run" / "model.safetensors").config.embed_dim == 16
