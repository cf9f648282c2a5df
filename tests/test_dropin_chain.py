"""A user's chain of transforms, split: which part the engine carries out, which stays in Python, and why."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from vit_rs import transforms as t
from vit_rs.data.dropin.chain import Pipeline, Place, place_of
from vit_rs.transforms.calling import pillow_kernels

KERNELS = pillow_kernels()
PIL, TENSOR = Place(), Place("tensor")
FLOAT = Place("float", dtype=torch.float32)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


HERE = __name__


def darken(image):
    return image.point(lambda value: value // 2)


class Darken:
    def __call__(self, image):
        return darken(image)


class OwnResize(v2.Resize):
    def transform(self, inpt, params):
        return super().transform(inpt, params)


class OwnOfBoth(v1.CenterCrop):
    pass


def image_of(height: int, width: int, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def test_a_training_chain_is_the_engines():
    pipeline = Pipeline.of(
        v1.Compose([v1.RandomResizedCrop(8), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)]), PIL
    )
    assert pipeline.prefix == t.Compose(
        [t.RandomResizedCrop((8, 8)), t.RandomHorizontalFlip(), t.ToTensor(), t.Normalize(MEAN, STD)], KERNELS
    )
    assert (pipeline.python, pipeline.rest, pipeline.suffix, pipeline.first_python) == ((), (), None, None)
    assert pipeline.start == PIL
    assert pipeline.before_python == pipeline.after_python == pipeline.end == FLOAT
    assert [step.after.kind for step in pipeline.steps] == ["pil", "pil", "float", "float"]
    assert {pipeline.stage(index) for index in range(4)} == {"prefix"}


def test_kernels_are_those_of_the_image():
    chain = v2.Compose([v2.Resize(9), v2.ToImage(), v2.Resize((3, 4))])
    assert Pipeline.of(chain, PIL).prefix == t.Compose([t.Resize(9), t.PILToTensor(), t.Resize((3, 4))], KERNELS)
    assert Pipeline.of(chain, TENSOR).prefix == t.Compose([t.Resize(9), t.Resize((3, 4))], "torch")


@pytest.mark.parametrize("start", [PIL, TENSOR, FLOAT])
def test_no_transform_is_an_empty_chain(start):
    pipeline = Pipeline.of(None, start)
    assert (pipeline.steps, pipeline.prefix.transforms, pipeline.suffix) == ((), (), None)
    assert pipeline.end == start


def test_containers_are_taken_apart():
    inner = v1.Compose([nn.Sequential(v2.CenterCrop(8), nn.Sequential(v1.RandomVerticalFlip(1.0))), v1.Compose([])])
    pipeline = Pipeline.of(v2.Compose([inner, v2.ToImage()]), PIL)
    assert [type(step.original) for step in pipeline.steps] == [v2.CenterCrop, v1.RandomVerticalFlip, v2.ToImage]
    assert pipeline.prefix.transforms == (t.CenterCrop((8, 8)), t.RandomVerticalFlip(1.0), t.PILToTensor())


def test_containers_of_chance_hold_what_they_held():
    crop, group = v1.CenterCrop(8), v1.Compose([v1.RandomInvert(0.25), v1.RandomSolarize(9)])
    inverts = t.RandomApply((t.RandomInvert(0.25), t.RandomSolarize(9)), 1.0)
    nothing = t.RandomApply((t.RandomHorizontalFlip(0.0),), 1.0)

    def prefix(transform):
        return Pipeline.of(transform, PIL).prefix.transforms

    assert prefix(v1.RandomApply(nn.ModuleList([v1.CenterCrop(8)]), 0.25)) == (
        t.RandomApply([t.CenterCrop((8, 8))], 0.25),
    )
    assert prefix(v1.RandomApply([group, v2.Identity()])) == (t.RandomApply(inverts.transforms, 0.5),)
    assert prefix(v1.RandomApply([v2.Identity()])) == ()
    assert prefix(v1.RandomChoice([crop, group, v1.Compose([])], [1, 2, 3])) == (
        t.RandomChoice((t.CenterCrop((8, 8)), inverts, nothing), (1, 2, 3)),
    )
    assert prefix(v2.RandomChoice([crop, group], [1, 3])) == (
        t.RandomChoice((t.CenterCrop((8, 8)), inverts), (0.25, 0.75)),
    )
    # What stands in a Compose keeps its order, and what does nothing has none.
    assert prefix(v2.RandomOrder([crop, group, v2.Identity()])) == (t.RandomOrder((t.CenterCrop((8, 8)), inverts)),)
    assert prefix(v2.RandomOrder([v2.Identity()])) == ()


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


def with_own(transform, name):
    setattr(transform, name, lambda *_: None)
    return transform


PERSPECTIVE = v2.RandomPerspective()
# What stays in Python, and the reason.
IN_PYTHON = {
    "function": (darken, f"{HERE}.darken is a Python function"),
    "lambda": (lambda image: image, "<lambda> is a Python function"),
    "builtin": (len, "builtins.len is a Python function"),
    "partial": (partial(darken), f"partial of {HERE}.darken is not a transform that vit_rs knows"),
    "method": (Darken().__call__, f"{HERE}.Darken.__call__ is a Python function"),
    "own class": (Darken(), f"{HERE}.Darken is not a transform that vit_rs knows"),
    "module": (nn.Identity(), "Identity is not a transform that vit_rs knows"),
    "subclass": (OwnResize(9), f"{HERE}.OwnResize is a subclass of torchvision.transforms.v2.Resize"),
    "empty subclass": (OwnOfBoth(9), "is a subclass of torchvision.transforms.CenterCrop: only the class itself"),
    "Lambda": (v1.Lambda(darken), f"runs {HERE}.darken"),
    "v2 Lambda": (v2.Lambda(darken), f"runs {HERE}.darken"),
    "hooked": (hooked(v2.CenterCrop(3)), "this CenterCrop has forward hooks"),
    "hooked Sequential": (hooked(nn.Sequential(v2.CenterCrop(3))), "this Sequential has forward hooks"),
    "hooked Compose": (hooked(v2.Compose([v2.CenterCrop(3)])), "this Compose has forward hooks"),
    "hooked RandomApply": (hooked(v2.RandomApply([v2.CenterCrop(3)])), "this RandomApply has forward hooks"),
    "own forward": (with_own(v1.CenterCrop(3), "forward"), "this CenterCrop has a forward of its own"),
    "own transform": (with_own(v2.CenterCrop(3), "transform"), "this CenterCrop has a transform of its own"),
    "own get_params": (with_own(v1.RandomCrop(3), "get_params"), "this RandomCrop has a get_params of its own"),
    "RandomApply": (v1.RandomApply([darken]), f"holds {HERE}.darken is a Python function"),
    "RandomChoice": (
        v2.RandomChoice([PERSPECTIVE]),
        "holds torchvision.transforms.v2.RandomPerspective: vit_rs has no",
    ),
    "RandomOrder": (v2.RandomOrder([v2.ToImage()]), "holds torchvision.transforms.v2.ToImage, which changes what the"),
    "Normalize": (v1.RandomApply([v1.Normalize(MEAN, STD)]), "torchvision raises TypeError here"),
    "no weights": (v1.RandomChoice([v1.CenterCrop(3)], [0.0]), "needs a probability of at least 0, and one above it"),
    "own table": (with_own(v2.RandAugment(), "_AUGMENTATION_SPACE"), "has a _AUGMENTATION_SPACE of its own"),
    "own types": (with_own(v2.RandomInvert(), "_transformed_types"), "has a _transformed_types of its own"),
    "None": (None, "NoneType is not a transform that vit_rs knows"),
    "RandomApply of None": (v1.RandomApply([None]), "NoneType is not a transform that vit_rs knows"),
    "MultiCrop": (t.MultiCrop([t.CenterCrop(3)]), "MultiCrop makes several views: ImageLoader"),
    "other kernels": (t.Compose([t.CenterCrop(3)], "torch"), f"it names 'torch' kernels, the chain has {KERNELS!r}"),
}


@pytest.mark.parametrize("name", IN_PYTHON)
def test_all_but_exact_types_stay_in_python_and_say_why(name):
    transform, reason = IN_PYTHON[name]
    pipeline = Pipeline.of(v1.Compose([v1.CenterCrop(5), transform, v1.ToTensor()]), PIL)
    assert pipeline.python == (transform,)
    assert [pipeline.stage(index) for index in range(3)] == ["prefix", "python", "suffix"]
    assert pipeline.steps[1].translated is None
    assert reason in pipeline.steps[1].reason
    assert pipeline.prefix == t.Compose([t.CenterCrop((5, 5))], KERNELS)
    assert pipeline.suffix == t.Compose([t.ToTensor()], KERNELS)
    assert [type(step) for step in pipeline.rest] == [v1.ToTensor]
    assert (pipeline.before_python, pipeline.after_python, pipeline.end) == (PIL, PIL, FLOAT)


def test_there_is_one_python_span():
    chain = [
        v2.Resize(9),
        darken,
        v2.CenterCrop(8),
        v2.ToImage(),
        PERSPECTIVE,
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32),
    ]
    pipeline = Pipeline.of(v2.Compose(chain), PIL)
    assert pipeline.python == tuple(chain[1:5])
    assert (pipeline.first_python, pipeline.last_python) == (1, 4)
    assert [step.translated is None for step in pipeline.steps] == [False, True, True, True, True, False, False]
    assert pipeline.steps[2].reason == "stands between transforms that stay in Python"
    assert (pipeline.before_python, pipeline.after_python) == (PIL, Place("tensor", wrapped=True))
    assert pipeline.suffix == t.Compose([t.RandomHorizontalFlip(0.5), t.ToDtype(torch.float32)], "torch")
    assert pipeline.rest == tuple(chain[5:])


def test_python_comes_first_or_last():
    first = Pipeline.of(v1.Compose([darken, v1.ToTensor()]), PIL)
    assert (first.prefix.transforms, first.before_python, first.first_python) == ((), PIL, 0)
    last = Pipeline.of(v1.Compose([v1.CenterCrop(9), darken]), PIL)
    assert (last.suffix, last.rest, last.end, last.last_python) == (None, (), PIL, 1)
    alone = Pipeline.of(darken, PIL)
    assert (alone.prefix.transforms, alone.python, alone.suffix) == ((), (darken,), None)


def test_python_goes_on_behind_python_that_makes_floats():
    pipeline = Pipeline.of(
        v1.Compose([v1.ToTensor(), torch.sqrt, v1.Normalize(MEAN, STD), v1.RandomErasing(), v2.Identity()]), PIL
    )
    assert [pipeline.stage(index) for index in range(5)] == ["prefix", "python", "python", "python", "suffix"]
    assert pipeline.steps[2].reason == "the image is float before: the engine takes 8-bit images"
    assert pipeline.before_python == pipeline.after_python == pipeline.end == FLOAT
    assert pipeline.suffix is None
    # Until something makes an 8-bit image again.
    pipeline = Pipeline.of(v1.Compose([v1.ToTensor(), torch.sqrt, v1.ToPILImage(), v1.CenterCrop(3)]), PIL)
    assert pipeline.suffix == t.Compose([t.CenterCrop((3, 3))], KERNELS)


def test_what_cannot_stand_in_one_chain_stays_in_python():
    pipeline = Pipeline.of(v2.Compose([t.ToTensor(), t.ToDtype(torch.float16), v2.Identity()]), PIL)
    assert [pipeline.stage(index) for index in range(3)] == ["prefix", "python", "suffix"]
    assert "second conversion" in pipeline.steps[1].reason


@pytest.mark.parametrize("value", [-3, 300])
@pytest.mark.parametrize("place", [PIL, TENSOR])
def test_what_only_the_engine_refuses_stays_in_python(place, value):
    erasing = v2.RandomErasing(1.0, value=value)
    pipeline = Pipeline.of(v2.Compose([v2.CenterCrop(5), v2.ToImage(), erasing]), place)
    assert pipeline.python == (erasing,)
    assert "must be in 0..=255" in pipeline.steps[2].reason


def test_transforms_of_vit_rs_are_taken_as_they_are():
    own = t.Compose([t.Resize(9), t.PILToTensor(), t.ToDtype(torch.float16, scale=True)])
    pipeline = Pipeline.of(v1.Compose([t.RandomHorizontalFlip(), own]), PIL)
    assert pipeline.prefix == t.Compose([t.RandomHorizontalFlip(), *own.transforms], KERNELS)
    assert pipeline.end == Place("float", dtype=torch.float16)
    assert Pipeline.of(t.ToTensor(), PIL).end == FLOAT
    assert Pipeline.of(t.Compose([t.Resize(9)], KERNELS), PIL).first_python is None
    # They make plain tensors.
    assert Pipeline.of(t.Resize(9), Place("tensor", wrapped=True)).end == TENSOR


def test_parameters_are_read_anew():
    resize, erase = v1.Resize(9), v2.RandomErasing()
    chain = v1.Compose([resize, v1.ToTensor(), erase])
    first = Pipeline.of(chain, PIL)
    resize.size, erase.p = (7, 8), 0.25
    chain.transforms.insert(1, v1.CenterCrop(5))
    second = Pipeline.of(chain, PIL)
    assert first.prefix.transforms[0] == t.Resize(9)
    assert second.prefix.transforms[:2] == (t.Resize((7, 8)), t.CenterCrop((5, 5)))
    assert second.prefix.transforms[-1].p == 0.25
    assert second.prefix != first.prefix
    assert Pipeline.of(chain, PIL) == second
    # To one number torchvision makes the shorter side that long.
    for crop in (v1.RandomResizedCrop(9), v2.RandomResizedCrop(9)):
        for size in (7, (7,), [7]):
            crop.size = size
            assert Pipeline.of(crop, PIL).python == (crop,)
        crop.size = [7, 8]
        assert Pipeline.of(crop, PIL).prefix.transforms == (t.RandomResizedCrop((7, 8)),)


def test_places_of_images():
    gray, colour = image_of(3, 4, 1), image_of(3, 4)
    tensor = torch.zeros(3, 4, 5, dtype=torch.uint8)
    assert [place_of(image) for image in (gray, colour)] == [Place("pil", 1), PIL]
    assert place_of(tensor) == TENSOR
    assert place_of(tensor[:1].half()) == Place("float", 1, dtype=torch.float16)
    assert place_of(tv_tensors.Image(tensor)) == Place("tensor", wrapped=True)
    assert place_of(tv_tensors.Image(tensor).float()) in (Place("float", wrapped=True, dtype=torch.float32), FLOAT)
    nowhere = [
        *(None, "image", np.zeros((3, 4, 3), np.uint8), colour.convert("RGBA"), colour.convert("P")),
        *(tensor[0], tensor[:2], tensor[:, :0], tensor.int(), tensor[None], tensor.to("meta")),
        *(tv_tensors.Mask(tensor), nn.Parameter(torch.zeros(3, 4, 5)), Image.new("RGB", (0, 3))),
    ]
    assert [place_of(image) for image in nowhere] == [None] * len(nowhere)


# Transforms without chance, of images and of uint8 tensors: v1's on tensors stay in Python where it has other values.
def sides(least: int = 1) -> st.SearchStrategy[int]:
    return st.integers(least, 40)


def steps_of(halves: list) -> st.SearchStrategy:
    half = st.sampled_from(halves)
    mode = st.sampled_from([v1.InterpolationMode.BILINEAR, v1.InterpolationMode.BICUBIC])
    return st.one_of(
        st.builds(lambda v, h, w, m: v.Resize((h, w), m), half, sides(), sides(), mode),
        st.builds(lambda v, side: v.Resize(side), half, sides()),
        st.builds(lambda v, h, w: v.CenterCrop((h, w)), half, sides(), sides()),
        st.builds(lambda v, p: v.RandomHorizontalFlip(float(p)), half, st.booleans()),
        st.builds(lambda v, p: v.RandomApply([v.RandomVerticalFlip(1.0)], float(p)), half, st.booleans()),
        st.builds(lambda v, bits: v.RandomPosterize(bits, 1.0), half, st.integers(1, 8)),
        st.builds(lambda v: v.Compose([v.RandomInvert(1.0), v.RandomEqualize(1.0)]), half),
    )


TO_TENSOR = st.sampled_from([v1.PILToTensor(), v2.PILToTensor(), v2.ToImage()])
TO_VALUES = st.sampled_from([v2.ToDtype(torch.float32, scale=True), v1.ConvertImageDtype(torch.float32)])
CHAINS = st.builds(
    lambda pil, rest: v1.Compose([*pil, *rest]),
    st.lists(steps_of([v1, v2]), max_size=4),
    st.one_of(
        st.just([]),
        st.just([v1.ToTensor(), v2.Normalize(MEAN, STD)]),
        st.builds(
            lambda first, tensor, values: [first, *tensor, values, v1.Normalize(MEAN, STD)],
            TO_TENSOR,
            st.lists(steps_of([v2]), max_size=3),
            TO_VALUES,
        ),
    ),
)


@given(chain=CHAINS, height=sides(2), width=sides(2))
def test_chains_without_chance_have_torchvisions_values(chain, height, width):
    image = image_of(height, width)
    pipeline = Pipeline.of(chain, PIL)
    assert pipeline.first_python is None, [step.reason for step in pipeline.steps]
    made, expected = pipeline.prefix(image), chain(image)
    assert place_of(expected) == pipeline.end
    np.testing.assert_array_equal(np.asarray(made), np.asarray(expected))


@given(before=st.lists(steps_of([v1, v2]), max_size=2), behind=st.lists(steps_of([v1, v2]), max_size=2))
def test_chains_around_python_have_torchvisions_values(before, behind):
    image = image_of(31, 23)
    chain = v2.Compose([*before, darken, *behind, v2.ToImage()])
    pipeline = Pipeline.of(chain, PIL)
    made = pipeline.prefix(image)
    for stage in pipeline.python:
        made = stage(made)
    assert place_of(made) == pipeline.after_python
    assert pipeline.suffix is not None
    made = pipeline.suffix(made)
    np.testing.assert_array_equal(np.asarray(made), np.asarray(chain(image)))
