"""Choose the bundled Fashion-MNIST subset: 6,000 training and 1,000 test images, equally many of each class.

    python scripts/make_sample_data.py /usr/share/datasets/fashion-mnist

reads the full set (plain or .gz IDX files; from Debian's package dataset-fashion-mnist, or from the authors)
and writes four xz-compressed IDX files and the list of their digests into python/vit_rs/data/_fashion_mnist.
`--check` writes nothing and exits with status 1 unless the bundled files hold exactly the images chosen.

An image is chosen by rank: within a class, images are ordered by SHA-256 of (seed, split, index in the full
set), and the first ones win. No random generator is involved, so every Python and NumPy chooses the same
images. An image whose pixels are those of an image chosen before it, in either split, is passed over: no test
image is among the training images. The chosen images keep the full set's order.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vit_rs.data import load_idx

if TYPE_CHECKING:
    import numpy.typing as npt

SEED = 2010_11929
PER_CLASS = {"train": 600, "test": 100}
PREFIX = {"train": "train", "test": "t10k"}
CLASSES = 10
DESTINATION = Path(__file__).resolve().parent.parent / "python" / "vit_rs" / "data" / "_fashion_mnist"
DIGESTS = "SHA256SUMS"


def main() -> int:
    """Write or check the bundled files; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="folder of the full set's four IDX files, plain or .gz")
    parser.add_argument("--out", type=Path, default=DESTINATION, help="folder to write (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="compare with the files there; write nothing")
    arguments = parser.parse_args()
    files = build(arguments.source)
    if arguments.check:
        return check(arguments.out, files)
    arguments.out.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, content in files.items():
        # The strongest preset, and a CRC-64 of the content, which the reader verifies.
        packed = lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9 | lzma.PRESET_EXTREME)
        (arguments.out / f"{name}.xz").write_bytes(packed)
        total += len(packed)
        print(f"{name}.xz: {len(content)} -> {len(packed)} bytes")
    (arguments.out / DIGESTS).write_text(digests(files), encoding="ascii")
    print(f"{total} bytes in all")
    return 0


def build(source: Path) -> dict[str, bytes]:
    """Return the four uncompressed IDX files of the subset by name."""
    files: dict[str, bytes] = {}
    seen: set[bytes] = set()
    for split, per_class in PER_CLASS.items():
        full = load_idx(source, "train" if split == "train" else "test")
        images = full.images[..., 0]  # (N, H, W) u8
        labels = np.asarray(full.targets, dtype=np.uint8)  # (N,)
        chosen = choose(images, labels, split, per_class, seen)
        files[f"{PREFIX[split]}-images-idx3-ubyte"] = idx_bytes(images[chosen])
        files[f"{PREFIX[split]}-labels-idx1-ubyte"] = idx_bytes(labels[chosen])
    return files


def choose(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], split: str, per_class: int, seen: set[bytes]
) -> npt.NDArray[np.int64]:
    """Return the increasing indices of `per_class` images per class; add their pixels' digests to `seen`."""
    chosen: list[int] = []
    for label in range(CLASSES):
        ranked = sorted(np.flatnonzero(labels == label).tolist(), key=lambda index: rank(split, index))
        taken = 0
        for index in ranked:
            digest = hashlib.sha256(images[index].tobytes()).digest()
            if taken < per_class and digest not in seen:
                seen.add(digest)
                chosen.append(index)
                taken += 1
        if taken < per_class:
            raise SystemExit(f"class {label} of {split}: wanted {per_class} different images, found {taken}")
    return np.asarray(sorted(chosen), dtype=np.int64)


def rank(split: str, index: int) -> bytes:
    """Return the key that orders the images of a class."""
    return hashlib.sha256(f"{SEED}/{split}/{index}".encode("ascii")).digest()


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    """Return a u8 array as the bytes of an IDX file."""
    return bytes((0, 0, 0x08, array.ndim)) + np.asarray(array.shape, dtype=">u4").tobytes() + array.tobytes()


def digests(files: dict[str, bytes]) -> str:
    """Return `sha256sum`'s listing of the uncompressed files; xz's own bytes may differ by its version."""
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())


def check(folder: Path, files: dict[str, bytes]) -> int:
    """Return 0 if the files in `folder` decompress to exactly `files`; else name the others, return 1."""
    wrong = [
        name for name, content in files.items() if lzma.decompress((folder / f"{name}.xz").read_bytes()) != content
    ]
    if (folder / DIGESTS).read_text(encoding="ascii") != digests(files):
        wrong.append(DIGESTS)
    for name in wrong:
        print(f"{folder / name}: differs from what {Path(__file__).name} chooses", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
