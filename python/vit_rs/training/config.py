"""What one training run is: nested frozen dataclasses, their checks, and their JSON form.

A recipe (`vit_rs.recipes`) is a function that returns a `TrainConfig`; the command line changes single
fields of it with `--set optim.lr=3e-4`, named by the path of attributes. The resolved configuration is
written beside the run as `config.json` and is all that is needed to go on with it or to repeat it.

This module imports neither torch nor the compiled core, so that the command line can check its arguments at
once.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vit_rs.exceptions import ConfigError
from vit_rs.training.checks import at_least, within
from vit_rs.training.data_config import DataConfig
from vit_rs.training.model_config import ModelConfig
from vit_rs.training.optim_config import OptimConfig
from vit_rs.training.values import convert_json, type_hints

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "DataConfig",
    "EvaluationConfig",
    "FinetuneConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
]

_MOST_THREADS = 65_536  # that the image loader takes


@dataclass(frozen=True)
class MethodConfig:
    """Supervised classification: what is done to a batch and to its labels before the cross-entropy."""

    # Cross-entropy of the classes' probabilities, or of each class's own yes or no (big_vision's pre-training).
    loss: Literal["softmax", "sigmoid"] = "softmax"
    # Share of the target that is spread evenly over all classes.
    label_smoothing: float = 0.0
    # Beta(a, a) from which the share of the other image is drawn when two images are blended; 0 is off.
    mixup: float = 0.0
    # The same for a rectangle pasted from another image; with both on, each batch draws one of the two.
    cutmix: float = 0.0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) for every value that cannot be used."""
        yield from within(self, "label_smoothing", 0.0, 1.0, open_high=True)
        yield from at_least(self, "mixup", 0.0)
        yield from at_least(self, "cutmix", 0.0)


@dataclass(frozen=True)
class FinetuneConfig:
    """The second stage: the trained weights at a higher resolution, position embedding interpolated."""

    # Epochs at the higher resolution; 0 leaves the stage out.
    epochs: int = 4
    # Side in pixels; None is the multiple of the patch nearest to 1.5 times data.img_size.
    img_size: int | None = None
    # Length in steps; none takes the epochs.
    steps: int | None = None
    # Images of a step, of all processes together.
    batch_size: int = 128
    # Stochastic depth of this stage.
    drop_path_rate: float = 0.0
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, weight_decay=0.0, warmup_epochs=0.5))
    method: MethodConfig = field(default_factory=MethodConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) for every value that cannot be used."""
        yield from at_least(self, "epochs", 0)
        for name in ("batch_size", "steps", "img_size"):
            yield from at_least(self, name, 1)
        if self.epochs == 0 and self.steps is not None:
            yield "steps", f"{self.steps} steps of a stage that finetune.epochs=0 leaves out"
        yield from within(self, "drop_path_rate", 0.0, 1.0, open_high=True)


@dataclass(frozen=True)
class EvaluationConfig:
    """When and how the model is tested."""

    # Images of a test batch.
    batch_size: int = 256
    # Test after every so many epochs; always after the last.
    every_epochs: int = 5
    # Few-shot: labelled images a class that the frozen features are fitted on; 0 leaves it out.
    shots: int = 5
    # Few-shot: each seed draws other images; the mean over them is reported.
    fewshot_seeds: tuple[int, ...] = (0, 1, 2)
    # Few-shot: the images are drawn from the first so many of each class, which bounds the time on large
    # sets.
    fewshot_pool: int = 1000

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) for every value that cannot be used."""
        yield from at_least(self, "batch_size", 1)
        yield from at_least(self, "every_epochs", 1)
        yield from at_least(self, "shots", 0)
        if not self.fewshot_seeds or min(self.fewshot_seeds) < 0:
            yield "fewshot_seeds", f"expected one or more integers of at least 0, got {self.fewshot_seeds}"
        if self.fewshot_pool < self.shots:
            yield "fewshot_pool", f"expected at least shots = {self.shots}, got {self.fewshot_pool}"


@dataclass(frozen=True)
class TrainConfig:
    """One run: train, evaluate, fine-tune at a higher resolution, evaluate again."""

    # The recipe's name; names the run folder.
    recipe: str
    # Seed of the weights, the order and augmentation of the images, mixup, dropout.
    seed: int = 0
    # torch device: "cpu", "cuda", "cuda:1", "mps". Under torchrun "cuda" is each process's own.
    device: str = "cpu"
    # Threads of one torch operator; None leaves torch's default. Another number may change the last bits of
    # a result.
    torch_threads: int | None = None
    # Threads of the image loader; None is one for each core. Never changes a result.
    loader_threads: int | None = None
    # Passes over the training images.
    epochs: int = 80
    # Length in steps; none takes the epochs.
    steps: int | None = None
    # Images of a step, of all processes and accumulated parts together.
    batch_size: int = 128
    # Parts that a process's share of a batch is cut into: gradients add up over them, memory is that of one.
    accumulation: int = 1
    # "global": batch_size is divided among the processes, so that a run has the same steps under any number of them;
    # "process": each process takes batch_size images a step.
    batch_of: Literal["global", "process"] = "global"
    # How several processes share the work: each with the whole model, or with a part of every block's weights.
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    # "bfloat16" computes matrix products and attention in bfloat16 (autocast); weights and optimizer stay float32.
    precision: Literal["float32", "bfloat16"] = "float32"
    # Whether torch.compile translates the model.
    compile: bool = False
    # Whether images and convolutions have channels last: hybrids and BiT ResNets are faster so.
    channels_last: bool = False
    # Most steps between two records in metrics.jsonl; the loss of a record is the mean over them.
    log_every: int = 20
    # Whether records are written for TensorBoard too, into tensorboard/ (pip install "vit-rs[tensorboard]").
    tensorboard: bool = False
    # The state is saved at the end of every epoch, and within it when this many seconds have passed; never so often
    # that saving takes more than a fiftieth of the time.
    save_seconds: float = 30.0
    # States that are kept: the last so many.
    keep_states: int = 1
    # Whether the weights with the best test accuracy so far are kept, as model-best.safetensors.
    keep_best: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) for every value that cannot be used."""
        if not self.recipe.isidentifier():
            yield "recipe", f"expected a Python name, got {self.recipe!r}"
        yield from at_least(self, "seed", 0)
        if self.seed >= 2**63:  # a stage's is twice as large, and has 64 bits
            yield "seed", f"expected less than 2**63, got {self.seed}"
        if self.loader_threads is not None and self.loader_threads > _MOST_THREADS:
            yield "loader_threads", f"expected at most {_MOST_THREADS}, got {self.loader_threads}"
        for name in (
            *("torch_threads", "loader_threads", "epochs", "steps", "batch_size", "accumulation"),
            *("log_every", "keep_states"),
        ):
            yield from at_least(self, name, 1)
        yield from at_least(self, "save_seconds", 0.0)
        batch_size = min(self.batch_size, self.finetune.batch_size) if self.finetune.epochs else self.batch_size
        if self.accumulation > batch_size:
            yield "accumulation", f"{self.accumulation} parts cannot be cut of a batch of {batch_size} images"

    def validated(self) -> TrainConfig:
        """Return this configuration, values of the fields' own types, after its checks.

        What only the model or the images can tell is looked at when they are there: see `vit_rs.training.train`.

        Raises:
            ConfigError: naming the first setting that cannot be used, its value and what was expected.
        """
        # Types are checked as for a file; a whole number given for a float becomes one, so that configurations that
        # mean the same are the same.
        config: TrainConfig = _build(TrainConfig, dataclasses.asdict(self), "config", "")
        for path, message in _problems(config, ""):
            raise ConfigError(f"{path}: {message}")
        return config

    def to_json(self) -> str:
        """Return the configuration as indented JSON, fields in their order here."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str) -> TrainConfig:
        """Return the configuration that `to_json` wrote.

        Args:
            text: the JSON text.
            source: where it comes from, for the error message.

        Raises:
            ConfigError: if it is not JSON, or if a setting is unknown, missing or of another type.
        """
        try:
            data = json.loads(text)
        except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
            raise ConfigError(f"{source}: not JSON: {error}") from error
        config: TrainConfig = _build(cls, data, source, "")
        return config


def _build(cls: Any, data: object, source: str, prefix: str) -> Any:
    """Return a dataclass of type `cls` from a JSON object, checking names and types on the way down."""
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: {prefix or 'the whole file'}: expected a JSON object, got {data!r}")
    hints = type_hints(cls)
    for label, names in (("unknown", data.keys() - hints.keys()), ("missing", hints.keys() - data.keys())):
        if names:
            listed = ", ".join(sorted(prefix + name for name in names))
            raise ConfigError(f"{source}: {label} setting(s) {listed}; was it written by another version?")
    values = {}
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            values[name] = _build(hint, data[name], source, f"{prefix}{name}.")
        else:
            values[name] = convert_json(data[name], hint, f"{source}: {prefix}{name}")
    return cls(**values)


def _problems(config: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield (path, message) of a dataclass and of those inside it, outer ones first."""
    for name, message in config.problems():
        yield prefix + name, message
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from _problems(value, f"{prefix}{item.name}.")
