"""The files that a command line asks for beside its answer: the HTML report, the picture, the graph for Graphviz."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ...picture.build import picture_of
from ...picture.svg import svg_file
from ...plan.plan import Plan
from ...quantisation.prediction import Prediction
from ..html.page import check_libraries, page
from ..whole_files import WholeFiles, refuse_existing
from .dot import dot_text

__all__ = ["check_files", "write_files"]


def _html(plan: Plan, arguments: argparse.Namespace, prediction: Prediction | None) -> str:
    """Returns the report."""
    return page(plan, arguments.model, prediction)


def _svg(plan: Plan, arguments: argparse.Namespace, prediction: Prediction | None) -> str:
    """Returns the picture; with ``--expand`` each layer has a box of its own."""
    return svg_file(picture_of(plan.rescaler.analysis, expand=arguments.expand or None), type(plan.model).__name__)


def _dot(plan: Plan, arguments: argparse.Namespace, prediction: Prediction | None) -> str:
    """Returns the pair graph for Graphviz."""
    return dot_text(plan, arguments.model) + "\n"


_WRITERS: dict[str, Callable[[Plan, argparse.Namespace, Prediction | None], str]] = {"html": _html, "svg": _svg, "dot": _dot}
"""By option."""


def check_files(arguments: argparse.Namespace) -> None:
    """Checks before the analysis that the files can be written, and that the libraries for them are there.

    Raises:
        CheckpointError: a file is there and ``--force`` is not given, or cannot be written.
        MissingLibraryError: a library that the report needs is not installed.
    """
    refuse_existing(_paths(arguments).values(), arguments.force)
    if arguments.html:
        check_libraries()


def write_files(plan: Plan, arguments: argparse.Namespace, prediction: Prediction | None) -> None:
    """Writes the files, all of them or none; a prediction of the noise of rounding has a section in the report."""
    with WholeFiles() as whole:
        for option, path in _paths(arguments).items():
            whole.beside(path).write_text(_WRITERS[option](plan, arguments, prediction), encoding="utf-8")


def _paths(arguments: argparse.Namespace) -> dict[str, Path]:
    """Returns the files by option."""
    return {option: Path(getattr(arguments, option)) for option in _WRITERS if getattr(arguments, option)}
