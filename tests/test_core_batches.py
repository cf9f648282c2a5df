"""The engine's queue of batches: pushed one by one, of any size, as single images, into memory of others."""

from __future__ import annotations

import gc
import io
import os
import random
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from vit_rs._core import MAX_PIXELS, Feed, Loader, Source, decode_image, sample_seed
from vit_rs.exceptions import DecodeError
from vit_rs.transforms import Compose, MultiCrop, RandomHorizontalFlip, RandomResizedCrop, ToDtype
from vit_rs.transforms.lowering import lower_views

COUNT = 12
CROP = Compose([RandomResizedCrop(16), RandomHorizontalFlip(), ToDtype(torch.float32, scale=True)])
# Bytes of one image of CROP.
BYTES = 3 * 16 * 16 * 4


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    rng = np.random.default_rng(0)
    encoded = []
    for number in range(COUNT):
        file = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        small.resize((40 + 3 * number, 60 - number)).save(file, "JPEG")
        encoded.append(file.getvalue())
    return encoded


def engine(source, transform=CROP, *, layout="NCHW", threads=2, prefetch=2, on_error="raise", ragged=False) -> Loader:
    """Return a loader for batches of 4 over a source or a list of files."""
    return Loader(
        Source.mixed(source) if isinstance(source, list) else source,
        None,
        [chain.view(dtype=None, layout=layout, patch=None) for chain in lower_views(transform)],
        batch_size=4,
        num_threads=threads,
        prefetch=prefetch,
        max_pixels=MAX_PIXELS,
        exif=False,
        fast=False,
        on_error=on_error,
        ragged=ragged,
    )


def u64(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


def started(loader: Loader, epoch: int = 0) -> Loader:
    loader.start(seed=7, epoch=epoch)
    return loader


def got(loader: Loader) -> np.ndarray:
    """Return the images of the next batch."""
    [batch], _, _ = loader.next_batch()
    return batch


def test_batches_are_of_any_size_and_a_sample_is_of_its_draw(images):
    loader = started(engine(images))
    loader.push(u64(*range(COUNT)))
    loader.push(u64(3, 3, 3), u64(3, 100, 101))
    loader.push(u64())
    loader.push(u64(*range(COUNT), 5, *range(COUNT)))  # more than there are
    loader.push(u64(*range(COUNT)), batch_size=5)
    loader.push(u64(*range(COUNT)), batch_size=5, drop_last=True)
    loader.push(u64(3), u64(101))
    loader.end()
    whole = got(loader)
    assert whole.shape == (COUNT, 3, 16, 16)
    same, other, another = got(loader)
    assert (same == whole[3]).all()
    assert not (other == same).all()
    assert not (other == another).all()
    assert got(loader).shape == (0, 3, 16, 16)
    assert (got(loader) == np.concatenate([whole, whole[5:6], whole])).all()
    for cut in (slice(5), slice(5, 10), slice(10, COUNT), slice(5), slice(5, 10)):
        assert (got(loader) == whole[cut]).all()
    assert (got(loader)[0] == another).all()
    assert loader.next_batch() is None
    # A single batch of more than twice the usual size has memory of its own; from the second in a row on it is usual.
    assert loader.memory == [(5 * BYTES, 4)]
    started(loader).push(u64(*range(11), *range(11)), batch_size=11)
    assert (got(loader) == got(loader)).all()
    assert loader.memory == [(11 * BYTES, 4)]


def test_seed_and_epoch_belong_to_the_start(images):
    loader = engine(images)
    made = {}
    for seed, epoch in ((1, 0), (1, 1), (2, 0), (1, 0)):
        loader.start(seed=seed, epoch=epoch)
        loader.push(u64(0, 1))
        batch = got(loader)
        assert (made.setdefault((seed, epoch), batch) == batch).all()
    assert not (made[1, 0] == made[1, 1]).all()
    assert not (made[1, 0] == made[2, 0]).all()
    assert not (loader.permutation(1, 0) == loader.permutation(2, 0)).all()
    _, _, [first] = loader.describe(0, 3, seed=1, epoch=0)
    _, _, [second] = loader.describe(0, 3, seed=2, epoch=0)
    assert first != second


def test_a_failed_batch_is_over_and_the_next_one_comes(images):
    loader = started(engine([*images[:2], b"broken", *images[3:]]))
    for batch in (u64(0, 1), u64(1, 2, 3), u64(4), u64(2), u64(5, COUNT)):
        loader.push(batch)
    loader.push(u64(5))
    loader.end()
    assert len(got(loader)) == 2
    with pytest.raises(DecodeError):
        got(loader)
    assert len(got(loader)) == 1
    with pytest.raises(DecodeError):
        got(loader)
    with pytest.raises(ValueError, match=f"position {COUNT} does not lead into a source of {COUNT} samples"):
        got(loader)
    assert len(got(loader)) == 1
    assert loader.next_batch() is None


def test_what_was_not_pushed_is_not_waited_for(images):
    loader = engine(images)
    assert loader.next_batch() is None
    with pytest.raises(ValueError, match="between start and end"):
        loader.push(u64(1))
    started(loader)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no batch to wait for"):
            loader.next_batch()
        loader.push(u64(1))
        assert len(got(loader)) == 1
    loader.end()
    assert loader.next_batch() is None
    with pytest.raises(ValueError, match="between start and end"):
        loader.push(u64(1))
    loader.close()
    for refused in (lambda: loader.start(seed=0, epoch=0), lambda: loader.push(u64(1))):
        with pytest.raises(ValueError, match="closed"):
            refused()


def test_wrong_pushes_are_refused_and_nothing_is_queued(images):
    loader = started(engine(images))
    for arguments, named, text in (
        ((u64(1, 2), u64(1)), {}, "as many draws"),
        ((u64(1, 2),), {"batch_size": 0}, "batch_size must be at least 1"),
    ):
        with pytest.raises(ValueError, match=text):
            loader.push(*arguments, **named)
    for wrong in (u64(1, 2, 3, 4)[::2], np.array([1.0])):
        with pytest.raises(TypeError):
            loader.push(wrong)
    with pytest.raises(RuntimeError, match="no batch to wait for"):
        loader.next_batch()


def test_a_wait_may_time_out_and_be_repeated(images):
    feed = Feed(COUNT)
    loader = started(engine(Source.feed(feed)))
    loader.push(u64(3))
    for timeout in (0.0, 0.12):
        with pytest.raises(TimeoutError, match=rf"no batch came within {timeout:g} seconds"):
            loader.next_batch(timeout)
    ticket, index = feed.next_request()
    assert index == 3
    feed.reply(ticket, images[3], 33)
    _, positions, labels = loader.next_batch(60.0)
    assert (positions.tolist(), labels.tolist()) == ([3], [33])
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timeout must be a finite number of seconds"):
            loader.next_batch(wrong)
    loader.close()


def test_batches_are_pushed_while_the_consumer_waits(images):
    feed = Feed(COUNT)
    loader = started(engine(Source.feed(feed), threads=1))
    loader.push(u64(3))
    seen = []

    def consume():
        while (batch := loader.next_batch()) is not None:
            seen.append(batch[1].tolist())

    consumer = threading.Thread(target=consume)
    consumer.start()
    first, _ = feed.next_request()
    loader.push(u64(5, 5))
    loader.push(u64(1))
    loader.end()
    feed.reply(first, images[3], 0)
    for expected in (5, 5, 1):
        ticket, index = feed.next_request()
        assert index == expected
        feed.reply(ticket, images[index], 0)
    consumer.join(60)
    assert seen == [[3], [5, 5], [1]]
    loader.close()


def test_ragged_images_are_those_of_the_files(images):
    loader = engine(images, None, layout="NHWC", ragged=True)
    assert (loader.shapes, loader.memory) == ([], [])
    for epoch in range(3):
        started(loader, epoch).push(u64(*range(COUNT), 3), batch_size=5)
        loader.end()
        seen = []
        while (batch := loader.next_batch()) is not None:
            [singles], positions, labels = batch
            assert labels is None
            assert len(singles) == len(positions)
            seen += singles
        assert len(seen) == COUNT + 1
        for image, data in zip(seen, [*images, images[3]], strict=True):
            assert (image.dtype, image.flags.writeable) == (np.uint8, True)
            np.testing.assert_array_equal(image, decode_image(data))


def test_ragged_images_are_those_of_a_batch(images):
    crops = MultiCrop([(CROP, 2), (Compose([RandomResizedCrop(8), ToDtype(torch.float32, scale=True)]), 1)])
    batches, singles = started(engine(images, crops)), started(engine(images, crops, ragged=True))
    for loader in (batches, singles):
        loader.push(u64(4, 1, 4), u64(1, 2, 3))
    for view, listed in zip(batches.next_batch()[0], singles.next_batch()[0], strict=True):
        np.testing.assert_array_equal(view, np.stack(listed))


@pytest.mark.parametrize("ragged", [False, True])
def test_bad_samples_are_left_out_or_replaced(images, ragged):
    images = [b"broken" if number in (2, 3, 7) else data for number, data in enumerate(images)]
    loader = started(engine(images, on_error="skip", ragged=ragged))
    loader.push(u64(1, 2, 3, 4))
    loader.push(u64(7, 7))
    loader.push(u64(1, 4))
    (view,), positions, _ = loader.next_batch()
    assert (len(view), positions.tolist()) == (2, [1, 4])
    (nothing,), positions, _ = loader.next_batch()
    assert (len(nothing), len(positions)) == (0, 0)
    np.testing.assert_array_equal(np.stack(list(view)), np.stack(list(got(loader))))
    assert len(loader.stats()["failures"]) == 4
    loader = started(engine(images, on_error="substitute", ragged=ragged))
    loader.push(u64(1, 2, 3, 4))
    (view,), positions, _ = loader.next_batch()
    assert len(view) == 4
    assert not {2, 3, 7} & set(positions.tolist())


def test_ragged_views_are_checked_before_the_first_image(images):
    loader = engine(images, CROP, ragged=True)
    assert loader.shapes == []
    view = lower_views(None)[0].view(dtype=torch.float32, layout="NCHW", patch=None)
    named = {"batch_size": 1, "num_threads": 1, "prefetch": 1, "max_pixels": 100, "exif": False, "fast": False}
    with pytest.raises(ValueError, match="needs ToDtype"):
        Loader(Source.mixed(images), None, [view], on_error="raise", ragged=True, **named)


def test_a_batch_is_written_into_memory_of_others(images):
    loader = started(engine(images, on_error="skip"))
    pinned = np.full(4 * BYTES, 255, np.uint8)
    loader.push(u64(1, 2, 3), memory=[pinned])
    loader.push(u64(1, 2, 3))
    batch = got(loader)
    assert batch.base is pinned
    assert np.shares_memory(batch, pinned)
    assert (pinned[3 * BYTES :] == 255).all()
    np.testing.assert_array_equal(batch, got(loader))
    # An empty batch needs no memory, wherever it lies.
    empty = np.empty(0, np.uint8)
    for memory in (empty, pinned[1:1], pinned):
        loader.push(u64(), memory=[memory])
        assert got(loader).shape == (0, 3, 16, 16)
    # Nobody but the loader holds it meanwhile, nobody but the batch afterwards.
    memory = np.zeros(2 * BYTES, np.uint8)
    alive = weakref.ref(memory)
    loader.push(u64(3, 4), memory=[memory])
    del memory
    batch = got(loader)
    assert alive() is batch.base
    del batch
    assert alive() is None


def test_memory_that_does_not_do_is_refused(images):
    loader = started(engine(images))
    large = np.zeros(8 * BYTES, np.uint8)
    locked = large[:BYTES]
    locked.flags.writeable = False
    for memory, text in (
        ([np.zeros(2 * BYTES - 1, np.uint8)], f"a batch needs {2 * BYTES} bytes of memory, got {2 * BYTES - 1}"),
        ([large[::2]], "C-contiguous"),
        ([large[1:]], "aligned to its values, 4 bytes each"),
        ([locked], "writable"),
        ([large, large[BYTES:]], "of other bytes for each view"),
        ([large, large.copy()], "memory for 1 views is needed, got 2"),
        ([], "memory for 1 views is needed, got 0"),
    ):
        with pytest.raises(ValueError, match=text):
            loader.push(u64(1, 2), memory=memory)
    with pytest.raises(ValueError, match="for one batch"):
        loader.push(u64(1, 2, 3), batch_size=2, memory=[large])
    with pytest.raises(TypeError):
        loader.push(u64(1), memory=[np.zeros(BYTES, np.float32)])
    ragged = started(engine(images, ragged=True))
    with pytest.raises(ValueError, match="views of fixed sizes"):
        ragged.push(u64(1), memory=[large])
    with pytest.raises(RuntimeError, match="no batch to wait for"):
        loader.next_batch()


def test_an_abandoned_batch_lets_go_of_its_memory_when_its_last_writer_does(images):
    feed = Feed(COUNT)
    loader = started(engine(Source.feed(feed)))
    arrays = [np.zeros(2 * BYTES, np.uint8) for _ in range(3)]
    alive = [weakref.ref(array) for array in arrays]
    for array in arrays:
        loader.push(u64(1, 2), memory=[array])
    del arrays, array
    feed.next_request()  # samples of the first batch are under way
    assert all(reference() is not None for reference in alive)
    started(loader, 1).push(u64(5))
    ticket, index = feed.next_request()
    assert index == 5
    feed.reply(ticket, images[5], 0)
    assert len(got(loader)) == 1
    loader.close()
    gc.collect()
    assert all(reference() is None for reference in alive)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts in /proc")
@pytest.mark.parametrize("kind", ["ragged", "pushed", "lent"])
def test_many_epochs_need_no_more_than_a_few(images, kind):
    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    files = [images[number % COUNT] for number in range(64)]
    loader = engine(files, None, layout="NHWC", ragged=True) if kind == "ragged" else engine(files)
    for epoch in range(60):
        if epoch == 10:
            before = resident()
        started(loader, epoch)
        for size in (1, 17, 3, 64, 9):
            memory = [np.empty(size * BYTES, np.uint8)] if kind == "lent" else None
            loader.push(np.arange(size, dtype=np.uint64), memory=memory)
        for size in (1, 17, 3, 64) if epoch % 3 else (1, 17):
            assert len(got(loader)) == size
    # 50 epochs write 12 MB and more.
    assert resident() - before < 4 << 20


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Return a block of Philox4x32-10, as the paper writes it."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = right >> 32 ^ b ^ k, right % 2**32, left >> 32 ^ d ^ m, left % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def test_seeds_of_samples():
    for seed, epoch, draw, stream in ((1, 2, 3, 4), (2**63 + 1, 2**40, 2**41 + 5, 2**32 - 1)):
        key = philox([epoch % 2**32, epoch >> 32, 0, 0], [seed % 2**32, seed >> 32])[:2]
        # Operation 4 of the view that no sample has.
        high, low, _, _ = philox([stream, 0xFFFF0004, draw % 2**32, draw >> 32], key)
        assert sample_seed(seed, epoch, draw, stream) == high << 32 | low
    seeds = {
        sample_seed(seed, epoch, draw, stream)
        for seed in (0, 1, 2**64 - 1)
        for epoch in (0, 1, 2**63)
        for draw in (0, 1, 2**40, 2**41 + 1)
        for stream in (0, 1, 2**32 - 1)
    }
    assert len(seeds) == 3 * 3 * 4 * 3
    assert all(0 <= seed < 2**64 for seed in seeds)
    for wrong in ((-1, 0, 0, 0), (0, 0, 2**64, 0), (0, 0, 0, 2**32)):
        with pytest.raises(OverflowError):
            sample_seed(*wrong)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow  # the one of test_data_loader.py is not
def test_a_forked_child_may_not_push():
    code = """
import os, sys, numpy as np
sys.path.insert(0, TESTS)
from test_core_batches import engine, started, u64
from vit_rs._core import Source
from vit_rs.transforms import CenterCrop
loader = started(engine(Source.array(np.zeros((8, 4, 4, 1), np.uint8)), CenterCrop(4)))
loader.push(u64(1, 2))
child = os.fork()
if child == 0:
    for refused in (lambda: loader.push(u64(1)), loader.end, loader.next_batch):
        try:
            refused()
        except ValueError as error:
            assert "a forked child" in str(error), error
        else:
            sys.exit(1)
    sys.exit(7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert len(loader.next_batch()[1]) == 2
""".replace("TESTS", repr(os.path.dirname(__file__)))
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_pushed_each_sample_is_the_one_that_is_made_alone(seed, images):
    dice = random.Random(seed)
    files = [*images[:5], b"bad", *images[5:], b"bad"]
    bad = {5, len(files) - 1}
    source = Source.concat([Source.mixed(files[:6]), Source.mixed([]), Source.mixed(files[6:])])
    alone = engine(source, threads=1, ragged=True)

    def check(key, samples, expected, images_):
        assert [int(position) for position in samples] == [position for position, _ in expected]
        assert len(images_) == len(expected)
        for place in dice.sample(range(len(expected)), min(3, len(expected))):
            position, draw = expected[place]
            alone.start(seed=key[0], epoch=key[1])
            alone.push(u64(position), u64(draw))
            np.testing.assert_array_equal(images_[place], got(alone)[0])

    def take(loader, key, batch, on_error):
        if on_error == "raise" and bad & {position for position, _ in batch}:
            with pytest.raises(DecodeError):
                loader.next_batch(30.0)
            return
        [images_], samples, _ = loader.next_batch(30.0)
        good = [place for place, (position, _) in enumerate(batch) if position not in bad]
        if on_error == "substitute":
            assert len(images_) == len(samples) == len(batch)
            images_, samples = [images_[place] for place in good], samples[good]
        check(key, samples, [batch[place] for place in good], images_)

    def push(loader, ragged):
        count = dice.choice([0, 1, 2, 5, 9, 30])
        samples = [(dice.randrange(len(files)), dice.getrandbits(60)) for _ in range(count)]
        size, drop_last = dice.choice([None, None, 3, 7]), dice.random() < 0.5
        lent = not ragged and size is None and dice.random() < 0.5
        memory = [np.empty(count * BYTES + dice.choice([0, 4, 100]), np.uint8)] if lent else None
        positions, draws = (np.array([sample[part] for sample in samples], np.uint64) for part in (0, 1))
        loader.push(positions, draws, batch_size=size, drop_last=drop_last, memory=memory)
        cuts = range(0, count, size) if size else [0]
        batches = [samples[cut : cut + (size or count)] for cut in cuts]
        return [batch for batch in batches if not (size and drop_last and len(batch) < size)]

    for _ in range(60):
        ragged, on_error = dice.random() < 0.5, dice.choice(["raise", "skip", "substitute"])
        threads, prefetch = dice.choice([1, 2, 5]), dice.choice([1, 2, 5])
        loader = engine(source, threads=threads, prefetch=prefetch, on_error=on_error, ragged=ragged)
        for epoch in range(dice.randint(1, 4)):
            key, waiting = (dice.getrandbits(64), epoch), []
            loader.start(seed=key[0], epoch=epoch)
            for _ in range(dice.randint(0, 8)):
                waiting += push(loader, ragged)
                while waiting and dice.random() < 0.6:
                    take(loader, key, waiting.pop(0), on_error)
            if dice.random() < 0.3:
                continue  # the next start abandons what waits
            loader.end()
            for batch in waiting:
                take(loader, key, batch, on_error)
            assert loader.next_batch(30.0) is None
        if dice.random() < 0.5:
            loader.close()
