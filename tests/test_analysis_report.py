"""The page of an analysis: what is packed into it, what is refused, and that no text of a user becomes markup."""

import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vit_rs.analysis.overview import _png
from vit_rs.analysis.report import (
    Explorer,
    ExplorerImage,
    ReportFigure,
    ReportSection,
    Table,
    pack_attention,
    unpack_attention,
    write_report,
)

EVIL = "</script></title><img src=x onerror=alert(1)>{{facts}}&amp;\"'"
PIXEL = _png(np.zeros((3, 1, 1), np.uint8))


class Markup(HTMLParser):
    """Tags, texts, and scripts and styles of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.scripts = [], [], {}
        self._script = None
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self._script = attributes.get("id", tag) if tag in {"script", "style"} else None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[self._script] = data
        else:
            self.texts.append(data)

    def handle_endtag(self, tag):
        self._script = None

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def explorer_of(**changes):
    """One image of 2x3 patches, a class token, one layer of two heads."""
    weights = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(0))
    picture = _png(np.zeros((3, 8, 12), np.uint8))
    values = {
        "image_hw": (8, 12),
        "grid": (2, 3),
        "token_hw": (4.0, 4.0),
        "num_prefix_tokens": 1,
        "prefix_names": ("class token",),
        "layers": (1,),
        "heads": 2,
        "images": (ExplorerImage("image 0", picture, (pack_attention(weights),)),),
        "similarities": (("input", np.eye(6)),),
    }
    return Explorer(**{**values, **changes})


def written(path, explorer=None, **parts):
    write_report(path, **{"title": "A look", "facts": (), "sections": (), **parts}, explorer=explorer)
    return Markup(path)


@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 2**31), st.floats(0.1, 30.0))
def test_packed_attention_is_as_near_as_it_says(heads, tokens, seed, sharpness):
    generator = torch.Generator().manual_seed(seed)
    weights = (torch.randn(heads, tokens, tokens, generator=generator) * sharpness).softmax(dim=2)
    found = unpack_attention(pack_attention(weights), heads, tokens)
    most = weights.amax(dim=2, keepdim=True)
    bound = (weights * most).sqrt() / 255 + most / 510**2
    # 1e-6 of the maximum: for float32.
    assert ((found - weights).abs() <= bound + 1e-6 * most).all()
    assert torch.equal(found.amax(dim=2, keepdim=True), most)


def test_packed_attention_keeps_what_a_sink_leaves():
    """A row that gives 0.98 to its class token: even steps of the maximum would lose the patches' share, 0.02."""
    torch.manual_seed(0)
    weights = torch.rand(1, 101, 101)
    weights *= 0.02 / weights[:, :, 1:].sum(dim=-1, keepdim=True)
    weights[:, :, 0] = 0.98
    read = unpack_attention(pack_attention(weights), 1, 101)
    # Measured: 0.053. In even steps, codes of at most 0.11, nothing would be left.
    assert read[0, :, 1:].sum(dim=-1).div(0.02).sub(1).abs().max() < 0.1
    assert weights[:, :, 1:].max() / 0.98 * 255 < 0.5


def test_packed_attention_keeps_which_token_asks_and_which_is_asked():
    weights = torch.zeros(2, 3, 3)
    weights[1, 0, 2] = 0.5
    assert torch.equal(unpack_attention(pack_attention(weights), 2, 3), weights)  # rows of zeros stay zeros


def test_packed_attention_is_the_stream_that_the_page_reads():
    weights = torch.tensor([[[0.8, 0.2], [0.5, 0.5]]])
    data = zlib.decompress(pack_attention(weights.double()))
    assert np.frombuffer(data, "<f4", 2).tolist() == weights.amax(dim=2).flatten().tolist()
    assert list(data[8:]) == [255, 128, 255, 255]  # 255 * sqrt(0.25) = 127.5, to even


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.zeros(2, 3, 4), r"expected attention weights \(H, T, T\), got \(2, 3, 4\)"),
        (torch.zeros(3, 3), r"got \(3, 3\)"),
        (torch.zeros(0, 3, 3), r"got \(0, 3, 3\)"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), r"expected floating-point attention weights, got torch.int64"),
        (torch.tensor([[[-0.5]]]), r"must be finite and at least 0, got -0.5 to -0.5"),
        (torch.tensor([[[torch.inf]]]), r"got inf to inf"),
        (torch.tensor([[[torch.nan, 1.0], [0.0, 0.0]]]), r"got nan to nan"),
    ],
)
def test_what_is_no_attention_is_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        pack_attention(weights)


def test_damaged_packed_attention_is_refused():
    packed = pack_attention(torch.ones(2, 3, 3))
    with pytest.raises(ValueError, match="damaged"):
        unpack_attention(b"nothing", 2, 3)
    with pytest.raises(ValueError, match="expected 42 bytes for 2 heads and 3 tokens, got a stream"):
        unpack_attention(packed[:-4], 2, 3)
    with pytest.raises(ValueError, match="63 bytes for 3 heads and 3 tokens, got 42"):
        unpack_attention(packed, 3, 3)
    with pytest.raises(ValueError, match="21 bytes for 1 heads and 3 tokens, got more"):
        unpack_attention(packed, 1, 3)


def test_a_page_holds_what_it_was_given(tmp_path):
    section = ReportSection(
        "Distances",
        ("First & last.",),
        (ReportFigure("A figure", PIXEL, ("figures/a b.svg", "arrays/a.npz")),),
        Table(("layer", "mean"), (("1", "3.4 px"), ("2", "a < b"))),
    )
    page = written(tmp_path / "report.html", facts=(("Checkpoint", "a.npz"),), sections=(section,))
    text = "".join(page.texts)
    for part in ("A look", "Distances", "First & last.", "A figure", "3.4 px", "a < b", "Checkpoint", "a.npz"):
        assert part in text
    assert [link["href"] for link in page.all("a")] == ["#section-1", "figures/a%20b.svg", "arrays/a.npz"]
    assert [cell.get("class") for cell in page.all("td")] == ["number", None] * 2  # a column of numbers stands right
    [image] = page.all("img")
    assert image["src"].startswith("data:image/png;base64,")
    assert image["alt"] == "A figure"
    assert ("section", {"id": "section-1"}) in page.tags
    assert not page.scripts["script"].strip()


@pytest.mark.parametrize("explorer", [None, explorer_of(images=(), similarities=())])
def test_nothing_to_explore_leaves_the_explorer_out(explorer, tmp_path):
    page = written(tmp_path / "report.html", explorer)
    assert not [attributes for _, attributes in page.tags if "explorer" in attributes.get("id", "")]
    assert "explorer" not in "".join(page.texts).lower()


def test_the_page_asks_no_network_for_anything(tmp_path):
    page = written(
        tmp_path / "report.html", explorer_of(), sections=(ReportSection("A", figures=(ReportFigure("B", PIXEL),)),)
    )
    [policy] = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    kept = [text for name, text in page.scripts.items() if not re.match(r"(attention|similarity)-\d", name)]
    for text in [*kept, *page.texts]:
        assert not re.search(r"https?:|//\w+\.|@import|url\(", text)
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))


def test_no_text_becomes_markup(tmp_path):
    section = ReportSection(
        EVIL, (EVIL,), (ReportFigure(EVIL, PIXEL, ("figures/" + EVIL,)),), Table((EVIL,), ((EVIL,),))
    )
    [image] = explorer_of().images
    images = (ExplorerImage(EVIL, image.png, image.attention),)
    explorer = explorer_of(prefix_names=(EVIL,), images=images, similarities=((EVIL, np.eye(6)),))
    page = written(tmp_path / "evil.html", explorer, title=EVIL, facts=((EVIL, EVIL),), sections=(section,))
    section = ReportSection("A", ("A",), (ReportFigure("A", PIXEL, ("figures/A",)),), Table(("A",), (("A",),)))
    plain = written(tmp_path / "plain.html", explorer_of(), title="A", facts=(("A", "A"),), sections=(section,))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attributes) for _, attributes in page.tags] == [sorted(attributes) for _, attributes in plain.tags]
    summary = json.loads(page.scripts["explorer-data"])
    assert summary["prefix"] == summary["similarities"] == [EVIL]
    assert summary["images"][0]["name"] == EVIL
    assert EVIL in "".join(page.texts)
    assert all(link["href"].startswith(("#", "figures/%3C")) for link in page.all("a"))


def test_names_that_are_no_utf8_are_written(tmp_path):
    page = written(tmp_path / "report.html", facts=(("Checkpoint", "caf\udce9.npz"),))
    assert "caf?.npz" in page.texts


def test_a_page_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")

    class Facts(tuple):
        __slots__ = ()

        def __iter__(self):
            yield ("Checkpoint", "a.npz")
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        written(path, facts=Facts())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        written(tmp_path / "none" / "report.html")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (ReportSection("A", figures=(ReportFigure("B", b"GIF89a"),)), r"figure 'B': expected the bytes of a PNG file"),
        *(
            (ReportSection("A", figures=(ReportFigure("B", PIXEL, (link,)),)), "expected a path relative to the page")
            for link in ("", "/etc/a", "//host/a", "\\\\host", "https://host/a", "javascript:alert(1)", "C:/a")
        ),
        (
            ReportSection("A", table=Table(("b",), (("1",), ("1", "2")))),
            r"table of 'A': expected 1 cells in row 2, got 2",
        ),
    ],
)
def test_what_does_not_fit_a_section_is_refused(section, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        written(tmp_path / "report.html", sections=(section,))
    assert not list(tmp_path.iterdir())


def changed_image(**changes):
    [image] = explorer_of().images
    return {"images": (ExplorerImage(**{**vars(image), **changes}),)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, r"expected positive sizes, got grid \(2, 3\), .* 0 heads"),
        ({"grid": (0, 3)}, "expected positive sizes"),
        ({"token_hw": (4.0, float("nan"))}, "expected positive sizes"),
        ({"token_hw": (float("inf"), 4.0)}, "expected positive sizes"),
        ({"num_prefix_tokens": 2}, r"expected 2 names of prefix tokens, got \('class token',\)"),
        ({"layers": (2, 1)}, r"expected layers with rising numbers, got \(2, 1\)"),
        ({"layers": ()}, r"expected layers with rising numbers, got \(\)"),
        ({"layers": (1, 2)}, "image 'image 0': expected attention of 2 layers, got 1"),
        ({"similarities": (("a", np.eye(5)),)}, r"position similarity 'a': expected \(6, 6\), got \(5, 5\)"),
        ({"similarities": (("a", np.full((6, 6), np.nan)),)}, "position similarity 'a': expected finite values"),
        (changed_image(png=b"GIF89a"), "image 'image 0': expected the bytes of a PNG file"),
        (changed_image(png=PIXEL), r"image 'image 0': expected \(8, 12\) pixels, got \(1, 1\)"),
        (changed_image(attention=(b"nothing",)), "image 'image 0', layer 1: packed attention is damaged"),
        (changed_image(rollout=np.ones((3, 2))), r"image 'image 0': rollout: expected \(2, 3\), got \(3, 2\)"),
    ],
)
def test_what_does_not_fit_the_explorer_is_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        written(tmp_path / "report.html", explorer_of(**changes))
    assert not list(tmp_path.iterdir())
