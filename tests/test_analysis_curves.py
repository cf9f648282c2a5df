"""Curves of runs: stages behind each other, several runs in one figure; `vit-rs plot` from folders to figure."""

from __future__ import annotations

import json

import matplotlib.image
import numpy as np
import pytest

from vit_rs.analysis.curves import RunCurves, comparison_figure, run_curves, training_curves
from vit_rs.cli import main
from vit_rs.recipes import fashion_mnist
from vit_rs.training.values import apply_settings, parse_settings


def of_train(stage, step, loss, *, seconds=0.0, epoch=1, rate=0.1):
    return {
        "kind": "train", "stage": stage, "epoch": epoch, "step": step,
        "train_loss": loss, "learning_rate": rate, "time": {"seconds": seconds},
    }  # fmt: skip


def of_test(stage, step, loss, top1, *, seconds=0.0, epoch=1):
    return {
        "kind": "test", "stage": stage, "epoch": epoch, "step": step,
        "test_loss": loss, "test_top1": top1, "time": {"seconds": seconds},
    }  # fmt: skip


# Two epochs of 4 steps, then one of 2; the results have no step.
RUN = [
    *(of_train("pretrain", step, 2.0 / step, seconds=step, epoch=(step - 1) // 4 + 1) for step in range(1, 9)),
    of_test("pretrain", 4, 1.5, 0.5, seconds=4.5),
    of_test("pretrain", 8, 1.0, 0.75, seconds=8.5, epoch=2),
    {"kind": "result", "stage": "pretrain", "steps": 8, "time": {"seconds": 9.0}},
    of_test("finetune", 0, 1.2, 0.7, seconds=10.0, epoch=0),
    of_train("finetune", 1, 0.9, seconds=11.0),
    of_train("finetune", 2, 0.8, seconds=12.0),
    of_test("finetune", 2, 1.1, 0.72, seconds=13.0),
    {"kind": "result", "stage": "finetune", "steps": 2, "time": {"seconds": 14.0}},
]


def lines(axes, label):
    return [np.array(line.get_xydata()) for line in axes.lines if line.get_label() == label]


def test_a_stage_begins_where_the_one_before_ended():
    first, second = run_curves(RUN)
    assert (first.name, second.name, second.start) == ("pretrain", "finetune", 8.0)
    np.testing.assert_array_equal(first.points["train_loss"][:, 0], range(1, 9))
    np.testing.assert_array_equal(second.points["train_loss"], [[9, 0.9], [10, 0.8]])
    np.testing.assert_array_equal(second.points["test_top1"], [[8, 0.7], [10, 0.72]])
    assert second.points["learning_rate"].shape == (2, 2)
    loss, *_ = training_curves(RUN).axes
    [boundary] = [line for line in loss.lines if len(set(line.get_xdata())) == 1 and line.get_linestyle() == ":"]
    assert boundary.get_xdata()[0] == 8.0
    seconds = run_curves(RUN, place=lambda record: record["time"]["seconds"], joined=False)
    assert [stage.start for stage in seconds] == [1.0, 8.5]
    np.testing.assert_array_equal(seconds[1].points["train_loss"][:, 0], [11, 12])


def test_runs_are_drawn_in_the_same_panels():
    one = RunCurves("one", run_curves(RUN))
    other = RunCurves("_other", run_curves(RUN[:5]))  # unfinished, not tested yet
    figure = comparison_figure([one, other], xlabel="Epoch")
    train_loss, test_loss, top1, rate = figure.axes
    first, second = lines(train_loss, "one")  # apart
    np.testing.assert_array_equal(first, one.stages[0].points["train_loss"])
    np.testing.assert_array_equal(second, [[9, 0.9], [10, 0.8]])
    assert lines(train_loss, " _other")[0].shape == (5, 2)
    np.testing.assert_array_equal(np.concatenate(lines(test_loss, "one")), [[4, 1.5], [8, 1.0], [8, 1.2], [10, 1.1]])
    np.testing.assert_array_equal(np.concatenate(lines(top1, "one")), [[4, 50], [8, 75], [8, 70], [10, 72]])
    assert lines(top1, " _other") == []
    np.testing.assert_array_equal(np.concatenate(lines(rate, "one"))[:, 0], range(1, 11))
    assert {axes.get_xlabel() for axes in figure.axes} == {"Epoch"}
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", " _other"]
    colors = [line.get_color() for line in legend.get_lines()]
    assert colors == [train_loss.lines[0].get_color(), lines_of_color(train_loss, " _other")]
    assert len(set(colors)) == 2


def lines_of_color(axes, label):
    [color] = {line.get_color() for line in axes.lines if line.get_label() == label}
    return color


def test_many_runs_are_told_apart():
    runs = [RunCurves(str(number), run_curves(RUN[:3])) for number in range(9)]
    drawn = comparison_figure(runs).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 9


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no runs"):
        comparison_figure([])
    with pytest.raises(ValueError, match="empty has none of train_loss"):
        comparison_figure([RunCurves("empty", run_curves([{"step": 1}]))])


def folder(path, *settings, records=RUN, tail=""):
    path.mkdir(parents=True)
    config = fashion_mnist.config()
    config = apply_settings(config, parse_settings(config, ["batch_size=8", "finetune.batch_size=16", *settings]))
    (path / "config.json").write_text(config.to_json())
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


@pytest.fixture
def drawn(monkeypatch):
    """The figures that a command draws, as (runs, x label)."""
    seen = []

    def keep(runs, *, xlabel):
        seen.append((list(runs), xlabel))
        return comparison_figure(runs, xlabel=xlabel)

    monkeypatch.setattr("vit_rs.analysis.curves.comparison_figure", keep)
    return seen


def test_plot_draws_what_the_folders_hold(tmp_path, monkeypatch, capsys, drawn):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "runs/a")
    folder(tmp_path / "runs/b", "optim.lr=1e-4", "seed=3", records=RUN[:9], tail='{"kind": "tr')
    assert main(["plot", "runs/a", "runs/b"]) == 0
    [([one, other], label)] = drawn
    assert label == "Step"
    assert (one.label, other.label) == ("a (seed 0, optim.lr 0.002)", "b (seed 3, optim.lr 0.0001)")
    assert [stage.name for stage in one.stages] == ["pretrain", "finetune"]
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[2] == 4
    table = capsys.readouterr().out.splitlines()
    assert table[0].split("  ")[0] == "run"
    assert table[2].split() == ["a", "10", "0.8000", "1.1000", "1.0000", "at", "8", "72.00%", "75.00%", "at", "8"]
    assert table[3].split() == ["b", "8", "0.2500", "1.5000", "1.5000", "at", "4", "50.00%", "50.00%", "at", "4"]
    assert table[-1] == "The figure is curves.png."


@pytest.mark.parametrize(
    ("x", "ends"),
    [
        pytest.param("step", (8, 10), marks=pytest.mark.slow),
        ("epoch", (2, 3)),
        pytest.param("images", (64, 64 + 32), marks=pytest.mark.slow),
        ("seconds", (8.5, 13)),
    ],
)
def test_plot_over_other_things(tmp_path, drawn, x, ends):
    run = folder(tmp_path / "a")
    for ending in ("svg", "pdf") if x == "epoch" else ("svg",):
        assert main(["plot", str(run), "--x", x, "--out", str(tmp_path / f"a.{ending}")]) == 0
        assert (tmp_path / f"a.{ending}").stat().st_size > 1000
    [one] = drawn[0][0]
    assert one.label == "a"
    assert tuple(stage.points["test_loss"][-1, 0] for stage in one.stages) == ends


def test_epochs_of_a_run_that_ends_within_one(tmp_path, drawn):
    steps = [of_train("pretrain", step, 1.0, epoch=-(-step // 4)) for step in (1, 4, 5, 6)]
    run = folder(tmp_path / "a", records=[*steps, of_test("pretrain", 6, 1.0, 0.5, epoch=2)])
    first = folder(tmp_path / "b", records=steps[:1])
    assert main(["plot", str(run), str(first), "--x", "epoch", "--out", str(tmp_path / "a.svg")]) == 0
    one, other = drawn[0][0]
    assert one.points("train_loss")[:, 0].tolist() == [0.25, 1, 1.25, 1.5]
    assert other.points("train_loss")[:, 0].tolist() == [1]  # nothing says how long an epoch is


def test_runs_of_one_name_are_told_apart(tmp_path, drawn):
    runs = [folder(tmp_path / name / "run", f"seed={seed}") for seed, name in enumerate("ab")]
    for path in runs:  # a run of another version, with a setting that is not known here
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "colour": "blue"}))
    assert main(["plot", *map(str, runs), "--out", str(tmp_path / "x.svg")]) == 0
    assert [run.label for run in drawn[0][0]] == ["a/run (seed 0)", "b/run (seed 1)"]


def test_what_cannot_be_drawn_is_explained(tmp_path, capsys):
    run = folder(tmp_path / "runs/a")
    empty = folder(tmp_path / "runs/empty", records=[])
    broken = folder(tmp_path / "runs/broken", records=RUN[:1])
    (broken / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    list_of = folder(tmp_path / "runs/list")
    (list_of / "metrics.jsonl").write_text("[]\n")
    nowhere = folder(tmp_path / "runs/process", "batch_of=process")
    out = str(tmp_path / "out.png")
    for arguments, parts in (
        ([tmp_path / "none"], ["none is no run's folder", "metrics.jsonl"]),
        ([tmp_path / "runs"], ["no run's folder", "there are runs in it: ", "runs/a, "]),
        ([run, empty], ["empty", "nothing to draw"]),
        ([broken], ["broken", "line 2 is not JSON"]),
        ([list_of], ["line 1: expected a JSON object"]),
        ([nowhere, "--x", "images"], ["how many images a step has"]),
        ([run, "--out", tmp_path / "out.bmpx"], ["unknown figure format 'bmpx'", "png"]),
        ([run, "--out", tmp_path / "no/out.png"], ["cannot write", "no does not exist"]),
    ):
        assert main(["plot", "--out", out, *map(str, arguments)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("vit-rs: error: ")
        for part in parts:
            assert part in message
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
