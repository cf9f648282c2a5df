"""ImageLoader: the same batches for any number of threads, exact resumption, no leak of memory, threads or errors."""

from __future__ import annotations

import gc
import itertools
import os
import re
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

import vit_rs
from vit_rs.data import ArrayDataset, ImageFolder, ImageLoader, Patches
from vit_rs.exceptions import DecodeError
from vit_rs.transforms import (
    CenterCrop,
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToDtype,
)

AUGMENT = Compose([RandomCrop(12, padding=2), RandomHorizontalFlip()])
FLOAT = Compose([*AUGMENT.transforms, ToDtype(torch.float32, scale=True), Normalize([0.5], [0.25])])


def array(count: int = 37, channels: int = 1) -> ArrayDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 12, channels), dtype=np.uint8)
    return ArrayDataset(pixels, np.arange(count) % 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ImageFolder:
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for number in range(24):
        path = root / f"class{number % 3}" / f"{number:02}.{'png' if number % 4 == 0 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        height, width = rng.integers(20, 90, 2)
        small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        small.resize((int(width), int(height))).save(path)
    return ImageFolder(root)


def epoch(loader: ImageLoader) -> list[tuple[torch.Tensor, ...]]:
    return [tuple(tensor.clone() for tensor in batch) for batch in loader]


def stands(loader: ImageLoader) -> tuple[int, int]:
    state = loader.state_dict()
    return state["epoch"], state["consumed"]


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_every_sample_once_in_order():
    with ImageLoader(array(), batch_size=5, return_index=True) as loader:
        batches = epoch(loader)
    assert len(loader) == len(batches) == 8
    assert [len(images) for images, _, _ in batches] == [5] * 7 + [2]
    indices = torch.cat([batch[2] for batch in batches])
    assert torch.equal(indices, torch.arange(37))
    assert torch.equal(torch.cat([batch[1] for batch in batches]), torch.arange(37) % 7)
    expected = torch.from_numpy(array().images).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([batch[0] for batch in batches]), expected)
    assert batches[0][1].dtype == batches[0][2].dtype == torch.int64


def test_shuffle_is_a_permutation_that_changes_with_epoch_and_seed():
    def order(seed: int, epoch_number: int) -> list[int]:
        with ImageLoader(array(), batch_size=4, shuffle=True, seed=seed, return_index=True) as loader:
            loader.set_epoch(epoch_number)
            return torch.cat([indices for _, _, indices in epoch(loader)]).tolist()

    assert sorted(order(0, 0)) == list(range(37))
    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)


@pytest.mark.parametrize("kind", ["array", "folder"])
def test_bytes_do_not_depend_on_threads_prefetch_or_batch_size(kind, folder):
    source = array() if kind == "array" else folder
    transform = Compose([RandomResizedCrop(17), *FLOAT.transforms[1:]]) if kind == "folder" else FLOAT

    def pixels(**options) -> torch.Tensor:
        with ImageLoader(source, transform, shuffle=True, seed=3, **options) as loader:
            loader.set_epoch(5)
            return torch.cat([images for images, _ in epoch(loader)])

    reference = pixels(batch_size=4, num_threads=1, prefetch=1)
    for options in ({"num_threads": 2}, {"num_threads": 8, "prefetch": 5}, {"num_threads": 3, "prefetch": 1}):
        assert torch.equal(pixels(batch_size=4, **options), reference)
    assert torch.equal(pixels(batch_size=7, num_threads=2), reference)


def test_a_sample_does_not_depend_on_its_neighbours(folder):
    transform = Compose([RandomResizedCrop(17), RandomHorizontalFlip()])
    with ImageLoader(folder, transform, batch_size=24) as loader:
        whole = next(iter(loader))[0].clone()
    with ImageLoader(Subset(folder, [0, 1, 2, 9]), transform, batch_size=3, return_index=True) as loader:
        images, labels, indices = next(iter(loader))
    assert torch.equal(images, whole[:3])
    assert labels.tolist() == folder.targets[:3]
    assert indices.tolist() == [0, 1, 2]


def test_a_repeated_sample_is_drawn_anew(folder):
    with ImageLoader(Subset(folder, [3, 3, 3]), RandomResizedCrop(17), batch_size=3, return_index=True) as loader:
        images, labels, indices = next(iter(loader))
    assert indices.tolist() == [0, 1, 2]
    assert labels.tolist() == [folder.targets[3]] * 3
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])


def test_substitutes_stay_inside_the_subset(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(8):
        Image.fromarray(np.full((20, 20, 3), number * 30, np.uint8)).save(tmp_path / "a" / f"{number}.png")
    (tmp_path / "a" / "2.png").write_bytes(b"broken")
    subset = Subset(ImageFolder(tmp_path), [2, 1, 5])
    with ImageLoader(subset, RandomResizedCrop(8), batch_size=3, on_error="substitute", return_index=True) as loader:
        for images, _, indices in (next(iter(loader)) for _ in range(20)):
            assert indices[0] in (1, 2)
            assert images[0, 0, 0, 0] in (30, 150)
            assert images[1:, 0, 0, 0].tolist() == [30, 150]


def test_labels_follow_filtered_samples(folder):
    filtered = ImageFolder(folder.root)
    filtered.samples = [sample for sample in filtered.samples if sample[1] != 0]
    with ImageLoader(filtered, RandomResizedCrop(8), batch_size=100) as loader:
        _, labels = next(iter(loader))
    assert labels.tolist() == [label for _, label in filtered.samples]


def test_a_broken_header_does_not_harm_the_next_image(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(6):
        path = tmp_path / "a" / f"{number}.jpg"
        Image.fromarray(np.full((20, 20, 3), number * 30, np.uint8)).save(path)
        if number == 1:
            data = bytearray(path.read_bytes())
            data[data.index(b"\xff\xc4") + 4] = 0x0F  # a Huffman table with an impossible number
            path.write_bytes(data)
    options = {"batch_size": 6, "num_threads": 1, "on_error": "skip", "return_index": True}
    with ImageLoader(ImageFolder(tmp_path), RandomResizedCrop(8), **options) as loader:
        for _ in range(2):
            assert next(iter(loader))[2].tolist() == [0, 2, 3, 4, 5]


def test_samples_that_do_not_fit_are_named_and_can_be_skipped(tmp_path):
    (tmp_path / "a").mkdir()
    for number, side in enumerate((40, 20, 40)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / "a" / f"{number}.png")
    data = ImageFolder(tmp_path)
    text = re.escape(f"{tmp_path / 'a' / '1.png'}: RandomCrop needs height 32, the padded image has 20")
    loader = ImageLoader(data, RandomCrop(32), batch_size=3)
    with loader, pytest.raises(ValueError, match=text):
        next(iter(loader))
    with ImageLoader(data, RandomCrop(32), batch_size=3, on_error="skip", return_index=True) as loader:
        assert next(iter(loader))[2].tolist() == [0, 2]


def test_a_thin_image_cannot_fill_the_memory(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((60000, 1, 3), np.uint8)).save(tmp_path / "a" / "1.png")
    loader = ImageLoader(ImageFolder(tmp_path), Compose([Resize(256), CenterCrop(224)]), batch_size=1)
    with loader, pytest.raises(ValueError, match=r"1\.png: its transform makes 3932160000 pixels of 60000 x 1"):
        next(iter(loader))


def test_a_batch_beyond_memory_is_an_error():
    with ImageLoader(array(3), batch_size=10**11) as loader:
        assert [len(images) for images, _ in loader] == [3]


def test_setting_the_epoch_keeps_a_loaded_position():
    with ImageLoader(array(), batch_size=5, shuffle=True, return_index=True) as loader:
        loader.set_epoch(2)
        reference = [indices.tolist() for _, _, indices in loader]
        loader.load_state_dict({**loader.state_dict(), "epoch": 2, "consumed": 15})
        loader.set_epoch(2)
        assert [indices.tolist() for _, _, indices in loader] == reference[3:]
        batches = iter(loader)
        next(batches)
        loader.set_epoch(7)
        with pytest.raises(RuntimeError, match="started or set anew"):
            next(batches)


def test_nested_subsets(folder):
    subset = Subset(Subset(folder, [5, 6, 7, 8]), [3, 1])
    with ImageLoader(subset, RandomResizedCrop(9), batch_size=2, return_index=True) as loader:
        assert len(loader) == 1
        _, labels, indices = next(iter(loader))
    assert labels.tolist() == [folder.targets[8], folder.targets[6]]
    assert indices.tolist() == [0, 1]
    with pytest.raises(ValueError, match=re.escape("a Subset has indices 0..99 into 24 samples")):
        ImageLoader(Subset(folder, [0, 99]), RandomResizedCrop(9), batch_size=2)


def test_epochs_follow_each_other_and_state_is_exact():
    def make() -> ImageLoader:
        return ImageLoader(array(), FLOAT, batch_size=5, shuffle=True, seed=1, num_threads=2)

    with make() as loader:
        reference = [epoch(loader) for _ in range(3)]
        assert stands(loader) == (3, 0)
    for stop in (0, 1, 5, 8):
        with make() as loader:
            loader.set_epoch(1)
            seen = [tuple(t.clone() for t in batch) for _, batch in zip(range(stop), loader, strict=False)]
            state = loader.state_dict()
        assert (state["epoch"], state["consumed"]) == (1 if stop < 8 else 2, stop % 8 * 5)
        with make() as loader:
            loader.load_state_dict(state)
            assert loader.state_dict() == state
            rest = epoch(loader)
            after = epoch(loader)
        if stop < 8:
            assert same(seen + rest, reference[1])
            assert same(after, reference[2])
        else:
            assert same(rest, reference[2])


def test_left_early_means_next_epoch():
    with ImageLoader(array(), batch_size=5, shuffle=True, return_index=True) as loader:
        first = next(iter(loader))[2].tolist()
        second = next(iter(loader))[2].tolist()
        assert first != second
        assert stands(loader) == (1, 5)


def test_drop_last_and_ranks():
    with ImageLoader(array(), batch_size=5, drop_last=True) as loader:
        assert len(loader) == len(epoch(loader)) == 7

    def shares(world: int, **options) -> list[list[int]]:
        result = []
        for rank in range(world):
            options = {"batch_size": 3, "shuffle": True, "return_index": True, **options}
            with ImageLoader(array(), rank=rank, world_size=world, **options) as loader:
                batches = epoch(loader)
                assert len(batches) == len(loader)
                result.append(torch.cat([b[2] for b in batches]).tolist())
        return result

    four = shares(4)
    assert {len(share) for share in four} == {10}
    assert set(itertools.chain(*four)) == set(range(37))
    dropped = shares(4, drop_last=True)
    assert {len(share) for share in dropped} == {9}
    assert len(set(itertools.chain(*dropped))) == 36
    # More ranks than samples: samples repeat, as with torch's DistributedSampler.
    tiny = ArrayDataset(np.zeros((2, 4, 4), np.uint8), [0, 1])
    with ImageLoader(tiny, batch_size=1, rank=4, world_size=5) as loader:
        assert len(epoch(loader)) == len(loader) == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_layouts_hold_the_same_values(dtype, channels):
    transform = AUGMENT if dtype == torch.uint8 else FLOAT

    def images(layout) -> torch.Tensor:
        with ImageLoader(array(9, channels), transform, batch_size=9, dtype=dtype, layout=layout) as loader:
            batch = next(iter(loader))[0]
            assert tuple(batch.shape[1:]) == loader.sample_shape
            assert batch.dtype == dtype
            assert batch.is_contiguous()
            return batch

    planes = images("NCHW")
    assert torch.equal(images("NHWC").permute(0, 3, 1, 2), planes)
    for order in ("cpq", "pqc"):
        assert torch.equal(images(Patches((4, 6), order)), vit_rs.patchify(planes, (4, 6), order=order))
    assert images(Patches(4)).shape == (9, 9, 16 * channels)


def test_errors_name_the_file_and_skip_or_substitute_count_them(tmp_path):
    for number in range(10):
        path = tmp_path / "a" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), number * 20, np.uint8)).save(path)
    bad = tmp_path / "a" / "4.jpg"
    bad.write_bytes(bad.read_bytes()[:-20])
    (tmp_path / "a" / "7.jpg").write_bytes(b"not an image")
    data = ImageFolder(tmp_path)
    transform = RandomResizedCrop(8)
    for threads in (1, 4):
        with ImageLoader(data, transform, batch_size=3, num_threads=threads) as loader:
            batches = iter(loader)
            assert len(next(batches)[0]) == 3
            with pytest.raises(DecodeError, match=re.escape(str(bad)) + ": truncated JPEG"):
                next(batches)
    with ImageLoader(data, transform, batch_size=3, on_error="skip", return_index=True) as loader:
        batches = epoch(loader)
        assert [batch[2].tolist() for batch in batches] == [[0, 1, 2], [3, 5], [6, 8], [9]]
        assert [int(image.float().mean() / 20 + 0.5) for batch in batches for image in batch[0]] == [
            0,
            1,
            2,
            3,
            5,
            6,
            8,
            9,
        ]
        failures = loader.stats().failures
        assert len(failures) == 2
        assert any("7.jpg: no known image format" in text for text in failures)
    results = []
    for threads in (1, 3):
        with ImageLoader(
            data, transform, batch_size=3, on_error="substitute", num_threads=threads, return_index=True
        ) as loader:
            results.append(epoch(loader))
            assert len(loader.stats().failures) == 2
    assert same(*results)
    indices = torch.cat([batch[2] for batch in results[0]]).tolist()
    assert len(indices) == 10
    assert not {4, 7} & set(indices)


def test_a_batch_of_only_bad_files_has_no_images(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(4):
        path = tmp_path / "a" / f"{number}.jpg"
        if number < 2:
            path.write_bytes(b"x")
        else:
            Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(path)
    to_half = Compose([RandomResizedCrop(8), ToDtype(torch.float32, scale=True)])
    options = {"batch_size": 2, "on_error": "skip", "dtype": torch.bfloat16, "return_index": True}
    for layout, shape in (("NCHW", (3, 8, 8)), ("NHWC", (8, 8, 3)), (Patches(4), (4, 48))):
        with ImageLoader(ImageFolder(tmp_path), to_half, layout=layout, **options) as loader:
            batches = iter(loader)
            images, labels, indices = next(batches)
            assert (tuple(images.shape), images.dtype) == ((0, *shape), torch.bfloat16)
            assert labels.shape == indices.shape == (0,)
            assert labels.dtype == indices.dtype == torch.int64
            assert stands(loader) == (0, 2)
            assert [len(batch[0]) for batch in batches] == [2]
            assert stands(loader) == (1, 0)
            assert (loader.stats().batches, loader.stats().images) == (2, 2)
    # Ranks make the same number of steps, whoever meets the bad ones.
    for rank, sizes in ((0, [0, 1]), (1, [0, 1])):
        with ImageLoader(
            ImageFolder(tmp_path), to_half, batch_size=1, on_error="skip", rank=rank, world_size=2
        ) as loader:
            assert [len(images) for images, _ in loader] == sizes
            assert len(loader) == 2
    (tmp_path / "a" / "3.jpg").unlink()
    with ImageLoader(ImageFolder(tmp_path), RandomResizedCrop(8), batch_size=1, on_error="substitute") as loader:
        assert len(epoch(loader)) == 3


def test_a_file_that_vanished_is_an_os_error(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a" / "1.jpg")
    data = ImageFolder(tmp_path)
    (tmp_path / "a" / "1.jpg").unlink()
    loader = ImageLoader(data, RandomResizedCrop(8), batch_size=1)
    with loader, pytest.raises(FileNotFoundError, match=r"1\.jpg"):
        next(iter(loader))


def test_memory_is_reused_but_never_under_a_living_tensor():
    with ImageLoader(array(64), batch_size=4, num_threads=2) as loader:
        kept = list(loader)
        assert len({images.data_ptr() for images, _ in kept}) == len(kept)
        expected = torch.from_numpy(array(64).images).permute(0, 3, 1, 2)
        assert torch.equal(torch.cat([images for images, _ in kept]), expected)
        del kept
        gc.collect()
        addresses = {images.data_ptr() for _ in range(10) for images, _ in loader}
        assert len(addresses) <= 6
        assert all(address % 64 == 0 for address in addresses)
        view = next(iter(loader))[0][1:, :, 3:5]
        before = view.clone()
        for _ in range(3):
            epoch(loader)
        assert torch.equal(view, before)
    assert torch.equal(view, before)


def test_batches_may_be_written_to():
    with ImageLoader(array(), FLOAT, batch_size=5) as loader:
        first = [images.mul_(0).sum().item() for images, _ in loader]
        assert first == [0.0] * 8
        loader.set_epoch(0)
        assert sum(images.abs().sum().item() for images, _ in loader) > 0


def thread_count() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_threads_start_with_the_first_batch_and_end_with_the_loader():
    torch.zeros(10**6).sum()
    before = thread_count()
    loader = ImageLoader(array(), batch_size=5, num_threads=3)
    assert thread_count() == before
    for _ in range(3):
        epoch(loader)
        assert thread_count() == before + 3
    loader.close()
    assert thread_count() == before
    with pytest.raises(ValueError, match="this loader is closed"):
        iter(loader)
    loader.close()
    # Dropped without close: the threads are told to end.
    loader = ImageLoader(array(), batch_size=5, num_threads=3)
    next(iter(loader))
    reference = weakref.ref(loader)
    del loader
    gc.collect()
    assert reference() is None
    for _ in range(500):
        if thread_count() == before:
            break
        threading.Event().wait(0.01)
    assert thread_count() == before


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_descriptors_and_memory_stay_flat(folder):
    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    transform = Compose([RandomResizedCrop(64), *FLOAT.transforms[1:]])
    with ImageLoader(folder, transform, batch_size=8, num_threads=2) as loader:
        for _ in range(3):
            epoch(loader)
        gc.collect()  # what earlier tests left to it
        descriptors, memory = len(os.listdir("/proc/self/fd")), resident()
        for _ in range(20):
            epoch(loader)
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert resident() - memory < 8 * 2**20


def test_one_iteration_at_a_time():
    with ImageLoader(array(), batch_size=5) as loader:
        first = iter(loader)
        next(first)
        second = iter(loader)
        next(second)
        with pytest.raises(RuntimeError, match="this iteration ended when the same ImageLoader was started"):
            next(first)
        next(second)


def test_closing_in_mid_epoch_ends_the_iteration(folder):
    loader = ImageLoader(folder, RandomResizedCrop(32), batch_size=2, num_threads=2)
    batches = iter(loader)
    next(batches)
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_refuses_a_running_loader_and_can_make_its_own():
    code = """
import os, sys, numpy as np
from vit_rs.data import ArrayDataset, ImageLoader
data = ArrayDataset(np.zeros((8, 4, 4), np.uint8), [0] * 8)
loader = ImageLoader(data, batch_size=2, num_threads=2)
next(iter(loader))
child = os.fork()
if child == 0:
    try:
        iter(loader)
    except ValueError as error:
        assert "a forked child" in str(error), error
        loader.close()
        own = ImageLoader(data, batch_size=2, num_threads=2)
        assert len(list(own)) == 4
        del loader
        sys.exit(7)
    sys.exit(1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert len(list(loader)) == 4
"""
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], check=True, timeout=60)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interrupt_ends_a_wait_at_once(tmp_path):
    code = f"""
import os, signal, threading, time
from vit_rs.data import ImageFolder, ImageLoader
from vit_rs.transforms import RandomResizedCrop
loader = ImageLoader(ImageFolder({str(tmp_path)!r}), RandomResizedCrop(8), batch_size=1, num_threads=1)
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    next(iter(loader))
except KeyboardInterrupt:
    print(time.monotonic() - start)
    os._exit(0)
"""
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "never.jpg")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert float(result.stdout) < 2.0


def test_interpreter_exit_with_a_running_loader(folder):
    code = f"""
from vit_rs.data import ImageFolder, ImageLoader
from vit_rs.transforms import RandomResizedCrop
loader = ImageLoader(ImageFolder({folder.root!r}), RandomResizedCrop(224), batch_size=4, num_threads=2)
batches = iter(loader)
kept = next(batches)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_empty_source_has_no_batches():
    empty = ArrayDataset(np.zeros((0, 4, 4), np.uint8), np.zeros(0, np.int64))
    with ImageLoader(empty, batch_size=3, shuffle=True) as loader:
        assert len(loader) == 0
        assert epoch(loader) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_batches_hold_the_same_values():
    with ImageLoader(array(), FLOAT, batch_size=5, shuffle=True) as loader:
        expected = epoch(loader)
    with ImageLoader(array(), FLOAT, batch_size=5, shuffle=True, device="cuda") as loader:
        batches = epoch(loader)
    assert all(tensor.is_cuda for batch in batches for tensor in batch)
    assert same([[t.cpu() for t in batch] for batch in batches], expected)
