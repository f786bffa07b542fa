"""The answer to one command line: its JSON, the lines of what was asked for, the exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...analysis.options import Options
from ...plan.analyze import analyze_with
from ...plan.plan import Plan
from ..arguments.analysis_options import analysis_options
from ..checkpoints.balanced import Rescaled, read_log_scales
from ..checkpoints.compare import compare, compare_lines
from ..checkpoints.streamed import balance_folder
from ..report import report
from .files import write_files
from .loading import Subject
from .requested import layers, operators, strict_reasons, verification
from .rounding import predicted, prediction_content

__all__ = ["SECTIONS", "Answer", "answer"]

Json = dict[str, Any]

SECTIONS = ("layer", "groups", "barriers", "operators", "compare", "balance")
"""Options that show their own part alone, in the order in which it is printed."""


@dataclass(frozen=True)
class Answer:
    """All that one run has to say.

    Attributes:
        content: everything, as JSON.
        lines: by section, its lines where they are no table.
        sections: the parts that were asked for alone; (): the whole report.
        failed: why the exit code is 1; "" where it is 0.
    """

    content: Json
    lines: dict[str, list[str]]
    sections: tuple[str, ...]
    failed: str = ""


def answer(arguments: argparse.Namespace, subject: Subject, say: Callable[[str], None]) -> Answer:
    """Analyses a model and does all that the command line asks for.

    Args:
        arguments: the command line.
        subject: the model and its weights.
        say: called with the name of each stage that begins.

    Raises:
        FxenormError: of the analysis, of files, or of the model.
    """
    output = _output(arguments, subject)
    plan = _plan(subject, output.options if output else _options(arguments), say)
    say("measuring the weights")
    content = report(plan, arguments.model, subject.weights)
    lines: dict[str, list[str]] = {}
    if arguments.layer:
        content["layers"], lines["layer"] = layers(plan, arguments.layer)
    if arguments.operators:
        content["operators"] = operators(plan)
    if arguments.compare:
        say("comparing the checkpoints")
        content["compare"], lines["compare"] = _compared(arguments, subject)
    failed = _failures(arguments, plan, content, lines, say)
    prediction = None
    if arguments.bits:
        say("predicting the noise of rounding")
        prediction = predicted(plan, arguments.bits)
        content["prediction"], lines["prediction"] = prediction_content(prediction)
    if arguments.html:
        say("writing the report")
    write_files(plan, arguments, prediction)  # of the weights as they are before they are balanced
    if output is not None and not failed:
        say("rescaling and writing the weights")
        content["balance"], lines["balance"] = output.write(plan, subject.names, arguments.model)
    if subject.streamed is not None and not failed:
        say("balancing the weights, piece by piece")
        content["balance"], lines["balance"] = balance_folder(arguments, subject.loaded, subject.streamed)
    sections = tuple(name for name in SECTIONS if getattr(arguments, name))
    return Answer(content, lines, sections, failed)


def _options(arguments: argparse.Namespace) -> Options:
    """Returns the options of the analysis."""
    return Options(**analysis_options(arguments))


def _plan(subject: Subject, options: Options, say: Callable[[str], None]) -> Plan:
    """Analyses the model; a file's inputs that do not fit it are the user's to mend."""
    loaded = subject.loaded
    return analyze_with(loaded.model, options, loaded.example_inputs, loaded.example_kwargs, say)


def _output(arguments: argparse.Namespace, subject: Subject) -> Rescaled | None:
    """Returns where a rescaled checkpoint goes, checked before the analysis; None where none is asked for."""
    if not arguments.balance or subject.checkpoint is None:
        return None
    undo = read_log_scales(arguments.undo) if arguments.undo else None
    options = (undo and undo.options) or _options(arguments)
    return Rescaled.checked(subject.checkpoint, arguments.balance, undo, options, force=arguments.force)


def _compared(arguments: argparse.Namespace, subject: Subject) -> tuple[Json, list[str]]:
    """Returns the distance of two checkpoints, as JSON and in lines."""
    loaded = subject.loaded
    one, other = arguments.compare
    found = compare(loaded.model, one, other, loaded.example_inputs, loaded.example_kwargs, arguments.p)
    return found, compare_lines(found)


def _failures(
    arguments: argparse.Namespace, plan: Plan, content: Json, lines: dict[str, list[str]], say: Callable[[str], None]
) -> str:
    """Does the checks that were asked for; returns why one of them failed, "" where none did."""
    reasons = []
    if arguments.verify:
        say("verifying")
        found = plan.verify()
        content["verify"], lines["verify"] = verification(found)
        reasons += [] if found else ["--verify: the outputs change"]
    if arguments.strict:
        content["strict"] = strict_reasons(plan)
        reasons += [f"--strict: {reason}" for reason in content["strict"]]
    return "; ".join(reasons)
