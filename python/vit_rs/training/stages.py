"""The stages of a run: training, then fine-tuning at a higher resolution. One loop, other numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import torch

from vit_rs.checkpoints import load_pretrained
from vit_rs.data import ImageLoader
from vit_rs.exceptions import CheckpointError
from vit_rs.methods import Supervised
from vit_rs.models import VisionTransformer, ViTConfig
from vit_rs.training.schedule import learning_rate
from vit_rs.training.sources import eval_transform, train_transform

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from torch.utils.data import Subset

    from vit_rs.training.config import MethodConfig, OptimConfig, TrainConfig
    from vit_rs.training.sources import Sources
    from vit_rs.transforms import Transform

__all__ = ["Stage", "build_stages", "pairs"]

# What an error of `load_pretrained` asks for, and the command that answers it for a setting.
_ANSWERS = {
    "pass img_size=": "vit-rs resample IN OUT --img-size N --from-img-size HxW",
    "section=": "vit-rs convert IN OUT --to timm --section NAME",
}


@dataclass(frozen=True)
class Stage:
    """One stage, with everything that the loop asks for.

    Attributes:
        index: 0 for the first stage.
        name: "pretrain" or "finetune".
        size: side of the images in pixels.
        epochs: passes over the training images.
        batch_size: images of a step.
        drop_path_rate: of the last block.
        optim: optimizer and schedule.
        method_config: what is done to a batch.
        checkpoint: file name of the stage's model.
        config: the run's configuration.
        sources: the run's images.
    """

    index: int
    name: Literal["pretrain", "finetune"]
    size: int
    epochs: int
    batch_size: int
    drop_path_rate: float
    optim: OptimConfig
    method_config: MethodConfig
    checkpoint: str
    config: TrainConfig
    sources: Sources

    @property
    def drop_last(self) -> bool:
        """Whether an epoch leaves out its last, smaller batch: always, where there is a whole one."""
        return len(self.sources.train) >= self.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return max(1, len(self.sources.train) // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the stage."""
        return self.epochs * self.steps_per_epoch

    @property
    def epoch_images(self) -> int:
        """Images of an epoch."""
        return self.steps_per_epoch * self.batch_size if self.drop_last else len(self.sources.train)

    @property
    def stream(self) -> int:
        """Seed of this stage: no stage of any run shares its order, crops and dropout with another."""
        return 2 * self.config.seed + self.index

    @property
    def method(self) -> Supervised:
        """The training method; its random numbers are this stage's own."""
        return Supervised(
            label_smoothing=self.method_config.label_smoothing,
            mixup=self.method_config.mixup,
            cutmix=self.method_config.cutmix,
            seed=(self.stream,),
        )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0 within the stage."""
        return learning_rate(
            step,
            self.steps,
            peak=self.optim.lr,
            final=self.optim.final_lr,
            warmup_steps=round(self.optim.warmup_epochs * self.steps_per_epoch),
            decay=self.optim.schedule,
        )

    def build_model(self) -> VisionTransformer:
        """Return a freshly initialised model on the CPU; its numbers come from torch's global generator."""
        model = self.config.model
        return VisionTransformer(
            ViTConfig(
                img_size=self.size,
                patch_size=model.patch_size,
                in_chans=self.sources.channels,
                num_classes=len(self.sources.classes),
                embed_dim=model.embed_dim,
                depth=model.depth,
                num_heads=model.num_heads,
                mlp_ratio=model.mlp_ratio,
                global_pool=model.global_pool,
                pos_drop_rate=model.dropout,
                proj_drop_rate=model.dropout,
                drop_path_rate=self.drop_path_rate,
            )
        )

    def initial_model(
        self, start_from: str | os.PathLike[str] | None, *, head: Literal["keep", "reset"] = "keep"
    ) -> VisionTransformer:
        """Return the model that the stage starts with, on the run's device; seeds torch's generator.

        Args:
            start_from: checkpoint to load, its position embedding interpolated to this stage's image size;
                None keeps the random weights.
            head: "reset" leaves the checkpoint's head out.

        Raises:
            CheckpointError: if the checkpoint is of another shape.
            FileNotFoundError: if it does not exist.
        """
        # Each stage seeds for itself: it starts the same after an interruption between the stages.
        torch.manual_seed(self.stream)
        model = self.build_model()
        if start_from is not None:
            try:
                load_pretrained(model, start_from, head=head)
            except CheckpointError as error:
                hints = [hint for words, hint in _ANSWERS.items() if words in str(error)]
                if not hints:
                    raise
                # The setting is a path, which cannot follow what the error asks for.
                raise CheckpointError(f"{error} ({hints[0]} writes a file that says it)") from error
        return model.to(self.config.device)

    def train_loader(self) -> ImageLoader:
        """Return the loader of the augmented training images."""
        return self._loader(
            self.sources.train,
            train_transform(self.config.data, self.size, self.sources.side),
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=self.drop_last,
        )

    def test_loader(self) -> ImageLoader:
        """Return the loader of the test images."""
        return self._eval_loader(self.sources.test)

    def fewshot_loader(self, indices: Sequence[int]) -> ImageLoader:
        """Return a loader of some training images, prepared as the test images are."""
        subset = self.sources.train
        chosen = type(subset)(subset.dataset, [subset.indices[i] for i in indices])
        return self._eval_loader(chosen)

    def _eval_loader(self, source: Subset[tuple[torch.Tensor, int]]) -> ImageLoader:
        return self._loader(
            source,
            eval_transform(self.config.data, self.size, self.sources.side),
            batch_size=self.config.evaluation.batch_size,
            shuffle=False,
            drop_last=False,
        )

    def _loader(
        self,
        source: Subset[tuple[torch.Tensor, int]],
        transform: Transform,
        *,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
    ) -> ImageLoader:
        return ImageLoader(
            source,
            transform,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.stream,
            num_threads=self.config.loader_threads,
            drop_last=drop_last,
            device=self.config.device,
        )


def build_stages(config: TrainConfig, sources: Sources) -> list[Stage]:
    """Return the stages of a validated configuration, in order."""
    stages = [
        Stage(
            index=0,
            name="pretrain",
            size=config.data.img_size,
            epochs=config.epochs,
            batch_size=config.batch_size,
            drop_path_rate=config.model.drop_path_rate,
            optim=config.optim,
            method_config=config.method,
            checkpoint="model.safetensors",
            config=config,
            sources=sources,
        )
    ]
    if config.finetune.epochs:
        stages.append(
            Stage(
                index=1,
                name="finetune",
                size=config.finetune_size,
                epochs=config.finetune.epochs,
                batch_size=config.finetune.batch_size,
                drop_path_rate=config.finetune.drop_path_rate,
                optim=config.finetune.optim,
                method_config=config.finetune.method,
                checkpoint=f"model-{config.finetune_size}px.safetensors",
                config=config,
                sources=sources,
            )
        )
    return stages


def pairs(loader: ImageLoader) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Return the loader, typed as what it yields where no indices are asked for: (images, labels)."""
    return cast("Iterable[tuple[torch.Tensor, torch.Tensor]]", loader)
