"""The explorer of an analysis's page, in headless Chromium: what it shows of planted attention, and how one moves."""

import shutil
from io import BytesIO
from itertools import product

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.image import imread

from vit_rs.analysis.distance import grid_distances
from vit_rs.analysis.overview import _png
from vit_rs.analysis.report import (
    Explorer,
    ExplorerImage,
    ReportFigure,
    ReportSection,
    pack_attention,
    unpack_attention,
    write_report,
)

playwright = pytest.importorskip("playwright.sync_api")

GRID, TOKEN_HW, PREFIX, LAYERS, HEADS = (3, 5), (8.0, 6.0), ("class token", "register <1>"), (1, 4), 2
P, N = len(PREFIX), GRID[0] * GRID[1]
T = P + N
DISTANCES = grid_distances(GRID, TOKEN_HW).double().numpy()
# 33 steps in place of matplotlib's 256, each rounded: 2; the canvas blends in whole numbers: 1.
COLOR_TOLERANCE = 3
NAMES = ("first", "b&amp;<img src=x onerror=alert(1)>")


def cell(patch):
    return f"row {patch // GRID[1] + 1}, column {patch % GRID[1] + 1}"


def planted():
    """Attention (images 2, layers 2, H, T, T), each row with sum 1.

    Image 0, layer 1: head 1 gives 0.15 and 0.1 to the prefix tokens and the rest to the left neighbour, head 2 the same
    to all. Image 0, layer 4: head 1 looks at the query itself. All else is random and peaked.
    """
    weights = (3.0 * torch.randn(2, 2, HEADS, T, T, generator=torch.Generator().manual_seed(1))).softmax(dim=-1)
    weights[0, 0, 0, P:] = 0.0
    weights[0, 0, 0, P:, :P] = torch.tensor([0.15, 0.1])
    for patch in range(N):
        weights[0, 0, 0, P + patch, P + patch - (patch % GRID[1] > 0)] = 0.75
    weights[0, 0, 1] = 1.0 / T
    weights[0, 1, 0] = torch.eye(T)
    return weights


def planted_similarities():
    tables = torch.randn(2, N, 4, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.cosine_similarity(tables[:, None], tables[:, :, None], dim=-1).double().numpy()


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"needs one of {', '.join(names)} on the path")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def parts():
    """What all explorers below share, and the weights that they hold after packing."""
    packed = [[pack_attention(layer) for layer in image] for image in planted()]
    generator = np.random.default_rng(0)
    images = tuple(
        ExplorerImage(
            name,
            _png(generator.integers(0, 256, (3, 24, 30), np.uint8)),
            tuple(layers),
            generator.random(GRID),
        )
        for name, layers in zip(NAMES, packed, strict=True)
    )
    held = np.stack([[unpack_attention(layer, HEADS, T).double().numpy() for layer in image] for image in packed])
    return images, held, planted_similarities()


def explorer_of(images, similarities, prefix=PREFIX):
    return Explorer(
        (24, 30), GRID, TOKEN_HW, len(prefix), prefix, LAYERS if images else (), HEADS, images, similarities
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, parts):
    """Pages: all of it; no images; images alone, without prefix tokens."""
    images, _, similarities = parts
    folder = tmp_path_factory.mktemp("pages")
    tables = (("layer <1>", similarities[0]), ("layer 2", similarities[1]))
    bare = tuple(
        ExplorerImage(image.name, image.png, tuple(pack_attention(torch.eye(N).expand(HEADS, N, N)) for _ in LAYERS))
        for image in images[:1]
    )
    figure = ReportFigure("A wide figure", _png(np.full((3, 300, 2400), 200, np.uint8)), ("figures/a.svg",))
    sections = [ReportSection(f"Section {number}", ("Text. " * 200,), (figure,)) for number in (1, 2)]
    for name, explorer in (
        ("all", explorer_of(images, tables)),
        ("no-images", explorer_of((), tables[:1])),
        ("bare", explorer_of(bare, (), ())),
    ):
        write_report(
            folder / f"{name}.html",
            title="A look",
            facts=[("Checkpoint", "a.npz")],
            sections=sections,
            explorer=explorer,
        )
    return folder


class View:
    """A page, what went wrong on it, and what it asked for."""

    def __init__(self, page):
        self.page, self.wrong, self.asked = page, [], []
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda line: self.wrong.append(line.text) if line.type in {"error", "warning"} else None)
        page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self, path, place=""):
        self.page.goto("about:blank")  # else another place on the same page does not load it again
        self.page.goto(path.as_uri() + place)
        self.settled()

    def settled(self, *expected):
        """Wait until what was asked for last is shown, and `expected` are parts of where the page says it is."""
        at = "document.getElementById('explorer').dataset.rendered?.split('&')"
        self.page.wait_for_function(f"wanted => wanted.every(part => {at}?.includes(part))", arg=list(expected))

    def data(self, name):
        return dict(self.page.locator(f"#{name}").evaluate("element => ({...element.dataset})"))

    def text(self, name):
        return self.page.locator(f"#{name}").inner_text()

    def click(self, canvas, patch, **options):
        self._at("click", canvas, patch, **options)

    def hover(self, canvas, patch):
        self._at("hover", canvas, patch)

    def _at(self, action, canvas, patch, **options):
        locator = self.page.locator(f"#{canvas}")
        box = locator.bounding_box()
        row, column = divmod(patch, GRID[1])
        place = {
            "x": (column + 0.5) * TOKEN_HW[1] * box["width"] / 30,
            "y": (row + 0.5) * TOKEN_HW[0] * box["height"] / 24,
        }
        getattr(locator, action)(position=place, **options)

    def colors(self, canvas, grid=GRID, cell=TOKEN_HW):
        """Return the colours (gh * gw, 3) at the middles of cells of so many pixels of the image."""
        read = """(canvas, [gh, gw, height, width]) => {
          const copy = document.createElement("canvas"), colors = [], zoom = canvas.width / 30;
          Object.assign(copy, {width: canvas.width, height: canvas.height});
          const context = copy.getContext("2d", {willReadFrequently: true});
          context.drawImage(canvas, 0, 0);
          for (let n = 0; n < gh * gw; n += 1) {
            const [x, y] = [((n % gw) + 0.5) * width * zoom, (Math.floor(n / gw) + 0.5) * height * zoom];
            colors.push([...context.getImageData(Math.floor(x), Math.floor(y), 1, 1).data.slice(0, 3)]);
          }
          return colors;
        }"""
        return np.array(self.page.locator(f"#{canvas}").evaluate(read, [*grid, *cell]))

    def opacity(self, value):
        change = "(it, value) => { it.value = value; it.dispatchEvent(new Event('input')); }"
        self.page.locator("#opacity").evaluate(change, value)


@pytest.fixture(scope="module")
def tab(browser):
    view = View(browser.new_page(viewport={"width": 1280, "height": 1000}))
    yield view
    view.page.close()


@pytest.fixture
def view(tab):
    tab.wrong.clear()
    tab.asked.clear()
    yield tab
    assert not tab.wrong
    assert all(url.startswith(("file:", "data:", "about:")) for url in tab.asked)


def viridis(shares):
    return np.array(colormaps["viridis"](np.asarray(shares), bytes=True), int)[..., :3]


def row_of(held, image, layer, head, query):
    heads = held[image, LAYERS.index(layer)]
    return (heads.mean(axis=0) if head == "mean" else heads[head - 1])[query]


def check(view, row, query):
    """Compare everything shown with the weights (T,) of a query."""
    best = int(row[P:].argmax())
    shown = view.data("maximum")
    assert float(shown["weight"]) == pytest.approx(row[P + best], rel=1e-6)
    assert (int(shown["row"]), int(shown["column"])) == (best // GRID[1] + 1, best % GRID[1] + 1)
    assert cell(best) in view.text("maximum")
    shares = view.data("prefix-share")
    assert float(shares["share"]) == pytest.approx(row[:P].sum(), rel=1e-6, abs=1e-12)
    assert [float(share) for share in shares["shares"].split()] == pytest.approx(list(row[:P]), rel=1e-6, abs=1e-12)
    assert view.text("query") == (cell(query - P) if query >= P else PREFIX[query])
    if query >= P:
        assert float(view.data("distance")["distance"]) == pytest.approx(row[P:] @ DISTANCES[query - P], rel=1e-6)
    else:
        assert "no place" in view.text("distance")
        assert "distance" not in view.data("distance")
    assert np.abs(view.colors("attention") - viridis(row[P:] / row[P:].max())).max() <= COLOR_TOLERANCE


def test_planted_attention_is_shown_where_it_is(view, folder):
    view.open(folder / "all.html", "#image=0&layer=1&head=1&query=2")
    view.opacity(1)
    patch = 8  # row 2, column 4: looks at column 3
    view.click("attention", patch)
    view.settled(f"query={P + patch}")
    assert view.text("query") == "row 2, column 4"
    assert view.text("maximum") == "0.75 at row 2, column 3"
    assert view.text("prefix-share") == "25.0 % (class token 15.0 %, register <1> 10.0 %)"
    # One patch to the left is 6 px; of the weight 0.75 is on patches, and the paper does not divide by that.
    assert view.text("distance") == "4.5 px"
    colors = view.colors("attention")
    assert np.abs(colors[patch - 1] - viridis(1.0)).max() <= COLOR_TOLERANCE
    assert np.abs(np.delete(colors, patch - 1, axis=0) - viridis(0.0)).max() <= COLOR_TOLERANCE

    view.page.select_option("#head", "2")
    view.settled("head=2")
    assert float(view.data("distance")["distance"]) == pytest.approx(DISTANCES[patch].sum() / T, rel=0.01)
    assert float(view.data("prefix-share")["share"]) == pytest.approx(P / T, rel=1e-6)

    view.page.select_option("#head", "1")
    view.page.keyboard.press("]")
    view.settled("layer=4", "head=1")
    assert view.text("maximum") == "1 at row 2, column 4"
    assert view.text("distance") == "0.0 px"


def test_every_image_layer_head_and_query_is_what_was_packed(view, folder, parts):
    _, held, _ = parts
    view.open(folder / "all.html")
    view.opacity(1)
    for (image, layer, head), query in zip(
        product((0, 1), LAYERS, (1, 2, "mean")), (2, 0, 16, 5, 1, 9, 3, 8) * 2, strict=False
    ):
        place = f"image={image}&layer={layer}&head={head}&query={query}"
        view.page.evaluate("place => { location.hash = place; }", place)
        view.settled(*place.split("&"))
        view.opacity(1)
        check(view, row_of(held, image, layer, head, query), query)


def test_position_similarity_and_rollout(view, folder, parts):
    images, held, similarities = parts
    view.open(folder / "all.html", f"#image=1&layer=4&head=mean&query={P + 7}")
    view.opacity(1)
    for table in (0, 1):
        view.page.select_option("#table", str(table))
        view.settled(f"table={table}")
        row = similarities[table][7]
        view.hover("similarity", 11)
        shown = view.data("pointer")
        assert float(shown["similarity"]) == pytest.approx(row[11], abs=1 / 65534)  # 16 bits
        assert float(shown["weight"]) == pytest.approx(row_of(held, 1, 4, "mean", P + 7)[P + 11], rel=1e-6)
        assert view.text("pointer").startswith("row 3, column 2: weight ")
        view.page.mouse.move(0, 0)
        assert not view.data("pointer")
        assert np.abs(view.colors("similarity") - viridis((row + 1) / 2)).max() <= COLOR_TOLERANCE
    assert view.page.locator("#table option").all_inner_texts() == ["layer <1>", "layer 2"]
    rollout = images[1].rollout.ravel()
    assert np.abs(view.colors("rollout") - viridis(rollout / rollout.max())).max() <= COLOR_TOLERANCE
    assert float(view.text("rollout-end")) == pytest.approx(rollout.max(), rel=0.005)  # three digits
    view.page.click("#queries button:has-text('register <1>')")
    view.settled("query=1")
    assert "empty" in view.page.locator("#similarity-panel").get_attribute("class")


def test_images_are_picked_and_stand_under_the_map(view, folder, parts):
    images, _, _ = parts
    view.open(folder / "all.html", "#image=0&layer=1&head=2&query=0")
    view.page.locator("#images input").nth(1).check()
    view.settled("image=1")
    assert view.page.locator("#images img").nth(1).get_attribute("alt") == images[1].name
    view.opacity(0)
    pixels = imread(BytesIO(images[1].png))[..., :3].reshape(-1, 3) * 255
    assert np.array_equal(view.colors("attention", (24, 30), (1, 1)), pixels.round())


def test_keys(view, folder):
    view.open(folder / "all.html", f"#image=0&layer=1&head=mean&query={P}")
    keys = view.page.keyboard
    view.click("attention", 0)
    for key, place in (
        ("ArrowRight", f"query={P + 1}"),
        ("ArrowDown", f"query={P + 6}"),
        ("ArrowLeft", f"query={P + 5}"),
        ("ArrowLeft", f"query={P + 5}"),  # the edge holds
        ("ArrowUp", f"query={P}"),
        ("ArrowUp", f"query={P}"),
        ("[", "layer=1"),
        ("]", "layer=4"),
        ("]", "layer=4"),
        ("[", "layer=1"),
        ("h", "head=1"),
        ("h", "head=2"),
        ("h", "head=mean"),
        ("Shift+H", "head=2"),
        ("Alt+ArrowDown", f"query={P}"),  # belongs to the browser
        ("Control+ArrowDown", f"query={P}"),
    ):
        keys.press(key)
        view.settled(place)
        assert view.page.evaluate("document.activeElement.id") == "attention"
    view.page.click("#queries button >> nth=0")
    view.settled("query=0")
    keys.press("ArrowLeft")  # from a prefix token back to the last patch
    view.settled(f"query={P}")


def test_keys_of_a_slider_and_a_select_stay_theirs(view, folder):
    view.open(folder / "all.html", f"#image=0&layer=1&head=mean&query={P + 7}")
    view.page.focus("#layer")
    view.page.keyboard.press("ArrowRight")
    view.settled("layer=4", f"query={P + 7}")
    view.page.keyboard.press("[")
    view.settled("layer=1", f"query={P + 7}")
    view.page.focus("#head")
    view.page.keyboard.press("h")  # a select's own search
    view.settled("head=1")
    view.page.focus("#opacity")
    view.page.keyboard.press("ArrowLeft")
    assert float(view.page.input_value("#opacity")) == pytest.approx(0.59)
    view.settled(f"query={P + 7}")
    assert view.text("layer-number") == "1"


def test_the_address_keeps_the_place(view, folder, parts):
    _, held, _ = parts
    view.open(folder / "all.html", "#section-2")
    start = f"query={P + 7}"  # the middle
    view.settled("image=0", "layer=4", "head=mean", start, "table=0")
    assert view.page.evaluate("location.hash") == "#section-2"  # nothing was changed
    view.click("attention", 3)
    view.page.keyboard.press("h")
    view.settled("head=1")
    view.page.wait_for_function(f"() => location.hash === '#image=0&layer=4&head=1&query={P + 3}&table=0'")
    view.page.reload()
    view.settled("head=1", f"query={P + 3}")
    check_query = row_of(held, 0, 4, 1, P + 3)
    assert float(view.data("maximum")["weight"]) == pytest.approx(check_query[P:].max(), rel=1e-6)
    for nonsense in (
        "#image=2&layer=2&head=3&query=17&table=2",
        "#image=-1&layer=1e0&head=&query=%%&table",
        "#=&&query=9e9",
    ):
        view.open(folder / "all.html", nonsense)
        view.settled("image=0", "layer=4", "head=mean", start, "table=0")


def test_what_is_shown_belongs_together_while_data_are_unpacked(view, folder, parts):
    _, held, similarities = parts
    view.open(folder / "all.html", f"#image=0&layer=1&head=1&query={P}")
    # Within one task nothing is unpacked: what is shown is the old place, all of it.
    during = view.page.evaluate(
        """async () => {
          const canvas = document.getElementById("similarity"), box = canvas.getBoundingClientRect();
          const at = (x, y) => ({clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true});
          document.querySelectorAll("#images input")[1].click();
          canvas.dispatchEvent(new MouseEvent("click", at(0.5, 0.5)));
          canvas.dispatchEvent(new PointerEvent("pointermove", at(0.9, 0.9)));
          return [document.getElementById("query").textContent, {...document.getElementById("pointer").dataset}];
        }"""
    )
    assert during[0] == "row 1, column 1"
    assert float(during[1]["weight"]) == pytest.approx(row_of(held, 0, 1, 1, P)[P + 14], rel=1e-6, abs=1e-12)
    assert float(during[1]["similarity"]) == pytest.approx(similarities[0][0, 14], abs=1 / 65534)
    view.settled("image=1", f"query={P + 7}")
    # What was asked for first is unpacked last, and must not be shown then.
    view.open(folder / "all.html")
    view.page.evaluate(
        """async () => {
          const Plain = Response;
          let finish, late = new Promise((resolve) => { finish = resolve; });
          window.Response = class extends Plain {
            async arrayBuffer() {
              window.Response = Plain;
              const buffer = await super.arrayBuffer();
              await new Promise((resolve) => { setTimeout(resolve, 150); });
              setTimeout(finish, 20);
              return buffer;
            }
          };
          document.querySelectorAll("#images input")[1].click();
          await new Promise((resolve) => { setTimeout(resolve, 20); });
          const layer = document.getElementById("layer");
          layer.value = 0;
          layer.dispatchEvent(new Event("input"));
          await late;
        }"""
    )
    view.settled("image=1", "layer=1")
    view.opacity(1)
    check(view, row_of(held, 1, 1, "mean", P + 7), P + 7)


def test_a_page_without_images(view, folder, parts):
    _, _, similarities = parts
    view.open(folder / "no-images.html")
    for name in (
        "images",
        "attention-controls",
        "queries",
        "attention",
        "rollout",
        "heads",
        "maximum",
        "distance",
        "table",
    ):
        assert not view.page.locator(f"#{name}").is_visible(), name
    view.click("similarity", 1)
    view.settled(f"query={P + 1}")
    for key in ("]", "h"):  # nothing that they would change
        view.page.keyboard.press(key)
    view.hover("similarity", 4)
    assert float(view.data("pointer")["similarity"]) == pytest.approx(similarities[0][1, 4], abs=1 / 65534)
    assert view.text("pointer").startswith("row 1, column 5: position similarity")


def test_a_page_of_patches_alone(view, folder):
    view.open(folder / "bare.html")
    for name in ("queries", "prefix-share", "similarity", "rollout", "table"):
        assert not view.page.locator(f"#{name}").is_visible(), name
    view.click("attention", 14)
    view.settled("query=14")
    assert view.text("maximum") == "1 at row 3, column 5"


def test_damaged_data_are_told(view, folder, tmp_path):
    html = (folder / "all.html").read_text("utf-8")
    begin = html.index('id="attention-0-0">') + len('id="attention-0-0">')
    end = html.index("</script>", begin)
    (tmp_path / "damaged.html").write_text(html[:begin] + html[begin : begin + 80] + html[end:], "utf-8")
    view.open(tmp_path / "damaged.html", "#layer=4")
    view.page.keyboard.press("[")
    message = view.page.locator("#message")
    message.wait_for(state="visible")
    assert "The explorer's data cannot be read" in message.inner_text()
    view.page.keyboard.press("]")  # what is whole works on
    message.wait_for(state="hidden")
    view.settled("layer=4")


def test_an_old_browser_is_told(browser, folder):
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((folder / "all.html").as_uri())
    assert "cannot unpack" in page.locator("#message").inner_text()
    assert not page.locator("#explorer-body").is_visible()
    assert page.locator("#section-1").is_visible()
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_fits_its_window(width, scheme, browser, folder, tmp_path):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    view = View(page)
    for name in ("all", "no-images", "bare"):
        view.open(folder / f"{name}.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    view.open(folder / "all.html")
    page.screenshot(path=tmp_path / "page.png")
    pixels = (imread(tmp_path / "page.png")[..., :3] * 255).astype(int)
    assert pixels.shape[1] == width
    assert (pixels[0, 0].mean() < 64) == (scheme == "dark")
    assert len(np.unique(pixels @ [65536, 256, 1])) > 500  # the maps over a noisy image
    assert not view.wrong
    page.close()
