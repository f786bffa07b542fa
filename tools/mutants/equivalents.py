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
        "-difference = rows[order[same]] - rows[order[same - 1]]\n+difference = rows[order[same]] + rows[order[same - 1]]",
    ): "no row is taken for a repeated one: the elimination makes each of them empty, so only time is lost",
    (
        "fxenorm/symmetry/express.py",
        "-self._simple = np.full(len(self._length) + 1, -1, dtype=np.int64)\n"
        "+self._simple = np.full(len(self._length) + 1, - 0, dtype=np.int64)",
    ): "a place that is not written later has the coefficient 0, and such places are never looked up",
    (
        "fxenorm/field/solution.py",
        "-matrix.eliminate_zeros()\n+pass",
    ): "zeros that are kept in the rows or in the substitution are dropped by `_tidy` or at the end: only time is lost",
    (
        "fxenorm/solve/dense_coarse.py",
        "-solution = torch.cholesky_solve((root * vector)[:, None], factor)[:, 0] * root\n"
        "+solution = torch.cholesky_solve((root * vector)[:, None], factor)[:, -1] * root",
    ): "the right side has one column, which is the first and the last",
    (
        "fxenorm/solve/dense_coarse.py",
        "-break\n+continue",
    ): "an end of Newton's loop: nothing has changed, so each further turn ends at the same place (the line search's has a test)",
    (
        "fxenorm/kernels/cpu/native/fast.h",
        "-if (R == 1) __builtin_prefetch(x + NEXT, 0, 3);\n+if (R != 1) __builtin_prefetch(x + NEXT, 0, 3);",
    ): "a prefetch changes no value",
    (
        "fxenorm/kernels/cpu/native/step.h",
        "-[&](i64 i) { return i < scaled ? step.scale_tiles[first_scaled + i].share "
        ": step.reduce_tiles[first_read + i].share; },\n"
        "+[&](i64 i) { return i < scaled ? step.scale_tiles[first_scaled - i].share "
        ": step.reduce_tiles[first_read + i].share; },",
    ): "the share says which thread tries a tile first; every thread takes what the others have left",
}
