"""Every way in which small networks are put together: the size of the group, its soundness, and that the check could fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxenorm
from fxenorm.analysis.groups import term_axis
from fxenorm.symmetry import find_symmetry
from fxenorm.trace import trace_model

from ..completeness_cases import NETWORKS
from ..helpers import (
    TOLERANCE,
    assert_same_state,
    broken_errors,
    draw_log_scales,
    gradients_along_scales,
    log_factors,
    randomise,
    randomness_off,
    rescale_by_hand,
    soundness_error,
    state_of,
    tensors,
)
from ..zoo import BARRIERS, CASES, Case, Net
from ..zoo_chains import PLAIN

MODES = ("eval", "train")


@cache
def analysed(name: str) -> tuple[nn.Module, Any, tuple[Any, ...]]:
    """The network with random weights, its plan and its inputs; tests put its weights back."""
    case = CASES[name]
    inputs = case.inputs()
    model = randomise(randomness_off(case.build().double()), seed=3)
    return model, fxenorm.analyze(model, inputs), inputs


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.num_scales is not None])
def test_group_has_the_dimension_derived_by_hand(name: str) -> None:
    assert analysed(name)[1].num_scales == CASES[name].num_scales


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_rescaling_keeps_the_function(name: str, mode: str) -> None:
    model, plan, inputs = analysed(name)
    assert soundness_error(model, plan, inputs, mode) <= TOLERANCE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.num_scales and name != "constant_added_in_place"])
def test_loss_has_no_slope_along_any_scale(name: str, mode: str) -> None:
    model, plan, inputs = analysed(name)
    assert gradients_along_scales(model, plan, inputs, mode).max().item() <= 1e-8


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.num_scales])
def test_every_tensor_must_follow_its_partners(name: str) -> None:
    """Control: the soundness check sees it when one tensor is rescaled alone."""
    model, plan, inputs = analysed(name)
    for tensor, error in broken_errors(model, plan, inputs).items():
        assert error > 1e-6, f"rescaling {tensor} alone went unseen"


@pytest.mark.parametrize("name", CASES)
def test_rescale_is_what_the_exponents_say(name: str) -> None:
    model, plan, _ = analysed(name)
    saved = state_of(model)
    log_scales = draw_log_scales(plan)
    offsets = {tensor: offset for tensor, offset in CASES[name].offsets.items() if tensor in plan.exponents}
    rescale_by_hand(model, plan.exponents, log_scales, offsets=offsets)
    by_hand = state_of(model)
    model.load_state_dict(saved)
    plan.rescale(log_scales)
    assert plan.offsets == offsets
    near = {tensor: 1e-14 * abs(offset) for tensor, offset in offsets.items()}
    for tensor, value in tensors(model).items():
        torch.testing.assert_close(value, by_hand[tensor], rtol=1e-12, atol=near.get(tensor, 0.0))
    plan.rescale(-log_scales)
    for tensor, value in tensors(model).items():
        torch.testing.assert_close(value, saved[tensor], rtol=1e-12, atol=near.get(tensor, 0.0))
    model.load_state_dict(saved)


@pytest.mark.parametrize("name", CASES)
def test_every_variable_is_in_one_group_and_in_the_exponents(name: str) -> None:
    _, plan, _ = analysed(name)
    assert [variable for group in plan.groups for variable in group.variables] == list(range(plan.num_scales))
    used: set[int] = set()
    for terms in plan.exponents.values():
        for coefficient, ids in terms:
            assert coefficient != 0 and coefficient == int(coefficient)
            used.update(torch.as_tensor(ids).reshape(-1).tolist())
    assert used - {-1} == set(range(plan.num_scales))
    alike: dict[int, set[tuple[str, int, int]]] = {variable: set() for variable in range(plan.num_scales)}
    first: dict[int, int] = {}
    for tensor, terms in plan.exponents.items():
        for coefficient, ids in terms:
            axis = term_axis(ids.numpy(), coefficient)
            for variable in set(ids.unique().tolist()) - {-1}:
                alike[variable].add((tensor, axis, coefficient))
        first = {variable: coefficient for coefficient, ids in terms for variable in ids.unique().tolist()} | first
    parts = [frozenset(alike[variable]) for group in plan.groups for variable in group.variables]
    assert len(set(parts)) == len(plan.groups), "variables with the same producers and consumers form a group"
    for group in plan.groups:
        assert len({frozenset(alike[variable]) for variable in group.variables}) == 1
        assert all(first[variable] > 0 for variable in group.variables), "the first tensor that carries a scale grows with it"
        assert all(port.coefficient > 0 for port in group.producers) and all(port.coefficient < 0 for port in group.consumers)


def test_a_scale_that_layers_only_read_grows_the_first_of_them() -> None:
    """Columns that meet zeros: no tensor writes what they read, so that the sign is the reader's own."""

    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(m.b(F.pad(F.relu(m.a(x)), (2, 0))))
        return m.c(F.pad(h[:, ::2], (1, 2))) + m.d(h[:, 1::2])

    layers = {"a": nn.Linear(4, 3), "b": nn.Linear(5, 6), "c": nn.Linear(6, 2), "d": nn.Linear(3, 2)}
    plan = fxenorm.analyze(Net(forward, **layers), torch.randn(7, 4))
    found = {
        (tuple(p.parameter for p in g.producers), tuple(p.parameter for p in g.consumers)): len(g.variables) for g in plan.groups
    }
    assert found == {
        (("a.weight", "a.bias"), ("b.weight",)): 3,
        (("b.weight", "b.bias"), ("c.weight",)): 3,
        (("b.weight", "b.bias"), ("d.weight",)): 3,
        (("b.weight",), ()): 2,
        (("c.weight",), ()): 3,
    }
    assert {c for terms in plan.exponents.values() for c, ids in terms if ids.ndim == 1} == {1}


def test_a_scale_grows_the_first_tensor_that_writes_it_where_heads_take_turns() -> None:
    """One layer writes query, key and value of the first head, then those of the second: variables of groups in turn."""

    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        q, k, v = m.a(x).unflatten(1, (2, 3, 2)).permute(2, 1, 0, 3)
        return m.o((torch.softmax(q @ k.mT, 2) @ v).transpose(0, 1).flatten(1))

    plan = fxenorm.analyze(Net(forward, a=nn.Linear(4, 12), o=nn.Linear(4, 3)), torch.randn(6, 4))
    rows = {c: ids.flatten().tolist() for c, ids in plan.exponents["a.bias"]}
    queries, keys, values = (
        torch.tensor(rows[c]).view(2, 3, 2)[:, part].flatten().tolist() for c, part in ((1, 0), (-1, 1), (1, 2))
    )
    if -1 in queries:  # queries and keys move against each other: which of them grows is nobody's promise
        queries, keys = (torch.tensor(rows[c]).view(2, 3, 2)[:, part].flatten().tolist() for c, part in ((-1, 0), (1, 1)))
    assert queries == keys == [0, 1, 2, 3] and values == [4, 5, 6, 7]
    assert [(c, ids.flatten().tolist()) for c, ids in plan.exponents["o.weight"]] == [(-1, values)]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.num_scales])
def test_variables_are_independent(name: str) -> None:
    """No two variables do the same, and none does nothing: the exponent rows have full column rank."""
    model, plan, _ = analysed(name)
    named = tensors(model)
    blocks = []
    for tensor, terms in plan.exponents.items():
        rows = torch.zeros(named[tensor].numel(), plan.num_scales + 1, dtype=torch.float64)
        for coefficient, ids in terms:
            index = torch.as_tensor(ids, dtype=torch.int64).broadcast_to(named[tensor].shape).reshape(-1, 1) % (
                plan.num_scales + 1
            )
            rows.scatter_add_(1, index, torch.full(index.shape, float(coefficient), dtype=torch.float64))
        blocks.append(rows[:, :-1].unique(dim=0))
    assert torch.linalg.matrix_rank(torch.cat(blocks)).item() == plan.num_scales


def test_exponents_of_a_linear_layer() -> None:
    _, plan, _ = analysed("mlp")
    assert sorted((c, tuple(torch.as_tensor(ids).shape)) for c, ids in plan.exponents["2.weight"]) == [(-1, (1, 5)), (1, (7, 1))]
    assert "4.bias" not in plan.exponents, "the output layer's bias stays"
    assert not plan.barriers and plan.exact and not plan.inexact_reasons


@pytest.mark.parametrize("name", ["mlp", "batch_norm", "dropout"])
def test_default_covers_both_modes(name: str) -> None:
    """Also where no module behaves differently, so that one trace stands for both."""
    assert set(analysed(name)[1].modes) == {"eval", "train"}


@pytest.mark.parametrize("name", CASES)
def test_only_tensors_that_move_are_listed(name: str) -> None:
    """Terms that cancel entry by entry would count, hold and pair tensors that no scale ever changes."""
    model, plan, _ = analysed(name)
    log_scales = draw_log_scales(plan)
    still = [
        tensor
        for tensor, terms in plan.exponents.items()
        if log_factors(terms, log_scales, tensors(model)[tensor].shape).abs().max() < 1e-12
    ]
    assert not still, f"listed though no variable moves them: {still}"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.num_scales])
def test_every_variable_is_counted_in_its_own_unit(name: str) -> None:
    """The exponents of one variable have no common divisor, so powers of two stay exact."""
    _, plan, _ = analysed(name)
    divisors = dict.fromkeys(range(plan.num_scales), 0)
    for terms in plan.exponents.values():
        for coefficient, ids in terms:
            for variable in set(torch.as_tensor(ids).reshape(-1).tolist()) - {-1}:
                divisors[variable] = math.gcd(divisors[variable], coefficient)
    assert set(divisors.values()) == {1}


def test_a_root_between_two_layers_is_counted_in_whole_scales() -> None:
    """Though the root itself carries half of what its neighbours carry."""
    _, plan, _ = analysed("square_of_a_root")
    assert {abs(port.coefficient) for port in (*plan.groups[0].producers, *plan.groups[0].consumers)} == {1}


def test_nothing_false_is_claimed_of_writes_through_windows_that_overlap() -> None:
    """Most channels are multiplied twice, once by each entry of g."""

    def windows(m: Net, x: torch.Tensor) -> torch.Tensor:
        h = m.a(x).abs()
        h.unfold(1, 2, 1).mul_(m.g)
        return m.b(h)

    case = Case(lambda: Net(windows, a=nn.Linear(4, 6), b=nn.Linear(6, 3), g=nn.Parameter(torch.ones(2))), ((9, 4),), None)
    model = randomise(case.build().double())
    assert soundness_error(model, fxenorm.analyze(model, case.inputs()), case.inputs()) <= TOLERANCE


@pytest.mark.parametrize("name", PLAIN)
def test_groups_stand_in_graph_order(name: str) -> None:
    _, plan, _ = analysed(name)
    order = {tensor: place for place, tensor in enumerate(plan.exponents)}
    places = [min(order[port.parameter] for port in group.producers) for group in plan.groups]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("name", "expected"), [("mlp", {"output": 3}), ("dropout", {"output": 2}), ("two_heads", {"b": 3, "c.0": 2})]
)
def test_each_output_says_how_many_variables_it_was_the_first_to_fix(name: str, expected: dict[str, int]) -> None:
    """Over both modes: what train mode fixes again does not count again, nor undo it."""
    symmetry = analysed(name)[1].symmetry
    assert {use.path: use.variables for use in symmetry.outputs} == expected
    assert symmetry.fixed_by_output == sum(expected.values())


@pytest.mark.parametrize("name", ["attention_by_hand", "rotary_grouped_queries"])
def test_the_first_tensor_that_a_variable_moves_it_enlarges(name: str) -> None:
    """Queries against keys: either could have the positive sign."""
    build, shapes = NETWORKS[name]
    x = torch.randn(*shapes[0], dtype=torch.float64)
    exponents = fxenorm.analyze(build().double(), x).exponents
    signs = {name: {c for c, ids in exponents[f"{name}.weight"] if ids.shape[0] > 1} for name in "qkv"}
    assert signs == {"q": {1}, "k": {-1}, "v": {1}}


def test_scales_of_large_tensors_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no use asks for a form, a large tensor has a scale a row and a column: all rows against all columns do nothing."""
    monkeypatch.setattr("fxenorm.field.parameter_view.ENTRYWISE", 19)
    model = Net(lambda m, x: m.b(x) + (m.v * m.v).sign().sum(), b=nn.Linear(4, 2), v=nn.Parameter(torch.ones(5, 4)))
    plan = fxenorm.analyze(model.double(), torch.randn(3, 4, dtype=torch.float64))
    assert plan.num_scales == 5 + 4 - 1
    monkeypatch.setattr("fxenorm.field.parameter_view.ENTRYWISE", 20)
    assert fxenorm.analyze(model, torch.randn(3, 4, dtype=torch.float64)).num_scales == 5 * 4


def test_square_is_read_with_twice_the_exponent() -> None:
    _, plan, _ = analysed("square")
    assert {abs(c) for c, _ in plan.exponents["a.weight"]} == {1}
    assert {c for c, _ in plan.exponents["b.weight"]} == {-2}


def test_pairs_name_the_layers_that_share_channels() -> None:
    _, plan, _ = analysed("residual")
    pairs = {(pair.producer, pair.consumer): pair.channels for pair in plan.pairs}
    assert pairs[("0", "2.inner.0")] == 5 and pairs[("2.inner.0", "2.inner.2")] == 6 and pairs[("4.inner.0", "4.inner.2")] == 7
    assert pairs[("0", "5")] == pairs[("4.inner.2", "5")] == 5, "the stream joins its first writer with its last reader"
    assert ("2.inner.0", "4.inner.0") not in pairs
    names = {layer for pair in pairs for layer in pair}
    assert names == {"0", "2.inner.0", "2.inner.2", "4.inner.0", "4.inner.2", "5"}


@torch.no_grad()
@pytest.mark.parametrize("cut", ["chunk", "split", "tensor_split", "unbind"])
def test_what_is_written_into_a_part_is_read_in_the_whole(cut: str) -> None:
    """Parts that are several views at once, of which autograd allows no writing: what a gate multiplies, both layers share."""

    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        h = m.a(x)
        if cut == "unbind":
            first, _ = h.view(-1, 2, 3).unbind(1)
        else:
            first, _ = getattr(h, cut)(3 if cut == "split" else 2, 1)
        first.mul_(m.gate(x))
        return m.b(h)

    model = randomise(Net(forward, a=nn.Linear(4, 6), gate=nn.Linear(4, 3), b=nn.Linear(6, 2)).double())
    inputs = Case(lambda: model, ((9, 4),), None).inputs()
    plan = fxenorm.analyze(model, inputs)
    assert plan.num_scales == 6 + 3
    assert soundness_error(model, plan, inputs) <= TOLERANCE


def _written_places(h: torch.Tensor) -> torch.Tensor:
    """The first place depends on the data."""
    places = torch.arange(6)
    places[:1] = (h[0, :1] > 0).long()
    return h[:, places]


@pytest.mark.parametrize("function", [lambda h: h[:, torch.randperm(6)], _written_places], ids=["drawn", "written"])
def test_places_that_change_from_call_to_call_are_not_known(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Whatever they are at the analysis: all channels carry one scale."""
    model = Net(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    assert fxenorm.analyze(model, torch.randn(9, 4)).num_scales == 1


def _repeated(m: Net, x: torch.Tensor) -> torch.Tensor:
    """Each channel two thousand times, side by side and in turn."""
    h = F.relu(m.a(x))
    return m.b(h.repeat_interleave(2000, 1) + m.c(x)) + m.d(h.repeat(1, 2000))


def test_thousands_of_repeated_channels_carry_the_scales_of_those_that_are_repeated() -> None:
    layers = {
        name: nn.Linear(*sizes) for name, sizes in (("a", (4, 6)), ("b", (12_000, 2)), ("c", (4, 12_000)), ("d", (12_000, 2)))
    }
    model = randomise(Net(_repeated, **layers).double())
    inputs = Case(lambda: model, ((9, 4),), None).inputs()
    plan = fxenorm.analyze(model, inputs)
    assert plan.num_scales == 6
    assert soundness_error(model, plan, inputs) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_large_systems_are_solved_as_small_ones_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repetitions are looked for in large systems only, and leave the answer as it is."""
    model, plan, inputs = analysed(name)
    monkeypatch.setattr("fxenorm.field.equations._LARGE", 1)
    monkeypatch.setattr("fxenorm.symmetry.repeated_rows.LARGE", 1)
    found = find_symmetry(trace_model(model, inputs), model)
    assert found.num_scales == plan.num_scales and found.exponents.keys() == plan.exponents.keys()
    assert [group.stop for group in map(lambda g: g.variables, plan.groups)] == found.group_starts[1:].tolist()
    for tensor, terms in plan.exponents.items():
        assert [(c, ids.tolist()) for c, ids in found.exponents[tensor]] == [(c, ids.tolist()) for c, ids in terms]


@pytest.mark.parametrize("name", BARRIERS)
def test_activation_without_a_law_is_a_reported_barrier(name: str) -> None:
    activation, operator = BARRIERS[name]
    model = randomise(nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double())
    inputs = Case(lambda: model, ((9, 4),), None).inputs()
    plan = fxenorm.analyze(model, inputs)
    assert plan.num_scales == 7
    assert [barrier.variables for barrier in plan.barriers if operator in barrier.operator and barrier.variables] == [5]
    assert soundness_error(model, plan, inputs) <= TOLERANCE
    state = state_of(model)
    plan.balance()
    assert_same_state(model, state, ["0.weight", "0.bias"])


def test_operator_without_a_rule_is_a_reported_barrier() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    model = nn.Sequential(nn.Linear(4, 5), Odd(), nn.Linear(5, 3))
    plan = fxenorm.analyze(model, torch.randn(2, 4))
    assert plan.num_scales == 0
    (barrier,) = [barrier for barrier in plan.barriers if not barrier.known]
    assert "bessel_j0" in barrier.operator and barrier.variables == 5
    assert "test_structures.py" in barrier.source, "the user's own source line"
    assert "bessel_j0" in str(plan)
