"""A file of weights for another image or patch size: the same file, with other position tables and patch kernels."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from vit_rs.checkpoints.files import open_weights, rewrite
from vit_rs.checkpoints.grids import (
    TableRows,
    check_patch,
    grid_of_image,
    patch_convention,
    require_finite,
    resampled_kernel,
    resampled_rows,
    size_pair,
    times,
)
from vit_rs.checkpoints.layouts.section import all_sections, find_section
from vit_rs.checkpoints.model_files import METADATA_KEY, check_suffix, metadata_entry
from vit_rs.checkpoints.model_in_file import KERNEL, POS_EMBED, ModelInFile, is_table
from vit_rs.checkpoints.reports import Resampling, ResizeReport, listed
from vit_rs.checkpoints.transfer import check_convention
from vit_rs.exceptions import CheckpointError
from vit_rs.models import ViTConfig
from vit_rs.models.pos_encoding import resampled_state

if TYPE_CHECKING:
    import os

    from torch import Tensor

    from vit_rs.checkpoints.files import WeightsFile

__all__ = ["resize_checkpoint"]

# Adam's, as optax names them: a copy of the model's tree for each, which is no model.
_MOMENTS = {"mu", "nu"}
# Tables over pairs of positions, as BEiT's and Swin's models have them: their shape follows the grid.
_PAIRS = re.compile("rel_pos|relative_position")


def resize_checkpoint(
    path: str | os.PathLike[str],
    *,
    img_size: int | tuple[int, int],
    patch_size: int | tuple[int, int] | None = None,
    convention: str | None = None,
    out: str | os.PathLike[str],
    from_img_size: int | tuple[int, int] | None = None,
    section: str | None = None,
    layout: str | None = None,
) -> ResizeReport:
    """Write a file of weights again for images, or patches, of another size.

    The new file has the old one's container and layout; position tables and, with `patch_size`, patch kernels are
    resampled, every other tensor keeps its bytes. Every model in the file is resized (student and teacher, an
    average, MAE's decoder), but not an optimizer's moments. A configuration that `save_checkpoint` wrote follows. No
    model is built; the file is written whole or not at all, and may replace the old one.

    Args:
        path: The file: safetensors, torch.save's or .npz, of any layout that `load_pretrained` reads.
        img_size: Image side, or (height, width), in pixels, to arrive at.
        patch_size: Patch side, or (height, width): in pixels, or, where a ResNet stands before the patches, in
            positions of its feature map. None keeps it.
        convention: How to resample, as in `vit_rs.resample_abs_pos_embed`; None is the way of the project that the
            file comes from.
        out: Where to write; the folder must exist. An ending, if it has one, must be that of the file's container.
        from_img_size: The image size that the weights were trained at, where the file cannot say it.
        section: The only model to resize; None resizes all.
        layout: Whose names the file has, where the recognition is wrong.

    Returns:
        What was resampled; `str()` of it is meant to be read.

    Raises:
        FileNotFoundError: There is no such file, or no folder to write to.
        CheckpointError: The file is damaged, of no layout that is known, has nothing that could be resized, a table
            with NaN or infinite values, parts that cannot follow (a decoder's pixels, relative positions of layouts
            that are not ours), or does not say its grid.
        ValueError: A size is not divisible, or an argument is none of the values above.
    """
    check_convention(convention)
    image = size_pair(img_size, "img_size")
    patch = None if patch_size is None else size_pair(patch_size, "patch_size")
    if patch is not None:
        check_patch(patch)
    with open_weights(path) as file:
        check_suffix(out, file.container)
        sections = [] if section is not None else all_sections(file, layout=layout)
        sections = [each for each in sections if not _MOMENTS & set(re.split(r"[./]", each.prefix))]
        models = [
            ModelInFile(each, from_img_size, "from_img_size")
            for each in sections or [find_section(file, section=section, layout=layout)]
        ]
        changes: dict[str, Tensor] = {}
        resampled = []
        for saved in models:
            resampled += _resized(saved, image, patch, convention or saved.convention, changes)
        rewrite(file, changes, out, metadata=_metadata(file, models[0], image, patch))
        return ResizeReport(
            path=str(path),
            out=str(out),
            container=file.container,
            models=tuple((saved.section.prefix + saved.section.wrapper, saved.layout) for saved in models),
            resampled=tuple(resampled),
            kept=len(file.tensors) - len(changes),
            notes=tuple(_notes(file, models, image, patch)),
        )


def _resized(
    saved: ModelInFile,
    image: tuple[int, int],
    patch: tuple[int, int] | None,
    convention: str,
    changes: dict[str, Tensor],
) -> list[Resampling]:
    """Add the new tensors of one model to `changes`, by their keys in the file."""
    if KERNEL not in saved.translation.sources:
        raise CheckpointError(
            f"{saved.path}: a {saved.section.layout.name} model without patches takes images of any size: "
            "there is nothing to resize"
        )
    old_patch = saved.patch
    new_patch = patch or old_patch
    grid = grid_of_image(image, new_patch, saved.stride)
    rows = saved.rows(grid)
    if rows is None or rows.grid != grid:
        pairs = [saved.section.file_key(key) for key in saved.translation.unknown if _PAIRS.search(key)]
        if pairs:
            raise CheckpointError(f"{saved.path}: no way to resize {listed(pairs)}, whose shape follows the grid")
    resampled = [] if rows is None or rows.grid == grid else _tables(saved, rows, grid, convention, changes)
    if new_patch != old_patch:
        decoders = [saved.section.file_key(key) for key in saved.section.tensors if key.startswith("decoder_pred.")]
        if decoders:
            raise CheckpointError(
                f"{saved.path}: {listed(decoders)}: the decoder predicts the pixels of patches of {times(old_patch)}, "
                f"which is no decoder of {times(new_patch)}: convert leaves it behind"
            )
        kernel = resampled_kernel(saved.read(KERNEL), new_patch, convention)
        changes.update(saved.translation.written(KERNEL, kernel))
        [key] = saved.translation.keys(KERNEL)
        resampled.append(Resampling(key, old_patch, new_patch, patch_convention(convention)))
    return resampled


def _tables(
    saved: ModelInFile, rows: TableRows, grid: tuple[int, int], convention: str, changes: dict[str, Tensor]
) -> list[Resampling]:
    translation, section = saved.translation, saved.section
    resampled = []
    if POS_EMBED in translation.sources:
        table = resampled_rows(saved.read(POS_EMBED), rows, grid, convention)
        written = translation.written(POS_EMBED, table)
        changes.update(written)
        resampled += [Resampling(key, rows.grid, grid, convention) for key in written]
    else:
        if not isinstance(saved.config, ViTConfig):
            raise CheckpointError(f"{saved.path}: tables of this kind are resized only in files of save_checkpoint")
        state = {ours: saved.read(ours) for ours in translation.sources if is_table(ours)}
        new = _config_at(saved.config, _image_of(saved.config, grid), None)
        state, entries = resampled_state(state, saved.config, new, convention)
        for ours, old_size, new_size in entries:
            changes.update(translation.written(ours, state[ours]))
            resampled += [Resampling(key, old_size, new_size, convention) for key in translation.keys(ours)]
    for key in section.layout.more_tables(section.tensors):
        table = section.read(key)
        where = f"{saved.path}: {section.file_key(key)}"
        if not table.is_floating_point():
            raise CheckpointError(f"{where}: got {table.dtype}, expected floating point")
        if table.ndim != 3 or 0 in table.shape or table.shape[1] != len(rows.prefix) + rows.grid[0] * rows.grid[1]:
            raise CheckpointError(
                f"{where}: got shape {tuple(table.shape)}, expected the rows of {saved.place(POS_EMBED)}"
            )
        require_finite(table, where)
        changes[section.file_key(key)] = resampled_rows(table, rows, grid, convention)
        resampled.append(Resampling(section.file_key(key), rows.grid, grid, convention))
    return resampled


def _metadata(
    file: WeightsFile, model: ModelInFile, image: tuple[int, int], patch: tuple[int, int] | None
) -> dict[str, str] | None:
    """Return the text entries of a file of ours with the new sizes in its configuration; None for others."""
    if model.saved is None or not isinstance(model.saved.config, ViTConfig):
        return None
    saved = dataclasses.replace(model.saved, config=_config_at(model.saved.config, image, patch))
    return {**file.metadata, METADATA_KEY: metadata_entry(saved)}


def _config_at(config: ViTConfig, image: tuple[int, int], patch: tuple[int, int] | None) -> ViTConfig:
    return dataclasses.replace(config, img_size=image, patch_size=config.patch_size if patch is None else patch)


def _image_of(config: ViTConfig, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the size of images that have this grid, at the configuration's own patch."""
    return grid[0] * config.token_hw[0], grid[1] * config.token_hw[1]


def _notes(
    file: WeightsFile, models: list[ModelInFile], image: tuple[int, int], patch: tuple[int, int] | None
) -> list[str]:
    notes = []
    for saved in models:
        where = f" of {saved.section.prefix}" if len(models) > 1 else ""
        if not any(map(is_table, saved.translation.sources)):
            notes.append(f"the model{where} has no position table: only the patch kernel depends on a size")
        elif saved.config is None and len(set(grid_of_image(image, patch or saved.patch, saved.stride))) > 1:
            notes.append(f"the file cannot say that its grid is no square: load it with img_size={image}")
        unknown = [saved.section.file_key(key) for key in saved.translation.unknown]
        if unknown:
            notes.append(f"kept as they are, though the layout does not know them: {listed(unknown)}")
    if any(saved.section.layout.name.startswith("hf") for saved in models):
        notes.append("transformers reads image_size and patch_size from config.json beside the weights: change them")
    if any(key.split("/")[0].startswith("optimizer") or _MOMENTS & set(re.split("[./]", key)) for key in file.tensors):
        notes.append("the optimizer's state in the file is that of the old sizes")
    return notes
