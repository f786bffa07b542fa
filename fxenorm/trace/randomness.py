"""The generators of random numbers that a forward pass may draw from: noted, seeded and set back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

__all__ = ["Generators", "is_generator"]

_KINDS = (random.Random, np.random.RandomState, np.random.Generator, torch.Generator)


def is_generator(value: Any) -> bool:
    """Whether `value` is a generator of random numbers with a state (the operating system's has none)."""
    return isinstance(value, _KINDS) and not isinstance(value, random.SystemRandom)


class Generators:
    """Python's and numpy's global generators and all that a model can reach; torch's global ones are only seeded."""

    def __init__(self, reachable: Iterable[Any]) -> None:
        """Notes the state of the global generators, and of the `reachable` ones beside them."""
        found = {id(value): value for value in (_python(), _numpy(), *reachable)}
        self._before = [(value, _state(value)) for value in found.values()]
        self._start = self._before

    def begin(self, seed: int | None) -> None:
        """Seeds all of them, None: none, and notes where they stand when forward begins."""
        if seed is None:
            return
        for position, (value, _) in enumerate(self._before):
            _SEED[_kind(value)](value, seed + position)
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(seed)
        self._start = [(value, _state(value)) for value, _ in self._before]

    def drew(self) -> bool:
        """Whether forward drew from a generator whose numbers no trace sees: one of Python or numpy."""
        return any(not isinstance(value, torch.Generator) and not _equal(_state(value), before) for value, before in self._start)

    def restore(self) -> None:
        """Sets all back to where they were at first."""
        for value, before in self._before:
            if not _equal(_state(value), before):
                _RESTORE[_kind(value)](value, before)


def _python() -> random.Random:
    """Returns Python's global generator, the one behind `random.random`."""
    return random._inst


def _numpy() -> np.random.RandomState:
    """Returns numpy's global generator, the one behind `numpy.random.rand`."""
    return np.random.mtrand._rand


def _kind(value: Any) -> type:
    """Returns the kind of a generator, one of the four of `_KINDS`."""
    return next(kind for kind in _KINDS if isinstance(value, kind))


def _seed_numpy(value: np.random.Generator, seed: int) -> None:
    value.bit_generator.state = type(value.bit_generator)(seed).state


def _set_numpy(value: np.random.Generator, state: Any) -> None:
    value.bit_generator.state = state


_SEED: dict[type, Callable[[Any, int], Any]] = {
    random.Random: lambda value, seed: value.seed(seed),
    np.random.RandomState: lambda value, seed: value.seed(seed),
    np.random.Generator: _seed_numpy,
    torch.Generator: lambda value, seed: value.manual_seed(seed),
}
_STATE: dict[type, Callable[[Any], Any]] = {
    random.Random: lambda value: value.getstate(),
    np.random.RandomState: lambda value: value.get_state(),
    np.random.Generator: lambda value: value.bit_generator.state,
    torch.Generator: lambda value: value.get_state(),
}
_RESTORE: dict[type, Callable[[Any, Any], Any]] = {
    random.Random: lambda value, state: value.setstate(state),
    np.random.RandomState: lambda value, state: value.set_state(state),
    np.random.Generator: _set_numpy,
    torch.Generator: lambda value, state: value.set_state(state),
}


def _state(value: Any) -> Any:
    """Returns the whole state of a generator."""
    return _STATE[_kind(value)](value)


def _equal(first: Any, second: Any) -> bool:
    """Whether two states are the same, arrays in them entry by entry."""
    if isinstance(first, np.ndarray):
        return isinstance(second, np.ndarray) and np.array_equal(first, second)
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and first.keys() == second.keys() and all(_equal(first[key], second[key]) for key in first)
        )
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(_equal(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)
