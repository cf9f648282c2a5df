import os
from collections.abc import Sequence
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "BatchTimeoutError",
    "Feed",
    "FeedError",
    "Loader",
    "Op",
    "Source",
    "Transformer",
    "View",
    "__version__",
    "allocate",
    "aug_mix",
    "auto_augment",
    "build_info",
    "center_crop",
    "color_jitter",
    "crop_or_pad",
    "decode_image",
    "gaussian_blur",
    "grayscale",
    "interpolation_matrix",
    "normalize",
    "open_shards",
    "patchify",
    "patchify_converted",
    "rand_augment",
    "random_adjust_sharpness",
    "random_affine",
    "random_apply",
    "random_choice",
    "random_color",
    "random_crop",
    "random_erasing",
    "random_horizontal_flip",
    "random_order",
    "random_posterize",
    "random_resized_crop",
    "random_rotation",
    "random_solarize",
    "random_vertical_flip",
    "resample_tokens",
    "resize",
    "resize_keep_ratio",
    "resize_long_side",
    "resize_short_side",
    "sample_seed",
    "scan_folder",
    "timm_aug_mix",
    "timm_op",
    "timm_rand_augment",
    "trim_border",
    "trivial_augment_wide",
    "unpatchify",
]

__version__: str
IMAGE_EXTENSIONS: list[str]
MAX_PIXELS: int

def allocate(size: int) -> NDArray[np.uint8]: ...
def build_info() -> dict[str, Any]: ...
def decode_image(
    data: bytes,
    *,
    region: tuple[int, int, int, int] | None = None,
    name: str | None = None,
    max_pixels: int = ...,
    exif: bool = False,
    scale: int = 1,
) -> NDArray[np.uint8]: ...
def interpolation_matrix(
    input: int,  # noqa: A002
    output: int,
    *,
    interpolation: str,
    antialias: bool,
    align_corners: bool,
    a: float | None,
    scale: float | None,
) -> NDArray[np.float64]: ...
def open_shards(paths: Sequence[str], label_key: str | None, threads: int) -> tuple[Source, list[int]]: ...
def patchify(
    images: NDArray[np.uint8],
    patches: NDArray[np.uint8],
    *,
    element_size: int,
    shape: tuple[int, int, int, int],
    patch_size: tuple[int, int],
    order: str,
    layout: str,
    num_threads: int,
) -> None: ...
def patchify_converted(
    images: NDArray[np.uint8],
    patches: NDArray[np.uint8],
    *,
    image_dtype: str,
    patch_dtype: str,
    mean: Sequence[float],
    std: Sequence[float],
    shape: tuple[int, int, int, int],
    patch_size: tuple[int, int],
    order: str,
    layout: str,
    num_threads: int,
) -> None: ...
def resample_tokens(
    source: NDArray[np.float32],
    target: NDArray[np.float32],
    *,
    batch: int,
    prefix: int,
    channels: int,
    old_size: tuple[int, int],
    new_size: tuple[int, int],
    interpolation: str,
    antialias: bool,
    align_corners: bool,
    a: float | None,
    scale: tuple[float | None, float | None],
    num_threads: int,
) -> None: ...
def scan_folder(
    root: str, extensions: Sequence[str], allow_empty: bool, threads: int
) -> tuple[list[str], list[str], list[int]]: ...
def unpatchify(
    patches: NDArray[np.uint8],
    images: NDArray[np.uint8],
    *,
    element_size: int,
    shape: tuple[int, int, int, int],
    patch_size: tuple[int, int],
    order: str,
    layout: str,
    num_threads: int,
) -> None: ...

@final
class Op: ...

@final
class View:
    def __new__(
        cls,
        ops: Sequence[Op],
        float_ops: Sequence[Op],
        *,
        kernels: str,
        tensors_from: int | None,
        unit: str | None,
        normalize: tuple[Sequence[float], Sequence[float]] | None,
        dtype: str,
        layout: str,
        patch: tuple[int, int] | None,
    ) -> View: ...
    def describe(self, size: tuple[int, int], seed: int, epoch: int, draw: int, view: int) -> list[str]: ...
    def draw_plan(
        self, size: tuple[int, int], seed: int, epoch: int, draw: int, view: int
    ) -> tuple[list[tuple[str, list[float]]], list[tuple[str, list[float]]]]: ...

@final
class Transformer:
    def __new__(cls, views: Sequence[View], max_pixels: int) -> Transformer: ...
    def encoded(
        self, data: bytes, seed: int, out: tuple[NDArray[np.uint8], Sequence[int]] | None = None
    ) -> list[NDArray[Any]]: ...
    def planes(
        self, planes: NDArray[np.uint8], seed: int, out: tuple[NDArray[np.uint8], Sequence[int]] | None = None
    ) -> list[NDArray[Any]]: ...
    def pixels(
        self, pixels: NDArray[np.uint8], seed: int, out: tuple[NDArray[np.uint8], Sequence[int]] | None = None
    ) -> list[NDArray[Any]]: ...

# Operations of a View.
def aug_mix(
    severity: int,
    mixture_width: int,
    chain_depth: int | None,
    alpha: float,
    all_ops: bool,
    interpolation: str,
    fill: Sequence[int] | None,
) -> Op: ...
def auto_augment(policy: str, interpolation: str, fill: Sequence[int] | None, v1: bool) -> Op: ...
def center_crop(size: tuple[int, int]) -> Op: ...
def color_jitter(
    brightness: tuple[float, float] | None,
    contrast: tuple[float, float] | None,
    saturation: tuple[float, float] | None,
    hue: tuple[float, float] | None,
) -> Op: ...
def crop_or_pad(size: tuple[int, int], fill: Sequence[int], padding_mode: str, random: bool) -> Op: ...
def gaussian_blur(kernel_size: tuple[int, int], sigma: tuple[float, float]) -> Op: ...
def grayscale() -> Op: ...
def normalize(mean: Sequence[float], std: Sequence[float]) -> Op: ...
def rand_augment(
    num_ops: int, magnitude: int, num_magnitude_bins: int, interpolation: str, fill: Sequence[int] | None, v1: bool
) -> Op: ...
def random_adjust_sharpness(sharpness_factor: float, p: float) -> Op: ...
def random_affine(
    degrees: tuple[float, float],
    translate: tuple[float, float] | None,
    scale: tuple[float, float] | None,
    shear: Sequence[tuple[float, float]] | None,
    interpolation: str,
    fill: Sequence[int] | None,
    center: tuple[float, float] | None,
) -> Op: ...
def random_apply(ops: Sequence[Op], p: float) -> Op: ...
def random_choice(chains: Sequence[Sequence[Op]], weights: Sequence[float]) -> Op: ...
def random_color(name: str, p: float) -> Op: ...
def random_crop(
    size: tuple[int, int], padding: Sequence[int], pad_if_needed: bool, fill: Sequence[int], padding_mode: str
) -> Op: ...
def random_erasing(
    p: float,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    value: Sequence[float] | None,
    *,
    color: bool,
    count: tuple[int, int],
) -> Op: ...
def random_horizontal_flip(p: float) -> Op: ...
def random_order(ops: Sequence[Op]) -> Op: ...
def random_posterize(bits: int, p: float) -> Op: ...
def random_resized_crop(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], interpolation: str
) -> Op: ...
def random_rotation(
    degrees: tuple[float, float],
    interpolation: str,
    expand: bool,
    center: tuple[float, float] | None,
    fill: Sequence[int] | None,
) -> Op: ...
def random_solarize(threshold: float, p: float) -> Op: ...
def random_vertical_flip(p: float) -> Op: ...
def resize(size: tuple[int, int], interpolation: str) -> Op: ...
def resize_keep_ratio(
    size: tuple[int, int],
    longest: float,
    interpolation: str,
    zoom: tuple[float, tuple[float, float]],
    zoom_by_area: bool,
    stretch: tuple[float, tuple[float, float]],
) -> Op: ...
def resize_long_side(side: int, interpolation: str) -> Op: ...
def resize_short_side(side: int, interpolation: str, max_size: int | None = None) -> Op: ...
def timm_aug_mix(ops: Sequence[Op], alpha: float, width: int, depth: int | None) -> Op: ...
def timm_op(
    name: str,
    *,
    p: float,
    magnitude: float,
    magnitude_std: float,
    magnitude_max: float,
    interpolation: Sequence[str],
    fill: Sequence[int],
    translate_const: float,
    translate_pct: float,
) -> Op: ...
def timm_rand_augment(ops: Sequence[Op], num_layers: int, weights: Sequence[float] | None) -> Op: ...
def trim_border(border_size: int) -> Op: ...
def trivial_augment_wide(num_magnitude_bins: int, interpolation: str, fill: Sequence[int] | None, v1: bool) -> Op: ...

# Validity bits, offsets, whether these have 8 bytes, data, first value.
_ColumnArrays: TypeAlias = tuple[NDArray[np.uint8] | None, NDArray[np.uint8], bool, NDArray[np.uint8], int]

@final
class Source:
    @staticmethod
    def files(paths: Sequence[str]) -> Source: ...
    @staticmethod
    def array(images: NDArray[np.uint8]) -> Source: ...
    @staticmethod
    def strided(images: NDArray[np.uint8]) -> Source: ...
    @staticmethod
    def concat(parts: Sequence[Source]) -> Source: ...
    @staticmethod
    def table(
        name: str,
        folder: str,
        chunks: Sequence[tuple[int, _ColumnArrays | None, _ColumnArrays | None]],
    ) -> Source: ...
    @staticmethod
    def mixed(entries: Sequence[str | os.PathLike[str] | bytes]) -> Source: ...
    @staticmethod
    def feed(feed: Feed) -> Source: ...
    def encoded(self, index: int) -> bytes: ...
    def name(self, index: int) -> str: ...
    def __len__(self) -> int: ...

class FeedError(Exception): ...
class BatchTimeoutError(TimeoutError): ...

@final
class Feed:
    def __new__(cls, len: int) -> Feed: ...  # noqa: A002
    def next_request(self) -> tuple[int, int] | None: ...
    def reply(self, ticket: int, data: bytes, label: int) -> None: ...
    def fail(self, ticket: int, reason: str, bad_sample: bool) -> None: ...
    def close(self) -> None: ...

@final
class Loader:
    def __new__(
        cls,
        source: Source,
        subset: NDArray[np.uint64] | None,
        views: Sequence[View],
        *,
        batch_size: int,
        num_threads: int,
        prefetch: int,
        max_pixels: int,
        exif: bool,
        fast: bool,
        on_error: str,
        ragged: bool = False,
    ) -> Loader: ...
    def permutation(self, seed: int, epoch: int) -> NDArray[np.uint64]: ...
    def start(self, *, seed: int, epoch: int) -> None: ...
    def push(
        self,
        positions: NDArray[np.uint64],
        draws: NDArray[np.uint64] | None = None,
        *,
        batch_size: int | None = None,
        drop_last: bool = False,
        memory: Sequence[NDArray[np.uint8]] | None = None,
    ) -> None: ...
    def end(self) -> None: ...
    def next_batch(
        self, timeout: float | None = None
    ) -> tuple[list[Any], NDArray[np.uint64], NDArray[np.int64] | None] | None: ...
    @property
    def handed_over(self) -> int: ...
    def stats(self) -> dict[str, Any]: ...
    def describe(
        self, position: int, draw: int, *, seed: int, epoch: int
    ) -> tuple[str, tuple[int, int], list[list[str]]]: ...
    @property
    def memory(self) -> list[tuple[int, int]]: ...
    @property
    def shapes(self) -> list[list[int]]: ...
    def close(self) -> None: ...

def sample_seed(seed: int, epoch: int, draw: int, stream: int) -> int: ...
