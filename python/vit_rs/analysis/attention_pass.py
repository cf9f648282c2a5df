"""One pass of images through a model, and all that is kept of its attention.

Letters: L layers, H heads, T tokens (P prefix tokens, then N patches, gh x gw of them), C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vit_rs.analysis.attention import TokenGrid, each_attention, num_heads, output_attention, rollout_step, token_grid
from vit_rs.analysis.distance import both_distances, grid_distances
from vit_rs.analysis.images import spread
from vit_rs.analysis.report import pack_attention
from vit_rs.data import ImageLoader
from vit_rs.data.splits import common_side
from vit_rs.evaluation.classify import autocasting
from vit_rs.exceptions import CheckpointError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from vit_rs.analysis.images import ImageSet
    from vit_rs.evaluation import Subject
    from vit_rs.evaluation.classify import Precision

__all__ = ["AttentionSummary", "ShownImage", "summarize_attention"]

# The weights of one layer for one batch, in bytes: what default batches are chosen for. They exist three times.
_BATCH_BYTES = 48_000_000
_MOST_IMAGES = 32
# What the page may hold of attention before it is compressed, and how many layers are worth leaving an image out for.
_PAGE_BYTES = 72_000_000
_LEAST_LAYERS = 6


@dataclass(frozen=True)
class ShownImage:
    """An image, and where the model looks in it.

    Attributes:
        name: for people.
        pixels: (C, height, width) u8, as the model saw it.
        maps: (L, H, gh, gw) float32: of `output_attention`, how the token that the output is read from looks.
        rollout: (gh, gw) float32.
        packed: of each layer of `AttentionSummary.page_layers`, its weights as of `pack_attention`; empty where the
            page would be too large.
    """

    name: str
    pixels: NDArray[np.uint8]
    maps: NDArray[np.float32]
    rollout: NDArray[np.float32]
    packed: tuple[bytes, ...]


@dataclass(frozen=True)
class AttentionSummary:
    """What a model's attention does over a set of images.

    Attributes:
        tokens: where its tokens stand.
        count: images.
        distances: (L, H) float64: mean attention distance, pixels, by the paper's definition.
        deviations: (L, H): its standard deviation over the images (of n - 1 degrees; nan for one image).
        renormalized: (L, H): the mean distance where each query's weights on patches are divided by their sum.
        prefix_share: (L, H): the share of a patch's weight that goes to prefix tokens.
        shown: some of the images, evenly spread, with their maps.
        page_layers: numbers from 0 of the layers that the shown images' `packed` hold.
        failures: why images could not be read.
    """

    tokens: TokenGrid
    count: int
    distances: NDArray[np.float64]
    deviations: NDArray[np.float64]
    renormalized: NDArray[np.float64]
    prefix_share: NDArray[np.float64]
    shown: tuple[ShownImage, ...]
    page_layers: tuple[int, ...]
    failures: tuple[str, ...]


def summarize_attention(
    subject: Subject,
    images: ImageSet,
    *,
    shown: int = 4,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> AttentionSummary:
    """Run images through a model and return what its attention does.

    Args:
        subject: the model. It is moved to `device`.
        images: the images; those that cannot be read are left out, and listed.
        shown: of so many images, evenly spread, all is kept.
        batch_size: images at once; None chooses by the size of the attention.
        device: where the model runs.
        precision: "bfloat16" runs it under autocast; the softmax is computed in float32 in any case.
        num_threads: of the image loader; None is one for each core.
        progress: called with (images done, images).

    Raises:
        CheckpointError: a weight of attention is not a finite number.
        DatasetError: no image can be read, or the model takes images of other channels.
        AttentionError, ValueError: as in `vit_rs.analysis.each_attention` and `token_grid`.
    """
    transform = subject.transform(images.channels, common_side(images.source))
    model = subject.model.to(device)
    tokens = token_grid(model, subject.preprocessing.img_size)
    found = _Collected(subject, tokens, total=len(images.names), shown=shown)
    with ImageLoader(
        images.source,
        transform,
        batch_size=min(batch_size or found.batch_size, len(images.names)),
        num_threads=num_threads,
        device=device,
        on_error="skip",
        return_index=True,
        rank=0,
        world_size=1,
    ) as loader:
        done = 0
        for batch, _, indices in loader:
            if len(batch):
                with autocasting(device, precision):
                    found.add(batch[:, : subject.channels], indices.tolist(), images.names)
            done = min(done + loader.batch_size, len(images.names))
            if progress is not None:
                progress(done, len(images.names))
        failures = tuple(loader.stats().failures)
    if not found.count:
        raise DatasetError(f"none of {len(images.names)} images can be read; the first: {failures[0]}")
    return found.summary(failures)


class _Collected:
    """What is kept while batches come."""

    def __init__(self, subject: Subject, tokens: TokenGrid, *, total: int, shown: int) -> None:
        self.subject, self.tokens = subject, tokens
        self.pairs = grid_distances(tokens.grid, tokens.token_hw)
        self.count = 0
        self.means = torch.zeros(())  # (L, 3, H) float64 on the CPU, of the images so far
        self.squares = torch.zeros(())  # the same, sums of squared deviations from these
        self.shown: list[ShownImage] = []
        self.chosen = frozenset(spread(total, shown))
        self.depth = len(subject.model.blocks)  # type: ignore[arg-type]
        self.heads = num_heads(subject.model)
        count = tokens.num_prefix_tokens + tokens.grid[0] * tokens.grid[1]
        layer_bytes = self.heads * count**2
        self.batch_size = max(1, min(_MOST_IMAGES, _BATCH_BYTES // (4 * layer_bytes)))
        self.page_images, self.page_layers = _page(self.depth, len(self.chosen), layer_bytes)

    def add(self, images: Tensor, places: Sequence[int], names: Sequence[str]) -> None:
        """Run a batch (B, C, height, width) of images by their places among all."""
        keep = [row for row, place in enumerate(places) if place in self.chosen]
        packing = keep[: max(0, self.page_images - len(self.shown))]
        figures: list[Tensor] = []
        maps: list[Tensor] = []  # of each layer (len(keep), H, gh, gw)
        packed: dict[int, list[bytes]] = {row: [] for row in keep}
        rolled: Tensor | None = None

        def visit(layer: int, weights: Tensor) -> None:
            nonlocal rolled
            figures.append(self._figures(layer, weights))
            if keep:
                maps.append(output_attention(weights[keep], self.tokens).cpu())
                rolled = rollout_step(rolled, weights[keep])
            if layer in self.page_layers:
                for row in packing:
                    packed[row].append(pack_attention(weights[row].cpu()))

        each_attention(self.subject.model, images, visit)
        self._count(torch.stack(figures))
        if rolled is None:
            return
        rollouts = output_attention(rolled, self.tokens).cpu().numpy()
        views = torch.stack(maps, dim=1).numpy()  # (len(keep), L, H, gh, gw)
        for image, (row, pixels) in enumerate(zip(keep, self._pixels(images[keep]), strict=True)):
            name = names[places[row]]
            self.shown.append(ShownImage(name, pixels, views[image], rollouts[image], tuple(packed[row])))

    def summary(self, failures: tuple[str, ...]) -> AttentionSummary:
        distances, renormalized, share = self.means.unbind(1)
        variances = self.squares[:, 0] / (self.count - 1) if self.count > 1 else torch.full_like(distances, torch.nan)
        return AttentionSummary(
            tokens=self.tokens,
            count=self.count,
            distances=distances.numpy(),
            deviations=variances.sqrt().numpy(),
            renormalized=renormalized.numpy(),
            prefix_share=share.numpy(),
            shown=tuple(self.shown),
            page_layers=self.page_layers,
            failures=failures,
        )

    def _count(self, figures: Tensor) -> None:
        """Add a batch's figures (L, 3, B, H) to the means and squares, which so do not grow with the images."""
        images = figures.shape[2]
        means = figures.mean(dim=2)
        squares = (figures - means.unsqueeze(2)).square().sum(dim=2)
        apart = means - self.means
        total = self.count + images
        self.means = self.means + apart * (images / total)
        self.squares = self.squares + squares + apart.square() * (self.count * images / total)
        self.count = total

    def _figures(self, layer: int, weights: Tensor) -> Tensor:
        """Return (3, B, H) float64 on the CPU: distance, renormalised distance, share of the prefix."""
        prefix = self.tokens.num_prefix_tokens
        both = both_distances(weights, self.pairs.to(weights), prefix)
        share = weights[..., prefix:, :prefix].sum(dim=-1).mean(dim=-1)
        figures = torch.stack((*both, share)).double().cpu()
        if not figures.isfinite().all():
            raise CheckpointError(f"{self.subject.path}: attention weights of layer {layer + 1} are not finite numbers")
        return figures

    def _pixels(self, images: Tensor) -> NDArray[np.uint8]:
        """Return u8 pixels (B, C, height, width) of what the model gets."""
        preprocessing = self.subject.preprocessing
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        pixels = images.float().cpu() * std + mean
        return (pixels * 255.0).round().clamp(0, 255).to(torch.uint8).numpy()


def _page(depth: int, images: int, layer_bytes: int) -> tuple[int, tuple[int, ...]]:
    """Return how many images, and which layers, the page holds: all, or what fits."""
    while images > 1 and images * layer_bytes * min(depth, _LEAST_LAYERS) > _PAGE_BYTES:
        images -= 1
    count = depth if images == 0 else max(1, min(depth, _PAGE_BYTES // (images * layer_bytes)))
    if count == 1:
        return images, (depth - 1,)
    return images, tuple(place * (depth - 1) // (count - 1) for place in range(count))
