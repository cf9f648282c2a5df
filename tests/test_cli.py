"""The command line: what it prints, its exit status, and errors of one line that leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vit_rs import __version__
from vit_rs.cli import main
from vit_rs.cli.main import _parser
from vit_rs.recipes import recipe_names
from vit_rs.training import TrainConfig
from vit_rs.training.values import setting_names

TINY = (
    "torch_threads=1",
    "model.embed_dim=16",
    "model.depth=1",
    "model.num_heads=2",
    "batch_size=8",
    "epochs=1",
    "finetune.epochs=1",
    "finetune.batch_size=8",
)


def tiny(*settings):
    return [part for setting in (*TINY, *settings) for part in ("--set", setting)]


def photos(root, counts=(("a", 6), ("b", 7)), ending="jpg"):
    rng = np.random.default_rng(0)
    for name, count in counts:
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (20 + number, 30, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.{ending}")
    return root


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory of its own: nothing else may appear in it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch):
    """Runs without figures, which take longer than a tiny run."""
    monkeypatch.setattr("vit_rs.cli.train._draw", lambda _folder: ())


def fails(capsys, arguments):
    """Run a command that must fail like a user's error, and return its one line."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vit-rs: error: ")
    assert captured.err.count("\n") == 1
    return captured.err.strip()


def test_the_main_job_end_to_end(here, capsys):
    assert main(["train", *tiny("data.per_class=8", "finetune.img_size=42")]) == 0
    captured = capsys.readouterr()
    folder = here / "work/runs/fashion_mnist-001"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "figures",
        "metrics.jsonl",
        "model.safetensors",
        "model-42px.safetensors",
        "summary.json",
        "summary.md",
    }
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "training_curves.png",
        "position_similarity_pretrain_28px.png",
        "position_similarity_finetune_42px.png",
        "batch_pretrain_28px.png",
        "batch_finetune_42px.png",
    }
    lines = captured.out.splitlines()
    assert lines[0].split() == ["stage", "image", "epochs", "test", "top-1", "few-shot", "top-1", "checkpoint"]
    assert lines[2].startswith("pretrain")
    assert lines[-1].startswith("Try next: ")
    assert "figures/training_curves.png" in (folder / "summary.md").read_text()
    assert main(["train", "--resume", "--out", str(folder)]) == 0
    assert "is finished already" in capsys.readouterr().err
    assert "no unfinished run" in fails(capsys, ["train", "--resume"])


@pytest.mark.parametrize("ending", ["jpg", pytest.param("png", marks=pytest.mark.slow)])
def test_a_folder_of_photographs(here, capsys, undrawn, ending):
    data = photos(here / "data", ending=ending)
    settings = tiny("data.img_size=32", "data.holdout=0.3")
    assert main(["train", "--data", "../data", "--out", "run", "--seed", "3", "--threads", "1", *settings]) == 0
    config = json.loads((here / "work/run/config.json").read_text())
    assert config["recipe"] == "image_folder"
    assert config["data"]["path"] == str(here / "data")
    assert (config["seed"], config["loader_threads"], config["finetune"]["img_size"]) == (3, 1, 48)
    summary = json.loads((here / "work/run/summary.json").read_text())
    assert summary["data"]["classes"] == ["a", "b"]
    assert summary["data"]["train_images"] == 9
    assert data.is_dir()
    assert "Try next: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["fashion"], ["unknown recipe 'fashion'", "fashion_mnist", "image_folder"]),
        (["--set", "model.name=giant"], ["model.name", "tiny", "'giant'"]),
        (["--set", "model.name=vit_tiny_patch16_224", "--set", "model.layers=1"], ["model.layers", "ViTConfig"]),
        (["none.py"], ["no such recipe", "none.py"]),
        (["../data"], ["data is a folder", "--resume --out"]),
        (["--set", "optim.rate=1"], ["unknown setting 'optim.rate'", "near names"]),
        (["--set", "epochs=many"], ["--set epochs", "an integer", "'many'"]),
        (["--set", "seed=1", "--seed", "2"], ["seed is set twice"]),
        (["--set", "data.img_size=30"], ["data.img_size", "30", "divisible", "7"]),
        (["--set", "finetune.img_size=44"], ["finetune.img_size", "44", "divisible", "7"]),
        (["--data", "none"], ["no such", "none"]),
        (["--data", "../empty"], ["empty"]),
        (["--data", "../flat"], ["flat"]),
        (["--data", "../hollow"], ["hollow", "no image in class folder b"]),
        (["--data", "../file"], ["a file", "file"]),
        (["--out", "../data"], ["data is in use"]),
        (["--out", "../file"], ["expected a folder", "file"]),
        (["--device", "nonsense"], ["device", "'nonsense'"]),
        (["--set", "model.init=none.safetensors"], ["none.safetensors"]),
        (["--threads", "0"], ["loader_threads", "at least 1"]),
        (["--resume", "--out", "none"], ["no run to resume", "none"]),
        (["--resume"], ["no unfinished run"]),
    ],
)
def test_errors_are_one_line_and_leave_nothing(here, capsys, arguments, parts):
    photos(here / "data")
    photos(here / "hollow", (("a", 2), ("b", 0)))
    (here / "empty").mkdir()
    (here / "flat").mkdir()
    (here / "flat/image.jpg").write_bytes((here / "data/a/0.jpg").read_bytes())
    (here / "file").touch()
    message = fails(capsys, ["train", *arguments])
    for part in parts:
        assert part in message
    assert not list((here / "work").iterdir())


@pytest.mark.parametrize("flat", ["empty", "flat"])
def test_data_without_images_is_explained(here, capsys, flat):
    (here / "empty").mkdir()
    (here / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(here / "flat/image.png")
    message = fails(capsys, ["train", "--data", str(here / flat)])
    assert str(here / flat) in message
    assert "class" in message


def test_a_truncated_image_is_named(here, capsys):
    data = photos(here / "data", (("a", 20), ("b", 20)))
    broken = data / "b/3.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    main(["train", "--data", str(data), "--out", "run", *tiny("data.img_size=32", "data.holdout=0.1")])
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("vit-rs: error: ")
    assert str(broken) in captured.err.splitlines()[-1]
    assert "(vit-rs doctor --full lists all such images; --set data.on_error=skip leaves them out)" in captured.err
    assert "Traceback" not in captured.err
    assert not list((here / "work").iterdir())


def test_a_checkpoint_of_another_shape(here, capsys, undrawn):
    assert main(["train", "--out", "run", *tiny("data.per_class=8")]) == 0
    capsys.readouterr()
    settings = tiny("data.per_class=8", "model.init=run/model.safetensors")
    settings[settings.index("model.depth=1")] = "model.depth=2"
    message = fails(capsys, ["train", "--out", "other", *settings])
    assert "model.depth: got 2, the model in model.init (" in message
    assert "run/model.safetensors) has 1: leave model.depth out" in message
    assert not (here / "work/other").exists()


def test_resume_keeps_the_settings(here, capsys, monkeypatch, undrawn):
    with monkeypatch.context() as patch:
        patch.setattr("vit_rs.training.loop.StageLoop.finish", lambda _self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["train", "--seed", "4", *tiny("data.per_class=8")])
    capsys.readouterr()
    for arguments, part in (
        (["--seed", "5"], "seed is 4 there, got 5"),
        (["--set", "optim.lr=1"], "optim.lr is "),
        (["--data", "x"], "data.path is None there"),
        (["image_folder"], "holds a run of fashion_mnist, got image_folder"),
    ):
        assert part in fails(capsys, ["train", "--resume", *arguments])
    # Without --out the newest unfinished run is taken; the same settings, and other loader threads, are no change.
    assert main(["train", "fashion_mnist", "--resume", "--seed", "4", "--threads", "1", "--set", "epochs=1"]) == 0
    assert (here / "work/runs/fashion_mnist-001/summary.json").is_file()


def test_list_names_the_recipes(capsys):
    assert main(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()


def test_settings_are_listed_with_their_meaning(here, capsys):
    assert main(["train", "image_folder", "--set", "optim.lr=1e-2", "--settings"]) == 0
    out = capsys.readouterr().out
    assert "\n# Highest learning rate, reached at the end of the warm-up.\noptim.lr=0.01 " in out
    # Two settings of one comment stand together; a nested setting has its full name.
    warmup = out[out.index("# Length of the warm-up") : out.index("# Learning rate at the end")].splitlines()
    assert [line.split("=")[0] for line in warmup[1:-1]] == ["optim.warmup_epochs", "optim.warmup_steps"]
    assert "model.pos_embed=null " in out
    written = [line.split(" (")[0].strip() for line in out.splitlines() if line and not line.startswith("#")]
    config = config_of(["image_folder", *(part for line in written for part in ("--set", line))])
    assert config["optim"]["lr"] == 0.01
    assert len(written) == len(setting_names(TrainConfig)) - 1
    assert not list((here / "work").iterdir())


def config_of(arguments):
    """Return the settings that a run with these arguments would have."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vit_rs.training.job.train", lambda config, *_a, **_k: seen.append(config) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["train", *arguments])
    return json.loads(seen[0].to_json())


def test_paths_are_absolute_in_a_run(here):
    given = config_of(["image_folder", "--set", "data.path=../data", "--set", "model.init=a/../b.npz"])
    assert (given["data"]["path"], given["model"]["init"]) == (str(here / "data"), str(here / "work/b.npz"))
    (here / "work/mine.py").write_text(OWN.replace("per_class=6", "per_class=6, path='photos'"))
    assert config_of(["mine.py"])["data"]["path"] == str(here / "work/photos")
    assert config_of(["mine.py", "--data", "others"])["data"]["path"] == str(here / "work/others")
    (here / "work/run").mkdir()
    (here / "work/run/config.json").write_text(json.dumps(given))
    again = config_of(["--resume", "--out", "run", "--set", "data.path=../data", "--set", "model.init=b.npz"])
    assert again == given


OWN = """
from dataclasses import replace
from vit_rs.recipes import fashion_mnist

def config():
    base = fashion_mnist.config()
    return replace(
        base,
        recipe="mine",
        epochs=1,
        batch_size=8,
        model=replace(base.model, embed_dim=16, depth=1),
        data=replace(base.data, per_class=6),
        finetune=replace(base.finetune, epochs=0),
        evaluation=replace(base.evaluation, shots=0),
    )
"""


def test_a_recipe_of_ones_own_and_the_same_run_again(here, capsys, undrawn):
    (here / "work/mine.py").write_text(OWN)
    assert main(["train", "mine.py", "--seed", "5"]) == 0
    assert main(["train", "runs/mine-001/config.json"]) == 0
    capsys.readouterr()
    assert "holds a run of mine, got fashion_mnist" in fails(
        capsys, ["train", "fashion_mnist", "--resume", "--out", "runs/mine-001"]
    )
    assert main(["train", "mine.py", "--resume", "--out", "runs/mine-001"]) == 0
    one, two = (here / "work/runs" / name for name in ("mine-001", "mine-002"))
    for name in ("config.json", "model.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_reader_that_goes_away_is_no_error(monkeypatch, capsys):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["train", "--list"]) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_and_version(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "vit-rs" in text
    if "train" in arguments:
        assert "fashion_mnist" in text
        assert "--resume" in text
    if "--version" in arguments:
        assert text == f"vit-rs {__version__}\n"


def test_every_command_has_examples_that_parse(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert {"train", "eval", "predict", "plot", "resample", "convert", "doctor"} <= set(commands)
    for command in commands:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        examples = re.findall(rf"^  vit-rs ({command}.*)$", text[text.index("examples:") :], re.MULTILINE)
        assert examples, command
        for example in examples:
            assert callable(_parser().parse_args(shlex.split(example)).run)


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["train", "--seed", "x"]])
def test_wrong_usage_is_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: vit-rs" in capsys.readouterr().err


def test_an_unknown_option_shows_the_command_s_own_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["knn", "m.safetensors", "--shots", "5"])
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("usage: vit-rs knn ")
    assert told.endswith("vit-rs knn: error: unrecognized arguments: --shots 5\n")


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("vit_rs.training.job.open_sources", "stopped before training began"),
        ("vit_rs.training.loop.StageLoop.finish", "stopped by SIGINT before anything was trained"),
        ("vit_rs.cli.train._recipe", "stopped"),
    ],
)
def test_ctrl_c_is_one_line_wherever_it_comes(here, capsys, monkeypatch, where, told):
    def stop(*_arguments, **_more):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(where, stop)
    assert main(["train", *tiny("data.per_class=8")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"vit-rs: {told}"
    assert not any((here / "work").rglob("*.*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="its recipe would run")
def test_a_device_that_the_recipe_asks_for(here, capsys):
    hint = "; the recipe vit_s16_i1k asks for it: --device cpu trains on the processor"
    data = ["--data", str(photos(here / "data"))]
    message = fails(capsys, ["train", "vit_s16_i1k", *data])
    assert "device 'cuda' cannot be used: " in message
    assert message.endswith(hint)
    for asked in (["--device", "cuda"], ["--set", "device=cuda"]):
        assert hint not in fails(capsys, ["train", "vit_s16_i1k", *data, *asked])


def test_the_module_is_the_command():
    arguments = [sys.executable, "-m", "vit_rs", "train", "--list"]
    process = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "\nfashion_mnist " in process.stdout


def test_the_command_line_imports_nothing_heavy_by_itself():
    program = """
import sys, vit_rs
before = set(sys.modules)
from vit_rs.cli import main
try:
    main(["train", "--help"])
except SystemExit:
    print(*sorted(set(sys.modules) - before))
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    added = process.stdout.splitlines()[-1].split()
    assert "vit_rs.training.config" in added
    heavy = ("torch", "tqdm", "matplotlib", "vit_rs.data", "vit_rs.models")
    assert not [name for name in added if name.startswith(heavy)]
