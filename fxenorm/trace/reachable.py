"""Everything that can be reached from a Python object: tensors, numbers and texts, each with the path that leads to it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from .object_parts import ATOMS, Unsearchable, cache_name, is_cache, lazy_parts, parts, stored_parts

__all__ = ["Leaf", "Search"]

_MOST_OBJECTS = 200_000
"""Objects after which a search gives up and says so: a bound on time and memory, for a search that strayed into a data set."""

_LONGEST_PATH = 200
"""Characters of a path; beyond, it is not made longer. A list whose items refer to the next would else make quadratically long
paths."""

_NUMBERS = (bool, int, float, complex, torch.SymInt, torch.SymFloat, torch.SymBool, np.generic)
_NO_DATA = (types.ModuleType, types.FrameType, types.CodeType, types.TracebackType)


@dataclass(frozen=True)
class Leaf:
    """One value at the end of a path.

    Attributes:
        path: keys, positions and attribute names, joined by dots ("" for the object itself).
        value: a tensor, a number (an array of them too), a text, or the object that cannot be searched.
        kind: which of these.
        cache: whether it lies in a cache of Transformers.
        reason: why the object cannot be searched.
        returned: whether it is part of the returned value; else forward left it in an attribute or an argument.
    """

    path: str
    value: Any
    kind: Literal["tensor", "number", "text", "unsearched"]
    cache: bool = False
    reason: str = ""
    returned: bool = True


class Search:
    """A search through objects that visits each of them once, whatever refers to whatever.

    Args:
        runs_lazy_code: whether iterators, generators and coroutines are run to see the items that a user would get; they are
            spent then. Else only what they hold now is looked at.
        raises: whether the errors of such code are passed on; else the iterator counts as one that cannot be searched.
        skip: objects that are not entered.
        enters: whether an object of a class of its own is entered.
        returned: the value of `Leaf.returned` for all leaves.
    """

    def __init__(
        self,
        *,
        runs_lazy_code: bool,
        raises: bool = False,
        skip: Iterable[Any] = (),
        enters: Callable[[Any], bool] = lambda value: True,
        returned: bool = True,
    ) -> None:
        self._runs_lazy_code, self._raises, self._enters, self._returned = runs_lazy_code, raises, enters, returned
        # Visited objects are kept alive: an object made on the way (an item of an iterator) would give its id to the next.
        self._seen: dict[int, Any] = {id(value): value for value in skip}
        self._paths: set[str] = set()

    def leaves(self, path: str, root: Any) -> Iterator[Leaf]:
        """Yields the leaves below `root` in order; objects that were visited before, from any root, are passed over."""
        stack: list[tuple[str, Any, bool]] = [(path, root, False)]
        while stack:
            path, value, cache = stack.pop()
            kind = _kind(value)
            if kind in ("number", "text"):
                if path not in self._paths or len(path) > _LONGEST_PATH:  # a named field may also be a key
                    self._paths.add(path)
                    yield Leaf(path, value, kind, cache, returned=self._returned)
                continue
            if kind == "atom" or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            if len(self._seen) > _MOST_OBJECTS:
                yield Leaf(
                    path, value, "unsearched", cache, f"more than {_MOST_OBJECTS:,} objects can be reached", self._returned
                )
                return
            if kind == "tensor":
                yield Leaf(path, value, "tensor", cache, returned=self._returned)
            cache = cache or is_cache(value)
            below: list[tuple[str, Any, bool]] = []
            try:
                for name, part in self._parts(value):
                    marked = cache_name(value, name)
                    name = marked or name
                    longer = path if len(path) > _LONGEST_PATH else f"{path}.{name}" if path else name
                    below.append((longer, part, cache or marked is not None))
            except Unsearchable as obstacle:
                yield Leaf(path, value, "unsearched", cache, str(obstacle), self._returned)
            stack.extend(reversed(below))

    def _parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        """(name, object) for everything that `value` refers to."""
        if not isinstance(value, torch.Tensor) and not self._enters(value):
            return
        yield from parts(value)
        if not self._runs_lazy_code:
            yield from stored_parts(value)
            return
        try:
            yield from lazy_parts(value)
        except Unsearchable:
            raise
        except Exception as error:  # the model's own code runs here
            if self._raises:
                raise
            raise Unsearchable(f"iterating over it raises {type(error).__name__}: {error}") from error


def _kind(value: Any) -> Literal["tensor", "number", "text", "atom", "object"]:
    """Returns the kind of leaf that a value is to the search."""
    if isinstance(value, torch.Tensor):
        return "tensor"
    if value is None or isinstance(value, (*ATOMS, *_NO_DATA)):
        return "atom"
    if isinstance(value, _NUMBERS) or (isinstance(value, np.ndarray) and value.dtype != object):
        return "number"
    if isinstance(value, (str, bytes, bytearray)):
        return "text"
    return "object"
