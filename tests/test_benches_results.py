"""The two parts of docs/results.md are written from finished runs, and leave each other alone."""

from __future__ import annotations

import importlib
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from vit_rs.data import sample_dataset
from vit_rs.recipes import recipe_config
from vit_rs.training import train
from vit_rs.training.values import apply_settings, parse_settings

BENCHES = Path(__file__).resolve().parent.parent / "benches"
TINY = ("model.embed_dim=16", "model.depth=1", "model.num_heads=2", "torch_threads=1", "epochs=1", "finetune.epochs=1")


@pytest.fixture(scope="module")
def load():
    """Import a module of benches/, whose files import each other as scripts do."""
    sys.path.insert(0, str(BENCHES))
    yield importlib.import_module
    sys.path.remove(str(BENCHES))


def test_a_part_of_the_page_leaves_the_other_one(load, tmp_path):
    write, page = load("results_page").write_part, tmp_path / "results.md"
    write(page, "sample", "# One\n\n")
    assert page.read_text() == "# One\n"
    write(page, "full", "# Two\n")
    write(page, "sample", "# Uno\n")
    assert page.read_text() == f"# Uno\n\n{load('results_page').BETWEEN}\n\n# Two\n"
    write(page, "full", "# Due")
    assert page.read_text() == f"# Uno\n\n{load('results_page').BETWEEN}\n\n# Due\n"


def idx(path: Path, values: np.ndarray) -> None:
    path.write_bytes(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


@pytest.mark.slow
def test_runs_are_beside_raw_pixels(load, tmp_path, monkeypatch, capsys):
    bench, data = load("full_results"), tmp_path / "data"
    data.mkdir()
    for split, name, count in (("train", "train", 400), ("test", "t10k", 100)):
        source = sample_dataset(split)
        idx(data / f"{name}-images-idx3-ubyte", source.images[:count, ..., 0])
        idx(data / f"{name}-labels-idx1-ubyte", np.asarray(source.targets[:count], np.uint8))
    folder = tmp_path / "run"
    config = recipe_config("fashion_mnist")
    asked = parse_settings(config, [*TINY, f"data.path={data}", "seed=3"])
    train(apply_settings(config, asked), folder, progress=False)
    monkeypatch.setitem(bench.PROBES, "linear", ("fewshot", "--shots", "20", "--seeds", "0"))
    page, figure = tmp_path / "docs" / "results.md", tmp_path / "docs" / "images" / "curves.png"
    page.parent.mkdir()
    page.write_text("# Before\n")
    arguments = ["full_results.py", "--data", str(data), "--out", str(page), "--curves", str(figure)]
    monkeypatch.setattr(sys, "argv", [*arguments, str(folder)])
    for _ in range(2):  # the second time from what is kept
        assert bench.main() == 0
        monkeypatch.setattr(bench, "vit_rs", lambda _: 1)
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert str(tmp_path) not in text
    assert figure.is_file()
    assert "](images/curves.png)" in text
    assert "vit-rs train fashion_mnist --data FOLDER \\\n  --seed 3 \\\n" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0]][-3:]
    assert [row[0] for row in rows] == ["pretrain", "finetune", "raw pixels"]
    assert [row[4] == "" for row in rows] == [False, False, True]
    for row in rows:
        for cell in row[-3:]:
            top1, error = map(float, cell.split(" ± "))
            assert 0 < error < 10
            assert 0 < top1 < 100
    (folder / "summary.json").unlink()
    with pytest.raises(SystemExit, match=r"run: expected a finished run, found no summary\.json"):
        bench.main()
