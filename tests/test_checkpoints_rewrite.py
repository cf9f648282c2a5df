"""Rewriting a file of weights: some tensors change, all else stays, and so does the old file until the last moment."""

import argparse
import io
import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vit_rs.checkpoints.files import open_weights, rewrite, write_npz, write_safetensors
from vit_rs.exceptions import CheckpointError

CONTAINERS = ("safetensors", "pth", "old.pth", "npz", "packed.npz")


def tensors_of(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    with open_weights(path) as file:
        read = {key: file.read(key) for key in file.tensors}
    return {
        key: (tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for key, tensor in read.items()
    }


def written(folder: Path, container: str) -> Path:
    """Write a file of each container; every one has the same tensors."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "pos_embed": torch.randn(1, 5, 8, generator=generator),
        "kernel": torch.randn(4, 6, generator=generator),
        "half": torch.randn(7, generator=generator).bfloat16(),
        "step": torch.tensor(3),
        "zeros": torch.zeros(40, 40),
    }
    path = folder / f"weights.{container}"
    match container:
        case "safetensors":
            save_file(tensors, path, metadata={"format": "pt"})
        case "pth" | "old.pth":
            torch.save(tensors, path, _use_new_zipfile_serialization=container == "pth")
        case "npz":
            write_npz(path, tensors)
        case "packed.npz":
            tensors["half"] = tensors["half"].view(torch.int16)
            arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
            np.savez_compressed(path, **{**arrays, "half": arrays["half"].view("V2")})
    return path


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("container", CONTAINERS)
def test_only_what_was_asked_for_changes(tmp_path: Path, container: str, in_place: bool) -> None:
    path = written(tmp_path, container)
    out = path if in_place else tmp_path / "out.bin"
    before = tensors_of(path)
    new = {"pos_embed": torch.randn(1, 10, 8), "half": torch.randn(3, 3).bfloat16()}
    with open_weights(path) as file:
        rewrite(file, new, out)
    after = tensors_of(out)
    assert list(after) == list(before)
    for key, tensor in new.items():
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert after.pop(key) == (tensor.dtype, tuple(tensor.shape), raw)
    assert after == {key: before[key] for key in after}
    assert sorted(os.listdir(tmp_path)) == sorted({path.name, out.name})


@pytest.mark.parametrize("container", CONTAINERS)
def test_without_changes_the_bytes_are_the_same(tmp_path: Path, container: str) -> None:
    path = written(tmp_path, container)
    with open_weights(path) as file:
        rewrite(file, {}, tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == path.read_bytes()


def test_metadata_and_order_of_safetensors_are_kept(tmp_path: Path) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_safetensors(path, {"b": torch.ones(3), "a": torch.zeros(2), "c": torch.ones(1).half()}, {"x": "1", "y": "2"})
    with open_weights(path) as file:
        rewrite(file, {"b": torch.full((5,), 2.0)}, out)
        with open_weights(out) as again:
            assert list(again.tensors) == ["b", "a", "c"]
            assert again.metadata == {"x": "1", "y": "2"}
        rewrite(file, {}, out, metadata={"y": "3"})
    with open_weights(out) as again:
        assert again.metadata == {"y": "3"}
    assert torch.equal(load_file(out)["b"], torch.ones(3))


def test_a_training_scripts_file_keeps_all_its_other_things(tmp_path: Path) -> None:
    path, out = tmp_path / "run.pth", tmp_path / "out.pth"
    weights = OrderedDict(pos_embed=torch.randn(1, 5, 4), cls_token=torch.nn.Parameter(torch.randn(1, 1, 4)))
    weights["tied"] = weights["other"] = torch.randn(3)
    weights["row"] = weights["tied"][1:]
    weights._metadata = OrderedDict({"": {"version": 1}})
    ema = OrderedDict(weights)
    run = {
        "model": weights,
        "ema": ema,
        "also": ema,
        "args": argparse.Namespace(lr=np.float64(0.1), best=np.float32(2.5), names=["a", None]),
        "optimizer": {"state": {0: {"exp_avg": torch.randn(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 3,
        "scaler": None,
    }
    torch.save(run, path)
    new = torch.nn.Parameter(torch.randn(2, 3, 4))
    with open_weights(path) as file:
        rewrite(file, {"model/cls_token": new[:1], "also/pos_embed": torch.zeros(1, 2, 4)}, out)
    back = torch.load(out, weights_only=False)
    assert back.keys() == run.keys()
    assert (back["args"], back["epoch"], back["scaler"]) == (run["args"], 3, None)
    assert [type(value) for value in vars(back["args"]).values()] == [np.float64, np.float32, list]
    assert back["optimizer"]["param_groups"] == run["optimizer"]["param_groups"]
    assert torch.equal(back["optimizer"]["state"][0]["exp_avg"], run["optimizer"]["state"][0]["exp_avg"])
    assert type(back["model"]) is OrderedDict
    assert back["model"]._metadata == weights._metadata
    assert type(back["model"]["cls_token"]) is torch.nn.Parameter
    assert torch.equal(back["model"]["cls_token"], new[:1])
    assert back["model"]["cls_token"].untyped_storage().nbytes() == 3 * 4 * 4
    assert torch.equal(back["ema"]["cls_token"], weights["cls_token"])
    # "also" is the same dictionary as "ema", but only its own entry was to change.
    assert torch.equal(back["also"]["pos_embed"], torch.zeros(1, 2, 4))
    assert torch.equal(back["ema"]["pos_embed"], weights["pos_embed"])
    assert torch.equal(back["model"]["pos_embed"], weights["pos_embed"])
    storages = {key: back["model"][key].untyped_storage().data_ptr() for key in ("tied", "other", "row")}
    assert len(set(storages.values())) == 1
    assert back["ema"]["tied"].untyped_storage().data_ptr() == storages["tied"]
    # The open file's own tree is as it was.
    with open_weights(path) as file:
        rewrite(file, {"model/pos_embed": torch.ones(1, 2, 4)}, out)
        assert torch.equal(file.read("model/pos_embed"), weights["pos_embed"])


def test_npz_keeps_packing_byte_order_and_what_is_no_array(tmp_path: Path) -> None:
    path, out = tmp_path / "a.npz", tmp_path / "b.npz"
    objects = np.array([{"a": 1}], dtype=object)
    np.savez_compressed(
        path, big=np.zeros((50, 50), ">f4"), other=np.ones((50, 50)), objects=objects, text=np.array("x")
    )
    with zipfile.ZipFile(path, "a") as archive:
        stored = io.BytesIO()
        np.save(stored, np.arange(3))
        archive.writestr("stored.npy", stored.getvalue(), zipfile.ZIP_STORED)
        archive.comment = b"made by hand"
    with open_weights(path) as file:
        rewrite(file, {"big": torch.arange(6.0).reshape(2, 3), "stored": torch.arange(4)}, out)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out) as new:
        assert new.testzip() is None
        assert new.namelist() == old.namelist()
        assert new.comment == b"made by hand"
        for before, after in zip(old.infolist(), new.infolist(), strict=True):
            assert after.compress_type == before.compress_type
            if after.filename not in ("big.npy", "stored.npy"):
                assert (after.CRC, after.compress_size) == (before.CRC, before.compress_size)
                assert new.read(after) == old.read(before)
    arrays = np.load(out, allow_pickle=True)
    assert arrays["big"].dtype == np.dtype(">f4")
    assert np.array_equal(arrays["big"], np.arange(6.0).reshape(2, 3))
    assert np.array_equal(arrays["stored"], np.arange(4))
    assert arrays["objects"][0] == {"a": 1}


def test_a_file_beside_an_array_of_its_name_is_kept(tmp_path: Path) -> None:
    path, out = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(path, a=np.zeros(3))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a", b"no array")
    with open_weights(path) as file:
        rewrite(file, {"a": torch.ones(2).double()}, out)
    with zipfile.ZipFile(out) as new:
        assert new.namelist() == ["a.npy", "a"]
        assert new.read("a") == b"no array"
    assert np.load(out)["a.npy"].tolist() == [1, 1]


@pytest.mark.parametrize("container", CONTAINERS)
def test_wrong_changes_are_refused_before_anything_is_written(tmp_path: Path, container: str) -> None:
    path = written(tmp_path, container)
    with open_weights(path) as file:
        with pytest.raises(ValueError, match=r"has no tensor 'nobody' to change"):
            rewrite(file, {"nobody": torch.ones(1)}, tmp_path / "out")
        with pytest.raises(ValueError, match=r"kernel: got torch\.float64, the file has torch\.float32"):
            rewrite(file, {"kernel": torch.ones(4, 6).double()}, tmp_path / "out")
        with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
            rewrite(file, {}, tmp_path / "nowhere" / "out")
        if container != "safetensors":
            with pytest.raises(ValueError, match="only safetensors holds metadata, the file is"):
                rewrite(file, {}, tmp_path / "out", metadata={"a": "b"})
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("container", CONTAINERS)
def test_an_error_in_the_middle_leaves_the_old_file(tmp_path: Path, container: str, monkeypatch: object) -> None:
    path = written(tmp_path, container)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with open_weights(path) as file, pytest.raises(OSError, match="No space left"):
        rewrite(file, {"kernel": torch.ones(9)}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_damage_of_another_tensor_is_not_given_a_new_checksum(tmp_path: Path) -> None:
    path = written(tmp_path, "pth")
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        zeros = next(info for info in archive.infolist() if info.file_size == 40 * 40 * 4)
    content[zeros.header_offset + 3000] ^= 1
    path.write_bytes(content)
    with open_weights(path) as file, pytest.raises(CheckpointError, match=r"weights\.pth: zeros: damaged: Bad CRC-32"):
        rewrite(file, {"kernel": torch.ones(9)}, tmp_path / "out.pth")
    assert os.listdir(tmp_path) == [path.name]
    npz = written(tmp_path, "npz")
    content = bytearray(npz.read_bytes())
    content[content.rindex(bytes(2000)) + 1000] ^= 1
    npz.write_bytes(content)
    with open_weights(npz) as file:
        rewrite(file, {"kernel": torch.ones(9)}, tmp_path / "out.npz")
    with open_weights(tmp_path / "out.npz") as file:
        file.read("half")
        with pytest.raises(CheckpointError, match=r"out\.npz: zeros: damaged: Bad CRC-32"):
            file.read("zeros")


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize(
    "container", ["safetensors", *(pytest.param(each, marks=pytest.mark.slow) for each in CONTAINERS[1:])]
)
def test_a_killed_process_leaves_the_old_file(tmp_path: Path, container: str) -> None:
    path = written(tmp_path, container)
    before = path.read_bytes()
    script = textwrap.dedent("""
        import os, sys, time, torch
        from vit_rs.checkpoints.files import open_weights, rewrite

        def reached(descriptor):
            print("all is written but the name", flush=True)
            time.sleep(60)

        os.fsync = reached
        with open_weights(sys.argv[1]) as file:
            rewrite(file, {"kernel": torch.ones(9)}, sys.argv[1])
    """)
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"all is written")
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == before
    [left] = [name for name in os.listdir(tmp_path) if name != path.name]
    assert left.startswith(f".{path.name}.")
    assert left.endswith(".tmp")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in KiB")
def test_memory_is_that_of_the_change(tmp_path: Path) -> None:
    """Of 96 MiB, safetensors and .npz hold at most 32 (blocks of one, the allocator's slack), torch.save the file."""
    tensors = {f"blocks.{number}": torch.zeros(1024, 1024) for number in range(24)} | {"pos_embed": torch.ones(1, 5, 8)}
    paths = [tmp_path / f"a.{suffix}" for suffix in ("safetensors", "npz", "pth")]
    write_safetensors(paths[0], tensors)
    write_npz(paths[1], tensors)
    torch.save(tensors, paths[2])
    script = textwrap.dedent("""
        import resource, sys, torch
        from vit_rs.checkpoints.files import open_weights, rewrite

        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        for path in sys.argv[1:]:
            before = peak()
            with open_weights(path) as file:
                rewrite(file, {"pos_embed": torch.ones(1, 10, 8)}, path)
            print(peak() - before)
    """)
    run = subprocess.run([sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True, check=True)
    small, packed, mapped = map(int, run.stdout.split())
    assert max(small, packed) < 32
    assert mapped < 96 + 32
