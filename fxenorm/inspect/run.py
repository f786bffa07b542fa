"""One run of the command: builds the model, analyses it, prints the answer."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from ..errors import FxenormWarning, MissingTorchError
from .apart import one_line, printable
from .arguments.analysis_options import analysis_options
from .stages import Stages
from .targets.load import check_target, load, modules_findable
from .wording import in_words_of_the_command

__all__ = ["run"]


def run(arguments: argparse.Namespace, stream: TextIO) -> int:
    """Loads the model, analyses it, and prints the answer; returns the exit code.

    Raises:
        FxenormError: of the analysis, or because the model cannot be found or built.
    """
    target = check_target(arguments.model)
    with Stages() as stages, modules_findable(target):
        stages.begin("importing torch")
        analyze_with, kind = _analysis()
        from .console import make_console
        from .report import report
        from .tables import show

        stages.begin(f"building {printable(arguments.model)}")
        loaded = load(arguments.model, arguments.input, arguments.seed)
        with _own_warnings():
            options = kind(**analysis_options(arguments))
            plan = analyze_with(loaded.model, options, loaded.example_inputs, loaded.example_kwargs, stages.begin)
            stages.begin("measuring the weights")
            answer = report(plan, arguments.model)
    if arguments.json:
        import json

        print(json.dumps(answer, indent=2, allow_nan=False), file=stream)
    else:
        show(printable(answer), make_console(stream), expand=arguments.expand, pairs=arguments.pairs)
    return 0


@contextlib.contextmanager
def _own_warnings() -> Iterator[None]:
    """Shows fxenorm's warnings in the form of its errors; others as they come."""
    with warnings.catch_warnings():
        show_other = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, FxenormWarning):
                print(f"fxenorm-inspect: warning: {one_line(in_words_of_the_command(str(message)))}", file=sys.stderr)
            else:
                show_other(message, category, *place, **more)

        warnings.simplefilter("always", FxenormWarning)
        warnings.showwarning = show
        yield


def _analysis() -> tuple[Any, Any]:
    """Imports torch, the slow part of every run, and the analysis; raises a MissingTorchError where there is no torch."""
    try:
        from ..analysis.options import Options
        from ..plan.analyze import analyze_with
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingTorchError("fxenorm.analyze needs PyTorch, which is not installed: pip install torch") from None
    return analyze_with, Options
