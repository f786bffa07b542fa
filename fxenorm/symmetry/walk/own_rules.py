"""Checks and messages about the rules that users register."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import warn_user
from ...rules import ROLES, Call, Rule

__all__ = ["check_roles", "failure_of_own_rule", "warn_of_uncounted"]


def check_roles(call: Call) -> None:
    """Raises a ValueError where a rule uses a parameter as something that does not exist."""
    for name, role in call.roles.items():
        if role not in ROLES:
            raise ValueError(f"roles[{name!r}] = {role!r} is not valid: expected one of {', '.join(map(repr, ROLES))}")


def failure_of_own_rule(rule: Rule, call: Call, error: Exception, node: str, source: str) -> str:
    """Returns the message about a rule that raised: its own line, and the arguments that it could have asked for."""
    function: Any = inspect.unwrap(rule.function)
    code = getattr(function, "__code__", None)
    file, line = getattr(code, "co_filename", "unknown file"), getattr(code, "co_firstlineno", 0)
    own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file and frame.lineno]
    name = getattr(function, "__name__", type(function).__name__)
    return (
        f"the scale rule {name} ({file}:{own[-1] if own else line}), registered for {rule.operator}, failed at {node} "
        f"({source or 'source unknown'}): {type(error).__name__}: {error}. The arguments of the call are "
        f"{', '.join(map(repr, call.arguments))}. {rule.operator} is a barrier instead, which holds what reaches it"
    )


def warn_of_uncounted(unsaid: Mapping[str, tuple[str, str]], moved: Iterable[str], roles: Mapping[str, str]) -> None:
    """Warns of parameters that are rescaled but count in no norm, where a user's rule did not say that this is meant."""
    found = {name: unsaid[name] for name in moved if name in unsaid and roles.get(name) == "other"}
    if found:
        listed = "; ".join(f"{name} ({argument!r} of {operator})" for name, (operator, argument) in list(found.items())[:10])
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        argument = next(iter(found.values()))[1]
        warn_user(
            f"these parameters are rescaled but counted in no norm, for no rule says as what it uses them: {listed}{more}. Say "
            f" call.roles[{argument!r}] = 'weight' where it multiplies, 'bias' where it is added, 'other' to leave it out"
        )
