"""Figures of embeddings and attention hold what they were given, at any size, and write nothing over each other."""

import math
import unittest.mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from vit_rs.analysis import (
    attention_distance_figure,
    attention_heads_figure,
    patch_filters_figure,
    position_similarity_figure,
    raw_filters_figure,
    rollout_figure,
)
from vit_rs.analysis.figures import mosaic, new_figure


def image_of(axes):
    return np.ma.filled(axes.images[0].get_array(), np.nan)


def tiles_of(picture, count, height, width, *, channels=()):
    """The tiles of a mosaic, its gap and its columns found from where it has none of their values."""
    for gap in range(1, max(height, width) + 2):
        columns, rest = divmod(picture.shape[1] + gap, width + gap)
        rows, more = divmod(picture.shape[0] + gap, height + gap)
        if rest == more == 0 and (rows - 1) * columns < count <= rows * columns:
            break
    else:
        pytest.fail(f"{picture.shape} is no mosaic of {count} tiles {height}x{width}")
    places = [divmod(number, columns) for number in range(count)]
    return np.stack([picture[r * (height + gap) :, c * (width + gap) :][:height, :width] for r, c in places]).reshape(
        count, height, width, *channels
    )


def assert_nothing_overlaps(figure):
    """All texts lie within the figure, and none on another."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    with unittest.mock.patch.object(Text, "draw", autospec=True) as draw:  # no ticks that lie beyond an axis
        figure.draw(renderer)
    texts = [call.args[0] for call in draw.call_args_list]
    texts = [text for text in texts if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    whole = figure.bbox
    for number, (name, box) in enumerate(boxes):
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= whole.x1 + 1 and box.y1 <= whole.y1 + 1
        assert inside, f"{name!r} leaves the figure: {box} of {whole}"
        for other, second in boxes[:number]:
            both = min(box.x1, second.x1) - max(box.x0, second.x0), min(box.y1, second.y1) - max(box.y0, second.y0)
            assert min(both) < 1.0, f"{name!r} lies on {other!r}"
    return len(boxes)


def test_overlapping_texts_are_seen():
    figure = new_figure(3, 2)
    axes = figure.subplots()
    assert assert_nothing_overlaps(figure) == 12  # ticks 0.0 to 1.0 of both axes
    axes.text(0.5, 0.5, "one")
    assert assert_nothing_overlaps(figure) == 13
    axes.text(0.5, 0.55, "other")
    with pytest.raises(AssertionError, match="'other' lies on 'one'"):
        assert_nothing_overlaps(figure)
    axes.texts[-1].set(position=(3.0, 0.0), in_layout=False)
    with pytest.raises(AssertionError, match="'other' leaves the figure"):
        assert_nothing_overlaps(figure)


# Mosaic


@pytest.mark.parametrize(("count", "columns", "gap"), [(1, 1, 0), (5, 3, 2), (6, 3, 1), (2, 5, 1)])
def test_a_mosaic_has_its_tiles_in_order(count, columns, gap):
    tiles = np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3)
    picture = mosaic(tiles, columns, gap=gap)
    rows = math.ceil(count / columns)
    assert picture.shape == (rows * (2 + gap) - gap, columns * (3 + gap) - gap)
    for number in range(count):
        top, left = (number // columns) * (2 + gap), (number % columns) * (3 + gap)
        np.testing.assert_array_equal(picture[top : top + 2, left : left + 3], tiles[number])
    assert np.isfinite(picture).sum() == tiles.size
    coloured = mosaic(np.stack([tiles] * 3, axis=-1), columns, gap=gap, fill=-1.0)
    np.testing.assert_array_equal(coloured[..., 1], np.nan_to_num(picture, nan=-1.0))


# Filters


def as_tiles(filters):
    scaled = filters / filters.abs().amax(dim=(1, 2, 3), keepdim=True)
    return (0.5 + 0.5 * scaled).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("count", "channels", "patch"),
    [(28, 3, (16, 16)), (28, 1, (4, 4)), (5, 3, (4, 12)), (1, 3, (12, 4)), (7, 1, (1, 1)), (3, 3, (2, 9))],
)
def test_filters_are_drawn_in_order_around_grey(count, channels, patch):
    filters = torch.randn(count, channels, *patch) * torch.logspace(-6, 3, count).view(-1, 1, 1, 1)
    for figure in (patch_filters_figure(filters), raw_filters_figure(filters)):
        [axes] = figure.axes
        got = tiles_of(image_of(axes), count, *patch, channels=(3,))
        np.testing.assert_allclose(got, as_tiles(filters), rtol=0, atol=1e-6)
        assert_nothing_overlaps(figure)


def test_the_paper_s_28_filters_have_its_four_rows():
    [axes] = patch_filters_figure(torch.randn(28, 3, 32, 32)).axes
    height, width = axes.images[0].get_array().shape[:2]
    assert (height, width) == (4 * 35 - 3, 7 * 35 - 3)


def test_a_filter_of_zeros_is_grey():
    filters = torch.zeros(2, 3, 4, 4)
    filters[1, 0, 0, 0] = -2.0
    zero, one = tiles_of(image_of(raw_filters_figure(filters).axes[0]), 2, 4, 4, channels=(3,))
    assert (zero == 0.5).all()
    assert one[0, 0].tolist() == [0.0, 0.5, 0.5]


@pytest.mark.parametrize(("components", "filters"), [(28, 192), (16, 16), (1, 1), (28, 3072)])
def test_the_explained_variance_is_drawn(components, filters):
    ratio = torch.rand(filters, dtype=torch.float64).sort(descending=True).values
    ratio /= ratio.sum()
    figure = patch_filters_figure(torch.randn(components, 3, 4, 4), ratio, title="Filters of a model")
    tiles, variance = figure.axes
    assert tiles.get_title() == "Filters of a model"
    cumulative, each, shown = variance.lines
    np.testing.assert_array_equal(each.get_xdata(), range(1, filters + 1))
    np.testing.assert_allclose(each.get_ydata(), 100 * ratio)
    np.testing.assert_allclose(cumulative.get_ydata(), 100 * ratio.cumsum(0))
    assert shown.get_xdata()[0] == components
    assert shown.get_label() == f"{components} shown: {100 * ratio[:components].sum():.1f} %"
    assert_nothing_overlaps(figure)


def test_so_many_raw_filters():
    weight = torch.randn(40, 1, 3, 3)
    figure = raw_filters_figure(weight, max_filters=12)
    [axes] = figure.axes
    np.testing.assert_allclose(
        tiles_of(image_of(axes), 12, 3, 3, channels=(3,)), as_tiles(weight[:12]), rtol=0, atol=1e-6
    )
    assert axes.get_title() == "The first 12 of 40 embedding filters"
    assert raw_filters_figure(weight).axes[0].get_title() == "40 embedding filters"
    assert raw_filters_figure(weight, title="").axes[0].get_title() == ""


@pytest.mark.parametrize("draw", [patch_filters_figure, raw_filters_figure])
@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (np.zeros((3, 4, 4)), r"expected filters \(n, 1 or 3 channels, p, q\), got \(3, 4, 4\)"),
        (np.zeros((3, 2, 4, 4)), r"got \(3, 2, 4, 4\)"),
        (np.zeros((0, 3, 4, 4)), r"got \(0, 3, 4, 4\)"),
        (np.full((1, 3, 2, 2), np.nan), r"filters \(1, 3, 2, 2\) have values that are not finite"),
    ],
)
def test_filters_figures_refuse_other_arrays(draw, filters, message):
    with pytest.raises(ValueError, match=message):
        draw(filters)


def test_filters_figures_refuse_other_options():
    with pytest.raises(ValueError, match="max_filters must be at least 1, got 0"):
        raw_filters_figure(np.zeros((1, 3, 2, 2)), max_filters=0)
    for ratio in ([0.5], [[0.5, 0.5]], [0.5, np.nan]):
        with pytest.raises(ValueError, match=r"expected the finite variance ratios \(n,\) of at least 2 components"):
            patch_filters_figure(np.ones((2, 3, 2, 2)), ratio)


# Attention distance


@pytest.mark.parametrize(("layers", "heads"), [(24, 16), (12, 3), (1, 1), (3, 24), (48, 40)])
def test_a_dot_for_every_head_at_its_layer(layers, heads):
    distances = torch.rand(layers, heads, dtype=torch.float64) * 100
    figure = attention_distance_figure(distances, title="ViT", width=224)
    axes, bar = figure.axes
    [dots] = axes.collections
    want = [(layer + 1, distances[layer, head].item()) for layer in range(layers) for head in range(heads)]
    np.testing.assert_allclose(dots.get_offsets(), want)
    np.testing.assert_array_equal(dots.get_array(), list(range(1, heads + 1)) * layers)
    figure.draw_without_rendering()
    assert len(np.unique(dots.get_facecolors(), axis=0)) == heads
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Network depth (layer)", "Mean attention distance (pixels)")
    assert axes.get_ylim() == (0.0, pytest.approx(0.6 * 224))
    assert bar.get_ylabel() == "Head"
    assert_nothing_overlaps(figure)


def test_distances_of_chosen_layers_and_of_uniform_attention():
    figure = attention_distance_figure([[1.0], [2.0], [30.0]], layers=[1, 6, 12], uniform=14.6, width=28)
    axes = figure.axes[0]
    assert np.asarray(axes.collections[0].get_offsets())[:, 0].tolist() == [1, 6, 12]
    assert axes.get_xticks().tolist() == [1, 6, 12]
    assert axes.get_ylim()[1] > 30.0
    assert axes.lines[0].get_ydata()[0] == 14.6
    assert_nothing_overlaps(figure)
    assert attention_distance_figure([[0.0]]).axes[0].get_ylim() == (0.0, 1.0)


@pytest.mark.parametrize(
    ("distances", "options", "message"),
    [
        (np.zeros(3), {}, r"expected distances \(L, H\), got \(3,\)"),
        (np.zeros((0, 3)), {}, r"got \(0, 3\)"),
        ([[1.0, -2.0]], {}, r"distances \(1, 2\) must be finite and at least 0, got -2\.0 to 1\.0"),
        ([[1.0, math.nan]], {}, "got nan to nan"),
        ([[1.0], [2.0]], {"layers": [1]}, "got 1 layers' numbers for 2 layers"),
    ],
)
def test_distance_figure_refuses_what_is_no_distance(distances, options, message):
    with pytest.raises(ValueError, match=message):
        attention_distance_figure(distances, **options)


# Maps of the heads


@pytest.mark.parametrize(
    ("layers", "heads", "grid", "image_hw"),
    [
        (12, 3, (7, 7), (28, 28)),
        (24, 16, (14, 14), (224, 224)),
        (4, 6, (4, 12), (64, 192)),
        (3, 2, (6, 2), (96, 32)),
        (1, 12, (14, 14), None),
        (1, 1, (1, 1), (16, 16)),
        (40, 24, (3, 3), None),
    ],
)
def test_maps_stand_by_layer_and_head(layers, heads, grid, image_hw):
    maps = torch.rand(layers, heads, *grid) * torch.logspace(-5, 0, heads).view(-1, 1, 1)
    image = None if image_hw is None else torch.randint(0, 256, (3, *image_hw), dtype=torch.uint8)
    figure = attention_heads_figure(maps, image=image, title="Class token")
    *left, axes = figure.axes
    want = (maps / maps.amax(dim=(2, 3), keepdim=True)).flatten(0, 1).numpy()
    got = tiles_of(image_of(axes), layers * heads, *grid)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    assert axes.images[0].get_clim() == (0.0, 1.0)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("Layer", "Head")
    assert len(left) == (image is not None)
    if image is not None:
        np.testing.assert_allclose(image_of(left[0]), image.permute(1, 2, 0).numpy() / 255.0, rtol=0, atol=1e-6)
    assert_nothing_overlaps(figure)
    assert max(figure.get_size_inches()) <= 12.0


def test_maps_of_chosen_layers():
    figure = attention_heads_figure(np.ones((2, 3, 4, 4)), layers=[3, 12], image=np.full((1, 8, 8), 0.25))
    left, axes = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["3", "12"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
    assert (image_of(left) == 0.25).all()
    with pytest.raises(ValueError, match="got 1 layers' numbers for 2 layers"):
        attention_heads_figure(np.ones((2, 3, 4, 4)), layers=[3])


def test_a_map_of_zeros_stays_zero():
    maps = np.zeros((1, 2, 2, 2))
    maps[0, 1, 0, 0] = 1e-30
    zero, one = tiles_of(image_of(attention_heads_figure(maps).axes[0]), 2, 2, 2)
    assert (zero.max(), one.max(), one.sum()) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (np.zeros((2, 4, 4)), {}, r"expected attention maps \(L, H, gh, gw\), got \(2, 4, 4\)"),
        (np.zeros((2, 0, 4, 4)), {}, r"got \(2, 0, 4, 4\)"),
        (np.full((1, 1, 2, 2), -1.0), {}, r"attention maps \(1, 1, 2, 2\) must be finite and at least 0, got -1"),
        (np.full((1, 1, 2, 2), np.inf), {}, "got inf to inf"),
        (np.ones((1, 1, 2, 2)), {"image": np.ones((2, 8, 8))}, r"expected images \(B, 1 or 3, height, width\)"),
        (np.ones((1, 1, 2, 2)), {"image": np.full((3, 8, 8), 2.0)}, "values from 2 to 2 lie outside"),
    ],
)
def test_heads_figure_refuses_other_arrays(maps, options, message):
    with pytest.raises(ValueError, match=message):
        attention_heads_figure(maps, **options)


# Rollout


@pytest.mark.parametrize(
    ("count", "channels", "image_hw", "grid"),
    [(3, 1, (28, 28), (7, 7)), (5, 3, (32, 96), (2, 6)), (9, 3, (96, 32), (6, 2)), (1, 3, (20, 20), (1, 1))],
)
def test_every_image_stands_beside_its_attention(count, channels, image_hw, grid):
    images = torch.randint(0, 256, (count, channels, *image_hw), dtype=torch.uint8)
    maps = torch.rand(count, *grid) * torch.logspace(-5, 0, count).view(-1, 1, 1)
    for given in (images, images / 255.0, images.numpy()):
        figure = rollout_figure(given, maps)
        [axes] = figure.axes
        shape = (3,) if channels == 3 else ()
        got = tiles_of(image_of(axes), 2 * count, *image_hw, channels=shape)
        weight = F.interpolate((maps / maps.amax((1, 2), keepdim=True))[:, None], image_hw, mode="bilinear")
        pixels = images / 255.0
        for number in range(count):
            for place, want in enumerate((pixels[number], pixels[number] * weight[number])):
                picture = want.permute(1, 2, 0).numpy() if channels == 3 else want[0].numpy()
                np.testing.assert_allclose(got[2 * number + place], picture, rtol=0, atol=1e-6)
    pairs = len(axes.texts) // 2
    assert [text.get_text() for text in axes.texts] == ["Input", "Attention"] * pairs
    assert_nothing_overlaps(figure)


@pytest.mark.parametrize("side", [250, 300, 384])
def test_white_images_stay_white(side):
    """Shrunk images lay above 1 by rounding, which matplotlib tells on standard error."""
    figure = rollout_figure(np.full((1, 3, side, side), 255, np.uint8), np.ones((1, 2, 2)))
    assert figure.axes[0].images[0].get_array().max() == 1.0


def test_rollouts_of_many_large_images():
    images = torch.linspace(0, 1, 6).view(6, 1, 1, 1).expand(6, 3, 448, 224)
    figure = rollout_figure(images, torch.ones(6, 32, 16), max_images=5, title="Attention rollout")
    got = tiles_of(image_of(figure.axes[0]), 10, 224, 112, channels=(3,))
    np.testing.assert_allclose(got.mean((1, 2, 3)), images[:5, 0, 0, 0].repeat_interleave(2), rtol=0, atol=1e-5)
    assert_nothing_overlaps(figure)


@pytest.mark.parametrize(
    ("images", "maps", "options", "message"),
    [
        (np.ones((2, 3, 8, 8)), np.ones((2, 1, 2, 2)), {}, r"got \(2, 3, 8, 8\) and \(2, 1, 2, 2\)"),
        (np.ones((2, 3, 8, 8)), np.ones((1, 2, 2)), {}, r"maps \(B, gh, gw\), got \(2, 3, 8, 8\) and \(1, 2, 2\)"),
        (np.ones((1, 2, 8, 8)), np.ones((1, 2, 2)), {}, r"expected images \(B, 1 or 3, height, width\)"),
        (np.ones((1, 3, 8, 8)), np.full((1, 2, 2), np.nan), {}, "must be finite"),
        (np.ones((1, 3, 8, 8)), np.ones((1, 2, 2)), {"max_images": 0}, "max_images must be at least 1, got 0"),
    ],
)
def test_rollout_figure_refuses_other_arrays(images, maps, options, message):
    with pytest.raises(ValueError, match=message):
        rollout_figure(images, maps, **options)


def test_the_similarity_figure_takes_a_title():
    figure = position_similarity_figure(np.ones((2, 3, 2, 3)), title="Position embedding similarity, layer 3")
    assert figure.axes[0].get_title() == "Position embedding similarity, layer 3"
    assert_nothing_overlaps(figure)
