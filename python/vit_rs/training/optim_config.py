"""How a run's weights are changed: the optimizer and its schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vit_rs.training.checks import above, at_least, within

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OptimConfig"]


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedules. Biases, norms, class token and position embedding are not decayed."""

    # adamw: decoupled decay, arXiv 1711.05101. sgd: with momentum, the decay added to the gradient. lars: SGD whose
    # step is scaled for each matrix, arXiv 1708.03888, for linear probes with very large batches.
    name: Literal["adamw", "sgd", "lars"] = "adamw"
    # Highest learning rate, reached at the end of the warm-up.
    lr: float = 1e-3
    # Batch size that lr and final_lr are meant for: rates are times batch_size / lr_batch; none takes them as they are.
    lr_batch: int | None = None
    # Weight decay. adamw: a step multiplies the weights by 1 - learning rate * weight_decay.
    weight_decay: float = 0.05
    # Weight decay at the end of the stage, reached along half a cosine (DINO); none keeps it constant.
    final_weight_decay: float | None = None
    # adamw: decay of the gradient's and the squared gradient's running means.
    betas: tuple[float, float] = (0.9, 0.999)
    # adamw: added to the denominator of the update.
    eps: float = 1e-8
    # sgd and lars.
    momentum: float = 0.9
    # Layer-wise decay: the learning rate of block l of L is multiplied by layer_decay ** (L + 1 - l), l = 0 being the
    # patch and position embeddings, L + 1 the head; none gives all layers one rate. As in BEiT and MAE.
    layer_decay: float | None = None
    # Gradients are scaled down to this global norm; None leaves them as they are.
    clip_norm: float | None = 1.0
    # What follows the linear warm-up: a fall to final_lr along half a cosine or a line, a tenfold fall after 30, 60 and
    # 90 % of the steps (BiT-HyperRule), or no fall.
    schedule: Literal["cosine", "linear", "staircase", "constant"] = "cosine"
    # Length of the warm-up, in epochs (fractions are allowed), or, where it is given, in steps.
    warmup_epochs: float = 5.0
    warmup_steps: int | None = None
    # Learning rate at the end of a cosine or linear fall.
    final_lr: float = 0.0
    # Decay a step of the weights' moving average, which is then what is evaluated and saved; None keeps none.
    ema_decay: float | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) for every value that cannot be used."""
        yield from above(self, "lr", 0.0)
        yield from at_least(self, "lr_batch", 1)
        yield from at_least(self, "weight_decay", 0.0)
        yield from at_least(self, "final_weight_decay", 0.0)
        if not all(0 <= beta < 1 for beta in self.betas):
            yield "betas", f"expected two values in [0, 1), got {self.betas}"
        yield from above(self, "eps", 0.0)
        yield from within(self, "momentum", 0.0, 1.0, open_high=True)
        yield from within(self, "layer_decay", 0.0, 1.0, open_low=True)
        yield from above(self, "clip_norm", 0.0)
        yield from at_least(self, "warmup_epochs", 0.0)
        yield from at_least(self, "warmup_steps", 0)
        if not 0 <= self.final_lr <= self.lr:
            yield "final_lr", f"expected a value from 0 to lr = {self.lr:g}, got {self.final_lr:g}"
        yield from within(self, "ema_decay", 0.0, 1.0, open_low=True, open_high=True)
