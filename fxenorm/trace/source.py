"""Module paths and the user's source lines, from the marks that the tracers leave on the nodes."""

from __future__ import annotations

import os
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

__all__ = ["SourceLines", "annotate", "note_lines"]

_FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in (\S+)')
_CELL = re.compile(r"ipykernel_\d+[/\\]\d+\.py$")
_CALL_NUMBER = re.compile(r"@(\d+)")


class SourceLines:
    """Finds the user's line in a stack trace; every distinct trace is read once."""

    def __init__(self) -> None:
        own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self._hidden = (os.path.dirname(os.path.abspath(torch.__file__)) + os.sep, own + os.sep)
        vision = getattr(sys.modules.get("torchvision"), "__file__", None)
        self._libraries = self._hidden + ((os.path.dirname(os.path.abspath(vision)) + os.sep,) if vision else ())
        self._known: dict[str, str] = {}
        self._depth: dict[str, int] = {}

    def __call__(self, stack: str | None, else_last: bool = True) -> str:
        """Returns the last line outside torch and torchvision as ``file.py:41, in forward``; else outside torch.

        Else the last line, or with `else_last` off nothing.
        """
        if not stack:
            return ""
        line = self._known.get(stack)
        if line is None:
            line = self._known[stack] = self._read(_FRAME.findall(stack), else_last)
        return line

    def running(self, root: types.CodeType) -> str:
        """Returns the line that runs now, chosen among the calls that `root` has made; "" where these are torch's alone."""
        library: types.FrameType | None = None
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not root:
            depth = self._depth_of(frame)
            if depth == 0:
                return _line_of(frame)
            if depth == 1 and library is None:
                library = frame
            frame = frame.f_back
        return _line_of(library) if library else ""

    def _depth_of(self, frame: types.FrameType) -> int:
        """0 in a user's code, 1 in torchvision's, 2 in torch's and ours."""
        file = frame.f_code.co_filename
        if file == "<string>" and "__name__" not in frame.f_globals:
            return 2  # torch makes functions from texts
        depth = self._depth.get(file)
        if depth is None:
            depth = self._depth[file] = 2 if file.startswith(self._hidden) else int(file.startswith(self._libraries))
        return depth

    def _read(self, frames: list[tuple[str, str, str]], else_last: bool) -> str:
        """Returns the line to show, of (file, line, function) triples, outermost first."""
        for skipped in (self._libraries, self._hidden, *([()] if else_last else [])):
            for file, number, function in reversed(frames):
                if not file.startswith(skipped):
                    return _shown(file, number, function)
        return ""


def _shown(file: str, number: str | int, function: str) -> str:
    """Returns one line of code as text, "model.py:12, in forward"; of a notebook's cell, "In[3]:12, in forward"."""
    return f"{_cell(file) if _CELL.search(file) else os.path.basename(file)}:{number}, in {function}"


def _cell(file: str) -> str:
    """Returns the name of the cell that a kernel keeps under this file's name, as the notebook shows it."""
    console: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    numbers: Any = getattr(getattr(console, "compile", None), "_filename_map", {})
    return f"In[{numbers[file]}]" if file in numbers else "notebook cell"


def _line_of(frame: types.FrameType) -> str:
    """Returns the line at which a frame stands."""
    return _shown(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def note_lines(root: types.CodeType) -> None:
    """Makes the tracer at work note on every node the user's line that runs then, among the calls that `root` makes."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    mode = get_proxy_mode()
    if mode is None:
        return
    graph, lines = mode.tracer.graph, SourceLines()
    create: Callable[..., fx.Node] = graph.create_node

    def create_node(*args: Any, **kwargs: Any) -> fx.Node:
        node = create(*args, **kwargs)
        node.meta["source"] = lines.running(root)
        return node

    vars(graph)["create_node"] = create_node


def annotate(graph: fx.Graph, source_lines: SourceLines) -> None:
    """Sets ``meta["module"]``, ``meta["call"]``, ``meta["source"]`` and, where missing, ``meta["val"]`` on every node."""
    vars(graph).pop("create_node", None)
    for node in graph.nodes:
        meta = node.meta
        if "module" not in meta:
            stack = meta.get("nn_module_stack")
            key, (path, _) = next(reversed(stack.items())) if stack else ("", ("", None))
            meta["module"] = _CALL_NUMBER.sub("", path) if "@" in path else path
            # torch.export writes the second call of a module as "L__self___relu@1".
            again = _CALL_NUMBER.search(key, key.rfind("@")) if "@" in key else None
            meta["call"] = int(again[1]) if again else 0
        if "source" not in meta:
            meta["source"] = source_lines(meta.get("stack_trace"))
        meta.setdefault("val", None)
