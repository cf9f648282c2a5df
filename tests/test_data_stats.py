"""LoaderStats: what an epoch cost adds up, stands still when it is over, and the verdict names what held it up."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
import threading
import time

import numpy as np
import pytest
from PIL import Image

from vit_rs.data import ArrayDataset, EncodedDataset, ImageFolder, ImageLoader, LoaderStats, TarShards
from vit_rs.data.statistics import byte_text
from vit_rs.transforms import RandomCrop, RandomResizedCrop

RAW = {
    "epoch": 2,
    "images": 120,
    "bytes": 60_000_000,
    "read": 120_000_000,
    "decode": 600_000_000,
    "augment": 360_000_000,
    "emit": 120_000_000,
    "batches": 5,
    "delivered": 100,
    "wall": 1_000_000_000,
    "wait": 370_000_000,
    "busy": 1_960_000_000,
    "ready_time": 500_000_000,
    "ready": 1,
    "failures": [],
}


def stats(threads=2, cpus=4, reader="threads", **changes) -> LoaderStats:
    return LoaderStats.from_core({**RAW, **changes}, threads=threads, cpus=cpus, reader=reader)


def array(count=40) -> ArrayDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    return ArrayDataset(pixels, np.zeros(count, np.int64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ImageFolder:
    root = tmp_path_factory.mktemp("folder")
    (root / "a").mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((400, 300)).save(root / "a" / f"{number:02}.jpg")
    return ImageFolder(root)


def test_units():
    told = stats()
    assert (told.epoch, told.batches, told.images, told.seconds) == (2, 5, 100, 1.0)
    assert (told.images_per_second, told.bytes_read) == (100.0, 60_000_000)
    assert (told.read_us, told.decode_us, told.augment_us, told.emit_us) == (1000.0, 5000.0, 3000.0, 1000.0)
    assert (told.wait_seconds, told.wait_share, told.busy_share) == (0.37, 0.37, 0.98)
    assert (told.ready_batches, told.mean_ready_batches) == (1, 0.5)


BUSY = "The consumer waited 37% of the time and the 2 threads were busy 98%"
WAITING = (
    ", 25% of it waiting for the data set, which one Python thread reads: a faster data set helps, or files or shards "
    "in its place"
)
INFLATING = ", 75% of it inflating a gzipped shard or waiting for the thread that does: plain tars help"


@pytest.mark.parametrize(
    ("changes", "verdict", "measured", "meant"),
    [
        (
            {},
            "decode-bound",
            BUSY,
            ": decoding is the limit; more threads help, up to the 4 CPUs that this process may use.",
        ),
        (
            {"augment": 10**9, "cpus": 2},
            "decode-bound",
            BUSY,
            ": augmentation is the limit; each of the 2 usable CPUs has its thread: more CPUs or smaller images help.",
        ),
        (
            {"read": 1_100_000_000, "threads": 1, "busy": 990_000_000},
            "reading-bound",
            "The consumer waited 37% of the time and the thread was busy 99%",
            ", most of it reading: more threads than CPUs or a faster disk help.",
        ),
        (
            {"busy": 800_000_000},
            "decode-bound",
            "The consumer waited 37% of the time, but the 2 threads were busy 40%",
            ": a larger prefetch helps a consumer that asks in bursts.",
        ),
        (
            {"wait": 50_000_000, "busy": 600_000_000},
            "consumer-bound",
            "The consumer waited 5% of the time and the 2 threads were busy 30%",
            ": the loader is fast enough.",
        ),
        ({"batches": 1}, None, "A verdict", " needs two batches."),
        (
            {"threads": 1, "cpus": 1},
            "decode-bound",
            "The consumer waited 37% of the time and the thread was busy 100%",
            ": decoding is the limit; the one usable CPU has its thread: more CPUs or smaller images help.",
        ),
        # 10 % of the threads' time is reading.
        (
            {"reader": "data set"},
            "decode-bound",
            BUSY,
            ": decoding is the limit; more threads help, up to the 4 CPUs that this process may use.",
        ),
        (
            {"reader": "data set", "read": 360_000_000},
            "reading-bound",
            BUSY,
            WAITING + "; more threads do not.",
        ),
        (
            {"reader": "data set", "read": 360_000_000, "busy": 800_000_000},
            "reading-bound",
            "The consumer waited 37% of the time and the 2 threads were busy 40%",
            WAITING + ", or a larger prefetch for a consumer that asks in bursts; more threads do not.",
        ),
        (
            {"reader": "inflation", "read": 3_240_000_000},
            "reading-bound",
            BUSY,
            INFLATING + "; more threads do not.",
        ),
        (
            {"reader": "inflation"},
            "decode-bound",
            BUSY,
            ": decoding is the limit; more threads help, up to the 4 CPUs that this process may use.",
        ),
    ],
)
def test_verdict_and_advice(changes, verdict, measured, meant):
    told = stats(**changes)
    assert (told.verdict, told.advice) == (verdict, measured + meant)


def test_the_table():
    text = str(stats(failures=[f"{n}.jpg: bad" for n in range(5)]))
    lines = text.splitlines()
    assert lines[0] == "epoch 2        100 images in 5 batches, 1.00 s"
    assert "consumer       waited 0.37 s, 37% of the time" in lines
    assert "decode           5,000.0 us an image   50%" in lines
    assert "read in all    60 MB" in lines
    assert "failures       5" in lines
    assert [line.strip() for line in lines if ".jpg" in line] == ["0.jpg: bad", "1.jpg: bad", "2.jpg: bad"]
    assert lines[-2] == "verdict        decode-bound"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (38_500_000, "38.5 MB"), (2e12, "2 TB")]
)
def test_byte_text(count, text):
    assert byte_text(count) == text


def test_an_epoch_adds_up(folder):
    with ImageLoader(folder, RandomResizedCrop(32), batch_size=5, num_threads=2, on_error="skip") as loader:
        before = loader.stats()
        assert (before.images, before.seconds, before.verdict, before.wait_share) == (0, 0.0, None, 0.0)
        assert "none yet" in str(before)
        for _ in range(2):
            for _ in loader:
                pass
        told = loader.stats()
        assert told == loader.stats(), "an ended epoch's figures stand still"
    assert loader.stats() == told
    assert (told.epoch, told.batches, told.images) == (1, 5, 24)
    assert told.bytes_read == sum(os.path.getsize(path) for path, _ in folder.samples)
    assert told.images_per_second == pytest.approx(24 / told.seconds)
    stages = (told.read_us, told.decode_us, told.augment_us, told.emit_us)
    assert all(stage > 0 for stage in stages)
    # Threads do little beside their stages, but on a busy machine anything may happen between two looks at the clock.
    assert sum(stages) * 24 <= told.busy_share * 2 * told.seconds * 1e6 * (1 + 1e-9)
    assert 0 <= told.wait_share <= 1
    assert 0 < told.busy_share <= 1
    assert 0 <= told.mean_ready_batches <= 2
    assert (told.ready_batches, told.threads, told.failures) == (0, 2, ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        told.images = 0


def test_an_epoch_left_early_ends_with_its_last_batch():
    with ImageLoader(array(), RandomCrop(8), batch_size=4, num_threads=1) as loader:
        batches = iter(loader)
        next(batches)
        next(batches)
        while loader.stats().ready_batches < 2:
            time.sleep(0.001)
        first = loader.stats()
        time.sleep(0.01)
        assert loader.stats() == first
        assert (first.batches, first.images, first.ready_batches) == (2, 8, 2)
        assert first.seconds < 10


def test_stats_from_another_thread_while_batches_are_made():
    counts = []
    done = threading.Event()
    with ImageLoader(array(400), RandomCrop(8), batch_size=3, num_threads=2) as loader:

        def ask():
            while not done.is_set():
                counts.append(loader.stats().images)

        asking = threading.Thread(target=ask)
        batches = iter(loader)
        asking.start()
        for _ in batches:
            pass
        done.set()
        asking.join()
        assert loader.stats().images == 400
    assert counts == sorted(counts)


def test_a_consumer_that_never_waits_is_the_limit(folder):
    with ImageLoader(folder, RandomResizedCrop(32), batch_size=4, num_threads=2) as loader:
        batches = iter(loader)
        for _ in range(6):
            while not loader.stats().ready_batches:
                time.sleep(0.002)
            next(batches)
        assert next(batches, None) is None
        told = loader.stats()
    assert (told.verdict, told.batches) == ("consumer-bound", 6)
    assert told.mean_ready_batches > 0


def test_decoding_is_the_limit_of_files_in_the_page_cache(folder):
    with ImageLoader(folder, RandomResizedCrop(224), batch_size=4, num_threads=1) as loader:
        for _ in range(2):  # the first epoch may meet a cold disk
            for _ in loader:
                pass
        told = loader.stats()
    assert told.verdict == "decode-bound"
    assert "is the limit" in told.advice or "prefetch" in told.advice


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_reading_is_the_limit_of_a_slow_disk(tmp_path):
    encoded = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(encoded, "JPEG")
    (tmp_path / "a").mkdir()
    pipes = [tmp_path / "a" / f"{number}.jpg" for number in range(6)]
    for pipe in pipes:
        os.mkfifo(pipe)

    def disk():
        for pipe in pipes:
            with pipe.open("wb") as file:
                time.sleep(0.03)
                file.write(encoded.getvalue())

    serving = threading.Thread(target=disk, daemon=True)
    serving.start()
    with ImageLoader(ImageFolder(tmp_path), RandomCrop(16), batch_size=2, num_threads=1) as loader:
        for _ in loader:
            pass
        told = loader.stats()
    serving.join(timeout=10)
    assert told.verdict == "reading-bound"
    assert told.read_us >= 30_000


def test_a_slow_data_set_is_the_limit():
    encoded = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(encoded, "JPEG")

    class Slow:
        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> tuple[bytes, int]:
            time.sleep(0.004)
            return encoded.getvalue(), index

    with ImageLoader(EncodedDataset(Slow()), RandomCrop(16), batch_size=4, num_threads=2) as loader:
        for _ in loader:
            pass
        told = loader.stats()
    assert (told.verdict, told.reader) == ("reading-bound", "data set")
    assert "a faster data set helps" in told.advice


@pytest.mark.parametrize(("ending", "mode", "reader"), [("tar", "w", "threads"), ("tar.gz", "w:gz", "inflation")])
def test_who_reads_shards(tmp_path, ending, mode, reader):
    encoded = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(encoded, "JPEG")
    for shard in range(2):
        # Only the last one is gzipped: content tells, not the name.
        with tarfile.open(tmp_path / f"{shard}.{ending}", mode if shard else "w") as file:
            for name, content in (("0.jpg", encoded.getvalue()), ("0.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    with ImageLoader(TarShards(str(tmp_path / f"{{0..1}}.{ending}")), RandomCrop(16), batch_size=1) as loader:
        assert loader.stats().reader == reader


def test_the_share_of_the_cpus(monkeypatch):
    monkeypatch.setattr("vit_rs.data.threads.usable_cpus", lambda: 6)
    monkeypatch.setattr("vit_rs.data.explanation.usable_cpus", lambda: 6)
    for processes, cpus, told in (
        ("1", 6, "on 6 usable CPUs;"),
        ("3", 2, "on 2 of 6 usable CPUs, this process's share;"),
    ):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        with ImageLoader(array(), RandomCrop(8), batch_size=4, num_threads=5) as loader:
            assert loader.stats().cpus == cpus
            assert f"5 in Rust, {told}" in loader.explain()
