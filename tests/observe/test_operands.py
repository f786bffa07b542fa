"""Activations that functions multiply by parameters: their sites, their observations, and what is predicted of them."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import fxenorm
from fxenorm import Bits
from fxenorm.errors import ExampleInputsError
from fxenorm.objectives.quantisers import quantisers_of
from fxenorm.quantisation.rounded_outputs import observed_ranges
from fxenorm.trace.inputs import Inputs

from ..functional_calls import operands
from ..helpers import generator, randomise
from ..zoo_base import Net

VALUES = ("minimum", "maximum", "mean_square", "quantile", "squared_derivative")


class Made(Net):
    """A net with parameters of its own beside its layers."""

    def __init__(self, function: Callable[..., Tensor], *, weights: dict[str, tuple[int, ...]], **layers: nn.Module) -> None:
        super().__init__(function, **layers)
        for name, shape in weights.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def attention(**widths: int) -> nn.Module:
    """Queries, keys and values from layers of their own, so that each part of the projection has its own activation."""
    layers = {name: nn.Linear(4, widths.get(f"{name}dim", 8)) for name in "qkv"}
    heads = nn.MultiheadAttention(8, 2, batch_first=True, **widths)
    return Net(
        lambda m, x: m.head(m.heads(m.q(x), m.k(x), m.v(x))[0]),
        **layers,
        heads=heads,
        head=nn.Linear(8, 3),
    )


def encoder() -> nn.Module:
    block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=True)
    return Net(lambda m, x: m.head(m.block(m.embed(x)).mean(1)), embed=nn.Linear(4, 8), block=block, head=nn.Linear(8, 3))


def swin() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 12, [2, 2], [2, 3], [2, 2], num_classes=3, stochastic_depth_prob=0.0)


def plain(m: Any, x: Tensor) -> Tensor:
    h = F.linear(x, m.up).relu()
    h = (h @ m.across).relu()
    h = (m.left @ h.mT).relu()
    h = torch.einsum("bis,io->bos", h, m.named).relu()
    h = F.conv1d(h, m.taps).relu()
    return F.conv_transpose1d(h, m.back, groups=2).mean(-1)


PLAIN = {"up": (6, 4), "across": (6, 5), "left": (7, 5), "named": (7, 4), "taps": (6, 4, 1), "back": (6, 2, 1)}


def experts(m: Any, x: Tensor) -> Tensor:
    h = m.body(x).relu()
    return sum(m.head((h @ m.up[one]).relu() @ m.down[one]) for one in range(2))


def tied() -> nn.Module:
    return Net(
        lambda m, x: F.linear(m.body(m.words(x)).relu(), m.words.weight).sum(1), words=nn.Embedding(7, 5), body=nn.Linear(5, 5)
    )


def twice(m: Any, x: Tensor) -> Tensor:
    """Reads one weight in a function, in its layer's call, in a function again, and through forward, which calls no hooks."""
    h = F.linear(m.a(x).relu(), m.b.weight).relu()
    h = F.linear(m.b(h).relu(), m.b.weight[:5]).relu()
    return m.c.forward(h)


def cast(m: Any, x: Tensor) -> Tensor:
    return torch.addmm(x.new_zeros(3), (m.a(x).relu() @ m.w.clone()).relu(), m.v.float().to(x.dtype))


VECTORS, SEQUENCES = (5, 4), (2, 3, 4)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (attention, SEQUENCES),
    "attention with other widths": (lambda: attention(kdim=5, vdim=6), SEQUENCES),
    "encoder": (encoder, SEQUENCES),
    "swin": (swin, (2, 3, 16, 16)),
    "plain parameters": (lambda: Made(plain, weights=PLAIN), SEQUENCES),
    "experts": (
        lambda: Made(experts, weights={"up": (2, 6, 5), "down": (2, 5, 4)}, body=nn.Linear(4, 6), head=nn.Linear(4, 3)),
        VECTORS,
    ),
    "tied": (tied, (2, 3)),
    "twice": (lambda: Net(twice, a=nn.Linear(4, 5), b=nn.Linear(5, 5), c=nn.Linear(5, 2)), VECTORS),
    "cast": (lambda: Made(cast, weights={"w": (5, 6), "v": (6, 3)}, a=nn.Linear(4, 5)), VECTORS),
}
EXPECTED = {
    "attention": {"heads.in_proj_weight": 3, "heads.out_proj.weight": 1},
    "attention with other widths": {f"heads.{name}.weight".replace("_weight.weight", "_weight"): 1 for name in (
        "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj")},
    "encoder": {"block.self_attn.in_proj_weight": 1, "block.self_attn.out_proj.weight": 1},
    "plain parameters": dict.fromkeys(PLAIN, 1),
    "experts": {"up": 2, "down": 2},
    "tied": {"words.weight": 1},
    "twice": {"b.weight": 2, "c.weight": 1},
    "cast": {"w": 1, "v": 1},
}  # fmt: skip


@functools.cache
def planned(name: str) -> tuple[fxenorm.Plan, list[Tensor]]:
    """A plan of a model in float64, whose weights are those of the last test, and batches of it."""
    torch.manual_seed(0)
    make, shape = CASES[name]
    model = randomise(make().double().eval(), seed=1)

    def batch(seed: int, rows: int) -> Tensor:
        sizes = (rows, *shape[1:])
        if name == "tied":
            return torch.randint(0, 7, sizes, generator=generator(seed))
        return torch.randn(sizes, generator=generator(seed), dtype=torch.float64)

    batches = [batch(0, shape[0]), batch(1, 1)]
    return fxenorm.analyze(model, batches[0], modes="eval"), batches


def drawn(plan: fxenorm.Plan, seed: int) -> Tensor:
    return torch.rand(plan.num_scales, generator=generator(seed), dtype=torch.float64) - 0.5


@pytest.mark.parametrize("name", CASES)
def test_every_operand_moves_as_its_site_says_call_by_call(name: str) -> None:
    plan, batches = planned(name)
    assert plan.num_scales > 4
    padded = torch.cat([drawn(plan, 1), torch.zeros(1, dtype=torch.float64)])
    with operands(plan.model) as before, torch.no_grad():
        expected = plan.model(batches[0])
    plan.rescale(padded[:-1])
    rtol, atol = (1e-5, 1e-5) if name == "cast" else (1e-8, 1e-9)
    with operands(plan.model) as after, torch.no_grad():
        torch.testing.assert_close(plan.model(batches[0]), expected, rtol=rtol, atol=atol)
    sites = [site for site in plan.symmetry.sites if site.direction == "operand"]
    assert {(site.module, site.direction, site.call) for site in sites} == set(before)
    if name in EXPECTED:
        counts: dict[str, int] = {}
        for parameter, _, _ in before:
            counts[parameter] = counts.get(parameter, 0) + 1
        assert counts == EXPECTED[name]
    moved = 0
    for place, (old,) in before.items():
        for site in (one for one in sites if (one.module, one.direction, one.call) == place):
            assert (site.ndim, site.tensor, site.whole) == (old.ndim, 0, True) and site.variables.size == old.shape[site.axis]
            factor = (site.coefficient * padded[torch.from_numpy(site.variables.copy())]).exp()
            old = old * factor.reshape([-1 if axis == site.axis else 1 for axis in range(old.ndim)])
            moved += bool((site.variables >= 0).any())
        torch.testing.assert_close(after[place][0], old, rtol=1e-8, atol=1e-10, msg=str(place))
    assert moved
    listed = {id(site) for group in plan.groups for site in group.sites}
    assert all(id(site) in listed for site in sites if (site.variables >= 0).any())


@pytest.mark.parametrize("name", CASES)
def test_one_calibration_serves_three_rescalings(name: str) -> None:
    plan, batches = planned(name)
    seen = carried = plan.observe(batches, derivatives=True)
    # Three activations enter the attention; each of its weights is told which of them it reads.
    assert seen.skipped.keys() <= {"heads input"}
    with operands(plan.model) as read, torch.no_grad():
        plan.model(batches[0])
    assert {(one.module, one.direction, one.call) for one in seen if one.direction == "operand"} == set(read)
    for place, (activation,) in read.items():
        one = seen[place]
        rows = torch.cat([activation.movedim(one.axis, 0).flatten(1)], 1)
        assert bool((one.maximum >= rows.amax(1) - 1e-12).all() and (one.minimum <= rows.amin(1) + 1e-12).all())
    for seed in (2, 3):
        log_scales = drawn(plan, seed)
        plan.rescale(log_scales)
        carried = carried.rescaled(log_scales)
    carried = fxenorm.Observations.from_dict(json.loads(json.dumps(carried.to_dict())))
    carried = carried.rescaled(plan.balance().log_scales)
    fresh = plan.observe(batches, derivatives=True)
    for known in (carried, plan.follow(seen)):
        for old, new in zip((*known, *known.weights), (*fresh, *fresh.weights), strict=True):
            assert repr(old) == repr(new)
            for value in VALUES if isinstance(old, fxenorm.Observation) else ("values", "squared_derivative"):
                one, other = getattr(old, value), getattr(new, value)
                room = 1e-9 * float(other.abs().max()) + 1e-30
                torch.testing.assert_close(one, other, rtol=1e-6, atol=room, msg=f"{old} {value}")


@pytest.mark.parametrize("name", CASES)
def test_all_that_a_rounded_run_rounds_is_predicted_under_the_same_name(name: str) -> None:
    plan, batches = planned(name)
    seen = plan.observe(batches, derivatives=True)
    ranges, _, layers = observed_ranges(plan.model, [Inputs((x,)) for x in batches], lambda leaves: leaves)
    prediction = plan.predict(seen, Bits(weights=4, activations=6, per="channel"))
    inputs = {(one.layer, one.call): one for one in prediction.ranges if one.kind == "input"}
    assert set(layers) == {layer for layer, _ in inputs} and len(inputs) == len(ranges)
    assert set(layers) <= set(seen.layers)
    assert {one.layer for one in prediction.ranges if one.kind == "weight"} == set(layers)
    assert all(one.now > 0 for one in prediction.ranges) and prediction.best <= prediction.now * 1.001
    if name != "twice":  # there the calls of functions come after those of the module
        assert set(inputs) == set(ranges)
    assert layers[0] not in {one.layer for one in quantisers_of(seen, Bits(layers={layers[0]: None}))}


@pytest.mark.parametrize("name", ["attention", "swin", "experts", "tied", "plain parameters"])
def test_operands_take_part_in_migration(name: str) -> None:
    plan, batches = planned(name)
    seen = plan.observe(batches)
    with_all = plan.balance(objective=fxenorm.objectives.Migration(seen, p=2)).log_scales
    plan.rescale(-with_all)
    without = dataclasses.replace(seen, activations=tuple(one for one in seen if one.direction != "operand"))
    other = plan.balance(objective=fxenorm.objectives.Migration(without, p=2)).log_scales
    plan.rescale(-other)
    assert float((with_all - other).abs().max()) > 1e-3


def test_masses_of_an_operand_have_its_name() -> None:
    plan, _ = planned("plain parameters")
    masses = fxenorm.objectives.Masses({("across", "operand"): torch.ones(6, dtype=torch.float64)}, power=2)
    assert plan.balance(objective=masses + fxenorm.objectives.Weights()).converged


def test_derivatives_by_an_operand_are_those_by_way_of_this_product_alone() -> None:
    """Two weights read one activation: each has the derivatives by its own product."""
    made = Made(
        lambda m, x: (F.linear(h := x.relu(), m.one).relu() * 3 + (h @ m.other).relu()) @ m.last,
        weights={"one": (5, 4), "other": (4, 5), "last": (5, 1)},
    )
    model = randomise(made.double(), seed=2)
    given = [torch.randn(1, 4, generator=generator(seed), dtype=torch.float64) for seed in range(3)]
    seen = fxenorm.analyze(model, given[0]).observe(given, derivatives=True)
    squares = {"one": torch.zeros(4).double(), "other": torch.zeros(4).double()}
    for x in given:
        h = x.relu()
        gates = {"one": 3 * (F.linear(h, model.one) > 0).double(), "other": ((h @ model.other) > 0).double()}
        rows = {"one": model.one, "other": model.other.T}
        for name in squares:
            squares[name] += ((gates[name] * model.last[:, 0]) @ rows[name]).detach().square()[0] / len(given)
    for name, expected in squares.items():
        torch.testing.assert_close(seen[name, "operand"].squared_derivative, expected, rtol=1e-9, atol=1e-15)
    weight = {one.name: one for one in seen.weights}["other"]
    assert weight.layout == (1, 0, 1) and torch.equal(weight.values, model.other.detach())


@pytest.mark.parametrize("per", ["tensor", "channel", 2])
def test_each_matrix_of_a_stack_has_ranges_of_its_own(per: Any) -> None:
    plan, batches = planned("experts")
    seen = plan.observe(batches, derivatives=True)
    (weight,) = (one for one in seen.weights if one.name == "up")
    assert weight.layout == (-1, -2, 1)
    prediction = plan.predict(seen, Bits(weights=4, activations=None, per=per))
    (found,) = (one.now for one in prediction.ranges if (one.layer, one.kind) == ("up", "weight"))
    total = 0.0
    for values, slopes in zip(weight.values, weight.squared_derivative, strict=True):
        parts = {"tensor": [values], "channel": list(values.T)}.get(per) or [p for column in values.T for p in column.split(2)]
        slope_parts = {"tensor": [slopes], "channel": list(slopes.T)}.get(per)
        slope_parts = slope_parts or [part for column in slopes.T for part in column.split(2)]
        for part, slope in zip(parts, slope_parts, strict=True):
            total += float((part.abs().max() / 7) ** 2 * slope.sum() / 12)
    assert found == pytest.approx(math.sqrt(total / float(seen.output_square or 0)), rel=1e-9)


WAYS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, int], Callable[[Tensor, Tensor], Tensor]]] = {
    # shapes of the activation and of the weight, the activation's channels, the weight's outputs and inputs
    "linear": ((3, 4), (6, 4), 1, (0, 1), F.linear),
    "weight on the right": ((2, 3, 4), (4, 6), 2, (1, 0), lambda x, w: x @ w),
    "weight on the left": ((2, 4, 3), (6, 4), 1, (0, 1), lambda x, w: w @ x),
    "one vector": ((4,), (6, 4), 0, (0, 1), lambda x, w: torch.mv(w, x)),
    "stacked": ((2, 3, 4), (2, 4, 6), 2, (-1, -2), torch.bmm),
    "addmm": ((3, 4), (4, 6), 1, (1, 0), lambda x, w: torch.addmm(x.new_ones(6), x, w)),
    "inner": ((3, 4), (6, 4), 1, (0, 1), torch.inner),
    "tensordot": ((3, 4, 2), (6, 4), 1, (0, 1), lambda x, w: torch.tensordot(x, w, dims=([1], [1]))),
    "einsum": ((3, 4, 2), (4, 6), 1, (1, 0), lambda x, w: torch.einsum("bit,io->bot", x, w)),
    "convolution": ((2, 4, 5), (6, 4, 3), 1, (0, 1), F.conv1d),
    "transposed convolution": ((2, 4, 5), (4, 6, 3), 1, (1, 0), F.conv_transpose1d),
}


@pytest.mark.parametrize("way", WAYS)
def test_channels_are_those_that_the_product_sums(way: str) -> None:
    shape, weight, axis, layout, call = WAYS[way]
    model = randomise(Made(lambda m, x: call(x, m.w), weights={"w": weight}).double(), seed=0)
    x = torch.randn(shape, generator=generator(0), dtype=torch.float64)
    plan = fxenorm.analyze(model, x)
    assert [(site.module, site.direction, site.call) for site in plan.symmetry.sites] == [("w", "operand", 0)]
    seen = plan.observe([x], derivatives=True)
    one = seen["w", "operand"]
    rows = x.movedim(axis, 0).reshape(4, -1)
    assert (
        one.axis == axis and not one.terms and torch.equal(one.maximum, rows.amax(1)) and torch.equal(one.minimum, rows.amin(1))
    )
    (found,) = seen.weights
    assert (found.name, found.layout[:2], seen.layers) == ("w", layout, ("w",))


def test_a_layer_that_runs_in_a_narrow_type_is_seen_once() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (F.linear(m.a(x).relu(), m.w).relu() @ m.v).float()

    model = randomise(Made(forward, weights={"w": (6, 5), "v": (6, 2)}, a=nn.Linear(4, 5)), seed=0)
    plan = fxenorm.analyze(model, torch.randn(3, 4, generator=generator(0)))
    seen = plan.observe([torch.ones(2, 4)], derivatives=True)
    assert not seen.skipped and {one.module for one in seen if one.direction == "operand"} == {"w", "v"}
    assert seen["w", "operand"].terms and bool((seen["w", "operand"].squared_derivative > 0).any())


# ---------------------------------------------------------------- no wrong claims


def test_other_reads_than_those_of_the_analysis_are_no_claims() -> None:
    class Routed(nn.Module):
        """Reads its experts in the order that the signs of the input give, as often as it has rows."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(torch.randn(2, 4, 5)), nn.Parameter(torch.randn(2, 5, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([(row @ self.up[one]).relu() @ self.down[one] for row in x for one in [int(row[0] > 0)]])

    model, both = Routed(), torch.tensor([[-1.0, 1, 1, 1], [1.0, 1, 1, 1]])
    plan = fxenorm.analyze(model, both)
    known = {(site.module, site.call, site.part) for site in plan.symmetry.sites if site.direction == "operand"}
    assert known == {("up", 0, 0), ("up", 1, 20), ("down", 0, 0), ("down", 1, 20)}
    same = plan.observe([both])
    assert not same.skipped and len(same["down", "operand", 1].terms) == 1
    turned = plan.observe([both.flip(0)])
    assert {one for one in turned if one.direction == "operand"} == set()
    assert all("another part" in turned.skipped[f"{name} operand"] for name in ("up", "down"))
    more = plan.observe([torch.cat([both, both])])
    assert "more often here" in more.skipped["down operand of call 2"] and more["down", "operand", 1].terms
    fewer = plan.observe([both[:1]])
    assert "no function multiplied" in fewer.skipped["up operand of call 1"]


@pytest.mark.parametrize("by_data", [False, True])
def test_a_part_that_a_tensor_chooses_is_told_and_not_claimed(by_data: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x).relu()
        return F.linear(h, torch.narrow(m.w, 0, h.sum(0).argmax() % 3 if by_data else torch.tensor(1), 2))

    plan = fxenorm.analyze(randomise(Made(forward, weights={"w": (5, 6)}, a=nn.Linear(4, 6)), seed=0), torch.ones(2, 4))
    assert plan.tracer == ("make_fx" if by_data else "export")
    seen = plan.observe([torch.ones(2, 4)])
    assert seen.skipped.keys() == {"w operand"} and "depends on the data" in seen.skipped["w operand"]


def test_a_plan_that_was_stored_without_operands_claims_nothing_about_them() -> None:
    plan, batches = planned("plain parameters")
    stored = json.loads(json.dumps(plan.to_dict()))
    again = fxenorm.Plan.from_dict(stored, plan.model)
    assert [repr(site) for site in again.symmetry.sites] == [repr(site) for site in plan.symmetry.sites]
    parts = planned("attention")[0]
    loaded = fxenorm.Plan.from_dict(json.loads(json.dumps(parts.to_dict())), parts.model)
    assert [site.part for site in loaded.symmetry.sites if site.module == "heads.in_proj_weight"] == [0, 64, 128]
    stored["symmetry"]["sites"] = [row for row in stored["symmetry"]["sites"] if row[1] != "operand"]
    old = fxenorm.Plan.from_dict(stored, plan.model).observe(batches)
    assert not any(one.direction == "operand" for one in old)


def test_products_over_several_axes_are_told() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = torch.einsum("bnd,dhk->bnhk", m.a(x).relu(), m.w).relu()
        return torch.einsum("bnhk,hkd->bnd", h, m.v)

    model = randomise(Made(forward, weights={"w": (5, 2, 3), "v": (2, 3, 4)}, a=nn.Linear(4, 5)).double(), seed=0)
    plan = fxenorm.analyze(model, torch.randn(2, 3, 4, dtype=torch.float64))
    seen = plan.observe([torch.randn(2, 3, 4, generator=generator(0), dtype=torch.float64)], derivatives=True)
    assert seen["w", "operand"].terms and {"w", "v"} <= set(seen.layers)
    assert seen.skipped.keys() == {"v operand", "v weight", "w weight"}
    assert "several of its axes" in seen.skipped["v operand"] and "several of its axes" in seen.skipped["w weight"]
    assert {one.name for one in seen.weights} == {"a.weight"}


# ---------------------------------------------------------------- the model is left alone


@pytest.mark.parametrize("derivatives", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_and_modes_are_off_whatever_happens(error: type[BaseException], derivatives: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = F.linear(m.a(x).relu(), m.w)
        if m.fails and x.shape[0] == 3:
            raise error("out of cheese")
        return h

    model = Made(forward, weights={"w": (6, 5)}, a=nn.Linear(4, 5))
    model.fails = False
    plan = fxenorm.analyze(model, torch.ones(2, 4))
    model.fails = True
    keys = [torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()]
    with pytest.raises(ExampleInputsError if error is RuntimeError else error):
        plan.observe([torch.ones(2, 4), torch.ones(3, 4)], derivatives=derivatives)
    assert not _get_current_dispatch_mode_stack()
    assert repr(keys) == repr([torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    output = model(torch.ones(2, 4)).sum()
    assert output.requires_grad and torch.autograd.grad(output, model.w)[0].shape == (6, 5)
    again = plan.observe([torch.ones(2, 4)], derivatives=derivatives)
    assert ("w", "operand", 0) in {(one.module, one.direction, one.call) for one in again}


@pytest.mark.parametrize("derivatives", [False, True])
def test_no_activation_is_kept(derivatives: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Made(lambda m, x: F.linear(F.relu(m.a(x)), m.w), weights={"w": (6, 5)}, a=nn.Linear(4, 5))
    plan = fxenorm.analyze(model, torch.ones(2, 4))
    kept: list[weakref.ref[Tensor]] = []

    def noted(x: Tensor) -> Tensor:
        y = torch.relu(x)
        kept.append(weakref.ref(y))
        return y

    # The model does not reach it: what forward can reach is set back after a run.
    monkeypatch.setattr(F, "relu", noted)
    seen = plan.observe([torch.ones(2, 4)] * 2, derivatives=derivatives)
    gc.collect()
    assert len(kept) == 2 and not any(one() is not None for one in kept) and len(seen) >= 3


def test_a_model_with_derivatives_and_writes_inside_is_observed_as_it_runs() -> None:
    """Views that are written, a function with a derivative of its own, a checkpoint, and a derivative inside forward."""

    class Triple(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 3 * x

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 3 * gradient

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x).clone()
        h[:, :2].mul_(2)
        h = Triple.apply(h).relu()
        h = torch.utils.checkpoint.checkpoint(lambda t: F.linear(t, m.w).relu(), h, use_reentrant=False)
        with torch.enable_grad():
            inner = h.detach().requires_grad_()
            slope = torch.autograd.grad(inner.square().sum(), inner)[0].detach()
        return (h + 0 * slope) @ m.v

    model = randomise(Made(forward, weights={"w": (6, 5), "v": (6, 1)}, a=nn.Linear(4, 5)).double(), seed=3)
    x = torch.randn(1, 4, generator=generator(3), dtype=torch.float64)
    plan = fxenorm.analyze(model, x)
    seen = plan.observe([x], derivatives=True)
    h = model.a(x).clone()
    h = (3 * h * torch.tensor([2, 2, 1, 1, 1]).double()).relu().detach().requires_grad_()
    read = F.linear(h, model.w).relu()
    slope = torch.autograd.grad((read @ model.v).sum(), h)[0]
    torch.testing.assert_close(seen["w", "operand"].squared_derivative, slope.square()[0], rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(seen["v", "operand"].maximum, read.detach()[0])
    weights = {one.name: one for one in seen.weights}
    expected = torch.autograd.grad(model(x).sum(), model.w)[0].square()
    torch.testing.assert_close(weights["w"].squared_derivative, expected, rtol=1e-9, atol=1e-15)
