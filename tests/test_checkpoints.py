"""Checkpoints: whole files or none, exact round trips, honest reports, clear words about what is broken."""

import json
import os
import pickle
import random
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm.layers
import torch
from safetensors.torch import load_file, save_file

from vit_rs.checkpoints import (
    LoadReport,
    atomic_write,
    load_model,
    load_pretrained,
    load_state,
    read_weights,
    save_checkpoint,
    save_state,
)
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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "vit.safetensors"
    save_checkpoint(path, tiny_model(seed=1))
    return path


# Atomic files


@pytest.mark.parametrize("content", [b"new", lambda file: file.write(b"new")])
def test_a_file_is_written_whole(tmp_path: Path, content: object) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old and longer")
    atomic_write(path, content)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), RuntimeError("no")])
def test_whatever_stops_the_writing_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def writer(file: object) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, writer)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_a_failure_at_the_last_moment_leaves_the_old_file(tmp_path: Path, monkeypatch: object) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        atomic_write(tmp_path / "nowhere" / "file.bin", b"")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        atomic_write(tmp_path, b"")
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_links_are_followed_and_the_umask_decides(tmp_path: Path) -> None:
    real, link = tmp_path / "real.bin", tmp_path / "link.bin"
    real.write_bytes(b"old")
    link.symlink_to(real)
    old_umask = os.umask(0o027)
    try:
        atomic_write(link, b"new")
    finally:
        os.umask(old_umask)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o640


def test_the_umask_decides_for_models_too(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    old_umask = os.umask(0o027)
    try:
        save_checkpoint(path, VisionTransformer(TINY))
    finally:
        os.umask(old_umask)
    assert path.stat().st_mode & 0o777 == 0o640


# Training state


def test_state_round_trip(tmp_path: Path) -> None:
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3))
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "step": 2**70,
        "best": -0.0,
        "name": "lauf é",
        "nothing": None,
        "nested": [(1, True), OrderedDict(a=b"bytes"), {}],
        "dtype": torch.bfloat16,
        "half": torch.randn(3).bfloat16(),
    }
    path = tmp_path / "state.pt"
    save_state(path, state)
    back = load_state(path)
    assert back.keys() == state.keys()
    for key in ("step", "best", "name", "nothing", "nested", "dtype"):
        assert back[key] == state[key]
        assert type(back[key]) is type(state[key])
    for key in ("rng", "half"):
        assert torch.equal(back[key], state[key])
    other = torch.optim.AdamW(tiny_model().parameters(), lr=1.0)
    other.load_state_dict(back["optimizer"])
    assert torch.equal(other.param_groups[0]["lr"], torch.tensor(1e-3))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), back["model"].values(), strict=True))
    assert names(tmp_path) == ["state.pt"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float64(1.0), r"state\['a'\]\[0\] is a numpy\.float64"),
        (TINY, r"state\['a'\]\[0\] is a vit_rs\.models\.vit\.ViTConfig"),
        ({1.5: 2}, r"state\['a'\]\[0\]: keys must be str or int, got 1\.5 \(float\)"),
        ({1, 2}, r"state\['a'\]\[0\] is a builtins\.set"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        save_state(tmp_path / "state.pt", {"a": [value]})
    assert names(tmp_path) == []


def test_every_damage_of_a_state_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    want = {"weights": torch.arange(300.0), "step": 7}
    save_state(path, want)
    good = path.read_bytes()
    rng = random.Random(0)
    messages = []
    for round_number in range(150):
        damaged = bytearray(good)
        if round_number % 2:
            damaged = damaged[: rng.randrange(len(damaged))]
        else:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            back = load_state(path)
        except CheckpointError as error:
            messages.append(str(error))
        else:  # a bit that means nothing, such as a date or padding of the zip
            assert back["step"] == 7
            assert torch.equal(back["weights"], want["weights"])
    assert len(messages) > 100
    assert all(str(path) in message and "\n" not in message for message in messages)


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    path, trap = tmp_path / "state.pt", tmp_path / "executed"
    torch.save({"a": _Payload(trap)}, path)
    for read in (load_state, read_weights, load_model):
        with pytest.raises(CheckpointError, match=r"state\.pt: refused or damaged") as error:
            read(path)
        assert "weights_only=False" not in str(error.value)
    path.write_bytes(pickle.dumps({"a": _Payload(trap)}))
    for read in (load_state, read_weights, load_model):
        with pytest.raises(CheckpointError, match=r"state\.pt: "):
            read(path)
    assert not trap.exists()


def test_a_state_is_a_dictionary(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt: expected a dictionary, the file holds a list"):
        load_state(tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="expected a state dict, the file holds a list"):
        read_weights(tmp_path / "list.pt")


# Our own model files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("changes", [{}, {"img_size": (8, 20), "global_pool": "avg", "act": "gelu_tanh"}])
def test_models_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype, changes: dict[str, object]) -> None:
    model = tiny_model(**changes).to(dtype)
    path = tmp_path / "vit.safetensors"
    save_checkpoint(path, model)
    back = load_model(path)
    assert back.config == model.config
    assert equal_states(back, model)
    assert {p.dtype for p in back.parameters()} == {dtype}
    assert all(p.requires_grad and not p.is_meta for p in back.parameters())
    assert names(tmp_path) == ["vit.safetensors"]
    path.write_bytes(b"")  # the model does not live on in the file
    assert equal_states(back, model)


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    contents = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        save_checkpoint(path, tiny_model(), metadata={"b": 1, "a": [0.5, "x"], "c": None})
        contents.add(path.read_bytes())
    assert len(contents) == 1
    weights = read_weights(path)
    assert weights.metadata == {"a": [0.5, "x"], "b": 1, "c": None}
    assert (weights.config, weights.format) == (TINY, "vit-rs safetensors")


def test_anyone_can_read_our_files(saved: Path) -> None:
    state = load_file(saved)
    reference = timm.models.VisionTransformer(
        img_size=16, patch_size=4, num_classes=5, embed_dim=12, depth=2, num_heads=3
    )
    reference.load_state_dict(state)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(reference(images), load_model(saved)(images), rtol=1e-4, atol=1e-4)


def test_metadata_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "vit.safetensors", tiny_model(), metadata={"a": torch.ones(1)})
    assert names(tmp_path) == []


def test_a_file_without_configuration_cannot_rebuild_a_model(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file(tiny_model().state_dict(), path)
    with pytest.raises(CheckpointError, match=r"plain\.safetensors: no model configuration.*load_pretrained"):
        load_model(path)


def with_metadata(path: Path, entry: object) -> None:
    state = tiny_model().state_dict()
    save_file(state, path, metadata={"vit_rs": entry if isinstance(entry, str) else json.dumps(entry)})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", "damaged metadata entry 'vit_rs'"),
        ("[" * 100_000, "damaged metadata entry 'vit_rs'"),
        ([], "format version None, this vit-rs reads 1"),
        ({"format_version": 2, "anything": 0}, "format version 2, this vit-rs reads 1"),
        ({"format_version": 1, "config": "abc", "metadata": {}}, "no configuration in it"),
        ({"format_version": 1, "config": {"depht": 2}, "metadata": {}}, "ViTConfig has no field depht"),
        (
            {"format_version": 1, "config": {"depth": "2"}, "metadata": {}},
            "depth must be an integer, got '2'",
        ),
        (
            {"format_version": 1, "config": {**TINY.to_dict(), "depth": 10**9}, "metadata": {}},
            "the configuration says depth 1000000000, the weights do not",
        ),
        (
            {"format_version": 1, "config": {**TINY.to_dict(), "num_classes": 6}, "metadata": {}},
            "the weights do not fit their own configuration.*head",
        ),
        (
            {"format_version": 1, "config": {**TINY.to_dict(), "embed_dim": 3 * 10**12}, "metadata": {}},
            "the weights do not fit their own configuration",
        ),
    ],
)
def test_false_configurations_are_refused(tmp_path: Path, entry: object, message: str) -> None:
    path = tmp_path / "vit.safetensors"
    with_metadata(path, entry)
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"\x80",
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
        b"\x00" * 64,
        b"PK\x03\x04rubbish",
        b"not a checkpoint",
        struct.pack("<Q", 2**62) + b"{}",
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    for read in (read_weights, load_model, lambda path: load_pretrained(tiny_model(), path)):
        with pytest.raises(CheckpointError) as error:
            read(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_truncated_model_files_are_found_at_every_length(saved: Path) -> None:
    good = saved.read_bytes()
    for length in [*range(80), *range(80, len(good), 997), len(good) - 1]:
        saved.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match=r"vit\.safetensors"):
            load_model(saved)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for read in (load_state, load_model, read_weights, lambda path: load_pretrained(tiny_model(), path)):
        with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*none"):
            read(tmp_path / "none")
        with pytest.raises(CheckpointError, match="not a file"):
            read(tmp_path)


# Weights into a model


def test_the_same_grid_is_copied(saved: Path) -> None:
    model = tiny_model()
    report = load_pretrained(model, saved)
    assert equal_states(model, load_model(saved))
    assert report == LoadReport(
        path=str(saved),
        format="vit-rs safetensors",
        used=tuple(model.state_dict()),
        resampled=(),
        dropped=(),
        missing=(),
    )
    assert str(report) == f"{saved} (vit-rs safetensors): {len(model.state_dict())} tensors copied"


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
    assert report.format == ("safetensors" if suffix == ".safetensors" else "torch")
    larger = tiny_model(img_size=24)
    assert load_pretrained(larger, path).resampled[0][1:3] == ((4, 4), (6, 6))  # 16 positions: a square


def test_ambiguous_grids_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "plain.pth"
    source = tiny_model(img_size=(8, 24))
    torch.save(source.state_dict(), path)
    model = tiny_model(img_size=(8, 24))
    with pytest.raises(CheckpointError, match=r"12 positions .*is 2x6\): pass img_size=\(height, width\)"):
        load_pretrained(model, path)
    assert load_pretrained(model, path, img_size=(8, 24)).resampled == ()
    assert equal_states(model, source)
    assert load_pretrained(model, path, img_size=(12, 16)).resampled[0][1:3] == ((3, 4), (2, 6))

    torch.save(tiny_model().state_dict(), path)  # 4 x 4, or the 2 x 8 of the model?
    wide = tiny_model(img_size=(8, 32))
    before = {key: tensor.clone() for key, tensor in wide.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"plain\.pth: pos_embed has 16 positions"):
        load_pretrained(wide, path)
    assert all(torch.equal(before[key], tensor) for key, tensor in wide.state_dict().items())
    assert load_pretrained(wide, path, img_size=16).resampled[0][1:3] == ((4, 4), (2, 8))


def test_img_size_must_agree_with_the_file(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"img_size 8x32 means a grid of 2x8, .* says 4x4"):
        load_pretrained(tiny_model(), saved, img_size=(8, 32))
    with pytest.raises(ValueError, match="img_size 18x18 is not divisible by the patch size 4x4"):
        load_pretrained(tiny_model(), saved, img_size=18)
    plain = saved.with_name("plain.pth")
    torch.save(tiny_model().state_dict(), plain)
    with pytest.raises(CheckpointError, match="16 positions beside the class token's, a grid of 5x5 has 25"):
        load_pretrained(tiny_model(), plain, img_size=20)


def test_another_head_is_refused_until_the_caller_drops_it(saved: Path) -> None:
    model = tiny_model(num_classes=7)
    own = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"head\.weight: got \(5, 12\), expected \(7, 12\) \(head='reset'"):
        load_pretrained(model, saved)
    assert all(torch.equal(own[key], tensor) for key, tensor in model.state_dict().items())
    report = load_pretrained(model, saved, head="reset")
    assert sorted(report.dropped) == sorted(report.missing) == ["head.bias", "head.weight"]
    assert torch.equal(model.head.weight, own["head.weight"])
    assert not torch.equal(model.cls_token, own["cls_token"])
    assert "dropped from the file: head.bias, head.weight" in str(report)
    assert "left as they were in the model: head.weight, head.bias" in str(report)

    same = tiny_model()
    kept = same.head.weight.clone()
    load_pretrained(same, saved, head="reset")  # also where it would fit
    assert torch.equal(same.head.weight, kept)
    headless = tiny_model(num_classes=0)
    with pytest.raises(CheckpointError, match=r"unexpected: head\.bias, head\.weight"):
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


def test_another_patch_size_is_a_shape_that_does_not_fit(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight: got \(12, 3, 4, 4\)"):
        load_pretrained(tiny_model(patch_size=8), saved)


def test_equal_shapes_of_another_function_are_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="num_heads: got 3, expected 2; act: got gelu,"):
        load_pretrained(tiny_model(num_heads=2, act="gelu_tanh"), saved)
    load_pretrained(tiny_model(num_heads=2, act="gelu_tanh"), saved, strict=False)


def test_a_file_of_something_else_is_refused_even_if_not_strict(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="no key of the model is in the file"):
        load_pretrained(tiny_model(), path, strict=False)


def test_wrapped_state_dicts_say_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "run.pth"
    torch.save({"model": tiny_model().state_dict(), "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="expected tensors by name, the file also holds: model, epoch"):
        load_pretrained(tiny_model(), path)


def test_weights_take_the_models_dtype(saved: Path) -> None:
    model = tiny_model(img_size=24).bfloat16()
    load_pretrained(model, saved)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(model.cls_token.float(), load_model(saved).cls_token, rtol=1e-2, atol=1e-2)
