"""Broken and hostile files of weights: one clear error that names file and key, nothing executed, nothing believed."""

import argparse
import codecs
import io
import json
import os
import pickle
import pickletools
import random
import struct
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch._tensor import _rebuild_from_type_v2

from vit_rs.checkpoints import load_model, load_pretrained, load_state
from vit_rs.checkpoints.files import open_weights, rewrite
from vit_rs.exceptions import CheckpointError
from vit_rs.models import VisionTransformer, ViTConfig

CONTAINERS = ("safetensors", "torch", "old torch", "npz", "packed npz")
CHECKED = ("torch", "npz", "packed npz")  # those with checksums


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "cls_token": torch.randn(1, 1, 8, generator=generator),
        "pos_embed": torch.randn(1, 5, 8, generator=generator),
        "wide": torch.randn(30, generator=generator).double(),
        "step": torch.tensor(12),
    }


def written(path: Path, container: str, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    tensors = tensors or state()
    match container:
        case "safetensors":
            save_file(tensors, path, metadata={"format": "pt"})
        case "torch" | "old torch":
            run = {**tensors, "args": argparse.Namespace(lr=np.float64(0.5))}
            torch.save(run, path, _use_new_zipfile_serialization=container == "torch")
        case _:
            with path.open("wb") as file:
                save = np.savez if container == "npz" else np.savez_compressed
                save(file, **{key: tensor.numpy() for key, tensor in tensors.items()})
    return path


def read_all(path: Path) -> dict[str, torch.Tensor]:
    with open_weights(path) as file:
        return {key: file.read(key) for key in file.tensors}


def same(got: torch.Tensor, want: torch.Tensor) -> bool:
    as_bytes = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (got, want)]
    return (got.dtype, got.shape) == (want.dtype, want.shape) and torch.equal(*as_bytes)


def refused(path: Path, reason: str, key: str = "") -> str:
    """Read a file that must be refused; return the message, which names file, key and reason on one line."""
    with pytest.raises(CheckpointError, match=reason) as error:
        read_all(path)
    message = str(error.value)
    assert message.startswith(f"{path}: {key}")
    assert "\n" not in message
    assert len(message) < 1000
    return message


# Damage


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_cut_short_is_refused(tmp_path: Path, container: str) -> None:
    path = written(tmp_path / "weights.bin", container)
    good = path.read_bytes()
    for length in {len(good) * part // 20 for part in range(20)} | {1, 8, 9, len(good) - 1}:
        path.write_bytes(good[:length])
        refused(path, "weights")


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_flipped_bit_is_refused_or_means_nothing(tmp_path: Path, container: str) -> None:
    """Without checksums (safetensors, torch's old pickles) a changed number stays unknown, but it changes alone."""
    path = written(tmp_path / "weights.bin", container)
    good, want, rng = path.read_bytes(), state(), random.Random(0)
    messages = []
    for _ in range(200):
        damaged = bytearray(good)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            got = read_all(path)
        except CheckpointError as error:
            messages.append(str(error))
            continue
        if container in CHECKED:
            assert got.keys() == want.keys()
            assert all(same(got[key], want[key]) for key in want)
        else:
            assert len(got) == len(want)
            assert sum(key not in got or not same(got[key], want[key]) for key in want) <= 1
    assert len(messages) > (80 if container in CHECKED else 20)
    assert all(message.startswith(f"{path}: ") and "\n" not in message for message in messages)


@pytest.mark.parametrize("container", ["torch", "npz", "packed npz"])
def test_the_damaged_tensor_is_named_and_the_others_are_read(tmp_path: Path, container: str) -> None:
    path, wide = tmp_path / "weights.bin", torch.randn(3000, dtype=torch.float64)
    written(path, container, {**state(), "wide": wide})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.file_size >= wide.nbytes)
    content[info.header_offset + 15_000] ^= 4
    path.write_bytes(content)
    with open_weights(path) as file:
        assert same(file.read("pos_embed"), state()["pos_embed"])
        with pytest.raises(CheckpointError, match=rf"{path.name}: wide: damaged: "):
            file.read("wide")
        assert same(file.read("cls_token"), state()["cls_token"])


def test_damage_is_found_wherever_storages_look_alike(tmp_path: Path) -> None:
    """Only one of two equal storages is a tensor with a key; for some sizes their places differ by a whole page."""
    path = tmp_path / "run.pth"
    for size in range(944, 1040, 16):
        torch.save({"list": [torch.randn(size)], "a": torch.randn(size)}, path)
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            content[archive.getinfo("run/data/1").header_offset + 2000] ^= 1
        path.write_bytes(content)
        refused(path, r"damaged: Bad CRC-32 for file 'run/data/1'")


def test_files_given_by_mistake_are_called_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    mistakes = [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of git-lfs .* `git lfs pull`"),
        (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "a web page and not weights"),
        (b"<?xml version='1.0'?><Error/>", "an XML text"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (b"\x1f\x8b\x08\x00" + bytes(99), "gzip: unpack it first"),
        (b"\x93NUMPY\x01\x00" + bytes(99), "a single array of numpy"),
        (pickle.dumps({"a": 1}), "a bare pickle"),
        (b"\x81\xa6params\x80" + bytes(9), "msgpack"),
        (b"\xde\x00\x20\xa6params", "msgpack"),
        (json.dumps({"metadata": {}, "weight_map": {"a": "b"}}).encode(), "index of a model in several files"),
        (b"not a checkpoint", r"neither safetensors nor \.npz nor of torch\.save; it starts with b'not a check"),
        (b"\x00" * 64, "neither safetensors"),
        (struct.pack("<Q", 2**62) + b"{}", "neither safetensors"),
        (struct.pack("<Q", 10**7) + b"{}", "damaged: "),
        (b"PK\x03\x04rubbish", "damaged: File is not a zip file"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "damaged: "),
    ]
    for content, reason in mistakes:
        path.write_bytes(content)
        refused(path, reason)


def test_archives_given_by_mistake_are_called_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "weights.zip"
    for name, reason in (
        ("m/constants.pkl", "TorchScript archive, which holds code: save the model's state_dict"),
        ("photo.jpg", r"neither of torch\.save nor \.npz; it holds photo\.jpg"),
        ("m/extra/data.pkl", "2 members are called data.pkl, expected 1"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/data.pkl", b"") if "photo" not in name else None
            archive.writestr(name, b"")
        refused(path, reason)
    with zipfile.ZipFile(path, "w"):
        pass
    refused(path, "neither")


def test_folders_say_which_file_to_give(tmp_path: Path) -> None:
    refused(tmp_path, "not a file")
    (tmp_path / "pytorch_model.bin").touch()
    refused(tmp_path, r"not a file, but a folder: give the file in it, pytorch_model\.bin")
    (tmp_path / "model.safetensors").touch()
    refused(tmp_path, r"give the file in it, model\.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*none"):
        open_weights(tmp_path / "none")


def test_members_hidden_by_the_table_of_contents_are_missed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.npz", "npz")
    content = bytearray(path.read_bytes())
    comment_length = content.index(b"PK\x01\x02") + 32
    content[comment_length] = 46 + len("pos_embed.npy")  # the second entry becomes the first one's comment
    path.write_bytes(content)
    refused(path, "damaged: 3 members are listed, expected 4")


# Pickles


class _Calls:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> object:
        return self.call


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    path, trap = tmp_path / "run.pth", tmp_path / "executed"
    model = VisionTransformer(ViTConfig(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=2))
    payloads = [
        _Calls(os.system, f"touch {trap}"),
        _Calls(eval, f"open({str(trap)!r}, 'w')"),
        _Calls(os.mkdir, str(trap)),
    ]
    for payload in payloads:
        for zipped in (True, False):
            torch.save({"a": torch.ones(1), "b": payload}, path, _use_new_zipfile_serialization=zipped)
            for read in (open_weights, load_model, load_state, lambda path: load_pretrained(model, path)):
                with pytest.raises(CheckpointError, match=r"run\.pth: ") as error:
                    read(path)
                assert "weights_only=False" not in str(error.value)
        path.write_bytes(pickle.dumps({"a": payload}))
        refused(path, "a bare pickle")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        array = io.BytesIO()
        np.save(array, np.array([payloads[0]], dtype=object))
        archive.writestr("a.npy", array.getvalue())
    assert read_all(tmp_path / "a.npz") == {}
    assert not trap.exists()


class Registered:
    """Allowed by the user's program, and still nothing that weights need."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (_Calls(os.system, "true"), r"refused: it asks for (posix|nt)\.system, .* nothing was executed"),
        (_Calls(bytearray, 10**12), r"it asks for (builtins|__builtin__)\.bytearray"),
        (_Calls(torch.FloatTensor, 10**12), r"it asks for torch\.FloatTensor"),
        (_Calls(torch.storage.TypedStorage, 10**9), r"it asks for torch\.storage\.TypedStorage"),
        (_Calls(torch.UntypedStorage, 10**9), r"it uses torch\.storage\.UntypedStorage otherwise than torch\.save"),
        (
            _Calls(_rebuild_from_type_v2, torch.UntypedStorage, torch.nn.Parameter, (9,), {}),
            r"it uses .*UntypedStorage",
        ),
        (_Calls(torch.Tensor, 10**9), r"it uses torch\.Tensor otherwise than torch\.save"),
        (_Calls(_rebuild_from_type_v2, torch.Tensor, torch.Tensor, (9,), {}), r"it uses torch\.Tensor otherwise"),
        (_Calls(codecs.encode, b"0" * 9, "hex"), r"it uses _codecs\.encode otherwise than torch\.save"),
        (_Calls(codecs.encode, "\xe9" * 9, "punycode"), r"it uses _codecs\.encode otherwise"),
        (_Calls(codecs.encode, "0"), r"it uses _codecs\.encode otherwise"),
        (
            _Calls(_rebuild_from_type_v2, codecs.encode, torch.nn.Parameter, ("a", "hex"), {}),
            r"it uses _codecs\.encode",
        ),
        (_Calls(torch.zeros, 10**12), r"it asks for (builtins|__builtin__)\.getattr"),
        (torch.nn.Linear(1, 1), r"it asks for torch\.nn\.modules\.linear\.Linear, .*save its state_dict\(\) instead"),
        (Registered(), r"it asks for .*Registered"),
        (np.ones(3), r"it asks for numpy\._?core\.multiarray\._reconstruct, .*load it yourself where you trust it"),
        (Path("a"), r"it asks for pathlib\S*Path, .*load it yourself where you trust it and save its state dict alone"),
        (types.SimpleNamespace(a=1), r"it asks for types\.SimpleNamespace, .*load it yourself"),
        (np.str_("a"), r"numpy's dtype 'U1' is refused"),
        (_Calls(np.float64(0).__reduce__()[0], np.dtype("O"), b"x"), r"numpy's dtype 'O8' is refused"),
        (_Calls(np.float64(0).__reduce__()[0], np.dtype("f8"), b"short"), r"a number of float64 has 5 bytes"),
        (_Calls(np.dtype, "f4,f4"), r"numpy's dtype 'f4,f4' is refused"),
        (_Calls(np.dtype, ("V", 10**12)), r"numpy's dtype \('V', 1000000000000\) is refused"),
    ],
)
def test_only_tensors_and_plain_values_are_unpickled(tmp_path: Path, value: object, reason: str, zipped: bool) -> None:
    path = tmp_path / "run.pth"
    torch.save({"a": torch.ones(1), "b": [value]}, path, _use_new_zipfile_serialization=zipped)
    with torch.serialization.safe_globals([Registered]):
        refused(path, reason)
        if zipped:
            with pytest.raises(CheckpointError, match=reason if "it " in reason else "damaged: |refused"):
                load_state(path)


def test_codecs_that_double_are_not_run(tmp_path: Path) -> None:
    """Each step makes the bytes before twice as long: forty are a terabyte."""
    path = written(tmp_path / "run.pth", "torch")
    steps = b"".join(b"c_codecs\nencode\nq\x01h\x00X\x03\0\0\0hex\x86Rq\x00" for _ in range(40))
    repickled(
        path,
        lambda _: b"\x80\x02}X\x01\0\0\0ac_codecs\nencode\nX\x01\0\0\0aX\x06\0\0\0latin1\x86Rq\x00" + steps + b"s.",
    )
    for read in (open_weights, load_state):
        with pytest.raises(CheckpointError, match=r"it uses _codecs\.encode otherwise than torch\.save does"):
            read(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_bytes_and_dtypes_without_a_storage_of_their_own_are_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "run.pth"
    odd = {"short": torch.arange(9).to(torch.uint16), "tiny": torch.ones(9).to(torch.float8_e4m3fn)}
    numbers = argparse.Namespace(raw=b"\x00\xff", again=[b"\x00\xff"] * 2, best=np.float64(0.1), whole=np.int64(3))
    odd = odd if zipped else {"plain": torch.ones(2)}  # torch itself does not read those back from old pickles
    torch.save({**odd, "args": numbers}, path, _use_new_zipfile_serialization=zipped)
    read = read_all(path)
    assert all(same(read[key], odd[key]) for key in odd)


@pytest.mark.parametrize("edit", ["fewer", "none", "twice", "another", "of lists", "a set"])
def test_old_files_whose_list_leaves_storages_out_are_refused(tmp_path: Path, edit: str) -> None:
    """torch would give their tensors memory that nobody has written to."""
    path = tmp_path / "run.pth"
    with path.open("wb") as file:
        torch.save({"a": torch.ones(3), "b": torch.ones(5)}, file, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    stream = io.BytesIO(content)
    for _ in range(4):
        list(pickletools.genops(stream))
    start = stream.tell()
    first, second = pickle.load(stream)
    storages = content[stream.tell() :]
    assert list(read_all(path)) == ["a", "b"]
    keys = {
        "fewer": [first],
        "none": [],
        "twice": [first, first],
        "another": [first, second, "7"],
        "of lists": [[first, second]],
        "a set": {first: 1, second: 2},
    }[edit]
    path.write_bytes(content[:start] + pickle.dumps(keys, 2) + storages)
    refused(path, "damaged: its list of storages has .* not those of the 2 storages of its tensors, each once")


def test_pickles_of_other_protocols_are_refused_without_a_warning(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "run.pth", pickle_protocol=4)
    refused(tmp_path / "run.pth", "a pickle of protocol 4, expected 2")


def repickled(path: Path, edit: object, compression: int = zipfile.ZIP_STORED) -> None:
    """Write a file of torch.save again with its pickle edited and the checksums right."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in members.items():
            new.writestr(name, edit(content) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        # The storage of "a" has 12 floats; that of "b", behind it in the file, 5.
        (b"K\x0ctq\x07QK\x00K\x0c\x85", b"K\x0dtq\x07QK\x00K\x0d\x85", "a: damaged: its storage of 52 bytes is not"),
        (b"K\x0ctq\x07QK\x00K\x0c\x85", b"K\x05tq\x07QK\x00K\x05\x85", "damaged: the sizes of its storages are not"),
        (b"K\x0ctq\x07QK\x00K\x0c\x85", b"J\xff\xff\xff\x7ftq\x07QK\x00K\x0c\x85", "damaged: "),
        (b"K\x0ctq\x07QK\x00K\x0c\x85", b"J\xff\xff\xff\xfftq\x07QK\x00K\x0c\x85", "damaged: "),
        (b"QK\x00K\x0c\x85", b"QK\x00K\x0d\x85", "damaged: .*storage"),
        (b"QK\x00K\x0c\x85", b"QK\x09K\x0c\x85", "damaged: .*storage"),
        (b"QK\x00K\x0c\x85", b"QK\x00J\xff\xff\xff\xff\x85", "damaged: "),
        (b"X\x01\x00\x00\x000q", b"X\x01\x00\x00\x007q", "damaged: "),
        (b"FloatStorage", b"FlootStorage", "damaged: |refused: "),
    ],
)
def test_pickles_that_lie_about_their_storages_are_refused(tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    path = tmp_path / "run.pth"
    torch.save({"a": torch.arange(12.0), "b": torch.arange(5.0)}, path)

    def lie(content: bytes) -> bytes:
        assert content.count(old) == 1
        return content.replace(old, new)

    repickled(path, lie)
    refused(path, reason)


def test_a_number_expanded_without_end_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "run.pth")
    refused(tmp_path / "run.pth", "refused: 4000000000000 bytes in a file of", key="a")


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"\x80\x02" + b"}U\x01a" * 100_000 + b"}" + b"s" * 100_000 + b".", "dictionaries more than 32 deep"),
        (b"\x80\x02}q\x00U\x01ah\x00s.", "dictionaries more than 32 deep"),  # it holds itself
        (b"\x80\x02}q\x00(K\x00NU\x010Nu.", "two entries are called 0"),
        (b"\x80\x02]q\x00.", "expected a dictionary of tensors, the file holds a list"),
        (b"\x80\x02}q\x00U\x01a", "damaged: "),
        (b"\x80\x02\x85.", "damaged: "),
        (b"\x80\x02}U\x01aX\xff\xff\xff\xffs.", "damaged: "),
        (b"\x80\x02}U\x01ar\xff\xff\xff\x7fs.", "damaged: "),
        # Twenty-one dictionaries, each with the one before under two names: two million entries.
        (
            b"\x80\x02}U\x01z(}q\x00U\x01aNs"
            + b"".join(b"}q%c(U\x01ah%cU\x01bh%cu" % (n, n - 1, n - 1) for n in range(1, 22))
            + b"tsU\x01ah\x15s.",
            "more than 100000 entries",
        ),
    ],
)
def test_pickles_built_to_break_the_reader_are_refused(tmp_path: Path, pickled: bytes, reason: str) -> None:
    path = written(tmp_path / "run.pth", "torch")
    repickled(path, lambda _: pickled)
    refused(path, reason)


def test_deep_lists_are_read_past_but_not_written_again(tmp_path: Path) -> None:
    path = written(tmp_path / "run.pth", "torch")
    deep = b"U\x01l" + b"]" * 20_000 + b"a" * 19_999
    repickled(path, lambda content: content.removesuffix(b"u.") + deep + b"u.")
    assert read_all(path).keys() == state().keys()
    before = path.read_bytes()
    with open_weights(path) as file, pytest.raises(CheckpointError, match=r"run\.pth: .*lists are too deep"):
        rewrite(file, {"step": torch.tensor(1)}, path)
    assert path.read_bytes() == before


def test_a_compressed_file_of_torch_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "run.pth", "torch")
    repickled(path, lambda content: content, zipfile.ZIP_DEFLATED)
    refused(path, "refused: .* is compressed, torch's never are")
    torch.save(state(), tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", r"rename it to \.pth")


# Arrays


def npz_of(path: Path, header: object, data: bytes, **changes: int) -> Path:
    """Write an .npz of one array "a" by hand, and lie about it in the archive's table of contents."""
    text = (header if isinstance(header, str) else repr(header)).encode() + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)
        for name, value in changes.items():
            setattr(archive.infolist()[0], name, value)
    return path


HEADER = {"descr": "<f4", "fortran_order": False, "shape": (2, 3)}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({**HEADER, "shape": (2, 4)}, r"got \d+ bytes, expected \d+ for the shape \(2, 4\) of torch.float32"),
        ({**HEADER, "shape": (10**9, 10**9)}, r"for the shape \(1000000000, 1000000000\)"),
        ({**HEADER, "shape": (-2, -3)}, r"got shape \(-2, -3\)"),
        ({**HEADER, "shape": (True, 6)}, r"got shape \(True, 6\)"),
        ({**HEADER, "shape": 6}, "got shape 6"),
        ({**HEADER, "shape": (0, 10**30, 6)}, "expected"),
        ({**HEADER, "fortran_order": 1}, "fortran_order 1"),
        ({**HEADER, "more": 1}, "expected descr, fortran_order and shape"),
        ("[]", "expected descr, fortran_order and shape"),
        ("{'descr': __import__('os').system('true')}", "malformed node"),
        ("(" * 5000, "damaged: "),
        ("-" * 9000 + "1", "damaged: "),
        (" " * 20_000, "a header of 20001 bytes, expected at most 10000"),
        ("{", "damaged: "),
    ],
)
def test_arrays_that_lie_about_their_shape_are_refused(tmp_path: Path, header: object, reason: str) -> None:
    refused(npz_of(tmp_path / "a.npz", header, np.ones(6, "<f4").tobytes()), reason, key="a: ")


def test_archives_that_unpack_without_end_are_refused(tmp_path: Path) -> None:
    data = np.ones(6, "<f4").tobytes()
    refused(npz_of(tmp_path / "a.npz", HEADER, data, file_size=10**10), "claim to unpack to 10000000000, .* a zip bomb")
    # A megabyte of zeros is an honest kilobyte; what the table does not promise is never unpacked.
    big = npz_of(tmp_path / "b.npz", {**HEADER, "shape": (50_000,)}, bytes(200_000))
    assert read_all(big)["a"].abs().sum() == 0
    less = {"file_size": len(repr(HEADER)) + 11 + 24}
    refused(npz_of(tmp_path / "c.npz", HEADER, bytes(10**6), **less), "damaged: Bad CRC-32", key="a: ")
    more = {"file_size": len(repr({**HEADER, "shape": (9, 9)})) + 11 + 324}
    refused(
        npz_of(tmp_path / "d.npz", {**HEADER, "shape": (9, 9)}, data, **more), "got 24 bytes, expected 324", key="a: "
    )
    with zipfile.ZipFile(tmp_path / "e.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", b"")
    refused(tmp_path / "e.npz", "compressed by method 14, numpy writes 0 or 8")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"")
        archive.writestr("a.npy", b"")
    refused(tmp_path / "a.npz", r"2 members are called a\.npy")


@pytest.mark.parametrize("flags", [1, 0x20, 0x40])
def test_encrypted_archives_are_refused(tmp_path: Path, flags: int) -> None:
    path = npz_of(tmp_path / "a.npz", HEADER, np.ones(6, "<f4").tobytes())
    content = bytearray(path.read_bytes())
    content[6] |= flags
    content[content.rindex(b"PK\x01\x02") + 8] |= flags
    path.write_bytes(content)
    refused(path, "damaged: ", key="a: ")


# safetensors


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "damaged: "),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}}, "damaged: "),
        ({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, "damaged: "),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "damaged: "),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, "damaged: "),
        ({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, "damaged: "),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "damaged: "),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "damaged: "),
        ({"a": 3}, "damaged: "),
        ('{"a":' * 5000, "damaged: "),
        (
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            "damaged: ",
        ),
    ],
)
def test_headers_of_safetensors_that_lie_are_refused(tmp_path: Path, entries: object, reason: str) -> None:
    path = tmp_path / "a.safetensors"
    text = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    refused(path, reason)
