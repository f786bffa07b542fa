"""A basis of the integer vectors that a small integer matrix maps to zero."""

from __future__ import annotations

import numpy as np

from .scale_field import Ids

__all__ = ["integer_kernel"]


def integer_kernel(matrix: Ids) -> Ids:
    """Integer basis of the kernel of `matrix`, by unimodular column operations (Euclid's algorithm on each row).

    Every integer vector of the kernel is an integer combination of the basis, so its columns have coprime entries.

    Args:
        matrix: (rows, columns) integers.

    Returns:
        (columns, dimension of the kernel) integers.

    Example:
        >>> import numpy as np
        >>> integer_kernel(np.array([[2, -3]])).ravel().tolist()   # 2a = 3b
        [3, 2]
    """
    work = matrix.astype(object)
    columns = work.shape[1]
    transform = np.eye(columns, dtype=object)
    done = 0
    for row in range(work.shape[0]):
        while True:
            live = [k for k in range(done, columns) if work[row, k] != 0]
            if len(live) <= 1:
                break
            pivot = min(live, key=lambda k: abs(work[row, k]))
            for k in live:
                if k != pivot:
                    quotient = work[row, k] // work[row, pivot]
                    work[:, k] -= quotient * work[:, pivot]
                    transform[:, k] -= quotient * transform[:, pivot]
        if live:
            for array in (work, transform):
                array[:, [done, live[0]]] = array[:, [live[0], done]]
            done += 1
    basis = transform[:, done:].astype(np.int64)
    for k in range(basis.shape[1]):
        first = basis[np.flatnonzero(basis[:, k])[0], k]
        if first < 0:
            basis[:, k] = -basis[:, k]
    return basis
