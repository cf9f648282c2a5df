"""Shards in a forked child, while the parent's threads hold what is kept between reads."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
from PIL import Image

from vit_rs.data import ImageLoader, TarShards
from vit_rs.transforms import Resize

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork")


@pytest.fixture
def shard(tmp_path):
    """A gzipped shard that takes a while to inflate."""
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for number in range(2):
            encoded = io.BytesIO()
            Image.fromarray(np.full((20, 30, 3), 100 + number, np.uint8)).save(encoded, "PNG")
            for name, content in (
                (f"{number}.png", encoded.getvalue()),
                (f"{number}.cls", b"3"),
                (f"{number}.bin", os.urandom(20_000_000)),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(path)


# The child does nothing but read images, which needs none of the locks that the warning is about.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_reads_while_the_parent_inflates(shard):
    shards = TarShards(shard)
    reading = threading.Event()

    def read() -> None:
        reading.set()
        shards[1]

    reader = threading.Thread(target=read)
    reader.start()
    reading.wait()
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            image, label = shards[1]
            with ImageLoader(shards, Resize((8, 8)), batch_size=2, num_threads=1) as loader:
                images, labels = next(iter(loader))
            right = label == 3 and int(image.min()) == 101 and labels.tolist() == [3, 3] and int(images.max()) == 101
            status = 0 if right else 2
        finally:
            os._exit(status)
    reader.join()
    deadline = time.monotonic() + 60
    done, status = os.waitpid(child, os.WNOHANG)
    while done == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
        done, status = os.waitpid(child, os.WNOHANG)
    if done == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child waits for a lock that nobody gives back")
    assert os.waitstatus_to_exitcode(status) == 0
