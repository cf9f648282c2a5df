"""The loader's decode= and exif=: which pixels a batch is made of."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from vit_rs.data import ImageLoader
from vit_rs.transforms import CenterCrop, Compose, MultiCrop, RandomHorizontalFlip, RandomResizedCrop, Resize
from vit_rs.transforms.lowering import lower

PHOTO = load_sample_image("china.jpg")
TRAIN = Compose([RandomResizedCrop(40), RandomHorizontalFlip()])
KINDS = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"quality": 90}}


def encoded(pixels: np.ndarray, kind: str = "JPEG", orientation: int = 1, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif, **(KINDS[kind] | options))
    return buffer.getvalue()


def loaded(files: list[bytes], transform, **options):
    with ImageLoader([(file, 0) for file in files], transform, batch_size=len(files), **options) as loader:
        return next(iter(loader))[0]


def upright(file: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB"))


@pytest.mark.parametrize("kind", list(KINDS))
def test_crops_are_drawn_in_the_upright_image(kind):
    files = [encoded(PHOTO[:301, :211], kind, orientation) for orientation in range(1, 9)]
    ours = loaded(files, TRAIN, exif=True, seed=4)
    view = lower(TRAIN).view()
    for number, file in enumerate(files):
        whole = upright(file)
        assert whole.shape[:2] == ((301, 211) if number < 4 else (211, 301))
        steps = view.draw_plan(whole.shape[:2], 4, 0, number, 0)[0]
        top, left, height, width = (int(value) for value in steps[0][1])
        part = torch.from_numpy(whole[top : top + height, left : left + width].copy()).permute(2, 0, 1)[None]
        expected = torch.nn.functional.interpolate(part, (40, 40), mode="bilinear", antialias=True)[0]
        assert torch.equal(ours[number], expected.flip(-1) if steps[2:] else expected), number + 1


def test_orientation_is_not_applied_unless_asked_for():
    turned, plain = encoded(PHOTO, orientation=6), encoded(PHOTO)
    first, second = loaded([turned, plain], CenterCrop(64))
    assert torch.equal(first, second)
    assert not torch.equal(loaded([turned], CenterCrop(64), exif=True)[0], second)


def test_views_share_the_upright_image():
    files = [encoded(PHOTO, orientation=orientation) for orientation in (1, 5, 8)]
    views = loaded(files, MultiCrop([(TRAIN, 2), (CenterCrop(50), 1)]), exif=True)
    for number, file in enumerate(files):
        middle = CenterCrop(50)(upright(file))
        assert np.array_equal(views[2][number].permute(1, 2, 0).numpy(), middle)


@pytest.mark.parametrize("orientation", [1, 6])
def test_fast_decoding_takes_the_smallest_scale_that_is_large_enough(orientation):
    file = encoded(PHOTO, orientation=orientation)  # 427 x 640 as stored
    chain = Compose([Resize((100, 100)), CenterCrop(96)])
    image = Image.open(io.BytesIO(file))
    image.draft("RGB", (160, 106))  # a quarter: 107 x 160 still holds 100 x 100
    assert image.size == (160, 107)
    expected = chain(np.asarray(ImageOps.exif_transpose(image)))
    ours = loaded([file], chain, decode="fast", exif=True)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(ours, expected)


def test_fast_decoding_is_near_the_exact_one():
    file, chain = encoded(PHOTO), Compose([Resize(100), CenterCrop(96)])
    exact, fast = (loaded([file], chain, decode=decode).float() for decode in ("exact", "fast"))
    error = (exact - fast).square().mean().sqrt()
    assert 0 < error < 5  # 34 dB


def test_fast_decoding_changes_nothing_where_views_do_not_shrink():
    files = [encoded(PHOTO), encoded(PHOTO, "PNG"), encoded(PHOTO, "WEBP")]
    for chain in (Compose([Resize(300), CenterCrop(256)]), CenterCrop(64)):
        assert torch.equal(loaded(files, chain), loaded(files, chain, decode="fast"))
    shrunk = Resize((50, 50))
    exact, fast = (loaded(files, shrunk, decode=decode) for decode in ("exact", "fast"))
    assert not torch.equal(exact[0], fast[0])
    assert torch.equal(exact[1:], fast[1:])  # only JPEGs can be decoded at a scale
    together = MultiCrop([shrunk, Resize((400, 400))])
    assert torch.equal(loaded(files, together)[0], loaded(files, together, decode="fast")[0])


def test_crops_of_a_scaled_decode_lie_where_they_would():
    ramp = np.broadcast_to(np.linspace(0, 255, 640).astype(np.uint8)[:, None], (480, 640, 3))
    files = [encoded(np.ascontiguousarray(ramp), quality=100)] * 40
    chain = RandomResizedCrop(32, scale=(0.3, 1.0))
    exact, fast = (loaded(files, chain, decode=decode).float() for decode in ("exact", "fast"))
    # A shift by one scaled pixel at a quarter would be 4 / 640 of the range: 1.6 levels.
    assert (exact - fast).abs().mean() < 1.0
    assert (exact - fast).abs().max() < 4


def test_errors():
    with pytest.raises(ValueError, match="decode must be 'exact' or 'fast', got 'quick'"):
        ImageLoader([(b"", 0)], CenterCrop(3), batch_size=1, decode="quick")


@pytest.mark.parametrize(("processes", "expected"), [("1", 6), ("4", 1), ("2", 3), ("9", 1)])
def test_processes_on_one_machine_divide_its_cpus(monkeypatch, processes, expected):
    monkeypatch.setattr("vit_rs.data.threads.usable_cpus", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    with ImageLoader([(b"", 0)], CenterCrop(3), batch_size=1) as loader:
        assert loader.num_threads == expected


def test_a_wrong_number_of_processes_is_told(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="LOCAL_WORLD_SIZE must be a number of processes, got 'two'"):
        ImageLoader([(b"", 0)], CenterCrop(3), batch_size=1)
