"""vit-rs: Vision Transformers for PyTorch, with image loading, patchify and resampling in Rust."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vit_rs import _core
from vit_rs._core import __version__
from vit_rs.ops import interpolation_matrix, patchify, resample_abs_pos_embed, resample_patch_embed, unpatchify

if TYPE_CHECKING:
    from vit_rs import (
        analysis,
        checkpoints,
        data,
        evaluation,
        exceptions,
        methods,
        models,
        ops,
        recipes,
        training,
        transforms,
    )
    from vit_rs.checkpoints import resize_checkpoint

__all__ = [
    "__version__",
    "analysis",
    "build_info",
    "checkpoints",
    "data",
    "evaluation",
    "exceptions",
    "interpolation_matrix",
    "methods",
    "models",
    "ops",
    "patchify",
    "recipes",
    "resample_abs_pos_embed",
    "resample_patch_embed",
    "resize_checkpoint",
    "training",
    "transforms",
    "unpatchify",
]


def build_info() -> dict[str, Any]:
    """Return what this build is and what it found on this machine.

    Returns:
        A dict with "version"; "profile", "release" or "debug"; "abi", "abi3" for a wheel that serves many versions of
        CPython or "version-specific"; "arch" and "os" that it was built for; "cpu_features", the instruction sets of
        this CPU that kernels may use, weakest first; "jpeg_library" (name and version) and "jpeg_simd", which is False
        where libjpeg-turbo was built without NASM and decodes more slowly.
    """
    return _core.build_info()


def __getattr__(name: str) -> Any:
    """Import a subpackage, or what stands in one, when it is first used: `import vit_rs` stays light."""
    if name == "resize_checkpoint":
        return importlib.import_module("vit_rs.checkpoints").resize_checkpoint
    if name in __all__:
        return importlib.import_module(f"vit_rs.{name}")
    raise AttributeError(f"module 'vit_rs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
