"""Copies to a device, one batch ahead: their order, errors, and what a loader says of where it stands."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vit_rs.data import ArrayDataset, ImageLoader, loader
from vit_rs.data.device_copies import copied_ahead


class Recorder:
    """Copies on the CPU, and notes when."""

    def __init__(self, _device=None):
        self.events = []

    def begin(self, tensors):
        self.events.append(("begin", int(tensors[0].flatten()[0])))
        return tuple(tensor.clone() for tensor in tensors)

    def hand_over(self, begun):
        self.events.append(("hand over", int(begun[0].flatten()[0])))
        return begun


def batches(count, error=None):
    for index in range(count):
        yield [torch.tensor([index])]
    if error is not None:
        raise error


def test_each_copy_is_begun_before_the_one_before_it_is_handed_over():
    copier = Recorder()
    assert [int(batch[0]) for batch in copied_ahead(batches(3), copier)] == [0, 1, 2]
    begin, over = "begin", "hand over"
    assert copier.events == [(begin, 0), (begin, 1), (over, 0), (begin, 2), (over, 1), (over, 2)]


@pytest.mark.parametrize("count", [0, 1])
def test_none_or_one_batch(count):
    assert [int(batch[0]) for batch in copied_ahead(batches(count), Recorder())] == list(range(count))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_error_comes_after_the_batches_before_it(count):
    copies = copied_ahead(batches(count, ValueError("bad image")), Recorder())
    assert [int(next(copies)[0]) for _ in range(count)] == list(range(count))
    with pytest.raises(ValueError, match="bad image"):
        next(copies)
    assert list(copies) == []


@pytest.fixture
def on_a_device(monkeypatch):
    """Loaders for "cuda" that copy on the CPU."""
    monkeypatch.setattr(loader, "CudaCopier", Recorder)


def numbered(count=10):
    return ArrayDataset(np.arange(count, dtype=np.uint8)[:, None, None], np.arange(count))


def labels_of(batches):
    return [batch[1].tolist() for batch in batches]


@pytest.mark.usefixtures("on_a_device")
def test_a_loader_stands_where_the_consumer_is():
    options = {"batch_size": 3, "shuffle": True, "seed": 5}
    with ImageLoader(numbered(), **options) as plain, ImageLoader(numbered(), **options, device="cuda") as ahead:
        for _ in range(2):  # epochs
            expected, states = [], []
            for batch in plain:
                expected.append(batch)
                states.append(plain.state_dict())
            seen = []
            for batch in ahead:
                seen.append(batch)
                assert ahead.state_dict() == states[len(seen) - 1]
            assert labels_of(seen) == labels_of(expected)
        iterator = iter(ahead)
        next(iterator)
        ahead.load_state_dict(states[1])
        with pytest.raises(
            RuntimeError, match="this iteration ended when the same ImageLoader was started or set anew"
        ):
            next(iterator)
        assert labels_of(ahead) == labels_of(expected)[2:]
        iterator = iter(ahead)
        next(iterator)
    with pytest.raises(RuntimeError, match="this iteration ended when the ImageLoader was closed"):
        next(iterator)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_hold_while_the_device_is_busy():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (64, 64, 64, 3), np.uint8)
    source = ArrayDataset(images, np.arange(64))
    weight = torch.randn(4096, 4096, device="cuda")
    with ImageLoader(source, batch_size=4) as plain, ImageLoader(source, batch_size=4, device="cuda") as ahead:
        kept = []
        for batch, _ in ahead:
            weight = (weight @ weight).tanh()  # the consumer's stream is behind
            kept.append(batch.clone())  # the batch's own memory is free for the next ones
        for mine, (other, _) in zip(kept, plain, strict=True):
            assert torch.equal(mine.cpu(), other)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch, labels in ahead:
                assert batch.is_cuda
                assert labels.is_cuda
        finally:
            torch.cuda.set_sync_debug_mode("default")
