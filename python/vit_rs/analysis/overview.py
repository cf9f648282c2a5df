"""Everything that is looked at in one model: figures, the arrays behind them, and a page that shows all of it.

Letters: L layers, H heads, N patches (gh x gw of them), C channels, K filters.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from vit_rs.analysis.attention import num_heads, token_grid
from vit_rs.analysis.attention_figures import attention_distance_figure, attention_heads_figure, rollout_figure
from vit_rs.analysis.attention_pass import summarize_attention
from vit_rs.analysis.distance import grid_distances
from vit_rs.analysis.embedding_figures import patch_filters_figure, position_similarity_figure, raw_filters_figure
from vit_rs.analysis.embeddings import (
    neighbour_similarity,
    patch_filters,
    position_note,
    position_similarity,
    position_tables,
)
from vit_rs.analysis.figures import save_figure
from vit_rs.analysis.output_folder import new_folder
from vit_rs.analysis.report import (
    Explorer,
    ExplorerImage,
    ReportFigure,
    ReportSection,
    Table,
    write_report,
)
from vit_rs.exceptions import AttentionError, CheckpointError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from torch import Tensor

    from vit_rs.analysis.attention_pass import AttentionSummary
    from vit_rs.analysis.embeddings import NeighbourSimilarity, PositionTable
    from vit_rs.analysis.images import ImageSet
    from vit_rs.evaluation import Subject
    from vit_rs.evaluation.classify import Precision

__all__ = ["MARKER", "analyze", "pixel_kernel"]

MARKER = "analysis.json"  # by which a folder is known as an earlier result

_DPI = 150


def analyze(
    subject: Subject,
    out: str | os.PathLike[str],
    *,
    images: ImageSet | None = None,
    before: Sequence[PositionTable] = (),
    filters: int = 28,
    shown: int = 4,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    num_threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Look into a model, and write a folder: report.html, figures/ (PNG and SVG), arrays/ (npz), analysis.json.

    The folder appears when all of it is there, or not at all. What the model does not have, such as attention that can
    be watched, is left out, and the page says why.

    Args:
        subject: the model.
        out: the folder.
        images: what the model looks at; None leaves out all that needs images.
        before: of `position_tables`, those of the same model at the image size of its file, where `subject` has
            another: they are shown beside the resampled ones.
        filters: principal components of the patch embedding that are drawn.
        shown: images whose attention is drawn and can be explored.
        batch_size: images at once; None chooses.
        device: where the model runs.
        precision: as in `summarize_attention`.
        num_threads: of the image loader.
        overwrite: whether a folder that an earlier analysis wrote is replaced.
        progress: called with (images done, images).

    Returns:
        What analysis.json holds.

    Raises:
        FileExistsError: `out` is a file, or a folder that is not empty and not to be replaced.
        CheckpointError: weights are not finite numbers.
        DatasetError: no image can be read, or images do not fit the model.
        ValueError: a number is out of its range.
    """
    if filters < 1 or shown < 0:
        raise ValueError(f"filters must be at least 1 and shown at least 0, got {filters} and {shown}")
    start = time.perf_counter()
    with new_folder(out, marker=MARKER, overwrite=overwrite) as folder:
        work = _Work(subject, folder, precision)
        work.filters(filters)
        work.positions(before)
        summary = None
        reason = "No images were given (--data), so attention was not looked at."
        if images is not None:
            begun = time.perf_counter()
            try:
                summary = summarize_attention(
                    subject,
                    images,
                    shown=shown,
                    batch_size=batch_size,
                    device=device,
                    precision=precision,
                    num_threads=num_threads,
                    progress=progress,
                )
            except AttentionError as error:
                reason = f"Attention was not looked at: {error}."
        if summary is None:
            work.note("Attention", reason)
            work.record["attention_note"] = reason
        else:
            work.record["attention_seconds"] = round(time.perf_counter() - begun, 3)
            work.attention(summary)
        work.finish(summary, images, start)
    return work.record


def pixel_kernel(model: nn.Module, channels: int) -> tuple[str, Tensor] | None:
    """Return name and weight (D, C, p, q) of the first kernel that reads pixels, None where the model has none.

    That of a ViT is its patch embedding E; that of a hybrid or ResNet the first convolution.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4 and parameter.shape[1] == channels and "pos_embed" not in name:
            return name, parameter.detach().float().cpu()
    return None


@dataclass
class _Work:
    """The folder while it is made: its sections, arrays and record."""

    subject: Subject
    folder: Path
    precision: Precision
    sections: list[ReportSection] = field(default_factory=list)
    similarities: list[tuple[str, NDArray[np.float32]]] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("figures", "arrays"):
            (self.folder / name).mkdir()

    def note(self, title: str, *paragraphs: str) -> None:
        self.sections.append(ReportSection(title, paragraphs))

    def filters(self, count: int) -> None:
        """Principal components of the kernels that read pixels."""
        kernel = pixel_kernel(self.subject.model, self.subject.channels)
        if kernel is None:
            model, channels = type(self.subject.model).__name__, self.subject.channels
            reason = f"{model} has no convolution that reads images of {channels} channel(s): no filters are shown."
            self.note("Patch embedding filters", reason)
            self.record["patch_filters"] = {"note": reason}
            return
        name, weight = kernel
        try:
            found = patch_filters(weight, count)
        except ValueError as error:
            raise CheckpointError(f"{self.subject.path}: {name}: {error}") from error
        self._save(
            "patch_filters",
            weight=weight,
            components=found.components,
            explained_variance_ratio=found.explained_variance_ratio,
            mean=found.mean,
        )
        embedding = name.endswith("patch_embed.proj.weight")
        total, (D, C, p, q) = float(found.explained_variance_ratio[: len(found.components)].sum()), weight.shape
        which = f"the {D} filters of {name}, each of {p}x{q} pixels and {C} channel(s)."
        what = (
            f"{len(found.components)} principal components hold {total:.1%} of the filters' variance. Each tile is "
            "scaled to its own range; grey is 0. Of a trained model they look like a basis of a patch's fine structure."
        )
        outside = "This model has no patch embedding on pixels; shown is its first convolution. It has "
        paragraphs = [f"T{which[1:]}" if embedding else outside + which, what]
        figures = []
        if C in (1, 3):
            drawn = patch_filters_figure(found.components, found.explained_variance_ratio)
            caption = "Principal components of the patch embedding's filters, and the variance that they hold"
            figures.append(self._draw("patch_filters", drawn, caption, "patch_filters"))
            caption = f"The filters themselves, in their order{', the first 256' if D > 256 else ''}"
            figures.append(self._draw("raw_filters", raw_filters_figure(weight), caption, "patch_filters"))
        else:
            paragraphs.append(f"Filters of {C} channels cannot be drawn as colours; arrays/patch_filters.npz has them.")
        self.sections.append(ReportSection("Patch embedding filters", tuple(paragraphs), tuple(figures)))
        self.record["patch_filters"] = {
            "kernel": name,
            "shape": [D, C, p, q],
            "components": len(found.components),
            "explained_variance": total,
        }

    def positions(self, before: Sequence[PositionTable]) -> None:
        """Similarity of the position embeddings."""
        note = position_note(self.subject.model)
        paragraphs = [] if note is None else [note]
        figures: list[ReportFigure] = []
        neighbours: dict[str, NeighbourSimilarity] = {}
        arrays: dict[str, Any] = {}
        own = position_tables(self.subject.model)
        for prefix, (name, table, grid, num_prefix_tokens) in [("before ", each) for each in before] + [
            ("", each) for each in own
        ]:
            try:
                maps = position_similarity(table, grid, num_prefix_tokens)
            except ValueError as error:
                raise CheckpointError(f"{self.subject.path}: {name}: {error}") from error
            if not maps.isfinite().all():
                raise CheckpointError(f"{self.subject.path}: {name} holds values that are not finite numbers")
            when = "before: " if prefix else "after: " if before else ""
            title = f"{when}{name}, {grid[0]}x{grid[1]} patches"
            key = "_".join(f"{prefix}{name}".replace("-", "_").split())
            arrays[f"{key}_table"], arrays[f"{key}_similarity"] = table, maps
            if grid[0] * grid[1] > 2:
                neighbours[title] = neighbour_similarity(maps)
            drawn, caption = position_similarity_figure(maps), f"Cosine similarity of {title}"
            figures.append(self._draw(f"position_similarity_{key}", drawn, caption, "position_similarity"))
            if not prefix:
                self.similarities.append((name, maps.reshape(grid[0] * grid[1], -1).numpy()))
        if arrays:
            self._save("position_similarity", **arrays)
            paragraphs.append(
                "Each small map stands at its patch's place, and shows the cosine similarity of that patch's "
                "position embedding with all others. Neighbours that are most similar, and rows and columns that "
                "show, mean that the model has learnt the image's two dimensions."
            )
            paragraphs += [
                f"{title}: the mean similarity of patches that share an edge is {found.neighbours:.2f}, of all others "
                f"{found.others:.2f}. Of {found.nearest:.0%} of the patches the most similar one shares an edge "
                f"({found.by_chance:.0%} by chance)."
                for title, found in neighbours.items()
            ]
        self.sections.append(ReportSection("Position embedding similarity", tuple(paragraphs), tuple(figures)))
        self.record["position_embeddings"] = {
            "note": note,
            "tables": [{"table": title, **found._asdict()} for title, found in neighbours.items()],
        }

    def attention(self, summary: AttentionSummary) -> None:
        """Distances, maps and rollouts."""
        self._distances(summary)
        if not summary.shown:
            return
        reader = "class token" if summary.tokens.reads_class_token else "mean of the patches' queries"
        names = np.array([image.name for image in summary.shown])
        pixels = np.stack([image.pixels for image in summary.shown])
        maps = np.stack([image.maps for image in summary.shown])
        rollouts = np.stack([image.rollout for image in summary.shown])
        self._save("attention_maps", names=names, images=pixels, maps=maps, rollouts=rollouts)
        drawable = self.subject.channels in (1, 3)
        figures = []
        if drawable:
            drawn = rollout_figure(pixels, rollouts)
            caption = f"Attention rollout from the {'class token' if summary.tokens.reads_class_token else 'patches'}"
            figures.append(self._draw("attention_rollout", drawn, caption, "attention_maps"))
        what = (
            "At each layer the heads' mean and the identity (for the residual) in equal parts, multiplied over all "
            "layers; then the row of the token that the output is read from."
        )
        self.sections.append(ReportSection("Attention rollout", (what,), tuple(figures)))
        figures = [
            self._draw(
                f"attention_heads_{number}",
                attention_heads_figure(
                    image.maps,
                    image=image.pixels if drawable else None,
                    title=f"Image {number}: attention of the {reader}",  # its name may have signs that no font has
                ),
                f"{image.name}: attention of every layer and head ({reader}), each map scaled to its own maximum",
                "attention_maps",
            )
            for number, image in enumerate(summary.shown)
        ]
        what = f"How the {reader} looks at each image: rows are layers, columns are heads."
        self.sections.append(ReportSection("Attention maps", (what,), tuple(figures)))

    def _distances(self, summary: AttentionSummary) -> None:
        height, width = self.subject.preprocessing.img_size
        self._save(
            "attention_distance",
            distances=summary.distances,
            deviations=summary.deviations,
            renormalized=summary.renormalized,
            prefix_share=summary.prefix_share,
            grid=np.array(summary.tokens.grid),
            token_hw=np.array(summary.tokens.token_hw),
            images=np.array(summary.count),
        )
        # Of uniform attention: the mean distance of all pairs, and the patches' share of all tokens.
        pairs = grid_distances(summary.tokens.grid, summary.tokens.token_hw).mean().item()
        share = math.prod(summary.tokens.grid) / (math.prod(summary.tokens.grid) + summary.tokens.num_prefix_tokens)
        figures = [
            self._draw(
                file,
                attention_distance_figure(values, title=title, width=width, uniform=uniform),
                f"{title}: each dot is a head, averaged over {summary.count:,} image(s) of {height}x{width} pixels",
                "attention_distance",
            )
            for file, title, values, uniform in (
                ("attention_distance", "Mean attention distance", summary.distances, pairs * share),
                (
                    "attention_distance_renormalized",
                    "Mean attention distance, renormalised",
                    summary.renormalized,
                    pairs,
                ),
            )
        ]
        early = summary.distances[: max(1, len(summary.distances) // 4)]
        what = (
            "The distance of each key patch from the query patch, weighted by the attention, averaged over queries and "
            "images. The first figure is the paper's definition: the class token is cut off, and the weights that are "
            "left are taken as they are. In the second they are divided by their sum first."
        )
        first = "layer" if len(early) == 1 else f"{len(early)} layers"
        reach = (
            f"In the first {first} of {len(summary.distances)} heads reach from {early.min():.1f} to "
            f"{early.max():.1f} pixels: {early.min() / width:.0%} to {early.max() / width:.0%} of the image's width."
        )
        paragraphs = [what, reach]
        if summary.failures:
            paragraphs.append(f"{len(summary.failures)} images could not be read; the first: {summary.failures[0]}")
        rows = tuple(
            (
                str(layer + 1),
                *(f"{value:.1f}" for value in (paper.min(), paper.mean(), paper.max())),
                *(f"{value:.1f}" for value in (divided.min(), divided.mean(), divided.max())),
                f"{share.mean():.1%}",
            )
            for layer, (paper, divided, share) in enumerate(
                zip(summary.distances, summary.renormalized, summary.prefix_share, strict=True)
            )
        )
        header = (
            "layer",
            "least",
            "mean",
            "most",
            "least, renorm.",
            "mean, renorm.",
            "most, renorm.",
            "on prefix tokens",
        )
        table = Table(header, rows)
        self.sections.append(ReportSection("Mean attention distance", tuple(paragraphs), tuple(figures), table))
        self.record["attention_distance"] = {
            "images": summary.count,
            "unit": "pixels",
            "layers": [
                {
                    "layer": layer + 1,
                    "heads": summary.distances[layer].tolist(),
                    "renormalized": summary.renormalized[layer].tolist(),
                    "prefix_share": summary.prefix_share[layer].tolist(),
                }
                for layer in range(len(summary.distances))
            ],
            "unreadable": list(summary.failures),
        }

    def finish(self, summary: AttentionSummary | None, images: ImageSet | None, start: float) -> None:
        """Write the page and the record."""
        from vit_rs import __version__  # noqa: PLC0415

        subject = self.subject
        described = "none" if images is None or summary is None else images.description
        if images is not None and summary is not None and images.channels != subject.channels:
            described += ", made gray"
        if summary is not None and summary.failures:
            described += f", {len(summary.failures):,} of them unreadable"
        seconds, memory = time.perf_counter() - start, _peak_bytes()
        self.record = {
            "checkpoint": subject.path,
            "model": _architecture(subject.model),
            "model_digest": subject.digest,
            "preprocessing": subject.preprocessing.to_dict(),
            "data": described,
            "precision": self.precision,
            "vit_rs": __version__,
            **self.record,
            "seconds": round(seconds, 3),
            "peak_memory_bytes": memory,
        }
        facts = [
            ("Checkpoint", subject.path),
            ("Model", f"{_architecture(subject.model)}, digest {subject.digest[:16]}"),
            ("Images are prepared by", str(subject.preprocessing)),
            ("Images", described),
            *([] if self.precision == "float32" else [("Precision", self.precision)]),
            *(("Resampled", line) for line in subject.resampled),
            ("Time", f"{seconds:.1f} s"),
            *([] if memory is None else [("Peak memory", f"{memory / 1e9:.2f} GB")]),
            ("vit-rs", __version__),
        ]
        explorer = self._explorer(summary)
        write_report(
            self.folder / "report.html",
            title=f"A look into {Path(subject.path).name}",
            facts=facts,
            sections=self.sections,
            explorer=explorer,
        )
        (self.folder / MARKER).write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")

    def _explorer(self, summary: AttentionSummary | None) -> Explorer | None:
        model = self.subject.model
        packed = [] if summary is None else [image for image in summary.shown if image.packed]
        if not (packed or self.similarities):
            return None
        try:
            tokens, heads = token_grid(model, self.subject.preprocessing.img_size), num_heads(model)
        except AttentionError:  # without data: a table, and no grid that the page knows
            return None
        return Explorer(
            image_hw=self.subject.preprocessing.img_size,
            grid=tokens.grid,
            token_hw=tokens.token_hw,
            num_prefix_tokens=tokens.num_prefix_tokens,
            prefix_names=_prefix_names(model, tokens.num_prefix_tokens),
            layers=() if summary is None else tuple(layer + 1 for layer in summary.page_layers),
            heads=heads,
            images=tuple(
                ExplorerImage(image.name, _png(image.pixels), image.packed, image.rollout) for image in packed
            ),
            similarities=tuple(self.similarities),
        )

    def _draw(self, name: str, figure: Figure, caption: str, arrays: str) -> ReportFigure:
        """Save a figure, and return it for the page."""
        png = self.folder / "figures" / f"{name}.png"
        save_figure(figure, png, dpi=_DPI)
        save_figure(figure, png.with_suffix(".svg"), dpi=_DPI)
        files = (f"figures/{name}.png", f"figures/{name}.svg", f"arrays/{arrays}.npz")
        return ReportFigure(caption, png.read_bytes(), files)

    def _save(self, name: str, **arrays: Any) -> None:
        plain: Mapping[str, Any] = {key: np.asarray(value) for key, value in arrays.items()}
        np.savez_compressed(self.folder / "arrays" / f"{name}.npz", **plain)


def _architecture(model: nn.Module) -> str:
    """Return what a model is, for people."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)):
        return type(model).__name__
    parts = [f"{type(model).__name__} of {len(blocks)} layers"]
    with contextlib.suppress(AttentionError):
        parts.append(f"{num_heads(model)} heads")
    width = getattr(model, "embed_dim", None)
    return ", ".join(parts + ([] if width is None else [f"width {width}"]))


def _prefix_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """Return what the tokens before the patches are, in their order."""
    names = ["class token"] if getattr(model, "cls_token", None) is not None else []
    if getattr(model, "dist_token", None) is not None:
        names.append("distillation token")
    names += [f"register {number}" for number in range(1, 1 + count - len(names))]
    return tuple(names)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels (C, height, width) as a PNG; of more than three channels the first."""
    from matplotlib.image import imsave  # noqa: PLC0415  (as in new_figure)

    rows = pixels.transpose(1, 2, 0)
    rgb = rows if rows.shape[2] == 3 else rows[..., :1].repeat(3, axis=2)
    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(rgb), format="png")
    return file.getvalue()


def _peak_bytes() -> int | None:
    """Return the most memory that this process has had, None where the system does not tell."""
    try:
        import resource  # noqa: PLC0415  (not on Windows)
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
