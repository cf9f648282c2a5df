"""Tar shards in WebDataset's convention."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import torch

from vit_rs._core import decode_image, open_shards
from vit_rs.data.labels import class_names
from vit_rs.data.threads import usable_cpus
from vit_rs.exceptions import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TarShards", "expand_braces"]

_MOST_SHARDS = 1_000_000
_GZIP_MAGIC = b"\x1f\x8b"
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?")


class TarShards:
    """Index WebDataset shards: tar files of images, each with its label in a member beside it.

    Members next to each other whose paths agree up to the first dot of the file name make a sample: an image (.jpg,
    .jpeg, .png or .webp; decoded by content) and its label, from `.cls` (a number as text) or, without one, from a
    field of `.json`. Other members are left out. Plain tars are read at random places: they shuffle as folders do,
    every shard and sample with every other. Making this reads all headers and labels once.

    Gzipped shards, told by content, have no random access. Making this inflates each of them once, and so does every
    epoch, on every rank; the two used last, and those in use, lie in memory inflated. If any shard is gzipped, the
    samples of a shard stay together: shuffling permutes the shards and the samples within each.

    It can be pickled and copied: the copy keeps the paths and labels, and reads the headers anew.

    Args:
        paths: a path or a list of paths; "train-{000..099}.tar" and "{a,b}.tar" stand for several, as in a shell.
        label_key: field of `.json` that holds the label; None reads no labels (they are -1).
        classes: the classes' names, index = label; None names them "0", "1", ...

    Raises:
        FileNotFoundError: a shard does not exist.
        DatasetError: a shard is damaged or truncated, a sample has no label or two images, or no shard has a sample;
            the message names shard and byte.
        ValueError: a label outside the classes, or braces that stand for too many shards.

    Source: webdataset 1.0, WebDataset and its group_by_keys.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        label_key: str | None = "label",
        classes: Sequence[str] | None = None,
    ) -> None:
        given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        self.shards: list[str] = [shard for path in given for shard in expand_braces(os.fspath(path))]
        if not self.shards:
            raise ValueError("paths must name at least one shard")
        self.label_key = label_key
        self.core_source, self.targets = open_shards(self.shards, label_key, usable_cpus())
        self.gzipped = any(map(_is_gzipped, self.shards))
        highest = max(self.targets)
        first = self.core_source.name(self.targets.index(highest))
        self.classes: list[str] = class_names(highest, classes, sample=first)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return (image, label): image u8 RGB, (3, H, W), values 0..255.

        Raises:
            DecodeError: the member is not a readable image; the message names shard and member.
        """
        label = self.targets[index]
        index = range(len(self))[index]
        pixels = decode_image(self.core_source.encoded(index), name=self.core_source.name(index))
        return torch.from_numpy(pixels).permute(2, 0, 1), label

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "core_source"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.core_source, labels = open_shards(self.shards, self.label_key, usable_cpus())
        if len(labels) != len(self.targets):
            raise DatasetError(
                f"{self.shards[0]}, ...: {len(labels)} samples now, {len(self.targets)} when the data set was pickled"
            )

    def __repr__(self) -> str:
        return f"TarShards({len(self.shards)} shards, {len(self)} images, {len(self.classes)} classes)"


def _is_gzipped(path: str) -> bool:
    with open(path, "rb") as file:  # noqa: PTH123  (a path as the user gave it)
        return file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a shell makes of "a{1..3}" and "a{b,c}"; ranges keep leading zeros.

    Raises:
        ValueError: more than a million names.
    """
    for start, character in enumerate(pattern):
        parts, after = _brace(pattern[start + 1 :]) if character == "{" else ([], "")
        numbers = _RANGE.fullmatch(parts[0]) if len(parts) == 1 else None
        if numbers:
            middles: Sequence[str] = _range(numbers)
        elif len(parts) > 1:
            middles = [name for part in parts for name in expand_braces(part)]
        else:
            continue  # text, in which a brace that means something may follow
        ends = expand_braces(after)
        if len(middles) * len(ends) > _MOST_SHARDS:
            raise ValueError(f"{pattern}: stands for more than {_MOST_SHARDS} shards")
        return [pattern[:start] + middle + end for middle in middles for end in ends]
    return [pattern]


def _brace(text: str) -> tuple[list[str], str]:
    """Split what follows an opening brace: its parts between commas, and the text behind its end."""
    parts, begin, depth = [], 0, 0
    for at, character in enumerate(text):
        if character == "{":
            depth += 1
        elif character == "}" and depth:
            depth -= 1
        elif character in ",}" and not depth:
            parts.append(text[begin:at])
            begin = at + 1
            if character == "}":
                return parts, text[begin:]
    return [], ""


def _range(numbers: re.Match[str]) -> Sequence[str]:
    first, last, step = int(numbers[1]), int(numbers[2]), abs(int(numbers[3] or 1)) or 1
    if abs(last - first) // step >= _MOST_SHARDS:
        raise ValueError(f"{{{numbers[0]}}}: stands for more than {_MOST_SHARDS} shards")
    values = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    padded = any(re.match(r"-?0\d", end) for end in (numbers[1], numbers[2]))
    width = max(len(numbers[1]), len(numbers[2])) if padded else 0
    return [f"{value:0{width}}" for value in values]
