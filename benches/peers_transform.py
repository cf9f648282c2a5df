"""The peers of bench_transform.py: from the bytes of a JPEG to a normalised crop, each in its fastest exact form.

A peer has two chains of the same parts: a random one, RandomResizedCrop and flip, which is timed, and a plain one,
Resize((256, 256)) and CenterCrop, which proves its pixels. Bounds of the proofs, at every pixel and on average, are in
units of 1/255: about 1 where the resize is antialiased as torchvision's is; other filters are bounded on average alone.
"""

from __future__ import annotations

import functools
import io
import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from loading import MEAN, SIZE, STD, EachFile, OneImage, Outcome, Pipeline, Proof
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from corpus import Corpus

MARGIN = (256 - SIZE) // 2
DALI_BATCH = 64


def peers(corpus: Corpus, proof: Corpus, threads: int, interpolation: str) -> tuple[Pipeline, ...]:
    """Return the peers' variants; without antialiasing, for "bilinear" only."""
    bilinear = interpolation == "bilinear"
    makers = [
        one_image("torchvision v2, PIL", functools.partial(torchvision_pil, interpolation), 1 if bilinear else 2, 0.2),
        one_image("torchvision v2, tensors", functools.partial(torchvision_tensor, interpolation), 0, 0.0),
    ]
    if bilinear:
        makers += [
            one_image("cv2, INTER_AREA", cv2_area, 255, 4.0, needs=("cv2",)),
            one_image("not antialiased: albumentations", albumentations, 255, 10.0, needs=("albumentations", "cv2")),
            one_image("not antialiased: kornia-rs", kornia_rs, 255, 10.0, needs=("kornia_rs",)),
        ]
    dali = Pipeline(
        "DALI, image_random_crop",
        lambda: DaliPass(corpus.contents, threads, interpolation),
        needs=("nvidia.dali",),
        proof=Proof(lambda: dali_plain(proof.contents, interpolation), 2 if bilinear else 10, 0.5),
    )
    return (*[make(corpus.contents, proof.contents, threads) for make in makers], dali)


def one_image(
    name: str, chain: Callable[..., OneImage], largest: float, mean: float, needs: tuple[str, ...] = ()
) -> Callable[[Sequence[bytes], Sequence[bytes], int], Pipeline]:
    """Return what makes the variant of a peer that takes one image at a time: `chain(training=...)`."""

    def make(files: Sequence[bytes], proof: Sequence[bytes], threads: int) -> Pipeline:
        def plain() -> Tensor:
            return torch.stack([*map(chain(training=False), proof)])

        def prepare() -> EachFile:
            return EachFile(chain(training=True), files, threads)

        return Pipeline(name, prepare, needs=needs, proof=Proof(plain, largest, mean))

    return make


def torchvision_chain(interpolation: str, *, training: bool, tensors: bool, dtype: torch.dtype = torch.float32) -> Any:
    """Return torchvision v2's transforms from an image, PIL or tensor, to a crop, f32 normalised or u8."""
    from torchvision.transforms import v2  # noqa: PLC0415  peers are imported where they are used

    mode = v2.InterpolationMode(interpolation)
    steps = [v2.Resize((256, 256), mode, antialias=True), v2.CenterCrop(SIZE)]
    if training:
        steps = [v2.RandomResizedCrop(SIZE, interpolation=mode, antialias=True), v2.RandomHorizontalFlip()]
    if not tensors:
        steps.append(v2.PILToTensor())
    steps.append(v2.Lambda(Tensor.contiguous))  # planes, where the copy of u8 costs a quarter of that of f32
    if dtype == torch.float32:
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return v2.Compose(steps)


def torchvision_pil(interpolation: str, *, training: bool) -> OneImage:
    chain = torchvision_chain(interpolation, training=training, tensors=False)
    return lambda data: chain(Image.open(io.BytesIO(data)).convert("RGB"))


def torchvision_tensor(interpolation: str, *, training: bool) -> OneImage:
    from torchvision.io import ImageReadMode, decode_jpeg  # noqa: PLC0415

    chain = torchvision_chain(interpolation, training=training, tensors=True)
    return lambda data: chain(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB))


def draw_crop(height: int, width: int) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) as torchvision's RandomResizedCrop.get_params does."""
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def cv2_rgb(data: bytes) -> np.ndarray[Any, Any]:
    """Decode to (H, W, 3) u8 RGB with cv2."""
    import cv2  # noqa: PLC0415

    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def normalised(image: np.ndarray[Any, Any]) -> Tensor:
    """Return (3, H, W) f32 of (H, W, 3) u8: plane by plane, the fastest of six forms that we tried."""
    import cv2  # noqa: PLC0415

    out = np.empty((3, *image.shape[:2]), np.float32)
    for plane, target, mean, std in zip(cv2.split(image), out, MEAN, STD, strict=True):
        np.multiply(plane, np.float32(1 / (255 * std)), out=target)
        np.subtract(target, np.float32(mean / std), out=target)
    return torch.from_numpy(out)


def cv2_area(*, training: bool) -> OneImage:
    """Return decoding, INTER_AREA and normalising by hand."""
    import cv2  # noqa: PLC0415

    cv2.setNumThreads(1)

    def random_crop(data: bytes) -> Tensor:
        image = cv2_rgb(data)
        top, left, height, width = draw_crop(*image.shape[:2])
        image = cv2.resize(image[top : top + height, left : left + width], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        return normalised(cv2.flip(image, 1) if random.random() < 0.5 else image)

    def middle(data: bytes) -> Tensor:
        image = cv2.resize(cv2_rgb(data), (256, 256), interpolation=cv2.INTER_AREA)
        return normalised(image[MARGIN : MARGIN + SIZE, MARGIN : MARGIN + SIZE])

    return random_crop if training else middle


def albumentations(*, training: bool) -> OneImage:
    """Return albumentations' chain on cv2's decoder, bilinear without antialiasing."""
    import albumentations as A  # noqa: PLC0415
    import cv2  # noqa: PLC0415
    from albumentations.pytorch import ToTensorV2  # noqa: PLC0415

    cv2.setNumThreads(1)
    geometry = [A.Resize(256, 256, interpolation=cv2.INTER_LINEAR), A.CenterCrop(SIZE, SIZE)]
    if training:
        geometry = [A.RandomResizedCrop(size=(SIZE, SIZE), interpolation=cv2.INTER_LINEAR), A.HorizontalFlip(p=0.5)]
    chain = A.Compose([*geometry, A.Normalize(mean=MEAN, std=STD), ToTensorV2()])
    return lambda data: chain(image=cv2_rgb(data))["image"].contiguous()


def kornia_rs(*, training: bool) -> OneImage:
    """Return kornia-rs's fused resize, normalise and layout, bilinear without antialiasing."""
    import kornia_rs as K  # noqa: PLC0415

    mean, std = list(MEAN), list(STD)

    def fused(image: np.ndarray[Any, Any], side: int) -> Tensor:
        # The image is kept alive by its own array, so the tensor shares its memory.
        return torch.from_numpy(
            K.image.Image.from_numpy(image).resize_normalize_to_tensor(side, side, mean, std).numpy()
        )

    def random_crop(data: bytes) -> Tensor:
        image = K.io.decode_image_jpegturbo(data, "rgb")
        top, left, height, width = draw_crop(*image.shape[:2])
        crop = image[top : top + height, left : left + width]
        return fused(np.ascontiguousarray(crop[:, ::-1] if random.random() < 0.5 else crop), SIZE)

    def middle(data: bytes) -> Tensor:
        whole = fused(K.io.decode_image_jpegturbo(data, "rgb"), 256)
        return whole[:, MARGIN : MARGIN + SIZE, MARGIN : MARGIN + SIZE]

    return random_crop if training else middle


def dali_pipeline(
    source: Callable[[], Any],
    *,
    batch: int,
    threads: int,
    interpolation: str = "bilinear",
    training: bool = True,
    dtype: torch.dtype = torch.float32,
    prefetch: int = 1,
) -> Any:
    """Return a CPU pipeline over DALI's outputs (encoded files, ...); with `prefetch` 1 it works in `run` alone."""
    from nvidia.dali import fn, pipeline_def, types  # noqa: PLC0415

    interp = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}[interpolation]
    floats = dtype == torch.float32

    # The dynamic executor gives each batch memory of its own, so that a tensor may share it.
    @pipeline_def(
        batch_size=batch, num_threads=threads, device_id=None, seed=1, exec_dynamic=True, prefetch_queue_depth=prefetch
    )
    def pipeline() -> Any:
        encoded, *others = source()
        if training:
            image = fn.decoders.image_random_crop(
                encoded,
                device="cpu",
                output_type=types.RGB,
                random_aspect_ratio=[3 / 4, 4 / 3],
                random_area=[0.08, 1.0],
            )
        else:
            image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        side = SIZE if training else 256
        image = fn.resize(image, resize_x=side, resize_y=side, interp_type=interp, antialias=True)
        image = fn.crop_mirror_normalize(
            image,
            dtype=types.FLOAT if floats else types.UINT8,
            output_layout="CHW",
            crop=(SIZE, SIZE),
            mean=[255 * value for value in MEAN] if floats else [0.0],
            std=[255 * value for value in STD] if floats else [1.0],
            mirror=fn.random.coin_flip(probability=0.5) if training else 0,
        )
        return (image, *others)

    built = pipeline()
    built.build()
    return built


class DaliPass:
    """One pass over files in memory, fed to DALI in batches."""

    def __init__(self, files: Sequence[bytes], threads: int, interpolation: str, *, training: bool = True) -> None:
        from nvidia.dali import fn  # noqa: PLC0415

        self.arrays = [np.frombuffer(data, np.uint8) for data in files]
        self.position = 0
        self.pipeline = dali_pipeline(
            lambda: [fn.external_source(source=self._next, batch=True, no_copy=True)],
            batch=DALI_BATCH,
            threads=threads,
            interpolation=interpolation,
            training=training,
        )

    def _next(self) -> list[np.ndarray[Any, Any]]:
        batch = self.arrays[self.position : self.position + DALI_BATCH]
        self.position += DALI_BATCH
        return batch

    def __call__(self) -> Outcome:
        """Return the outcome of one pass."""
        self.position, count = 0, 0
        while self.position < len(self.arrays):
            (output,) = self.pipeline.run()
            images = torch.from_dlpack(output.as_tensor())
            count += len(images)
        return Outcome(count, images)

    def close(self) -> None:
        """Drop the pipeline and its threads."""
        del self.pipeline


def dali_plain(files: Sequence[bytes], interpolation: str) -> Tensor:
    """Return the pictures of the proof; all fit into one batch."""
    run = DaliPass(files, 1, interpolation, training=False)
    try:
        return run().last
    finally:
        run.close()
