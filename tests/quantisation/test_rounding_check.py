"""Rounded runs of a model, and `plan.balance(check=...)`, which writes only what makes no larger rounding error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxenorm
from fxenorm import Bits
from fxenorm.errors import ExampleInputsError, OptionError
from fxenorm.quantisation.rounded_outputs import observed_ranges, relative_error, rounded_outputs
from fxenorm.trace.inputs import Inputs

from ..helpers import generator, mlp, state_of

ALL_BITS = [Bits(), Bits(4, None), Bits(None, 4), Bits(4, 6, per="channel"), Bits(4, 8, per=3), Bits(symmetric=True), Bits(2, 2)]


def rounded(model: nn.Module, x: Any, bits: Bits) -> Tensor:
    """The output of a rounded model, by ranges observed on the same inputs."""
    inputs = Inputs((x,))
    held = lambda leaves: [leaf for leaf in leaves if leaf.returned]  # noqa: E731
    ranges, _, _ = observed_ranges(model, [inputs], held)
    return rounded_outputs(model, inputs, held, bits, ranges)[0]


# ---------------------------------------------------------------- rounding by definition, entry by entry


def nearest(value: float, end: float, numbers: range) -> float:
    """The nearest of the numbers of a quantiser whose range ends at `end`."""
    if end == 0:
        return 0.0
    step = end / max(numbers)
    return step * min(max(round(value / step), min(numbers)), max(numbers))


def by_hand(values: Tensor, bits: int, unsigned: bool = False) -> Tensor:
    """A vector of values that share a range, rounded one by one."""
    largest = 2**bits - 1 if unsigned else 2 ** (bits - 1) - 1
    end = max(abs(value) for value in values.tolist())
    numbers = range(0 if unsigned else -largest, largest + 1)
    return torch.tensor([nearest(value, end, numbers) for value in values.tolist()], dtype=torch.float64)


def weight_by_hand(rows: Tensor, bits: Bits) -> Tensor:
    """A weight, one row an output channel, (outputs, inputs, positions): rounded range by range."""
    if bits.weights is None:
        return rows
    if bits.per == "tensor":
        return by_hand(rows.reshape(-1), bits.weights).reshape(rows.shape)
    size = rows.shape[1] if bits.per == "channel" else int(bits.per)
    parts = [[by_hand(part.reshape(-1), bits.weights).reshape(part.shape) for part in row.split(size)] for row in rows]
    return torch.stack([torch.cat(row) for row in parts])


def activation_by_hand(x: Tensor, bits: Bits) -> Tensor:
    """An activation, rounded by its own range."""
    if bits.activations is None:
        return x
    unsigned = bool((x >= 0).all()) and not bits.symmetric
    return by_hand(x.reshape(-1), bits.activations, unsigned).reshape(x.shape)


@pytest.mark.parametrize("bits", ALL_BITS, ids=str)
def test_a_rounded_run_rounds_weights_and_inputs_of_layers_and_nothing_else(bits: Bits) -> None:
    model = mlp(5, 7, 3, seed=1, dtype=torch.float64)
    x = torch.randn(4, 5, generator=generator(2), dtype=torch.float64)
    hidden = F.linear(
        activation_by_hand(x, bits), weight_by_hand(model[0].weight.detach()[:, :, None], bits)[..., 0], model[0].bias
    )
    # The range of the second layer is that of the model itself.
    seen = model[:2](x).detach()
    entered = hidden.relu().detach()
    if bits.activations is not None:
        levels = 2 ** (bits.activations - bits.symmetric) - 1
        step = seen.max() / levels
        entered = step * (entered / step).round().clamp(max=levels)
    wanted = F.linear(entered, weight_by_hand(model[2].weight.detach()[:, :, None], bits)[..., 0], model[2].bias)
    torch.testing.assert_close(rounded(model, x, bits), wanted.detach(), rtol=1e-10, atol=1e-12)
    assert bits.weights is None or not torch.equal(wanted, model(x))


@pytest.mark.parametrize("bits", ALL_BITS, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_share_ranges_by_output_channel(transposed: bool, groups: int, bits: Bits) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(4, 6, 2, groups=groups, dtype=torch.float64)
    x = torch.randn(2, 4, 3, 3, generator=generator(3), dtype=torch.float64)
    weight = layer.weight.detach()
    rows = torch.cat([part.transpose(0, 1) for part in weight.chunk(groups)]) if transposed else weight
    made = weight_by_hand(rows.flatten(2), bits).reshape(rows.shape)
    exact = copy.deepcopy(layer)
    with torch.no_grad():
        exact.weight.copy_(torch.cat([part.transpose(0, 1) for part in made.chunk(groups)]) if transposed else made)
        wanted = exact(activation_by_hand(x, bits))
    torch.testing.assert_close(rounded(layer, x, bits), wanted, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- the same layer, written in other ways


class Written(nn.Module):
    """One linear layer as a call of some function."""

    def __init__(self, weight: Tensor, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.call = nn.Parameter(weight.clone()), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight)


WAYS: dict[str, tuple[bool, Callable[[Tensor, Tensor], Tensor]]] = {
    "F.linear": (False, F.linear),
    "matmul": (True, lambda x, w: x @ w),
    "matmul of a transposed": (False, lambda x, w: x @ w.mT),
    "weight on the left": (False, lambda x, w: (w @ x.mT).mT),
    "mm": (True, torch.mm),
    "addmm": (True, lambda x, w: torch.addmm(x.new_zeros(6), x, w)),
    "einsum": (False, lambda x, w: torch.einsum("bi,oi->bo", x, w)),
    "bmm": (True, lambda x, w: torch.bmm(x[None], w[None])[0]),
    "of an expert a token": (True, lambda x, w: torch.bmm(x[:, None], w[None][torch.zeros(4, dtype=torch.int64)])[:, 0]),
    "in its own type": (True, lambda x, w: x @ w.float().double()),
    "computed": (False, lambda x, w: F.linear(x, 0.5 * w * 2)),
    "half by half": (False, lambda x, w: torch.cat([F.linear(x, w[:3]), F.linear(x, w[3:])], 1)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bits", [Bits(4, 6, per="channel"), Bits(4, 6, per=2)], ids=str)
def test_a_layer_is_rounded_whatever_function_it_is_written_with(way: str, bits: Bits) -> None:
    weight = torch.randn(6, 5, generator=generator(4), dtype=torch.float32).double()
    x = torch.randn(4, 5, generator=generator(5), dtype=torch.float64)
    layer = nn.Linear(5, 6, bias=False, dtype=torch.float64)
    layer.weight = nn.Parameter(weight)
    turned, call = WAYS[way]
    found = rounded(Written(weight.T if turned else weight, call), x, bits)
    torch.testing.assert_close(found, rounded(layer, x, bits), rtol=1e-10, atol=1e-12)


def test_attention_is_rounded_at_its_projections_and_not_at_its_products() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    inputs = Inputs((torch.randn(2, 3, 8, generator=generator(6), dtype=torch.float64),) * 3)
    held = lambda leaves: [leaf for leaf in leaves if leaf.returned]  # noqa: E731
    ranges, _, layers = observed_ranges(attention, [inputs], held)
    assert layers == ["in_proj_weight", "out_proj"] and set(ranges) == {("in_proj_weight", 0), ("out_proj", 0)}
    exact = rounded_outputs(attention, inputs, held, Bits(layers={"*": None}), ranges)
    torch.testing.assert_close(exact[0], attention(*inputs.args)[0].detach(), rtol=1e-12, atol=1e-12)


def test_each_call_of_a_layer_has_a_range_of_its_own_and_layers_are_left_in_float_by_name() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(100 * self.body(x)))

    model, x = Twice(), torch.randn(3, 4, generator=generator(7))
    held = lambda leaves: [leaf for leaf in leaves if leaf.returned]  # noqa: E731
    ranges, _, layers = observed_ranges(model, [Inputs((x,)), Inputs((2 * x,))], held)
    assert layers == ["body", "head"] and set(ranges) == {("body", 0), ("body", 1), ("head", 0)}
    torch.testing.assert_close(ranges["body", 0].maximum, 2 * x.max())
    exact = [model(x).detach().double()]
    assert relative_error([rounded(model, x, Bits(layers={"*": None}))], exact) < 1e-6
    head = rounded(model, x, Bits(2, 2, layers={"body": None}))
    assert 1e-3 < relative_error([head], exact) < relative_error([rounded(model, x, Bits(2, 2))], exact)


def test_a_range_that_was_never_below_0_has_no_numbers_there() -> None:
    layer, x = nn.Linear(4, 3, dtype=torch.float64), torch.rand(5, 4, generator=generator(7), dtype=torch.float64)
    held = lambda leaves: [leaf for leaf in leaves if leaf.returned]  # noqa: E731
    ranges, _, _ = observed_ranges(layer, [Inputs((x,))], held)
    for bits, expected in ((Bits(None, 8), torch.zeros_like(x)), (Bits(None, 16, symmetric=True), -x)):
        (found,) = rounded_outputs(layer, Inputs((-x,)), held, bits, ranges)
        torch.testing.assert_close(found, layer(expected).detach(), rtol=1e-3, atol=1e-4)


def test_a_rounded_run_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(16, 2)).train()
    x = torch.randn(2, 3, 4, 4, generator=generator(8))
    before, seed = state_of(model), torch.random.get_rng_state()
    first, second = rounded(model, x, Bits()), rounded(model, x, Bits())
    assert torch.equal(first, second) and torch.equal(seed, torch.random.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(model).items())
    assert model.training and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ---------------------------------------------------------------- balance with a check


def spoilt(seed: int = 0) -> nn.Sequential:
    """A net whose hidden channels lie some powers of ten apart, though it is the function of an even one."""
    model = mlp(6, 16, 16, 4, seed=seed)
    plan = fxenorm.analyze(model)
    plan.rescale(2 * torch.randn(plan.num_scales, generator=generator(seed), dtype=torch.float64))
    return model


X = torch.randn(64, 6, generator=generator(9))


class Towards:
    """An objective with its minimum at given log-scales."""

    lower_bound = 0.0

    def __init__(self, at: Tensor) -> None:
        self.at = at

    def value_and_gradient(self, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        return (log_scales - self.at).square().sum() / 2, log_scales - self.at

    def curvature_times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        return direction


@pytest.mark.parametrize("p", [1.0, 2.0, 8.0, float("inf")])
def test_a_balance_that_lowers_the_error_is_written_and_tells_both(p: float) -> None:
    model = spoilt()
    checked, plain = copy.deepcopy(model), copy.deepcopy(model)
    result = fxenorm.analyze(checked, p=p).balance(check=X)
    other = fxenorm.analyze(plain, p=p).balance()
    assert not result.undone and result.converged and result.bits == Bits()
    assert 10 * result.rounding_after < result.rounding_before
    assert all(torch.equal(a, b) for a, b in zip(checked.parameters(), plain.parameters(), strict=True))
    torch.testing.assert_close(result.log_scales, other.log_scales)
    for network, told in ((model, result.rounding_before), (checked, result.rounding_after)):
        assert told == pytest.approx(relative_error([rounded(network, X, Bits())], [network(X).detach().double()]), rel=1e-6)
    lines = str(result).splitlines()
    assert lines[1].split()[0] == "rounding" and any("at Bits()" in line for line in lines)


BAD: dict[str, Callable[[fxenorm.Plan], dict[str, Any]]] = {
    "own": lambda plan: {"objective": Towards(3 * torch.randn(plan.num_scales, generator=generator(1)).double())},
    "masses": lambda plan: {
        "objective": fxenorm.objectives.Masses(
            {
                name: torch.rand(shape, generator=generator(2)) ** 30
                for name, shape in plan.symmetry.shapes.items()
                if "weight" in name
            },
            power=2,
        )
    },
    "box": lambda plan: {"objective": fxenorm.objectives.Weights(), "maximise": True, "max_log_scale": 3.0},
    "sum": lambda plan: {
        "objective": 1e-6 * fxenorm.objectives.Weights() + Towards(torch.linspace(-4, 4, plan.num_scales, dtype=torch.float64))
    },
}


@pytest.mark.parametrize("name", BAD)
def test_a_balance_that_raises_the_error_writes_nothing_with_any_objective(name: str) -> None:
    model = mlp(6, 16, 16, 4, seed=3)
    plan = fxenorm.analyze(model)
    plan.balance()
    optimizer = torch.optim.Adam(model.parameters())
    model(X).square().sum().backward()
    optimizer.step()
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    memory = [parameter.data_ptr() for parameter in model.parameters()]
    given = BAD[name](plan)
    result = plan.balance(optimizer, check=X, **given)
    assert result.undone and not result.converged and not result.log_scales.any()
    assert result.rounding_after > result.rounding_before and result.norm_after == result.norm_before
    assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())
    assert str(state) == str(optimizer.state_dict())
    assert memory == [parameter.data_ptr() for parameter in model.parameters()]
    assert "UNDONE" in str(result) and "UNDONE" in repr(result)
    # The share by which the error may grow is one of the error itself.
    grown = result.rounding_after / result.rounding_before - 1
    assert plan.balance(optimizer, check=X, worse_by=0.99 * grown, **given).undone
    allowed = plan.balance(optimizer, check=X, worse_by=1.01 * grown, **given)
    assert not allowed.undone and bool(allowed.log_scales.any())
    assert not torch.equal(weights["0.weight"], model[0].weight)


def test_the_answer_at_p_infinity_is_undone_too() -> None:
    """Where weights stay in float, even ranges of weights can spoil those of activations."""
    model = mlp(6, 16, 16, 4, seed=0)
    fxenorm.analyze(model).balance()
    before = copy.deepcopy(model.state_dict())
    result = fxenorm.analyze(model, p=float("inf")).balance(check=X, bits=Bits(None, 3))
    assert result.undone and result.rounding_after > result.rounding_before and result.residual is None
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_balance_that_moves_nothing_tells_one_error() -> None:
    model = mlp(6, 16, 4, seed=3)
    plan = fxenorm.analyze(model)
    plan.balance(tol=1e-9)
    result = plan.balance(check=X, tol=1e-3)
    assert not result.undone and result.rounding_after == result.rounding_before > 0


def test_an_error_in_the_second_run_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = spoilt()
    plan = fxenorm.analyze(model, X)
    before, memory = copy.deepcopy(model.state_dict()), [parameter.data_ptr() for parameter in model.parameters()]
    runs: list[bool] = []

    def measured(found: Any, expected: Any) -> float:
        runs.append(torch.equal(before["0.weight"], model[0].weight))
        if len(runs) == 2:
            raise KeyboardInterrupt
        return relative_error(found, expected)

    monkeypatch.setattr("fxenorm.quantisation.check.relative_error", measured)
    with pytest.raises(KeyboardInterrupt):
        plan.balance(check=X)
    assert runs == [True, False]
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert memory == [parameter.data_ptr() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"bits": Bits()}, OptionError, "bits belongs to a check"),
        ({"worse_by": 0.1}, OptionError, "worse_by belongs to a check"),
        ({"check": X, "bits": 8}, OptionError, "bits=8"),
        ({"check": X, "worse_by": -0.1}, OptionError, "worse_by=-0.1"),
        ({"check": X, "worse_by": float("nan")}, OptionError, "worse_by=nan"),
        ({"check": X, "worse_by": True}, OptionError, "worse_by=True"),
        ({"check": X, "bits": Bits(layers={"haed": None})}, OptionError, "haed"),
        ({"check": torch.randn(2, 3)}, ExampleInputsError, "does not run"),
        ({"check": X / 0}, ExampleInputsError, "not finite"),
        ({"check": "x"}, ExampleInputsError, "str"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # random tensors differ between processes
)
def test_what_cannot_be_checked_raises_before_anything_is_written(given: Any, error: type[Exception], words: str) -> None:
    model = spoilt()
    plan = fxenorm.analyze(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=words):
        plan.balance(**given)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_model_without_values_has_no_check() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(OptionError, match="meta"):
        fxenorm.analyze(model).balance(check=torch.randn(2, 4))
