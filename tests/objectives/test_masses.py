"""Masses: against their definitions, one gradient, one sample and one path at a time; the model is left as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fxenorm import masses
from fxenorm.errors import ExampleInputsError, FxenormError, OptionError
from fxenorm.objectives import Masses, Normalised

from ..helpers import mlp, randomise, state_of
from ..objective_models import CASES, X, chain, residual

MADE: dict[str, Callable[[nn.Module, Any], Masses]] = {
    "weights": lambda model, case: masses.weights(model, 2),
    "gradients": lambda model, case: masses.gradients(model, lambda model: case.losses(model).mean()),
    "fisher": lambda model, case: masses.fisher(model, case.losses),
    "path": lambda model, case: masses.path(model, case.inputs),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(name: str, training: bool) -> None:
    case = CASES["residual"]
    model = case.make().train(training)
    model[0].eval()  # type: ignore[index, operator]
    modes = [module.training for module in model.modules()]
    before = state_of(model)
    if name == "gradients" and training:
        # The user's own call of the model writes its statistics.
        model.eval()
    MADE[name](model, case)
    model.train(training)
    model[0].eval()  # type: ignore[index, operator]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_gradients_are_those_of_backward_and_leave_the_graph() -> None:
    case = CASES["residual"]
    model = case.make()
    loss = case.losses(model).mean()
    found = masses.gradients(model, loss)
    loss.backward()
    assert found.power == -2
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found.tensors[name], parameter.grad.square())


def test_fisher_is_the_mean_of_squares_sample_by_sample() -> None:
    for case in CASES.values():
        model = case.make()
        found = masses.fisher(model, case.losses)
        totals = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
        losses = case.losses(model)
        for number in range(losses.numel()):
            model.zero_grad()
            losses[number].backward(retain_graph=True)
            for name, parameter in model.named_parameters():
                totals[name] += parameter.grad.square() / losses.numel()  # type: ignore[union-attr]
        for name, total in totals.items():
            torch.testing.assert_close(found.tensors[name], total, rtol=1e-9, atol=1e-14)


def test_more_samples_than_are_held_at_once() -> None:
    model, x = mlp(4, 5, 2, seed=0, dtype=torch.float64), torch.randn(37, 4, dtype=torch.float64)
    found = masses.fisher(model, lambda model: model(x).square().sum(1))
    one = torch.stack([masses.gradients(model, model(row).square().sum()).tensors["0.weight"] for row in x]).mean(0)
    torch.testing.assert_close(found.tensors["0.weight"], one)


def path_sums(model: nn.Sequential) -> dict[str, torch.Tensor]:
    """By weight, the sum over paths through it of the product of the path's other squared entries: path by path."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    found = {name: torch.zeros_like(tensor) for name, tensor in model.named_parameters()}
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
    for begin in range(len(layers) + 1):
        # Paths from the inputs, and from each layer's biases.
        for path in itertools.product(*(range(width) for width in widths[begin:])):
            edges = [(f"{names[i]}.weight", (path[i - begin + 1], path[i - begin])) for i in range(begin, len(layers))]
            if begin:
                edges.insert(0, (f"{names[begin - 1]}.bias", (path[0],)))
            squares = [model.get_parameter(name).detach()[place].square() for name, place in edges]
            for number, (name, place) in enumerate(edges):
                others = squares[:number] + squares[number + 1 :]
                found[name][place] += torch.stack(others).prod() if others else 1.0
    return found


def test_path_is_the_sum_over_paths() -> None:
    model = randomise(mlp(3, 4, 2, 3).double(), seed=4)
    found = masses.path(model, torch.randn(1, 3, dtype=torch.float64))
    for name, expected in path_sums(model).items():
        torch.testing.assert_close(found.tensors[name], expected)


def test_a_batchnorm_is_a_layer_of_its_own_on_paths() -> None:
    """Folding it changes neither the function nor the masses of what stands before and behind."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    randomise(model, (torch.randn(8, 3, dtype=torch.float64),), seed=1).eval()
    norm = model[1]
    with torch.no_grad():
        norm.running_mean.zero_()  # type: ignore[union-attr, operator]
    folded = nn.Sequential(nn.utils.fuse_linear_bn_eval(model[0], norm), model[2], model[3])
    found, expected = (masses.path(one, torch.ones(1, 3, dtype=torch.float64)).tensors for one in (model, folded))
    torch.testing.assert_close(found["3.weight"] - expected["2.weight"], _bias_share(model, folded))
    gain = (norm.weight.square() / (norm.running_var + norm.eps)).detach()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(found["0.weight"], expected["0.weight"] * gain[:, None])


def _bias_share(model: nn.Sequential, folded: nn.Sequential) -> torch.Tensor:
    """By how much the last layer's masses differ, since beta and the layer's bias are one number once they are folded."""
    norm, bias = model[1], model[0].bias
    gain = norm.weight.square() / (norm.running_var + norm.eps)  # type: ignore[operator, union-attr]
    apart = gain * bias.square() + norm.bias.square()  # type: ignore[operator, union-attr]
    return (apart - folded[0].bias.square()).detach().expand(2, 4)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("name", MADE)
def test_masses_follow_a_rescaling_by_their_power(name: str) -> None:
    case = CASES["residual"]
    model = case.make()
    plan = case.plan(model)
    before = plan.objective(MADE[name](model, case))
    log_scales = 0.4 * torch.randn(plan.num_scales, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    predicted = float(before.value_and_gradient(log_scales)[0])
    plan.rescale(log_scales)
    after = plan.objective(MADE[name](model, case)).value_and_gradient(torch.zeros_like(log_scales))[0]
    assert float(after) == pytest.approx(predicted, rel=1e-10)


def test_least_gradient_norm_lowers_it_and_path_conditioning_evens_paths_out() -> None:
    case = CASES["mlp"]

    def norm(model: nn.Module) -> float:
        model.zero_grad()
        case.losses(model).mean().backward()
        return sum(float(one.grad.square().sum()) for one in model.parameters())  # type: ignore[union-attr]

    model = case.make()
    before = norm(model)
    result = case.plan(model).balance(objective=MADE["gradients"](model, case))
    assert (before, norm(model)) == (pytest.approx(result.objective_before), pytest.approx(result.objective_after))
    assert norm(model) < before
    model = case.make()
    result = case.plan(model).balance(objective=Normalised(MADE["path"](model, case)))
    sums = torch.cat([one.reshape(-1) for one in path_sums(model).values()])
    evenness = float(sums.numel() * sums.sum().log() - sums.log().sum())
    assert evenness == pytest.approx(result.objective_after) and result.objective_after < result.objective_before


BAD: dict[str, tuple[Callable[[nn.Module], object], type[FxenormError], str]] = {
    "exponent": (lambda model: masses.weights(model, 0), OptionError, "p=0 is not valid"),
    "no module": (lambda model: masses.weights([], 2), OptionError, "model=list is not valid"),  # type: ignore[arg-type]
    "many losses": (lambda model: masses.gradients(model, model(X)), OptionError, r"the loss has shape \(12, 3\)"),
    "a number": (lambda model: masses.gradients(model, lambda model: 1.0), OptionError, "the loss has type float"),  # type: ignore[arg-type, return-value]
    "a loss of nothing": (lambda model: masses.gradients(model, torch.ones(())), OptionError, "depends on no parameter"),
    "infinite gradient": (
        lambda model: masses.gradients(model, lambda model: (model(X) * float("inf")).sum()),
        OptionError,
        r"the masses of '0\.weight' are NaN",
    ),
    "one loss": (lambda model: masses.fisher(model, lambda model: model(X).mean()), OptionError, r"the losses have shape \(\)"),
    "inputs": (lambda model: masses.path(model, torch.ones(2, 9)), ExampleInputsError, "does not run in float64"),
    "bent": (
        lambda model: masses.path(nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4)), torch.ones(2, 3)),
        OptionError,
        "the squared network is not linear",
    ),
}


@pytest.mark.parametrize(("make", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_one_line(make: Callable[[nn.Module], object], kind: type[FxenormError], message: str) -> None:
    with pytest.raises(kind, match=message):
        make(chain())


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = residual()
    with torch.no_grad():
        model[-1].weight[0, 0] = float("nan")  # type: ignore[index, union-attr, operator]
    name = next(name for name, parameter in model.named_parameters() if bool(parameter.isnan().any()))
    with pytest.raises(OptionError, match=f"the masses of '{name}' are NaN in 1 of"):
        masses.weights(model, 2)
