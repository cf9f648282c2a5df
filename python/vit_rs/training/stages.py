"""The stages of a run: training, then fine-tuning at a higher resolution. One loop, other numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

import torch

from vit_rs.checkpoints import load_pretrained
from vit_rs.data import ImageLoader
from vit_rs.exceptions import CheckpointError, ConfigError
from vit_rs.methods import Supervised
from vit_rs.training.networks import build_network, network_config, token_stride
from vit_rs.training.parallel import Parallel
from vit_rs.training.schedule import learning_rate, weight_decay
from vit_rs.training.sources import eval_transform, train_transform

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from torch.utils.data import Subset

    from vit_rs.data.splits import Splits
    from vit_rs.models.catalogue import Config, Model
    from vit_rs.training.config import MethodConfig, OptimConfig, TrainConfig
    from vit_rs.transforms import Transform

__all__ = ["Stage", "build_stages", "finetune_size", "pairs"]

# What an error of `load_pretrained` asks for, and the setting that answers it.
_ANSWERS = {
    "pass img_size=": "model.init_img_size",
    "section=": "model.init_section",
    "layout=": "model.init_layout",
    "convention=": "model.init_convention",
}


@dataclass(frozen=True)
class Stage:
    """One stage, with everything that the loop asks for.

    Attributes:
        index: 0 for the first stage.
        name: "pretrain" or "finetune".
        size: side of the images in pixels.
        planned_epochs: passes over the training images, where no number of steps is set.
        planned_steps: length of the stage in steps; None takes the epochs.
        batch_size: images of a step, of all processes together.
        drop_path_rate: of the last block.
        optim: optimizer and schedule.
        method_config: what is done to a batch.
        checkpoint: file name of the stage's model.
        config: the run's configuration.
        sources: the run's images.
        parallel: this process's place among those of the run.
    """

    index: int
    name: Literal["pretrain", "finetune"]
    size: int
    planned_epochs: int
    planned_steps: int | None
    batch_size: int
    drop_path_rate: float
    optim: OptimConfig
    method_config: MethodConfig
    checkpoint: str
    config: TrainConfig
    sources: Splits
    parallel: Parallel = field(default_factory=lambda: Parallel("ddp", "cpu"))

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
        return self.planned_epochs * self.steps_per_epoch if self.planned_steps is None else self.planned_steps

    @property
    def epochs(self) -> int:
        """Passes over the training images, the last of which may end early."""
        return -(-self.steps // self.steps_per_epoch)

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        optim = self.optim
        return round(optim.warmup_epochs * self.steps_per_epoch) if optim.warmup_steps is None else optim.warmup_steps

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
            activation=self.method_config.loss,
        )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0 within the stage; layer-wise decay is not in it."""
        optim = self.optim
        scale = 1.0 if optim.lr_batch is None else self.batch_size / optim.lr_batch
        return learning_rate(
            step,
            self.steps,
            peak=optim.lr * scale,
            final=optim.final_lr * scale,
            warmup_steps=self.warmup_steps,
            decay=optim.schedule,
        )

    def weight_decay(self, step: int) -> float:
        """Return the weight decay of a step, counted from 0 within the stage."""
        start, final = self.optim.weight_decay, self.optim.final_weight_decay
        return start if final is None else weight_decay(step, self.steps, start=start, final=final)

    def network_config(self) -> Config:
        """Return the configuration of the stage's model."""
        return network_config(
            self.config.model,
            img_size=self.size,
            channels=self.sources.channels,
            classes=len(self.sources.classes),
            drop_path_rate=self.drop_path_rate,
            size_setting="data.img_size" if self.index == 0 else f"{self.name}.img_size",
        )

    def build_model(self) -> Model:
        """Return a freshly initialised model on the CPU; its numbers come from torch's global generator."""
        return build_network(self.config.model, self.network_config())

    def initial_model(
        self, start_from: str | os.PathLike[str] | None, *, head: Literal["keep", "reset"] = "keep"
    ) -> Model:
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
            self._load(model, start_from, head)
        return model.to(self.parallel.device)

    def _load(self, model: Model, start_from: str | os.PathLike[str], head: Literal["keep", "reset"]) -> None:
        settings = self.config.model
        ours = self.index > 0  # an earlier stage's own file, which says everything
        try:
            load_pretrained(
                model,
                start_from,
                head=head,
                img_size=None if ours else settings.init_img_size,
                convention=None if ours else settings.init_convention,
                section=None if ours else settings.init_section,
                layout=None if ours else settings.init_layout,
            )
        except CheckpointError as error:
            text = str(error).replace("head='reset'", "--set model.init_head=reset")
            named = [setting for words, setting in _ANSWERS.items() if words in text]
            raise CheckpointError(f"{text} (the setting is {', '.join(named)})" if named else text) from error
        except ValueError as error:
            raise ConfigError(f"model.init: {error}") from error

    def train_loader(self) -> ImageLoader:
        """Return the loader of the augmented training images, which `vit_rs.training.engine.Preparation` takes."""
        return self._loader(
            self.sources.train,
            train_transform(self.config.data, self.size, self.sources.side),
            batch_size=self.batch_size // self.parallel.world_size,
            shuffle=True,
            drop_last=self.drop_last,
            on_error=self.config.data.on_error,
            rank=self.parallel.rank,
            world_size=self.parallel.world_size,
            layout="NHWC" if self.config.channels_last else "NCHW",
        )

    def test_loader(self) -> ImageLoader:
        """Return the loader of this process's test images."""
        return self._eval_loader(self.sources.test, range(len(self.sources.test)))

    def fewshot_loader(self, indices: Sequence[int]) -> ImageLoader:
        """Return a loader of this process's share of some training images, prepared as the test images are."""
        return self._eval_loader(self.sources.train, indices)

    def _eval_loader(self, subset: Subset[tuple[torch.Tensor, int]], indices: Sequence[int]) -> ImageLoader:
        # Shares of different lengths: an image that filled one up would be counted twice.
        chosen = type(subset)(subset.dataset, [subset.indices[i] for i in self.parallel.share(indices)])
        return self._loader(
            chosen,
            eval_transform(self.config.data, self.size, self.sources.side),
            batch_size=self.config.evaluation.batch_size,
            shuffle=False,
            drop_last=False,
            # A test image counts once or not at all: never a second time in the place of another.
            on_error="raise" if self.config.data.on_error == "raise" else "skip",
            rank=0,
            world_size=1,
        )

    def _loader(
        self,
        source: Subset[tuple[torch.Tensor, int]],
        transform: Transform,
        *,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        on_error: Literal["raise", "skip", "substitute"],
        rank: int,
        world_size: int,
        layout: Literal["NCHW", "NHWC"] = "NCHW",
    ) -> ImageLoader:
        return ImageLoader(
            source,
            transform,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.stream,
            num_threads=self.config.loader_threads,
            drop_last=drop_last,
            on_error=on_error,
            device=self.parallel.device,
            rank=rank,
            world_size=world_size,
            layout=layout,
        )


def build_stages(config: TrainConfig, sources: Splits, parallel: Parallel | None = None) -> list[Stage]:
    """Return the stages of a validated configuration, in order.

    Args:
        config: the configuration.
        sources: its images.
        parallel: this process's place among those of the run; None for a run of one.

    Raises:
        ConfigError: a batch cannot be divided among the processes.
    """
    if parallel is None:
        parallel = Parallel(config.parallel, config.device)
    stages = [
        Stage(
            index=0,
            name="pretrain",
            size=config.data.img_size,
            planned_epochs=config.epochs,
            planned_steps=config.steps,
            batch_size=_global_batch("batch_size", config.batch_size, config, parallel),
            drop_path_rate=config.model.drop_path_rate,
            optim=config.optim,
            method_config=config.method,
            checkpoint="model.safetensors",
            config=config,
            sources=sources,
            parallel=parallel,
        )
    ]
    if config.finetune.epochs:
        size = finetune_size(config, sources)
        stages.append(
            Stage(
                index=1,
                name="finetune",
                size=size,
                planned_epochs=config.finetune.epochs,
                planned_steps=config.finetune.steps,
                batch_size=_global_batch("finetune.batch_size", config.finetune.batch_size, config, parallel),
                drop_path_rate=config.finetune.drop_path_rate,
                optim=config.finetune.optim,
                method_config=config.finetune.method,
                checkpoint=f"model-{size}px.safetensors",
                config=config,
                sources=sources,
                parallel=parallel,
            )
        )
    return stages


def _global_batch(name: str, batch_size: int, config: TrainConfig, parallel: Parallel) -> int:
    """Return the images of a step, of all processes together."""
    processes = parallel.world_size
    if config.batch_of == "process":
        return batch_size * processes
    if batch_size % processes:
        below = batch_size // processes * processes
        near = f"{below} or {below + processes}" if below else str(processes)
        raise ConfigError(
            f"{name}: {batch_size} images cannot be divided evenly among {processes} processes; expected a multiple, "
            f"for example {near}"
        )
    return batch_size


def finetune_size(config: TrainConfig, sources: Splits) -> int:
    """Return the image side of the second stage, in pixels: as set, or the multiple of a token nearest to 1.5 times."""
    if config.finetune.img_size is not None:
        return config.finetune.img_size
    size = config.data.img_size
    network = network_config(config.model, img_size=size, channels=sources.channels, classes=len(sources.classes))
    stride = token_stride(network)
    return max(1, round(1.5 * size / stride)) * stride


def pairs(loader: ImageLoader) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Return the loader, typed as what it yields where no indices are asked for: (images, labels)."""
    return cast("Iterable[tuple[torch.Tensor, torch.Tensor]]", loader)
