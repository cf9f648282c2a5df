"""Archives of numpy.savez, read without numpy's pickles: a zip with one .npy file for each array (NEP 1).

Arrays of bfloat16 are stored by JAX and big_vision as two bytes without a meaning ("|V2"); they come as torch.bfloat16.
"""

from __future__ import annotations

import ast
import copy
import math
import os
import re
import struct
import zipfile
from typing import IO, TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch

from vit_rs.checkpoints.container import Container, OpenedFile, TensorInfo, naming, open_zip, printable
from vit_rs.exceptions import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor
    from typing_extensions import Self

__all__ = ["NpzFile", "write_arrays"]

# numpy's codes without the byte order, and what torch has for them.
_DTYPES: dict[str, torch.dtype] = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "V2": torch.bfloat16,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "b1": torch.bool,
    "c8": torch.complex64,
    "c16": torch.complex128,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 10_000  # bytes, numpy's own limit for what ast.literal_eval is given; a plain array's has 128
_COPIED_AT_ONCE = 1 << 20  # bytes
# An archive may unpack to this much and not more. Weights shrink by a tenth; only constant tables (a head of zeros, a
# fresh optimizer) shrink a thousandfold, and they are a part of a file. 10 MB that claim 10 GB are a bomb.
_LARGEST_GAIN = 100
_ALWAYS_ALLOWED = 64 << 20  # bytes


class _Member(NamedTuple):
    """One array of the archive: its place, and what its header says."""

    info: zipfile.ZipInfo
    header_size: int
    descr: str
    fortran_order: bool
    shape: tuple[int, ...]


class NpzFile:
    """An open .npz archive; see `WeightsFile`. Only what is read is unpacked."""

    container: Container = "npz"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = {}
        self._members: dict[str, _Member] = {}
        tensors: dict[str, TensorInfo] = {}
        others: dict[str, str] = {}
        self._opened = OpenedFile(path)
        try:
            with naming(path):
                self._archive = open_zip(path, self._opened.raw)
                self._check_archive()
                for info in self._archive.infolist():
                    key = info.filename.removesuffix(".npy")
                    if key == info.filename:
                        self._archive.open(info).close()  # compares the two places that say its name
                        others[key] = "file"
                        continue
                    with naming(path, key):
                        member = self._header(info)
                    dtype = _DTYPES.get(member.descr[1:])
                    if dtype is None:
                        others[key] = _kind(member.descr)
                    else:
                        self._members[key] = member
                        tensors[key] = TensorInfo(member.shape, dtype)
        except BaseException:
            self._opened.close()
            raise
        self.tensors: Mapping[str, TensorInfo] = tensors
        self.others: Mapping[str, str] = others

    def _check_archive(self) -> None:
        infos = self._archive.infolist()
        for info in infos:
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CheckpointError(
                    f"{self.path}: {printable(info.filename)}: refused: compressed by method {info.compress_type}, "
                    "numpy writes 0 or 8"
                )
        unpacked, size = sum(info.file_size for info in infos), os.fstat(self._opened.raw.fileno()).st_size
        if unpacked > _ALWAYS_ALLOWED + _LARGEST_GAIN * size:
            raise CheckpointError(
                f"{self.path}: refused: its {size} bytes claim to unpack to {unpacked}, more than {_LARGEST_GAIN} "
                "times as much: not weights, but a zip bomb"
            )

    def _header(self, info: zipfile.ZipInfo) -> _Member:
        with self._archive.open(info) as file:
            start = file.read(8)
            if start[:6] != _MAGIC or start[6:7] not in (b"\x01", b"\x02", b"\x03"):
                raise ValueError("no array of numpy")
            length_size = 2 if start[6] == 1 else 4
            length = int.from_bytes(file.read(length_size), "little")
            if length > _LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes, expected at most {_LONGEST_HEADER}")
            text = file.read(length).decode("utf-8" if start[6] == 3 else "latin1")
        if len(text) < length and start[6] != 3:
            raise EOFError("the header ends early")
        # Python 2 wrote long integers as "16L".
        header = ast.literal_eval(re.sub(r"\b(\d+)L\b", r"\1", text.strip()))
        if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
            raise ValueError(f"got the header {text.strip()}, expected descr, fortran_order and shape")
        descr, fortran_order, shape = header["descr"], header["fortran_order"], header["shape"]
        sizes_are_plain = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        if not sizes_are_plain or not isinstance(fortran_order, bool):
            raise ValueError(f"got shape {shape!r} and fortran_order {fortran_order!r}")
        if not isinstance(descr, str):
            descr = "|structured"
        elif descr[:1] not in "<>|=":
            descr = f"|{descr}"
        member = _Member(info, 8 + length_size + length, descr, fortran_order, shape)
        dtype = _DTYPES.get(descr[1:])
        if dtype is not None:
            expected = member.header_size + math.prod(shape) * dtype.itemsize
            if info.file_size != expected:
                raise ValueError(f"got {info.file_size} bytes, expected {expected} for the shape {shape} of {dtype}")
        return member

    def read(self, key: str) -> Tensor:
        """Return one array, unpacked, in this machine's byte order."""
        self._opened.check_open()
        dtype = self.tensors[key].dtype
        member = self._members[key]
        with naming(self.path, key), self._archive.open(member.info) as opened:
            opened.read(member.header_size)
            data = bytearray(member.info.file_size - member.header_size)
            done = 0
            while block := opened.read(_COPIED_AT_ONCE):
                if done + len(block) > len(data):
                    break
                data[done : done + len(block)] = block
                done += len(block)
            if done != len(data):
                raise EOFError(f"got {done} bytes, expected {len(data)}")
            array = np.frombuffer(data, _numpy_dtype(member.descr))
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
            array = array.reshape(member.shape, order="F" if member.fortran_order else "C")
            tensor = torch.from_numpy(array)
            return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor

    def write_changed(self, file: IO[bytes], changes: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> None:
        """Copy members as they are packed; write changed ones with the same packing, dtype and byte order."""
        del metadata
        self._opened.check_unchanged()
        if not changes:
            self._opened.copy_to(file)
            self._opened.check_unchanged()
            return
        with zipfile.ZipFile(file, "w") as target:
            target.comment = self._archive.comment
            for info in self._archive.infolist():
                key = info.filename.removesuffix(".npy")
                if key in changes and self._members[key].info is info:  # beside it there may be a file without ".npy"
                    _write_array(target, key, changes[key], self._members[key].descr, info.compress_type)
                else:
                    with naming(self.path, key):
                        self._copy_member(info, target)
        self._opened.check_unchanged()

    def _copy_member(self, info: zipfile.ZipInfo, target: zipfile.ZipFile) -> None:
        """Copy a member's packed bytes: nothing is unpacked, and damage keeps the checksum that betrays it."""
        source, out = cast("IO[bytes]", self._archive.fp), cast("IO[bytes]", target.fp)
        self._archive.open(info).close()  # compares the member's two headers
        source.seek(info.header_offset)
        start = source.read(30)
        name_size, extra_size = struct.unpack("<HH", start[26:])
        source.seek(info.header_offset + 30 + name_size + extra_size)
        copied = copy.copy(info)
        copied.flag_bits &= ~0x08  # sizes and checksum stand in front, not behind
        copied.extra = b""
        copied.header_offset = out.tell()
        out.write(copied.FileHeader())
        left = info.compress_size
        while left:
            block = source.read(min(left, _COPIED_AT_ONCE))
            if not block:
                raise EOFError("it ends early")
            out.write(block)
            left -= len(block)
        target.filelist.append(copied)
        target.NameToInfo[copied.filename] = copied
        target.start_dir = out.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()
        self._opened.close()


def write_arrays(file: IO[bytes], arrays: Mapping[str, Tensor]) -> None:
    """Write arrays as numpy.savez does, unpacked, bfloat16 as "|V2"; equal arrays give equal bytes.

    Raises:
        TypeError: numpy has no such dtype.
    """
    for key, tensor in arrays.items():
        if tensor.dtype not in _CODES or tensor.layout != torch.strided:
            raise TypeError(f"{key}: .npz cannot hold {tensor.dtype} of layout {tensor.layout}")
    with zipfile.ZipFile(file, "w") as target:
        for key, tensor in arrays.items():
            descr = np.dtype(_CODES[tensor.dtype]).str  # with this machine's byte order
            _write_array(target, key, tensor, descr, zipfile.ZIP_STORED)


def _write_array(target: zipfile.ZipFile, key: str, tensor: Tensor, descr: str, compression: int) -> None:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array = flat.view(torch.int16 if tensor.dtype == torch.bfloat16 else tensor.dtype).numpy()
    array = array.view("V2") if tensor.dtype == torch.bfloat16 else array.astype(_numpy_dtype(descr), copy=False)
    info = zipfile.ZipInfo(f"{key}.npy")  # of a fixed date
    info.compress_type = compression
    info.external_attr = 0o644 << 16
    info.file_size = array.nbytes
    with target.open(info, "w") as member:
        header = {"descr": descr, "fortran_order": False, "shape": tuple(tensor.shape)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(array.view(np.uint8).data)


def _numpy_dtype(descr: str) -> np.dtype[np.generic]:
    return np.dtype("<i2" if descr[1:] == "V2" else descr.removeprefix("|"))


def _kind(descr: str) -> str:
    if descr == "|structured":
        return "structured array"
    names = {"O": "object array (a pickle, never read)", "S": "array of bytes", "U": "array of text"}
    return names.get(descr[1:2], f"array of {printable(descr)}")
