"""Where a ViT's heads look: their attention weights, got from any model that calls torch's fused attention.

A model is watched, not changed: while it runs, each call of `F.scaled_dot_product_attention` inside one of its blocks
is seen, softmax(q k^T) is computed a second time, in float32, and given to a function. Only one layer's weights exist
at a time, so memory does not grow with depth.

Letters: B images, L layers, H heads, T tokens (P prefix tokens, then N patches, gh x gw of them), d = D/H.
"""

from __future__ import annotations

import contextlib
import operator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vit_rs.evaluation.classify import evaluating
from vit_rs.exceptions import AttentionError
from vit_rs.models import VisionTransformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Self

__all__ = [
    "TokenGrid",
    "attention_maps",
    "attention_rollout",
    "attention_weights",
    "each_attention",
    "num_heads",
    "output_attention",
    "rollout",
    "rollout_step",
    "token_grid",
]


class TokenGrid(NamedTuple):
    """Where a model's tokens stand in the image.

    Attributes:
        grid: patches, (rows, columns).
        token_hw: pixels of the image for each patch token, (height, width).
        num_prefix_tokens: tokens before the patches'.
        reads_class_token: whether the model's output is read from the first of those; otherwise from the patches.
    """

    grid: tuple[int, int]
    token_hw: tuple[float, float]
    num_prefix_tokens: int
    reads_class_token: bool


def token_grid(model: nn.Module, image_hw: tuple[int, int]) -> TokenGrid:
    """Return where a model's tokens stand in images of a size.

    Args:
        model: a ViT or hybrid of `vit_rs.models`, or a model of timm with `blocks` and `patch_embed`.
        image_hw: the images' (height, width) in pixels.

    Raises:
        AttentionError: the model has no blocks, or no grid of patches.
        ValueError: it does not take images of that size.
    """
    _blocks(model)
    size = "x".join(map(str, image_hw))
    if isinstance(model, VisionTransformer):
        config = model.config
        token_h, token_w = config.token_hw
        if tuple(image_hw) == config.image_hw:
            grid = config.grid_size
        elif config.dynamic_img_size and not (image_hw[0] % token_h or image_hw[1] % token_w):
            grid = (image_hw[0] // token_h, image_hw[1] // token_w)
        else:
            raise ValueError(f"the model takes images of {config.image_hw[0]}x{config.image_hw[1]}, got {size}")
        return TokenGrid(grid, (token_h, token_w), config.num_prefix_tokens, config.global_pool == "token")
    embed: Any = getattr(model, "patch_embed", None)
    found = getattr(embed, "grid_size", None)
    prefix = getattr(model, "num_prefix_tokens", None)
    if found is None or prefix is None:
        raise AttentionError(
            f"{type(model).__name__} has no patch_embed.grid_size and num_prefix_tokens: no ViT of one grid"
        )
    grid = found
    if tuple(image_hw) != tuple(embed.img_size):
        if not getattr(embed, "dynamic_img_pad", False) and getattr(model, "dynamic_img_size", False):
            grid = embed.dynamic_feat_size(image_hw)
        else:
            raise ValueError(f"the model takes images of {embed.img_size[0]}x{embed.img_size[1]}, got {size}")
    gh, gw = int(grid[0]), int(grid[1])
    # A patch does not always divide the image: what is left at the right and below is not looked at. Of a hybrid,
    # which rounds up, the mean.
    patch_hw = None if hasattr(embed, "backbone") else getattr(embed, "patch_size", None)
    token_h, token_w = patch_hw if isinstance(patch_hw, tuple) else (image_hw[0] / gh, image_hw[1] / gw)
    reads = getattr(model, "global_pool", "token") == "token" and prefix > 0
    return TokenGrid((gh, gw), (token_h, token_w), int(prefix), reads)


def num_heads(model: nn.Module) -> int:
    """Return the heads of a model's first block.

    Raises:
        AttentionError: the model has no blocks, or their attention does not say it.
    """
    for module in _blocks(model)[0].modules():
        heads = getattr(module, "num_heads", None)
        if isinstance(heads, int):
            return heads
    raise AttentionError(f"{type(model).__name__} has no attention with num_heads")


def attention_weights(q: Tensor, k: Tensor, *, scale: float | None = None, bias: Tensor | None = None) -> Tensor:
    """Return softmax(scale q k^T + bias), the weights that `F.scaled_dot_product_attention` uses and does not give.

    Args:
        q: queries, (B, H, T, d), floating point.
        k: keys, (B, H, S, d).
        scale: None is d^-0.5.
        bias: what is added to the scaled products, or for bool False where a key is hidden; it broadcasts to
            (B, H, T, S). `F.scaled_dot_product_attention` calls it attn_mask.

    Returns:
        (B, H, T, S), float32 (float64 for float64 queries); rows sum to 1.

    Source: arXiv 2010.11929, equation 6.
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(q.device.type, enabled=False):  # which would multiply in bfloat16
        logits = (q.to(dtype) * scale) @ k.to(dtype).transpose(-2, -1)
        if bias is not None and bias.dtype == torch.bool:
            logits = logits.masked_fill(bias.logical_not(), -torch.inf)
        elif bias is not None:
            logits = logits + bias.to(dtype)
        return logits.softmax(dim=-1)


def each_attention(
    model: nn.Module,
    images: Tensor,
    visit: Callable[[int, Tensor], object],
    *,
    layers: Sequence[int] | None = None,
) -> Tensor:
    """Run a model, and give the attention weights of each layer to a function, one layer after the other.

    Args:
        model: a model whose `blocks` call `F.scaled_dot_product_attention` once each: ours, timm's ViTs. It runs in
            evaluation mode, without gradients; afterwards every module is in the mode that it was in.
        images: what the model takes, (B, C, height, width), on its device.
        visit: called with a layer's number from 0 and its weights (B, H, T, T), as of `attention_weights`. They are
            dropped afterwards; a copy may be kept.
        layers: which layers are asked for, in any order; -1 is the last. None is all.

    Returns:
        The model's output.

    Raises:
        AttentionError: the model has no blocks or does not run them in their order, or a block does not call the
            attention once with one query for each key.
        ValueError: a layer does not exist.
    """
    blocks = _blocks(model)
    wanted = _layers(layers, len(blocks))
    # Not in inference mode: what is given is kept by some, and autograd shall accept it.
    ordinary = torch.inference_mode(mode=False)
    with evaluating(model), ordinary, torch.no_grad(), _fused(blocks), _Watching(blocks, wanted, visit) as watching:
        output = cast("Tensor", model(images))
    if watching.ran != [*range(len(blocks))]:  # a rollout would be of another model
        raise AttentionError(f"blocks ran in the order {watching.ran}, expected each of {len(blocks)} once, in order")
    return output


def attention_maps(model: nn.Module, images: Tensor, *, layers: Sequence[int] | None = None) -> Tensor:
    """Return the attention weights of a model's layers, all at once.

    Of many layers, images or tokens that is much: 22 MB for an image of ViT-B/16 at 224 pixels. `each_attention` holds
    one layer at a time.

    Args:
        model: as in `each_attention`.
        images: (B, C, height, width).
        layers: which ones, -1 is the last; None is all.

    Returns:
        (B, L, H, T, T) float32, layers in the order of `layers`: element [b, l, h, q, k] is the weight with which
        query token q takes key token k. Prefix tokens come first: `maps[:, :, :, 0, P:]` is the class token's view.

    Raises:
        AttentionError: as in `each_attention`.
        ValueError: a layer does not exist, or none is asked for.
    """
    order = _layers(layers, len(_blocks(model)))
    if not order:
        raise ValueError("no layer is asked for")
    found: dict[int, Tensor] = {}
    each_attention(model, images, lambda layer, weights: found.update({layer: weights}), layers=order)
    return torch.stack([found[layer] for layer in order], dim=1)


def rollout_step(before: Tensor | None, weights: Tensor) -> Tensor:
    """Return the rollout (B, T, T) up to a layer, from that up to the layer before (None for the first).

    The heads' mean, (A + I) with its rows divided by their sums, times what was before.

    Args:
        before: (B, T, T), or None.
        weights: the layer's weights, (B, H, T, T).
    """
    mixed = weights.mean(dim=1) + torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    mixed = mixed / mixed.sum(dim=-1, keepdim=True)
    return mixed if before is None else mixed @ before


def rollout(weights: Iterable[Tensor]) -> Tensor:
    """Return the attention rollout: how much of each input token is in each output token, were attention all.

    Args:
        weights: of each layer, the first one first, (B, H, T, T); rows sum to 1. It may be a generator.

    Returns:
        (B, T, T); rows sum to 1.

    Raises:
        ValueError: there is no layer.

    Source: arXiv 2005.00928, section 3 (A/2 + I/2 at each layer, for the residual); arXiv 2010.11929, appendix D.8
    (heads averaged).
    """
    rolled: Tensor | None = None
    for layer in weights:
        rolled = rollout_step(rolled, layer)
    if rolled is None:
        raise ValueError("no layer to roll out")
    return rolled


def attention_rollout(model: nn.Module, images: Tensor) -> Tensor:
    """Return the attention rollout from a model's output back to the patches (arXiv 2010.11929, figure 6).

    Args:
        model: as in `each_attention`.
        images: (B, C, height, width).

    Returns:
        (B, gh, gw) float32: shares of the patches in the token that the output is read from; what the prefix tokens
        have is missing from the sum of 1. For a model that averages its patches, the mean of their rows.

    Raises:
        AttentionError: as in `each_attention`, or the model has no grid of patches.
        ValueError: it does not take images of that size.
    """
    tokens = token_grid(model, (images.shape[-2], images.shape[-1]))
    rolled: Tensor | None = None

    def roll(_: int, weights: Tensor) -> None:
        nonlocal rolled
        rolled = rollout_step(rolled, weights)

    each_attention(model, images, roll)
    assert rolled is not None  # noqa: S101  (a model has at least one block)
    return output_attention(rolled, tokens)


def output_attention(weights: Tensor, tokens: TokenGrid) -> Tensor:
    """Return how the token that a model's output is read from looks at the patches.

    Args:
        weights: (..., T, T).
        tokens: of `token_grid`.

    Returns:
        (..., gh, gw): the class token's row, or, for a model that reads the patches, the mean of the patches' rows.

    Raises:
        ValueError: T is another number than the tokens'.
    """
    prefix, (gh, gw) = tokens.num_prefix_tokens, tokens.grid
    if weights.ndim < 2 or weights.shape[-2:] != (prefix + gh * gw, prefix + gh * gw):
        raise ValueError(f"expected weights of {prefix} + {gh}*{gw} tokens, got {tuple(weights.shape)}")
    rows = weights[..., 0, prefix:] if tokens.reads_class_token else weights[..., prefix:, prefix:].mean(dim=-2)
    return rows.reshape(*rows.shape[:-1], gh, gw)


class _Watching(TorchFunctionMode):
    """While it is entered, gives the weights of each attention inside the blocks to a function."""

    def __init__(
        self, blocks: Sequence[nn.Module], wanted: Sequence[int], visit: Callable[[int, Tensor], object]
    ) -> None:
        super().__init__()
        self.blocks, self.wanted, self.visit = blocks, frozenset(wanted), visit
        self.inside: int | None = None
        self.calls = 0
        self.ran: list[int] = []
        self.hooks = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for layer, block in enumerate(self.blocks):
            self.hooks.callback(block.register_forward_pre_hook(self._entering(layer)).remove)
            self.hooks.callback(block.register_forward_hook(self._leaving).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        try:
            super().__exit__(*error)  # type: ignore[no-untyped-call]
        finally:
            self.hooks.close()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and self.inside is not None:
            self.calls += 1
            if self.inside in self.wanted:
                weights = self._weights(*args, **(kwargs or {}))
                with torch.autocast(weights.device.type, enabled=False):  # what is computed from them is exact too
                    self.visit(self.inside, weights)
        return func(*args, **(kwargs or {}))

    def _entering(self, layer: int) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self.inside, self.calls = layer, 0
            self.ran.append(layer)

        return enter

    def _leaving(self, *_: Any) -> None:
        if self.calls != 1:
            raise AttentionError(
                f"block {self.inside} called F.scaled_dot_product_attention {self.calls} times, expected once: its "
                "attention cannot be watched"
            )
        self.inside = None

    def _weights(  # noqa: PLR0917  (torch's order)
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,  # noqa: ARG002  (torch's names)
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # noqa: ARG002
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if query.ndim != 4 or query.shape[-2] != key.shape[-2] or is_causal or enable_gqa:
            raise AttentionError(
                f"block {self.inside}: expected attention of all tokens to all, got queries {tuple(query.shape)}, keys "
                f"{tuple(key.shape)}, is_causal={is_causal}, enable_gqa={enable_gqa}"
            )
        return attention_weights(query, key, scale=scale, bias=attn_mask)


def _blocks(model: nn.Module) -> list[nn.Module]:
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or not len(blocks):
        raise AttentionError(f"{type(model).__name__} has no list of Transformer blocks, all on one grid of tokens")
    return list(blocks)


def _layers(layers: Sequence[int] | None, depth: int) -> list[int]:
    if layers is None:
        return list(range(depth))
    asked = [operator.index(layer) for layer in layers]
    outside = [layer for layer in asked if not -depth <= layer < depth]
    if outside:
        raise ValueError(f"layers {outside} do not exist: the model has {depth}, numbered from 0")
    return [layer % depth for layer in asked]


@contextlib.contextmanager
def _fused(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Have timm's attention call the fused function, as it does by default."""
    slow: list[Any] = [
        module for block in blocks for module in block.modules() if getattr(module, "fused_attn", None) is False
    ]
    try:
        for module in slow:
            module.fused_attn = True
        yield
    finally:
        for module in slow:
            module.fused_attn = False
