"""`History`: norm and imbalance of a plan over time, kept on the device until somebody reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...errors import OptionError
from ...solve.jacobi import imbalance
from ...weights.weights import Weights
from .plots import history_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Entry", "History", "HistoryRow", "measured"]

Entry = tuple[int | Tensor, Tensor, Tensor]
"""(step, norm, imbalance); the step is a tensor where only the device knows which steps a GradScaler skipped."""


class HistoryRow(NamedTuple):
    """One record, as numbers.

    Attributes:
        step: the number of the step, as it was given or counted.
        norm: `Plan.norm`.
        imbalance: `Plan.imbalance`.
    """

    step: int
    norm: float
    imbalance: float


class History:
    """The norm and the imbalance of a plan's weights at the times when they were recorded; empty until then.

    ``plan.history.record()`` adds them as they are now, ``plan.attach(optimizer, record=10)`` does so after every tenth step.
    Both read all weights once and wait for no device; `rows`, `plot` and printing wait once.

    Of a model spread over processes, recording communicates as `Plan.norm` does: call it on every process. Reading does not.
    A copied or pickled plan takes its history along; `Plan.bind` begins a new one.

    Args:
        measure: returns the norm and the imbalance now, 0-d tensors.
        entries: records to begin with.

    Example:
        >>> import fxenorm, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = fxenorm.analyze(model)
        >>> plan.history.record()
        >>> result = plan.balance()
        >>> plan.history.record()
        >>> [row.step for row in plan.history.rows()], plan.history.rows()[1].norm < plan.history.rows()[0].norm
        ([0, 1], True)
    """

    def __init__(self, measure: Callable[[], tuple[Tensor, Tensor]], entries: Iterable[Entry] = ()) -> None:
        self._measure = measure
        self._entries = list(entries)

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """Yields the records as they are kept: the step, and norm and imbalance as 0-d tensors on their device."""
        return iter(list(self._entries))

    def __repr__(self) -> str:
        """Returns one line: the number of records; it waits for nothing."""
        return f"<fxenorm.History: {len(self)} record{'' if len(self) == 1 else 's'}>"

    def __str__(self) -> str:
        """Returns a line for each record; waits for the device."""
        return "\n".join(f"step {row.step:>6}  norm {row.norm:.6g}  imbalance {row.imbalance:.3g}" for row in self.rows())

    def record(self, step: int | Tensor | None = None) -> None:
        """Adds the norm and the imbalance of the weights as they are now; nothing waits for the device.

        Of a model spread over processes, call it on every process, as `Plan.norm`.

        Args:
            step: the number of the step, an integer or a 0-d tensor of one; None: one more than the last, from 0 on.

        Raises:
            OptionError: `step` is no integer; nothing was added.
            BindError, RescaleError: as `Plan.norm`; nothing was added.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> plan.history.record(100)
            >>> plan.history
            <fxenorm.History: 1 record>
        """
        if step is None:
            step = self._entries[-1][0] + 1 if self._entries else 0
        whole = isinstance(step, Tensor) and step.dim() == 0 and not (step.is_floating_point() or step.is_complex())
        if not whole and type(step) is not int:
            raise OptionError(f"step={step!r} is not valid: expected an integer, a 0-d tensor of one, or None")
        self._entries.append((step, *self._measure()))

    def rows(self) -> tuple[HistoryRow, ...]:
        """Returns all records as numbers, in the order in which they were made; waits for the device once.

        Returns:
            Named tuples of step, norm and imbalance, of which ``pandas.DataFrame(plan.history.rows())`` makes a table.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> plan.history.record()
            >>> [row.step for row in plan.history.rows()]
            [0]
        """
        steps = [step for step, _, _ in self._entries]
        numbers = _numbers([one for _, *both in self._entries for one in both])
        told = iter(_numbers([step for step in steps if isinstance(step, Tensor)]))
        counts = [round(next(told)) if isinstance(step, Tensor) else step for step in steps]
        return tuple(HistoryRow(*row) for row in zip(counts, numbers[::2], numbers[1::2], strict=True))

    def clear(self) -> None:
        """Forgets all records; the next one has step 0 again.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> plan.history.record()
            >>> plan.history.clear()
            >>> len(plan.history)
            0
        """
        self._entries.clear()

    def plot(self, figure: Any = None) -> Figure:
        """Draws the norm and the imbalance over the steps; waits for the device once.

        Args:
            figure: a figure of matplotlib, or a part of one (``figure.subfigures``), to draw into; None: a new one.

        Returns:
            The figure, which a notebook shows; ``figure.savefig("history.png")`` keeps it.

        Raises:
            OptionError: nothing is recorded.
            MissingLibraryError: matplotlib is not installed.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> plan.history.record()
            >>> len(plan.history.plot().axes)
            2
        """
        rows = self.rows()
        if not rows:
            raise OptionError("nothing is recorded yet: call plan.history.record(), or plan.attach(optimizer, record=10)")
        return history_figure(*(list(column) for column in zip(*rows, strict=True)), figure=figure)


def measured(weights: Weights) -> tuple[Tensor, Tensor]:
    """Returns the norm and the imbalance of weights, 0-d tensors on their device; reads them once, waits for nothing."""
    objective, inside = weights.objective(), weights.within()
    same = inside.analysis is weights.analysis
    sums = objective.log_sums() if same else inside.log_sums()
    return objective.norm().detach(), imbalance(*sums, weights.analysis.options.p, inside.held_mask()).detach()


def _numbers(tensors: list[Tensor]) -> list[float]:
    """Returns 0-d tensors as numbers, those of one device in one transfer."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:  # the model was moved in between
        tensors = [tensor.cpu() for tensor in tensors]
    found: list[float] = torch.stack([tensor.detach().double() for tensor in tensors]).tolist() if tensors else []
    return found
