"""Learning rate and weight decay as functions of the step: pure functions, so that resuming needs no state.

Source: warm-up and linear or cosine decay of arXiv 2010.11929, table 3; cosine of arXiv 1608.03983, equation
5, without restarts; the staircase of BiT-HyperRule, arXiv 1912.11370, section 3.3; the weight decay of DINO, arXiv
2104.14294, appendix C.
"""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["learning_rate", "weight_decay"]

# Tenths of all steps after which the staircase falls.
_STAIRS = (3, 6, 9)


def learning_rate(
    step: int,
    total_steps: int,
    *,
    peak: float,
    final: float = 0.0,
    warmup_steps: int = 0,
    decay: Literal["cosine", "linear", "staircase", "constant"] = "cosine",
) -> float:
    """Return the learning rate of one step.

    The warm-up rises linearly and reaches `peak` at step `warmup_steps`; its first step uses peak /
    (warmup_steps + 1), not 0, so that no step is wasted. After it a cosine or linear rate falls to `final`, which it
    would reach at step `total_steps`; a staircase is a tenth, a hundredth and a thousandth of `peak` from 30, 60 and
    90 % of all steps on, those of the warm-up counted in.

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
    if decay == "staircase":
        fallen = sum(10 * step >= tenths * total_steps for tenths in _STAIRS)
        return peak / (1.0, 10.0, 100.0, 1000.0)[fallen]
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final + (peak - final) * (_half_cosine(progress) if decay == "cosine" else 1.0 - progress)


def weight_decay(step: int, total_steps: int, *, start: float, final: float) -> float:
    """Return the weight decay of one step: from `start` along half a cosine to `final`, which step `total_steps` has.

    Args:
        step: 0 for the first step.
        total_steps: steps of the stage; at least 1.
        start: decay of the first step.
        final: decay at the end; it may be the larger one.
    """
    return final + (start - final) * _half_cosine(step / total_steps)


def _half_cosine(progress: float) -> float:
    """Return 1 at 0, falling to 0 at 1."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))
