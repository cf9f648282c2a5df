"""Decoding: bit-equal to Pillow, regions bit-equal to the same part of a full decode, and every broken file named."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from vit_rs._core import decode_image
from vit_rs.exceptions import DecodeError


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return smooth shapes with some noise: all the frequencies that upsampling and IDCT treat differently."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [
        np.sin(x / (3 + c) + y / (9 - c)) * 90 + 128 + rng.normal(0, 25, (height, width)) for c in range(channels)
    ]
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


JPEGS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"subsampling": 2, "progressive": True},
    "progressive 4:4:4": {"subsampling": 0, "progressive": True},
    "restarts": {"subsampling": 2, "restart_marker_blocks": 3},
    "low quality": {"subsampling": 2, "quality": 15},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS.keys())
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 16), (17, 33), (120, 97)])
def test_jpeg_equals_pillow(options, size):
    data = encoded(Image.fromarray(picture(*size)), **{"quality": 90, **options})
    np.testing.assert_array_equal(decode_image(data), pillow(data))


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS.keys())
def test_region_equals_full_decode(options):
    data = encoded(Image.fromarray(picture(101, 150)), **{"quality": 90, **options})
    full = decode_image(data)
    rng = np.random.default_rng(1)
    regions = [(0, 0, 101, 150), (100, 149, 1, 1), (0, 0, 1, 1), (32, 32, 32, 32), (31, 63, 2, 2)]
    for _ in range(150):
        height, width = rng.integers(1, 102), rng.integers(1, 151)
        regions.append((rng.integers(0, 102 - height), rng.integers(0, 151 - width), height, width))
    for top, left, height, width in (tuple(int(v) for v in region) for region in regions):
        part = decode_image(data, region=(top, left, height, width))
        np.testing.assert_array_equal(
            part, full[top : top + height, left : left + width], err_msg=f"{top, left, height, width}"
        )


def test_gray_and_inks():
    gray = encoded(Image.fromarray(picture(40, 30, 1)[..., 0]))
    np.testing.assert_array_equal(decode_image(gray), pillow(gray))
    inks = encoded(Image.fromarray(picture(40, 30, 4), mode=None).convert("CMYK"))
    np.testing.assert_array_equal(decode_image(inks), pillow(inks))
    raw = encoded(Image.frombytes("CMYK", (30, 40), picture(40, 30, 4).tobytes()), quality=95)
    np.testing.assert_array_equal(decode_image(raw), pillow(raw))
    np.testing.assert_array_equal(decode_image(raw, region=(3, 17, 20, 9)), pillow(raw)[3:23, 17:26])


def png_images() -> dict[str, Image.Image]:
    rgb = Image.fromarray(picture(23, 31))
    transparent = rgb.quantize(16)
    return {
        "rgb": rgb,
        "rgba": Image.fromarray(picture(23, 31, 4)),
        "gray": rgb.convert("L"),
        "gray and alpha": rgb.convert("LA"),
        "palette": transparent,
        "bilevel": rgb.convert("1"),
    }


@pytest.mark.parametrize("kind", list(png_images()))
def test_png_equals_pillow(kind):
    image = png_images()[kind]
    data = encoded(image, "PNG")
    np.testing.assert_array_equal(decode_image(data), np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(decode_image(data, region=(5, 6, 7, 8)), np.asarray(image.convert("RGB"))[5:12, 6:14])


def test_png_palette_with_transparency():
    image = Image.fromarray(picture(9, 9)).quantize(8)
    data = encoded(image, "PNG", transparency=3)
    np.testing.assert_array_equal(decode_image(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_anywhere_is_an_error(kind):
    data = encoded(Image.fromarray(picture(60, 60)), kind)
    for keep in (0, 1, 2, 3, 8, 20, len(data) // 3, len(data) // 2, len(data) - 100, len(data) - 5, len(data) - 1):
        with pytest.raises(DecodeError, match=r"a/cat\.jpg"):
            decode_image(data[:keep], name="a/cat.jpg")


def test_bytes_behind_the_end_are_harmless():
    data = encoded(Image.fromarray(picture(20, 20)))
    np.testing.assert_array_equal(decode_image(data + b"\0" * 1000), decode_image(data))


def test_damaged_scan_is_an_error():
    data = bytearray(encoded(Image.fromarray(picture(64, 64)), quality=95))
    half = len(data) // 2
    del data[half : half + len(data) // 4]
    with pytest.raises(DecodeError, match="libjpeg-turbo"):
        decode_image(bytes(data))


def test_random_bytes_never_crash():
    rng = np.random.default_rng(3)
    images = [
        encoded(Image.fromarray(picture(33, 47)), kind, **options)
        for kind, options in (("JPEG", {"progressive": True}), ("JPEG", {}), ("PNG", {}))
    ]
    for data in images:
        for _ in range(150):
            broken = bytearray(data)
            for place in rng.integers(0, len(broken), rng.integers(1, 6)):
                broken[place] = rng.integers(0, 256)
            with contextlib.suppress(DecodeError):
                decode_image(bytes(broken), max_pixels=10**6)


def test_limits_and_formats():
    data = encoded(Image.fromarray(picture(30, 40)))
    assert decode_image(data, max_pixels=1200).shape == (30, 40, 3)
    with pytest.raises(DecodeError, match=r"30 x 40 = 1200 pixels are more than max_pixels = 1199"):
        decode_image(data, max_pixels=1199)
    with pytest.raises(DecodeError, match="the file is empty"):
        decode_image(b"")
    with pytest.raises(DecodeError, match="GIF"):
        decode_image(encoded(Image.fromarray(picture(5, 5)), "GIF"))
    with pytest.raises(ValueError, match="not inside an image of 30 x 40"):
        decode_image(data, region=(0, 0, 31, 40))
