"""What a file's first bytes tell of an image, for counting.

Formats that vit-rs cannot decode are told too, and damaged files are not refused, as decoding does.

Source: ITU-T T.81, annex B (JPEG markers); PNG specification, section 11 (IHDR, eXIf); RFC 9649 (WebP);
CIPA DC-008 (EXIF), TIFF 6.0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["ImageHeader", "read_header"]

_OTHERS = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_ORIENTATION = 0x0112
_SHORT = 3


@dataclass(frozen=True)
class ImageHeader:
    """Format, and what is known beside it; sizes in pixels as stored, 0 where unknown.

    `orientation` is EXIF's, 1..8; 1 is upright, and stands where nothing is said in the part that was looked at.
    """

    format: str
    width: int = 0
    height: int = 0
    channels: int = 0
    progressive: bool = False
    orientation: int = 1


def read_header(start: bytes) -> ImageHeader | None:
    """Return what the first bytes of a file tell; None where they end too early to tell."""
    try:
        if start.startswith(b"\xff\xd8\xff"):
            return _jpeg(start)
        if start.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(start)
        if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            return _webp(start)
    except (struct.error, IndexError):
        return None
    known = (name for magic, name in _OTHERS.items() if start.startswith(magic))
    return ImageHeader(next(known, "unknown"))


def _jpeg(data: bytes) -> ImageHeader:
    orientation = 1
    at = 2
    while True:
        while data[at] != 0xFF:
            at += 1
        while data[at] == 0xFF:
            at += 1
        marker, at = data[at], at + 1
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _orientation(data[at + 8 : at + length])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _, height, width, channels = struct.unpack_from(">BHHB", data, at + 2)
            progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
            return ImageHeader("JPEG", width, height, channels, progressive, orientation)
        if marker in (0xD9, 0xDA):
            return ImageHeader("JPEG", orientation=orientation)  # no frame before the scan: damaged
        at += max(length, 2)


def _png(data: bytes) -> ImageHeader:
    width, height, _, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    orientation, at = 1, 33
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IDAT":
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"eXIf":
            orientation = _orientation(data[at + 8 : at + 8 + length])
        at += length + 12
    return ImageHeader("PNG", width, height, 3 if color in (2, 3, 6) else 1, bool(interlaced), orientation)


def _webp(data: bytes) -> ImageHeader:
    kind = data[12:16]
    if kind == b"VP8X":
        low = struct.unpack_from("<HBHB", data, 24)
        return ImageHeader("WebP", 1 + low[0] + (low[1] << 16), 1 + low[2] + (low[3] << 16), 3)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return ImageHeader("WebP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), 3)
    width, height = struct.unpack_from("<HH", data, 26)
    return ImageHeader("WebP", width & 0x3FFF, height & 0x3FFF, 3)


def _orientation(tiff: bytes) -> int:
    """Return the orientation that the first directory of a TIFF block names; 1 where it does not, or is broken."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * entry)
            if (tag, kind, count) == (_ORIENTATION, _SHORT, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
