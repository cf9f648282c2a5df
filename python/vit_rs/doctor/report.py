"""What the doctor found, as a table and as JSON."""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vit_rs.data.statistics import byte_text
from vit_rs.doctor.speed import best_threads, medians

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vit_rs.doctor.damage import Damage
    from vit_rs.doctor.parity import Parity
    from vit_rs.doctor.speed import Speed
    from vit_rs.doctor.survey import Survey

__all__ = ["Progress", "Report"]

_WIDTH = 120
_INDENT = 14
# Empty classes that are named.
_MOST_NAMES = 5


class Progress(Protocol):
    """Is told how far the examination has come."""

    def __call__(self, part: str, done: int, total: int, /) -> None:
        """`done` of about `total` steps of `part` are done."""


@dataclass
class Report:
    """What was found so far; printed, it is a table. What was not examined, or could not be, is None.

    Attributes:
        data: the data set, as it was named.
        cpus: CPUs that this process may use.
        consumer: images per second that the user's training takes, if it was told.
        survey: what the files are.
        parity: whether their pixels are the same as other libraries'.
        speed: images per second.
        damage: what cannot be decoded.
        finished: whether nothing was interrupted.
    """

    data: str
    cpus: int
    consumer: float | None = None
    survey: Survey | None = None
    parity: Parity | None = None
    speed: Speed | None = None
    damage: Damage | None = None
    finished: bool = False

    @property
    def recommended_threads(self) -> int | None:
        """Fewest threads with 95 % of the best rate, or that feed the consumer; None where none do, or unmeasured."""
        rates = {} if self.speed is None else medians(self.speed.ours)
        return best_threads(rates, self.consumer) if rates else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON's types."""
        told = dataclasses.asdict(self)
        if self.speed is not None:
            told["speed"]["median"] = {"ours": medians(self.speed.ours), "torchvision": medians(self.speed.torchvision)}
            for count, stats in self.speed.stats.items():
                told["speed"]["stats"][count] |= {"verdict": stats.verdict, "advice": stats.advice}
        return {**told, "recommended_threads": self.recommended_threads}

    def __str__(self) -> str:
        lines: list[str] = []
        for name, text in self._rows():
            first = f"{name:<{_INDENT}}"
            if len(first + text) <= _WIDTH or not name:  # a table's row, or a path
                lines.append(first + text)
            else:
                lines += textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=" " * _INDENT)
        return "\n".join(lines)

    def _rows(self) -> Iterator[tuple[str, str]]:
        if self.survey is not None:
            yield from _survey_rows(self.data, self.survey)
        if self.parity is not None:
            yield from _parity_rows(self.parity)
        if self.speed is not None and self.speed.ours:
            yield from self._speed_rows(self.speed)
        elif self.speed is not None and self.speed.tried and not self.speed.usable:
            who = "vit-rs" if self.speed.torchvision_missing else "both vit-rs and Pillow"
            yield "speed", f"not measured: none of {self.speed.tried:,} images looked at can be decoded by {who}"
        if self.damage is not None:
            damage = self.damage
            yield "damage", f"{len(damage.damaged):,} of {damage.checked:,} images cannot be decoded completely"
            for name, reason in damage.damaged:
                yield "", f"{name}: {reason}"
        if not self.finished:
            yield "interrupted", "what stands above was found until then"

    def _speed_rows(self, speed: Speed) -> Iterator[tuple[str, str]]:
        ours, theirs = medians(speed.ours), medians(speed.torchvision)
        rounds = len(next(iter(speed.ours.values())))
        yield "speed", "images/s from files: decode, RandomResizedCrop(224), flip, normalise, batches of 64;"
        yield "", f"medians of {rounds} interleaved rounds of {speed.images:,} images"
        if speed.usable < speed.tried:
            left_out = f"{speed.tried - speed.usable:,} of {speed.tried:,}"
            yield "", f"left out: {left_out} images looked at, which vit-rs or Pillow cannot decode completely"
        yield "", f"{'threads or workers':<20}{'vit-rs':>10}{'torchvision':>13}{'ratio':>8}"
        for count, rate in ours.items():
            peer = f"{theirs[count]:>13,.0f}{rate / theirs[count]:>8.2f}" if count in theirs else f"{'-':>13}{'-':>8}"
            yield "", f"{count:<20}{rate:>10,.0f}{peer}"
        if speed.torchvision_missing:
            yield "", f"torchvision: {speed.torchvision_missing}"
        chosen = self.recommended_threads
        shown = chosen or max(ours, key=lambda count: ours[count])
        stats = speed.stats[shown]
        times = ((stage, getattr(stats, f"{stage}_us")) for stage in ("read", "decode", "augment", "emit"))
        stages = ", ".join(f"{stage} {time:,.0f}" for stage, time in times)
        yield "stages", f"{stages} us of thread time an image, with {shown} thread{'s' * (shown > 1)}"
        yield "verdict", f"{stats.verdict or 'none'}, where the consumer only takes batches. {stats.advice}"
        yield "threads", self._recommendation(ours, chosen)

    def _recommendation(self, ours: dict[int, float], chosen: int | None) -> str:
        best = max(ours.values())
        if chosen is None:
            return f"none of {sorted(ours)} feeds {self.consumer:,.0f} images/s; the most is {best:,.0f}"
        if self.consumer is None:
            return f"num_threads={chosen}: the fewest with 95 % of the best rate"
        return (
            f"num_threads={chosen}: the fewest that feed {self.consumer:,.0f} images/s ({ours[chosen]:,.0f} measured)"
        )


def _survey_rows(data: str, survey: Survey) -> Iterator[tuple[str, str]]:
    parts = _count(survey.shards or 0, "shard", "shards")
    if survey.classes is not None:
        parts = _count(survey.classes, "class", "classes")
    yield "data", f"{data}: {survey.images:,} images in {parts}"
    if survey.empty_classes:
        names = ", ".join(survey.empty_classes[:_MOST_NAMES])
        more = len(survey.empty_classes) - _MOST_NAMES
        listed = f"{names} and {more:,} more" if more > 0 else names
        yield "empty", f"no image in class folder {listed}: training does not start until it has some, or is removed"
    formats = ", ".join(f"{count:,} {name}" for name, count in survey.formats.items())
    yield "files", f"{formats or 'none readable'}; of {survey.sampled:,} looked at"
    kinds = {
        "progressive JPEGs": survey.progressive,
        "gray": survey.gray,
        "CMYK": survey.cmyk,
        "turned by EXIF": survey.rotated,
        "with an unreadable header": survey.unreadable,
    }
    yield "", ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    for name, values in (("width", survey.width), ("height", survey.height)):
        if values:
            yield name, "{:,}, {:,}, {:,} pixels (5 %, median, 95 %)".format(*values)
    if survey.bytes:
        yield "size", "{}, {}, {}".format(*map(byte_text, survey.bytes))


def _count(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _parity_rows(parity: Parity) -> Iterator[tuple[str, str]]:
    equal = f"{parity.decode_equal:.4%} of the pixels of {parity.images} images equal"
    yield "parity", f"decoding beside Pillow {parity.pillow}: {equal}, largest difference {parity.decode_max} of 255"
    if parity.transform_max is None:
        yield "", "torchvision: not installed, or it cannot be imported"
    else:
        chain = "Resize(256), CenterCrop(224), normalised floats"
        yield "", f"{chain} beside torchvision {parity.torchvision}: largest difference {parity.transform_max:.3g}"
