"""What a file means beside its tensors' names: functions that targets cannot say, rows that do not merge, heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from vit_rs.checkpoints import convert, load_model, load_pretrained, resize_checkpoint, save_checkpoint
from vit_rs.exceptions import CheckpointError
from vit_rs.models import BiTResNet, ResNetConfig, VisionTransformer, ViTConfig

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

TINY = ViTConfig(img_size=16, patch_size=4, num_classes=5, embed_dim=24, depth=2, num_heads=3)
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def ours(seed: int = 0, **fields: object) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(ViTConfig.from_dict({**TINY.to_dict(), **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


@pytest.mark.parametrize(
    ("fields", "to", "message"),
    [
        ({"pos_placement": "shared"}, "timm", "pos_placement: got 'shared', expected 'stem'"),
        ({"pos_placement": "shared"}, "npz", "pos_placement: got 'shared', expected 'stem'"),
        ({"pos_placement": "shared"}, "hf", "pos_placement: got 'shared', expected 'stem'"),
        ({"rope": True}, "timm", "rope: got True, expected False"),
        ({"rope": True}, "npz", "rope: got True, expected False"),
        (
            {"init_values": 0.1, "pos_embed": "none", "num_classes": 0, "qkv_bias": False},
            "hf",
            "rope: got False, expected True",
        ),
        ({"global_pool": "avg", "fc_norm": False}, "npz", "global_pool: got 'avg' beside a class token"),
        ({"global_pool": "map"}, "npz", "global_pool: got 'map' beside a class token"),
        ({"global_pool": "avg", "fc_norm": False}, "hf", "global_pool: got 'avg' before a head, expected 'token'"),
        (
            {"global_pool": "avg", "fc_norm": False, "class_token": False, "pos_embed": "none", "no_embed_class": True},
            "npz",
            "pos_embed: got 'none', expected a table",
        ),
    ],
)
def test_functions_that_the_target_cannot_say_are_refused(
    tmp_path: Path, fields: dict[str, Any], to: Any, message: str
) -> None:
    model = ours(**({"embed_dim": 24, "num_heads": 3} | fields))
    path = tmp_path / "vit.safetensors"
    save_checkpoint(path, model)
    with pytest.raises(CheckpointError, match=f"cannot hold this model: {message}"):
        convert(path, tmp_path / "out", to=to)
    if to == "npz":
        with pytest.raises(CheckpointError, match=f"cannot hold this model: {message}"):
            save_checkpoint(tmp_path / "vit.npz", model)
    assert [file.name for file in tmp_path.iterdir()] == ["vit.safetensors"]
    assert torch.equal(load_model(path).eval()(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
    ("fields", "to", "wanted"),
    [
        ({}, "npz", "act='gelu'"),
        ({"act": "gelu_tanh"}, "npz", None),
        ({"act": "gelu_tanh", "norm_eps": 1e-5}, "timm", "act='gelu_tanh', norm_eps=1e-05, num_heads=3"),
        ({"global_pool": "avg", "fc_norm": False}, "timm", "num_heads=3, global_pool='avg', fc_norm=False"),
        ({}, "hf", "norm_eps=1e-06, num_heads=3"),
        (
            {
                "rope": True,
                "rope_theta": 50.0,
                "pos_embed": "none",
                "init_values": 0.1,
                "num_classes": 0,
                "qkv_bias": False,
            },
            "hf",
            "norm_eps=1e-06, rope_theta=50, num_heads=3",
        ),
    ],
)
def test_what_a_target_says_elsewhere_is_noted(tmp_path: Path, fields: dict[str, Any], to: Any, wanted: str) -> None:
    path = tmp_path / "vit.safetensors"
    save_checkpoint(path, ours(**fields))
    report = convert(path, tmp_path / "out", to=to)
    assert len(report.notes) == (wanted is not None)
    assert wanted is None or f"note: no tensor says {wanted}: " in str(report)


def test_a_resnets_padding_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "bit.safetensors"
    save_checkpoint(path, BiTResNet(ResNetConfig(layers=(1,), num_classes=2, padding="same")))
    assert convert(path, tmp_path / "out", to="timm").notes == ("no tensor says padding='same': code must",)


def test_rows_added_at_every_layer_are_not_merged(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    source = ours(pos_placement="shared")
    save_checkpoint(path, source)
    apart = ours(1, pos_placement="shared", no_embed_class=True)
    before = apart.cls_token.clone()
    with pytest.raises(CheckpointError, match=r"its row for cls_token is added at every layer's input .*'shared'"):
        load_pretrained(apart, path)
    assert torch.equal(apart.cls_token, before)
    with torch.no_grad():
        source.pos_embed[:, 0] = 0.0  # a row of zeros adds nothing anywhere
    save_checkpoint(path, source)
    assert load_pretrained(apart, path).merged == ()
    assert torch.equal(apart(IMAGES), source(IMAGES))


def test_rows_stay_where_our_configuration_does(tmp_path: Path) -> None:
    path, out = tmp_path / "vit.safetensors", tmp_path / "out.safetensors"
    model = ours(reg_tokens=2)
    with torch.no_grad():
        model.pos_embed[:, :3] = 0.0
    save_checkpoint(path, model)
    report = convert(path, out, to="timm")
    assert (report.merged, report.filled) == ((), ())
    assert torch.equal(load_model(out).eval()(IMAGES), model(IMAGES))
    assert torch.equal(load_model(out).pos_embed, model.pos_embed)
    # Under timm's other names for DINOv3 it would not fit.
    rotary = ours(reg_tokens=2, rope=True, pos_embed="none", init_values=0.1, qkv_bias=False)
    save_checkpoint(path, rotary)
    convert(path, out, to="timm")
    assert metadata(out) == {"format": "pt"}
    load_pretrained(ours(1, reg_tokens=2, rope=True, pos_embed="none", init_values=0.1, qkv_bias=False), out)


def test_others_read_the_files_metadata(tmp_path: Path) -> None:
    path, out = tmp_path / "vit.pth", tmp_path / "out.safetensors"
    torch.save(ours().state_dict(), path)
    for to in ("hf", "timm"):
        convert(path, out, to=to)  # type: ignore[arg-type]
        assert metadata(out) == {"format": "pt"}


def test_sums_are_rounded_once(tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    source = ours()
    half = {key: tensor.half() for key, tensor in source.state_dict().items()}
    torch.save(half, path)
    model = ours(1, no_embed_class=True)
    assert load_pretrained(model, path, img_size=16).merged == ("cls_token",)
    assert torch.equal(model.cls_token, half["cls_token"].float() + half["pos_embed"][:, :1].float())
    double = ours(1, no_embed_class=True, img_size=24, patch_size=2).double()
    load_pretrained(double, path, img_size=16)
    exact = {key: tensor.double() for key, tensor in half.items()}
    torch.save(exact, path)
    expected = ours(2, no_embed_class=True, img_size=24, patch_size=2).double()
    load_pretrained(expected, path, img_size=16)
    for key, tensor in expected.state_dict().items():
        assert torch.equal(double.state_dict()[key], tensor), key


def test_everything_outside_of_the_section_is_listed(tmp_path: Path) -> None:
    path, out = tmp_path / "run.pth", tmp_path / "out.safetensors"
    model = ours()
    torch.save({"model": model.state_dict(), "opt": {"m": torch.ones(2)}, "queue": torch.ones(3)}, path)
    outside = dict.fromkeys(["opt/m", "queue"], "outside of the section 'model/'")
    assert dict(load_pretrained(model, path).dropped) == outside
    assert dict(convert(path, out).dropped) == outside


@pytest.mark.parametrize("name", ["head", "classifier", "fc"])
def test_a_head_beside_the_backbone_is_not_lost(tmp_path: Path, name: str) -> None:
    path, out = tmp_path / "vit.pth", tmp_path / "out.safetensors"
    features = ours(num_classes=0)
    state = {f"net.backbone.{key}": tensor for key, tensor in features.state_dict().items()}
    head = {f"net.{name}.weight": torch.ones(5, 24)}
    torch.save(state | head, path)
    with pytest.raises(CheckpointError, match=rf"no place for net\.{name}\.weight, .* \(drop leaves it out\)"):
        convert(path, out)
    dropped = convert(path, out, drop=[f"net.{name}."]).dropped
    assert dropped == ((f"net.{name}.weight", "as asked"),)
    model = ours(1)
    with pytest.raises(CheckpointError, match=rf"missing: head\.weight.*unexpected: net\.{name}\.weight"):
        load_pretrained(model, path)
    reasons = ((f"net.{name}.weight", "outside of the section 'net.backbone.'"),)
    assert load_pretrained(model, path, head="reset").dropped == reasons
    assert load_pretrained(ours(1, num_classes=0), path).dropped == reasons


def test_without_strict_another_function_is_said(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_checkpoint(path, ours(act="gelu_tanh"))
    report = load_pretrained(ours(1, norm_eps=1e-5), path, strict=False)
    assert report.differs == ("act: got gelu_tanh, expected gelu", "norm_eps: got 1e-06, expected 1e-05")
    assert "another function than the file's: act: got gelu_tanh, expected gelu; norm_eps" in str(report)
    assert load_pretrained(ours(1, act="gelu_tanh"), path, strict=False).differs == ()


def test_parts_of_incomplete_tensors_are_listed(tmp_path: Path) -> None:
    out = tmp_path / "x.pth"
    model = ours()
    save_checkpoint(tmp_path / "vit.safetensors", model)
    convert(tmp_path / "vit.safetensors", tmp_path / "hf.safetensors", to="hf")
    with safe_open(tmp_path / "hf.safetensors", "pt") as file:
        state: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    [query] = [key for key in state if "layer.1." in key and key.endswith("query.weight")]
    rest = [query.replace("query", name) for name in ("key", "value")]
    del state[query]
    torch.save(state, out)
    report = load_pretrained(ours(1), out, strict=False)
    assert report.missing == ("blocks.1.attn.qkv.weight",)
    assert dict(report.dropped) == dict.fromkeys(rest, "part of a tensor whose other parts are missing")


@pytest.mark.parametrize("pooled", [True, False])
def test_a_reset_head_takes_the_norm_of_another_pooling(tmp_path: Path, pooled: bool) -> None:
    path = tmp_path / "vit.pth"
    file, mine = ("norm", "fc_norm") if pooled else ("fc_norm", "norm")
    average = {"global_pool": "avg"}
    torch.save(ours(**({} if pooled else average)).state_dict(), path)
    model = ours(1, **(average if pooled else {}))
    with pytest.raises(CheckpointError, match=rf"missing: {mine}\.weight.*unexpected: {file}\.weight"):
        load_pretrained(model, path)
    report = load_pretrained(model, path, head="reset")
    ends = ("weight", "bias")
    assert report.missing == (*(f"{mine}.{end}" for end in ends), "head.weight", "head.bias")
    for end in ends:
        assert dict(report.dropped)[f"{file}.{end}"] == f"head='reset': the model has {mine} in its place"


class _Wrapped(nn.Module):
    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, module)


def test_models_that_are_none_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_checkpoint(path, ours())
    for name in ("_orig_mod", "module"):
        wrapped: Any = _Wrapped(ours(), name)
        for call in (
            lambda model=wrapped: load_pretrained(model, path),
            lambda model=wrapped: save_checkpoint(path, model),
        ):
            with pytest.raises(TypeError, match=rf"got _Wrapped around one: pass model\.{name}"):
                call()
    compiled: Any = torch.compile(ours())
    with pytest.raises(TypeError, match=r"pass model\._orig_mod"):
        load_pretrained(compiled, path)
    other: Any = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="expected one of our models or its configuration, got Linear"):
        load_pretrained(other, path)
    with torch.device("meta"):
        model = VisionTransformer(TINY)
    with pytest.raises(ValueError, match="the model is on the meta device, without weights"):
        load_pretrained(model, path)
    with pytest.raises(ValueError, match="the model is on the meta device, without weights"):
        save_checkpoint(tmp_path / "meta.safetensors", model)


def test_no_kernel_is_no_kernel(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_file(ours().state_dict() | {"patch_embed.proj.weight": torch.ones(24, 3, 0, 0)}, path)
    message = r"patch_embed\.proj\.weight: got \(24, 3, 0, 0\), expected \(24, 3, 4, 4\)"
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(ours(1), path)


def test_float8_is_read(tmp_path: Path) -> None:
    path, out = tmp_path / "vit.pth", tmp_path / "out.pth"
    state = ours().state_dict()
    state |= {key: state[key].to(torch.float8_e4m3fn) for key in ("pos_embed", "patch_embed.proj.weight")}
    torch.save(state, path)
    model = ours(1, img_size=24, patch_size=3)
    assert len(load_pretrained(model, path).resampled) == 2
    resize_checkpoint(path, img_size=24, out=out)
    assert torch.load(out)["pos_embed"].dtype == torch.float8_e4m3fn
    state["pos_embed"].view(torch.uint8)[0, 0, 0] = 0x7F  # NaN
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="pos_embed: 1 of 408 values are NaN or infinite"):
        load_pretrained(model, path)
