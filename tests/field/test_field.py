"""The algebra of scale fields against the same operations on fully expanded ids, and the solver against dense null spaces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxenorm.field import (
    FIXED,
    NEVER,
    Equations,
    ScaleField,
    align,
    compress,
    invert,
    merge_entries,
    product,
    simplify,
    solve,
    times,
)
from fxenorm.field import equations as equations_module
from fxenorm.field import structure as S
from fxenorm.field.integer_kernel import integer_kernel

VARIABLES = 7


def value(field: ScaleField, log_scales: np.ndarray | None = None) -> np.ndarray:
    """The field's number at every entry, written out: the reference for everything below."""
    s = np.append(np.arange(1, VARIABLES + 1) ** 3.0 if log_scales is None else log_scales, 0.0)
    total = np.zeros(field.shape)
    for coefficient, ids in field.terms:
        assert ids.ndim == len(field.shape) and all(a in (1, b) for a, b in zip(ids.shape, field.shape, strict=True))
        total = total + coefficient * s[ids]
    return total


def is_compressed(field: ScaleField) -> bool:
    """No term has an axis along which it is constant."""
    return all(compress(ids).shape == ids.shape for _, ids in field.terms)


@st.composite
def fields(draw: Any, shape: Sequence[int] | None = None) -> ScaleField:
    """A field of up to three terms over a shape of up to four axes, each varying along some of them."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=0, max_size=4))) if shape is None else tuple(shape)
    terms = []
    for _ in range(draw(st.integers(0, 3))):
        sizes = [size if draw(st.booleans()) else 1 for size in shape]
        ids = draw(st.lists(st.integers(FIXED, VARIABLES - 1), min_size=math.prod(sizes), max_size=math.prod(sizes)))
        terms.append((draw(st.sampled_from([-2, -1, 1, 2])), compress(np.array(ids, dtype=np.int64).reshape(sizes))))
    return ScaleField(shape, simplify(terms))


def check(field: ScaleField, expected: np.ndarray, compressed: bool = True) -> None:
    assert field.shape == expected.shape
    np.testing.assert_array_equal(value(field), expected)
    assert not compressed or is_compressed(field)


@given(fields(), st.data())
def test_reshape(field: ScaleField, data: Any) -> None:
    entries = math.prod(field.shape)
    shapes = [
        (entries,),
        (1, entries),
        (*field.shape, 1),
        (1, *field.shape),
        field.shape[::-1],
        tuple(s for s in field.shape if s > 1),
    ]
    shapes += [(k, entries // k) for k in range(1, entries + 1) if entries % k == 0]
    shape = data.draw(st.sampled_from(shapes))
    check(S.reshape(field, shape), value(field).reshape(shape))


def test_reshape_between_two_factorings_of_the_same_size() -> None:
    field = ScaleField((2, 6), ((1, np.arange(2).reshape(2, 1)), (1, 2 + np.arange(3).repeat(2).reshape(1, 6) % 3)))
    check(S.reshape(field, (4, 3)), value(field).reshape(4, 3))
    check(S.reshape(S.reshape(field, (3, 4)), (2, 6)), value(field))


@given(fields(), st.data())
def test_permute_flip_roll(field: ScaleField, data: Any) -> None:
    order = data.draw(st.permutations(range(len(field.shape))))
    check(S.permute(field, order), value(field).transpose(order))
    axes = data.draw(st.lists(st.sampled_from(range(len(field.shape))), unique=True)) if field.shape else []
    check(S.flip(field, axes), np.flip(value(field), axes))
    shifts = [data.draw(st.integers(-5, 5)) for _ in axes]
    check(S.roll(field, shifts, axes), np.roll(value(field), shifts, axes) if axes else value(field))


@given(fields(), st.data())
def test_slices_and_positions(field: ScaleField, data: Any) -> None:
    if not field.shape:
        return
    axis = data.draw(st.sampled_from(range(len(field.shape))))
    size = field.shape[axis]
    window = slice(data.draw(st.integers(-size, size)), data.draw(st.integers(-size, size + 2)), data.draw(st.integers(1, 3)))
    expected = value(field)[(slice(None),) * axis + (window,)]
    if expected.size:
        check(S.take_slice(field, axis, window), expected)
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5)), dtype=np.int64)
    check(S.select_positions(field, axis, positions), value(field).take(positions, axis))


@given(fields(), st.data())
def test_repeat_and_broadcast(field: ScaleField, data: Any) -> None:
    counts = data.draw(st.lists(st.integers(1, 3), min_size=len(field.shape), max_size=len(field.shape) + 1))
    check(S.repeat(field, counts), np.tile(value(field), counts))
    shape = (2, *(size if size > 1 else data.draw(st.integers(1, 3)) for size in field.shape))
    check(S.broadcast(field, shape), np.broadcast_to(value(field), shape))
    check(align(field, field.shape), value(field))


@given(fields(shape=(2, 3, 4)), st.data())
def test_index(field: ScaleField, data: Any) -> None:
    places = [np.array([1, 0, 1]), np.array([2, 2, 0]), np.array([3, 0, 1])]
    key = [place if data.draw(st.booleans()) else None for place in places]
    expected = value(field)[tuple(slice(None) if place is None else place for place in key)]
    check(S.index(field, key, expected.shape), expected)


@given(st.data(), st.integers(0, 2))
def test_concatenate(data: Any, axis: int) -> None:
    shapes = [
        tuple(size if k == axis else 2 + k for k in range(3))
        for size in data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    ]
    parts = [data.draw(fields(shape=shape)) for shape in shapes]
    check(S.concatenate(parts, axis), np.concatenate([value(part) for part in parts], axis), compressed=False)


@given(fields(shape=(2, 1, 3)), fields(shape=(4, 3)), st.integers(-3, 3))
def test_products_and_powers(a: ScaleField, b: ScaleField, factor: int) -> None:
    check(product((2, 4, 3), a, b), value(a) + value(b))
    check(times(a, factor), factor * value(a))
    check(product(a.shape, a, invert(a)), 0 * value(a))
    assert product(a.shape, a, invert(a)).is_zero


@given(fields(shape=(2, 3)), st.lists(fields(shape=(2, 3)), min_size=1, max_size=3))
def test_merged_entries_carry_each_variable_once(first: ScaleField, others: list[ScaleField]) -> None:
    terms = [term for field in (first, *others) for term in field.terms]
    merged = merge_entries(terms)
    check(ScaleField((2, 3), merged), sum((value(field) for field in others), value(first)))
    assert all(coefficient for coefficient, _ in merged)
    for shape in {ids.shape for _, ids in merged}:
        carried = np.stack([ids.ravel() for _, ids in merged if ids.shape == shape])
        for entry in carried.T:
            assert len(set(entry[entry != FIXED])) == np.count_nonzero(entry != FIXED)


@given(st.lists(st.integers(FIXED, 2), min_size=12, max_size=12))
def test_compress(ids: list[int]) -> None:
    array = np.array(ids).reshape(3, 4)
    small = compress(array)
    assert (np.broadcast_to(small, (3, 4)) == array).all()
    assert small.shape[0] == 1 or not (array == array[:1]).all()
    assert small.shape[1] == 1 or not (array == array[:, :1]).all()


def test_a_constant_field_is_never_expanded() -> None:
    """One number stays one number, however large the tensor."""
    shape = (1000, 1000, 1000)
    field = ScaleField(shape, ((1, np.zeros((1, 1, 1), dtype=np.int64)),))
    operations: list[Callable[[], ScaleField]] = [
        lambda: S.reshape(field, (1000 * 1000, 1000)),
        lambda: S.permute(field, (2, 0, 1)),
        lambda: S.take_slice(field, 1, slice(3, 700)),
        lambda: S.select_positions(field, 0, np.arange(5)),
        lambda: S.flip(field, [0, 1]),
        lambda: S.roll(field, [4], [1]),
        lambda: S.repeat(field, (2, 2, 2)),
        lambda: S.broadcast(field, (7, *shape)),
        lambda: S.concatenate([field, field], 1),
        lambda: S.index(field, [np.arange(4), None, np.arange(4)], (4, 1000)),
    ]
    for operation in operations:
        assert all(ids.size == 1 for _, ids in operation().terms)


# --- equations ---------------------------------------------------------------------------------------------------------


def null_space(equations: Equations, extra: Sequence[np.ndarray] = ()) -> int:
    """Dimension of the solutions, by a dense rank of all equations written out."""
    count = equations.count
    rows = [
        np.eye(count)[a] - np.eye(count)[b] for x, y, _ in equations.ties for a, b in zip(x, y, strict=True) if a >= 0 and b >= 0
    ]
    rows += [np.eye(count)[max(a, b)] for x, y, _ in equations.ties for a, b in zip(x, y, strict=True) if (a >= 0) != (b >= 0)]
    rows += [np.eye(count)[a] for ids, _ in equations.zeros for a in ids if a >= 0]
    for coefficients, ids, _ in equations.sums:
        for column in ids.T:
            row = np.zeros(count)
            for coefficient, variable in zip(coefficients, column, strict=True):
                if variable >= 0:
                    row[variable] += coefficient
            rows.append(row)
    rows += list(extra)
    return count - (int(np.linalg.matrix_rank(np.array(rows))) if rows else 0)


@st.composite
def systems(draw: Any) -> Equations:
    """Random ties, zeros and sums with coefficients up to 3."""
    equations = Equations()
    count = draw(st.integers(1, 9))
    equations.fresh((count,))
    ids = st.integers(FIXED, count - 1)
    for origin in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(["tie", "zero", "sum", "sum"]))
        if kind == "zero":
            equations.zeros.append((np.array([draw(st.integers(0, count - 1))]), origin))
        elif kind == "tie":
            equations.ties.append((np.array([draw(ids)]), np.array([draw(ids)]), origin))
        else:
            coefficients = draw(st.lists(st.sampled_from([-3, -2, -1, 1, 2, 3]), min_size=2, max_size=4))
            width = draw(st.integers(1, 3))
            rows = [[draw(ids) for _ in range(width)] for _ in coefficients]
            equations.sums.append((tuple(coefficients), np.array(rows, dtype=np.int64), origin))
    return equations


@given(systems())
def test_solution_is_the_whole_null_space(equations: Equations) -> None:
    solution = solve(equations)
    matrix = solution.matrix.toarray()
    assert matrix.shape == (equations.count, null_space(equations))
    assert np.linalg.matrix_rank(matrix) == matrix.shape[1] if matrix.size else matrix.shape[1] == 0
    padded = np.concatenate([matrix, np.zeros((1, matrix.shape[1]), dtype=np.int64)])
    for a, b, _ in equations.ties:
        assert (padded[a] == padded[b]).all()
    for ids, _ in equations.zeros:
        assert not padded[ids].any()
    for coefficients, ids, _ in equations.sums:
        assert not sum(c * padded[row] for c, row in zip(coefficients, ids, strict=True)).any()
    # Exactly the variables that are zero in every solution have an origin.
    zero = ~matrix.any(axis=1)
    assert (zero[solution.zero_origin != NEVER]).all()


@given(systems())
def test_solution_is_primitive(equations: Equations) -> None:
    """Every integer solution is an integer combination: the greatest common divisor of the maximal minors is 1."""
    matrix = solve(equations).matrix.toarray().astype(object)
    assert abs(invariant_product(matrix)) == 1


def invariant_product(matrix: np.ndarray) -> int:
    """The product of the elementary divisors of an integer matrix of full column rank, by unimodular operations."""
    work, total = matrix.copy(), 1
    rows, columns = work.shape
    for k in range(columns):
        while True:
            live = [(abs(work[i, j]), i, j) for i in range(k, rows) for j in range(k, columns) if work[i, j]]
            if not live:
                return 0
            _, i, j = min(live)
            work[[k, i]] = work[[i, k]]
            work[:, [k, j]] = work[:, [j, k]]
            for i in range(k + 1, rows):
                work[i] -= work[i, k] // work[k, k] * work[k]
            for j in range(k + 1, columns):
                work[:, j] -= work[k, j] // work[k, k] * work[:, k]
            if not work[k + 1 :, k].any() and not work[k, k + 1 :].any():
                break
        total *= work[k, k]
    return int(total)


@given(st.lists(st.lists(st.integers(-4, 4), min_size=4, max_size=4), min_size=1, max_size=4))
def test_integer_kernel(rows: list[list[int]]) -> None:
    matrix = np.array(rows, dtype=np.int64)
    basis = integer_kernel(matrix)
    assert not (matrix @ basis).any()
    assert basis.shape[1] == 4 - np.linalg.matrix_rank(matrix)
    assert abs(invariant_product(basis.astype(object))) == 1


def test_two_a_is_three_b() -> None:
    equations = Equations()
    a, b = equations.fresh((1,)), equations.fresh((1,))
    equations.require_equal(times(a, 2), times(b, 3), origin=0)
    assert np.abs(solve(equations).matrix.toarray()).ravel().tolist() == [3, 2]


def test_the_first_origin_that_forces_a_variable_to_zero_is_kept() -> None:
    equations = Equations()
    a, b, c = (equations.fresh((2,)) for _ in range(3))
    equations.require_equal(a, b, origin=3)
    equations.require_zero(b, origin=5)
    equations.require_zero(a, origin=9)
    solution = solve(equations)
    assert solution.zero_origin.tolist() == [5, 5, 5, 5, NEVER, NEVER]
    assert solution.labels[:2].tolist() == solution.labels[2:4].tolist()
    assert c.shape == (2,)


@given(fields(shape=(2, 3, 4)), st.data())
def test_require_constant(field: ScaleField, data: Any) -> None:
    """Exactly the log-scales for which the written-out field does not change along the axes."""
    axes = data.draw(st.lists(st.sampled_from(range(3)), unique=True))
    equations = Equations(VARIABLES)
    reduced = equations.require_constant(field, axes, origin=0)
    assert not any(reduced.varies_along(axis) for axis in axes)
    basis = np.eye(VARIABLES)
    whole = np.stack([value(field, unit) for unit in basis], -1)
    first = whole
    for axis in axes:
        first = first.take([0], axis)
    assert solve(equations).matrix.shape[1] == null_space(Equations(VARIABLES), list((whole - first).reshape(-1, VARIABLES)))
    for solution in solve(equations).matrix.toarray().T:
        np.testing.assert_array_equal(value(field, solution), np.broadcast_to(value(reduced, solution), field.shape))


@pytest.mark.parametrize("large", [1, 10_000])
@given(fields(shape=(3, 4)), fields(shape=(2, 3, 1)))
def test_require_equal_broadcasts(large: int, a: ScaleField, b: ScaleField) -> None:
    equations = Equations(VARIABLES)
    with mock.patch.object(equations_module, "_LARGE", large):  # from there on, slices that repeat others are left out
        equations.require_equal(a, b, origin=0)
    difference = np.stack([value(a, unit) - value(b, unit) for unit in np.eye(VARIABLES)], -1)
    assert solve(equations).matrix.shape[1] == null_space(Equations(VARIABLES), list(difference.reshape(-1, VARIABLES)))


@given(fields(shape=(3, 4)))
def test_require_zero(field: ScaleField) -> None:
    equations = Equations(VARIABLES)
    equations.require_zero(field, origin=0)
    wholes = np.stack([value(field, unit) for unit in np.eye(VARIABLES)], -1).reshape(-1, VARIABLES)
    assert solve(equations).matrix.shape[1] == null_space(Equations(VARIABLES), list(wholes))


def test_large_equations_are_not_imposed_once_an_entry() -> None:
    """Blocks of equal slices, as the groups of a grouped convolution make them, say the same."""
    equations = Equations(600)
    a = ScaleField((200, 300), ((1, np.repeat(np.arange(2), 100)[:, None] * 300 + np.arange(300)[None]),))
    equations.require_equal(a, ScaleField((200, 300), ((1, np.arange(300)[::-1][None].copy()),)), origin=0)
    assert sum(len(one) for one, _, _ in equations.ties) == 2 * 300
    assert solve(equations).matrix.shape[1] == 150


def test_terms_on_two_axes_that_start_alike_impose_no_sum() -> None:
    equations = Equations(3)
    equations.require_zero(ScaleField((2, 2), ((1, np.array([[0], [1]])), (-1, np.array([[0, 2]])))), origin=0)
    assert solve(equations).matrix.toarray().tolist() == [[1], [1], [1]]


def test_fresh_variables() -> None:
    equations = Equations()
    assert equations.fresh((2, 3), [1]).terms[0][1].tolist() == [[0, 1, 2]]
    assert equations.fresh((2, 3)).terms[0][1].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert equations.fresh((2, 0)).is_zero and equations.count == 9


def test_of_equations_that_say_the_same_the_first_origin_is_kept() -> None:
    """3a = 0, 2a = 0 and 4a = 0, in no order."""
    equations = Equations()
    equations.fresh((2,))
    for origin, factor in ((9, 3), (4, 2), (6, 4)):
        equations.sums.append(((factor - 1, 1), np.zeros((2, 1), dtype=np.int64), origin))
    assert solve(equations).zero_origin.tolist() == [4, NEVER]


def test_terms_of_equal_ids_become_one_and_what_cancels_is_gone() -> None:
    """Whether they are one array or two, as long as they stand for the same form."""
    ids, row = np.array([[0, 1], [2, 3]]), np.array([[0, 1]])
    assert simplify([(2, ids), (-2, ids.copy())]) == () and simplify([(2, ids), (-2, ids)]) == ()
    ((coefficient, found),) = simplify([(1, ids), (2, ids.copy())])
    assert coefficient == 3 and found.tolist() == ids.tolist()
    assert [(c, i.tolist()) for c, i in simplify([(1, row), (1, np.array([[1, 0]])), (1, row.T), (1, row)])] == [
        (2, [[0, 1]]), (1, [[1, 0]]), (1, [[0], [1]]),
    ]  # fmt: skip
    assert simplify([(1, np.array([[-1]])), (3, np.full((2, 2), -1))]) == ()


def test_equations_between_tensors_without_axes() -> None:
    """A tie, a sum of two scales that are not opposite, and one of three."""
    equations = Equations()
    a, b, c, d = (equations.fresh(()) for _ in range(4))
    equations.require_equal(a, b, origin=0)
    equations.require_zero(ScaleField((), (*b.terms, *c.terms, *d.terms)), origin=1)
    equations.require_zero(ScaleField((), ((2, c.terms[0][1]), *a.terms)), origin=2)
    (free,) = solve(equations).matrix.toarray().T
    assert free[0] == free[1] and free[1] + free[2] + free[3] == 0 and 2 * free[2] + free[0] == 0 and free.any()
