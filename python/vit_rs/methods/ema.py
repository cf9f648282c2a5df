"""Moving average of the weights (Polyak averaging), used for evaluation instead of the last weights.

Source: arXiv 2010.11929, section 4.1 (Polyak and Juditsky's averaging, 0.9999); the decay's warm-up as in
TensorFlow's ExponentialMovingAverage(num_updates).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, cast

import torch
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EMA"]

Model = TypeVar("Model", bound=torch.nn.Module)


class EMA(Generic[Model]):
    """Average of a model's parameters: average = d * average + (1 - d) * parameters after each step.

    Early on d is (1 + n) / (10 + n) where that is smaller than the decay asked for, n being the number of
    updates: the random first weights are forgotten within a few steps. Buffers are copied, not averaged.

    Args:
        model: the model; its copy is the average, in the same place and precision.
        decay: d in (0, 1); 0.999 averages over about 1,000 steps.
    """

    def __init__(self, model: Model, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}")
        self.decay = decay
        self.updates = 0
        self._average = AveragedModel(model, multi_avg_fn=self._blend)
        self._average.requires_grad_(requires_grad=False)
        self._average.eval()

    @property
    def model(self) -> Model:
        """The averaged model, in evaluation mode."""
        return cast("Model", self._average.module)

    def update(self, model: Model) -> None:
        """Move the average towards the model's parameters of now."""
        if self.updates == 0:
            # AveragedModel copies at its first update; ours blends from the first on.
            self._average.n_averaged.fill_(1)
        self.updates += 1
        self._average.update_parameters(model)

    def state_dict(self) -> dict[str, object]:
        """Return the averaged weights and the number of updates."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore what `state_dict` returned."""
        weights, updates = state["model"], state["updates"]
        if not isinstance(weights, dict) or not isinstance(updates, int):
            raise TypeError(f"expected weights and a number, got {type(weights)} and {type(updates)}")
        self.model.load_state_dict(weights)
        self.resume(updates)

    def resume(self, updates: int) -> None:
        """Go on as after so many updates, whose average is in the model already."""
        self.updates = updates
        self._average.n_averaged.fill_(max(1, updates))

    def _blend(self, average: Sequence[torch.Tensor], current: Sequence[torch.Tensor], _count: object) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(average), list(current), 1.0 - decay)
