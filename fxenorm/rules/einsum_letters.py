"""einsum equations as axis letters, and contractions of any number of operands."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters

import numpy as np

from ..field import Ids, ScaleField, simplify
from .call import Call, Field
from .laws import contract

__all__ = ["contract_all", "diagonal_field", "read_equation"]


def read_equation(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Returns the letters of every operand and of the output; ellipses get letters of their own, a missing output is filled in.

    Example:
        >>> read_equation("...i, ij", [3, 2])
        (['abi', 'ij'], 'abj')
    """
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    operands = inputs.split(",")
    unused = [letter for letter in ascii_letters if letter not in equation]
    widths = [rank - len(names.replace("...", "")) for names, rank in zip(operands, ranks, strict=True)]
    longest = max((width for names, width in zip(operands, widths, strict=True) if "..." in names), default=0)
    dots = "".join(unused[:longest])
    letters = [names.replace("...", dots[longest - width :]) for names, width in zip(operands, widths, strict=True)]
    if arrow:
        return letters, out.replace("...", dots)
    named = inputs.replace(",", "").replace("...", "")
    return letters, dots + "".join(sorted(letter for letter in set(named) if named.count(letter) == 1))


def diagonal_field(field: ScaleField, letters: str, once: str) -> ScaleField:
    """Returns the field of the diagonal along axes that share a letter."""
    sizes = dict(zip(letters, field.shape, strict=True))

    def diagonal(ids: Ids) -> Ids:
        wide = {letter: max(size for other, size in zip(letters, ids.shape, strict=True) if other == letter) for letter in once}
        full = np.broadcast_to(ids, [wide[letter] for letter in letters])
        found: Ids = np.einsum(full, [once.index(letter) for letter in letters], range(len(once)))
        return found

    return ScaleField(tuple(sizes[letter] for letter in once), simplify((c, diagonal(ids)) for c, ids in field.terms))


def contract_all(call: Call, operands: Sequence[tuple[Field, str]], out: str) -> Field:
    """y[out] = sum over the other letters of the product of all operands, two at a time.

    A letter is summed as soon as no later operand has it; the law of the whole is that of the steps, as what comes later does not
    depend on a letter that is summed.
    """
    (total, letters), *rest = operands
    if not rest:
        return contract(call, total, letters, ScaleField(()), "", out)
    for position, (value, names) in enumerate(rest):
        later = set(out).union(*(other for _, other in rest[position + 1 :]))
        kept = out if position == len(rest) - 1 else "".join(x for x in dict.fromkeys(letters + names) if x in later)
        total, letters = contract(call, total, letters, value, names, kept), kept
    return total
