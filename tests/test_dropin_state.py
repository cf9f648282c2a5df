"""state_dict and load_state_dict of DataLoader: every failure that users of other loaders reported, by their thread.

pytorch is pytorch/pytorch, data is meta-pytorch/data, KempnerForge is KempnerInstitute/KempnerForge, verl is
verl-project/verl, VeOmni is ByteDance-Seed/VeOmni, TorchEasyRec is alibaba/TorchEasyRec.
"""

# ruff: noqa: NPY002  (numpy's legacy generator is one of the three that matter here)
from __future__ import annotations

import dataclasses
import io
import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, Sampler, WeightedRandomSampler

from vit_rs.data import ArrayDataset, DataLoader
from vit_rs.data.dropin import iteration

COUNT, BATCH, BATCHES = 37, 4, 10


def noisy(image):
    """A Python stage that draws."""
    return image + torch.randint(0, 9, image.shape, dtype=torch.uint8) + np.random.randint(3) + random.randrange(3)


@pytest.fixture(scope="module")
def data():
    pixels = np.random.default_rng(0).integers(0, 200, (COUNT, 4, 5, 3), dtype=np.uint8)
    return ArrayDataset(pixels, np.arange(COUNT))


class StatefulSampler(Sampler):
    """A sampler that keeps its own state, and cannot be replayed."""

    def __init__(self):
        self.done = 0
        self.loaded = []

    def __iter__(self):
        while self.done < COUNT:
            self.done += 1
            yield (self.done - 1) * 5 % COUNT
        self.done = 0

    def __len__(self):
        return COUNT

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.loaded.append(dict(state))
        self.done = state["done"]


class FromEverywhere(Sampler):
    """A sampler that draws from all three shared generators when it is iterated."""

    def __iter__(self):
        order = [*range(COUNT)]
        random.shuffle(order)
        order = np.random.permutation(order)
        return iter(order[torch.randperm(COUNT).numpy()].tolist())

    def __len__(self):
        return COUNT


OPTIONS = {
    "in order": lambda _: {},
    "shuffle": lambda _: {"shuffle": True},
    "generator": lambda _: {"shuffle": True, "generator": torch.Generator().manual_seed(4)},
    "replacement": lambda data: {"sampler": RandomSampler(data, replacement=True, generator=torch.Generator())},
    "weighted": lambda _: {"sampler": WeightedRandomSampler([1.0] * COUNT, COUNT)},
    "distributed": lambda data: {"sampler": DistributedSampler(data, num_replicas=1, rank=0)},
    "stateful": lambda _: {"sampler": StatefulSampler()},
    "own": lambda _: {"sampler": FromEverywhere()},
    "distributed batches": lambda data: {
        "batch_sampler": BatchSampler(DistributedSampler(data, num_replicas=1, rank=0), BATCH, drop_last=False)
    },
    "batches": lambda _: {"batch_sampler": [[*range(k, k + 4)] for k in range(0, COUNT - 1, 4)] + [[36]]},
    "workers": lambda _: {"shuffle": True, "num_workers": 2},
    "persistent": lambda _: {"shuffle": True, "num_workers": 1, "persistent_workers": True},
}


def make(data, name: str = "shuffle", **more) -> DataLoader:
    options = {**OPTIONS[name](data), **more}
    if "batch_sampler" not in options:
        options.setdefault("batch_size", BATCH)
    return DataLoader(data, **options)


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def saved(state: dict) -> dict:
    """Return a state that was in a file, and read with torch's safe reader."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def labels(batches) -> list:
    return [batch[1].tolist() for batch in batches]


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.fixture(autouse=True)
def drawing(monkeypatch, data):
    """Let every loader have a Python stage that draws, so that equal batches mean equal keys."""
    from vit_rs.data.dropin import plan

    real = plan.open_dataset

    def opened(dataset):
        return dataclasses.replace(real(dataset), transform=noisy)

    monkeypatch.setattr(plan, "open_dataset", opened)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("done", [0, 1, 6, BATCHES])
def test_the_rest_is_what_would_have_come(data, name, done):
    seed(0)
    loader = make(data, name)
    iterator = iter(loader)
    for _ in range(done):
        next(iterator)
    state = saved(loader.state_dict())
    expected = list(iterator)
    assert len(expected) == BATCHES - done
    seed(1)
    fresh = make(data, name)
    fresh.load_state_dict(state)
    assert same(list(fresh), expected)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_epochs_after_it_too(data, name):
    """data#1437 + #1439: a state at an epoch's end dropped an epoch; verl#7401: it skipped the next one."""
    seed(0)
    loader = make(data, name)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state, generators = saved(loader.state_dict()), torch.get_rng_state()
    shared = random.getstate(), np.random.get_state()
    expected = [*iterator, *loader]
    at_end, generators_at_end = saved(loader.state_dict()), torch.get_rng_state()
    shared_at_end = random.getstate(), np.random.get_state()
    expected_after = list(loader)
    seed(1)
    # The shared generators are the script's to save.
    fresh = make(data, name)
    fresh.load_state_dict(state)
    torch.set_rng_state(generators)
    random.setstate(shared[0])
    np.random.set_state(shared[1])
    assert same([*fresh, *fresh], expected)
    fresh = make(data, name)
    fresh.load_state_dict(at_end)
    torch.set_rng_state(generators_at_end)
    random.setstate(shared_at_end[0])
    np.random.set_state(shared_at_end[1])
    assert same(list(fresh), expected_after)


def test_resuming_leaves_the_shared_generators_alone(data):
    for name in ("shuffle", "own", "workers"):
        seed(0)
        loader = make(data, name)
        next(iter(loader))
        state = loader.state_dict()
        fresh = make(data, name)
        fresh.load_state_dict(state)
        before = torch.get_rng_state(), random.getstate()
        list(fresh)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]


def test_a_second_resume_in_one_epoch(data):
    """KempnerForge#57: the second one misaligned."""
    seed(0)
    expected = list(make(data))
    seed(0)
    loader, got = make(data), []
    for part in (3, 2, 4, 1):
        got += itertools.islice(loader, part)
        state = saved(loader.state_dict())
        seed(9)
        loader = make(data)
        loader.load_state_dict(state)
    assert same(got, expected)


def test_a_state_asked_for_right_after_a_resume_is_the_one_that_was_loaded(data):
    """data#1251: it was incomplete; data#1437: it was another one."""
    loader = make(data)
    next(iter(loader))
    state = loader.state_dict()
    fresh = make(data)
    fresh.load_state_dict(state)
    again = fresh.state_dict()
    assert again["batches"] == state["batches"] == 1
    other = make(data)
    other.load_state_dict(saved(again))
    assert same(list(fresh), list(other))


def test_a_state_before_the_first_batch(data):
    """pytorch#36650: a loader that was asked before it started."""
    seed(0)
    loader = make(data)
    state = saved(loader.state_dict())
    # The iteration was started for it, and is the one that comes.
    torch.rand(3)
    expected = list(loader)
    seed(5)
    fresh = make(data)
    fresh.load_state_dict(state)
    assert same(list(fresh), expected)
    assert len(list(loader)) == BATCHES


def test_a_finished_epoch_starts_a_whole_one(data):
    """verl#7401, data#1437: nothing is skipped."""
    loader = make(data)
    assert len(list(loader)) == BATCHES
    fresh = make(data)
    fresh.load_state_dict(saved(loader.state_dict()))
    assert sorted(itertools.chain(*labels(fresh))) == [*range(COUNT)]


def test_after_the_last_batch_nothing_is_left_of_the_epoch(data):
    """As torchdata's: the epoch that the script is in is over, and the next one is whole."""
    loader = make(data)
    iterator = iter(loader)
    for _ in range(BATCHES):
        next(iterator)
    fresh = make(data)
    fresh.load_state_dict(loader.state_dict())
    assert list(fresh) == []
    assert len(list(fresh)) == BATCHES


def test_a_loaded_state_counts_once(data):
    """VeOmni#853, TorchEasyRec#544: a state that was applied twice, or to nobody."""
    loader = make(data)
    next(iter(loader))
    loader.load_state_dict(loader.state_dict())
    assert [len(list(loader)) for _ in range(3)] == [BATCHES - 1, BATCHES, BATCHES]
    state = loader.state_dict()
    next(iter(loader))
    loader.load_state_dict(loader.state_dict())
    loader.load_state_dict({})
    assert len(list(loader)) == BATCHES
    assert state["_iterator_finished"] is True


def test_batches_made_ahead_do_not_count(data):
    """data#1520: prefetched data were discarded."""
    seed(0)
    loader = make(data, "workers", prefetch_factor=4)
    iterator = iter(loader)
    got = [next(iterator)]
    state = loader.state_dict()
    assert state["batches"] == 1
    fresh = make(data, "workers", prefetch_factor=4)
    fresh.load_state_dict(state)
    seed(0)
    assert same([*got, *fresh], list(make(data, "workers")))


def test_worker_count_and_prefetch_may_change(data):
    """TorchEasyRec#544 and torchdata's own: a state tied to its workers."""
    seed(0)
    expected = list(make(data))
    for first, second in itertools.permutations([0, 1, 2], 2):
        seed(0)
        loader = make(data, num_workers=first)
        got = list(itertools.islice(loader, 4))
        fresh = make(data, num_workers=second)
        fresh.load_state_dict(saved(loader.state_dict()))
        seed(2)
        got += list(fresh)
        assert sorted(itertools.chain(*labels(got))) == [*range(COUNT)]
        if not first:
            assert same(got, expected)


def test_an_abandoned_iteration_can_be_resumed(data):
    """The loader knows where it stood when its iterator is gone."""
    loader = make(data)
    for number, _ in enumerate(loader):
        if number == 3:
            break
    state = loader.state_dict()
    assert state["batches"] == 4
    loader.load_state_dict(state)
    assert len(list(loader)) == BATCHES - 4


def test_an_iteration_under_way_ends_when_a_state_is_loaded(data):
    loader = make(data)
    iterator = iter(loader)
    next(iterator)
    loader.load_state_dict(loader.state_dict())
    with pytest.raises(RuntimeError, match="this iteration ended"):
        next(iterator)


def test_a_failed_batch_is_behind(data):
    loader = make(data, "batches", batch_sampler=[[0], [COUNT], [1]])
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(IndexError):
        next(iterator)
    fresh = make(data, "batches", batch_sampler=[[0], [COUNT], [1]])
    fresh.load_state_dict(loader.state_dict())
    assert labels(fresh) == [[1]]


def test_distributed_epochs(data):
    """VeOmni#853: set_epoch after a load skipped an epoch."""

    def run(loader, first, last, upto=None):
        got = []
        for epoch in range(first, last):
            loader.sampler.set_epoch(epoch)
            got += itertools.islice(loader, upto if epoch == last - 1 else None)
        return got

    seed(0)
    loader = make(data, "distributed")
    run(loader, 0, 3, upto=4)
    state = saved(loader.state_dict())
    loader.load_state_dict(state)
    expected = list(loader)
    fresh = make(data, "distributed")
    fresh.load_state_dict(state)
    assert fresh.sampler.epoch == 2
    assert labels(run(fresh, 2, 3)) == labels(expected)
    fresh.load_state_dict(state)
    fresh.sampler.set_epoch(0)
    for _ in range(2):
        with pytest.raises(ValueError, match="the state stands in epoch 2 of the sampler, which was set to epoch 0"):
            iter(fresh)
    fresh.sampler.set_epoch(2)
    assert labels(fresh) == labels(expected)


def test_a_stateful_sampler_is_asked_for_where_the_consumer_stands(data):
    loader = make(data, "stateful", num_workers=2)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    # It has been asked for more: by then, the loader was ahead.
    assert loader.sampler.done == 7 * BATCH
    assert loader.state_dict()["sampler"] == {"done": 3 * BATCH}
    fresh = make(data, "stateful")
    fresh.load_state_dict(loader.state_dict())
    assert len(list(fresh)) == BATCHES - 3
    assert fresh.sampler.loaded == [{"done": 12}]


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"batch_size": 5}, "batch_size is 4 there, 5 here"),
        ({"drop_last": True}, "drop_last is False there, True here"),
        ({"shuffle": False}, "sampler is 'torch.utils.data.sampler.RandomSampler' there"),
    ],
)
def test_a_state_of_another_loader(data, options, differs):
    loader = make(data)
    next(iter(loader))
    with pytest.raises(ValueError, match=differs):
        make(data, **options).load_state_dict(loader.state_dict())


def test_a_state_of_another_data_set_or_world(data):
    smaller = ArrayDataset(data.images[:-1], np.arange(COUNT - 1))
    with pytest.raises(ValueError, match="samples is 36 there, 37 here"):
        make(data).load_state_dict(make(smaller).state_dict())
    two = make(data, sampler=DistributedSampler(data, num_replicas=2, rank=0), shuffle=None)
    with pytest.raises(ValueError, match="num_replicas is 2 there, 1 here"):
        make(data, "distributed").load_state_dict(two.state_dict())


def test_what_is_no_state(data):
    with pytest.raises(
        ValueError, match=r"no state of a vit_rs.data.DataLoader: it lacks _iterator_finished, base_seed, batches"
    ):
        make(data).load_state_dict({"epoch": 3})
    state = make(data).state_dict()
    with pytest.raises(ValueError, match="the state has version 99, this vit_rs reads version 1"):
        make(data).load_state_dict({**state, "version": 99})
    # accelerate adds to a state.
    make(data).load_state_dict({**state, "_more": 3})


def test_a_sampler_that_became_shorter(data):
    loader = make(data, "batches")
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    shorter = make(data, "batches", batch_sampler=[[0], [1]])
    shorter.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match="taken after 5 batches, the sampler now has 2"):
        iter(shorter)


def test_another_number_of_generators(data):
    loader = make(data, "generator")
    next(iter(loader))
    fresh = make(data)
    fresh.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match="taken with 1 generators given to loader and samplers, here are 0"):
        iter(fresh)


def test_states_are_independent_of_each_other(data):
    loader = make(data)
    iterator = iter(loader)
    next(iterator)
    first = loader.state_dict()
    first["_iterator_finished"] = True
    next(iterator)
    assert loader.state_dict()["_iterator_finished"] is False
    assert first["batches"] == 1


def test_a_state_costs_little(data):
    """data#1317: two seconds a step."""
    loader = make(data)
    next(iter(loader))
    assert len(str(loader.state_dict()["identity"])) < 300
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    assert len(file.getvalue()) < 60_000
    assert iteration._DRAWS_PER_RANK == 2**40


# Samplers that hold generators themselves.


class Private(Sampler):
    """A sampler that draws its order from a generator of its own, kept under whatever name."""

    def __init__(self, generator):
        self.held = [{"mine": generator}]

    def __iter__(self):
        generator = self.held[0]["mine"]
        if isinstance(generator, torch.Generator):
            return iter(torch.randperm(COUNT, generator=generator).tolist())
        order = [*range(COUNT)]
        generator.shuffle(order)
        return iter(order)

    def __len__(self):
        return COUNT


class Around(Sampler):
    """A sampler around another one."""

    def __init__(self, inner):
        self.inner = inner

    def __iter__(self):
        yield from self.inner

    def __len__(self):
        return len(self.inner)


class AlongTheWay(Sampler):
    """A sampler that draws each index when it is asked for, from one of the shared generators."""

    def __init__(self, draw):
        self.draw = draw

    def __iter__(self):
        for _ in range(COUNT):
            yield self.draw()

    def __len__(self):
        return COUNT


GENERATORS = {
    "torch": lambda: torch.Generator().manual_seed(7),
    "random": lambda: random.Random(7),
    "numpy, old": lambda: np.random.RandomState(7),
    **{
        kind.__name__: lambda kind=kind: np.random.Generator(kind(7))
        for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
    },
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_that_samplers_hold_are_in_the_state(data, name):
    wanted, states = [], []
    loader = make(data, sampler=Around(Private(GENERATORS[name]())), shuffle=None)
    for _ in range(3):
        epoch = []
        for number, batch in enumerate(loader):
            epoch.append(batch[1].tolist())
            if number == 4:
                states.append(saved(loader.state_dict()))
        wanted.append(epoch)
    states.append(saved(loader.state_dict()))
    for number, state in enumerate(states[:2]):
        fresh = make(data, sampler=Around(Private(GENERATORS[name]())), shuffle=None)
        fresh.load_state_dict(state)
        assert labels(fresh) == wanted[number][5:]
        assert labels(fresh) == wanted[number + 1]
    # Behind the last epoch: the next one of both is the same.
    fresh = make(data, sampler=Around(Private(GENERATORS[name]())), shuffle=None)
    fresh.load_state_dict(states[-1])
    assert labels(fresh) == labels(loader)


@pytest.mark.parametrize(
    "draw",
    [lambda: int(torch.randint(COUNT, ())), lambda: random.randrange(COUNT), lambda: np.random.randint(COUNT)],
    ids=["torch", "random", "numpy"],
)
def test_a_sampler_that_cannot_be_replayed_is_warned_of(data, draw):
    loader = make(data, sampler=AlongTheWay(draw), shuffle=None)
    iterator = iter(loader)
    loader.state_dict()
    next(iterator)
    with pytest.warns(UserWarning, match=r"draws from the generators .* give the sampler a state_dict") as caught:
        loader.state_dict()
    assert caught[0].filename == __file__
    list(iterator)
    # The next epoch starts from what the script saves itself.
    loader.state_dict()


def test_where_generators_are_looked_for(data):
    from vit_rs.data.dropin.sampler_generators import generators_in

    one, two = random.Random(1), np.random.default_rng(1)
    around = Around(Private(one))
    around.again, around.itself, around.data = one, around, data
    around.system, around.many = random.SystemRandom(), [two] * 2000
    around.pair = (two, None)
    assert generators_in(generator=None, sampler=around) == {"sampler.inner.held.0.mine": one, "sampler.pair.0": two}
