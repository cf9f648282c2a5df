"""The generators that loaders and samplers hold themselves: found, and their states as plain types."""

from __future__ import annotations

import random
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from vit_rs.data.dropin.random_states import with_arrays, with_tuples, without_arrays, without_tuples

__all__ = ["generator_state", "generators_in", "same_state", "set_generator_state"]

# Attributes are followed to that many objects, and lists to that length: samplers are small, their lists may not be.
_MOST_OBJECTS = 1000
_CLOSED = (type, FunctionType, MethodType, ModuleType, torch.Tensor, torch.nn.Module, Dataset, np.ndarray)


def generators_in(**roots: Any) -> dict[str, Any]:
    """Return the generators that objects hold, directly or in attributes of attributes, by where they are.

    torch.Generator, numpy.random.Generator, numpy.random.RandomState and random.Random are; each is returned once. Data
    sets and modules are not looked into.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()
    waiting = [*reversed(roots.items())]
    while waiting and len(seen) < _MOST_OBJECTS:
        path, one = waiting.pop()
        if id(one) in seen:
            continue
        if _is_generator(one):
            seen.add(id(one))
            found[path] = one
            continue
        inside = _inside(one)
        if inside:
            seen.add(id(one))
            waiting += [(f"{path}.{name}", value) for name, value in reversed(inside)]
    return found


def _is_generator(one: Any) -> bool:
    # Subclasses of random.Random may have no state, as SystemRandom.
    return isinstance(one, (torch.Generator, np.random.Generator, np.random.RandomState)) or type(one) is random.Random


def _inside(one: Any) -> list[tuple[Any, Any]]:
    if isinstance(one, _CLOSED):
        return []
    if isinstance(one, (list, tuple)):
        return [*enumerate(one)] if len(one) <= _MOST_OBJECTS else []
    if isinstance(one, dict):
        return [*one.items()] if len(one) <= _MOST_OBJECTS else []
    return [*vars(one).items()] if hasattr(one, "__dict__") else []


def generator_state(generator: Any) -> Any:
    """Return a generator's state: a tensor of torch's, else dictionaries, lists, texts and numbers."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return without_arrays(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return without_arrays(generator.get_state(legacy=False))
    return without_tuples(generator.getstate())


def set_generator_state(generator: Any, state: Any) -> None:
    """Bring a generator to a state that `generator_state` returned.

    Raises:
        Exception: it is of another kind of generator; which type says so depends on the generator.
    """
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = with_arrays(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(with_arrays(state))
    else:
        generator.setstate(with_tuples(state))


def same_state(first: Any, second: Any) -> bool:
    """Tell whether two states of one generator are equal."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return bool(first == second)
