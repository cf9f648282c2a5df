"""How an operator of vit-rs is registered with torch.

An operator has a CPU kernel, which calls Rust, and a kernel in plain torch for every other device. The number of
threads is read inside the CPU kernel, never in traced code. Arguments come from the dispatcher: positional, sizes as
lists; the public functions have checked them, and Rust checks again what it relies on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.library import Library

from vit_rs.ops._arguments import tracing

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["eager", "exporting", "known", "register"]

# Typed as Any: torch leaves the methods of Library untyped.
_LIBRARY: Any = Library("vit_rs", "DEF")  # type: ignore[no-untyped-call]


def register(
    signature: str,
    cpu: Callable[..., Any] | None,
    elsewhere: Callable[..., Any],
    fake: Callable[..., Any],
    gradient: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
) -> Any:
    """Define one operator and give it its kernels; `elsewhere` serves every device without a kernel of its own."""
    name = signature[: signature.index("(")]
    _LIBRARY.define(signature)
    _LIBRARY.impl(name, elsewhere, "CompositeExplicitAutograd")
    if cpu is not None:
        _LIBRARY.impl(name, cpu, "CPU")
    torch.library.register_fake(f"vit_rs::{name}", fake, lib=_LIBRARY)
    if gradient is not None:
        backward, setup = gradient
        torch.library.register_autograd(f"vit_rs::{name}", backward, setup_context=setup, lib=_LIBRARY)
    return getattr(torch.ops.vit_rs, name).default


def eager() -> bool:
    """Tell whether tensors made now are plain ones, which may be kept: nothing compiles, records or fakes them."""
    if torch.compiler.is_compiling() or tracing():
        return False
    return torch._C._len_torch_dispatch_stack() == 0  # noqa: SLF001  no public way to ask


def exporting() -> bool:
    """Tell whether a graph is being recorded that is to run without vit-rs, as `torch.export` and ONNX exports do.

    The ONNX exporters need no check of their own: they record by `torch.export` or `torch.jit.trace`.
    """
    if tracing():
        return True
    # torch 2.6 tells an export from a compilation only by dynamo's part in it.
    told = getattr(torch.compiler, "is_exporting", None)
    return told() if told is not None else torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def known(size: int) -> bool:
    """Tell whether a size is a number while a graph is being recorded, and no symbol."""
    if torch.compiler.is_dynamo_compiling():
        # Here symbols pass for integers. Imported late, for it takes a third of a second.
        from torch.fx.experimental.symbolic_shapes import has_static_value  # noqa: PLC0415

        return has_static_value(size)
    return not isinstance(size, torch.SymInt)
