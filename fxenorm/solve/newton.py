"""Newton's method with preconditioned conjugate gradients: to the optimum in a few iterations whatever the depth."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .coarse import coarse_correction, coarse_labels, coarse_problem
from .jacobi import at_limit, clamped, jacobi_step, solvable
from .objective import Objective, Operator
from .registry import Solver, register_solver

__all__ = ["Newton", "conjugate_gradients"]

_FAR = 4.0
"""Where some log(N / P) is larger than this, cycles of coordinate descent come first: N and P differ by more than e^4 = 55,
and the second derivative, N + P, is the larger of them alone."""

_EASY, _RATIO, _NEAR = 2.0, 2.0, 1.0
"""Exponents above the first (the square, whose steps are long) come after smaller ones, each this many times the last, until all
log(N / P) are below the third, where N + P is within a factor of e of both. Doubling p doubles the gaps."""

_MOST_CYCLES = 6
"""Such cycles at most: each with a coarse correction in front brings neighbours into line, and a channel that is still far off
then waits for others, which Newton steps move together."""

_MOST_PRODUCTS, _MOST_PRODUCTS_FAR = 1000, 100
"""Products with the Hessian an iteration: where some log(N / P) is above 1 its solution will not be the last one anyway. A
product costs about as much as a Jacobi cycle, so an iteration never costs more than a thousand of these."""

_LONGEST, _HALVINGS = 10.0, 12
"""The longest step, in units of 1 / p (a factor of e^10 on |w|^p), and how often it is halved: 2^-12 of such a step is a
change of 0.2 %, below which a direction that lowers nothing is given up."""


class Newton:
    """One Newton step by conjugate gradients, a line search on the objective, and a Jacobi cycle that evens out the rest.

    The objective never rises. Far from the optimum, a coarse correction and Jacobi cycles take the place of the Newton step. A
    large p has steep walls within which steps are short: there the first iterations are those of smaller exponents, as long as
    they lower the objective too.
    """

    def __init__(self) -> None:
        self._cycles = 0
        self._powers: list[float] | None = None
        self._easier: Objective | None = None

    def __call__(self, objective: Objective, log_scales: Tensor, log_negative: Tensor, log_positive: Tensor) -> Tensor:
        """Returns the (K,) log-scales after one outer iteration, for an easier exponent first where p is large."""
        if self._powers is None:
            steps = math.ceil(math.log(objective.p / _EASY, _RATIO))
            self._powers = [objective.p / _RATIO**step for step in range(steps, 0, -1)]
        while self._powers:
            easier = self._easier or objective.softened(self._powers[0])
            if easier is None:
                self._powers = []
                break
            sums = easier.log_sums(log_scales)
            gap = torch.where(solvable(*sums, objective.held), sums[0] - sums[1], 0.0)
            if bool(gap.abs().amax() > _NEAR):
                self._easier = easier
                ahead = self._iterate(easier, log_scales, *sums)
                if bool(objective.log_objective(ahead) <= objective.log_objective(log_scales)):
                    return ahead
                self._powers = []
            self._powers, self._easier = self._powers[1:], None
            # Its matrices are freed before those of the next are made.
            del easier
        return self._iterate(objective, log_scales, log_negative, log_positive)

    def _iterate(self, objective: Objective, log_scales: Tensor, log_negative: Tensor, log_positive: Tensor) -> Tensor:
        """Returns the (K,) log-scales after one iteration for the exponent of `objective`."""
        free = solvable(log_negative, log_positive, objective.held)
        gap = torch.where(free, log_negative - log_positive, 0.0)
        if self._cycles < _MOST_CYCLES and (self._cycles == 0 or bool((gap.abs() > _FAR).any())):
            self._cycles += 1
            start = coarse_correction(objective, log_scales, free)
            return self._cycle(objective, start)
        free = free & ~at_limit(log_scales, gap, objective.limit)
        log_diagonal = torch.where(free, torch.logaddexp(log_negative, log_positive), 0.0)
        # Relative to p^2 (N + P), the right-hand side is (N - P) / (N + P) / p.
        wanted = torch.where(free, (gap / 2).tanh() / objective.p, 0.0)
        operator = objective.curvature(log_scales, log_diagonal, free)
        labels, count = coarse_labels(objective, free)
        coarse = coarse_problem(objective, log_scales, labels, count)
        largest = log_diagonal[free].amax()
        solve_coarse = None if coarse is None else coarse.preconditioner(largest)
        weights = torch.where(free, (log_diagonal - largest).exp(), 0.0)
        precision = float((gap.abs().amax() * 0.1).clamp(1e-8, 0.1))
        most = _MOST_PRODUCTS_FAR if bool((gap.abs() > 1.0).any()) else _MOST_PRODUCTS
        direction = conjugate_gradients(operator, wanted, weights, labels, count, solve_coarse, precision, most)
        ahead = _line_search(objective, log_scales, direction, float((weights * wanted * direction).sum()), float(largest))
        return self._cycle(objective, ahead)

    def _cycle(self, objective: Objective, log_scales: Tensor) -> Tensor:
        """Runs a Jacobi cycle, in which channels that are too small for the objective to see catch up."""
        step = jacobi_step(*objective.log_sums(log_scales), objective.degree, objective.p, objective.held)
        return clamped(log_scales + step, objective.limit)


def conjugate_gradients(
    operator: Operator,
    wanted: Tensor,
    weights: Tensor,
    labels: Tensor,
    count: int,
    solve_coarse: Callable[[Tensor], Tensor] | None,
    precision: float,
    most: int,
) -> Tensor:
    """Solves operator @ x = wanted, both relative to the diagonal, with the diagonal and a coarse matrix in front.

    Args:
        operator: the Hessian.
        wanted: (K,) the right-hand side.
        weights: (K,) the diagonal in units of its largest; 0 where nothing moves.
        labels: (K,) the group of each variable, `count` where it does not move.
        count: the number of groups G.
        solve_coarse: (G,) to (G,): solves the Hessian of one scalar a group in these units; None: the diagonal alone.
        precision: the largest residual to leave, relative to the largest wanted.
        most: products at most.

    Returns:
        (K,) the solution, or what the most products allowed have reached: a descent direction all the same.
    """

    def conditioned(residual: Tensor) -> Tensor:
        """Returns the residual, plus the best correction by one scalar a group."""
        if solve_coarse is None:
            return residual
        totals = residual.new_zeros(count + 1).index_add_(0, labels, weights * residual)
        scalars = solve_coarse(totals[:-1])
        return residual + torch.where(weights > 0, torch.nn.functional.pad(scalars, (0, 1))[labels], 0.0)

    solution, residual = torch.zeros_like(wanted), wanted
    enough = precision * float(wanted.abs().amax())
    ahead = conditioned(residual)
    direction, energy = ahead, float((weights * residual * ahead).sum())
    for _ in range(min(most, 20 + 2 * wanted.numel())):
        if not energy > 0:
            break
        image = operator.product(direction)
        curve = float((weights * direction * image).sum())
        if not curve > 0:
            break
        length = energy / curve
        solution = solution + length * direction
        residual = residual - length * image
        if float(residual.abs().amax()) <= enough:
            break
        ahead = conditioned(residual)
        before, energy = energy, float((weights * residual * ahead).sum())
        direction = ahead + (energy / before) * direction
    return solution


def _line_search(objective: Objective, log_scales: Tensor, direction: Tensor, slope: float, log_unit: float) -> Tensor:
    """Returns the point along `direction` where the objective has fallen enough; the start if there is none.

    `slope` is the decrease of F over p^2 at first order, in units of exp(log_unit).
    """
    longest = float(direction.abs().amax())
    if not 0 < longest < math.inf:
        return log_scales
    before = float(objective.log_objective(log_scales))
    fall = objective.p**2 * math.exp(min(log_unit - before, 0.0)) * slope
    length = min(1.0, _LONGEST / (objective.p * longest))
    # The digits of the objective that rounding spoils: near the optimum it is flat, and Newton's step is right.
    slack = 1e-13 * (1.0 + abs(before))
    for _ in range(_HALVINGS):
        ahead = clamped(log_scales + length * direction, objective.limit)
        if float(objective.log_objective(ahead)) <= before - 1e-4 * length * max(fall, 0.0) + slack:
            return ahead
        length /= 2
    return log_scales


register_solver("newton", Solver(Newton, derivatives=True))
