"""DataLoader draws what torch's draws, when torch draws it: order, base seed, the generators' states afterwards."""

# ruff: noqa: NPY002  (numpy's legacy generator is one of the three that matter here)
from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    random_split,
)

from vit_rs.data import ArrayDataset, DataLoader

COUNT = 37
EPOCHS = 3
# torch's loader forks, and says so where threads run.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def ours() -> ArrayDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 2, 3, 3), dtype=np.uint8)
    return ArrayDataset(pixels, np.arange(COUNT))


def torchs() -> list:
    return [(torch.zeros(1), label) for label in range(COUNT)]


class CountingBatches(Sampler):
    """A batch sampler that is no generator: it draws when it is asked for an iterator, and counts that."""

    def __init__(self):
        self.asked = 0

    def __iter__(self):
        self.asked += 1
        order = torch.randperm(COUNT).tolist()
        return iter([order[:3], order[3:10], [*order[10:12], order[10]], order[20:]])

    def __len__(self):
        return 4


class EveryOther:
    """A sampler of another library: an iterable with a length. It draws from all shared generators."""

    def __iter__(self):
        for index in range(0, COUNT, 2):
            yield (index + random.randrange(2) + np.random.randint(2) + int(torch.randint(2, ()))) % COUNT

    def __len__(self):
        return (COUNT + 1) // 2


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


OPTIONS = {
    "in order": lambda _: {},
    "shuffle": lambda _: {"shuffle": True},
    "shuffle, drop_last": lambda _: {"shuffle": True, "drop_last": True},
    "shuffle, generator": lambda _: {"shuffle": True, "generator": seeded()},
    "with replacement": lambda data: {"sampler": RandomSampler(data, replacement=True, num_samples=70)},
    "with replacement, generator": lambda data: {
        "sampler": RandomSampler(data, replacement=True, num_samples=70, generator=seeded())
    },
    "subset": lambda _: {"sampler": SubsetRandomSampler([3, 5, 8, 13, 21, 34])},
    "subset, generator": lambda _: {"sampler": SubsetRandomSampler([3, 5, 8, 13, 21, 34], generator=seeded())},
    "weighted": lambda _: {"sampler": WeightedRandomSampler(torch.arange(COUNT) + 1.0, 50)},
    "weighted, generator": lambda _: {
        "sampler": WeightedRandomSampler(list(range(1, COUNT + 1)), 20, replacement=False, generator=seeded())
    },
    "distributed": lambda data: {"sampler": DistributedSampler(data, num_replicas=3, rank=1, shuffle=True, seed=4)},
    "batch sampler of torch": lambda data: {"batch_sampler": BatchSampler(RandomSampler(data), 7, drop_last=True)},
    "own batch sampler": lambda _: {"batch_sampler": CountingBatches()},
    "list of batches": lambda _: {"batch_sampler": [[0, 0, 5], [-1], (36, 2), torch.tensor([1, 2])]},
    "own sampler": lambda _: {"sampler": EveryOther()},
    "list of indices": lambda _: {"sampler": [4, 4, -2, torch.tensor(7), np.int64(9), True]},
    "single samples": lambda data: {"batch_size": None, "sampler": SequentialSampler(data)},
    "single samples, shuffled": lambda _: {"batch_size": None, "shuffle": True},
}


def epochs(kind, data, options: dict, workers: int, leave: int | None = None, **more) -> tuple[list, list]:
    """Return the labels of each batch of some epochs, and the generators' states behind each epoch.

    Epochs are left after `leave` batches.
    """
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    options = dict(options)
    if "batch_size" not in options and "batch_sampler" not in options:
        options["batch_size"] = 4
    loader = kind(data, num_workers=workers, **options, **more)
    labels, states = [], []
    for _ in range(EPOCHS):
        labels.append([torch.as_tensor(batch[1]).tolist() for batch in itertools.islice(loader, leave)])
        given = options.get("generator") or getattr(options.get("sampler"), "generator", None)
        states.append((torch.get_rng_state(), None if given is None else given.get_state()))
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(len(labels))
    if isinstance(options.get("batch_sampler"), CountingBatches):
        labels.append(options["batch_sampler"].asked)
    return labels, states


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    ("workers", "persistent"), [(0, False), (2, False), pytest.param(2, True, marks=pytest.mark.slow)]
)
def test_order_and_generators_are_torchs(name, workers, persistent):
    more = {"persistent_workers": True} if persistent else {}
    want, want_states = epochs(torch.utils.data.DataLoader, torchs(), OPTIONS[name](torchs()), workers, **more)
    got, got_states = epochs(DataLoader, ours(), OPTIONS[name](ours()), workers, **more)
    assert got == want
    for (default, given), (want_default, want_given) in zip(got_states, want_states, strict=True):
        assert torch.equal(default, want_default)
        assert (given is None) == (want_given is None)
        assert given is None or torch.equal(given, want_given)


# Draws for each index from the generators that the script draws from, too.
@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - {"own sampler"}))
@pytest.mark.parametrize("leave", [1, 8, 10])
def test_an_epoch_that_is_left_leaves_the_generators_as_torchs(name, leave):
    """Two batches are asked for ahead, the sampler's end among them: RandomSampler draws once more there."""
    want, want_states = epochs(torch.utils.data.DataLoader, torchs(), OPTIONS[name](torchs()), 0, leave)
    got, got_states = epochs(DataLoader, ours(), OPTIONS[name](ours()), 0, leave)
    assert got == want
    for mine, theirs in zip(got_states, want_states, strict=True):
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_what_others_drew_meanwhile_is_not_taken_back():
    given = seeded()
    iterator = iter(DataLoader(ours(), 4, shuffle=True, generator=given))
    for _ in range(8):
        next(iterator)
    torch.rand(1, generator=given)
    state = given.get_state()
    del iterator
    assert torch.equal(given.get_state(), state)
    # An iteration that begins while an old one is at hand: as torch, which had not asked for the end.
    orders = []
    for kind, data in ((DataLoader, ours()), (torch.utils.data.DataLoader, torchs())):
        loader = kind(data, 4, shuffle=True, generator=seeded())
        iterator = iter(loader)
        for _ in range(8):
            next(iterator)
        iterator = iter(loader)
        orders.append([batch[1].tolist() for batch in iterator])
    assert orders[0] == orders[1]


def test_random_split_and_its_order_are_torchs():
    def parts(data, kind):
        split = random_split(data, [30, 7], generator=seeded())
        torch.manual_seed(1)
        return [[batch[1].tolist() for batch in kind(part, batch_size=4, shuffle=True)] for part in split]

    assert parts(ours(), DataLoader) == parts(torchs(), torch.utils.data.DataLoader)


def test_lengths_are_torchs():
    for name, options in OPTIONS.items():
        mine, theirs = DataLoader(ours(), **options(ours())), torch.utils.data.DataLoader(torchs(), **options(torchs()))
        assert len(mine) == len(theirs), name
        assert len(iter(mine)) == len(theirs), name


def test_attributes_are_torchs():
    data = ours()
    options = {"batch_size": 4, "shuffle": True, "num_workers": 2, "generator": seeded(), "drop_last": True}
    mine, theirs = DataLoader(data, **options), torch.utils.data.DataLoader(data, **options)
    assert isinstance(mine, torch.utils.data.DataLoader)
    for name in (
        *("batch_size", "drop_last", "num_workers", "prefetch_factor", "pin_memory", "timeout", "worker_init_fn"),
        *("generator", "persistent_workers", "in_order", "multiprocessing_context", "dataset"),
    ):
        assert getattr(mine, name) == getattr(theirs, name), name
    for name in ("sampler", "batch_sampler"):
        assert type(getattr(mine, name)) is type(getattr(theirs, name)), name
    with pytest.raises(ValueError, match="batch_size attribute should not be set after DataLoader is initialized"):
        mine.batch_size = 5


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": -1},
        {"timeout": -1},
        {"prefetch_factor": 2},
        {"num_workers": 1, "prefetch_factor": -1},
        {"persistent_workers": True},
        {"shuffle": True, "sampler": [0]},
        {"batch_sampler": [[0]], "batch_size": 3},
        {"batch_sampler": [[0]], "drop_last": True},
        {"batch_size": None, "drop_last": True},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"batch_size": 4, "drop_last": 1},
        {"multiprocessing_context": "fork"},
        {"num_workers": 1, "multiprocessing_context": "none of them"},
        {"num_workers": 1, "multiprocessing_context": 3},
        {"no_such_argument": 1},
    ],
    ids=str,
)
def test_arguments_are_checked_as_torch_does(options):
    with pytest.raises((ValueError, TypeError)) as theirs:
        torch.utils.data.DataLoader(ours(), **options)
    with pytest.raises(theirs.type) as mine:
        DataLoader(ours(), **options)
    assert str(mine.value) == str(theirs.value) or "no_such_argument" in options


def test_an_empty_data_set_has_torchs_errors_and_length():
    empty = ArrayDataset(np.zeros((0, 2, 2, 3), np.uint8), np.arange(0))
    assert list(DataLoader(empty, batch_size=2)) == []
    assert len(DataLoader(empty, batch_size=2)) == 0
    with pytest.raises(ValueError, match="num_samples should be a positive integer"):
        DataLoader(empty, shuffle=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_index_out_of_range_is_an_error_at_its_batch_only(workers):
    loader = iter(
        DataLoader(ours(), batch_sampler=[[0], [COUNT], [-COUNT - 1], [2**70], [1], [None], [2]], num_workers=workers)
    )
    assert next(loader)[1].tolist() == [0]
    for index in (COUNT, -COUNT - 1, 2**70):
        with pytest.raises(IndexError, match=f"index {index} is out of range for a data set of 37 samples"):
            next(loader)
    assert next(loader)[1].tolist() == [1]
    with pytest.raises(TypeError, match="NoneType"):
        next(loader)
    assert next(loader)[1].tolist() == [2]
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_sampler_raises_arrives_behind_the_batches_before_it(workers):
    def indices():
        yield [0]
        yield [1]
        raise KeyError("the sampler's own")

    class Batches:
        def __iter__(self):
            return indices()

    loader = iter(DataLoader(ours(), batch_sampler=Batches(), num_workers=workers))
    assert [next(loader)[1].item() for _ in range(2)] == [0, 1]
    with pytest.raises(KeyError, match="the sampler's own"):
        next(loader)
    with pytest.raises(StopIteration):
        next(loader)


def test_an_empty_batch_is_torchs_error():
    loader = iter(DataLoader(ours(), batch_sampler=[[], [3]]))
    with pytest.raises(IndexError):
        next(loader)
    assert next(loader)[1].tolist() == [3]
    assert next(iter(DataLoader(ours(), batch_sampler=[[]], collate_fn=len))) == 0


def test_indices_are_pulled_ahead_as_far_as_torchs():
    pulled = []

    class Watched:
        def __iter__(self):
            for index in range(COUNT):
                pulled.append(index)
                yield [index]

    def seen(kind, workers, factor):
        pulled.clear()
        options = {"num_workers": workers, "prefetch_factor": factor} if workers else {}
        iterator = iter(kind(torchs() if kind is not DataLoader else ours(), batch_sampler=Watched(), **options))
        counts = [len(pulled)]
        for _ in range(5):
            next(iterator)
            counts.append(len(pulled))
        return counts

    for workers, factor in ((1, 2), (2, 2), (2, 3)):
        assert seen(DataLoader, workers, factor) == seen(torch.utils.data.DataLoader, workers, factor)
    # Without workers torch asks for one batch at a time; here two are asked for ahead.
    assert seen(torch.utils.data.DataLoader, 0, None) == [0, 1, 2, 3, 4, 5]
    assert seen(DataLoader, 0, None) == [0, 3, 4, 5, 6, 7]
