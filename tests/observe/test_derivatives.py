"""`Plan.observe(derivatives=True)` against derivatives by hand; observations follow the weights, or say that they do not."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import OptionError, StaleError

from ..helpers import generator, mlp, randomise
from ..zoo_base import Net


def batches(count: int, *shape: int) -> list[Tensor]:
    return [torch.randn(1, *shape, generator=generator(seed), dtype=torch.float64) for seed in range(count)]


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(6, 4, 2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(100, 1),
    )


def recurrent() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.rnn(m.body(x))[0][:, -1]),
        body=nn.Linear(4, 5),
        rnn=nn.LSTM(5, 6, batch_first=True),
        head=nn.Linear(6, 1),
    )


def shared() -> nn.Module:
    """One layer called twice, and an activation that two layers read."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        h = m.b(m.a(m.a(x).relu()).relu()).relu()
        return m.c(m.left(h).relu() * 2 + m.right(h).relu())

    layers = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 5), "left": nn.Linear(5, 4), "right": nn.Linear(5, 4), "c": nn.Linear(4, 1)}
    return Net(forward, **layers)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutional": (convolutional, (3, 6, 6)),
    "recurrent": (recurrent, (3, 4)),
    "shared": (shared, (4,)),
}


def slope_by_input(model: nn.Module, layer: nn.Module, call: int, x: Tensor) -> Tensor:
    """The derivative of the output by what a layer reads, by way of this layer alone."""
    views: list[Tensor] = []

    def view(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        views.append(args[0].view_as(args[0]))
        return views[-1]

    handle = layer.register_forward_pre_hook(view)
    output = model(x.clone().requires_grad_()).sum()
    handle.remove()
    return torch.autograd.grad(output, views[call])[0]


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_by_hand_where_one_output_leaves_no_chance(name: str) -> None:
    make, shape = CASES[name]
    model, given = randomise(make(), seed=0).double().eval(), batches(3, *shape)
    plan = fxenorm.analyze(model, given[0], modes="eval")
    seen = plan.observe(given, derivatives=True)
    assert seen.output_square == pytest.approx(float(torch.stack([model(x).detach().square().mean() for x in given]).mean()))
    layers = {path: module for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))}
    assert [one.layer for one in seen.weights] == list(layers)
    for one in seen.weights:
        weight = layers[one.layer].weight
        squares = [torch.autograd.grad(model(x).sum(), weight)[0].square() for x in given]
        torch.testing.assert_close(one.squared_derivative, torch.stack(squares).mean(0), rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(one.values, weight.detach())
    for path, layer in layers.items():
        for call in range(2 if (name, path) == ("shared", "a") else 1):
            slopes = torch.cat([slope_by_input(model, layer, call, x) for x in given])
            axis = 1 if isinstance(layer, nn.modules.conv._ConvNd) else slopes.ndim - 1
            expected = slopes.square().sum([other for other in range(slopes.ndim) if other != axis]) / len(given)
            torch.testing.assert_close(seen[path, "input", call].squared_derivative, expected, rtol=1e-9, atol=1e-15)
    if name == "shared":
        # An output counts by way of all that reads it.
        one = seen["b", "output"]
        squares = []
        for x in given:
            h = model.b(model.a(model.a(x).relu()).relu()).detach().requires_grad_()
            y = h.relu()
            squares.append(torch.autograd.grad(model.c(model.left(y).relu() * 2 + model.right(y).relu()).sum(), h)[0].square())
        torch.testing.assert_close(one.squared_derivative, torch.cat(squares).mean(0))


def test_random_signs_give_the_sum_over_outputs_in_the_mean() -> None:
    model, x = mlp(4, 6, 5, seed=3, dtype=torch.float64), batches(8, 4)
    seen = fxenorm.analyze(model).observe([torch.cat(x)], derivatives=800)
    exact = torch.zeros(6, 4, dtype=torch.float64)
    for one in x:
        for output in range(5):
            exact += torch.autograd.grad(model(one)[0, output], model[0].weight)[0].square() / 40
    # 800 draws leave 5 % of one standard deviation.
    torch.testing.assert_close(seen.weights[0].squared_derivative, exact, rtol=0.25, atol=1e-12)
    again = fxenorm.analyze(model).observe([torch.cat(x)], derivatives=800)
    assert torch.equal(again.weights[0].squared_derivative, seen.weights[0].squared_derivative)


def test_only_outputs_that_the_plan_holds_count() -> None:
    both = Net(
        lambda m, x: {"logits": m.b(m.a(x).relu()), "aux": 100 * m.c(x)}, a=nn.Linear(4, 5), b=nn.Linear(5, 1), c=nn.Linear(4, 1)
    )
    model, x = randomise(both, seed=1).double(), batches(2, 4)
    seen = fxenorm.analyze(model, x[0], outputs="logits").observe(x, derivatives=True)
    assert seen.output_square == pytest.approx(float(torch.cat([model(one)["logits"].detach() for one in x]).square().mean()))
    assert not {one.layer: one for one in seen.weights}["c"].squared_derivative.any()


def test_a_model_without_derivatives_is_told() -> None:
    model = Net(lambda m, x: m.a(x).argmax(1), a=nn.Linear(4, 5))
    with pytest.raises(OptionError, match="no output of the model depends"):
        fxenorm.analyze(model, torch.ones(2, 4)).observe([torch.ones(2, 4)], derivatives=True)
    with torch.inference_mode():
        made = mlp(4, 5, 2, seed=0)
    plan = fxenorm.analyze(made)
    assert plan.observe([torch.ones(1, 4)], derivatives=True).weights[1].squared_derivative.any()


def test_a_layer_that_takes_no_part_has_derivatives_of_zero() -> None:
    model = Net(
        lambda m, x: m.b(m.a(x).relu()) + 0 * m.c(x).detach().sum(), a=nn.Linear(4, 5), b=nn.Linear(5, 2), c=nn.Linear(4, 3)
    )
    seen = fxenorm.analyze(model, torch.ones(2, 4)).observe([torch.ones(1, 4)], derivatives=True)
    assert not seen["c", "input"].squared_derivative.any() and seen["a", "input"].squared_derivative.any()


# ---------------------------------------------------------------- following


def observed() -> tuple[fxenorm.Plan, fxenorm.Observations, list[Tensor]]:
    plan = fxenorm.analyze(mlp(4, 6, 5, 3, seed=1, dtype=torch.float64))
    given = [torch.randn(7, 4, generator=generator(0), dtype=torch.float64)]
    return plan, plan.observe(given), given


def same(known: fxenorm.Observations, plan: fxenorm.Plan, given: list[Tensor]) -> bool:
    fresh = plan.observe(given)
    return all(torch.allclose(one.maximum, two.maximum, rtol=1e-9) for one, two in zip(known, fresh, strict=True))


def bound(plan: fxenorm.Plan) -> fxenorm.Plan:
    return plan.bind(copy.deepcopy(plan.model))


def stored(plan: fxenorm.Plan) -> fxenorm.Plan:
    return fxenorm.Plan.from_dict(json.loads(json.dumps(plan.to_dict())), plan.model)


def exponent(plan: fxenorm.Plan) -> fxenorm.Plan:
    """Another plan of the model with the same variables."""
    return fxenorm.analyze(plan.model, p=4)


WAYS: dict[str, Callable[[fxenorm.Plan], fxenorm.Plan]] = {
    "itself": lambda plan: plan,
    "bind": bound,
    "copy": copy.deepcopy,
    "pickle": lambda plan: pickle.loads(pickle.dumps(plan)),
    "stored": stored,
    "another plan": exponent,
}


@pytest.mark.parametrize("way", WAYS)
def test_observations_follow_the_plan_by_themselves(way: str) -> None:
    plan, seen, given = observed()
    if way in ("stored", "another plan"):  # these know nothing of what was before
        plan = WAYS[way](plan)
        assert same(plan.follow(seen), plan, given)
    plan.rescale(torch.randn(plan.num_scales, generator=generator(1), dtype=torch.float64))
    plan = plan if way in ("stored", "another plan") else WAYS[way](plan)
    assert same(plan.follow(seen), plan, given)
    plan.balance()
    plan.balance(objective=fxenorm.objectives.Weights(p=3))
    with pytest.raises(fxenorm.errors.RescaleError):
        plan.rescale([float("nan")] * plan.num_scales)
    assert same(plan.follow(seen), plan, given)
    # A rescaling that was thought of only is taken back.
    assert same(plan.follow(seen.rescaled(torch.ones(plan.num_scales))), plan, given)
    assert plan.observe(given).position.equal(plan.follow(seen).position)


def trained(plan: fxenorm.Plan) -> None:
    with torch.no_grad():
        plan.model[0].weight *= 1 + 1e-4 * torch.rand(6, 1, dtype=torch.float64)


def loaded(plan: fxenorm.Plan) -> None:
    plan.model.load_state_dict(mlp(4, 6, 5, 3, seed=2, dtype=torch.float64).state_dict())


CHANGES: dict[str, Callable[[fxenorm.Plan], object]] = {
    "training": trained,
    "a step": lambda plan: plan.step(),
    "a checkpoint": loaded,
    "another plan": lambda plan: fxenorm.analyze(plan.model).rescale(torch.ones(plan.num_scales)),
    "a bias": lambda plan: plan.model[-1].bias.data.add_(1e-3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_stale_observations_are_refused(change: str) -> None:
    plan, seen, _ = observed()
    CHANGES[change](plan)
    with pytest.raises(StaleError, match=r"changed by more than the plan's rescalings.*Call plan.observe again"):
        plan.follow(seen)


def test_observations_of_other_variables_are_refused() -> None:
    plan, seen, _ = observed()
    for other in (fxenorm.analyze(mlp(4, 6, 3)), fxenorm.analyze(plan.model, exclude="2.*"), fxenorm.analyze(mlp(4, 5, 6, 3))):
        with pytest.raises(StaleError, match="other variables"):
            other.follow(seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_of_narrow_types_is_no_change(dtype: torch.dtype) -> None:
    plan = fxenorm.analyze(mlp(4, 6, 5, 3, seed=1, dtype=dtype))
    seen = plan.observe([torch.ones(2, 4, dtype=dtype)])
    for seed in range(3):
        plan.rescale(torch.randn(plan.num_scales, generator=generator(seed)))
    plan.follow(seen)
