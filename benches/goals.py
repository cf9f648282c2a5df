"""What vit_rs is asked to reach beside its peers, and what README's tables show; report.py fills both in.

Comparisons are named by their table and their name, as the bench modules name them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Name = tuple[str, str]
"""Table and name of a comparison."""

F32 = "Patchify, f32, {}"
U8 = "Patchify, u8, {}"
NORMALISED = "Patchify, u8 -> normalised f32, {}"
BUFFER, FRESH, HELD = "into a buffer", "a fresh result", "a fresh result, earlier ones held"
PQC, CPQ = "pqc, P = 16", "cpq, P = 16"
TABLES = ("Position embeddings, bicubic, antialiased", "Position embeddings, bicubic, not antialiased")

TORCH_COPY, NUMPY_COPY = "plain copy: torch copy_", "plain copy: NumPy copyto"
VIEWS = "torch, copy_ between views"
CHAIN, BY_IMAGE = "torch chain", "torch, image by image"
PRODUCTS = tuple(f"two cached matmuls, {form}" for form in ("rows first", "columns first", "torch.cat"))

TRANSFORM = "Decode and augment, files in memory"
BILINEAR: Name = (TRANSFORM, "RandomResizedCrop(224), bilinear, f32")
BICUBIC: Name = (TRANSFORM, "RandomResizedCrop(224), bicubic, f32")
TV_PIL, TV_TENSOR = "torchvision v2, PIL", "torchvision v2, tensors"
DALI = "DALI, image_random_crop"
NOT_ANTIALIASED = ("not antialiased: albumentations", "not antialiased: kornia-rs")
NATIVE = "native loop: region decode, fast_image_resize, pack"
ONE_THREAD = "vit_rs, one thread"

BATCHES = "Batches of 64 from files, warm cache"
F32_BATCHES: Name = (BATCHES, "f32")
U8_BATCHES: Name = (BATCHES, "u8")
DATALOADER_PIL, DATALOADER_TENSOR = "DataLoader, torchvision v2, PIL", "DataLoader, torchvision v2, tensors"
FFCV_JPG = "FFCV, jpg"

DROPIN_TABLE = "A torchvision script's batches of 64, one import changed"
TORCH_LOADER = "torch's DataLoader"
DROPIN_PIL: Name = (DROPIN_TABLE, "PIL")
DROPIN_TENSORS: Name = (DROPIN_TABLE, "tensors")

LOOP: Name = (
    "Outside forward pass, backward pass and optimizer step",
    "vit_tiny_patch16_224, batches of 64 from JPEGs",
)
LOOP_SPEED: Name = ("Training", "vit_tiny_patch16_224, batches of 64 from JPEGs")
TORCH_LOOP = "a plain loop, torch's DataLoader with two workers"
LOOP_LIMIT = "what is asked: at most 2 %"

OPERATIONS = "One operation, 224 x 224 u8"
POLICIES = "Policies, 224 x 224 u8"
VIEWS_OF_A_FILE: Name = ("Views of one file", "DINO: 2 of 224 and 8 of 96 pixels, u8")
COPY = "plain copy: NumPy copy"


@dataclass(frozen=True)
class Goal:
    """How many times as fast as a peer vit_rs shall be; of several peers the fastest counts.

    Several comparisons make one figure: the geometric mean of the ratios of a pass, or the comparison of the least.
    """

    comparisons: tuple[Name, ...]
    peers: tuple[str, ...]  # variants of any role; empty: every peer
    asked: float
    several: Literal["geometric mean", "least"] | None = None
    threads: int = 1

    @property
    def against(self) -> str:
        """Name the peer, or what the peers have in common."""
        if len(self.peers) == 1:
            return self.peers[0]
        return f"{re.split('[:,]', self.peers[0])[0]}, the fastest" if self.peers else "the fastest peer"

    def __str__(self) -> str:
        if self.several is not None:
            return f"Position embeddings, bicubic, all {len(self.comparisons)}: {self.several}"
        return ": ".join(self.comparisons[0])


@dataclass(frozen=True)
class ReadmeRow:
    """A row of a table in README: what, how long vit_rs takes, and how long the peers beside it."""

    what: str
    comparison: Name
    peers: tuple[str, ...]  # empty: the fastest one
    threads: int = 1


def resized(table: str, old: int, new: int) -> Name:
    """Name a comparison of bench_resample.py."""
    return table, f"{old} x {old} -> {new} x {new}, D = 768"


ALL_SIZES = tuple(
    resized(table, old, new)
    for table in TABLES
    for old, new in ((14, 16), (14, 24), (14, 32), (16, 37), (37, 16), (37, 24), (37, 32), (37, 74))
)
OPERATOR_GOALS = (
    *[
        Goal(((F32.format(BUFFER), order),), copies, 0.85)
        for order in (PQC, CPQ)
        for copies in ((TORCH_COPY, NUMPY_COPY), (TORCH_COPY,), (NUMPY_COPY,))
    ],
    Goal(((U8.format(BUFFER), PQC),), (VIEWS,), 10.0),
    *[
        Goal(((NORMALISED.format(result), order),), (CHAIN,), asked)
        for result, asked in ((BUFFER, 15.0), (FRESH, 6.0), (HELD, 6.0))
        for order in (PQC, CPQ)
    ],
    *[
        Goal((resized(table, old, new),), ("timm",), asked)
        for old, new, asked in ((14, 24, 8.0), (37, 74, 8.0), (37, 16, 6.0))
        for table in TABLES
    ],
    Goal(ALL_SIZES, PRODUCTS, 1.0, "geometric mean"),
    Goal(ALL_SIZES, PRODUCTS, 0.9, "least"),
)
LOADING_GOALS = (
    Goal((BILINEAR,), (TV_PIL,), 2.6),
    Goal((BILINEAR,), (TV_TENSOR,), 1.65),
    Goal((BILINEAR,), (DALI,), 1.9),
    Goal((BILINEAR,), NOT_ANTIALIASED, 1.3),
    Goal((BILINEAR,), (NATIVE,), 0.9),
    Goal((BILINEAR,), (ONE_THREAD,), 1.8, threads=2),
    Goal((BICUBIC,), ("vit_rs, bilinear",), 0.9),
    Goal((F32_BATCHES,), (DATALOADER_PIL,), 3.2, threads=2),
    Goal((F32_BATCHES,), (DATALOADER_TENSOR,), 2.1, threads=2),
    Goal((F32_BATCHES,), (DALI,), 2.1, threads=2),
    Goal((F32_BATCHES,), (FFCV_JPG,), 1.8, threads=2),
    Goal((U8_BATCHES,), ("vit_rs, f32",), 0.97, threads=2),
    Goal((DROPIN_PIL,), (TORCH_LOADER,), 2.3, threads=2),
    Goal((DROPIN_TENSORS,), (TORCH_LOADER,), 1.8, threads=2),
    *[
        Goal(((OPERATIONS, name),), (), 1.0)
        for name in (
            "ColorJitter(0.4, 0.4, 0.4)",
            "GaussianBlur(23, sigma 0.1 to 2)",
            "RandomSolarize(128)",
            "RandomGrayscale",
            "RandomErasing",
            "RandomRotation(15), bilinear",
        )
    ],
    Goal(((OPERATIONS, "RandomHorizontalFlip"),), (COPY,), 0.91),  # at most 1.1 times the copy's time
    *[
        Goal(((POLICIES, name),), (), 2.0)
        for name in ("RandAugment(2, 9)", "TrivialAugmentWide", "AutoAugment", "AugMix")
    ],
    Goal((VIEWS_OF_A_FILE,), (TV_PIL, TV_TENSOR), 8.0),
)

MODEL_GOALS = tuple(
    Goal(((table, name),), ("timm",), 0.97, threads=threads)
    for table in ("Forward and backward pass, f32, 224 x 224", "Inference, f32, 224 x 224")
    for name in ("vit_small_patch16_224, batches of 8", "vit_base_patch16_224, batches of 4")
    for threads in (1, 2)
)

LOOP_GOALS = (Goal((LOOP,), (LOOP_LIMIT,), 1.0, threads=2),)

# README's file map is the only table there that begins with backticks.
OPERATOR_ROWS = (
    ReadmeRow("cut f32 images into a given buffer", (F32.format(BUFFER), PQC), (VIEWS, TORCH_COPY)),
    ReadmeRow("cut f32 images into new memory", (F32.format(HELD), PQC), ("torch, reshape and permute", "einops")),
    ReadmeRow("cut u8 images into a given buffer", (U8.format(BUFFER), PQC), (VIEWS, TORCH_COPY)),
    ReadmeRow(
        "normalise and cut u8 images into a given f32 buffer", (NORMALISED.format(BUFFER), PQC), (CHAIN, BY_IMAGE)
    ),
    ReadmeRow("normalise and cut u8 images into new f32 memory", (NORMALISED.format(HELD), PQC), (CHAIN, BY_IMAGE)),
    ReadmeRow("resample 14 x 14 to 24 x 24, D = 768", resized(TABLES[0], 14, 24), ("timm", PRODUCTS[0])),
    ReadmeRow("resample 37 x 37 to 16 x 16, D = 768", resized(TABLES[0], 37, 16), ("timm", PRODUCTS[0])),
)
LOADING_ROWS = (
    ReadmeRow("decode, crop, flip, normalise: one thread", BILINEAR, (TV_PIL, TV_TENSOR, DALI)),
    ReadmeRow("the same: two threads", BILINEAR, (TV_PIL, TV_TENSOR, DALI), threads=2),
    ReadmeRow(
        "batches of 64 from files: two threads", F32_BATCHES, (DATALOADER_PIL, DATALOADER_TENSOR, DALI), threads=2
    ),
    ReadmeRow("a torchvision script, one import changed: PIL", DROPIN_PIL, (TORCH_LOADER,), threads=2),
    ReadmeRow("the same: tensors", DROPIN_TENSORS, (TORCH_LOADER,), threads=2),
)
