"""`Plan.predict` against its definition, and against the error of models that are rounded for real."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm import Bits
from fxenorm.errors import OptionError, StaleError
from fxenorm.objectives import Migration, PredictedNoise
from fxenorm.quantisation.rounded_outputs import observed_ranges, rounded_outputs
from fxenorm.trace.inputs import Inputs

from ..helpers import generator, mlp
from ..zoo_base import Net


def chain() -> tuple[nn.Module, list[Tensor]]:
    return mlp(4, 7, 6, 3, seed=2, dtype=torch.float64), [
        torch.randn(9, 4, generator=generator(seed), dtype=torch.float64) for seed in range(6)
    ]


def start(model: nn.Module, given: list[Tensor], scale: float = 1.5) -> tuple[fxenorm.Plan, fxenorm.Observations]:
    """A plan of a badly scaled model, and what it has observed."""
    plan = fxenorm.analyze(model, given[0])
    plan.rescale(scale * torch.randn(plan.num_scales, generator=generator(7), dtype=torch.float64))
    return plan, plan.observe(given, derivatives=4)


def test_the_prediction_is_the_noise_now_and_at_the_optimum() -> None:
    model, given = chain()
    plan, seen = start(model, given)
    before = [tensor.clone() for tensor in model.parameters()]
    bits = Bits(weights=4, per="channel", layers={"4": Bits(weights=None)})
    prediction = plan.predict(seen, bits)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert all(tensor.grad is None for tensor in model.parameters())
    places = [(one.layer, one.kind, one.bits) for one in prediction.ranges]
    assert places == [("0", "weight", 4), ("2", "weight", 4), ("0", "input", 8), ("2", "input", 8), ("4", "input", 8)]
    for one in prediction.ranges:
        if one.kind == "weight":
            weight = next(other for other in seen.weights if other.layer == one.layer)
            steps = weight.values.abs().amax(1) / 7
            expected = (steps.square() * weight.squared_derivative.sum(1)).sum() / 12
        else:
            activation = seen[one.layer, "input"]
            signed = bool((activation.minimum < 0).any())
            step = max(float(activation.maximum.max()), -float(activation.minimum.min())) / (127 if signed else 255)
            used = (activation.maximum != 0) | (activation.minimum != 0)
            expected = step**2 * activation.squared_derivative[used].sum() / 12
        assert one.now == pytest.approx(math.sqrt(float(expected) / seen.output_square), rel=1e-9)
    assert prediction.now == pytest.approx(math.sqrt(sum(one.now**2 for one in prediction.ranges)))
    assert prediction.converged and prediction.best < prediction.now
    plan.rescale(prediction.log_scales)
    again = plan.predict(plan.observe(given, derivatives=4), bits)
    assert again.now == pytest.approx(prediction.best, rel=1e-6) and again.best == pytest.approx(again.now, rel=1e-3)
    assert plan.predict(seen, bits).now == pytest.approx(prediction.best, rel=1e-6)
    result = plan.balance(objective=PredictedNoise(seen, bits))
    assert float(result.log_scales.abs().max()) < 0.1


ONE_LAYER = Bits(weights=None, layers={"0": Bits(weights=4, activations=None), "[24]": None})
VERDICTS: dict[str, tuple[float, Bits, str]] = {
    "badly scaled": (1.5, Bits(), r"worth it: [\d.]+ times less noise\.$"),
    "many bits": (1.5, Bits(weights=24, activations=24), "hardly any noise"),
    "none is to be had": (
        0.0,
        Bits(weights=None, layers={"0": Bits(weights=4, activations=None), "[24]": None}),
        "change nothing",
    ),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_the_first_line_says_whether_it_is_worth_it(name: str) -> None:
    scale, bits, verdict = VERDICTS[name]
    model, given = chain()
    plan, seen = start(model, given, scale)
    if name == "none is to be had":
        # One layer, one range, and rows that are as large as one another already.
        plan.balance(objective=PredictedNoise(seen, bits))
    prediction = plan.predict(seen, bits)
    first, second, *_ = str(prediction).splitlines()
    assert first == prediction.verdict and re.search(verdict, first)
    assert second.startswith("predicted output noise: ") and repr(bits) in second
    assert ("rank, and are too large" in str(prediction)) == (prediction.now > 0.3)


def test_the_table_has_a_row_a_layer_and_the_data_go_to_json() -> None:
    model, given = chain()
    plan, seen = start(model, given)
    with torch.no_grad():
        prediction = plan.predict(seen, Bits(layers={"2": Bits(weights=None), "4": None}))
    text = str(prediction)
    rows = {line.split()[0]: line for line in text.splitlines() if line[:1] in "024" and "%" in line}
    assert set(rows) == {"0", "2"} and "float" in rows["2"] and "8/8" in rows["0"] and "-/8" in rows["2"]
    stored = json.loads(json.dumps(prediction.to_dict()))
    assert stored["verdict"] == prediction.verdict and len(stored["ranges"]) == 3 and len(stored["log_scales"]) == 13
    assert prediction.verdict in prediction._repr_html_() and repr(prediction).startswith("<fxenorm.Prediction: ")
    deep = mlp(*[4] * 30, seed=0, dtype=torch.float64)
    plan = fxenorm.analyze(deep)
    prediction = plan.predict(plan.observe([given[0]], derivatives=True))
    assert "and 9 more layers" in str(prediction) and "held: " in str(prediction)


def test_models_without_scales_and_wrong_arguments() -> None:
    gelu = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2)).double()
    given = chain()[1]
    plan = fxenorm.analyze(gelu, given[0], exclude="*")
    with pytest.warns(fxenorm.FxenormWarning):
        prediction = plan.predict(plan.observe(given, derivatives=True))
    assert prediction.now == prediction.best > 0 and "change nothing" in prediction.verdict
    plan, seen = start(*chain())
    with pytest.raises(OptionError, match="derivatives=True"):
        plan.predict(plan.observe(given))
    with pytest.raises(OptionError, match="expected those of"):
        plan.predict({})
    with pytest.raises(OptionError, match="bits=8"):
        plan.predict(seen, 8)
    plan.step()
    with pytest.raises(StaleError):
        plan.predict(seen)


# ---------------------------------------------------------------- measured


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


def transformer() -> tuple[nn.Module, list[Tensor]]:
    """A pre-norm block with attention."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.embed(x)
        y = m.norm(x)
        q, k, v = (layer(y).unflatten(-1, (2, 6)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        x = x + m.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return m.head(m.last(x).mean(1))

    linear = {name: nn.Linear(12, 12, bias=False) for name in "qkvo"}
    norms = {name: RMSNorm(12) for name in ("norm", "last")}
    model = Net(forward, embed=nn.Linear(6, 12), **linear, **norms, head=nn.Linear(12, 10))
    return model, [torch.randn(16, 6, 6, generator=generator(seed), dtype=torch.float64) for seed in range(8)]


def depthwise() -> tuple[nn.Module, list[Tensor]]:
    """Depthwise and pointwise convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return model, [torch.randn(8, 3, 10, 10, generator=generator(seed), dtype=torch.float64) for seed in range(8)]


NETS: dict[str, Callable[[], tuple[nn.Module, list[Tensor]]]] = {"transformer": transformer, "depthwise": depthwise}
BITS = Bits(weights=8, activations=8)


def measured(model: nn.Module, given: list[Tensor]) -> float:
    """The relative error of the rounded model's outputs over all batches."""
    inputs = [Inputs((x,)) for x in given]
    ranges, expected, _ = observed_ranges(model, inputs, lambda leaves: leaves)
    wrong = size = 0.0
    for one, outputs in zip(inputs, expected, strict=True):
        found = rounded_outputs(model, one, lambda leaves: leaves, BITS, ranges)
        wrong += float((found[0] - outputs[0]).square().sum())
        size += float(outputs[0].square().sum())
    return math.sqrt(wrong / size)


@functools.cache
def by_method(name: str) -> dict[str, list[tuple[float, float]]]:
    """By method, for three networks: the measured error, and the prediction."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(3):
        torch.manual_seed(seed)
        model, given = NETS[name]()
        plan, seen = start(model.double().eval(), given, 0.7)
        ranges = fxenorm.analyze(model, given[0], p=math.inf)
        methods: dict[str, Callable[[], object]] = {
            "nothing": lambda: None,
            "smoothquant": lambda plan=plan, seen=seen: plan.balance(objective=Migration(seen, p=16)),
            "p = 2": plan.balance,
            "p = inf": lambda plan=plan, ranges=ranges: plan.rescaler.moved(ranges.balance().log_scales),
            "noise": lambda plan=plan, seen=seen: plan.balance(objective=PredictedNoise(seen, BITS)),
        }
        here = plan.rescaler.position
        for method, run in methods.items():
            run()
            found.setdefault(method, []).append((measured(model, given), plan.predict(seen, BITS).now))
            plan.rescale(here - plan.rescaler.position)
    return found


@pytest.mark.parametrize("name", NETS)
def test_predictions_rank_methods_as_measured(name: str) -> None:
    found, compared = by_method(name), 0
    for one, other in itertools.combinations(found, 2):
        pairs = zip(found[one], found[other], strict=True)
        errors, noises = zip(*((math.log(a[0] / b[0]), math.log(a[1] / b[1])) for a, b in pairs), strict=True)
        if abs(statistics.mean(errors)) > 2 * statistics.stdev(errors):
            compared += 1
            assert statistics.mean(errors) * statistics.mean(noises) > 0, (one, other, found)
    assert compared >= 4
    for number, (error, noise) in enumerate(found["noise"]):
        assert noise == min(rows[number][1] for rows in found.values())
        assert error < 0.5 * found["nothing"][number][0]


@pytest.mark.parametrize("name", NETS)
def test_predictions_are_as_large_as_measured(name: str) -> None:
    ratios = [
        statistics.mean(math.log(noise / error) for error, noise in rows)
        for rows in by_method(name).values()
        if all(error < 0.15 for error, _ in rows)
    ]
    middle = statistics.median(ratios)
    assert len(ratios) >= 4 and all(abs(ratio - middle) < math.log(1.5) for ratio in ratios), ratios
    assert abs(middle) < math.log(1.7)
