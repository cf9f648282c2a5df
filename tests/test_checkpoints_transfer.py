"""Weights into a model: honest reports, and nothing changed before all is checked."""

from pathlib import Path

import pytest
import timm.layers
import torch
from safetensors.torch import save_file

from vit_rs.checkpoints import LoadReport, load_model, load_pretrained, save_checkpoint
from vit_rs.exceptions import CheckpointError
from vit_rs.models import VisionTransformer, ViTConfig

TINY = ViTConfig(img_size=16, patch_size=4, num_classes=5, embed_dim=12, depth=2, num_heads=3)


def tiny_model(seed: int = 0, **changes: object) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(ViTConfig.from_dict({**TINY.to_dict(), **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def equal_states(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "vit.safetensors"
    save_checkpoint(path, tiny_model(seed=1))
    return path


def test_the_same_grid_is_copied(saved: Path) -> None:
    model = tiny_model()
    report = load_pretrained(model, saved)
    assert equal_states(model, load_model(saved))
    assert report == LoadReport(
        path=str(saved),
        container="safetensors",
        layout="vit-rs",
        section="",
        convention="timm",
        used=tuple(model.state_dict()),
    )
    assert str(report) == f"{saved} (safetensors, vit-rs): {len(model.state_dict())} tensors copied"


@pytest.mark.parity
@pytest.mark.parametrize("img_size", [24, 12, (8, 28), (28, 8)])
def test_another_resolution_is_resampled_as_timm_does(saved: Path, img_size: int | tuple[int, int]) -> None:
    model = tiny_model(img_size=img_size)
    grid = model.config.grid_size
    source = load_model(saved).state_dict()
    report = load_pretrained(model, saved)
    assert report.resampled == (("pos_embed", (4, 4), grid, "timm"),)
    assert "pos_embed" not in report.used
    assert len(report.used) == len(source) - 1
    want = timm.layers.resample_abs_pos_embed(source["pos_embed"], list(grid), [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(model.pos_embed.data, want, rtol=0, atol=2e-6 * want.abs().max().item())
    for key, tensor in model.state_dict().items():
        if key != "pos_embed":
            assert torch.equal(tensor, source[key]), key
    assert f"resampled pos_embed: 4x4 -> {grid[0]}x{grid[1]}, timm" in str(report)


def test_grids_are_compared_and_not_token_counts(saved: Path) -> None:
    model = tiny_model(img_size=(8, 32))  # 2 x 8 patches, as many as 4 x 4
    report = load_pretrained(model, saved)
    assert report.resampled[0][1:3] == ((4, 4), (2, 8))
    source = load_model(saved)
    assert model.pos_embed.shape == source.pos_embed.shape
    assert not torch.equal(model.pos_embed, source.pos_embed)
    assert torch.equal(model.pos_embed[:, 0], source.pos_embed[:, 0])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_plain_state_dicts_of_either_format_are_read(tmp_path: Path, suffix: str) -> None:
    source = tiny_model(seed=3)
    path = tmp_path / f"plain{suffix}"
    if suffix == ".safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path)
    model = tiny_model()
    report = load_pretrained(model, path)
    assert equal_states(model, source)
    assert (report.container, report.layout) == ("safetensors" if suffix == ".safetensors" else "torch", "timm")
    larger = tiny_model(img_size=24)
    assert load_pretrained(larger, path).resampled[0][1:3] == ((4, 4), (6, 6))  # 16 positions: a square


def test_ambiguous_grids_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "plain.pth"
    source = tiny_model(img_size=(8, 24))
    torch.save(source.state_dict(), path)
    model = tiny_model(img_size=(8, 24))
    with pytest.raises(CheckpointError, match=r"has 13 rows, 1 of them .* is 2x6\): pass img_size=\(height, width\)"):
        load_pretrained(model, path)
    assert load_pretrained(model, path, img_size=(8, 24)).resampled == ()
    assert equal_states(model, source)
    assert load_pretrained(model, path, img_size=(12, 16)).resampled[0][1:3] == ((3, 4), (2, 6))

    torch.save(tiny_model().state_dict(), path)  # 4 x 4, or the 2 x 8 of the model?
    wide = tiny_model(img_size=(8, 32))
    before = {key: tensor.clone() for key, tensor in wide.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"plain\.pth: pos_embed has 17 rows"):
        load_pretrained(wide, path)
    assert all(torch.equal(before[key], tensor) for key, tensor in wide.state_dict().items())
    assert load_pretrained(wide, path, img_size=16).resampled[0][1:3] == ((4, 4), (2, 8))


def test_img_size_must_agree_with_the_file(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"img_size=\(8, 32\) means a grid of 2x8, .* says 4x4"):
        load_pretrained(tiny_model(), saved, img_size=(8, 32))
    with pytest.raises(ValueError, match="img_size 18x18 is not divisible by the patch size 4x4"):
        load_pretrained(tiny_model(), saved, img_size=18)
    plain = saved.with_name("plain.pth")
    torch.save(tiny_model().state_dict(), plain)
    with pytest.raises(CheckpointError, match="has 17 rows; a grid of 5x5 has 25"):
        load_pretrained(tiny_model(), plain, img_size=20)


def test_another_head_is_refused_until_the_caller_drops_it(saved: Path) -> None:
    model = tiny_model(num_classes=7)
    own = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"head\.weight: got \(5, 12\), expected \(7, 12\) \(head='reset'"):
        load_pretrained(model, saved)
    assert all(torch.equal(own[key], tensor) for key, tensor in model.state_dict().items())
    report = load_pretrained(model, saved, head="reset")
    assert dict(report.dropped) == {"head.weight": "head='reset'", "head.bias": "head='reset'"}
    assert report.missing == ("head.weight", "head.bias")
    assert torch.equal(model.head.weight, own["head.weight"])
    assert not torch.equal(model.cls_token, own["cls_token"])
    assert "dropped from the file: head.weight, head.bias" in str(report)
    assert "left as they were in the model: head.weight, head.bias" in str(report)

    same = tiny_model()
    kept = same.head.weight.clone()
    load_pretrained(same, saved, head="reset")  # also where it would fit
    assert torch.equal(same.head.weight, kept)
    headless = tiny_model(num_classes=0)
    with pytest.raises(CheckpointError, match=r"unexpected: head\.weight, head\.bias"):
        load_pretrained(headless, saved)
    assert load_pretrained(headless, saved, head="reset").missing == ()
    with pytest.raises(ValueError, match="head must be 'keep' or 'reset', got 'drop'"):
        load_pretrained(model, saved, head="drop")


def test_missing_and_unexpected_keys_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    state = tiny_model(seed=2).state_dict()
    del state["cls_token"], state["norm.weight"]
    state |= {"fc_norm.weight": torch.ones(12), **{f"extra.{number}": torch.ones(1) for number in range(10)}}
    save_file(state, path)
    model = tiny_model()
    with pytest.raises(CheckpointError) as error:
        load_pretrained(model, path)
    message = str(error.value)
    assert "missing: cls_token, norm.weight" in message
    assert "unexpected: extra.0, extra.1" in message
    assert "and 3 more" in message
    assert equal_states(model, tiny_model())

    own = model.cls_token.clone()
    report = load_pretrained(model, path, strict=False)
    assert report.missing == ("cls_token", "norm.weight")
    assert len(report.dropped) == 11
    assert torch.equal(model.cls_token, own)
    assert torch.equal(model.pos_embed, state["pos_embed"])


@pytest.mark.parametrize("strict", [True, False])
def test_shapes_that_do_not_fit_say_got_and_expected(tmp_path: Path, strict: bool) -> None:
    path = tmp_path / "other.safetensors"
    state = tiny_model().state_dict()
    state["norm.bias"] = torch.ones(13)
    state["pos_embed"] = torch.ones(1, 17, 24)
    state["cls_token"] = torch.ones(1, 1, 12, dtype=torch.int64)
    save_file(state, path)
    with pytest.raises(CheckpointError) as error:
        load_pretrained(tiny_model(), path, strict=strict)
    message = str(error.value)
    assert message.startswith(f"{path} does not fit the model: ")
    assert "norm.bias: got (13,), expected (12,)" in message
    assert "pos_embed: got (1, 17, 24), expected (1, 17, 12)" in message
    assert "cls_token: got torch.int64, expected torch.float32" in message


@pytest.mark.parametrize("shape", [(17, 12), (2, 17, 12), (1, 0, 12), (1, 1, 12)])
def test_odd_position_embeddings_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "odd.pth"
    torch.save(tiny_model().state_dict() | {"pos_embed": torch.ones(shape)}, path)
    with pytest.raises(CheckpointError, match=r"odd\.pth.*pos_embed"):
        load_pretrained(tiny_model(), path)


@pytest.mark.parity
@pytest.mark.parametrize("patch", [8, 2, (2, 8)])
def test_another_patch_size_is_resampled_as_timm_does(saved: Path, patch: int | tuple[int, int]) -> None:
    model = tiny_model(patch_size=patch)
    report = load_pretrained(model, saved)
    size = model.config.patch_hw
    assert report.resampled[0] == ("patch_embed.proj.weight", (4, 4), size, "timm")
    assert [entry.key for entry in report.resampled] == ["patch_embed.proj.weight", "pos_embed"]
    source = load_model(saved).state_dict()
    want = timm.layers.resample_patch_embed(source["patch_embed.proj.weight"], list(size))
    # timm inverts the whole matrix in float32.
    torch.testing.assert_close(model.patch_embed.proj.weight.data, want, rtol=0, atol=1e-5 * want.abs().max().item())
    with pytest.raises(CheckpointError, match=r"proj\.weight: got \(12, 3, 4, 4\), expected \(12, 1, 8, 8\)"):
        load_pretrained(tiny_model(patch_size=8, in_chans=1), saved)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({}, {"num_heads": 2}, "num_heads: got 2, expected 3"),
        ({}, {"act": "gelu_tanh"}, "act: got gelu_tanh, expected gelu"),
        ({}, {"norm_eps": 1e-5}, "norm_eps: got 1e-05, expected 1e-06"),
        ({"rope": True}, {"rope": True, "rope_theta": 10.0}, "rope_theta: got 10.0, expected 100.0"),
        ({"rope": True}, {}, "rope: got False, expected True"),
        ({"pos_placement": "shared"}, {}, "pos_placement: got stem, expected shared"),
        (
            {"pos_embed": "sincos2d_mae"},
            {"pos_embed": "sincos2d_moco"},
            "pos_embed: got sincos2d_moco",
        ),
        ({"pos_embed": "sincos2d_mae"}, {}, "pos_embed: got 1d, expected sincos2d_mae"),
        ({"global_pool": "avg", "fc_norm": False}, {}, "global_pool: got token, expected avg"),
    ],
)
def test_equal_shapes_of_another_function_are_refused(
    tmp_path: Path, ours: dict[str, object], theirs: dict[str, object], message: str
) -> None:
    path = tmp_path / "vit.safetensors"
    width = {"embed_dim": 24}
    save_checkpoint(path, tiny_model(**width, **theirs))
    model = tiny_model(**width, **ours)
    with pytest.raises(CheckpointError, match=f"does not fit the model: {message}"):
        load_pretrained(model, path)
    load_pretrained(model, path, strict=False)


def test_what_differs_only_in_training_or_in_size_is_no_other_function(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    fixed = tiny_model(pos_embed="sincos2d_mae", init_values=1e-5)
    save_checkpoint(path, fixed)
    other = {"drop_path_rate": 0.1, "init_values": 1.0, "pos_convention": "jax", "dynamic_img_size": True}
    learned = tiny_model(seed=1, **other)  # fine-tuning may learn on from a fixed table
    report = load_pretrained(learned, path)
    assert torch.equal(learned.pos_embed, fixed.pos_embed)
    assert report.convention == "timm"  # the file's, and not the model's
    averaged = tiny_model(seed=1, init_values=1.0, pos_embed="sincos2d_mae", global_pool="avg", fc_norm=False)
    assert load_pretrained(averaged, path, head="reset").missing == ("head.weight", "head.bias")


def test_another_size_of_model_is_said_before_anything_else(saved: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load_pretrained(tiny_model(embed_dim=24, depth=3), saved)
    sizes = "embed_dim: got 12, expected 24; depth: got 2, expected 3"
    assert str(error.value) == f"{saved} does not fit the model: {sizes}"


@pytest.mark.parametrize(
    ("theirs", "ours", "hint"),
    [
        ({"num_classes": 0}, {}, r"missing: head\.weight, head\.bias \(the file has no such head: head='reset' leaves"),
        ({}, {"num_classes": 0}, r"unexpected: head\.weight, head\.bias \(head='reset' drops the head\)"),
        ({"representation_size": 8}, {}, r"unexpected: pre_logits.*\(a representation layer: representation_size"),
        ({"distilled": True}, {}, r"unexpected: dist_token.*\(a distilled DeiT: distilled=True\)"),
        ({}, {"global_pool": "avg"}, r"missing: fc_norm.*\(the file norms all tokens before pooling, .*fc_norm=False"),
    ],
)
def test_usual_mistakes_have_a_hint(
    tmp_path: Path, theirs: dict[str, object], ours: dict[str, object], hint: str
) -> None:
    path = tmp_path / "vit.pth"
    torch.save(tiny_model(**theirs).state_dict(), path)
    with pytest.raises(CheckpointError, match=hint):
        load_pretrained(tiny_model(**ours), path)


def test_a_reset_head_takes_the_representation_layer_with_it(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_checkpoint(path, tiny_model(representation_size=8))
    model = tiny_model(seed=1, num_classes=3)
    assert dict(load_pretrained(model, path, head="reset").dropped) == {
        "pre_logits.fc.weight": "the model has no representation layer",
        "pre_logits.fc.bias": "the model has no representation layer",
        "head.weight": "head='reset'",
        "head.bias": "head='reset'",
    }
    keeps = tiny_model(seed=1, num_classes=3, representation_size=8)
    assert "pre_logits.fc.weight" in load_pretrained(keeps, path, head="reset").used


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["pos_embed", "blocks.1.mlp.fc2.bias"])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, key: str, value: float) -> None:
    path = tmp_path / "vit.pth"
    source = tiny_model()
    with torch.no_grad():
        source.get_parameter(key).view(-1)[3] = value
    torch.save(source.state_dict(), path)
    model = tiny_model(seed=1)
    with pytest.raises(CheckpointError, match=rf"vit\.pth: {key}: 1 of [0-9]+ values are NaN or infinite"):
        load_pretrained(model, path)
    assert equal_states(model, tiny_model(seed=1))


def test_rows_before_the_grid_follow_the_model(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    images = torch.randn(2, 3, 16, 16)
    source = tiny_model().eval()
    save_checkpoint(path, source)
    apart = tiny_model(seed=1, no_embed_class=True).eval()
    report = load_pretrained(apart, path)
    assert (report.merged, report.filled, report.resampled) == (("cls_token",), (), ())
    assert torch.equal(apart(images), source(images))
    assert "position added into the token itself: cls_token" in str(report)

    save_checkpoint(path, apart)
    report = load_pretrained(source, path)
    assert (report.merged, report.filled) == ((), ("cls_token",))
    assert torch.equal(source(images), apart(images))
    assert "position of zeros: cls_token" in str(report)
    plain = tmp_path / "plain.pth"
    torch.save(apart.state_dict(), plain)  # whose 16 rows may be 4 x 4, or a class token's and 3 x 5
    with pytest.raises(CheckpointError, match=r"has 16 rows, 1 of them .*: pass img_size="):
        load_pretrained(source, plain)
    load_pretrained(source, plain, img_size=16)
    assert torch.equal(source(images), apart(images))
    load_pretrained(apart, plain)  # the model says it

    every = tiny_model(seed=2, pos_placement="every")
    save_checkpoint(path, every)
    with pytest.raises(CheckpointError, match="pos_embed: a row of 2 tables cannot be added to cls_token"):
        load_pretrained(tiny_model(pos_placement="every", no_embed_class=True), path)


@pytest.mark.parametrize(
    "fields",
    [
        {"pos_placement": "every"},
        {"pos_embed": "2d"},
        {"pos_embed": "2d", "pos_placement": "every"},
        {"pos_embed": "relative"},
        {"pos_embed": "sincos2d_bv"},
        {"rope": True, "pos_embed": "none"},
    ],
)
@pytest.mark.parametrize("ours", [True, False])
def test_every_encoding_comes_to_another_grid(tmp_path: Path, fields: dict[str, object], ours: bool) -> None:
    path = tmp_path / ("vit.safetensors" if ours else "vit.pth")
    fields = {"embed_dim": 24, "pos_convention": "jax", **fields}
    source = tiny_model(dynamic_img_size=True, **fields).eval()
    if ours:
        save_checkpoint(path, source)
    else:
        torch.save(source.state_dict(), path)
    images = torch.randn(2, 3, 12, 24)
    model = tiny_model(seed=1, img_size=(12, 24), **fields).eval()
    report = load_pretrained(model, path, convention="jax")
    assert bool(report.resampled) == (fields.get("pos_embed") != "none")
    torch.testing.assert_close(model(images), source(images), rtol=0, atol=1e-4)
    same = tiny_model(seed=1, **fields)
    load_pretrained(same, path)
    assert equal_states(same, source)


def test_a_file_of_something_else_is_refused_even_if_not_strict(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match=r"other\.safetensors: no model in any layout that is known"):
        load_pretrained(tiny_model(), path, strict=False)


def test_a_training_run_keeps_its_model_in_a_section(tmp_path: Path) -> None:
    path = tmp_path / "run.pth"
    source, average = tiny_model(seed=4), tiny_model(seed=5)
    state = {"state_dict": source.state_dict(), "state_dict_ema": average.state_dict(), "epoch": 3}
    torch.save(state, path)
    model = tiny_model()
    report = load_pretrained(model, path)
    assert report.section == "state_dict/"
    assert equal_states(model, source)
    lines = str(report).split("\n")
    assert lines[0] == f"{path} (torch, timm, section state_dict/): {len(model.state_dict())} tensors copied"
    assert lines[1].startswith("  dropped from the file: state_dict_ema/cls_token, state_dict_ema/pos_embed, ")
    more = len(model.state_dict()) - 8
    assert lines[1].endswith(f", and {more} more (outside of the section 'state_dict/')")
    assert len(lines) == 2
    load_pretrained(model, path, section="state_dict_ema")
    assert equal_states(model, average)
    with pytest.raises(CheckpointError, match=r"run\.pth: no section 'model'; the file has 'state_dict/' \(timm\), "):
        load_pretrained(model, path, section="model")
    torch.save({"a": source.state_dict(), "b": average.state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"run\.pth: several models: 'a/' \(timm\), 'b/' .*say which by section"):
        load_pretrained(model, path)
    with pytest.raises(ValueError, match=r"layout must be one of .*'timm'.*, got 'keras'"):
        load_pretrained(model, path, layout="keras")
    with pytest.raises(CheckpointError, match=r"run\.pth: no model in the layout 'torchvision'"):
        load_pretrained(model, path, layout="torchvision")


def test_weights_take_the_models_dtype(saved: Path) -> None:
    model = tiny_model(img_size=24).bfloat16()
    load_pretrained(model, saved)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(model.cls_token.float(), load_model(saved).cls_token, rtol=1e-2, atol=1e-2)


def test_heads_that_the_file_keeps_apart_are_compared(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "vit.npz", tiny_model(seed=1))
    assert load_pretrained(tiny_model(), tmp_path / "vit.npz").differs == ()
    with pytest.raises(CheckpointError, match=r"does not fit the model: num_heads: got 3, expected 2"):
        load_pretrained(tiny_model(num_heads=2), tmp_path / "vit.npz")
    report = load_pretrained(tiny_model(num_heads=2), tmp_path / "vit.npz", strict=False)
    assert report.differs == ("num_heads: got 3, expected 2",)
