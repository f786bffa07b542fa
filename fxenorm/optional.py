"""Imports libraries that only some calls need, and says by which extra they are installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import MissingLibraryError

__all__ = ["optional_import"]


def optional_import(module: str, extra: str, call: str) -> ModuleType:
    """Imports a module that not every installation has.

    Args:
        module: its name, "matplotlib.figure".
        extra: of fxenorm, that installs it.
        call: as the user wrote it, "plan.draw()".

    Returns:
        The module.

    Raises:
        MissingLibraryError: it is not installed; the message names the extra.
    """
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise MissingLibraryError(
            f'{call} needs {library}, which is not installed: pip install "fxenorm[{extra}]", or pip install {library}'
        ) from error
