"""Reads the text that names a model, as far as that goes without running anything."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...errors import ModelFileError
from .running import looking_in

__all__ = ["CATALOGUES", "Call", "Target", "parse_target"]

CATALOGUES = ("torchvision", "timm", "hf")
"""The libraries whose models have a name of their own."""


@dataclass(frozen=True)
class Call:
    """The arguments of a call that builds a model."""

    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A text that names a model, taken apart.

    Attributes:
        text: as the user typed it.
        kind: "file", "module" (importable by its dotted name), or one of the catalogues.
        place: the path, the dotted name, or the name in the catalogue.
        name: of an object in the file or module; "": the one that it most plainly offers.
        call: the arguments of the call that builds it; None: none are written.
    """

    text: str
    kind: Literal["file", "module", "torchvision", "timm", "hf"]
    place: str
    name: str = ""
    call: Call | None = None


def parse_target(text: str) -> Target:
    """Takes apart "model.py", "model.py:name", "model.py:build(depth=3)", "package.module:name" or "torchvision:name".

    A file whose own name holds a colon comes first.

    Raises:
        ModelFileError: there is no such file or module, or the name behind the colon is neither a name nor a call.

    Example:
        >>> parse_target("torchvision:resnet18").place
        'resnet18'
    """
    catalogue, colon, rest = text.partition(":")
    if colon and catalogue in CATALOGUES:
        return Target(text, catalogue, rest)  # type: ignore[arg-type]
    for place, name in _splits(text):
        if Path(place).is_file():
            _refuse_other_files(place)
            return Target(text, "file", place, *_object(name, place, text))
    if catalogue in ("transformers", "huggingface"):
        raise ModelFileError(f"{text}: a model of Transformers is written hf:FOLDER, with its config.json in it")
    place, colon, name = text.partition(":")
    if _is_importable(place):
        return Target(text, "module", place, *_object(name if colon else None, place, text))
    raise ModelFileError(_missing(text))


def _splits(text: str) -> Iterator[tuple[str, str | None]]:
    """Yields (place, name) for every colon that may stand between them, the longest place first; name None: no colon."""
    yield text, None
    positions = [k for k, sign in enumerate(text) if sign == ":"]
    for position in reversed(positions):
        yield text[:position], text[position + 1 :]


def _refuse_other_files(place: str) -> None:
    """Raises for files that hold no Python text."""
    ending = Path(place).suffix.lower()
    if ending == ".ipynb":
        raise ModelFileError(
            f"{place} is a notebook: save its code as a Python file (jupyter nbconvert --to script {place}) and name that"
        )
    if ending in (".pt", ".pth", ".ckpt", ".bin", ".safetensors"):
        raise ModelFileError(
            f"{place} holds weights, and a model is code: name the Python file, and give this one with --weights {place}"
        )


def _object(name: str | None, place: str, text: str) -> tuple[str, Call | None]:
    """Returns the dotted name behind the colon, and the arguments of its call."""
    if name is None:
        return "", None
    dotted, call = name, None
    if name.endswith(")"):
        dotted, call = _call(name, place)
    if not dotted or not all(part.isidentifier() for part in dotted.split(".")):
        raise ModelFileError(
            f"{name!r} in {text!r} is not the name of a Python object: write {place}:name, or a call as {place}:build(depth=3)"
        )
    return dotted, call


def _call(text: str, place: str) -> tuple[str, Call]:
    """Returns the dotted name and the arguments of a call; its arguments are literals."""
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Call):
            raise ValueError
        arguments = tuple(ast.literal_eval(argument) for argument in node.args)
        keywords = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ModelFileError(
            f"the call {text!r} cannot be read: its arguments are literals, as {place}:build(depth=3, sizes=[4, 8], name='a'); "
            "for others add a function without arguments"
        ) from error
    return ast.unparse(node.func), Call(arguments, keywords)


def _is_importable(place: str) -> bool:
    """Whether a dotted name begins with a module that can be found; nothing is imported for it."""
    parts = place.split(".")
    if not _dotted(place) or parts[-1] == "py":
        return False
    with looking_in(Path.cwd()):
        try:
            found = importlib.util.find_spec(parts[0])
        except (ImportError, ValueError):  # the second: a module without a specification, as __main__
            return False
    return found is not None and (found.origin is not None or len(parts) > 1)


def _missing(text: str) -> str:
    """Returns the message for a text that names nothing."""
    place, colon, _ = text.partition(":")
    if ":" in text and not place.endswith(".py"):
        place = text.rpartition(":")[0] if not _dotted(place) else place
    path = Path(place)
    if path.is_dir():
        return f"{path} is a directory: name the Python file that holds the model"
    if _dotted(place) and "." in place and not place.endswith(".py"):
        return f"no module {place.split('.')[0]!r}, neither in the working directory nor installed, and no file {place}"
    hint = f"; a model of torchvision is written torchvision:{text}" if not colon and text.isidentifier() else ""
    return f"no such file: {path}{hint}"


def _dotted(place: str) -> bool:
    """Whether a text is one or more names joined by dots."""
    return all(part.isidentifier() for part in place.split("."))
