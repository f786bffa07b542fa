"""Minimises any smooth convex function of the log-scales by Newton's method within a box, and climbs to a vertex of the box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .iterate import Solution
from .jacobi import at_limit, clamped
from .newton import conjugate_gradients

__all__ = ["Convex", "Sets", "climb", "minimise"]

_FAR, _MOST_CYCLES = 1.0, 6
"""Where the imbalance is larger, cycles come first, and at most so many: as in `fxenorm.solve.newton`."""

_MOST_PRODUCTS = 1000
"""Products with the Hessian an iteration: as many as there."""

_LONGEST, _HALVINGS = 10.0, 30
"""The longest step, in units of the inverse of the largest exponent, and how often it is halved. A function of a user's own may
be steeper than it says, hence more halvings than in `fxenorm.solve.newton`."""

_SQUARED, _LEAST = 0.01, 1e-9
"""One more iteration where the imbalance is above this share of `tol`; not for a `tol` below the second. As in `solve`."""

_PATIENCE = 30
"""Iterations without a smaller imbalance before the solution is given up. Newton steps that are shortened by the line search may
raise it for a while; a function that breaks its promise to be convex may do so for ever. A choice, not a measurement."""

_STARTS, _ROUNDS = 4, 100
"""Starts of `climb`, the first of them 0, and rounds at most: each round ends at a vertex that is higher than the last."""


class Convex(Protocol):
    """A smooth convex function of the log-scales."""

    @property
    def labels(self) -> Tensor:
        """(K,) int64: the group of each variable; -1: none."""

    @property
    def steepness(self) -> float:
        """The largest exponent by which an entry follows a log-scale; it bounds the steps."""

    def value_and_gradient(self, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the 0-d value, in units of the function's own, and its (K,) derivative."""

    def curvature_times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """Returns (K,) the second derivative times a direction."""

    def log_sizes(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) logs of second derivatives by variable, or estimates of them; -inf where there is none."""

    def relative_step(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) minus the derivative over exp(log_sizes), without loss where both are tiny."""

    def imbalances(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) how far each variable is off by itself, about twice the log-scale that would balance it."""

    def cycle(self, log_scales: Tensor) -> Tensor | None:
        """Returns (K,) a change of all variables that never raises the function; None: it is not to be had."""

    def coarse(self, log_scales: Tensor, labels: Tensor, count: int, log_unit: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Returns a solver for the second derivative in one scalar a label, in units of exp(log_unit); None: there is none."""


class Sets(Protocol):
    """Looks at sets of variables, of which derivatives by single variables say nothing in float64."""

    def leads(self, imbalance: float) -> bool:
        """Notes the imbalance of one more iteration; whether Newton's method by variables gets no further."""

    def imbalance(self, log_scales: Tensor, stopped: Tensor, tol: float) -> float:
        """Returns the largest imbalance of sets, or a bound on it that is at most `tol`; `stopped` are at a limit."""

    def __call__(self, log_scales: Tensor, tol: float) -> Tensor:
        """Returns the (K,) log-scales at which sets are balanced too, or as near as was reached."""


def minimise(
    function: Convex,
    held: Tensor,
    limit: Tensor,
    *,
    tol: float,
    max_iterations: int,
    start: Tensor | None = None,
    report: Callable[[int, float], None] | None = None,
    sets: Sets | None = None,
) -> Solution:
    """Minimises by Newton steps on the variables that are not at their limits; no iteration raises the function.

    Args:
        function: convex.
        held: (K,) bool: variables that stay where they are.
        limit: (2, K) how far log-scales may go up and down.
        tol: the imbalance to reach.
        max_iterations: Newton steps at most.
        start: (K,) within the limit; None: 0.
        report: called before each iteration with its number and the imbalance.
        sets: balances sets of variables; None: derivatives by variables say all.

    Returns:
        The minimum, or the best that was reached; ``converged`` speaks of the variables that no limit stops.
    """
    at = torch.zeros_like(limit[0]) if start is None else start
    cycles, squares, least, since = 0, tol >= _LEAST, float("inf"), 0
    for iteration in range(max_iterations + 1):
        off = torch.where(held, 0.0, function.imbalances(at))
        stopped = ~held & at_limit(at, function.relative_step(at), limit)
        worst, inside = torch.stack([_largest(off), _largest(torch.where(stopped, 0.0, off))]).tolist()
        of_sets = sets.imbalance(at, stopped, tol) if sets is not None and inside <= tol else 0.0
        worst, inside = max(worst, of_sets), max(inside, of_sets)
        least, since = (inside, 0) if inside < least else (least, since + 1)
        if iteration == max_iterations or since > _PATIENCE:
            break
        if inside <= tol:
            if not squares or iteration == 0 or inside <= _SQUARED * tol:
                break
            squares = False
        if report is not None:
            report(iteration, inside)
        ahead: Tensor | None = None
        if sets is not None and (sets.leads(inside) or of_sets > tol):
            ahead = _lower(function, at, clamped(sets(at, tol), limit))
        elif cycles < _MOST_CYCLES and (cycles == 0 or inside > _FAR):
            cycles += 1
            ahead = _cycled(function, at, held, limit)
        if ahead is None or torch.equal(ahead, at):
            ahead = _newton_step(function, at, ~held & ~stopped, limit, inside)
        if torch.equal(ahead, at):
            break
        at = ahead
    return Solution(at, iteration, inside <= tol, worst, stopped)


def _lower(function: Convex, at: Tensor, ahead: Tensor) -> Tensor:
    """Returns the point ahead, or the start where the function is larger there by more than rounding."""
    before, after = (function.value_and_gradient(one)[0] for one in (at, ahead))
    return ahead if bool(after <= before + 1e-13 * (1e-3 + before.abs())) else at


def _largest(values: Tensor) -> Tensor:
    """Returns the 0-d largest of some values that are not negative; 0 without any."""
    return values.amax() if values.numel() else values.new_zeros(())


def _cycled(function: Convex, at: Tensor, held: Tensor, limit: Tensor) -> Tensor | None:
    """Returns the log-scales after a cycle that does not raise the function; None where there is none."""
    step = function.cycle(at)
    if step is None:
        return None
    ahead = clamped(at + torch.where(held, 0.0, step), limit)
    # Shorter changes of single variables keep the promise too, so a limit does no harm.
    return ahead if bool(function.value_and_gradient(ahead)[0] <= function.value_and_gradient(at)[0]) else at


@dataclass(frozen=True)
class _Relative:
    """The second derivative, each row divided by that variable's own."""

    function: Convex
    at: Tensor
    sizes: Tensor
    free: Tensor

    def product(self, vector: Tensor) -> Tensor:
        """(K,) its rows times a vector; 0 where nothing moves."""
        image = self.function.curvature_times(self.at, torch.where(self.free, vector, 0.0))
        return torch.where(self.free, image / self.sizes, 0.0)


def _newton_step(function: Convex, at: Tensor, free: Tensor, limit: Tensor, inside: float) -> Tensor:
    """Returns the log-scales after a Newton step in the free variables and a line search; the same where nothing lowers."""
    logs = function.log_sizes(at)
    free = free & logs.isfinite()
    if not bool(free.any()):
        return at
    largest = logs[free].amax()
    sizes = torch.where(free, logs.exp(), 1.0)
    free = free & (sizes > 0)
    wanted = torch.where(free, function.relative_step(at), 0.0)
    weights = torch.where(free, (logs - largest).exp(), 0.0)
    used, places = torch.unique(function.labels[free & (function.labels >= 0)], return_inverse=True)
    labels = torch.full_like(function.labels, used.numel())
    labels[free & (function.labels >= 0)] = places
    solve = function.coarse(at, labels, used.numel(), largest) if used.numel() else None
    precision = min(max(0.1 * inside, 1e-8), 0.1)
    operator = _Relative(function, at, sizes, free)
    direction = conjugate_gradients(operator, wanted, weights, labels, used.numel(), solve, precision, _MOST_PRODUCTS)
    ahead = _line_search(function, at, direction, limit)
    return _line_search(function, at, wanted, limit) if torch.equal(ahead, at) else ahead


def _line_search(function: Convex, at: Tensor, direction: Tensor, limit: Tensor) -> Tensor:
    """Returns the point along a direction, bent at the limit, where the function has fallen enough; else the start."""
    longest = float(direction.abs().amax())
    if not 0 < longest < float("inf"):
        return at
    value, gradient = function.value_and_gradient(at)
    # The digits of the value that rounding spoils: near the optimum it is flat, and Newton's step is right.
    slack = 1e-13 * (1e-3 + value.abs())
    length = min(1.0, _LONGEST / (function.steepness * longest))
    for _ in range(_HALVINGS):
        ahead = clamped(at + length * direction, limit)
        fall = (gradient * (ahead - at)).sum().clamp(max=0.0)
        if bool(function.value_and_gradient(ahead)[0] <= value + 1e-4 * fall + slack):
            return ahead
        length /= 2
    return at


def climb(function: Convex, held: Tensor, limit: Tensor) -> Solution:
    """Goes to a vertex of the box at which the function is a local maximum: log-scales of the limit times the derivative's sign.

    A convex function lies above its tangents, so no round lowers it. Of several starts the highest end is taken.

    Args:
        function: convex.
        held: (K,) bool: variables that stay at 0.
        limit: (2, K) how far log-scales may go up and down, finite.

    Returns:
        The vertex; ``converged``: whether no other vertex lies higher along the derivative.
    """
    random = torch.Generator(device="cpu").manual_seed(0)
    best: tuple[Tensor, Solution] | None = None
    for start in range(_STARTS):
        signs = torch.randint(0, 2, (held.numel(),), generator=random, dtype=torch.int64, device="cpu").to(held.device)
        at = torch.zeros_like(limit[0]) if start == 0 else torch.where(held, 0.0, torch.where(signs > 0, limit[0], -limit[1]))
        value, gradient = function.value_and_gradient(at)
        ended = False
        rounds = 0
        for rounds in range(_ROUNDS):  # noqa: B007
            vertex = torch.where(gradient > 0, limit[0], torch.where(gradient < 0, -limit[1], at))
            ahead = torch.where(held, 0.0, vertex)
            higher, slope = function.value_and_gradient(ahead)
            ended = torch.equal(ahead, at) or not bool(higher > value)
            if ended:
                break
            at, value, gradient = ahead, higher, slope
        if best is None or bool(value > best[0]):
            none = torch.zeros_like(held)
            best = value, Solution(at, rounds, ended, float(_largest(torch.where(held, 0.0, function.imbalances(at)))), none)
    if best is None:
        raise RuntimeError("there is at least one start")
    return best[1]
