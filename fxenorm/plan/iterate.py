"""Jacobi cycles on the matrices of |W|^p, read once, until every variable is balanced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels.backend import Backend
from ..kernels.program import ReduceProgram
from ..solve.jacobi import imbalance, jacobi_step, round_to_powers_of_two, solvable, truncate_to_powers_of_two

__all__ = ["Problem", "Solution", "move", "round_limit", "solve", "solve_rounded"]

_ROUNDED_CYCLES = 100


@dataclass(frozen=True)
class Problem:
    """The objective at the current weights, read once.

    Attributes:
        backend, program: the executor and what it runs.
        matrices: as `Backend.matrices` returns them.
        held: (K,) bool: variables that stay at 0.
        limit: (K,) the largest |log-scale|, may be infinite.
    """

    backend: Backend
    program: ReduceProgram
    matrices: Sequence[Tensor]
    held: Tensor
    limit: Tensor

    def log_objective(self, log_scales: Tensor | None = None) -> Tensor:
        """0-d: log F; p = inf: the log of the largest entry."""
        logs = self.backend.energies(self.program, self.matrices, log_scales) + self.program.log_weights
        return logs.amax(0) if math.isinf(self.program.p) else logs.logsumexp(0)

    def norm(self, log_scales: Tensor | None = None) -> Tensor:
        """0-d: F ** (1 / p); p = inf: the largest entry; 0 where nothing is counted."""
        if not self.matrices:
            return self.program.degree.new_zeros(())
        logs = self.log_objective(log_scales)
        return logs.exp() if math.isinf(self.program.p) else (logs / self.program.p).exp()

    def imbalance(self, log_scales: Tensor | None = None) -> float:
        """The imbalance after a rescaling."""
        sums = self.backend.sums(self.program, self.matrices, log_scales)
        return float(imbalance(sums.log_negative, sums.log_positive, self.program.p, self.held))


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
    problem: Problem, *, tol: float, max_iterations: int, start: Tensor | None = None, powers_of_two: Tensor | None = None
) -> Solution:
    """Repeats Jacobi cycles; none of them raises the objective.

    On loops of even length a cycle can overshoot by exactly its own length and ring for ever; where a cycle points against
    the one before and the imbalance does not fall, half of it is taken, which ends the ringing at once.

    Args:
        problem: the objective and what is held.
        tol: the imbalance to reach.
        max_iterations: cycles at most.
        start: log-scales to start from; None: 0.
        powers_of_two: variables that move by powers of two only; the iteration then ends when none moves any more.

    Returns:
        The log-scales reached; nothing is written.
    """
    program, p = problem.program, problem.program.p
    total = torch.zeros_like(program.degree) if start is None else start.clone()
    at_limit = torch.zeros_like(problem.held)
    held, first, previous, last_imbalance = problem.held, None, torch.zeros_like(total), math.inf
    for iteration in range(max_iterations + 1):
        sums = problem.backend.sums(program, problem.matrices, total)
        if first is None:
            first = solvable(sums.log_negative, sums.log_positive, held)
        step = jacobi_step(sums.log_negative, sums.log_positive, program.degree, p, held)
        at_limit = (total.abs() >= problem.limit) & (step * total > 0)
        current = imbalance(sums.log_negative, sums.log_positive, p, held)
        inside = imbalance(sums.log_negative, sums.log_positive, p, held | at_limit)
        lost = (first & ~solvable(sums.log_negative, sums.log_positive, held)).any()
        ahead = move(problem, total, step, powers_of_two)
        moved = (ahead - total).abs().amax() if step.numel() else step.new_zeros(())
        facts = torch.stack([current, inside, lost.to(current.dtype), moved, (step * previous).sum()]).tolist()
        worst, worst_inside, any_lost, largest_move, against = facts
        if worst_inside <= tol or largest_move == 0.0 or iteration == max_iterations or any_lost:
            break
        if against < 0 and worst > 0.9 * last_imbalance and powers_of_two is None:
            step = step / 2
            ahead = move(problem, total, step, None)
        last_imbalance, previous, total = worst, step, ahead
    return Solution(total, iteration, worst <= tol and not any_lost, worst, at_limit)


def move(problem: Problem, total: Tensor, step: Tensor, powers_of_two: Tensor | None) -> Tensor:
    """(K,) log-scales after a cycle, within the limit, in powers of two where asked for; never raises the objective.

    A cycle is as long as it can be without ever raising the objective, so anything from 0 to it is safe, but the nearest power
    of two may lie beyond it. It is taken if the objective agrees, else the one towards 0, else that of half the cycle.
    """

    def within(change: Tensor) -> Tensor:
        """`total` and a change of it, cut at the limit."""
        return torch.minimum(torch.maximum(total + change, -problem.limit), problem.limit)

    if powers_of_two is None or not problem.matrices:
        return within(step)
    finite = not math.isinf(problem.program.p)
    before = problem.log_objective(total)
    # The largest entry alone says little about p = inf: there it only must not rise.
    allowed = before - 1e-12 * before.abs() if finite else before
    chosen = within(truncate_to_powers_of_two(torch.where(powers_of_two & finite, 0.0, step), powers_of_two))
    for candidate in (
        truncate_to_powers_of_two(torch.where(powers_of_two, step / 2, step), powers_of_two),
        truncate_to_powers_of_two(step, powers_of_two),
        round_to_powers_of_two(step, powers_of_two),
    ):
        ahead = within(candidate)
        chosen = torch.where(problem.log_objective(ahead) <= allowed, ahead, chosen)
    # Sums of whole octaves in natural logarithms drift by rounding errors.
    return round_to_powers_of_two(chosen, powers_of_two)


def solve_rounded(problem: Problem, powers_of_two: Tensor | None, *, tol: float, max_iterations: int) -> Solution:
    """`solve`, and then the masked variables rounded to powers of two; `tol` refers to the solution before rounding.

    Rounding many variables together may raise the objective, so cycles in powers of two follow, which cannot: from the
    rounded solution, or from 0 where that is better.
    """
    solution = solve(problem, tol=tol, max_iterations=max_iterations)
    # Rounded cycles settle within a few; p = inf alone could go on for ever between solutions of one norm.
    rounds = min(max_iterations, _ROUNDED_CYCLES)
    if powers_of_two is None or not problem.matrices:
        return solution
    limit = round_limit(problem.limit, powers_of_two)
    start = round_to_powers_of_two(solution.log_scales, powers_of_two)
    start = torch.minimum(torch.maximum(start, -limit), limit)
    if bool(problem.log_objective(start) > problem.log_objective()):
        start = torch.zeros_like(start)
    within = replace(problem, limit=limit)
    rounded = solve(within, tol=tol, max_iterations=rounds, start=start, powers_of_two=powers_of_two)
    return replace(
        rounded,
        iterations=solution.iterations + rounded.iterations,
        converged=solution.converged,
        at_limit=solution.at_limit,
    )


def round_limit(limit: Tensor, powers_of_two: Tensor) -> Tensor:
    """(K,) a limit on log-scales, lowered to a whole number of octaves in the masked places."""
    return torch.where(powers_of_two, (limit * math.log2(math.e) * (1 + 1e-12)).floor() * math.log(2.0), limit)
