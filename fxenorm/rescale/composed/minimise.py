"""`balance` for an objective that users compose: to its minimum at once, or to a vertex of a box where it is large."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...analysis.held import FrozenChoice, Mask, held_by_group
from ...objectives.function import Function
from ...objectives.large_terms import sets_of
from ...objectives.parts import Exponentials
from ...objectives.problem import Problem, function_of, is_of_largest, opened_for_largest, problem_of
from ...objectives.terms import as_term, in_words
from ...optim.state import OptimizerLike, StateChoice, unwrap_optimizers
from ...solve.channel_sets.large_power import LargePower
from ...solve.convex import climb, minimise
from ...solve.iterate import Solution, round_limit, solve
from ...solve.jacobi import round_to_powers_of_two, truncate_to_powers_of_two
from ...text.progress import progress
from ...weights.channel_ranges import channel_ranges
from ...weights.objective import CurrentObjective
from ...weights.targets import Targets
from ...weights.weights import Weights
from ..agreeing import Looked, Solved, agreed_scales
from ..balance import AT_CAP, AT_LIMIT, AT_ROOM, CAP, MOST_ROUNDS, BalanceResult, Permit, floats, solve_weights
from ..measures.balance_result import left_as_it_was
from ..nothing import say_if_nothing_moves
from ..rescaler import Rescaler

__all__ = ["Request", "minimise_terms"]

_ROUNDED = 100
"""Rounds in which variables move by powers of two: they start at the rounded optimum, where few move at all."""


@dataclass(frozen=True)
class Request:
    """The arguments of one `Plan.balance` with an objective, checked.

    Attributes:
        objective, maximise, max_log_scale, tol, max_iterations, state, frozen: see there.
    """

    objective: Any
    maximise: bool
    max_log_scale: float | None
    tol: float
    max_iterations: int
    state: StateChoice
    frozen: FrozenChoice

    def words(self) -> tuple[str, ...]:
        """Returns the request in words that processes compare."""
        names = ("maximise", "max_log_scale", "tol", "max_iterations", "state", "frozen")
        return ("balance", f"objective={in_words(self.objective)}", *(f"{name}={getattr(self, name)!r}" for name in names))


def minimise_terms(rescaler: Rescaler, optimizer: OptimizerLike, request: Request, permit: Permit | None = None) -> BalanceResult:
    """Balances by an objective of the user's, as `fxenorm.Plan.balance` does; what `permit` refuses is not written.

    Raises:
        OptionError: the objective does not fit the model.
    """
    agreed, own, result = _solve(rescaler, optimizer, request)
    if own is not None and bool(result.log_scales.any()):
        if permit is not None and not permit(result.log_scales):
            return left_as_it_was(result)
        own.apply_and_tell(agreed)
        rescaler.moved(result.log_scales)
    else:
        rescaler.warnings.nothing_moves("balance", result.held, rescaler.num_scales)
    return result


def minimum_of(rescaler: Rescaler, request: Request) -> BalanceResult:
    """Returns what `minimise_terms` would do, and writes nothing.

    Raises:
        OptionError: as there.
    """
    return _solve(rescaler, None, request)[-1]


def _solve(rescaler: Rescaler, optimizer: OptimizerLike, request: Request) -> tuple[Tensor, Targets | None, BalanceResult]:
    """Returns the log-scales of all processes, what they would multiply, and the report; nothing is written."""
    as_term(request.objective)
    if not rescaler.num_scales:
        say_if_nothing_moves(rescaler, "balance", request.frozen)

    def look() -> Looked:
        """Finds what follows, in the plan's own basis."""
        return Looked(*rescaler.targets(optimizer, state=request.state, within=False, flags=request.frozen))

    whole, targets, _ = rescaler.look_up_and_agree(request.words(), look, optimizer)
    optimizers = unwrap_optimizers(optimizer)
    own: Targets | None = None

    def targets_of(other: Weights) -> Targets:
        """Finds what follows, in the basis of these weights."""
        return targets if other.analysis is whole.analysis else other.targets(optimizers, frozen=False, state=request.state)

    def solve() -> Solved[BalanceResult]:
        """Does all that comes before the writes."""
        nonlocal own
        if is_of_largest(request.objective) and not request.maximise:
            found, own = _largest_balanced(whole, request, targets_of)
            return found
        box = whole.analysis.options.max_log_scale if request.max_log_scale is None else request.max_log_scale
        problem = problem_of(request.objective, whole, boxed=box is not None)
        own = targets_of(problem.weights)
        return _solved(_Run(whole, problem, own, request, box))

    agreed = agreed_scales(whole, solve)
    log_scales = agreed.weights.analysis.to_plan(agreed.log_scales).to("cpu", torch.float64, copy=True)
    return agreed.log_scales, own, replace(agreed.result, log_scales=log_scales)


def _largest_balanced(
    whole: Weights, request: Request, targets_of: Callable[[Weights], Targets]
) -> tuple[Solved[BalanceResult], Targets]:
    """Returns the log-scales that balance the largest entries of weights and activations, with the report, and the targets."""
    opened = opened_for_largest(request.objective, whole)
    if request.max_log_scale is not None:
        opened = opened[0], opened[1].within(torch.full_like(opened[1].limit, request.max_log_scale)), opened[2]
    given: dict[str, Any] = {"tol": request.tol, "max_iterations": request.max_iterations}
    found, targets = solve_weights(whole, targets_of, opened=opened, **given)
    result = replace(
        found.result,
        objective=in_words(request.objective),
        objective_before=float(opened[1].norm()),
        objective_after=float(opened[1].norm(found.log_scales)),
    )
    return replace(found, result=result), targets


@dataclass(frozen=True)
class _Run:
    """One solution on its way: the weights, the problem, what follows, and what was asked for."""

    whole: Weights
    problem: Problem
    targets: Targets
    request: Request
    box: float | None

    def limit(self) -> Tensor:
        """Returns (2, K) how far log-scales may go: the box, or where numbers end."""
        basis = self.problem.weights.analysis.basis
        most = (CAP if self.box is None else min(self.box, CAP)) / (1.0 if basis is None else basis.growth)
        found = torch.full((2, self.problem.held.numel()), most, dtype=torch.float64, device=self.problem.weights.device)
        # Less its mean, a variable may be twice as far from 0.
        means = self.problem.function.means
        return found if means is None else torch.where(means >= 0, found / 2, found)


def _solved(run: _Run) -> Solved[BalanceResult]:
    """Returns the log-scales to write with the report; raises before anything is written."""
    problem = run.problem
    function = problem.function.finite().stacked()
    log_value = function.log_value()
    function = function if log_value is None or not math.isfinite(log_value) else function.in_unit(log_value)
    powers_of_two = problem.weights.powers_of_two()
    solution, confined, passes = _within_rooms(run, function, powers_of_two)
    if not _keeps_promise(function, solution.log_scales, run.request.maximise):
        solution = replace(solution, log_scales=torch.zeros_like(solution.log_scales), converged=False, imbalance=0.0)
    at_limit = AT_CAP if run.box is None else AT_LIMIT
    stopped = [((solution.at_limit & confined).cpu().numpy(), AT_ROOM), ((solution.at_limit & ~confined).cpu().numpy(), at_limit)]
    result = _report(run, function, solution, stopped)
    rounded = 0 if powers_of_two is None else run.targets.rounded(solution.log_scales)
    some = powers_of_two is not None and bool(powers_of_two.any())
    return Solved(problem.weights, solution.log_scales, replace(result, passes=passes, rounded=rounded, powers_of_two=some))


def _report(run: _Run, function: Function, solution: Solution, stopped: list[tuple[Mask, str]]) -> BalanceResult:
    """Returns the report on a solution, but for the passes and for powers of two."""
    problem, analysis = run.problem, run.whole.analysis
    in_plan = problem.weights.analysis.to_plan(solution.log_scales)
    reasons = [*problem.left.reasons, *stopped]
    held = held_by_group(analysis.groups, reasons, in_plan.numel(), problem.left.equations, run.whole.frozen)
    same = problem.weights.analysis is analysis and problem.function.means is None
    measured = problem.function if same else function_of(run.request.objective, analysis, run.whole)
    norms, zero = run.whole.objective(), torch.zeros_like(in_plan)

    def _imbalance(at: Tensor) -> float:
        """Returns the largest imbalance of the channels that move."""
        return _largest(torch.where(problem.held, 0.0, function.imbalances(at)))

    return BalanceResult(
        solver="vertices" if run.request.maximise else "newton",
        converged=solution.converged and not _is_cut(stopped, run.box),
        iterations=solution.iterations,
        passes=0,
        log_scales=in_plan.to("cpu", torch.float64, copy=True),
        norm_before=float(norms.norm()),
        norm_after=float(norms.norm(in_plan)),
        imbalance_before=_imbalance(torch.zeros_like(solution.log_scales)),
        imbalance_after=max(_imbalance(solution.log_scales), solution.imbalance),
        layer_norms_before=floats(run.whole.layer_norms(norms)),
        layer_norms_after=floats(run.whole.layer_norms(norms, in_plan)),
        held=held,
        channel_ranges_before=channel_ranges(analysis, norms, None),
        channel_ranges_after=channel_ranges(analysis, norms, in_plan),
        objective=in_words(run.request.objective),
        objective_before=float(measured.value_and_gradient(zero)[0]),
        objective_after=float(measured.value_and_gradient(in_plan)[0]),
    )


def _is_cut(stopped: list[tuple[Mask, str]], box: float | None) -> bool:
    """Whether a variable was stopped on its way by something else than a box that was asked for."""
    return bool(stopped[0][0].any() or (box is None and stopped[1][0].any()))


def _largest(values: Tensor) -> float:
    """Returns the largest of some values that are not negative; 0 without any."""
    return float(values.amax()) if values.numel() else 0.0


def _keeps_promise(function: Function, log_scales: Tensor, maximise: bool) -> bool:
    """Whether the objective has not risen, or not fallen where it is made large, but for rounding."""
    before = float(function.value_and_gradient(torch.zeros_like(log_scales))[0])
    after = float(function.value_and_gradient(log_scales)[0])
    change = before - after if maximise else after - before
    return change <= 1e-12 * (1e-3 + abs(before))


def _within_rooms(run: _Run, function: Function, powers_of_two: Tensor | None) -> tuple[Solution, Tensor, int]:
    """Returns a solution that leaves every entry in its room, the variables kept to theirs, and passes over weights."""
    limit, held = run.limit(), run.problem.held
    confined, passes, rooms = torch.zeros_like(held), 2, None
    while True:
        solution = _solution(run.request, function, held, limit, powers_of_two)
        flagged = run.targets.overflowing(solution.log_scales) & ~confined
        passes += 1
        if not bool(flagged.any()):
            return solution, confined, passes
        confined = confined | flagged if passes < MOST_ROUNDS else torch.ones_like(confined)
        rooms = run.targets.headroom() if rooms is None else rooms
        narrow = torch.minimum(limit, rooms)
        limit = torch.where(confined, narrow if function.means is None else narrow / 2, limit)


def _solution(request: Request, function: Function, held: Tensor, limit: Tensor, powers_of_two: Tensor | None) -> Solution:
    """Returns the minimum within a limit, or the vertex, rounded to powers of two where asked for."""
    if powers_of_two is not None:
        limit = round_limit(limit, powers_of_two)
    if request.maximise:
        found = climb(function, held, limit)
        return replace(found, log_scales=function.centred(found.log_scales))
    given: dict[str, Any] = {"tol": request.tol, "max_iterations": request.max_iterations}
    with progress(request.tol) as report:
        steep = _steep(function, held, limit)
        if steep is None:
            found = minimise(function, held, limit, report=report, sets=sets_of(function, held, limit), **given)
        else:
            found = solve(steep, solver="newton", report=report, **given)
    exact = replace(found, log_scales=function.centred(found.log_scales))
    if powers_of_two is None or not bool(powers_of_two.any()):
        return exact
    # The imbalance of what is rounded is that of its channels.
    exact = replace(exact, imbalance=0.0)
    rounded = _rounded(replace(function, means=None), exact.log_scales, held, limit, powers_of_two)
    if function.means is not None or bool(powers_of_two.all()):
        return replace(exact, log_scales=rounded)
    left = held | powers_of_two
    rest = minimise(function, left, limit, start=rounded, sets=sets_of(function, left, limit), **given)
    return replace(exact, log_scales=rest.log_scales)


def _steep(function: Function, held: Tensor, limit: Tensor) -> CurrentObjective | None:
    """Returns a sum of large powers alone as the norm that it is, for which sets of channels are looked at; None: it is another.

    The derivative of such a sum is blind to weak entries beside strong ones.
    """
    (part, *others) = function.parts
    if others or function.means is not None or not isinstance(part, Exponentials) or not LargePower.applies(part.objective.p):
        return None
    return replace(part.objective, held=held, limit=limit)


def _rounded(function: Function, exact: Tensor, held: Tensor, limit: Tensor, powers_of_two: Tensor) -> Tensor:
    """Returns log-scales near a minimum, in powers of two where asked for, at which the function is no larger than at 0."""

    def value(at: Tensor) -> float:
        """Returns the value at some log-scales."""
        return float(function.value_and_gradient(at)[0])

    zero = torch.zeros_like(exact)
    roundings: list[Callable[[Tensor, Tensor], Tensor]] = [round_to_powers_of_two, truncate_to_powers_of_two]
    at = min([zero, *(one(exact, powers_of_two) for one in roundings)], key=value)
    for _ in range(_ROUNDED):
        step = torch.where(held, 0.0, function.relative_step(at))
        changes = [round_to_powers_of_two(step * share, powers_of_two) for share in (1.0, 0.5)]
        candidates = [torch.minimum(torch.maximum(at + change, -limit[1]), limit[0]) for change in changes]
        ahead = round_to_powers_of_two(min(candidates, key=value), powers_of_two)
        if not value(ahead) < value(at):
            return at
        at = ahead
    return at
