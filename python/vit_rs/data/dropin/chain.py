"""A user's chain of transforms, split into what the engine does before and behind the user's own Python.

A chain has one Python span, from its first transform that has no equal in vit_rs to its last: what lies between runs in
Python too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from vit_rs import transforms as ours
from vit_rs.data.dropin import timm_transforms, torchvision_transforms
from vit_rs.data.dropin.exact import change_of, describe, library_module, name_of
from vit_rs.data.dropin.places import Place, Step, UntranslatableError, place_of
from vit_rs.transforms import Compose, MultiCrop, Transform
from vit_rs.transforms.calling import pillow_kernels
from vit_rs.transforms.lowering import lower

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vit_rs.transforms.lowering import Kernels

__all__ = ["Pipeline", "Place", "Step", "UntranslatableError", "place_of", "steps"]

Translation = tuple[tuple[Transform, ...], Place]

# What translates the transforms of each library.
_LIBRARIES = (torchvision_transforms.translate, timm_transforms.translate)


@dataclass(frozen=True)
class Pipeline:
    """A user's chain: prefix | Python span | suffix.

    Args:
        steps: all transforms of the chain, in order; those of the Python span are untranslated.
        prefix: what the engine does first; holds no transforms where Python comes at once.
        python: the user's callables of the span, in order.
        suffix: what the engine does to the image behind them; None: nothing.
        start: what the image is before the chain.
        before_python: what it is before the span; of a chain without one, behind the prefix.
        after_python: what it is expected to be behind the span.
        end: what it is expected to be behind the chain.
        first_python: index of the span's first step; None: the chain has no span.
        last_python: index of its last.
    """

    steps: tuple[Step, ...]
    prefix: Compose
    python: tuple[Any, ...]
    suffix: Compose | None
    start: Place
    before_python: Place
    after_python: Place
    end: Place
    first_python: int | None
    last_python: int | None

    @classmethod
    def of(cls, transform: Any, start: Place) -> Pipeline:
        """Return the pipeline of a data set's transform.

        Args:
            transform: what the user gave: None, a callable, or a container of them.
            start: what the image is before it.
        """
        chain = steps(transform, start)
        outside = [index for index, step in enumerate(chain) if step.translated is None]
        if not outside:
            end = chain[-1].after if chain else start
            return cls(tuple(chain), _compose(chain, start), (), None, start, end, end, end, None, None)
        first, last = outside[0], outside[-1]
        after = chain[last].after
        span = [_in_python(step) for step in chain[first : last + 1]]
        rest = chain[last + 1 :]
        suffix = _compose(rest, after)
        return cls(
            steps=(*chain[:first], *span, *rest),
            prefix=_compose(chain[:first], start),
            python=tuple(step.original for step in span),
            suffix=suffix if suffix.transforms else None,
            start=start,
            before_python=chain[first - 1].after if first else start,
            after_python=after,
            end=chain[-1].after,
            first_python=first,
            last_python=last,
        )

    @property
    def rest(self) -> tuple[Any, ...]:
        """The user's callables behind the span: what the suffix stands for, for images that it does not fit."""
        return () if self.last_python is None else tuple(step.original for step in self.steps[self.last_python + 1 :])

    def behind(self, place: Place) -> tuple[Compose | None, Place] | None:
        """Return the suffix for images that are `place` behind the Python span, and what they are behind it.

        None where the engine cannot do all of the rest on such images: only `rest` will do.
        """
        if place == self.after_python:
            return self.suffix, self.end
        chain = _translated(self.rest, place)
        if any(step.translated is None for step in chain):
            return None
        suffix = _compose(chain, place)
        return suffix if suffix.transforms else None, chain[-1].after if chain else place

    def stage(self, index: int) -> Literal["prefix", "python", "suffix"]:
        """Tell where a step is carried out."""
        if self.first_python is None or self.last_python is None or index < self.first_python:
            return "prefix"
        return "python" if index <= self.last_python else "suffix"


def steps(transform: Any, start: Place) -> list[Step]:
    """Return the transforms of a chain, one by one, each translated where it can be.

    Args:
        transform: None, a callable, or one of torchvision's Compose or nn.Sequential, which may be nested.
        start: what the image is before the chain.
    """
    return _translated(() if transform is None else _flat(transform), start)


def _translated(originals: Iterable[Any], start: Place) -> list[Step]:
    """Return transforms as steps, of which none is a chain."""
    chain: list[Step] = []
    place, begun = start, start
    # What the engine was given since the start or the last transform in Python: all of it goes into one Compose.
    taken: tuple[Transform, ...] = ()
    for original in originals:
        try:
            translated, after = _translate(original, place)
            if translated:
                taken = _joined(taken, translated, begun, after)
            chain.append(Step(original, after, translated))
        except UntranslatableError as error:
            after = error.after or place
            chain.append(Step(original, after, None, str(error)))
            taken, begun = (), after
        place = after
    return chain


def _joined(
    taken: tuple[Transform, ...], translated: tuple[Transform, ...], begun: Place, after: Place
) -> tuple[Transform, ...]:
    """Return all transforms that the engine gets together; raises UntranslatableError if it cannot."""
    if begun.kind == "float":
        raise UntranslatableError("the image is float before: the engine takes 8-bit images", after)
    joined = (*taken, *translated)
    try:
        # Some arguments only the engine checks.
        lower(Compose(joined, kernels=_kernels(begun))).view()
    except (OverflowError, TypeError, ValueError) as error:
        raise UntranslatableError(str(error), after) from error
    return joined


def _compose(chain: Sequence[Step], start: Place) -> Compose:
    return Compose([made for step in chain for made in step.translated or ()], kernels=_kernels(start))


def _kernels(start: Place) -> Kernels:
    """Return whose pixels the operations have that come first; behind PILToTensor they are torch's anyway."""
    return pillow_kernels() if start.kind == "pil" else "torch"


def _in_python(step: Step) -> Step:
    between = "stands between transforms that stay in Python"
    return step if step.translated is None else replace(step, translated=None, reason=between)


def _flat(transform: Any) -> Iterator[Any]:
    """Yield a chain's transforms, those of chains inside one by one."""
    is_chain = type(transform) is nn.Sequential or _is_torchvisions(transform, ("Compose",))
    if not is_chain or change_of(transform) is not None:
        yield transform
        return
    for inner in transform if isinstance(transform, nn.Sequential) else transform.transforms:
        yield from _flat(inner)


def _is_torchvisions(transform: Any, names: tuple[str, ...]) -> bool:
    kind = type(transform)
    return kind.__name__ in names and library_module(kind, "torchvision.transforms") is not None


def _translate(transform: Any, place: Place) -> Translation:
    """Translate one transform of any library."""
    if isinstance(transform, Transform) and library_module(type(transform), "vit_rs.transforms") is not None:
        return _own(transform, place)
    if type(transform) is nn.Sequential or _is_torchvisions(transform, ("Compose", *_CONTAINERS)):
        # A Compose comes here only if something makes it unlike its class.
        if (changed := change_of(transform)) is not None:
            raise UntranslatableError(changed)
        try:
            return _CONTAINERS[type(transform).__name__](transform, place), place
        except (AttributeError, TypeError, ValueError) as error:
            raise UntranslatableError(str(error)) from error
    for translate in _LIBRARIES:
        translation = translate(transform, place)
        if translation is not None:
            return translation
    raise UntranslatableError(describe(transform))


def _own(transform: Transform, place: Place) -> Translation:
    """Take a transform of vit_rs as it is."""
    if isinstance(transform, MultiCrop):
        raise UntranslatableError("MultiCrop makes several views: ImageLoader makes them without Python")
    if isinstance(transform, Compose) and transform.kernels not in (None, _kernels(place)):
        raise UntranslatableError(f"it names {transform.kernels!r} kernels, the chain has {_kernels(place)!r} here")
    made = tuple(transform.steps())
    for step in made:
        if isinstance(step, ours.PILToTensor) and place.kind == "pil":
            place = Place("tensor", place.channels)
        elif isinstance(step, (ours.ToTensor, ours.ToDtype)) and step.dtype.is_floating_point:
            place = Place("float", place.channels, dtype=step.dtype)
    return made, replace(place, wrapped=False)


# torchvision's transforms that hold others. What they hold must leave the image what it is.


def _random_apply(transform: Any, place: Place) -> tuple[Transform, ...]:
    if not isinstance(transform.p, Real):
        raise UntranslatableError(f"p={transform.p!r} is not a number")
    held = [made for inner in transform.transforms for made in _inside(inner, place)]
    return (ours.RandomApply(held, float(transform.p)),) if held else ()


def _random_choice(transform: Any, place: Place) -> tuple[Transform, ...]:
    held = [_inside(inner, place) for inner in transform.transforms]
    return (ours.RandomChoice([_as_one(made) for made in held], transform.p),)


def _random_order(transform: Any, place: Place) -> tuple[Transform, ...]:
    held = [_inside(inner, place) for inner in transform.transforms]
    shuffled = [_as_one(made) for made in held if made]
    return (ours.RandomOrder(shuffled),) if shuffled else ()


_CONTAINERS: dict[str, Callable[[Any, Place], tuple[Transform, ...]]] = {
    "RandomApply": _random_apply,
    "RandomChoice": _random_choice,
    "RandomOrder": _random_order,
}


def _inside(transform: Any, place: Place) -> tuple[Transform, ...]:
    """Translate what stands inside another transform."""
    made: list[Transform] = []
    for original in _flat(transform):
        try:
            translated, after = _translate(original, place)
        except UntranslatableError as error:
            name, reason = name_of(original), str(error)
            raise UntranslatableError(f"holds {reason if name in reason else f'{name}: {reason}'}") from error
        if after != place:
            raise UntranslatableError(f"holds {name_of(original)}, which changes what the image is")
        made.extend(translated)
    return tuple(made)


def _as_one(made: tuple[Transform, ...]) -> Transform:
    """Return several transforms, or none, as one that always comes as a whole."""
    return made[0] if len(made) == 1 else ours.RandomApply(made or (ours.RandomHorizontalFlip(0.0),), 1.0)
