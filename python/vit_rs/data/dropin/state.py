"""Where a loader stands, as a dictionary: what torchdata's StatefulDataLoader keeps, without its workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vit_rs.data.dropin.index_stream import Origin
from vit_rs.data.dropin.random_states import RandomStates

if TYPE_CHECKING:
    from vit_rs.data.dropin.index_stream import IndexStream

__all__ = [
    "FINISHED",
    "Progress",
    "check_sampler_epoch",
    "check_state",
    "origins",
    "set_sampler_epoch",
    "state_of",
]

_VERSION = 1
_KEYS = {
    *("version", "exhausted", "batches", "samples", "base_seed", "epoch", "seeded", "identity", "given", "origins"),
    "sampler",
    # The name that accelerate knows: it writes its own finding into a loader's state.
    FINISHED := "_iterator_finished",
}


@dataclass
class Progress:
    """How far an iteration has come.

    Args:
        stream: where its indices come from.
        base_seed: of all its random numbers.
        epoch: how often a loader with persistent workers has started over.
        seeded: whether this iteration drew the base seed.
        batches: handed over, or failed.
        samples: in them.
        exhausted: whether no batch is left.
        finished: whether the consumer has seen that.
        sampler_state: the sampler's own behind them.
    """

    stream: IndexStream
    base_seed: int
    epoch: int
    seeded: bool
    batches: int = 0
    samples: int = 0
    exhausted: bool = False
    finished: bool = False
    sampler_state: Any = None


def _identity(loader: Any) -> dict[str, Any]:
    """Return what must be the same for a state to mean the same samples."""
    own = loader.batch_size is None and loader.batch_sampler is not None
    kind = type(loader.batch_sampler if own else loader.sampler)
    replicas = [getattr(sampler, "num_replicas", None) for sampler in _samplers(loader)]
    distributed = _distributed(loader)
    return {
        "samples": len(loader.dataset),
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        "sampler": f"{kind.__module__}.{kind.__qualname__}",
        "num_replicas": next((number for number in replicas if isinstance(number, int)), None),
        "sampler_epoch": None if distributed is None else distributed.epoch,
    }


def _samplers(loader: Any) -> list[Any]:
    """Return all that decide on the order."""
    return [loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]


def _distributed(loader: Any) -> Any:
    """Return the sampler that has epochs set, such as DistributedSampler."""
    for sampler in _samplers(loader):
        if hasattr(sampler, "set_epoch") and isinstance(getattr(sampler, "epoch", None), int):
            return sampler
    return None


def state_of(loader: Any, progress: Progress) -> dict[str, Any]:
    """Return the state: numbers, texts, lists, dictionaries and tensors."""
    stream = progress.stream
    made = [None if one is None else _plain(one) for one in (stream.at_start, stream.at_first)]
    return {
        "version": _VERSION,
        FINISHED: progress.finished,
        "exhausted": progress.exhausted,
        "batches": progress.batches,
        "samples": progress.samples,
        "base_seed": progress.base_seed,
        "epoch": progress.epoch,
        "seeded": progress.seeded,
        "identity": _identity(loader),
        "given": stream.given(),
        "origins": made,
        "sampler": progress.sampler_state,
    }


def check_state(loader: Any, state: dict[str, Any]) -> None:
    """Check that a state is one of a loader like this.

    Raises:
        ValueError: it is not; the text says what differs.
    """
    missing = sorted(_KEYS - state.keys())
    if missing:
        raise ValueError(f"this is no state of a vit_rs.data.DataLoader: it lacks {', '.join(missing)}")
    if state["version"] != _VERSION:
        raise ValueError(f"the state has version {state['version']}, this vit_rs reads version {_VERSION}")
    there, here = dict(state["identity"]), _identity(loader)
    # The epoch is compared when the iteration starts: set_epoch comes between.
    there.pop("sampler_epoch", None)
    here.pop("sampler_epoch")
    differing = [name for name in here if there.get(name) != here[name]]
    if differing:
        listed = "; ".join(f"{name} is {there.get(name)!r} there, {here[name]!r} here" for name in differing)
        raise ValueError(f"the state is of another loader: {listed}")


def set_sampler_epoch(loader: Any, state: dict[str, Any]) -> None:
    """Set a distributed sampler to the epoch that a state stands in."""
    epoch, sampler = state["identity"]["sampler_epoch"], _distributed(loader)
    if epoch is not None and sampler is not None:
        sampler.set_epoch(epoch)


def check_sampler_epoch(loader: Any, state: dict[str, Any]) -> None:
    """Check that a distributed sampler is still in the epoch that a state stands in.

    Raises:
        ValueError: `set_epoch` has moved it since.
    """
    there, here = state["identity"]["sampler_epoch"], _identity(loader)["sampler_epoch"]
    if there != here:
        raise ValueError(
            f"the state stands in epoch {there} of the sampler, which was set to epoch {here} since it was loaded: go "
            "on with that epoch, or load no state"
        )


def origins(state: dict[str, Any]) -> tuple[Origin, Origin | None]:
    """Return the generators' states at the iteration's start and at its first index."""
    first, second = state["origins"]
    return _origin(first), None if second is None else _origin(second)


def _plain(origin: Origin) -> dict[str, Any]:
    return {**origin.shared.plain(), "given": origin.given}


def _origin(plain: dict[str, Any]) -> Origin:
    return Origin(RandomStates.from_plain(plain), plain["given"])
