"""The life of a DataLoader: fallback, changes between epochs, engines and threads, copies, other loaders' hands."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch.utils.data import IterableDataset, Subset, TensorDataset, default_collate
from torchvision.transforms import v2

from vit_rs.data import ArrayDataset, DataLoader, EncodedDataset, LoaderStats
from vit_rs.data.dropin.collation import Collation

COUNT = 24
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def root(plain_images) -> str:
    return plain_images(COUNT)


def folder(root: str, transform=None, **options) -> torchvision.datasets.ImageFolder:
    return torchvision.datasets.ImageFolder(root, transform, **options)


def chain(size: int = 8, *more) -> v2.Compose:
    return v2.Compose([v2.Resize((size, size)), v2.ToImage(), *more])


def array(count: int = COUNT) -> ArrayDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return ArrayDataset(pixels, np.arange(count))


def named_threads() -> int:
    gc.collect()
    names = []
    for task in Path("/proc/self/task").iterdir():
        # Threads of earlier tests may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            names.append((task / "comm").read_text())
    return sum(name.startswith("vit-rs") for name in names)


def rust_threads() -> int:
    """Count the loaders' threads at rest: a new one takes a moment to its name, one of an earlier test to its end."""
    count, since = named_threads(), time.monotonic()
    while time.monotonic() - since < 0.1:
        time.sleep(0.01)
        if (now := named_threads()) != count:
            count, since = now, time.monotonic()
    return count


linux = pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")


# What cannot be lowered.


class Own(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.zeros(2), index


class Endless(IterableDataset):
    def __iter__(self):
        return iter([1, 2])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (Own(), "Own has a __getitem__ of its own"),
        (TensorDataset(torch.zeros(3)), "TensorDataset has a __getitem__ of its own"),
        ([1, 2, 3], "a list gives its items as they are"),
        (Endless(), "Endless is an IterableDataset"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_data_set_that_only_python_can_read(data, reason):
    with pytest.raises(TypeError, match=reason) as error:
        DataLoader(data)
    assert "fallback='torch'" in str(error.value)
    assert "vit_rs.data." in str(error.value)
    with pytest.warns(UserWarning, match=reason) as caught:
        loader = DataLoader(data, 2, fallback="torch")
    assert caught[0].filename == __file__
    assert type(loader) is torch.utils.data.DataLoader
    assert loader.batch_size == 2
    assert list(loader)


def test_fallback_is_not_used_where_it_is_not_needed(root):
    loader = DataLoader(dataset=folder(root, chain()), batch_size=4, fallback="torch")
    assert type(loader) is DataLoader
    assert loader.fallback == "torch"
    assert len(list(loader)) == 6
    with pytest.raises(ValueError, match="fallback must be None or 'torch', got 'numpy'"):
        DataLoader(array(), fallback="numpy")


def test_a_subclass_cannot_fall_back(root):
    class Mine(DataLoader):
        def __init__(self, data):
            super().__init__(data, batch_size=2, fallback="torch")

    assert len(list(Mine(folder(root, chain())))) == COUNT // 2
    with pytest.raises(TypeError, match=r"Own has a __getitem__ of its own.*a subclass such as Mine cannot fall back"):
        Mine(Own())


def test_torchs_argument_checks_come_first():
    with pytest.raises(ValueError, match="DataLoader with IterableDataset: expected unspecified shuffle option"):
        DataLoader(Endless(), shuffle=True)
    with pytest.raises(ValueError, match="num_workers option should be non-negative"):
        DataLoader(Own(), num_workers=-1)


# What changes between epochs.


def test_a_change_of_the_data_set_is_seen_at_the_next_iteration(root):
    data = folder(root, chain(8))
    loader = DataLoader(data, batch_size=4)
    shape = lambda: tuple(next(iter(loader))[0].shape)  # noqa: E731
    assert shape() == (4, 3, 8, 8)
    data.transform.transforms[0].size = [5, 6]
    assert shape() == (4, 3, 5, 6)
    data.transforms.transform = data.transform = chain(9)
    assert shape() == (4, 3, 9, 9)
    data.samples[0] = (data.samples[5][0], 77)
    images, labels = next(iter(loader))
    assert labels[0] == 77
    assert images[0, 0, 0, 0] == int(os.path.basename(data.samples[5][0])[:2])
    data.transform.transforms.append(lambda image: image[:, :2])
    assert shape() == (4, 3, 2, 9)


def test_python_that_is_added_and_removed_later(root):
    """The engine's part stays the same; it must not be taken for the whole."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    data = folder(root, chain(8, to_float))
    loader = DataLoader(data, batch_size=4)
    plain = next(iter(loader))[0]
    data.transform.transforms.append(torch.neg)
    assert torch.equal(next(iter(loader))[0], -plain)
    assert "Python" in loader.explain()
    data.transform.transforms.pop()
    assert torch.equal(next(iter(loader))[0], plain)


def test_a_collate_fn_that_is_set_later_counts():
    loader = DataLoader(array(), batch_size=4)
    loader.collate_fn = len
    assert list(loader) == [4] * 6


# Engines.


def test_several_iterations_of_one_loader_at_once(root):
    loader = DataLoader(folder(root, chain()), batch_size=5, shuffle=True, num_workers=2)
    torch.manual_seed(0)
    expected = [list(loader), list(loader), list(loader)]
    torch.manual_seed(0)
    iterators = [iter(loader) for _ in range(3)]
    got = [[], [], []]
    for _ in range(5):
        for number, iterator in enumerate(iterators):
            got[number].append(next(iterator))
    for first, second in zip(got, expected, strict=True):
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))


@linux
def test_threads_outlive_an_epoch_and_end_with_the_loader():
    before = rust_threads()
    loader = DataLoader(array(), batch_size=4, num_workers=2)
    assert rust_threads() == before
    for _ in range(3):
        assert len(list(loader)) == 6
        assert rust_threads() == before + 2
    iterators = [iter(loader) for _ in range(3)]
    for iterator in iterators:
        next(iterator)
    assert rust_threads() == before + 6
    del iterators, iterator
    gc.collect()
    assert rust_threads() == before + 2
    batch = next(iter(loader))
    del loader
    gc.collect()
    assert rust_threads() == before
    assert batch[0].shape == (4, 3, 4, 4)


@linux
def test_close_ends_iterations_and_the_next_one_starts_anew():
    before = rust_threads()
    with DataLoader(array(), batch_size=4, num_workers=2) as loader:
        iterator = iter(loader)
        next(iterator)
    assert rust_threads() == before
    for _ in range(2):
        with pytest.raises(RuntimeError, match="this iteration ended when the DataLoader was closed"):
            next(iterator)
    assert loader.state_dict()["batches"] == 1
    assert len(list(loader)) == 6
    with pytest.raises(RuntimeError, match="this iteration ended"):
        next(iterator)
    loader.close()
    loader.close()
    assert rust_threads() == before
    assert loader.state_dict()["_iterator_finished"] is True
    persistent = DataLoader(array(), batch_size=4, num_workers=1, persistent_workers=True)
    next(iter(persistent))
    persistent.close()
    assert len(list(persistent)) == 6
    persistent.close()


def test_a_loader_and_its_iterators_are_no_cycle():
    loader = DataLoader(array(), batch_size=4, num_workers=1, persistent_workers=True)
    list(loader)
    iterator = iter(loader)
    gone = weakref.ref(loader), weakref.ref(iterator)
    gc.disable()
    try:
        del loader, iterator
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()


def test_an_iterator_outlives_its_loader():
    assert len(list(iter(DataLoader(array(), batch_size=5)))) == 5


def test_persistent_workers_keep_the_iterator():
    loader = DataLoader(array(), batch_size=4, num_workers=2, persistent_workers=True)
    first = iter(loader)
    next(first)
    assert iter(loader) is first
    assert len(list(first)) == 6
    # Lightning drops it at the end of an epoch.
    loader._iterator = None
    assert iter(loader) is not first
    other = DataLoader(array(), batch_size=4, num_workers=2)
    assert iter(other) is not iter(other)


def test_an_iterator_is_as_torchs():
    loader = DataLoader(array(), batch_size=5)
    iterator = iter(loader)
    assert iter(iterator) is iterator
    assert len(iterator) == len(loader) == 5
    assert len(list(iterator)) == 5
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(iterator)
    with pytest.raises(NotImplementedError):
        pickle.dumps(iterator)


def test_the_profiler_sees_batches():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        list(DataLoader(array(), batch_size=12))
    assert any(event.key.startswith("enumerate(DataLoader)#") for event in profile.key_averages())


def test_a_timeout_is_torchs(root):
    started = threading.Event()

    class Slow:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            started.wait()
            with open(folder(root).samples[index][0], "rb") as file:
                return file.read(), index

    iterator = iter(DataLoader(EncodedDataset(Slow()), batch_size=2, num_workers=1, timeout=0.1, collate_fn=len))
    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 0\.1 seconds"):
        next(iterator)
    started.set()
    iterator._timeout = 30
    assert list(iterator) == [2, 2]


def test_pin_memory_without_an_accelerator_warns_as_torch_does():
    if torch.accelerator.is_available():
        pytest.skip("there is one")
    loader = DataLoader(array(), batch_size=4, pin_memory=True)
    text = "'pin_memory' argument is set as true but no accelerator is found"
    with pytest.warns(UserWarning, match=text) as first:
        batches = list(loader)
    with pytest.warns(UserWarning, match=text) as second:
        next(iter(loader))
    # From one place, as torch's: Python shows it once, not for each line of a script that iterates.
    assert len({(warning.filename, warning.lineno) for warning in [*first, *second]}) == 1
    assert len(batches) == 6
    loader = DataLoader(array(), batch_size=4, pin_memory=True, pin_memory_device="cuda")
    with pytest.warns(UserWarning, match="no accelerator"), pytest.warns(UserWarning, match="pin_memory_device='cuda'"):
        next(iter(loader))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    "options", [{}, {"collate_fn": default_collate}, {"collate_fn": list}], ids=["plain", "default_collate", "list"]
)
def test_batches_are_pinned(options):
    plain = list(DataLoader(array(), batch_size=5, num_workers=2))
    pinned = list(DataLoader(array(), batch_size=5, num_workers=2, pin_memory=True, **options))
    if options.get("collate_fn") is list:
        assert all(image.is_pinned() for samples in pinned for image, _ in samples)
        return
    for (images, labels), (want, want_labels) in zip(pinned, plain, strict=True):
        assert images.is_pinned()
        assert labels.is_pinned()
        assert torch.equal(images.to("cuda", non_blocking=True).cpu(), want)
        assert torch.equal(labels, want_labels)


def test_more_threads_than_cpus_is_worth_a_warning():
    with pytest.warns(UserWarning, match="will decode in 4000 threads on .* usable CPU"):
        DataLoader(array(), num_workers=4000)


# Copies and forks.


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_an_idle_loader_can_be_copied(root, copied):
    data = folder(root, chain())
    loader = DataLoader(data, batch_size=5, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(2))
    fresh = copied(loader)
    loader.generator.manual_seed(2)
    want = list(loader)
    fresh.generator.manual_seed(2)
    got = list(fresh)
    assert type(fresh) is DataLoader
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(got, want, strict=True))
    again = copied(loader)
    assert again._running is not loader._running
    assert len(list(again)) == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_refuses_a_running_loader_and_can_make_its_own():
    code = """
import os, sys, warnings
import numpy as np
from vit_rs.data import ArrayDataset, DataLoader
warnings.simplefilter("ignore")
data = ArrayDataset(np.zeros((9, 2, 2, 3), np.uint8), np.arange(9))
loader = DataLoader(data, batch_size=3)
unused = DataLoader(data, batch_size=3)
iterator = iter(loader)
next(iterator)
child = os.fork()
if child == 0:
    try:
        next(iterator)
    except ValueError as error:
        assert "a forked child" in str(error), error
    else:
        os._exit(3)
    assert len(list(unused)) == 3
    assert len(list(loader)) == 3
    del iterator, loader
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert len(list(iterator)) == 2
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_running_loader_may_live_in_torchs_workers(root):
    """A data set that holds a loader goes to torch's worker processes with it."""

    class Holder(torch.utils.data.Dataset):
        def __init__(self, loader):
            self.loader = loader

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return index

    loader = DataLoader(array(), batch_size=4)
    next(iter(loader))
    assert len(list(torch.utils.data.DataLoader(Holder(loader), num_workers=1))) == 2


# In the hands of others.


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"collate_fn": default_collate}, {"batch_size": None}],
    ids=["plain", "default_collate", "batch_size=None"],
)
def test_a_rebuilt_loader_of_torchs_refuses(root, workers, options):
    loader = DataLoader(Subset(folder(root, chain()), [0, 1]), **options)
    rebuilt = iter(torch.utils.data.DataLoader(loader.dataset, collate_fn=loader.collate_fn, num_workers=workers))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"this is torch's DataLoader, rebuilt from a vit_rs.data.DataLoader"):
            next(rebuilt)
    # To the end: torch waits for seconds for workers that are left before.
    with pytest.raises(StopIteration):
        next(rebuilt)


def test_a_rebuilt_loader_of_ours_works(root):
    def collate(samples):
        return len(samples)

    loader = DataLoader(folder(root, chain()), batch_size=4, collate_fn=collate)
    rebuilt = DataLoader(loader.dataset, batch_size=4, collate_fn=loader.collate_fn)
    assert list(rebuilt) == list(loader) == [4] * 6
    assert rebuilt.collate_fn.function is collate
    assert loader.collate_fn == collate
    assert collate == loader.collate_fn == rebuilt.collate_fn
    assert loader.collate_fn != default_collate
    assert {collate: 1}[loader.collate_fn] == 1


def test_the_guard_stands_for_the_function():
    class Mixup:
        mixup_enabled = True

        def __call__(self, samples):
            return len(samples) if self.mixup_enabled else -1

    mixup = Mixup()
    loader = DataLoader(array(), batch_size=4, collate_fn=mixup)
    # As timm's PrefetchLoader finds and sets it.
    assert isinstance(loader.collate_fn, Mixup)
    assert loader.collate_fn([1, 2]) == 2
    loader.collate_fn.mixup_enabled = False
    assert mixup.mixup_enabled is False
    assert list(loader) == [-1] * 6
    copied = pickle.loads(pickle.dumps(Collation(default_collate)))
    assert type(copied) is Collation
    assert copied.function is default_collate
    assert copied([1, 2]).tolist() == [1, 2]
    assert repr(copied).startswith("Collation(<function default_collate")


def test_every_parameter_is_an_attribute_of_its_name():
    """Lightning makes a loader anew from vars()."""
    import inspect

    loader = DataLoader(array(), batch_size=4)
    names = set(inspect.signature(DataLoader.__init__).parameters) - {"self", "shuffle", "multiprocessing_context"}
    assert names <= vars(loader).keys()
    assert set(inspect.signature(torch.utils.data.DataLoader.__init__).parameters) | {"fallback"} == {
        "self",
        "shuffle",
        "multiprocessing_context",
        *names,
    }
    before = set(vars(loader))
    list(loader)
    loader.state_dict()
    assert set(vars(loader)) == before


# What it tells.


def test_stats_are_of_the_current_or_last_iteration(root):
    loader = DataLoader(folder(root, chain()), batch_size=5, num_workers=2)
    with pytest.raises(RuntimeError, match="the loader has not run yet"):
        loader.stats()
    iterator = iter(loader)
    next(iterator)
    assert isinstance(loader.stats(), LoaderStats)
    assert loader.stats().batches == 1
    list(iterator)
    assert (loader.stats().batches, loader.stats().images, loader.stats().threads) == (5, COUNT, 2)
    assert len(list(DataLoader(Subset(array(), [1, 2]), batch_size=1))) == 2


@linux
@pytest.mark.parametrize("staged", [False, True], ids=["in Rust", "with Python"])
def test_memory_threads_and_files_stay_flat(root, staged):
    def numbers():
        gc.collect()
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
        return (
            resident,
            threading.active_count(),
            rust_threads(),
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/dev/shm")),
        )

    more = [lambda image: image.flip(-1)] if staged else []
    data = folder(root, chain(64, *more, v2.ToDtype(torch.float32, scale=True)))
    loader = DataLoader(data, batch_size=6, shuffle=True, num_workers=2)
    kept = []
    for _ in range(20):
        for images, _labels in loader:
            kept.append(float(images.mean()))
        if len(kept) == 4 * 5:
            settled = numbers()
    resident, *others = numbers()
    assert others == [*settled[1:]]
    # An epoch's images are 1.2 MB.
    assert resident - settled[0] < 4_000_000


def test_iterating_warns_of_nothing(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(DataLoader(folder(root, chain()), batch_size=5, num_workers=2, in_order=False))


def test_every_test_that_the_contract_names_is_there():
    root = Path(__file__).parent
    contract = (root.parent / "docs" / "drop-in.md").read_text(encoding="utf-8").partition("## torch's contract")[2]
    named = set(re.findall(r"`(test_\w+)`", contract.partition("\n## ")[0]))
    assert len(named) > 30
    written = "".join(path.read_text(encoding="utf-8") for path in root.glob("test_dropin_*.py"))
    assert not {name for name in named if f"def {name}(" not in written}
