"""Every file decoded to its last pixel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
    """Decode every image completely, and note in `damage` what is found."""
    with ImageLoader(
        files.source, Resize((_SIDE, _SIDE)), batch_size=_BATCH, num_threads=threads, on_error="skip", return_index=True
    ) as loader:
        expected = 0
        for _, _, indices in loader:
            progress("decoding every image", expected, len(files))
            # A batch without a good sample is not yielded: what lies before this batch's first good one is bad too.
            good = indices.tolist()
            last = good[-1] // _BATCH * _BATCH + _BATCH
            _note(files, damage, loader, sorted(set(range(expected, last)) - set(good)))
            expected = damage.checked = min(last, len(files))
        _note(files, damage, loader, list(range(expected, len(files))))
        damage.checked = len(files)


def _note(files: Files, damage: Damage, loader: ImageLoader, missing: list[int]) -> None:
    """Add the images that were left out; the loader tells of them in the same order."""
    missing = [index for index in missing if index < len(files)]
    if missing:
        known = len(damage.damaged)
        texts = loader.stats().failures[known : known + len(missing)]
        for index, text in zip(missing, texts, strict=True):
            name = files.name(index)
            damage.damaged.append((name, text.removeprefix(name).removeprefix(": ")))
