"""Chains that start on PIL images: Pillow's pixels up to PILToTensor, torch's behind it; ToTensor's divided floats."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
import torchvision.transforms as tv1
import torchvision.transforms.v2 as tv2
from PIL import Image
from sklearn.datasets import load_sample_image

from vit_rs import transforms as t
from vit_rs.data import ArrayDataset, ImageLoader, Patches
from vit_rs.transforms.calling import call
from vit_rs.transforms.lowering import lower

PHOTO = np.ascontiguousarray(load_sample_image("china.jpg")[:301, :402])
# Each of the 256 values in each channel, somewhere.
VALUES = np.stack([np.roll(np.arange(256, dtype=np.uint8), 85 * c).reshape(16, 16) for c in range(3)], -1)
NORMALIZATIONS = [
    ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    ([0.0], [1.0]),
    ([0.1307], [0.3081]),
]


def pil(pixels: np.ndarray, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(pixels if mode == "RGB" else np.ascontiguousarray(pixels[..., 1]))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    pil(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def loaded(pixels: np.ndarray, transform: t.Transform, **options) -> torch.Tensor:
    with ImageLoader(ArrayDataset(pixels[None], [0]), transform, batch_size=1, num_threads=1, **options) as loader:
        return next(iter(loader))[0][0]


SHRINK, JITTER = t.Resize(90, interpolation="bicubic"), t.ColorJitter(saturation=(0.3, 0.3))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pil_to_tensor_divides_a_chain(mode):
    """One operation on each side, of two that libraries do not agree on."""
    resize, jitter = tv2.Resize(90, tv2.InterpolationMode.BICUBIC), lambda x: tv2.functional.adjust_saturation(x, 0.3)
    image = pil(PHOTO, mode)
    for ours, theirs in [
        ([SHRINK, t.PILToTensor(), JITTER], jitter(tv2.functional.pil_to_tensor(resize(image)))),
        ([t.PILToTensor(), SHRINK, JITTER], jitter(resize(tv2.functional.pil_to_tensor(image)))),
        ([SHRINK, JITTER, t.PILToTensor()], tv2.functional.pil_to_tensor(jitter(resize(image)))),
        ([t.Compose([SHRINK, t.PILToTensor()]), t.PILToTensor(), t.Compose([JITTER])], None),
    ]:
        made = t.Compose(ours)(image)
        assert made.dtype == torch.uint8
        assert made.is_contiguous()
        first = made if theirs is None else theirs
        assert torch.equal(made, first)
        assert torch.equal(
            made,
            t.Compose(ours, kernels="pillow")(
                torch.from_numpy(np.array(image)).view(*image.size[::-1], -1).permute(2, 0, 1)
            ),
        )


def test_the_two_sides_differ_here():
    made = [
        t.Compose(ours)(pil(PHOTO))
        for ours in (
            [SHRINK, t.PILToTensor(), JITTER],
            [t.PILToTensor(), SHRINK, JITTER],
            [SHRINK, JITTER, t.PILToTensor()],
        )
    ]
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_loader_divides_the_chain_too():
    chain = t.Compose([SHRINK, t.PILToTensor(), JITTER, t.ToTensor()], kernels="pillow")
    expected = t.Compose([SHRINK, t.PILToTensor(), JITTER])(pil(PHOTO))
    assert torch.equal(loaded(PHOTO, chain), expected / 255)
    # Without Pillow's kernels there is nothing to divide.
    plain = t.Compose([SHRINK, JITTER])
    for image in (PHOTO, torch.from_numpy(PHOTO).permute(2, 0, 1)):
        assert np.array_equal(t.Compose([SHRINK, t.PILToTensor(), JITTER])(image), plain(image))
    assert torch.equal(loaded(PHOTO, t.Compose([SHRINK, t.PILToTensor(), JITTER])), loaded(PHOTO, plain))


def test_pil_to_tensor_draws_nothing():
    parts = [t.RandomResizedCrop(32), t.RandomHorizontalFlip()]
    with_it = lower(t.Compose([parts[0], t.PILToTensor(), parts[1]], kernels="pillow")).view()
    without = lower(t.Compose(parts, kernels="pillow")).view()
    for draw in range(8):
        assert with_it.draw_plan((300, 400), 3, 0, draw, 0) == without.draw_plan((300, 400), 3, 0, draw, 0)
    assert "rounding: Pillow" in str(with_it.describe((300, 400), 3, 0, 0, 0))


def test_behind_floats_pil_to_tensor_does_nothing():
    assert torch.equal(t.Compose([t.ToTensor(), t.PILToTensor()])(pil(PHOTO)), tv1.ToTensor()(pil(PHOTO)))


def test_floats_are_torchs_in_a_chain_of_pillows():
    """A rotation's map is Pillow's on PIL images only."""
    turn = t.RandomRotation((30, 30), interpolation="bilinear")
    image = PHOTO[:60, :80]
    made = t.Compose([t.ToTensor(), turn], kernels="pillow")(pil(image))
    assert torch.equal(made, t.Compose([t.ToTensor(), turn], kernels="torch")(pil(image)))


@pytest.mark.parametrize(("mean", "std"), NORMALIZATIONS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_to_tensor_is_torchvisions_bit_for_bit(mean, std, mode):
    mean, std = (mean, std) if mode == "RGB" else (mean[:1], std[:1])
    theirs = tv1.Compose([tv1.ToTensor(), tv1.Normalize(mean, std)])(pil(VALUES, mode))
    ours = t.Compose([t.ToTensor(), t.Normalize(mean, std)])
    assert torch.equal(ours(pil(VALUES, mode)), theirs)
    assert torch.equal(t.ToTensor()(pil(VALUES, mode)), tv1.ToTensor()(pil(VALUES, mode)))
    # The older half of torchvision divides tensors too; v2 multiplies.
    tensor = tv1.functional.pil_to_tensor(pil(VALUES, mode))
    assert torch.equal(t.ToTensor()(tensor), tv1.ConvertImageDtype(torch.float32)(tensor))
    multiplied = t.ToDtype(torch.float32, scale=True)(tensor)
    assert torch.equal(multiplied, tv2.ToDtype(torch.float32, scale=True)(tensor))
    assert torch.equal(multiplied, tv2.ConvertImageDtype(torch.float32)(tensor))
    assert (multiplied != t.ToTensor()(tensor)).sum() == 126 * len(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mirrored", [False, True])
def test_to_tensor_in_every_layout(dtype, mirrored):
    mean, std = NORMALIZATIONS[0]
    theirs = tv1.Compose([tv1.ToTensor(), tv1.Normalize(mean, std)])(pil(VALUES)).to(dtype)
    theirs = theirs.flip(-1) if mirrored else theirs
    chain = t.Compose([t.RandomHorizontalFlip(float(mirrored)), t.ToTensor(), t.Normalize(mean, std)])
    assert torch.equal(loaded(VALUES, chain, dtype=dtype), theirs)
    assert torch.equal(loaded(VALUES, chain, dtype=dtype, layout="NHWC"), theirs.permute(1, 2, 0))
    patches = theirs.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(4, -1)
    assert torch.equal(loaded(VALUES, chain, dtype=dtype, layout=Patches(8, order="cpq")), patches)


def test_operations_behind_to_tensor_work_on_its_floats():
    chain = t.Compose([t.ToTensor(), t.RandomHorizontalFlip(1.0), t.RandomInvert(1.0)])
    theirs = tv1.Compose([tv1.ToTensor(), tv1.RandomHorizontalFlip(1.0), tv1.RandomInvert(1.0)])
    assert torch.equal(chain(pil(VALUES)), theirs(pil(VALUES)))


FILTERS = {"bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS"}
SIDES = [1, 2, 3, 16, 17, 40, 61, 101, 200]


@pytest.mark.parametrize("half", [tv1, tv2], ids=["v1", "v2"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_crops_and_resizes_are_those_of_pil_images(half, mode):
    """Every byte, at many sizes: parts that are resized, middles with odd borders, windows of padded images."""
    random = np.random.default_rng(7)
    for _ in range(60):
        height, width, *size = (int(side) for side in random.choice(SIDES, 4))
        image = pil(np.ascontiguousarray(PHOTO[:height, -width:]), mode)
        assert same(t.CenterCrop(size)(image), half.CenterCrop(size)(image))
        seed, name = int(random.integers(2**40)), str(random.choice(list(FILTERS)))
        crop = t.RandomResizedCrop(size, scale=(0.05, 1.0), interpolation=name)
        rect = next((numbers for kind, numbers in drawn(crop, (height, width), seed) if kind == "crop"), None)
        rect = [0, 0, height, width] if rect is None else [int(number) for number in rect]
        theirs = half.functional.resized_crop(image, *rect, size, tv1.InterpolationMode[FILTERS[name]])
        assert same(call(crop, image, seed=seed), theirs), (height, width, rect, size, name)
        border = str(random.choice(["constant", "edge", "reflect", "symmetric"]))
        size = [min(size[0], height), min(size[1], width)]
        # What is mirrored must be there.
        padding = [int(side) for side in random.integers(0, min(6, height, width), 4)]
        fill = int(random.integers(256))
        crop = t.RandomCrop(size, padding, fill=fill, padding_mode=border)
        place = next((numbers for _, numbers in drawn(crop, (height, width), seed)), [0, 0])
        theirs = half.functional.pad(image, padding, fill, border)
        theirs = half.functional.crop(theirs, int(place[0]) + padding[1], int(place[1]) + padding[0], *size)
        assert same(call(crop, image, seed=seed), theirs), (height, width, padding, place, size, border)


def same(ours: Image.Image, theirs: Image.Image) -> bool:
    return (ours.mode, ours.size, ours.tobytes()) == (theirs.mode, theirs.size, theirs.tobytes())


def drawn(transform: t.Transform, size: tuple[int, int], seed: int) -> list[tuple[str, list[float]]]:
    return lower(transform).view(kernels="pillow").draw_plan(size, seed, 0, 0, 0)[0]


def test_maps_of_v1_are_those_of_v2_but_for_a_last_bit():
    """v1 computes the same matrix in another order: a bilinear pixel may lie on the other side of a border."""
    turns = np.random.default_rng(0).uniform([-60, 0.6, -25, -25], [60, 1.8, 25, 25], (40, 4)).tolist()
    image = pil(PHOTO[:61, :97])
    for angle, scale, *shear in turns:
        ours = t.RandomAffine((angle, angle), None, (scale, scale), [*shear[:1] * 2, *shear[1:] * 2], "bilinear")(image)
        numbers = (angle, [0, 0], scale, shear, tv1.InterpolationMode.BILINEAR)
        assert same(ours, tv2.functional.affine(image, *numbers))
        away = np.asarray(ours).astype(int) - np.asarray(tv1.functional.affine(image, *numbers))
        assert abs(away).max() <= 1
        assert (away != 0).mean() < 0.001


CHAIN = t.Compose([t.RandomResizedCrop(24), t.RandomHorizontalFlip(), t.ToTensor()])


def test_a_given_seed_decides_and_torchs_generator_is_left_alone():
    before = torch.get_rng_state()
    first = call(CHAIN, pil(PHOTO), seed=2**64 - 1)
    assert torch.equal(call(CHAIN, pil(PHOTO), seed=2**64 - 1), first)
    assert not torch.equal(call(CHAIN, pil(PHOTO), seed=7), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [pil, np.asarray, lambda x: torch.from_numpy(x).permute(2, 0, 1), png])
@pytest.mark.parametrize(
    ("last", "dtype"),
    [
        (t.ToTensor(), torch.float32),
        (t.ToDtype(torch.bfloat16, scale=True), torch.bfloat16),
        (t.ToDtype(torch.float16, scale=True), torch.float16),
        (t.ToDtype(torch.uint8), torch.uint8),
    ],
)
def test_results_are_written_into_a_batch(kind, last, dtype):
    chain = t.Compose([t.RandomResizedCrop((20, 24)), last])
    image = kind(PHOTO)
    batch = torch.zeros(3, 3, 20, 24, dtype=dtype)
    held = batch.view(torch.uint16) if dtype in (torch.float16, torch.bfloat16) else batch
    place = held[1].numpy()
    assert call(chain, image, seed=9, out=place) is place
    expected = call(chain, image, seed=9)
    if dtype == torch.uint8 and not isinstance(expected, torch.Tensor):
        expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
    assert torch.equal(batch[1], expected)
    assert not batch[0].any()
    assert not batch[2].any()


def read_only() -> np.ndarray:
    array = np.zeros((3, 24, 24), np.float32)
    array.flags.writeable = False
    return array


PLACES = {
    "out must be a contiguous array of float32 that can be written to, got uint8": np.zeros((3, 24, 24), np.uint8),
    "got float32 with strides (4608, 192, 8)": np.zeros((3, 24, 48), np.float32)[:, :, ::2],
    "got float32 with strides (2304, 96, 4), read-only": read_only(),
    "out has shape [3, 24, 23], the result has [3, 24, 24]": np.zeros((3, 24, 23), np.float32),
    "out has shape [1728], the result has [3, 24, 24]": np.zeros(1728, np.float32),
}


@pytest.mark.parametrize("text", list(PLACES))
def test_places_that_do_not_fit_are_refused(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call(CHAIN, pil(PHOTO), out=PLACES[text])


def test_several_views_do_not_go_to_one_place():
    with pytest.raises(ValueError, match="out is for one view, and a MultiCrop makes several"):
        call(t.MultiCrop([CHAIN]), pil(PHOTO), out=np.zeros((3, 24, 24), np.float32))


ERRORS = {
    "only transforms of pixels can stand here, got PILToTensor()": lambda: t.RandomApply([t.PILToTensor()]),
    "only transforms of pixels can stand here, got ToTensor()": lambda: t.RandomChoice([t.ToTensor()]),
}


@pytest.mark.parametrize("text", list(ERRORS))
def test_conversions_stand_in_chains_alone(text):
    with pytest.raises(TypeError, match=re.escape(text)):
        ERRORS[text]()


@pytest.mark.parametrize("other", [t.ToTensor(), t.ToDtype(torch.float32)])
def test_a_second_conversion_is_refused(other):
    with pytest.raises(ValueError, match="is a second conversion; one ToDtype or ToTensor is possible"):
        t.Compose([t.ToTensor(), other])
