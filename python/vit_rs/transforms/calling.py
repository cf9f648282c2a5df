"""Transforms called on one image: bytes, a PIL image, a tensor or an array."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vit_rs._core import MAX_PIXELS, Transformer
from vit_rs.transforms.lowering import Lowered, is_multi, lower_views

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from vit_rs.transforms.base import Transform

__all__ = ["call"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Engine:
    """What carries out a transform, and what its results are."""

    chains: list[Lowered]
    transformer: Transformer
    multi: bool

    def results(self, made: list[Array], finish: Callable[[Array, torch.dtype], Any]) -> Any:
        """Return the image, or the tuple of views."""
        views = tuple(
            finish(array, chain.dtype) if chain.dtype == torch.uint8 else _tensor(array, chain.dtype)
            for chain, array in zip(self.chains, made, strict=True)
        )
        return views if self.multi else views[0]


def call(transform: Transform, image: Any) -> Any:
    """Transform one image; see `Transform.__call__`."""
    if isinstance(image, torch.Tensor):
        return _call_on_tensor(transform, image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        engine = _engine(transform, "NCHW", "torch")
        return engine.results(engine.transformer.encoded(bytes(image), _seed()), _tensor)
    if isinstance(image, np.ndarray):
        engine = _engine(transform, "NHWC", "torch")
        made = engine.transformer.pixels(_pixels(image, image.shape), _seed())
        return engine.results(made, lambda array, _: array[..., 0] if image.ndim == 2 else array)
    pil = sys.modules.get("PIL.Image")
    if pil is not None and isinstance(image, pil.Image):
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"a PIL image must have mode 'L' or 'RGB', got {image.mode!r}: convert it first")
        engine = _engine(transform, "NHWC", "pillow")
        pixels = np.asarray(image)
        made = engine.transformer.pixels(_pixels(pixels, pixels.shape), _seed())
        return engine.results(made, lambda array, _: pil.fromarray(array[..., 0] if image.mode == "L" else array))
    kind = type(image)
    raise TypeError(
        "an image must be bytes, a PIL image, a uint8 tensor (C, H, W) or a uint8 numpy array (H, W, C), "
        f"got {kind.__module__}.{kind.__name__}"
    )


def _call_on_tensor(transform: Transform, image: torch.Tensor) -> Any:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.device.type != "cpu":
        raise ValueError(
            f"a tensor must be uint8 (C, H, W) on the CPU, got {image.dtype} {tuple(image.shape)} on {image.device}"
        )
    engine = _engine(transform, "NCHW", "torch")
    pixels = image.permute(1, 2, 0)
    if pixels.is_contiguous():
        made = engine.transformer.pixels(_pixels(pixels.numpy(), image.shape), _seed())
    else:
        _check_pixels(pixels.numpy(), image.shape)
        made = engine.transformer.planes(image.contiguous().numpy(), _seed())
    return engine.results(made, _tensor)


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


def _seed() -> int:
    """Draw a seed from torch's default generator."""
    return int(torch.empty((), dtype=torch.int64).random_().item())


def _engine(transform: Transform, layout: Literal["NCHW", "NHWC"], kernels: Literal["torch", "pillow"]) -> _Engine:
    """Return what carries out a transform; float results are (C, H, W) whatever comes in."""
    engines: dict[tuple[str, str], _Engine] = transform.engines
    if (layout, kernels) not in engines:
        chains = lower_views(transform)
        views = [
            chain.view(layout=layout if chain.dtype == torch.uint8 else "NCHW", kernels=kernels) for chain in chains
        ]
        engines[layout, kernels] = _Engine(chains, Transformer(views, MAX_PIXELS), is_multi(transform))
    return engines[layout, kernels]
