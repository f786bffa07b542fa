"""Finds the model in a module that was imported, and builds it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

from ...errors import ModelFileError
from .running import running
from .target import Call

__all__ = ["model_in"]

_NOT_BUILDERS = ("main", "train", "test", "run")
"""Functions that are not called in the hope that they return a model: they may do real work."""

_EXPECTED = (
    "expected a module-level `model`, a function without required arguments that returns an nn.Module, "
    "or exactly one nn.Module class that can be built without arguments"
)


def model_in(module: ModuleType, place: str, name: str = "", call: Call | None = None) -> Any:
    """Returns the model of an imported file: the object called `name`, or the one that the file most plainly offers.

    Args:
        module: the imported file.
        place: the file or module, as the user named it.
        name: dotted name of an object in it; "": none is named.
        call: the arguments with which that object is called; None: none are written.

    Raises:
        ModelFileError: there is none, there are several, or building it fails.
    """
    if name:
        return _named(module, place, name, call)
    if hasattr(module, "model") and not inspect.ismodule(module.model):
        return _built(module.model, place, "model")
    own = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    instances = {key: value for key, value in own.items() if _is_module(value) and any(True for _ in value.parameters())}
    if instances:
        return _only(instances, place, "modules")
    functions = {
        key: value
        for key, value in own.items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not _required(value)
    }
    promised = {key: value for key, value in functions.items() if _returns_module(value) is True}
    if promised:
        return _built(_only(promised, place, "functions that return a module"), place, next(iter(promised)))
    classes = {
        key: value
        for key, value in own.items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and issubclass(value, _module_class())
    }
    return _tried(_likely(functions), classes, place)


def _likely(functions: dict[str, Any]) -> dict[str, Any]:
    """Returns the functions that may return a model by their annotation and name; those named after one, if there are any."""
    possible = {
        key: value
        for key, value in functions.items()
        if _returns_module(value) is None and not any(key == word or key.startswith(f"{word}_") for word in _NOT_BUILDERS)
    }
    return {key: value for key, value in possible.items() if "model" in key.lower() or "net" in key.lower()} or possible


def _tried(likely: dict[str, Any], classes: dict[str, Any], place: str) -> Any:
    """Returns the model that the only likely function returns, else the only class that can be built without arguments.

    Raises:
        ModelFileError: there is none, there are several, or building it fails.
    """
    buildable = _outermost({key: value for key, value in classes.items() if not _required(value)})
    if len(likely) == 1:
        key, function = next(iter(likely.items()))
        built = _call(function, place, key)
        if _is_module(built):
            return built
        likely = {}
    if len(buildable) == 1:
        key, builder = next(iter(buildable.items()))
        return _built(builder, place, key)
    if likely or buildable:
        raise _ambiguous({**likely, **buildable}, place, "ways to build a model")
    others = "".join(f"; {key} needs {', '.join(_required(value))}" for key, value in classes.items())
    raise ModelFileError(f"{place} holds no model: {_EXPECTED}{others}")


def _outermost(classes: dict[str, Any]) -> dict[str, Any]:
    """Returns the classes that the code of no other one names, as a model is named by none and its backbone by the model."""
    named = {key: _names_in(value) for key, value in classes.items()}
    outer = {key: value for key, value in classes.items() if not any(key in named[other] for other in classes if other != key)}
    return outer or classes


def _names_in(kind: type) -> set[str]:
    """Returns the names that the methods of a class use."""
    found: set[str] = set()
    codes = [value.__code__ for value in vars(kind).values() if inspect.isfunction(value)]
    while codes:
        code = codes.pop()
        found.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found


def _named(module: ModuleType, place: str, name: str, call: Call | None) -> Any:
    """Returns the object called `name`, built if it is a class or a function, or if a call is written."""
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            known = [
                key for key, entry in vars(module).items() if not key.startswith("_") and (callable(entry) or _is_module(entry))
            ]
            raise ModelFileError(f"{place} has no {name!r}; it has {', '.join(known) or 'nothing that could be a model'}")
        value = getattr(value, part)
    return _built(value, place, name, call)


def _built(value: Any, place: str, name: str, call: Call | None = None) -> Any:
    """Returns `value` if it is a module, else the module that calling it returns."""
    if call is None and _is_module(value):
        return value
    if not callable(value) or _is_module(value):
        wanted = "something that can be called" if call else "an nn.Module or something that builds one"
        raise ModelFileError(f"{name} in {place} has type {type(value).__name__}: expected {wanted}")
    required = _required(value)
    if required and call is None:
        raise ModelFileError(
            f"{name} in {place} cannot be called without arguments (it needs {', '.join(required)}): "
            f"write the call, as {place}:{name}({required[0]}=...), or add a function without arguments that builds the model"
        )
    built = _call(value, place, name, call or Call())
    if not _is_module(built):
        raise ModelFileError(f"{name}() in {place} returned {type(built).__name__}, not an nn.Module")
    return built


def _call(builder: Callable[..., Any], place: str, name: str, call: Call | None = None) -> Any:
    """Returns the answer of `builder`; an exception becomes one message with the line in the user's file."""
    call = call or Call()
    with running(place, f"{name}() in "):
        return builder(*call.arguments, **call.keywords)


def _only(found: dict[str, Any], place: str, what: str) -> Any:
    """Returns the single value of `found`; raises if there are several."""
    if len(found) > 1:
        raise _ambiguous(found, place, what)
    return next(iter(found.values()))


def _ambiguous(found: dict[str, Any], place: str, what: str) -> ModelFileError:
    """Returns the error that lists the choices."""
    return ModelFileError(f"{place} has several {what}: choose one of {', '.join(f'{place}:{name}' for name in found)}")


def _required(builder: Callable[..., Any]) -> list[str]:
    """Returns the names of the arguments that a call cannot leave out."""
    try:
        parameters = inspect.signature(builder).parameters.values()
    except (TypeError, ValueError):
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in variable]


def _returns_module(function: Callable[..., Any]) -> bool | None:
    """Whether the annotation of the returned value is a module class; None without an annotation."""
    try:
        returned = typing.get_type_hints(function).get("return", inspect.Parameter.empty)
    except Exception:  # annotations are arbitrary code; an unreadable one says nothing
        return None
    if returned is inspect.Parameter.empty or returned is Any:
        return None
    return inspect.isclass(returned) and issubclass(returned, _module_class())


def _module_class() -> type:
    """``nn.Module``, imported only once a file has to be judged."""
    from torch import nn

    return nn.Module


def _is_module(value: Any) -> bool:
    """Whether `value` is an nn.Module, torch loaded for the question."""
    return isinstance(value, _module_class())
