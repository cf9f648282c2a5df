"""Image sets in MNIST's IDX format: the bundled Fashion-MNIST subset, and any folder of IDX files.

An IDX file is a big-endian header (two zero bytes, the element type, the number of dimensions, then one u32
per dimension) followed by the elements in C order.

Source: Y. LeCun, "The MNIST database of handwritten digits", file format section; Xiao, Rasul and Vollgraf,
"Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", arXiv 1708.07747.
"""

from __future__ import annotations

import errno
import gzip
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, cast

import numpy as np

from vit_rs.data.array import ArrayDataset
from vit_rs.exceptions import DatasetError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["load_idx", "sample_dataset"]

Split = Literal["train", "test"]

# The label numbers' meaning, spelled as in the data set's own README.
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_BUNDLED = Path(__file__).parent / "_fashion_mnist"
_PREFIX = {"train": "train", "test": "t10k"}  # MNIST's own file names
_SUFFIXES = ("", ".gz", ".xz")  # the first that exists is read
_TYPE_U8 = 0x08
# A header may claim up to 2**96 bytes; 4 GiB is six times the largest well-known set (EMNIST ByClass).
_MAX_BYTES = 1 << 32
_CHUNK_BYTES = 1 << 22


def sample_dataset(split: Split = "train") -> ArrayDataset:
    """Return the bundled subset of Fashion-MNIST: real images that need no download.

    6,000 training and 1,000 test images, grey, 28 x 28 pixels, ten classes with equally many images each, in
    the full set's order. `_fashion_mnist/README.md` beside this file says how they were chosen. MIT licence,
    Zalando SE.

    Args:
        split: "train", drawn from the full set's training images, or "test", drawn from its test images.

    Returns:
        A source of (u8 (1, 28, 28), label in 0..9) pairs; `.classes` holds the ten names.

    Raises:
        ValueError: if `split` is neither "train" nor "test".

    Source: arXiv 1708.07747.
    """
    return load_idx(_BUNDLED, split, classes=FASHION_MNIST_CLASSES)


def load_idx(
    root: str | os.PathLike[str], split: Split = "train", *, classes: Sequence[str] | None = None
) -> ArrayDataset:
    """Return the images and labels of a folder of IDX files (MNIST, Fashion-MNIST, KMNIST, ...).

    The folder holds `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, or `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`, each plain, or with the ending .gz or .xz; where several exist, the plain file
    is read. A split is held in memory; no file is decompressed further than the sizes in its header allow.

    Args:
        root: the folder.
        split: "train" (files `train-*`) or "test" (files `t10k-*`).
        classes: the name of each label number; without it, the numbers are the names.

    Returns:
        A source of (u8 (1, H, W), label) pairs.

    Raises:
        FileNotFoundError: if the folder or one of the two files is missing.
        NotADirectoryError: if `root` is a file.
        DatasetError: if a file is damaged, truncated, too long, or of another type than u8; if the split has
            no image; if images and labels differ in number; if a label has no name in `classes`.
        ValueError: if `split` is neither "train" nor "test".
    """
    if split not in _PREFIX:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    folder = Path(root)
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, "no such folder of IDX files", str(folder))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "expected a folder of IDX files, got a file", str(folder))
    images_path = _find(folder, f"{_PREFIX[split]}-images-idx3-ubyte")
    labels_path = _find(folder, f"{_PREFIX[split]}-labels-idx1-ubyte")
    images = _read_idx(images_path, dimensions=3)  # (N, H, W)
    labels = _read_idx(labels_path, dimensions=1)  # (N,)
    if len(images) != len(labels):
        raise DatasetError(
            f"{images_path} holds {len(images)} images, but {labels_path} holds {len(labels)} labels: "
            "expected as many labels as images"
        )
    if images.size == 0:
        raise DatasetError(
            f"{images_path}: expected at least one image of one pixel, got shape {images.shape} (N, H, W)"
        )
    if classes is not None and int(labels.max()) >= len(classes):
        raise DatasetError(
            f"{labels_path}: label {int(labels.max())} at position {int(labels.argmax())} has no name, "
            f"expected labels 0..{len(classes) - 1}"
        )
    return ArrayDataset(images, labels.astype(np.int64), classes=classes)


def _find(folder: Path, name: str) -> Path:
    for suffix in _SUFFIXES:
        path = folder / (name + suffix)
        if path.is_file():
            return path
    endings = ", ".join(suffix for suffix in _SUFFIXES if suffix)
    raise FileNotFoundError(errno.ENOENT, f"no such file, nor with the ending {endings}", str(folder / name))


def _read_idx(path: Path, *, dimensions: int) -> npt.NDArray[np.uint8]:
    """Return the u8 array of one IDX file, after checking its header, its length and its checksum, if any."""
    try:
        if path.suffix == ".xz":
            return _read_xz(path, dimensions)
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as compressed:
                return _parse_idx(cast("IO[bytes]", compressed), path, dimensions)
        with path.open("rb") as file:
            return _parse_idx(file, path, dimensions)
    except EOFError as error:
        raise DatasetError(f"{path}: truncated: the compressed data has no end") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(f"{path}: not a sound gzip file: {error}") from error


def _read_xz(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    import lzma  # noqa: PLC0415  (a Python built without liblzma can still do everything else)

    try:
        with lzma.open(path, "rb") as compressed:
            return _parse_idx(cast("IO[bytes]", compressed), path, dimensions)
    except lzma.LZMAError as error:
        raise DatasetError(f"{path}: not a sound xz file: {error}") from error


def _parse_idx(file: IO[bytes], path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    header_bytes = 4 + 4 * dimensions
    header = file.read(header_bytes)
    magic = bytes((0, 0, _TYPE_U8, dimensions))
    if header[:4] != magic:
        raise DatasetError(
            f"{path}: not an IDX file of u8 with {dimensions} dimension(s): "
            f"expected the first bytes {magic.hex(' ')}, got {header[:4].hex(' ') or 'an empty file'}"
        )
    if len(header) < header_bytes:
        raise DatasetError(f"{path}: truncated header: expected {header_bytes} bytes, got {len(header)}")
    shape = tuple(int(side) for side in np.frombuffer(header, dtype=">u4", offset=4))
    expected = 1
    for side in shape:
        expected *= side  # Python integers: no overflow
    if expected > _MAX_BYTES:
        raise DatasetError(f"{path}: the header claims shape {shape}, {expected} bytes; expected at most {_MAX_BYTES}")
    data = bytearray()
    while len(data) < expected:
        # Piecewise, so that a false header of a short file allocates no more than the file holds.
        chunk = file.read(min(_CHUNK_BYTES, expected - len(data)))
        if not chunk:
            raise DatasetError(
                f"{path}: truncated: the header asks for {expected} bytes of shape {shape}, got {len(data)}"
            )
        data += chunk
    if file.read(1):  # also makes gzip and xz compare their checksums
        raise DatasetError(f"{path}: more data than the {expected} bytes of shape {shape} that the header announces")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
