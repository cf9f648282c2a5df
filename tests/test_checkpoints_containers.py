"""Files of weights: three containers, read tensor by tensor as their own libraries read them whole."""

import argparse
import json
import zipfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vit_rs.checkpoints.files import TensorInfo, open_weights, write_npz, write_safetensors
from vit_rs.exceptions import CheckpointError


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "cls_token": torch.randn(1, 1, 8, generator=generator),
        "pos_embed": torch.randn(1, 5, 8, generator=generator).double(),
        "half": torch.randn(7, generator=generator).bfloat16(),
        "float16": torch.randn(3, 3, generator=generator).half(),
        "step": torch.tensor(12, dtype=torch.int64),
        "mask": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }


def infos(tensors: dict[str, torch.Tensor]) -> dict[str, TensorInfo]:
    return {key: TensorInfo(tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}


def same(got: torch.Tensor, want: torch.Tensor) -> bool:
    return got.dtype == want.dtype and got.shape == want.shape and torch.equal(got, want)


def rezipped(source: Path, target: Path, edit: object, compression: int = zipfile.ZIP_STORED) -> None:
    """Write a zip again with every member's bytes passed through a function of its name and them."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))


# All containers


@pytest.mark.parity
@pytest.mark.parametrize("container", ["safetensors", "torch", "old torch", "npz"])
def test_every_tensor_is_what_was_written(tmp_path: Path, container: str) -> None:
    path, want = tmp_path / "weights.bin", state()
    match container:
        case "safetensors":
            save_file(want, path)
        case "torch" | "old torch":
            torch.save(want, path, _use_new_zipfile_serialization=container == "torch")
        case "npz":
            want = {key: tensor for key, tensor in want.items() if tensor.dtype != torch.bfloat16}
            with path.open("wb") as file:
                np.savez(file, **{key: tensor.numpy() for key, tensor in want.items()})
    with open_weights(path) as file:
        assert (file.path, file.container) == (path, container.removeprefix("old "))
        assert file.tensors == infos(want)
        assert (file.others, file.metadata) == ({}, {})
        tensors = {key: file.read(key) for key in file.tensors}
    assert all(same(tensors[key], want[key]) for key in want)  # also after the file is closed
    assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in tensors.values())
    with open_weights(path) as file, pytest.raises(KeyError):
        file.read("nobody")


@pytest.mark.parity
def test_what_we_write_others_read(tmp_path: Path) -> None:
    want = state()
    write_safetensors(tmp_path / "a.safetensors", want, {"one": "1", "two": "zwei é"})
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == want.keys()
    assert all(same(read[key], want[key]) for key in want)
    with open_weights(tmp_path / "a.safetensors") as file:
        assert file.metadata == {"one": "1", "two": "zwei é"}
    nested = {f"params/{key}": tensor for key, tensor in want.items()}
    write_npz(tmp_path / "a.npz", nested)
    arrays = np.load(tmp_path / "a.npz")
    assert list(arrays) == list(nested)
    assert arrays["params/half"].dtype == np.dtype("V2")
    for key, tensor in nested.items():
        numbers = tensor.view(torch.int16).numpy().view("V2") if tensor.dtype == torch.bfloat16 else tensor.numpy()
        assert (arrays[key].dtype, arrays[key].shape) == (numbers.dtype, numbers.shape)
        assert arrays[key].tobytes() == numbers.tobytes()
    with open_weights(tmp_path / "a.npz") as file:
        assert file.tensors == infos(nested)
        assert all(same(file.read(key), nested[key]) for key in nested)


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    for number in range(4):
        write_safetensors(tmp_path / f"{number}.safetensors", state(), {str(entry): "x" for entry in range(9)})
        write_npz(tmp_path / f"{number}.npz", state())
    for suffix in ("safetensors", "npz"):
        assert len({path.read_bytes() for path in tmp_path.glob(f"*.{suffix}")}) == 1


def test_tensors_stay_aligned_to_their_elements(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(
        path, {"odd": torch.ones(3, dtype=torch.uint8), "half": torch.ones(3).half(), "wide": torch.ones(1)}
    )
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])
    assert size % 8 == 0
    assert {key: entry["data_offsets"] for key, entry in header.items()} == {
        "wide": [0, 4],
        "half": [4, 10],
        "odd": [10, 13],
    }


@pytest.mark.parametrize(
    ("write", "tensors", "error", "message"),
    [
        (
            write_npz,
            {"a": torch.ones(2).to(torch.float8_e4m3fn)},
            TypeError,
            r"a: \.npz cannot hold torch\.float8_e4m3fn",
        ),
        (write_safetensors, {"a": torch.eye(2).to_sparse()}, TypeError, r"a: safetensors cannot hold .*sparse_coo"),
        (write_safetensors, {"__metadata__": torch.ones(1)}, ValueError, "the name of the metadata"),
    ],
)
def test_what_a_container_cannot_hold_is_not_written(
    tmp_path: Path, write: object, tensors: object, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        write(tmp_path / "file", tensors)
    with pytest.raises(TypeError, match="metadata 'epoch' is a int, safetensors holds texts only"):
        write_safetensors(tmp_path / "file", {}, {"epoch": 3})
    assert list(tmp_path.iterdir()) == []


# safetensors


def test_further_dtypes_are_read_as_torch_has_them(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    want = {
        name: torch.arange(4.0).to(getattr(torch, name))
        for name in ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64", "int8", "int16", "complex64")
    }
    save_file(want, path)
    with open_weights(path) as file:
        assert file.tensors == infos(dict(sorted(want.items(), key=lambda entry: list(file.tensors).index(entry[0]))))
        for key, tensor in want.items():
            assert torch.equal(file.read(key).view(torch.uint8), tensor.view(torch.uint8))


# torch.save


@pytest.mark.parametrize("zipped", [True, False])
def test_nested_dictionaries_become_keys_with_slashes(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "run.pth"
    weights = OrderedDict(a=torch.nn.Parameter(torch.ones(2)))
    checkpoint = {
        "model": weights,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "nothing": {},
        "args": argparse.Namespace(lr=np.float64(0.5), best=np.float32(2), steps=np.int64(7), names=["a"]),
    }
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    with open_weights(path) as file:
        assert list(file.tensors) == ["model/a", "optimizer/state/0/exp_avg"]
        assert file.others == {
            "optimizer/param_groups": "list",
            "epoch": "int",
            "nothing": "dict",
            "args": "Namespace",
        }
        assert type(file.read("model/a")) is torch.Tensor


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numbers_of_either_numpy_are_read_and_kept(tmp_path: Path, module: bytes) -> None:
    values = [np.float64(0.1), np.float32(-2.5), np.int64(-7), np.bool_(True), np.complex64(1j), np.uint8(255)]
    torch.save({"a": torch.ones(2), "args": argparse.Namespace(values=values)}, tmp_path / "numbers.pth")

    def older(name: str, content: bytes) -> bytes:
        return content.replace(b"numpy._core.multiarray", module).replace(b"numpy.core.multiarray", module)

    rezipped(tmp_path / "numbers.pth", tmp_path / "old.pth", older)
    before = set(torch.serialization.get_safe_globals())
    with open_weights(tmp_path / "old.pth") as file:
        read = file._tree["args"].values
    assert [(type(value), value) for value in read] == [(type(value), value) for value in values]
    assert set(torch.serialization.get_safe_globals()) == before


def test_views_and_tied_tensors_are_read(tmp_path: Path) -> None:
    path, base = tmp_path / "views.pth", torch.randn(4, 6)
    want = {
        "base": base,
        "tied": base,
        "row": base[2],
        "strided": base.T[1:4, ::2],
        "expanded": torch.ones(1).expand(7),
    }
    torch.save(want, path)
    with open_weights(path) as file:
        assert all(same(file.read(key), want[key]) for key in want)
        assert file.read("row").untyped_storage().data_ptr() == file.read("tied").untyped_storage().data_ptr()


def test_tensors_of_other_devices_come_to_the_cpu(tmp_path: Path) -> None:
    path, want = tmp_path / "cuda.pth", torch.randn(3, 4)
    torch.save({"a": want}, tmp_path / "cpu.pth")
    cpu, cuda = b"X\x03\x00\x00\x00cpuq", b"X\x06\x00\x00\x00cuda:0q"
    rezipped(tmp_path / "cpu.pth", path, lambda _, content: content.replace(cpu, cuda))
    assert cuda in path.read_bytes()
    with open_weights(path) as file:
        assert file.read("a").device.type == "cpu"
        assert same(file.read("a"), want)


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    path, want = tmp_path / "weights.pth", {"a": torch.randn(9), "b": torch.randn(9)}
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        torch.save(want, path)
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    with open_weights(path) as file:
        assert all(same(file.read(key), want[key]) for key in want)


def test_threads_may_open_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "run.pth"
    torch.save({"a": torch.ones(3), "args": argparse.Namespace(lr=np.float64(0.5))}, path)

    def opened(_: int) -> dict[str, str]:
        with open_weights(path) as file:
            return dict(file.others)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(opened, range(40))) == [{"args": "Namespace"}] * 40


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, about sparse and quantised tensors
def test_tensors_without_plain_values_are_refused_by_their_key(tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    odd = {
        "sparse": torch.eye(3).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "meta": torch.ones(3, device="meta"),
    }
    torch.save({"model": {"plain": torch.ones(3), **odd}}, path)
    with open_weights(path) as file:
        assert same(file.read("model/plain"), torch.ones(3))
        for key, reason in (("sparse", "layout torch.sparse_coo"), ("quantised", "qint8"), ("meta", "device meta")):
            with pytest.raises(CheckpointError, match=rf"odd\.pth: model/{key}: .*{reason}.* refused"):
                file.read(f"model/{key}")


# npz


@pytest.mark.parametrize("compressed", [False, True])
def test_byte_orders_and_fortran_orders_are_undone(tmp_path: Path, compressed: bool) -> None:
    path, base = tmp_path / "a.npz", np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {
        "big": base.astype(">f4"),
        "fortran": np.asfortranarray(base),
        "both": np.asfortranarray(base.astype(">f8")),
        "big_step": np.array(2**40, dtype=">i8"),
    }
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    with open_weights(path) as file:
        for key, array in arrays.items():
            assert same(file.read(key), torch.from_numpy(array.astype(array.dtype.newbyteorder("="))))
            assert file.read(key).is_contiguous() or "o" in key


def test_bfloat16_as_two_bytes_is_read(tmp_path: Path) -> None:
    path, want = tmp_path / "a.npz", torch.randn(3, 5).bfloat16()
    np.savez(path, a=want.view(torch.int16).numpy().view("V2"))
    with open_weights(path) as file:
        assert file.tensors == {"a": TensorInfo((3, 5), torch.bfloat16)}
        assert same(file.read("a"), want)


def test_arrays_that_are_no_numbers_are_listed_and_never_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(
        path,
        weights=np.ones(3, np.float32),
        objects=np.array([{}, []], dtype=object),
        text=np.array(["a"]),
        raw=np.array([b"a"]),
        records=np.zeros(2, [("x", "f4"), ("y", "i4")]),
        times=np.zeros(2, "M8[s]"),
        longest=np.zeros(2, np.longdouble),
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")
    with open_weights(path) as file:
        assert list(file.tensors) == ["weights"]
        assert file.others == {
            "objects": "object array (a pickle, never read)",
            "text": "array of text",
            "raw": "array of bytes",
            "records": "structured array",
            "times": "array of <M8[s]",
            "longest": f"array of {np.dtype(np.longdouble).str}",
            "readme.txt": "file",
        }
        with pytest.raises(KeyError):
            file.read("objects")


def test_headers_of_python_2_and_of_later_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }\n"
    data = np.arange(6, dtype="<f4").tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("old.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)
        for version in (2, 3):
            start = b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(4, "little")
            archive.writestr(f"v{version}.npy", start + text.replace(b"L", b" ") + data)
    with open_weights(path) as file:
        for key in ("old", "v2", "v3"):
            assert same(file.read(key), torch.arange(6.0).reshape(2, 3))
