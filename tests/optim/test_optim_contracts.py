"""Every registered state rule keeps its own contract: D is a factor for every entry of every parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import fxenorm
from fxenorm.errors import OptimizerError, OptionError
from fxenorm.optim.factor_pair import FactorPair, terms_of_factor
from fxenorm.optim.registry import register, registered, registered_names
from fxenorm.optim.state import state_tensors

from ..helpers import generator

TINY = 1e-30
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {"momentum": 0.9},
        {"momentum": 0.8, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "maximize": True},
        {"momentum": 0.9, "fused": True},
    ],
    "Adam": [{}, {"amsgrad": True}, {"foreach": True}, {"fused": True}, {"maximize": True}, {"capturable": False}],
    "AdamW": [{}, {"amsgrad": True}, {"fused": True}, {"weight_decay": 0.1}],
    "NAdam": [{}, {"foreach": True}, {"decoupled_weight_decay": True, "weight_decay": 0.1}],
    "RAdam": [{}, {"foreach": True}],
    "Adamax": [{"eps": TINY}, {"eps": TINY, "foreach": True}],
    "Adagrad": [{}, {"lr_decay": 0.1}, {"fused": True}],
    "RMSprop": [
        {},
        {"centered": True},
        {"momentum": 0.9, "eps": TINY},
        {"centered": True, "momentum": 0.9, "eps": TINY, "foreach": True},
    ],
    "Adadelta": [{"eps": TINY}, {"eps": TINY, "foreach": True}],
    "Rprop": [{"step_sizes": (1e-12, 1e6)}, {"step_sizes": (1e-12, 1e6), "maximize": True}],
    "ASGD": [{}, {"t0": 2.0}],
    "LBFGS": [{"history_size": 3, "max_iter": 4}, {"line_search_fn": "strong_wolfe", "max_iter": 5}],
}
"""By class name; a class that is not named is made with its defaults. None of them decays weights into its state."""


class Lion(Optimizer):
    """Steps by the sign of a mix of the gradient and its running mean."""

    def __init__(self, params: Any, lr: float = 1e-2, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                mean = state.setdefault("exp_avg", torch.zeros_like(parameter))
                first, second = group["betas"]
                parameter.add_(torch.sign(mean * first + parameter.grad * (1 - first)), alpha=-group["lr"])
                mean.lerp_(parameter.grad, 1 - second)


class ScheduleFree(Optimizer):
    """Keeps the fast iterate z, in the weights' own units, beside the averaged weights, and second moments."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state.update(z=parameter.clone(), square=torch.zeros_like(parameter), count=0)
                state["count"] += 1
                state["square"].lerp_(parameter.grad.square(), 0.1)
                state["z"].addcdiv_(parameter.grad, state["square"].sqrt() + 1e-8, value=-group["lr"])
                parameter.lerp_(state["z"], 1 / state["count"])


def schedule_free_rule(state: Any, group: Any) -> dict[str, int]:
    return {"z": 1, "square": -2} if state else {}


fxenorm.register_optimizer(Lion, {"exp_avg": -1})
fxenorm.register_optimizer(ScheduleFree, schedule_free_rule, contract="by definition")


def variants(cls: type[Optimizer]) -> list[dict[str, Any]]:
    """The class's settings, and the first of them in every way in which the class says that it can be run here."""
    settings = SETTINGS.get(cls.__name__, [{}])
    known = inspect.signature(cls).parameters
    ways = [{**settings[0], way: True} for way in ("foreach", "fused", "maximize") if way in known]
    return [*settings, *(way for way in ways if way not in settings)]


CASES = [
    pytest.param(cls, settings, id="-".join([cls.__name__, *(f"{key}={value}" for key, value in settings.items())]))
    for cls in sorted(registered(), key=lambda cls: cls.__name__)
    for settings in variants(cls)
]


def cases(contract: str) -> list[Any]:
    return [case for case in CASES if registered()[case.values[0]].contract == contract]


def shapes(cls: type[Optimizer]) -> list[tuple[int, ...]]:
    return [(4, 3), (5, 2)] if cls.__name__ == "Muon" else [(4, 3), (5,), (2, 3, 3, 2)]


def draw(shape: Any, seed: int, spread: float = 1.0) -> Tensor:
    return torch.randn(tuple(shape), generator=generator(seed), dtype=torch.float64) * spread


def factors(cls: type[Optimizer]) -> list[Tensor]:
    """D, separable into rows and columns where the class needs that."""
    if cls.__name__ != "Adafactor":
        return [draw(shape, 50 + number).exp() for number, shape in enumerate(shapes(cls))]
    parts = [((4, 1), (1, 3)), ((5,),), ((2, 3, 1, 1), (2, 1, 1, 1))]
    return [torch.stack([draw(part, 60 + len(part)).exp().expand(shape) for part in given]).prod(0)
            for given, shape in zip(parts, shapes(cls), strict=True)]  # fmt: skip


def feed(optimizer: Optimizer, parameters: list[nn.Parameter], scale: list[Tensor], count: int, first: int = 0) -> None:
    """Steps with a fixed history of gradients, each divided by its factor."""
    for step in range(first, first + count):
        for number, (parameter, factor) in enumerate(zip(parameters, scale, strict=True)):
            gradient = draw(parameter.shape, 1000 * number + step) / factor
            parameter.grad = gradient.to_sparse() if isinstance(optimizer, torch.optim.SparseAdam) else gradient
        optimizer.step()


def make(
    cls: type[Optimizer], settings: dict[str, Any], start: list[Tensor] | None = None
) -> tuple[Optimizer, list[nn.Parameter]]:
    values = start or [draw(shape, 10 + number) for number, shape in enumerate(shapes(cls))]
    parameters = [nn.Parameter(value.clone()) for value in values]
    return cls(parameters, **settings), parameters


@torch.no_grad()
def follow(optimizer: Optimizer, parameters: list[nn.Parameter], scale: list[Tensor]) -> None:
    """What an executor does with the state tensors that are found."""
    names = {str(number): parameter for number, parameter in enumerate(parameters)}
    pairs = []
    found = state_tensors([optimizer], names)
    assert found
    for item in found:
        if item.factor is not None and item.factor.axis == -1:
            pairs.append(FactorPair(item.tensor, item.other))
    means = [pair.means() for pair in pairs]
    for item in found:
        factor = scale[int(item.parameter)]
        if item.factor is not None:
            rows = factor[..., :1] / factor[..., :1, :1].sqrt()
            columns = factor[..., :1, :] / factor[..., :1, :1].sqrt()
            factor = rows if item.factor.axis == -1 else columns
        item.tensor.mul_(factor**item.power)
    for pair, before in zip(pairs, means, strict=True):
        pair.follow(before)


def ones(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [torch.ones_like(parameter) for parameter in parameters]


def compare(one: Any, other: Any) -> None:
    """States are equal to 1e-10 of each tensor's largest entry."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, Tensor):
            assert float((value - other[key]).abs().max()) <= 1e-10 * float(value.abs().max() + TINY), key
        else:
            assert value == other[key], key


def test_every_class_of_torch_has_a_rule() -> None:
    classes = {cls for cls in vars(torch.optim).values() if isinstance(cls, type) and issubclass(cls, Optimizer)}
    assert classes - {Optimizer} <= set(registered())


@pytest.mark.parametrize(("cls", "settings"), cases("re-expressed"))
def test_state_is_that_of_a_fresh_optimizer_fed_the_rescaled_gradients(cls: type[Optimizer], settings: dict[str, Any]) -> None:
    scale = factors(cls)
    optimizer, parameters = make(cls, settings)
    feed(optimizer, parameters, ones(parameters), 5)
    follow(optimizer, parameters, scale)
    fresh, twins = make(cls, settings)
    feed(fresh, twins, scale, 5)
    for parameter, twin in zip(parameters, twins, strict=True):
        compare(optimizer.state[parameter], fresh.state[twin])
    # And from there on both make the same updates.
    for parameter, twin in zip(parameters, twins, strict=True):
        twin.data.copy_(parameter)
    feed(optimizer, parameters, scale, 2, first=5)
    feed(fresh, twins, scale, 2, first=5)
    for parameter, twin in zip(parameters, twins, strict=True):
        torch.testing.assert_close(parameter, twin, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("cls", "settings"), cases("covariant"))
def test_later_updates_are_those_of_the_run_that_was_not_rescaled(cls: type[Optimizer], settings: dict[str, Any]) -> None:
    scale = factors(cls)
    runs = [make(cls, settings) for _ in range(2)]
    for optimizer, parameters in runs:
        feed(optimizer, parameters, ones(parameters), 4)
        for parameter in parameters:
            if "acc_delta" in optimizer.state[parameter]:  # Adadelta's first steps are made of eps alone
                optimizer.state[parameter]["acc_delta"].copy_(draw(parameter.shape, 77).square() * 1e-2)
    (untouched, plain), (optimizer, parameters) = runs
    follow(optimizer, parameters, scale)
    for parameter, factor in zip(parameters, scale, strict=True):
        parameter.data.mul_(factor)
    feed(untouched, plain, ones(plain), 5, first=4)
    feed(optimizer, parameters, scale, 5, first=4)
    for parameter, original, factor in zip(parameters, plain, scale, strict=True):
        torch.testing.assert_close(parameter.detach(), original.detach() * factor, rtol=1e-10, atol=1e-12)


def asgd_average(settings: dict[str, Any]) -> None:
    """ax is the average of the iterates that ASGD averages, of the rescaled ones after a rescaling."""
    optimizer, parameters = make(torch.optim.ASGD, settings)
    scale = factors(torch.optim.ASGD)
    averages = [torch.zeros_like(parameter) for parameter in parameters]
    mu = [1.0] * len(parameters)
    for step in range(6):
        feed(optimizer, parameters, ones(parameters), 1, first=step)
        for number, (parameter, factor) in enumerate(zip(parameters, scale, strict=True)):
            averages[number] += (parameter.detach() * factor - averages[number]) * mu[number]
            mu[number] = float(optimizer.state[parameter]["mu"])
    follow(optimizer, parameters, scale)
    for parameter, average in zip(parameters, averages, strict=True):
        torch.testing.assert_close(optimizer.state[parameter]["ax"], average, rtol=1e-10, atol=1e-12)


def adafactor_second_moments(settings: dict[str, Any]) -> None:
    """row * column / mean(row) is divided by D^2, and rows and columns are its means."""
    optimizer, parameters = make(torch.optim.Adafactor, settings)
    scale = factors(torch.optim.Adafactor)
    feed(optimizer, parameters, ones(parameters), 5)

    def moments(parameter: nn.Parameter) -> Tensor:
        state = optimizer.state[parameter]
        if "variance" in state:
            return state["variance"].clone()
        return state["row_var"] @ state["col_var"] / state["row_var"].mean(-2, keepdim=True)

    before = [moments(parameter) for parameter in parameters]
    follow(optimizer, parameters, scale)
    for parameter, old, factor in zip(parameters, before, scale, strict=True):
        torch.testing.assert_close(moments(parameter), old / factor**2, rtol=1e-10, atol=0)
        if "row_var" in optimizer.state[parameter]:
            new = moments(parameter)
            torch.testing.assert_close(optimizer.state[parameter]["row_var"], new.mean(-1, keepdim=True), rtol=1e-10, atol=0)
            torch.testing.assert_close(optimizer.state[parameter]["col_var"], new.mean(-2, keepdim=True), rtol=1e-10, atol=0)


def lbfgs_curvature(settings: dict[str, Any]) -> None:
    """On a quadratic, every change of the gradient is the Hessian times its step: before, after, and with later pairs."""
    optimizer, parameters = make(torch.optim.LBFGS, {**settings, "lr": 0.1})
    total = sum(parameter.numel() for parameter in parameters)
    root = draw((total, total), 3)
    hessian = root @ root.T + torch.eye(total, dtype=torch.float64)
    divisor = torch.ones(total, dtype=torch.float64)

    def closure() -> Tensor:
        optimizer.zero_grad()
        flat = torch.cat([parameter.reshape(-1) for parameter in parameters]) / divisor
        loss = (-0.5 if settings.get("maximize") else 0.5) * flat @ hessian @ flat
        loss.backward()
        return loss

    def check(count: int) -> None:
        state = optimizer.state[parameters[0]]
        assert len(state["old_stps"]) >= count
        for step, change in zip(state["old_stps"], state["old_dirs"], strict=True):
            torch.testing.assert_close(change, hessian @ (step / divisor) / divisor, rtol=1e-8, atol=1e-9)

    optimizer.step(closure)
    check(1)
    scale = factors(torch.optim.LBFGS)
    follow(optimizer, parameters, scale)
    with torch.no_grad():
        for parameter, factor in zip(parameters, scale, strict=True):
            parameter.mul_(factor)
    divisor = torch.cat([factor.reshape(-1) for factor in scale])
    check(1)
    optimizer.step(closure)
    check(2)


def schedule_free_iterate(settings: dict[str, Any]) -> None:
    """z follows as the weights, so that the averaged weights still head for it."""
    optimizer, parameters = make(ScheduleFree, settings)
    feed(optimizer, parameters, ones(parameters), 3)
    before = [optimizer.state[parameter]["z"].clone() for parameter in parameters]
    scale = factors(ScheduleFree)
    follow(optimizer, parameters, scale)
    for parameter, old, factor in zip(parameters, before, scale, strict=True):
        torch.testing.assert_close(optimizer.state[parameter]["z"], old * factor)


DEFINITIONS: dict[str, Callable[[dict[str, Any]], None]] = {
    "ASGD": asgd_average,
    "Adafactor": adafactor_second_moments,
    "LBFGS": lbfgs_curvature,
    "ScheduleFree": schedule_free_iterate,
}


@pytest.mark.parametrize(("cls", "settings"), cases("by definition"))
def test_what_the_state_stands_for_is_rescaled(cls: type[Optimizer], settings: dict[str, Any]) -> None:
    assert cls.__name__ in DEFINITIONS, "a rule that holds by definition needs a test of that definition"
    DEFINITIONS[cls.__name__](settings)


def test_factors_need_a_product_of_rows_and_columns() -> None:
    rows, columns = torch.arange(4).view(4, 1), torch.arange(3).view(1, 3)
    lead = torch.arange(2).view(2, 1, 1)
    terms = ((1, rows), (-1, columns))
    assert terms_of_factor(terms, -1, "w") == ((1, rows),)
    assert terms_of_factor(terms, -2, "w") == ((-1, columns),)
    assert terms_of_factor(((1, lead),), -1, "w") == ((1, lead),) and terms_of_factor(((1, lead),), -2, "w") == ()
    with pytest.raises(OptimizerError, match=r"'w'.*nothing was rescaled.*state='reset'"):
        terms_of_factor(((1, torch.arange(12).view(4, 3)),), -1, "w")


def test_factors_that_are_zero_stay_zero() -> None:
    pair = FactorPair(torch.zeros(3, 1), torch.zeros(1, 2))
    pair.follow(pair.means())
    assert not pair.rows.any() and not pair.columns.any()


@pytest.mark.parametrize(
    ("cls", "rule", "contract"),
    [
        (int, {"a": 1}, "covariant"),
        (Lion([nn.Parameter(torch.ones(1))]), {}, "covariant"),
        (Lion, {"exp_avg": 0.5}, "covariant"),
        (Lion, "exp_avg", "covariant"),
        (Lion, {"exp_avg": -1}, "exact"),
    ],
)
def test_what_is_no_rule_is_refused(cls: Any, rule: Any, contract: Any) -> None:
    before = registered()
    with pytest.raises(OptionError, match="is not valid"):
        fxenorm.register_optimizer(cls, rule, contract=contract)
    assert registered() == before


@pytest.mark.parametrize("name", ["Adam", "timm.optim.lion.Lion"])
def test_a_second_rule_for_one_class_is_refused_unless_it_replaces_the_first(name: str) -> None:
    """Both for classes of torch and for those that are known by name; `register_optimizer` always replaces."""
    classes, names = registered(), registered_names()
    first = names[name] if name in names else classes[torch.optim.Adam]
    with pytest.raises(OptionError, match="already"):
        register(name)(lambda state, group: {})
    assert (registered(), registered_names()) == (classes, names)
    register(name, contract=first.contract, replace=True)(first.follows)
    assert (registered(), registered_names()) == (classes, names)
