"""One model in a file: its weights under our names, and the image size that they were trained at."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vit_rs.checkpoints.grids import (
    TableRows,
    Token,
    grid_of_image,
    prefix_tokens,
    require_finite,
    table_rows,
    times,
)
from vit_rs.checkpoints.layouts.base import HEADS_OUT
from vit_rs.checkpoints.layouts.translation import translate
from vit_rs.checkpoints.model_files import saved_model
from vit_rs.exceptions import CheckpointError
from vit_rs.models import ViTConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vit_rs.checkpoints.layouts.section import Section
    from vit_rs.models.catalogue import Config

__all__ = ["KERNEL", "POS_EMBED", "ModelInFile", "is_table"]

POS_EMBED = "pos_embed"
KERNEL = "patch_embed.proj.weight"
_AXES = ("pos_embed_y", "pos_embed_x")
_OFFSETS = ".attn.relative.table"


def is_table(ours: str) -> bool:
    """Whether a key of ours is a position table, whose size follows the grid."""
    return ours == POS_EMBED or ours in _AXES or ours.endswith(_OFFSETS)


class ModelInFile:
    """A section of a file, seen under our names.

    Attributes:
        translation: What makes each tensor of ours.
        saved: What the file says of the model, where `save_checkpoint` wrote it; None elsewhere.

    Args:
        section: Where the model is.
        img_size: The image size that it was trained at, as the user gave it, or None.
        argument: What the user calls `img_size`.
    """

    def __init__(
        self, section: Section, img_size: int | tuple[int, int] | None = None, argument: str = "img_size"
    ) -> None:
        self.translation = translate(section)
        self.saved = saved_model(section.file)
        self._img_size, self._argument = img_size, argument

    @property
    def config(self) -> Config | None:
        """The configuration in the file; None where it is not of `save_checkpoint`."""
        return None if self.saved is None else self.saved.config

    @property
    def convention(self) -> str:
        """How its position tables are resampled, unless the user says otherwise."""
        config = self.config
        return config.pos_convention if isinstance(config, ViTConfig) else self.section.layout.convention

    @property
    def section(self) -> Section:
        """Where the model is."""
        return self.translation.section

    @property
    def layout(self) -> str:
        """Whose names it has, for reports: ours where the file is of `save_checkpoint`."""
        return self.section.layout.name if self.saved is None else "vit-rs"

    @property
    def path(self) -> str:
        """The file."""
        return str(self.section.file.path)

    def tokens(self, more: Mapping[str, Sequence[int]] | None = None) -> tuple[Token, ...]:
        """Return the tokens before the patches; also those of more shapes by our keys, which the file may lack."""
        sources = self.translation.sources
        own = {key: self.translation.shape(key) for key in sources if key.endswith("_token")}
        return prefix_tokens({**(more or {}), **own})

    @property
    def num_heads(self) -> int | None:
        """Attention heads: of our own configuration, or of .npz, which keeps them apart; None where nothing says."""
        if isinstance(self.config, ViTConfig):
            return self.config.num_heads
        for source in self.translation.sources.values():
            if source.rule.form is HEADS_OUT:
                return self.section.tensors[source.present[0]].shape[0]
        return None

    @property
    def patch(self) -> tuple[int, int]:
        """The patch kernel's (height, width): in pixels, or in positions of a ResNet's feature map."""
        shape = self.translation.shape(KERNEL) if KERNEL in self.translation.sources else ()
        if len(shape) != 4 or 0 in shape:
            raise CheckpointError(f"{self.place(KERNEL)}: expected a kernel (D, C, P, Q), got shape {shape}")
        return shape[2], shape[3]

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels for each position that patches are cut from: 1, or the stride of the ResNet before them."""
        patch = self.patch
        pixels = self.section.layout.patch_pixels(self.section.tensors, patch)
        return pixels[0] // patch[0], pixels[1] // patch[1]

    def outside(self) -> dict[str, str]:
        """Return the keys of the file that are no part of this model, with the reason.

        Those that stand outside of the section, and parts of tensors that are not whole. Keys that the layout ignores
        or does not know are `translation`'s.
        """
        section, translation = self.section, self.translation
        inside = {place.key for place in section.places.values()}
        start = section.prefix + section.wrapper
        named = f"outside of the section {start!r}" if start else "outside of the model"
        found = {key: named for key in section.file.tensors if key not in inside}
        known = {key for source in translation.sources.values() for key in source.present}
        known.update(translation.ignored, translation.unknown)
        for key in section.tensors:
            if key not in known and translation.incomplete:
                found[section.file_key(key)] = "part of a tensor whose other parts are missing"
        return found

    def heads_beside(self) -> tuple[str, ...]:
        """Return keys of the file that look like the model's head, beside the module that the section is."""
        prefix = self.section.prefix + self.section.wrapper
        if not prefix.endswith("."):
            return ()  # a dictionary's entry: what stands beside it is another thing
        parent = re.sub(r"[^./]+\.$", "", prefix)
        heads = tuple(f"{parent}{name}." for name in ("head", "classifier", "fc"))
        return tuple(key for key in self.outside() if key.startswith(heads))

    def place(self, ours: str) -> str:
        """Return the start of an error's message: the file, and the keys there of a tensor of ours."""
        keys = self.translation.keys(ours) if ours in self.translation.sources else (ours,)
        return f"{self.path}: {', '.join(keys)}"

    def read(self, ours: str) -> Tensor:
        """Return a tensor of ours, which may share memory with the file.

        Raises:
            CheckpointError: It is damaged, no floating-point numbers, or holds NaN or infinite values.
        """
        tensor = self.translation.read(ours)
        require_finite(tensor, self.place(ours))
        return tensor

    def rows(
        self,
        target: tuple[int, int] | None,
        embedded: int | None = None,
        more_tokens: Mapping[str, Sequence[int]] | None = None,
    ) -> TableRows | None:
        """Find out the grid of the position tables, and which tokens have a row in `pos_embed`.

        Args:
            target: The grid to arrive at.
            embedded: How many tokens before the patches have a row in the model that is filled, if there is one.
            more_tokens: Shapes, by our keys, of tensors of that model: its tokens may have rows, though the file lacks
                the tokens.

        Returns:
            The rows; None if there is no table.

        Raises:
            CheckpointError: The file's tables cannot be of the grid told, or nothing says which grid it is.
            ValueError: The image size that the user gave is not divisible by the patch size.
        """
        shapes = {ours: self.translation.shape(ours) for ours in self.translation.sources if is_table(ours)}
        if not shapes:
            return None
        for ours, shape in shapes.items():
            if len(shape) != (2 if ours.endswith(_OFFSETS) else 3) or 0 in shape:
                raise CheckpointError(f"{self.place(ours)}: no position table can have the shape {shape}")
        told = self._told_grid()
        if told is None and all(key in shapes for key in _AXES):
            told = shapes[_AXES[0]][1], shapes[_AXES[1]][1]
        flag = ", --from-img-size" if self._argument == "from_img_size" else ""
        ask = f"pass {self._argument}=(height, width){flag}, the image size that these weights were trained at"
        if POS_EMBED in shapes:
            standard = (
                self.config.embedded_prefix_tokens
                if isinstance(self.config, ViTConfig)
                else self.section.layout.prefix_rows(self.section.tensors)
            )
            where = self.place(POS_EMBED)
            count, tokens = shapes[POS_EMBED][1], self.tokens(more_tokens)
            return table_rows(
                count, tokens, standard=standard, told=told, embedded=embedded, target=target, where=where, ask=ask
            )
        offsets = next((ours for ours in shapes if ours.endswith(_OFFSETS)), None)
        if offsets is None:
            return TableRows((), told) if told is not None else None
        # Offsets from -(N - 1) to N - 1.
        count = (shapes[offsets][0] + 1) // 2
        return table_rows(count, (), standard=0, told=told, target=target, where=self.place(offsets), ask=ask)

    def _told_grid(self) -> tuple[int, int] | None:
        saved = self.config.grid_size if isinstance(self.config, ViTConfig) else None
        if self._img_size is None:
            return saved
        asked = grid_of_image(self._img_size, self.patch, self.stride, self._argument)
        if saved is not None and saved != asked:
            raise CheckpointError(
                f"{self.path}: {self._argument}={self._img_size} means a grid of {times(asked)}, but the file's own "
                f"configuration says {times(saved)}"
            )
        return asked
