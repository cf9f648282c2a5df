"""Twenty epochs of every source: memory, threads and descriptors stay what they were."""

from __future__ import annotations

import gc
import io
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from vit_rs.data import EncodedDataset, ImageFolder, ImageLoader, TarShards
from vit_rs.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToDtype

COUNT = 48
# Bytes that the process may grow by: less than half of what 20 epochs read, a third of what they write.
ALLOWED = 4 << 20
TRANSFORM = Compose(
    [RandomResizedCrop(32), RandomHorizontalFlip(), ToDtype(torch.float32, scale=True), Normalize([0.5], [0.25])]
)


class Fresh:
    """A data set that makes new bytes for each request, and keeps none."""

    def __init__(self, images: list[bytes]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[bytearray, int]:
        return bytearray(self.images[index]), index


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    rng = np.random.default_rng(0)
    encoded = []
    for number in range(COUNT):
        file = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        small.resize((400 + number, 300)).save(file, "JPEG")
        encoded.append(file.getvalue())
    assert sum(map(len, encoded)) * 20 > 2 * ALLOWED
    return encoded


def source(kind: str, root, images: list[bytes]):
    if kind == "folder":
        (root / "class").mkdir()
        for number, data in enumerate(images):
            (root / "class" / f"{number}.jpg").write_bytes(data)
        return ImageFolder(root)
    if kind == "list":
        return [(data, number) for number, data in enumerate(images)]
    if kind == "encoded":
        return EncodedDataset(Fresh(images))
    for shard in range(6):
        with tarfile.open(root / f"{shard}.tar", "w:gz" if kind == "gz" else "w") as file:
            for number in range(shard * 8, shard * 8 + 8):
                for name, content in ((f"{number}.jpg", images[number]), (f"{number}.cls", b"0")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
    return TarShards(str(root / "{0..5}.tar"))


def usage() -> tuple[int, int, int]:
    """Resident bytes, threads, descriptors."""
    gc.collect()  # what earlier tests left to it
    with open("/proc/self/statm", encoding="ascii") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts in /proc")
@pytest.mark.parametrize("on_error", ["raise", "substitute"])
@pytest.mark.parametrize("kind", ["folder", "list", "tar", "gz", "encoded"])
def test_twenty_epochs_need_no_more_than_three(tmp_path, images, kind, on_error):
    if on_error == "substitute":
        images = [b"broken" if number % 8 == 3 else data for number, data in enumerate(images)]
    data = source(kind, tmp_path, images)
    with ImageLoader(data, TRANSFORM, batch_size=8, shuffle=True, num_threads=2, on_error=on_error) as loader:
        for epoch in range(23):
            assert sum(len(batch) for batch, _ in loader) == COUNT
            if epoch % 5 == 0:
                next(iter(loader))  # an epoch left early
            if epoch == 2:
                memory, threads, descriptors = usage()
        after = usage()
    assert after[1] == threads
    assert after[2] <= descriptors + (6 if kind == "tar" else 0)
    assert after[0] - memory < ALLOWED
