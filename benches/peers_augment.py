"""What bench_augment.py compares: the operations, as torchvision and vit_rs name them, and the other peers' forms.

Bounds of the plain forms are in units of 1/255. Rotations are bounded on average alone where borders or the last bits
of coordinates differ (kornia-rs, Pillow; cv2 keeps 5 bits), as is kornia-rs's blur, whose border differs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from augmentation import Array, Bound, Change

Make = Callable[[Any, Any], Any]
"""From a module with torchvision v2's names, and its name for bilinear, to a transform."""

EXACT = Bound(0, 0.0)


@dataclass(frozen=True)
class Other:
    """A peer with names of its own: `make(plain)` returns what changes its kind of image."""

    name: str
    module: str
    make: Callable[[bool], Change]
    bound: Bound | None  # of its plain form, if it has one


@dataclass(frozen=True)
class Operation:
    """An operation, its plain form (None: no two libraries draw it alike), and the peers that have it."""

    name: str
    make: Make
    plain: Make | None = None
    draws: int = 8  # in a timed call
    ours: Bound = EXACT
    pil: Bound | None = EXACT  # None: torchvision has it for tensors alone
    others: tuple[Other, ...] = ()


def operations() -> list[Operation]:
    """Return the single operations."""
    return [
        Operation(
            "ColorJitter(0.4, 0.4, 0.4)",
            lambda T, _: T.ColorJitter(0.4, 0.4, 0.4),
            lambda T, _: T.ColorJitter(brightness=(1.4, 1.4)),
            draws=32,
            ours=Bound(1, 0.5),
            pil=Bound(1, 0.5),
            others=(
                albumentations(
                    "ColorJitter",
                    {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0},
                    {"brightness": (1.4, 1.4), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)},
                    Bound(1, 0.5),
                ),
                Other("kornia-rs, which adds its brightness", "kornia_rs", kornia_jitter, None),
            ),
        ),
        blur(23),
        blur(9),
        Operation(
            "RandomSolarize(128)",
            lambda T, _: T.RandomSolarize(128, p=1.0),
            lambda T, _: T.RandomSolarize(128, p=1.0),
            others=(
                albumentations("Solarize", {"threshold_range": (128 / 255, 128 / 255)}),
                Other("cv2, LUT", "cv2", cv2_solarize, EXACT),
            ),
        ),
        Operation(
            "RandomGrayscale",
            lambda T, _: T.RandomGrayscale(p=1.0),
            lambda T, _: T.RandomGrayscale(p=1.0),
            ours=Bound(1, 1.0),
            pil=Bound(1, 1.0),
            others=(
                albumentations("ToGray", {}, bound=Bound(1, 1.0)),
                Other("cv2", "cv2", cv2_gray, Bound(1, 1.0)),
                Other("kornia-rs", "kornia_rs", kornia_gray, Bound(1, 1.0)),
            ),
        ),
        Operation(
            "RandomErasing",
            lambda T, _: T.RandomErasing(p=1.0),
            draws=32,
            pil=None,
            others=(albumentations("Erasing", {"scale": (0.02, 0.33), "ratio": (0.3, 3.3)}, bound=None),),
        ),
        Operation(
            "RandomRotation(15), bilinear",
            lambda T, bilinear: T.RandomRotation(15, interpolation=bilinear),
            lambda T, bilinear: T.RandomRotation((10, 10), interpolation=bilinear),
            ours=Bound(1, 0.1),
            pil=Bound(255, 2.0),
            others=(
                albumentations("Rotate", {"limit": (-15, 15)}, {"limit": (10, 10)}, bound=Bound(255, 2.0)),
                Other("cv2", "cv2", cv2_rotation, Bound(255, 2.0)),
                Other("kornia-rs", "kornia_rs", kornia_rotation, Bound(255, 4.0)),
            ),
        ),
        Operation(
            "RandomHorizontalFlip",
            lambda T, _: T.RandomHorizontalFlip(p=1.0),
            lambda T, _: T.RandomHorizontalFlip(p=1.0),
            others=(
                albumentations("HorizontalFlip", {}),
                Other("cv2", "cv2", cv2_flip, EXACT),
                Other("kornia-rs", "kornia_rs", kornia_flip, EXACT),
            ),
        ),
    ]


def policies() -> list[Operation]:
    """Return the policies, at torchvision's defaults; only torchvision has them."""
    return [
        Operation("RandAugment(2, 9)", lambda T, _: T.RandAugment(2, 9), draws=64),
        Operation("TrivialAugmentWide", lambda T, _: T.TrivialAugmentWide(), draws=64),
        Operation("AutoAugment", lambda T, _: T.AutoAugment(), draws=64),
        Operation("AugMix", lambda T, _: T.AugMix(), draws=16),
        Operation("3-Augment", three_augment, draws=32),
    ]


def three_augment(T: Any, _: Any) -> Any:
    """Return 3-Augment (arXiv 2204.07118, section 3.2), with its colour jitter."""
    choice = [T.RandomGrayscale(p=1.0), T.RandomSolarize(128, p=1.0), T.GaussianBlur(9, (0.1, 2.0))]
    return T.Compose([T.RandomChoice(choice), T.ColorJitter(0.3, 0.3, 0.3)])


def dino_views(T: Any, bicubic: Any, *, plain: bool = False) -> list[tuple[Any, int]]:
    """Return the chains of DINO's views (arXiv 2104.14294) and how often: BYOL's augmentations, multi-crop's sizes.

    The plain ones draw nothing: the middle, mirrored, brightened and blurred by fixed amounts, one view solarised.
    """

    def plain_view(size: int, kernel: int, *last: Any) -> Any:
        crop = T.RandomResizedCrop(size, scale=(1.0, 1.0), ratio=(1.0, 1.0), interpolation=bicubic)
        brighter = T.ColorJitter(brightness=(1.4, 1.4))
        return T.Compose([crop, T.RandomHorizontalFlip(p=1.0), brighter, T.GaussianBlur(kernel, (1.0, 1.0)), *last])

    if plain:
        solarised = T.RandomSolarize(128, p=1.0)
        return [(plain_view(224, 23), 1), (plain_view(224, 23, solarised), 1), (plain_view(96, 9), 8)]

    def view(size: int, scale: tuple[float, float], *last: Any) -> Any:
        colours = T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)
        crop = T.RandomResizedCrop(size, scale=scale, interpolation=bicubic)
        return T.Compose([crop, T.RandomHorizontalFlip(), colours, T.RandomGrayscale(p=0.2), *last])

    def blurred(kernel: int, p: float) -> Any:
        return T.RandomApply([T.GaussianBlur(kernel, (0.1, 2.0))], p=p)

    return [
        (view(224, (0.4, 1.0), blurred(23, 1.0)), 1),
        (view(224, (0.4, 1.0), blurred(23, 0.1), T.RandomSolarize(128, p=0.2)), 1),
        (view(96, (0.05, 0.4), blurred(9, 0.5)), 8),
    ]


def blur(kernel: int) -> Operation:
    """Return a blur of a kernel size."""
    sigmas = {"blur_limit": (kernel, kernel), "sigma_limit": (0.1, 2.0)}
    one = {"blur_limit": (kernel, kernel), "sigma_limit": (1.0, 1.0)}
    return Operation(
        f"GaussianBlur({kernel}, sigma 0.1 to 2)",
        lambda T, _: T.GaussianBlur(kernel, (0.1, 2.0)),
        lambda T, _: T.GaussianBlur(kernel, (1.0, 1.0)),
        draws=4,
        ours=Bound(1, 0.1),
        others=(
            albumentations("GaussianBlur", sigmas, one, bound=Bound(2, 0.6)),
            Other("cv2, sepFilter2D", "cv2", lambda plain: cv2_blur(kernel, plain), Bound(2, 0.6)),
            Other("kornia-rs", "kornia_rs", lambda plain: kornia_blur(kernel, plain), Bound(255, 2.0)),
        ),
    )


def albumentations(
    name: str, options: dict[str, Any], plain: dict[str, Any] | None = None, bound: Bound | None = EXACT
) -> Other:
    """Return a transform of albumentations, always applied; its plain form is that of `plain` where options draw."""

    def make(fixed: bool) -> Change:
        import albumentations as A  # noqa: PLC0415  peers are imported where they are used

        transform = getattr(A, name)(**(plain if fixed and plain is not None else options), p=1.0)
        return lambda image: transform(image=image)["image"]

    return Other("albumentations", "albumentations", make, bound)


def cv2_blur(kernel: int, plain: bool) -> Change:
    import cv2  # noqa: PLC0415

    def blurred(image: Array) -> Array:
        weights = cv2.getGaussianKernel(kernel, 1.0 if plain else random.uniform(0.1, 2.0), cv2.CV_32F)
        return cv2.sepFilter2D(image, -1, weights, weights)

    return blurred


def cv2_solarize(_: bool) -> Change:
    import cv2  # noqa: PLC0415

    values = np.arange(256, dtype=np.uint8)
    table = np.where(values >= 128, 255 - values, values)
    return lambda image: cv2.LUT(image, table)


def cv2_gray(_: bool) -> Change:
    import cv2  # noqa: PLC0415

    return lambda image: cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def cv2_rotation(plain: bool) -> Change:
    import cv2  # noqa: PLC0415

    def rotated(image: Array) -> Array:
        height, width = image.shape[:2]
        angle = 10 if plain else random.uniform(-15, 15)
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
        return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)

    return rotated


def cv2_flip(_: bool) -> Change:
    import cv2  # noqa: PLC0415

    return lambda image: cv2.flip(image, 1)


def kornia_jitter(_: bool) -> Change:
    import kornia_rs as K  # noqa: PLC0415

    return K.augmentations.ColorJitter(0.4, 0.4, 0.4, 0.0)


def kornia_blur(kernel: int, _: bool) -> Change:
    return lambda image: image.gaussian_blur(kernel, 1.0)


def kornia_rotation(plain: bool) -> Change:
    import kornia_rs as K  # noqa: PLC0415

    return (lambda image: image.rotate(-10.0)) if plain else K.augmentations.RandomRotation(15.0)


def kornia_gray(_: bool) -> Change:
    import kornia_rs as K  # noqa: PLC0415

    return lambda image: K.imgproc.rgb_from_gray(K.imgproc.gray_from_rgb(image.numpy()))


def kornia_flip(_: bool) -> Change:
    return lambda image: image.flip_horizontal()
