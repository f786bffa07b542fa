"""Imports a user's file or module, as part of its package where it is in one."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import tokenize
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import ModelFileError
from .running import looking_in, running

__all__ = ["import_file", "import_module", "search_folders"]

_OF_A_NOTEBOOK = re.compile(r"\bget_ipython\(\)\s*\.")


def search_folders(place: str, kind: str) -> tuple[tuple[Path, ...], Path | None]:
    """Returns the folders in which a model's code looks for modules: (first, last).

    Of a file these are its own and the working directory; of a file inside a package the folder of the package, then the
    working directory, and only at the end its own, whose names may be those of Python's modules.
    """
    if kind != "file":
        return (Path.cwd(),), None
    path = Path(place).resolve()
    root = _package_root(path)
    return ((path.parent, Path.cwd()), None) if root is None else ((root, Path.cwd()), path.parent)


def import_file(path: Path) -> ModuleType:
    """Runs a Python file as a module: inside its package where an __init__.py is beside it, else under a name of its own.

    Raises:
        ModelFileError: the file cannot be read, is not Python, or fails; the message holds its line.
    """
    root = _package_root(path.resolve())
    if root is not None:
        return _in_package(path, root)
    module = ModuleType(f"_inspected_{path.stem}")
    module.__file__, module.__package__ = str(path), ""
    # Under its name in sys.modules because dataclasses and torch look classes' modules up there.
    sys.modules[module.__name__] = module
    folders, last = search_folders(str(path), "file")
    with looking_in(*folders, last=last), running(str(path)):
        with tokenize.open(path) as file:
            text = file.read()
        if _OF_A_NOTEBOOK.search(text):
            print(f"fxenorm-inspect: {path}: commands of a notebook (get_ipython) are left out", file=sys.stderr)
            module.__dict__["get_ipython"] = _NoNotebook
        exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def import_module(name: str) -> ModuleType:
    """Imports a module by its dotted name; the working directory is looked in first.

    Raises:
        ModelFileError: it cannot be found, or fails; the message holds its line.
    """
    with looking_in(Path.cwd()), running(name):
        return importlib.import_module(name)


def _package_root(path: Path) -> Path | None:
    """Returns the folder that holds the outermost package of a file; None where the file is in none."""
    root = path.parent
    while (root / "__init__.py").is_file() and root.name.isidentifier() and root != root.parent:
        root = root.parent
    return None if root == path.parent else root


def _in_package(path: Path, root: Path) -> ModuleType:
    """Imports a file as a module of its package.

    Raises:
        ModelFileError: as `import_file`; or another module has the package's name.
    """
    whole = path.resolve()
    parts = whole.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    folders, last = search_folders(str(path), "file")
    with looking_in(*folders, last=last), running(str(path)):
        importlib.invalidate_caches()
        module = importlib.import_module(name)
    found = getattr(module, "__file__", None)
    if found is None or not Path(found).samefile(whole):
        raise ModelFileError(
            f"{path} is {name} in its package, but Python finds another module of that name ({found or 'built in'}): "
            "rename the package"
        )
    return module


class _NoNotebook:
    """Stands for ``get_ipython()`` in a file that was exported from a notebook: takes every command and does nothing."""

    def __getattr__(self, name: str) -> Any:
        """Returns a function that does nothing."""
        return lambda *arguments, **keywords: None
