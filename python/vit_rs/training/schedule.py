"""Learning rate as a function of the step: a pure function, so that resuming needs no state.

Source: warm-up and linear or cosine decay of arXiv 2010.11929, table 3; cosine of arXiv 1608.03983, equation
5, without restarts.
"""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["learning_rate"]


def learning_rate(
    step: int,
    total_steps: int,
    *,
    peak: float,
    final: float = 0.0,
    warmup_steps: int = 0,
    decay: Literal["cosine", "linear", "constant"] = "cosine",
) -> float:
    """Return the learning rate of one step.

    The warm-up rises linearly and reaches `peak` at step `warmup_steps`; its first step uses peak /
    (warmup_steps + 1), not 0, so that no step is wasted. After it the rate falls to `final`, which it would
    reach at step `total_steps`.

    Args:
        step: 0 for the first step.
        total_steps: steps of the stage; at least 1.
        peak: highest rate.
        final: rate at the end of a cosine or linear fall.
        warmup_steps: steps before the peak; where there are fewer than `total_steps`.
        decay: shape of the fall.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if decay == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    remaining = 0.5 * (1.0 + math.cos(math.pi * progress)) if decay == "cosine" else 1.0 - progress
    return final + (peak - final) * remaining
