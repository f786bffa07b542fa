"""All that a model's forward pass can reach and write, noted before a run and put back after it.

What counts: attributes of modules, of the objects that they hold and of user classes; dicts, lists, sets and deques in them;
closures, function attributes, globals of the code that runs; variables of the context and of the thread; tensors, arrays and
generators of random numbers; `lru_cache`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dis
import functools
import threading
import types
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import nn

from .contents import BUILTINS, MISSING, all_code, content_of, in_context, put_back, set_attribute, set_cell, set_class
from .randomness import is_generator

__all__ = ["Kept", "ReachableState"]

_MOST_OBJECTS = 100_000
"""Objects beyond this number are not looked at; the nearest come first. Modules and their own attributes are not counted. A
bound on time: every run of the model begins with this search. A note says it where the bound is met."""

_MOST_FUNCTIONS = 2_000
"""Functions whose code is read: a bound on time; a forward pass has fewer of its own, and torch's are passed over."""

_LARGEST_COPY = 1 << 28
"""Bytes of one tensor or array, 256 MiB: larger ones are data sets rather than state, and a copy of them could exhaust memory."""

_SIMPLE = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device, torch.Size, range, slice)
_REGISTERED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_CONTAINERS = (dict, list, set, deque)
# Their objects are no state of a model, or belong to whoever holds the model.
_NOT_ENTERED = frozenset(
    {
        "accelerate", "asyncio", "builtins", "concurrent", "contextlib", "datasets", "enum", "fxenorm", "importlib", "inspect",
        "io", "lightning", "lightning_fabric", "logging", "multiprocessing", "numpy", "os", "pytorch_lightning", "re", "scipy",
        "sympy", "sys", "tempfile", "threading", "torch", "typing", "warnings", "weakref", "_thread", "abc", "_abc", "ctypes",
        "pathlib", "torchgen", "networkx", "tokenizers", "pytest", "_pytest", "subprocess", "unittest", "pdb", "triton",
    }
)  # fmt: skip


def _home(thing: Any) -> str:
    """Returns the package in which a class or function was made."""
    return str(getattr(thing, "__module__", None) or "builtins").split(".")[0]


class Kept:
    """A tensor that forward left in a place where it found `before`."""

    def __init__(self, tensor: torch.Tensor, before: Any, key: Any, is_read: bool) -> None:
        self.tensor, self.before, self.key, self.is_read = tensor, before, key, is_read


class ReachableState:
    """Notes at creation all that forward can reach; `restore` puts it back.

    Attributes:
        generators: of random numbers; whoever runs forward sets them back.
        whole: whether all was looked at; else there were too many objects.
        rebound: by identity, the tensors in whose places forward put others.
        overwritten: for each tensor that is held because forward keeps it, the identity of the tensor that it replaced, or None.

    Two places are beyond it: what is held by compiled code only, and iterators that were advanced. An `lru_cache` that got new
    entries is emptied, old entries too: they are computed again when they are next asked for.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen: dict[int, Any] = {}
        self._containers: list[tuple[Any, Any]] = []
        self._slots: list[tuple[Any, str, Any]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._classes: list[tuple[type, dict[str, Any]]] = []
        self._variables: list[tuple[contextvars.ContextVar[Any], Any]] = []
        self._caches: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        self._arrays: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self.generators: list[Any] = []
        self._code: list[types.CodeType] = []
        self._functions = 0
        self._start: list[tuple[Any, Any]] = []
        self.rebound: dict[int, torch.Tensor] = {}
        self.overwritten: list[int | None] = []
        self._queue: deque[Any] = deque()
        self._buffers: set[int] = set()
        self.whole = self._search(model)

    # --- the search ------------------------------------------------------------------------------------------------------

    def _search(self, model: nn.Module) -> bool:
        """Notes all that the model reaches, the nearest first; returns whether nothing is left to look at."""
        for tensor in (*model.parameters(), *model.buffers()):
            self._seen[id(tensor)] = tensor
        # Every module first, however many there are: a tracer hangs its hooks on each.
        modules = list(model.modules())
        self._seen.update((id(module), module) for module in modules)
        self._buffers = {id(module._buffers) for module in modules}
        for module in modules:
            self._enter(module)
        most = len(self._seen) + _MOST_OBJECTS
        while self._queue and len(self._seen) < most:
            self._enter(self._queue.popleft())
        whole = not self._queue
        self._queue.clear()
        return whole

    def _visit(self, value: Any) -> None:
        """Puts `value` in the queue if it may hold or be state."""
        if isinstance(value, _SIMPLE) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        self._queue.append(value)

    def _enter(self, value: Any) -> None:
        """Notes the content of `value` and visits it."""
        if isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, _CONTAINERS):
            self._container(value)
        elif isinstance(value, (tuple, frozenset)):
            for item in value:
                self._visit(item)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, functools._lru_cache_wrapper):
            self._caches.append((value, value.cache_info()))
            self._visit(getattr(value, "__wrapped__", None))
        elif isinstance(value, types.CellType):
            self._cell(value)
        elif isinstance(value, type):
            self._class(value)
        elif not isinstance(value, types.ModuleType):
            self._object(value)

    def _module(self, module: nn.Module) -> None:
        """Notes every attribute of a module, and visits its values and its class."""
        held = vars(module)
        self._note(held)
        for name, value in held.items():
            if (type(value) is dict and not value) or name in _REGISTERED or (isinstance(value, dict) and "hooks" in name):
                self._note(value)
                self._seen[id(value)] = value
                for item in value.values() if "hooks" in name else ():
                    self._visit(item)
            else:
                self._visit(value)
        self._visit(type(module))

    def _note(self, container: Any) -> None:
        """Copies a container of a module, to be put back later."""
        if isinstance(container, (dict, set)):  # a scripted module shows its parts through objects of another kind
            self._containers.append((container, container.copy()))

    def _container(self, value: Any) -> None:
        """Notes the content of a dict, list, set or deque, and visits its items."""
        try:
            self._containers.append((value, content_of(value)))
        except Exception:  # a subclass that refuses to be copied, or that another thread is writing to
            return
        content = self._containers[-1][1]
        for item in list(content.values()) if isinstance(content, dict) else list(content):
            self._visit(item)

    def _tensor(self, tensor: torch.Tensor) -> None:
        """Copies the values of a tensor that is neither parameter nor buffer."""
        if tensor.is_meta or tensor.is_inference() or tensor.numel() * tensor.element_size() > _LARGEST_COPY:
            return
        with contextlib.suppress(RuntimeError, NotImplementedError, TypeError):  # subclasses without memory
            self._tensors.append((tensor, tensor.detach().clone(), tensor._version))

    def _function(self, function: types.FunctionType) -> None:
        """Visits a function's globals, closure, defaults and attributes; functions of torch have no state of a model."""
        if _home(function) in _NOT_ENTERED or self._functions >= _MOST_FUNCTIONS:
            return
        self._functions += 1
        for cell in function.__closure__ or ():
            self._visit(cell)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._visit(value)
        self._visit(vars(function))
        for code in all_code(function.__code__):
            self._code.append(code)
            for name in code.co_names:
                self._name(function.__globals__, name, code)

    def _name(self, owner: dict[str, Any], name: str, code: types.CodeType) -> None:
        """Notes a global that code names, or a member of a module that it names."""
        value = owner.get(name, MISSING)
        if isinstance(value, types.ModuleType):
            if value.__name__.split(".")[0] not in _NOT_ENTERED:
                members = vars(value)
                for part in code.co_names:
                    if part in members and not isinstance(members[part], types.ModuleType):
                        self._global(members, part, members[part])
            return
        if value is not MISSING or name not in BUILTINS:
            self._global(owner, name, value)

    def _global(self, owner: dict[str, Any], name: str, value: Any) -> None:
        """Notes a global variable and visits its value."""
        self._globals.append((owner, name, value))
        if value is not MISSING:
            self._visit(value)

    def _cell(self, cell: types.CellType) -> None:
        """Notes a variable of a closure and visits its content."""
        try:
            content = cell.cell_contents
        except ValueError:  # empty
            content = MISSING
        self._cells.append((cell, content))
        if content is not MISSING:
            self._visit(content)

    def _class(self, kind: type) -> None:
        """Notes the attributes and methods of user classes, inherited ones too, and visits them."""
        for base in kind.__mro__:
            if _home(base) in _NOT_ENTERED or (base is not kind and id(base) in self._seen):
                continue
            self._seen[id(base)] = base
            members = {name: value for name, value in vars(base).items() if not name.startswith("__") or callable(value)}
            self._classes.append((base, members))
            for value in members.values():
                self._visit(value)

    def _object(self, value: Any) -> None:
        """Visits the parts of a method, partial, property, array, generator of random numbers, or object with attributes."""
        if isinstance(value, (staticmethod, classmethod, types.MethodType)):
            self._visit(value.__func__)
            self._visit(getattr(value, "__self__", None))
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self._visit(part)
        elif isinstance(value, property):
            for part in (value.fget, value.fset):
                self._visit(part)
        elif isinstance(value, functools.cached_property):
            self._visit(value.func)
        elif isinstance(value, np.ndarray):
            if value.nbytes <= _LARGEST_COPY and value.dtype != object and value.flags.writeable:
                self._arrays.append((value, value.copy()))
        elif is_generator(value):
            self.generators.append(value)
        elif isinstance(value, contextvars.ContextVar):
            self._variables.append((value, in_context(value)))
            self._visit(self._variables[-1][1])
        elif _home(type(value)) not in _NOT_ENTERED or _home(type(value)) == "builtins" or isinstance(value, threading.local):
            self._attributes(value)

    def _attributes(self, value: Any) -> None:
        """Visits the attributes and slots of an object of a user's class."""
        held = getattr(value, "__dict__", None)
        if type(held) is dict:
            self._visit(held)
        for base in type(value).__mro__:
            slots = vars(base).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__"):
                    inner = getattr(value, name, MISSING)
                    self._slots.append((value, name, inner))
                    if inner is not MISSING:
                        self._visit(inner)
        self._visit(type(value))

    # --- meanwhile and afterwards ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Notes the content of every container when forward begins, where a tracer has put stand-ins."""
        self._start = [(container, content_of(container)) for container, _ in self._containers]

    def kept(self) -> list[Kept]:
        """Returns the tensors that forward has put in a place that it can reach again, each with its former content."""
        found = []
        for container, before in self._start or self._containers:
            if type(container) is dict and not container:  # mostly
                continue
            if isinstance(container, dict):
                for key, value in content_of(container).items():
                    if isinstance(value, torch.Tensor) and value is not before.get(key):
                        found.append(Kept(value, before.get(key), key, id(container) in self._buffers or self._loads(key)))
            elif isinstance(container, (list, deque)):
                old = list(before)
                for position, value in enumerate(container):
                    was = old[position] if position < len(old) else None
                    if isinstance(value, torch.Tensor) and value is not was:
                        found.append(Kept(value, was, position, True))
        for owner, name, before in (*self._slots, *self._globals):
            value = owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
            if isinstance(value, torch.Tensor) and value is not before:
                found.append(Kept(value, before, name, self._loads(name)))
        for kind, members in self._classes:
            for name, value in vars(kind).items():
                if isinstance(value, torch.Tensor) and value is not members.get(name):
                    found.append(Kept(value, members.get(name), name, True))
        for variable, before in self._variables:
            value = in_context(variable)
            if isinstance(value, torch.Tensor) and value is not before:
                found.append(Kept(value, before, None, True))
        for cell, before in self._cells:
            with contextlib.suppress(ValueError):
                if isinstance(cell.cell_contents, torch.Tensor) and cell.cell_contents is not before:
                    found.append(Kept(cell.cell_contents, before, None, True))
        return found

    def is_plain(self, value: Any) -> bool:
        """Whether it is a tensor found at creation that is neither parameter nor buffer, for which tracers put no stand-in."""
        return any(value is tensor for tensor, _, _ in self._tensors)

    def _loads(self, name: Any) -> bool:
        """Whether any code that was found reads an attribute or a global of this name; keys of containers may always be read."""
        if not isinstance(name, str) or not any(name in code.co_names for code in self._code):
            return True
        for code in self._code:
            if name in code.co_names:
                for step in dis.get_instructions(code):
                    if step.argval == name and step.opname.startswith(("LOAD", "DELETE")):
                        return True
        return False

    def restore(self) -> None:
        """Puts all that was noted back to its content at creation."""
        for container, before in self._containers:
            put_back(container, before)
        for owner, name, before in self._slots:
            if getattr(owner, name, MISSING) is not before:
                set_attribute(owner, name, before)
        for cell, before in self._cells:
            set_cell(cell, before)
        for held, name, before in self._globals:
            if held.get(name, MISSING) is not before:
                if before is MISSING:
                    del held[name]
                else:
                    held[name] = before
        for kind, members in self._classes:
            set_class(kind, members)
        for variable, before in self._variables:
            if in_context(variable) is not before and before is not MISSING:
                variable.set(before)
        for cache, info in self._caches:
            if cache.cache_info().misses != info.misses:
                cache.cache_clear()
        with torch.no_grad():
            for tensor, value, version in self._tensors:
                if tensor._version != version or not torch.equal(tensor, value):  # `.data` counts no version
                    tensor.copy_(value)
        for array, values in self._arrays:
            np.copyto(array, values)
