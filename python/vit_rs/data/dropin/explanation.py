"""What a drop-in DataLoader does, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_rs.data.dropin.plan import Plan
    from vit_rs.data.dropin.python_stages import PythonStages

__all__ = ["explain"]


def explain(loader: Any, plan: Plan, stages: PythonStages | None) -> str:
    """Return the text of `DataLoader.explain`."""
    return f"{loader} {plan} {stages}"
