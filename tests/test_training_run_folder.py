"""Run folders and records: made last, locked, removed whole; cut back to the checkpoint."""

from __future__ import annotations

import json
import os

import pytest

from vit_rs.exceptions import CheckpointError, ConfigError
from vit_rs.recipes import fashion_mnist
from vit_rs.training.metrics import MetricsLog, read_metrics
from vit_rs.training.run_folder import RunFolder, newest_unfinished, read_config

CONFIG = fashion_mnist.config().validated()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_folders_are_numbered(here):
    for number in (1, 2):
        with RunFolder.create(CONFIG, None) as folder:
            assert folder.path.as_posix() == f"runs/fashion_mnist-00{number}"
    (here / "runs/fashion_mnist-041").mkdir()
    (here / "runs/fashion_mnist-old").mkdir()
    with RunFolder.create(CONFIG, None) as folder:
        assert folder.path.name == "fashion_mnist-042"
    assert read_config(folder.path) == CONFIG


def test_a_folder_that_is_not_empty_is_in_use(here):
    (here / "a").mkdir()
    (here / "a/file").touch()
    with pytest.raises(ConfigError, match="a is in use: it is not empty; choose another --out"):
        RunFolder.create(CONFIG, here / "a")
    assert names(here / "a") == ["file"]
    with RunFolder.create(CONFIG, here / "b"):
        pass
    with pytest.raises(ConfigError, match=r"b is in use: it holds a run; .*--resume --out"):
        RunFolder.create(CONFIG, here / "b")
    with pytest.raises(NotADirectoryError):
        RunFolder.create(CONFIG, here / "a/file")


@pytest.mark.skipif(os.name != "posix", reason="folders are locked by flock")
def test_one_process_at_a_time(here):
    with (
        RunFolder.create(CONFIG, here / "a"),
        pytest.raises(ConfigError, match="a is in use: another process is running in it"),
    ):
        RunFolder.reopen(here / "a")
    with RunFolder.reopen(here / "a") as folder:
        assert not folder.is_finished


def test_discard_removes_what_the_run_made(here):
    (here / "empty").mkdir()
    for out in (here / "x/y/z", here / "empty", None):
        folder = RunFolder.create(CONFIG, out)
        (folder.path / "figures").mkdir()
        (folder.path / "figures/a.png").touch()
        folder.discard()
    assert names(here) == ["empty"]
    assert names(here / "empty") == []


def test_discard_leaves_other_runs(here):
    first = RunFolder.create(CONFIG, None)
    second = RunFolder.create(CONFIG, None)
    second.close()
    first.discard()
    assert names(here / "runs") == ["fashion_mnist-002"]


def test_the_newest_unfinished_run_is_found(here):
    with pytest.raises(ConfigError, match="no unfinished run under runs"):
        newest_unfinished()
    for number, name in enumerate(("c", "a", "b")):
        with RunFolder.create(CONFIG, here / "runs" / name) as folder:
            os.utime(folder.path / "config.json", (number, number))
    assert newest_unfinished().name == "b"
    (here / "runs/b/summary.json").touch()
    assert newest_unfinished().name == "a"


def test_a_folder_without_a_run_cannot_be_resumed(here):
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        RunFolder.reopen(here / "none")
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        read_config(here)


def test_records_are_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(3):
        log.append({"step": step})
    log.sync()
    log.close()
    with path.open("a") as file:
        file.write('{"step": 3, "lo')  # torn by a kill
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2]
    log = MetricsLog(path, keep=2)
    assert log.count == 2
    log.append({"step": 9})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 9]


def test_missing_records_are_noticed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"st')
    with pytest.raises(CheckpointError, match="expected 2 records as at the checkpoint, got 1"):
        MetricsLog(path, keep=2)
