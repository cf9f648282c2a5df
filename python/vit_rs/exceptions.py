"""Exceptions of vit-rs. Wrong arguments are ValueError or TypeError, missing files FileNotFoundError."""

from __future__ import annotations

__all__ = [
    "AttentionError",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "DecodeError",
    "OtherProcessError",
    "VitRsError",
]


class VitRsError(Exception):
    """Base of every exception that vit-rs defines."""


class DecodeError(VitRsError, ValueError):
    """An image's bytes cannot be decoded; the message names the image."""


class DatasetError(VitRsError, ValueError):
    """A data set's layout is not what was expected; the message names the folder."""


class CheckpointError(VitRsError, ValueError):
    """Weights or a training state cannot be used; the message names file and key and what was got and expected.

    A file is damaged, of no known container or layout, or holds what is refused (code, zip bombs); or its weights do
    not fit: missing and unexpected keys are listed, and shapes that differ.
    """


class ConfigError(VitRsError, ValueError):
    """A training configuration or run folder is not usable; the message names the setting."""


class AttentionError(VitRsError, TypeError):
    """The attention of a model cannot be watched; the message says why.

    It has no blocks, no grid of patches, or blocks that do not let every token look at all tokens by one call of
    torch's fused attention.
    """


class OtherProcessError(VitRsError):
    """Another process of a distributed run failed, which tells of it itself; the message names it, and says what."""
