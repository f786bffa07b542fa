"""Exponents over final variables: large arrays of repeated rows are expanded block by block, with the same answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from fxenorm.field import Equations, ScaleField, Term, compress, merge_entries, simplify, solve
from fxenorm.symmetry.express import Expander, redundant_variables
from fxenorm.symmetry.repeated_rows import ShortField


@pytest.mark.parametrize("repeats", [1, 2, 30])
def test_blocks_of_repeated_rows_expand_as_every_entry_does(repeats: int) -> None:
    random = np.random.default_rng(repeats)
    dense = random.integers(-1, 3, size=(900, 40)) * (random.random((900, 40)) < 0.03)
    ids = np.repeat(random.integers(-1, 900, size=(20, 700)), repeats, axis=0)
    total = np.zeros((*ids.shape, 40), dtype=np.int64)
    for coefficient, expanded in Expander(csr_array(dense)).terms([(3, ids)]):
        wide = np.broadcast_to(expanded, ids.shape)
        rows, columns = np.nonzero(wide >= 0)
        np.add.at(total, (rows, columns, wide[rows, columns]), coefficient)
    wanted = np.vstack([dense, np.zeros((1, 40), dtype=np.int64)])[ids]
    assert (total == 3 * wanted).all() and wanted.any()


@pytest.mark.parametrize("shared", [1, 2, 5])
def test_every_variable_that_others_undo_is_redundant(shared: int) -> None:
    """Entry k carries v[k] + w[k] for the first few k, v[k] alone for the others, and w[k] nothing but that."""
    v, w = np.arange(6), np.where(np.arange(6) < shared, 6 + np.arange(6), -1)
    exponents = {
        "first": ShortField((6,), ((1, v), (1, w))),
        "second": ShortField((6, 2), ((-1, v[:, None]), (-1, w[:, None]))),
    }
    found = redundant_variables(exponents, 6 + shared)
    assert len(found) == shared
    rows = np.zeros((6, 6 + shared))
    rows[v, v] = 1
    rows[np.flatnonzero(w >= 0), w[w >= 0]] = 1
    assert np.linalg.matrix_rank(np.delete(rows, found, axis=1)) == 6


def test_a_variable_that_nothing_undoes_is_kept() -> None:
    assert redundant_variables({"w": ShortField((3,), ((1, np.arange(3)), (2, np.array([1, 2, 2]))))}, 3).tolist() == []


def grouped(kind: str) -> ScaleField:
    """The field of a convolution of 4 groups, with 20 outputs and 150 inputs a group."""
    random = np.random.default_rng(0)
    out, read = np.arange(80).reshape(80, 1, 1), 80 + np.repeat(np.arange(600).reshape(4, 150, 1), 20, axis=0)
    taps = 680 + np.arange(3).reshape(1, 1, 3)
    terms: dict[str, tuple[Term, ...]] = {
        "groups": ((1, out), (-1, read)),
        "groups and taps": ((1, out), (-1, read), (2, taps)),
        "two arrays": ((1, out), (-1, read), (1, np.where(random.random((4, 150, 1)).repeat(20, axis=0) < 0.5, read, -1))),
        "fixed inputs": ((1, out), (-1, np.where(np.arange(150)[None, :, None] < 150, -1, read)), (-1, read)),
        "other blocks": ((1, out), (-1, read), (1, np.repeat(80 + np.arange(300).reshape(2, 150, 1), 40, axis=0))),
    }
    return ScaleField((80, 150, 3), terms[kind])


def written_out(terms: tuple[Term, ...], shape: tuple[int, ...], count: int) -> csr_array:
    """(entries, variables) the coefficients of each entry."""
    total = csr_array((int(np.prod(shape)), count), dtype=np.int64)
    for coefficient, ids in terms:
        flat = np.broadcast_to(ids, shape).ravel()
        kept = np.flatnonzero(flat >= 0)
        total += csr_array((np.full(len(kept), coefficient), (kept, flat[kept])), shape=total.shape)
    return total


# Variables as they are; all inputs as one a group; outputs and inputs as one a group; inputs that cancel; sums.
@pytest.mark.parametrize("change", ["none", "inputs of a group", "groups", "some inputs", "sums"])
@pytest.mark.parametrize("kind", ["groups", "groups and taps", "two arrays", "fixed inputs", "other blocks"])
def test_repeated_rows_written_once_are_the_same_field(kind: str, change: str) -> None:
    field = grouped(kind)
    dense = np.eye(683, dtype=np.int64)
    for row in range(80, 680):
        group = (row - 80) // 150
        if change == "inputs of a group" or (change == "some inputs" and row % 7):
            dense[row] = dense[80 + 150 * group]
        elif change == "groups":
            dense[row] = dense[20 * group]
        elif change == "sums" and row % 3:
            dense[row] = dense[80 + 150 * group] - dense[681]
    if change == "groups":
        dense[:80] = dense[20 * (np.arange(80) // 20)]
    short, expander = ShortField.of(field), Expander(csr_array(dense))
    assert short.rows is not None and sum(ids.size for _, ids in short.terms) < sum(ids.size for _, ids in field.terms) / 4
    found, wanted = short.over(expander).merged().whole(), merge_entries(expander.terms(field.terms))
    assert [(c, ids.shape) for c, ids in found] == [(c, ids.shape) for c, ids in wanted]
    assert all((ids == other).all() for (_, ids), (_, other) in zip(found, wanted, strict=True))
    assert not (written_out(found, field.shape, 683) != written_out(field.terms, field.shape, 683) @ csr_array(dense)).nnz

    equations, all_entries = Equations(683), Equations(683)
    short.over(expander).require_zero(equations)
    all_entries.require_zero(ScaleField(field.shape, expander.terms(field.terms)), 0)
    kernel = solve(equations).matrix
    assert kernel.shape == solve(all_entries).matrix.shape
    assert not (written_out(wanted, field.shape, 683) @ kernel).count_nonzero()


def test_what_is_seen_at_the_first_and_last_place_is_not_taken_for_all() -> None:
    ids = np.array([[4, 5, 4], [4, 6, 4]])
    assert compress(ids).shape == (2, 3)
    assert [i.tolist() for _, i in simplify([(1, np.array([-1, 3])), (1, np.array([-1, -1])), (1, np.array([-1, 2]))])] == [
        [-1, 3],
        [-1, 2],
    ]
