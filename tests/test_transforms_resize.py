"""Resizes of uint8 images: every byte equal to torch's kernel or to Pillow's, by the kernels asked for."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vit_rs import transforms as t
from vit_rs.transforms.calling import pillow_kernels

PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
# torch's uint8 kernel has the lanczos filter since 2.15, and rounds as we do where it has its AVX2 code.
TORCH = [name for name in PILLOW if name != "lanczos" or TORCH_VERSION >= (2, 15)]
ROUNDS_ALIKE = torch.backends.cpu.get_cpu_capability().startswith("AVX")
# Down, up, one axis, both, to and from single pixels, thin, and widths on both sides of what the kernels take at once.
SIZES = [
    ((300, 330), (224, 224)),
    ((100, 130), (224, 224)),
    ((375, 500), (256, 341)),
    ((333, 500), (31, 47)),
    ((40, 50), (40, 20)),
    ((40, 50), (90, 50)),
    ((40, 50), (40, 50)),
    ((1, 1), (5, 7)),
    ((9, 11), (1, 1)),
    ((1, 200), (3, 20)),
    ((200, 1), (33, 9)),
    ((17, 2), (8, 40)),
    ((5, 700), (60, 8)),
    ((700, 5), (8, 60)),
    ((501, 5), (8, 60)),
    ((500, 5), (8, 60)),
    ((100, 101), (60, 81)),
    ((100, 101), (59, 81)),
    *(((13, width), (10, 71 - width)) for width in range(1, 71, 3)),
]


def image(height: int, width: int, channels: int) -> np.ndarray:
    """Noise with many extremes, so that bicubic and lanczos leave the range of a byte."""
    noise = np.random.default_rng([height, width]).integers(-300, 556, (height, width, channels))
    return noise.clip(0, 255).astype(np.uint8)


def resized(pixels: np.ndarray, size: tuple[int, int], interpolation: str, kernels: str) -> np.ndarray:
    return t.Compose([t.Resize(size, interpolation=interpolation)], kernels=kernels)(pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", TORCH)
@pytest.mark.skipif(not ROUNDS_ALIKE, reason="torch rounds in float without AVX2")
def test_every_byte_equals_torch(channels, interpolation):
    for before, after in SIZES:
        pixels = image(*before, channels)
        ours = resized(pixels, after, interpolation, "torch")
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        # torch fails an assertion of its own on one pixel of three contiguous planes.
        layouts = [torch.contiguous_format, torch.channels_last][after == (1, 1) :]
        for layout in layouts:
            source = planes.contiguous(memory_format=layout)
            theirs = F.interpolate(source, after, mode=interpolation, antialias=True)[0].permute(1, 2, 0)
            assert np.array_equal(ours, theirs.numpy()), (before, after, layout)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("interpolation", list(PILLOW))
def test_every_byte_equals_pillow(mode, interpolation):
    for before, after in SIZES:
        pixels = image(*before, len(mode))
        theirs = Image.frombytes(mode, before[::-1], pixels.tobytes())
        # One axis after the other: what all versions do with one axis, in the order of those up to 12.
        rows_first = before[0] > max(after[0], 100 * before[1])
        between = (before[1], after[0]) if rows_first else (after[1], before[0])
        older = theirs.resize(between, PILLOW[interpolation]).resize(after[::-1], PILLOW[interpolation])
        assert resized(pixels, after, interpolation, "pillow12").tobytes() == older.tobytes(), (before, after)
        theirs = theirs.resize(after[::-1], PILLOW[interpolation])
        assert resized(pixels, after, interpolation, pillow_kernels()).tobytes() == theirs.tobytes(), (before, after)


def test_kernels_of_pillow_are_those_of_its_version(monkeypatch):
    for version, kernels in (("13.0.0", "pillow"), ("12.3.0", "pillow12"), ("9.5.0.post2", "pillow12")):
        monkeypatch.setattr("PIL.__version__", version)
        assert pillow_kernels() == kernels
    monkeypatch.delitem(sys.modules, "PIL")
    assert pillow_kernels() == "pillow"


def test_the_kernels_differ_by_one_level_here_and_there():
    pixels = image(300, 330, 3)
    one, other = (resized(pixels, (224, 224), "bilinear", kernels).astype(int) for kernels in ("torch", "pillow"))
    assert 0 < (one != other).mean() < 0.02
    assert abs(one - other).max() == 1
