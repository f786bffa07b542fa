"""Rows of recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .case import Case

A = torch.ops.aten
T, B, I = 3, 2, 4  # noqa: E741
RAMP = "a factor exp(t step) on the input, which exp(t) on the loop's weight follows, where no bias is added"
BEHIND = "what stands behind the end of a sequence is free, and is tied to the rest"
APART = "the steps, which this operator leaves apart, are tied"


def _weights(inputs: int, state: int, gates: int = 1, biases: bool = True, directions: int = 1) -> tuple[tuple[int, ...], ...]:
    """Shapes of the parameters of one layer."""
    rows = gates * state
    each = ((rows, inputs), (rows, state)) + ((rows,), (rows,)) * biases
    return each * directions


def _rnn(mode: str, **options: Any) -> Callable[..., Any]:
    """A fused call on (input, first state, cell if there is one, parameters)."""
    settings = {"has_biases": True, "num_layers": 1, "bidirectional": False, "batch_first": False, **options}

    def call(x: Tensor, *rest: Tensor) -> Any:
        states = 2 if mode == "lstm" else 1
        h, params = rest[:states], rest[states:]
        return getattr(A, mode)(
            x, list(h) if states == 2 else h[0], list(params), settings["has_biases"], settings["num_layers"], 0.0, False,
            settings["bidirectional"], settings["batch_first"],
        )  # fmt: skip

    return call


def _from_zero(mode: str, **options: Any) -> Callable[..., Any]:
    """The same from a state of zeros."""

    def call(x: Tensor, *params: Tensor) -> Any:
        layers = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
        batch = x.shape[0] if options.get("batch_first") else x.shape[1]
        start = torch.zeros(layers, batch, params[1].shape[1], dtype=x.dtype)
        return _rnn(mode, **options)(x, start, *params)[0]

    return call


def _packed(mode: str, gates: int = 1) -> Callable[..., Tensor]:
    """Sequences packed behind each other, the last one step shorter."""

    def call(x: Tensor, *params: Tensor) -> Tensor:
        lengths = torch.tensor([x.shape[1]] * (len(x) - 1) + [x.shape[1] - 1])
        data, sizes = A._pack_padded_sequence(x, lengths, True)
        start = torch.zeros(1, len(x), len(params[0]) // gates, dtype=x.dtype)
        states: Any = [start, start] if mode == "lstm" else start
        out = getattr(A, mode)(data, sizes, states, list(params), True, 1, 0.0, False, False)[0]
        return A._pad_packed_sequence(out, sizes, True, 0.0, x.shape[1])[0]

    return call


CASES = (
    Case("aten::rnn_relu", _rnn("rnn_relu"), ((2, 2, 3), (1, 2, 2), *_weights(3, 2)), draws=20),
    Case("aten::rnn_relu", _from_zero("rnn_relu"), ((T, 2, 3), *_weights(3, 2)), "from zero", draws=20),
    Case("aten::rnn_relu", _from_zero("rnn_relu", batch_first=True), ((1, T, 3), *_weights(3, 2)), "batch first", draws=20),
    Case(
        "aten::rnn_relu",
        _from_zero("rnn_relu", has_biases=False),
        ((T, 1, 3), *_weights(3, 2, biases=False)),
        "no biases",
        draws=20,
        misses=RAMP,
    ),
    Case(
        "aten::rnn_relu",
        _from_zero("rnn_relu", num_layers=2),
        ((2, 1, 3), *_weights(3, 2), *_weights(2, 2)),
        "two layers",
        draws=20,
    ),
    Case(
        "aten::rnn_relu",
        _from_zero("rnn_relu", bidirectional=True),
        ((2, 1, 2), *_weights(2, 3, directions=2)),
        "two directions",
        draws=20,
    ),
    Case("aten::rnn_relu", _packed("rnn_relu"), ((2, 3, 2), *_weights(2, 2)), "packed", draws=20, misses=BEHIND),
    Case(
        "aten::_pack_padded_sequence",
        lambda x: A._pack_padded_sequence(x, torch.tensor([3, 2]), True),
        ((B, T, I),),
        misses=APART,
    ),
    Case(
        "aten::_pad_packed_sequence",
        lambda x: A._pad_packed_sequence(x, torch.tensor([2, 2, 1]), True, 0.0, 3),
        ((5, 3),),
        misses=APART,
    ),
    Case("aten::lstm", _rnn("lstm"), ((2, 1, 3), (1, 1, 2), (1, 1, 2), *_weights(3, 2, 4))),
    Case(
        "aten::lstm",
        _rnn("lstm", has_biases=False, bidirectional=True),
        ((2, 1, 2), (2, 1, 1), (2, 1, 2), *((8, 2), (8, 1), (1, 2)) * 2),
        "projections of two directions",
    ),
    Case("aten::gru", _rnn("gru", batch_first=True), ((1, 2, 3), (1, 1, 2), *_weights(3, 2, 3))),
    Case("aten::rnn_tanh", _rnn("rnn_tanh"), ((2, 1, 3), (1, 1, 2), *_weights(3, 2))),
    Case("aten::lstm", _packed("lstm", 4), ((2, 3, 2), *_weights(2, 1, 4)), "packed", misses=BEHIND),
    Case("aten::gru", _packed("gru", 3), ((2, 3, 2), *_weights(2, 1, 3)), "packed", misses=BEHIND),
    Case("aten::rnn_tanh", _packed("rnn_tanh"), ((2, 3, 2), *_weights(2, 1)), "packed", misses=BEHIND),
    Case("aten::rnn_relu_cell", torch.rnn_relu_cell, ((2, 3), (2, 2), *_weights(3, 2)), draws=20),
    Case("aten::rnn_tanh_cell", torch.rnn_tanh_cell, ((1, 3), (1, 2), *_weights(3, 2))),
    Case("aten::gru_cell", torch.gru_cell, ((2, 3), (2, 2), *_weights(3, 2, 3))),
    Case("aten::lstm_cell", lambda x, h, c, *p: torch.lstm_cell(x, (h, c), *p), ((1, 3), (1, 2), (1, 2), *_weights(3, 2, 4))),
)
