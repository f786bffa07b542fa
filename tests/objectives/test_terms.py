"""Terms: what they are by definition, their derivatives, how they compose, and where balance takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm import masses
from fxenorm.errors import OptionError
from fxenorm.objectives import Masses, Normalised, Term, Weights

from ..helpers import TOLERANCE, generator, log_factors, mlp, outputs, randomise, relative_difference, state_of
from ..objective_models import CASES, TERMS, X, by_definition, chain

PAIRS = [(case, term) for case in CASES for term in TERMS if CASES[case].has_paths or "path" not in term]
PLAIN = [(case, term) for case, term in PAIRS if term not in ("steep weights", "layer weights", "normalised sum", "mixture")]


def zeros(plan: fxenorm.Plan) -> torch.Tensor:
    return torch.zeros(plan.num_scales, dtype=torch.float64)


def drawn(plan: fxenorm.Plan, seed: int, size: float = 0.5) -> torch.Tensor:
    return size * torch.randn(plan.num_scales, dtype=torch.float64, generator=generator(seed))


@pytest.mark.parametrize(("case", "name"), PLAIN)
def test_value_and_derivatives_are_those_of_the_definition(case: str, name: str) -> None:
    """By autograd of the sum over entries of m exp(q a . s), from exponents and masses alone."""
    model = CASES[case].make()
    plan = CASES[case].plan(model)
    term = TERMS[name](model, CASES[case])
    function, definition = plan.objective(term), by_definition(plan, term)
    at, direction = drawn(plan, 4).requires_grad_(), drawn(plan, 5)
    expected = definition(at)
    (slope,) = torch.autograd.grad(expected, at, create_graph=True)
    (bent,) = torch.autograd.grad(slope @ direction, at)
    value, gradient = function.value_and_gradient(at.detach())
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, slope.detach(), rtol=1e-8, atol=1e-10 * float(value.abs()))
    times = function.curvature_times(at.detach(), direction)
    torch.testing.assert_close(times, bent, rtol=1e-7, atol=1e-9 * float(bent.abs().max()))


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_balance_reaches_the_predicted_minimum_of_each_term(case: str, name: str) -> None:
    model = CASES[case].make()
    plan = CASES[case].plan(model)
    term, before = TERMS[name](model, CASES[case]), outputs(model, CASES[case].inputs)
    result = plan.balance(objective=term)
    assert result.converged and result.objective_after <= result.objective_before
    assert relative_difference(before, outputs(model, CASES[case].inputs)) <= TOLERANCE
    value, gradient = plan.objective(TERMS[name](model, CASES[case])).value_and_gradient(zeros(plan))
    assert float(value) == pytest.approx(result.objective_after, rel=1e-6)
    moved = gradient.clone()
    for item in result.held:
        variables = list(item.variables)
        moved[variables] = 0.0 if not item.coefficients else moved[variables] - moved[variables].mean()
    assert float(moved.abs().max()) <= 1e-6 * abs(float(value))
    # From any rescaling of the start the same weights are reached.
    reached = state_of(model)
    plan.rescale(
        drawn(plan, 6, 0.3).index_fill(0, torch.tensor([v for h in result.held for v in h.variables], dtype=torch.int64), 0.0)
    )
    again = plan.balance(objective=TERMS[name](model, CASES[case]))
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, reached[key], rtol=1e-4, atol=1e-7)
    assert again.objective_after == pytest.approx(result.objective_after, rel=1e-8)


@pytest.mark.parametrize("name", ["all parameters", "gradients", "normalised fisher", "normalised path"])
def test_the_minimum_is_that_of_another_solver_on_the_exponents(name: str) -> None:
    """By L-BFGS on the definition, which knows nothing of this package but ``plan.exponents``."""
    case = CASES["residual"]
    model = case.make()
    plan = case.plan(model)
    term = TERMS[name](model, case)
    definition, at = by_definition(plan, term), zeros(plan).requires_grad_()
    result = plan.balance(objective=term)
    free = torch.ones(plan.num_scales, dtype=torch.bool)
    free[[variable for item in result.held for variable in item.variables]] = False
    solver = torch.optim.LBFGS([at], lr=1, max_iter=400, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        value = definition(torch.where(free, at, 0.0)).log()
        value.backward()
        return value

    solver.step(closure)
    least = float(definition(torch.where(free, at, 0.0)).detach())
    assert result.objective_after == pytest.approx(least, rel=1e-9)
    torch.testing.assert_close(result.log_scales[free], at.detach()[free], rtol=0, atol=1e-4)


def test_the_norm_as_a_term_is_what_balance_minimises_by_itself() -> None:
    for options in ({}, {"p": 1.5, "c": 1.2}, {"biases": "count"}, {"c": "adaptive"}):
        plans = [CASES["residual"].plan(CASES["residual"].make(), **options) for _ in range(2)]
        expected, found = plans[0].balance(tol=1e-9), plans[1].balance(objective=Weights(), tol=1e-9)
        torch.testing.assert_close(found.log_scales, expected.log_scales, rtol=0, atol=1e-7)
        p = plans[0].options.p
        assert found.objective_before ** (1 / p) == pytest.approx(expected.norm_before)
        assert found.imbalance_before == pytest.approx(expected.imbalance_before)


@pytest.mark.parametrize("batchnorm", ["affine", "folded", "frozen"])
def test_every_way_with_batchnorm_has_terms(batchnorm: str) -> None:
    case = CASES["residual"]
    model = case.make()
    plan = case.plan(model, batchnorm=batchnorm)
    before = outputs(model, case.inputs)
    result = plan.balance(objective=Weights() + 0.1 * Normalised(masses.fisher(model, case.losses)))
    assert result.converged and result.objective_after < result.objective_before
    assert relative_difference(before, outputs(model, case.inputs)) <= TOLERANCE


def test_terms_are_values_that_print_as_they_are_written() -> None:
    tensors = {"0.weight": torch.ones(8, 6, dtype=torch.float64), "2.weight": torch.ones(7, 8, dtype=torch.float64)}
    term = Weights(p=2) + 0.3 * (Masses(tensors, power=-2) + Normalised(Weights(gains=False))) * 2
    assert repr(term) == "Weights(p=2) + 0.6 * Masses(2 tensors, power=-2) + 0.6 * Normalised(Weights(gains=False))"
    assert Weights(p=2) == Weights(p=2) != Weights(p=2, c=1.1)
    with pytest.raises(AttributeError):
        Weights().p = 3.0  # type: ignore[misc]
    assert f"(objective: {term!r})" in str(chain_plan().balance(objective=term))


def chain_plan(**options: Any) -> fxenorm.Plan:
    return CASES["mlp"].plan(chain(), **options)


# ---------------------------------------------------------------- gains


def norms(plan: fxenorm.Plan, variables: list[int]) -> list[float]:
    """The norms of all entries that shrink with each variable: the columns behind a normalisation."""
    weights = {name: tensor for name, tensor in plan.model.state_dict().items() if name in plan.exponents and tensor.ndim == 2}
    found = []
    for variable in variables:
        total = 0.0
        for name, tensor in weights.items():
            one = torch.zeros(plan.num_scales, dtype=torch.float64)
            one[variable] = 1.0
            moved = log_factors(plan.exponents[name], one, tensor.shape)
            total += float((tensor.double() ** 2)[moved < 0].sum())
        found.append(total)
    return found


@pytest.mark.parametrize("dead", [False, True])
def test_without_gains_columns_behind_a_norm_get_equal_norms(dead: bool) -> None:
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).double()
    randomise(model, (X,), seed=5)
    if dead:
        with torch.no_grad():
            model[1].weight[:, 2] = 0.0
    plan = fxenorm.analyze(model, X)
    (group,) = [group for group in plan.groups if group.kind == "norm"]
    result = plan.balance(objective=Weights(gains=False), tol=1e-10)
    own = [variable for variable in group.variables if not (dead and variable - group.variables.start == 2)]
    (mean,) = [item for item in result.held if item.coefficients]
    assert mean.variables == tuple(own) and set(mean.coefficients) == {1} and mean.reason.startswith("one-sided")
    single = [item for item in result.held if not item.coefficients]
    assert [item.variables for item in single] == ([(group.variables.start + 2,)] if dead else [])
    assert result.converged and float(result.log_scales[own].sum()) == pytest.approx(0.0, abs=1e-9)
    columns = norms(plan, own)
    assert max(columns) == pytest.approx(min(columns), rel=1e-6)
    assert float(result.log_scales[own].abs().max()) > 0.01
    plan.rescale(-result.log_scales)
    boxed = plan.balance(objective=Weights(gains=False), tol=1e-10, max_log_scale=5.0)
    torch.testing.assert_close(boxed.log_scales, result.log_scales, rtol=0, atol=1e-7)


def test_with_gains_the_same_group_is_balanced_as_a_whole() -> None:
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).double()
    plan = fxenorm.analyze(randomise(model, (X,), seed=5), X)
    assert not plan.balance(objective=Weights()).held


# ---------------------------------------------------------------- where there is a minimum


def test_a_direction_along_which_a_term_falls_for_ever_is_held() -> None:
    model = chain()
    plan = CASES["mlp"].plan(model)
    first = Masses({"0.weight": model[0].weight.detach().abs()}, power=2)  # type: ignore[index, union-attr, operator]
    with pytest.warns(fxenorm.FxenormWarning, match="balance\\(\\) moved nothing"):
        result = plan.balance(objective=first)
    assert sum(item.count for item in result.held) == plan.num_scales and not result.log_scales.any()
    assert {item.reason.partition(":")[0] for item in result.held} == {"one-sided"}


def test_a_box_makes_it_finite() -> None:
    model = chain()
    plan = CASES["mlp"].plan(model)
    first = Masses({"0.weight": model[0].weight.detach().abs()}, power=2)  # type: ignore[index, union-attr, operator]
    result = plan.balance(objective=first, max_log_scale=0.25)
    torch.testing.assert_close(result.log_scales[:8], torch.full((8,), -0.25, dtype=torch.float64))
    assert not result.log_scales[8:].any() and result.converged
    assert result.objective_after == pytest.approx(result.objective_before * 2.718281828 ** (-0.5), rel=1e-6)
    assert any("max_log_scale" in item.reason for item in result.held)


def test_the_minimum_in_a_box_is_where_only_the_box_stops_it() -> None:
    """The derivative is zero inside the box, and points outwards at its walls."""
    for limit in (0.05, 0.2, 0.6):
        case = CASES["llama"]
        model = case.make()
        plan = case.plan(model)
        result = plan.balance(objective=Weights(p=3), max_log_scale=limit)
        _, gradient = plan.objective(Weights(p=3)).value_and_gradient(zeros(plan))
        scales = result.log_scales
        assert float(scales.abs().max()) <= limit + 1e-12 and result.objective_after < result.objective_before
        scale = float(gradient.abs().max())
        assert bool((gradient[scales >= limit - 1e-9] <= 1e-6 * scale).all())
        assert bool((gradient[scales <= 1e-9 - limit] >= -1e-6 * scale).all())
        assert float(gradient[scales.abs() < limit - 1e-9].abs().max()) <= 1e-5 * max(scale, 1.0)


def test_maximise_ends_at_a_vertex_of_the_box_and_no_neighbour_is_higher() -> None:
    model = chain()
    case = CASES["mlp"]
    plan = case.plan(model)
    term = masses.gradients(model, lambda model: case.losses(model).mean())
    function, before = plan.objective(term), outputs(model, (X,))
    result = plan.balance(objective=term, maximise=True, max_log_scale=0.3)
    free = torch.ones(plan.num_scales, dtype=torch.bool)
    free[[variable for item in result.held for variable in item.variables]] = False
    assert result.converged and bool((result.log_scales[free].abs() == 0.3).all())
    assert result.objective_after > result.objective_before
    value = float(function.value_and_gradient(result.log_scales)[0])
    assert value == pytest.approx(result.objective_after)
    _, gradient = function.value_and_gradient(result.log_scales)
    assert bool((gradient[free] * result.log_scales[free] >= 0).all())
    assert relative_difference(before, outputs(model, (X,))) <= TOLERANCE
    norm = masses.gradients(model, lambda model: case.losses(model).mean())
    assert sum(float(one.sum()) for one in norm.tensors.values()) == pytest.approx(value, rel=1e-9)


def test_a_normalised_term_meets_one_that_falls() -> None:
    """The normalised norm rises along every direction in which its entries do not all grow alike: nothing is held."""
    model = chain()
    plan = CASES["mlp"].plan(model)
    first = Masses({"0.weight": model[0].weight.detach().abs()}, power=2)  # type: ignore[index, union-attr, operator]
    result = plan.balance(objective=first + Normalised(Weights()))
    assert result.converged and not result.held
    moved = Masses({"0.weight": first.tensors["0.weight"] * (2 * result.log_scales[:8, None]).exp()}, power=2)
    _, gradient = plan.objective(moved + Normalised(Weights())).value_and_gradient(zeros(plan))
    assert float(gradient.abs().max()) < 1e-6


def test_an_entry_that_is_not_finite_holds_what_moves_it_and_nothing_else() -> None:
    expected = chain_plan().balance(objective=Weights())
    for broken in (float("nan"), float("inf")):
        model = chain()
        with torch.no_grad():
            model[0].weight[3, 1] = broken  # type: ignore[index, union-attr, operator]
        plan = CASES["mlp"].plan(model)
        result = plan.balance(objective=Weights())
        assert [item.variables for item in result.held] == [(3,)] and "not finite" in result.held[0].reason
        assert result.converged and result.log_scales[3] == 0 and bool(result.log_scales.abs().max() > 0.1)
        assert not torch.equal(result.log_scales, expected.log_scales)


def test_options_that_hold_variables_hold_them_for_terms_too() -> None:
    plan = chain_plan(balance_last=False)
    result = plan.balance(objective=Weights(p=3))
    assert not result.log_scales[8:].any() and result.log_scales[:8].all()
    assert {item.reason.partition(":")[0] for item in result.held} == {"balance_last=False"}


def test_a_plan_for_ranges_takes_terms_of_finite_powers() -> None:
    plans = [chain_plan(p=float("inf")), chain_plan()]
    results = [plan.balance(objective=Weights(p=3)) for plan in plans]
    torch.testing.assert_close(results[0].log_scales, results[1].log_scales)
    with pytest.raises(OptionError, match="p=inf is no sum"):
        plans[0].balance(objective=Weights())


def test_weights_that_are_all_zero_have_nothing_to_balance() -> None:
    model = chain()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.warns(fxenorm.FxenormWarning, match="dead"):
        assert not CASES["mlp"].plan(model).balance(objective=Weights()).log_scales.any()
    with pytest.raises(OptionError, match=r"Normalised\(Weights\(\)\) has no entry above zero"):
        CASES["mlp"].plan(model).balance(objective=Normalised(Weights()))


class Partly16Bits(nn.Module):
    """Two layers in float32 and two in bfloat16, whose groups move by powers of two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 7)
        self.third, self.last = nn.Linear(7, 7, dtype=torch.bfloat16), nn.Linear(7, 3, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x)))).to(torch.bfloat16)
        return self.last(torch.relu(self.third(x)))  # type: ignore[no-any-return]


def test_where_some_groups_move_by_powers_of_two_the_others_are_balanced_around_them() -> None:
    torch.manual_seed(0)
    model = Partly16Bits()
    with torch.no_grad():
        model.first.weight.mul_(8.0)
        model.third.weight.mul_(8.0)
    plan = fxenorm.analyze(model, X.float())
    function = plan.objective(Weights(p=3))
    result = plan.balance(objective=Weights(p=3))
    octaves = result.log_scales / torch.tensor(2.0, dtype=torch.float64).log()
    assert result.powers_of_two and torch.equal(octaves[8:].round(), octaves[8:]) and bool(octaves[8:].any())
    assert result.objective_after < result.objective_before
    # The function is that of the weights as they were, whatever has become of them.
    value, gradient = function.value_and_gradient(result.log_scales)
    assert float(value) == pytest.approx(result.objective_after, rel=1e-12)
    assert float(gradient[:8].abs().max()) <= 1e-8 * result.objective_after < float(gradient[8:].abs().max())


# ---------------------------------------------------------------- terms of a user's own


class Quadratic(Term):
    """Half the squared distance of the log-scales from a point."""

    lower_bound = 0.0

    def __init__(self, goal: torch.Tensor) -> None:
        self.goal = goal

    def value_and_gradient(self, log_scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (log_scales - self.goal).square().sum() / 2, log_scales - self.goal

    def curvature_times(self, log_scales: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        return direction


class Falling(Term):
    """The sum of exp(-s) over all log-scales, which has no minimum and says so."""

    def value_and_gradient(self, log_scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (-log_scales).exp().sum(), -(-log_scales).exp()

    def curvature_times(self, log_scales: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        return (-log_scales).exp() * direction

    def recession(self, direction: torch.Tensor) -> float:
        return float("inf") if bool((direction < 0).any()) else 0.0


class Shape(Term):
    """Half the squared differences of neighbouring log-scales from a goal: it leaves their common size open."""

    def __init__(self, start: int, goal: torch.Tensor) -> None:
        self.part, self.goal = slice(start, start + goal.numel()), goal

    def value_and_gradient(self, log_scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = log_scales[self.part]
        off = own - own.mean() - (self.goal - self.goal.mean())
        gradient = torch.zeros_like(log_scales)
        gradient[self.part] = off
        return off.square().sum() / 2, gradient

    def curvature_times(self, log_scales: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        own, image = direction[self.part], torch.zeros_like(direction)
        image[self.part] = own - own.mean()
        return image

    def recession(self, direction: torch.Tensor) -> float:
        own = direction[self.part]
        return float("inf") if float((own - own.mean()).abs().max()) > 1e-12 else 0.0


def test_a_term_of_ones_own_is_minimised_alone_and_in_a_sum() -> None:
    plan = chain_plan()
    goal = drawn(plan, 7)
    result = plan.balance(objective=Quadratic(goal), tol=1e-10)
    torch.testing.assert_close(result.log_scales, goal, rtol=0, atol=1e-8)
    assert result.converged and result.objective_after == pytest.approx(0.0, abs=1e-12)
    plan = chain_plan()
    result = plan.balance(objective=Weights(p=2) + 2 * Quadratic(goal), tol=1e-10)
    _, own = plan.objective(Weights(p=2)).value_and_gradient(zeros(plan))
    torch.testing.assert_close(own, -2 * (result.log_scales - goal), rtol=0, atol=1e-7)


def test_a_term_that_falls_for_ever_is_held_or_met_by_another() -> None:
    plan = chain_plan()
    with pytest.warns(fxenorm.FxenormWarning, match="moved nothing"):
        result = plan.balance(objective=Falling())
    assert not result.log_scales.any() and sum(item.count for item in result.held) == plan.num_scales
    plan = chain_plan()
    result = plan.balance(objective=Falling() + Weights())
    assert not result.held and result.converged
    _, gradient = plan.objective(Weights()).value_and_gradient(zeros(plan))
    torch.testing.assert_close(gradient, (-result.log_scales).exp(), rtol=1e-5, atol=1e-8)


def test_a_term_that_leaves_a_size_open_is_no_reason_to_hold_each_channel() -> None:
    """A gain-free norm is one-sided; the term says how its channels lie, and their common size stays."""
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).double()
    plan = fxenorm.analyze(randomise(model, (X,), seed=5), X)
    (group,) = [group for group in plan.groups if group.kind == "norm"]
    goal = torch.linspace(-0.5, 0.5, 6, dtype=torch.float64)
    result = plan.balance(objective=1e-6 * Weights(gains=False) + 1e3 * Shape(group.variables.start, goal))
    own = result.log_scales[list(group.variables)]
    assert result.converged and float(own.abs().max()) < 1.0
    torch.testing.assert_close(own - own.mean(), goal, rtol=0, atol=1e-4)


def test_frozen_parameters_meet_terms_of_ones_own_in_the_plans_variables() -> None:
    model = chain()
    model[2].weight.requires_grad_(False)  # type: ignore[index, union-attr, operator]
    plan = CASES["mlp"].plan(model)
    before = state_of(model)
    goal = drawn(plan, 8) + 0.4
    result = plan.balance(objective=Quadratic(goal), tol=1e-10)
    assert torch.equal(model.state_dict()["2.weight"], before["2.weight"]) and result.log_scales.abs().max() > 0.01
    # All channels on both sides of the frozen layer move alike: by the mean of their goals.
    torch.testing.assert_close(result.log_scales, torch.full_like(goal, float(goal.mean())), rtol=0, atol=1e-8)
    free = plan.balance(objective=Quadratic(goal), frozen="move", tol=1e-10)
    torch.testing.assert_close(free.log_scales, goal, rtol=0, atol=1e-8)


class Bent(Quadratic):
    """No convex function at all: its derivative leads nowhere."""

    questions = 0

    def value_and_gradient(self, log_scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.questions += 1
        return log_scales.cos().sum() + 20.0, torch.ones_like(log_scales)


def test_a_term_that_breaks_its_promise_comes_to_an_end() -> None:
    plan = chain_plan()
    term = Bent(zeros(plan))
    result = plan.balance(objective=term)
    assert not result.converged and term.questions < 10_000 and result.objective_after <= result.objective_before


# ---------------------------------------------------------------- promises of balance


@pytest.mark.parametrize("name", ["weights", "gradients", "normalised weights"])
def test_the_result_undoes_it_and_optimizer_state_follows(name: str) -> None:
    case = CASES["mlp"]
    model = case.make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    case.losses(model).mean().backward()
    optimizer.step()
    plan = case.plan(model)
    before = state_of(model)
    moments = {name: optimizer.state[one]["exp_avg"].clone() for name, one in model.named_parameters()}
    result = plan.balance(optimizer, objective=TERMS[name](model, case))
    assert result.log_scales.abs().max() > 0.01
    for key, parameter in model.named_parameters():
        factor = log_factors(plan.exponents.get(key, []), result.log_scales, parameter.shape).exp()
        torch.testing.assert_close(parameter.detach(), before[key] * factor)
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], moments[key] / factor)
    plan.rescale(-result.log_scales, optimizer)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[key], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["weights", "gradients", "normalised weights", "without gains"])
def test_powers_of_two_leave_outputs_bit_identical_and_never_raise_a_term(name: str) -> None:
    case = CASES["residual"]
    model = case.make().float()
    plan = fxenorm.analyze(model, (X.float(),), modes="eval", scales="pow2")
    plan.rescale(torch.randint(-3, 4, (plan.num_scales,), generator=generator(9)) * torch.tensor(2.0, dtype=torch.float64).log())
    before = outputs(model, (X.float(),))
    single = TERMS[name](model, type(case)(case.make, (X.float(),), lambda model: model(X.float()).square().mean(1)))
    result = plan.balance(objective=single)
    octaves = result.log_scales / torch.tensor(2.0, dtype=torch.float64).log()
    torch.testing.assert_close(octaves, octaves.round(), rtol=0, atol=1e-9)
    assert result.objective_after <= result.objective_before and bool(octaves.any())
    assert all(torch.equal(one, other) for one, other in zip(before, outputs(model, (X.float(),)), strict=True))


def test_weights_near_the_end_of_their_type_stay_inside() -> None:
    model = chain().to(torch.float16)
    with torch.no_grad():
        model[0].weight.mul_(2.0**-10)  # type: ignore[index, union-attr, operator]
        model[2].weight.mul_(2.0**13)  # type: ignore[index, union-attr, operator]
    plan = fxenorm.analyze(model, (X.half(),), scales="exact")
    result = plan.balance(objective=Masses({"0.weight": torch.full((8, 6), 1e9), "2.weight": torch.ones(7, 8)}, power=2))
    assert all(bool(one.isfinite().all()) and bool((one != 0).any()) for one in model.parameters())
    assert any("overflow" in item.reason for item in result.held) and not result.converged


class Breaks(Quadratic):
    """Fails at its third question."""

    calls = 0

    def value_and_gradient(self, log_scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        if self.calls > 3:
            raise KeyboardInterrupt
        return super().value_and_gradient(log_scales)


def test_an_error_in_a_users_term_leaves_the_model_as_it_was() -> None:
    model = chain()
    plan, before = CASES["mlp"].plan(model), state_of(model)
    with pytest.raises(KeyboardInterrupt):
        plan.balance(objective=Breaks(drawn(plan, 3)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert plan.balance().converged


# ---------------------------------------------------------------- bad input


class Silent(Term):
    """Says nothing of its minimum."""

    value_and_gradient = Quadratic.value_and_gradient
    curvature_times = Quadratic.curvature_times


class Narrow(Quadratic):
    """Answers in float32."""

    def value_and_gradient(self, log_scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, gradient = super().value_and_gradient(log_scales)
        return value, gradient.float()


def given(**changes: Any) -> dict[str, Any]:
    return {"0.weight": torch.ones(8, 6, dtype=torch.float64), **changes}


def bad(value: float) -> torch.Tensor:
    found = torch.ones(7, 8, dtype=torch.float64)
    found[1, 2] = value
    return found


BAD: dict[str, tuple[Any, str]] = {
    "negative": (lambda: Masses(given(**{"2.weight": bad(-1)}), 2), r"masses of '2\.weight' are negative in 1 of 56 entries"),
    "NaN": (lambda: Masses(given(**{"2.weight": bad(float("nan"))}), 2), r"masses of '2\.weight' are NaN in 1 of 56"),
    "infinite": (lambda: Masses(given(**{"2.weight": bad(float("inf"))}), 2), r"masses of '2\.weight' are infinite in 1 of 56"),
    "missing": (lambda: Masses(given(**{"2.weight": None}), 2), r"masses of '2\.weight' are missing"),
    "empty": (
        lambda: Masses(given(**{"2.weight": torch.ones(0)}), 2),
        r"masses of '2\.weight' are missing: .* shape \(0,\)",
    ),
    "no tensor": (lambda: Masses(given(**{"2.weight": [1.0]}), 2), r"masses of '2\.weight' are of type list"),
    "complex": (
        lambda: Masses(given(**{"2.weight": bad(1) * 1j}), 2),
        r"masses of '2\.weight' are .* torch\.complex128",
    ),
    "no tensors": (lambda: Masses({}, 2), r"expected a dict of at least one tensor"),
    "all zero": (lambda: Masses({"0.weight": torch.zeros(8, 6)}, 2), r"all masses are zero, of '0\.weight'"),
    "power 0": (lambda: Masses(given(), 0), r"power=0 is not valid"),
    "power NaN": (lambda: Masses(given(), float("nan")), r"power=nan is not valid"),
    "power too large": (lambda: Masses(given(), 1e9), r"power=1000000000\.0 is not valid: expected a number from"),
    "shape": (lambda: Masses({"0.weight": torch.ones(6, 8)}, 2), r"masses of '0\.weight' have shape \(6, 8\): expected \(8, 6\)"),
    "name": (lambda: Masses({"0.wieght": torch.ones(6, 8)}, 2), r"masses of '0\.wieght' belong to no parameter.*0\.weight"),
    "site": (
        lambda: Masses({("9", "input"): torch.ones(8)}, 2),
        r"\('9', 'input'\) cannot be placed: .* carries no scale",
    ),
    "site's name": (lambda: Masses({("2", "inside"): torch.ones(8)}, 2), r"masses of \('2', 'inside'\) have no valid name"),
    "site's shape": (
        lambda: Masses({("2", "input"): torch.ones(9)}, 2),
        r"\('2', 'input'\) have shape \(9,\): expected \(8,\)",
    ),
    "p = inf": (lambda: Weights(p=float("inf")), r"p=inf is no sum over entries"),
    "p": (lambda: Weights(p=-1), r"p=-1 is not a valid option"),
    "c": (lambda: Weights(c={"9": 1.0}), r"c names layers that are not counted: 9"),
    "biases": (lambda: Weights(biases="skip"), r"biases='skip' is not valid in Weights"),  # type: ignore[arg-type]
    "gains": (lambda: Weights(gains=1), r"gains=1 is not valid"),  # type: ignore[arg-type]
    "weight": (lambda: -1 * Weights(), r"multiplied by a finite number > 0, not by -1"),
    "product": (lambda: Weights() * Weights(), r"multiplied by a finite number > 0"),  # type: ignore[operator]
    "sum": (lambda: Weights() + 1, r"1 is no term: expected one of fxenorm\.objectives"),
    "twice normalised": (lambda: Normalised(Normalised(Weights())), r"Normalised takes Weights, Masses and sums of these"),
    "a word": (lambda: "weights", r"'weights' is no term"),
    "says nothing": (lambda: Silent(), r"the term Silent does not say whether it has a minimum"),
    "float32": (
        lambda: Narrow(torch.zeros(15, dtype=torch.float64)),
        r"gradient of the term Narrow is torch\.float32 of shape \(15,\)",
    ),
    "not finite": (
        lambda: Quadratic(torch.full((15,), float("inf"), dtype=torch.float64)),
        r"the value of the term Quadratic is not finite",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_terms_are_refused_in_one_line_before_anything_is_written(make: Any, message: str) -> None:
    model = chain()
    plan, before = CASES["mlp"].plan(model), state_of(model)
    with pytest.raises(OptionError, match=message) as raised:
        plan.balance(objective=make())
    assert "\n" not in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maximise": True}, "maximise belongs to an objective"),
        ({"max_log_scale": 1.0}, "max_log_scale belongs to an objective"),
        ({"objective": Weights(), "maximise": True}, "maximise=True needs a box"),
        ({"objective": Weights(), "maximise": 1}, "maximise=1 is not valid"),
        ({"objective": Weights(), "max_log_scale": 0.0}, "max_log_scale=0.0 is not valid"),
        ({"objective": Weights(), "max_log_scale": float("nan")}, "max_log_scale=nan is not valid"),
        ({"objective": Weights(), "tol": 0.0}, "tol=0.0 is not valid"),
        ({"objective": Weights(), "frozen": "no"}, "frozen='no' is not a valid option"),
        ({"objective": Weights(), "state": "no"}, "state"),
    ],
)
def test_bad_calls_are_refused(options: dict[str, Any], message: str) -> None:
    plan = chain_plan()
    before = state_of(plan.model)
    with pytest.raises(OptionError, match=message):
        plan.balance(**options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in plan.model.state_dict().items())


def test_masses_of_an_activation_follow_its_channels() -> None:
    plan = chain_plan()
    function = plan.objective(Masses({("1", "output"): torch.arange(1.0, 9.0), ("2", "input"): torch.ones(8)}, power=2))
    at = drawn(plan, 11)
    expected = ((torch.arange(1.0, 9.0) + 1) * (2 * at[:8]).exp()).sum()
    torch.testing.assert_close(function.value_and_gradient(at)[0], expected)


def test_a_function_takes_log_scales_of_any_float_type_and_of_one_shape() -> None:
    plan = chain_plan()
    function, at = plan.objective(Weights()), drawn(plan, 12)
    wide, narrow = (function.value_and_gradient(one) for one in (at, at.float()))
    torch.testing.assert_close(narrow[0], wide[0], rtol=1e-6, atol=0)
    assert narrow[1].dtype == torch.float64
    with pytest.raises(OptionError, match=r"takes log-scales of shape \(15,\), not \(14,\)"):
        function.value_and_gradient(at[1:])


def test_nothing_to_balance_is_no_error() -> None:
    model = randomise(mlp(4, 3).double(), seed=0)
    plan = fxenorm.analyze(model, torch.ones(1, 4, dtype=torch.float64))
    with pytest.warns(fxenorm.FxenormWarning, match="moved nothing"):
        assert plan.balance(objective=masses.weights(model, 2)).log_scales.numel() == 0
