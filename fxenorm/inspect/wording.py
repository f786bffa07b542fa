"""Says messages of the library in the words of the command line: ``--input`` for example_inputs, ``--p`` for p."""

from __future__ import annotations

import re

from .arguments.analysis_options import ANALYSIS_OPTIONS

__all__ = ["in_words_of_the_command"]

_INPUT = "--input [NAME=]SHAPE[:DTYPE], as 2x3x224x224 or mask=2x7:bool, once for each argument"

_NAMES = "|".join(option.name for option in ANALYSIS_OPTIONS)

_REPLACED = (
    (
        r"[Pp]ass (other )?example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments",
        f"Pass {_INPUT}",
    ),
    (r"Pass (other )?example_inputs that", r"Give \1inputs, with --input or as example_inputs of the file, that"),
    (r"(?<!as )\bexample_inputs( and example_kwargs)?\b", "--input (or example_inputs of the file)"),
    (r"\bexample_kwargs\b", "--input NAME=SHAPE"),
    (r"\bfxenorm\.analyze\(\.\.\., ([^()]*)\)", r"\1"),
    (rf"(?<![\w.\-])({_NAMES})=(?=\S)", lambda found: f"--{found[1].replace('_', '-')} "),
    (r"\bmath\.inf\b", "inf"),
    (r"bind the plan to one that has \(plan\.bind\)", "give it some with --weights FILE"),
    (r"print\(plan\) says more", "--layer NAME and --barriers say more"),
)


def in_words_of_the_command(message: str) -> str:
    """Returns a message with the options of the command line in place of the arguments in Python.

    Example:
        >>> in_words_of_the_command("pass batchnorm='folded'")
        "pass --batchnorm 'folded'"
    """
    for pattern, words in _REPLACED:
        message = re.sub(pattern, words, message)
    return message
