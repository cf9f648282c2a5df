"""Arguments that cannot be, and files with parts that cannot follow another size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vit_rs.checkpoints import convert, load_pretrained, resize_checkpoint, save_checkpoint
from vit_rs.checkpoints.files import open_weights
from vit_rs.cli import main
from vit_rs.exceptions import CheckpointError
from vit_rs.models import VisionTransformer, ViTConfig

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

TINY = ViTConfig(img_size=16, patch_size=4, num_classes=5, embed_dim=12, depth=1, num_heads=3)


def state(**fields: object) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return VisionTransformer(ViTConfig.from_dict({**TINY.to_dict(), **fields})).state_dict()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a plain state dict."""
    monkeypatch.chdir(tmp_path)
    torch.save(state(), "vit.pth")
    return tmp_path


@pytest.mark.parametrize("heads", [0, -3, True, 3.0, "3"])
def test_numbers_of_heads(here: Path, heads: Any) -> None:
    with pytest.raises(ValueError, match=r"num_heads must be None or an integer of at least 1, got"):
        convert("vit.pth", "out.npz", to="npz", num_heads=heads)
    assert convert("vit.pth", "out.npz", to="npz", num_heads=np.int64(3)).written


@pytest.mark.parametrize(
    ("to", "out"), [("timm", "x.npz"), ("timm", "x.pth"), ("hf", "x.BIN"), ("npz", "x.pt"), ("npz", "x.safetensors")]
)
def test_endings_that_say_another_container(here: Path, to: Any, out: str) -> None:
    with pytest.raises(ValueError, match=rf"{out}: the file will be .*, but its name says .*: choose another ending"):
        convert("no file is opened", out, to=to, num_heads=3)
    if to == "timm":
        convert("vit.pth", "x.ckpt", to=to)
        with pytest.raises(ValueError, match="the file will be torch, but its name says safetensors"):
            resize_checkpoint("vit.pth", img_size=24, out="x.safetensors")
        resize_checkpoint("vit.pth", img_size=24, out="x.pt")
        with pytest.raises(ValueError, match="the file will be safetensors, but its name says torch"):
            save_checkpoint("x.pth", VisionTransformer(TINY))


@pytest.mark.parametrize("drop", ["", [""], ["head", ""], [3]])
def test_names_to_drop(here: Path, drop: Any) -> None:
    with pytest.raises(ValueError, match="drop must be names, or beginnings of names, and none of them empty, got"):
        convert("vit.pth", "out", drop=drop)


def test_one_name_to_drop_and_all(here: Path) -> None:
    report = convert("vit.pth", "out", drop="head")
    assert [key for key, _ in report.dropped] == ["head.weight", "head.bias"]
    every = ["cls_token", "pos_embed", "patch_embed", "blocks", "norm", "head"]
    with pytest.raises(ValueError, match=r"drop: nothing is left of vit\.pth"):
        convert("vit.pth", "all", drop=every)
    assert not (here / "all").exists()


@pytest.mark.parametrize("convention", [5, [], b"timm"])
def test_conventions_of_another_type(here: Path, convention: Any) -> None:
    with pytest.raises(ValueError, match="convention must be one of 'timm', "):
        resize_checkpoint("vit.pth", img_size=24, convention=convention, out="out")
    with pytest.raises(ValueError, match="convention must be one of 'timm', "):
        load_pretrained(VisionTransformer(TINY), "vit.pth", convention=convention)


def test_sizes_are_any_integers(here: Path) -> None:
    resize_checkpoint("vit.pth", img_size=np.int64(24), out="a.pth")
    resize_checkpoint("vit.pth", img_size=(np.uint8(24), torch.tensor(24)), out="b.pth")  # type: ignore[arg-type]
    assert torch.equal(torch.load("a.pth")["pos_embed"], torch.load("b.pth")["pos_embed"])
    for size in (24.0, np.float32(24), (24, True), (24,), "24", None):
        with pytest.raises(ValueError, match="img_size must be one positive integer or"):
            resize_checkpoint("vit.pth", img_size=size, out="c.pth")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--img-size", "999996"], "means 249999x249999 patches of 4x4, expected at most 1048576"),
        (["--img-size", "9990", "--patch-size", "999"], "patch_size 999x999 has 998001 pixels, expected at most 16384"),
        (["--img-size", "16", "--from-img-size", "999996"], "means 249999x249999 patches of 4x4"),
    ],
)
def test_absurd_sizes_are_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["resample", "vit.pth", "out.pth", *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_no_memory_is_one_line(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["resample", "vit.pth", "out.pth", "--img-size", "24"]

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("vit_rs.checkpoints.resize_checkpoint", full)
    assert main(command) == 2
    assert capsys.readouterr().err == "vit-rs: error: not enough memory\n"
    monkeypatch.setattr("vit_rs.checkpoints.resize_checkpoint", lambda *_, **__: torch.empty(2**55))
    assert main(command) == 2
    err = capsys.readouterr().err
    assert err.startswith("vit-rs: error: not enough memory: ")
    assert err.count("\n") == 1
    monkeypatch.setattr("vit_rs.checkpoints.resize_checkpoint", lambda *_, **__: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        main(command)


def test_moments_are_not_resized(here: Path) -> None:
    torch.save(state(), "vit.pth")
    convert("vit.pth", "vit.npz", to="npz", num_heads=3)
    with np.load("vit.npz") as arrays:
        model = dict(arrays)
    moments = {f"opt/0/{name}/{key}": array for name in ("mu", "nu") for key, array in model.items()}
    np.savez("run.npz", **{f"params/{key}": array for key, array in model.items()}, **moments)  # type: ignore[arg-type]
    report = resize_checkpoint("run.npz", img_size=24, out="out.npz")
    assert [section for section, _ in report.models] == ["params/"]
    assert [entry.key for entry in report.resampled] == ["params/Transformer/posembed_input/pos_embedding"]
    assert report.notes == ("the optimizer's state in the file is that of the old sizes",)
    with open_weights("out.npz") as file:
        assert {file.tensors[key].shape[1] for key in file.tensors if key.endswith("pos_embedding")} == {37, 17}


def test_a_decoder_of_the_old_patches(here: Path) -> None:
    decoder = {"decoder_embed.weight": torch.ones(8, 12), "decoder_pos_embed": torch.ones(1, 17, 8)}
    pixels = {"decoder_pred.weight": torch.ones(48, 8), "decoder_pred.bias": torch.ones(48)}
    torch.save(state(num_classes=0) | decoder | pixels, "mae.pth")
    with pytest.raises(CheckpointError, match=r"decoder_pred\.weight, .*predicts the pixels of patches of 4x4, .*8x8"):
        resize_checkpoint("mae.pth", img_size=16, patch_size=8, out="out.pth")
    resize_checkpoint("mae.pth", img_size=24, patch_size=4, out="out.pth")
    convert("mae.pth", "encoder.safetensors")
    resize_checkpoint("encoder.safetensors", img_size=16, patch_size=8, out="out.safetensors")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.ones(1, 17, 8, dtype=torch.int32), "got torch.int32, expected floating point"),
        (torch.ones(1, 17, 0), r"got shape \(1, 17, 0\), expected the rows of mae\.pth: pos_embed"),
        (torch.ones(0, 17, 8), r"got shape \(0, 17, 8\), expected the rows of mae\.pth: pos_embed"),
    ],
)
def test_tables_of_a_decoder_that_are_none(here: Path, table: Tensor, message: str) -> None:
    decoder = {"decoder_embed.weight": torch.ones(8, 12), "decoder_pos_embed": table}
    torch.save(state(num_classes=0) | decoder, "mae.pth")
    with pytest.raises(CheckpointError, match=rf"mae\.pth: decoder_pos_embed: {message}"):
        resize_checkpoint("mae.pth", img_size=24, out="out.pth")


@pytest.mark.parametrize("key", ["blocks.0.attn.relative_position_bias_table", "rel_pos_bias.table"])
def test_relative_positions_of_others(here: Path, key: str) -> None:
    save_file(state() | {key: torch.ones(52, 3)}, "beit.safetensors")
    with pytest.raises(CheckpointError, match=rf"no way to resize {key}, whose shape follows the grid"):
        resize_checkpoint("beit.safetensors", img_size=24, out="out.safetensors")
    without = {name: tensor for name, tensor in state().items() if name != "pos_embed"}
    save_file(without | {key: torch.ones(52, 3)}, "beit.safetensors")
    with pytest.raises(CheckpointError, match=f"no way to resize {key}"):
        resize_checkpoint("beit.safetensors", img_size=24, out="out.safetensors")


def test_what_a_layout_does_not_know_is_noted(here: Path) -> None:
    save_file(state() | {"extra.weight": torch.ones(3)}, "vit.safetensors")
    report = resize_checkpoint("vit.safetensors", img_size=24, out="out.safetensors")
    assert report.notes == ("kept as they are, though the layout does not know them: extra.weight",)
