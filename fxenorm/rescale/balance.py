"""`balance`: to the least norm at once, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..analysis.analysis import Analysis
from ..analysis.held import FrozenChoice, Held, Mask, held_by_group
from ..analysis.options import Options
from ..errors import RescaleError
from ..optim.state import OptimizerLike, StateChoice, unwrap_optimizers
from ..solve import fastest_solver
from ..solve.iterate import Solution, solve_rounded
from ..solve.max_balance.residual import residual_at
from ..text.describe import plural
from ..text.html import html_block, html_table
from ..text.progress import progress
from ..text.table import Column
from ..weights.channel_ranges import channel_ranges
from ..weights.objective import CurrentObjective
from ..weights.targets import Targets
from ..weights.weights import Weights
from .agreeing import Looked, Solved, agreed_scales
from .measures.plots import Range, balance_figure
from .nothing import say_if_nothing_moves
from .rescaler import Rescaler

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AT_CAP", "AT_LIMIT", "AT_ROOM", "CAP", "MOST_ROUNDS", "BalanceResult", "balance", "floats", "solve_weights"]

AT_ROOM = "not attained: beyond it an entry of a tensor that follows would overflow, or be lost to underflow"
AT_LIMIT = "not attained: it reached max_log_scale"
AT_CAP = "not attained: the norm still falls where its factor leaves the range of numbers"
CAP = 300.0
"""The largest |log-scale| without max_log_scale: exp(2 * 300) still fits into a float64, which ends at exp(709)."""

MOST_ROUNDS = 6
"""Solutions before all variables are kept to their rooms: each flags more, and a seventh pass over the weights would cost more
than the freedom of those that are left is worth. A choice, not a measurement."""

_AT_ENDS = 300
"""Newton's iterations at most where variables are kept to their rooms, some ten times what it needs without: between many ends
it may creep. A choice, not a measurement."""


@dataclass(frozen=True)
class BalanceResult:
    """The report of `Plan.balance`; print it to see before and after, since the model's outputs do not change.

    Attributes:
        converged: whether the imbalance over all variables that are not held fell to the tolerance; with solver "max-balance"
            (p = inf), the residual too.
        solver: what found the solution.
        iterations: its outer iterations: cycles, or Newton steps.
        passes: how often all weights were read or written.
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
            answer alone. NaN where it is not worked out: too many weights carry three or more variables. None for finite p.

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

    def __repr__(self) -> str:
        """Returns one line: how it ended, the norm and the imbalance."""
        norm = f"norm {self.norm_before:.6g} -> {self.norm_after:.6g}"
        return f"<BalanceResult: {self._ending()}, {norm}, imbalance {self.imbalance_before:.3g} -> {self.imbalance_after:.3g}>"

    def _ending(self) -> str:
        """Returns how it ended, in a few words."""
        total = self.log_scales.numel()
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


def balance(
    rescaler: Rescaler,
    optimizer: OptimizerLike,
    *,
    tol: float,
    max_iterations: int,
    state: StateChoice,
    frozen: FrozenChoice = "auto",
) -> BalanceResult:
    """Balances, as `fxenorm.Plan.balance` does, by checked options."""

    def look() -> Looked:
        """Finds what follows, in the plan's own basis."""
        return Looked(*rescaler.targets(optimizer, state=state, within=False, flags=frozen))

    words = ("balance", f"tol={tol!r}", f"max_iterations={max_iterations!r}", f"state={state!r}", f"frozen={frozen!r}")
    whole, targets, _ = rescaler.look_up_and_agree(words, look, optimizer)
    optimizers = unwrap_optimizers(optimizer)

    def targets_of(other: Weights) -> Targets:
        """Finds what follows, in the basis of these weights."""
        return targets if other.analysis is whole.analysis else other.targets(optimizers, frozen=False, state=state)

    result = _balanced(whole, targets_of, tol=tol, max_iterations=max_iterations)
    say_if_nothing_moves(rescaler, "balance", frozen)
    rescaler.warnings.nothing_moves("balance", result.held, rescaler.num_scales)
    return result


def _balanced(whole: Weights, targets_of: Callable[[Weights], Targets], *, tol: float, max_iterations: int) -> BalanceResult:
    """Solves for the least norm, writes the targets once, and reports.

    Where entries would leave the range of their types, what moves them there goes only as far as they all have room, and the rest
    is solved again: so nothing is lost.
    """
    targets: Targets | None = None

    def solve() -> Solved[BalanceResult]:
        """Does all that comes before the writes."""
        nonlocal targets
        found, targets = solve_weights(whole, targets_of, tol=tol, max_iterations=max_iterations)
        return found

    agreed = agreed_scales(whole, solve)
    log_scales = agreed.weights.analysis.to_plan(agreed.log_scales).to("cpu", torch.float64, copy=True)
    if targets is not None and bool(log_scales.any()):
        targets.apply_and_tell(agreed.log_scales)
    return replace(agreed.result, log_scales=log_scales)


def solve_weights(
    whole: Weights, targets_of: Callable[[Weights], Targets], *, tol: float, max_iterations: int
) -> tuple[Solved[BalanceResult], Targets]:
    """Returns the log-scales to write with the report, and the targets."""
    weights, objective, left = whole.within_now()
    analysis, targets = weights.analysis, targets_of(weights)
    limit = objective.limit.clamp(max=CAP / (1.0 if analysis.basis is None else analysis.basis.growth)).expand(2, -1)
    by_tensor = objective.within(limit)
    solver = solver_for(analysis.options)
    solved = by_tensor if solver == "gauss-seidel" else by_tensor.stacked()
    powers_of_two = weights.powers_of_two()
    found = _within_rooms(solved, targets, powers_of_two, solver, tol=tol, max_iterations=max_iterations)
    solution, log_scales = found.solution, analysis.to_plan(found.solution.log_scales)
    distance = (
        residual_at(found.objective, solution.log_scales, solution.at_limit) if math.isinf(analysis.options.p) else math.nan
    )
    in_plan = by_tensor if analysis is whole.analysis else whole.objective()
    measured = solved if in_plan is by_tensor else in_plan
    held = held_by_group(
        analysis.groups, [*left.reasons, *found.stopped(analysis)], analysis.symmetry.num_scales, left.equations, whole.frozen
    )
    result = BalanceResult(
        solver=solver,
        converged=solution.converged and (solver != "max-balance" or powers_of_two is not None or distance <= tol),
        iterations=solution.iterations,
        passes=found.passes,
        log_scales=log_scales.to("cpu", torch.float64, copy=True),
        norm_before=float(measured.norm()),
        norm_after=float(measured.norm(log_scales)),
        imbalance_before=found.objective.imbalance(),
        imbalance_after=found.objective.imbalance(solution.log_scales),
        layer_norms_before=floats(whole.layer_norms(in_plan)),
        layer_norms_after=floats(whole.layer_norms(in_plan, log_scales)),
        held=held,
        rounded=0 if powers_of_two is None else targets.rounded(solution.log_scales),
        powers_of_two=powers_of_two is not None and bool(powers_of_two.any()),
        channel_ranges_before=channel_ranges(whole.analysis, in_plan, None),
        channel_ranges_after=channel_ranges(whole.analysis, in_plan, log_scales),
        residual=distance if math.isinf(analysis.options.p) else None,
    )
    return Solved(weights, solution.log_scales, result), targets


@dataclass(frozen=True)
class _Found:
    """A solution that leaves every entry in its room.

    Attributes:
        objective: what was minimised, within the limits that were needed.
        solution: where its minimum is.
        confined: (K,) bool: variables that were kept to their rooms.
        passes: how often all weights were read or written.
    """

    objective: CurrentObjective
    solution: Solution
    confined: Tensor
    passes: int

    def stopped(self, analysis: Analysis) -> list[tuple[Mask, str]]:
        """Returns the variables that a limit stopped, with the reasons."""
        at_limit = AT_CAP if analysis.options.max_log_scale is None else AT_LIMIT
        stopped = self.solution.at_limit
        return [((stopped & self.confined).cpu().numpy(), AT_ROOM), ((stopped & ~self.confined).cpu().numpy(), at_limit)]


def _within_rooms(
    objective: CurrentObjective,
    targets: Targets,
    powers_of_two: Tensor | None,
    solver: str,
    *,
    tol: float,
    max_iterations: int,
) -> _Found:
    """Solves, and solves again with those variables kept to their rooms that would move an entry out of its own."""
    limit, passes, confined = objective.limit, 2, torch.zeros_like(objective.held)
    most = max_iterations
    rooms: Tensor | None = None
    while True:
        with progress(tol) as report:
            solution = solve_rounded(objective, powers_of_two, tol=tol, max_iterations=most, solver=solver, report=report)
        flagged = targets.overflowing(solution.log_scales) & ~confined
        passes += 1
        if not bool(flagged.any()):
            return _Found(objective, solution, confined, passes if solution.iterations else passes - 1)
        confined = confined | flagged if passes < MOST_ROUNDS else torch.ones_like(confined)
        rooms = targets.headroom() if rooms is None else rooms
        most = min(max_iterations, _AT_ENDS) if solver == "newton" else max_iterations
        objective = objective.within(torch.where(confined, torch.minimum(limit, rooms), limit))


def solver_for(options: Options) -> str:
    """Returns the solver of `balance`: the named one where that says more than how a cycle works, else the fastest.

    Newton's method needs derivatives, which p = inf has not; there the max-balanced answer is found by contraction.
    """
    return options.solver if options.solver == "gauss-seidel" else fastest_solver(options.p)


def floats(norms: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns 0-d tensors as numbers, in one transfer."""
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)) if norms else {}
