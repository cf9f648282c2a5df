"""`vit-rs resample` and `vit-rs convert`: reports, one-line errors, files in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vit_rs.checkpoints import load_model, save_checkpoint
from vit_rs.cli import main
from vit_rs.models import VisionTransformer, ViTConfig

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = ViTConfig(img_size=16, patch_size=4, num_classes=5, embed_dim=12, depth=1, num_heads=3)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a file of ours and a plain state dict."""
    monkeypatch.chdir(tmp_path)
    model = VisionTransformer(CONFIG)
    save_checkpoint("vit.safetensors", model)
    torch.save(model.state_dict(), "plain.pth")
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run a command that must fail in one line; return the line."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("vit-rs: error: ")
    assert err.count("\n") == 1
    return err


def test_resample_prints_what_it_did(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resample", "vit.safetensors", "out.safetensors", "--img-size", "24x32", "--patch-size", "8"]) == 0
    assert capsys.readouterr().out == (
        "vit.safetensors (safetensors, vit-rs) -> out.safetensors\n"
        "  resampled pos_embed: 4x4 -> 3x4, timm\n"
        "  resampled patch_embed.proj.weight: 4x4 -> 8x8, timm\n"
        f"  kept bit for bit: {len(VisionTransformer(CONFIG).state_dict()) - 2} tensors\n"
    )
    config = load_model("out.safetensors").config
    assert (config.image_hw, config.patch_hw) == ((24, 32), (8, 8))
    assert {path.name for path in here.iterdir()} == {"vit.safetensors", "plain.pth", "out.safetensors"}


def test_resample_in_place_by_another_convention(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resample", "plain.pth", "plain.pth", "--img-size", "24", "--convention", "jax"]) == 0
    assert "resampled pos_embed: 4x4 -> 6x6, jax" in capsys.readouterr().out
    assert torch.load(here / "plain.pth")["pos_embed"].shape == (1, 37, 12)


def test_resample_asks_for_what_a_file_cannot_say(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["resample", "plain.pth", "out.pth", "--img-size", "8x32"]
    assert "has 17 rows" in fails(capsys, command)
    assert "--from-img-size" in fails(capsys, command)
    assert not (here / "out.pth").exists()
    assert main([*command, "--from-img-size", "16"]) == 0
    assert "4x4 -> 2x8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resample", "none.pth", "out.pth", "--img-size", "24"], "no such checkpoint: none.pth"),
        (["resample", "plain.pth", "out.pth", "--img-size", "30"], "30x30 is not divisible by the patch size 4x4"),
        (["resample", "plain.pth", "no/out.pth", "--img-size", "24"], "the folder"),
        (["resample", "plain.pth", "out.pth", "--img-size", "24", "--convention", "x"], "convention must be one of"),
        (["resample", "plain.pth", "out.pth", "--img-size", "24", "--layout", "x"], "layout must be one of"),
        (["resample", "plain.pth", "out.pth", "--img-size", "24", "--section", "x"], "no section 'x'"),
        (["convert", "plain.pth", "out.npz", "--to", "npz"], "--num-heads"),
        (["convert", "plain.pth", "out.npz", "--to", "npz", "--drop", "x"], "drop: the file has no x"),
    ],
)
def test_errors_are_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in fails(capsys, arguments)
    assert len(list(here.iterdir())) == 2


@pytest.mark.parametrize("size", ["0", "a", "16x", "16x16x16", "-16", "1.5"])
def test_sizes_that_are_none(here: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["resample", "plain.pth", "out.pth", f"--img-size={size}"])
    assert stop.value.code == 2
    assert f"expected N or HEIGHTxWIDTH in pixels, got '{size}'" in capsys.readouterr().err


def test_convert_to_google_and_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "plain.pth", "vit.npz", "--to", "npz", "--num-heads", "3"]) == 0
    assert capsys.readouterr().out == "plain.pth (timm) -> vit.npz (vision_transformer): 24 tensors\n"
    assert np.load(here / "vit.npz")["embedding/kernel"].shape == (4, 4, 3, 12)
    assert main(["convert", "vit.npz", "back.safetensors", "--to", "timm"]) == 0
    state, back = torch.load(here / "plain.pth"), load_file(here / "back.safetensors")
    assert state.keys() == back.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())
    capsys.readouterr()
    assert main(["convert", "vit.npz", "hf.safetensors", "--to", "hf", "--drop", "head"]) == 0
    assert "dropped from the file: head/kernel, head/bias (as asked)" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["resample", "convert"])
def test_help_shows_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"vit-rs {command} B_16.npz" in capsys.readouterr().out
