"""What is written into a part of a tensor, on scale fields, against numpy and torch doing the same on every entry."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fxenorm.field import AnyField, Equations, ScaleField, compress, overlay
from fxenorm.field.overlay import GARBAGE, OPEN, SETTLED, Patchwork, Place, filled, patchwork_of, shape_at
from fxenorm.symmetry.graph.memory import numbered, placed, places_of

from .test_field import check, fields, is_compressed, value

SHAPE = (2, 3, 4)


def states_of(patch: Patchwork) -> np.ndarray:
    """Every entry's state."""
    return np.broadcast_to(patch.states, patch.shape)


@st.composite
def places(draw: Any) -> list[Place]:
    """A part of each axis of a tensor of `SHAPE`: a range with any step, positions, or all."""
    wide = draw(st.booleans())
    found: list[Place] = []
    for size in SHAPE:
        kind = draw(st.sampled_from(["all", "range", "positions"]))
        if kind == "all":
            found.append(None)
        elif kind == "range":
            first, last, step = draw(st.integers(0, size - 1)), draw(st.integers(1, size)), draw(st.sampled_from([1, 2, 3]))
            assume(first < last)
            found.append(slice(first, last, step))
        else:
            picked = draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=2))
            found.append(np.array(picked, dtype=np.int64).reshape((2, 1) if wide else (2,)))
    arrays = [place for place in found if isinstance(place, np.ndarray)]
    if arrays:  # torch and numpy do not say which of two values at one place is kept
        assume(len(set(zip(*(place.ravel().tolist() for place in arrays), strict=True))) == 2)
    return found


def key_of(where: list[Place]) -> tuple[Any, ...]:
    """The places as numpy takes them."""
    return tuple(slice(None) if place is None else place for place in where)


@given(fields(shape=SHAPE), places(), st.data())
def test_a_written_part_has_the_values_field_and_the_rest_its_own(base: ScaleField, where: list[Place], data: Any) -> None:
    shape = np.zeros(SHAPE)[key_of(where)].shape
    assert shape_at(SHAPE, where) == shape
    new = data.draw(fields(shape=shape))
    expected = value(base).copy()
    expected[key_of(where)] = value(new)
    written = overlay.overlay(patchwork_of(base), patchwork_of(new), where)
    check(ScaleField(written.shape, written.terms), expected)
    assert (states_of(written) == SETTLED).all()


@given(fields(shape=(2, 3, 2, 4)), st.sampled_from([None, slice(1, 2)]), st.sampled_from([(1, 3), (0, 2), (0, 3), (1, 2)]))
def test_positions_on_axes_apart_come_first_in_what_is_written(base: ScaleField, rest: Place, axes: tuple[int, int]) -> None:
    """As numpy and torch place them; on neighbouring axes they stay where these are."""
    where: list[Place] = [rest] * 4
    where[axes[0]], where[axes[1]] = np.array([0, 1, 1]), np.array([0, 1, 0])
    shape = np.zeros(base.shape)[key_of(where)].shape
    assert shape_at(base.shape, where) == shape
    new = ScaleField(
        shape,
        tuple(
            (1, np.arange(size).reshape([-1 if k == axis else 1 for k in range(len(shape))])) for axis, size in enumerate(shape)
        ),
    )
    expected = value(base).copy()
    expected[key_of(where)] = value(new)
    written = overlay.overlay(patchwork_of(base), patchwork_of(new), where)
    check(ScaleField(written.shape, written.terms), expected)


@given(places(), st.sampled_from([OPEN, GARBAGE]), st.booleans())
def test_a_written_part_has_the_values_state_and_the_rest_its_own(where: list[Place], state: int, settled: bool) -> None:
    new = ScaleField(shape_at(SHAPE, where), ((1, np.zeros((1,) * len(shape_at(SHAPE, where)), dtype=np.int64)),))
    base: ScaleField | AnyField = ScaleField(SHAPE, ()) if settled else AnyField(SHAPE)
    expected = np.full(SHAPE, SETTLED if settled else state)
    expected[key_of(where)] = OPEN if settled else SETTLED
    part = patchwork_of(AnyField(new.shape), OPEN) if settled else patchwork_of(new)
    written = overlay.overlay(patchwork_of(base, state), part, where)
    assert (states_of(written) == expected).all()


@pytest.mark.parametrize("largest", [1, 1_000_000])
@given(fields(shape=SHAPE), places())
def test_entries_that_carry_any_field_get_variables_of_their_own(largest: int, base: ScaleField, where: list[Place]) -> None:
    shape = shape_at(SHAPE, where)
    written = overlay.overlay(patchwork_of(base), patchwork_of(AnyField(shape)), where)
    equations = Equations(100)
    with mock.patch.object(overlay, "LARGEST", largest):
        found = filled(written, equations)
    is_open = states_of(written) == OPEN
    if is_open.all():
        assert isinstance(found, AnyField) and equations.count == 100
        return
    assert isinstance(found, ScaleField) and is_compressed(found)
    seen = [np.broadcast_to(ids, SHAPE) for _, ids in found.terms]
    new = sum((coefficient * (ids >= 100) for (coefficient, _), ids in zip(found.terms, seen, strict=True)), np.zeros(SHAPE))
    assert (new == is_open).all(), "one new variable at every open entry, none elsewhere"
    old = ScaleField(SHAPE, tuple((c, np.where(ids >= 100, -1, ids)) for c, ids in found.terms))
    check(old, np.where(is_open, 0, value(base)), compressed=False)
    used = {int(one) for ids in seen for one in np.unique(ids) if one >= 100}
    assert used == set(range(100, equations.count))
    if largest > 1 and not base.terms and all(place is None or isinstance(place, np.ndarray) for place in where):
        assert len(used) == math.prod(written.states.shape) - int((written.states == SETTLED).sum())


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda x: x,
    "one position": lambda x: x[1],
    "range": lambda x: x[:, 1:3],
    "every second": lambda x: x[:, :, 1::2],
    "turned": lambda x: x.permute(2, 0, 1)[1:3],
    "one position of the last axis": lambda x: x[..., 2],
    "one position kept": lambda x: x[:, 2:3],
    "diagonal": lambda x: x.diagonal(dim1=1, dim2=2),
    "upper diagonal": lambda x: x.diagonal(1, 1, 2),
    "split axis": lambda x: x.view(2, 3, 2, 2)[:, :, 1],
    "joined axes": lambda x: x.view(6, 4)[1:5],
    "joined and turned": lambda x: x.view(6, 4).t()[1:],
    "all joined": lambda x: x.view(-1)[3:20:2],
    "joined and split again": lambda x: x.view(6, 2, 2)[2:, :, 0],
    "new axis": lambda x: x[:, None, 1:],
    "windows apart": lambda x: x.unfold(2, 2, 2)[..., 1],
}


@pytest.mark.parametrize("name", VIEWS)
@given(st.data())
def test_what_is_written_through_a_view_lies_where_the_view_lies(name: str, data: Any) -> None:
    view = VIEWS[name](torch.arange(math.prod(SHAPE)).reshape(SHAPE))
    base, new = data.draw(fields(shape=SHAPE)), data.draw(fields(shape=tuple(view.shape)))
    where = np.unravel_index(view.numpy(), SHAPE)
    numbers = [compress(np.asarray(axis, dtype=np.int64)) for axis in where]
    found = places_of(numbers, SHAPE, tuple(view.shape))
    assert found is not None
    at, order = found
    written = overlay.overlay(patchwork_of(base), patchwork_of(placed(new, order, shape_at(SHAPE, at))), at)
    expected = value(base).copy()
    expected[where] = value(new)
    check(ScaleField(SHAPE, written.terms), expected)


@pytest.mark.parametrize("name", VIEWS)
def test_an_open_value_opens_what_the_view_shows(name: str) -> None:
    view = VIEWS[name](torch.arange(math.prod(SHAPE)).reshape(SHAPE))
    where = np.unravel_index(view.numpy(), SHAPE)
    found = places_of([compress(np.asarray(axis, dtype=np.int64)) for axis in where], SHAPE, tuple(view.shape))
    assert found is not None
    at, order = found
    value_written = placed(AnyField(tuple(view.shape)), order, shape_at(SHAPE, at))
    written = overlay.overlay(patchwork_of(ScaleField(SHAPE, ())), patchwork_of(value_written), at)
    expected = np.full(SHAPE, SETTLED)
    expected[where] = OPEN
    assert (states_of(written) == expected).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.unfold(2, 2, 1),  # entries of the view share a place
        lambda x: x[:, :1].expand(2, 3, 4),
        lambda x: x[:, :, [0, 3, 1]],  # no range
        lambda x: x[:, [1, 1]],
    ],
)
def test_a_view_that_is_no_part_of_its_base_is_refused(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    shown = view(torch.arange(math.prod(SHAPE)).reshape(SHAPE))
    where = np.unravel_index(shown.numpy(), SHAPE)
    assert places_of([compress(np.asarray(axis, dtype=np.int64)) for axis in where], SHAPE, tuple(shown.shape)) is None


def test_positions_of_a_base_are_numbered_axis_by_axis() -> None:
    for axis, field in enumerate(numbered(SHAPE)):
        (coefficient, ids), wide = field.terms[0], np.indices(SHAPE)[axis]
        assert coefficient == 1 and (np.broadcast_to(ids, SHAPE) == wide).all()
