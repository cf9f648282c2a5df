"""Settings: parsed by type, checked with a message that names them, the same after JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest

from vit_rs.exceptions import ConfigError
from vit_rs.models import named_config
from vit_rs.recipes import fashion_mnist, image_folder, recipe_config, recipe_names, recipe_summary
from vit_rs.training import ModelConfig, TrainConfig
from vit_rs.training.config import MODEL_SIZES
from vit_rs.training.values import apply_settings, get_setting, parse_settings, setting_names


def changed(*settings: str, config: TrainConfig | None = None) -> TrainConfig:
    config = fashion_mnist.config() if config is None else config
    return apply_settings(config, parse_settings(config, settings))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("optim.lr=3e-4", 3e-4),
        ("epochs=1_000", 1000),
        ("optim.clip_norm=none", None),
        ("optim.clip_norm=2", 2.0),
        ("optim.betas=0.9, 0.95", (0.9, 0.95)),
        ("data.mean=0.5,0.5,0.5", (0.5, 0.5, 0.5)),
        ("evaluation.fewshot_seeds=7", (7,)),
        ("optim.schedule=linear", "linear"),
        ("data.path=a=b", "a=b"),
        ("finetune.optim.ema_decay=0.99", 0.99),
    ],
)
def test_a_setting_is_parsed_by_its_type(setting, value):
    got = get_setting(changed(setting), setting.partition("=")[0])
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("optim.lrr=1", ["unknown setting 'optim.lrr'", "optim.lr"]),
        ("lr=1", ["unknown setting 'lr'", "optim.lr", "finetune.optim.lr"]),
        ("optim=1", ["unknown setting 'optim'", "optim.weight_decay"]),
        ("recipe=x", ["unknown setting 'recipe'"]),
        ("zzz=1", ["unknown setting 'zzz'", "groups: ", "optim"]),
        ("epochs", ["expected NAME=VALUE"]),
        ("epochs=2.5", ["--set epochs: expected an integer, got '2.5'"]),
        ("optim.lr=fast", ["--set optim.lr: expected a number, got 'fast'"]),
        ("optim.lr=inf", ["expected a number"]),
        ("optim.clip_norm=maybe", ["expected a number or none"]),
        ("optim.betas=0.9", ["expected 2 numbers with commas between them, got '0.9'"]),
        ("data.augment=blur", ["expected one of shift, resized_crop, got 'blur'"]),
    ],
)
def test_a_wrong_setting_is_explained(setting, parts):
    with pytest.raises(ConfigError) as caught:
        changed(setting)
    for part in parts:
        assert part in str(caught.value)


def test_a_setting_is_given_once():
    with pytest.raises(ConfigError, match="epochs is set twice"):
        changed("epochs=1", "epochs=2")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "model.size=giant",
            "model.size: expected one of tiny, small, base, large, huge, custom, got 'giant'",
        ),
        ("model.num_heads=7", "model.num_heads: 7 heads do not divide embed_dim"),
        ("model.depth=0", "model.depth: expected at least 1, got 0"),
        ("model.drop_path_rate=1", r"model.drop_path_rate: expected a value in \[0, 1\), got 1.0"),
        (
            "data.img_size=30",
            "data.img_size: 30 pixels are not divisible by model.patch_size 7; 28 or 35 would",
        ),
        ("data.img_size=3", "data.img_size: 3 pixels are not divisible by model.patch_size 7; 7 would"),
        ("finetune.img_size=44", "finetune.img_size: 44 pixels are not divisible by model.patch_size 7"),
        ("data.std=0", "data.std: expected values above 0"),
        ("data.mean=0.1,0.2", "data.std: expected as many values as mean, 2, got 1"),
        ("data.holdout=1", r"data.holdout: expected a value in \(0, 1\), got 1.0"),
        ("optim.lr=0", "optim.lr: expected a value above 0, got 0.0"),
        ("optim.final_lr=1", "optim.final_lr: expected a value from 0 to lr"),
        ("finetune.optim.ema_decay=1", "finetune.optim.ema_decay: expected"),
        ("method.label_smoothing=1", "method.label_smoothing: expected"),
        ("evaluation.fewshot_pool=2", "evaluation.fewshot_pool: expected at least shots = 5, got 2"),
        ("epochs=0", "epochs: expected at least 1, got 0"),
        ("seed=-1", "seed: expected at least 0, got -1"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        changed(setting).validated()


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_usable_and_the_same_after_json(name):
    config = recipe_config(name).validated()
    assert config.recipe == name
    assert recipe_summary(name).endswith(".")
    assert TrainConfig.from_json(config.to_json(), source="x") == config
    assert config.validated() == config


def test_equal_configurations_are_spelled_alike():
    config = dataclasses.replace(fashion_mnist.config(), save_seconds=5).validated()
    assert type(config.save_seconds) is float
    assert TrainConfig.from_json(config.to_json(), source="x").to_json() == config.to_json()
    with pytest.raises(ConfigError, match=r"config: epochs: expected an integer, got 2\.5"):
        dataclasses.replace(config, epochs=2.5).validated()


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"unknown recipe 'fashion-mnist': .*image_folder.*did you mean fashion_mnist"
    ):
        recipe_config("fashion-mnist")


def test_a_size_brings_its_numbers_along():
    model = changed("model.size=small").model
    assert (model.size, model.embed_dim, model.depth, model.num_heads) == ("small", 384, 12, 6)
    model = changed("model.size=small", "model.depth=12", "model.num_heads=6").model
    assert model == changed("model.size=small").model


def test_other_numbers_are_a_custom_size():
    model = changed("model.depth=6", config=image_folder.config()).model
    assert (model.size, model.embed_dim, model.depth) == ("custom", 192, 6)
    with pytest.raises(ConfigError, match=r"expected embed_dim, depth, num_heads \(192, 12, 3\) for 'tiny'"):
        dataclasses.replace(fashion_mnist.config(), model=ModelConfig(size="tiny")).validated()


def test_sizes_are_those_of_the_models():
    for name, numbers in MODEL_SIZES.items():
        config = named_config(f"vit_{name}_patch16_224")
        assert (config.embed_dim, config.depth, config.num_heads) == numbers


@pytest.mark.parametrize(("size", "expected"), [(28, 42), (14, 21), (7, 14), (35, 56)])
def test_the_second_stage_is_half_as_large_again(size, expected):
    config = changed(f"data.img_size={size}", "finetune.img_size=none")
    assert config.finetune_size == expected
    assert config.validated().finetune.img_size == expected


def test_a_stage_that_is_left_out_is_not_checked():
    changed("finetune.epochs=0", "finetune.img_size=44").validated()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(extra=1), "unknown setting.* extra"),
        (lambda data: data["optim"].pop("lr"), "missing setting.* optim.lr"),
        (lambda data: data["optim"].update(lr="x"), "optim.lr: expected a number, got 'x'"),
        (lambda data: data.update(epochs=True), "epochs: expected an integer, got True"),
        (lambda data: data.update(model=3), "model.: expected a JSON object, got 3"),
    ],
)
def test_a_damaged_config_is_explained(change, message):
    data = json.loads(fashion_mnist.config().to_json())
    change(data)
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_json(json.dumps(data), source="config.json")
    with pytest.raises(ConfigError, match=r"config\.json: not JSON"):
        TrainConfig.from_json("{", source="config.json")


def test_setting_names_are_paths():
    names = setting_names(TrainConfig)
    assert {"epochs", "optim.lr", "finetune.optim.lr", "data.img_size"} <= set(names)
    assert "optim" not in names
