"""Whether a model can behave differently in train and eval mode, read off the code of its modules."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from .contents import all_code
from .readable import home, imported_modules, is_plain, is_trusted

__all__ = ["depends_on_mode", "set_mode"]

_MOST_FUNCTIONS = 2000
"""More functions than this behind a module's methods are not followed: the model is then traced in both modes. A bound on
time, as reading a function's code costs more than a look at it; the second trace costs seconds at most."""


def set_mode(model: nn.Module, mode: str) -> None:
    """Puts the whole model in "train" or "eval" mode; a part that was exported keeps the one that its graph was made in."""
    try:
        model.train(mode == "train")
    except NotImplementedError:  # the module of an ExportedProgram refuses the call
        for module in model.modules():
            module.training = mode == "train"


def depends_on_mode(model: nn.Module) -> bool:
    """False only where no code that the modules can reach reads a ``training`` flag or reacts to ``train()``.

    A flag can only be read by name, so the compiled code of every method and hook, of every function and object stored on
    a module, and of what these call outside torch is searched for the name ``training``. What cannot be read counts as
    dependent: scripted and compiled modules, functions without a source, compiled extensions, attributes whose names are
    made while the code runs.
    """
    search = _Search()
    try:
        return any(search.in_class(kind) for kind in {type(module) for module in model.modules()}) or any(
            search.in_attributes(module) for module in model.modules()
        )
    except _TooMany:
        return True


class _TooMany(Exception):
    """There is more code than is worth reading."""


class _Search:
    """A search through code that visits each function and each class once."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def _is_new(self, thing: object) -> bool:
        """Notes `thing` as visited; False if it was already."""
        if id(thing) in self._seen:
            return False
        self._seen.add(id(thing))
        if len(self._seen) > _MOST_FUNCTIONS:
            raise _TooMany
        return True

    def in_class(self, kind: type) -> bool:
        """Whether a method of `kind`, its own or inherited below nn.Module, reads the flag or reacts to its change."""
        for base in kind.__mro__:
            if base is nn.Module or home(base) == "builtins" or not self._is_new(base):
                continue
            if base.__module__.startswith(("torch.jit", "torch._dynamo")):
                return True
            if issubclass(base, nn.Module) and not vars(base).keys().isdisjoint(("train", "eval", "training")):
                return True
            if any(self.in_value(member) for member in vars(base).values() if not isinstance(member, type)):
                return True
        return False

    def in_attributes(self, owner: object) -> bool:
        """Whether a hook, a function or an object that is stored on `owner` reads the flag."""
        return any(self._in_stored(value) for value in list(vars(owner).values()))

    def _in_stored(self, value: Any) -> bool:
        """Whether a value, or one in a container at any depth, reads the flag."""
        if isinstance(value, (dict, list, tuple, set, frozenset)):
            if not value or not self._is_new(value):
                return False
            return any(self._in_stored(item) for item in list(value.values() if isinstance(value, dict) else value))
        return not isinstance(value, nn.Module) and self.in_value(value)

    def in_value(self, value: Any) -> bool:
        """Whether `value` is a function, a class or an object with methods that read the flag, or cannot be read."""
        parts = _parts(value)
        if parts is not None:
            return any(self.in_value(part) for part in parts)
        if isinstance(value, types.FunctionType):
            return self._in_function(value)
        if isinstance(value, _COMPILED):
            return not is_trusted(value)
        if isinstance(value, (operator.attrgetter, operator.methodcaller)):
            return any("training" in str(part).split(".") for part in value.__reduce__()[1])
        kind = value if isinstance(value, type) else type(value)
        where = home(kind)
        # Instances of torch's own classes, such as weight_norm's hook, count only where they can be called.
        if where == "builtins" or (where == "torch" and (kind is value or isinstance(value, nn.Module) or not callable(value))):
            return False
        if self.in_class(kind):
            return True
        own = kind is not value and where not in ("builtins", "torch") and isinstance(getattr(value, "__dict__", None), dict)
        return own and not is_trusted(kind) and self._is_new(value) and self.in_attributes(value)

    def _in_function(self, function: types.FunctionType) -> bool:
        """Whether `function`, or a function that it calls, reads the flag."""
        if not self._is_new(function):
            return False
        if any(_names_flag(code) for code in all_code(function.__code__)):
            return True
        if home(function) == "torch":
            return False  # torch's functions take the flag as an argument; its modules are searched as classes
        if not is_trusted(function) and not is_plain(function):
            return True
        return any(self.in_value(callee) for callee in _callees(function))


_COMPILED = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType,
    types.ClassMethodDescriptorType,
)  # fmt: skip


def _parts(value: Any) -> tuple[Any, ...] | None:
    """Returns the functions inside a wrapper of functions; None for anything else."""
    if isinstance(value, (staticmethod, classmethod)):
        return (value.__func__,)
    if isinstance(value, types.MethodType):
        return (value.__func__,) if isinstance(value.__self__, (nn.Module, type)) else (value.__func__, value.__self__)
    if isinstance(value, property):
        return (value.fget, value.fset)
    if isinstance(value, functools.cached_property):
        return (value.func,)
    if isinstance(value, (functools.partial, functools.partialmethod)):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, functools._lru_cache_wrapper):
        return (value.__wrapped__,)
    return None


def _names_flag(code: types.CodeType) -> bool:
    """Whether code names the flag: as an attribute, in a string, or in a pattern."""
    return (
        "training" in code.co_names
        or "training" in code.co_consts
        or any(isinstance(constant, tuple) and "training" in constant for constant in code.co_consts)
    )


def _callees(function: types.FunctionType) -> Iterator[Any]:
    """Yields all that the names in `function`'s code lead to: globals, members of imported modules, defaults and closures."""
    for code in all_code(function.__code__):
        for name in code.co_names:
            value = function.__globals__.get(name)
            if isinstance(value, types.ModuleType):
                yield from _members(value, code)
            elif value is not None:
                yield value
        for module in imported_modules(code, function.__globals__):
            yield from _members(module, code)
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # an empty cell
            continue


def _members(module: types.ModuleType, code: types.CodeType) -> Iterator[Any]:
    """Yields all that `code` can mean by a member of a module that is not torch's."""
    if module.__name__.split(".")[0] != "torch":
        members = vars(module)
        yield from (
            members[part] for part in code.co_names if part in members and not isinstance(members[part], types.ModuleType)
        )
