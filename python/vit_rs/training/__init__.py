"""Training: one loop for every stage, resumable to the bit.

`train` imports torch and the loader when it is first asked for: configurations can be made and checked
without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vit_rs.training.config import (
    DataConfig,
    EvaluationConfig,
    FinetuneConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from vit_rs.training.interruption import Interrupted

if TYPE_CHECKING:
    from vit_rs.training.job import train

__all__ = [
    "DataConfig",
    "EvaluationConfig",
    "FinetuneConfig",
    "Interrupted",
    "MethodConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "train":
        from vit_rs.training.job import train  # noqa: PLC0415  (see the module's docstring)

        return train
    raise AttributeError(f"module 'vit_rs.training' has no attribute {name!r}")
