"""PNG, WebP, orientation and scaled decoding: byte for byte what Pillow shows, and errors that say what is wrong."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vit_rs._core import decode_image
from vit_rs.exceptions import DecodeError

CORPUS = sorted((Path(__file__).resolve().parent.parent / "rust" / "fuzz" / "corpus" / "decode").iterdir())
PALETTE_WARNING = "ignore:Palette images with Transparency"


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return noise over gradients, (height, width, channels) u8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 3 + y, y * 5 - x, x * y // 9, 40 + x * 2][:channels], axis=-1)
    return ((base + rng.integers(0, 60, base.shape)) % 256).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def upright(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def drafted(data: bytes, scale: int) -> np.ndarray:
    """Decode a JPEG at 1 / scale in Pillow's way."""
    image = Image.open(io.BytesIO(data))
    image.draft(image.mode, (image.width // scale, image.height // scale))
    return np.asarray(image.convert("RGB"))


@pytest.mark.filterwarnings(PALETTE_WARNING)
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_every_kind_equals_pillow(path):
    # The corpus holds what Pillow cannot write: 4:4:0, 4:1:1, YCCK, arithmetic coding, lossless JPEG, 2-bit gray, ...
    data = path.read_bytes()
    np.testing.assert_array_equal(decode_image(data), pillow(data))
    np.testing.assert_array_equal(decode_image(data, exif=True), upright(data))
    if path.name.startswith("turned"):
        assert decode_image(data, exif=True).shape == decode_image(data).transpose(1, 0, 2).shape
    if path.suffix == ".jpg" and path.stem != "lossless":
        for scale in (2, 4, 8):
            np.testing.assert_array_equal(decode_image(data, scale=scale), drafted(data, scale))
    else:
        assert decode_image(data, scale=4).shape == decode_image(data).shape


# --- Scaled decoding


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_scaled_jpeg_equals_pillows_draft(subsampling, scale):
    for height, width in [(64, 48), (101, 150), (17, 99), (8, 8)]:
        data = encoded(Image.fromarray(picture(height, width)), quality=90, subsampling=subsampling)
        np.testing.assert_array_equal(decode_image(data, scale=scale), drafted(data, scale))


def test_narrow_regions_at_every_column_and_scale():
    # Chroma of strips of few columns would be upsampled in another way.
    rng = np.random.default_rng(1)
    for subsampling in (1, 2):
        for width in [1, 2, 3, 5, 9, 33, 34, 37, 64, 67]:
            pixels = rng.integers(0, 256, (19, width, 3), dtype=np.uint8)
            data = encoded(Image.fromarray(pixels), quality=95, subsampling=subsampling)
            for scale in (1, 2, 8):
                full = decode_image(data, scale=scale)
                for left in range(width):
                    for columns in {1, 2, width - left} - ({2} if left + 2 > width else set()):
                        top = int(rng.integers(0, 19))
                        rows = int(rng.integers(1, 20 - top))
                        part = decode_image(data, region=(top, left, rows, columns), scale=scale)
                        bottom, right = -(-(top + rows) // scale), -(-(left + columns) // scale)
                        np.testing.assert_array_equal(part, full[top // scale : bottom, left // scale : right])


def test_an_unknown_scale_is_refused():
    data = encoded(Image.fromarray(picture(9, 9)), "JPEG")
    with pytest.raises(ValueError, match="scale is 3; 1, 2, 4 and 8 are known"):
        decode_image(data, scale=3)


# --- Orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [*range(10), 65535])
def test_orientation_equals_exif_transpose(kind, orientation):
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(picture(45, 71)), kind, exif=exif)
    expected = upright(data)
    np.testing.assert_array_equal(decode_image(data, exif=True), expected)
    np.testing.assert_array_equal(decode_image(data, exif=True, region=(3, 14, 30, 20)), expected[3:33, 14:34])
    np.testing.assert_array_equal(decode_image(data), pillow(data))


def test_regions_are_of_the_upright_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(picture(30, 50)), "JPEG", exif=exif)
    assert decode_image(data, exif=True, region=(49, 0, 1, 30)).shape == (1, 30, 3)
    with pytest.raises(ValueError, match="not inside an image of 50 x 30"):
        decode_image(data, exif=True, region=(0, 0, 1, 31))
    with pytest.raises(ValueError, match="not inside an image of 30 x 50"):
        decode_image(data, region=(49, 0, 1, 30))


def test_the_first_exif_segment_counts_and_xmp_does_not():
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(Image.fromarray(picture(20, 20)), "JPEG", exif=exif)
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + b'<x tiff:Orientation="6"/>'
    segment = b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp
    np.testing.assert_array_equal(decode_image(data[:2] + segment + data[2:], exif=True), upright(data))


# --- PNG


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


def chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def png(header: bytes, rows: bytes, *extra: bytes) -> bytes:
    """Return a PNG of an IHDR's fields, filtered rows and chunks that stand before them."""
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def interlaced(pixels: np.ndarray, color: int, depth: int) -> bytes:
    """Return an Adam7 PNG of (H, W, bytes per pixel) samples."""
    height, width = pixels.shape[:2]
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, right in passes:
        part = pixels[top::down, left::right]
        if part.size:
            rows += b"".join(b"\0" + row.tobytes() for row in part)
    return png(struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 1), rows)


@pytest.mark.parametrize(
    ("color", "depth", "size"), [(0, 8, 1), (2, 8, 3), (6, 8, 4), (0, 16, 2), (2, 16, 6), (4, 16, 4)]
)
def test_interlaced_png_equals_pillow(color, depth, size):
    for height, width in [(1, 1), (3, 5), (8, 8), (23, 31)]:
        data = interlaced(picture(height, width * size, 1).reshape(height, width, size), color, depth)
        np.testing.assert_array_equal(decode_image(data), pillow(data))


def test_16_bit_gray_is_clipped_and_colour_cut():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    gray = encoded(Image.fromarray(values), "PNG")
    np.testing.assert_array_equal(decode_image(gray), pillow(gray))
    np.testing.assert_array_equal(decode_image(gray)[..., 0], np.minimum(values, 255))
    rows = b"".join(b"\0" + row.repeat(3).astype(">u2").tobytes() for row in values)
    colour = png(struct.pack(">IIBBBBB", 256, 256, 16, 2, 0, 0, 0), rows)
    np.testing.assert_array_equal(decode_image(colour), pillow(colour))
    np.testing.assert_array_equal(decode_image(colour)[..., 0], values >> 8)
    # With one gray value that is transparent, and with an alpha channel.
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 256, 256, 16, 0, 0, 0, 0)
    keyed = png(header, rows, chunk(b"tRNS", b"\0\x07"))
    np.testing.assert_array_equal(decode_image(keyed), pillow(keyed))


def test_colour_keys_change_no_colour():
    for color, size, key in [(0, 1, b"\0\x28"), (2, 3, b"\0\x28\0\x28\0\x28")]:
        rows = b"".join(b"\0" + row.tobytes() for row in picture(20, 30 * size, 1))
        data = png(struct.pack(">IIBBBBB", 30, 20, 8, color, 0, 0, 0), rows, chunk(b"tRNS", key))
        np.testing.assert_array_equal(decode_image(data), pillow(data))


def test_bombs_in_a_pngs_side_chunks_are_passed_over():
    packer = zlib.compressobj(1)
    zeros = bytes(1 << 20)
    bomb = b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()
    profile = chunk(b"iCCP", b"profile\0\0" + bomb)
    text = chunk(b"zTXt", b"comment\0\0" + bomb) + chunk(b"iTXt", b"comment\0\1\0\0\0" + bomb)
    data = png(struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0), b"\0abcdef" * 2, profile, text)
    # A fresh process, whose largest memory nothing else has raised.
    pytest.importorskip("resource")
    code = """
        import resource, sys
        from vit_rs._core import decode_image
        data = sys.stdin.buffer.read()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert decode_image(data).tobytes() == b"abcdef" * 2
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    told = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], input=data, capture_output=True, check=True)
    assert int(told.stdout) < 20_000  # KiB


def test_a_png_with_data_of_another_size_is_an_error():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    with pytest.raises(DecodeError, match="60000 x 60000 = 3600000000 pixels are more than max_pixels"):
        decode_image(png(header, b""))
    with pytest.raises(DecodeError, match="PNG"):
        decode_image(png(struct.pack(">IIBBBBB", 40, 40, 8, 2, 0, 0, 0), b"\0abc"))
    with pytest.raises(DecodeError, match="its image is 0 x 4"):
        decode_image(png(struct.pack(">IIBBBBB", 4, 0, 8, 2, 0, 0, 0), b""))
    with pytest.raises(DecodeError, match="does not begin with IHDR"):
        decode_image(b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""))


def test_animated_png_shows_its_first_frame():
    frames = [Image.fromarray(picture(20, 30, seed=seed)) for seed in range(3)]
    for default_image in (False, True):
        data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default_image)
        np.testing.assert_array_equal(decode_image(data), pillow(data))


# --- WebP

WEBPS = {
    "lossy": {"quality": 80},
    "coarse": {"quality": 5},
    "simple filter": {"quality": 30, "method": 0},
    "lossless": {"lossless": True},
    "exact": {"lossless": True, "exact": True},
    "coarse alpha": {"quality": 60, "alpha_quality": 20},
}


@pytest.mark.parametrize("options", WEBPS.values(), ids=WEBPS.keys())
@pytest.mark.parametrize("channels", [3, 4])
def test_webp_and_its_regions_equal_pillow(options, channels):
    rng = np.random.default_rng(2)
    for height, width in [(1, 1), (7, 5), (16, 16), (33, 17), (120, 97)]:
        data = encoded(Image.fromarray(picture(height, width, channels)), "WEBP", **options)
        expected = pillow(data)
        np.testing.assert_array_equal(decode_image(data), expected)
        for _ in range(40):
            top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
            rows, columns = int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1))
            part = decode_image(data, region=(top, left, rows, columns))
            np.testing.assert_array_equal(part, expected[top : top + rows, left : left + columns])


@pytest.mark.parametrize("lossless", [False, True])
def test_animated_webp_shows_its_first_frame(lossless):
    frames = [Image.fromarray(picture(40, 30, 4, seed)) for seed in range(3)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=lossless)
    np.testing.assert_array_equal(decode_image(data), pillow(data))


def test_a_webps_first_frame_may_be_smaller_than_its_canvas():
    # The corpus has a frame of 61 x 83 at (4, 6) of a canvas of 71 x 97.
    data = next(path for path in CORPUS if path.name == "animated.webp").read_bytes()
    full = pillow(data)
    assert full.shape == (71, 97, 3)
    assert not full[:4].any()
    assert full[4:65, 6:89].any()
    for top, left, height, width in [(0, 0, 3, 97), (0, 0, 5, 7), (60, 80, 11, 17), (66, 0, 5, 5), (10, 20, 30, 31)]:
        part = decode_image(data, region=(top, left, height, width))
        np.testing.assert_array_equal(part, full[top : top + height, left : left + width])


def test_broken_webps_are_told():
    data = encoded(Image.fromarray(picture(60, 60)), "WEBP")
    for keep in (12, 15, 20, len(data) // 2, len(data) - 1):
        with pytest.raises(DecodeError, match=r"a\.webp: truncated WebP: \d+ of the \d+ bytes"):
            decode_image(data[:keep], name="a.webp")
    with pytest.raises(DecodeError, match="60 x 60 = 3600 pixels are more than max_pixels = 3599"):
        decode_image(data, max_pixels=3599)
    with pytest.raises(DecodeError, match="no chunk in it"):
        decode_image(b"RIFF\4\0\0\0WEBP")
    canvas = struct.pack("<4sI4B3s3s", b"VP8X", 10, 2, 0, 0, 0, b"\xff\xff\xff", b"\xff\xff\xff")
    frame = struct.pack("<4sI16s", b"ANMF", 16, b"\0" * 16)
    with pytest.raises(DecodeError, match="16777216 x 16777216 = 281474976710656 pixels are more than"):
        decode_image(b"RIFF" + struct.pack("<I", 4 + 18 + 24) + b"WEBP" + canvas + frame)
    with pytest.raises(DecodeError, match="no image in it"):
        decode_image(b"RIFF" + struct.pack("<I", 4 + 18) + b"WEBP" + canvas)
    broken = bytearray(data)
    broken[23] = 0
    with pytest.raises(DecodeError, match="libwebp: the bitstream is broken"):
        decode_image(bytes(broken))
    half = len(data) // 4 * 2
    short = b"RIFF" + struct.pack("<I", half - 8) + b"WEBPVP8 " + struct.pack("<I", half - 20) + data[20:half]
    with pytest.raises(DecodeError, match="libwebp: the data ends too early"):
        decode_image(short)
    np.testing.assert_array_equal(decode_image(data + b"behind the end"), decode_image(data))
