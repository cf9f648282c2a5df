"""The image files that the loader's benches read: a folder of the user's, or JPEGs that scikit-image ships."""

from __future__ import annotations

import functools
import io
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ENDINGS = {".jpg", ".jpeg"}


@dataclass(frozen=True)
class Corpus:
    """JPEG files in class folders below `root`, which lie in the page cache, and the same in memory."""

    root: Path
    paths: tuple[Path, ...]  # in ImageFolder's order
    labels: tuple[int, ...]

    @functools.cached_property
    def contents(self) -> list[bytes]:
        """Return the encoded files."""
        return [path.read_bytes() for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)


@functools.cache
def gathered(data: Path | None, count: int) -> Corpus:
    """Copy `count` of the files, evenly chosen, or each one repeatedly where there are fewer, into a new folder."""
    found = jpegs(data)
    folder = tempfile.TemporaryDirectory(prefix="vit-rs-bench-")
    _FOLDERS.append(folder)  # removed when the process ends
    root, classes = Path(folder.name), sorted({path.parent.name for path in found})
    paths, labels = [], []
    for position in range(count):
        source = found[position * len(found) // count if len(found) >= count else position % len(found)]
        copy = root / source.parent.name / f"{position:06}.jpg"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, copy)
        paths.append(copy)
    paths.sort()
    present = [name for name in classes if (root / name).exists()]
    labels = [present.index(path.parent.name) for path in paths]
    return Corpus(root, tuple(paths), tuple(labels))


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def jpegs(data: Path | None) -> list[Path]:
    """List the JPEG files of class folders, or, without a folder, those that scikit-image ships."""
    if data is None:
        import skimage  # noqa: PLC0415  not needed where files are given

        data = Path(skimage.__file__).parent
    found = sorted(path for path in data.glob("*/*") if path.suffix.lower() in ENDINGS)
    if not found:
        raise SystemExit(f"{data}: expected class folders of JPEG files, found none")
    return found


def described(data: Path | None) -> str:
    """Say what the files are, without where they are."""
    found = jpegs(data)
    sizes = []
    for path in found:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            sizes.append(image.size)
    width, height = np.mean(sizes, axis=0)
    bytes_each = np.mean([path.stat().st_size for path in found])
    whose = "that scikit-image ships, repeated" if data is None else "of a folder"
    return f"{len(found)} JPEGs {whose}, on average {width:.0f} x {height:.0f} pixels and {bytes_each / 1000:.0f} kB"
