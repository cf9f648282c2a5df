"""A run with every option of the step at once, stopped without a last save, ends as one that was not: to the bit."""

from __future__ import annotations

import dataclasses
import json

import pytest

from vit_rs.recipes import fashion_mnist
from vit_rs.training import FinetuneConfig, OptimConfig, loop, train
from vit_rs.training.values import apply_settings, parse_settings

SETTINGS = (
    *("torch_threads=1", "model.embed_dim=16", "model.depth=2", "model.num_heads=2", "data.per_class=5"),
    *("model.dropout=0.1", "model.drop_path_rate=0.2"),
    *("batch_size=10", "accumulation=3", "precision=bfloat16", "steps=7", "log_every=5", "save_seconds=0"),
    *("data.normalize_on=device", "method.loss=sigmoid", "method.mixup=0.2", "method.label_smoothing=0.1"),
    *("optim.layer_decay=0.8", "optim.ema_decay=0.9", "optim.final_weight_decay=0.3", "optim.warmup_steps=2"),
    "evaluation.shots=0",
)


class Killed(BaseException):
    """Nothing in the run sees it coming, as nothing sees SIGKILL."""


def config(optimizer):
    base = fashion_mnist.config()
    finetune = FinetuneConfig(
        img_size=35,
        batch_size=10,
        steps=6,
        drop_path_rate=0.2,
        optim=OptimConfig(name=optimizer, lr=0.01, layer_decay=0.7, schedule="staircase", ema_decay=0.5),
    )
    return apply_settings(dataclasses.replace(base, finetune=finetune), parse_settings(base, SETTINGS))


def outcome(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{key: value for key, value in record.items() if key != "time"} for record in records]
    return timeless, *((folder / name).read_bytes() for name in ("model.safetensors", "model-35px.safetensors"))


# Steps that were done and not saved are done again: 5 steps are an epoch.
@pytest.mark.parametrize("optimizer", ["lars", pytest.param("sgd", marks=pytest.mark.slow)])
def test_killed_and_resumed_is_uninterrupted(tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr("vit_rs.training.job.measure", lambda *_a, **_k: 1e-3)  # a second, in each of four runs
    train(config(optimizer), tmp_path / "whole", progress=False)

    def train_step(self, images, labels, original=loop.StageLoop._train_step):
        original(self, images, labels)
        if (self.stage.name, self.step) == places[0]:
            del places[0]
            raise Killed

    folder, places = tmp_path / "stopped", [("pretrain", 3), ("finetune", 4)]
    with monkeypatch.context() as patch:
        patch.setattr(loop.StageLoop, "_train_step", train_step)
        while places:
            with pytest.raises(Killed):
                train(config(optimizer), folder, resume=folder.exists(), progress=False)
    train(config(optimizer), folder, resume=True, progress=False)
    assert outcome(folder) == outcome(tmp_path / "whole")
