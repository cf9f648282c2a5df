"""Weights from any file that is known into a model: copied where they fit, resampled where they can be."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, NamedTuple

from vit_rs.checkpoints.files import open_weights
from vit_rs.checkpoints.grids import (
    arranged,
    computable,
    patch_convention,
    prefix_tokens,
    resampled_kernel,
    resampled_rows,
)
from vit_rs.checkpoints.layouts.section import find_section
from vit_rs.checkpoints.model_files import check_model
from vit_rs.checkpoints.model_in_file import KERNEL, POS_EMBED, ModelInFile, is_table
from vit_rs.checkpoints.reports import LoadReport, Resampling, listed
from vit_rs.exceptions import CheckpointError
from vit_rs.models import ViTConfig
from vit_rs.models.pos_encoding import resampled_state
from vit_rs.ops.conventions import GRID_CONVENTIONS

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from vit_rs.checkpoints.layouts.translation import Translation
    from vit_rs.models.catalogue import Config, Model

__all__ = ["check_convention", "load_pretrained"]

_HEADS = ("head.", "head_dist.")
_NORMS = ("norm.", "fc_norm.")
_PRE_LOGITS = "pre_logits."
_UNEXPECTED = "the model has no such tensor"
# Fields that may differ without another function of the same weights: sizes that are resampled or seen in shapes,
# what acts in training or at the start only, and what other keys of the state dict tell.
_FREE_FIELDS = {
    "attn_drop_rate",
    "backbone_layers",
    "class_token",
    "distilled",
    "drop_path_rate",
    "drop_rate",
    "dynamic_img_size",
    "fc_norm",  # compared as `norms_pooled`
    "img_size",
    "in_chans",
    "init_head_bias",
    "init_values",
    "layers",
    "mlp_ratio",
    "no_embed_class",
    "num_classes",
    "patch_size",
    "pos_convention",
    "pos_drop_rate",
    "proj_drop_rate",
    "qk_norm",
    "qkv_bias",
    "reg_tokens",
    "representation_size",
    "width_factor",
}


def load_pretrained(
    model: Model,
    path: str | os.PathLike[str],
    *,
    img_size: int | tuple[int, int] | None = None,
    convention: str | None = None,
    head: Literal["keep", "reset"] = "keep",
    strict: bool = True,
    section: str | None = None,
    layout: str | None = None,
) -> LoadReport:
    """Fill a model with the weights of a file, at the model's own resolution and patch size.

    Container (safetensors, torch.save, .npz) and layout (whose names) are recognised by what is in the file. A
    position table is resampled when its grid is not the model's; its grid is, in this order: that of the file's own
    configuration; `img_size` over the patch size; the square one, if its number of positions is a square and the
    model's grid does not have as many positions in another shape. A patch kernel of another size is resampled as
    FlexiViT does. Rows of the table before the grid follow the model's `no_embed_class`: those that the file lacks
    are zero, those that the model lacks are added to the token itself, which leaves the function as it is.

    Values take the model's dtype and device. The model is changed only after everything has been checked.

    Args:
        model: A `VisionTransformer`, `HybridViT` or `BiTResNet`; its grid and patch are those to arrive at. Of a
            compiled or distributed model, the module inside.
        path: The file.
        img_size: The image size, in pixels, that the file's weights were trained at, where the file cannot say it.
        convention: How to resample, as in `vit_rs.resample_abs_pos_embed`; None is the way of the project that the
            file comes from.
        head: "keep" takes the file's head, which must fit. "reset" drops it and leaves the model's own, as
            fine-tuning to other classes does; it also drops a representation layer that the model has not, and the
            final norm where one of the two norms all tokens and the other the pooled vector.
        strict: Whether every key of the model must be in the file, every tensor of the file used or left out for a
            reason, and a configuration in the file mean the model's function. Without it the report lists what was
            not. Shapes must fit in any case.
        section: Which model in the file, where it holds several: what stands before its keys, or the first part of
            it ("student").
        layout: Whose names the file has, where the recognition is wrong.

    Returns:
        What happened to each key.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, does not fit (the message lists missing and unexpected keys, and
            shapes got and expected), holds NaN or infinite values, or does not say its grid.
        TypeError: The model is none of ours; the message says where in a wrapped one it is.
        ValueError: An argument is none of the values above, or the model is on the meta device.
    """
    check_model(model)
    if head not in ("keep", "reset"):
        raise ValueError(f"head must be 'keep' or 'reset', got {head!r}")
    check_convention(convention)
    with open_weights(path) as file:
        saved = ModelInFile(find_section(file, section=section, layout=layout), img_size)
        how = convention or saved.convention
        expected: dict[str, Tensor] = model.state_dict()
        keys = _sorted_keys(saved, model.config, expected, reset=head == "reset")
        differs = _check_fit(saved, model.config, expected, keys, strict=strict, reset=head == "reset")
        tensors = {ours: saved.read(ours) for ours in keys.taken}
        kernels = _fit_kernel(tensors, expected, how)
        tables = _fit_tables(tensors, saved, expected, model.config, how)
        model.load_state_dict(tensors, strict=False)  # copies: nothing of the file is kept
        container = file.container
    resampled = (*kernels, *tables.resampled)
    changed = {entry.key for entry in resampled}
    forms = ((ours, saved.translation.form(ours)) for ours in keys.taken)
    return LoadReport(
        path=str(path),
        container=container,
        layout=saved.layout,
        section=saved.section.prefix + saved.section.wrapper,
        convention=how,
        used=tuple(ours for ours in keys.taken if ours not in changed),
        resampled=resampled,
        transposed=tuple((ours, form) for ours, form in forms if form),
        merged=tables.merged,
        filled=tables.filled,
        dropped=(*keys.dropped, *((key, _UNEXPECTED) for key in keys.unexpected), *tables.dropped),
        missing=keys.missing,
        differs=differs,
    )


def check_convention(name: str | None) -> None:
    """Raise a ValueError that lists the conventions if this is none of them; None is the file's own."""
    if name is not None and (not isinstance(name, str) or name not in GRID_CONVENTIONS):
        names = ", ".join(map(repr, GRID_CONVENTIONS))
        raise ValueError(f"convention must be one of {names}, got {name!r}")


class _Keys(NamedTuple):
    """The model's keys that the file fills, and does not; the file's that are left out, with and without reason."""

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    unexpected: tuple[str, ...]


def _sorted_keys(saved: ModelInFile, config: Config, expected: Mapping[str, Tensor], *, reset: bool) -> _Keys:
    translation = saved.translation
    section = translation.section
    dropped = [(section.file_key(key), why) for key, why in translation.ignored.items()]
    unexpected = [section.file_key(key) for key in translation.unknown]
    beside: set[str] = set()
    if config.num_classes and not reset:
        # A head beside the module that was found is the model's own, under a name that no layout has.
        beside = set(saved.heads_beside())
        unexpected += sorted(beside)
    dropped += [(key, why) for key, why in saved.outside().items() if key not in beside]
    taken = set()
    for ours in translation.sources:
        why = section.layout.optional(ours)
        if ours.startswith(_HEADS) and reset:
            why = "head='reset'"
        elif ours in expected:
            taken.add(ours)
            continue
        elif ours.startswith(_PRE_LOGITS) and reset:
            why = "the model has no representation layer"
        elif reset and _other_norm(ours) in expected:
            why = f"head='reset': the model has {_other_norm(ours).split('.')[0]} in its place"
        for key in translation.keys(ours):
            if why is None:
                unexpected.append(key)
            else:
                dropped.append((key, why))
    return _Keys(
        tuple(key for key in expected if key in taken),
        tuple(key for key in expected if key not in taken),
        tuple(dropped),
        tuple(unexpected),
    )


def _other_norm(ours: str) -> str:
    """Return the key that the final norm has where it stands on the other side of the pooling; "" of other keys."""
    if not ours.startswith(_NORMS):
        return ""
    return ours.removeprefix("fc_") if ours.startswith("fc_") else f"fc_{ours}"


def _check_fit(
    saved: ModelInFile,
    config: Config,
    expected: Mapping[str, Tensor],
    keys: _Keys,
    *,
    strict: bool,
    reset: bool,
) -> tuple[str, ...]:
    """Return how the configurations differ, or raise a CheckpointError that says everything which does not fit."""
    # Of another width or depth, nearly all tensors differ: saying so would bury the reason.
    differs: list[str] = []
    problems = _sizes_that_differ(saved.translation, config)
    if not problems:
        if strict:
            problems += _keys_that_differ(saved.translation, keys, reset=reset)
        elif not keys.taken:
            problems.append("no key of the model is in the file")
        if saved.config is not None:
            differs = _fields_that_differ(saved.config, config, reset=reset)
        elif isinstance(config, ViTConfig) and saved.num_heads not in (None, config.num_heads):
            differs = [f"num_heads: got {saved.num_heads}, expected {config.num_heads}"]
        problems += differs if strict else []
        problems += _shapes_that_differ(saved.translation, keys.taken, expected)
    if problems:
        raise CheckpointError(f"{saved.path} does not fit the model: {listed(problems, separator='; ')}")
    return tuple(differs)


def _sizes_that_differ(translation: Translation, config: Config) -> list[str]:
    """Compare width and depth, which tell one size of ViT from another."""
    if not isinstance(config, ViTConfig):
        return []
    problems = []
    shape = translation.shape("norm.weight") if "norm.weight" in translation.sources else ()
    if len(shape) == 1 and shape[0] != config.embed_dim:
        problems.append(f"embed_dim: got {shape[0]}, expected {config.embed_dim}")
    blocks = {ours.split(".")[1] for ours in translation.sources if ours.startswith("blocks.")}
    if blocks and len(blocks) != config.depth:
        problems.append(f"depth: got {len(blocks)}, expected {config.depth}")
    return problems


def _keys_that_differ(translation: Translation, keys: _Keys, *, reset: bool) -> list[str]:
    missing = [
        key
        for key in keys.missing
        if not (reset and (key.startswith(_HEADS) or _other_norm(key) in translation.sources))
    ]
    unexpected = list(keys.unexpected)
    problems = []
    if missing:
        problems.append(f"missing: {listed(missing)}{_hint_of_missing(missing, translation)}")
    if unexpected:
        problems.append(f"unexpected: {listed(unexpected)}{_hint_of_unexpected(translation, keys)}")
    return problems


def _hint_of_missing(missing: list[str], translation: Translation) -> str:
    parts = [f"{ours} lacks {', '.join(theirs)}" for ours, theirs in translation.incomplete.items() if ours in missing]
    if parts:
        return f" ({listed(parts, most=2)})"
    if any(key.startswith(_HEADS) for key in missing):
        return " (the file has no such head: head='reset' leaves the model's own)"
    if "fc_norm.weight" in missing and "norm.weight" in translation.sources:
        return " (the file norms all tokens before pooling, the model the pooled vector: fc_norm=False)"
    return ""


def _hint_of_unexpected(translation: Translation, keys: _Keys) -> str:
    taken = set(keys.taken)
    left = [ours for ours in translation.sources if ours not in taken]
    if any(ours.startswith(_PRE_LOGITS) for ours in left):
        return " (a representation layer: representation_size builds it, head='reset' drops it)"
    if any(ours.startswith("head_dist") for ours in left):
        return " (a distilled DeiT: distilled=True)"
    if any(ours.startswith(_HEADS) for ours in left) and not any(key.startswith(_HEADS) for key in keys.missing):
        return " (head='reset' drops the head)"
    return ""


def _fields_that_differ(got: Config, want: Config, *, reset: bool) -> list[str]:
    """Equal shapes do not mean equal models: some fields change the function and not one shape."""
    if type(got) is not type(want):
        return [f"configuration: got a {type(got).__name__}, expected a {type(want).__name__}"]
    names = [field.name for field in dataclasses.fields(got) if field.name not in _FREE_FIELDS]
    if isinstance(got, ViTConfig) and isinstance(want, ViTConfig):
        names.append("norms_pooled")
        # A fixed table may go on as a learned one: the function is the same.
        free = {"pos_embed"} if got.pos_embed.startswith("sincos") and want.pos_embed == "1d" else set()
        free |= {"global_pool", "norms_pooled"} if reset else set()
        free |= set() if got.rope or want.rope else {"rope_theta"}
        names = [name for name in names if name not in free]
    pairs = [(name, getattr(got, name), getattr(want, name)) for name in names]
    return [f"{name}: got {old}, expected {new}" for name, old, new in pairs if old != new]


def _shapes_that_differ(translation: Translation, taken: Iterable[str], expected: Mapping[str, Tensor]) -> list[str]:
    problems = []
    for ours in taken:
        got, want = translation.shape(ours), tuple(expected[ours].shape)
        if _fixed_axes(ours, got) != _fixed_axes(ours, want):
            hint = " (head='reset' leaves the model's own head)" if ours.startswith(_HEADS) else ""
            problems.append(f"{ours}: got {got}, expected {want}{hint}")
        for key in translation.sources[ours].present:
            dtype = translation.section.tensors[key].dtype
            if not dtype.is_floating_point:
                problems.append(f"{ours}: got {dtype}, expected {expected[ours].dtype}")
    return problems


def _fixed_axes(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return what resampling does not change of a shape."""
    if ours == KERNEL and len(shape) == 4 and 0 not in shape:
        return shape[:2]
    if is_table(ours) and len(shape) in (2, 3):
        return (len(shape), *shape[:-2], shape[-1])
    return (len(shape), *shape)


def _fit_kernel(tensors: dict[str, Tensor], expected: Mapping[str, Tensor], convention: str) -> list[Resampling]:
    """Resample the patch kernel in place of the old one, if its size is not the model's."""
    if KERNEL not in tensors:
        return []
    old, new = tensors[KERNEL].shape[2:], expected[KERNEL].shape[2:]
    if old == new:
        return []
    kernel = computable(tensors[KERNEL], expected[KERNEL].dtype)
    tensors[KERNEL] = resampled_kernel(kernel, (new[0], new[1]), convention)
    return [Resampling(KERNEL, (old[0], old[1]), (new[0], new[1]), patch_convention(convention))]


class _TableChanges(NamedTuple):
    resampled: tuple[Resampling, ...] = ()
    merged: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()


def _fit_tables(
    tensors: dict[str, Tensor], saved: ModelInFile, expected: Mapping[str, Tensor], config: Config, convention: str
) -> _TableChanges:
    """Put tables of the model's grid, with the model's rows before it, in place of the old ones."""
    tables = [ours for ours in tensors if is_table(ours)]
    if not tables or not isinstance(config, ViTConfig):
        return _TableChanges()
    shapes = {key: tensor.shape for key, tensor in expected.items()}
    rows = saved.rows(config.grid_size, config.embedded_prefix_tokens, shapes)
    if rows is None:
        return _TableChanges()
    for ours in (*tables, *(token.key for token in prefix_tokens({key: tensors[key].shape for key in tensors}))):
        # Resampled and added to in the wider of the two dtypes, and rounded once.
        dtype = expected[ours].dtype if ours in expected else None
        tensors[ours] = computable(tensors[ours], dtype)
    if POS_EMBED in tensors:
        want = () if config.no_embed_class else prefix_tokens(shapes)
        table = resampled_rows(tensors[POS_EMBED], rows, config.grid_size, convention)
        try:
            changes = arranged(table, rows.prefix, want, tensors, placement=config.pos_placement)
        except ValueError as error:
            raise CheckpointError(f"{saved.place(POS_EMBED)}: {error}") from error
        tensors[POS_EMBED] = changes.table
        tensors.update(changes.tokens)
        [key] = saved.translation.keys(POS_EMBED)
        entry = Resampling(POS_EMBED, rows.grid, config.grid_size, convention)
        dropped = tuple((key, f"its row for {token}, which the model has not") for token in changes.dropped)
        resampled = (entry,) if entry.from_size != entry.to_size else ()
        return _TableChanges(resampled, changes.merged, changes.filled, dropped)
    (gh, gw), (p, q) = rows.grid, config.token_hw
    state, resampled_tables = resampled_state(
        {ours: tensors[ours] for ours in tables},
        dataclasses.replace(config, img_size=(gh * p, gw * q)),
        config,
        convention,
    )
    tensors.update(state)
    return _TableChanges(tuple(Resampling(*entry, convention) for entry in resampled_tables))
