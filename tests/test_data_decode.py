"""Decoding: bit-equal to Pillow, regions bit-equal to the same part of a full decode, and every broken file named."""

from __future__ import annotations

import contextlib
import io
import struct

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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
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


def segments(data: bytes) -> dict[int, bytes]:
    """Return a JPEG's segments up to its first scan by marker, length included, and the scan's data as 0."""
    found, at = {}, 2
    while data[at + 1] != 0xDA:
        length = struct.unpack_from(">H", data, at + 2)[0]
        found[data[at + 1]] = found.get(data[at + 1], b"") + data[at : at + 2 + length]
        at += 2 + length
    found[0] = data[at + 2 + struct.unpack_from(">H", data, at + 2)[0] : -2]
    return found


@pytest.mark.parametrize("chroma", [(1, 1), (2, 1), (2, 2)])
def test_one_scan_a_component(chroma):
    # Three gray files become the scans of one: their coefficients are all read before the first row is written.
    height, width = 61, 83
    sizes = [(height, width)] + [(-(-height // chroma[1]), -(-width // chroma[0]))] * 2
    grays = [segments(encoded(Image.fromarray(picture(*size, 1, seed)[..., 0]))) for seed, size in enumerate(sizes)]
    frame = struct.pack(">BBHBHHB", 0xFF, 0xC0, 17, 8, height, width, 3)
    frame += bytes([1, chroma[0] << 4 | chroma[1], 0, 2, 0x11, 0, 3, 0x11, 0])
    scans = [b"\xff\xda" + bytes([0, 8, 1, i + 1, 0, 0, 63, 0]) + gray[0] for i, gray in enumerate(grays)]
    data = b"\xff\xd8" + grays[0][0xDB] + frame + grays[0][0xC4] + b"".join(scans) + b"\xff\xd9"
    full = decode_image(data)
    np.testing.assert_array_equal(full, pillow(data))
    for top, left, rows, columns in [(0, 0, 1, 1), (60, 82, 1, 1), (15, 31, 17, 9), (33, 33, 28, 50), (0, 63, 61, 2)]:
        part = decode_image(data, region=(top, left, rows, columns))
        np.testing.assert_array_equal(part, full[top : top + rows, left : left + columns])


def test_the_end_marker_that_counts():
    data = encoded(Image.fromarray(picture(40, 40)))
    thumbnail = encoded(Image.fromarray(picture(8, 8)))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    # One inside a segment before the scan is not the file's.
    with pytest.raises(DecodeError, match="truncated JPEG: no end-of-image marker"):
        decode_image(data[:2] + segment + data[2:-2])
    # Behind the image another one may follow, whole or not.
    for rest in (thumbnail, thumbnail[:-20]):
        np.testing.assert_array_equal(decode_image(data + rest), decode_image(data))


def test_more_scans_than_any_encoder_writes():
    data = encoded(Image.fromarray(picture(16, 16)), progressive=True)
    scan = data.index(b"\xff\xda")
    bomb = data[:-2] + data[scan:-2] * 60 + b"\xff\xd9"
    with pytest.raises(DecodeError, match="more than 500 scans"):
        decode_image(bomb)


def test_corruption_anywhere_is_found_by_a_whole_decode():
    data = encoded(Image.fromarray(picture(96, 96)), quality=95, restart_marker_rows=1)
    start, found = data.index(b"\xff\xda") + 14, 0
    for at in range(start, len(data) - 4, 97):
        broken = data[:at] + b"\xff\xd5" + data[at + 2 :]
        with contextlib.suppress(DecodeError):
            decode_image(broken)
            continue
        found += 1
    assert found == len(range(start, len(data) - 4, 97))


def test_random_bytes_never_crash():
    rng = np.random.default_rng(3)
    images = [
        encoded(Image.fromarray(picture(33, 47)), kind, **options)
        for kind, options in (("JPEG", {"progressive": True}), ("JPEG", {}), ("PNG", {}), ("WEBP", {}))
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


def test_a_harmless_oddity_hides_no_damage():
    pixels = picture(96, 96)
    sound = encoded(Image.fromarray(pixels), quality=95, restart_marker_rows=1)
    restarts = [at for at in range(len(sound) - 1) if sound[at] == 0xFF and 0xD0 <= sound[at + 1] <= 0xD7]
    damaged = sound[: restarts[2] + 20] + sound[restarts[4] - 5 :]
    stray = b"\x12\x34\x56\x78"

    def odd(data: bytes) -> bytes:
        version = data.index(b"JFIF\0") + 5
        return data[:version] + b"\x02" + data[version + 1 :]

    def parameters(data: bytes) -> bytes:
        end = data.index(b"\xff\xda") + 2
        end += struct.unpack_from(">H", data, end)[0]
        return data[: end - 3] + b"\x00\x3e\x00" + data[end:]

    for harmless in (odd(sound), parameters(sound), sound[:-2] + stray + sound[-2:]):
        np.testing.assert_array_equal(decode_image(harmless), decode_image(sound))
    at_restart = sound[: restarts[0]] + stray + sound[restarts[0] :]
    for broken in (damaged, odd(damaged), parameters(damaged), damaged[:-2] + stray + damaged[-2:], at_restart):
        with pytest.raises(DecodeError, match="libjpeg-turbo"):
            decode_image(broken)
