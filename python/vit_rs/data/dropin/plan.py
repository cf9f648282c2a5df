"""What a loader does to a data set: opened and translated, and looked at anew by each iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vit_rs.data.dropin.chain import Pipeline
from vit_rs.data.dropin.datasets import Fingerprint, open_dataset
from vit_rs.transforms.lowering import lower

if TYPE_CHECKING:
    from vit_rs._core import View
    from vit_rs.data.dropin.datasets import OpenedDataset
    from vit_rs.data.dropin.places import Place
    from vit_rs.transforms.lowering import Lowered

__all__ = ["Plan", "current_plan"]


@dataclass(frozen=True)
class Plan:
    """A data set and its chain of transforms, as they were when an iteration began.

    Args:
        dataset: the user's.
        opened: the data set, ready for the engine.
        pipeline: its transform, translated.
    """

    dataset: Any
    opened: OpenedDataset
    pipeline: Pipeline

    @property
    def handed_over(self) -> Place:
        """What the engine's images are for Python: at the first Python stage, or at the chain's end."""
        return self.pipeline.before_python if self.pipeline.python else self.pipeline.end

    @property
    def layout(self) -> str:
        """Dimensions of the engine's images; u8 ones that Python goes on with lie as Pillow's and torchvision's do."""
        place = self.handed_over
        pixels_first = place.kind == "pil" or (place.kind == "tensor" and bool(self.pipeline.python))
        return "NHWC" if pixels_first else "NCHW"

    @property
    def lowered(self) -> Lowered:
        """What the engine does."""
        return lower(self.pipeline.prefix)

    def view(self) -> View:
        """Return it as the engine takes it."""
        return self.lowered.view(layout=self.layout)

    def same_engine(self, other: Plan) -> bool:
        """Tell whether one engine can do both plans' part that is Rust's."""
        return (
            self.opened is other.opened
            and self.layout == other.layout
            and bool(self.pipeline.python) == bool(other.pipeline.python)
            and self.pipeline.prefix == other.pipeline.prefix
        )


def current_plan(dataset: Any, last: Plan | None) -> Plan:
    """Return what is to be done to a data set now.

    Args:
        dataset: the user's.
        last: the plan of the same data set before; what it opened is used again if it is still the same.

    Raises:
        UntranslatableError: the data set is none that Rust can read.
    """
    kept = last is not None and last.opened.fingerprint == Fingerprint(dataset)
    opened = last.opened if last is not None and kept else open_dataset(dataset)
    return Plan(dataset, opened, Pipeline.of(opened.transform, opened.start))
