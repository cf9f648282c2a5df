"""Files of torch.save: a zip of one pickle and the storages' bytes, or a row of pickles before torch 1.6.

`torch.load(weights_only=True)` reads the pickle, and before it `torch_pickle` looks at every name that it asks for:
only argparse.Namespace and numpy's numbers are allowed beside tensors and plain values, because training scripts keep
their arguments and best figures there. The zip's storages are mapped into memory, not read, and compared with their
checksums when one is asked for.
"""

from __future__ import annotations

import argparse
import copy
import io
import mmap
import os
import threading
import zipfile
from collections import OrderedDict
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vit_rs.checkpoints.container import Container, OpenedFile, TensorInfo, naming, open_zip, printable
from vit_rs.checkpoints.torch_pickle import check_old_pickles, check_pickle
from vit_rs.exceptions import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["TorchFile"]

_NUMBERS = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"])
_DEEPEST = 32  # dictionaries inside dictionaries
_MOST_ENTRIES = 100_000
_MOST_COMPARED = 10_000_000  # storages with members, a few seconds; a model needs one for each of its tensors
_COPIED_AT_ONCE = 1 << 20  # bytes


class _NumberType:
    """Stands in for numpy.dtype while a pickle is read: numbers only, and no other state than the byte order."""

    def __init__(self, code: object, *_flags: object) -> None:
        if code not in _NUMBERS:
            raise ValueError(f"numpy's dtype {code!r} is refused: only numbers are read")
        self.dtype: np.dtype[Any] = np.dtype(str(code))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"numpy's dtype has the byte order {state[1]!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


def _number(number_type: _NumberType, data: bytes) -> Any:
    """Stand in for numpy's multiarray.scalar, which would also unpickle objects."""
    if len(data) != number_type.dtype.itemsize:
        raise ValueError(f"a number of {number_type.dtype} has {len(data)} bytes")
    return np.frombuffer(data, number_type.dtype)[0]


_STAND_INS: list[Any] = [
    (argparse.Namespace, "argparse.Namespace"),
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]
_ONE_AT_A_TIME = threading.Lock()  # torch keeps its allowed names in one list for all threads


class TorchFile:
    """An open file of torch.save; see `WeightsFile`.

    Tensors that are views or share a storage come as such. The pickles before torch 1.6 have no checksums and are read
    whole.
    """

    container: Container = "torch"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = {}
        self._archive: zipfile.ZipFile | None = None
        self._members: dict[int, zipfile.ZipInfo] = {}  # by their address in memory
        self._checked: set[str] = set()
        if path.suffix == ".safetensors":
            raise CheckpointError(f"{path}: a file of torch.save under safetensors' suffix: rename it to .pth")
        self._opened = OpenedFile(path)
        try:
            self._size = os.fstat(self._opened.raw.fileno()).st_size
            with naming(path):
                raw = self._opened.raw
                is_zip = raw.read(4) == b"PK\x03\x04"
                raw.seek(0)
                if is_zip:
                    self._archive = open_zip(path, raw)
                    check_pickle(path, io.BytesIO(self._checked_pickle(self._archive)))
                else:
                    check_old_pickles(path, raw)
                self._tree: Any = self._loaded(mapped=is_zip)
            self._places: dict[str, tuple[Any, ...]] = {}
            self._values: dict[str, Tensor] = {}
            self._list_entries()
            if self._archive is not None:
                with naming(path):
                    self._find_storages(self._archive)
        except BaseException:
            self._opened.close()
            raise

    def _loaded(self, *, mapped: bool) -> Any:
        """Return what torch reads: of the open file, or of the mapping that only torch itself makes, by the path."""
        raw = self._opened.raw
        raw.seek(0)
        with _ONE_AT_A_TIME, torch.serialization.safe_globals(_STAND_INS):
            tree = torch.load(self.path if mapped else raw, map_location="cpu", weights_only=True, mmap=mapped)
        self._opened.check_path() if mapped else self._opened.check_unchanged()
        return tree

    def _checked_pickle(self, archive: zipfile.ZipFile) -> bytes:
        """Return the archive's pickle, once all that is not a storage is as its checksum says."""
        pickles = [info for info in archive.infolist() if info.filename.rsplit("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise CheckpointError(f"{self.path}: damaged: {len(pickles)} members are called data.pkl, expected 1")
        pickle_info = pickles[0]
        self._data_folder = pickle_info.filename.removesuffix("data.pkl") + "data/"
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise CheckpointError(
                    f"{self.path}: refused: {printable(info.filename)} is compressed, torch's never are"
                )
        if not any(info.CRC for info in archive.infolist()):  # torch.serialization.set_crc32_options(False)
            for info in archive.infolist():
                info.CRC = None  # type: ignore[assignment]  # zipfile compares nothing then
        for info in archive.infolist():
            if not info.filename.startswith(self._data_folder):
                _check(archive, info)
        return archive.read(pickle_info)

    def _list_entries(self) -> None:
        if not isinstance(self._tree, dict):
            raise CheckpointError(
                f"{self.path}: expected a dictionary of tensors, the file holds a {type(self._tree).__name__}"
            )
        tensors: dict[str, TensorInfo] = {}
        others: dict[str, str] = {}
        for place, value in _entries(self.path, self._tree, ()):
            key = "/".join(map(str, place))
            if key in tensors or key in others:
                raise CheckpointError(f"{self.path}: two entries are called {printable(key)}")
            if isinstance(value, Tensor):
                tensors[key] = TensorInfo(tuple(value.shape), value.dtype)
                self._values[key], self._places[key] = value, place
            else:
                others[key] = type(value).__name__
            if len(tensors) + len(others) > _MOST_ENTRIES:
                raise CheckpointError(f"{self.path}: refused: more than {_MOST_ENTRIES} entries")
        self.tensors: Mapping[str, TensorInfo] = tensors
        self.others: Mapping[str, str] = others

    def _find_storages(self, archive: zipfile.ZipFile) -> None:
        """Find each mapped storage's member: the pickle could give a storage more or other bytes than its member has.

        All storages are parts of one mapping of the file, which begins at an address that torch does not tell: at a
        page, and so that every storage is a member, from its first byte to its last. If several addresses fit, nobody
        knows which storage is which member, and all are compared with their checksums at once.
        """
        members: dict[tuple[int, int], zipfile.ZipInfo] = {}
        for info in archive.infolist():
            if info.filename.startswith(self._data_folder) and info.file_size:
                members[_data_offset(archive, info), info.file_size] = info
        storages: dict[tuple[int, int], str] = {}
        for key, value in self._values.items():
            if _refusal(value) is None and value.untyped_storage().nbytes():
                storages.setdefault((value.untyped_storage().data_ptr(), value.untyped_storage().nbytes()), key)
        sizes = {size for _, size in members}
        for (_, nbytes), key in storages.items():
            if nbytes not in sizes:
                raise CheckpointError(
                    f"{self.path}: {printable(key)}: damaged: its storage of {nbytes} bytes is not in the file"
                )
        if not storages:
            return
        lowest, highest = min(storages), max(storages)
        starts = [
            start
            for start in (lowest[0] - offset for offset, nbytes in members if nbytes == lowest[1])
            if not start % mmap.PAGESIZE and (highest[0] - start, highest[1]) in members
        ]
        fitting, compared = [], 0
        for start in starts:
            other = next((n for n, (at, nbytes) in enumerate(storages) if (at - start, nbytes) not in members), None)
            compared += len(storages) if other is None else other + 1
            fitting += [start] if other is None else []
            if len(fitting) > 1:
                break
            if compared > _MOST_COMPARED:
                raise CheckpointError(f"{self.path}: refused: too many storages of one size to tell which is whose")
        if not fitting:
            raise CheckpointError(
                f"{self.path}: damaged: the sizes of its storages are not those of the archive's members"
            )
        if len(fitting) == 1:
            self._members = {at: members[at - fitting[0], nbytes] for at, nbytes in storages}
        else:
            self._check_all()

    def read(self, key: str) -> Tensor:
        """Return one tensor; its memory is the file's, or the whole object's that was read."""
        self._opened.check_open()
        value = self._values[key]
        where = f"{self.path}: {printable(key)}"
        refusal = _refusal(value)
        if refusal is not None:
            raise CheckpointError(f"{where}: {refusal} is refused: only plain tensors are read")
        if value.nbytes > self._size:  # one number, expanded
            raise CheckpointError(f"{where}: refused: {value.nbytes} bytes in a file of {self._size}")
        address = value.untyped_storage().data_ptr()
        info = self._members.get(address)
        if self._archive is not None and info is not None and info.filename not in self._checked:
            with naming(self.path, key):
                _check(self._archive, info)
            self._checked.add(info.filename)
        return value.detach().resolve_conj().resolve_neg()

    def write_changed(self, file: IO[bytes], changes: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> None:
        """Save the tree again, with copies of those dictionaries that change."""
        del metadata
        self._opened.check_unchanged()
        if not changes:
            self._opened.copy_to(file)
            self._opened.check_unchanged()
            return
        self._check_all()  # the copy gets new checksums
        copies: dict[tuple[Any, ...], Any] = {(): _copied(self._tree)}
        for key, tensor in changes.items():
            *folders, name = self._places[key]
            for depth in range(1, len(folders) + 1):
                place = tuple(folders[:depth])
                if place not in copies:
                    copies[place] = copies[place[:-1]][place[-1]] = _copied(copies[place[:-1]][place[-1]])
            copies[tuple(folders)][name] = _like(self._values[key], tensor)
        try:
            if self._archive is not None:
                torch.save(copies[()], file)
            else:
                torch.save(copies[()], cast("IO[bytes]", _Plain(file)), _use_new_zipfile_serialization=False)
        except RecursionError as error:
            raise CheckpointError(f"{self.path}: refused: its lists are too deep to be written again") from error
        self._opened.check_unchanged()

    def _check_all(self) -> None:
        """Compare every storage with its checksum; those of tensors first, whose keys can be named."""
        for key, value in self._values.items():
            if _refusal(value) is None:
                self.read(key)
        if self._archive is not None:
            for info in self._archive.infolist():
                if info.filename.startswith(self._data_folder) and info.filename not in self._checked:
                    with naming(self.path):
                        _check(self._archive, info)
                    self._checked.add(info.filename)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._archive is not None:
            self._archive.close()
        self._opened.close()
        self._tree = None  # the mapping lives as long as tensors that were read from it
        self._values.clear()


class _Plain:
    """A file without a descriptor: where torch writes to one, a full disk is a RuntimeError."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write, self.flush = file.write, file.flush


def _entries(path: Path, tree: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if len(place) > _DEEPEST:
        raise CheckpointError(f"{path}: refused: dictionaries more than {_DEEPEST} deep")
    if not isinstance(tree, dict) or not tree:
        yield place, tree
        return
    for name, value in dict.items(tree):
        yield from _entries(path, value, (*place, name))


def _check(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Compare a member with its checksum: torch reads past it, and a flipped bit would become another weight."""
    with archive.open(info) as file:
        while file.read(_COPIED_AT_ONCE):
            pass


def _data_offset(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Return where a member's bytes begin in the file: behind its own header, 30 bytes and two texts."""
    file = cast("IO[bytes]", archive.fp)
    file.seek(info.header_offset + 26)
    sizes = file.read(4)
    return info.header_offset + 30 + int.from_bytes(sizes[:2], "little") + int.from_bytes(sizes[2:], "little")


def _refusal(value: Tensor) -> str | None:
    """Say what a tensor is that has no plain values in the CPU's memory; None where it has."""
    if value.layout != torch.strided:
        return f"a tensor of layout {value.layout}"
    if value.is_quantized:
        return f"a quantised tensor ({value.dtype})"
    if type(value) not in (Tensor, nn.Parameter):
        return f"a {type(value).__name__}"
    return None if value.device.type == "cpu" else f"a tensor without values (device {value.device})"


def _copied(tree: dict[Any, Any]) -> dict[Any, Any]:
    """Copy a dictionary, not what is in it; a state dict has its modules' versions in an attribute."""
    copied = copy.copy(tree)
    if isinstance(tree, OrderedDict):
        copied.__dict__.update(tree.__dict__)
    return copied


def _like(old: Tensor, new: Tensor) -> Tensor:
    """Return a tensor with a storage of its own size, a parameter in a parameter's place."""
    plain = new.detach().cpu().contiguous()
    if plain.untyped_storage().nbytes() != plain.nbytes:
        plain = plain.clone()
    return nn.Parameter(plain, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else plain
