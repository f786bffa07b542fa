"""A solver's cycles on the matrices of |W|^p, read once, until every variable is balanced."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .channel_sets.large_power import LargePower
from .jacobi import (
    at_limit,
    clamped,
    imbalance,
    jacobi_step,
    round_to_powers_of_two,
    solvable,
    truncate_to_powers_of_two,
)
from .max_balance.residual import residual_at
from .objective import Objective
from .registry import get_solver

__all__ = ["Solution", "move", "round_limit", "rounded_if_better", "solve", "solve_rounded"]

_ROUNDED_CYCLES = 100
"""Cycles in powers of two at most. They start at the rounded optimum, where most variables move by one octave or not at all; the
bound is for loops on which they move in turn."""

_SQUARED, _LEAST = 0.01, 1e-9
"""One more iteration of Newton's method, which squares the imbalance, where that is above this share of `tol`. For a `tol`
below the second, rounding of float64 leaves nothing to square."""

_START_TOL, _START_ITERATIONS = 0.03, 12
"""As in `fxenorm.solve.max_balance.solver`: not far from the answer of p = inf."""

_TIE = 1e-9
"""For p = inf, half an octave (but for this share) stays: a whole one would swap the sides, and the next cycle swap them back."""


@dataclass(frozen=True)
class Solution:
    """The end of an iteration.

    Attributes:
        log_scales: (K,) the sum of all cycles.
        iterations: how many there were.
        converged: whether the imbalance fell to the tolerance without a variable at its limit.
        imbalance: over the variables that are not held.
        at_limit: (K,) bool: variables that the limit stopped.
    """

    log_scales: Tensor
    iterations: int
    converged: bool
    imbalance: float
    at_limit: Tensor


def solve(
    problem: Objective,
    *,
    tol: float,
    max_iterations: int,
    start: Tensor | None = None,
    powers_of_two: Tensor | None = None,
    solver: str = "jacobi",
    report: Callable[[int, float], None] | None = None,
) -> Solution:
    """Repeats a solver's cycles until the imbalance is at most `tol`; none of them raises the objective.

    Args:
        problem: the objective, with the variables that are held.
        tol: the imbalance to reach.
        max_iterations: cycles at most.
        start: log-scales to start from; None: 0.
        powers_of_two: variables that move by powers of two only, by Jacobi cycles; the iteration then ends when none moves.
        solver: a name from `fxenorm.solve.solver_names`.
        report: called before each cycle with its number and the imbalance.

    Returns:
        The log-scales reached; nothing is written.
    """
    degree, p = problem.degree, problem.p
    total = torch.zeros_like(degree) if start is None else start.clone()
    cycle, held, first = get_solver(solver), problem.held, None
    sets = _of_sets(problem) if solver == "newton" and powers_of_two is None and LargePower.applies(p) else None
    # Deep networks have directions in which an imbalance of tol is some more in the weights. One more of Newton's iterations,
    # which squares what is left, makes up for it.
    squares = solver == "newton" and powers_of_two is None and tol >= _LEAST
    for iteration in range(max_iterations + 1):
        sums = problem.log_sums(total)
        first = solvable(*sums, held) if first is None else first
        stopped, (worst, worst_inside, lost) = _measured(problem, total, sums, first)
        near = worst_inside <= tol
        of_sets = sets.imbalance(total, stopped, tol) if near and sets is not None else 0.0
        worst = max(worst, of_sets)
        if lost or iteration == max_iterations:
            break
        if near and of_sets <= tol and not (iteration == 0 and solver == "max-balance" and residual_at(problem, total) > tol):
            if not squares or iteration == 0 or worst_inside <= _SQUARED * tol:
                break
            squares = False
        if report is not None:
            report(iteration, worst_inside)
        if sets is not None and ((of_sets > tol and not sets.falls) or sets.leads(worst_inside)):
            ahead = sets(total, tol)
        elif powers_of_two is None:
            ahead = cycle(problem, total, *sums)
        else:
            ahead = move(problem, total, jacobi_step(*sums, degree, p, held), powers_of_two)
        if torch.equal(ahead, total):
            break
        total = ahead
    return Solution(total, iteration, worst <= tol and not lost, worst, stopped)


def _measured(problem: Objective, total: Tensor, sums: tuple[Tensor, Tensor], first: Tensor) -> tuple[Tensor, list[float]]:
    """Returns which variables a limit stops; the imbalance of all and of the others; and not 0 if one of the first is lost."""
    alive = solvable(*sums, problem.held)
    stopped = at_limit(total, torch.where(alive, sums[0] - sums[1], 0.0), problem.limit)
    current = imbalance(*sums, problem.p, problem.held)
    inside = imbalance(*sums, problem.p, problem.held | stopped)
    return stopped, torch.stack([current, inside, (first & ~alive).any().to(current.dtype)]).tolist()


def _of_sets(problem: Objective) -> LargePower:
    """Returns what finishes a solution for a large p."""

    def start(log_scales: Tensor) -> Tensor:
        """Returns (K,) log-scales near those of p = inf: of the square."""
        easier = problem.softened(2.0, start=True)
        if easier is None:
            return log_scales
        return solve(easier, tol=_START_TOL, max_iterations=_START_ITERATIONS, start=log_scales, solver="newton").log_scales

    return LargePower(problem, start)


def move(problem: Objective, total: Tensor, step: Tensor, powers_of_two: Tensor | None) -> Tensor:
    """(K,) log-scales after a cycle, within the limit, in powers of two where asked for; never raises the objective.

    A cycle is as long as it can be without ever raising the objective, so anything from 0 to it is safe, but the nearest power
    of two may lie beyond it. It is taken if the objective agrees, else the one towards 0, else that of half the cycle.
    """

    if powers_of_two is None or problem.is_empty:
        return clamped(total + step, problem.limit)
    mask = powers_of_two

    def within(change: Tensor) -> Tensor:
        """`total` and a change of it, cut at the limit; sums of whole octaves in natural logarithms drift by rounding errors."""
        return round_to_powers_of_two(clamped(total + change, problem.limit), mask)

    finite = not math.isinf(problem.p)
    candidates: list[Callable[[], Tensor]] = [
        lambda: within(round_to_powers_of_two(step if finite else step * (1 - _TIE), mask)),
        lambda: within(truncate_to_powers_of_two(step, mask)),
        lambda: within(truncate_to_powers_of_two(torch.where(mask, step / 2, step), mask)),
    ]
    before = problem.log_objective(total)
    # The largest entry alone says little about p = inf: there it only must not rise.
    allowed = before - 1e-12 * before.abs() if finite else before
    for candidate in candidates:
        # Each is a pass over all entries, and the first will most often do.
        ahead = candidate()
        if bool(problem.log_objective(ahead) <= allowed):
            return ahead
    return within(truncate_to_powers_of_two(torch.where(mask & finite, 0.0, step), mask))


def rounded_if_better(problem: Objective, log_scales: Tensor, powers_of_two: Tensor) -> Tensor:
    """(K,) whole octaves near some log-scales, whichever way of rounding lowers the objective most; 0 where none does.

    Args:
        problem: the objective.
        log_scales: (K,) of many cycles, natural logarithms.
        powers_of_two: (K,) bool: variables that are rounded; the others stay as they are given, or at 0 with the rest.
    """
    candidates = [
        round_to_powers_of_two(log_scales, powers_of_two),
        truncate_to_powers_of_two(log_scales, powers_of_two),
        truncate_to_powers_of_two(torch.where(powers_of_two, log_scales / 2, log_scales), powers_of_two),
    ]
    candidates = [clamped(candidate, problem.limit) for candidate in candidates]
    chosen = torch.zeros_like(log_scales)
    best, *reached = problem.log_objectives([chosen, *candidates])
    # What is no lower than rounding errors is not taken: equals would take turns for ever.
    best = best - 1e-12 * best.abs()
    for candidate, objective in zip(candidates, reached, strict=True):
        chosen, best = torch.where(objective < best, candidate, chosen), torch.minimum(best, objective)
    return chosen


def solve_rounded(
    problem: Objective,
    powers_of_two: Tensor | None,
    *,
    tol: float,
    max_iterations: int,
    solver: str = "jacobi",
    report: Callable[[int, float], None] | None = None,
) -> Solution:
    """`solve`, and then the masked variables rounded to powers of two; `tol` refers to the solution before rounding.

    Rounding many variables together may raise the objective, so cycles in powers of two follow, which cannot: from the
    rounded solution, or from 0 where that is better.
    """
    solution = solve(problem, tol=tol, max_iterations=max_iterations, solver=solver, report=report)
    # Rounded cycles settle within a few; p = inf alone could go on for ever between solutions of one norm.
    rounds = min(max_iterations, _ROUNDED_CYCLES)
    if powers_of_two is None or problem.is_empty:
        return solution
    limit = round_limit(problem.limit, powers_of_two)
    start = round_to_powers_of_two(solution.log_scales, powers_of_two)
    start = clamped(start, limit)
    if bool(problem.log_objective(start) > problem.log_objective()):
        start = torch.zeros_like(start)
    within = problem.within(limit)
    rounded = solve(within, tol=tol, max_iterations=rounds, start=start, powers_of_two=powers_of_two)
    return replace(
        rounded,
        iterations=solution.iterations + rounded.iterations,
        converged=solution.converged,
        at_limit=solution.at_limit,
    )


def round_limit(limit: Tensor, powers_of_two: Tensor) -> Tensor:
    """Returns a limit on log-scales, lowered to a whole number of octaves in the masked places."""
    return torch.where(powers_of_two, (limit * math.log2(math.e) * (1 + 1e-12)).floor() * math.log(2.0), limit)
