"""Importing a user's Python file and finding the model in it."""

from __future__ import annotations

import contextlib
import inspect
import sys
import tokenize
import traceback
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ModelFileError

__all__ = ["import_file", "model_in", "split_target"]

_NOT_BUILDERS = ("main", "train", "test", "run")
"""Functions that are not called in the hope that they return a model: they may do real work."""

_EXPECTED = (
    "expected a module-level `model`, a function without required arguments that returns an nn.Module, "
    "or exactly one nn.Module class that can be built without arguments"
)


def split_target(target: str) -> tuple[Path, str]:
    """(path, name): "model.py:build" names an object in a file; a file whose own name holds a colon comes first.

    Raises:
        ModelFileError: there is no such file.
    """
    whole = Path(target)
    if whole.is_file():
        return whole, ""
    before, colon, name = target.rpartition(":")
    path = Path(before) if colon else whole
    if colon and path.is_file():
        if not name or not all(part.isidentifier() for part in name.split(".")):
            raise ModelFileError(f"{name!r} in {target!r} is not the name of a Python object: write {before}:name")
        return path, name
    if path.is_dir():
        raise ModelFileError(f"{path} is a directory: name the Python file that holds the model")
    hint = ""
    if not colon and target.isidentifier():
        hint = f"; a model of torchvision is written torchvision:{target}"
    raise ModelFileError(f"no such file: {path}{hint}")


def import_file(path: Path) -> ModuleType:
    """Runs a Python file as a module under a name of its own, its directory first on ``sys.path``.

    Raises:
        ModelFileError: the file cannot be read, is not Python, or fails; the message holds its line.
    """
    module = ModuleType(f"_inspected_{path.stem}")
    module.__file__ = str(path)
    # Under its name in sys.modules because dataclasses and torch look classes' modules up there.
    sys.modules[module.__name__] = module
    with _running(path):
        with tokenize.open(path) as file:
            text = file.read()
        exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def model_in(module: ModuleType, path: Path, name: str) -> Any:
    """Returns the model of an imported file: the object called `name`, or the one that the file most plainly offers.

    Raises:
        ModelFileError: there is none, there are several, or building it fails.
    """
    if name:
        return _named(module, path, name)
    if hasattr(module, "model") and not inspect.ismodule(module.model):
        return _built(module.model, path, "model")
    own = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    instances = {key: value for key, value in own.items() if _is_module(value) and any(True for _ in value.parameters())}
    if instances:
        return _only(instances, path, "modules")
    functions = {
        key: value
        for key, value in own.items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not _required(value)
    }
    promised = {key: value for key, value in functions.items() if _returns_module(value) is True}
    if promised:
        return _built(_only(promised, path, "functions that return a module"), path, next(iter(promised)))
    classes = {
        key: value
        for key, value in own.items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and issubclass(value, _module_class())
    }
    return _tried(_likely(functions), classes, path)


def _likely(functions: dict[str, Any]) -> dict[str, Any]:
    """Returns the functions that may return a model by their annotation and name; those named after one, if there are any."""
    possible = {
        key: value
        for key, value in functions.items()
        if _returns_module(value) is None and not any(key == word or key.startswith(f"{word}_") for word in _NOT_BUILDERS)
    }
    return {key: value for key, value in possible.items() if "model" in key.lower() or "net" in key.lower()} or possible


def _tried(likely: dict[str, Any], classes: dict[str, Any], path: Path) -> Any:
    """Returns the model that the only likely function returns, else the only class that can be built without arguments.

    Raises:
        ModelFileError: there is none, there are several, or building it fails.
    """
    buildable = {key: value for key, value in classes.items() if not _required(value)}
    if len(likely) == 1:
        key, function = next(iter(likely.items()))
        built = _call(function, path, key)
        if _is_module(built):
            return built
        likely = {}
    if len(buildable) == 1:
        key, builder = next(iter(buildable.items()))
        return _built(builder, path, key)
    if likely or buildable:
        raise _ambiguous({**likely, **buildable}, path, "ways to build a model")
    others = "".join(f"; {key} needs {', '.join(_required(value))}" for key, value in classes.items())
    raise ModelFileError(f"{path} holds no model: {_EXPECTED}{others}")


def _named(module: ModuleType, path: Path, name: str) -> Any:
    """Returns the object called `name`, built if it is a class or a function."""
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            known = [
                key for key, entry in vars(module).items() if not key.startswith("_") and (callable(entry) or _is_module(entry))
            ]
            raise ModelFileError(f"{path} has no {name!r}; it has {', '.join(known) or 'nothing that could be a model'}")
        value = getattr(value, part)
    return _built(value, path, name)


def _built(value: Any, path: Path, name: str) -> Any:
    """Returns `value` if it is a module, else the module that calling it returns."""
    if _is_module(value):
        return value
    if not callable(value):
        raise ModelFileError(
            f"{name} in {path} has type {type(value).__name__}: expected an nn.Module or something that builds one"
        )
    required = _required(value)
    if required:
        raise ModelFileError(
            f"{name} in {path} cannot be called without arguments (it needs {', '.join(required)}): "
            "add a function without arguments that builds the model"
        )
    built = _call(value, path, name)
    if not _is_module(built):
        raise ModelFileError(f"{name}() in {path} returned {type(built).__name__}, not an nn.Module")
    return built


def _call(builder: Callable[[], Any], path: Path, name: str) -> Any:
    """Returns the answer of `builder`; an exception becomes one message with the line in the user's file."""
    with _running(path, f"{name}() in "):
        return builder()


@contextlib.contextmanager
def _running(path: Path, what: str = "") -> Iterator[None]:
    """Runs code of the user's file: its directory on ``sys.path``, prints kept off stdout, failures as one message."""
    saved_path, saved_arguments = sys.path[:], sys.argv[:]
    sys.path.insert(0, str(path.resolve().parent))
    sys.argv[:] = [str(path)]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except SyntaxError as error:
        raise ModelFileError(
            f"{what}{error.filename or path}:{error.lineno or '?'}: {type(error).__name__}: {error.msg}"
        ) from error
    except SystemExit as error:
        raise ModelFileError(f"{what}{_place(error, path)}: the file ends the process (SystemExit: {error.code})") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the file may raise what it likes
        text = str(error).strip()
        raise ModelFileError(f"{what}{_place(error, path)}: {type(error).__name__}{': ' if text else ''}{text}") from error
    finally:
        sys.path[:], sys.argv[:] = saved_path, saved_arguments


def _place(error: BaseException, path: Path) -> str:
    """``file:line, in function`` of the innermost frame in the user's file, or the path."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == str(path):
            return f"{path}:{frame.lineno}, in {frame.name}"
    return str(path)


def _only(found: dict[str, Any], path: Path, what: str) -> Any:
    """Returns the single value of `found`; raises if there are several."""
    if len(found) > 1:
        raise _ambiguous(found, path, what)
    return next(iter(found.values()))


def _ambiguous(found: dict[str, Any], path: Path, what: str) -> ModelFileError:
    """Returns the error that lists the choices."""
    return ModelFileError(f"{path} has several {what}: choose one of {', '.join(f'{path}:{name}' for name in found)}")


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
