"""`plan.verify` passes sound plans, and names the groups of an unsound one: a deliberately wrong rule for each family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import ExampleInputsError, RescaleError
from fxenorm.field import ScaleField
from fxenorm.rules import Call, Rule, registry
from fxenorm.rules.laws import passes


class Guilty(nn.Module):
    """An innocent pair of layers, and a pair with one function between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], width: int = 5) -> None:
        super().__init__()
        self.innocent = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
        self.guilty = nn.Linear(4, 5)
        self.between = between
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.guilty(self.innocent(x))))


def _first_field(call: Call) -> Any:
    """Takes the field of the first operand and asks nothing of the other."""
    return ScaleField(call.out_shape, call.field("self").terms)


def _unheld(call: Call) -> Any:
    """Lets a normalisation's input pass."""
    return ScaleField(call.out_shape, call.field("input").terms)


def _unreduced(call: Call) -> Any:
    """A reduction that keeps the first position's field and forgets that all positions must agree."""
    terms = tuple((c, ids.take([0], axis=-1)) for c, ids in call.field("self").terms)
    return ScaleField(call.out_shape, terms)


def _gram(x: Tensor) -> Tensor:
    return torch.mm(x, torch.ones(5, 5, dtype=x.dtype))


def _uncontracted(call: Call) -> Any:
    """A product with a constant matrix as if it kept channels apart."""
    return ScaleField(call.out_shape, call.field("self").terms)


def _slope(x: Tensor) -> Tensor:
    """The derivative of tanh where it is x."""
    return torch.ops.aten.tanh_backward(torch.ones_like(x), x)  # type: ignore[no-any-return]


WRONG: dict[str, tuple[str, Callable[[Call], Any], Callable[[Tensor], Tensor], int]] = {
    "homogeneous": ("aten::gelu", passes, nn.functional.gelu, 5),
    "structural": ("aten::flip", passes, lambda x: x.flip(1), 5),
    "additive": ("aten::add", _first_field, lambda x: x + 1.0, 5),
    "multiplicative": ("aten::mul", _first_field, lambda x: x * x, 5),
    "contraction": ("aten::mm", _uncontracted, _gram, 5),
    "reduction": ("aten::amax", _unreduced, lambda x: x.amax(1, keepdim=True), 1),
    "normalising": ("aten::layer_norm", _unheld, lambda x: nn.functional.layer_norm(x, (5,)), 5),
    "barrier": ("aten::sigmoid", passes, torch.sigmoid, 5),
    "derivative": ("aten::tanh_backward", lambda call: passes(call, "grad_output"), _slope, 5),
}


@pytest.mark.parametrize("family", WRONG)
def test_a_wrong_rule_is_found_and_its_group_is_named(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, function, between, width = WRONG[family]
    model = Guilty(between, width)
    assert fxenorm.analyze(model, torch.randn(7, 4)).verify(), "the right rule must pass"

    monkeypatch.setitem(registry._RULES, operator, Rule(operator, family, function))
    plan = fxenorm.analyze(model, torch.randn(7, 4))
    found = plan.verify()
    assert not found
    guilty = {group.name for group in plan.groups if any(port.parameter.startswith("guilty.") for port in group.producers)}
    assert guilty and set(found.at_fault) == guilty
    assert all(name in str(found) for name in guilty)


def test_every_family_of_the_table_has_a_wrong_rule_here() -> None:
    families = {rule.family for rule in registry.iterate_rules()} - {"registered"}
    # Constants and comparisons have no field to get wrong in this way: the operator harness breaks those.
    assert families - set(WRONG) <= {"constant", "comparison"}


def test_a_jump_is_found_though_slopes_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._RULES, "aten::gt", Rule("aten::gt", "comparison", lambda call: ScaleField(call.out_shape)))
    model = Guilty(lambda x: torch.where(x > 0.3, 1.0, 0.0) * nn.functional.relu(x))
    plan = fxenorm.analyze(model, torch.randn(64, 4))
    found = plan.verify()
    guilty = {group.name for group in plan.groups if any(port.parameter.startswith("guilty.") for port in group.producers)}
    assert not found and set(found.at_fault) == guilty


def test_the_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    plan = fxenorm.analyze(model, torch.randn(2, 3, 8, 8))
    before = torch.random.get_rng_state()
    found = plan.verify()
    assert found and set(found.differences) == {"eval", "train"}
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())


def test_what_is_not_exact_fails_and_says_why() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU6(), nn.Linear(5, 3))
    with torch.no_grad():
        model[0].weight.mul_(20)
    assert fxenorm.analyze(model).num_scales == 0
    plan = fxenorm.analyze(model, approximate=("relu6",))
    found = plan.verify()
    assert plan.num_scales == 5 and not plan.exact and not found and "relu6" in str(found)


def test_inputs_of_another_kind_and_models_without_values() -> None:
    plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
    assert plan.verify(torch.randn(9, 4)) and plan.verify((torch.randn(1, 4),))
    with pytest.raises(RescaleError, match="does not run in float64"):
        plan.verify(torch.randn(2, 7))
    with pytest.raises(ExampleInputsError):
        plan.verify("four")
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(RescaleError, match="meta"):
        fxenorm.analyze(empty).verify()


def test_mobilenet_v2_with_approximate_relu6_is_the_network_with_relu() -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = models.mobilenet_v2()
        relu = models.mobilenet_v2()
    for name, module in list(relu.named_modules()):
        if isinstance(module, nn.ReLU6):
            parent, _, child = name.rpartition(".")
            setattr(relu.get_submodule(parent), child, nn.ReLU(inplace=True))
    x = torch.empty(2, 3, 64, 64, device="meta")
    exact = fxenorm.analyze(model, x, modes="eval")
    approximate = fxenorm.analyze(model, x, modes="eval", approximate=("relu6",))
    assert exact.exact and not approximate.exact
    assert approximate.num_scales >= fxenorm.analyze(relu, x, modes="eval").num_scales > exact.num_scales
