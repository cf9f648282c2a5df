"""Analysis: similarities with known answers, and figures that hold what they were given."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vit_rs.analysis import (
    image_batch_figure,
    position_similarity,
    position_similarity_figure,
    save_figure,
    training_curves,
)

# Position similarity


@pytest.mark.parametrize("grid", [(3, 5), (1, 1), (1, 7), (4, 4)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_similarity_is_the_cosine_of_each_pair(grid: tuple[int, int], prefix: int) -> None:
    gh, gw = grid
    table = torch.randn(1, prefix + gh * gw, 6, requires_grad=True)
    got = position_similarity(table, grid, prefix)
    assert (got.shape, got.dtype, got.requires_grad) == ((gh, gw, gh, gw), torch.float32, False)
    patches = table[0, prefix:].detach().reshape(gh, gw, 6)
    for row in range(gh):
        for column in range(gw):
            want = F.cosine_similarity(patches[row, column], patches, dim=-1)
            torch.testing.assert_close(got[row, column], want, rtol=0, atol=1e-6)
            assert got[row, column, row, column].item() == pytest.approx(1.0)
    assert got.abs().max() <= 1.0
    torch.testing.assert_close(got, got.permute(2, 3, 0, 1), rtol=0, atol=0)
    assert torch.equal(position_similarity(table[0], grid, prefix), got)


def test_similarity_knows_rows_from_columns() -> None:
    rows, columns = torch.eye(2).repeat_interleave(3, 0), torch.eye(3).repeat(2, 1)
    table = torch.cat([rows, 2.0 * columns], dim=1)  # each position is its row plus its column
    got = position_similarity(table, (2, 3), 0)
    want = torch.tensor([[1.0, 0.2, 0.2], [0.8, 0.0, 0.0]])
    torch.testing.assert_close(got[0, 0], want)


def test_similarity_of_a_zero_position_is_zero() -> None:
    table = torch.ones(4, 3)
    table[1] = 0.0
    got = position_similarity(table, (2, 2), 0)
    assert got[0, 1].abs().max() == 0.0
    assert got[0, 0, 1, 1] == 1.0


@pytest.mark.parametrize("shape", [(1, 12, 4), (2, 13, 4), (13,), (13, 4, 1)])
def test_similarity_refuses_what_does_not_fit_the_grid(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a position embedding \(1, 1 \+ 3\*4, D\)") as error:
        position_similarity(torch.zeros(shape), (3, 4))
    assert f"got {shape}" in str(error.value)


# Figures


def records(stage: str, steps: range, **more: object) -> list[dict[str, object]]:
    return [
        {"stage": stage, "step": step, "epoch": 0, "train_loss": 2.0 / (step + 1), "learning_rate": 1e-3, **more}
        for step in steps
    ]


def line_of(axes: object, label: str) -> np.ndarray:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.array(line.get_xydata())


def test_training_curves_hold_the_records() -> None:
    run = records("pretrain", range(10)) + records("finetune", range(5))
    run[9] |= {"test_top1": 0.75, "test_loss": 0.7}
    run[14] |= {"test_top1": 0.5, "test_loss": 0.9}
    loss, accuracy, rate = training_curves(run).axes
    np.testing.assert_array_equal(line_of(loss, "pretrain, train")[:, 0], range(10))
    np.testing.assert_allclose(line_of(loss, "pretrain, train")[:, 1], 2.0 / np.arange(1, 11))
    np.testing.assert_array_equal(line_of(loss, "finetune, train")[:, 0], range(9, 14))  # behind the first
    np.testing.assert_allclose(line_of(loss, "finetune, test"), [[13, 0.9]])
    np.testing.assert_allclose(line_of(accuracy, "pretrain, test"), [[9, 75.0]])
    assert line_of(rate, "finetune").shape == (5, 2)
    assert accuracy.get_title() == "Test accuracy, 50.00 % at last"
    assert [axes.get_xlabel() for axes in (loss, accuracy, rate)] == ["Step"] * 3
    assert loss.get_ylabel() == "Cross-entropy (nats)"


def test_steps_that_count_on_are_not_shifted() -> None:
    loss, *_ = training_curves(records("a", range(5)) + records("b", range(5, 9))).axes
    np.testing.assert_array_equal(line_of(loss, "b, train")[:, 0], range(5, 9))


def test_records_may_lack_everything_but_one_number() -> None:
    run = [{}, {"train_loss": 1.0}, {"train_loss": math.nan}, {"train_loss": None}, {"note": "x", "train_loss": 3}]
    loss, accuracy, _ = training_curves(run).axes
    np.testing.assert_array_equal(line_of(loss, "train"), [[1, 1.0], [4, 3.0]])
    assert [text.get_text() for text in accuracy.texts] == ["not recorded"]
    for empty in ([], [{}], [{"step": 1, "train_loss": math.inf}]):
        with pytest.raises(ValueError, match="nothing to draw"):
            training_curves(empty)


def test_long_curves_are_smoothed_without_a_shift() -> None:
    run = [{"step": step, "train_loss": 5.0 - 0.01 * step} for step in range(400)]
    loss = training_curves(run).axes[0]
    assert len(loss.lines) == 2
    smooth = line_of(loss, "train")
    np.testing.assert_allclose(smooth, [[step, 5.0 - 0.01 * step] for step in range(400)])
    noisy = [{**record, "train_loss": record["train_loss"] + (-1) ** number} for number, record in enumerate(run)]
    spread = line_of(training_curves(noisy).axes[0], "train")[20:-20, 1] - smooth[20:-20, 1]
    assert np.abs(spread).max() < 0.1


@pytest.mark.parametrize("grid", [(4, 4), (2, 5), (1, 1), (20, 3)])
def test_similarity_figure_shows_every_map_at_its_place(grid: tuple[int, int]) -> None:
    gh, gw = grid
    maps = np.random.default_rng(0).uniform(-1, 1, (gh, gw, gh, gw)).astype(np.float32)
    figure = position_similarity_figure(torch.from_numpy(maps))
    axes, bar = figure.axes
    mosaic = np.asarray(axes.images[0].get_array().filled(np.nan))
    gap = max(1, round(0.1 * max(gh, gw)))
    for row in range(gh):
        for column in range(gw):
            top, left = row * (gh + gap), column * (gw + gap)
            np.testing.assert_array_equal(mosaic[top : top + gh, left : left + gw], maps[row, column])
    assert np.isfinite(mosaic).sum() == maps.size
    assert axes.images[0].get_clim() == (-1.0, 1.0)
    assert "Cosine similarity" in (bar.get_ylabel(), bar.get_xlabel())
    assert axes.get_ylabel() == "Input patch row"


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 3, 2), (0, 0, 0, 0)])
def test_similarity_figure_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected similarities \(gh, gw, gh, gw\), got"):
        position_similarity_figure(np.zeros(shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_image_figure_undoes_the_normalisation(channels: int) -> None:
    u8 = torch.randint(0, 256, (5, channels, 6, 9), dtype=torch.uint8)
    mean, std = [0.3, 0.4, 0.5][:channels], [0.2, 0.25, 0.3][:channels]
    scale = torch.tensor(std).view(-1, 1, 1)
    normalised = (u8 / 255.0 - torch.tensor(mean).view(-1, 1, 1)) / scale
    for images, options in ((u8, {}), (u8 / 255.0, {}), (normalised, {"mean": mean, "std": std})):
        figure = image_batch_figure(images, titles=list("abcde"), columns=3, heading="batch", **options)
        assert len(figure.axes) == 6
        assert [axes.get_title() for axes in figure.axes[:5]] == list("abcde")
        for axes, image in zip(figure.axes, u8, strict=False):
            want = image.permute(1, 2, 0).squeeze().numpy() / 255.0
            np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), want, atol=1e-6)
        assert not figure.axes[5].images


def test_image_figure_draws_the_first_so_many() -> None:
    figure = image_batch_figure(np.zeros((9, 1, 4, 4), np.uint8), max_images=4, columns=8)
    assert len(figure.axes) == 4


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(3, 4, 4), {}, r"expected images \(B, 1 or 3, height, width\), got \(3, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4), {}, r"got \(0, 3, 4, 4\)"),
        (torch.zeros(1, 2, 4, 4), {}, r"got \(1, 2, 4, 4\)"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.int64), {}, r"expected u8 or floating-point images, got torch\.int64"),
        (torch.full((1, 1, 4, 4), -2.1), {}, r"values from -2\.1 to -2\.1 lie outside 0\.\.1: pass the mean and std"),
        (torch.full((1, 1, 4, 4), math.nan), {}, "values from nan to nan"),
        (torch.zeros(1, 1, 4, 4), {"mean": [0.5]}, "mean and std go together"),
        (torch.zeros(1, 1, 4, 4).byte(), {"mean": [0.5], "std": [0.5]}, "u8 images are not normalised"),
        (torch.zeros(3, 1, 4, 4), {"titles": ["a", "b"]}, "got 2 titles for 3 images"),
        (torch.zeros(3, 1, 4, 4), {"columns": 0}, "columns and max_images must be at least 1, got 0 and 64"),
    ],
)
def test_image_figure_refuses_what_it_cannot_show(images: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_batch_figure(images, **options)


@pytest.mark.parametrize(
    ("suffix", "magic"),
    [
        (".PNG", b"\x89PNG"),
        (".svg", b"<?xml"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((".png", b"\x89PNG"), (".pdf", b"%PDF"))),
    ],
)
def test_figures_are_saved_by_their_suffix(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"curves{suffix}"
    save_figure(training_curves(records("", range(3))), path, dpi=50)
    assert path.read_bytes().startswith(magic)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["figure.xyz", "figure"])
def test_unknown_suffixes_write_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown figure format .*known are .*png"):
        save_figure(training_curves(records("", range(3))), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_comes_with_the_first_figure_and_pyplot_never() -> None:
    code = (
        "import sys, vit_rs.analysis as analysis\n"
        "assert 'matplotlib' not in sys.modules\n"
        "analysis.training_curves([{'train_loss': 1.0}])\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
