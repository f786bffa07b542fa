"""The laws that families of operators share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..field import AnyField, Ids, ParameterView, ScaleField, Step, Term, align, compress, simplify
from ..field.structure import broadcast, reshape
from .call import Call, Field
from .weight_ends import note_weight, operand_of

__all__ = ["barrier", "contract", "move", "number", "passes", "reduce", "same_field", "zero_field"]


def zero_field(call: Call) -> Any:
    """Returns the field 0 for every output: it is left as it is."""
    if isinstance(call.output, (tuple, list)):
        return tuple(ScaleField(tuple(value.shape)) if hasattr(value, "shape") else None for value in call.output)
    return ScaleField(tuple(call.output.shape)) if hasattr(call.output, "shape") else None


def barrier(call: Call, reason: str) -> Any:
    """Forces all inputs to zero, as no law holds; returns the field 0."""
    call.barrier = reason
    for _, value in call.tensors():
        call.zero(value)
    return zero_field(call)


def passes(call: Call, name: str = "self") -> Field:
    """Returns the field of argument `name`, which passes: f(t x) = t f(x) for t > 0."""
    value = call[name]
    return AnyField(call.out_shape) if isinstance(value, AnyField) else ScaleField(call.out_shape, call.field(name).terms)


def move(
    call: Call,
    value: Field,
    shape: Sequence[int],
    forward: Callable[[ScaleField], ScaleField],
    backward: Callable[[ScaleField], ScaleField] | None = None,
) -> Field:
    """Entries move, values do not: `forward` acts on the field; a parameter without a field keeps the step and its inverse."""
    shape = tuple(shape)
    if isinstance(value, AnyField):
        return AnyField(shape)
    if isinstance(value, ParameterView):
        return value.then(shape, Step(forward, backward))
    return forward(value)


def number(value: Any) -> Field:
    """Returns a Python number as a field: 0 and infinities carry any. Fields are handed on."""
    if isinstance(value, (int, float)):
        return AnyField(()) if value == 0 or math.isinf(value) else ScaleField(())
    return value  # type: ignore[no-any-return]


def same_field(call: Call, values: Sequence[Field], shape: tuple[int, ...]) -> Field:
    """Returns the field of a sum of tensors that broadcast to `shape`: all terms carry the same.

    Zero constants carry any field; parameters without a field take that of the others.
    """
    fields = [value for value in values if isinstance(value, ScaleField)]
    views = [value for value in values if isinstance(value, ParameterView)]
    if not fields and not views:
        return AnyField(shape)
    if not fields:
        fields, views = [call.settle(views[0])], views[1:]
    # A field that is zero for certain goes first: the others are then zero, instead of equal to each other.
    fields.sort(key=lambda f: len(f.terms))
    total = align(fields[0], shape)
    for other in fields[1:]:
        call.equal(total, align(other, shape))
    total = _where_all_vary(total, [align(other, shape) for other in fields[1:]])
    for view in views:
        take_as_is(call, view, total)
    return total


def _where_all_vary(total: ScaleField, others: Sequence[ScaleField]) -> ScaleField:
    """`total`, which equals the others, with size-1 ids along every axis along which one of them is constant."""
    if not all(field.terms for field in (total, *others)):
        return total
    varying = [axis for axis in range(len(total.shape)) if total.varies_along(axis)]
    axes = [axis for axis in varying if not all(other.varies_along(axis) for other in others)]
    if not axes:
        return total

    def first(ids: Ids) -> Ids:
        for axis in axes:
            ids = ids.take([0], axis=axis) if ids.shape[axis] > 1 else ids
        return ids

    return ScaleField(total.shape, simplify((c, first(ids)) for c, ids in total.terms))


def take_as_is(call: Call, view: ParameterView, total: ScaleField) -> None:
    """Gives `view`, broadcast to the shape of `total`, the field `total`."""
    missing = len(total.shape) - len(view.shape)
    padded = (1,) * missing + view.shape
    wanted = call.constant(total, [axis for axis, size in enumerate(padded) if size == 1])
    call.give(view, reshape(ScaleField(padded, wanted.terms), view.shape))


def reduce(call: Call, value: Field, axes: Sequence[int], shape: Sequence[int]) -> Field:
    """Returns the field of a mean, sum, maximum ... over `axes`, constant along them; `shape` is the result's."""
    shape = tuple(shape)
    if isinstance(value, AnyField):
        return AnyField(shape)
    field = call.constant(call.settle(value), axes)
    kept = ScaleField(tuple(1 if axis in axes else size for axis, size in enumerate(field.shape)), field.terms)
    return reshape(kept, shape)


def _to_letters(field: ScaleField, letters: str, order: str) -> list[Term]:
    """Returns the terms of a field whose axes are named `letters`, as arrays with one axis for each of `order`."""
    present = [letter for letter in order if letter in letters]
    permutation = [letters.index(letter) for letter in present]
    terms = []
    for coefficient, ids in field.terms:
        moved = ids.transpose(permutation)
        shape = iter(moved.shape)
        terms.append((coefficient, moved.reshape([next(shape) if letter in letters else 1 for letter in order])))
    return terms


def _drop_letters(terms: Sequence[Term], letters: str, order: str, sizes: Mapping[str, int]) -> ScaleField:
    """Returns the inverse of `_to_letters`; axes that are not in `letters` have size 1."""
    squeezed = []
    for coefficient, ids in terms:
        kept = [k for k, letter in enumerate(order) if letter in letters]
        inner = "".join(order[k] for k in kept)
        small = ids.reshape([ids.shape[k] for k in kept])
        squeezed.append((coefficient, small.transpose([inner.index(letter) for letter in letters])))
    return ScaleField(tuple(sizes[letter] for letter in letters), simplify(squeezed))


def contract(call: Call, a: Field, a_letters: str, b: Field, b_letters: str, out_letters: str) -> Field:
    """y[out] = sum over the other letters of a[...] b[...]: the sum of the fields is the same for every summed position.

    Where an operand is all zero so is y. A parameter without a field takes, on the summed letters, the opposite of the other
    operand's field, and a new variable for each of its own positions in the output. In a rule of `fxenorm.register_rule` it is a
    weight, which counts in the norm, unless the rule says otherwise.

    Args:
        a, b: the operands' fields; axes of size 1 are broadcast.
        a_letters, b_letters, out_letters: the axes' names, as in einsum.
    """
    call.count_as_weight(a)
    call.count_as_weight(b)
    if isinstance(a, AnyField) or isinstance(b, AnyField):
        sizes = _sizes(a, a_letters, b, b_letters)
        return AnyField(tuple(sizes[letter] for letter in out_letters))
    if isinstance(a, ParameterView) and not isinstance(b, ParameterView):
        a, a_letters, b, b_letters = b, b_letters, a, a_letters
    factors = [operand_of(call, a, a_letters), operand_of(call, b, b_letters)]
    a = call.settle(a)
    sizes = _sizes(a, a_letters, b, b_letters)
    order = "".join(dict.fromkeys(out_letters + a_letters + b_letters))
    position = {letter: k for k, letter in enumerate(order)}
    summed = [letter for letter in order if letter not in out_letters]
    terms = first = _to_letters(a, a_letters, order)
    if isinstance(b, ParameterView):
        terms = _absorb(call, terms, order, sizes, b, b_letters, out_letters)
    else:
        terms = terms + _to_letters(b, b_letters, order)
    full = ScaleField(tuple(sizes[letter] for letter in order), simplify(terms))
    full = call.constant(full, [position[letter] for letter in summed])
    if factors[0].name:
        found = call.parameters.look(b) if isinstance(b, ParameterView) else b
        second = _to_letters(found, b_letters, order) if isinstance(found, ScaleField) else []
        note_weight(call, factors[0], second, b_letters, full.terms, out_letters, order)
    if factors[1].name:
        note_weight(call, factors[1], first, a_letters, full.terms, out_letters, order)
    return _drop_letters(full.terms, out_letters, order, sizes)


def _sizes(a: Field, a_letters: str, b: Field, b_letters: str) -> dict[str, int]:
    """Size of each letter; an axis of size 1 gives way to the other operand's."""
    sizes: dict[str, int] = {}
    for field, letters in ((a, a_letters), (b, b_letters)):
        for letter, size in zip(letters, field.shape, strict=True):
            sizes[letter] = size if sizes.get(letter, 1) == 1 else sizes[letter]
    return sizes


def _absorb(
    call: Call, terms: list[Term], order: str, sizes: Mapping[str, int], view: ParameterView, letters: str, out_letters: str
) -> list[Term]:
    """Gives a parameter the field that makes the contraction hold; returns the terms of the product, those of y.

    With x's field T[n, j] (n: letters that the weight lacks, j: summed letters): W[o, j] = new[o] - T[0, j] and
    y[n, o] = new[o] + T[n, 0] - T[0, 0], which holds iff T[n, j] - T[0, j] - T[n, 0] + T[0, 0] = 0.
    """
    position = {letter: k for k, letter in enumerate(order)}
    own = {letter: size for letter, size in zip(letters, view.shape, strict=True) if size > 1}
    summed = [position[letter] for letter in own if letter not in out_letters]
    foreign = [position[letter] for letter in order if letter not in own]

    def first(ids: Ids, axes: Sequence[int]) -> Ids:
        for axis in axes:
            if ids.shape[axis] > 1:
                ids = ids.take([0], axis=axis)
        return ids

    def varies(ids: Ids, axes: Sequence[int]) -> bool:
        return any(ids.shape[axis] > 1 for axis in axes)

    mixed = [(c, ids) for c, ids in terms if varies(ids, summed) and varies(ids, foreign)]
    # The weight undoes all it can, also on letters that it shares with the output (depthwise), so that each of its
    # entries has one variable that it writes and one that it reads.
    inner = [(c, ids) for c, ids in terms if not varies(ids, foreign)]
    outer = [(c, ids) for c, ids in terms if varies(ids, foreign) and not varies(ids, summed)]
    if mixed:
        whole = tuple(sizes[letter] for letter in order)
        difference = [*mixed]
        for coefficient, ids in mixed:
            difference += [(-coefficient, first(ids, foreign)), (-coefficient, first(ids, summed))]
            difference += [(coefficient, first(first(ids, foreign), summed))]
            inner.append((coefficient, first(ids, foreign)))
            outer += [(coefficient, first(ids, summed)), (-coefficient, first(first(ids, foreign), summed))]
        call.equations.require_zero(ScaleField(whole, simplify(difference)), call.origin)
    fresh = call.equations.fresh(view.shape, [k for k, letter in enumerate(letters) if letter in out_letters and letter in own])
    new = _to_letters(fresh, letters, order)
    wanted = _drop_letters([*new, *((-c, ids) for c, ids in inner)], letters, order, dict(zip(letters, view.shape, strict=True)))
    call.give(view, wanted)
    return [*new, *outer]


def positions_of(value: Any) -> Ids:
    """Returns an integer tensor as a numpy array."""
    return np.ascontiguousarray(value.detach().cpu().numpy()).astype(np.int64)


def expand_to(field: ScaleField, shape: Sequence[int]) -> ScaleField:
    """Returns `field` broadcast to `shape`, ids compressed."""
    wide = broadcast(field, tuple(shape))
    return ScaleField(wide.shape, tuple((c, compress(ids)) for c, ids in wide.terms))
