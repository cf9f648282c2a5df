"""RandomErasing: torchvision v2's rectangles, values and places."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv
import torchvision.transforms.v2.functional as tvf
from scipy import stats

from vit_rs import patchify
from vit_rs import transforms as t
from vit_rs.data import ArrayDataset, ImageLoader, Patches
from vit_rs.transforms.lowering import lower

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TO_FLOAT = t.ToDtype(torch.float32, scale=True)
SIZE = (32, 48)


def images(count: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, channels), dtype=np.uint8)


def loaded(pixels: np.ndarray, transform: t.Transform, **options) -> torch.Tensor:
    source = ArrayDataset(pixels, np.zeros(len(pixels), np.int64))
    with ImageLoader(source, transform, batch_size=len(pixels), num_threads=1, **options) as loader:
        return next(iter(loader))[0]


def drawn(transform: t.Transform, count: int, size: tuple[int, int] = SIZE, seed: int = 0):
    view = lower(transform).view()
    return [view.draw_plan(size, seed, 0, draw, 0) for draw in range(count)]


def replayed(image: torch.Tensor, steps) -> torch.Tensor:
    """Carry out flips and constant erasing with torchvision's functions."""
    for name, numbers in steps:
        if name == "flip_horizontal":
            image = tvf.horizontal_flip(image)
        else:
            assert name == "erase"
            image = tvf.erase(image, *map(int, numbers[:4]), torch.tensor(numbers[4:])[:, None, None])
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0, 77.9, (1, 2.5, 255)])
def test_bytes_equal_torchvision(channels, value):
    if isinstance(value, tuple) and channels == 1:
        value = (200,)
    chain = t.Compose([t.RandomHorizontalFlip(), t.RandomErasing(value=value), t.RandomErasing(p=1, value=3)])
    pixels = images(16, channels)
    ours = loaded(pixels, chain)
    for image, theirs, (steps, _) in zip(pixels, ours, drawn(chain, 16), strict=True):
        assert torch.equal(theirs, replayed(torch.from_numpy(image).permute(2, 0, 1), steps)), steps


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "cpq", "pqc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalised_units_behind_normalize(layout, dtype):
    chain = t.Compose(
        [
            t.RandomHorizontalFlip(),
            TO_FLOAT,
            t.Normalize(MEAN, STD),
            t.RandomErasing(value=(-1.5, 0.1, 2.25)),
            t.RandomErasing(p=1, value=0.3),
        ]
    )
    pixels = images(16)
    layouts = {"cpq": Patches(8, order="cpq"), "pqc": Patches((16, 8), order="pqc")}
    ours = loaded(pixels, chain, dtype=dtype, layout=layouts.get(layout, layout))
    theirs = []
    for image, (steps, float_steps) in zip(pixels, drawn(chain, 16), strict=True):
        tensor = replayed(torch.from_numpy(image).permute(2, 0, 1), steps)
        tensor = tv.Normalize(MEAN, STD)(tv.ToDtype(torch.float32, scale=True)(tensor))
        theirs.append(replayed(tensor, float_steps).to(dtype))
    expected = torch.stack(theirs)
    if layout == "NHWC":
        expected = expected.permute(0, 2, 3, 1)
    elif layout != "NCHW":
        expected = patchify(expected, layouts[layout].patch_size, order=layout)
    # A batch's images are (B, C, H, W) whatever their memory format, patches (B, N, D).
    assert torch.equal(ours.reshape(expected.shape) if layout != "NHWC" else ours, expected)


def test_noise_is_the_same_wherever_it_is_written():
    def chain(*between):
        return t.Compose([t.RandomHorizontalFlip(), TO_FLOAT, *between, t.RandomErasing(p=1, value="random")])

    pixels = images(8)
    straight = loaded(pixels, chain())
    # With a step behind it that cannot be left to the store, a float image is made.
    flipped = loaded(pixels, t.Compose([*chain().transforms, t.RandomVerticalFlip(1.0)]))
    general = flipped.flip(-2)
    assert torch.equal(straight, general)
    rows = loaded(pixels, chain(), layout="NHWC")
    assert torch.equal(rows, straight.permute(0, 2, 3, 1))
    assert torch.equal(loaded(pixels, chain(), layout=Patches(8)), patchify(straight, 8, order="cpq"))
    assert torch.equal(loaded(pixels, chain()), straight)


@pytest.mark.parametrize("floats", [False, True])
def test_noise_is_distributed_as_torchvisions(floats):
    chain = t.RandomErasing(p=1, scale=(0.5, 0.9), value="random")
    theirs_chain = tv.RandomErasing(p=1, scale=(0.5, 0.9), value="random")
    pixels = np.full((1, 96, 96, 3), 100, np.uint8)
    size = (96, 96)
    if floats:
        chain = t.Compose([t.ToDtype(torch.float32), chain])
    steps, float_steps = drawn(chain, 1, size)[0]
    ((name, numbers),) = float_steps if floats else steps
    assert name == "erase_random"
    top, left, height, width = map(int, numbers)
    ours = loaded(pixels, chain)[0, :, top : top + height, left : left + width].flatten().numpy()
    torch.manual_seed(0)
    plain = torch.full((3, *size), 100, dtype=torch.float32 if floats else torch.uint8)
    params = theirs_chain.make_params([plain])
    theirs = theirs_chain.transform(plain, params)
    theirs = theirs[:, params["i"] : params["i"] + params["h"], params["j"] : params["j"] + params["w"]]
    if floats:
        assert stats.kstest(ours, "norm").pvalue > 1e-3
        assert stats.ks_2samp(ours, theirs.flatten().numpy()).pvalue > 1e-3
        assert abs(np.corrcoef(ours[:-1], ours[1:])[0, 1]) < 4 / len(ours) ** 0.5
    else:
        # Whole parts modulo 256: 0 and the few numbers around it.
        values = [254, 255, 0, 1, 2]
        counts = [[(part == value).sum() for value in values] for part in (ours, theirs.flatten().numpy())]
        assert stats.chi2_contingency(counts).pvalue > 1e-3
        assert sum(counts[0]) > 0.99 * len(ours)


@pytest.mark.parametrize(
    "options", [{}, {"scale": (0.0, 0.01)}, {"scale": (0.4, 1.0), "ratio": (0.2, 0.5)}, {"scale": (1.0, 1.0)}]
)
def test_rectangles_are_distributed_as_torchvisions(options):
    size, count = (30, 44), 3000
    plans = drawn(t.RandomErasing(p=1, **options), count, size, seed=3)
    ours = [numbers[:4] for steps, _ in plans for _, numbers in steps]
    torch.manual_seed(1)
    theirs_chain = tv.RandomErasing(p=1, **options)
    sample = [torch.empty(3, *size, dtype=torch.uint8)]
    params = [theirs_chain.make_params(sample) for _ in range(count)]
    theirs = [[p["i"], p["j"], p["h"], p["w"]] for p in params if p["v"] is not None and p["h"] > 0 and p["w"] > 0]
    assert abs(len(ours) - len(theirs)) <= 4 * (count / 4) ** 0.5
    if not theirs:
        assert not ours
        return
    for a, b in zip(np.array(ours).T, np.array(theirs).T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_probability(p):
    count = sum(len(steps) for steps, _ in drawn(t.RandomErasing(p=p, scale=(0.1, 0.2)), 2000))
    assert stats.binomtest(count, 2000, p).pvalue > 1e-3 if 0 < p < 1 else count == 2000 * p


def test_on_one_image():
    image = torch.full((3, *SIZE), 9, dtype=torch.uint8)
    torch.manual_seed(0)
    erased = t.RandomErasing(p=1, value=200)(image)
    assert set(erased.unique().tolist()) == {9, 200}
    assert image.unique().tolist() == [9]
    normalised = t.Compose([TO_FLOAT, t.Normalize([0.5], [0.5]), t.RandomErasing(p=1, value=-7)])(image)
    assert normalised.dtype == torch.float32
    assert normalised.min() == -7


ERRORS = {
    "p must be a probability in 0..=1, got 1.5": lambda: t.RandomErasing(p=1.5),
    "scale must be (low, high) with 0 <= low <= high <= 1, got (0.5, 0.2)": lambda: t.RandomErasing(scale=(0.5, 0.2)),
    "scale must be (low, high) with 0 <= low <= high <= 1, got (-0.1, 0.2)": lambda: t.RandomErasing(scale=(-0.1, 0.2)),
    "ratio must be (low, high) with 0 < low <= high, got (0, 1)": lambda: t.RandomErasing(ratio=(0.0, 1.0)),
    "value must be finite, got (1.0, nan)": lambda: t.RandomErasing(value=(1.0, float("nan"))),
    "value must have at least one number": lambda: t.RandomErasing(value=()),
    "value of RandomErasing must be in 0..=255 for 8-bit pixels, got -1": lambda: loaded(
        images(1), t.RandomErasing(value=-1)
    ),
    "got 256: values of other units belong behind ToDtype": lambda: t.Compose(
        [t.RandomApply([t.RandomErasing(value=256)]), TO_FLOAT]
    ),
    "must have 1 or 3 values, one for each channel, got 2": lambda: loaded(images(1), t.RandomErasing(value=(1, 2))),
    "must have 1 values, one for each channel, got 3": lambda: loaded(
        images(1, 1), t.Compose([TO_FLOAT, t.RandomErasing(value=(1, 2, 3))])
    ),
}


@pytest.mark.parametrize("text", list(ERRORS))
def test_errors_say_what_was_expected(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        ERRORS[text]()


@pytest.mark.parametrize("value", [None, "noise", ("random", 1)])
def test_a_value_of_another_type_is_refused(value):
    with pytest.raises(TypeError, match="one for each channel, 'random' or 'random_color', got"):
        t.RandomErasing(value=value)


def test_negative_values_are_welcome_behind_to_dtype():
    t.Compose([TO_FLOAT, t.RandomErasing(value=-1)])
