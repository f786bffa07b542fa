"""The options of a callback, checked when it is made: those of `fxenorm.analyze` and those of `Plan.attach`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from ..analysis.options import Options
from ..errors import OptionError
from ..rescale.attach import AttachOptions

__all__ = ["CallbackOptions", "check_count", "check_resume"]

_OF_ANALYZE = frozenset(field.name for field in dataclasses.fields(Options))
_OF_ATTACH = frozenset(field.name for field in dataclasses.fields(AttachOptions))
_BATCH = frozenset({"example_inputs", "example_kwargs", "model"})


class CallbackOptions:
    """The options that a callback was given, in two parts.

    Args:
        callback: the callback's name and its own arguments, for messages.
        given: the options by name.

    Attributes:
        of_analyze: for `fxenorm.analyze`.
        of_attach: for `Plan.attach`.

    Raises:
        OptionError: a name is none of theirs, or a value is not valid.

    Example:
        >>> CallbackOptions(["every"], {"p": 1, "every": 2, "state": "keep"}).of_attach
        {'every': 2, 'state': 'keep'}
    """

    def __init__(self, callback: list[str], given: Mapping[str, Any]) -> None:
        for name in given:
            if name in _BATCH:
                raise OptionError(f"{name} is no option of this callback: it takes the model and its inputs from the first batch")
            if name not in _OF_ANALYZE | _OF_ATTACH:
                close = difflib.get_close_matches(name, [*callback, *_OF_ANALYZE, *_OF_ATTACH], n=1)
                guess = f": did you mean {close[0]}?" if close else ""
                raise OptionError(
                    f"{name}={given[name]!r} is no option of this callback, of fxenorm.analyze or of plan.attach{guess}"
                )
        self.of_analyze = {name: value for name, value in given.items() if name in _OF_ANALYZE}
        self.of_attach = {name: value for name, value in given.items() if name in _OF_ATTACH}
        Options(**self.of_analyze)
        AttachOptions(**self.of_attach).check()


def check_count(name: str, value: object) -> None:
    """Raises an OptionError unless a value is a positive integer."""
    if type(value) is not int or value < 1:
        raise OptionError(f"{name}={value!r} is not valid: expected an integer >= 1")


def check_resume(value: object) -> None:
    """Raises an OptionError unless a value says how a checkpoint of another plan is met."""
    if value not in ("check", "ignore"):
        raise OptionError(f"resume={value!r} is not valid: expected 'check' or 'ignore'")
