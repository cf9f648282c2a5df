"""Weights from one project's names into another's, and nothing lost that is not said."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Literal, get_args

from vit_rs.checkpoints.files import open_weights, write_npz, write_safetensors
from vit_rs.checkpoints.functions import function_notes, function_problems
from vit_rs.checkpoints.grids import Arranged, Token, arranged, prefix_tokens
from vit_rs.checkpoints.layouts.known import google_layout, layout_to_write
from vit_rs.checkpoints.layouts.section import find_section
from vit_rs.checkpoints.layouts.translation import translated_back
from vit_rs.checkpoints.model_files import check_suffix
from vit_rs.checkpoints.model_in_file import POS_EMBED, ModelInFile
from vit_rs.checkpoints.reports import ConvertReport, listed
from vit_rs.exceptions import CheckpointError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vit_rs.checkpoints.layouts.base import Layout

__all__ = ["Target", "convert"]

Target = Literal["timm", "npz", "hf"]
# timm's DINOv3 has other names.
_OUR_NAMES = ("timm", "timm-resnetv2")
_CLASS = (Token("cls_token", 0),)


def convert(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: Target = "timm",
    num_heads: int | None = None,
    drop: Sequence[str] = (),
    from_img_size: int | tuple[int, int] | None = None,
    section: str | None = None,
    layout: str | None = None,
) -> ConvertReport:
    """Write a file's weights under another project's names; every value keeps its bits.

    "timm" and "hf" (ViT, DeiT, DINOv2, DINOv3, whichever the weights are) are written as safetensors, "npz" is
    Google's: vision_transformer's layout where the class token has a position, big_vision's where not, Big Transfer's
    for a BiT ResNet. Written whole or not at all.

    What is no part of the model (MAE's decoder, DINO's projector, an optimizer's state, another model in the file)
    stays behind, and the report lists it. What the target has no place for is an error that lists it; `drop` leaves it
    out. So is, where a file of `save_checkpoint` says it, a function that the target cannot express; what the target
    says elsewhere (activation, epsilon) is a note.

    Rows of the position table before the grid change only where the target needs it: rows of zeros are put in, and a
    row that the target cannot hold is added to its token; the function stays as it is, and the report says so. Where
    the file's own configuration is kept ("timm", nothing dropped), rows stay as it says.

    Args:
        path: The file, of any container and layout that `load_pretrained` reads.
        out: Where to write; the folder must exist. An ending, if it has one, must be that of the target's container.
        to: The target.
        num_heads: Attention heads, for "npz", which keeps them apart. Known from a file of `save_checkpoint` and from
            .npz; no other says it, and a width does not tell (384 has 6 in DeiT, 12 in MoCo v3).
        drop: What to leave out, by our names or their beginnings ("head", "reg_token"), or by the file's own where
            vit-rs has no name for it.
        from_img_size: The image size that the weights were trained at, where rows change and the file cannot say it.
        section: Which model in the file, as in `load_pretrained`.
        layout: Whose names the file has, where the recognition is wrong.

    Returns:
        What was written and left out; `str()` of it is meant to be read.

    Raises:
        FileNotFoundError: There is no such file, or no folder to write to.
        CheckpointError: The file is damaged or of no layout that is known, holds what is not known, does not say its
            heads or its grid, has a head beside the section (`drop` leaves it out), or the target cannot hold the
            model.
        ValueError: An argument is none of the values above, or `num_heads` is not the file's.
    """
    if to not in get_args(Target):
        raise ValueError(f"to must be one of {', '.join(map(repr, get_args(Target)))}, got {to!r}")
    check_suffix(out, "npz" if to == "npz" else "safetensors")
    drop = _names(drop)
    num_heads = None if num_heads is None else _count_of_heads(num_heads)
    with open_weights(path) as file:
        saved = ModelInFile(find_section(file, section=section, layout=layout), from_img_size, "from_img_size")
        notes: tuple[str, ...] = ()
        dropped = _left_out(saved, drop)
        gone = {key for key, _ in dropped}
        tensors = {
            ours: saved.translation.read(ours)
            for ours in saved.translation.sources
            if not gone.issuperset(saved.translation.keys(ours))
        }
        if not tensors:
            raise ValueError(f"drop: nothing is left of {path}")
        heads = _heads(saved, num_heads) if to == "npz" else num_heads
        target = _target(to, tensors, saved)
        # Under names that are ours, a whole model's configuration stays true, and its rows are as it says.
        ours_still = saved.config is not None and target.name in _OUR_NAMES and not drop
        changes = None if ours_still else _fit_rows(tensors, saved, target)
        theirs = translated_back(tensors, target, heads=heads)
        if saved.config is not None:
            problems = function_problems(saved.config, target, tensors)
            if problems:
                raise CheckpointError(f"the layout {target.name} cannot hold this model: {'; '.join(problems)}")
            notes = function_notes(saved.config, target)
        if to == "npz":
            write_npz(out, theirs)
        else:
            metadata = {"format": "pt"}  # what transformers' own loader asks for
            if ours_still:
                metadata = dict(file.metadata)
            write_safetensors(out, theirs, metadata)
    if changes is not None and changes.dropped:
        [table] = saved.translation.keys(POS_EMBED)
        dropped += tuple((table, f"its row for {token}") for token in changes.dropped)
    return ConvertReport(
        path=str(path),
        out=str(out),
        from_layout=saved.layout,
        to_layout=target.name,
        written=len(theirs),
        merged=changes.merged if changes is not None else (),
        filled=changes.filled if changes is not None else (),
        dropped=dropped,
        notes=notes,
    )


def _count_of_heads(value: object) -> int:
    whole = operator.index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else 0
    if whole < 1:
        raise ValueError(f"num_heads must be None or an integer of at least 1, got {value!r}")
    return whole


def _names(drop: Sequence[str]) -> tuple[str, ...]:
    names = (drop,) if isinstance(drop, str) else tuple(drop)
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"drop must be names, or beginnings of names, and none of them empty, got {drop!r}")
    return names


def _left_out(saved: ModelInFile, drop: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the keys of the file that are left out, and why; raise where that was not asked for."""
    translation, section = saved.translation, saved.section
    names = {key: ours for ours in translation.sources for key in translation.keys(ours)}
    reason = "as asked"
    dropped = [(section.file_key(key), why) for key, why in translation.ignored.items()]
    unknown = []
    beside = dict.fromkeys(saved.heads_beside())
    dropped += [(key, why) for key, why in saved.outside().items() if key not in beside]
    for key in (*map(section.file_key, translation.unknown), *beside):
        if key.startswith(tuple(drop)):
            dropped.append((key, reason))
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"{saved.path}: no place for {listed(unknown)}, which the layout {section.layout.name} does not know"
            f"{' there' if set(unknown) & set(beside) else ''} (drop leaves it out)"
        )
    if translation.incomplete:
        parts = [f"{ours} lacks {listed(theirs)}" for ours, theirs in translation.incomplete.items()]
        raise CheckpointError(f"{saved.path}: {listed(parts, separator='; ')}")
    dropped += [(key, reason) for key, ours in names.items() if ours.startswith(tuple(drop))]
    unused = [name for name in drop if not any(key.startswith(name) for key in (*names.values(), *dict(dropped)))]
    if unused:
        raise ValueError(f"drop: the file has no {', '.join(unused)}")
    return tuple(dropped)


def _heads(saved: ModelInFile, num_heads: int | None) -> int | None:
    """Return the number of heads: the file's, or the caller's where the file does not say it."""
    told = saved.num_heads
    if told is not None and num_heads not in (None, told):
        raise ValueError(f"num_heads must be {told}, which {saved.path} says, got {num_heads}")
    heads = num_heads if told is None else told
    if heads is None and any(ours.startswith("blocks.") for ours in saved.translation.sources):
        raise CheckpointError(
            f"{saved.path}: the file does not say its number of attention heads, which .npz keeps apart: pass "
            "num_heads, --num-heads (a width does not tell: 384 has 6 in DeiT, 12 in MoCo v3)"
        )
    return heads


def _target(to: Target, tensors: Mapping[str, Tensor], saved: ModelInFile) -> Layout:
    if to != "npz":
        return layout_to_write(to, tensors)
    rows = saved.rows(None) if POS_EMBED in tensors and "cls_token" in tensors else None
    return google_layout(tensors, len(rows.prefix) if rows is not None else 0)


def _fit_rows(tensors: dict[str, Tensor], saved: ModelInFile, target: Layout) -> Arranged | None:
    """Give the position table the rows that the target's models have; None where it has them already."""
    every = prefix_tokens({key: tensor.shape for key, tensor in tensors.items()})
    registers = any(token.key == "reg_token" for token in every)
    transformers = target.name.startswith("hf")
    left_out = [token for token in saved.tokens() if token not in every]
    if POS_EMBED not in tensors or not (left_out or (every and (registers or transformers))):
        return None
    rows = saved.rows(None)
    if rows is None:
        return None
    table, want = tensors[POS_EMBED], tuple(token for token in rows.prefix if token in every)
    if transformers:
        want = _CLASS if registers else every
    elif registers:
        want = ()  # timm's own models with registers have a row for none of the tokens before the patches
    changes = arranged(table, rows.prefix, want, tensors)
    tensors[POS_EMBED] = changes.table
    tensors.update(changes.tokens)
    return changes
