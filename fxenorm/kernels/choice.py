"""Which executor a plan uses now: with "auto" the eager one, until the compiled kernels are there."""

from __future__ import annotations

import torch

from ..errors import warn_user
from .backend import Backend, get_backend
from .build import kernels

__all__ = ["ExecutorChoice"]

_LATEST_STEP = 100
"""From this step on the kernels are waited for: training steps take longer than a compiler does, tests should not wait."""

_LATEST_SECONDS = 20.0
"""How long that step waits at most: an idle machine needs 7 seconds, and a slow compiler is no reason to stop training."""


class ExecutorChoice:
    """The executor of that name; "auto" takes "compiled" as soon as it is compiled, and "eager" until then.

    Args:
        name: as in ``analyze(backend=...)``.

    Raises:
        OptionError: there is no executor of that name, or it does not work here.
    """

    def __init__(self, name: str) -> None:
        self._chosen: Backend | None = None if name == "auto" else get_backend(name)
        self._steps = 0
        if self._chosen is None:
            self._eager = get_backend("eager")
            kernels()  # the compiler begins now, beside all that comes before the first step

    def current(self) -> Backend:
        """Returns the executor to use now; warns once a process where the compiled one cannot be had."""
        if self._chosen is not None:
            return self._chosen
        found = kernels()
        if torch.are_deterministic_algorithms_enabled() or _is_one_of_many():
            found.wait()
        if not found.poll():
            return self._eager
        self._chosen = self._eager if found.library is None else get_backend("compiled")
        if (found.failure or found.note) and not found.warned:
            found.warned = True
            warn_user(_apology(found.failure, found.note))
        return self._chosen

    def count_step(self) -> None:
        """Notes that a step begins; a late one waits for the compiler, so that long runs never stay eager by chance."""
        if self._chosen is None:
            self._steps += 1
            if self._steps == _LATEST_STEP:
                kernels().wait(_LATEST_SECONDS)


def _is_one_of_many() -> bool:
    """Returns whether other processes take part: all must use the same executor from the first step on."""
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def _apology(failure: str, note: str) -> str:
    """Says what is lost, and what to do."""
    if not failure:
        return f"the compiled kernels are made anew by every process: {note}"
    return (
        f"plan.step runs in plain PyTorch, about five times slower on a CPU than compiled: {failure}. "
        "backend='eager' asks for this and silences the warning"
    )
