"""Top-1 accuracy and cross-entropy of a classifier.

Letters: B batch, K classes.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["evaluate", "evaluating"]


def evaluate(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], *, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Return top-1 accuracy and mean cross-entropy over all images that a loader yields.

    Every image counts once, however the batches are cut. In a distributed run the figures are those of this
    process's own loader.

    Args:
        model: Images (B, ...) -> logits (B, K), already on `device`. It runs in evaluation mode; afterwards
            every module is in the mode that it was in.
        loader: Batches (images (B, ...), labels (B,) int64 in 0..K-1).
        device: Where to put the batches.

    Returns:
        "top1": fraction 0..1 of the images whose largest logit is their label's; "loss": mean cross-entropy
        in nats; "count": number of images.

    Raises:
        ValueError: The loader yields nothing, or a batch's logits are not (B, K).
    """
    correct: list[Tensor] = []
    losses: list[Tensor] = []
    with evaluating(model):
        for images, labels in loader:
            targets = labels.to(device, non_blocking=True)
            logits = model(images.to(device, non_blocking=True))  # (B, K)
            if logits.ndim != 2 or logits.shape[0] != targets.shape[0]:
                raise ValueError(
                    f"expected logits ({targets.shape[0]}, classes) for {targets.shape[0]} labels, "
                    f"got {tuple(logits.shape)}"
                )
            # Kept on the device, summed at the end: no wait for the device within the loop.
            correct.append(logits.argmax(dim=1) == targets)
            losses.append(F.cross_entropy(logits.float(), targets, reduction="none"))
    count = sum(len(batch) for batch in correct)
    if count == 0:
        raise ValueError("the loader yielded no images to evaluate")
    loss = torch.cat(losses).cpu().double().mean().item()
    return {"top1": int(torch.cat(correct).sum()) / count, "loss": loss, "count": count}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation and inference mode; give back each module's own mode at the end."""
    # Module by module: `model.train()` would also wake the parts that their owner froze in evaluation mode.
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
