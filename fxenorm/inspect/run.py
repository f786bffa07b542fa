"""One run of the command: builds the model, analyses it, prints the answer."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import FxenormWarning, MissingTorchError
from .apart import one_line, printable
from .stages import Stages
from .targets.load import check_target, modules_findable
from .wording import in_words_of_the_command

if TYPE_CHECKING:
    from .answers.answer import Answer

__all__ = ["run"]


def run(arguments: argparse.Namespace, stream: TextIO) -> int:
    """Loads the model, analyses it, and prints the answer; returns the exit code.

    Raises:
        FxenormError: of the analysis, or because the model cannot be found or built.
    """
    if arguments.model is None:
        return _list_operators(arguments, stream)
    target = check_target(arguments.model)
    with Stages() as stages:
        stages.begin("importing torch")
        _import_torch()  # before the folders of the model's code are looked in
        from .answers.answer import answer
        from .answers.files import check_files
        from .answers.loading import load_subject

        check_files(arguments)
        stages.begin(f"building {printable(arguments.model)}")
        with modules_findable(target), _own_warnings():
            found = answer(arguments, load_subject(arguments, target), stages.begin)
    if arguments.json:
        _print_json(found.content, stream)
    else:
        _print_text(arguments, found, stream)
    if found.failed:
        print(f"fxenorm-inspect: {one_line(found.failed)}", file=sys.stderr)
    return 1 if found.failed else 0


def _list_operators(arguments: argparse.Namespace, stream: TextIO) -> int:
    """Prints all operators that have a rule."""
    _import_torch()
    from .answers.requested import all_operators

    operators = {"operators": all_operators()}
    if arguments.json:
        _print_json(operators, stream)
    else:
        from .printed.console import make_console
        from .printed.tables import show_part

        show_part("operators", operators, [], make_console(stream))
    return 0


def _print_json(content: dict[str, Any], stream: TextIO) -> None:
    """Prints JSON; a number that is not finite is null, for which JSON has no other word."""
    import json

    print(json.dumps(_finite(content), indent=2, allow_nan=False), file=stream)


def _finite(value: Any) -> Any:
    """Returns the same content with None in place of infinities and NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_text(arguments: argparse.Namespace, found: Answer, stream: TextIO) -> None:
    """Prints the parts that were asked for, or the whole report; the finding of a check at the end."""
    from .printed.console import make_console
    from .printed.tables import heading, show, show_part

    content, console = printable(found.content), make_console(stream)
    if found.sections:
        console.print(heading(content), style="bold cyan", soft_wrap=True)
    else:
        show(content, console, expand=arguments.expand, pairs=arguments.pairs)
    for section in (*found.sections, *(name for name in ("verify", "prediction") if name in found.lines)):
        if section != "groups" and section != "barriers":
            console.print()
        show_part(section, content, printable(found.lines.get(section, [])), console)


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


def _import_torch() -> None:
    """Imports torch, the slow part of every run; raises a MissingTorchError where there is none."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingTorchError("fxenorm.analyze needs PyTorch, which is not installed: pip install torch") from None
