"""Lists and Python data sets as sources: bytes and paths, exceptions at their batch, a thread that never stays."""

from __future__ import annotations

import gc
import io
import os
import re
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

from vit_rs.data import EncodedDataset, ImageLoader
from vit_rs.exceptions import DecodeError
from vit_rs.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop

AUGMENT = Compose([RandomResizedCrop(16), RandomHorizontalFlip()])


def encoded(value: int) -> bytes:
    file = io.BytesIO()
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 256, (24, 20 + value % 5, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


class Stored(Dataset):
    """Images by number; `broken` ones raise."""

    def __init__(self, count: int = 23, broken: tuple[int, ...] = ()) -> None:
        self.images = [encoded(number) for number in range(count)]
        self.broken = broken
        self.asked: list[int] = []
        self.threads: set[int] = set()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        self.asked.append(index)
        self.threads.add(threading.get_ident())
        if index in self.broken:
            raise KeyError(f"no {index} in the archive")
        return self.images[index], index % 3


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[tuple[str, int]]:
    root = tmp_path_factory.mktemp("files")
    for number in range(23):
        (root / f"{number}.png").write_bytes(encoded(number))
    return [(str(root / f"{number}.png"), number % 3) for number in range(23)]


def batches(source, **options) -> list[tuple[torch.Tensor, ...]]:
    options = {"batch_size": 4, "shuffle": True, "seed": 1, "return_index": True, "num_threads": 2, **options}
    with ImageLoader(source, AUGMENT, **options) as loader:
        return [tuple(tensor.clone() for tensor in batch) for batch in loader]


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


def feeders() -> int:
    return sum(thread.name == "vit-rs-feeder" for thread in threading.enumerate())


def gone(condition, seconds: float = 10) -> bool:
    for _ in range(int(seconds / 0.01)):
        if condition():
            return True
        threading.Event().wait(0.01)
    return False


def test_every_kind_of_source_gives_the_same_batches(paths):
    reference = batches(paths)
    labels = torch.cat([batch[1] for batch in reference])
    assert torch.equal(labels, torch.cat([batch[2] for batch in reference]) % 3)
    mixed = [
        (encoded(number), label) if number % 2 else (Path(path), label) for number, (path, label) in enumerate(paths)
    ]
    assert same(batches(mixed), reference)
    for threads, prefetch in ((1, 1), (2, 2), (5, 4)):
        assert same(batches(EncodedDataset(Stored()), num_threads=threads, prefetch=prefetch), reference)


def test_lists_name_their_images(paths, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    samples = [paths[0], (encoded(1), 1), (b"nothing", np.int64(2)), (tmp_path / "bad.jpg", 0)]
    loader = ImageLoader(samples[:3], AUGMENT, batch_size=3)
    with loader, pytest.raises(DecodeError, match=r"^image 2: no known image format"):
        next(iter(loader))
    loader = ImageLoader(samples[3:], AUGMENT, batch_size=1)
    with loader, pytest.raises(DecodeError, match=re.escape(f"{tmp_path / 'bad.jpg'}: no known image format")):
        next(iter(loader))
    with ImageLoader(samples, AUGMENT, batch_size=4, on_error="skip") as loader:
        assert next(iter(loader))[1].tolist() == [0, 1]
    loader = ImageLoader([("no/such/file.jpg", 0)], AUGMENT, batch_size=1)
    with loader, pytest.raises(FileNotFoundError, match=re.escape("no/such/file.jpg")):
        next(iter(loader))
    with ImageLoader(Subset(samples, [1, 0]), AUGMENT, batch_size=2) as loader:
        assert next(iter(loader))[1].tolist() == [1, 0]
    with ImageLoader([], AUGMENT, batch_size=1) as loader:
        assert list(loader) == []


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        (7, "sample 1 must be (path or bytes, label), got int"),
        (("a", "b", "c"), "sample 1 must be (path or bytes, label), got tuple"),
        (("a", "b"), "sample 1 must be (path or bytes, label as an integer), got (str, str)"),
        ((3, 4), "sample 1 must be (path or bytes, label as an integer), got (int, int)"),
    ],
)
def test_wrong_lists(sample, text):
    with pytest.raises(TypeError, match=re.escape(text)):
        ImageLoader([("a", 0), sample], AUGMENT, batch_size=1)


def test_bytes_outlive_the_list():
    samples = [(encoded(number), number) for number in range(8)]
    expected = batches([(bytes(bytearray(data)), label) for data, label in samples])
    with ImageLoader(samples, AUGMENT, batch_size=4, shuffle=True, seed=1, return_index=True) as loader:
        samples.clear()
        gc.collect()
        assert same([tuple(batch) for batch in loader], expected)


def test_a_data_set_is_asked_in_order_by_one_thread():
    stored = Stored()
    with ImageLoader(EncodedDataset(stored), AUGMENT, batch_size=4, shuffle=True, return_index=True) as loader:
        for _ in range(2):
            stored.asked.clear()
            order = torch.cat([indices for _, _, indices in loader]).tolist()
            assert stored.asked == order
    assert len(stored.threads) == 1
    assert threading.get_ident() not in stored.threads


def test_a_data_set_is_asked_ahead_by_the_prefetched_batches_only():
    stored = Stored(count=23)
    with ImageLoader(EncodedDataset(stored), AUGMENT, batch_size=4, prefetch=2, num_threads=1) as loader:
        batch = iter(loader)
        next(batch)
        assert gone(lambda: len(stored.asked) >= 12)
        threading.Event().wait(0.05)
        assert len(stored.asked) == 12


def test_subsets_and_combined_data_sets():
    both = EncodedDataset(ConcatDataset([Stored(3), Stored(5)]))
    with ImageLoader(Subset(both, [7, 0, 3]), AUGMENT, batch_size=3, return_index=True) as loader:
        _, labels, indices = next(iter(loader))
    assert labels.tolist() == [1, 0, 0]
    assert indices.tolist() == [0, 1, 2]
    image, label = both[4]
    with Image.open(io.BytesIO(encoded(1))) as expected:
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))
    assert label == 1
    assert repr(both) == "EncodedDataset(ConcatDataset: 8 images)"


@pytest.mark.parametrize(
    "convert",
    [bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8), lambda data: torch.tensor(list(data)).byte()],
)
def test_bytes_of_every_kind(convert):
    samples = [(convert(encoded(number)), np.int32(number)) for number in range(3)]
    assert same(batches(EncodedDataset(samples)), batches([(encoded(number), number) for number in range(3)]))


def test_an_exception_is_raised_at_its_batch_with_its_type_and_traceback():
    loader = ImageLoader(EncodedDataset(Stored(broken=(6,))), AUGMENT, batch_size=4, prefetch=3, return_index=True)
    with loader:
        iteration = iter(loader)
        assert next(iteration)[2].tolist() == [0, 1, 2, 3]
        with pytest.raises(KeyError, match="no 6 in the archive") as caught:
            next(iteration)
        frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert "__getitem__" in frames
        if sys.version_info >= (3, 11):
            assert caught.value.__notes__ == ["raised for sample 6 of the data set"]
        # The next iteration is another epoch, and the same error.
        with pytest.raises(KeyError):
            list(loader)


def test_bad_samples_of_a_data_set_are_skipped_or_substituted():
    broken = EncodedDataset(Stored(broken=(2, 5)))
    with ImageLoader(broken, AUGMENT, batch_size=4, on_error="skip", return_index=True) as loader:
        assert [indices.tolist() for _, _, indices in loader][:2] == [[0, 1, 3], [4, 6, 7]]
        assert loader.stats().failures == (
            "sample 2: KeyError: 'no 2 in the archive'",
            "sample 5: KeyError: 'no 5 in the archive'",
        )
    results = [batches(broken, on_error="substitute", num_threads=threads) for threads in (1, 4)]
    assert same(*results)
    indices = torch.cat([batch[2] for batch in results[0]])
    assert len(indices) == 23
    assert not {2, 5} & set(indices.tolist())
    assert torch.equal(torch.cat([batch[1] for batch in results[0]]), indices % 3)


@pytest.mark.parametrize("error", [SystemExit, MemoryError])
@pytest.mark.parametrize("on_error", ["raise", "skip", "substitute"])
def test_what_is_no_bad_sample_is_always_raised(error, on_error):
    class Ends(Stored):
        def __getitem__(self, index: int):
            if index == 5:
                raise error("told by the data set")
            return super().__getitem__(index)

    options = {"batch_size": 4, "on_error": on_error, "return_index": True}
    with ImageLoader(EncodedDataset(Ends(broken=(2,) if on_error != "raise" else ())), AUGMENT, **options) as loader:
        iteration = iter(loader)
        assert len(next(iteration)[2]) == (3 if on_error == "skip" else 4)
        with pytest.raises(error, match="told by the data set"):
            next(iteration)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (5, "sample 0 must be (encoded image, label), got int"),
        ((b"", 1, 2), "sample 0 must be (encoded image, label), got tuple"),
        ((b"", "cat"), "the label of sample 0 must be an integer, got str"),
        (("x.jpg", 1), "the image of sample 0 must be encoded bytes or a 1-d u8 array, got str"),
        ((np.zeros((2, 2), np.uint8), 1), "got ndarray of uint8 and shape (2, 2)"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_wrong_items_are_errors_whatever_on_error_says(item, text, on_error):
    loader = ImageLoader(EncodedDataset([item]), AUGMENT, batch_size=1, on_error=on_error)
    with loader, pytest.raises(TypeError, match=re.escape(text)):
        list(loader)


def test_wrong_data_sets():
    with pytest.raises(TypeError, match="a map-style data set has __len__, generator does not"):
        EncodedDataset(number for number in range(3))


def test_undecodable_bytes_name_the_sample():
    loader = ImageLoader(EncodedDataset([(b"x", 0)]), AUGMENT, batch_size=1)
    with loader, pytest.raises(DecodeError, match=r"^sample 0: no known image format"):
        next(iter(loader))


def test_an_abandoned_epoch_leaves_nothing_behind():
    slow = threading.Event()

    class Slow(Stored):
        def __getitem__(self, index: int):
            if index == 9:
                slow.wait(0.2)
            return super().__getitem__(index)

    stored = Slow()
    with ImageLoader(EncodedDataset(stored), AUGMENT, batch_size=4, return_index=True, num_threads=3) as loader:
        reference = [tuple(tensor.clone() for tensor in batch) for batch in loader]
        for stop in (1, 2, 3):
            loader.set_epoch(0)
            assert same([batch for _, batch in zip(range(stop), loader, strict=False)], reference[:stop])
        loader.set_epoch(0)
        assert same(list(loader), reference)


def test_the_thread_ends_with_the_loader():
    gc.collect()  # loaders that earlier tests left to it
    assert gone(lambda: feeders() == 0)
    loader = ImageLoader(EncodedDataset(Stored()), AUGMENT, batch_size=4)
    assert feeders() == 0
    next(iter(loader))
    assert feeders() == 1
    loader.close()
    assert gone(lambda: feeders() == 0)
    loader = ImageLoader(EncodedDataset(Stored()), AUGMENT, batch_size=4)
    next(iter(loader))
    del loader
    gc.collect()
    assert gone(lambda: feeders() == 0)


def run(code: str, **options) -> subprocess.CompletedProcess[str]:
    start = (
        "import io, os, signal, sys, threading, time\nimport numpy as np\nfrom PIL import Image\n"
        "from vit_rs.data import EncodedDataset, ImageLoader\nfrom vit_rs.transforms import RandomResizedCrop\n"
        "file = io.BytesIO(); Image.new('RGB', (20, 20)).save(file, 'PNG')\n"
        "class Data:\n"
        "    seconds = 0\n"
        "    def __len__(self): return 64\n"
        "    def __getitem__(self, index):\n"
        "        time.sleep(self.seconds if index >= 8 else 0)\n"
        "        return file.getvalue(), index\n"
        "data = Data()\n"
        "loader = ImageLoader(EncodedDataset(data), RandomResizedCrop(8), batch_size=4, num_threads=2)\n"
    )
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", start + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("seconds", [1000, pytest.param(0, marks=pytest.mark.slow)])
def test_interpreter_exit_in_mid_epoch(seconds):
    """Neither a waiting thread nor one that hangs in the data set keeps the process or brings it down."""
    done = run(f"data.seconds = {seconds}\nbatches = iter(loader)\nkept = next(batches)\nprint('end')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interrupt_ends_a_wait_for_a_data_set():
    done = run(
        "data.seconds = 1000\n"
        "threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "start = time.monotonic()\n"
        "try:\n    list(loader)\n"
        "except KeyboardInterrupt:\n    print(time.monotonic() - start < 2)\n"
        "start = time.monotonic()\nloader.close()\nprint(time.monotonic() - start < 2)\n"
    )
    assert (done.returncode, done.stdout) == (0, "True\nTrue\n"), done.stderr


@pytest.mark.slow  # the one of test_data_loader.py is not
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_refuses_the_loader_and_can_make_its_own():
    done = run(
        "next(iter(loader))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n        iter(loader)\n"
        "    except ValueError as error:\n"
        "        assert 'a forked child' in str(error), error\n"
        "        loader.close()\n"
        "        own = ImageLoader(EncodedDataset(data), RandomResizedCrop(8), batch_size=4)\n"
        "        assert len(list(own)) == 16\n"
        "        sys.exit(7)\n"
        "    sys.exit(1)\n"
        "_, status = os.waitpid(child, 0)\n"
        "assert os.waitstatus_to_exitcode(status) == 7, status\n"
        "assert len(list(loader)) == 16\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_data_set_may_use_loaders_itself():
    """A loader inside the data set's thread: nothing waits in a circle."""
    inner = [(encoded(number), number) for number in range(6)]

    class Nested:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int):
            with ImageLoader(inner, AUGMENT, batch_size=6) as loader:
                return inner[index][0], int(next(iter(loader))[1][index])

    labels = torch.cat([batch[1] for batch in batches(EncodedDataset(Nested()), shuffle=False)])
    assert labels.tolist() == list(range(6))
