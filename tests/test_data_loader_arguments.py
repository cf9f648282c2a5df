"""ImageLoader's arguments and states: what cannot be is refused at once, by name and value."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from vit_rs.data import ArrayDataset, ImageLoader, Patches


def array() -> ArrayDataset:
    return ArrayDataset(np.zeros((37, 12, 12), np.uint8), np.zeros(37, np.int64))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be in 1..2**63 - 1, got 0"),
        ({"batch_size": 2**63}, ValueError, "batch_size must be in 1..2**63 - 1, got 9223372036854775808"),
        ({"batch_size": "4"}, TypeError, "batch_size must be an integer, got '4'"),
        ({"num_threads": 0}, ValueError, "num_threads must be in 1..65536, got 0"),
        ({"num_threads": 2.0}, TypeError, "num_threads must be an integer, got 2.0"),
        ({"prefetch": 0}, ValueError, "prefetch must be in 1..65536, got 0"),
        ({"prefetch": 2**64 - 1}, ValueError, "prefetch must be in 1..65536, got 18446744073709551615"),
        ({"max_pixels": 2**63}, ValueError, "max_pixels must be in 1..2**63 - 1, got 9223372036854775808"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
        ({"seed": -1}, ValueError, "seed must be in 0..2**64 - 1, got -1"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank must be in 0..world_size - 1, got 2 of 2"),
        ({"on_error": "ignore"}, ValueError, "on_error must be 'raise', 'skip' or 'substitute', got 'ignore'"),
        ({"layout": "CHWN"}, ValueError, "layout must be 'NCHW', 'NHWC' or Patches"),
        ({"layout": Patches(5)}, ValueError, "patches of 5 x 5 do not divide images of 12 x 12"),
        ({"dtype": torch.float32}, ValueError, "a float batch needs ToDtype"),
        ({"dtype": torch.float64}, ValueError, "dtype must be uint8, float16, bfloat16 or float32, got float64"),
    ],
)
def test_argument_errors(options, error, text):
    with pytest.raises(error, match=re.escape(text)):
        ImageLoader(array(), **{"batch_size": 4, **options})


def test_other_errors():
    with pytest.raises(
        TypeError, match=r"source must be a vit_rs\.data\.ImageFolder, ArrayDataset, TarShards, ImageTable or"
    ):
        ImageLoader({1: 2}, batch_size=1)
    with pytest.raises(ValueError, match="and a batch needs one: end it with"):
        ImageLoader([(b"", 0)], batch_size=1)
    loader = ImageLoader(array(), batch_size=4)
    state = loader.state_dict()
    for changes, text in (
        ({"seed": 5}, "the state is of another loader: seed is 5 there, 0 here"),
        ({"samples": 8, "shuffle": 1}, "samples is 8 there, 37 here; shuffle is 1 there, 0 here"),
        ({"consumed": 38}, r"the state's consumed must be in 0\.\.37, got 38"),
        ({"consumed": -1}, r"the state's consumed must be in 0\.\.37, got -1"),
        ({"epoch": 2**64}, r"the state's epoch must be in 0\.\.2\*\*64 - 1, got 18446744073709551616"),
    ):
        with pytest.raises(ValueError, match=text):
            loader.load_state_dict({**state, **changes})
    with pytest.raises(ValueError, match="the state lacks consumed, samples, shuffle"):
        loader.load_state_dict({"seed": 0, "epoch": 0})
    for name, value in (("consumed", 1.5), ("epoch", "0")):
        with pytest.raises(TypeError, match=re.escape(f"the state's {name} must be an integer, got {value!r}")):
            loader.load_state_dict({**state, name: value})
    for epoch_number in (-1, 2**64):
        with pytest.raises(ValueError, match=re.escape(f"epoch must be in 0..2**64 - 1, got {epoch_number}")):
            loader.set_epoch(epoch_number)
    with pytest.raises(TypeError, match=re.escape("epoch must be an integer, got 1.5")):
        loader.set_epoch(1.5)
    assert loader.state_dict() == state


def test_the_largest_numbers_are_taken():
    options = {"batch_size": 2**63 - 1, "prefetch": 2**16, "max_pixels": 2**63 - 1, "seed": 2**64 - 1}
    with ImageLoader(array(), **options, num_threads=1) as loader:
        loader.set_epoch(2**64 - 1)
        assert [len(images) for images, _ in loader] == [37]
