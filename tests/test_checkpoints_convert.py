"""Weights under other projects' names: read by the projects themselves, back bit for bit, and nothing lost unsaid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vit_rs.checkpoints import convert, load_model, load_pretrained, save_checkpoint
from vit_rs.checkpoints.files import open_weights
from vit_rs.exceptions import CheckpointError
from vit_rs.models import BiTResNet, HybridConfig, HybridViT, ResNetConfig, VisionTransformer, ViTConfig

if TYPE_CHECKING:
    from pathlib import Path

PARITY = pytest.mark.parity
TINY = ViTConfig(img_size=16, patch_size=4, num_classes=5, embed_dim=24, depth=2, num_heads=3)
HF: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 16,
    "patch_size": 4,
}


def noisy(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def ours(**fields: object) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(ViTConfig.from_dict({**TINY.to_dict(), **fields}))
    noisy(model)
    return model


def equal_files(first: Path, second: Path) -> bool:
    with open_weights(first) as a, open_weights(second) as b:
        return a.tensors == b.tensors and all(
            torch.equal(a.read(key).contiguous().view(torch.uint8), b.read(key).contiguous().view(torch.uint8))
            for key in a.tensors
        )


def assert_equal_logits(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * max(1.0, want.abs().max().item()))


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@PARITY
def test_to_transformers(tmp_path: Path) -> None:
    model = ours(norm_eps=1e-12)
    save_checkpoint(tmp_path / "vit.safetensors", model)
    out = tmp_path / "hf" / "model.safetensors"
    transformers.ViTConfig(**HF, num_labels=5).save_pretrained(out.parent)
    report = convert(tmp_path / "vit.safetensors", out, to="hf")
    assert (report.from_layout, report.to_layout, report.dropped) == ("vit-rs", "hf-vit", ())
    peer, loading = transformers.ViTForImageClassification.from_pretrained(out.parent, output_loading_info=True)
    assert not any(loading.values())
    with torch.no_grad():
        assert_equal_logits(model(IMAGES), peer(IMAGES).logits)
    assert str(report) == (
        f"{tmp_path / 'vit.safetensors'} (vit-rs) -> {out} (hf-vit): {len(peer.state_dict())} tensors\n"
        "  note: no tensor says num_heads=3: config.json must"
    )


@PARITY
def test_to_timm_and_npz(tmp_path: Path) -> None:
    peer = transformers.ViTForImageClassification(transformers.ViTConfig(**HF, num_labels=5, layer_norm_eps=1e-6))
    noisy(peer)
    save_file(peer.state_dict(), tmp_path / "hf.safetensors")
    convert(tmp_path / "hf.safetensors", tmp_path / "timm.safetensors", to="timm")
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    theirs = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    theirs.load_state_dict(load_file(tmp_path / "timm.safetensors"))
    with torch.no_grad():
        want = peer(IMAGES).logits
        assert_equal_logits(theirs(IMAGES), want)
    with pytest.raises(CheckpointError, match=r"hf\.safetensors: the file does not say its number of attention heads"):
        convert(tmp_path / "hf.safetensors", tmp_path / "vit.npz", to="npz")
    convert(tmp_path / "hf.safetensors", tmp_path / "vit.npz", to="npz", num_heads=3)
    theirs = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    theirs.load_pretrained(str(tmp_path / "vit.npz"))
    assert_equal_logits(theirs(IMAGES), want)


@pytest.mark.parametrize(
    ("fields", "layout"),
    [
        ({}, "vision_transformer"),
        ({"representation_size": 8}, "vision_transformer"),
        ({"no_embed_class": True}, "big_vision"),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "big_vision"),
        ({"class_token": False, "global_pool": "map"}, "big_vision"),
        ({"act": "gelu_tanh", "img_size": (16, 8)}, "vision_transformer"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_npz_to_timm_and_back(tmp_path: Path, fields: dict[str, object], layout: str, dtype: torch.dtype) -> None:
    model = ours(**fields).to(dtype)
    save_checkpoint(tmp_path / "vit.npz", model)
    size = model.config.image_hw
    report = convert(tmp_path / "vit.npz", tmp_path / "timm.safetensors", to="timm")
    assert (report.from_layout, report.to_layout) == (layout, "timm")
    state = load_file(tmp_path / "timm.safetensors")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    convert(tmp_path / "timm.safetensors", tmp_path / "back.npz", to="npz", num_heads=3, from_img_size=size)
    assert equal_files(tmp_path / "vit.npz", tmp_path / "back.npz")
    again = ours(**fields).to(dtype)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    load_pretrained(again, tmp_path / "vit.npz", img_size=size)
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in model.state_dict().items())


def test_hybrids_and_resnets_go_through_npz(tmp_path: Path) -> None:
    hybrid = HybridViT(
        HybridConfig(
            img_size=32, patch_size=1, backbone_layers=(1, 1), num_classes=5, embed_dim=24, depth=1, num_heads=3
        )
    )
    resnet = BiTResNet(ResNetConfig(layers=(1, 2), num_classes=3))
    for name, model, layout in (("hybrid", hybrid, "vision_transformer"), ("bit", resnet, "big_transfer")):
        noisy(model)
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(path, model)
        report = convert(path, tmp_path / f"{name}.npz", to="npz")
        assert (report.from_layout, report.to_layout) == ("vit-rs", layout)
        save_checkpoint(tmp_path / "direct.npz", model)
        assert equal_files(tmp_path / f"{name}.npz", tmp_path / "direct.npz")
        again = load_model(path)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.zero_()
        report = load_pretrained(again, tmp_path / "direct.npz")
        assert (report.layout, report.missing, report.dropped) == (layout, (), ())
        assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("fields", "layout"),
    [
        ({}, "hf-vit"),
        ({"distilled": True}, "hf-deit"),
        ({"num_classes": 0, "init_values": 1.0}, "hf-dinov2"),
        ({"num_classes": 0, "init_values": 1.0, "mlp": "swiglu"}, "hf-dinov2"),
        ({"num_classes": 0, "init_values": 1.0, "reg_tokens": 4, "no_embed_class": True}, "hf-dinov2-reg"),
    ],
)
def test_timm_to_transformers_and_back(tmp_path: Path, fields: dict[str, object], layout: str) -> None:
    save_file(ours(**fields).state_dict(), tmp_path / "timm.safetensors")
    report = convert(tmp_path / "timm.safetensors", tmp_path / "hf.safetensors", to="hf")
    assert report.to_layout == layout
    assert report.filled == (("cls_token",) if "no_embed_class" in fields else ())
    assert convert(tmp_path / "hf.safetensors", tmp_path / "back.safetensors", to="timm").dropped == ()
    assert equal_files(tmp_path / "timm.safetensors", tmp_path / "back.safetensors")


def test_rows_that_the_target_needs_are_zero_and_others_merged(tmp_path: Path) -> None:
    registers = {"num_classes": 0, "init_values": 1.0, "reg_tokens": 4}
    every, path, out = ours(**registers), tmp_path / "every.safetensors", tmp_path / "hf.safetensors"
    save_checkpoint(path, every)
    report = convert(path, out, to="hf")
    assert (report.merged, report.filled) == (("reg_token",), ())
    assert "position added into the token itself: reg_token" in str(report)
    state, new = every.state_dict(), load_file(out)
    assert torch.equal(new["embeddings.register_tokens"], state["reg_token"] + state["pos_embed"][:, 1:5])
    assert torch.equal(new["embeddings.position_embeddings"], state["pos_embed"][:, [0, *range(5, 21)]])
    # timm's models with registers have a row for none of the tokens.
    report = convert(out, tmp_path / "timm.safetensors", to="timm")
    assert (report.merged, report.filled) == (("cls_token",), ())
    peer = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=0, init_values=1.0, reg_tokens=4,
        no_embed_class=True,
    ).eval()  # fmt: skip
    peer.load_state_dict(load_file(tmp_path / "timm.safetensors"))
    torch.testing.assert_close(peer(IMAGES), every(IMAGES), rtol=0, atol=1e-5)
    model = ours(**registers)
    load_pretrained(model, tmp_path / "timm.safetensors")
    torch.testing.assert_close(model(IMAGES), every(IMAGES), rtol=0, atol=1e-5)

    save_file(ours(no_embed_class=True).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"pos_embed has 16 rows.*: pass from_img_size"):
        convert(path, out, to="hf")
    assert convert(path, out, to="hf", from_img_size=16).filled == ("cls_token",)


@pytest.mark.parametrize(
    ("fields", "to", "message"),
    [
        ({"reg_tokens": 2}, "npz", "no place for reg_token"),
        ({"init_values": 0.1}, "npz", r"no place for blocks\.0\.ls1\.gamma"),
        ({"distilled": True}, "npz", "no place for dist_token, head_dist.weight, head_dist.bias"),
        ({"qkv_bias": False}, "npz", "bias: got none, expected one"),
        ({"pos_embed": "2d"}, "timm", "no place for pos_embed_x, pos_embed_y, pos_embed_prefix"),
        ({"pos_embed": "relative"}, "timm", r"no place for blocks\.0\.attn\.relative\.table"),
        ({"pos_placement": "every"}, "timm", "pos_embed: got 2 tables, expected one"),
        ({"pos_embed": "2d"}, "hf", "no place for pos_embed_x"),
        ({"qk_norm": True}, "hf", r"no place for blocks\.0\.attn\.q_norm"),
    ],
)
def test_what_the_target_has_no_place_for_is_listed(
    tmp_path: Path, fields: dict[str, object], to: Any, message: str
) -> None:
    path, out = tmp_path / "vit.safetensors", tmp_path / "out"
    save_checkpoint(path, ours(**fields))
    with pytest.raises(CheckpointError, match=message):
        convert(path, out, to=to)
    if to == "npz":
        with pytest.raises(CheckpointError, match=message):
            save_checkpoint(tmp_path / "out.npz", ours(**fields))
    assert [file.name for file in tmp_path.iterdir()] == ["vit.safetensors"]


def test_what_is_left_out_is_asked_for_or_listed(tmp_path: Path) -> None:
    path, out = tmp_path / "vit.pth", tmp_path / "out.npz"
    state = ours(distilled=True).state_dict()
    torch.save({"model": state, "args": None}, path)
    report = convert(path, out, to="npz", num_heads=3, drop=["dist_token", "head"])
    left_out = ["model/dist_token", "model/head.weight", "model/head.bias"]
    left_out += ["model/head_dist.weight", "model/head_dist.bias"]
    assert dict(report.dropped) == {**dict.fromkeys(left_out, "as asked"), "model/pos_embed": "its row for dist_token"}
    table = np.load(out)["Transformer/posembed_input/pos_embedding"]
    assert np.array_equal(table, state["pos_embed"][:, [0, *range(2, 18)]])
    assert "dropped from the file: model/dist_token, model/head.weight, model/head.bias" in str(report)
    with pytest.raises(ValueError, match=r"drop: the file has no blocks\.7, nothing"):
        convert(path, out, to="npz", num_heads=3, drop=["blocks.7", "head", "nothing"])
    torch.save(state | {"extra.weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"vit\.pth: no place for extra\.weight, which the layout timm does not"):
        convert(path, tmp_path / "out.safetensors", to="timm")
    out = tmp_path / "out.safetensors"
    convert(path, out, to="timm", drop=["extra."])
    assert load_file(out).keys() == state.keys()


def test_what_is_no_part_of_the_model_stays_behind(tmp_path: Path) -> None:
    path, out = tmp_path / "mae.pth", tmp_path / "out.safetensors"
    decoder = {"decoder_embed.weight": torch.ones(6, 24), "mask_token": torch.ones(1, 1, 6)}
    state = ours(num_classes=0).state_dict()
    torch.save({"model": state | decoder, "optimizer": {"x": torch.ones(3)}}, path)
    report = convert(path, out)
    assert dict(report.dropped) == {
        "model/decoder_embed.weight": "decoder of the pre-training",
        "model/mask_token": "mask token of the pre-training",
        "optimizer/x": "outside of the section 'model/'",
    }
    assert load_file(out).keys() == state.keys()


def test_a_file_of_ours_stays_one_under_timms_names(tmp_path: Path) -> None:
    path, out = tmp_path / "vit.safetensors", tmp_path / "timm.safetensors"
    model = ours(act="gelu_tanh")
    save_checkpoint(path, model, metadata={"mean": 0.5})
    convert(path, out)
    assert load_model(out).config == model.config
    convert(path, out, drop=["head"])
    assert "head.weight" not in load_file(out)
    with pytest.raises(CheckpointError, match="no model configuration in the file"):
        load_model(out)


def test_wrong_arguments(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_checkpoint(path, ours())
    with pytest.raises(ValueError, match="to must be one of 'timm', 'npz', 'hf', got 'flax'"):
        convert(path, path, to="flax")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"num_heads must be 3, which .*vit\.safetensors says, got 4"):
        convert(path, tmp_path / "x.npz", to="npz", num_heads=4)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        convert(tmp_path / "none", path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        convert(path, tmp_path / "none" / "x")
    with pytest.raises(ValueError, match=r"Google's \.npz has no place for metadata, got mean"):
        save_checkpoint(tmp_path / "vit.npz", ours(), metadata={"mean": 1})
    save_file(ours().state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="24 is not divisible by 5 heads"):
        convert(tmp_path / "plain.safetensors", tmp_path / "x.npz", to="npz", num_heads=5)
    save_checkpoint(tmp_path / "vit.npz", ours())
    with pytest.raises(ValueError, match=r"num_heads must be 3, which .*vit\.npz says, got 6"):
        convert(tmp_path / "vit.npz", tmp_path / "x.npz", to="npz", num_heads=6)
    assert np.load(tmp_path / "vit.npz")["head/kernel"].shape == (24, 5)
