"""The compiled half of vit-rs. Private: use `vit_rs.ops`, `vit_rs.data` and `vit_rs.build_info`."""

__version__: str

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

IMAGE_EXTENSIONS: list[str]
MAX_PIXELS: int

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
def permutation(len: int, seed: int, epoch: int) -> NDArray[np.uint64]: ...  # noqa: A002
def scan_folder(
    root: str, extensions: Sequence[str], allow_empty: bool
) -> tuple[list[str], list[str], list[int]]: ...

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
        indices: NDArray[np.uint64],
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
