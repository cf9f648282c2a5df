"""Checks that the configurations share: each yields (field, what is wrong with it) where a value cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["above", "at_least", "within"]


def at_least(config: Any, name: str, low: float) -> Iterator[tuple[str, str]]:
    """Check that a field is `low` or more; None, where a field may be that, is not checked."""
    value = getattr(config, name)
    if value is not None and not value >= low:
        yield name, f"expected at least {low:g}, got {value!r}"


def above(config: Any, name: str, low: float) -> Iterator[tuple[str, str]]:
    """Check that a field is more than `low`; None, where a field may be that, is not checked."""
    value = getattr(config, name)
    if value is not None and not value > low:
        yield name, f"expected a value above {low:g}, got {value!r}"


def within(
    config: Any, name: str, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> Iterator[tuple[str, str]]:
    """Check that a field lies in an interval; None, where a field may be that, is not checked."""
    value = getattr(config, name)
    if value is None:
        return
    if not ((low < value if open_low else low <= value) and (value < high if open_high else value <= high)):
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        yield name, f"expected a value in {interval}, got {value!r}"
