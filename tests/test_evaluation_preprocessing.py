"""The test transform: torchvision's and timm's pixels, one description that survives JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
import torchvision.transforms.v2 as tv
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor

from vit_rs.data import ArrayDataset, ImageLoader
from vit_rs.evaluation import Preprocessing
from vit_rs.evaluation.preprocessing import named_preprocessing
from vit_rs.exceptions import ConfigError
from vit_rs.models.catalogue import named_config

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (47, 61, 3), np.uint8)


def through_loader(photo: np.ndarray, preprocessing: Preprocessing, side: int | None = None) -> Tensor:
    with ImageLoader(ArrayDataset(photo[None], [0]), preprocessing.transform(side), batch_size=1) as loader:
        images, _ = next(iter(loader))
    return images[0]


@pytest.mark.parity
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("settings", "geometry"),
    [
        ({}, [tv.Resize(32), tv.CenterCrop(32)]),
        ({"crop": 0.875}, [tv.Resize(37), tv.CenterCrop(32)]),  # 36.57 to the nearest
        ({"resize": "squash"}, [tv.Resize((32, 32))]),
        ({"resize": "squash", "crop": 0.9}, [tv.Resize((36, 36)), tv.CenterCrop(32)]),
        ({"img_size": (24, 40), "resize": "squash"}, [tv.Resize((24, 40))]),
    ],
)
def test_pixels_are_torchvision_s(photo, settings, geometry, interpolation) -> None:
    preprocessing = Preprocessing(**{"img_size": (32, 32), **settings}, interpolation=interpolation, mean=MEAN, std=STD)
    mode = tv.InterpolationMode(interpolation)
    geometry = [tv.Resize(step.size, mode) if isinstance(step, tv.Resize) else step for step in geometry]
    peer = tv.Compose([*geometry, tv.ToDtype(torch.float32, scale=True), tv.Normalize(MEAN, STD)])
    got = through_loader(photo, preprocessing)
    assert torch.equal(got, peer(torch.from_numpy(photo).permute(2, 0, 1)))


@pytest.mark.parity
@pytest.mark.parametrize("size", [(24, 40), (40, 24), (16, 60)])
@pytest.mark.parametrize("crop", [1.0, 0.9])
def test_an_oblong_input_is_covered_as_timm_does(photo, size, crop) -> None:
    preprocessing = Preprocessing(size, crop=crop, interpolation="bicubic", mean=MEAN, std=STD)
    covering = tuple(round(side / crop) for side in size)
    image = torch.from_numpy(photo).permute(2, 0, 1)
    resized = ResizeKeepRatio.get_params(tv.functional.to_pil_image(image), covering, longest=0.0)
    resize = tv.Resize(resized, tv.InterpolationMode.BICUBIC)
    peer = tv.Compose([resize, tv.CenterCrop(size), tv.ToDtype(torch.float32, scale=True), tv.Normalize(MEAN, STD)])
    assert torch.equal(through_loader(photo, preprocessing), peer(image))


def test_images_of_the_right_size_are_only_normalised(photo) -> None:
    square = np.ascontiguousarray(photo[:32, :32])
    plain = Preprocessing((32, 32), mean=MEAN, std=STD)
    assert plain.geometry(32) == []
    assert plain.at_size(33).geometry(32) != []
    assert Preprocessing((32, 32), crop=0.5).geometry(32) != []
    assert Preprocessing((32, 16)).geometry(32) != []
    assert torch.equal(through_loader(square, plain, side=32), through_loader(square, plain))


def test_it_survives_json() -> None:
    preprocessing = Preprocessing((24, 40), "squash", 0.9, "lanczos", MEAN, STD)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
    assert preprocessing.at_size(8) == Preprocessing((8, 8), "squash", 0.9, "lanczos", MEAN, STD)
    assert str(preprocessing) == "24x40 px, squash 0.9, lanczos, mean 0.4/0.5/0.6, std 0.2/0.25/0.3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": (0, 3)}, r"img_size must be a side, or \(height, width\), in pixels, got \(0, 3\)"),
        ({"img_size": "32"}, "img_size must be"),
        ({"img_size": (True, 3)}, "img_size must be"),
        ({"resize": "stretch"}, "resize must be one of crop, squash, got 'stretch'"),
        ({"crop": 0.0}, "crop must be above 0 and at most 1, got 0.0"),
        ({"crop": float("nan")}, "crop must be above 0"),
        ({"interpolation": "nearest"}, "interpolation must be one of bilinear, bicubic, lanczos, got 'nearest'"),
        ({"mean": ()}, r"mean must be numbers, one for each channel, got \(\)"),
        ({"mean": "0.5"}, "mean must be numbers"),
        ({"std": (0.0,)}, "std above 0"),
        ({"mean": MEAN}, "mean and std need one value for each channel"),
    ],
)
def test_values_that_make_no_sense(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**{"img_size": (32, 32), **changes})


def test_dictionaries_that_are_no_preprocessing() -> None:
    fields = Preprocessing((8, 8)).to_dict()
    with pytest.raises(ConfigError, match=r"unknown fields \['size'\], missing \['crop'\]"):
        Preprocessing.from_dict({**{key: fields[key] for key in fields if key != "crop"}, "size": 1})
    with pytest.raises(ConfigError, match="expected a dictionary, got 3"):
        Preprocessing.from_dict(3)  # type: ignore[arg-type]


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",
        "vit_base_patch16_384",
        "deit_base_patch16_224",
        "deit3_base_patch16_384",
        "vit_base_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_dinov3",
        "vit_base_patch16_siglip_224",
        "vit_base_r50_s16_384",
        "vit_small_r26_s32_224",
    ],
)
def test_published_models_are_tested_as_in_timm(name) -> None:
    peer = timm.models.get_pretrained_cfg(name)
    size = named_config(name).img_size
    got = named_preprocessing(name, size)
    assert (got.mean, got.std, got.crop, got.interpolation) == (peer.mean, peer.std, peer.crop_pct, peer.interpolation)
    assert got.img_size == peer.input_size[1:]
    assert (
        named_preprocessing("resnetv2_50x1_bit", 224).crop
        == timm.models.get_pretrained_cfg("resnetv2_50x1_bit").crop_pct
    )
