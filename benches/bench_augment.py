"""Augmentations of one image beside the peers: single operations, policies, and DINO's views of a file; one thread.

    pytest benches/bench_augment.py --data FOLDER

vit_rs takes arrays (224, 224, 3) here, as its loader holds images, and, in a row of its own, tensors (3, 224, 224).
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from augmentation import Augmentation, Bound, Changing, Draws, compare, pixels
from comparison import Comparison, Role, Run, Variant, measure
from corpus import gathered
from goals import COPY, OPERATIONS, POLICIES, TV_PIL, TV_TENSOR, VIEWS_OF_A_FILE
from peers_augment import dino_views, operations, policies
from PIL import Image
from torch import Tensor

from vit_rs import transforms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from augmentation import Array
    from peers_augment import Make, Operation, Other

QUICK = {"files": 2, "draws": 2}
SIDE = 224


def comparisons(data: Path | None = None, files: int = 16, draws: int | None = None) -> list[Comparison]:
    """Return what is compared: with the first file's picture, and with views of this many files."""
    contents = gathered(data, files).contents
    picture = functools.partial(first_picture, contents[0])
    rows = [(OPERATIONS, operation) for operation in operations()] + [(POLICIES, policy) for policy in policies()]
    found: list[Comparison] = [
        compared(table, operation, picture, draws or operation.draws) for table, operation in rows
    ]
    return [*found, views(contents)]


def bench_augment(benchmark, case):
    measure(benchmark, case)


@functools.cache
def first_picture(data: bytes) -> Array:
    """Return (SIDE, SIDE, 3) of a file."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def tensor(image: Array) -> Tensor:
    """Return (3, SIDE, SIDE), contiguous."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def theirs(make: Make) -> Any:
    """Return torchvision's transform."""
    from torchvision.transforms import v2  # noqa: PLC0415  peers are imported where they are used

    return make(v2, v2.InterpolationMode.BILINEAR)


def compared(table: str, operation: Operation, picture: Callable[[], Array], draws: int) -> Augmentation:
    """Compare an operation or a policy."""

    def ours(make: Make) -> Any:
        return make(transforms, "bilinear")

    def variant(
        name: str, build: Callable[[Make], Any], convert: Callable[[Array], Any], bound: Bound, role: Any = "peer"
    ) -> Changing:
        plain = operation.plain
        return Changing(
            name,
            lambda: Draws(build(operation.make), convert(picture()), draws),
            role,
            plain=None if plain is None else lambda: build(plain)(convert(picture())),
            bound=bound,
        )

    variants: list[Variant] = [
        variant("vit_rs", ours, np.array, operation.ours, "ours"),
        variant("vit_rs, tensors", ours, tensor, operation.ours, "form"),
        variant(TV_TENSOR, theirs, tensor, Bound(0, 0)),
    ]
    if operation.pil is not None:
        variants.append(variant(TV_PIL, theirs, Image.fromarray, operation.pil))
    variants += [
        Changing(
            other.name,
            functools.partial(other_draws, other, picture, draws),
            needs=(other.module,),
            plain=None if other.bound is None else functools.partial(other_plain, other, picture),
            bound=other.bound or Bound(0, 0),
        )
        for other in operation.others
    ]
    if operation.name == "RandomHorizontalFlip":
        variants.append(Variant(COPY, lambda: Draws(np.copy, picture(), draws), "floor"))
    expected = None
    if operation.plain is not None:
        expected = functools.partial(plain_picture, operation.plain, picture)
    return Augmentation(
        table=table,
        name=operation.name,
        variants=tuple(variants),
        images=draws,
        threads=(1,),
        image=picture,
        expected=expected,
    )


def plain_picture(plain: Make, picture: Callable[[], Array]) -> Array:
    """Return what torchvision's tensor kernels make of the picture."""
    return pixels(theirs(plain)(tensor(picture())))


def kind_of(other: Other, image: Array) -> Any:
    """Return the picture as the peer takes it."""
    if other.module != "kornia_rs":
        return image.copy()
    import kornia_rs  # noqa: PLC0415

    return kornia_rs.image.Image.from_numpy(image, copy=True)


def other_draws(other: Other, picture: Callable[[], Array], draws: int) -> Run:
    one_cv2_thread()
    return Draws(other.make(False), kind_of(other, picture()), draws)


def other_plain(other: Other, picture: Callable[[], Array]) -> Any:
    return other.make(True)(kind_of(other, picture()))


def one_cv2_thread() -> None:
    """Keep cv2, and albumentations with it, on the calling thread."""
    try:
        import cv2  # noqa: PLC0415
    except ImportError:
        return
    cv2.setNumThreads(1)


@dataclass(frozen=True, kw_only=True)
class Views(Comparison):
    """Variants that make ten views of each of `images` files: u8, two of 224 and eight of 96 pixels."""

    expected: Callable[[], Sequence[Any]]  # the last file's plain views, by torchvision's tensor kernels

    def check(self, variant: Variant, run: Run) -> None:
        """Raise AssertionError unless the last file's views are right in number, size and type, and plain ones near."""
        made = [pixels(view) for view in run()]
        sizes, types = [view.shape for view in made], {view.dtype for view in made}
        if sizes != [(224, 224, 3)] * 2 + [(96, 96, 3)] * 8 or types != {np.dtype(np.uint8)}:
            raise AssertionError(f"{variant.name}: expected two u8 views of 224 and eight of 96, got {sizes}, {types}")
        if isinstance(variant, Changing) and variant.plain is not None:
            for view, expected in zip(variant.plain(), self.expected(), strict=True):
                compare(variant.name, pixels(view), pixels(expected), variant.bound)


def views(contents: Sequence[bytes]) -> Views:
    """Compare DINO's views, the file's decoding included."""

    def each_file(make: Callable[[bytes], Any]) -> Run:
        def run() -> Any:
            for data in contents:
                made = make(data)
            return made

        return run

    def ours(*, plain: bool = False) -> Callable[[bytes], Any]:
        return transforms.MultiCrop(dino_views(transforms, "bicubic", plain=plain))

    def torchvision(decode: Callable[[bytes], Any], *, plain: bool = False) -> Callable[[bytes], Any]:
        from torchvision.transforms import v2  # noqa: PLC0415

        views = dino_views(v2, v2.InterpolationMode.BICUBIC, plain=plain)
        chains = [chain for chain, count in views for _ in range(count)]

        def make(data: bytes) -> list[Any]:
            image = decode(data)
            return [chain(image) for chain in chains]

        return make

    def variant(name: str, make: Callable[..., Callable[[bytes], Any]], bound: Bound, role: Role = "peer") -> Changing:
        return Changing(
            name, lambda: each_file(make()), role, plain=lambda: make(plain=True)(contents[-1]), bound=bound
        )

    def to_tensor(data: bytes) -> Tensor:
        from torchvision.io import ImageReadMode, decode_jpeg  # noqa: PLC0415

        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)

    def to_pil(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    table, name = VIEWS_OF_A_FILE
    return Views(
        table=table,
        name=name,
        variants=(
            variant("vit_rs", ours, Bound(2, 0.1), "ours"),
            variant(TV_TENSOR, functools.partial(torchvision, to_tensor), Bound(0, 0)),
            variant(TV_PIL, functools.partial(torchvision, to_pil), Bound(4, 0.5)),
        ),
        images=len(contents),
        threads=(1,),
        rounds=2,
        expected=lambda: torchvision(to_tensor, plain=True)(contents[-1]),
    )
