"""Models whose forward calls functions of its own: attention with its own score, derivatives, branches no rule knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import ExampleInputsError
from fxenorm.trace import higher_order

from ..completeness_harness import analysed, soundness
from ..completeness_operators import NETWORKS, in_plain_python
from ..releases import need, needs_flex_attention
from ..zoo_base import Net

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))


def _attention(score: Any, **more: Any) -> nn.Module:
    """Two query heads of four; values pass through attention, queries and keys undo each other."""
    from torch.nn.attention.flex_attention import flex_attention

    def forward(m: Net, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        y = flex_attention(q, k, v, score_mod=None if score is None else lambda *at: score(m, *at), **more)
        return m.o(y.transpose(1, 2).flatten(2))  # type: ignore[union-attr]

    heads = 4 if more.get("enable_gqa") else 8
    layers = {"q": nn.Linear(6, 8), "k": nn.Linear(6, heads), "v": nn.Linear(6, heads), "o": nn.Linear(8, 3)}
    return Net(forward, **layers)


SCORES = {
    "none": (None, 16),
    "by_distance": (lambda m, s, b, h, i, j: s * 0.5 - (i - j) * (h + 1), 16),
    "capped": (lambda m, s, b, h, i, j: torch.tanh(s / 20) * 20, 16),
    "causal": (lambda m, s, b, h, i, j: torch.where(i >= j, s, -torch.inf), 16),
    "a_temperature_a_head": (lambda m, s, b, h, i, j: s * m.heat[h], 18),
}


@needs_flex_attention
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCORES)
def test_attention_with_a_score_of_its_own(name: str) -> None:
    score, scales = SCORES[name]
    model = _attention(score)
    model.heat = nn.Parameter(torch.ones(2))
    model.requires_grad_(False)  # on CPUs this attention has no gradient
    plan = fxenorm.analyze(model, TOKENS)
    assert plan.num_scales == scales and plan.exact
    assert plan.verify(TOKENS)


@needs_flex_attention
@pytest.mark.filterwarnings("ignore")
def test_shared_keys_in_attention_with_a_score_of_its_own() -> None:
    model = _attention(SCORES["by_distance"][0], enable_gqa=True)
    assert fxenorm.analyze(model, TOKENS).num_scales == 4 + 4


def test_a_model_that_differentiates_inside_forward_is_left_as_it_was_and_verified() -> None:
    def forward(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.requires_grad_(True)
        u = m.b(F.relu(m.a(x)))
        return u, torch.autograd.grad(u.sum(), x, create_graph=True)[0]

    model, x = Net(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3)), X.clone()
    plan = fxenorm.analyze(model, x)
    assert plan.num_scales == 8 and plan.verify(x)
    assert not x.requires_grad and x.grad is None and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["cond_of_two_scales", "vmap", "scan", "sparse_mm"])
def test_these_models_hold_at_a_second_size(name: str) -> None:
    need(name)
    build, shapes = NETWORKS[name]
    plan = fxenorm.analyze(build(), tuple(torch.randn(shape) for shape in shapes))
    assert plan.exact and not plan.barriers


@pytest.mark.parametrize(("name", "scales"), [("scan", 5), ("map", 10)])
def test_a_loop_too_long_to_be_written_out_is_held_to_one_field_a_step(
    name: str, scales: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(name)
    monkeypatch.setattr(higher_order, "_LONGEST", 0)
    build, shapes = NETWORKS[name]
    inputs = tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)
    found = analysed(build, inputs)
    assert found.symmetry.num_scales == scales
    with in_plain_python():
        assert soundness(found, inputs, "eval") <= 1e-10


def test_an_operator_that_calls_functions_and_is_not_known_stops_what_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(higher_order._EXPANDERS, "cond")
    build, shapes = NETWORKS["cond_of_two_layers"]
    found = analysed(build, tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes))
    (stopped,) = [barrier for barrier in found.symmetry.barriers if barrier.operator == "cond"]
    assert not stopped.known and "functions of its own" in stopped.reason
    assert stopped.variables > 0 and found.symmetry.num_scales == 0


@pytest.mark.parametrize("name", ["rnn", "lstm", "bags_weighted", "fourier_operator", "sparse_of_the_inputs", "vmap"])
def test_a_step_and_a_balance_keep_the_function(name: str) -> None:
    build, shapes = NETWORKS[name]
    model = build()
    model.double()  # complex weights are double already
    inputs = tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)
    plan = fxenorm.analyze(model, inputs)
    before, norm = model(*inputs), plan.norm()
    plan.step()
    assert plan.norm() <= norm * (1 + 1e-12)
    plan.balance()
    assert torch.allclose(model(*inputs), before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("data_dependent", [False, True])
def test_a_hidden_axis_that_forward_leaves_open_is_closed(data_dependent: bool) -> None:
    """An open level would break all that comes after, the user's training included."""

    def forward(m: Net, x: Tensor) -> Tensor:
        if data_dependent and x.sum().item() > 1e9:
            return x
        torch._C._functorch._vmap_increment_nesting(4, "error")
        torch._C._functorch._vmap_increment_nesting(2, "error")
        raise KeyError("no such expert")

    layer = nn.Linear(6, 3)
    with pytest.raises(ExampleInputsError, match="no such expert"):
        fxenorm.analyze(Net(forward, layer=layer), X)
    assert not torch._C._functorch.get_interpreter_stack()
    layer(X).sum().backward()


@pytest.mark.parametrize("name", ["vmap_in_vmap", "vmap_with_a_constant", "slope_of_each_sample"])
def test_an_analysis_leaves_no_hidden_axis_open(name: str) -> None:
    build, [(_, width)] = NETWORKS[name]
    assert fxenorm.analyze(build(), X[:, :width]).num_scales
    assert not torch._C._functorch.get_interpreter_stack()


def test_branches_are_followed_beside_a_compiled_part() -> None:
    """A compiled part runs as it was written; a branch still needs the compiler, which stays the user's afterwards."""

    def forward(m: Net, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda h: m.b(h.relu()), lambda h: -m.b(h.relu()), (m.compiled(x),))

    compiled = torch.compile(nn.Linear(6, 8), backend="eager")
    before = torch.compile
    model = Net(forward, a=compiled, b=nn.Linear(8, 3))
    model.__dict__["compiled"] = compiled
    for _ in range(2):  # the compiler may be imported on the way
        plan = fxenorm.analyze(model, X)
        assert plan.num_scales == 8 and plan.exact and not plan.barriers
    assert torch.compile is before
