"""`balance`: to the least norm at once, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..analysis.analysis import Analysis
from ..analysis.attained.movable import Movable
from ..analysis.held import FrozenChoice, Mask, held_by_group
from ..analysis.options import Options
from ..optim.state import OptimizerLike, StateChoice, unwrap_optimizers
from ..solve import fastest_solver
from ..solve.iterate import Solution, solve_rounded
from ..solve.max_balance.residual import residual_at
from ..text.progress import progress
from ..weights.channel_ranges import channel_ranges
from ..weights.objective import CurrentObjective
from ..weights.targets import Targets
from ..weights.weights import Weights
from .agreeing import Looked, Solved, agreed_scales
from .measures.balance_result import BalanceResult, left_as_it_was
from .nothing import say_if_nothing_moves
from .rescaler import Rescaler

__all__ = [
    "AT_CAP", "AT_LIMIT", "AT_ROOM", "CAP", "MOST_ROUNDS", "BalanceResult", "Permit", "balance", "floats", "solve_weights"
]  # fmt: skip

Permit = Callable[[Tensor], bool]
"""Is asked with (num_scales,) log-scales, before anything is written, whether they shall be."""

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


def balance(
    rescaler: Rescaler,
    optimizer: OptimizerLike,
    *,
    tol: float,
    max_iterations: int,
    state: StateChoice,
    frozen: FrozenChoice = "auto",
    permit: Permit | None = None,
) -> BalanceResult:
    """Balances, as `fxenorm.Plan.balance` does, by checked options; what `permit` refuses is not written."""

    def look() -> Looked:
        """Finds what follows, in the plan's own basis."""
        return Looked(*rescaler.targets(optimizer, state=state, within=False, flags=frozen))

    words = ("balance", f"tol={tol!r}", f"max_iterations={max_iterations!r}", f"state={state!r}", f"frozen={frozen!r}")
    whole, targets, _ = rescaler.look_up_and_agree(words, look, optimizer)
    optimizers = unwrap_optimizers(optimizer)

    def targets_of(other: Weights) -> Targets:
        """Finds what follows, in the basis of these weights."""
        return targets if other.analysis is whole.analysis else other.targets(optimizers, frozen=False, state=state)

    result = _balanced(whole, targets_of, permit, tol=tol, max_iterations=max_iterations)
    rescaler.moved(result.log_scales)
    say_if_nothing_moves(rescaler, "balance", frozen)
    rescaler.warnings.nothing_moves("balance", result.held, rescaler.num_scales)
    return result


def _balanced(
    whole: Weights, targets_of: Callable[[Weights], Targets], permit: Permit | None, *, tol: float, max_iterations: int
) -> BalanceResult:
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
    result = replace(agreed.result, log_scales=log_scales)
    if targets is not None and bool(log_scales.any()):
        if permit is not None and not permit(log_scales):
            return left_as_it_was(result)
        targets.apply_and_tell(agreed.log_scales)
    return result


Opened = tuple[Weights, CurrentObjective, Movable]
"""Weights in a basis of what may move, the objective there, and the reasons of what may not."""


def solve_weights(
    whole: Weights, targets_of: Callable[[Weights], Targets], *, tol: float, max_iterations: int, opened: Opened | None = None
) -> tuple[Solved[BalanceResult], Targets]:
    """Returns the log-scales to write with the report, and the targets.

    Args:
        whole: the model's tensors in the plan's own basis.
        targets_of: finds what follows in the basis of some weights.
        tol, max_iterations: as in `Plan.balance`.
        opened: as `Weights.within_now` returns it, for another objective than the plan's own; None: it is this one.
    """
    weights, objective, left = whole.within_now() if opened is None else opened
    analysis, targets = weights.analysis, targets_of(weights)
    limit = objective.limit.clamp(max=CAP / (1.0 if analysis.basis is None else analysis.basis.growth)).expand(2, -1)
    by_tensor = objective.within(limit)
    solver = solver_for(analysis.options) if opened is None else fastest_solver(objective.p)
    solved = by_tensor if solver == "gauss-seidel" else by_tensor.stacked()
    powers_of_two = weights.powers_of_two()
    found = _within_rooms(solved, targets, powers_of_two, solver, tol=tol, max_iterations=max_iterations)
    solution, log_scales = found.solution, analysis.to_plan(found.solution.log_scales)
    distance = found.residual()
    in_plan = by_tensor if opened is None and analysis is whole.analysis else whole.objective()
    measured = solved if in_plan is by_tensor else in_plan
    held = held_by_group(
        analysis.groups, [*left.reasons, *found.stopped(analysis)], analysis.symmetry.num_scales, left.equations, whole.frozen
    )
    result = BalanceResult(
        solver=solver,
        converged=solution.converged and (solver != "max-balance" or powers_of_two is not None or (distance or 0.0) <= tol),
        iterations=solution.iterations,
        passes=found.passes + solved.looks,
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
        residual=distance,
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

    def residual(self) -> float | None:
        """Returns the distance from the max-balanced weights; None: the exponent is finite."""
        if not math.isinf(self.objective.p):
            return None
        return residual_at(self.objective, self.solution.log_scales, self.solution.at_limit)

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
