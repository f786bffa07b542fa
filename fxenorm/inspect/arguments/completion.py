"""``--print-completion``: a script for a shell, made by shtab, which is imported for it alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

__all__ = ["PrintCompletion"]

_FILES = ("model", "weights", "balance", "undo", "compare", "dot", "html", "svg")
"""Arguments whose values are files, most often."""


class PrintCompletion(argparse.Action):
    """Prints the script for a shell, and ends without a model."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option: Any = None,
    ) -> None:
        """Prints the script for the shell that was named; an error where shtab is missing."""
        try:
            import shtab
        except ImportError:
            parser.error("shell completion needs shtab: pip install 'fxenorm[completion]'")
        for action in parser._actions:
            if action.dest in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, str(values)))
        parser.exit()
