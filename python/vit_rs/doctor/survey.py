"""What kinds of images a data set holds, by the headers of a sample."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vit_rs.doctor.headers import read_header
from vit_rs.exceptions import VitRsError

if TYPE_CHECKING:
    from vit_rs.doctor.files import Files
    from vit_rs.doctor.report import Progress

__all__ = ["Survey", "survey"]

_MOST = 2000
_START = 1 << 16
_PERCENTILES = (5, 50, 95)


@dataclass(frozen=True)
class Survey:
    """Counts are of the sample. Widths, heights and bytes are the 5th, 50th and 95th percentile.

    A folder has `classes`, and None for `shards`; of tar shards the labels are not read, and it is the other way. The
    classes of `empty_classes` have no image.
    """

    images: int
    classes: int | None
    shards: int | None
    sampled: int
    formats: dict[str, int]
    progressive: int
    gray: int
    cmyk: int
    rotated: int
    unreadable: int
    width: tuple[int, ...]
    height: tuple[int, ...]
    bytes: tuple[int, ...]
    empty_classes: tuple[str, ...] = ()


def survey(files: Files, progress: Progress) -> Survey:
    """Read the headers of at most 2,000 images, spread evenly over the data set."""
    headers, sizes, unreadable = [], [], 0
    chosen = files.spread(_MOST)
    for done, index in enumerate(chosen):
        progress("headers", done, len(chosen))
        try:
            data, size = files.start(int(index), _START)
            header = read_header(data) or read_header(files.read(int(index)))
        except (OSError, VitRsError):
            header = None
        if header is None:
            unreadable += 1
            continue
        headers.append(header)
        sizes.append(size)
    measured = [header for header in headers if header.width and header.height]
    return Survey(
        images=len(files),
        classes=files.class_count,
        shards=files.shard_count,
        sampled=len(chosen),
        formats=dict(Counter(header.format for header in headers).most_common()),
        progressive=sum(header.progressive and header.format == "JPEG" for header in headers),
        gray=sum(header.channels == 1 for header in headers),
        cmyk=sum(header.channels == 4 and header.format == "JPEG" for header in headers),
        rotated=sum(header.orientation != 1 for header in headers),
        unreadable=unreadable,
        width=_percentiles([header.width for header in measured]),
        height=_percentiles([header.height for header in measured]),
        bytes=_percentiles(sizes),
        empty_classes=files.empty_classes,
    )


def _percentiles(values: list[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in np.percentile(values, _PERCENTILES)) if values else ()
