"""The figures of a training run, drawn from what its folder holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from vit_rs.analysis.curves import training_curves
from vit_rs.analysis.embedding_figures import position_similarity_figure
from vit_rs.analysis.embeddings import position_similarity
from vit_rs.analysis.figures import image_batch_figure, save_figure
from vit_rs.checkpoints import load_model
from vit_rs.models import VisionTransformer
from vit_rs.training.engine import Preparation
from vit_rs.training.metrics import read_metrics
from vit_rs.training.run_folder import read_config
from vit_rs.training.sources import open_sources
from vit_rs.training.stages import build_stages

if TYPE_CHECKING:
    from pathlib import Path

    from vit_rs.training.stages import Stage

__all__ = ["draw_run"]


def draw_run(folder: Path) -> list[Path]:
    """Draw a trained run's figures into figures/ and return their paths.

    training_curves.png; for each stage the similarity of the saved model's position embeddings (arXiv
    2010.11929, figure 7, centre) and the first training batch as the model saw it, mixup and cutmix included:
    the batch is not stored, but made again from the run's seed.

    Args:
        folder: the run's folder; every stage is trained.
    """
    config = read_config(folder).validated()
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    paths = [figures / "training_curves.png"]
    save_figure(training_curves(read_metrics(folder / "metrics.jsonl")), paths[0])
    for stage in build_stages(config, open_sources(config.data)):
        model = load_model(folder / stage.checkpoint)
        if isinstance(model, VisionTransformer) and isinstance(model.pos_embed, Tensor):
            maps = position_similarity(model.pos_embed[:1], model.config.grid_size, model.config.embedded_prefix_tokens)
            paths.append(figures / f"position_similarity_{stage.name}_{stage.size}px.png")
            save_figure(position_similarity_figure(maps), paths[-1])
        paths.append(figures / f"batch_{stage.name}_{stage.size}px.png")
        _draw_first_batch(stage, paths[-1])
    return paths


def _draw_first_batch(stage: Stage, path: Path) -> None:
    with stage.train_loader() as loader:
        images, labels = next(iter(loader))
    batch = stage.method.mix(Preparation(stage, images.device)(images), labels, step=0)
    data, classes = stage.config.data, stage.sources.classes
    titles = [classes[label] for label in labels.tolist()]
    heading = f"{stage.name}: first batch at {stage.size} px"
    if batch.share < 1.0:
        heading += f"; every image and its target mixed: {batch.share:.0%} of the first label, the rest of the second"
        partners = batch.partner_labels.tolist()
        titles = [f"{title} + {classes[partner]}" for title, partner in zip(titles, partners, strict=True)]
    figure = image_batch_figure(
        batch.images, mean=data.mean, std=data.std, titles=titles, max_images=32, heading=heading
    )
    save_figure(figure, path)
