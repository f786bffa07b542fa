"""Exponents over final variables: large arrays of repeated rows are expanded block by block, with the same answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from fxenorm.symmetry.express import Expander, redundant_variables, variables_in


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
    exponents = {"first": ((6,), ((1, v), (1, w))), "second": ((6, 2), ((-1, v[:, None]), (-1, w[:, None])))}
    found = redundant_variables(exponents, 6 + shared)
    assert len(found) == shared
    rows = np.zeros((6, 6 + shared))
    rows[v, v] = 1
    rows[np.flatnonzero(w >= 0), w[w >= 0]] = 1
    assert np.linalg.matrix_rank(np.delete(rows, found, axis=1)) == 6


def test_a_variable_that_nothing_undoes_is_kept() -> None:
    assert redundant_variables({"w": ((3,), ((1, np.arange(3)), (2, np.array([1, 2, 2]))))}, 3).tolist() == []


def test_variables_in_an_array_by_both_ways() -> None:
    ids = np.array([[5, -1, 2], [2, 5, 7]])
    for count in (8, 6000):
        assert variables_in(np.tile(ids, (40, 40)) if count == 8 else ids, count).tolist() == [2, 5, 7]
