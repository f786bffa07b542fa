"""Finds the variables that `step` and `balance` may move, in one integer basis, and why the others are held."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...field.integer_kernel import integer_kernel
from ..analysis import Analysis
from ..held import FROZEN, LAST, NOT_ATTAINED, ROUNDED, Mask, Sums, dead_reasons, one_sided_reasons
from .basis import Basis, Equation, Form, basis_of
from .channel_fields import ChannelFields
from .exponent_rows import ExponentRows, exponent_rows
from .missing_equations import missing_equations

__all__ = ["CountedSides", "Movable", "free", "movable", "with_minimum"]


@dataclass(frozen=True)
class Movable:
    """The variables that may move, and the reasons of all others.

    Attributes:
        analysis: the plan in a basis of the variables that may move; the plan itself where each of these is one of its own.
        held: (K,) places of that basis that stay at 0.
        reasons: (K,) masks of the plan's variables that stay at 0 one by one, with the reasons.
        equations: the sums of them that do.
    """

    analysis: Analysis
    held: Mask
    reasons: tuple[tuple[Mask, str], ...]
    equations: tuple[Equation, ...] = ()


@dataclass(frozen=True)
class CountedSides:
    """The sides of an objective other than the plan's own, by place of a basis.

    Attributes:
        counted_negative, counted_positive: (K,) whether any entry, zero or not, shrinks or grows with it.
        log_negative, log_positive: (K,) log N and log P at the current weights.
        boxed: whether every variable stays in a box, so that there is a minimum anyway.
    """

    counted_negative: Mask
    counted_positive: Mask
    log_negative: NDArray[np.float64]
    log_positive: NDArray[np.float64]
    boxed: bool = False


def free(analysis: Analysis, frozen: frozenset[str], rounded: frozenset[str] = frozenset()) -> Movable:
    """Returns the variables that frozen tensors and the options leave free; worked out once for each set of flags in use.

    Args:
        analysis: the plan without its module.
        frozen: their names.
        rounded: names of others that stay, for powers of two would round them.
    """
    found: Movable = analysis.remembered(("free", frozen, rounded), lambda: _free(analysis, frozen, rounded))
    return found


def movable(analysis: Analysis, frozen: frozenset[str], rounded: frozenset[str] = frozenset()) -> Movable:
    """Returns what `step` moves: `free`, less the directions without a minimum when no weight is zero."""

    def make() -> Movable:
        """Decides by the exponents alone, as if no weight were zero."""
        found = free(analysis, frozen, rounded)
        return with_minimum(analysis, found, exponent_rows(found.analysis.counted.program))

    found: Movable = analysis.remembered(("movable", frozen, rounded), make)
    return found


def _free(analysis: Analysis, frozen: frozenset[str], rounded: frozenset[str]) -> Movable:
    """Finds the variables that frozen tensors and the options leave free, whatever the objective is."""
    last = analysis.feeding_last
    still_names = frozen | rounded
    if not still_names:
        return Movable(analysis, last, ((last, LAST),))
    symmetry = analysis.symmetry
    zero = [(tuple(symmetry.shapes[name]), symmetry.exponents[name]) for name in sorted(still_names)]
    basis = basis_of(symmetry.num_scales, zero, (), np.flatnonzero(last))
    still = np.diff(basis.matrix.indptr) == 0
    by_flag = still & analysis.mask_of(sorted(frozen))
    reasons = ((by_flag, FROZEN), (still & analysis.mask_of(sorted(rounded)), ROUNDED), (still & last, LAST))
    if not basis.mixes:
        return Movable(analysis, basis.unused, reasons)
    equations = tuple(Equation(form, FROZEN if frozen else ROUNDED) for form in _complement(basis))
    return Movable(analysis.in_basis(basis), basis.unused, reasons, equations)


def with_minimum(
    analysis: Analysis, free: Movable, rows: ExponentRows, sums: Sums | None = None, sides: CountedSides | None = None
) -> Movable:
    """Holds the directions in which the objective falls for ever; returns the rest, on which it has a minimum.

    Args:
        analysis: the plan.
        free: the variables that may move.
        rows: the counted entries' exponents in the basis of `free`.
        sums: log N and log P of the current weights there; None: no weight is zero.
        sides: those of another objective, to which the rows belong; None: it is the plan's.
    """
    program = free.analysis.counted.program
    counted = (program.counted_negative.numpy(), program.counted_positive.numpy())
    if sides is not None:
        counted, sums = (sides.counted_negative, sides.counted_positive), (sides.log_negative, sides.log_positive)
    reasons = one_sided_reasons(*counted)
    if sums is not None:
        reasons = [*reasons, *dead_reasons(*sums)]
    # Nothing can be solved for where a sum is not finite, and nothing falls where no weight follows.
    silent = ~counted[0] & ~counted[1]
    if sums is not None:
        negative, positive = sums
        silent |= (negative == -np.inf) & (positive == -np.inf)
        silent |= ~(negative < np.inf) | ~(positive < np.inf)
    silent &= ~free.held
    fixed = free.held | silent
    channels = ChannelFields(analysis.symmetry.channels, program, free.analysis.basis, fixed)
    boxed = sides is not None and sides.boxed
    missing = [] if boxed else missing_equations(rows.matrix(fixed), fixed, channels, free.analysis.basis is not None)
    single = silent.copy()
    single[[form[0][0] for form, _ in missing if len(form) == 1]] = True
    why = _first_reason(reasons, single)
    if free.analysis is analysis and len(missing) == int(single.sum() - silent.sum()):
        masks = tuple((mask & single, reason) for mask, reason in why)
        return Movable(analysis, free.held | single, (*free.reasons, *masks))
    if all(len(form) == 1 for form, _ in missing):
        places = np.flatnonzero(single).tolist()
        plain = {form[0][0]: form_of for form, form_of in missing}
        found = [Equation(plain.get(place) or _of_place(free.analysis.basis, place), _reason_at(why, place)) for place in places]
        return Movable(free.analysis, free.held | single, free.reasons, (*free.equations, *found))
    inner = basis_of(program.num_scales, (), [form for form, _ in missing], np.flatnonzero(free.held | single))
    basis = inner if free.analysis.basis is None else free.analysis.basis.after(inner)
    found = [
        Equation(plain or (form if free.analysis.basis is None else _of_place(free.analysis.basis, form[0][0])), NOT_ATTAINED)
        for form, plain in missing
        if len(form) > 1 or free.analysis.basis is not None
    ]
    masks = tuple((mask & single, reason) for mask, reason in why) if free.analysis.basis is None else ()
    return Movable(analysis.in_basis(basis), basis.unused, (*free.reasons, *masks), (*free.equations, *found))


def _first_reason(reasons: Sequence[tuple[Mask, str]], single: Mask) -> list[tuple[Mask, str]]:
    """Returns the reasons of single variables: those known, else that the minimum is not attained."""
    known = np.logical_or.reduce([mask for mask, _ in reasons])
    return [*reasons, (single & ~known, NOT_ATTAINED)]


def _reason_at(reasons: Iterable[tuple[Mask, str]], place: int) -> str:
    """Returns the first reason for one variable."""
    return next((reason for mask, reason in reasons if mask[place]), NOT_ATTAINED)


def _of_place(basis: Basis | None, place: int) -> Form:
    """Returns a form of the plan's variables that is a multiple of one place of a basis."""
    if basis is None:
        return ((place, 1),)
    columns = basis.matrix.tocsc()
    alone = np.diff(basis.matrix.indptr) == 1
    rows = columns.indices[columns.indptr[place] : columns.indptr[place + 1]]
    own = rows[alone[rows]]
    if own.size:
        return ((int(own[0]), 1),)
    # Forms that are 0 on all other vectors; one of them is not 0 on this one.
    touched = np.unique(basis.matrix[rows].indices)
    members = np.unique(columns[:, touched].indices)
    others = touched[touched != place]
    forms = integer_kernel(basis.matrix[members][:, others].toarray().T) if others.size else np.eye(members.size, dtype=np.int64)
    values = basis.matrix[members][:, [place]].toarray()[:, 0] @ forms
    chosen = forms[:, int(np.flatnonzero(values)[0])]
    return tuple((int(members[k]), int(chosen[k])) for k in np.flatnonzero(chosen))


def _complement(basis: Basis) -> list[Form]:
    """Returns independent forms that are 0 on the basis, beside those of single variables that do not move."""
    matrix = basis.matrix
    lengths = np.diff(matrix.indptr)
    unit = np.zeros(matrix.shape[0], dtype=bool)
    one = np.flatnonzero(lengths == 1)
    at = matrix.indices[matrix.indptr[one]]
    unit[one[(at == one) & (matrix.data[matrix.indptr[one]] == 1)]] = True
    found: list[Form] = []
    odd: list[int] = []
    for variable in np.flatnonzero((lengths > 0) & ~unit).tolist():
        row = slice(matrix.indptr[variable], matrix.indptr[variable + 1])
        places = matrix.indices[row]
        if unit[places].all():
            pairs = [(variable, 1), *zip(places.tolist(), (-matrix.data[row]).tolist(), strict=True)]
            found.append(_signed(sorted(pairs)))
        else:
            odd.append(variable)
    if odd:
        members = _with_neighbours(matrix, np.array(odd))
        kernel = integer_kernel(matrix[members].toarray()[:, np.unique(matrix[members].indices)].T)
        found = [form for form in found if not np.isin([variable for variable, _ in form], members).any()]
        for column in kernel.T:
            found.append(tuple((int(members[k]), int(column[k])) for k in np.flatnonzero(column)))
    return found


def _with_neighbours(matrix: Any, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns some rows and all that share columns with them, however far."""
    columns = matrix.tocsc()
    while True:
        more = np.unique(columns[:, np.unique(matrix[rows].indices)].indices)
        if more.size == rows.size:
            return np.asarray(more, dtype=np.int64)
        rows = more


def _signed(form: Sequence[tuple[int, int]]) -> Form:
    """Returns the form with a positive first coefficient."""
    sign = -1 if form[0][1] < 0 else 1
    return tuple((variable, sign * value) for variable, value in form)
