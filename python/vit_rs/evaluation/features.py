"""The frozen features of a model, for probes that never touch its weights.

Letters: B batch, N images, D width, F features of an image.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from vit_rs.evaluation.classify import autocasting, evaluating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vit_rs.evaluation.classify import Precision

__all__ = ["ClassTokens", "What", "check_what", "extract_features", "gives_tokens"]


@dataclass(frozen=True)
class ClassTokens:
    """Features that are the class tokens of a ViT's last blocks, and the average of its patch tokens.

    All have passed the final norm. Of each image: the class token after block L - blocks, ..., after the last block L,
    (D,) each; then, with `average`, the mean of the last block's patch tokens (D,). So the features of fewer blocks are
    a slice: those of the last one are `[..., (blocks - 1) * D : blocks * D]`.

    Attributes:
        blocks: how many of the last blocks, at least 0.
        average: whether the mean of the patch tokens follows.

    Source: DINOv2 (arXiv 2304.07193), `create_linear_input` of dinov2/eval/linear.py.
    """

    blocks: int = 1
    average: bool = False

    def __post_init__(self) -> None:
        if self.blocks < 0 or (self.blocks == 0 and not self.average):
            raise ValueError(
                f"expected features of at least one kind, got blocks={self.blocks}, average={self.average}"
            )


# "pre_logits": what the model's own head gets.
What = Literal["pre_logits"] | ClassTokens


class _Backbone(Protocol):
    num_prefix_tokens: int

    def forward_features(self, x: Tensor) -> Tensor: ...

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor: ...

    def get_intermediate_layers(
        self, x: Tensor, n: int, *, return_prefix_tokens: Literal[True], norm: bool
    ) -> list[tuple[Tensor, Tensor] | Tensor]: ...

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int,
        *,
        return_prefix_tokens: bool,
        norm: bool,
        output_fmt: Literal["NLC"],
        intermediates_only: Literal[True],
    ) -> list[tuple[Tensor, Tensor] | Tensor]: ...


def extract_features(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    device: str | torch.device = "cpu",
    what: What = "pre_logits",
    precision: Precision = "float32",
    count: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the features of every image that a loader yields, and its label.

    Args:
        model: A model with `forward_features` and `forward_head(..., pre_logits=True)` (ours, or timm's),
            already on `device`. It runs in evaluation mode; afterwards every module is in the mode that it
            was in. For `ClassTokens` a ViT with a class token.
        loader: Batches (images (B, ...), labels (B,)). For a probe: without shuffling or augmentation.
        device: Where to put the batches.
        what: "pre_logits", or which tokens.
        precision: "bfloat16" runs the model under autocast.
        count: How many images will come; the features then lie in one piece of memory from the start.
        progress: Called with the number of images done after each batch.

    Returns:
        Features (N, F) float32 and labels (N,) int64, on the CPU, in the loader's order.

    Raises:
        ValueError: The loader yields nothing, or another number of images than `count`; or the model has fewer blocks.
        TypeError: The model has no such features.
    """
    check_what(model, what)
    features: Tensor | None = None
    pieces: list[Tensor] = []
    targets: list[Tensor] = []
    done = 0
    with evaluating(model), autocasting(device, precision):
        for images, labels in loader:
            batch = _features(cast("_Backbone", model), images.to(device, non_blocking=True), what)  # (B, F)
            start, done = done, done + len(labels)
            targets.append(labels.cpu())
            if count is None:
                pieces.append(batch.float().cpu())
            else:
                if features is None:
                    # An ordinary tensor, which autograd accepts, in place of an inference one: probes train on it.
                    with torch.inference_mode(mode=False):
                        features = torch.empty(count, batch.shape[1], dtype=torch.float32)
                if done <= count:
                    features[start:done] = batch
            if progress is not None:
                progress(done)
    if not done:
        raise ValueError("the loader yielded no images to take features from")
    if count is not None and done != count:
        raise ValueError(f"the loader yielded {done} images, expected {count}")
    # Joined outside of inference mode: ordinary tensors too.
    return torch.cat(pieces) if features is None else features, torch.cat(targets).long()


def check_what(model: nn.Module, what: What) -> None:
    """Raise where a model does not have the features.

    Raises:
        TypeError: The model has no methods or no tokens to take them from, or `what` is neither.
        ValueError: It has fewer blocks.
    """
    name = type(model).__name__
    if isinstance(what, ClassTokens):
        if not gives_tokens(model):
            raise TypeError(f"{name} has no get_intermediate_layers to take tokens from")
        depth = len(cast("nn.ModuleList", model.blocks))
        if what.blocks > depth:
            raise ValueError(f"expected features of at most {depth} blocks (the model's), got {what.blocks}")
        if what.blocks and getattr(model, "cls_token", None) is None:
            raise TypeError(f"this {name} has no class token: take what='pre_logits', or the average alone")
    elif what != "pre_logits":
        raise TypeError(f"what must be 'pre_logits' or ClassTokens(...), got {what!r}")
    elif not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        raise TypeError(f"{name} has no forward_features and forward_head to take features from")


def gives_tokens(model: nn.Module) -> bool:
    """Return whether a model tells its blocks' patch tokens from those before them: our ViTs, timm's, EVA and BEiT."""
    if not hasattr(model, "blocks"):  # a classifier around an encoder, as timm's Qwen3VitClassifier
        return False
    if hasattr(model, "get_intermediate_layers"):
        return True
    forward = getattr(model, "forward_intermediates", None)
    return callable(forward) and "return_prefix_tokens" in inspect.signature(forward).parameters


def _features(model: _Backbone, images: Tensor, what: What) -> Tensor:
    """Return (B, F) of images (B, C, H, W)."""
    if not isinstance(what, ClassTokens):
        return model.forward_head(model.forward_features(images), pre_logits=True)
    found = _last_blocks(model, images, max(1, what.blocks))
    # The class token is the first of those before the patches.
    tokens = [prefix[:, 0] for _, prefix in found if prefix is not None] if what.blocks else []  # (B, D) each
    if what.average:
        tokens.append(found[-1][0].mean(dim=1))
    return torch.cat(tokens, dim=1)


def _last_blocks(model: _Backbone, images: Tensor, count: int) -> list[tuple[Tensor, Tensor | None]]:
    """Return normed patch tokens (B, N, D) after each of the last blocks, and the tokens before them (B, P, D)."""
    if hasattr(model, "get_intermediate_layers"):
        found = model.get_intermediate_layers(images, count, return_prefix_tokens=True, norm=True)
    else:
        found = model.forward_intermediates(
            images,
            count,
            return_prefix_tokens=model.num_prefix_tokens > 0,  # timm's VisionTransformerRelPos fails to return none
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
    # timm gives the patch tokens alone where no token stands before them.
    return [(entry, None) if isinstance(entry, Tensor) else entry for entry in found]
