"""Transforms called on one image: bytes, a PIL image, a tensor or an array."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vit_rs._core import MAX_PIXELS, Transformer
from vit_rs.transforms.lowering import is_multi, lower_views

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from vit_rs.transforms.base import Transform
    from vit_rs.transforms.lowering import Kernels

__all__ = ["call", "pillow_kernels"]

Array = np.ndarray[Any, Any]
# How numpy holds values of torch's types.
_HELD = {torch.uint8: np.uint8, torch.float32: np.float32, torch.float16: np.uint16, torch.bfloat16: np.uint16}


@dataclass(frozen=True)
class _Engine:
    """What carries out a transform, and what its results are."""

    transformer: Transformer
    dtypes: list[torch.dtype]
    # Which views are tensors (C, H, W), whatever came in.
    tensors: list[bool]
    multi: bool

    def run(
        self,
        transform: Callable[..., list[Array]],
        image: Any,
        seed: int | None,
        out: Array | None,
        finish: Callable[[Array, torch.dtype], Any],
    ) -> Any:
        """Return the image, or the tuple of views, or `out`; `transform` is the transformer's method for the image."""
        seed = _seed() if seed is None else seed
        if out is not None:
            transform(image, seed, self._place(out))
            return out
        views = tuple(
            _tensor(array, dtype) if tensor else finish(array, dtype)
            for array, dtype, tensor in zip(transform(image, seed), self.dtypes, self.tensors, strict=True)
        )
        return views if self.multi else views[0]

    def _place(self, out: Array) -> tuple[Array, tuple[int, ...]]:
        """Return memory for the only view: its bytes, and its shape, which the engine checks."""
        if self.multi:
            raise ValueError("out is for one view, and a MultiCrop makes several")
        held = np.dtype(_HELD[self.dtypes[0]])
        if out.dtype != held or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(
                f"out must be a contiguous array of {held} that can be written to, got {out.dtype} with strides "
                f"{out.strides}{'' if out.flags.writeable else ', read-only'}"
            )
        return out.reshape(-1).view(np.uint8), out.shape


def call(transform: Transform, image: Any, *, seed: int | None = None, out: Array | None = None) -> Any:
    """Transform one image; see `Transform.__call__`.

    Args:
        transform: what happens.
        image: as there.
        seed: 0..2**64 - 1, decides all random numbers; None: drawn from torch's default generator.
        out: where the result is written as (C, H, W): a contiguous array of its shape and type, the half types as
            uint16, and no part of the image.

    Returns:
        As there, or `out`.

    Raises:
        DecodeError: as there.
        TypeError: as there.
        ValueError: as there; an `out` that does not fit.
    """
    if isinstance(image, torch.Tensor):
        return _call_on_tensor(transform, image, seed, out)
    if isinstance(image, (bytes, bytearray, memoryview)):
        engine = _engine(transform, "NCHW", "torch")
        return engine.run(engine.transformer.encoded, bytes(image), seed, out, _tensor)
    # A result in `out` has the layout of a tensor.
    layout: Literal["NCHW", "NHWC"] = "NHWC" if out is None else "NCHW"
    if isinstance(image, np.ndarray):
        engine, pixels = _engine(transform, layout, "torch"), _pixels(image, image.shape)
        finish = _first_channel if image.ndim == 2 else _unchanged
        return engine.run(engine.transformer.pixels, pixels, seed, out, finish)
    pil = sys.modules.get("PIL.Image")
    if pil is not None and isinstance(image, pil.Image):
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"a PIL image must have mode 'L' or 'RGB', got {image.mode!r}: convert it first")
        given = np.asarray(image)
        engine, pixels = _engine(transform, layout, pillow_kernels()), _pixels(given, given.shape)
        drop = _first_channel if image.mode == "L" else _unchanged
        return engine.run(
            engine.transformer.pixels, pixels, seed, out, lambda array, dtype: pil.fromarray(drop(array, dtype))
        )
    kind = type(image)
    raise TypeError(
        "an image must be bytes, a PIL image, a uint8 tensor (C, H, W) or a uint8 numpy array (H, W, C), "
        f"got {kind.__module__}.{kind.__name__}"
    )


def _call_on_tensor(transform: Transform, image: torch.Tensor, seed: int | None, out: Array | None) -> Any:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.device.type != "cpu":
        raise ValueError(
            f"a tensor must be uint8 (C, H, W) on the CPU, got {image.dtype} {tuple(image.shape)} on {image.device}"
        )
    engine = _engine(transform, "NCHW", "torch")
    pixels = image.permute(1, 2, 0)
    if pixels.is_contiguous():
        return engine.run(engine.transformer.pixels, _pixels(pixels.numpy(), image.shape), seed, out, _tensor)
    _check_pixels(pixels.numpy(), image.shape)
    return engine.run(engine.transformer.planes, image.contiguous().numpy(), seed, out, _tensor)


def _pixels(image: Array, shape: tuple[int, ...]) -> Array:
    """Return the image as contiguous u8 (H, W, C)."""
    pixels = image[..., None] if image.ndim == 2 else image
    _check_pixels(pixels, shape)
    return np.ascontiguousarray(pixels)


def _check_pixels(pixels: Array, shape: tuple[int, ...]) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(
            f"an image must be uint8 with 1 or 3 channels and at least one pixel, got {pixels.dtype} {tuple(shape)}"
        )


def _tensor(array: Array, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if tensor.dtype == torch.uint16 else tensor


def _unchanged(array: Array, _: torch.dtype) -> Array:
    return array


def _first_channel(array: Array, _: torch.dtype) -> Array:
    return array[..., 0]


def _seed() -> int:
    """Draw a seed from torch's default generator."""
    return int(torch.empty((), dtype=torch.int64).random_().item())


def pillow_kernels() -> Literal["pillow", "pillow12"]:
    """Return the name of the kernels of the Pillow that is loaded: those of its images."""
    version = getattr(sys.modules.get("PIL"), "__version__", "13")
    return "pillow12" if int(version.partition(".")[0]) < 13 else "pillow"


def _engine(transform: Transform, layout: Literal["NCHW", "NHWC"], kernels: Kernels) -> _Engine:
    """Return what carries out a transform on tensors ("NCHW") or arrays; Pillow's kernels stand for PIL images."""
    engines: dict[tuple[str, str], _Engine] = transform.engines
    if (layout, kernels) not in engines:
        chains = lower_views(transform)
        tensors = [
            chain.dtype != torch.uint8 or (kernels != "torch" and chain.tensors_from is not None) for chain in chains
        ]
        views = [
            chain.view(layout="NCHW" if tensor else layout, kernels=kernels)
            for chain, tensor in zip(chains, tensors, strict=True)
        ]
        dtypes = [chain.dtype for chain in chains]
        engines[layout, kernels] = _Engine(Transformer(views, MAX_PIXELS), dtypes, tensors, is_multi(transform))
    return engines[layout, kernels]
