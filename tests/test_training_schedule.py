"""Learning rate and weight decay: over all steps against their closed forms, and as a run's records say them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from vit_rs.exceptions import ConfigError
from vit_rs.recipes import fashion_mnist
from vit_rs.training import train
from vit_rs.training.metrics import read_metrics
from vit_rs.training.schedule import learning_rate, weight_decay
from vit_rs.training.sources import open_sources
from vit_rs.training.stages import build_stages
from vit_rs.training.values import apply_settings, parse_settings

STEPS = 100


def closed_form(decay, *, peak, final, warmup):
    """Return the rates of all steps, in numpy."""
    steps = np.arange(STEPS)
    progress = (steps - warmup) / (STEPS - warmup)
    rates = {
        "cosine": final + (peak - final) * (1 + np.cos(np.pi * progress)) / 2,
        "linear": final + (peak - final) * (1 - progress),
        "staircase": peak * 0.1 ** np.searchsorted([0.3 * STEPS, 0.6 * STEPS, 0.9 * STEPS], steps, side="right"),
        "constant": np.full(STEPS, peak),
    }[decay]
    return np.where(steps < warmup, peak * (steps + 1) / (warmup + 1), rates)


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("decay", ["cosine", "linear", "staircase", "constant"])
def test_learning_rate_follows_the_closed_form(decay, warmup):
    rates = [learning_rate(step, STEPS, peak=2.0, final=0.5, warmup_steps=warmup, decay=decay) for step in range(STEPS)]
    np.testing.assert_allclose(rates, closed_form(decay, peak=2.0, final=0.5, warmup=warmup), rtol=1e-12)
    assert rates[warmup] == 2.0


def test_the_staircase_falls_in_exact_places():
    rates = [learning_rate(step, 10_000, peak=1.0, decay="staircase") for step in range(10_000)]
    falls = [step for step in range(1, 10_000) if rates[step] < rates[step - 1]]
    assert falls == [3000, 6000, 9000]
    assert rates[9999] == 1e-3


def test_the_fall_ends_at_the_final_rate():
    assert learning_rate(STEPS, STEPS, peak=1.0, final=0.2, decay="linear") == pytest.approx(0.2)
    assert learning_rate(STEPS, STEPS, peak=1.0, final=0.2, decay="cosine") == pytest.approx(0.2)


def test_a_warm_up_longer_than_the_stage_only_rises():
    rates = [learning_rate(s, 5, peak=1.0, warmup_steps=20) for s in range(5)]
    assert rates == sorted(rates)
    assert max(rates) < 1.0


@pytest.mark.parametrize(("start", "final"), [(0.04, 0.4), (0.3, 0.0)])
def test_weight_decay_follows_half_a_cosine(start, final):
    decays = [weight_decay(step, STEPS, start=start, final=final) for step in range(STEPS)]
    # DINO's formula, in its own words: final + (base - final) (1 + cos(pi i / n)) / 2.
    expected = [final + 0.5 * (start - final) * (1 + math.cos(math.pi * step / STEPS)) for step in range(STEPS)]
    np.testing.assert_allclose(decays, expected, rtol=1e-12)
    assert decays[0] == pytest.approx(start, rel=1e-12)


def settings(*changes):
    config = fashion_mnist.config()
    tiny = (
        *("torch_threads=1", "model.embed_dim=8", "model.depth=1", "model.num_heads=1", "data.per_class=4"),
        *("batch_size=8", "finetune.epochs=0", "evaluation.shots=0", "log_every=1"),
    )
    return apply_settings(config, parse_settings(config, (*tiny, *changes)))


@pytest.fixture(scope="module")
def stage_of():
    sources = open_sources(settings().data)
    return lambda *changes: build_stages(settings(*changes), sources)[0]


def test_the_rate_follows_the_batch(stage_of):
    stage = stage_of("optim.lr=0.1", "optim.lr_batch=32", "optim.final_lr=0.02", "epochs=4", "optim.warmup_epochs=0")
    rates = [stage.learning_rate(step) for step in range(stage.steps + 1)]
    assert rates[0] == pytest.approx(0.1 * 8 / 32)
    assert rates[-1] == pytest.approx(0.02 * 8 / 32)


def test_a_warm_up_is_set_in_epochs_or_steps(stage_of):
    # 5 steps an epoch.
    rates = [stage_of("epochs=4", "optim.warmup_epochs=1.5").learning_rate(step) for step in range(20)]
    assert rates.index(max(rates)) == 8
    both = stage_of("epochs=4", "optim.warmup_epochs=1.5", "optim.warmup_steps=3")
    assert max(range(20), key=both.learning_rate) == 3


def test_a_stage_of_steps_says_its_epochs(stage_of):
    stage = stage_of("epochs=9", "steps=12")
    assert (stage.steps, stage.steps_per_epoch, stage.epochs) == (12, 5, 3)
    assert stage_of("epochs=2").steps == 10


def test_a_run_s_records_trace_both_schedules(tmp_path):
    changes = ("steps=12", "optim.lr=0.1", "optim.lr_batch=16", "optim.final_lr=0.01", "optim.warmup_steps=3")
    decays = ("optim.weight_decay=0.04", "optim.final_weight_decay=0.4", "optim.layer_decay=0.5")
    train(settings(*changes, *decays), tmp_path / "run", progress=False)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    trained = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in trained] == list(range(1, 13))
    assert [record["epoch"] for record in trained] == [1] * 5 + [2] * 5 + [3] * 2
    for step, record in enumerate(trained):
        rising, falling = 0.05 * (step + 1) / 4, 0.005 + 0.045 * (1 + math.cos(math.pi * (step - 3) / 9)) / 2
        assert record["learning_rate"] == pytest.approx(rising if step < 3 else falling, rel=1e-12)
        assert record["weight_decay"] == pytest.approx(0.4 - 0.36 * (1 + math.cos(math.pi * step / 12)) / 2, rel=1e-12)
        shares = record["time"]
        assert 0.0 <= shares["wait_share"] <= shares["loop_share"] <= 1.0
    # The stage is tested where it ends, in the middle of its third epoch.
    last = [record for record in records if record["kind"] == "test"][-1]
    assert (last["step"], last["epoch"]) == (12, 3)
    result = records[-1]
    assert (result["kind"], result["steps"], result["epochs"]) == ("result", 12, 3)


def test_the_plan_counts_steps_where_they_are_set(tmp_path, capsys):
    train(settings("steps=1"), tmp_path / "run")
    assert "; 1 step at 28 px; " in capsys.readouterr().err


def test_more_parts_than_images_are_refused():
    config = dataclasses.replace(settings(), accumulation=9)
    with pytest.raises(ConfigError, match=r"accumulation: 9 parts cannot be cut of a batch of 8 images"):
        config.validated()
