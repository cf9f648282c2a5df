"""The benches give right results: every variant on small inputs, without a clock; the report has all its figures."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHES = Path(__file__).resolve().parent.parent / "benches"
MODULES = ("bench_patchify", "bench_resample")


@pytest.fixture(scope="module")
def load():
    """Import a module of benches/, whose files import each other as scripts do."""
    sys.path.insert(0, str(BENCHES))
    yield importlib.import_module
    sys.path.remove(str(BENCHES))


@pytest.mark.parametrize("module", MODULES)
def test_every_variant_is_right(load, module):
    comparison, bench = load("comparison"), load(module)
    compared = bench.comparisons(**bench.QUICK)
    assert len(compared) > 4
    for case in comparison.cases(compared):
        if case.threads == 1 and not case.variant.compiles:
            case.comparison.check(case.variant, case.variant.prepare())


def test_a_wrong_variant_is_caught(load):
    out = torch.zeros(3)
    right = load("operators").Operator(
        table="table", name="name", expected=lambda: torch.ones(3), variants=(), result="into a buffer"
    )
    fresh = replace(right, result="a fresh result")
    wide = replace(fresh, expected=lambda: torch.ones(3, dtype=torch.float64))
    variant = load("comparison").Variant("it", lambda: None)
    right.check(variant, lambda: out.fill_(1))
    fresh.check(variant, lambda: torch.ones(3))
    for compared, run, message in [
        (right, lambda: out, "it: Tensor-likes are not equal"),
        (right, lambda: torch.ones(3), "it: expected into a buffer"),
        (fresh, lambda: out.fill_(1), "it: expected a fresh result"),
        (fresh, lambda: torch.ones(3, 2)[:, 0], "it: the result is not contiguous"),
        (wide, lambda: torch.ones(3), "it: The values for attribute 'dtype' do not match"),
    ]:
        with pytest.raises(AssertionError, match=message):
            compared.check(variant, run)


def test_what_is_not_installed_is_left_out(load):
    comparison = load("comparison")
    variants = [
        comparison.Variant("here", lambda: None, needs=("torch", "torch.nn")),
        comparison.Variant("not here", lambda: None, needs=("torch", "no_such_module")),
        comparison.Variant("nor here", lambda: None, needs=("no_such_module.part",)),
    ]
    compared = load("operators").Operator(
        table="table", name="name", expected=lambda: None, variants=tuple(variants), result="a fresh result"
    )
    assert {case.variant.name for case in comparison.cases([compared])} == {"here"}


def test_models_take_turns_and_are_compared_first(load, monkeypatch):
    bench = load("bench_models")
    compared = bench.comparisons(**bench.QUICK)
    assert [comparison.table for comparison in compared] == [bench.TRAINING, bench.INFERENCE]
    for comparison in compared:
        seconds = [variant.prepare()() for variant in comparison.variants]
        assert [len(rounds) for rounds in seconds] == [3, 3]
        assert min(map(min, seconds)) > 0
    agreed = bench.pair

    def disagreeing(*arguments):
        ours, theirs = agreed(*arguments)
        ours.blocks[1].norm1.bias.data.add_(0.1)
        return ours, theirs

    monkeypatch.setattr(bench, "pair", disagreeing)
    bench.measured.cache_clear()
    with pytest.raises(AssertionError, match="logits: Tensor-likes are not close"):
        compared[0].variants[0].prepare()()


def test_the_clock_finds_what_is_the_loops(load, monkeypatch):
    """A step of ten seconds: one in the loop, three forward, four backward, two in the optimizer."""
    bench, now = load("bench_loop"), [0.0]

    def lasting(seconds, result=None):
        now[0] += seconds
        return result

    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    weights = torch.ones(2, requires_grad=True)
    weights.register_hook(lambda gradient: lasting(4, gradient))
    optimizer = torch.optim.SGD([weights])
    with bench.Clock() as clock:
        loss_of = clock.forward(lambda: lasting(3, weights.sum()))
        for _ in range(4):
            now[0] += 1
            loss_of().backward()
            optimizer.step(lambda: lasting(2))
    assert clock.last(2) == ([10.0, 10.0], [pytest.approx(0.1)] * 2)
    assert torch.Tensor.backward.__module__ == "torch._tensor"
    optimizer.step(lambda: lasting(2))
    assert clock.last(2).shares == [pytest.approx(0.1)] * 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_loops_train_and_are_timed(load):
    bench, comparison = load("bench_loop"), load("comparison")
    compared = bench.comparisons(**bench.QUICK)
    before = torch.get_num_threads()
    try:
        for case in comparison.cases(compared):
            run = case.variant.prepare()
            case.comparison.check(case.variant, run)
            assert all(0 < value < (1 if case.comparison.unit == "% of a step" else 60) for value in run())
    finally:
        torch.set_num_threads(before)
    names = {(each.table, each.name) for each in bench.comparisons()}
    assert names == {name for goal in load("suites").TRAINING.goals for name in goal.comparisons} | {bench.LOOP_SPEED}
    shares, seconds = (load("report").Timing("ours", each.unit, [2e4], [2e4]) for each in bench.comparisons())
    assert (shares.median, seconds.median) == ("2.00", "50.0")


def test_ratios_of_rounds_have_an_interval(load):
    report = load("report")
    own, peer = [1.0] * 15, [0.9, 1.1] * 7 + [1.0]
    timings = {
        name: report.Timing(role, "images/s", [1.0], rounds, paired=True)
        for name, role, rounds in (("vit_rs", "ours", own), ("timm", "peer", peer))
    }
    low, middle, high = report.ratios(timings, ["timm"])
    assert (low, middle, high) == (0.9, 1.0, 1.1)
    assert report.interval([2.0] * 15) == [2.0, 2.0, 2.0]


@pytest.fixture
def runs(load):
    """Made-up results of two passes, in the full sizes' names: vit_rs takes 2 us, everything else 3 and then 5."""
    cases = [case for module in MODULES for case in load("comparison").cases(load(module).comparisons())]
    found = []
    for peer in (3e-6, 5e-6):
        found.append([])
        for case in cases:
            value = (2e-6 if case.variant.role == "ours" else peer) * case.comparison.images
            info = {"table": case.comparison.table, "comparison": case.comparison.name, "variant": case.variant.name}
            info |= {"role": case.variant.role, "threads": case.threads, "images": case.comparison.images}
            info |= {"unit": case.comparison.unit, "paired": case.comparison.paired}
            found[-1].append({"extra_info": info, "stats": {"data": [value, value]}})
    return found


def test_the_report_has_every_figure(load, runs):
    report, suite = load("report"), load("suites").OPERATORS
    timings = report.collect(runs)
    page = report.page(suite, timings, ["- a machine"], quick=False)
    assert "| vit_rs | 2.00 (2.00 - 2.00) |  |" in page
    assert "| timm | 4.00 (3.00 - 5.00) | 2.00 (1.50 - 2.50) |" in page
    assert "not measured" not in page
    assert page.count("| reached |\n") == sum(goal.asked <= 2 for goal in suite.goals) > 2
    assert page.count("| **missed** |") == sum(goal.asked > 2 for goal in suite.goals) > 2
    assert "To no peer in this run." in page
    rows = [line for line in report.readme_lines(suite, timings) if line.startswith("| ")]
    assert len(rows) == 2 + len(suite.rows)
    assert "timm: 4.00 (2.00)" in rows[-1]


def test_the_report_lists_losses(load, runs):
    report = load("report")
    [timm] = [
        bench
        for bench in runs[1]
        if bench["extra_info"]["variant"] == "timm"
        and bench["extra_info"]["comparison"].startswith("37 x 37 -> 74 x 74")
        and bench["extra_info"]["table"].endswith("bicubic, antialiased")
        and bench["extra_info"]["threads"] == 1
    ]
    timm["stats"]["data"] = [0.2e-6]  # ratios 1.5 and 0.1: their median is 0.8
    page = report.page(load("suites").OPERATORS, report.collect(runs), [], quick=False)
    lost = page.partition("## Where vit-rs loses")[2]
    name = "Position embeddings, bicubic, antialiased: 37 x 37 -> 74 x 74, D = 768"
    assert f"| {name} | 1 | timm | 0.800 (0.100 - 1.50) |" in lost
    assert lost.count("\n| ") == 3


def test_readme_has_a_place_for_each_table(load):
    report = load("report")
    text = report.README.read_text(encoding="utf-8")
    for suite in load("suites").SUITES.values():
        if not suite.rows:
            continue
        before, after = report.split_readme(text, suite)
        assert before.endswith(suite.begin + "\n")
        assert after.startswith("\n" + suite.end)
    with pytest.raises(SystemExit, match=r"README\.md: expected <!-- loading:begin -->"):
        report.split_readme("no marks", load("suites").LOADING)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--passes", "0"], "--passes: expected at least 1, got 0"),
        (["speed"], "expected operators or loading or models or training, got speed"),
        (["operators", "--only", "bench_loader"], "expected some of bench_patchify, bench_resample, got bench_loader"),
        (["--only", "bench_loader"], "a part must not replace a whole page; give --out too"),
    ],
)
def test_the_report_refuses(load, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
    with pytest.raises(SystemExit):
        load("report").main()
    assert message in capsys.readouterr().err
