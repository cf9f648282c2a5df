"""Labels of data sets: 64-bit integers, of which those from 0 on are classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["class_names", "label_array"]

# A label beyond any data set's number of classes is an error in the labels, and would make that many names.
_MOST_UNNAMED = 1_000_000


def class_names(highest: int, given: Sequence[str] | None, *, sample: str = "") -> list[str]:
    """Return the names of the classes: those that were given, or "0", "1", ... up to the highest label.

    Args:
        highest: the highest label; negative where there is no class.
        given: names, index = label.
        sample: a sample with that label, for the message.

    Raises:
        ValueError: the label has no name, or is too high for a number of classes.
    """
    if given is None:
        if highest > _MOST_UNNAMED:
            raise ValueError(f"label {highest} is more than {_MOST_UNNAMED}: name the classes if that is meant")
        return [str(number) for number in range(highest + 1)]
    if highest >= len(given):
        where = f" ({sample})" if sample else ""
        raise ValueError(f"label {highest}{where} has no name: only {len(given)} classes are given")
    return list(given)


def label_array(labels: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return labels as int64, (N,).

    Raises:
        ValueError: one does not fit.
    """
    try:
        return np.asarray(labels, dtype=np.int64)
    except OverflowError:
        number, label = next((n, label) for n, label in enumerate(labels) if not -(2**63) <= label < 2**63)
        raise ValueError(f"the label of sample {number} must fit 64 bits, got {label}") from None
