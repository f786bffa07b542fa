"""`Migration` against SmoothQuant's closed form, `PredictedNoise` against its definition, and both where channels are dead."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm import Bits
from fxenorm.errors import OptionError, StaleError
from fxenorm.objectives import Migration, Normalised, PredictedNoise, Weights

from ..helpers import generator, mlp, randomise
from ..zoo_base import Net


def batches(width: int = 4, count: int = 6, rows: int = 9) -> list[Tensor]:
    return [torch.randn(rows, width, generator=generator(seed), dtype=torch.float64) for seed in range(count)]


def norm_and_readers() -> nn.Module:
    """A norm in front of two layers, whose rows go to the outputs: SmoothQuant's case."""
    layers = {"norm": nn.LayerNorm(6), "left": nn.Linear(6, 5), "right": nn.Linear(6, 3)}
    return randomise(Net(lambda m, x: (m.left(m.norm(x)), m.right(m.norm(x))), **layers), seed=2).double()


def once(model: nn.Module) -> nn.Module:
    """The same with one call of the norm, so that both layers read one activation."""

    def forward(m: nn.Module, x: Tensor) -> Any:
        h = m.norm(x)
        return m.left(h), m.right(h)

    return Net(forward, norm=model.norm, left=model.left, right=model.right)


@pytest.mark.parametrize("p", [1.0, 4.0, 24.0])
@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_migration_at_one_norm_is_the_closed_form_of_smoothquant(alpha: float, p: float) -> None:
    model, given = once(norm_and_readers()), batches(6)
    plan = fxenorm.analyze(model, given[0])
    largest = torch.cat([model.norm(x) for x in given]).detach().abs().amax(0)
    both = torch.cat([model.left.weight, model.right.weight]).detach()
    r = 2 * (1 - alpha) * p
    scale = largest.pow(alpha) / torch.linalg.vector_norm(both, r, 0).pow(1 - alpha)
    gain, rows = model.norm.weight.detach().clone(), both.clone()
    result = plan.balance(objective=Migration(plan.observe(given), alpha=alpha, p=p), tol=1e-9)
    assert result.converged and not result.held
    torch.testing.assert_close(model.norm.weight.detach(), gain / scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.cat([model.left.weight, model.right.weight]).detach(), rows * scale, rtol=1e-6, atol=0)


def test_migration_is_the_sum_that_it_says() -> None:
    model, given = mlp(4, 6, 3, seed=1, dtype=torch.float64), batches()
    plan = fxenorm.analyze(model)
    alpha, p = 0.3, 3.0
    q, r = 2 * alpha * p, 2 * (1 - alpha) * p
    function = plan.objective(Migration(plan.observe(given), alpha=alpha, p=p))
    for seed in range(3):
        s = torch.randn(6, generator=generator(seed), dtype=torch.float64)
        inner = torch.cat([model[:2](x) for x in given]).detach().amax(0) * s.exp()
        outer = torch.cat(given).abs().amax(0)
        weights = [model[0].weight.detach() * s.exp()[:, None], model[2].weight.detach() * (-s).exp()]
        expected = sum(one.pow(q).sum() / q for one in (inner, outer)) + sum(one.abs().pow(r).sum() / r for one in weights)
        torch.testing.assert_close(function.value_and_gradient(s)[0], torch.as_tensor(expected), rtol=1e-9, atol=0)


# ---------------------------------------------------------------- predicted noise

ALL_BITS: dict[str, Bits] = {
    "tensor": Bits(),
    "channel": Bits(weights=4, per="channel"),
    "group": Bits(weights=3, activations=6, per=3),
    "weights": Bits(weights=4, activations=None),
    "activations": Bits(weights=None, activations=4),
    "mixed": Bits(layers={"2": Bits(weights=4, per="channel"), "4": None}),
}


def chain(seed: int = 1) -> nn.Module:
    return mlp(4, 7, 6, 3, seed=seed, dtype=torch.float64)


def observed(model: nn.Module) -> tuple[fxenorm.Plan, fxenorm.Observations]:
    plan = fxenorm.analyze(model)
    return plan, plan.observe(batches(), derivatives=4)


def steps_and_slopes(seen: fxenorm.Observations, bits: Bits) -> list[tuple[Tensor, float, Tensor]]:
    """By range: its entries, the levels, and the squared derivatives, by plain loops."""
    found = []
    for weight in seen.weights:
        one = bits.of(weight.layer)
        if one is not None and one.weights is not None:
            levels, shape = 2 ** (one.weights - 1) - 1, weight.values.shape
            size = {"tensor": math.inf, "channel": shape[1]}.get(one.per, one.per)
            parts: dict[Any, list[tuple[int, int]]] = {}
            for i, j in itertools.product(range(shape[0]), range(shape[1])):
                parts.setdefault(0 if size == math.inf else (i, j // size), []).append((i, j))
            for entries in parts.values():
                rows, columns = zip(*entries, strict=True)
                found.append((weight.values[rows, columns], levels, weight.squared_derivative[rows, columns]))
        if one is not None and one.activations is not None:
            seen_in = seen[weight.layer, "input"]
            negative = bool((seen_in.minimum < 0).any())
            levels = 2 ** (one.activations - 1) - 1 if negative else 2**one.activations - 1
            found.append((torch.maximum(seen_in.maximum, -seen_in.minimum), levels, seen_in.squared_derivative))
    return found


@pytest.mark.parametrize("name", ALL_BITS)
def test_the_value_is_the_log_of_the_sum_over_ranges(name: str) -> None:
    plan, seen = observed(chain())
    # An entry of exactly 0 is not rounded, so that its derivative does not matter.
    ranges = [(v, levels, torch.where(v == 0, 0.0, f)) for v, levels, f in steps_and_slopes(seen, ALL_BITS[name])]
    by_norm = sum(torch.linalg.vector_norm(v, 48) ** 2 * f.sum() / (12 * levels**2) for v, levels, f in ranges)
    by_largest = sum(v.abs().amax() ** 2 * f.sum() / (12 * levels**2) for v, levels, f in ranges)
    term = PredictedNoise(seen, ALL_BITS[name], ridge=1e-300)
    value, _ = term.value_and_gradient(torch.zeros(plan.num_scales, dtype=torch.float64))
    # The floor under derivatives adds a millionth of their mean.
    assert float(value) == pytest.approx(math.log(by_norm / seen.output_square), abs=1e-4)
    assert 0 <= float(value) - math.log(by_largest / seen.output_square) < 0.2


@pytest.mark.parametrize("name", ALL_BITS)
def test_derivatives_are_right_and_the_function_is_convex(name: str) -> None:
    plan, seen = observed(chain())
    function = plan.objective(PredictedNoise(seen, ALL_BITS[name]))
    for seed in range(3):
        s, d = torch.randn(2, plan.num_scales, generator=generator(seed), dtype=torch.float64)
        step = 1e-5
        (up, slope_up), (down, slope_down) = (function.value_and_gradient(s + sign * step * d) for sign in (1, -1))
        value, slope = function.value_and_gradient(s)
        bent = function.curvature_times(s, d)
        torch.testing.assert_close((up - down) / (2 * step), (slope * d).sum(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close((slope_up - slope_down) / (2 * step), bent, rtol=1e-4, atol=1e-6)
        assert float((bent * d).sum()) > 0
        assert float(function.value_and_gradient(s + d)[0]) >= float(value + (slope * d).sum())


@pytest.mark.parametrize("name", ALL_BITS)
def test_the_optimum_is_found_from_any_rescaling(name: str) -> None:
    values = []
    for seed in (None, 0, 1):
        model = chain(seed=2)  # all channels are alive
        plan = fxenorm.analyze(model)
        if seed is not None:
            plan.rescale(1.5 * torch.randn(plan.num_scales, generator=generator(seed), dtype=torch.float64))
        seen = plan.observe(batches(), derivatives=4)
        result = plan.balance(objective=PredictedNoise(seen, ALL_BITS[name]))
        assert result.converged and not result.held and result.objective_after < result.objective_before
        values.append(result.objective_after)
        again = plan.balance(objective=PredictedNoise(seen, ALL_BITS[name]))
        assert abs(again.objective_after - result.objective_after) < 1e-3
    assert max(values) - min(values) < 0.02


def test_shifts_of_whole_ranges_change_nothing() -> None:
    """A norm's channels move together: its gain is not rounded, and what is rounded moves as a whole."""
    model = once(norm_and_readers())
    plan = fxenorm.analyze(model, batches(6)[0])
    term = PredictedNoise(plan.observe(batches(6), derivatives=True), ridge=1e-300)
    zero = torch.zeros(plan.num_scales, dtype=torch.float64)
    (value, slope), (other, _) = term.value_and_gradient(zero), term.value_and_gradient(zero + 3)
    torch.testing.assert_close(other, value, rtol=1e-12, atol=1e-12)
    assert abs(float(slope.sum())) < 1e-12 and float(slope.abs().max()) > 1e-3
    result = plan.balance(objective=PredictedNoise(term.observations))
    assert result.converged and not result.held and abs(float(result.log_scales.mean())) < 0.05


def dead_rows(model: nn.Module) -> None:
    model[0].weight[2:4] = 0
    model[0].bias[2:4] = 0


def dead_columns(model: nn.Module) -> None:
    model[2].weight[:, 1] = 0


def dead(model: nn.Module) -> None:
    dead_rows(model)
    model[2].weight[:, 2:4] = 0


def silent(model: nn.Module) -> None:
    """The ReLU never fires, on these data."""
    model[0].bias[:3] = -100


def nearly_dead(model: nn.Module) -> None:
    model[0].weight[2] *= 1e-14
    model[0].bias[2] = 0


DEAD: dict[str, tuple[Callable[[nn.Module], None], set[int]]] = {
    "rows": (dead_rows, {2, 3}),
    "columns": (dead_columns, {1}),
    "both": (dead, set()),
    "silent": (silent, set()),
    "nearly": (nearly_dead, set()),
}


def convolutions() -> tuple[nn.Module, list[Tensor]]:
    """Kernels whose places move together, one convolution with groups among them."""
    layers = [nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return randomise(model, seed=4).double(), [
        torch.randn(5, 2, 6, 6, generator=generator(seed), dtype=torch.float64) for seed in range(3)
    ]


def reused() -> tuple[nn.Module, list[Tensor]]:
    """A layer that reads what it has written, so that both terms of its diagonal meet in one variable."""
    layers = {"first": nn.Linear(4, 6), "again": nn.Linear(6, 6), "last": nn.Linear(6, 3)}
    model = Net(lambda m, x: m.last(m.again(m.again(m.first(x).relu()).relu()).relu()), **layers)
    return randomise(model, seed=5).double(), batches()


def half_dead() -> tuple[nn.Module, list[Tensor]]:
    """Channels that nothing reaches, that nothing reads, and that never fire."""
    model = chain()
    with torch.no_grad():
        for change in (dead_rows, dead_columns, silent):
            change(model)
    return model, batches()


TERMS_OF: dict[str, Callable[[], tuple[nn.Module, list[Tensor]]]] = {
    "chain": lambda: (chain(), batches()),
    "convolutions": convolutions,
    "reused": reused,
    "dead": half_dead,
}


@pytest.mark.parametrize("per", ["tensor", "channel", 3])
@pytest.mark.parametrize("name", TERMS_OF)
def test_what_is_told_of_each_variable_alone_is_what_it_is(name: str, per: Any) -> None:
    model, given = TERMS_OF[name]()
    plan = fxenorm.analyze(model, given[0])
    term = PredictedNoise(plan.observe(given, derivatives=True), Bits(weights=4, per=per))
    units = torch.eye(plan.num_scales, dtype=torch.float64)
    for at in (0 * units[0], torch.randn(plan.num_scales, generator=generator(1), dtype=torch.float64)):
        bent = torch.stack([term.curvature_times(at, unit) for unit in units])
        torch.testing.assert_close(bent, bent.T, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(term.curvature_diagonal(at), bent.diagonal(), rtol=1e-9, atol=1e-11)
        assert bool((term.curvature_diagonal(at) >= 2 * term.ridge).all())
    told = term.recessions()
    asked = torch.tensor([[term.recession(sign * unit) for unit in units] for sign in (1.0, -1.0)], dtype=torch.float64)
    assert bool(told.isnan().any()) == (name == "reused")
    torch.testing.assert_close(torch.where(told.isnan(), asked, told), asked, rtol=0, atol=0)
    assert float(asked.amax()) > 0


def test_entries_that_move_together_count_each_by_itself() -> None:
    model, given = convolutions()
    plan = fxenorm.analyze(model, given[0])
    seen = plan.observe(given, derivatives=True)
    bits = Bits(weights=4, activations=None, per="channel")
    total = 0.0
    for weight in seen.weights:
        rows, slopes = weight.values.flatten(1), weight.squared_derivative.flatten(1)
        total += float((torch.linalg.vector_norm(rows, 48, dim=1) ** 2 * slopes.sum(1)).sum()) / (12 * 7**2)
    value, _ = PredictedNoise(seen, bits, ridge=1e-300).value_and_gradient(torch.zeros(plan.num_scales, dtype=torch.float64))
    assert float(value) == pytest.approx(math.log(total / seen.output_square), abs=1e-4)


def test_a_term_is_not_asked_for_one_variable_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = chain(), []
    plan, seen = observed(model)
    plain = PredictedNoise.recession
    monkeypatch.setattr(PredictedNoise, "recession", lambda self, along: asked.append(along) or plain(self, along))
    assert plan.balance(objective=PredictedNoise(seen)).converged
    assert len(asked) <= 2 * len(plan.groups) < plan.num_scales
    assert all(int((along != 0).sum()) > 1 for along in asked)


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("name", DEAD)
def test_nothing_runs_away_where_channels_are_dead(name: str, per: str) -> None:
    change, held = DEAD[name]
    model = chain()
    with torch.no_grad():
        change(model)
    plan, seen = observed(model)
    before = model(batches()[0])
    result = plan.balance(objective=PredictedNoise(seen, Bits(weights=4, per=per)))
    # From a channel 1e-14 times as large as others one has to go far.
    assert result.converged and float(result.log_scales.abs().max()) < (40 if name == "nearly" else 12)
    assert {k for one in result.held for k in one.variables if k < 7} >= held
    assert not result.log_scales[sorted(held)].any() and all("not attained" in one.reason for one in result.held)
    torch.testing.assert_close(model(batches()[0]), before)
    plan.rescale(-result.log_scales)
    moved = plan.balance(objective=Migration(seen))
    assert moved.converged and float(moved.log_scales.abs().max()) < (40 if name == "nearly" else 12)
    assert {k for one in moved.held for k in one.variables} >= held


def test_a_layer_that_reads_zeros_alone_makes_no_noise() -> None:
    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 3), "zero": nn.Linear(4, 5), "reader": nn.Linear(5, 3)}
    model = randomise(Net(lambda m, x: m.b(m.a(x).relu()) + m.reader(m.zero(x).relu()), **layers), seed=0).double()
    with torch.no_grad():
        model.zero.weight.zero_()
        model.zero.bias.zero_()
    plan, seen = observed(model)
    assert not seen["reader", "input"].maximum.any()
    for term in (PredictedNoise(seen), Migration(seen)):
        result = plan.balance(objective=term)
        assert result.converged and float(result.log_scales.abs().max()) < 12
        assert sum(one.count for one in result.held) == 5 or isinstance(term, PredictedNoise)
        plan.rescale(-result.log_scales)


def test_what_is_frozen_excluded_or_in_float_stays() -> None:
    model = chain()
    model[0].weight.requires_grad_(False)
    plan, seen = observed(model)
    for term in (PredictedNoise(seen), Migration(seen)):
        kept = model[0].weight.detach().clone()
        result = plan.balance(objective=term)
        assert torch.equal(model[0].weight, kept) and result.log_scales[7:].abs().max() > 1e-3
        assert [(one.count, one.reason.partition(":")[0]) for one in result.held] == [(7, "requires_grad=False")]
        plan.rescale(-result.log_scales)
    model = chain()
    plan = fxenorm.analyze(model, exclude="2.*")
    assert plan.num_scales == 0
    plan = fxenorm.analyze(model, exclude="0.weight")
    assert plan.num_scales == 6
    result = plan.balance(objective=PredictedNoise(plan.observe(batches(), derivatives=True)))
    assert result.converged and not result.held
    # Scales of which no quantiser knows stay where they are.
    plan, seen = observed(chain())
    result = plan.balance(objective=PredictedNoise(seen, Bits(layers={"0": None, "2": None})))
    assert float(result.log_scales[:7].abs().max()) < 1e-9 and float(result.log_scales[7:].abs().max()) > 1e-3


def test_terms_follow_the_plan_and_stale_ones_are_refused() -> None:
    values = []
    for moved in (False, True):
        plan, seen = observed(chain())
        noise, migration = PredictedNoise(seen), Migration(seen)
        if moved:
            plan.rescale(torch.randn(plan.num_scales, generator=generator(0), dtype=torch.float64))
        at = plan.rescaler.position
        for term in (noise, migration, 0.5 * noise + migration, Weights(p=2) + noise):
            value, _ = plan.objective(term).value_and_gradient(-at)
            values.append(float(value))
        plan.balance(objective=migration)
        assert plan.balance(objective=noise).converged
        plan.step()
        for term in (noise, migration, 0.5 * noise + migration):
            with pytest.raises(StaleError):
                plan.balance(objective=term)
            with pytest.raises(StaleError):
                plan.objective(term)
    torch.testing.assert_close(values[:4], values[4:], rtol=1e-4, atol=0)


BAD: dict[str, tuple[Callable[[fxenorm.Observations], Any], str]] = {
    "no observations": (lambda seen: PredictedNoise({}), "observations=dict is not valid"),
    "no observations to migrate": (lambda seen: Migration(None), "observations=NoneType"),
    "bits": (lambda seen: PredictedNoise(seen, 8), "bits=8 is not valid"),
    "ridge": (lambda seen: PredictedNoise(seen, ridge=0), "ridge=0"),
    "pattern": (lambda seen: PredictedNoise(seen, Bits(layers={"nowhere": None})), "fits none"),
    "all in float": (lambda seen: PredictedNoise(seen, Bits(layers={"*": None})), "rounds nothing"),
    "alpha": (lambda seen: Migration(seen, alpha=1.0), r"alpha=1\.0.*between 0 and 1"),
    "p": (lambda seen: Migration(seen, p=0), "p=0 is not valid"),
    "normalised": (lambda seen: Normalised(Migration(seen)), "Normalised takes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(OptionError, match=message):
        call(observed(chain())[1])


def test_noise_needs_derivatives_and_migration_does_not() -> None:
    plan = fxenorm.analyze(chain())
    seen = plan.observe(batches())
    with pytest.raises(OptionError, match="derivatives=True"):
        PredictedNoise(seen)
    assert plan.balance(objective=Migration(seen)).converged
    assert len({Migration(seen), Migration(seen)}) == 2  # values of tensors, which have no order and no hash


# ---------------------------------------------------------------- p = inf


def test_migration_at_infinity_balances_the_largest_entries() -> None:
    model, given = once(norm_and_readers()), batches(6)
    plan = fxenorm.analyze(model, given[0])
    seen = plan.observe(given)
    largest = torch.cat([model.norm(x) for x in given]).detach().abs().amax(0)
    both = torch.cat([model.left.weight, model.right.weight]).detach()
    scale = (largest / both.abs().amax(0)).sqrt()
    gain = model.norm.weight.detach().clone()
    result = plan.balance(objective=Migration(seen, p=math.inf))
    assert result.converged and not result.held and result.objective_after <= result.objective_before
    torch.testing.assert_close(model.norm.weight.detach(), gain / scale, rtol=1e-9, atol=0)
    plan.rescale(-result.log_scales)
    near = plan.balance(objective=Migration(seen, p=400.0))
    torch.testing.assert_close(near.log_scales, result.log_scales, rtol=0, atol=0.01)


def test_migration_at_infinity_equals_by_channel_what_goes_in_and_what_comes_out() -> None:
    model, given = chain(seed=2), batches()
    plan = fxenorm.analyze(model)
    seen = plan.observe(given)
    answers = []
    for seed in (0, 1):
        plan.rescale(torch.randn(plan.num_scales, generator=generator(seed), dtype=torch.float64))
        result = plan.balance(objective=Migration(seen, p=math.inf))
        assert result.converged and "p=inf" in result.objective
        answers.append(plan.rescaler.position)
        now = plan.follow(seen)
        for layer, reader in (("0", "2"), ("2", "4")):
            inner, outer = (model.get_submodule(path).weight.detach().abs() for path in (layer, reader))
            raised = torch.maximum(inner.amax(1), now[reader, "input"].maximum)
            torch.testing.assert_close(raised, outer.amax(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-9)
    with pytest.raises(OptionError, match="pass it alone"):
        plan.balance(objective=Migration(seen, p=math.inf) + Weights())
    with pytest.raises(OptionError, match="pass it alone"):
        plan.objective(Migration(seen, p=math.inf))
    with pytest.raises(OptionError, match="needs a finite p"):
        Migration(seen, alpha=0.3, p=math.inf)


def test_migration_at_infinity_holds_what_is_frozen_or_dead() -> None:
    model = chain(seed=2)
    with torch.no_grad():
        dead_rows(model)
    model[4].weight.requires_grad_(False)
    plan, seen = observed(model)
    result = plan.balance(objective=Migration(seen, p=math.inf))
    held = {k: one.reason.partition(":")[0] for one in result.held for k in one.variables}
    assert set(held) == {2, 3, *range(7, 13)} and held[2] == "dead" and held[7] == "requires_grad=False"
    assert not result.log_scales[sorted(held)].any() and bool(result.log_scales[:2].any())
    plan.rescale(-result.log_scales)
    boxed = plan.balance(objective=Migration(seen, p=math.inf), max_log_scale=0.05)
    assert float(boxed.log_scales.abs().max()) <= 0.05
