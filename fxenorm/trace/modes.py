"""Whether a model can behave differently in train and eval mode, read off the code of its modules."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["depends_on_mode", "set_mode"]

# More functions than this behind a module's methods are not followed: the model is traced in both modes.
_MOST_FUNCTIONS = 2000


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
    a module, and of what these call outside torch is searched for the name ``training``. Scripted and compiled modules
    count as dependent.
    """
    search = _Search()
    try:
        return any(search.in_class(kind) for kind in {type(module) for module in model.modules()}) or any(
            search.in_attributes(module) for module in model.modules()
        )
    except _TooMany:
        return True


class _TooMany(Exception):
    """More code than is worth reading."""


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
            if base is nn.Module or base.__module__ == "builtins" or not self._is_new(base):
                continue
            if base.__module__.startswith(("torch.jit", "torch._dynamo")):
                return True
            if issubclass(base, nn.Module) and not vars(base).keys().isdisjoint(("train", "eval", "training")):
                return True
            if any(self.in_value(member) for member in vars(base).values() if not isinstance(member, type)):
                return True
        return False

    def in_attributes(self, module: nn.Module) -> bool:
        """Whether a hook, a function or an object that is stored on `module` reads the flag."""
        for value in vars(module).values():
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
            if any(self.in_value(item) for item in inner if not isinstance(item, nn.Module)):
                return True
        return False

    def in_value(self, value: Any) -> bool:
        """Whether `value` is a function, a class or an object with methods that read the flag."""
        if isinstance(value, (staticmethod, classmethod, types.MethodType)):
            value = value.__func__
        if isinstance(value, property):
            return any(self.in_value(part) for part in (value.fget, value.fset))
        if isinstance(value, functools.partial):
            return any(self.in_value(part) for part in (value.func, *value.args, *value.keywords.values()))
        if isinstance(value, types.FunctionType):
            return self._in_function(value)
        kind = value if isinstance(value, type) else type(value)
        home = getattr(kind, "__module__", "builtins").split(".")[0]
        # Instances of torch's own classes, such as weight_norm's hook, count only where they can be called.
        if home == "builtins" or (home == "torch" and (kind is value or isinstance(value, nn.Module) or not callable(value))):
            return False
        return self.in_class(kind)

    def _in_function(self, function: types.FunctionType) -> bool:
        """Whether `function` or what it calls reads the flag."""
        if not self._is_new(function):
            return False
        if any("training" in code.co_names or "training" in code.co_consts for code in _all_code(function.__code__)):
            return True
        if (function.__module__ or "").split(".")[0] == "torch":
            return False  # torch's functions take the flag as an argument; its modules are searched as classes
        return any(self.in_value(callee) for callee in _callees(function))


def _all_code(code: types.CodeType) -> Iterator[types.CodeType]:
    """`code` and the code nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_code(constant)


def _callees(function: types.FunctionType) -> Iterator[Any]:
    """What the names in `function`'s code lead to: globals, members of imported modules, defaults and closures."""
    for code in _all_code(function.__code__):
        for name in code.co_names:
            value = function.__globals__.get(name)
            if isinstance(value, types.ModuleType):
                if value.__name__.split(".")[0] != "torch":
                    members = vars(value)
                    yield from (members[part] for part in code.co_names if part in members)
            elif value is not None:
                yield value
    yield from function.__defaults__ or ()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # an empty cell
            continue
