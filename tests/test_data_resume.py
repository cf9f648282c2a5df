"""Resumption of a loader: every failure that users of other loaders reported, by the number of their thread.

pytorch is pytorch/pytorch, data is meta-pytorch/data, streaming is mosaicml/streaming, DALI is NVIDIA/DALI.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DistributedSampler

from vit_rs.data import ArrayDataset, EncodedDataset, ImageLoader, TarShards
from vit_rs.data.order import share, share_length
from vit_rs.transforms import Compose, RandomCrop, RandomHorizontalFlip

AUGMENT = Compose([RandomCrop(6), RandomHorizontalFlip()])
COUNT = 37
BATCH = 4
BATCHES = 10


def pixels(count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("shards")
    encoded = [(png(image), number) for number, image in enumerate(pixels())]
    for kind, mode in (("tar", "w"), ("tar.gz", "w:gz")):
        for shard in range(4):
            with tarfile.open(root / f"{shard}.{kind}", mode) as file:
                for data, number in encoded[shard * 10 : shard * 10 + 10]:
                    for name, content in ((f"{number:03}.png", data), (f"{number:03}.cls", str(number).encode())):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        file.addfile(info, io.BytesIO(content))
    return {
        "array": ArrayDataset(pixels(), np.arange(COUNT)),
        "list": encoded,
        "tar": TarShards(str(root / "{0..3}.tar")),
        "gz": TarShards(str(root / "{0..3}.tar.gz")),
        "encoded": EncodedDataset(encoded),
    }


def make(source=None, **options) -> ImageLoader:
    source = ArrayDataset(pixels(), np.arange(COUNT)) if source is None else source
    options = {"batch_size": BATCH, "shuffle": True, "seed": 5, "num_threads": 2, "return_index": True, **options}
    return ImageLoader(source, AUGMENT, **options)


def taken(loader: ImageLoader, count: int | None = None) -> list[tuple[torch.Tensor, ...]]:
    return [tuple(tensor.clone() for tensor in batch) for batch in itertools.islice(loader, count)]


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


def indices(batches) -> list[int]:
    return [int(index) for batch in batches for index in batch[2]]


@pytest.fixture(scope="module")
def reference() -> list:
    """Three epochs without an interruption."""
    with make() as loader:
        return [taken(loader) for _ in range(3)]


@pytest.mark.parametrize("kind", ["array", "list", "tar", "gz", "encoded"])
def test_exact_after_every_step_pytorch_36650_and_11813_dali_1791(sources, kind):
    """And DALI#5103, #5113, #6340 (readers that start anew), webdataset#234, #271, #177 (tars that do)."""
    with make(sources[kind]) as loader:
        whole = [taken(loader), taken(loader)]
    for stop in (1, 2, 5, BATCHES - 1):
        with make(sources[kind]) as loader:
            seen = taken(loader, stop)
            state = loader.state_dict()
        with make(sources[kind], num_threads=3, prefetch=4) as loader:
            loader.load_state_dict(state)
            assert same(seen + taken(loader), whole[0])
            assert same(taken(loader), whole[1])


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_end_of_an_epoch_is_the_start_of_the_next_data_1437_verl_7401(drop_last):
    """data#1437 and its fix #1439: a state at the end dropped an epoch; verl-project/verl#7401: it skipped one."""
    with make(drop_last=drop_last) as loader:
        whole = [taken(loader) for _ in range(3)]
    with make(drop_last=drop_last) as loader:
        batches = iter(loader)
        for _ in range(len(loader)):
            next(batches)
        before = loader.state_dict()  # the last batch is out, the iteration has not ended yet
        assert next(batches, None) is None
        after = loader.state_dict()
    assert before == after
    assert (after["epoch"], after["consumed"]) == (1, 0)
    with make(drop_last=drop_last) as loader:
        loader.load_state_dict(after)
        assert same(taken(loader), whole[1])
        assert same(taken(loader), whole[2])


def test_a_state_soon_after_a_resumption_data_1251(reference):
    with make() as loader:
        taken(loader, 3)
        state = loader.state_dict()
    with make() as loader:
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        batches = iter(loader)
        assert loader.state_dict() == state
        next(batches)
        next_state = loader.state_dict()
    assert next_state == {**state, "consumed": 4 * BATCH}
    with make() as loader:
        loader.load_state_dict(next_state)
        assert same(taken(loader), reference[0][4:])


def test_steps_go_on_counting_data_1503(reference):
    """A loop over enumerate(loader) starts at 0 again; the state says where it should."""
    with make() as loader:
        taken(loader, 3)
        state = loader.state_dict()
    with make() as loader:
        loader.load_state_dict(state)
        steps = enumerate(loader, start=state["consumed"] // BATCH)
        assert all(torch.equal(batch[2], reference[0][step][2]) for step, batch in steps)


def test_prefetched_batches_are_not_consumed_data_1520(reference):
    with make(prefetch=8) as loader:
        taken(loader, 2)
        state = loader.state_dict()
    assert state["consumed"] == 2 * BATCH
    with make(prefetch=1) as loader:
        loader.load_state_dict(state)
        assert same(taken(loader), reference[0][2:])


def test_a_state_is_a_few_bytes_data_1317():
    """There a snapshot at each step took seconds; this one is arithmetic on five numbers."""
    with make() as loader:
        for _ in loader:
            state = loader.state_dict()
            assert len(json.dumps(state)) < 120
            assert {type(value) for value in state.values()} == {int}


def test_a_second_resumption_in_one_epoch_kempnerforge_57(reference):
    state, seen = None, []
    for stop in (2, 1, 4, None):
        with make() as loader:
            if state is not None:
                loader.load_state_dict(state)
            seen += taken(loader, stop)
            state = loader.state_dict()
    assert same(seen, reference[0])
    assert state["epoch"] == 1


def test_setting_the_epoch_of_the_state_keeps_its_position_veomni_853(reference):
    with make() as loader:
        loader.set_epoch(1)
        taken(loader, 3)
        state = loader.state_dict()
    with make() as loader:
        loader.load_state_dict(state)
        for epoch in (1, 2):
            loader.set_epoch(epoch)
            assert same(taken(loader), reference[epoch][3 if epoch == 1 else 0 :])


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_no_rank_replays_or_loses_a_batch_accelerate_3952(world, drop_last):
    """With a padded or cut end, too: each rank's batches are those that would have come."""
    for rank in range(world):
        options = {"rank": rank, "world_size": world, "batch_size": 3, "drop_last": drop_last}
        with make(**options) as loader:
            whole = taken(loader)
        for stop in range(1, len(whole)):
            with make(**options) as loader:
                taken(loader, stop)
                state = loader.state_dict()
            with make(**options) as loader:
                loader.load_state_dict(state)
                assert same(taken(loader), whole[stop:])


def test_a_state_reaches_threads_that_run_torcheasyrec_544(reference):
    """There a state did not reach workers that had been started; anemoi-core#4: nor a loader that was in use."""
    with make() as loader:
        taken(loader, 5)
        state = loader.state_dict()
        taken(loader)
        batches = iter(loader)
        next(batches)
        loader.load_state_dict(state)
        assert same(taken(loader), reference[0][5:])
        with pytest.raises(RuntimeError, match="started or set anew"):
            next(batches)


def elastic(stages: list[tuple[int, int, int | None]], **options) -> list[int]:
    """Go through one epoch in stages (world size, batch size, batches); return the samples in the order of use."""
    state, used = None, []
    for world, batch, count in stages:
        ranks = []
        for rank in range(world):
            with make(rank=rank, world_size=world, batch_size=batch, **options) as loader:
                if state is not None:
                    loader.load_state_dict(state)
                ranks.append((taken(loader, count), loader.state_dict()))
        assert all(ranks[0][1] == other for _, other in ranks)
        state = ranks[0][1]
        for step in itertools.zip_longest(*(batches for batches, _ in ranks)):
            rows = [row for batch in step for row in [batch[2].tolist()]]
            used += [index for turn in itertools.zip_longest(*rows) for index in turn if index is not None]
    return used


@pytest.mark.parametrize(
    "stages",
    [
        [(4, 2, 2), (2, 3, None)],
        [(2, 3, 2), (4, 2, None)],
        [(1, 5, 3), (8, 1, None)],
        [(8, 2, 1), (1, 7, None)],
        [(3, 2, 1), (2, 2, 2), (5, 1, 1), (1, 4, None)],
        [(1, 4, 2), (1, 7, None)],
    ],
)
def test_another_number_of_ranks_or_batch_size_goes_on_streaming_880_and_421(stages):
    """The first samples of the epoch's order are done, whoever did them; the rest follows, each once."""
    with make() as loader:
        order = indices(taken(loader))
    used = elastic(stages)
    assert used[:COUNT] == order
    # What the last stage repeats to fill its ranks, are the first samples of the order.
    assert used[COUNT:] == order[: len(used) - COUNT]
    assert len(used) - COUNT < stages[-1][0]


def test_without_a_last_batch_the_rest_is_cut():
    with make() as loader:
        order = indices(taken(loader))
    used = elastic([(2, 4, 2), (3, 5, None)], drop_last=True)
    assert used == order[: 16 + 15]
    # A rest that fills no batch ends its epoch without one, and the next epoch is whole.
    with make(batch_size=36) as loader:
        taken(loader, 1)
        state = loader.state_dict()
    with make(batch_size=2, drop_last=True) as loader:
        loader.load_state_dict(state)
        assert taken(loader) == []
        assert len(taken(loader)) == len(loader) == 18


def test_pixels_do_not_depend_on_the_ranks(reference):
    expected = {int(index): image for batch in reference[0] for image, index in zip(batch[0], batch[2], strict=True)}
    with make(rank=1, world_size=3, batch_size=5) as loader:
        for images, _, order in loader:
            assert all(torch.equal(image, expected[int(i)]) for image, i in zip(images, order, strict=True))


@pytest.mark.parametrize("drop_last", [False, True])
def test_shares_are_those_of_torch_distributed_sampler(drop_last):
    for samples, world in itertools.product([1, 2, 5, 16, 37], [1, 2, 3, 8, 50]):
        order = np.arange(samples, dtype=np.uint64)
        for rank in range(world):
            options = {"num_replicas": world, "rank": rank, "shuffle": False, "drop_last": drop_last}
            sampler = DistributedSampler(range(samples), **options)
            if drop_last and samples < world:
                continue  # torch fails there
            mine = share(order, 0, rank=rank, world_size=world, drop_last=drop_last)
            assert mine.tolist() == list(sampler)
            assert len(mine) == share_length(samples, world_size=world, drop_last=drop_last)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seed": 6}, "the state is of another loader: seed is 6 there, 5 here"),
        ({"samples": 40}, "samples is 40 there, 37 here"),
        ({"shuffle": 0}, "shuffle is 0 there, 1 here"),
        ({"epoch": -1}, r"the state's epoch must be in 0\.\.2\*\*64 - 1, got -1"),
        ({"consumed": 38}, r"the state's consumed must be in 0\.\.37, got 38"),
    ],
)
def test_states_that_mean_something_else_are_refused(changes, text):
    with make() as loader:
        state = loader.state_dict()
        with pytest.raises(ValueError, match=text):
            loader.load_state_dict({**state, **changes})
        with pytest.raises(ValueError, match="the state lacks consumed"):
            loader.load_state_dict({name: value for name, value in state.items() if name != "consumed"})
