"""Patchify and unpatchify beside torch, einops, nn.Unfold and NumPy: 64 x 3 x 224 x 224, P = 16 and 14.

    pytest benches/bench_patchify.py

Expected values come from the operators written in plain torch. Peers stand here as they are commonly written, compiled
by torch.compile, and in the fastest eager form that we found: moving values into a buffer is one `copy_` between two
views, and normalising goes image by image, so that the floats of one stay in the cache.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from comparison import Comparison, Run, Variant, measure
from operators import Operator, Result
from torch import Tensor

import vit_rs
from vit_rs import _reference

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BUFFER: Result = "into a buffer"
FRESH: Result = "a fresh result"
HELD: Result = "a fresh result, earlier ones held"
QUICK = {"batch": 2, "side": 112}
NAMES = {torch.uint8: "u8", torch.bfloat16: "bf16", torch.float32: "f32"}


def comparisons(batch: int = 64, side: int = 224) -> list[Comparison]:
    """Return what is compared; 16 and 14 have to divide the side."""
    orders = ("pqc", "cpq")
    cuts = [Cut(batch, side, 16, order) for order in orders]
    smaller = [Cut(batch, side, 14, order) for order in orders]
    rows = [Cut(batch, side, 16, order, "NHWC") for order in orders]
    f32, u8, bf16 = torch.float32, torch.uint8, torch.bfloat16
    return [
        *[moved(cut, f32, BUFFER) for cut in (*cuts, *smaller)],
        *[moved(cut, f32, result) for result in (FRESH, HELD) for cut in cuts],
        *[moved(cut, u8, result) for result in (BUFFER, FRESH) for cut in cuts],
        *[normalised(cut, f32, BUFFER) for cut in (*cuts, smaller[0], *rows)],
        *[normalised(cut, f32, result) for result in (FRESH, HELD) for cut in cuts],
        *[normalised(cut, bf16, BUFFER) for cut in cuts],
        *[joined(cut, result) for result in (BUFFER, FRESH) for cut in cuts],
    ]


def bench_patchify(benchmark, case):
    measure(benchmark, case)


@dataclass(frozen=True)
class Cut:
    """A batch of square RGB images, and how it is cut."""

    batch: int
    side: int
    patch: int
    order: str
    layout: str = "NCHW"

    def __str__(self) -> str:
        return f"{self.order}, P = {self.patch}" + (", NHWC" if self.layout == "NHWC" else "")

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Return the shape of the batch of images."""
        B, side = self.batch, self.side
        return (B, 3, side, side) if self.layout == "NCHW" else (B, side, side, 3)

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        """Return the shape of its patches, (B, N, P*P*C)."""
        return self.batch, (self.side // self.patch) ** 2, self.patch * self.patch * 3

    def by_patch(self, images: Any) -> Any:
        """View a tensor or array of images with their patches' axes, (B, h, w, P, Q, C) where the order is pqc."""
        n, P = self.side // self.patch, self.patch
        if self.layout == "NCHW":
            split, axes = (len(images), 3, n, P, n, P), {"pqc": (0, 2, 4, 3, 5, 1), "cpq": (0, 2, 4, 1, 3, 5)}
        else:
            split, axes = (len(images), n, P, n, P, 3), {"pqc": (0, 1, 3, 2, 4, 5), "cpq": (0, 1, 3, 5, 2, 4)}
        grid = images.reshape(split)
        return grid.permute(axes[self.order]) if isinstance(grid, Tensor) else grid.transpose(axes[self.order])

    def opened(self, patches: Any) -> Any:
        """View a tensor or array of contiguous patches with the same axes as `by_patch`."""
        n, P = self.side // self.patch, self.patch
        inner = (P, P, 3) if self.order == "pqc" else (3, P, P)
        return patches.reshape(len(patches), n, n, *inner)

    def joined(self, patches: Tensor) -> Tensor:
        """View contiguous patches with the axes of their images: (B, C, h, P, w, Q)."""
        axes = (0, 5, 1, 3, 2, 4) if self.order == "pqc" else (0, 3, 1, 4, 2, 5)
        return self.opened(patches).permute(axes)

    def cut_into(self, images: Tensor, out: Tensor) -> Tensor:
        """Copy images into contiguous patches."""
        self.opened(out).copy_(self.by_patch(images))
        return out

    def join_into(self, patches: Tensor, out: Tensor) -> Tensor:
        """Copy contiguous patches into images."""
        self.by_patch(out).copy_(self.opened(patches))
        return out

    def per_channel(self, values: list[float]) -> Tensor:
        """Shape one value for each channel so that it broadcasts over the images."""
        return torch.tensor(values).view((3, 1, 1) if self.layout == "NCHW" else (3,))


@functools.cache
def random_values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the same input for every variant."""
    generator = torch.Generator().manual_seed(0)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, generator=generator)
    return torch.rand(shape, dtype=dtype, generator=generator)


@functools.cache
def buffer(length: int, dtype: torch.dtype) -> Tensor:
    """Return the same memory for every variant to write into, patches, images and plain copies alike."""
    return torch.zeros(length, dtype=dtype)


def buffer_like(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return buffer(math.prod(shape), dtype).view(shape)


def moved(cut: Cut, dtype: torch.dtype, result: Result) -> Comparison:
    """Compare ways to cut images whose values stay as they are."""
    images = functools.partial(random_values, cut.image_shape, dtype)
    out = functools.partial(buffer_like, cut.patch_shape, dtype)

    def ours() -> Run:
        source = images()
        return lambda: vit_rs.patchify(source, cut.patch, order=cut.order)

    def ours_out() -> Run:
        source, target = images(), out()
        return lambda: vit_rs.patchify(source, cut.patch, order=cut.order, out=target)

    def torch_fresh() -> Run:
        source = images()
        return lambda: cut.by_patch(source).reshape(cut.patch_shape)

    def einops_fresh() -> Run:
        from einops import rearrange  # noqa: PLC0415  a peer that the tests do without

        source = images()
        pattern = f"b c (h p) (w q) -> b (h w) ({' '.join(cut.order)})"
        return lambda: rearrange(source, pattern, p=cut.patch, q=cut.patch)

    def unfold_fresh() -> Run:
        source = images()
        return lambda: F.unfold(source, cut.patch, stride=cut.patch).transpose(1, 2).contiguous()

    def numpy_fresh() -> Run:
        source = images().numpy()
        return lambda: np.ascontiguousarray(cut.by_patch(source)).reshape(cut.patch_shape)

    def torch_out() -> Run:
        return copied(cut.by_patch(images()), cut.opened(out()), out())

    def compiled_fresh() -> Run:
        source, call = images(), compiled(lambda x: cut.by_patch(x).reshape(cut.patch_shape))
        return lambda: call(source)

    def compiled_out() -> Run:
        source, target, call = images(), out(), compiled(cut.cut_into)
        return lambda: call(source, target)

    def numpy_out() -> Run:
        return copied(cut.by_patch(images().numpy()), cut.opened(out().numpy()), out())

    variants = [
        Variant("vit_rs", ours, "ours"),
        Variant("torch, reshape and permute", torch_fresh),
        Variant("torch.compile of reshape and permute", compiled_fresh, compiles=True),
        Variant("einops", einops_fresh, needs=("einops",)),
        Variant("NumPy, ascontiguousarray", numpy_fresh, one_thread=True),
    ]
    if cut.order == "cpq" and dtype.is_floating_point:  # what it is made for
        variants.insert(4, Variant("nn.Unfold, transposed", unfold_fresh))
    if result == BUFFER:
        variants = [
            Variant("vit_rs, out=", ours_out, "ours"),
            Variant("torch, copy_ between views", torch_out),
            Variant("torch.compile of the copy_", compiled_out, compiles=True),
            Variant("NumPy, copyto between views", numpy_out, one_thread=True),
        ]
    return Operator(
        table=f"Patchify, {NAMES[dtype]}, {result}",
        name=str(cut),
        expected=lambda: _reference.patchify(images(), (cut.patch, cut.patch), order=cut.order),
        variants=(*variants, *floors(images, result)),
        result=result,
        images=cut.batch,
    )


def joined(cut: Cut, result: Result) -> Comparison:
    """Compare ways to put f32 patches together into images."""
    patches = functools.partial(random_values, cut.patch_shape, torch.float32)
    out = functools.partial(buffer_like, cut.image_shape, torch.float32)

    def ours() -> Run:
        source = patches()
        return lambda: vit_rs.unpatchify(source, cut.side, cut.patch, order=cut.order)

    def ours_out() -> Run:
        source, target = patches(), out()
        return lambda: vit_rs.unpatchify(source, cut.side, cut.patch, order=cut.order, out=target)

    def torch_fresh() -> Run:
        source = patches()
        return lambda: cut.joined(source).reshape(cut.image_shape)

    def einops_fresh() -> Run:
        from einops import rearrange  # noqa: PLC0415  a peer that the tests do without

        source = patches()
        pattern = f"b (h w) ({' '.join(cut.order)}) -> b c (h p) (w q)"
        return lambda: rearrange(source, pattern, h=cut.side // cut.patch, p=cut.patch, q=cut.patch)

    def torch_out() -> Run:
        return copied(cut.opened(patches()), cut.by_patch(out()), out())

    def compiled_fresh() -> Run:
        source, call = patches(), compiled(lambda x: cut.joined(x).reshape(cut.image_shape))
        return lambda: call(source)

    def compiled_out() -> Run:
        source, target, call = patches(), out(), compiled(cut.join_into)
        return lambda: call(source, target)

    variants = [
        Variant("vit_rs", ours, "ours"),
        Variant("torch, reshape and permute", torch_fresh),
        Variant("torch.compile of reshape and permute", compiled_fresh, compiles=True),
        Variant("einops", einops_fresh, needs=("einops",)),
    ]
    if result == BUFFER:
        variants = [
            Variant("vit_rs, out=", ours_out, "ours"),
            Variant("torch, copy_ between views", torch_out),
            Variant("torch.compile of the copy_", compiled_out, compiles=True),
        ]
    return Operator(
        table=f"Unpatchify, f32, {result}",
        name=str(cut),
        expected=lambda: _reference.unpatchify(
            patches(), (cut.side, cut.side), (cut.patch, cut.patch), order=cut.order
        ),
        variants=(*variants, *floors(patches, result)),
        result=result,
        images=cut.batch,
    )


def normalised(cut: Cut, dtype: torch.dtype, result: Result) -> Comparison:
    """Compare ways to cut u8 images into normalised patches: (x/255 - mean) / std."""
    images = functools.partial(random_values, cut.image_shape, torch.uint8)
    mean, std = cut.per_channel(MEAN), cut.per_channel(STD)

    def place() -> Tensor:
        return buffer_like(cut.patch_shape, dtype) if result == BUFFER else torch.empty(cut.patch_shape, dtype=dtype)

    def ours() -> Run:
        source, options = images(), {"order": cut.order, "layout": cut.layout, "mean": MEAN, "std": STD}
        if result != BUFFER:
            return lambda: vit_rs.patchify(source, cut.patch, dtype=dtype, **options)
        target = place()
        return lambda: vit_rs.patchify(source, cut.patch, dtype=dtype, out=target, **options)

    def chain() -> Run:
        source = images()
        return lambda: cut.cut_into((source.float() * (1 / 255) - mean) / std, place())

    def chain_in_place() -> Run:
        source = images()
        return lambda: cut.cut_into(source.float().mul_(1 / 255).sub_(mean).div_(std), place())

    def chain_compiled() -> Run:
        source = images()
        if result != BUFFER:
            call = compiled(
                lambda x: cut.by_patch((x.float() * (1 / 255) - mean) / std).reshape(cut.patch_shape).to(dtype)
            )
            return lambda: call(source)
        target, call = place(), compiled(lambda x, y: cut.cut_into((x.float() * (1 / 255) - mean) / std, y))
        return lambda: call(source, target)

    def image_by_image() -> Run:
        source = images().unbind()
        image = torch.empty_like(source[0], dtype=torch.float32)
        patches = cut.by_patch(image[None])[0]
        scale, shift = 1 / (255 * std), -mean / std

        def run() -> Tensor:
            target = place()
            for values, patch in zip(source, cut.opened(target), strict=True):
                image.copy_(values).mul_(scale).add_(shift)
                patch.copy_(patches)
            return target

        return run

    def cast() -> Run:
        source = images()
        return lambda: place().view(cut.image_shape).copy_(source)

    kind = f"u8 -> normalised {NAMES[dtype]}, {result}"
    return Operator(
        table=f"Patchify, {kind}",
        name=str(cut),
        expected=lambda: _reference.patchify(
            images(), (cut.patch, cut.patch), order=cut.order, layout=cut.layout, mean=MEAN, std=STD, dtype=dtype
        ),
        variants=(
            Variant("vit_rs, out=" if result == BUFFER else "vit_rs", ours, "ours"),
            Variant("torch chain", chain),
            Variant("torch chain, in place", chain_in_place),
            Variant("torch, image by image", image_by_image),
            Variant("torch.compile of the chain", chain_compiled, compiles=True),
            Variant("plain cast: torch copy_", cast, "floor", expected=lambda: images().to(dtype)),
        ),
        result=result,
        tolerance=2e-6,
        images=cut.batch,
    )


def compiled(function: Any) -> Any:
    """Return the function compiled for its first arguments alone, not for those of variants before it."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def copied(source: Any, target: Any, out: Tensor) -> Run:
    """Return a call that copies one view into another, of `out`, and returns `out`."""

    def run() -> Tensor:
        if isinstance(target, Tensor):
            target.copy_(source)
        else:
            np.copyto(target, source)
        return out

    return run


def floors(values: Any, result: Result) -> tuple[Variant, Variant]:
    """Return plain copies of as many bytes."""

    def with_torch() -> Run:
        source = values()
        if result != BUFFER:
            return source.clone
        out = buffer_like(tuple(source.shape), source.dtype)
        return copied(source, out, out)

    def with_numpy() -> Run:
        source = values().numpy()
        if result != BUFFER:
            return source.copy
        out = buffer_like(source.shape, values().dtype)
        return copied(source, out.numpy(), out)

    names = ("plain copy: torch clone", "plain copy: NumPy copy")
    if result == BUFFER:
        names = ("plain copy: torch copy_", "plain copy: NumPy copyto")
    return (
        Variant(names[0], with_torch, "floor", expected=values),
        Variant(names[1], with_numpy, "floor", expected=values, one_thread=True),
    )
