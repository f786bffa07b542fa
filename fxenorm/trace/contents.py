"""Containers, slots, closures and classes: their content read without asking subclasses, and put back."""

from __future__ import annotations

import contextlib
import contextvars
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

__all__ = ["BUILTINS", "MISSING", "all_code", "content_of", "in_context", "put_back", "set_attribute", "set_cell", "set_class"]

MISSING = object()
BUILTINS = frozenset(dir(__builtins__) if isinstance(__builtins__, types.ModuleType) else __builtins__)


def all_code(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yields `code` and the code nested in it, at any depth."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from all_code(constant)


def content_of(container: Any) -> Any:
    """Returns a plain copy of a container: a dict, a set or a list, subclasses (an OrderedDict, a defaultdict) too.

    A subclass may answer a look-up with something else than what it holds, so it is not asked.
    """
    if type(container) is dict:  # mostly
        return container.copy()
    if isinstance(container, dict):
        return dict(_dict_type(container).items(container))
    return set(container) if isinstance(container, set) else list(container)


def _dict_type(container: dict[Any, Any]) -> type[dict[Any, Any]]:
    """Returns the built-in type whose methods read and write the true entries of a dict."""
    return OrderedDict if isinstance(container, OrderedDict) else dict


def in_context(variable: contextvars.ContextVar[Any]) -> Any:
    """Returns the value of a variable in this context, MISSING where it has none."""
    try:
        return variable.get()
    except LookupError:
        return MISSING


def put_back(container: Any, before: Any) -> None:
    """Gives a container its former content; compares by identity, as == on tensors is no truth value."""
    if type(container) is dict and not container and not before:  # mostly
        return
    if isinstance(container, dict):
        same = len(container) == len(before) and all(
            key is old_key and value is old_value
            for (key, value), (old_key, old_value) in zip(content_of(container).items(), before.items(), strict=True)
        )
    elif isinstance(container, set):
        same = len(container) == len(before) and {id(item) for item in container} == {id(item) for item in before}
    else:
        same = len(container) == len(before) and all(new is old for new, old in zip(container, before, strict=True))
    if same:
        return
    if isinstance(container, dict):
        kind = _dict_type(container)
        kind.clear(container)
        for key, value in before.items():
            kind.__setitem__(container, key, value)
        return
    container.clear()
    if isinstance(container, set):
        container.update(before)
    else:
        container.extend(before)


def set_attribute(owner: Any, name: str, before: Any) -> None:
    """Puts an attribute back into the slot of an object; `before` MISSING: deletes it."""
    with contextlib.suppress(AttributeError, TypeError):
        if before is MISSING:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, before)


def set_cell(cell: types.CellType, before: Any) -> None:
    """Puts the content of a closure's variable back; `before` MISSING: empties it."""
    try:
        now = cell.cell_contents
    except ValueError:
        now = MISSING
    if now is not before:
        if before is MISSING:
            del cell.cell_contents
        else:
            cell.cell_contents = before


def set_class(kind: type, members: dict[str, Any]) -> None:
    """Puts the attributes of a class back, and deletes those that it did not have."""
    for name, value in members.items():
        if vars(kind).get(name, MISSING) is not value:
            setattr(kind, name, value)
    for name in [name for name in vars(kind) if name not in members and not name.startswith("__")]:
        delattr(kind, name)
