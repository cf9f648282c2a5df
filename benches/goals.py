"""What vit_rs is asked to reach beside its peers, and what README's table shows; report.py fills both in.

Comparisons are named by their table and their name, as bench_patchify.py and bench_resample.py name them.
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


@dataclass(frozen=True)
class Goal:
    """How many times as fast as a peer vit_rs shall be, on one thread; of several peers the fastest counts.

    Several comparisons make one figure: the geometric mean of the ratios of a pass, or the comparison of the least.
    """

    comparisons: tuple[Name, ...]
    peers: tuple[str, ...]
    asked: float
    several: Literal["geometric mean", "least"] | None = None

    @property
    def against(self) -> str:
        """Name the peer, or what the peers have in common."""
        return self.peers[0] if len(self.peers) == 1 else f"{re.split('[:,]', self.peers[0])[0]}, the fastest"

    def __str__(self) -> str:
        if self.several is not None:
            return f"Position embeddings, bicubic, all {len(self.comparisons)}: {self.several}"
        return ": ".join(self.comparisons[0])


def resized(table: str, old: int, new: int) -> Name:
    """Name a comparison of bench_resample.py."""
    return table, f"{old} x {old} -> {new} x {new}, D = 768"


ALL_SIZES = tuple(
    resized(table, old, new)
    for table in TABLES
    for old, new in ((14, 16), (14, 24), (14, 32), (16, 37), (37, 16), (37, 24), (37, 32), (37, 74))
)
GOALS = (
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

# What, comparison, peers to name beside vit_rs. README's file map is the only table there that begins with backticks.
README_ROWS: tuple[tuple[str, Name, tuple[str, ...]], ...] = (
    ("cut f32 images into a given buffer", (F32.format(BUFFER), PQC), (VIEWS, TORCH_COPY)),
    ("cut f32 images into new memory", (F32.format(HELD), PQC), ("torch, reshape and permute", "einops")),
    ("cut u8 images into a given buffer", (U8.format(BUFFER), PQC), (VIEWS, TORCH_COPY)),
    ("normalise and cut u8 images into a given f32 buffer", (NORMALISED.format(BUFFER), PQC), (CHAIN, BY_IMAGE)),
    ("normalise and cut u8 images into new f32 memory", (NORMALISED.format(HELD), PQC), (CHAIN, BY_IMAGE)),
    ("resample 14 x 14 to 24 x 24, D = 768", resized(TABLES[0], 14, 24), ("timm", PRODUCTS[0])),
    ("resample 37 x 37 to 16 x 16, D = 768", resized(TABLES[0], 37, 16), ("timm", PRODUCTS[0])),
)
