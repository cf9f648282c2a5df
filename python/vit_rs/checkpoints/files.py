"""Files of weights, whatever their container: what is in them without reading it, tensors one by one.

A container (safetensors, a zip or old pickle of torch.save, .npz) is recognised by its content and says nothing about
the names inside, which are a layout's affair (`vit_rs.checkpoints.layouts`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vit_rs.checkpoints.atomic import atomic_write
from vit_rs.checkpoints.container import TensorInfo, WeightsFile, existing_file, open_zip, printable
from vit_rs.checkpoints.npz_file import NpzFile, write_arrays
from vit_rs.checkpoints.safetensors_file import SafetensorsFile, write_tensors
from vit_rs.checkpoints.torch_file import TorchFile
from vit_rs.exceptions import CheckpointError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["TensorInfo", "WeightsFile", "open_weights", "rewrite", "write_npz", "write_safetensors"]

_ZIP = b"PK\x03\x04"
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of torch's magic number
_LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
# Files that are given by mistake: how they start, what they are and what to do.
_MISTAKES = (
    (b"version https://git-lfs", "a pointer of git-lfs and not the weights: fetch them by `git lfs pull`"),
    (b"<!DOCTYPE", "a web page and not weights: the download failed"),
    (b"<!doctype", "a web page and not weights: the download failed"),
    (b"<html", "a web page and not weights: the download failed"),
    (b"<?xml", "an XML text, as a failed download leaves it"),
    (b"\x89HDF\r\n\x1a\n", "HDF5 (Keras, TensorFlow), which is not read: give safetensors, .pth or .npz"),
    (b"\x1f\x8b", "packed by gzip: unpack it first"),
    (b"\x93NUMPY", "a single array of numpy: an .npz holds arrays by their names"),
    (b"\x80", "a bare pickle, or of a framework that is not read: give safetensors, .pth of torch.save or .npz"),
    (b"\xde", "msgpack (flax), which is not read: give safetensors, .pth or .npz"),
    (b"\xdf", "msgpack (flax), which is not read: give safetensors, .pth or .npz"),
)
_FOLDERS_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth", "model.safetensors.index.json")


def open_weights(path: str | os.PathLike[str]) -> WeightsFile:
    """Open a file of weights; nothing that it says is executed.

    Its tensors may be the file's own memory, mapped. While it is open, and as long as one of them is used, the file may
    be replaced by another of its name (as `atomic_write` and `rewrite` do), but nobody may write into it or cut it
    short: tensors would change, and where the file has ended the process would be killed.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is of no container that is known, damaged, or holds what is refused.
    """
    file = _weights_file(path)
    with file.open("rb") as opened:
        head = opened.read(1024)
    if not head:
        raise CheckpointError(f"{file}: the file is empty")
    if head.startswith(_ZIP):
        return _open_zip(file)
    if head.startswith(_OLD_TORCH):
        return TorchFile(file)
    # A safetensors file starts with the length of its header (u64, little endian), then the header's JSON.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        return SafetensorsFile(file)
    for start, mistake in _MISTAKES:
        if head.lstrip().startswith(start):
            raise CheckpointError(f"{file}: {mistake}")
    if file.name.endswith(".index.json") or b'"weight_map"' in head:
        raise CheckpointError(f"{file}: the index of a model in several files, which are not read: join them first")
    if head[:1] in b"\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f" or file.suffix == ".msgpack":
        raise CheckpointError(f"{file}: msgpack (flax), which is not read: give safetensors, .pth or .npz")
    raise CheckpointError(f"{file}: neither safetensors nor .npz nor of torch.save; it starts with {head[:12]!r}")


def _weights_file(path: str | os.PathLike[str]) -> Path:
    folder = Path(path)
    if folder.is_dir():
        there = [name for name in _FOLDERS_FILES if (folder / name).is_file()]
        hint = f", but a folder: give the file in it, {there[0]}" if there else ", but a folder without a known one"
        raise CheckpointError(f"{folder}: not a file{hint}")
    return existing_file(path)


def _open_zip(file: Path) -> WeightsFile:
    with file.open("rb") as opened, open_zip(file, opened) as archive:
        names = archive.namelist()
    ends = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in ends:
        raise CheckpointError(f"{file}: a TorchScript archive, which holds code: save the model's state_dict() instead")
    if "data.pkl" in ends:
        return TorchFile(file)
    if any(name.endswith(".npy") for name in names):
        return NpzFile(file)
    shown = ", ".join(map(printable, names[:4])) or "nothing"
    raise CheckpointError(f"{file}: a zip that is neither of torch.save nor .npz; it holds {shown}")


def rewrite(
    source: WeightsFile,
    changes: Mapping[str, Tensor],
    out: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the file again with some tensors replaced: same container, everything else bit for bit, atomically.

    Without changes the file is copied as it is. Memory: the changed tensors, and of the others not more than one at a
    time (torch.save's container: what torch itself maps or holds). `out` may be the file itself.

    In torch.save's container, tensors that share memory go on doing so, except changed ones: give each of them. Tensors
    of other devices are saved as the CPU's. In an .npz, changed arrays are packed as the old ones were.

    Args:
        source: The open file.
        changes: New tensors by the keys of `source.tensors`; the dtype must be the old one's, shapes may differ.
        out: Where to write; the folder must exist.
        metadata: Text entries of a safetensors file to set in place of all the old ones.

    Raises:
        CheckpointError: A tensor of the source is damaged.
        FileNotFoundError: The folder does not exist.
        ValueError: A change is of no tensor in the file, or of another dtype, or the container holds no metadata.
    """
    for key, tensor in changes.items():
        if key not in source.tensors:
            raise ValueError(f"{source.path} has no tensor {key!r} to change")
        if tensor.dtype != source.tensors[key].dtype:
            raise ValueError(f"{key}: got {tensor.dtype}, the file has {source.tensors[key].dtype}")
    if metadata is not None and source.container != "safetensors":
        raise ValueError(f"{source.path}: only safetensors holds metadata, the file is {source.container}")
    atomic_write(out, lambda file: source.write_changed(file, changes, metadata))


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, on any device, as safetensors, one after the other, atomically.

    Equal tensors and metadata in equal order give equal bytes. A tensor under two names is written twice.

    Args:
        path: The file; its folder must exist.
        tensors: The tensors by name.
        metadata: Text entries.

    Raises:
        TypeError: A dtype has no name in the format, a tensor is not dense, or a metadata entry is no text.
        ValueError: A tensor has the name of the metadata.
        FileNotFoundError: The folder does not exist.
    """
    atomic_write(path, lambda file: write_tensors(file, tensors, metadata))


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, Tensor]) -> None:
    """Write tensors, on any device, as `numpy.savez` does, one after the other, atomically.

    bfloat16 becomes "|V2", as JAX writes it. Equal tensors in equal order give equal bytes.

    Args:
        path: The file; its folder must exist.
        arrays: The tensors by name; names may have slashes.

    Raises:
        TypeError: numpy has no such dtype, or a tensor is not dense.
        FileNotFoundError: The folder does not exist.
    """
    atomic_write(path, lambda file: write_arrays(file, arrays))
