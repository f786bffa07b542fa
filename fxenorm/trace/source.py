"""Module paths and the user's source lines, from what the tracers leave on the nodes."""

from __future__ import annotations

import os
import re
import sys

import torch
from torch import fx

__all__ = ["SourceLines", "annotate"]

_FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in (\S+)')
_CALL_NUMBER = re.compile(r"@\d+")


class SourceLines:
    """Finds the user's line in a stack trace; every distinct trace is read once."""

    def __init__(self) -> None:
        own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self._hidden = (os.path.dirname(os.path.abspath(torch.__file__)) + os.sep, own + os.sep)
        vision = getattr(sys.modules.get("torchvision"), "__file__", None)
        self._libraries = self._hidden + ((os.path.dirname(os.path.abspath(vision)) + os.sep,) if vision else ())
        self._known: dict[str, str] = {}

    def __call__(self, stack: str | None, else_last: bool = True) -> str:
        """The last line outside torch and torchvision as ``file.py:41, in forward``; else outside torch.

        Else the last line, or with `else_last` off nothing.
        """
        if not stack:
            return ""
        line = self._known.get(stack)
        if line is None:
            line = self._known[stack] = self._read(_FRAME.findall(stack), else_last)
        return line

    def _read(self, frames: list[tuple[str, str, str]], else_last: bool) -> str:
        """The line to show, of (file, line, function) triples, outermost first."""
        for skipped in (self._libraries, self._hidden, *([()] if else_last else [])):
            for file, number, function in reversed(frames):
                if not file.startswith(skipped):
                    return f"{os.path.basename(file)}:{number}, in {function}"
        return ""


def annotate(graph: fx.Graph, source_lines: SourceLines) -> None:
    """Sets ``meta["module"]``, ``meta["source"]`` and, where missing, ``meta["val"]`` on every node."""
    for node in graph.nodes:
        meta = node.meta
        if "module" not in meta:
            stack = meta.get("nn_module_stack")
            path = next(reversed(stack.values()))[0] if stack else ""
            meta["module"] = _CALL_NUMBER.sub("", path) if "@" in path else path
        meta["source"] = source_lines(meta.get("stack_trace"))
        meta.setdefault("val", None)
