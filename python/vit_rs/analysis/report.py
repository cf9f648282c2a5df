"""The report of an analysis: one HTML file that holds everything it shows and asks no network for anything.

Its explorer shows, for a picked image, layer, head and query token, the attention over the image, the position
similarity of the query's patch and the image's rollout. Letters: L layers, H heads, T tokens = P prefix tokens
(class token, registers) + N patches (gh x gw of them, row by row).
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
import struct
import zlib
from dataclasses import dataclass
from importlib import resources
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import torch

from vit_rs.checkpoints import atomic_write

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike
    from torch import Tensor

__all__ = [
    "Explorer",
    "ExplorerImage",
    "ReportFigure",
    "ReportSection",
    "Table",
    "pack_attention",
    "unpack_attention",
    "write_report",
]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NUMBER = re.compile(r"[-+]?\d[\d.,eE+-]*\s?(%|px|s|ms|[KMG]i?B)?")


@dataclass(frozen=True)
class ReportFigure:
    """A picture of the report.

    Attributes:
        caption: plain text below it.
        png: the bytes of a PNG file; shown at two of its pixels to a CSS pixel, or narrower.
        files: files beside the page that the caption links to, relative to the page, such as "figures/filters.svg".
    """

    caption: str
    png: bytes
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of plain text.

    Attributes:
        header: the columns' names.
        rows: as many cells each.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ReportSection:
    """A section of the report: its paragraphs, then its table, then its figures.

    Attributes:
        title: plain text.
        paragraphs: plain text each.
        figures: any number.
        table: or none.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    figures: tuple[ReportFigure, ...] = ()
    table: Table | None = None


@dataclass(frozen=True)
class ExplorerImage:
    """An image of the explorer.

    Attributes:
        name: what it is called, plain text.
        png: the bytes of a PNG file of the model's input, of `Explorer.image_hw` pixels.
        attention: `pack_attention`'s bytes for each of `Explorer.layers`.
        rollout: (gh, gw), at least 0, or none.
    """

    name: str
    png: bytes
    attention: tuple[bytes, ...]
    rollout: ArrayLike | None = None


@dataclass(frozen=True)
class Explorer:
    """What the page lets one explore: attention over images, position similarities, or both.

    Attributes:
        image_hw: height and width of the model's input, pixels.
        grid: (gh, gw).
        token_hw: pixels from patch to patch, down and across.
        num_prefix_tokens: P.
        prefix_names: what the P tokens are called, such as "class token".
        layers: the numbers of the layers shown, from 1 and rising; some may be left out.
        heads: H.
        images: may be empty: then there is no attention to explore.
        similarities: name of a position table and its (N, N) cosine similarities, -1..1, the prefix tokens left out;
            may be empty.
    """

    image_hw: tuple[int, int]
    grid: tuple[int, int]
    token_hw: tuple[float, float]
    num_prefix_tokens: int
    prefix_names: tuple[str, ...]
    layers: tuple[int, ...]
    heads: int
    images: tuple[ExplorerImage, ...] = ()
    similarities: tuple[tuple[str, ArrayLike], ...] = ()

    @property
    def tokens(self) -> int:
        """T."""
        return self.num_prefix_tokens + self.grid[0] * self.grid[1]


def pack_attention(weights: Tensor) -> bytes:
    """Pack the attention weights of an image and layer into a byte each, compressed.

    The weights of a row are kept as square roots, relative to the row's maximum: attention is peaked, and in even steps
    of the maximum a row that gives 0.9 to its class token would lose all that it gives to its patches.

    Args:
        weights: (H, T, T) floating point, at least 0: a row holds what its query gives to each token.

    Returns:
        The zlib stream of float32 maxima (H, T), little-endian, and u8 codes (H, T, T). A weight w is
        m * (code / 255)**2, where m is its row's maximum; it is off by at most sqrt(w * m) / 255 + m / 510**2, and the
        maximum itself not at all.

    Raises:
        ValueError: another shape or type, or a weight is negative or not finite.
    """
    if weights.ndim != 3 or weights.shape[1] != weights.shape[2] or weights.numel() == 0:
        raise ValueError(f"expected attention weights (H, T, T), got {tuple(weights.shape)}")
    if not weights.is_floating_point():
        raise ValueError(f"expected floating-point attention weights, got {weights.dtype}")
    weights = weights.detach().to("cpu", torch.float32)
    least, most = (value.item() for value in weights.aminmax())
    if not (least >= 0.0 and math.isfinite(most)):
        raise ValueError(f"attention weights must be finite and at least 0, got {least:g} to {most:g}")
    maxima = weights.amax(dim=2)  # (H, T)
    # A row of zeros stays one; no row of a softmax is.
    relative = weights / maxima.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(2)
    codes = relative.sqrt_().mul_(255.0).round_().to(torch.uint8)  # (H, T, T)
    # The codes are close to noise: more effort than the least saves no more bytes.
    return zlib.compress(maxima.numpy().astype("<f4").tobytes() + codes.numpy().tobytes(), 1)


def unpack_attention(packed: bytes, heads: int, tokens: int) -> Tensor:
    """Return the weights of `pack_attention`, (H, T, T) float32, as the page reads them.

    Raises:
        ValueError: the bytes are damaged, or those of another number of heads or tokens.
    """
    rows = heads * tokens
    data = _unzipped(packed, heads, tokens)
    maxima = np.frombuffer(data, "<f4", rows).astype(np.float32).reshape(heads, tokens, 1)
    codes = np.frombuffer(data, np.uint8, rows * tokens, 4 * rows).reshape(heads, tokens, tokens)
    return torch.from_numpy(maxima * np.square(codes.astype(np.float32) / 255.0))


def _unzipped(packed: bytes, heads: int, tokens: int, where: str = "") -> bytes:
    expected = heads * tokens * (4 + tokens)
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed, expected + 1)
    except zlib.error as error:
        raise ValueError(f"{where}packed attention is damaged: {error}") from None
    if len(data) != expected or not stream.eof:
        got = f"{len(data)}" if len(data) < expected else "more" if len(data) > expected else "a stream without an end"
        raise ValueError(f"{where}expected {expected} bytes for {heads} heads and {tokens} tokens, got {got}")
    return data


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[ReportSection],
    explorer: Explorer | None = None,
) -> None:
    """Write the report, atomically; what it holds is not copied as a whole.

    Args:
        path: the HTML file; its folder must exist.
        title: plain text.
        facts: names and values of the table at the top, plain text.
        sections: in their order, below the explorer.
        explorer: None, or one without images and similarities, leaves it out.

    Raises:
        ValueError: a figure is no PNG, a link is not relative, a row of a table has another number of cells than its
            header, or something of the explorer does not fit the rest of it.
        FileNotFoundError: the folder does not exist.
    """
    for section in sections:
        _check_section(section)
    if explorer is not None:
        _check_explorer(explorer)
        if not explorer.images and not explorer.similarities:
            explorer = None
    parts: dict[str, Callable[[], Iterable[str]]] = {
        "title": lambda: [_text(title)],
        "style": lambda: [_page_file("report.css")],
        "contents": lambda: _contents(sections, explorer),
        "facts": lambda: _facts(facts),
        "explorer": lambda: _explorer(explorer),
        "sections": lambda: _sections(sections),
        "data": lambda: _data(explorer),
        "script": lambda: [_page_file("report.js")] if explorer is not None else [],
    }

    def write(file: IO[bytes]) -> None:
        # The template alone is looked at for marks: text in braces that the user gave stays what it is.
        for place, piece in enumerate(re.split(r"\{\{(\w+)\}\}", _page_file("report.html"))):
            for text in [piece] if place % 2 == 0 else parts[piece]():
                file.write(text.encode("utf-8", "replace"))

    atomic_write(path, write)


def _page_file(name: str) -> str:
    return (resources.files("vit_rs.analysis") / "page" / name).read_text("utf-8")


def _text(text: str) -> str:
    return html.escape(str(text))


def _check_section(section: ReportSection) -> None:
    for figure in section.figures:
        _png_size(figure.png, f"figure {figure.caption!r}")
        for link in figure.files:
            if not link or link.startswith(("/", "\\")) or re.match(r"\w+:", link):
                raise ValueError(f"figure {figure.caption!r}: expected a path relative to the page, got {link!r}")
    if section.table is not None:
        columns = len(section.table.header)
        for number, row in enumerate(section.table.rows, 1):
            if len(row) != columns:
                raise ValueError(
                    f"table of {section.title!r}: expected {columns} cells in row {number}, got {len(row)}"
                )


def _check_explorer(explorer: Explorer) -> None:
    gh, gw = explorer.grid
    sizes = (*explorer.grid, *explorer.image_hw, explorer.heads)
    if min(sizes) < 1 or not all(0.0 < size < math.inf for size in explorer.token_hw):
        raise ValueError(
            "expected positive sizes, got "
            f"grid {explorer.grid}, image {explorer.image_hw}, token {explorer.token_hw}, {explorer.heads} heads"
        )
    if len(explorer.prefix_names) != explorer.num_prefix_tokens:
        raise ValueError(f"expected {explorer.num_prefix_tokens} names of prefix tokens, got {explorer.prefix_names}")
    if list(explorer.layers) != sorted(set(explorer.layers)) or (explorer.images and not explorer.layers):
        raise ValueError(f"expected layers with rising numbers, got {explorer.layers}")
    for name, similarity in explorer.similarities:
        _check_shape(np.asarray(similarity), (gh * gw, gh * gw), f"position similarity {name!r}")
    for image in explorer.images:
        where = f"image {image.name!r}"
        if (size := _png_size(image.png, where)) != tuple(explorer.image_hw):
            raise ValueError(f"{where}: expected {explorer.image_hw} pixels, got {size}")
        if len(image.attention) != len(explorer.layers):
            raise ValueError(
                f"{where}: expected attention of {len(explorer.layers)} layers, got {len(image.attention)}"
            )
        for layer, packed in zip(explorer.layers, image.attention, strict=True):
            _unzipped(packed, explorer.heads, explorer.tokens, f"{where}, layer {layer}: ")
        if image.rollout is not None:
            _check_shape(np.asarray(image.rollout), (gh, gw), f"{where}: rollout")


def _check_shape(array: np.ndarray[Any, Any], shape: tuple[int, ...], what: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{what}: expected {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: expected finite values")


def _png_size(png: bytes, what: str) -> tuple[int, int]:
    """Return height and width."""
    if not png.startswith(_PNG_SIGNATURE) or len(png) < 24:
        raise ValueError(f"{what}: expected the bytes of a PNG file, got {png[:8]!r}")
    width, height = struct.unpack(">II", png[16:24])
    return height, width


def _contents(sections: Sequence[ReportSection], explorer: Explorer | None) -> Iterator[str]:
    if explorer is not None:
        yield '<li><a href="#explorer">Explorer</a></li>\n'
    for number, section in enumerate(sections, 1):
        yield f'<li><a href="#section-{number}">{_text(section.title)}</a></li>\n'


def _facts(facts: Sequence[tuple[str, str]]) -> Iterator[str]:
    for name, value in facts:
        yield f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>\n"


def _sections(sections: Sequence[ReportSection]) -> Iterator[str]:
    for number, section in enumerate(sections, 1):
        yield f'<section id="section-{number}">\n<h2>{_text(section.title)}</h2>\n'
        for paragraph in section.paragraphs:
            yield f"<p>{_text(paragraph)}</p>\n"
        if section.table is not None:
            yield from _table(section.table)
        for figure in section.figures:
            height, width = _png_size(figure.png, figure.caption)
            caption = _text(figure.caption)
            links = "".join(f' <a href="{_text(quote(file))}">{_text(file)}</a>' for file in figure.files)
            yield f'<figure><img width="{width // 2 or 1}" height="{height // 2 or 1}" alt="{caption}" src="'
            yield _png_address(figure.png)
            yield f'"><figcaption>{caption}<span class="files">{links}</span></figcaption></figure>\n'
        yield "</section>\n"


def _table(table: Table) -> Iterator[str]:
    columns = zip(*table.rows, strict=True) if table.rows else ((),) * len(table.header)
    kinds = [
        ' class="number"' if cells and all(_NUMBER.fullmatch(str(cell)) for cell in cells) else "" for cells in columns
    ]
    yield '<div class="wide"><table>\n<thead><tr>'
    yield "".join(f'<th scope="col"{kind}>{_text(name)}</th>' for kind, name in zip(kinds, table.header, strict=True))
    yield "</tr></thead>\n<tbody>\n"
    for row in table.rows:
        yield "<tr>"
        yield "".join(f"<td{kind}>{_text(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        yield "</tr>\n"
    yield "</tbody></table></div>\n"


def _explorer(explorer: Explorer | None) -> Iterator[str]:
    if explorer is None:
        return
    markup = _page_file("explorer.html")
    before, _, after = markup.partition("{{thumbnails}}")
    yield before
    for number, image in enumerate(explorer.images):
        name = _text(image.name)
        yield (
            f'<label title="{name}"><input type="radio" name="image" value="{number}" autocomplete="off">'
            f'<img id="image-{number}" alt="{name}" src="'
        )
        yield _png_address(image.png)
        yield f'"><span>{_text(image.name.rpartition("/")[2])}</span></label>\n'
    yield after


def _data(explorer: Explorer | None) -> Iterator[str]:
    if explorer is None:
        return
    names = [name for name, _ in explorer.similarities]
    summary = {
        "image": list(explorer.image_hw),
        "grid": list(explorer.grid),
        "token": list(explorer.token_hw),
        "prefix": list(explorer.prefix_names),
        "layers": list(explorer.layers),
        "heads": explorer.heads,
        "images": [{"name": image.name, "rollout": _rounded(image.rollout)} for image in explorer.images],
        "similarities": names,
    }
    # Nothing in a JSON text that an HTML parser could take for markup.
    text = json.dumps(summary, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    yield f'<script type="application/json" id="explorer-data">{text}</script>\n'
    for number, (_, similarity) in enumerate(explorer.similarities):
        values = np.clip(np.asarray(similarity, np.float64), -1.0, 1.0)
        codes = np.round(values * 32767.0).astype("<i2")
        yield from _binary(f"similarity-{number}", zlib.compress(codes.tobytes(), 1))
    for number, image in enumerate(explorer.images):
        for place, packed in enumerate(image.attention):
            yield from _binary(f"attention-{number}-{place}", packed)


def _rounded(rollout: ArrayLike | None) -> list[float] | None:
    return None if rollout is None else [float(f"{value:.6g}") for value in np.asarray(rollout, np.float64).ravel()]


def _binary(name: str, data: bytes) -> Iterator[str]:
    yield f'<script type="application/octet-stream;base64" id="{name}">'
    yield base64.b64encode(data).decode("ascii")
    yield "</script>\n"


def _png_address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
