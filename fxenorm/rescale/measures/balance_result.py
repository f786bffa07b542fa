"""`BalanceResult`: what came of a balance, in numbers, words and a drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...analysis.held import Held
from ...bits import Bits
from ...errors import RescaleError
from ...text.describe import plural
from ...text.html import html_block, html_table
from ...text.table import Column
from .plots import Range, balance_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BalanceResult", "left_as_it_was"]


@dataclass(frozen=True)
class BalanceResult:
    """The report of `Plan.balance`; print it to see before and after, since the model's outputs do not change.

    Attributes:
        converged: whether the imbalance over all variables that are not held fell to the tolerance; with solver "max-balance"
            (p = inf), the residual too.
        solver: what found the solution.
        iterations: its outer iterations: cycles, or Newton steps.
        passes: how often all weights were read or written, or single ones looked for among all, as p = inf and p > 4 do.
        log_scales: (num_scales,) float64 on the CPU, natural logarithms; ``plan.rescale(-result.log_scales)`` undoes it.
        norm_before, norm_after: `Plan.norm`.
        imbalance_before, imbalance_after: `Plan.imbalance`; after: of the solution, before it is rounded to the weights' type.
        layer_norms_before, layer_norms_after: `Plan.layer_norms`.
        held: the variables left at 0 or stopped on their way, with the reasons.
        rounded: how many entries powers of two have rounded: in float16 those that are smaller than 2 ** -11 of the largest of
            their row may lose digits. Where it is 0, powers of two have left the outputs bit-identical.
        powers_of_two: whether variables moved by powers of two, so that the end is within such a factor of balance.
        channel_ranges_before, channel_ranges_after: by layer, the smallest and the largest p-norm (p = inf: largest |w|) of a
            channel that it writes, or reads where those that it writes have no scale; channels of zeros are left out. Empty of
            a model that is spread over processes.
        objective: the objective that was given, as it is printed; None: the norm.
        objective_before, objective_after: its value, as the log-scales predict it.
        residual: for p = inf, how far the answer is from the one whose sorted weights are lexicographically least, as a natural
            logarithm of a weight: the largest by which a weight is above those that join both its ends both ways. 0 at that
            answer alone. Where many weights carry three or more variables, a bound on it, some 1e-8. None for finite p.
        undone: whether a check with rounded weights and activations refused the rescaling: the model is as it was, and the
            log-scales are 0.
        bits: those of the check; None: there was none.
        rounding_before, rounding_after: the relative error of the outputs that rounding to `bits` makes, as the check measured
            it; after: with the rescaling, also where this was undone.

    Example:
        >>> import fxenorm, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = fxenorm.analyze(model)
        >>> result = plan.balance()
        >>> print(str(result).splitlines()[0])
        balance: converged after ... of newton (... passes over the weights)
        >>> plan.rescale(-result.log_scales)
    """

    converged: bool
    solver: str
    iterations: int
    passes: int
    log_scales: Tensor
    norm_before: float
    norm_after: float
    imbalance_before: float
    imbalance_after: float
    layer_norms_before: Mapping[str, float]
    layer_norms_after: Mapping[str, float]
    held: tuple[Held, ...]
    rounded: int = 0
    powers_of_two: bool = False
    channel_ranges_before: Mapping[str, Range] = field(default_factory=dict, repr=False)
    channel_ranges_after: Mapping[str, Range] = field(default_factory=dict, repr=False)
    objective: str | None = None
    objective_before: float = math.nan
    objective_after: float = math.nan
    residual: float | None = None
    undone: bool = False
    bits: Bits | None = None
    rounding_before: float = math.nan
    rounding_after: float = math.nan

    def __repr__(self) -> str:
        """Returns one line: how it ended, the norm and the imbalance."""
        norm = f"norm {self.norm_before:.6g} -> {self.norm_after:.6g}"
        return f"<BalanceResult: {self._ending()}, {norm}, imbalance {self.imbalance_before:.3g} -> {self.imbalance_after:.3g}>"

    def _ending(self) -> str:
        """Returns how it ended, in a few words."""
        total = self.log_scales.numel()
        if self.undone:
            return "UNDONE, rounding would make a larger error after it"
        if not total:
            return "nothing to balance, there are no scales"
        if sum(item.count for item in self.held) >= total and not bool(self.log_scales.any()):
            return f"nothing to balance, {'the scale is' if total == 1 else f'all {total:,} scales are'} held"
        near = " within a power of two" if self.powers_of_two else ""
        ending = f"{'converged' if self.converged else 'NOT converged'}{near} after {plural(self.iterations, 'iteration')}"
        return f"{ending} of {self.solver} ({self.passes} passes over the weights)"

    def _changes(self) -> list[tuple[str, str, str]]:
        """Returns the name of each measure, its value before, and after."""
        found = [
            ("norm", f"{self.norm_before:.6g}", f"{self.norm_after:.6g}"),
            ("imbalance", f"{self.imbalance_before:.3g}", f"{self.imbalance_after:.3g}"),
        ]
        if self.objective is not None:
            found.insert(0, ("objective", f"{self.objective_before:.6g}", f"{self.objective_after:.6g}"))
        if self.bits is not None:
            found.insert(0, ("rounding", f"{self.rounding_before:.3%}", f"{self.rounding_after:.3%}"))
        if self.layer_norms_before:
            spans = []
            for norms in (self.layer_norms_before, self.layer_norms_after):
                ends = dict.fromkeys((f"{min(norms.values()):.4g}", f"{max(norms.values()):.4g}"))
                spans.append(" ... ".join(ends))
            found.append(("layer norms", spans[0], spans[1]))
        if self.channel_ranges_before:
            widest = (
                max(high / low for low, high in ranges.values())
                for ranges in (self.channel_ranges_before, self.channel_ranges_after)
            )
            before, after = (f"{value:.4g}" for value in widest)
            found.append(("widest layer", before, after))
        return found

    def _below(self) -> list[str]:
        """Returns the lines below the measures: what was rounded, and what is held."""
        lines = [] if self.objective is None else [f"(objective: {self.objective})"]
        if self.bits is not None:
            refused = ", and the right number is that of the rescaling which was undone" if self.undone else ""
            lines.append(f"(rounding: relative error of the outputs at {self.bits}{refused})")
        if self.channel_ranges_before:
            lines.append("(widest layer: its largest channel norm by its smallest)")
        if self.residual is not None:
            lines.append(f"residual     {self.residual:.3g}")
        if self.rounded:
            lines.append(f"rounded      {self.rounded:,} of the smallest entries, so outputs may differ in their last bits")
        count = sum(item.count for item in self.held)
        if count:
            lines.append(f"held         {count:,} of {self.log_scales.numel():,} scales")
            lines += [f"  {item}" for item in self.held[:8]]
            if len(self.held) > 8:
                lines.append(f"  and {len(self.held) - 8} more")
        return lines

    def __str__(self) -> str:
        """Returns norms and imbalance before and after, in a few lines."""
        changes = [f"  {name:11}  {before} -> {after}" for name, before, after in self._changes()]
        return "\n".join([f"balance: {self._ending()}", *changes, *(f"  {line}" for line in self._below())])

    def _repr_html_(self) -> str:
        """Returns the text as a table for notebooks."""
        columns = [Column(""), Column("before", "right"), Column("after", "right")]
        return html_block(f"balance: {self._ending()}", [html_table(columns, self._changes()), self._below()])

    def plot(self, figure: Any = None) -> Figure:
        """Draws the norm of each layer before and after, and the range of the norms of its channels.

        Args:
            figure: a figure of matplotlib, or a part of one (``figure.subfigures``), to draw into; None: a new one.

        Returns:
            The figure, which a notebook shows; ``figure.savefig("balance.png")`` keeps it.

        Raises:
            MissingLibraryError: matplotlib is not installed.
            RescaleError: no layer is counted, so there is nothing to draw.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> len(plan.balance().plot().axes)
            2
        """
        if not self.layer_norms_before:
            raise RescaleError("there is nothing to draw: no layer is counted in the norm")
        norms = (self.layer_norms_before, self.layer_norms_after)
        return balance_figure(norms, (self.channel_ranges_before, self.channel_ranges_after), figure=figure)


def left_as_it_was(result: BalanceResult) -> BalanceResult:
    """Returns the report on a model that was left as it was, for the rescaling was refused."""
    return replace(
        result,
        converged=False,
        log_scales=torch.zeros_like(result.log_scales),
        norm_after=result.norm_before,
        imbalance_after=result.imbalance_before,
        layer_norms_after=result.layer_norms_before,
        rounded=0,
        channel_ranges_after=result.channel_ranges_before,
        objective_after=result.objective_before,
        residual=None,
        undone=True,
    )
