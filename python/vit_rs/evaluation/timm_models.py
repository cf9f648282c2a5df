"""timm's own models, under the name "timm:NAME", with the weights of a file.

timm builds the model, and gives its weights other names or another resolution in its own way; the file is opened by
`vit_rs.checkpoints`, which executes nothing of it, and no weights are fetched from anywhere. timm is imported when the
first of its models is asked for: it is no requirement of vit-rs.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_rs.checkpoints.files import open_weights
from vit_rs.checkpoints.grids import require_finite
from vit_rs.checkpoints.layouts.known import layout_to_write
from vit_rs.checkpoints.layouts.section import find_section
from vit_rs.checkpoints.layouts.translation import translate, translated_back
from vit_rs.checkpoints.reports import listed
from vit_rs.evaluation.preprocessing import Preprocessing
from vit_rs.exceptions import CheckpointError, ConfigError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from vit_rs.checkpoints.files import WeightsFile

__all__ = ["PREFIX", "TimmModel", "model_channels", "open_timm", "timm_knows"]

PREFIX = "timm:"
# Dictionaries of a training run's file that hold the trained weights, where nobody says which; averages stand beside.
_TRAINED = ("state_dict/", "model/")
_RESIZES = {"center": "crop", "squash": "squash"}
# What building a model, or renaming weights for it, raises where arguments or names do not fit.
_MISFITS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
_BUILDING = threading.Lock()


class TimmModel(NamedTuple):
    """A model of timm's, with its weights.

    Attributes:
        model: in evaluation mode, on the CPU.
        preprocessing: what timm does to the images that it tests it with.
        architecture: what decides, beside the weights, what the model computes; JSON can hold it.
        resampled: which weights changed their size, for people.
    """

    model: nn.Module
    preprocessing: Preprocessing
    architecture: list[Any]
    resampled: tuple[str, ...]


def open_timm(
    path: str | os.PathLike[str],
    name: str,
    *,
    img_size: int | tuple[int, int] | None = None,
    asked: Mapping[str, Any] | None = None,
    section: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> TimmModel:
    """Build a model of timm's and load a file into it, every tensor of the one from the other.

    Args:
        path: safetensors, a file of torch.save, or Google's .npz of a ViT, a hybrid or a BiT ResNet.
        name: timm's name, with or without a tag, after "timm:".
        img_size: image size in pixels; None is the named model's. Models of one size are built for it, and timm
            resamples what depends on it; all others take any.
        asked: fields of `Preprocessing` in place of timm's.
        section: the dictionary in the file that holds the weights, or what stands before their names ("model_ema");
            None looks for one. Not for .npz.
        overrides: further arguments of `timm.create_model`, for example `num_classes`: 0 leaves the head out.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, holds what is refused, or its weights are not the model's: the message
            lists what is missing, not expected, or of another shape.
        ConfigError: timm is not installed, or has no such model, or cannot build it so.

    Source: timm.create_model, timm.models.load_pretrained and timm.data.resolve_model_data_config, timm 1.0.15 to
    1.0.31. Unlike there, no weight of the model keeps its random values, and channels are not folded.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    timm = _timm(name)
    named = _current(timm, name.removeprefix(PREFIX))
    arguments = {key: value for key, value in (overrides or {}).items() if value is not None}
    known = _known(timm, named)
    size = arguments.pop("img_size", None) if img_size is None else img_size
    hw = tuple(known.input_size[1:]) if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if size is not None and known.fixed_input_size:
        arguments["img_size"] = hw
    overlay = {"input_size": (arguments.get("in_chans", known.input_size[0]), *hw)}
    with open_weights(path) as file:
        tensors = _npz_weights(file, section) if file.container == "npz" else _weights(timm, file, section)
        model, renamed = _built(timm, named, {**arguments, "pretrained_cfg_overlay": overlay})
        resampled = _load(path, named, model, tensors, renamed)
    architecture = ["timm", timm.__version__, named, list(overlay["input_size"]), _plain(arguments)]
    preprocessing = _preprocessing(named, model, hw, asked or {})
    return TimmModel(model.float().eval(), preprocessing, architecture, resampled)


def timm_knows(name: str) -> bool:
    """Return whether timm is installed and has a model of a name."""
    try:
        return bool(importlib.import_module("timm").is_model(name))
    except ImportError:
        return False


def model_channels(model: nn.Module) -> int:
    """Return the channels of the images that a model of timm's takes, as `open_timm` built it."""
    input_size: tuple[int, ...] = model.pretrained_cfg["input_size"]  # type: ignore[assignment, index]
    return input_size[0]


def _timm(name: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(f"{name} needs timm, which cannot be imported ({error}): pip install timm") from error


def _current(timm: Any, named: str) -> str:
    """Return what timm calls a name of its older versions today: vit_base_patch16_224_in21k got a tag."""
    renamed: dict[str, str | None] = timm.models.get_deprecated_models()
    return renamed.get(named) or named


def _known(timm: Any, named: str) -> Any:
    """Return what timm knows of a name: size, classes and preparation of the images."""
    if not named or not timm.is_model(named) or named in timm.models.get_deprecated_models():
        near = difflib.get_close_matches(named, timm.list_models())
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"timm {timm.__version__} has no model {named!r}{hint} (timm.list_models() lists them)")
    tags = timm.list_models(f"{named.partition('.')[0]}.*", include_tags=True)
    if "." in named and named not in tags:
        raise ConfigError(
            f"timm {timm.__version__} has no {named!r}; of this model it knows {', '.join(tags) or 'no tag'}"
        )
    # None for the few models without one: timm builds them with the defaults.
    return timm.models.get_pretrained_cfg(named) or timm.models.PretrainedCfg()


def _weights(timm: Any, file: WeightsFile, section: str | None) -> dict[str, Tensor]:
    """Return a file's tensors by their names in a state dict; they may share memory with the file."""
    folders = dict.fromkeys(key[: key.rfind("/") + 1] for key in file.tensors)
    if section is not None:
        starts = [section] if section.endswith(("/", ".")) else [f"{section}/", f"{section}."]
        start = next((start for start in starts if any(key.startswith(start) for key in file.tensors)), None)
        if start is None:
            raise CheckpointError(f"{file.path}: no section {section!r}; the file has {listed([*map(repr, folders)])}")
    else:
        trained = [folder for folder in _TRAINED if folder in folders]
        if not trained and len(folders) != 1:
            raise CheckpointError(
                f"{file.path}: several places for weights: {listed([*map(repr, folders)])}: say which by section=..."
                if folders
                else f"{file.path}: no tensor in the file"
            )
        start = trained[0] if trained else next(iter(folders))
    found = {key.removeprefix(start): file.read(key) for key in file.tensors if key.startswith(start)}
    weights: dict[str, Tensor] = timm.models.clean_state_dict(found)  # without the names of DDP and torch.compile
    return weights


def _npz_weights(file: WeightsFile, section: str | None) -> dict[str, Tensor]:
    """Return the arrays of Google's layouts under timm's names."""
    if section is not None:
        raise ConfigError(f"section={section!r} does not apply to .npz for timm's models")
    translation = translate(find_section(file))
    unknown = [*map(translation.section.file_key, translation.unknown)]
    if unknown or translation.incomplete:
        problems = [f"no place for {listed(unknown)}"] if unknown else []
        problems += [f"{ours} lacks {listed(theirs)}" for ours, theirs in translation.incomplete.items()]
        raise CheckpointError(f"{file.path}: {listed(problems, separator='; ')}")
    tensors = {ours: translation.read(ours) for ours in translation.sources}
    return translated_back(tensors, layout_to_write("timm", tensors))


def _built(timm: Any, named: str, arguments: dict[str, Any]) -> tuple[nn.Module, Callable[..., Any] | None]:
    """Build a model as timm does for published weights; return it, and the function that renames and resamples those.

    `pretrained=True` matters: fbnetc_100 and a few others have the epsilon of the published weights then. What timm
    would do with weights it passes to `load_pretrained`, which leaves some of them random where heads, channels or
    names differ: that is intercepted, so that `_load` can be strict.
    """
    builder = importlib.import_module("timm.models._builder")
    with _interception(builder) as renaming:
        try:
            model: nn.Module = timm.create_model(named, pretrained=True, **arguments)
        except _MISFITS as error:
            del arguments["pretrained_cfg_overlay"]
            raise ConfigError(f"timm cannot build {named} with {arguments or 'its own values'}: {error}") from error
    if not renaming:
        raise ConfigError(f"timm builds {named} without load_pretrained, so weights of a file cannot be given to it")
    return model, renaming[-1]


@contextlib.contextmanager
def _interception(builder: Any) -> Iterator[list[Callable[..., Any] | None]]:
    """Collect the renaming functions that this thread's models would be loaded by, in place of loading them."""
    renaming: list[Callable[..., Any] | None] = []
    mine = threading.get_ident()

    def collecting(*args: Any, **options: Any) -> None:
        if threading.get_ident() != mine:
            original(*args, **options)
            return
        renaming.append(options.get("filter_fn"))

    with _BUILDING:
        original = builder.load_pretrained  # only now it is sure to be timm's own
        builder.load_pretrained = collecting
        try:
            yield renaming
        finally:
            builder.load_pretrained = original


def _load(
    path: str | os.PathLike[str],
    named: str,
    model: nn.Module,
    tensors: dict[str, Tensor],
    rename: Callable[..., Any] | None,
) -> tuple[str, ...]:
    """Copy weights into a model, all of them, and return which changed their size."""
    before = {key: tensor.shape for key, tensor in tensors.items()}
    try:
        weights: dict[str, Tensor] = tensors if rename is None else _renamed(rename, tensors, model)
    except _MISFITS as error:
        raise CheckpointError(f"{path}: timm cannot make the weights of {named} of it: {error!r}") from error
    known: Any = model.pretrained_cfg
    names = known.get("classifier") or ()
    # With its last layer, "head.fc", what stands around it belongs to a head: "head.bn".
    heads = tuple(f"{name.rpartition('.')[0] or name}." for name in ((names,) if isinstance(names, str) else names))
    own = model.state_dict()
    if not model.num_classes:
        weights = {key: tensor for key, tensor in weights.items() if key in own or not key.startswith(heads)}
    for key, tensor in weights.items():
        if key in own:
            require_finite(tensor, f"{path}: {key}")
    shapes = [
        f"{key}: got {tuple(tensor.shape)}, expected {tuple(own[key].shape)}"
        for key, tensor in weights.items()
        if key in own and tensor.shape != own[key].shape
    ]
    fitting = {key: tensor for key, tensor in weights.items() if key not in own or tensor.shape == own[key].shape}
    found = model.load_state_dict(fitting, strict=False)  # it knows which keys may be missing
    missing = [key for key in found.missing_keys if key not in weights]
    problems = [f"missing {listed(missing)}"] if missing else []
    problems += [f"not expected {listed(found.unexpected_keys)}"] if found.unexpected_keys else []
    problems += shapes[:5] + ([f"{len(shapes) - 5} shapes more"] if len(shapes) > 5 else [])
    if problems:
        at_head = bool(heads) and any(line.startswith(heads) for line in (*shapes, *missing))
        hint = " (num_classes says how many outputs the head has, 0 leaves it out)" if at_head else ""
        raise CheckpointError(f"{path} does not fit timm's {named}: {'; '.join(problems)}{hint}")
    return tuple(
        f"{key} {tuple(before[key])} -> {tuple(tensor.shape)}, by timm"
        for key, tensor in weights.items()
        if key in before and before[key].numel() != tensor.numel()
    )


def _renamed(rename: Callable[..., Any], tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    # Some of timm's functions know names alone; timm tries both ways.
    parameters = inspect.signature(rename).parameters.values()
    positional = [each for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    weights: dict[str, Tensor] = rename(tensors) if len(positional) == 1 else rename(tensors, model)
    return weights


def _preprocessing(named: str, model: nn.Module, hw: tuple[int, int], asked: Mapping[str, Any]) -> Preprocessing:
    """Return how timm prepares the images that it tests a model with, at a size in pixels."""
    data = importlib.import_module("timm.data").resolve_model_data_config(model)
    mode = data["crop_mode"]
    if mode not in _RESIZES and "resize" not in asked:
        raise ConfigError(
            f"timm prepares images for {named} by crop_mode {mode!r}, which vit-rs has not: give resize, one of "
            f"{', '.join(_RESIZES.values())}"
        )
    fields: dict[str, Any] = {
        "resize": _RESIZES.get(mode),
        "crop": float(data["crop_pct"]),
        "interpolation": data["interpolation"],
        "mean": tuple(data["mean"]),
        "std": tuple(data["std"]),
    }
    try:
        return Preprocessing(hw, **{**fields, **asked})
    except ConfigError as error:
        raise ConfigError(f"images for timm's {named}: {error}") from error


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (str, int, float, bool)
    return {
        key: value if isinstance(value, kinds) else list(value) if isinstance(value, tuple) else repr(value)
        for key, value in sorted(arguments.items())
    }
