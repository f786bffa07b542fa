"""A term and a model put together: the function to minimise, and the variables that may move for it to have a minimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..analysis.analysis import Analysis
from ..analysis.attained.basis import Equation
from ..analysis.attained.movable import CountedSides, Movable, with_minimum
from ..analysis.held import MEAN
from ..weights.objective import CurrentObjective
from ..weights.weights import Weights
from .existence import counted_sides, one_sided_groups, rows_of, rows_of_entries
from .function import Function
from .observed_terms import Migration
from .source import Source
from .terms import leaves_gains_out, summands

__all__ = ["Problem", "function_of", "is_of_largest", "opened_for_largest", "problem_of"]

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """An objective on the variables that may move.

    Attributes:
        weights: the model's tensors in their basis.
        function: the objective there.
        left: which variables may move, and the reasons of all others.
    """

    weights: Weights
    function: Function
    left: Movable

    @property
    def held(self) -> Tensor:
        """(K,) bool: the places that stay at 0."""
        return torch.from_numpy(self.left.held).to(self.weights.device)


def function_of(term: Any, analysis: Analysis, weights: Weights) -> Function:
    """Returns a term at the current weights, over the basis in which these are.

    Raises:
        OptionError: the term does not fit the model, or breaks its contract.
    """
    groups = weights.analysis.on_device("solver groups", weights.analysis.solver_groups, weights.device)
    return Function(Source(analysis, weights).parts(term), groups.to(torch.int64))


def is_of_largest(term: Any) -> bool:
    """Whether a term balances the largest entries, so that it is no smooth function."""
    found = summands(term)
    return len(found) == 1 and isinstance(found[0][1], Migration) and math.isinf(found[0][1].p)


def opened_for_largest(term: Any, whole: Weights) -> tuple[Weights, CurrentObjective, Movable]:
    """Returns weights with ranges of activations as `Weights.within_now` does the weights alone; waits for the device.

    Args:
        term: one of which `is_of_largest` is true.
        whole: the model's tensors in the plan's own basis.
    """
    ((_, migration),) = summands(term)
    unfrozen = whole.unfrozen()
    first = whole.within(unfrozen)
    objective = Source(whole.analysis, first).largest(migration)
    program = objective.program.to(torch.device("cpu"))
    negative, positive = (logs.cpu().numpy() for logs in objective.log_sums())
    sides = CountedSides(program.counted_negative.numpy(), program.counted_positive.numpy(), negative, positive)
    left = with_minimum(whole.analysis, unfrozen, rows_of_entries(objective), sides=sides)
    if left.analysis is first.analysis:
        weights = first
    else:
        weights = whole.within(left)
        objective = Source(whole.analysis, weights).largest(migration)
    return weights, replace(objective, held=torch.from_numpy(left.held).to(whole.device)), left


def problem_of(term: Any, whole: Weights, *, boxed: bool) -> Problem:
    """Returns an objective on the directions in which it has a minimum; waits for the device.

    Args:
        term: the objective.
        whole: the model's tensors in the plan's own basis.
        boxed: whether a box makes up for a minimum that is missing.

    Raises:
        OptionError: as `function_of`.
    """
    unfrozen = whole.unfrozen()
    first = whole.within(unfrozen)
    function = function_of(term, whole.analysis, first)
    sides = replace(counted_sides(function), boxed=boxed)
    means: list[Ids] = []
    if leaves_gains_out(summands(term)):
        means = [ids for ids in one_sided_groups(whole.analysis.groups, sides, ~unfrozen.held) if _are_places(unfrozen, ids)]
    left = _left(whole.analysis, unfrozen, function, means, sides)
    if means and left.analysis is not unfrozen.analysis:
        # Sums of several groups stay too: then there is no variable for each channel, and each is held by itself.
        means = []
        left = _left(whole.analysis, unfrozen, function, means, sides)
    weights = first if left.analysis is unfrozen.analysis else whole.within(left)
    function = function if weights is first else function_of(term, whole.analysis, weights)
    means = [ids[~left.held[ids]] for ids in means]
    equations = [Equation(tuple((int(k), 1) for k in ids), MEAN) for ids in means if ids.size]
    left = replace(left, equations=(*left.equations, *equations))
    return Problem(weights, replace(function, means=_numbered(means, function.labels)), left)


def _left(analysis: Analysis, unfrozen: Movable, function: Function, means: Sequence[Ids], sides: Any) -> Movable:
    """Returns the variables that may move where the means of some sets stay 0."""
    if sides.boxed:
        return with_minimum(analysis, unfrozen, rows_of(replace(function, parts=[]), ()), sides=sides)
    labels, used = function.labels.cpu().numpy(), ~unfrozen.held
    groups = [np.flatnonzero((labels == label) & used).tolist() for label in np.unique(labels[used])]
    rows = rows_of(function, groups)
    for ids in means:
        rows.hold_sum(ids)
    return with_minimum(analysis, unfrozen, rows, sides=sides)


def _are_places(unfrozen: Movable, ids: Ids) -> bool:
    """Whether some variables of the plan are places of the basis of what may move, and no others follow them."""
    basis = unfrozen.analysis.basis
    if basis is None:
        return True
    rows = basis.matrix[ids].tocoo()
    columns = basis.matrix.tocsc()[:, ids]
    return bool(rows.nnz == ids.size == columns.nnz and (rows.col == ids[rows.row]).all() and (rows.data == 1).all())


def _numbered(means: Sequence[Ids], labels: Tensor) -> Tensor | None:
    """Returns (K,) the number of each variable's set, -1 for none; None: there are no sets."""
    if not any(ids.size for ids in means):
        return None
    found = torch.full_like(labels, -1)
    for number, ids in enumerate(means):
        found[torch.from_numpy(ids).to(labels.device)] = number
    return found
