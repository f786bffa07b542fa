"""Groups: how variables, parameters and activations are put together for users."""

from __future__ import annotations

import numpy as np
import pytest

from fxenorm.analysis.groups import Port, build_groups, layer_of, term_axis
from fxenorm.analysis.pair_graph import last_layers, layer_depths, pair_graph
from fxenorm.analysis.pairs import build_pairs
from fxenorm.symmetry.symmetry import Site, Symmetry

from ..hand_made import Builder, attention, chain, residual


def groups_of(symmetry: Symmetry):
    return build_groups(symmetry, layer_depths(pair_graph(symmetry, build_pairs(symmetry))))


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("conv1.weight", "conv1"),
        ("layer1.0.bn1.bias", "layer1.0.bn1"),
        ("attn.in_proj_weight", "attn.in_proj"),
        ("attn.in_proj_bias", "attn.in_proj"),
        ("class_token", "class_token"),
        ("weight", "weight"),
        (".weight", ".weight"),
        ("rnn.weight_ih_l0", "rnn.weight_ih_l0"),
    ],
)
def test_layer_of_strips_only_what_names_the_parameter(parameter, layer):
    assert layer_of(parameter) == layer


@pytest.mark.parametrize(
    ("shape", "coefficient", "axis"),
    [
        ((5, 1), 1, 0),
        ((1, 5), -1, 1),
        ((6, 2, 1, 1), -1, 1),  # grouped convolution: the block of axis 0 reads the channels of axis 1
        ((6, 1, 1, 1), -1, 0),  # depthwise
        ((1, 6, 1, 1), 1, 1),  # transposed convolution
        ((1, 1), 1, 0),
        ((1, 1), -1, 1),
        ((7,), 1, 0),
        ((), 1, 0),
    ],
)
def test_the_axis_of_a_port_is_where_its_channels_lie(shape, coefficient, axis):
    assert term_axis(np.zeros(shape, dtype=np.int64), coefficient) == axis


@pytest.mark.parametrize("symmetry", [chain([4, 5, 6, 3], bias=True), residual(3, 4, 2), attention(4, False), attention(4, True)])
def test_groups_partition_the_variables_and_repeat_the_exponents(symmetry):
    groups = groups_of(symmetry)
    assert [variable for group in groups for variable in group.variables] == list(range(symmetry.num_scales))
    assert len({group.name for group in groups}) == len(groups)
    for group in groups:
        listed = {(port.parameter, port.coefficient) for port in group.producers + group.consumers}
        carried = {
            (name, coefficient)
            for name, terms in symmetry.exponents.items()
            for coefficient, ids in terms
            if np.isin(ids, list(group.variables)).any()
        }
        assert listed == carried
        assert all(port.coefficient > 0 for port in group.producers)
        assert all(port.coefficient < 0 for port in group.consumers)


def test_ports_of_a_chain():
    first, second = groups_of(chain([4, 5, 6, 3], bias=True))
    assert first.producers == (Port("fc1.weight", 0, 1), Port("fc1.bias", 0, 1))
    assert first.consumers == (Port("fc2.weight", 1, -1),)
    assert (first.kind, first.depth, second.depth) == ("chain", 0, 1)
    assert first.label == "g0 (fc1 out, 5 channels)"


def test_kinds():
    assert [group.kind for group in groups_of(residual(2, 4, 3))] == ["residual", "chain", "chain"]
    assert [group.kind for group in groups_of(attention(4, packed=False))] == ["attention", "chain"]
    assert [group.kind for group in groups_of(attention(4, packed=True))] == ["attention", "chain"]


def test_a_group_that_starts_at_a_normalisation_and_one_that_nothing_reads():
    builder = Builder()
    normed, unread = builder.group(3), builder.group(2)
    gamma = builder.parameter("bn.weight", (3,), "gamma", (1, builder.ids(normed, (3,))))
    start = builder.node("input")
    position = builder.node("batch_norm.default", [start], [normed], [gamma])
    builder.node("linear.default", [position], [unread], builder.linear("fc", 2, 3, unread, normed))
    groups = groups_of(builder.build())
    assert [group.kind for group in groups] == ["norm", "one-sided"]


def test_branch_and_gate():
    builder = Builder()
    left, right = builder.group(3), builder.group(3)
    start = builder.node("input")
    a = builder.node("linear.default", [start], [left], builder.linear("a", 3, 4, left, None))
    b = builder.node("linear.default", [start], [right], builder.linear("b", 3, 4, right, None))
    product = builder.node("mul.Tensor", [a, b], [left, right])
    down = builder.parameter("down.weight", (2, 3), "weight", (-1, builder.ids(left, (1, 3))), (-1, builder.ids(right, (1, 3))))
    builder.node("linear.default", [product], [], [down])
    assert [group.kind for group in groups_of(builder.build())] == ["gate", "gate"]

    builder = Builder()
    group = builder.group(3)
    start = builder.node("linear.default", [builder.node("input")], [group], builder.linear("a", 3, 4, group, None))
    for name in "bc":
        builder.node("linear.default", [start], [], builder.linear(name, 2, 3, None, group))
    assert [group.kind for group in groups_of(builder.build())] == ["branch"]


def test_a_group_that_nothing_produces_has_consumers_alone():
    """Its coefficients are negative as they stand; it is named by its first reader, and lies as deep as that."""
    builder = Builder()
    first, unproduced = builder.group(4), builder.group(3)
    position = builder.node("linear.default", [builder.node("input")], [first], builder.linear("a", 4, 2, first, None))
    position = builder.node("linear.default", [position], [], builder.linear("b", 3, 4, None, first))
    builder.node("linear.default", [position], [], builder.linear("c", 2, 3, None, unproduced))
    group = build_groups(builder.build(), {"a": 0, "b": 1, "c": 5})[1]
    assert (group.kind, group.producers, group.consumers) == ("one-sided", (), (Port("c.weight", 1, -1),))
    assert group.label == "g1 (c in, 3 channels)" and group.depth == 5


def test_a_residual_stream_lies_as_deep_as_its_first_writer():
    symmetry = residual(2, 4, 3)
    depths = {"stem": 3, "block0.down": 4, "block0.up": 5, "block1.down": 6, "block1.up": 7, "head": 8}
    assert [group.depth for group in build_groups(symmetry, depths)] == [3, 4, 6]
    assert [group.depth for group in groups_of(symmetry)] == [0, 1, 3]


def test_concatenated_inputs_belong_to_every_group_they_hold():
    builder = Builder()
    one, two = builder.group(2), builder.group(3)
    start = builder.node("input")
    a = builder.node("conv2d.default", [start], [one], builder.linear("a", 2, 4, one, None))
    b = builder.node("conv2d.default", [start], [two], builder.linear("b", 3, 4, two, None))
    both = np.concatenate([builder.ids(one, (1, 2)), builder.ids(two, (1, 3))], axis=1)
    cat = builder.node("cat.default", [a, b], [one, two])
    builder.node("conv2d.default", [cat], [], [builder.parameter("c.weight", (6, 5), "weight", (-1, both))])
    builder.sites.append(Site("c", "input", 1, both.reshape(-1), 1))
    groups = groups_of(builder.build())
    assert [group.consumers for group in groups] == [(Port("c.weight", 1, -1),)] * 2
    assert [[site.module for site in group.sites] for group in groups] == [["c"], ["c"]]


def test_depth_is_the_longest_path_and_a_cycle_is_one_step():
    depths = layer_depths(pair_graph(residual(2, 4, 3), build_pairs(residual(2, 4, 3))))
    assert depths == {"stem": 0, "block0.down": 1, "block0.up": 2, "block1.down": 3, "block1.up": 4, "head": 5}

    builder = Builder()  # a -> b -> b -> c, where b is one module used twice and reads what it wrote
    group = builder.group(3)
    position = builder.node("linear.default", [builder.node("input")], [group], builder.linear("a", 3, 4, group, None))
    names = builder.linear("b", 3, 3, group, group)
    for _ in range(2):
        position = builder.node("linear.default", [position], [group], names)
    builder.node("linear.default", [position], [], builder.linear("c", 2, 3, None, group))
    symmetry = builder.build()
    graph = pair_graph(symmetry, build_pairs(symmetry))
    assert set(graph.edges()) == {("a", "b"), ("b", "b"), ("b", "c")}
    assert layer_depths(graph) == {"a": 0, "b": 1, "c": 2}


def test_last_layers_are_seen_through_operators_and_normalisations():
    assert last_layers(residual(2, 4, 3)) == {"head"}
    builder = Builder()
    gamma = builder.parameter("bn.weight", (3,), "gamma")
    position = builder.node("linear.default", [builder.node("input")], [], builder.linear("fc", 3, 4))
    builder.node("batch_norm.default", [position], [], [gamma])
    builder.node("linear.default", [position], [], builder.linear("aux", 3, 3))
    assert last_layers(builder.build()) == {"fc", "aux"}


def test_layers_without_pairs_are_nodes_of_the_graph():
    symmetry = chain([4, 3])
    graph = pair_graph(symmetry, build_pairs(symmetry))
    assert list(graph.nodes) == ["fc1"]
    assert groups_of(symmetry) == ()
    assert layer_depths(graph) == {"fc1": 0}
