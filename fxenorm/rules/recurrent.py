"""Recurrent layers, by the law of their unrolled form: all that enters a state carries the state's field at every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from ..field import AnyField, ParameterView, ScaleField
from ..field.structure import broadcast, concatenate, reshape, take_slice
from .call import Call, Field
from .contraction import take_bias
from .laws import barrier, contract, same_field, zero_field
from .registry import scale_rule

_GATES = {"aten::lstm": 4, "aten::gru": 3, "aten::rnn_tanh": 1}


@dataclass
class _Layer:
    """The weights of one layer in one direction, as positions in the call's list `params` (None where there is none)."""

    input: int
    state: int
    input_bias: int | None
    state_bias: int | None
    projection: int | None


def _layers(call: Call) -> Iterator[list[_Layer]]:
    """Yields the layers in order, each with one entry a direction."""
    biases, directions = 2 * bool(call["has_biases"]), 1 + bool(call["bidirectional"])
    count = call["num_layers"] * directions
    each = len(call["params"]) // count
    found = []
    for k in range(count):
        start = k * each
        first, second = (start + 2, start + 3) if biases else (None, None)
        found.append(_Layer(start, start + 1, first, second, start + each - 1 if each > 2 + biases else None))
    for k in range(0, count, directions):
        yield found[k : k + directions]


def _current(call: Call, value: Field) -> Field:
    """Returns a parameter as of now: its field may have been born in this very call."""
    return call.parameters.look(value) if isinstance(value, ParameterView) else value


def _weight(call: Call, position: int) -> Field:
    """Returns the field of one of the parameters, used as a weight."""
    call.roles[f"params[{position}]"] = "weight"
    given = call["params"][position]
    return call.same_weight(given, _current(call, given))


def _with_bias(call: Call, field: Field, position: int | None) -> Field:
    """`field` plus one of the parameters along the last axis."""
    if position is None:
        return field
    call.roles[f"params[{position}]"] = "bias"
    return take_bias(call, field, _current(call, call["params"][position]), len(field.shape) - 1)


def _times(call: Call, x: Field, weight: Field) -> Field:
    """Returns the field of x W^T, x with any number of axes in front."""
    lead = ascii_lowercase[: len(x.shape) - 1]
    return contract(call, x, lead + "I", weight, "OI", lead + "O")


@dataclass
class _Sequence:
    """The input of a fused call, axes of time taken off: fields are the same at every step.

    Attributes:
        x: the input's field, over (batch, features) or (features,); packed sequences have no batch axis either.
        shape: of the output without its last axis.
        time: the axis of time in the input, which holds time and batch in a packed one.
    """

    x: Field
    shape: tuple[int, ...]
    time: int


def _read(call: Call) -> _Sequence:
    """Returns the input of a fused call, its field without the axis of time."""
    packed = call["data"] is not None
    name = "data" if packed else "input"
    shape = call.shape(name)
    time = 1 if not packed and call["batch_first"] and len(shape) == 3 else 0
    rest = tuple(size for axis, size in enumerate(shape) if axis != time)
    if isinstance(call[name], AnyField):
        return _Sequence(AnyField(rest), shape[:-1], time)
    field = call.constant(call.field(name), [time])
    kept = tuple(1 if axis == time else size for axis, size in enumerate(shape))
    return _Sequence(reshape(ScaleField(kept, field.terms), rest), shape[:-1], time)


def _over_time(read: _Sequence, state: Field) -> Field:
    """Returns the field of a state at every step, as the output holds it."""
    shape = (*read.shape, state.shape[-1])
    if isinstance(state, AnyField):
        return AnyField(shape)
    one = tuple(1 if axis == read.time else size for axis, size in enumerate(shape))
    return broadcast(reshape(state, one), shape)  # type: ignore[arg-type]


def _initial(call: Call, value: Field, position: int, batched: bool) -> Field:
    """Returns the first state of one layer and direction; `batched`: as the rows of the input, else one for all of the batch."""
    shape = value.shape[1:] if batched or len(value.shape) == 2 else value.shape[2:]
    if isinstance(value, AnyField):
        return AnyField(shape)
    field = take_slice(call.settle(value), 0, slice(position, position + 1))
    if len(shape) < len(value.shape) - 1:
        field = take_slice(ScaleField(field.shape, call.constant(field, [1]).terms), 1, slice(0, 1))
    return reshape(field, shape)


def _last(call: Call, states: Sequence[Field], name: str) -> Field:
    """Returns the states of all layers and directions behind each other, in the shape of the first states given."""
    position = 1 if name == "hx" else 2
    shape = tuple(call.output[position].shape)
    if all(isinstance(state, AnyField) for state in states):
        return AnyField(shape)
    one = (1, *shape[1:])
    parts = [broadcast(reshape(call.settle(s), (1,) * (len(shape) - len(s.shape)) + s.shape), one) for s in states]
    return concatenate(parts, 0)


def _joined(call: Call, states: Sequence[Field]) -> Field:
    """Returns the states of the two directions side by side, along the last axis."""
    if len(states) == 1:
        return states[0]
    if all(isinstance(state, AnyField) for state in states):
        return AnyField((*states[0].shape[:-1], sum(state.shape[-1] for state in states)))
    return concatenate([call.settle(state) for state in states], len(states[0].shape) - 1)


@scale_rule("aten::rnn_relu", family="contraction")
def rnn_relu(call: Call) -> Any:
    """h_t = relu(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh): W_hh carries +s_i and -s_j, all else that enters h carries s."""
    read = _read(call)
    x = read.x
    last: list[Field] = []
    for layer in _layers(call):
        states = []
        for direction in layer:
            start = _initial(call, call["hx"], len(last), len(x.shape) == 2)
            state = _with_bias(call, _times(call, x, _weight(call, direction.input)), direction.input_bias)
            state = _with_bias(call, state, direction.state_bias)
            state = same_field(call, [state, start], state.shape)
            loop = _times(call, state, _weight(call, direction.state))
            states.append(same_field(call, [state, loop], state.shape))
            last.append(states[-1])
        x = _joined(call, states)
    return (_over_time(read, x), _last(call, last, "hx"))


@scale_rule("aten::lstm", "aten::gru", "aten::rnn_tanh", family="contraction")
def gated(call: Call) -> Any:
    """Holds all that enters a saturating gate, so the states are held; weights undo the field of their input."""
    call.barrier = f"the gates of {call.operator.removeprefix('aten::')} are held"
    read = _read(call)
    first = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    x = read.x
    hidden: list[Field] = []
    for layer in _layers(call):
        states = []
        for direction in layer:
            entering = _times(call, x, _weight(call, direction.input))
            call.zero(entering)
            state: Field = ScaleField((*x.shape[:-1], call.fakes["params"][direction.state].shape[0] // _GATES[call.operator]))
            if direction.projection is not None:
                state = _times(call, state, _weight(call, direction.projection))
            start = _initial(call, first[0], len(hidden), len(x.shape) == 2)
            state = same_field(call, [state, start], state.shape)
            call.zero(_times(call, state, _weight(call, direction.state)))
            for bias in (direction.input_bias, direction.state_bias):
                _with_bias(call, ScaleField(entering.shape), bias)
            states.append(state)
            hidden.append(state)
        x = _joined(call, states)
    for cell in first[1:]:
        call.zero(cell)
    outputs = (_over_time(read, x), _last(call, hidden, "hx"))
    return (*outputs, *(ScaleField(tuple(other.shape)) for other in call.output[2:]))


def _cell_input(call: Call) -> list[Field]:
    """W_ih x + b_ih and W_hh h + b_hh, apart."""
    found = []
    state = call["hx"][0] if isinstance(call["hx"], (list, tuple)) else call["hx"]
    for value, weight, bias in ((call["input"], "w_ih", "b_ih"), (state, "w_hh", "b_hh")):
        call.roles[weight] = "weight"
        y = _times(call, value if isinstance(value, AnyField) else call.settle(value), call[weight])
        if call[bias] is not None:
            call.roles[bias] = "bias"
            y = take_bias(call, y, call[bias], len(y.shape) - 1)
        found.append(y)
    return found


@scale_rule("aten::rnn_relu_cell", family="contraction")
def rnn_relu_cell(call: Call) -> Field:
    """h' = relu(W_ih x + b_ih + W_hh h + b_hh)."""
    return same_field(call, _cell_input(call), call.out_shape)


@scale_rule("aten::lstm_cell", "aten::gru_cell", "aten::rnn_tanh_cell", family="contraction")
def gated_cell(call: Call) -> Any:
    """Holds all that enters the gates of one step of a saturating recurrence."""
    call.barrier = f"the gates of {call.operator.removeprefix('aten::')} are held"
    for entering in _cell_input(call):
        call.zero(entering)
    if call.operator == "aten::gru_cell":
        call.zero(call["hx"])
    for cell in call["hx"][1:] if isinstance(call["hx"], (list, tuple)) else []:
        call.zero(cell)
    return zero_field(call)


@scale_rule("aten::_pack_padded_sequence", family="structural")
def pack(call: Call) -> Any:
    """Steps of several sequences behind each other, longest first: constant along time and batch."""
    sizes = ScaleField(tuple(call.output[1].shape))
    if isinstance(call["input"], AnyField):
        return (AnyField(call.out_shape), sizes)
    field = call.constant(call.field("input"), [0, 1])
    first = take_slice(take_slice(field, 0, slice(0, 1)), 1, slice(0, 1))
    return (broadcast(reshape(first, (1, *call.out_shape[1:])), call.out_shape), sizes)


@scale_rule("aten::_pad_packed_sequence", family="structural")
def unpack(call: Call) -> Any:
    """The sequences side by side again, shorter ones filled up, by zeros most often."""
    sizes = ScaleField(tuple(call.output[1].shape))
    if call["padding_value"] != 0:
        return barrier(call, "the padding does not move with the scale")
    if isinstance(call["data"], AnyField):
        return (AnyField(call.out_shape), sizes)
    field = call.constant(call.field("data"), [0])
    first = take_slice(field, 0, slice(0, 1))
    return (broadcast(reshape(first, (1, 1, *call.out_shape[2:])), call.out_shape), sizes)
