"""Which equations make marked variables depend on others, against ranks of the equations written out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import null_space

from fxenorm.symmetry.replay import Rows, lost

Equation = tuple[int, dict[int, int]]
"""(origin, {variable: coefficient})."""


@st.composite
def systems(draw: Any) -> tuple[list[Equation], int, np.ndarray]:
    """Equations of a few variables, once or for each of several channels and layers, of which one may differ a little."""
    count, channels = draw(st.integers(1, 5)), draw(st.sampled_from([2, 1, 3]))
    values = st.sampled_from([-2, -1, -1, 1, 1, 3])
    one = [
        (draw(st.integers(0, 3)), draw(st.dictionaries(st.integers(0, count - 1), values, min_size=1, max_size=3)))
        for _ in range(draw(st.integers(1, 5)))
    ]
    every = [
        (origin, {variable * channels + channel: value for variable, value in row.items()})
        for channel in range(channels)
        for origin, row in one
    ]
    layers = draw(st.sampled_from([1, 3]))
    # Those of layers have other origins in the same order, and variables with other ones between.
    stride, every_layer = count * channels + 1, every
    every = [
        (origin * (layer + 1) + 2 * layer, {variable + layer * stride: value for variable, value in row.items()})
        for layer in range(layers)
        for origin, row in every_layer
    ]
    marked = np.repeat(np.array([draw(st.booleans()) for _ in range(count)]), channels)
    marked = np.tile(np.append(marked, draw(st.booleans())), layers)
    change = draw(st.sampled_from(["origin", "value", "mark", "nothing"]))
    if change == "mark":
        marked[-2] = not marked[-2]
    elif every and change != "nothing":
        origin, row = every[-1]
        first = next(iter(row))
        every[-1] = (origin + 1, row) if change == "origin" else (origin, {**row, first: -row[first]})
    return draw(st.permutations(every)), layers * stride, marked


@settings(max_examples=400)
@given(systems())
def test_each_origin_lowers_the_rank_of_the_marked_variables_by_what_is_told(system: tuple[list[Equation], int, Any]) -> None:
    equations, variables, marked = system
    entries = [(row, variable, value) for row, (_, terms) in enumerate(equations) for variable, value in terms.items()]
    columns = [np.array([entry[k] for entry in entries], dtype=np.int64) for k in range(3)]
    rows = Rows(*columns, np.array([origin for origin, _ in equations], dtype=np.int64))
    found = Counter(lost(rows, variables, marked).origin.tolist())
    wanted: Counter[int] = Counter()
    before = int(marked.sum())
    for origin in sorted({origin for origin, _ in equations}):
        dense = np.zeros((len(equations), variables))
        for row, (when, terms) in enumerate(equations):
            for variable, value in terms.items() if when <= origin else ():
                dense[row, variable] = value
        after = int(np.linalg.matrix_rank(null_space(dense)[marked], tol=1e-9)) if marked.any() else 0
        wanted[origin] = before - after
        before = after
    assert found == +wanted
