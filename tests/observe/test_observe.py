"""`Plan.observe`: sites call by call, ranges that follow every rescaling, and a model that is left as it was."""

from __future__ import annotations

import functools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fxenorm
from fxenorm.errors import BindError, ExampleInputsError, OptionError, RescaleError

from ..functional_calls import operands
from ..helpers import generator, mlp, randomise
from ..transformer_models import MODELS as TRANSFORMERS
from ..zoo_base import Net

VALUES = ("minimum", "maximum", "mean_square", "quantile", "squared_derivative")


def pictures(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 48, 48, generator=generator(seed), dtype=torch.float64)


def vision(name: str) -> tuple[nn.Module, list[Any]]:
    import torchvision

    return getattr(torchvision.models, name)(num_classes=10), [pictures(2), (pictures(1, seed=1),)]


def llama() -> tuple[nn.Module, list[Any]]:
    model, inputs = TRANSFORMERS["llama"]()
    return model, [dict(inputs), {name: tensor[:1, :7] for name, tensor in inputs.items()}]


def u_net() -> tuple[nn.Module, list[Any]]:
    """Down, up and two skips, of which one is a sum and one a concatenation."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        first = m.first(x).relu()
        second = m.act(m.second(m.pool(first)))
        bottom = m.act(m.bottom(m.pool(second)))
        up = m.act(m.up(bottom) + second)
        return m.head(m.act(m.last(torch.cat([m.top(up), first], 1))))

    layers = {
        "first": nn.Conv2d(3, 8, 3, padding=1),
        "second": nn.Conv2d(8, 12, 3, padding=1),
        "bottom": nn.Conv2d(12, 16, 3, padding=1),
        "up": nn.ConvTranspose2d(16, 12, 2, stride=2, groups=2),
        "top": nn.ConvTranspose2d(12, 8, 2, stride=2),
        "last": nn.Conv2d(16, 8, 3, padding=1),
        "head": nn.Conv2d(8, 4, 1),
    }
    return Net(forward, **layers, act=nn.LeakyReLU(0.1), pool=nn.MaxPool2d(2)), [pictures(2), pictures(1, seed=1)]


MODELS: dict[str, Callable[[], tuple[nn.Module, list[Any]]]] = {
    "llama": llama,
    "mobilenet_v3_small": lambda: vision("mobilenet_v3_small"),
    "resnet18": lambda: vision("resnet18"),
    "swin_t": lambda: vision("swin_t"),
    "u_net": u_net,
}


@functools.cache
def planned(name: str) -> tuple[fxenorm.Plan, list[Any]]:
    """A plan of a model in float64, whose weights are those of the last test, and batches of it."""
    torch.manual_seed(0)
    model, batches = MODELS[name]()
    return fxenorm.analyze(model.double().eval(), batches[0], modes="eval"), batches


def drawn(plan: fxenorm.Plan, seed: int) -> Tensor:
    return torch.rand(plan.num_scales, generator=generator(seed), dtype=torch.float64) - 0.5


def at_boundaries(model: nn.Module, batch: Any) -> dict[tuple[str, str, int], list[Tensor]]:
    """By (module, direction, call), all tensors that pass there, copied."""
    found: dict[tuple[str, str, int], list[Tensor]] = {}
    calls: Counter[str] = Counter()

    def note(place: tuple[str, str, int], values: Any) -> None:
        found[place] = [leaf.detach().clone() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]

    def before(path: str, args: Any, kwargs: Any) -> None:
        note((path, "input", calls[path]), (args, kwargs))
        calls[path] += 1

    handles = []
    for path, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(lambda m, args, kwargs, path=path: before(path, args, kwargs), with_kwargs=True)
        )
        # No module of these models calls itself.
        handles.append(module.register_forward_hook(lambda m, a, out, path=path: note((path, "output", calls[path] - 1), out)))
    with torch.no_grad(), operands(model) as read:
        model(**batch) if isinstance(batch, dict) else model(*(batch if isinstance(batch, tuple) else (batch,)))
    for handle in handles:
        handle.remove()
    return found | read


@pytest.mark.parametrize("name", MODELS)
def test_every_activation_moves_as_its_site_says_call_by_call(name: str) -> None:
    plan, batches = planned(name)
    before = at_boundaries(plan.model, batches[0])
    log_scales = torch.cat([drawn(plan, 1), torch.zeros(1, dtype=torch.float64)])
    plan.rescale(log_scales[:-1])
    after = at_boundaries(plan.model, batches[0])
    by_place: dict[tuple[str, str, int], list[Any]] = {}
    for site in plan.symmetry.sites:
        by_place.setdefault((site.module, site.direction, site.call), []).append(site)
    assert by_place
    for place, sites in by_place.items():
        assert {site.tensor for site in sites} == {0}, place
        fitting = [
            position
            for position, tensor in enumerate(before[place])
            if all(tensor.ndim == site.ndim and tensor.shape[site.axis] == site.variables.size for site in sites)
        ]
        assert fitting, place
        old, new = before[place][fitting[0]], after[place][fitting[0]]
        for site in sites:
            factor = (site.coefficient * log_scales[torch.from_numpy(site.variables.copy())]).exp()
            old = old * factor.reshape([-1 if axis == site.axis else 1 for axis in range(old.ndim)])
        torch.testing.assert_close(new, old, rtol=1e-8, atol=1e-10, msg=str(place))
    if name == "resnet18":
        calls = Counter(site.call for site in plan.symmetry.sites if site.module.endswith(".relu"))
        assert calls == {0: 16, 1: 16}


@pytest.mark.parametrize("name", MODELS)
def test_one_calibration_serves_three_rescalings(name: str) -> None:
    plan, batches = planned(name)
    slopes = name not in ("resnet18", "swin_t")  # of which the weights are large
    seen = carried = plan.observe(batches, derivatives=slopes)
    assert carried.batches == 2 and not carried.skipped
    for seed in (2, 3):
        log_scales = drawn(plan, seed)
        plan.rescale(log_scales)
        carried = carried.rescaled(log_scales)
    result = plan.balance()
    carried = fxenorm.Observations.from_dict(json.loads(json.dumps(carried.to_dict()))).rescaled(result.log_scales)
    fresh = plan.observe(batches, derivatives=slopes)
    for known in (carried, plan.follow(seen)):
        assert len(known) == len(fresh) and len(known.weights) == len(fresh.weights) and bool(fresh.weights) == slopes
        for old, new in zip((*known, *known.weights), (*fresh, *fresh.weights), strict=True):
            assert repr(old) == repr(new)
            for value in VALUES if isinstance(old, fxenorm.Observation) else ("values", "squared_derivative"):
                one, other = getattr(old, value), getattr(new, value)
                assert (one is None) == (other is None) == (value == "squared_derivative" and not slopes)
                if one is None:
                    continue
                # Where contributions cancel, rounding is relative to the largest.
                room = 1e-9 * float(other.abs().max())
                torch.testing.assert_close(one, other, rtol=1e-6, atol=room, msg=f"{old} {value}")
        assert [one.entries for one in known] == [one.entries for one in fresh]
        assert (known.output_square is None) == (not slopes)
        assert not slopes or known.output_square == pytest.approx(fresh.output_square, rel=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_every_site_and_every_input_of_a_layer_is_observed(name: str) -> None:
    plan, batches = planned(name)
    observations = plan.observe(batches, batches=1)
    places = {(one.module, one.direction, one.call) for one in observations}
    moving = {(one.module, one.direction, one.call) for one in observations if one.terms}
    sites = {(s.module, s.direction, s.call) for group in plan.groups for s in group.sites}
    assert moving == sites
    layers = [path for path, module in plan.model.named_modules() if hasattr(module, "weight") and _is_layer(module)]
    assert layers and not observations.skipped
    read = {path for path in layers if (f"{path}.weight", "operand", 0) in places}
    assert all(((path, "input", 0) in places) != (path in read) for path in layers)
    assert len(read) == (24 if name == "swin_t" else 0)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_values_are_those_of_all_batches_together(dtype: torch.dtype) -> None:
    model = mlp(4, 6, 3, seed=1, dtype=dtype)
    plan = fxenorm.analyze(model)
    batches = [(3 * torch.randn(size, 4, generator=generator(size))).to(dtype) for size in (40, 7)]
    observations = plan.observe(iter(batches), quantile=0.9)
    assert {(one.module, one.direction) for one in observations if one.terms} == {
        *(("0", "output"), ("1", "input"), ("1", "output"), ("2", "input"))
    }
    seen = {
        ("0", "input"): batches,
        ("0", "output"): [model[0](x) for x in batches],
        ("2", "input"): [model[:2](x) for x in batches],
    }
    for place, activations in seen.items():
        one, parts = observations[place], [part.detach().double() for part in activations]
        together = torch.cat(parts)
        # One of ten entries of a batch, at most, is larger.
        high = torch.stack([part.abs().sort(0).values[math.ceil(0.9 * len(part)) - 1] for part in parts]).amax(0)
        expected = dict(zip(VALUES[:4], (together.amin(0), together.amax(0), together.square().mean(0), high), strict=True))
        assert one.entries == 47
        for value in expected:
            torch.testing.assert_close(getattr(one, value), expected[value], rtol=1e-6, atol=0, msg=f"{place} {value}")


def test_channels_of_pictures_and_of_sequences_are_told_apart() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Flatten(2), nn.Linear(36, 2)).double()
    batch = torch.randn(2, 3, 8, 8, generator=generator(0), dtype=torch.float64)
    observations = fxenorm.analyze(model, batch).observe([batch])
    torch.testing.assert_close(observations["0", "input"].maximum, batch.amax((0, 2, 3)))
    torch.testing.assert_close(observations["2", "input"].mean_square, model[:2](batch).detach().square().mean((0, 2, 3)))
    # The last layer reads along places, which carry nothing; channels stand on the axis before.
    assert observations["5", "input"].maximum.numel() in (5, 36)


class Drawing(nn.Module):
    """Draws random numbers and writes to a buffer and to its input, in eval mode too."""

    def __init__(self, fails: bool = False, early: bool = False) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)
        self.register_buffer("count", torch.zeros(1))
        self.fails, self.early = fails, early

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        if self.early:
            x.mul_(2)
        h = self.norm(self.a(x)).relu() + 0 * torch.rand(1)
        if self.fails and x.shape[0] == 3:
            raise RuntimeError("out of cheese")
        y = self.b(h)
        if not self.early:
            x.zero_()
        return y


def state_around(model: nn.Module) -> Iterator[Any]:
    """All that an observation has to leave as it was."""
    for module in model.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called)
        yield module.training, [list(held) for held in hooks]
    yield from (tensor.clone() for tensor in (*model.parameters(), *model.buffers()))
    yield [tensor.requires_grad for tensor in model.parameters()]
    yield [None if tensor.grad is None else tensor.grad.tolist() for tensor in model.parameters()]
    yield torch.get_rng_state()
    yield repr((random.getstate(), np.random.get_state()[1].tolist()))


@pytest.mark.parametrize("derivatives", [False, True, 2])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_random_numbers_are_left_as_they_were(fails: bool, derivatives: bool | int) -> None:
    # A layer's input that is written later has no derivative.
    model = randomise(Drawing(early=bool(derivatives)), seed=0).train()
    model.b.eval()
    model.a.register_forward_hook(lambda module, args, output: None)
    model.a.weight.requires_grad_(False)
    model.b.weight.grad = torch.full_like(model.b.weight, 7.0)
    called: list[Tensor] = []
    model.b.weight.register_hook(called.append)
    plan = fxenorm.analyze(model, torch.ones(2, 4), modes="eval")
    model.fails = fails
    batches = [torch.ones(2, 4), torch.ones(3, 4)]

    def loader() -> Iterator[Tensor]:
        for batch in torch.utils.data.DataLoader(batches, batch_size=None, shuffle=False):
            random.random(), np.random.rand()
            yield batch

    before = list(state_around(model))
    if fails:
        with pytest.raises(ExampleInputsError, match=r"batch 2 of the loader.*float32\[3, 4\].*RuntimeError: out of cheese"):
            plan.observe(loader(), derivatives=derivatives)
    else:
        plan.observe(loader(), derivatives=derivatives)
    assert not called
    after = list(state_around(model))
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    assert all(bool((batch == 1).all()) for batch in batches)


def test_an_error_of_the_loader_is_its_own() -> None:
    model = mlp(4, 6, 3)

    def loader() -> Iterator[Tensor]:
        yield torch.ones(2, 4)
        raise KeyError("disk")

    with pytest.raises(KeyError, match="disk"):
        fxenorm.analyze(model).observe(loader())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_no_more_batches_are_drawn_than_asked_for() -> None:
    batches = iter([torch.ones(2, 4)] * 5)
    assert fxenorm.analyze(mlp(4, 6, 3)).observe(batches, batches=2).batches == 2
    assert len(list(batches)) == 3


BAD: dict[str, tuple[Callable[[fxenorm.Plan], Any], type[Exception], str]] = {
    "a tensor": (lambda plan: plan.observe(torch.ones(2, 4)), OptionError, r"one Tensor.*pass \[batch\]"),
    "a dict": (lambda plan: plan.observe({"x": torch.ones(2, 4)}), OptionError, r"one dict.*pass \[batch\]"),
    "a number": (lambda plan: plan.observe(3), OptionError, "is a int: expected an iterable"),
    "nothing": (lambda plan: plan.observe([]), OptionError, "gave no batch"),
    "a batch": (lambda plan: plan.observe(["x"]), ExampleInputsError, "batch 1 of the loader is a str"),
    "labels": (lambda plan: plan.observe([[torch.ones(2, 4), torch.ones(2)]]), ExampleInputsError, "leave labels out"),
    "width": (lambda plan: plan.observe([torch.ones(2, 5)]), ExampleInputsError, r"batch 1.*float32\[2, 5\]"),
    "no batches": (lambda plan: plan.observe([torch.ones(2, 4)], batches=0), OptionError, "batches=0"),
    "half a batch": (lambda plan: plan.observe([torch.ones(2, 4)], batches=1.5), OptionError, r"batches=1\.5"),
    "quantile": (lambda plan: plan.observe([torch.ones(2, 4)], quantile=99.9), OptionError, r"quantile=99\.9"),
    "no quantile": (lambda plan: plan.observe([torch.ones(2, 4)], quantile=0), OptionError, "quantile=0"),
    "scales": (lambda plan: plan.observe([torch.ones(2, 4)]).rescaled([1.0]), RescaleError, r"expects \(6,\)"),
    "passes": (lambda plan: plan.observe([torch.ones(2, 4)], derivatives=-1), OptionError, "derivatives=-1"),
    "no passes": (lambda plan: plan.observe([torch.ones(2, 4)], derivatives="all"), OptionError, "derivatives='all'"),
    "place": (lambda plan: plan.observe([torch.ones(2, 4)])["2", "inside"], OptionError, "2 inside: no site"),
    "no place": (lambda plan: plan.observe([torch.ones(2, 4)])["2"], OptionError, "names no activation"),
    "stored": (lambda plan: fxenorm.Observations.from_dict({"format": 7}), BindError, "no stored observations"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(fxenorm.analyze(mlp(4, 6, 3)))


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model = mlp(4, 6, 3)
    with pytest.raises(OptionError, match="meta device"):
        fxenorm.analyze(model).observe([torch.ones(2, 4)])


def test_values_that_are_not_finite_are_told() -> None:
    with pytest.warns(fxenorm.FxenormWarning, match="not finite.*0 input"):
        fxenorm.analyze(mlp(4, 6, 3)).observe([torch.full((2, 4), math.inf)])


@pytest.mark.parametrize("damage", ["values", "terms", "place", "num_scales", "activations"])
def test_damaged_observations_are_refused(damage: str) -> None:
    stored = json.loads(json.dumps(fxenorm.analyze(mlp(4, 6, 3)).observe([torch.ones(2, 4)]).to_dict()))
    if damage == "num_scales":
        stored["num_scales"] = 2
    elif damage == "activations":
        del stored["activations"]
    else:
        stored["activations"][1][damage] = stored["activations"][0]["values"][:1] if damage != "terms" else [[1, "AAAA"]]
    with pytest.raises(BindError, match="damaged"):
        fxenorm.Observations.from_dict(stored)


def twice() -> nn.Module:
    """One activation module between different layers: its calls carry different variables."""
    return Net(lambda m, x: m.c(m.r(m.b(m.r(m.a(x))))), a=nn.Linear(4, 5), b=nn.Linear(5, 5), c=nn.Linear(5, 2), r=nn.ReLU())


def test_a_module_called_twice_has_two_sites_under_both_tracers() -> None:
    class Branching(nn.Module):
        """Its path depends on a value, which the tracer without values refuses."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = twice()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if float(x.sum()) > -1e9 else x

    for model in (twice(), Branching()):
        plan = fxenorm.analyze(model, torch.ones(2, 4))
        assert plan.tracer == ("make_fx" if isinstance(model, Branching) else "export")
        sites = [site for site in plan.symmetry.sites if site.module.endswith("r")]
        assert {(site.direction, site.call): site.variables[0] // 5 for site in sites} == {
            ("input", 0): 0, ("output", 0): 0, ("input", 1): 1, ("output", 1): 1
        }  # fmt: skip
        assert plan.observe([torch.ones(2, 4)])[sites[0].module, "output", 1].terms
        assert "of call 1" in repr(sites[-1])


def test_plans_that_were_stored_without_calls_still_load() -> None:
    plan = fxenorm.analyze(twice(), torch.ones(2, 4))
    stored = json.loads(json.dumps(plan.to_dict()))
    assert [site.call for site in fxenorm.Plan.from_dict(stored, plan.model).symmetry.sites] == [
        site.call for site in plan.symmetry.sites
    ]
    stored["symmetry"]["sites"] = [row[:5] for row in stored["symmetry"]["sites"]]
    old = fxenorm.Plan.from_dict(stored, plan.model)
    assert len(old.symmetry.sites) == len(plan.symmetry.sites)
    assert {(site.call, site.tensor, site.ndim, site.whole) for site in old.symmetry.sites} == {(0, 0, 0, True)}
    stored["symmetry"]["sites"][0] += [-1, 0, 2, True]
    with pytest.raises(BindError, match="place"):
        fxenorm.Plan.from_dict(stored, plan.model)


class Times(nn.Module):
    """Multiplies two activations that move in different ways."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y


def test_an_activation_that_cannot_be_told_is_skipped_with_the_reason() -> None:
    times = Net(lambda m, x: m.c(m.times(m.a(x), m.b(x))), a=nn.Linear(4, 5), b=nn.Linear(4, 5), c=nn.Linear(5, 2), times=Times())
    observations = fxenorm.analyze(times, torch.ones(2, 4)).observe([torch.ones(2, 4)])
    assert "several tensors" in observations.skipped["times input"]
    with pytest.raises(OptionError, match="several tensors"):
        observations["times", "input"]
    # Both factors of the product are known behind it.
    assert len(observations["c", "input"].terms) == 2

    functional = Net(lambda m, x: nn.functional.linear(m.a(x).relu(), m.b.weight), a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    observations = fxenorm.analyze(functional, torch.ones(2, 4)).observe([torch.ones(2, 4)])
    assert not observations.skipped and len(observations["b.weight", "operand"].terms) == 1

    unused = Net(lambda m, x: m.a(x).relu(), a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    observations = fxenorm.analyze(unused, torch.ones(2, 4)).observe([torch.ones(2, 4)])
    assert not observations.skipped  # its weight is in no graph

    class Sometimes(nn.Module):
        """Calls a layer unless the batch has one row."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu()) if len(x) > 1 else x[:, :2]

    observations = fxenorm.analyze(Sometimes(), torch.ones(2, 4)).observe([torch.ones(1, 4)])
    assert {"a input", "b input"} <= observations.skipped.keys() and "was not called" in observations.skipped["b input"]


def test_a_head_that_is_tied_to_an_embedding_is_a_layer_and_the_embedding_reads_no_activation() -> None:
    model = Net(lambda m, x: m.head(m.norm(m.words(x))), words=nn.Embedding(7, 5), norm=nn.LayerNorm(5), head=nn.Linear(5, 7))
    model.head.weight = model.words.weight
    tokens = torch.tensor([[1, 2, 6]])
    observations = fxenorm.analyze(model, tokens).observe([tokens])
    assert not observations.skipped and ("words", "input") not in {(one.module, one.direction) for one in observations}
    torch.testing.assert_close(
        observations["head", "input"].maximum, model.norm(model.words(tokens)).detach().double().amax((0, 1))
    )


def test_calls_beyond_those_of_the_analysis_are_no_claims() -> None:
    class Loop(nn.Module):
        """Calls one layer as often as its input has rows."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.zeros_like(x[0])
            for row in x:
                h = self.down(self.up(row + h).relu())
            return h

    plan = fxenorm.analyze(Loop(), torch.ones(2, 3, 4))
    observations = plan.observe([torch.ones(3, 3, 4)])
    assert {one.call for one in observations if one.module == "down" and one.direction == "input"} == {0, 1}
    assert "more often" in observations.skipped["down input of call 2"]


def test_axes_that_move_together_are_not_carried() -> None:
    mixer = Net(
        lambda m, x: m.d((m.c(m.a(x).relu().transpose(1, 2)).relu()).transpose(1, 2).flatten(1)),
        a=nn.Linear(4, 5, bias=False), c=nn.Linear(3, 6, bias=False), d=nn.Linear(30, 2),
    ).double()  # fmt: skip
    batch = torch.randn(2, 3, 4, generator=generator(0), dtype=torch.float64)
    plan = fxenorm.analyze(mixer, batch)
    before, log_scales = plan.observe([batch]), drawn(plan, 0)
    plan.rescale(log_scales)
    after = plan.observe([batch])
    for old, new in zip(before.rescaled(log_scales), after, strict=True):
        for value in VALUES[:4]:
            torch.testing.assert_close(getattr(old, value), getattr(new, value), rtol=1e-9, atol=1e-12, msg=f"{old} {value}")
