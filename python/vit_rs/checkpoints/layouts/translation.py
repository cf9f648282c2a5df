"""A section of a file seen under our names, and our tensors under a layout's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from vit_rs.checkpoints.layouts.base import check_heads, joined, own_anatomy
from vit_rs.exceptions import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from vit_rs.checkpoints.layouts.base import Layout, Rule
    from vit_rs.checkpoints.layouts.section import Section

__all__ = ["Source", "Translation", "translate", "translated_back"]


class Source(NamedTuple):
    """What makes one tensor of ours.

    Attributes:
        rule: The layout's rule.
        present: Those of its `theirs` that the file has; in place of the others stand zeros.
    """

    rule: Rule
    present: tuple[str, ...]


@dataclass(frozen=True)
class Translation:
    """A section seen under our names; no tensor has been read yet.

    Attributes:
        section: The section.
        sources: What makes each tensor of ours that the file can make, in the order of the layout's rules.
        incomplete: Tensors of ours that the file has some parts of, with the keys of the section that are missing.
        ignored: Keys of the section that are no part of the model, with the reason.
        unknown: Keys of the section that no rule and no reason covers.
    """

    section: Section
    sources: Mapping[str, Source]
    incomplete: Mapping[str, tuple[str, ...]]
    ignored: Mapping[str, str]
    unknown: tuple[str, ...]

    def keys(self, ours: str) -> tuple[str, ...]:
        """Return the keys in the file that a tensor of ours is made of."""
        return tuple(self.section.file_key(key) for key in self.sources[ours].present)

    def form(self, ours: str) -> str:
        """Return what is done to the file's tensors, for the report: "transposed"; empty for a plain copy."""
        rule = self.sources[ours].rule
        return ", ".join(filter(None, (rule.form.name, "joined" if len(rule.theirs) > 1 else "")))

    def shape(self, ours: str) -> tuple[int, ...]:
        """Return the shape that `read` gives, without reading.

        Raises:
            CheckpointError: The file's shapes cannot make it; the message names file, keys and shapes.
        """
        source = self.sources[ours]
        tensors = self.section.tensors
        metas = {key: torch.empty(tensors[key].shape, device="meta") for key in source.present}
        # Joined by arithmetic: torch.cat of meta tensors imports half of torch first.
        forms, like = self._formed(ours, metas)
        shapes = [tuple(forms.get(key, like).shape) for key in source.rule.theirs]
        first = shapes[0]
        if len(shapes) == 1:
            return first
        if any(not shape or shape[1:] != first[1:] for shape in shapes):
            raise self._misshapen(ours)
        return sum(shape[0] for shape in shapes), *first[1:]

    def read(self, ours: str) -> Tensor:
        """Return one tensor of ours: read, in our axes, joined. It may share memory with the file.

        Raises:
            CheckpointError: The file's tensors are damaged, hold no floating-point numbers, or have shapes that
                cannot make it; the message names file and keys.
        """
        self.shape(ours)  # before anything is read
        source = self.sources[ours]
        for key in source.present:
            dtype = self.section.tensors[key].dtype
            if not dtype.is_floating_point:
                raise CheckpointError(
                    f"{self.section.file.path}: {self.section.file_key(key)}: got {dtype}, expected floating point"
                )
        forms, like = self._formed(ours, {key: self.section.read(key) for key in source.present})
        return joined([forms[key] if key in forms else torch.zeros_like(like) for key in source.rule.theirs])

    def written(self, ours: str, tensor: Tensor, *, heads: int | None = None) -> dict[str, Tensor]:
        """Return what a tensor of ours is in the file's layout, by the file's keys: the way back from `read`.

        Args:
            ours: A key of `sources`.
            tensor: The tensor, of the shape that `read` gives, or another that the form can bring back.
            heads: Number of heads, for tensors whose heads the layout keeps apart.

        Raises:
            CheckpointError: The file keeps it in one array with other layers, or a part that the layout has no
                place for is not zero.
        """
        found = _parts(self.sources[ours].rule, tensor, heads, str(self.section.file.path))
        shared = [key for key in found if key not in self.section.places or self.section.places[key].layer is not None]
        if shared:
            raise CheckpointError(f"{self.section.file.path}: {shared[0]} has no array of its own in the file")
        return {self.section.file_key(key): part for key, part in found.items()}

    def _formed(self, ours: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the parts of a tensor of ours in our axes, by their keys, and one of them."""
        rule = self.sources[ours].rule
        try:
            forms = {key: rule.form.read(tensor) for key, tensor in tensors.items()}
        except (RuntimeError, IndexError, ValueError) as error:
            raise self._misshapen(ours) from error
        return forms, next(iter(forms.values()))

    def _misshapen(self, ours: str) -> CheckpointError:
        section = self.section
        shapes = ", ".join(
            f"{section.file_key(key)} {tuple(section.tensors[key].shape)}" for key in self.sources[ours].present
        )
        return CheckpointError(
            f"{section.file.path}: shapes that cannot make {ours} in the layout {section.layout.name}: {shapes}"
        )


def translate(section: Section) -> Translation:
    """See a section under our names, by its layout's rules. Reads no tensor and raises nothing."""
    layout, tensors = section.layout, section.tensors
    sources: dict[str, Source] = {}
    partly: dict[str, Source] = {}
    for rule in layout.rules(layout.anatomy(tensors)):
        present = tuple(key for key in rule.theirs if key in tensors)
        missing = [index for index, key in enumerate(rule.theirs) if key not in tensors]
        if present and rule.ours not in sources:
            complete = set(missing) <= set(rule.zeros)
            (sources if complete else partly).setdefault(rule.ours, Source(rule, present))
    partly = {ours: source for ours, source in partly.items() if ours not in sources}
    incomplete = {
        ours: tuple(key for index, key in enumerate(rule.theirs) if key not in present and index not in rule.zeros)
        for ours, (rule, present) in partly.items()
    }
    used = {key for source in (*sources.values(), *partly.values()) for key in source.present}
    ignored: dict[str, str] = {}
    unknown = []
    for key in tensors:
        if key not in used:
            reason = layout.ignored(key)
            if reason is None:
                unknown.append(key)
            else:
                ignored[key] = reason
    return Translation(section, sources, incomplete, ignored, tuple(unknown))


def translated_back(tensors: Mapping[str, Tensor], layout: Layout, *, heads: int | None = None) -> dict[str, Tensor]:
    """Return our tensors under a layout's names and in its shapes: the way back from `Translation.read`.

    Args:
        tensors: A model's state dict, under our names.
        layout: Whose names.
        heads: Number of heads, for layouts that keep them apart.

    Returns:
        Their tensors, views of ours where nothing is moved.

    Raises:
        CheckpointError: The layout has no place for some of the tensors, or cannot hold their values; the message
            lists all of them.
    """
    rules: dict[str, Rule] = {}
    for rule in layout.rules(own_anatomy({key: tuple(tensor.shape) for key, tensor in tensors.items()})):
        rules.setdefault(rule.ours, rule)
    problems = [key for key in tensors if key not in rules]
    problems = [f"no place for {', '.join(problems)}"] if problems else []
    problems += layout.refused(tensors)
    theirs: dict[str, Tensor] = {}
    for ours, tensor in tensors.items():
        if ours in rules:
            try:
                theirs.update(_parts(rules[ours], tensor, heads, f"the layout {layout.name}"))
            except CheckpointError as error:
                problems.append(str(error))
    if problems:
        raise CheckpointError(f"the layout {layout.name} cannot hold this model: {'; '.join(problems)}")
    return layout.wrapped(theirs)


def _parts(rule: Rule, tensor: Tensor, heads: int | None, where: str) -> dict[str, Tensor]:
    """Return the tensors of theirs that a rule makes of ours."""
    count = len(rule.theirs)
    if not tensor.ndim or tensor.shape[0] % count:
        raise CheckpointError(
            f"{where}: {rule.ours}: got shape {tuple(tensor.shape)}, expected {count} equal parts on its first axis"
        )
    parts = dict(zip(rule.theirs, tensor.chunk(count) if count > 1 else (tensor,), strict=True))
    for index in rule.zeros:
        if parts.pop(rule.theirs[index]).count_nonzero():
            raise CheckpointError(f"{where}: {rule.ours}: no place for {rule.theirs[index]}, which is not zero")
    axis = rule.form.heads_axis
    found = {}
    try:
        for key, part in parts.items():
            split = 0 if axis is None else check_heads(f"{where}: {rule.ours}", part.shape[axis], heads)
            found[key] = rule.form.write(part, split)
    except CheckpointError:
        raise
    except (RuntimeError, IndexError, ValueError) as error:
        wanted = ", ".join(parts)
        raise CheckpointError(
            f"{where}: {rule.ours}: shape {tuple(tensor.shape)} cannot make {wanted}: {error}"
        ) from error
    return found
