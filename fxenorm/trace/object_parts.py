"""The objects that an object refers to: containers, attributes, closures, iterators, and all else by the garbage collector."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import ctypes
import functools
import gc
import inspect
import io
import sys
import types
import weakref
from collections import deque
from collections.abc import AsyncIterator, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["ATOMS", "PAST_NAMES", "Unsearchable", "cache_name", "is_cache", "lazy_parts", "parts", "stored_parts"]

Parts = Iterator[tuple[str, Any]]

ATOMS = (
    torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator, torch.finfo, torch.iinfo, torch.Size,
    np.dtype, range, slice, type(Ellipsis), type(NotImplemented),
)  # fmt: skip
"""Objects that refer to nothing that a model computes."""

_MOST_ITEMS = 1_000
"""Items of an iterator that are asked for: it may never end, and a trace holds every value that comes out."""

_PATIENCE = 10.0
"""Seconds that a result of another thread is waited for: far more than a forward pass on example inputs takes, and an analysis
that waits for a thread which never ends still ends."""

_VIEWS = (KeysView, ValuesView, ItemsView)
_CONTAINERS = (Mapping, list, tuple, set, frozenset, deque, np.ndarray, *_VIEWS)
_PLAIN = frozenset({tuple, list, dict, set, frozenset})
_FULL: tuple[Any, ...] = ([], (), {}, {}.values(), {}.items(), set(), deque(), "", b"", range(0))
"""One empty container of each kind whose iterators can be copied, so that they are looked at without being advanced."""

_CONTAINER_ITERATORS = tuple(type(iter(one)) for one in _FULL) + tuple(
    type(reversed(one)) for one in _FULL if hasattr(one, "__reversed__")
)
_RAW = (
    io.IOBase, ctypes._SimpleCData, ctypes._Pointer, ctypes.Array, ctypes.Structure, ctypes.Union, torch.UntypedStorage,
    torch.TypedStorage,
)  # fmt: skip

PAST_NAMES = ("past_key_values", "cache", "cache_params")
"""The names that Transformers gives one and the same entry, by version."""
_OTHER_CACHE_NAMES = ("mems", "state", "past_buckets_states")


_STANDARD = frozenset({"builtins", "numpy", *sys.stdlib_module_names})


class Unsearchable(Exception):
    """An object keeps its content where Python cannot look."""


def parts(value: Any) -> Parts:
    """Yields (name, object) for all that `value` holds now, without running any lazy code. Raises `Unsearchable`."""
    if type(value) in _PLAIN:  # most objects of a model: they have items alone
        yield from _items(value)
    elif isinstance(value, torch.Tensor):
        yield from _attached(value)
    elif isinstance(value, nn.Module):
        yield from _of_module(value)
    elif isinstance(value, (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, types.CellType)):
        yield from _of_callable(value)
    elif isinstance(value, (concurrent.futures.Future, asyncio.Future, torch._C.Future)):
        yield "result", _result(value)
    elif isinstance(value, weakref.ref):
        yield "()", value()
    elif isinstance(value, (io.BytesIO, io.StringIO)):
        yield "content", value.getvalue()
    elif isinstance(value, _CONTAINER_ITERATORS):
        yield from ((str(position), item) for position, item in enumerate(copy.copy(value)))
    elif isinstance(value, type):
        yield from _class_data(value)
    else:
        yield from _items(value)
        yield from _attributes(value)
        if not isinstance(value, (Iterator, *_CONTAINERS)) and any(map(_is_compiled, type(value).__mro__)):
            yield from _referents(value)
        _refuse_hidden(value)


def _items(value: Any) -> Parts:
    """Yields (name, item) for each item of a container."""
    if isinstance(value, Mapping):
        for position, (key, item) in enumerate(value.items()):
            plain = isinstance(key, (str, int, float, bool, type(None)))
            if not plain:
                yield f"keys.{position}", key
            yield str(key) if plain else str(position), item
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, (set, frozenset)):
        # Sets have no order of their own; this one is the same in each run where the tensors' shapes differ.
        ordered = sorted(value, key=lambda item: (type(item).__name__, tuple(getattr(item, "shape", ()))))
        yield from ((str(position), item) for position, item in enumerate(ordered))
    elif isinstance(value, (list, tuple, deque, *_VIEWS)):
        yield from ((str(position), item) for position, item in enumerate(value))
    elif isinstance(value, np.ndarray):
        yield from ((str(position), item) for position, item in enumerate(value.flat))


def _attributes(value: Any) -> Parts:
    """Instance attributes, in a dict or in slots."""
    with contextlib.suppress(AttributeError):
        yield from _named(object.__getattribute__(value, "__dict__"))
    for kind in type(value).__mro__:
        yield from _class_data(kind)
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            with contextlib.suppress(AttributeError):
                if name not in ("__dict__", "__weakref__"):
                    yield name, object.__getattribute__(value, f"_{kind.__name__.lstrip('_')}{name}" if private else name)


def _class_data(kind: type) -> Parts:
    """Yields the data that a user's class keeps in attributes of its own, and what its methods share with the function around."""
    if not _is_librarys(kind.__module__):
        for name, member in _named(vars(kind)) if "<locals>" in kind.__qualname__ else ():
            function = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
            if isinstance(function, types.FunctionType):
                shared = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
                yield from ((f"{name}.{variable}", cell) for variable, cell in shared if variable != "__class__")
        data = (torch.Tensor, list, tuple, dict, set, deque, nn.Module)
        yield from ((name, item) for name, item in _named(vars(kind)) if isinstance(item, data) and not name.startswith("__"))


def _is_librarys(module: str | None) -> bool:
    """Whether code belongs to the standard library, torch or numpy."""
    home = (module or "").split(".")[0]
    return (home == "torch" or home in _STANDARD) and module != "__main__"


def _named(attributes: Mapping[str, Any]) -> Parts:
    """Yields the entries of an object's dict."""
    yield from ((str(name), item) for name, item in list(attributes.items()))


def _attached(tensor: torch.Tensor) -> Parts:
    """Yields the tensors, and containers of them, that a user hung on a tensor; attributes of torch's own are left out."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    made_of = flatten()[0] if flatten is not None else ()
    for name, item in list(getattr(tensor, "__dict__", {}).items()):
        torchs = name.startswith("_") or name in ("constant", "real_tensor", *made_of)
        if not torchs and isinstance(item, (torch.Tensor, list, tuple, dict)):
            yield name, item


def _of_module(module: nn.Module) -> Parts:
    """Yields a module's tensors and children by their names, then its other attributes."""
    if isinstance(module, torch.jit.ScriptModule):
        yield from (*module.named_parameters(), *module.named_buffers())
        return
    for held in (module._parameters, module._buffers, module._modules):
        yield from _named(held)
    yield from ((name, item) for name, item in list(vars(module).items()) if name not in ("_parameters", "_buffers", "_modules"))


def _of_callable(function: Any) -> Parts:
    """Yields all that a function, bound method or partial carries along: it may compute with it when it is called."""
    if isinstance(function, types.CellType):
        with contextlib.suppress(ValueError):  # an empty cell
            yield "value", function.cell_contents
    elif isinstance(function, functools.partial):
        yield "func", function.func
        yield from ((str(position), item) for position, item in enumerate(function.args))
        yield from _named(function.keywords)
    elif not isinstance(function, types.FunctionType):
        if not isinstance(getattr(function, "__self__", None), types.ModuleType):
            yield "__self__", getattr(function, "__self__", None)
        yield "__func__", getattr(function, "__func__", None)
    else:
        yield from zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
        yield from ((str(position), item) for position, item in enumerate(function.__defaults__ or ()))
        yield from _named(function.__kwdefaults__ or {})
        yield from _named(vars(function))
        yield from _globals_of(function)


def _globals_of(function: types.FunctionType) -> Parts:
    """Yields the globals that a user's function names."""
    if _is_librarys(function.__module__):
        return
    pending: list[types.CodeType] = [function.__code__]
    while pending:
        code = pending.pop()
        pending += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        yield from ((name, function.__globals__[name]) for name in code.co_names if name in function.__globals__)


def _result(future: Any) -> Any:
    """Waits for the result of a future, and returns it."""
    if isinstance(future, concurrent.futures.Future):
        with contextlib.suppress(concurrent.futures.TimeoutError):
            concurrent.futures.wait([future], timeout=_PATIENCE)
    if not future.done():
        raise Unsearchable("its result is not there yet")
    if isinstance(future, torch._C.Future):
        return future.value()
    return future.exception() or future.result()


def stored_parts(value: Any) -> Parts:
    """Yields all that an iterator or another object of the interpreter refers to, without running it."""
    if (
        isinstance(value, Iterator)
        and not isinstance(value, _CONTAINER_ITERATORS)
        and any(map(_is_compiled, type(value).__mro__))
    ):
        yield from _referents(value)


def lazy_parts(value: Any) -> Parts:
    """Yields all that a user gets by iterating over `value` or awaiting it. Raises that code's errors, and `Unsearchable`."""
    if inspect.iscoroutine(value):
        yield "result", _awaited(value)
    elif isinstance(value, AsyncIterator):
        raise Unsearchable("an asynchronous iterator would have to be awaited")
    elif _is_lazy(value):
        for position, item in enumerate(value):
            if position == _MOST_ITEMS:
                raise Unsearchable(f"iterating over it does not end after {_MOST_ITEMS:,} items")
            yield str(position), item


def _is_lazy(value: Any) -> bool:
    """Whether iterating over an object runs code that makes its items."""
    if isinstance(value, (torch.Tensor, nn.Module, io.IOBase, *_CONTAINER_ITERATORS)) or is_cache(value):
        return False
    if isinstance(value, Iterator):
        return True
    iterate = getattr(type(value), "__iter__", None)
    return isinstance(iterate, types.FunctionType) and not isinstance(value, (*_CONTAINERS, torch.utils.data.DataLoader))


def _awaited(coroutine: Any) -> Any:
    """Returns the result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise Unsearchable("it waits for something else")


def _refuse_hidden(value: Any) -> None:
    """Raises `Unsearchable` for an object of a compiled class, whose content may lie outside of Python."""
    if isinstance(value, _RAW):
        raise Unsearchable("it holds raw memory")
    for kind in type(value).__mro__:
        home = (kind.__module__ or "builtins").split(".")[0]
        if home not in _STANDARD and _is_compiled(kind):
            raise Unsearchable("it is of a compiled class")


def _is_compiled(kind: type) -> bool:
    """Whether a class was not written in Python, so that its objects may hold more than their attributes show."""
    if "pybind11" in type(kind).__name__ or "nanobind" in str(type(kind).__module__) or not kind.__flags__ & (1 << 9):
        return kind is not object
    return any(isinstance(member, (types.MethodDescriptorType, types.WrapperDescriptorType)) for member in vars(kind).values())


def _referents(value: Any) -> Parts:
    """Yields the objects to which an object refers, as the garbage collector knows them."""
    found = (item for item in gc.get_referents(value) if not isinstance(item, type))
    yield from ((f"<{position}>", item) for position, item in enumerate(found))


def is_cache(value: Any) -> bool:
    """Whether an object is a cache of Transformers, to be fed back into the next call."""
    return any(kind.__name__ == "Cache" and kind.__module__.startswith("transformers.") for kind in type(value).__mro__)


def cache_name(holder: Any, name: str) -> str | None:
    """Returns the name of an entry that holds a cache of Transformers, one for all of its versions; None for other entries."""
    kinds = type(holder).__mro__
    if any(kind.__name__ == "ModelOutput" and kind.__module__.startswith("transformers.") for kind in kinds):
        if name in PAST_NAMES:
            return PAST_NAMES[0]
        if name in _OTHER_CACHE_NAMES and kinds[0].__module__.startswith("transformers."):
            return name
    return None
