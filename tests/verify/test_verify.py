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
from fxenorm.verify.compared_runs import Runs

from ..verified_models import HARD, HELD_OTHERWISE, VECTORS, Two, plain


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


def _amplified(model: nn.Module) -> nn.Module:
    """The model with a function behind it that turns a rounding of float64 into a change of 1e-7 and more."""
    return nn.Sequential(model, _Sine())


class _Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(1e8 * x)


def test_rounding_that_the_model_amplifies_is_no_fault() -> None:
    torch.manual_seed(0)
    plain_model = Guilty(nn.functional.relu)
    assert not fxenorm.analyze(plain_model, torch.randn(7, 4)).verify().amplified
    plan = fxenorm.analyze(_amplified(plain_model), torch.randn(7, 4))
    found = plan.verify()
    assert plan.num_scales == 15 and found and not found.at_fault
    assert set(found.amplified) == {"eval", "train"} and min(found.amplified.values()) > max(found.tolerances.values())
    assert all(difference == 0 for difference in found.differences.values()), "powers of two round nothing"
    assert "amplifies rounding" in str(found)


def test_a_fault_in_a_model_that_amplifies_rounding_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, function, between, width = WRONG["structural"]
    monkeypatch.setitem(registry._RULES, operator, Rule(operator, "structural", function))
    torch.manual_seed(0)
    plan = fxenorm.analyze(_amplified(Guilty(between, width)), torch.randn(7, 4))
    found = plan.verify()
    guilty = {group.name for group in plan.groups if any("guilty." in port.parameter for port in group.producers)}
    assert not found and guilty and set(found.at_fault) == guilty


def test_a_fault_that_powers_of_two_do_not_show_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # sin(2 pi log2 x) x is homogeneous for powers of two alone; the whole amplifies rounding beyond the tolerance.
    monkeypatch.setitem(registry._RULES, "aten::sin", Rule("aten::sin", "barrier", lambda call: ScaleField(call.out_shape)))
    monkeypatch.setitem(registry._RULES, "aten::log2", Rule("aten::log2", "barrier", lambda call: ScaleField(call.out_shape)))
    torch.manual_seed(0)
    model = Guilty(lambda x: x * torch.sin(2e4 * torch.pi * torch.log2(x.abs())))
    plan = fxenorm.analyze(model, torch.randn(7, 4))
    found = plan.verify()
    guilty = {group.name for group in plan.groups if any(port.parameter.startswith("guilty.") for port in group.producers)}
    assert not found and guilty and set(found.at_fault) == guilty


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


def without(plan: Any, name: str) -> Any:
    """A wrong plan, which leaves one tensor as it is while the others of its groups move, and the names of these groups."""
    stored = plan.to_dict()
    stored["fingerprint"] = None
    del stored["symmetry"]["exponents"][name]
    groups = {group.name for group in plan.groups for port in (*group.producers, *group.consumers) if port.parameter == name}
    return fxenorm.Plan.from_dict(stored, plan.model), groups


def ends(plan: Any) -> tuple[str, str]:
    """The first and the last tensor whose variables others carry too: weight_norm's direction may stay as it is."""
    carried = {name: {int(i) for _, ids in terms for i in ids.unique() if i >= 0} for name, terms in plan.exponents.items()}
    shared = [name for name in carried if any(carried[name] & carried[other] for other in carried if other != name)]
    return shared[0], shared[-1]


@pytest.mark.parametrize("name", HARD)
def test_a_right_plan_passes_and_a_wrong_one_of_the_same_model_fails(name: str) -> None:
    build, x = HARD[name]
    torch.manual_seed(0)
    model = build()
    plan = fxenorm.analyze(model, x)
    assert plan.num_scales > 0 and plan.exact
    found = plan.verify(x)
    assert found and not found.at_fault, str(found)
    for dropped in ends(plan):
        wrong, guilty = without(plan, dropped)
        result = wrong.verify(x)
        assert not result and guilty and set(result.at_fault) == guilty, f"{dropped}: {result}"


def test_there_are_forty_such_models() -> None:
    assert len(HARD) >= 40


@pytest.mark.parametrize("name", HELD_OTHERWISE)
def test_a_check_rescales_the_tensors_that_the_model_holds_by_whatever_name(name: str) -> None:
    torch.manual_seed(0)
    model = HELD_OTHERWISE[name]()
    plan = fxenorm.analyze(plain(), VECTORS).bind(model)
    assert plan.num_scales == 8 and plan.verify(VECTORS)
    for dropped in ends(plan):
        wrong, guilty = without(plan, dropped)
        assert set(wrong.verify(VECTORS).at_fault) == guilty


def test_a_plan_that_is_an_attribute_of_its_model_can_check_it() -> None:
    model = plain()
    model.plan = fxenorm.analyze(model, VECTORS)
    assert model.plan.verify(VECTORS) and not without(model.plan, "o.weight")[0].verify(VECTORS)


def test_a_parameter_that_is_returned_is_compared() -> None:
    model = Two(lambda model, x: (model.o(model.a(x).relu()), model.a.weight))
    assert not fxenorm.analyze(plain(), VECTORS).bind(model).verify(VECTORS)
    assert fxenorm.analyze(model, VECTORS).verify(VECTORS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("differentiates", [False, True])
def test_a_model_that_writes_into_its_inputs_gets_them_anew_at_each_run(dtype: torch.dtype, differentiates: bool) -> None:
    """Also where forward takes a derivative, so that a run without gradients has to be repeated with them."""

    def forward(model: Two, x: Tensor) -> Tensor:
        x.mul_(0.5).add_(1.0)
        if not differentiates:
            return model.o(model.a(x).relu())
        x = x.detach().requires_grad_(True)
        y = model.o(model.a(x).relu())
        return torch.cat([y, torch.autograd.grad(y.sum(), x, create_graph=True)[0]], 1)

    torch.manual_seed(0)
    model, x = Two(forward).to(dtype), VECTORS.to(dtype)
    before = x.clone()
    plan = fxenorm.analyze(plain().to(dtype), x).bind(model) if differentiates else fxenorm.analyze(model, x)
    assert plan.num_scales == 8 and plan.verify(x) and torch.equal(x, before)
    wrong, guilty = without(plan, "o.weight")
    assert set(wrong.verify(x).at_fault) == guilty and torch.equal(x, before)


def test_tensors_without_memory_of_their_own_are_checked_on_a_copy() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    torch.manual_seed(0)
    plan = fxenorm.analyze(plain(), VECTORS)
    model = plain()
    model.a.weight = nn.Parameter(TwoTensor(torch.randn(8, 5), torch.randn(8, 5)))
    plan = plan.bind(model)
    assert plan.verify(VECTORS) and not without(plan, "a.weight")[0].verify(VECTORS)


@pytest.mark.parametrize("stop", [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2])
def test_the_model_has_its_own_memory_back_after_an_error(
    stop: type[BaseException], call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[0].weight.requires_grad_(False)
    plan = fxenorm.analyze(model, VECTORS)
    model(VECTORS).sum().backward()
    loss = model(VECTORS).sum()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: (t.data_ptr(), t.dtype, t.requires_grad, t._version, t.detach().clone()) for name, t in tensors.items()}
    gradients = {name: (p.grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()}
    whole, calls = Runs._called, []

    def stopped(self: Runs, model: nn.Module, arguments: Any) -> Any:
        whole(self, model, arguments)
        calls.append(next(iter(model.parameters())).dtype)
        if len(calls) >= call:
            raise stop("now")
        return whole(self, model, arguments)

    with monkeypatch.context() as patch, pytest.raises(RescaleError if stop is KeyError else stop):
        patch.setattr(Runs, "_called", stopped)
        plan.verify(VECTORS)
    assert calls[0] == torch.float64, "the model itself ran in float64"
    assert plan.verify(VECTORS) and not without(plan, "3.weight")[0].verify(VECTORS)
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, (address, dtype, flag, version, value) in before.items():
        tensor = after[name]
        assert tensor is tensors[name] and (tensor.data_ptr(), tensor.dtype, tensor.requires_grad) == (address, dtype, flag)
        assert tensor._version == version and torch.equal(tensor, value)
    for name, (gradient, value) in gradients.items():
        found = dict(model.named_parameters())[name].grad
        assert found is gradient and (value is None or torch.equal(found, value))
    assert model.training
    loss.backward()  # a graph from before still has its tensors


class Transposed(nn.Module):
    """The identity at one place between two layers, a shuffle at several."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.o(h.flatten(2).mT.reshape(h.shape))


class Messages(nn.Module):
    """The entries of the edges are numbers of nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.o(h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]))


def test_a_second_size_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Transposed(), torch.randn(2, 3, 1, 1)
    right = fxenorm.analyze(model, x)
    found = right.verify(x)
    assert right.num_scales == 1 and found and len(found.checked) == 2 and not found.unchecked
    monkeypatch.setattr("fxenorm.trace.tracer.with_second_size", lambda traced, trace: traced)
    alone = fxenorm.analyze(model, x)
    found = alone.verify(x)
    assert alone.num_scales == 8 and found and found.checked == ("(float32[2, 3, 1, 1])",)
    assert "one size only" in found.unchecked[0] and found.unchecked[0] in str(found)
    stored = alone.to_dict()
    stored["fingerprint"] = None
    stored["symmetry"]["second_sizes"] = [[list(axis) for axis in axes] for axes in right.symmetry.second_sizes]
    found = fxenorm.Plan.from_dict(stored, model).verify(x)
    assert not found and set(found.at_fault) == {group.name for group in alone.groups} and len(found.checked) == 2


def test_a_second_size_of_other_inputs_than_the_examples() -> None:
    torch.manual_seed(0)
    plan = fxenorm.analyze(Transposed(), torch.randn(2, 3, 4, 4))
    found = plan.verify(torch.randn(5, 3, 2, 3))
    assert found and len(found.checked) == 2 and found.checked[0] == "(float32[5, 3, 2, 3])"
    edges = torch.tensor([[0, 1, 3], [1, 2, 0]])
    found = fxenorm.analyze(Messages(), (torch.randn(4, 5), edges)).verify((torch.randn(4, 5), edges))
    assert found and len(found.checked) == 2, "a size at which the numbers of nodes are valid"


def test_a_size_at_which_the_model_does_not_run_is_named() -> None:
    refused = False

    def forward(model: Two, x: Tensor) -> Tensor:
        if refused and len(x) != 6:
            raise LookupError("six only")
        return model.o(model.a(x).relu())

    plan = fxenorm.analyze(Two(forward), VECTORS)
    refused = True
    found = plan.verify(VECTORS)
    assert found and found.checked == ("(float32[6, 5])",) and "six only" in found.unchecked[0] and "six only" in str(found)


def test_slopes_that_are_no_derivatives_name_no_innocent_group() -> None:
    def forward(model: Two, x: Tensor) -> Tensor:
        h = model.a(x).relu()
        h = model.b(h.detach()).relu()
        return model.o(model.c(h).relu())

    torch.manual_seed(0)
    model = Two(forward)
    model.b, model.c = nn.Linear(8, 7), nn.Linear(7, 8)
    plan = fxenorm.analyze(model, VECTORS)
    assert plan.num_scales == 23 and plan.verify(VECTORS)
    wrong, guilty = without(plan, "o.weight")
    assert set(wrong.verify(VECTORS).at_fault) == guilty and len(guilty) == 1 < len(plan.groups)


def _read_beside_the_input(model: Two, x: Tensor) -> Tensor:
    return model.o(torch.cat([x[:, :3], model.a(x).relu()], 1)[:, :8])


def test_the_slopes_that_name_the_groups_at_fault_are_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """By variable, of a function of the outputs; columns of a layer that read the input carry no variable."""
    seen: list[tuple[Runs, Any]] = []
    slopes = Runs.slopes

    def noted(runs: Runs) -> Any:
        found = slopes(runs)
        seen.append((runs, found))
        return found

    monkeypatch.setattr(Runs, "slopes", noted)
    torch.manual_seed(0)
    wrong, _ = without(fxenorm.analyze(Two(_read_beside_the_input), VECTORS), "a.weight")
    assert (torch.cat([ids.flatten() for _, ids in wrong.exponents["o.weight"]]) < 0).any()
    assert not wrong.verify(VECTORS) and len(seen) >= 2
    for runs, found in seen:
        assert found is not None
        total, size = found
        for k, step in enumerate(1e-6 * torch.eye(wrong.num_scales, dtype=torch.float64)):
            assert (runs.loss(step) - runs.loss(-step)) / 2e-6 == pytest.approx(float(total[k]), rel=1e-5, abs=1e-7)
        assert (size >= total.abs()).all() and total.abs().max() > 1e-2


def test_a_graph_that_was_recorded_before_a_check_still_goes_backward() -> None:
    """A check in train mode writes the statistics of norms, in memory of its own: nothing of the model counts as written."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    plan = fxenorm.analyze(model, VECTORS)
    expected = torch.autograd.grad(model(VECTORS).square().sum(), model[0].weight)[0]
    loss = model(VECTORS).square().sum()
    versions = {name: tensor._version for name, tensor in model.state_dict(keep_vars=True).items()}
    assert plan.verify(VECTORS)
    assert {name: tensor._version for name, tensor in model.state_dict(keep_vars=True).items()} == versions
    loss.backward()
    torch.testing.assert_close(model[0].weight.grad, expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("on_copy", [False, True])
def test_each_mode_is_checked_in_its_own_mode(training: bool, on_copy: bool) -> None:
    """Whatever mode the model is in, and whether the check can exchange its memory or has to copy it."""
    from torch.testing._internal.two_tensor import TwoTensor

    torch.manual_seed(0)
    model = Two(lambda m, x: m.o(torch.sigmoid(m.a(x)) if m.training else m.a(x).relu()))
    if on_copy:
        model.a.weight = nn.Parameter(TwoTensor(torch.randn(8, 5), torch.randn(8, 5)))
    found = fxenorm.analyze(plain(), VECTORS).bind(model.train(training)).verify(VECTORS)
    assert found.differences["eval"] <= 1e-10 and found.differences["train"] > 1e-3 and not found
    assert model.training is model.a.training is training
