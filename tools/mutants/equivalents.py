"""Mutants that no input can tell from the original, each with the reason; the keys are what a report shows."""

from __future__ import annotations

# (source, its changed lines) -> the reason why no input can tell
EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "fxenorm/field/solution.py",
        "-same = 1 + np.flatnonzero(key[order][1:] == key[order][:-1])\n"
        "+same = 1 + np.flatnonzero(key[order][1:] != key[order][:-1])",
    ): "repeated equations stay: the elimination makes each of them empty, so only time is lost",
    (
        "fxenorm/field/solution.py",
        "-matrix.eliminate_zeros()\n+pass",
    ): "zeros that are kept in the rows or in the substitution are dropped by `_tidy` or at the end: only time is lost",
    (
        "fxenorm/solve/dense_coarse.py",
        "-solution = torch.cholesky_solve((root * vector)[:, None], factor)[:, 0] * root\n"
        "+solution = torch.cholesky_solve((root * vector)[:, None], factor)[:, -1] * root",
    ): "the right side has one column, which is the first and the last",
}
