"""Transforms called on one image: bytes, PIL images, arrays and tensors give the pixels that a loader gives."""

from __future__ import annotations

import copy
import io
import pickle
import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from vit_rs import transforms as t
from vit_rs.data import ArrayDataset, ImageLoader
from vit_rs.exceptions import DecodeError

PHOTO = np.ascontiguousarray(load_sample_image("china.jpg")[:301, :402])
EVALUATION = t.Compose([t.Resize(64), t.CenterCrop(56)])
FLOATS = t.Compose([EVALUATION, t.ToDtype(torch.float32, scale=True), t.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])])


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def loaded(pixels: np.ndarray, transform: t.Transform) -> torch.Tensor:
    with ImageLoader(ArrayDataset(pixels[None], [0]), transform, batch_size=1, num_threads=1) as loader:
        return next(iter(loader))[0][0]


def test_each_kind_of_image_comes_back_as_it_came():
    expected = loaded(PHOTO, EVALUATION)
    on_tensor = EVALUATION(tensor(PHOTO))
    assert on_tensor.dtype == torch.uint8
    assert on_tensor.is_contiguous()
    assert torch.equal(on_tensor, expected)
    on_array = EVALUATION(PHOTO)
    assert isinstance(on_array, np.ndarray)
    assert torch.equal(tensor(on_array), expected)
    on_bytes = EVALUATION(encoded(PHOTO))
    assert torch.equal(on_bytes, expected)
    on_pil = EVALUATION(Image.fromarray(PHOTO))
    assert isinstance(on_pil, Image.Image)
    assert (on_pil.mode, on_pil.size) == ("RGB", (56, 56))


def test_float_chains_give_tensors():
    expected = loaded(PHOTO, FLOATS)
    for image in (PHOTO, tensor(PHOTO), encoded(PHOTO), bytearray(encoded(PHOTO)), memoryview(encoded(PHOTO))):
        made = FLOATS(image)
        assert isinstance(made, torch.Tensor)
        assert torch.equal(made, expected)
    half = t.Compose([EVALUATION, t.ToDtype(torch.bfloat16, scale=True)])(PHOTO)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, (loaded(PHOTO, EVALUATION).float() * (1 / 255)).bfloat16())


def test_gray_images_stay_gray():
    gray = np.ascontiguousarray(PHOTO[..., 0])
    expected = loaded(gray[..., None], EVALUATION)[0]
    assert np.array_equal(EVALUATION(gray), expected.numpy())
    assert np.array_equal(EVALUATION(gray[..., None])[..., 0], expected.numpy())
    assert torch.equal(EVALUATION(torch.from_numpy(gray)[None])[0], expected)
    on_pil = EVALUATION(Image.fromarray(gray))
    assert on_pil.mode == "L"


def test_images_need_not_be_contiguous():
    flipped = PHOTO[::-1, ::2]
    expected = EVALUATION(np.ascontiguousarray(flipped))
    assert np.array_equal(EVALUATION(flipped), expected)
    channels_last = torch.from_numpy(PHOTO).permute(2, 0, 1)
    assert not channels_last.is_contiguous()
    assert torch.equal(EVALUATION(channels_last), EVALUATION(tensor(PHOTO)))


def test_input_is_not_written():
    before = PHOTO.copy()
    t.RandomHorizontalFlip(1.0)(before)
    assert np.array_equal(before, PHOTO)


def test_torchs_generator_decides():
    chain = t.Compose([t.RandomResizedCrop(32), t.RandomHorizontalFlip()])
    torch.manual_seed(5)
    first = [chain(PHOTO) for _ in range(4)]
    torch.manual_seed(5)
    again = [chain(PHOTO) for _ in range(4)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])


def test_kernels_are_those_of_the_image_or_named():
    resize = t.Resize((97, 61), interpolation="bicubic")
    in_pillows_way = np.asarray(resize(Image.fromarray(PHOTO)))
    in_torchs_way = resize(PHOTO)
    assert np.array_equal(t.Compose([resize], kernels="pillow")(PHOTO), in_pillows_way)
    assert np.array_equal(np.asarray(t.Compose([resize], kernels="torch")(Image.fromarray(PHOTO))), in_torchs_way)
    expected = Image.fromarray(PHOTO).resize((61, 97), Image.Resampling.BICUBIC)
    assert np.array_equal(in_pillows_way, np.asarray(expected))


def test_transforms_are_values():
    chain = t.Compose([t.RandomResizedCrop([32, 40]), t.RandomHorizontalFlip(), t.ToDtype(torch.float32, scale=True)])
    chain(PHOTO)  # makes an engine, which is no part of the value
    same = t.Compose([t.RandomResizedCrop([32, 40]), t.RandomHorizontalFlip(), t.ToDtype(torch.float32, scale=True)])
    assert chain == same
    for other in (pickle.loads(pickle.dumps(chain)), copy.deepcopy(chain)):
        assert other == chain
        torch.manual_seed(1)
        expected = chain(PHOTO)
        torch.manual_seed(1)
        assert torch.equal(other(PHOTO), expected)


def test_one_transform_on_many_threads():
    expected = EVALUATION(PHOTO)
    right = []

    def work() -> None:
        right.extend(np.array_equal(EVALUATION(PHOTO), expected) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 80


def test_results_are_memory_of_their_own():
    first = FLOATS(PHOTO)
    kept = first.clone()
    FLOATS(PHOTO[::-1])
    assert torch.equal(first, kept)


ERRORS = {
    "a tensor must be uint8 (C, H, W) on the CPU, got torch.float32 (3, 4, 4) on cpu": lambda: torch.zeros(3, 4, 4),
    "got torch.uint8 (4, 4) on cpu": lambda: torch.zeros(4, 4, dtype=torch.uint8),
    "got uint8 (4, 4, 2)": lambda: np.zeros((4, 4, 2), np.uint8),
    "got float64 (4, 4, 3)": lambda: np.zeros((4, 4, 3)),
    "got uint8 (0, 4, 3)": lambda: np.zeros((0, 4, 3), np.uint8),
    "a PIL image must have mode 'L' or 'RGB', got 'RGBA'": lambda: Image.new("RGBA", (4, 4)),
}


@pytest.mark.parametrize("text", list(ERRORS))
def test_images_that_are_refused(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        EVALUATION(ERRORS[text]())


def test_other_errors():
    with pytest.raises(TypeError, match=r"an image must be bytes, .*, got builtins.list"):
        EVALUATION([[0]])
    with pytest.raises(DecodeError, match="the file is empty"):
        EVALUATION(b"")
    with pytest.raises(DecodeError, match="truncated JPEG"):
        EVALUATION(encoded(PHOTO, "JPEG")[:-100])
    with pytest.raises(ValueError, match=r"image: RandomCrop needs height 9, the padded image has 8"):
        t.RandomCrop(9)(np.zeros((8, 20, 3), np.uint8))
    # The transform can be used after an error.
    assert EVALUATION(PHOTO).shape == (56, 56, 3)
