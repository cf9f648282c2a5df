"""Operations behind ToDtype: torchvision v2's results on float32 tensors, given the same numbers.

Values lie in 0..1 unless a test says otherwise. Bounds: 1e-5, for sums in another order and weights rounded elsewhere;
hue, blur and bilinear maps 1e-4.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as tv
import torchvision.transforms.v2.functional as tvf

from vit_rs import patchify
from vit_rs import transforms as t
from vit_rs.data import ArrayDataset, ImageLoader, Patches
from vit_rs.transforms.lowering import lower

TO_FLOAT = t.ToDtype(torch.float32, scale=True)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZE = (37, 52)


def photographs(channels: int = 3) -> np.ndarray:
    """Return parts of a photograph, noise, and a constant image: u8 (6, 37, 52, C)."""
    photo = skimage.data.astronaut()
    height, width = SIZE
    parts = [photo[y : y + height, x : x + width] for y, x in ((0, 150), (90, 200), (200, 30), (400, 300))]
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.stack([*parts, noise, np.full_like(noise, 93)])[..., :channels]


def loaded(pixels: np.ndarray, transform: t.Transform, **options) -> torch.Tensor:
    source = ArrayDataset(pixels, np.zeros(len(pixels), np.int64))
    with ImageLoader(source, transform, batch_size=len(pixels), num_threads=1, **options) as loader:
        return next(iter(loader))[0]


def drawn(transform: t.Transform, count: int):
    view = lower(transform).view()
    return [view.draw_plan(SIZE, 0, 0, draw, 0) for draw in range(count)]


def warped(image: torch.Tensor, numbers: list[float]) -> torch.Tensor:
    """Read pixels bilinearly where an inverse map says, zeros outside."""
    a, b, c, d, e, f, height, width, bilinear = numbers
    assert bilinear
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rows, columns = image.shape[-2:]
    grid = torch.stack([(a * x + b * y + c) / columns, (d * x + e * y + f) / rows], -1) * 2 - 1
    return F.grid_sample(image[None], grid[None].float(), "bilinear", "zeros", align_corners=False)[0]


COLORS = {
    "brightness": tvf.adjust_brightness,
    "contrast": tvf.adjust_contrast,
    "saturation": tvf.adjust_saturation,
    "hue": tvf.adjust_hue,
    "sharpness": tvf.adjust_sharpness,
    "solarize": tvf.solarize,
    "autocontrast": tvf.autocontrast,
    "equalize": tvf.equalize,
    "invert": tvf.invert,
}


def replayed(image: torch.Tensor, steps, mode: str = "bilinear") -> torch.Tensor:
    """Carry out steps with torchvision's functions, on floats as on bytes."""
    steps = list(steps)
    while steps:
        name, values = steps.pop(0)
        whole = [int(value) for value in values]
        if name == "crop":
            image = tvf.crop(image, *whole)
        elif name == "window":
            top, left, height, width = whole
            image = tvf.crop(tvf.pad(image, [60] * 4, fill=1.0), top + 60, left + 60, height, width)
        elif name == "resize":
            image = tvf.resize(image, whole, tv.InterpolationMode(mode), antialias=True)
        elif name == "flip_horizontal":
            image = tvf.horizontal_flip(image)
        elif name == "flip_vertical":
            image = tvf.vertical_flip(image)
        elif name == "gaussian_blur":
            image = tvf.gaussian_blur(image, [whole[1], whole[0]], [values[3], values[2]])
        elif name == "erase":
            image = tvf.erase(image, *whole[:4], torch.tensor(values[4:])[:, None, None])
        elif name == "normalize":
            half = len(values) // 2
            image = tvf.normalize(image, values[:half], values[half:])
        elif name == "grayscale":
            image = tvf.rgb_to_grayscale(image, num_output_channels=len(image))
        elif name == "posterize":
            image = tvf.posterize(image, whole[0])
        elif name == "affine":
            image = warped(image, values)
        elif name == "mix":
            keep, count = values
            mixed = keep * image
            for _ in range(int(count)):
                (_, (weight, length)) = steps.pop(0)
                mixed = mixed + weight * replayed(image, steps[: int(length)])
                del steps[: int(length)]
            image = mixed
        else:
            image = COLORS[name](image, *values)
    return image


ALONE = {
    "brightness": (t.ColorJitter(brightness=0.9), 1e-6),
    "contrast": (t.ColorJitter(contrast=0.9), 1e-5),
    "saturation": (t.ColorJitter(saturation=0.9), 1e-5),
    "hue": (t.ColorJitter(hue=0.5), 1e-4),
    "grayscale": (t.RandomGrayscale(1.0), 1e-6),
    "invert": (t.RandomInvert(1.0), 0),
    "posterize": (t.RandomPosterize(3, 1.0), 0),
    "solarize": (t.RandomSolarize(0.4, 1.0), 0),
    "autocontrast": (t.RandomAutocontrast(1.0), 1e-6),
    "equalize": (t.RandomEqualize(1.0), 0),
    "sharper": (t.RandomAdjustSharpness(1.7, 1.0), 1e-5),
    "smoother": (t.RandomAdjustSharpness(0.2, 1.0), 1e-5),
    "blur": (t.GaussianBlur(9, (0.3, 3.0)), 1e-4),
    "wide blur": (t.GaussianBlur((5, 23), (2.0, 4.0)), 1e-4),
    "crop": (t.CenterCrop((20, 33)), 0),
    "window": (t.RandomCrop((40, 50), padding=9, fill=1), 0),
    "flips": (t.Compose([t.RandomHorizontalFlip(), t.RandomVerticalFlip()]), 0),
    "rotation": (t.RandomRotation(40, interpolation="bilinear", fill=None), 1e-4),
    "erasing": (t.Compose([t.RandomVerticalFlip(1.0), t.RandomErasing(1.0, value=(0.1, -2.0, 3.0))]), 0),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(ALONE))
def test_one_operation(name, channels):
    transform, bound = ALONE[name]
    if name == "erasing" and channels == 1:
        transform = t.Compose([t.RandomVerticalFlip(1.0), t.RandomErasing(1.0, value=-2.0)])
    chain = t.Compose([TO_FLOAT, transform])
    pixels = photographs(channels)
    ours = loaded(pixels, chain)
    for image, made, (_, steps) in zip(pixels, ours, drawn(chain, len(pixels)), strict=True):
        tensor = torch.from_numpy(image).permute(2, 0, 1) * (1 / 255)
        torch.testing.assert_close(made, replayed(tensor, steps), rtol=0, atol=bound, msg=lambda m: f"{steps}: {m}")  # noqa: B023


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(20, 20), (90, 17), (37, 80)])
def test_resize(mode, size):
    chain = t.Compose([TO_FLOAT, t.Resize(size, interpolation=mode)])
    pixels = photographs()
    theirs = tvf.resize(
        torch.from_numpy(pixels).permute(0, 3, 1, 2) * (1 / 255), size, tv.InterpolationMode(mode), antialias=True
    )
    torch.testing.assert_close(loaded(pixels, chain), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fill", [None, 1])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_affine(interpolation, fill):
    pixels = photographs()
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2) * (1 / 255)
    mode = tv.InterpolationMode(interpolation)
    rotate = t.RandomRotation((23, 23), interpolation=interpolation, expand=True, fill=fill)
    shear = t.RandomAffine((-7, -7), scale=(0.8, 0.8), shear=(11, 11, 5, 5), interpolation=interpolation, fill=fill)
    for transform, theirs in (
        (rotate, [tvf.rotate(image, 23, mode, expand=True, fill=fill) for image in tensor]),
        (shear, [tvf.affine(image, -7, [0, 0], 0.8, [11, 5], mode, fill=fill) for image in tensor]),
    ):
        ours = [lowered_call(transform, image) for image in pixels]
        for a, b in zip(ours, theirs, strict=True):
            if interpolation == "bilinear":
                torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
            else:
                # Nearest: equal but for coordinates next to a tie.
                assert a.shape == b.shape
                assert (a != b).float().mean() <= 0.001


def lowered_call(transform: t.Transform, image: np.ndarray) -> torch.Tensor:
    return t.Compose([TO_FLOAT, transform])(image)


CHAIN = [
    t.RandomResizedCrop((24, 32)),
    TO_FLOAT,
    t.RandomHorizontalFlip(),
    t.ColorJitter(0.4, 0.4, 0.4, 0.1),
    t.GaussianBlur(5),
    t.Normalize(MEAN, STD),
    t.RandomHorizontalFlip(),
    t.RandomErasing(value=-1.0),
]


def theirs_of(pixels: np.ndarray, chain: t.Transform) -> torch.Tensor:
    made = []
    for image, (steps, float_steps) in zip(pixels, drawn(chain, len(pixels)), strict=True):
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        for name, numbers in steps:
            whole = [int(value) for value in numbers]
            if name == "resize":
                tensor = F.interpolate(tensor[None], whole, mode="bilinear", antialias=True)[0]
            else:
                tensor = replayed(tensor, [(name, numbers)])
        made.append(replayed(tensor * (1 / 255), float_steps))
    return torch.stack(made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_long_chain(dtype):
    chain = t.Compose(CHAIN)
    pixels = np.concatenate([photographs(), photographs()])
    theirs = theirs_of(pixels, chain)
    ours = loaded(pixels, chain, dtype=dtype)
    # Over std: 1e-4 becomes 5e-4. Halves are rounded once, at the end.
    single = loaded(pixels, chain)
    torch.testing.assert_close(single, theirs, rtol=0, atol=5e-4)
    assert torch.equal(ours, single.to(dtype))


def test_layouts_hold_the_same_values():
    chain = t.Compose(CHAIN)
    pixels = photographs()
    plain = loaded(pixels, chain)
    assert torch.equal(loaded(pixels, chain, layout="NHWC"), plain.permute(0, 2, 3, 1))
    for order in ("cpq", "pqc"):
        assert torch.equal(loaded(pixels, chain, layout=Patches(8, order=order)), patchify(plain, 8, order=order))


def test_the_order_of_normalize_counts():
    pixels = photographs()
    before = t.Compose([TO_FLOAT, t.Normalize(MEAN, STD), t.RandomInvert(1.0), t.Normalize([0.5], [2.0])])
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2) * (1 / 255)
    expected = tvf.normalize(1.0 - tvf.normalize(tensor, MEAN, STD), [0.5], [2.0])
    assert torch.equal(loaded(pixels, before), expected)
    after = t.Compose([TO_FLOAT, t.RandomInvert(1.0), t.Normalize(MEAN, STD)])
    assert torch.equal(loaded(pixels, after), tvf.normalize(1.0 - tensor, MEAN, STD))


def test_values_that_are_not_scaled():
    # As in torchvision, colours clamp floats to 0..1 whatever their range, and fills are in the values' units.
    pixels = photographs()
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    flipped = t.Compose([t.ToDtype(torch.float32), t.RandomVerticalFlip(1.0), t.RandomErasing(1.0, value=300.0)])
    ours = loaded(pixels, flipped)
    for image, made, (_, steps) in zip(tensor, ours, drawn(flipped, len(pixels)), strict=True):
        assert torch.equal(made, replayed(image, steps))
    dark = t.Compose([t.ToDtype(torch.float32), t.ColorJitter(brightness=(0.01, 0.01))])
    torch.testing.assert_close(loaded(pixels, dark), tvf.adjust_brightness(tensor, 0.01), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3)])
def test_small_images(size, channels):
    image = np.random.default_rng(1).integers(0, 256, (*size, channels), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1) * (1 / 255)
    for transform, function in (
        (t.ColorJitter(contrast=(0.5, 0.5)), lambda image: tvf.adjust_contrast(image, 0.5)),
        (t.ColorJitter(hue=(0.2, 0.2)), lambda image: tvf.adjust_hue(image, 0.2)),
        (t.RandomAutocontrast(1.0), tvf.autocontrast),
        (t.RandomEqualize(1.0), tvf.equalize),
        (t.RandomAdjustSharpness(2.0, 1.0), lambda image: tvf.adjust_sharpness(image, 2.0)),
        (t.Resize((4, 5)), lambda image: tvf.resize(image, [4, 5], antialias=True)),
        (t.RandomErasing(1.0), lambda image: image if min(size) == 1 else None),
    ):
        ours = lowered_call(transform, image)
        theirs = function(tensor)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "policy",
    [
        t.RandAugment(interpolation="bilinear"),
        t.TrivialAugmentWide(interpolation="bilinear"),
        t.AutoAugment(interpolation="bilinear"),
        t.AugMix(interpolation="bilinear"),
    ],
)
def test_policies(policy):
    chain = t.Compose([TO_FLOAT, policy])
    pixels = np.concatenate([photographs()[:5]] * 8)
    ours = loaded(pixels, chain)
    for image, made, (_, steps) in zip(pixels, ours, drawn(chain, len(pixels)), strict=True):
        tensor = torch.from_numpy(image).permute(2, 0, 1) * (1 / 255)
        difference = (made - replayed(tensor, steps)).abs()
        # Bins of posterize and equalize, and thresholds, turn a last bit into a whole level of a few values: no bound
        # on each, but on the mean.
        assert difference.mean() < 5e-4, steps


def test_on_one_image():
    image = photographs()[0]
    chain = t.Compose([TO_FLOAT, t.RandomInvert(1.0)])
    expected = 1.0 - torch.from_numpy(image).permute(2, 0, 1) * (1 / 255)
    assert torch.equal(chain(image), expected)
    assert torch.equal(chain(torch.from_numpy(image).permute(2, 0, 1)), expected)
    half = t.Compose([t.ToDtype(torch.float16, scale=True), t.RandomInvert(1.0)])(image)
    assert torch.equal(half, expected.half())


ERRORS = {
    "threshold must be at most 1 for floats, got 128": lambda: t.Compose([TO_FLOAT, t.RandomSolarize(128)]),
    "mean must have 1 or 3 values, one for each channel, got 2": lambda: loaded(
        photographs(), t.Compose([TO_FLOAT, t.RandomInvert(), t.Normalize([0.5] * 2, [0.5] * 2)])
    ),
    "needs float values: put ToDtype": lambda: t.Compose([t.Normalize([0.5], [0.5]), TO_FLOAT]),
}


@pytest.mark.parametrize("text", list(ERRORS))
def test_errors_say_what_was_expected(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        ERRORS[text]()


def test_float_images_do_not_become_bytes():
    with pytest.raises(ValueError, match="do not fit uint8"):
        loaded(photographs(), t.Compose([TO_FLOAT, t.RandomInvert()]), dtype=torch.uint8)
