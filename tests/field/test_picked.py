"""Slices that an index picks, on scale fields: known by position only where all slices are alike."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fxenorm.field import AnyField, Equations, ParameterFields, ParameterView, ScaleField, solve
from fxenorm.field.picked import axes_numbered, numbered_positions, pick

from .test_field import VARIABLES, fields, value


@given(fields(shape=(4, 3)), st.booleans())
def test_picked_slices_are_known_by_position_only_where_they_are_alike(field: ScaleField, view: bool) -> None:
    """``stack[index]`` of an unknown index of two axes: each position may show any of the four slices."""
    equations = Equations(VARIABLES)
    parameters = ParameterFields(equations, {"w": (4, 3)})
    stack = ParameterView("w", (4, 3)) if view else field
    found = pick(stack, 0, (5, 2, 3), 2, ("index", 0), 7)
    assert found.count == 4 and found.axes == (0, 1)
    everywhere = found.everywhere(equations)
    if view:
        parameters.give(everywhere, ScaleField((5, 2, 3), equations.fresh((5, 2, 3), [2]).terms), 7)  # type: ignore[arg-type]
        everywhere = parameters.look(everywhere)  # type: ignore[arg-type]
        field = parameters.fields["w"]
    assert isinstance(everywhere, ScaleField) and everywhere.shape == (5, 2, 3)
    for solution in solve(equations).matrix.toarray().T:
        by_slice = value(field, solution)
        assert (by_slice == by_slice[:1]).all()
        np.testing.assert_array_equal(value(everywhere, solution), np.broadcast_to(by_slice[0], (5, 2, 3)))


def test_axes_of_one_position_count_none() -> None:
    stack = ScaleField((4, 3), ((1, np.arange(4).reshape(4, 1)),))
    assert pick(stack, 0, (5, 1, 3), 2, ("index", 0), 7).axes == (0,)
    assert pick(stack, 0, (1, 5, 3), 2, ("index", 0), 7).value.shape == (1, 4, 3)


@given(st.permutations(range(3)), st.integers(1, 3), st.sampled_from(["right", "turned", "missing", "more"]))
def test_axes_are_told_by_numbers_only_where_all_positions_are_there_in_order(order: list[int], count: int, damage: str) -> None:
    shape, axes = (2, 3, 4), tuple(order[:count])
    numbers = numbered_positions(shape, axes)
    positions = math.prod(shape[axis] for axis in axes)
    ((coefficient, ids),) = numbers.terms
    if damage == "right":
        assert axes_numbered(numbers, positions) == axes
        assert axes_numbered(ScaleField((9, *shape), ((1, ids[None]),)), positions) == tuple(axis + 1 for axis in axes)
    elif damage == "turned":
        assert axes_numbered(ScaleField(shape, ((coefficient, np.flip(ids, axes[-1])),)), positions) is None
    elif damage == "missing":
        assert axes_numbered(numbers, positions + 1) is None
    else:
        assert axes_numbered(ScaleField(shape, (*numbers.terms, (1, ids[:1] + 50))), positions) is None
        assert axes_numbered(AnyField(shape), positions) is None
