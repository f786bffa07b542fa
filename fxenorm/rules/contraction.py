"""Contractions y = sum_j a_j b_j: matrix products, convolutions, embeddings. The sum of both fields is the same for every j."""

from __future__ import annotations

from string import ascii_lowercase, ascii_uppercase
from typing import Any

from ..field import AnyField, ParameterView, ScaleField, Step, product
from ..field.structure import reshape
from .call import Call, Field
from .einsum_letters import contract_all, diagonal_field, read_equation
from .laws import contract, reduce, same_field, take_as_is
from .operands import operand
from .registry import scale_rule


def _weight(call: Call, *names: str) -> None:
    """Parameters among the factors of a contraction are weights."""
    for name in names:
        call.roles[name] = "weight"


def add_bias(call: Call, field: Field, name: str, axis: int) -> Field:
    """y + b, b along one axis: the bias takes y's field (unless biases are left alone)."""
    if call[name] is None:
        return field
    call.roles[name] = "bias"
    return take_bias(call, field, call[name], axis)


def take_bias(call: Call, field: Field, bias: Field, axis: int) -> Field:
    """`add_bias` for a bias that is no argument of its own."""
    if call.options.biases == "skip":
        call.zero(bias)
        call.inexact.append('biases are left alone (biases="skip")')
        return ScaleField(field.shape) if isinstance(field, AnyField) else field
    shape = (field.shape[axis],) + (1,) * (len(field.shape) - 1 - axis)
    if isinstance(bias, AnyField):
        return field
    if isinstance(bias, ParameterView) and isinstance(field, ScaleField):
        take_as_is(call, _reshaped(bias, shape), field)
        return field
    # Both terms of the sum are equally free, so their order does not matter.
    return same_field(call, [field, reshape(call.settle(bias), shape)], field.shape)


def _reshaped(view: ParameterView, shape: tuple[int, ...]) -> ParameterView:
    """Returns the view of a parameter in another shape, with the way back."""
    old = view.shape
    return view.then(shape, Step(lambda f: reshape(f, shape), lambda f: reshape(f, old)))


def as_shape(value: Field, shape: tuple[int, ...]) -> Field:
    """Returns a field in another shape, with the same entries in the same order."""
    if value.shape == shape:
        return value
    if isinstance(value, ParameterView):
        return _reshaped(value, shape)
    return AnyField(shape) if isinstance(value, AnyField) else reshape(value, shape)


@scale_rule("aten::linear", family="contraction")
def linear(call: Call) -> Field:
    """y[.., o] = sum_i x[.., i] W[o, i] + b[o]."""
    _weight(call, "input", "weight")
    lead = ascii_lowercase[: len(call.shape("input")) - 1]
    out = lead + "O" if len(call.shape("weight")) == 2 else lead
    y = contract(call, call["input"], lead + "I", call["weight"], "OI" if len(call.shape("weight")) == 2 else "I", out)
    return add_bias(call, y, "bias", len(y.shape) - 1) if y.shape else y


def _matmul(call: Call, first: str, second: str) -> Field:
    """matmul with its rules for vectors and batches."""
    a, b = call.shape(first), call.shape(second)
    _weight(call, first, second)
    batch = ascii_lowercase[: max(len(a), len(b), 2) - 2]
    a_letters = "J" if len(a) == 1 else batch[len(batch) - (len(a) - 2) :] + "NJ"
    b_letters = "J" if len(b) == 1 else batch[len(batch) - (len(b) - 2) :] + "JM"
    out = batch + ("" if len(a) == 1 else "N") + ("" if len(b) == 1 else "M")
    return contract(call, call[first], a_letters, call[second], b_letters, out)


@scale_rule("aten::mm", "aten::bmm", "aten::matmul", "aten::mv", "aten::dot", "aten::vdot", family="contraction")
def matmul(call: Call) -> Field:
    """y[.., n, m] = sum_j a[.., n, j] b[.., j, m]."""
    first, second = list(call.arguments)[:2]
    return _matmul(call, first, second)


@scale_rule("aten::addmm", "aten::baddbmm", "aten::addmv", "aten::addbmm", "aten::addr", family="contraction")
def addmm(call: Call) -> Any:
    """y = beta c + alpha a b (addbmm: summed over the batch; addr: the outer product of two vectors)."""
    _, first, second = list(call.arguments)[:3]
    call.roles["self"] = "bias"
    term = operand(call, "self") if call["beta"] != 0 else AnyField(call.shape("self"))
    _weight(call, first, second)
    if call.operator == "aten::addbmm":
        y = contract(call, call[first], "BNJ", call[second], "BJM", "NM")
    elif call.operator == "aten::addr":
        y = contract(call, call[first], "N", call[second], "M", "NM")
    else:
        y = _matmul(call, first, second)
    if call.options.biases == "skip" and isinstance(term, ParameterView):
        call.zero(term)
        call.inexact.append('biases are left alone (biases="skip")')
        return y
    return same_field(call, [y, term], call.out_shape)


@scale_rule("aten::outer", "aten::ger", "aten::inner", "aten::kron", family="contraction")
def outer(call: Call) -> Field:
    """y[n, m] = a[n] b[m]; inner: y[.., n, .., m] = sum_j a[.., n, j] b[.., m, j]; kron: y[(n, p), (m, q)] = a[n, m] b[p, q]."""
    first, second = list(call.arguments)[:2]
    a, b = call.shape(first), call.shape(second)
    _weight(call, first, second)
    a_letters, b_letters = ascii_lowercase[: len(a)], ascii_uppercase[: len(b)]
    if call.operator == "aten::inner" and a and b:
        a_letters, b_letters = a_letters[:-1] + "z", b_letters[:-1] + "z"
        return contract(call, call[first], a_letters, call[second], b_letters, a_letters[:-1] + b_letters[:-1])
    if call.operator == "aten::kron":
        rank = max(len(a), len(b))
        pairs = zip(a_letters.rjust(rank), b_letters.rjust(rank), strict=True)
        order = "".join(x + y for x, y in pairs)
        return as_shape(contract(call, call[first], a_letters, call[second], b_letters, order.replace(" ", "")), call.out_shape)
    return contract(call, call[first], a_letters, call[second], b_letters, a_letters + b_letters)


@scale_rule("aten::tensordot", family="contraction")
def tensordot(call: Call) -> Field:
    """The given axes of a are summed against those of b."""
    a, b = call.shape("self"), call.shape("other")
    _weight(call, "self", "other")
    a_letters, b_letters = list(ascii_lowercase[: len(a)]), list(ascii_uppercase[: len(b)])
    pairs = [(i % len(a), j % len(b)) for i, j in zip(call["dims_self"], call["dims_other"], strict=True)]
    for i, j in pairs:
        b_letters[j] = a_letters[i]
    summed = {a_letters[i] for i, _ in pairs}
    out = [letter for letter in (*a_letters, *b_letters) if letter not in summed]
    return contract(call, call["self"], "".join(a_letters), call["other"], "".join(b_letters), "".join(out))


@scale_rule("aten::bilinear", family="contraction")
def bilinear(call: Call) -> Field:
    """y[.., o] = sum_ij a[.., i] W[o, i, j] b[.., j] + bias[o]."""
    _weight(call, "input1", "input2", "weight")
    lead = ascii_lowercase[: len(call.shape("input1")) - 1]
    a, b, weight = call["input1"], call["input2"], call["weight"]
    y = contract_all(call, [(a, lead + "I"), (b, lead + "J"), (weight, "OIJ")], lead + "O")
    return add_bias(call, y, "bias", len(y.shape) - 1)


@scale_rule("aten::einsum", family="contraction")
def einsum(call: Call) -> Field:
    """A general contraction y[out] = sum of a[..] b[..] c[..] ...; letters that repeat in one operand read its diagonal."""
    letters, out = read_equation(call["equation"], [len(fake.shape) for fake in call.fakes["tensors"]])
    call.roles["tensors"] = "weight"
    operands = []
    for value, names in zip(call["tensors"], letters, strict=True):
        once = "".join(dict.fromkeys(names))
        if once != names:
            if isinstance(value, AnyField):
                value = AnyField(tuple(value.shape[names.index(letter)] for letter in once))
            else:
                value = diagonal_field(call.settle(value), names, once)
        operands.append((value, once))
    return contract_all(call, operands, out)


@scale_rule("aten::embedding", family="contraction")
def embedding(call: Call) -> Field:
    """y[.., d] = W[index, d]: the field of W is the same for every row."""
    _weight(call, "weight")
    rows = call.shape("weight")[0]
    lead = ascii_lowercase[: len(call.shape("indices"))]
    one_hot = ScaleField((*call.shape("indices"), rows))
    return contract(call, one_hot, lead + "V", call["weight"], "VD", lead + "D")


@scale_rule("aten::embedding_bag", "aten::_embedding_bag", "aten::_embedding_bag_forward_only", family="contraction")
def embedding_bag(call: Call) -> Any:
    """y[b, d] = sum, mean or maximum of s[n] W[index[n], d] over the n of bag b: one field for all rows, one factor for all s."""
    _weight(call, "weight")
    bags, rows = call.out_shape[0], call.shape("weight")[0]
    y = contract(call, ScaleField((bags, rows)), "BV", call["weight"], "VD", "BD")
    if call["per_sample_weights"] is not None:
        _weight(call, "per_sample_weights")
        factor = reduce(call, call["per_sample_weights"], [0], ())
        y = AnyField(y.shape) if isinstance(factor, AnyField) else product(y.shape, call.settle(y), call.settle(factor))
    return (y, *(ScaleField(tuple(other.shape)) for other in call.output[1:]))


@scale_rule(
    "aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::conv_transpose1d", "aten::conv_transpose2d",
    "aten::conv_transpose3d", "aten::convolution", "aten::_convolution",
    family="contraction",
)  # fmt: skip
def convolution(call: Call) -> Field:
    """y[n, o, p] = sum over i, k of x[n, i, p + k] W[o, i, k] + b[o], by groups of channels."""
    _weight(call, "input", "weight")
    transposed = "conv_transpose" in call.operator or bool(call["transposed"])
    x_shape, w_shape = call.shape("input"), call.shape("weight")
    spatial, kernel, groups = len(w_shape) - 2, w_shape[2:], call["groups"]
    batched = len(x_shape) == spatial + 2
    channel = 1 if batched else 0
    if isinstance(call["input"], AnyField):
        return add_bias(call, AnyField(call.out_shape), "bias", channel)
    x = call.field("input")
    if not pointwise(call, kernel):
        # Every output position sees several input positions, so the field is the same for all of them.
        x = call.constant(x, range(channel + 1, len(x_shape)))
        x = ScaleField((*x_shape[: channel + 1], *call.out_shape[channel + 1 :]), x.terms)
    inputs = x.shape[channel] // groups
    # An axis of groups where there are several.
    group, letter = ((groups,), "G") if groups > 1 else ((), "")
    x = reshape(x, (*x.shape[:channel], *group, inputs, *x.shape[channel + 1 :]))
    outputs = call.out_shape[channel] // groups
    places, taps = ascii_lowercase[:spatial], ascii_lowercase[spatial : 2 * spatial]
    batch = ("N" if batched else "") + letter
    inner = (*group, inputs, outputs) if transposed else (*group, outputs, inputs)
    weight = call.same_weight(call["weight"], as_shape(call["weight"], (*inner, *kernel)))
    letters = letter + ("JO" if transposed else "OJ") + taps
    y = contract(call, x, f"{batch}J{places}", weight, letters, f"{batch}O{places}")
    return add_bias(call, as_shape(y, call.out_shape), "bias", channel)


def pointwise(call: Call, kernel: tuple[int, ...]) -> bool:
    """Whether each output position reads one input position of the same place."""
    stride, padding = call["stride"] or [1], call["padding"]
    padding = [0] if padding in ("valid", None) else [1] if padding == "same" and any(k != 1 for k in kernel) else padding
    padding = [0] if padding == "same" else padding
    extra = call["output_padding"] or [0]
    return all(k == 1 for k in kernel) and all(s == 1 for s in stride) and not any(padding) and not any(extra)
