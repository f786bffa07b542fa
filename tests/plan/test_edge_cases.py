"""Dead channels, frozen parameters, extreme values, nothing to do: no NaN, no crash, and a reason for what is held."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.errors import FxenormWarning

from ..helpers import (
    TOLERANCE,
    assert_finite,
    assert_same_state,
    generator,
    mlp,
    outputs,
    randomise,
    relative_difference,
    soundness_error,
    state_of,
    tensors,
)
from ..zoo import Net, Residual

INPUTS = (torch.randn(6, 4, dtype=torch.float64, generator=generator(0)),)


def network(bias: bool = True) -> nn.Sequential:
    """Three layers with random weights."""
    return randomise(mlp(4, 5, 6, 3, bias=bias).double(), seed=1)


def held_variables(plan: Any) -> dict[int, str]:
    """By variable, why it is held."""
    return {variable: item.reason for item in plan.held for variable in item.variables}


@torch.no_grad()
def zero(tensor: torch.Tensor) -> None:
    """Sets a view of a weight to zero."""
    tensor.zero_()


DEAD: dict[str, Callable[[nn.Sequential], list[torch.Tensor]]] = {
    "row": lambda model: [model[0].weight[2], model[0].bias[2]],
    "row_but_not_its_bias": lambda model: [model[0].weight[2]],
    "column": lambda model: [model[2].weight[:, 2]],
    "row_and_column": lambda model: [model[0].weight[2], model[2].weight[:, 2]],
}


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("method", ["step", "balance"])
def test_dead_channel_is_held_and_the_others_move(method: str, dead: str, p: float) -> None:
    model = network()
    for part in DEAD[dead](model):
        zero(part)
    plan = fxenorm.analyze(model, INPUTS, p=p)
    assert plan.num_scales == 5 + 6, "a property of the graph, not of the weights"
    held = held_variables(plan)
    side = "shrink as it grows are zero" if dead == "column" else "grow with it are zero"
    assert len(held) == 1 and next(iter(held.values())).startswith("dead: all weights that " + side)
    before, state = outputs(model, INPUTS), state_of(model)
    getattr(plan, method)()
    assert_finite(model)
    assert relative_difference(before, outputs(model, INPUTS)) <= TOLERANCE
    # the rest of layer 0 moves, its dead channel does not
    moved = (model[0].bias != state["0.bias"]).tolist()
    assert moved == [True, True, False, True, True]
    assert soundness_error(model, plan, INPUTS) <= TOLERANCE


def test_held_is_read_from_the_present_weights() -> None:
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    assert plan.held == ()
    zero(model[0].weight[1])
    assert len(held_variables(plan)) == 1
    with torch.no_grad():
        model[0].weight[1] = 1.0
    assert plan.held == ()


@pytest.mark.parametrize("zeroed", ["0", "2", "4"])
def test_layer_of_zeros_is_held(zeroed: str) -> None:
    model = network()
    for parameter in model.get_submodule(zeroed).parameters():
        zero(parameter)
    plan = fxenorm.analyze(model, INPUTS)
    expected = {"0": 5, "2": 5 + 6, "4": 6}[zeroed]
    assert len(held_variables(plan)) == expected
    plan.step(cycles=3)
    with pytest.warns(FxenormWarning, match="moved nothing.*dead") if zeroed == "2" else nullcontext():
        result = plan.balance()
    assert_finite(model)
    assert sum(len(item.variables) for item in result.held) == expected
    assert "held" in str(result)


@pytest.mark.parametrize("last_gamma_zero", [False, True])
def test_zero_initialised_residual_branch(last_gamma_zero: bool) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(zero_init_residual=last_gamma_zero)
    inputs = (torch.randn(2, 3, 32, 40, generator=generator(1)),)
    plan = fxenorm.analyze(model, inputs, modes="eval")
    before = outputs(model, inputs)
    plan.step(cycles=3)
    plan.balance()
    assert_finite(model)
    assert relative_difference(before, outputs(model, inputs)) <= 1e-4


NOTHING_TO_DO: dict[str, Callable[[], nn.Module]] = {
    "one_layer": lambda: nn.Linear(4, 3),
    "one_layer_in_a_sequential": lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU()),
    "no_parameters": lambda: nn.Sequential(nn.ReLU(), nn.Flatten()),
    "only_barriers": lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)),
    "identity": nn.Identity,
    "unused_parameter": lambda: Net(lambda m, x: m.a(x), a=nn.Linear(4, 3), unused=nn.Linear(7, 7)),
}


@pytest.mark.parametrize("name", NOTHING_TO_DO)
def test_model_without_any_pair(name: str) -> None:
    model = NOTHING_TO_DO[name]().double()
    plan = fxenorm.analyze(model, INPUTS)
    assert plan.num_scales == 0 and plan.groups == () and plan.pairs == () and plan.held == ()
    state = state_of(model)
    with pytest.warns(FxenormWarning, match=r"step\(\) moved nothing: no channel is free") as seen:
        plan.step()
    assert [one.filename for one in seen] == [__file__]
    plan.step()
    plan.rescale(torch.zeros(0))
    result = plan.balance()
    assert result.converged and result.log_scales.shape == (0,)
    assert_same_state(model, state)
    assert plan.norm().item() == 0.0 and plan.imbalance().item() == 0.0
    assert str(plan) and str(result)


def test_one_sided_scales_are_held() -> None:
    """A scale that the norm removes again: nothing grows when it falls, so there is no minimum."""
    model = Net(lambda m, x: (h := m.a(x)) / h.norm(dim=1, keepdim=True), a=nn.Linear(4, 5)).double()
    plan = fxenorm.analyze(model, INPUTS)
    assert plan.num_scales == 1
    assert "one-sided: no counted weight shrinks" in held_variables(plan)[0]
    state = state_of(model)
    with pytest.warns(FxenormWarning, match="moved nothing.*one-sided"):
        plan.step()
    plan.balance()
    assert_same_state(model, state)
    plan.rescale(torch.tensor([0.5]))
    torch.testing.assert_close(model.a.weight.detach(), state["a.weight"] * math.exp(0.5))


def test_minimum_that_is_not_attained_does_no_harm() -> None:
    """A channel that only its own block reads: F falls for ever as the channel shrinks; it is held, or said not to converge."""
    stem, head = nn.Linear(4, 2, bias=False), nn.Linear(2, 3)
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    model = randomise(nn.Sequential(stem, Residual(first, nn.ReLU(), second), nn.ReLU(), head).double())
    with torch.no_grad():
        first.weight.copy_(torch.eye(2))
        second.weight.copy_(torch.eye(2))
        head.weight[:, 0] = 0
    plan = fxenorm.analyze(model, INPUTS)
    assert plan.num_scales == 4
    before, norm = outputs(model, INPUTS), plan.norm().item()
    plan.step(cycles=100)
    result = plan.balance(max_iterations=200)
    assert not result.converged or any("not attained" in item.reason for item in result.held)
    assert_finite(model)
    assert plan.norm().item() <= norm
    assert relative_difference(before, outputs(model, INPUTS)) <= TOLERANCE


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weight_that_is_not_finite_holds_its_channels(value: float) -> None:
    model = network()
    with torch.no_grad():
        model[2].weight[3, 1] = value
    plan = fxenorm.analyze(model, INPUTS)
    state = state_of(model)
    plan.step()
    plan.balance()
    held = held_variables(plan)
    assert len(held) == 2 and all("finite" in reason for reason in held.values())
    for name, tensor in tensors(model).items():
        assert torch.isfinite(tensor).equal(torch.isfinite(state[name])), f"{name}: NaN or inf has spread"
    assert torch.equal(model[0].weight[1], state["0.weight"][1]) and torch.equal(model[4].weight[:, 3], state["4.weight"][:, 3])
    assert not torch.equal(model[0].weight[0], state["0.weight"][0]), "the other channels move"


@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
@pytest.mark.parametrize("method", ["step", "balance"])
def test_values_whose_powers_leave_the_range_of_the_type(method: str, magnitude: float) -> None:
    """float32: the square of 1e30 is inf and that of 1e-30 is 0, their norms are neither."""
    model = network(bias=False).float()
    with torch.no_grad():
        model[0].weight[2] *= magnitude
        model[2].weight[:, 2] /= magnitude
    inputs = (INPUTS[0].float(),)
    plan = fxenorm.analyze(model, inputs)
    before = outputs(model, inputs)
    assert plan.held == ()
    if method == "step":
        plan.step(cycles=4)
    else:
        assert plan.balance().converged
    assert_finite(model)
    assert relative_difference(before, outputs(model, inputs)) <= 1e-5
    assert model[0].weight[2].abs().max().item() == pytest.approx(1, abs=30), "brought back"


def test_frozen_parameters_among_others_stay_bit_identical() -> None:
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    model[2].weight.requires_grad_(False)
    state = state_of(model)
    held = held_variables(plan)
    assert len(held) == 5 + 6 and all("requires_grad" in reason for reason in held.values())
    before = outputs(model, INPUTS)
    plan.step()
    plan.balance()
    # All channels in front of the frozen weight and behind it may still move together: that one scale is free.
    assert len(plan.held) == 5 + 6 - 1
    assert_same_state(model, state, ["2.weight"])
    assert not torch.equal(model[0].weight, state["0.weight"])
    assert relative_difference(before, outputs(model, INPUTS)) < 1e-6
    model[2].weight.requires_grad_(True)
    model.load_state_dict(state)
    model[4].weight.requires_grad_(False)
    assert len(held_variables(plan)) == 6, "picked up without a new trace"
    plan.step()
    plan.balance()
    assert_same_state(model, state, ["4.weight", "4.bias", "2.bias"])
    assert not torch.equal(model[0].weight, state["0.weight"])
    model[4].weight.requires_grad_(True)
    assert plan.held == ()


def test_frozen_bias_holds_its_channels() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    state = state_of(model)
    plan = fxenorm.analyze(model, INPUTS)
    plan.step()
    assert_same_state(model, state, ["0.weight", "0.bias"])
    assert not torch.equal(model[4].weight, state["4.weight"])


def test_inference_model_is_balanced() -> None:
    model = network().requires_grad_(False)
    plan = fxenorm.analyze(model, INPUTS)
    before = outputs(model, INPUTS)
    assert plan.held == ()
    assert plan.balance().converged and plan.imbalance().item() <= 1e-6
    assert relative_difference(before, outputs(model, INPUTS)) <= TOLERANCE
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_rescale_accepts_held_variables() -> None:
    model = network()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model[0].weight.requires_grad_(True)
    zero(model[2].weight[:, 1])
    plan = fxenorm.analyze(model, INPUTS)
    assert len(held_variables(plan)) == 11
    state = state_of(model)
    plan.rescale(torch.ones(plan.num_scales))
    torch.testing.assert_close(model[0].weight.detach(), state["0.weight"] * math.e)


@pytest.mark.parametrize(
    ("dtype", "scales"), [(torch.bfloat16, "auto"), (torch.float16, "auto"), (torch.float64, "exact")], ids=str
)
def test_sixteen_bit_weights_move_by_powers_of_two_and_keep_every_bit(dtype: torch.dtype, scales: Any) -> None:
    """After several cycles in one call, after many steps, after `balance`, and after its undoing; exact scales are others."""
    model = network()
    with torch.no_grad():
        model[0].weight *= 8
        model[4].weight /= 8
    model = model.to(dtype)
    inputs = (INPUTS[0].to(dtype),)
    plan = fxenorm.analyze(model, inputs, scales=scales)
    before, state = outputs(model, inputs), state_of(model)

    def look() -> None:
        difference = relative_difference(before, outputs(model, inputs))
        assert difference <= TOLERANCE if scales == "exact" else difference == 0.0
        assert not torch.equal(model[0].weight, state["0.weight"]), "control: something moved"
        exponents = [(tensors(model)[name].double() / state[name].double()).log2() for name in plan.exponents]
        assert all(torch.equal(e, e.round()) for e in exponents) is (scales != "exact")

    plan.step(cycles=3)
    look()
    for _ in range(20):
        plan.step()
    result = plan.balance()
    assert result.norm_after <= result.norm_before
    look()
    plan.rescale(-result.log_scales)
    look()


@pytest.mark.parametrize("backend", ["compiled", "eager"])
@pytest.mark.parametrize("cycles", [1, 3])
@pytest.mark.parametrize("solver", ["jacobi", "gauss-seidel"])
@pytest.mark.parametrize(("scales", "most"), [("exact", 0.25), ("pow2", 0.75)])
def test_largest_step_can_be_limited(backend: Any, cycles: int, solver: Any, scales: Any, most: float) -> None:
    """Of a call, however many cycles it has; in powers of two, to the octaves that are within."""
    model = network()
    with torch.no_grad():
        model[0].weight *= 1e4
    plan = fxenorm.analyze(model, INPUTS, max_log_scale=most, backend=backend, solver=solver, scales=scales)
    saved = state_of(model)
    before = outputs(model, INPUTS)
    plan.step(cycles=cycles)
    moved = (model[0].weight.detach() / saved["0.weight"]).log().abs()
    assert moved.max().item() == pytest.approx(math.log(2.0) if scales == "pow2" else most)
    assert relative_difference(before, outputs(model, INPUTS)) <= TOLERANCE


def test_balance_names_the_limit_that_stopped_it() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight *= 1e4
    result = fxenorm.analyze(model, INPUTS, max_log_scale=0.5).balance()
    assert not result.converged and result.log_scales.abs().max() <= 0.5 and result.imbalance_after > 1.0
    assert result.held and all("max_log_scale" in item.reason for item in result.held)
    stopped = {variable for item in result.held for variable in item.variables}
    assert stopped == set((result.log_scales.abs() == 0.5).nonzero().flatten().tolist())


def test_exclude_forces_exponents_to_zero() -> None:
    model = network()
    assert fxenorm.analyze(model, INPUTS, exclude="4.*").num_scales == 5
    assert fxenorm.analyze(model, INPUTS, exclude=["4"]).num_scales == 5, "a module's name"
    assert fxenorm.analyze(model, INPUTS, exclude=["0.weight", "4.weight"]).num_scales == 0
    plan = fxenorm.analyze(model, INPUTS, exclude="2.weight")
    assert "2.weight" not in plan.exponents
    assert plan.num_scales == 1, "all of layer 0 against all of layer 4, by one common factor"
    assert soundness_error(model, plan, INPUTS) <= TOLERANCE


def test_exclude_that_matches_nothing_is_said() -> None:
    with pytest.warns(fxenorm.FxenormWarning, match="nowhere"):
        assert fxenorm.analyze(network(), INPUTS, exclude="nowhere.*").num_scales == 11


def test_balance_last_false_holds_what_feeds_the_output() -> None:
    model = network()
    plan = fxenorm.analyze(model, INPUTS, balance_last=False)
    assert plan.num_scales == 11
    held = held_variables(plan)
    assert len(held) == 6 and all("balance_last" in reason for reason in held.values())
    state = state_of(model)
    plan.balance()
    assert_same_state(model, state, ["4.weight", "4.bias", "2.bias"])
    assert not torch.equal(model[0].weight, state["0.weight"])


@pytest.mark.parametrize("modes", ["eval", "train", "both"])
def test_modes_cover_what_they_say(modes: str) -> None:
    """A head that exists in train mode only reads the trunk: eval alone has more freedom."""

    def forward(m: nn.Module, x: torch.Tensor) -> Any:
        h = torch.relu(m.a(x))
        return (m.b(h), torch.sigmoid(h)) if m.training else m.b(h)

    model = randomise(Net(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 3)).double())
    plan = fxenorm.analyze(model, INPUTS, modes=modes)
    assert set(plan.modes) == ({"eval", "train"} if modes == "both" else {modes})
    assert plan.num_scales == (5 if modes == "eval" else 0)
    for mode in plan.modes:
        assert soundness_error(model, plan, INPUTS, mode) <= TOLERANCE
    if modes == "eval":
        assert soundness_error(model, plan, INPUTS, "train") > 1e-3, "control: eval alone does not hold in train mode"


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_weights_made_in_inference_mode_are_rescaled(backend: str) -> None:
    with torch.inference_mode():
        model = network()
    assert model[0].weight.is_inference()
    plan = fxenorm.analyze(model, INPUTS, backend=backend)
    before = outputs(model, INPUTS)
    plan.rescale(torch.linspace(-1, 1, plan.num_scales, dtype=torch.float64))
    plan.balance()
    assert float(plan.imbalance()) <= 1e-6 and relative_difference(before, outputs(model, INPUTS)) <= TOLERANCE
