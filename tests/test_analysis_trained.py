"""Whole analyses: of a model that the default recipe trains, and of a large one within its memory."""

import json
import subprocess
import sys

import numpy as np
import pytest

from vit_rs.checkpoints import load_model
from vit_rs.cli import main

pytestmark = pytest.mark.slow


def test_a_trained_models_neighbours_are_most_similar(tmp_path):
    """The default recipe, cut to 12 of its 70 epochs: its position embeddings have learnt where patches stand."""
    run = tmp_path / "run"
    assert main(["train", "--out", str(run), "--set", "epochs=12", "--set", "finetune.epochs=0"]) == 0
    assert main(["analyze", str(run / "model.safetensors"), "--out", str(tmp_path / "look")]) == 0
    record = json.loads((tmp_path / "look" / "analysis.json").read_text())
    [table] = record["position_embeddings"]["tables"]
    # Independent embeddings of 64 values have cosines of deviation 0.125; the mean over 24 pairs has 0.026.
    assert table["neighbours"] - table["others"] > 0.1
    with np.load(tmp_path / "look" / "arrays" / "position_similarity.npz") as file:
        maps = file["input_similarity"]
    steps = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    distance = steps[:, None, :, None] + steps[None, :, None, :]
    means = [maps[distance == step].mean() for step in range(4)]
    assert means[0] == pytest.approx(1.0)
    assert means[1] > max(means[2:])  # of corners and edges, all alike, further ones are similar again
    layers = record["attention_distance"]["layers"]
    assert len(layers) == len(load_model(run / "model.safetensors").blocks)
    assert all(0 < distance < 28 for layer in layers for distance in layer["heads"])


def test_a_base_model_over_128_images_fits_2_gb(tmp_path):
    """ViT-B/16 at 224 pixels: the whole command, in a process of its own, on the CPU."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for number in range(128):
        pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image.fromarray(pixels).resize((320, 240)).save(tmp_path / f"{number:03}.jpg")
    code = (
        "import sys; from safetensors.torch import save_file; from vit_rs.models import create_model\n"
        "save_file(create_model('vit_base_patch16_224').state_dict(), sys.argv[1])"
    )
    weights = str(tmp_path / "b16.safetensors")
    subprocess.run([sys.executable, "-c", code, weights], check=True)  # not in this process: memory stays with it
    command = [sys.executable, "-m", "vit_rs", "analyze", weights, "--model", "vit_base_patch16_224"]
    command += ["--data", str(tmp_path), "--out", str(tmp_path / "look")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    record = json.loads((tmp_path / "look" / "analysis.json").read_text())
    assert record["attention_distance"]["images"] == 128
    print(done.stdout.splitlines()[-1])  # time and memory
    assert 0.5e9 < record["peak_memory_bytes"] < 2e9
