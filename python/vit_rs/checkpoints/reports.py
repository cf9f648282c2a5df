"""What was done with each tensor of a file; `str()` of a report is meant to be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vit_rs.checkpoints.grids import times

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ConvertReport", "LoadReport", "Resampling", "ResizeReport", "listed"]


class Resampling(NamedTuple):
    """One resampled table or patch kernel: its key, the sizes (rows, columns) it came from and went to, and how."""

    key: str
    from_size: tuple[int, int]
    to_size: tuple[int, int]
    convention: str


@dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did with each key.

    Attributes:
        path: The file.
        container: "safetensors", "torch" or "npz".
        layout: Whose names it has.
        section: Where in the file the model is: what stands before its keys, "" at the top.
        convention: How position tables are resampled, if they are.
        used: Keys of the model that were copied.
        resampled: Keys of the model that changed their grid, or their patch.
        transposed: Keys of the model that changed their axes, and how.
        merged: Tokens that took in their row of the position table, which has none in the model.
        filled: Tokens whose row of the position table the file lacks: zeros.
        dropped: Keys of the file that the model did not take, and why.
        missing: Keys of the model that kept their own values.
        differs: What the file's configuration says otherwise than the model's, without `strict`: another function of
            the same weights.
    """

    path: str
    container: str
    layout: str
    section: str
    convention: str
    used: tuple[str, ...] = ()
    resampled: tuple[Resampling, ...] = ()
    transposed: tuple[tuple[str, str], ...] = ()
    merged: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()

    def __str__(self) -> str:
        inside = f", section {self.section}" if self.section else ""
        axes = f", {len(self.transposed)} of them with other axes" if self.transposed else ""
        lines = [f"{self.path} ({self.container}, {self.layout}{inside}): {len(self.used)} tensors copied{axes}"]
        lines += _resampled(self.resampled)
        lines += _rows(self.merged, self.filled)
        lines += _dropped(self.dropped)
        if self.missing:
            lines.append(f"  left as they were in the model: {listed(self.missing)}")
        if self.differs:
            lines.append(f"  another function than the file's: {listed(self.differs, separator='; ')}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ResizeReport:
    """What `resize_checkpoint` did.

    Attributes:
        path: The file.
        out: The file that was written.
        container: "safetensors", "torch" or "npz".
        models: (section, layout) of each model in the file.
        resampled: Tables and patch kernels that changed, by their keys in the file.
        kept: How many tensors are as they were, bit for bit.
        notes: What the user should know beside that.
    """

    path: str
    out: str
    container: str
    models: tuple[tuple[str, str], ...]
    resampled: tuple[Resampling, ...]
    kept: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        models = ", ".join(f"{layout} at {section}" if section else layout for section, layout in self.models)
        lines = [f"{self.path} ({self.container}, {models}) -> {self.out}"]
        lines += _resampled(self.resampled)
        lines.append(f"  kept bit for bit: {self.kept} tensors")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class ConvertReport:
    """What `convert` did.

    Attributes:
        path: The file.
        out: The file that was written.
        from_layout: Whose names the file has.
        to_layout: Whose names the new one has.
        written: How many tensors were written.
        merged: Tokens that took in their row of the position table, which the target has no place for.
        filled: Tokens whose row of the position table the file lacks and the target needs: zeros.
        dropped: Keys of the file that were left out, and why.
        notes: What the model needs beside its weights, which the target says elsewhere.
    """

    path: str
    out: str
    from_layout: str
    to_layout: str
    written: int
    merged: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.path} ({self.from_layout}) -> {self.out} ({self.to_layout}): {self.written} tensors"]
        lines += _rows(self.merged, self.filled)
        lines += _dropped(self.dropped)
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def listed(items: Sequence[str], most: int = 8, separator: str = ", ") -> str:
    """Write the first items and the number of the others."""
    more = f"{separator}and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more


def _resampled(entries: Iterable[Resampling]) -> list[str]:
    return [f"  resampled {key}: {times(old)} -> {times(new)}, {how}" for key, old, new, how in entries]


def _rows(merged: tuple[str, ...], filled: tuple[str, ...]) -> list[str]:
    lines = []
    if merged:
        lines.append(f"  position added into the token itself: {listed(merged)}")
    if filled:
        lines.append(f"  position of zeros: {listed(filled)}")
    return lines


def _dropped(entries: Iterable[tuple[str, str]]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for key, reason in entries:
        by_reason.setdefault(reason, []).append(key)
    return [f"  dropped from the file: {listed(keys)} ({reason})" for reason, keys in by_reason.items()]
