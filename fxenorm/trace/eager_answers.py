"""Answers as in an ordinary run for code that asks whether it is being traced."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType, FunctionType
from typing import Any

import torch
from torch.fx import _symbolic_trace

__all__ = ["answer", "eager_answers"]

_TORCH = os.path.dirname(torch.__file__) + os.sep
# Modules of torch that hand the question on.
_FORWARDING = frozenset(
    {"torch._utils", "torch._dynamo.external_utils", "torch.compiler", "typing_extensions", "torch.jit._trace"}
)


def _is_exporting() -> bool:
    import fxenorm.trace.eager_answers as answers

    return answers.answer("is_exporting")


def _is_compiling() -> bool:
    import fxenorm.trace.eager_answers as answers

    return answers.answer("is_compiling")


def _is_fx_tracing() -> bool:
    import fxenorm.trace.eager_answers as answers

    return answers.answer("is_fx_tracing")


def _is_fx_symbolic_tracing() -> bool:
    import fxenorm.trace.eager_answers as answers

    return answers.answer("is_fx_symbolic_tracing")


def _questions() -> dict[str, tuple[FunctionType, FunctionType]]:
    """Returns, by name, torch's function and its stand-in. (`torch.jit.is_tracing` and the like are as in eager mode anyway.)"""
    stand_ins = [_is_exporting, _is_compiling, _is_fx_tracing, _is_fx_symbolic_tracing]
    found = {}
    for stand_in in stand_ins:
        name = stand_in.__name__[1:]
        asked = getattr(torch.compiler, name, None) or getattr(_symbolic_trace, name, None)
        if isinstance(asked, FunctionType) and isinstance(stand_in, FunctionType):
            found[name] = (asked, stand_in)
    return found


_QUESTIONS = _questions()
_TRUTHS: dict[str, Callable[[], bool]] = {
    name: FunctionType(asked.__code__, asked.__globals__, name, asked.__defaults__, asked.__closure__)
    for name, (asked, _) in _QUESTIONS.items()
}


@contextlib.contextmanager
def eager_answers() -> Iterator[None]:
    """Within it, code outside torch that asks whether it is exported, compiled or traced hears that it is not.

    What `torch.compile` has wrapped runs as it was written: some releases cannot trace a compiled function.

    The functions themselves stay (a module may have imported them by name): only their code is another while this lasts.
    torch's own code hears the truth, without which it does not export.
    """
    before = {name: asked.__code__ for name, (asked, _) in _QUESTIONS.items()}
    # Nothing is compiled where the compiler was never imported, which takes seconds.
    compiles = "torch._dynamo" in sys.modules
    try:
        for asked, stand_in in _QUESTIONS.values():
            asked.__code__ = stand_in.__code__
        with _compiled_as_written() if compiles else contextlib.nullcontext():
            yield
    finally:
        for name, (asked, _) in _QUESTIONS.items():
            asked.__code__ = before[name]


@contextlib.contextmanager
def _compiled_as_written() -> Iterator[None]:
    """Within it compiled functions run as they were written.

    The branches and loops of torch itself, which compile their bodies to see them, do so still.
    """
    original = torch.compile

    def compile_for_torch(*args: Any, **kwargs: Any) -> Any:
        compiled = original(*args, **kwargs)
        if not sys._getframe(1).f_code.co_filename.startswith(_TORCH):
            return compiled

        @functools.wraps(compiled)
        def run(*args: Any, **kwargs: Any) -> Any:
            with torch.compiler.set_stance("default"):
                return compiled(*args, **kwargs)  # type: ignore[no-untyped-call]

        return run

    torch.compile = compile_for_torch
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.compile = original


def answer(question: str) -> bool:
    """Returns the truth for torch's own code, False for all other."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in _FORWARDING:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_TORCH) and _TRUTHS[question]()
