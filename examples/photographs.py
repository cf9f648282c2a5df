"""A small folder of photographs for the examples: pieces of those that scikit-image ships, one class for each."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("astronaut", "chelsea", "coffee", "rocket")


def data_folder() -> Path:
    """Return the folder that --data names, or one that is made among the temporary files.

    It holds train/ and val/, and both hold a sub-folder for each class, as ImageNet's do.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder with train/ and val/ (default: scikit-image's photographs)")
    return parser.parse_known_args()[0].data or write_photographs(Path(tempfile.mkdtemp(prefix="photographs-")))


def write_photographs(root: Path, train: int = 24, val: int = 8) -> Path:
    """Write so many JPEGs for each class, of 120 to 300 pixels a side, below `root`/train and `root`/val."""
    from skimage import data  # noqa: PLC0415  not needed where a folder is given

    generator = np.random.default_rng(0)
    for name in CLASSES:
        whole = Image.fromarray(getattr(data, name)())
        for number in range(train + val):
            folder = root / ("train" if number < train else "val") / name
            folder.mkdir(parents=True, exist_ok=True)
            width, height = generator.integers(120, 300, 2)
            left, top = generator.integers(0, (whole.width - width, whole.height - height))
            piece = whole.crop((left, top, left + width, top + height))
            piece.save(folder / f"{number:03}.jpg", quality=90)
    return root
