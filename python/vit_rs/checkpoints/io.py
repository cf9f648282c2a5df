"""Files of weights and of training state: written whole or not at all, read without running anything in them.

A model file is safetensors: the state dict under timm's names, and one metadata entry "vit_rs" with the
model's configuration as JSON. The training state is torch's own format, restricted to what `weights_only`
reads.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import secrets
import struct
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vit_rs.exceptions import CheckpointError, ConfigError
from vit_rs.models import VisionTransformer, ViTConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Weights", "atomic_write", "load_model", "load_state", "read_weights", "save_checkpoint", "save_state"]

# One entry only: safetensors writes several in a random order, and equal models should give equal bytes.
_METADATA_KEY = "vit_rs"
_FORMAT_VERSION = 1
# How files of torch.save start: a zip, or before torch 1.6 a pickle of torch's magic number.
_TORCH_MAGICS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
# What torch's reader raises, besides UnpicklingError, on a damaged file.
_DAMAGE = (
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
_STATE_LEAVES = (type(None), bool, int, float, str, bytes, torch.Size, torch.dtype, torch.device)


def atomic_write(path: str | os.PathLike[str], content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file so that at every moment either the old one or the whole new one is there.

    The content goes to a temporary file in the same folder, is flushed to disk, and takes the name. Whatever
    stops the writing (an error, Ctrl-C), the temporary file is removed; only a killed process can leave one,
    whose name starts with a dot and ends in ".tmp". A symbolic link is followed.

    Args:
        path: The file; its folder must exist.
        content: The bytes, or a function that writes them into the open binary file that it is given.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: The file cannot be written.
    """
    with _replacing(path) as temporary, temporary.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            content(file)


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty temporary file beside `path` that replaces it at the end; any exception removes it."""
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist")
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    # Not `tempfile`, whose files only their owner may read: the user's umask decides, as for any other file.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # a writer that makes the file anew may have narrowed it, as safetensors does
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a training state: a dictionary of tensors, numbers, strings and containers of them, atomically.

    Args:
        path: The file; its folder must exist.
        state: What to keep. Only what `load_state` can read back is taken: dicts, lists and tuples of
            tensors, None, bool, int, float, str, bytes, `torch.Size`, `torch.dtype` and `torch.device`.

    Raises:
        TypeError: A value is of another type; the message says which. Nothing has been written.
        FileNotFoundError: The folder does not exist.
    """
    _check_state(state, "state")
    atomic_write(path, lambda file: torch.save(state, file))


def load_state(path: str | os.PathLike[str], *, map_location: str | torch.device | None = "cpu") -> dict[str, Any]:
    """Read what `save_state` wrote; nothing in the file is executed (torch's `weights_only`).

    Args:
        path: The file.
        map_location: Device for the tensors; None brings each back to the device that it was saved from.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, or holds something else.
    """
    file = _existing_file(path)
    # torch reads past the zip's checksums, so that a flipped bit would silently become another weight.
    with _naming(file), zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged: the checksum of {damaged} does not match")
    # Opened here: by a path, recent versions of torch choose the format by the suffix.
    with _naming(file), file.open("rb") as opened:
        state = torch.load(opened, map_location=map_location, weights_only=True)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dictionary, the file holds a {type(state).__name__}")
    return state


def save_checkpoint(
    path: str | os.PathLike[str], model: VisionTransformer, *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a model as safetensors, its configuration inside the file's metadata, atomically.

    Equal weights, configuration and metadata give equal bytes.

    Args:
        path: The file; its folder must exist.
        model: The model, on any device; a compiled or distributed model's own module.
        metadata: Anything that JSON can hold, kept beside the configuration (mean and std, class names, ...).

    Raises:
        TypeError: `metadata` holds what JSON cannot.
        FileNotFoundError: The folder does not exist.
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    entry = {
        "format_version": _FORMAT_VERSION,
        "config": model.config.to_dict(),
        "metadata": dict(metadata or {}),
    }
    text = json.dumps(entry, sort_keys=True)
    with _replacing(path) as temporary:
        save_file(tensors, temporary, metadata={_METADATA_KEY: text})


def load_model(path: str | os.PathLike[str]) -> VisionTransformer:
    """Rebuild the model that `save_checkpoint` wrote, in its weights' dtype, on the CPU, in training mode.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, was not written by `save_checkpoint`, or its weights do not fit
            its configuration.
    """
    weights = read_weights(path)
    config = weights.config
    if config is None:
        raise CheckpointError(
            f"{path}: no model configuration in the file (metadata entry {_METADATA_KEY!r}): "
            "build the model and fill it by load_pretrained"
        )
    # A configuration is believed only as far as the file has tensors for it: a false depth builds nothing.
    if f"blocks.{config.depth - 1}.norm1.weight" not in weights.tensors:
        raise CheckpointError(f"{path}: the configuration says depth {config.depth}, the weights do not")
    try:
        with torch.device("meta"):
            model = VisionTransformer(config)
        model.load_state_dict({key: tensor.clone() for key, tensor in weights.tensors.items()}, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: the weights do not fit their own configuration: {reason}") from error
    return model


@dataclass(frozen=True)
class Weights:
    """A file of weights as it was read.

    Attributes:
        tensors: The tensors by name, on the CPU.
        format: "vit-rs safetensors", "safetensors" or "torch".
        config: The configuration of the model that was saved, where the file says it.
        metadata: What the writer of a vit-rs file kept beside the configuration.
    """

    tensors: dict[str, Tensor]
    format: str
    config: ViTConfig | None
    metadata: dict[str, Any]


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read a file of weights, safetensors or a state dict by `torch.save`, recognised by its content.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, is of neither format, or holds other things than tensors.
    """
    file = _existing_file(path)
    with file.open("rb") as opened:
        head = opened.read(16)
    if head.startswith(_TORCH_MAGICS):
        return _read_torch(file)
    # A safetensors file starts with the length of its header (u64, little endian), then the header's JSON.
    if head[8:9] != b"{":
        raise CheckpointError(f"{path}: neither safetensors nor a file of torch.save")
    try:
        with safe_open(file, framework="pt", device="cpu") as opened_weights:
            tensors = {key: opened_weights.get_tensor(key) for key in opened_weights.keys()}  # noqa: SIM118
            metadata = opened_weights.metadata() or {}
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file: {error}") from error
    if _METADATA_KEY not in metadata:
        return Weights(tensors, "safetensors", None, {})
    config, extra = _parse_metadata(file, metadata[_METADATA_KEY])
    return Weights(tensors, "vit-rs safetensors", config, extra)


def _parse_metadata(path: Path, text: str) -> tuple[ViTConfig, dict[str, Any]]:
    damaged = f"{path}: damaged metadata entry {_METADATA_KEY!r}"
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{damaged}: {error}") from error
    version = entry.get("format_version") if isinstance(entry, dict) else None
    if version != _FORMAT_VERSION:
        raise CheckpointError(f"{damaged}: format version {version}, this vit-rs reads {_FORMAT_VERSION}")
    config, extra = entry.get("config"), entry.get("metadata")
    if not isinstance(config, dict) or not isinstance(extra, dict):
        raise CheckpointError(f"{damaged}: no configuration in it")
    try:
        return ViTConfig.from_dict(config), extra
    except ConfigError as error:
        raise CheckpointError(f"{damaged}: {error}") from error


def _read_torch(path: Path) -> Weights:
    with _naming(path), path.open("rb") as opened:
        state = torch.load(opened, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a state dict, the file holds a {type(state).__name__}")
    others = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        shown = ", ".join(others[:8]) or "nothing"
        raise CheckpointError(f"{path}: expected tensors by name, the file also holds: {shown}")
    return Weights({str(key): value for key, value in state.items()}, "torch", None, {})


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a damaged or refused file of torch.save raises into a `CheckpointError` that names it."""
    try:
        yield
    except pickle.UnpicklingError as error:
        # torch's message goes on to recommend weights_only=False, which would run what the file says.
        raise CheckpointError(f"{path}: refused or damaged: {_first_line(error)}") from error
    except _DAMAGE as error:
        raise CheckpointError(f"{path}: damaged, or not of torch.save: {_first_line(error)}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek to where a damaged table of contents points
            raise
        raise CheckpointError(f"{path}: damaged, or not of torch.save: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _existing_file(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"no such checkpoint: {file}")
    if not file.is_file():
        raise CheckpointError(f"{file}: not a file")
    return file


def _check_state(value: object, where: str) -> None:
    """Refuse what `weights_only` would refuse on the day of the resume, while it can still be mended."""
    if isinstance(value, Tensor) or type(value) in _STATE_LEAVES:
        return
    if isinstance(value, dict) and type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{where}: keys must be str or int, got {key!r} ({type(key).__name__})")
            _check_state(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_state(item, f"{where}[{index}]")
    else:
        raise TypeError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be read back "
            "safely: convert it to plain numbers, strings or tensors"
        )
