"""Every file decoded to its last pixel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vit_rs.data import ImageLoader
from vit_rs.transforms import Resize

if TYPE_CHECKING:
    from vit_rs.doctor.files import Files
    from vit_rs.doctor.report import Progress

__all__ = ["Damage", "look_for_damage"]

_BATCH = 64
# The smallest result: that all of an image is needed for it is what counts.
_SIDE = 8


@dataclass
class Damage:
    """How many images were decoded completely so far, and those that could not be: (name, reason)."""

    checked: int = 0
    damaged: list[tuple[str, str]] = field(default_factory=list)


def look_for_damage(files: Files, damage: Damage, threads: int, progress: Progress) -> None:
    """Decode every image completely, and note in `damage` what is found, also where this is interrupted."""
    good = np.zeros(len(files), bool)
    with ImageLoader(
        files.source, Resize((_SIDE, _SIDE)), batch_size=_BATCH, num_threads=threads, on_error="skip", return_index=True
    ) as loader:
        try:
            for _, _, indices in loader:
                progress("decoding every image", damage.checked, len(files))
                good[indices.numpy()] = True
                # Batches come in order. One without a good image may be empty, or be left out; a later one tells.
                start = int(indices[-1]) // _BATCH * _BATCH if len(indices) else damage.checked
                damage.checked = min(start + _BATCH, len(files))
            damage.checked = len(files)
        finally:
            # The loader tells of the images that it left out in their order; read once, for it copies all it has.
            missing = np.flatnonzero(~good[: damage.checked]).tolist()
            for index, text in zip(missing, loader.stats().failures, strict=False):  # of a batch not noted yet, too
                name = files.name(index)
                damage.damaged.append((name, text.removeprefix(name).removeprefix(": ")))
