"""Files of safetensors: a header of JSON, then the tensors' bytes (huggingface/safetensors, "Format")."""

from __future__ import annotations

import json
import struct
from typing import IO, TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from vit_rs.checkpoints.container import Container, OpenedFile, TensorInfo, naming, printable
from vit_rs.exceptions import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor
    from typing_extensions import Self

__all__ = ["SafetensorsFile", "write_tensors"]

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class SafetensorsFile:
    """An open safetensors file; see `WeightsFile`."""

    container: Container = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened = OpenedFile(path)
        try:
            with naming(path):
                # This checks the header: ranges without holes that fit the shapes and end with the file.
                mapped: Any = safe_open(path, framework="pt", device="cpu")
                self._opened.check_path()
                self._mapped, keys = mapped, set(mapped.keys())
                raw = self._opened.raw
                self._data_start = 8 + struct.unpack("<Q", raw.read(8))[0]
                header = json.loads(raw.read(self._data_start - 8))
                self.metadata: Mapping[str, str] = header.pop("__metadata__", None) or {}
        except BaseException:
            self._opened.close()
            raise
        if header.keys() != keys:
            self._opened.close()
            raise CheckpointError(f"{path}: damaged: a key of the header stands there twice")
        self._entries: dict[str, dict[str, Any]] = header
        dtypes = {key: _DTYPES.get(entry["dtype"]) for key, entry in header.items()}
        self.tensors: Mapping[str, TensorInfo] = {
            key: TensorInfo(tuple(header[key]["shape"]), dtype) for key, dtype in dtypes.items() if dtype is not None
        }
        self.others: Mapping[str, str] = {
            key: f"tensor of {header[key]['dtype']}" for key, dtype in dtypes.items() if dtype is None
        }

    def read(self, key: str) -> Tensor:
        """Return one tensor; its memory is the file's."""
        self._opened.check_open()
        info = self.tensors[key]
        with naming(self.path, key):
            tensor: Tensor = self._mapped.get_tensor(key)
            if (tuple(tensor.shape), tensor.dtype) != info:
                raise CheckpointError(f"{self.path}: {printable(key)}: got {tensor.dtype}, expected {info.dtype}")
        return tensor

    def write_changed(self, file: IO[bytes], changes: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> None:
        """Write a header for the changed shapes, then every tensor's bytes in the old order."""
        self._opened.check_unchanged()
        if not changes and metadata is None:
            self._opened.copy_to(file)
            self._opened.check_unchanged()
            return
        header: dict[str, Any] = {key: dict(entry) for key, entry in self._entries.items()}
        in_file = sorted(header, key=lambda key: tuple(header[key]["data_offsets"]))
        end = 0
        for key in in_file:
            begin, old_end = header[key]["data_offsets"]
            size = changes[key].nbytes if key in changes else old_end - begin
            if key in changes:
                header[key]["shape"] = list(changes[key].shape)
            header[key]["data_offsets"] = [end, end + size]
            end += size
        _write_header(file, header, self.metadata if metadata is None else metadata)
        for key in in_file:
            if key in changes:
                file.write(_bytes_of(changes[key]))
            else:
                begin, old_end = self._entries[key]["data_offsets"]
                self._opened.copy_to(file, self._data_start + begin, old_end - begin)
        self._opened.check_unchanged()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()
        self._mapped = None  # the mapping lives as long as tensors that were read from it


def write_tensors(file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, on any device, one after the other; equal tensors in equal order give equal bytes.

    Wide dtypes come first, as in safetensors' own writer, so that every tensor is aligned to its elements.

    Raises:
        TypeError: A dtype has no name in the format, a tensor is not dense, or a metadata entry is no text.
        ValueError: A tensor has the name of the metadata.
    """
    if "__metadata__" in tensors:
        raise ValueError("__metadata__ is the name of the metadata and cannot be a tensor's")
    for name, text in (metadata or {}).items():
        if not isinstance(text, str):
            raise TypeError(f"metadata {name!r} is a {type(text).__name__}, safetensors holds texts only")
    for key, tensor in tensors.items():
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided:
            raise TypeError(f"{key}: safetensors cannot hold {tensor.dtype} of layout {tensor.layout}")
    keys = sorted(tensors, key=lambda key: -tensors[key].element_size())
    header: dict[str, Any] = {}
    end = 0
    for key in keys:
        tensor = tensors[key]
        shape, begin, end = list(tensor.shape), end, end + tensor.nbytes
        header[key] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
    _write_header(file, header, metadata or {})
    for key in keys:
        file.write(_bytes_of(tensors[key]))


def _write_header(file: IO[bytes], entries: dict[str, Any], metadata: Mapping[str, str]) -> None:
    header = {"__metadata__": dict(metadata), **entries} if metadata else entries
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
