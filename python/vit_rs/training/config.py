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
from vit_rs.training.values import convert_json, type_hints

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MODEL_SIZES",
    "DataConfig",
    "EvaluationConfig",
    "FinetuneConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
]

# (width, depth, heads); Ti and S: DeiT, arXiv 2012.12877, table 1; B, L, H: ViT, arXiv 2010.11929, table 1.
MODEL_SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


@dataclass(frozen=True)
class ModelConfig:
    """The network. Image size, channels and classes come from the data."""

    # A name of MODEL_SIZES, whose width, depth and heads it stands for, or "custom": the three fields below.
    size: str = "custom"
    # Width of a token.
    embed_dim: int = 128
    # Number of transformer blocks.
    depth: int = 4
    # Attention heads of a block; divides embed_dim.
    num_heads: int = 4
    # Width of a block's MLP, in units of embed_dim.
    mlp_ratio: float = 4.0
    # Side of a patch in pixels; divides every image size of the run.
    patch_size: int = 7
    # What the head reads: the class token, or the mean of the patch tokens.
    global_pool: Literal["token", "avg"] = "token"
    # Dropout after every dense layer except qkv, and on the embedded tokens.
    dropout: float = 0.0
    # Stochastic depth of the last block; earlier blocks get linearly less, the first none.
    drop_path_rate: float = 0.0
    # Checkpoint to start from instead of random weights; its position embedding is interpolated where needed.
    init: str | None = None
    # The checkpoint's head: kept, or left out for a new one because it was trained for other classes.
    init_head: Literal["keep", "reset"] = "keep"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) for every value that cannot be used."""
        if self.size != "custom":
            if self.size not in MODEL_SIZES:
                yield "size", f"expected one of {', '.join((*MODEL_SIZES, 'custom'))}, got {self.size!r}"
            elif (self.embed_dim, self.depth, self.num_heads) != MODEL_SIZES[self.size]:
                numbers = (self.embed_dim, self.depth, self.num_heads)
                expected = f"expected embed_dim, depth, num_heads {MODEL_SIZES[self.size]} for {self.size!r}"
                yield "size", f'{expected}, got {numbers}; "custom" takes any'
        for name in ("embed_dim", "depth", "num_heads", "patch_size"):
            yield from _at_least(self, name, 1)
        if self.num_heads >= 1 and self.embed_dim % self.num_heads:
            yield "num_heads", f"{self.num_heads} heads do not divide embed_dim {self.embed_dim}"
        yield from _above(self, "mlp_ratio", 0.0)
        yield from _within(self, "dropout", 0.0, 1.0, open_high=True)
        yield from _within(self, "drop_path_rate", 0.0, 1.0, open_high=True)

    def resized(self, size: str) -> ModelConfig:
        """Return this model with the width, depth and heads of a named size ("custom" keeps the numbers)."""
        if size not in MODEL_SIZES:
            return dataclasses.replace(self, size=size)
        embed_dim, depth, num_heads = MODEL_SIZES[size]
        return dataclasses.replace(self, size=size, embed_dim=embed_dim, depth=depth, num_heads=num_heads)


@dataclass(frozen=True)
class DataConfig:
    """The images: where they are, how large they enter the model, and how they are augmented."""

    # Folder of class sub-folders, of train/ and val/, or of IDX files; None is the bundled Fashion-MNIST
    # subset.
    path: str | None = None
    # Side in pixels of the square that the model is trained on.
    img_size: int = 28
    # "shift": a random window of the zero-padded image; "resized_crop": a random part of it, resized
    # (Inception's crop).
    augment: Literal["shift", "resized_crop"] = "shift"
    # "shift": zero pixels added on every side at img_size; another image size scales them.
    padding: int = 2
    # "resized_crop": smallest part of the image's area that is drawn; the largest is 1.
    min_scale: float = 0.08
    # "resized_crop": largest width over height, and height over width, of that part.
    max_aspect: float = 4 / 3
    # Chance that an image is mirrored left to right.
    flip: float = 0.5
    # Test images: the short side is resized to img_size / eval_crop, then the middle is cut out; 1 keeps all
    # of it.
    eval_crop: float = 1.0
    # Mean and standard deviation of the pixels in 0..1, one value for each channel, or one for all.
    mean: tuple[float, ...] = (0.2860,)
    std: tuple[float, ...] = (0.3530,)
    # Share of each class that is held out for testing where the folder has no val/ or test/.
    holdout: float = 0.2
    # Seed of that split: apart from the run's seed, so that runs with several seeds share their test images.
    split_seed: int = 0
    # Use the first so many training images of each class; None uses all.
    per_class: int | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) for every value that cannot be used."""
        yield from _at_least(self, "img_size", 1)
        yield from _at_least(self, "padding", 0)
        yield from _within(self, "min_scale", 0.0, 1.0, open_low=True)
        yield from _at_least(self, "max_aspect", 1.0)
        yield from _within(self, "flip", 0.0, 1.0)
        yield from _within(self, "eval_crop", 0.0, 1.0, open_low=True)
        yield from _within(self, "holdout", 0.0, 1.0, open_low=True, open_high=True)
        yield from _at_least(self, "split_seed", 0)
        if self.per_class is not None:
            yield from _at_least(self, "per_class", 1)
        if not self.mean:
            yield "mean", "expected one value, or one for each channel, got none"
        if len(self.std) != len(self.mean):
            yield "std", f"expected as many values as mean, {len(self.mean)}, got {len(self.std)}"
        if any(value <= 0 for value in self.std):
            yield "std", f"expected values above 0, got {self.std}"


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule. Biases, norms, class token and position embedding are not decayed."""

    # Highest learning rate, reached at the end of the warm-up.
    lr: float = 1e-3
    # Decoupled weight decay; a step multiplies the weights by 1 - learning rate * weight_decay.
    weight_decay: float = 0.05
    # Decay of the gradient's and the squared gradient's running means.
    betas: tuple[float, float] = (0.9, 0.999)
    # Added to the denominator of the update.
    eps: float = 1e-8
    # Gradients are scaled down to this global norm; None leaves them as they are.
    clip_norm: float | None = 1.0
    # What follows the linear warm-up: a fall to final_lr along half a cosine or a line, or no fall.
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    # Length of the warm-up, in epochs; fractions are allowed.
    warmup_epochs: float = 5.0
    # Learning rate at the end of a cosine or linear fall.
    final_lr: float = 0.0
    # Decay a step of the weights' moving average, which is then what is evaluated and saved; None keeps none.
    ema_decay: float | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) for every value that cannot be used."""
        yield from _above(self, "lr", 0.0)
        yield from _at_least(self, "weight_decay", 0.0)
        if not all(0 <= beta < 1 for beta in self.betas):
            yield "betas", f"expected two values in [0, 1), got {self.betas}"
        yield from _above(self, "eps", 0.0)
        if self.clip_norm is not None:
            yield from _above(self, "clip_norm", 0.0)
        yield from _at_least(self, "warmup_epochs", 0.0)
        if not 0 <= self.final_lr <= self.lr:
            yield "final_lr", f"expected a value from 0 to lr = {self.lr:g}, got {self.final_lr:g}"
        if self.ema_decay is not None:
            yield from _within(self, "ema_decay", 0.0, 1.0, open_low=True, open_high=True)


@dataclass(frozen=True)
class MethodConfig:
    """Supervised classification: what is done to a batch and to its labels before the cross-entropy."""

    # Share of the target that is spread evenly over all classes.
    label_smoothing: float = 0.0
    # Beta(a, a) from which the share of the other image is drawn when two images are blended; 0 is off.
    mixup: float = 0.0
    # The same for a rectangle pasted from another image; with both on, each batch draws one of the two.
    cutmix: float = 0.0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) for every value that cannot be used."""
        yield from _within(self, "label_smoothing", 0.0, 1.0, open_high=True)
        yield from _at_least(self, "mixup", 0.0)
        yield from _at_least(self, "cutmix", 0.0)


@dataclass(frozen=True)
class FinetuneConfig:
    """The second stage: the trained weights at a higher resolution, position embedding interpolated."""

    # Epochs at the higher resolution; 0 leaves the stage out.
    epochs: int = 4
    # Side in pixels; None is the multiple of the patch nearest to 1.5 times data.img_size.
    img_size: int | None = None
    # Images of a step.
    batch_size: int = 128
    # Stochastic depth of this stage.
    drop_path_rate: float = 0.0
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, weight_decay=0.0, warmup_epochs=0.5))
    method: MethodConfig = field(default_factory=MethodConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) for every value that cannot be used."""
        yield from _at_least(self, "epochs", 0)
        yield from _at_least(self, "batch_size", 1)
        yield from _within(self, "drop_path_rate", 0.0, 1.0, open_high=True)
        if self.img_size is not None:
            yield from _at_least(self, "img_size", 1)


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
        yield from _at_least(self, "batch_size", 1)
        yield from _at_least(self, "every_epochs", 1)
        yield from _at_least(self, "shots", 0)
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
    # torch device: "cpu", "cuda", "cuda:1", "mps".
    device: str = "cpu"
    # Threads of one torch operator; None leaves torch's default. Another number may change the last bits of
    # a result.
    torch_threads: int | None = None
    # Threads of the image loader; None is one for each core. Never changes a result.
    loader_threads: int | None = None
    # Passes over the training images.
    epochs: int = 80
    # Images of a step.
    batch_size: int = 128
    # Most steps between two records in metrics.jsonl; the loss of a record is the mean over them.
    log_every: int = 20
    # The state is saved at the end of every epoch, and within it when this many seconds have passed.
    save_seconds: float = 30.0
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
        yield from _at_least(self, "seed", 0)
        if self.torch_threads is not None:
            yield from _at_least(self, "torch_threads", 1)
        if self.loader_threads is not None:
            yield from _at_least(self, "loader_threads", 1)
        for name in ("epochs", "batch_size", "log_every"):
            yield from _at_least(self, name, 1)
        yield from _at_least(self, "save_seconds", 0.0)

    @property
    def finetune_size(self) -> int:
        """Image side of the second stage, in pixels."""
        if self.finetune.img_size is not None:
            return self.finetune.img_size
        patches = round(1.5 * self.data.img_size / self.model.patch_size)
        return max(1, patches) * self.model.patch_size

    def validated(self) -> TrainConfig:
        """Return this configuration with every automatic value filled in.

        Raises:
            ConfigError: naming the first setting that cannot be used, its value and what was expected.
        """
        # Types are checked as for a file; a whole number given for a float becomes one, so that configurations that
        # mean the same are the same.
        config = TrainConfig.from_json(self.to_json(), source="config")
        for path, message in _problems(config, ""):
            raise ConfigError(f"{path}: {message}")
        sizes = [("data.img_size", config.data.img_size)]
        if config.finetune.epochs:
            sizes.append(("finetune.img_size", config.finetune_size))
        patch = config.model.patch_size
        for path, size in sizes:
            if size % patch:
                low = size // patch * patch
                nearest = f"{low} or {low + patch}" if low else f"{patch}"
                raise ConfigError(
                    f"{path}: {size} pixels are not divisible by model.patch_size {patch}; {nearest} would be"
                )
        finetune = dataclasses.replace(config.finetune, img_size=config.finetune_size)
        return dataclasses.replace(config, finetune=finetune)

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
        except json.JSONDecodeError as error:
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


def _at_least(config: Any, name: str, low: float) -> Iterator[tuple[str, str]]:
    value = getattr(config, name)
    if not value >= low:
        yield name, f"expected at least {low:g}, got {value!r}"


def _above(config: Any, name: str, low: float) -> Iterator[tuple[str, str]]:
    value = getattr(config, name)
    if not value > low:
        yield name, f"expected a value above {low:g}, got {value!r}"


def _within(
    config: Any, name: str, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> Iterator[tuple[str, str]]:
    value = getattr(config, name)
    if not ((low < value if open_low else low <= value) and (value < high if open_high else value <= high)):
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        yield name, f"expected a value in {interval}, got {value!r}"
