"""The same weights in a peer's model and, through its file, in ours: equal logits, at the native and at other sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.ndimage
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_rs.checkpoints import LoadReport, load_pretrained
from vit_rs.models import HybridConfig, HybridViT, VisionTransformer, ViTConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.parity

SMALL = ViTConfig(img_size=64, patch_size=16, num_classes=7, embed_dim=192, depth=2, num_heads=3)
HF = {
    "hidden_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "image_size": 64,
    "patch_size": 16,
}
Sizes = tuple[int, int]


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter off its initial value: norms from 1, biases, scales and tokens from 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def images(size: Sizes, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)


def ours(config: ViTConfig, path: Path, size: Sizes, **options: object) -> tuple[VisionTransformer, LoadReport]:
    config = replace(config, img_size=size)
    model = (HybridViT if isinstance(config, HybridConfig) else VisionTransformer)(config)
    report = load_pretrained(model, path, **options)
    return model.eval(), report


def assert_equal_logits(got: Tensor, want: Tensor, bound: float = 1e-5) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=bound * max(1.0, want.abs().max().item()))


TIMM: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "ViT": ("vit_tiny_patch16_224", {}, {}),
    "average": ("vit_tiny_patch16_224", {"global_pool": "avg"}, {"global_pool": "avg"}),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", {}, {"distilled": True}),
    "DeiT III": (
        "deit3_small_patch16_224",
        {"embed_dim": 192, "num_heads": 3},
        {"no_embed_class": True, "init_values": 1e-6},
    ),
    "registers": (
        "vit_small_patch14_reg4_dinov2",
        {"embed_dim": 192, "num_heads": 3, "patch_size": 16},
        {"no_embed_class": True, "init_values": 1e-5, "reg_tokens": 4},
    ),
}


@pytest.mark.parametrize("case", TIMM)
def test_timm(tmp_path: Path, case: str) -> None:
    name, theirs, fields = TIMM[case]
    peer = seeded(timm.create_model(name, img_size=64, depth=2, num_classes=7, dynamic_img_size=True, **theirs))
    path = tmp_path / "timm.safetensors"
    save_file(peer.state_dict(), path)
    config = replace(SMALL, **fields)
    options = {"img_size": 64} if case == "DeiT III" else {}  # 16 rows and a class token
    for size in ((64, 64), (96, 96), (32, 80)):
        model, report = ours(config, path, size, **options)
        assert (report.layout, report.convention, report.dropped) == ("timm", "timm", ())
        assert len(report.resampled) == (size != (64, 64))
        assert_equal_logits(model(images(size)), peer(images(size)))
    model, _ = ours(config, path, (64, 64), **options)
    features = model.double().forward_features(images((64, 64), torch.float64))
    torch.testing.assert_close(
        features, peer.double().forward_features(images((64, 64), torch.float64)), rtol=0, atol=1e-10
    )


def test_timm_hybrid(tmp_path: Path) -> None:
    peer = seeded(
        timm.create_model("vit_tiny_r_s16_p8_224", img_size=64, depth=2, num_classes=7, dynamic_img_size=True)
    )
    path = tmp_path / "hybrid.pth"
    torch.save(peer.state_dict(), path)
    config = HybridConfig(
        img_size=64, patch_size=8, backbone_layers=(), num_classes=7, embed_dim=192, depth=2, num_heads=3
    )
    for size in ((64, 64), (96, 96), (32, 96)):
        model, report = ours(config, path, size)
        assert [entry[1:3] for entry in report.resampled] == (
            [((2, 2), (size[0] // 32, size[1] // 32))] if size != (64, 64) else []
        )
        assert_equal_logits(model(images(size)), peer(images(size)))


def test_torchvision(tmp_path: Path) -> None:
    build = torchvision.models.VisionTransformer
    peer = seeded(build(64, 16, 2, 3, 192, 768, num_classes=7)).double()
    path = tmp_path / "vit.pth"
    torch.save(peer.state_dict(), path)
    for side in (64, 96, 48):
        state = torchvision.models.vision_transformer.interpolate_embeddings(side, 16, peer.state_dict())
        larger = build(side, 16, 2, 3, 192, 768, num_classes=7).double()
        larger.load_state_dict(state)
        # The file holds float64, and so may the model: then all is computed in it.
        exact, batch = VisionTransformer(replace(SMALL, img_size=side)).double().eval(), images((side, side))
        load_pretrained(exact, path)
        torch.testing.assert_close(exact(batch.double()), larger.eval()(batch.double()), rtol=0, atol=1e-10)
        model, report = ours(SMALL, path, (side, side))
        assert (report.layout, report.convention) == ("torchvision", "torchvision")
        assert_equal_logits(model(batch), larger.float()(batch))


def hf_vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**HF, num_labels=7))


def hf_deit() -> nn.Module:
    return transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**HF, num_labels=7))


def hf_dinov2() -> nn.Module:
    return transformers.Dinov2Model(transformers.Dinov2Config(**HF))


def hf_registers() -> nn.Module:
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**HF))


def hf_dinov3() -> nn.Module:
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**HF, num_register_tokens=4))


DINO = {"num_classes": 0, "init_values": 1.0}
HUGGING_FACE: dict[str, tuple[Callable[[], nn.Module], dict[str, object], str, str]] = {
    "ViT": (hf_vit, {"norm_eps": 1e-12}, "hf-vit", "hf"),
    "DeiT": (hf_deit, {"norm_eps": 1e-12, "distilled": True}, "hf-deit", "hf"),
    "DINOv2": (hf_dinov2, DINO, "hf-dinov2", "hf"),
    "DINOv2 with registers": (hf_registers, {**DINO, "reg_tokens": 4}, "hf-dinov2-reg", "dinov2_reg"),
    "DINOv2, merged": (
        hf_registers,
        {**DINO, "reg_tokens": 4, "no_embed_class": True},
        "hf-dinov2-reg",
        "dinov2_reg",
    ),
    "DINOv3": (
        hf_dinov3,
        {**DINO, "reg_tokens": 4, "pos_embed": "none", "rope": True, "norm_eps": 1e-5},
        "hf-dinov3",
        "timm",
    ),
}


@pytest.mark.parametrize("case", HUGGING_FACE)
def test_transformers(tmp_path: Path, case: str) -> None:
    build, fields, layout, convention = HUGGING_FACE[case]
    peer = seeded(build())
    path = tmp_path / "model.safetensors"
    save_file(peer.state_dict(), path)
    for size in ((64, 64), (96, 96), (32, 80)):
        model, report = ours(replace(SMALL, **fields), path, size)
        assert (report.layout, report.missing) == (layout, ())
        assert report.convention == convention
        assert report.merged == (("cls_token",) if case == "DINOv2, merged" else ())
        assert report.filled == (("reg_token",) if case == "DINOv2 with registers" else ())
        asked = {"interpolate_pos_encoding": True} if case in ("ViT", "DeiT") else {}
        with torch.no_grad():
            result = peer(images(size), **asked)
            if case in ("ViT", "DeiT"):
                assert_equal_logits(model(images(size)), result.logits)
            else:
                assert_equal_logits(model.forward_features(images(size)), result.last_hidden_state)


@pytest.mark.parametrize("size", [(96, 96), (48, 64)])
def test_google_resamples_as_scipy(tmp_path: Path, size: Sizes) -> None:
    peer = seeded(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=7))
    path = tmp_path / "vit.npz"
    table = peer.pos_embed.detach().numpy()
    np.savez(path, **google_arrays(peer.state_dict(), heads=3))
    grid = (size[0] // 16, size[1] // 16)
    # What vision_transformer's `interpolate_posembed` does, by (rows, columns).
    zoom = (grid[0] / 4, grid[1] / 4, 1)
    want = scipy.ndimage.zoom(table[0, 1:].reshape(4, 4, -1), zoom, order=1).reshape(1, grid[0] * grid[1], -1)
    model, report = ours(SMALL, path, size)
    assert (report.container, report.layout, report.convention) == ("npz", "vision_transformer", "jax")
    np.testing.assert_allclose(model.pos_embed.detach().numpy()[:, 1:], want, rtol=0, atol=2e-6 * np.abs(want).max())
    assert np.array_equal(model.pos_embed.detach().numpy()[:, :1], table[:, :1])

    # timm's own reader of these files resamples otherwise, by a convention of its own.
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=size, depth=2, num_classes=7).eval()
    theirs.load_pretrained(str(path))
    model, report = ours(SMALL, path, size, convention="timm_npz")
    assert report.resampled[0].convention == "timm_npz"
    assert_equal_logits(model(images(size)), theirs(images(size)))


def google_arrays(state: dict[str, Tensor], heads: int) -> dict[str, np.ndarray]:
    """Write a ViT's state dict as vision_transformer does; by numpy alone, and not by our rules."""
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    width = arrays["cls_token"].shape[-1]
    found = {
        "cls": arrays["cls_token"],
        "embedding/kernel": arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": arrays["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": arrays["pos_embed"],
        "Transformer/encoder_norm/scale": arrays["norm.weight"],
        "Transformer/encoder_norm/bias": arrays["norm.bias"],
        "head/kernel": arrays["head.weight"].T,
        "head/bias": arrays["head.bias"],
    }
    for layer in range(2):
        ours, theirs = f"blocks.{layer}.", f"Transformer/encoderblock_{layer}/"
        attention = theirs + "MultiHeadDotProductAttention_1/"
        for number, name in enumerate(("query", "key", "value")):
            rows = slice(number * width, (number + 1) * width)
            weight, bias = arrays[ours + "attn.qkv.weight"][rows], arrays[ours + "attn.qkv.bias"][rows]
            found[f"{attention}{name}/kernel"] = weight.T.reshape(width, heads, -1)
            found[f"{attention}{name}/bias"] = bias.reshape(heads, -1)
        found[attention + "out/kernel"] = arrays[ours + "attn.proj.weight"].T.reshape(heads, -1, width)
        found[attention + "out/bias"] = arrays[ours + "attn.proj.bias"]
        for norm, number in (("norm1", 0), ("norm2", 2)):
            found[f"{theirs}LayerNorm_{number}/scale"] = arrays[f"{ours}{norm}.weight"]
            found[f"{theirs}LayerNorm_{number}/bias"] = arrays[f"{ours}{norm}.bias"]
        for number in (0, 1):
            found[f"{theirs}MlpBlock_3/Dense_{number}/kernel"] = arrays[f"{ours}mlp.fc{number + 1}.weight"].T
            found[f"{theirs}MlpBlock_3/Dense_{number}/bias"] = arrays[f"{ours}mlp.fc{number + 1}.bias"]
    return found


def test_mae_and_dino_pretraining_files(tmp_path: Path) -> None:
    peer = seeded(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=0))
    batch = images((96, 64))
    model = VisionTransformer(replace(SMALL, num_classes=0, img_size=(96, 64))).eval()

    def resampled_by_torch(**how: object) -> Tensor:
        grid = peer.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        grid = nn.functional.interpolate(grid, mode="bicubic", **how).permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat((peer.pos_embed[:, :1], grid), dim=1)

    wanted = timm.create_model("vit_tiny_patch16_224", img_size=(96, 64), depth=2, num_classes=0).eval()

    mae = {**peer.state_dict(), "mask_token": torch.ones(1, 1, 8), "decoder_pos_embed": torch.ones(1, 17, 8)}
    mae |= {"decoder_embed.weight": torch.ones(8, 192), "decoder_embed.bias": torch.ones(8)}
    torch.save({"model": mae, "epoch": 1}, tmp_path / "mae.pth")
    report = load_pretrained(model, tmp_path / "mae.pth")
    assert (report.layout, report.section, report.convention) == ("mae", "model/", "mae")
    assert len(report.dropped) == 4
    assert all("decoder" in key or key == "model/mask_token" for key, _ in report.dropped)
    wanted.load_state_dict({**peer.state_dict(), "pos_embed": resampled_by_torch(size=(6, 4))})
    assert_equal_logits(model(batch), wanted(batch))

    both = {
        f"{prefix}{key}": tensor + (name == "student")
        for name, prefix in (("teacher", "backbone."), ("student", "module.backbone."))
        for key, tensor in peer.state_dict().items()
    }
    head = {"head.mlp.0.weight": torch.ones(8, 192), "head.mlp.0.bias": torch.ones(8)}
    dino = {
        "teacher": {key: tensor for key, tensor in both.items() if key.startswith("backbone.")} | head,
        "student": {key: tensor for key, tensor in both.items() if key.startswith("module.")}
        | {f"module.{key}": tensor for key, tensor in head.items()},
    }
    torch.save(dino, tmp_path / "dino.pth")
    report = load_pretrained(model, tmp_path / "dino.pth")
    assert (report.layout, report.section, report.convention) == ("dino", "teacher/backbone.", "dino")
    student = {f"student/{key}" for key in dino["student"]}
    assert {key for key, _ in report.dropped} == {"teacher/head.mlp.0.weight", "teacher/head.mlp.0.bias", *student}
    table = resampled_by_torch(scale_factor=(6.1 / 4, 4.1 / 4))
    wanted.load_state_dict({**peer.state_dict(), "pos_embed": table})
    assert_equal_logits(model(batch), wanted(batch))
    load_pretrained(model, tmp_path / "dino.pth", section="student")
    assert torch.equal(model.cls_token, peer.cls_token + 1)
