"""DataLoader among signals, threads and forks: what comes from outside loses no batch and mixes none up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import v2

from vit_rs.data import ArrayDataset, DataLoader, EncodedDataset
from vit_rs.data.dropin import assembly, iteration
from vit_rs.exceptions import DecodeError

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 6


class Alarm(Exception):  # noqa: N818
    pass


class Waiting:
    """Encoded images of one value each, which come once they may; number `bad` is none."""

    def __init__(self, folder: Path, bad: int = -1):
        self.go = threading.Event()
        self.bad = bad
        self.files = [folder / f"{number}.png" for number in range(COUNT)]
        for number, file in enumerate(self.files):
            Image.new("RGB", (4, 4), (40 * number,) * 3).save(file)

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        self.go.wait()
        return b"none" if index == self.bad else self.files[index].read_bytes(), index


TO_FLOAT = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32)])


def interrupted(loader: DataLoader, error: type[BaseException]):
    """Return an iterator whose first wait was interrupted."""

    def ring(*_):
        raise error("by the handler")

    iterator = iter(loader)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(error, match="by the handler"):
            next(iterator)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return iterator


alarmed = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an alarm")


@alarmed
@pytest.mark.parametrize(
    "error", [Alarm, RuntimeError, OSError, ValueError, MemoryError, TimeoutError, DecodeError, KeyboardInterrupt]
)
def test_a_signal_loses_no_batch(tmp_path, error):
    """torch's own handler of SIGCHLD raises a RuntimeError."""
    data = Waiting(tmp_path)
    iterator = interrupted(DataLoader(EncodedDataset(data), batch_size=2, timeout=30), error)
    data.go.set()
    assert [batch[1].tolist() for batch in iterator] == [[0, 1], [2, 3], [4, 5]]


@alarmed
@pytest.mark.parametrize("collate", [None, default_collate, list], ids=["none", "default_collate", "list"])
def test_images_and_labels_stay_together_in_lent_memory(tmp_path, monkeypatch, collate):
    """As with pin_memory, which needs an accelerator: a signal and a batch that fails shift no image."""
    data = Waiting(tmp_path, bad=3)
    monkeypatch.setattr(iteration, "_pins", lambda _: True)
    monkeypatch.setattr(assembly, "_pinned", lambda made: made)

    def empty(*size, pin_memory=False, real=torch.empty, **more):
        return real(*size, **more)

    monkeypatch.setattr(torch, "empty", empty)
    # Where page-locked memory can be only.
    monkeypatch.setattr(torch.utils.data._utils.pin_memory, "pin_memory", lambda made: made)
    loader = DataLoader(EncodedDataset(data, transform=TO_FLOAT), 1, num_workers=2, collate_fn=collate)
    iterator = interrupted(loader, RuntimeError)
    data.go.set()
    for number in (0, 1, 2, None, 4, 5):
        if number is None:
            with pytest.raises(DecodeError):
                next(iterator)
            continue
        batch = next(iterator)
        image, label = batch[0] if collate is list else (batch[0][0], batch[1][0])
        assert (float(image[0, 0, 0]), int(label)) == (40 * number, number)


def array() -> ArrayDataset:
    return ArrayDataset(np.zeros((9, 2, 2, 3), np.uint8), np.arange(9))


def test_python_in_another_thread_is_worth_a_warning(tmp_path):
    data = Waiting(tmp_path)
    data.go.set()
    staged = v2.Compose([v2.ToImage(), lambda image: image])
    for transform, expected in ((staged, 1), (TO_FLOAT, 0)):
        loader, got = DataLoader(EncodedDataset(data, transform=transform), 2), []

        def consume(loader=loader, got=got):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                batches = len(list(loader))
            got += [*(str(one.message) for one in caught), batches]

        thread = threading.Thread(target=consume)
        thread.start()
        thread.join()
        assert got.pop() == 3
        assert len(got) == expected
        assert all("another thread than the main one" in text for text in got)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("leave", ["os._exit", pytest.param("sys.exit", marks=pytest.mark.slow)])
def test_a_forked_child_uses_the_loader_anew(leave):
    """The parent had finished an epoch, and is in another one. To clean up takes a child almost a second."""
    code = """
import os, sys, warnings
import numpy as np
from vit_rs.data import ArrayDataset, DataLoader
warnings.simplefilter("ignore")
data = ArrayDataset(np.zeros((9, 2, 2, 3), np.uint8), np.arange(9))
idle = DataLoader(data, batch_size=3, num_workers=2)
list(idle)
uses = [
    "assert len(list(idle)) == 3",
    "loader.close()",
    "assert len(list(loader)) == 3; assert len(list(loader)) == 3; loader.close()",
    "assert 'Rust' in loader.explain(); assert len(list(loader)) == 3; assert loader.stats().images == 9",
    "loader.stats()",
    "del loader, iterator",
]
for persistent in (False, True):
    loader = DataLoader(data, batch_size=3, num_workers=2, persistent_workers=persistent)
    list(loader)
    iterator = iter(loader)
    next(iterator)
    for use in uses:
        child = os.fork()
        if child == 0:
            exec(use)
            LEAVE(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7, use
    assert len(list(iterator)) == 2
""".replace("LEAVE", leave)
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_before_the_first_batch_leaves_the_lookahead(workers):
    loader = DataLoader(array(), 1, num_workers=workers)
    loader.state_dict()
    iterator = iter(loader)
    next(iterator)
    assert len(iterator._ahead) == iterator._lookahead
