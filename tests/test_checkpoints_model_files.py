"""Our own model files: exact round trips, equal bytes, clear words about what is broken."""

import json
import os
import struct
from pathlib import Path

import pytest
import timm.models
import torch
from safetensors.torch import load_file, save_file

from vit_rs.checkpoints import load_model, load_pretrained, load_state, save_checkpoint
from vit_rs.checkpoints.files import open_weights
from vit_rs.checkpoints.model_files import METADATA_KEY, SavedModel, saved_model
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


def test_the_umask_decides_for_models_too(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    old_umask = os.umask(0o027)
    try:
        save_checkpoint(path, VisionTransformer(TINY))
    finally:
        os.umask(old_umask)
    assert path.stat().st_mode & 0o777 == 0o640


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
    with open_weights(path) as file:
        assert saved_model(file) == SavedModel("vit", TINY, {"a": [0.5, "x"], "b": 1, "c": None})


def test_a_file_says_which_model_it_holds(saved: Path) -> None:
    with open_weights(saved) as file:
        assert saved_model(file) == SavedModel("vit", TINY, {})
        assert json.loads(file.metadata[METADATA_KEY]) == {
            "format_version": 1,
            "model": "vit",
            "config": TINY.to_dict(),
            "metadata": {},
        }
    save_file(tiny_model().state_dict(), saved)
    with open_weights(saved) as file:
        assert saved_model(file) is None


def test_files_of_the_first_versions_are_a_vits(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    with_metadata(path, {"format_version": 1, "config": TINY.to_dict(), "metadata": {"a": 1}})
    with open_weights(path) as file:
        assert saved_model(file) == SavedModel("vit", TINY, {"a": 1})
    assert equal_states(load_model(path), tiny_model())


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
            {"format_version": 1, "model": "gpt", "config": {}, "metadata": {}},
            "got model 'gpt', this vit-rs reads hybrid, vit, bit",
        ),
        ({"format_version": 1, "model": ["vit"], "config": {}, "metadata": {}}, r"got model \['vit'\]"),
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
    for read in (load_model, lambda path: load_pretrained(tiny_model(), path)):
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
    for read in (load_state, load_model, lambda path: load_pretrained(tiny_model(), path)):
        with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*none"):
            read(tmp_path / "none")
        with pytest.raises(CheckpointError, match="not a file"):
            read(tmp_path)
