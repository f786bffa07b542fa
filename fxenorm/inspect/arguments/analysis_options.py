"""The options of `fxenorm.analyze` on the command line, in one table, and the values that a user gave for them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from .readers import read_band, read_exponent, read_layer_weight, read_limit

__all__ = ["ANALYSIS_OPTIONS", "AnalysisOption", "add_analysis_options", "analysis_options"]


class AnalysisOption(NamedTuple):
    """One option of `fxenorm.analyze`.

    Attributes:
        name: of the argument in Python; with hyphens it is the option's.
        default: its value where the option is not given.
        help: the text for ``--help``.
        choices: the words that it takes; (): others.
        read: turns the text into a value.
        metavar: stands for the value in ``--help``.
        repeated: whether it may be given several times, and collects the values.
    """

    name: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    read: Callable[[str], Any] | None = None
    metavar: str | None = None
    repeated: bool = False


ANALYSIS_OPTIONS = (
    AnalysisOption("p", 2.0, "the norm's exponent: a number from 0.1 to 1000, or inf", read=read_exponent, metavar="P"),
    AnalysisOption(
        "c",
        1.0,
        "layer weights: a number > 0, adaptive, or LAYER=NUMBER",
        read=read_layer_weight,
        metavar="C",
        repeated=True,
    ),
    AnalysisOption(
        "batchnorm", "affine", "what a BatchNorm between two layers does", choices=("affine", "folded", "frozen", "skip")
    ),
    AnalysisOption("biases", "scale", "whether biases follow, count too, or stay", choices=("scale", "count", "skip")),
    AnalysisOption("balance_last", True, "whether groups that feed the last layers may move"),
    AnalysisOption("exclude", (), "parameters or modules to leave alone, as 'head*'", metavar="PATTERN", repeated=True),
    AnalysisOption(
        "outputs",
        None,
        "outputs to preserve, as logits or 'boxes.*', in place of all but caches",
        metavar="PATTERN",
        repeated=True,
    ),
    AnalysisOption("modes", "both", "modes in which the function is preserved", choices=("both", "train", "eval")),
    AnalysisOption(
        "approximate",
        (),
        "activations to treat as homogeneous though they are not, as relu6",
        metavar="OPERATOR",
        repeated=True,
    ),
    AnalysisOption("on_unknown", "barrier", "for operators without a scale rule", choices=("barrier", "error")),
    AnalysisOption(
        "solver",
        "jacobi",
        "--balance takes Newton's method unless gauss-seidel is named",
        choices=("auto", "jacobi", "gauss-seidel", "newton"),
    ),
    AnalysisOption("backend", "auto", "the code that reads and writes weights", choices=("auto", "compiled", "eager", "triton")),
    AnalysisOption("scales", "auto", "any scales, or powers of two alone", choices=("exact", "pow2", "auto")),
    AnalysisOption(
        "max_log_scale",
        None,
        "largest change of a channel, a natural logarithm",
        read=read_limit,
        metavar="NUMBER",
    ),
    AnalysisOption("deadband", 0.0, "smaller moves wait, a natural logarithm from 0 to 1", read=read_band, metavar="NUMBER"),
)
"""In the order of the function's signature."""


def add_analysis_options(parser: argparse._ArgumentGroup) -> None:
    """Adds a row of the table after the other to a parser."""
    for option in ANALYSIS_OPTIONS:
        flag = "--" + option.name.replace("_", "-")
        if isinstance(option.default, bool):
            help_text = f"{option.help} (default: {'yes' if option.default else 'no'})"
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=option.default, help=help_text)
            continue
        keywords: dict[str, Any] = {"choices": option.choices or None, "metavar": option.metavar, "default": option.default}
        if option.read is not None:
            keywords["type"] = option.read
        if option.repeated:
            keywords |= {"action": "append", "default": []}
        ending = "; repeatable" if option.repeated else ""
        if option.default not in (None, ()):
            default = f"{option.default:g}" if isinstance(option.default, float) else option.default
            ending += f" (default {default})"
        parser.add_argument(flag, help=option.help + ending, **keywords)


def analysis_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `fxenorm.analyze` that the command line gives."""
    found: dict[str, Any] = {}
    for option in ANALYSIS_OPTIONS:
        value = getattr(arguments, option.name)
        if option.repeated:
            value = tuple(value) or option.default
        found[option.name] = _layer_weights(value) if option.name == "c" else value
    return found


def _layer_weights(given: Any) -> Any:
    """Returns the values of ``--c`` as one number, "adaptive", or a dict by layer."""
    if not isinstance(given, tuple):
        return given
    return dict(given) if isinstance(given[0], tuple) else given[0]
