from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "Loader",
    "Op",
    "Source",
    "__version__",
    "allocate",
    "build_info",
    "decode_image",
    "draw_plan",
    "interpolation_matrix",
    "patchify",
    "patchify_converted",
    "permutation",
    "resample_tokens",
    "scan_folder",
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
) -> NDArray[np.uint8]: ...
def draw_plan(
    ops: Sequence[Op], size: tuple[int, int], seed: int, epoch: int, draw: int
) -> list[tuple[str, list[int]]]: ...
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
def permutation(len: int, seed: int, epoch: int) -> NDArray[np.uint64]: ...  # noqa: A002
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
def scan_folder(root: str, extensions: Sequence[str], allow_empty: bool) -> tuple[list[str], list[str], list[int]]: ...
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
class Op:
    @staticmethod
    def random_resized_crop(
        size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], interpolation: str
    ) -> Op: ...
    @staticmethod
    def resize(size: tuple[int, int], interpolation: str) -> Op: ...
    @staticmethod
    def resize_short_side(side: int, interpolation: str) -> Op: ...
    @staticmethod
    def center_crop(size: tuple[int, int]) -> Op: ...
    @staticmethod
    def random_crop(
        size: tuple[int, int], padding: Sequence[int], pad_if_needed: bool, fill: Sequence[int], padding_mode: str
    ) -> Op: ...
    @staticmethod
    def random_horizontal_flip(p: float) -> Op: ...
    @staticmethod
    def random_vertical_flip(p: float) -> Op: ...

@final
class Source:
    @staticmethod
    def files(paths: Sequence[str]) -> Source: ...
    @staticmethod
    def array(images: NDArray[np.uint8]) -> Source: ...
    def __len__(self) -> int: ...

@final
class Loader:
    def __new__(
        cls,
        source: Source,
        subset: NDArray[np.uint64] | None,
        ops: Sequence[Op],
        *,
        scale: bool | None,
        normalize: tuple[Sequence[float], Sequence[float]] | None,
        dtype: str,
        layout: str,
        patch: tuple[int, int] | None,
        batch_size: int,
        num_threads: int,
        prefetch: int,
        seed: int,
        max_pixels: int,
        on_error: str,
    ) -> Loader: ...
    def start(
        self,
        positions: NDArray[np.uint64],
        draws: NDArray[np.uint64] | None,
        *,
        epoch: int,
        drop_last: bool,
        first: int,
    ) -> None: ...
    def next_batch(self) -> tuple[NDArray[Any], NDArray[np.uint64]] | None: ...
    def stats(self) -> dict[str, Any]: ...
    @property
    def shape(self) -> list[int]: ...
    def close(self) -> None: ...
