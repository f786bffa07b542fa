"""Whether code can be read, and whose it is: judged by its place, not by its name."""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import importlib.util
import inspect
import linecache
import os
import re
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch

__all__ = ["home", "imported_modules", "is_plain", "is_trusted"]

_TORCH = os.path.dirname(torch.__file__) + os.sep
_TRUSTED = frozenset({"torch", "numpy", "builtins", *sys.stdlib_module_names}) - {"__main__"}
"""Packages whose code reads no flag of a module unless it is told its name."""

_BY_NAME = frozenset({"vars", "__dict__", "attrgetter", "eval", "exec", "__getattribute__", "getmembers", "getattr_static"})
"""Ways to an attribute whose name need not stand in the code."""

_GENERATED = frozenset(
    {
        "__init__", "__new__", "__repr__", "__eq__", "__hash__", "__lt__", "__le__", "__gt__", "__ge__", "__setattr__",
        "__delattr__", "__replace__", "_make", "_replace", "_asdict", "__getnewargs__", "__getstate__", "__setstate__",
    }
)  # fmt: skip
"""Methods that dataclasses and named tuples write, without a source, and that no forward pass depends on."""


def home(thing: Any) -> str:
    """Returns the package that a class or function comes from; "" where its place belies its name.

    The name alone may say that it is torch's or built in.
    """
    name = str(getattr(thing, "__module__", None) or "builtins")
    package = name.split(".")[0]
    if isinstance(thing, types.FunctionType):
        if thing.__code__.co_filename.startswith(_TORCH):
            return "torch"
        return "" if package in ("torch", "builtins") else package
    if package == "builtins":
        return package if thing is types.NoneType or getattr(builtins, thing.__name__, None) is thing or _is_static(thing) else ""
    if package == "torch" and not _is_static(thing) and not _found(name, thing):
        return package if all(home(member) == "torch" for member in vars(thing).values() if inspect.isfunction(member)) else ""
    return package


def _is_static(kind: type) -> bool:
    """Whether a class is written in C and cannot be changed, as all that are built in."""
    return not kind.__flags__ & (1 << 9)


def _found(module: str, kind: type) -> bool:
    """Whether a class stands in its module under its own name."""
    try:
        found: Any = functools.reduce(getattr, kind.__qualname__.split("."), sys.modules[module])
    except (AttributeError, KeyError):
        return False
    return found is kind


def is_trusted(thing: Any) -> bool:
    """Whether a class, a function or a compiled function comes from torch, numpy or the standard library."""
    if isinstance(thing, (types.FunctionType, type)):
        return home(thing) in _TRUSTED
    owner = getattr(thing, "__self__", None)
    if isinstance(owner, types.ModuleType):
        return owner.__name__.split(".")[0] in _TRUSTED and getattr(thing, "__name__", "") not in ("getattr", *_BY_NAME)
    if owner is not None and not isinstance(owner, type):
        return is_trusted(type(owner)) or isinstance(owner, (torch.Tensor, torch.nn.Module))
    kind = owner if isinstance(owner, type) else getattr(thing, "__objclass__", None)
    if isinstance(kind, type):
        return is_trusted(kind)
    return str(getattr(thing, "__module__", None) or "").split(".")[0] in _TRUSTED


def is_plain(function: types.FunctionType) -> bool:
    """Whether a function has a source and reads no attribute whose name is made while it runs."""
    code = function.__code__
    if code.co_name in _GENERATED:
        return True
    if not _has_source(function):
        return False
    names = {name for inner in _nested(code) for name in inner.co_names}
    if code.co_name.startswith("__") and code.co_name != "__call__":
        return True
    return not names & _BY_NAME and ("getattr" not in names or _reads_known_names(function))


def _has_source(function: types.FunctionType) -> bool:
    """Whether the lines of a function can be looked up."""
    code = function.__code__
    return len(linecache.getlines(code.co_filename, function.__globals__)) >= code.co_firstlineno


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yields `code` and the code in it, at any depth."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _reads_known_names(function: types.FunctionType) -> bool:
    """Whether every ``getattr`` has a name that stands in the code, or one that cannot be that of the flag."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    known = [node.func for node in calls if _is_getattr(node.func) and _is_known(node, function.__globals__)]
    # `getattr` under another name, or handed on, is none of the calls.
    return sum(_is_getattr(node) for node in ast.walk(tree)) == len(known)


def _is_getattr(node: ast.AST) -> bool:
    """Whether a node is the name ``getattr``."""
    return (isinstance(node, ast.Name) and node.id == "getattr") or (isinstance(node, ast.Attribute) and node.attr == "getattr")


def _is_known(call: ast.Call, names: Mapping[str, Any]) -> bool:
    """Whether a call of ``getattr`` cannot read the flag of a module."""
    if len(call.args) < 2:
        return False
    owner, name = call.args[:2]
    if isinstance(owner, ast.Name) and isinstance(names.get(owner.id), types.ModuleType):
        return True
    if isinstance(name, ast.Constant):
        return name.value != "training"
    if isinstance(name, ast.JoinedStr):
        text = "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*" for part in name.values)
        return re.fullmatch(text, "training") is None
    return False


def imported_modules(code: types.CodeType, names: Mapping[str, Any]) -> Iterator[types.ModuleType]:
    """Yields the modules that code imports when it runs, as far as they are loaded."""
    if dis.opmap["IMPORT_NAME"] not in code.co_code[::2]:
        return
    level: Any = 0
    before: list[Any] = []
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            level = before[-2] if len(before) > 1 and isinstance(before[-2], int) else 0
            name = str(step.argval)
            if level:
                try:
                    name = importlib.util.resolve_name("." * level + name, str(names.get("__package__") or ""))
                except ImportError:
                    continue
            module = sys.modules.get(name)
            if module is not None:
                yield module
        before.append(step.argval)
