"""Settings that all tests share."""

import signal

import numpy as np
import pytest
import torch

# The tests' tensors are tiny: a second thread costs more than it does, most of all on a busy machine. Tests of threads
# say their numbers themselves.
torch.set_num_threads(1)

# A shell has its background jobs ignore Ctrl-C, and with them all processes that a test would start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def class_per_image(tmp_path_factory) -> str:
    """A folder of twenty images, each a class of its own: labels tell which images came, and in which order."""
    image, rng = pytest.importorskip("PIL.Image"), np.random.default_rng(0)
    root = tmp_path_factory.mktemp("class_per_image")
    for number in range(20):
        (root / f"{number:02}").mkdir()
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image.fromarray(pixels).resize((32, 32)).save(root / f"{number:02}" / "image.jpg")
    return str(root)


@pytest.fixture(scope="session")
def plain_images(tmp_path_factory):
    """Make a folder of a number of images of three classes, each of one colour and of its own width."""
    image = pytest.importorskip("PIL.Image")

    def made(count: int) -> str:
        root = tmp_path_factory.mktemp("plain_images")
        for number in range(count):
            path = root / f"class{number % 3}" / f"{number:02}.png"
            path.parent.mkdir(exist_ok=True)
            image.new("RGB", (20 + number, 30), (number, 2 * number, 255 - number)).save(path)
        return str(root)

    return made
