"""Settings: parsed by type, checked with a message that names them, the same after JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from vit_rs.exceptions import ConfigError
from vit_rs.recipes import (
    config_from_file,
    fashion_mnist,
    is_file_name,
    recipe_config,
    recipe_names,
    recipe_summary,
)
from vit_rs.training import TrainConfig
from vit_rs.training.values import (
    apply_settings,
    describe_type,
    get_setting,
    leaves,
    parse_settings,
    setting_names,
    write_value,
)


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
        ("compile=True", True),
        ("model.name=vit_small_patch16_224", "vit_small_patch16_224"),
        ("model.qk_norm=false", False),
        ("model.qk_norm=none", None),
        ("model.init_values=1e-5", 1e-5),
        ("model.layers=3, 4, 9", (3, 4, 9)),
        ("model.layers=()", ()),
        ("model.layers=none", None),
        ("model.global_pool=map", "map"),
        ("model.global_pool=None", None),
        ("model.pos_embed=none", "none"),  # the kind of that name
        ("model.pos_embed=null", None),  # as the model has it
        ("model.init_section=teacher", "teacher"),
        ("model.init=none", None),
        ("optim.layer_decay=0.75", 0.75),
        ("optim.lr_batch=256", 256),
        ("data.train_resize=none", None),
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
        ("data.augment=blur", ["expected one of shift, resized_crop, crop, got 'blur'"]),
        ("compile=1", ["--set compile: expected true or false, got '1'"]),
        ("model.rope=yes", ["expected true or false or none, got 'yes'"]),
        ("model.mlp=moe", ["expected one of mlp, swiglu or none, got 'moe'"]),
        ("model.pos_embed=3d", ["expected one of 1d, 2d, relative, ", ", none or null, got '3d'"]),
        ("model.layers=3,x", ["expected an integer, got 'x'"]),
        ("model.init=", ["--set model.init: expected a text or none, got ''"]),
        ("optim.layer_decay=auto", ["expected a number or none, got 'auto'"]),
        ("model.size=small", ["unknown setting 'model.size'", "model.name"]),
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
        ("model.num_heads=7", "model.num_heads: 7 heads do not divide embed_dim"),
        ("model.depth=0", "model.depth: expected at least 1, got 0"),
        ("model.drop_path_rate=1", r"model.drop_path_rate: expected a value in \[0, 1\), got 1.0"),
        ("model.layers=3,0", r"model.layers: expected values of at least 1, got \(3, 0\)"),
        ("model.init_section=teacher", "model.init_section: 'teacher' is for model.init, which is none"),
        ("steps=0", "steps: expected at least 1, got 0"),
        ("optim.layer_decay=0", r"optim.layer_decay: expected a value in \(0, 1\], got 0.0"),
        ("data.augment=crop", 'data.train_resize: augment "crop" needs the side'),
        ("data.train_resize=40", "data.train_resize: 40 is for augment \"crop\", got augment 'shift'"),
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
        (f"seed={2**63}", r"seed: expected less than 2\*\*63, got 9223372036854775808"),
        ("loader_threads=65537", "loader_threads: expected at most 65536, got 65537"),
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


def test_steps_of_a_stage_that_is_left_out_are_a_slip():
    with pytest.raises(ConfigError, match=r"finetune\.steps: 10 steps of a stage that finetune\.epochs=0 leaves out"):
        changed("finetune.steps=10", "finetune.epochs=0").validated()


@pytest.mark.parametrize(
    ("group", "change", "message"),
    [
        ("data", {"path": Path("photos")}, r"config: data\.path: expected a text or none, got \w+Path\('photos'\)"),
        ("optim", {"lr": math.inf}, r"config: optim\.lr: expected a number, got inf"),
        ("optim", {"lr": 10**400}, r"config: optim\.lr: expected a number, got 1000"),
        ("data", {"mean": (math.nan,)}, r"config: data\.mean: expected a number, got nan"),
    ],
)
def test_values_of_a_recipe_of_ones_own_are_checked(group, change, message):
    config = fashion_mnist.config()
    part = dataclasses.replace(getattr(config, group), **change)
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **{group: part}).validated()


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"unknown recipe 'fashion-mnist': .*image_folder.*did you mean fashion_mnist"
    ):
        recipe_config("fashion-mnist")


@pytest.mark.parametrize("name", recipe_names())
def test_every_setting_is_written_as_it_is_read(name):
    config = recipe_config(name)
    hints = {path: hint for path, hint in leaves(TrainConfig) if path != "recipe"}
    values = {path: get_setting(config, path) for path in hints}
    assert parse_settings(config, [f"{path}={write_value(values[path], hints[path])}" for path in hints]) == values
    assert describe_type(bool | None) == "true or false or none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(extra=1), "unknown setting.* extra"),
        (lambda data: data["optim"].pop("lr"), "missing setting.* optim.lr"),
        (lambda data: data["optim"].update(lr="x"), "optim.lr: expected a number, got 'x'"),
        (lambda data: data.update(epochs=True), "epochs: expected an integer, got True"),
        (lambda data: data.update(model=3), "model.: expected a JSON object, got 3"),
        (lambda data: data["optim"].update(lr=math.inf), "optim.lr: expected a number, got inf"),
    ],
)
def test_a_damaged_config_is_explained(change, message):
    data = json.loads(fashion_mnist.config().to_json())
    change(data)
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_json(json.dumps(data), source="config.json")
    for text in ("{", '{"seed": ' + "9" * 5000 + "}"):
        with pytest.raises(ConfigError, match=r"config\.json: not JSON"):
            TrainConfig.from_json(text, source="config.json")


def test_setting_names_are_paths():
    names = setting_names(TrainConfig)
    assert {"epochs", "optim.lr", "finetune.optim.lr", "data.img_size"} <= set(names)
    assert "optim" not in names


OWN = """
from dataclasses import replace
from vit_rs.recipes import recipe_config

def config():
    return replace(recipe_config("fashion_mnist"), recipe="mine", epochs=3)
"""


def test_a_recipe_may_be_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    config = config_from_file(path)
    assert (config.recipe, config.epochs) == ("mine", 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.py"]  # no __pycache__
    (tmp_path / "config.json").write_text(config.to_json())
    assert config_from_file(tmp_path / "config.json") == config
    assert [is_file_name(name) for name in ("a.py", "runs/x", "a.json", "fashion_mnist")] == [True, True, True, False]


def test_a_file_of_ones_own_runs_as_any_other_module(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Size:\n    side: dataclasses.InitVar[int] = 28\n"
        "from vit_rs.recipes.fashion_mnist import config\n"
    )
    assert config_from_file(path) == fashion_mnist.config()
    # Our own `from __future__ import annotations` is not the file's.
    path.write_text("def f(x: 3): pass\nassert f.__annotations__ == {'x': 3}, f.__annotations__\n" + OWN)
    assert config_from_file(path).recipe == "mine"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "config = 3", r"a\.py has no function config\(\); expected one that returns"),
        ("a.py", "x = 1\nconfig(", r"a\.py: line 2: SyntaxError: '\(' was never closed"),
        ("a.py", "import nonsense_of_mine", r"a\.py: line 1: ModuleNotFoundError: No module named 'nonsense_of_mine'"),
        ("a.py", "def config():\n    return 1 / 0", r"a\.py: config\(\): line 2: ZeroDivisionError: division by zero"),
        ("a.py", "import sys\n\nsys.exit(0)", r"a\.py: line 3: SystemExit: 0"),
        ("a.py", "def config():\n    raise SystemExit", r"a\.py: config\(\): line 2: SystemExit$"),
        ("a.py", "def config(n):\n    pass", r"a\.py: config\(\): TypeError: .*missing 1 required"),
        ("a.py", "def config():\n    return {'epochs': 3}", r"config\(\) returned \{'epochs': 3\}, expected a vit_rs"),
        ("a.txt", "", r"a\.txt: expected a \.py file with config\(\), or a run's config\.json"),
        ("a.json", "{", r"a\.json: not JSON"),
        ("a.json", "[]", r"a\.json: the whole file: expected a JSON object"),
    ],
)
def test_a_file_that_is_no_recipe_is_explained(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        config_from_file(tmp_path / name)
    with pytest.raises(ConfigError, match=r"is a folder.*starts the same run again.*goes on with it"):
        config_from_file(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such recipe"):
        config_from_file(tmp_path / "none.py")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config_from_file(tmp_path / "latin.py")
