"""Files of weights at another size: the peers' own results, every other byte as it was, the old file or the new one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.ndimage
import timm
import torch
import torchvision
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import vit_rs
from vit_rs.checkpoints import load_model, resize_checkpoint, save_checkpoint
from vit_rs.checkpoints.files import open_weights
from vit_rs.exceptions import CheckpointError
from vit_rs.models import BiTResNet, ResNetConfig, VisionTransformer, ViTConfig

if TYPE_CHECKING:
    from pathlib import Path

TINY = ViTConfig(img_size=16, patch_size=4, num_classes=5, embed_dim=12, depth=2, num_heads=3)


def tiny_state(seed: int = 0, **changes: object) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    state = VisionTransformer(ViTConfig.from_dict({**TINY.to_dict(), **changes})).state_dict()
    return {key: torch.randn_like(tensor) for key, tensor in state.items()}


def contents(path: Path) -> dict[str, Tensor]:
    with open_weights(path) as file:
        return {key: file.read(key).clone() for key in file.tensors}


def assert_same_but(path: Path, out: Path, changed: set[str]) -> None:
    """All tensors but these have the old bytes and the old order; nothing came or went."""
    old, new = contents(path), contents(out)
    assert list(old) == list(new)
    for key, tensor in old.items():
        same = tensor.dtype == new[key].dtype and tensor.shape == new[key].shape
        same = same and torch.equal(tensor.contiguous().view(torch.uint8), new[key].contiguous().view(torch.uint8))
        assert same == (key not in changed), key


def assert_close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6 * want.abs().max().item())


SIZES = [(384, 384), (192, 320), (112, 112), (112, 448)]
PARITY = pytest.mark.parity


@PARITY
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_files(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    state = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=12, num_heads=3, num_classes=5).state_dict()
    state = {key: torch.randn_like(tensor) for key, tensor in state.items()}
    path, out = tmp_path / f"vit{suffix}", tmp_path / f"out{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    grid = (size[0] // 16, size[1] // 16)
    if grid == (7, 28):  # as many as 14 x 14
        with pytest.raises(CheckpointError, match=r"pos_embed has 197 rows.*arrive at is 7x28\): pass from_img_size"):
            resize_checkpoint(path, img_size=size, out=out)
        assert not out.exists()
        report = resize_checkpoint(path, img_size=size, out=out, from_img_size=224)
    else:
        report = resize_checkpoint(path, img_size=size, out=out)
    assert report.resampled == (("pos_embed", (14, 14), grid, "timm"),)
    assert report.models == (("", "timm"),)
    assert_same_but(path, out, {"pos_embed"})
    want = timm.layers.resample_abs_pos_embed(state["pos_embed"], list(grid), [14, 14], num_prefix_tokens=1)
    assert_close(contents(out)["pos_embed"], want)
    assert report.kept == len(state) - 1
    assert str(report).splitlines() == [
        f"{path} ({'safetensors' if suffix == '.safetensors' else 'torch'}, timm) -> {out}",
        f"  resampled pos_embed: 14x14 -> {grid[0]}x{grid[1]}, timm",
        f"  kept bit for bit: {len(state) - 1} tensors",
        *(
            [f"  note: the file cannot say that its grid is no square: load it with img_size={size}"]
            * (grid[0] != grid[1])
        ),
    ]


@PARITY
@pytest.mark.parametrize("side", [384, 160])
def test_torchvision_files(tmp_path: Path, side: int) -> None:
    state = torchvision.models.VisionTransformer(224, 16, 1, 3, 12, 24, num_classes=5).state_dict()
    state = {key: torch.randn_like(tensor) for key, tensor in state.items()}
    path, out = tmp_path / "vit.pth", tmp_path / "out.pth"
    torch.save(state, path)
    resize_checkpoint(path, img_size=side, out=out)
    assert_same_but(path, out, {"encoder.pos_embedding"})
    want = torchvision.models.vision_transformer.interpolate_embeddings(side, 16, dict(state))
    assert_close(torch.load(out)["encoder.pos_embedding"], want["encoder.pos_embedding"])


@PARITY
def test_transformers_files(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "patch_size": 16}
    peer = transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, intermediate_size=24, image_size=224, num_labels=5)
    ).eval()
    path, out = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    save_file({key: torch.randn_like(tensor) for key, tensor in peer.state_dict().items()}, path)
    report = resize_checkpoint(path, img_size=(192, 320), out=out)
    assert "config.json" in str(report)
    key = "vit.embeddings.position_embeddings"
    assert_same_but(path, out, {key})
    peer.load_state_dict(load_file(path))
    larger = transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, intermediate_size=24, image_size=(192, 320), num_labels=5)
    ).eval()
    larger.load_state_dict(load_file(out))
    images = torch.randn(2, 3, 192, 320)
    with torch.no_grad():
        want = peer(images, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(larger(images).logits, want, rtol=0, atol=1e-5 * want.abs().max().item())


@PARITY
@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_google_files(tmp_path: Path, prefix: str) -> None:
    table = np.random.default_rng(0).normal(size=(1, 197, 12)).astype(np.float32)
    block = "Transformer/encoderblock_0/"
    arrays = {
        "cls": np.ones((1, 1, 12)),
        "embedding/kernel": np.ones((16, 16, 3, 12)),
        "Transformer/posembed_input/pos_embedding": table,
        f"{block}LayerNorm_0/scale": np.ones(12),
        f"{block}LayerNorm_2/scale": np.ones(12),
    }
    path, out = tmp_path / "vit.npz", tmp_path / "out.npz"
    np.savez(path, **{prefix + key: array.astype(np.float32) for key, array in arrays.items()})
    report = resize_checkpoint(path, img_size=(384, 320), patch_size=32, out=out)
    assert report.models == ((prefix, "vision_transformer"),)
    table_key, kernel_key = prefix + "Transformer/posembed_input/pos_embedding", prefix + "embedding/kernel"
    assert report.resampled == (
        (table_key, (14, 14), (12, 10), "jax"),
        (kernel_key, (16, 16), (32, 32), "flexi"),
    )
    assert_same_but(path, out, {table_key, kernel_key})
    new = np.load(out)
    assert new[kernel_key].shape == (32, 32, 3, 12)
    assert new[table_key].dtype == np.float32
    grid = scipy.ndimage.zoom(table[0, 1:].reshape(14, 14, 12), (12 / 14, 10 / 14, 1), order=1).reshape(120, 12)
    np.testing.assert_allclose(new[table_key][0, 1:], grid, rtol=0, atol=2e-6 * np.abs(grid).max())
    assert np.array_equal(new[table_key][0, 0], table[0, 0])


def test_tables_of_half_precision_keep_it(tmp_path: Path) -> None:
    state = {key: tensor.bfloat16() for key, tensor in tiny_state().items()}
    path = tmp_path / "vit.safetensors"
    save_file(state, path)
    resize_checkpoint(path, img_size=24, patch_size=2, out=path)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "pos_embedding": state["pos_embed"][:, 1:],
        "Transformer/encoderblock_0/LayerNorm_0/scale": state["norm.weight"],
    }
    raw = {key: array.contiguous().view(torch.int16).numpy().view("V2") for key, array in arrays.items()}
    np.savez(tmp_path / "vit.npz", **raw)
    resize_checkpoint(tmp_path / "vit.npz", img_size=24, out=tmp_path / "out.npz")
    new = np.load(tmp_path / "out.npz")["pos_embedding"]
    assert (new.shape, new.dtype) == ((1, 36, 12), np.dtype("V2"))


def test_every_model_in_a_file_is_resized(tmp_path: Path) -> None:
    path = tmp_path / "run.pth"
    first, second = tiny_state(), tiny_state(1)
    more = {"optimizer": {"state": {}, "lr": 0.1}, "epoch": 7}
    torch.save({"state_dict": first, "state_dict_ema": second, **more}, path)
    report = resize_checkpoint(path, img_size=24, out=path)
    assert [entry.key for entry in report.resampled] == ["state_dict/pos_embed", "state_dict_ema/pos_embed"]
    new = torch.load(path)
    assert {key: new[key] for key in more} == more
    for name, old in (("state_dict", first), ("state_dict_ema", second)):
        want = timm.layers.resample_abs_pos_embed(old["pos_embed"], [6, 6], [4, 4])
        assert_close(new[name]["pos_embed"], want)
    torch.save({"state_dict": first, "state_dict_ema": second}, path)
    resize_checkpoint(path, img_size=24, out=path, section="state_dict_ema")
    new = torch.load(path)
    assert (new["state_dict"]["pos_embed"].shape[1], new["state_dict_ema"]["pos_embed"].shape[1]) == (17, 37)


def test_the_optimizers_state_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "run.pth"
    torch.save({"model": tiny_state(), "optimizer": {"state": {0: {"exp_avg": torch.ones(1, 17, 12)}}}}, path)
    assert (
        "the optimizer's state in the file is that of the old sizes"
        in resize_checkpoint(path, img_size=24, out=path).notes
    )
    assert torch.load(path)["optimizer"]["state"][0]["exp_avg"].shape == (1, 17, 12)


def test_maes_decoder_follows(tmp_path: Path) -> None:
    path, out = tmp_path / "mae.pth", tmp_path / "out.pth"
    decoder = {"decoder_pos_embed": torch.randn(1, 17, 6), "decoder_embed.weight": torch.ones(6, 12)}
    torch.save({"model": tiny_state() | decoder | {"mask_token": torch.ones(1, 1, 6)}}, path)
    report = resize_checkpoint(path, img_size=(8, 24), out=out)
    assert [(entry.key, entry.to_size, entry.convention) for entry in report.resampled] == [
        ("model/pos_embed", (2, 6), "mae"),
        ("model/decoder_pos_embed", (2, 6), "mae"),
    ]
    grid = decoder["decoder_pos_embed"][:, 1:].reshape(1, 4, 4, 6).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(grid, size=(2, 6), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    new = torch.load(out)["model"]["decoder_pos_embed"]
    assert_close(new[:, 1:], want)
    assert torch.equal(new[:, :1], decoder["decoder_pos_embed"][:, :1])
    torch.save({"model": tiny_state() | decoder | {"decoder_pos_embed": torch.randn(1, 16, 6)}}, path)
    with pytest.raises(CheckpointError, match=r"mae\.pth: model/decoder_pos_embed: got shape \(1, 16, 6\), expected"):
        resize_checkpoint(path, img_size=(8, 24), out=out)


ENCODINGS: list[dict[str, object]] = [
    {},
    {"reg_tokens": 4},
    {"class_token": False, "global_pool": "avg"},
    {"no_embed_class": True},
    {"pos_placement": "every"},
    {"pos_embed": "2d", "pos_placement": "every"},
    {"pos_embed": "relative"},
    {"pos_embed": "sincos2d_mae"},
    {"pos_embed": "none"},
]


@pytest.mark.parametrize("fields", ENCODINGS)
def test_our_own_files_load_at_the_new_size(tmp_path: Path, fields: dict[str, object]) -> None:
    path, out = tmp_path / "vit.safetensors", tmp_path / "out.safetensors"
    config = ViTConfig.from_dict({**TINY.to_dict(), "pos_convention": "jax", "dynamic_img_size": True, **fields})
    model = VisionTransformer(config).eval()
    model.load_state_dict({key: torch.randn_like(tensor) for key, tensor in model.state_dict().items()})
    save_checkpoint(path, model, metadata={"mean": [0.5]})
    report = resize_checkpoint(path, img_size=(12, 24), out=out)
    larger = load_model(out).eval()
    assert larger.config.image_hw == (12, 24)
    assert larger.config.to_dict() == {**config.to_dict(), "img_size": (12, 24)}
    images = torch.randn(2, 3, 12, 24)
    want = model(images)
    torch.testing.assert_close(larger(images), want, rtol=0, atol=1e-5 * max(1, want.abs().max().item()))
    assert_same_but(path, out, {entry.key for entry in report.resampled})
    with safe_open(out, "pt") as file:
        assert '"mean": [0.5]' in file.metadata()["vit_rs"]
    if fields.get("pos_embed") == "none":
        assert report.resampled == ()
        assert "no position table: only the patch kernel depends on a size" in str(report)
    resize_checkpoint(out, img_size=(24, 24), patch_size=(8, 4), out=out)
    assert load_model(out).config.grid_size == (3, 6)
    if fields.get("pos_embed") != "none":
        with pytest.raises(CheckpointError, match=r"from_img_size=16 means a grid of 2x4, .* says 3x6"):
            resize_checkpoint(out, img_size=24, out=out, from_img_size=16)


def test_equal_sizes_change_nothing(tmp_path: Path) -> None:
    path, out = tmp_path / "vit.pth", tmp_path / "out.pth"
    torch.save(tiny_state(), path)
    report = resize_checkpoint(path, img_size=16, patch_size=4, convention="dino", out=out)
    assert report.resampled == ()
    assert_same_but(path, out, set())


def test_traps_of_rows_and_grids(tmp_path: Path) -> None:
    path, out = tmp_path / "vit.pth", tmp_path / "out.pth"
    torch.save(tiny_state(), path)
    with pytest.raises(CheckpointError, match=r"has 17 rows.*arrive at is 2x8\): pass from_img_size=\(height, width\)"):
        resize_checkpoint(path, img_size=(8, 32), out=out)
    resize_checkpoint(path, img_size=(8, 32), from_img_size=16, out=out)
    assert not torch.equal(torch.load(out)["pos_embed"], torch.load(path)["pos_embed"])
    resize_checkpoint(path, img_size=(8, 32), from_img_size=(8, 32), out=out)
    assert torch.equal(torch.load(out)["pos_embed"], torch.load(path)["pos_embed"])
    torch.save(tiny_state(no_embed_class=True), path)  # 16 rows, and a class token
    with pytest.raises(CheckpointError, match="has 16 rows, 1 of them before the grid's in files of this kind"):
        resize_checkpoint(path, img_size=24, out=out)
    resize_checkpoint(path, img_size=24, from_img_size=16, out=out)
    assert torch.load(out)["pos_embed"].shape == (1, 36, 12)
    with pytest.raises(CheckpointError, match=r"vit\.pth: pos_embed has 16 rows; a grid of 3x3 has 9, .* not 7"):
        resize_checkpoint(path, img_size=24, from_img_size=12, out=out)


@pytest.mark.parametrize("key", ["pos_embed", "patch_embed.proj.weight"])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "vit.pth"
    state = tiny_state()
    state[key].view(-1)[5] = float("nan")
    torch.save(state, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=rf"vit\.pth: {key}: 1 of [0-9]+ values are NaN or infinite"):
        resize_checkpoint(path, img_size=24, patch_size=3, out=path)
    assert path.read_bytes() == before


def test_what_cannot_be_resized_says_so(tmp_path: Path) -> None:
    path, out = tmp_path / "bit.pth", tmp_path / "out.pth"
    torch.save(BiTResNet(ResNetConfig(layers=(1,), num_classes=2)).state_dict(), path)
    with pytest.raises(CheckpointError, match="without patches takes images of any size: there is nothing to resize"):
        resize_checkpoint(path, img_size=24, out=out)
    torch.save({"weight": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match=r"bit\.pth: no model in any layout that is known"):
        resize_checkpoint(path, img_size=24, out=out)
    torch.save(tiny_state(), path)
    with pytest.raises(ValueError, match="img_size 30x30 is not divisible by the patch size 4x4"):
        resize_checkpoint(path, img_size=30, out=out)
    with pytest.raises(ValueError, match="convention must be one of 'timm', "):
        resize_checkpoint(path, img_size=24, convention="bicubic", out=out)
    with pytest.raises(ValueError, match=r"patch_size must be one positive integer or \(height, width\), got 0"):
        resize_checkpoint(path, img_size=24, patch_size=0, out=out)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        resize_checkpoint(tmp_path / "none.pth", img_size=24, out=out)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        resize_checkpoint(path, img_size=24, out=tmp_path / "none" / "out.pth")
    assert not out.exists()
    torch.save(tiny_state(pos_embed="2d"), path)
    with pytest.raises(CheckpointError, match="tables of this kind are resized only in files of save_checkpoint"):
        resize_checkpoint(path, img_size=24, out=out)


@pytest.mark.parametrize("name", ["vit.safetensors", "vit.pth"])
def test_whatever_stops_it_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(tiny_state(), path)
    before = path.read_bytes()

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        resize_checkpoint(path, img_size=24, out=path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_one_call_from_the_top() -> None:
    assert vit_rs.resize_checkpoint is resize_checkpoint
