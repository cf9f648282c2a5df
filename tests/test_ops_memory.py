"""Large results: where their memory comes from, that nobody else writes to it, and that it is used again."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading

import pytest
import torch

import vit_rs
from vit_rs import _core

HUGE_PAGE = 2 << 20
TABLES = (torch.float32, torch.bfloat16)
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory comes in huge pages on Linux")


def images(value, batch=8, dtype=torch.float32):
    return torch.full((batch, 3, 224, 224), value, dtype=dtype)  # 4.8 MB in float32


@linux
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_large_results_start_at_a_huge_page(dtype):
    batch = images(1, batch=16, dtype=dtype)
    patches = vit_rs.patchify(batch, 16)
    back = vit_rs.unpatchify(patches, 224, 16)
    tables = [vit_rs.resample_abs_pos_embed(torch.randn(1, 197, 768, dtype=table), 37) for table in TABLES]
    for result in (patches, back, *tables):
        assert result.data_ptr() % HUGE_PAGE == 0, result.dtype
        assert result.is_contiguous()
        assert result.untyped_storage().nbytes() == result.nbytes
        assert not result._is_view()  # autograd would refuse to have it changed in place
    assert torch.equal(back, batch)


def test_a_result_is_nobody_elses():
    results = [vit_rs.patchify(images(value), 16) for value in range(6)]
    assert len({result.data_ptr() for result in results}) == len(results)
    for value, result in enumerate(results):
        assert (result == value).all()


def test_memory_is_used_again_only_when_all_views_are_gone():
    first = vit_rs.patchify(images(1), 16)
    address, view = first.data_ptr(), first[3, 5:7]
    array = first.numpy()[0]
    del first
    gc.collect()
    assert vit_rs.patchify(images(2), 16).data_ptr() != address
    assert (view == 1).all()
    del view
    assert vit_rs.patchify(images(2), 16).data_ptr() != address
    assert (array == 1).all()
    del array
    gc.collect()
    others = [vit_rs.patchify(images(2), 16) for _ in range(4)]
    assert address in {other.data_ptr() for other in others}


def test_results_of_many_threads():
    wrong = []

    def work(value):
        for _ in range(10):
            result = vit_rs.patchify(images(value), 16)
            if not (result == value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@linux
def test_memory_stays_flat():
    def resident():
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def use():
        for batch in (8, 16, 24, 40, 64):  # 5 to 39 MB
            vit_rs.patchify(images(1, batch), 16)

    use()
    before = resident()
    for _ in range(5):
        use()
    assert resident() - before < 64 << 20


@linux
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_results_after_a_fork():
    kept = vit_rs.patchify(images(1), 16)
    del kept
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(60)
            status = 0 if (vit_rs.patchify(images(3), 16) == 3).all() else 1
        finally:
            os._exit(status)
    mine = vit_rs.patchify(images(2), 16)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (mine == 2).all()


@linux
def test_no_more_is_kept_than_said():
    """1 MiB takes a whole huge page; memory without bytes is not kept at all."""
    with open("/proc/self/statm", encoding="ascii") as file:
        before = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    arrays = [_core.allocate(1 << 20) for _ in range(200)] + [_core.allocate(0) for _ in range(10000)]
    for array in arrays:
        array[...] = 1
    arrays.clear()
    with open("/proc/self/statm", encoding="ascii") as file:
        after = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert after - before < (128 + 32) << 20


def test_what_the_engine_cannot_allocate_is_an_error():
    with pytest.raises(MemoryError, match="no memory for 1152921504606846976 bytes"):
        _core.allocate(1 << 60)
    assert _core.allocate(0).shape == (0,)
    assert _core.allocate(5).shape == (5,)
