"""LARS: layer-wise adaptive rate scaling, the optimizer of MAE's linear probe and of very large batches.

Source: arXiv 1708.03888, algorithm 1. As in `torch.optim.SGD` the learning rate multiplies the momentum
buffer, while the paper accumulates it inside: the two are equal as long as the rate stays the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, overload

import torch
from torch.optim import Optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.optim.optimizer import ParamsT

__all__ = ["LARS"]


class LARS(Optimizer):
    """Momentum SGD whose step in each weight matrix is in proportion to the matrix's norm.

    Per parameter w with gradient g:
        update = ratio * (g + weight_decay * w)
        buffer = momentum * buffer + update;  w = w - lr * buffer
    where ratio is trust_coefficient * |w| / (|g| + weight_decay * |w|) for parameters of two and more
    dimensions, and 1 for vectors and scalars (biases, norms), as in MAE's linear protocol, and where it
    would be 0 or not finite (|w| is 0, or |g| is without decay). Which parameters decay is the groups'
    matter: a group may have each of the arguments as its own. `step` reads nothing back from the device.

    Args:
        params: Parameters, or groups of them as torch.optim takes them.
        lr: Learning rate, at least 0.
        momentum: 0 <= momentum < 1.
        weight_decay: At least 0.
        trust_coefficient: Over 0; 0.001 in the paper.

    Raises:
        ValueError: A number is out of its range, also one of a group.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; arguments that it lacks are the optimizer's own."""
        settings = {**self.defaults, **param_group}
        for name in ("lr", "weight_decay"):
            if not 0.0 <= settings[name] < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {settings[name]}")
        if not 0.0 <= settings["momentum"] < 1.0:
            raise ValueError(f"momentum must be at least 0 and under 1, got {settings['momentum']}")
        if not 0.0 < settings["trust_coefficient"] < math.inf:
            raise ValueError(f"trust_coefficient must be finite and over 0, got {settings['trust_coefficient']}")
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step along the gradients of now; parameters without one are left as they are.

        Args:
            closure: Evaluates the model again and returns the loss, as everywhere in torch.optim.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step_group(group, parameters)
        return loss

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p, gradient in zip(parameters, gradients, strict=True):
            if gradient.is_sparse:
                raise ValueError(f"LARS takes dense gradients, got a sparse one of shape {tuple(p.shape)}")
        # One list of new tensors: the gradients stay as the backward pass left them.
        if group["weight_decay"] == 0.0:
            updates = [gradient.clone() for gradient in gradients]
        else:
            updates = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        scaled = [place for place, p in enumerate(parameters) if p.ndim > 1]
        if scaled:
            ratios = _trust_ratios([parameters[i] for i in scaled], [gradients[i] for i in scaled], group)
            torch._foreach_mul_([updates[i] for i in scaled], ratios)
        if group["momentum"] != 0.0:
            updates = self._accumulate(parameters, updates, group["momentum"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _accumulate(self, parameters: list[Tensor], updates: list[Tensor], momentum: float) -> list[Tensor]:
        """Return the momentum buffers after this step."""
        buffers = []
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(self.state[p]["momentum_buffer"])
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, updates)
        return buffers


def _trust_ratios(weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Return a scalar tensor for each weight."""
    weight_norms = torch._foreach_norm(weights)
    divisors = torch._foreach_add(
        torch._foreach_norm(gradients), torch._foreach_mul(weight_norms, group["weight_decay"])
    )
    ratios = torch._foreach_div(torch._foreach_mul(weight_norms, group["trust_coefficient"]), divisors)
    # 0 where the weight is 0, infinite or not a number where the gradient is: such a step is plain SGD's.
    return [torch.where((ratio > 0) & torch.isfinite(ratio), ratio, 1.0) for ratio in ratios]
