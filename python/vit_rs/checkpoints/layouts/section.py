"""Where in a file a model's weights are: what stands before its keys, and in whose layout they are.

A file of a training run may hold several models (student and teacher, a model and its average): each is a section.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vit_rs.checkpoints.layouts.known import LAYOUTS, layout_named
from vit_rs.exceptions import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from vit_rs.checkpoints.files import TensorInfo, WeightsFile
    from vit_rs.checkpoints.layouts.base import Layout, Place

__all__ = ["Section", "all_sections", "find_section"]

# Names of models that stand second to another in the same file: DINO's student, whose teacher is what is used and
# published; MoCo v3's momentum encoder; averages beside the weights that were trained (timm's and DeiT's); Adam's
# moments, as optax names them, beside big_vision's parameters.
_SECOND = {"student", "momentum_encoder", "state_dict_ema", "model_ema", "ema_model", "ema", "mu", "nu"}
# A file has a handful of models; this keeps one that repeats an anchor from costing a search of all keys each time.
_MOST_SECTIONS = 64


@dataclass(frozen=True)
class Section:
    """One model's weights in an open file.

    Attributes:
        file: The file.
        layout: How the model's weights are named.
        prefix: What stands before its keys in the file: "teacher/", "state_dict/module.base_encoder.", "".
        wrapper: The module of the layout's `wrappers` that was removed: "vit.", "".
        tensors: Its tensors by the keys that the layout's rules know: behind prefix and wrapper, in one spelling.
        places: Where each of them is in the file.
    """

    file: WeightsFile
    layout: Layout
    prefix: str
    wrapper: str
    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, Place]
    # Arrays of all layers that were read once: layers are asked for one by one, with other arrays' between.
    _stacks: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def file_key(self, key: str) -> str:
        """Return the key in the file of a key of `tensors`."""
        return self.places[key].key

    def read(self, key: str) -> Tensor:
        """Return one tensor as it is in the file, on the CPU; it may share memory with the file.

        Raises:
            CheckpointError: The tensor is damaged; the message names file and key.
        """
        name, layer = self.places[key]
        if layer is None:
            return self.file.read(name)
        if name not in self._stacks:
            self._stacks[name] = self.file.read(name)
        return self._stacks[name][layer]

    def __str__(self) -> str:
        return f"{self.prefix!r} ({self.layout.name})"


def find_section(file: WeightsFile, *, section: str | None = None, layout: str | None = None) -> Section:
    """Return the model of a file, or one of its models.

    Of several, one is preferred over its companion: DINO's teacher over the student, MoCo v3's base encoder over the
    momentum encoder, the trained weights over their average (`state_dict_ema`, `model_ema`).

    Args:
        file: The open file.
        section: What stands before the model's keys, in full ("state_dict_ema/", "teacher/backbone.") or its first
            part ("teacher"); None looks for it.
        layout: Name of a layout to take the keys for, without asking whether they look like it; None recognises it.

    Raises:
        CheckpointError: There is no model, no such section, or several and none is preferred; the message lists them.
        ValueError: `layout` is no layout's name.
    """
    layouts = LAYOUTS if layout is None else (layout_named(layout),)
    found = _sections(file, layouts, sure=layout is not None)
    if not found:
        kinds = "any layout that is known" if layout is None else f"the layout {layout!r}"
        anchors = sorted({each.anchor for each in layouts})
        some = ", ".join(list(file.tensors)[:5]) or "none"
        raise CheckpointError(
            f"{file.path}: no model in {kinds}: expected a key that ends in {' or '.join(anchors)}; "
            f"the file's keys begin with: {some}"
        )
    listed = ", ".join(map(str, found))
    if section is not None:
        exact = [each for each in found if section in (each.prefix, each.prefix + each.wrapper)]
        begun = [each for each in found if re.match(re.escape(section) + r"[./]", each.prefix + each.wrapper)]
        chosen = exact or begun
        if not chosen:
            raise CheckpointError(f"{file.path}: no section {section!r}; the file has {listed}")
    else:
        chosen = found
    if len(chosen) > 1:
        first = [each for each in chosen if not _SECOND & set(re.split(r"[./]", each.prefix + each.wrapper))]
        chosen = first if len(first) == 1 else chosen
    if len(chosen) > 1:
        raise CheckpointError(f"{file.path}: several models: {listed}: say which by section=...")
    return chosen[0]


def all_sections(file: WeightsFile, *, layout: str | None = None) -> list[Section]:
    """Return every model of a file, in the file's order; none if nothing is recognised.

    Args:
        file: The open file.
        layout: As in `find_section`.

    Raises:
        CheckpointError: There are more models than a file of weights has.
        ValueError: `layout` is no layout's name.
    """
    layouts = LAYOUTS if layout is None else (layout_named(layout),)
    return _sections(file, layouts, sure=layout is not None)


def _sections(file: WeightsFile, layouts: Sequence[Layout], *, sure: bool) -> list[Section]:
    """Return every section; `sure` takes the layouts for granted where their anchor is."""
    anchors = [key for key in file.tensors if any(_before(key, layout.anchor) is not None for layout in layouts)]
    if len(anchors) > _MOST_SECTIONS:
        raise CheckpointError(
            f"{file.path}: {len(anchors)} keys look like a model's first ({anchors[0]}, {anchors[1]}, ...), "
            f"expected at most {_MOST_SECTIONS}"
        )
    found: dict[str, Section] = {}
    for key in anchors:
        for section in _candidates(file, key, layouts):
            if sure or section.layout.recognises(section.tensors):
                found.setdefault(section.prefix + section.wrapper, section)
                break
    for start, section in found.items():
        # A model beside which others lie deeper ("blocks...", "ema.blocks...") does not hold them.
        others = tuple(each for each in found if each != start and each.startswith(section.prefix))
        if others and not start.startswith(others):
            mine = [key for key, place in section.places.items() if not place.key.startswith(others)]
            found[start] = replace(
                section,
                tensors={key: section.tensors[key] for key in mine},
                places={key: section.places[key] for key in mine},
            )
    return list(found.values())


def _candidates(file: WeightsFile, anchor_key: str, layouts: Sequence[Layout]) -> Iterator[Section]:
    """Give what an anchor may belong to: each layout, with a wrapper before it or none."""
    for layout in layouts:
        full = _before(anchor_key, layout.anchor)
        if full is None:
            continue
        wrappers = [wrapper for wrapper in layout.wrappers if _before(full, wrapper) is not None]
        for wrapper in (*wrappers, ""):
            yield _section(file, layout, full[: len(full) - len(wrapper)], wrapper)


def _section(file: WeightsFile, layout: Layout, prefix: str, wrapper: str) -> Section:
    behind = {key.removeprefix(prefix): key for key in file.tensors if key.startswith(prefix)}
    names: dict[str, str] = {}
    for key, full in behind.items():
        inner = key.removeprefix(wrapper)
        # Where a name stands both inside and outside of the wrapper, the outer one keeps what it is not.
        names[key if inner in names or (inner != key and inner in behind) else inner] = full
    infos = {key: file.tensors[full] for key, full in names.items()}
    places, tensors = {}, {}
    for key, place in layout.views(infos).items():
        info = infos[place.key]
        tensors[key] = info if place.layer is None else info._replace(shape=info.shape[1:])
        places[key] = place._replace(key=names[place.key])
    return Section(file, layout, prefix, wrapper, tensors, places)


def _before(key: str, end: str) -> str | None:
    """Return what stands before the end of a key: nothing, or names that end in a dot or slash; else None."""
    if not key.endswith(end):
        return None
    front = key[: len(key) - len(end)]
    return front if not front or front[-1] in "./" else None
