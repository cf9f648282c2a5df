"""Transforms: pixels equal to torchvision v2's on the same numbers, numbers distributed as torchvision's."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as tv
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from scipy import stats

from vit_rs import transforms as t
from vit_rs.data import ArrayDataset, ImageLoader
from vit_rs.transforms.lowering import lower

# torch's uint8 kernel itself is the peer: torchvision took its float path instead on some CPUs before 0.25.
MODES = ["bilinear", "bicubic"]
if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 15):
    MODES.append("lanczos")


def images(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def loaded(pixels: np.ndarray, transform: t.Transform | None, **options) -> torch.Tensor:
    source = ArrayDataset(pixels, np.zeros(len(pixels), np.int64))
    with ImageLoader(source, transform, batch_size=max(len(pixels), 1), num_threads=1, **options) as loader:
        return next(iter(loader))[0]


def plans(
    transform: t.Transform, size: tuple[int, int], count: int, seed: int = 0
) -> list[list[tuple[str, list[float]]]]:
    view = lower(transform).view()
    return [view.draw_plan(size, seed, 0, draw, 0)[0] for draw in range(count)]


def replay(image: torch.Tensor, plan, mode, padding_mode: str = "constant", fill: int = 0) -> torch.Tensor:
    """Carry out a plan with torchvision's functions."""
    for step, values in plan:
        numbers = [int(value) for value in values]
        if step == "crop":
            image = tvf.crop(image, *numbers)
        elif step == "window":
            top, left, height, width = numbers
            rows, columns = image.shape[-2:]
            around = [max(-left, 0), max(-top, 0), max(left + width - columns, 0), max(top + height - rows, 0)]
            image = tvf.pad(image, around, fill=fill, padding_mode=padding_mode)
            image = tvf.crop(image, max(top, 0), max(left, 0), height, width)
        elif step == "resize":
            image = F.interpolate(image[None], numbers, mode=mode, antialias=True)[0]
        elif step == "flip_horizontal":
            image = tvf.horizontal_flip(image)
        else:
            assert step == "flip_vertical"
            image = tvf.vertical_flip(image)
    return image


CHAINS = {
    "random resized crop": t.Compose([t.RandomResizedCrop(24), t.RandomHorizontalFlip()]),
    "flips before and after": t.Compose(
        [t.RandomHorizontalFlip(), t.RandomVerticalFlip(), t.RandomResizedCrop((9, 30)), t.RandomHorizontalFlip()]
    ),
    "evaluation": t.Compose([t.Resize(32), t.CenterCrop(28)]),
    "centre of a small image": t.CenterCrop((60, 31)),
    "crop": t.RandomCrop(20),
    "crop with zeros": t.RandomCrop((37, 41), padding=4),
    "two resizes": t.Compose([t.Resize((13, 50)), t.RandomVerticalFlip(), t.Resize((40, 11))]),
}


@pytest.mark.parametrize("name", list(CHAINS))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_equal_torchvision(name, mode, channels):
    def with_mode(step):
        if isinstance(step, (t.RandomResizedCrop, t.Resize)):
            return type(step)(step.size, interpolation=mode)
        return step

    chain = CHAINS[name]
    steps = chain.transforms if isinstance(chain, t.Compose) else [chain]
    chain = t.Compose([with_mode(step) for step in steps])
    pixels = images(12, 37, 41, channels)
    ours = loaded(pixels, chain)
    for index, plan in enumerate(plans(chain, (37, 41), len(pixels))):
        expected = replay(torch.from_numpy(pixels[index]).permute(2, 0, 1), plan, mode)
        assert torch.equal(ours[index], expected), (plan, (ours[index].int() - expected.int()).abs().max())


@pytest.mark.parametrize("mode", MODES)
def test_resize_is_torchvisions_within_one_level(mode):
    pixels = images(1, 50, 61)
    theirs = tvf.resize(
        torch.from_numpy(pixels).permute(0, 3, 1, 2), [20, 90], tv.InterpolationMode(mode), antialias=True
    )
    ours = loaded(pixels, t.Resize((20, 90), interpolation=mode))
    assert (ours.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize("padding_mode", ["constant", "edge", "reflect", "symmetric"])
def test_padding_equals_torchvision(padding_mode):
    chain = t.RandomCrop(30, padding=(3, 5, 7, 2), fill=9, padding_mode=padding_mode)
    pixels = images(40, 26, 29)
    ours = loaded(pixels, chain)
    for index, plan in enumerate(plans(chain, (26, 29), len(pixels))):
        image = torch.from_numpy(pixels[index]).permute(2, 0, 1)
        assert torch.equal(ours[index], replay(image, plan, None, padding_mode, 9)), plan


def test_crop_positions_cover_the_padded_image():
    # 10 x 12 with padding (left 1, top 2, right 3, bottom 0): tops -2..(10 - 8), lefts -1..(12 + 3 - 9).
    drawn = plans(t.RandomCrop((8, 9), padding=(1, 2, 3, 0)), (10, 12), 2000)
    positions = {tuple(steps[0][1][:2]) for steps in drawn}
    assert positions == {(top, left) for top in range(-2, 3) for left in range(-1, 7)}


def test_pad_if_needed_follows_torchvision():
    theirs = tv.RandomCrop((9, 4), pad_if_needed=True)
    sample = [torch.empty(1, 6, 5, dtype=torch.uint8)]
    tops = [theirs.make_params(sample) for _ in range(200)]
    assert {params["top"] - params["padding"][1] for params in tops} == {-3, -2, -1, 0}
    drawn = plans(t.RandomCrop((9, 4), pad_if_needed=True), (6, 5), 500)
    # Three rows are missing: three are added above and three below, and the window falls anywhere on the twelve.
    assert {steps[0][1][0] for steps in drawn} == {-3, -2, -1, 0}
    with pytest.raises(ValueError, match="RandomCrop needs height 9, the padded image has 6"):
        plans(t.RandomCrop((9, 4)), (6, 5), 1)


@pytest.mark.parametrize(
    "options", [{}, {"scale": (0.3, 0.9), "ratio": (0.5, 3.0)}, {"scale": (0.9, 1.0), "ratio": (2.0, 3.0)}]
)
def test_random_resized_crop_is_distributed_as_torchvisions(options):
    size, count = (375, 500), 4000
    ours = []
    for steps in plans(t.RandomResizedCrop(8, **options), size, count, seed=5):
        crop = [numbers for step, numbers in steps if step == "crop"]
        ours.append(crop[0] if crop else [0, 0, *size])
    torch.manual_seed(0)
    theirs_transform = tv.RandomResizedCrop(8, **options)
    sample = [torch.empty(3, *size, dtype=torch.uint8)]
    theirs = [theirs_transform.make_params(sample) for _ in range(count)]
    ours_array = np.array(ours, float)
    theirs_array = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in theirs], float)
    for a, b in zip(ours_array.T, theirs_array.T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3
    area = [x[:, 2] * x[:, 3] for x in (ours_array, theirs_array)]
    assert stats.ks_2samp(*area).pvalue > 1e-3


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_flip_probability(p):
    drawn = sum(len(steps) for steps in plans(t.RandomHorizontalFlip(p), (4, 4), 4000))
    assert stats.binomtest(drawn, 4000, p).pvalue > 1e-3 if 0 < p < 1 else drawn == 4000 * p


def test_operations_draw_independently():
    pairs = plans(t.Compose([t.RandomHorizontalFlip(), t.RandomVerticalFlip()]), (4, 4), 4000)
    both = sum(len(steps) == 2 for steps in pairs)
    assert stats.binomtest(both, 4000, 0.25).pvalue > 1e-3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_equal_torchvision_bit_for_bit(channels, dtype):
    mean, std = [0.485, 0.456, 0.406][:channels], [0.229, 0.224, 0.225][:channels]
    pixels = images(4, 16, 20, channels)
    flat = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    for ours_steps, theirs_steps in (
        (
            [t.ToDtype(torch.float32, scale=True), t.Normalize(mean, std)],
            [tv.ToDtype(torch.float32, scale=True), tv.Normalize(mean, std)],
        ),
        ([t.ToDtype(torch.float32, scale=True)], [tv.ToDtype(torch.float32, scale=True)]),
        ([t.ToDtype(torch.float32)], [tv.ToDtype(torch.float32)]),
    ):
        ours = loaded(pixels, t.Compose(ours_steps), dtype=dtype)
        theirs = tv.Compose(theirs_steps)(flat).to(dtype)
        assert ours.dtype == dtype
        assert torch.equal(ours, theirs)


def test_short_side_resize_follows_torchvision():
    for height, width, side in (
        (375, 500, 224),
        (500, 375, 224),
        (333, 500, 256),
        (7, 3, 5),
        (100, 100, 31),
        (1, 999, 2),
    ):
        (step,) = plans(t.Resize(side), (height, width), 1)[0] or [("resize", [height, width])]
        expected = tvf.resize(torch.empty(3, height, width, dtype=torch.uint8), [side], antialias=True).shape[1:]
        assert step == ("resize", list(expected))


@pytest.mark.parametrize("kernels", ["torch", "pillow"])
@pytest.mark.parametrize(("size", "max_size"), [(32, 40), (32, 33), (32, 100), (7, 300), (1, 2), (None, 40), (None, 1)])
def test_max_size_follows_torchvision(size, max_size, kernels):
    ours = t.Resize(size, "bicubic", max_size=max_size)
    for height, width in ((50, 60), (60, 50), (31, 200), (97, 96), (64, 64), (200, 3), (32, 40), (33, 32), (1, 1)):
        pixels = images(1, height, width, seed=width)[0]
        image = torch.from_numpy(pixels).permute(2, 0, 1) if kernels == "torch" else Image.fromarray(pixels)
        chain = t.Compose([ours], kernels=kernels)
        try:
            theirs = tvf.resize(image, None if size is None else [size], "bicubic", max_size)
        except (RuntimeError, ValueError):  # No pixel is left.
            with pytest.raises(ValueError, match=rf"image: Resize leaves \d+ x \d+ of {height} x {width}: nothing"):
                chain(image)
        else:
            assert np.array_equal(np.asarray(chain(image)), np.asarray(theirs)), (height, width)


ERRORS = {
    "size must be a positive int or (height, width) of two, got 0": lambda: t.Resize(0),
    "size must be a positive int or (height, width) of two, got (1, 2, 3)": lambda: t.CenterCrop((1, 2, 3)),
    "size must be 1..=65536 on both sides": lambda: ImageLoader(source(), t.CenterCrop(10**6), batch_size=1),
    "scale must be (low, high) with 0 < low <= high <= 1, got (0.5, 0.2)": lambda: ImageLoader(
        source(), t.RandomResizedCrop(4, scale=(0.5, 0.2)), batch_size=1
    ),
    "antialias must be True": lambda: t.Resize(4, antialias=False),
    "interpolation must be 'bilinear', 'bicubic' or 'lanczos', got 'nearest'": lambda: t.Resize(
        4, interpolation="nearest"
    ),
    "padding must be an int >= 0, or 2 or 4 of them, got (1, 2, 3)": lambda: t.RandomCrop(4, padding=(1, 2, 3)),
    "fill must be an int in 0..255": lambda: t.RandomCrop(4, fill=256),
    "padding_mode must be": lambda: t.RandomCrop(4, padding_mode="wrap"),
    "p must be a probability in 0..=1, got 1.5": lambda: t.RandomHorizontalFlip(1.5),
    "dtype must be torch.float32": lambda: t.ToDtype(torch.int64),
    "std finite and not 0": lambda: t.Normalize([0.5], [0.0]),
    "needs float values: put ToDtype": lambda: t.Compose([t.Normalize([0.5], [0.5])]),
    "mean must have 1 or 3 values, one for each channel, got 2": lambda: ImageLoader(
        source(), t.Compose([t.ToDtype(torch.float32), t.Normalize([0.5] * 2, [0.5] * 2)]), batch_size=1
    ),
}


def source() -> ArrayDataset:
    return ArrayDataset(images(2, 8, 8), [0, 1])


@pytest.mark.parametrize("text", list(ERRORS))
def test_errors_say_what_was_expected(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        ERRORS[text]()


def test_foreign_transforms_are_refused():
    with pytest.raises(TypeError, match=r"expected a transform of vit_rs.transforms, got torchvision"):
        t.Compose([tv.RandomHorizontalFlip()])
