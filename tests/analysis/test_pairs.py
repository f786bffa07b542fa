"""Pairs: producer, consumer and what lies between, on graphs whose pairs can be read off by eye."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.analysis.pairs import build_pairs, short_operator

from ..hand_made import Builder, attention, chain, residual


def layers(symmetry):
    return [(pair.producer, pair.consumer) for pair in build_pairs(symmetry)]


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_a_chain_has_one_pair_per_hidden_width(depth):
    pairs = build_pairs(chain([3, *range(4, 4 + depth), 2]))
    assert [(pair.producer, pair.consumer) for pair in pairs] == [(f"fc{k}", f"fc{k + 1}") for k in range(1, depth + 1)]
    assert [pair.channels for pair in pairs] == list(range(4, 4 + depth))
    assert [pair.group for pair in pairs] == [f"g{k}" for k in range(depth)]
    assert all(pair.operators == ("relu",) for pair in pairs)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_every_writer_of_a_residual_stream_meets_every_later_reader(blocks):
    symmetry = residual(blocks, 4, 3)
    readers = [f"block{k}.down" for k in range(blocks)] + ["head"]
    expected = [("stem", reader) for reader in readers]
    for block in range(blocks):
        expected += [(f"block{block}.up", reader) for reader in readers[block + 1 :]]
    expected += [(f"block{k}.down", f"block{k}.up") for k in range(blocks)]
    assert layers(symmetry) == expected


def test_operators_are_those_of_a_shortest_path_in_order():
    pairs = {(pair.producer, pair.consumer): pair.operators for pair in build_pairs(residual(2, 4, 3))}
    assert pairs["stem", "block0.down"] == ()
    assert pairs["block0.down", "block0.up"] == ("relu",)
    assert pairs["block0.up", "head"] == ("add", "relu", "add", "relu")


@pytest.mark.parametrize("packed", [False, True])
def test_attention_pairs_queries_with_keys_and_values_with_the_projection(packed):
    q, k, v = ("attn.in_proj",) * 3 if packed else ("q", "k", "v")
    pairs = build_pairs(attention(4, packed))
    assert [(pair.producer, pair.consumer, pair.channels) for pair in pairs] == [(q, k, 4), (v, "out", 4)]
    assert all(pair.operators[-1] == "scaled_dot_product_attention" for pair in pairs)


def test_the_search_stops_at_a_layer_of_the_group_but_not_at_another_layer():
    builder = Builder()
    group = builder.group(3)
    ids = builder.ids(group, (3, 1))
    position = builder.node("linear.default", [builder.node("input")], [group], builder.linear("a", 3, 4, group, None))
    # A depthwise layer that reads and writes the group: everything behind it is its own pair.
    depthwise = builder.parameter("depthwise.weight", (3, 1), "weight", (1, ids), (-1, ids))
    position = builder.node("conv2d.default", [position], [group], [depthwise])
    # A per-tensor scale that carries no variable lies in between like any operator.
    scale = builder.parameter("scale", (1,), "weight")
    position = builder.node("mul.Tensor", [position], [group], [scale])
    builder.node("linear.default", [position], [], builder.linear("b", 2, 3, None, group))
    pairs = build_pairs(builder.build())
    assert [(pair.producer, pair.consumer, pair.operators) for pair in pairs] == [
        ("a", "depthwise", ()),
        ("depthwise", "b", ("mul",)),
    ]


def test_a_module_used_twice_gives_each_pair_once():
    builder = Builder()
    group = builder.group(3)
    start = builder.node("input")
    first, last = builder.linear("a", 3, 4, group, None), builder.linear("b", 2, 3, None, group)
    for _ in range(2):
        position = builder.node("relu.default", [builder.node("linear.default", [start], [group], first)], [group])
        builder.node("linear.default", [position], [], last)
    assert layers(builder.build()) == [("a", "b")]


def test_pairs_of_the_training_graph_are_added_behind_those_of_the_evaluation_graph():
    evaluation = chain([3, 4, 2])
    builder = Builder()
    group = builder.group(4)
    position = builder.node("linear.default", [builder.node("input")], [group], builder.linear("fc1", 4, 3, group, None))
    dropped = builder.node("dropout.default", [position], [group])
    builder.node("linear.default", [dropped], [], builder.linear("fc2", 2, 4, None, group))
    builder.node("linear.default", [dropped], [], builder.linear("auxiliary", 2, 4, None, group))
    training = builder.build()
    both = builder.build(flows={"train": training.flows["eval"], "eval": evaluation.flows["eval"]})
    assert [(pair.consumer, pair.operators) for pair in build_pairs(both)] == [("fc2", ("relu",)), ("auxiliary", ("dropout",))]


def test_biases_and_fixed_channels_make_no_pair():
    builder = Builder()
    group = builder.group(2)
    ids = np.array([[-1], [0], [1]])
    start = builder.node("input")
    position = builder.node("linear.default", [start], [group], [builder.parameter("a.weight", (3, 2), "weight", (1, ids))])
    position = builder.node("add.Tensor", [position], [group], [builder.parameter("shift", (3,), "bias", (1, ids[:, 0]))])
    builder.node("linear.default", [position], [], [builder.parameter("b.weight", (2, 3), "weight", (-1, ids.T))])
    assert layers(builder.build()) == [("a", "b")]


def test_short_operator():
    names = ["relu.default", "relu_.default", "add.Tensor", "__and__.Tensor"]
    assert [short_operator(name) for name in names] == ["relu", "relu", "add", "__and__"]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.down, self.up, self.head = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1), nn.Linear(4 * 9, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.up(nn.functional.max_pool2d(self.down(x).relu_(), 1))
        return self.head(torch.flatten(x, 1))


def test_pairs_of_a_real_model():
    found = {
        (p.producer, p.consumer): (p.channels, p.operators) for p in fxenorm.analyze(Residual(), torch.rand(2, 3, 3, 3)).pairs
    }
    assert found == {
        ("norm", "down"): (4, ("relu",)),
        ("norm", "head"): (4, ("relu", "add", "flatten")),
        ("up", "head"): (4, ("add", "flatten")),
        ("down", "up"): (2, ("relu", "max_pool2d")),
    }


def test_pairs_of_real_attention():
    plan = fxenorm.analyze(nn.MultiheadAttention(8, 2, batch_first=True), tuple(torch.rand(3, 2, 5, 8)), modes="eval")
    assert {(pair.producer, pair.consumer, pair.channels) for pair in plan.pairs} == {
        ("in_proj", "in_proj", 8),
        ("in_proj", "out_proj", 8),
    }
