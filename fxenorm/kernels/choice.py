"""Which executor a plan uses now: with "auto" the eager one, until the compiled kernels are there."""

from __future__ import annotations

import torch

from ..errors import warn_user
from .backend import Backend, Ids, Values, get_backend
from .cpu.build import kernels
from .reference.executor import EagerBackend

__all__ = ["HERE", "NEVER", "NOT_YET", "ExecutorChoice"]

NEVER, NOT_YET, HERE = range(3)
"""Whether the compiled kernels can be had: the least of what many processes say is what all of them have."""

_LATEST_STEP = 100
"""From this step on the kernels are waited for: training steps take longer than a compiler does, tests should not wait."""

_LATEST_SECONDS = 20.0
"""How long is waited at most: an idle machine needs 7 seconds, and a slow compiler is no reason to stop training."""


_MANY_ARCS = 20_000
"""Arcs of a graph for which Python takes a second or more, and of a large model a minute; compiled code takes a hundredth."""


class _Meanwhile(EagerBackend):
    """Plain PyTorch until the compiled kernels are there; what takes longer than a compiler does waits for them."""

    def contraction(self, count: int, tails: Ids, heads: Ids, lengths: Values) -> tuple[Values, Ids, Values] | None:
        """Contracts a large graph in compiled code, as soon as that is there; None where Python does it as quickly."""
        if len(tails) < _MANY_ARCS or not kernels().wait(_LATEST_SECONDS) or kernels().library is None:
            return None
        return get_backend("compiled").contraction(count, tails, heads, lengths)


class ExecutorChoice:
    """The executor of that name; "auto" takes "compiled" as soon as it is compiled, and "eager" until then (see `_Meanwhile`).

    Args:
        name: as in ``analyze(backend=...)``.

    Raises:
        OptionError: there is no executor of that name, or it does not work here.
    """

    def __init__(self, name: str) -> None:
        self._named: Backend | None = None if name == "auto" else get_backend(name)
        self._compiled: Backend | None = None
        self._steps = 0
        if self._named is None:
            eager = get_backend("eager")
            self._eager = _Meanwhile() if type(eager) is EagerBackend else eager  # another one may have taken its name
            kernels()  # the compiler begins now, beside all that comes before the first step

    def current(self, *, wait: bool = False) -> Backend:
        """Returns the executor to use now; warns once a process where the compiled one cannot be had.

        Args:
            wait: whether to wait for the compiler, where other processes must use the same and do not tell one another.
        """
        if wait and self._named is None:
            kernels().wait()
        return self.taken(self.standing() == HERE)

    def standing(self) -> int:
        """Returns whether this process has the executor that it wants: `NEVER`, `NOT_YET` or `HERE`; warns as `current` does."""
        if self._named is not None:
            return HERE
        found = kernels()
        if torch.are_deterministic_algorithms_enabled():
            found.wait()
        if not found.poll():
            return NOT_YET
        if (found.failure or found.note) and not found.warned:
            found.warned = True
            warn_user(_apology(found.failure, found.note))
        return NEVER if found.library is None else HERE

    def taken(self, wanted: bool) -> Backend:
        """Returns the executor that is named; for "auto" the compiled one, which has to be here, or the eager one.

        Args:
            wanted: whether it is to be the compiled one.
        """
        if self._named is not None:
            return self._named
        if not wanted:
            return self._eager
        if self._compiled is None:
            self._compiled = get_backend("compiled")
        return self._compiled

    def count_step(self) -> None:
        """Notes that a step begins; a late one waits for the compiler, so that long runs never stay eager by chance."""
        if self._named is None:
            self._steps += 1
            if self._steps == _LATEST_STEP:
                kernels().wait(_LATEST_SECONDS)


def _apology(failure: str, note: str) -> str:
    """Says what is lost, and what to do."""
    if not failure:
        return f"the compiled kernels are made anew by every process: {note}"
    return (
        f"plan.step runs in plain PyTorch, about five times slower on a CPU than compiled: {failure}. "
        "backend='eager' asks for this and silences the warning"
    )
