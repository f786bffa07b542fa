"""Averaged copies of a model that other callbacks of a trainer hold: they follow every rescaling, as tracked copies do."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from ..errors import BindError, OptionError
from ..plan.plan import Plan
from ..weights.tracked import Tracked

__all__ = ["Averages"]


class Averages:
    """Has a plan track the averages that callbacks hold in their attributes.

    A copy of the analysed model with other weights keeps its function when it is rescaled as the model is, so it does no harm
    to track one that is no average.

    Args:
        plan: the plan.
        root: the module that the trainer trains.
        path: name of the analysed module in it; "": itself.
        more: further copies, for `Plan.track`.

    Raises:
        BindError, OptionError: one of `more` is no copy of the model.
    """

    def __init__(self, plan: Plan, root: nn.Module, path: str, more: Iterable[Any] = ()) -> None:
        self._plan, self._path = plan, path
        self._own = {id(module) for module in root.modules()}
        self._seen: dict[int, weakref.ref[nn.Module]] = {}
        self._tracked: list[Tracked] = [plan.track(copy) for copy in more]

    def look(self, callbacks: Iterable[Any]) -> None:
        """Tracks the copies that are not tracked yet; one may be made at any time."""
        for module in _modules(callbacks):
            known = self._seen.get(id(module))
            if id(module) in self._own or (known is not None and known() is module):
                continue
            self._seen[id(module)] = weakref.ref(module)
            part = self._part(module)
            if part is None:
                continue
            try:
                self._tracked.append(self._plan.track(part))
            except (BindError, OptionError):  # another model
                continue

    def remove(self) -> None:
        """Stops the tracking: from now on the averages stay as they are."""
        for tracked in self._tracked:
            tracked.remove()
        self._tracked = []

    def _part(self, module: nn.Module) -> nn.Module | None:
        """Returns the copy of the analysed module in a copy of the whole, which may be wrapped as AveragedModel does."""
        if not self._path:
            return module
        for whole in (module, getattr(module, "module", None)):
            try:
                if isinstance(whole, nn.Module):
                    return whole.get_submodule(self._path)
            except AttributeError:
                continue
        return None


def _modules(owners: Iterable[Any]) -> Iterator[nn.Module]:
    """Yields the modules in the attributes of objects; objects without attributes have none."""
    for owner in owners:
        for value in list(getattr(owner, "__dict__", {}).values()):
            if isinstance(value, nn.Module):
                yield value
