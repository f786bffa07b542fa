"""Exponents over final variables: large arrays of repeated rows are expanded block by block, with the same answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from fxenorm.symmetry.express import Expander, variables_in


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


def test_variables_in_an_array_by_both_ways() -> None:
    ids = np.array([[5, -1, 2], [2, 5, 7]])
    for count in (8, 6000):
        assert variables_in(np.tile(ids, (40, 40)) if count == 8 else ids, count).tolist() == [2, 5, 7]
