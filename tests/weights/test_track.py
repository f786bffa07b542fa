"""plan.track: averaged and master copies follow every later rescaling; so do pruning masks and parametrizations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxenorm
from fxenorm.errors import BindError, FxenormWarning, OptionError

from ..helpers import draw_log_scales, generator, outputs, relative_difference, rescale_by_hand

INPUTS = (torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=generator(1)),)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)]
    return nn.Sequential(*layers).double()


class Holder:
    """timm's first ModelEma: no module, but it holds one."""

    def __init__(self, model: nn.Module) -> None:
        self.ema = copy.deepcopy(model)


class HolderModule(nn.Module):
    """timm's later ones: a module that holds one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)


def averaged(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))


MODULES: dict[str, Callable[[nn.Module], Any]] = {
    "deepcopy": copy.deepcopy,
    "AveragedModel": averaged,
    "ema": Holder,
    "module": HolderModule,
    "float32": lambda model: copy.deepcopy(model).float().double(),
}


def inner(holder: Any) -> nn.Module:
    return getattr(holder, "ema", getattr(holder, "module", holder)) if not isinstance(holder, nn.Sequential) else holder


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_follows_in_the_same_call(kind: str) -> None:
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    follower = MODULES[kind](model)
    with torch.no_grad():
        for parameter in inner(follower).parameters():
            parameter.mul_(1.5)
    before, mine = outputs(inner(follower), INPUTS), outputs(model, INPUTS)
    handle = plan.track(follower)
    plan.rescale(draw_log_scales(plan))
    plan.step()
    plan.balance()
    assert relative_difference(mine, outputs(model, INPUTS)) < 1e-10
    assert relative_difference(before, outputs(inner(follower), INPUTS)) < 1e-10
    for a, b in zip(model.parameters(), inner(follower).parameters(), strict=True):
        torch.testing.assert_close(b.detach(), 1.5 * a.detach(), rtol=1e-10, atol=0)
    handle.remove()
    handle.remove()
    saved = copy.deepcopy(inner(follower).state_dict())
    plan.rescale(draw_log_scales(plan, seed=2))
    assert all(torch.equal(saved[key], value) for key, value in inner(follower).state_dict().items())


def test_timm() -> None:
    timm = pytest.importorskip("timm")
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    for cls in (timm.utils.ModelEma, timm.utils.ModelEmaV2, timm.utils.ModelEmaV3):
        ema = cls(model)
        average = ema.ema if cls is timm.utils.ModelEma else ema.module
        before = outputs(average, INPUTS)
        plan.track(ema)
        plan.rescale(draw_log_scales(plan))
        assert relative_difference(before, outputs(average, INPUTS)) < 1e-10
        ema.update(model)
        assert relative_difference(before, outputs(average, INPUTS)) < 1e-10, "the model and its average stay in one gauge"


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_of_a_run_with_an_attached_plan(use_buffers: bool) -> None:
    """The hook moves both before the average is updated: at each step it is what it would be without that rescaling."""
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=use_buffers)
    plan.track(average)
    before: list[list[Tensor]] = []
    optimizer.register_step_post_hook(lambda *_: before.append([p.detach().clone() for p in average.module.parameters()]))
    plan.attach(optimizer)
    for _ in range(4):
        function = outputs(average.module, INPUTS)
        stepped(model, optimizer)
        assert relative_difference(function, outputs(average.module, INPUTS)) < 1e-10
        moved = any(not torch.equal(p.detach(), old) for p, old in zip(average.module.parameters(), before[-1], strict=True))
        assert moved, "though its function is what it was"
        expected = [
            0.8 * a.detach() + 0.2 * p.detach() for a, p in zip(average.module.parameters(), model.parameters(), strict=True)
        ]
        average.update_parameters(model)
        if len(before) > 1:  # the first update copies
            for mine, value in zip(average.module.parameters(), expected, strict=True):
                torch.testing.assert_close(mine.detach(), value, rtol=1e-12, atol=0)


def test_masks_and_parametrizations_under_an_attached_plan() -> None:
    model = network()
    prune.l1_unstructured(model[0], "weight", amount=0.4)
    parametrizations.weight_norm(model[2])
    parametrizations.orthogonal(model[6])
    plan = fxenorm.analyze(model, INPUTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen: list[list[Tensor]] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(outputs(model, INPUTS)))
    plan.attach(optimizer)
    optimizer.register_step_post_hook(lambda *_: seen.append(outputs(model, INPUTS)))
    mask = model[0].weight_mask.clone()
    for _ in range(3):
        stepped(model, optimizer)
        assert relative_difference(*seen[-2:]) < 1e-10
    assert torch.equal(mask, model[0].weight_mask)
    assert not (model[0].weight_orig[mask == 0] == 0).all() and not model[0].weight.detach()[mask == 0].any()


@pytest.mark.parametrize("form", ["list", "tuple", "dict", "trained only"])
def test_tensors_follow(form: str) -> None:
    model = network()
    if form == "trained only":
        model[6].bias.requires_grad_(False)
    plan = fxenorm.analyze(model, INPUTS)
    chosen = {name: p for name, p in model.named_parameters() if form != "trained only" or p.requires_grad}
    masters = {name: parameter.detach().clone() for name, parameter in chosen.items()}
    given = masters if form == "dict" else tuple(masters.values()) if form == "tuple" else list(masters.values())
    plan.track(given)
    plan.rescale(draw_log_scales(plan))
    for name, parameter in chosen.items():
        torch.testing.assert_close(masters[name], parameter.detach(), rtol=1e-14, atol=0)


def test_what_is_the_models_own_or_tracked_twice_is_scaled_once() -> None:
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    follower = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in follower.parameters():
            parameter.mul_(1.5)
    expected = [copy.deepcopy(one) for one in (model, follower)]
    for given in (model, list(model.parameters()), follower, list(follower.parameters()), dict(follower.named_parameters())):
        plan.track(given)
    log_scales = draw_log_scales(plan)
    plan.rescale(log_scales)
    # Outputs would not tell: twice the same rescaling keeps them too.
    for one, other in zip((model, follower), expected, strict=True):
        rescale_by_hand(other, plan.exponents, log_scales)
        for parameter, twin in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(parameter, twin, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, OptionError, "must be a module"),
        ("weights", OptionError, "must be a module"),
        (nn.Linear(3, 3), BindError, "missing"),
        ([torch.ones(1)], BindError, "holds 1 tensors"),
        ({"nowhere": torch.ones(1)}, BindError, "nowhere"),
        ({"0.weight": torch.ones(1)}, BindError, r"0\.weight.*shape \(1,\)"),
        ({"0.weight": None}, BindError, r"0\.weight.*NoneType"),
    ],
)
def test_what_does_not_fit_is_refused(given: Any, error: type[Exception], message: str) -> None:
    plan = fxenorm.analyze(network(), INPUTS)
    with pytest.raises(error, match=message):
        plan.track(given)
    plan.step()


def test_a_copy_that_stops_fitting_is_met_before_anything_is_written() -> None:
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    masters = [parameter.detach().clone() for parameter in model.parameters()]
    plan.track(masters)
    masters[2] = torch.ones(1)
    saved = copy.deepcopy(model.state_dict())
    with pytest.raises(BindError, match=r"2\.weight"):
        plan.step()
    assert all(torch.equal(saved[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("form", ["list", "dict", "module"])
def test_what_takes_a_tracked_tensors_place_follows_from_then_on(form: str) -> None:
    """Also between steps of which each goes by what the last one has looked up."""
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    follower = copy.deepcopy(model)
    given: Any = {"list": list(follower.parameters()), "dict": dict(follower.named_parameters()), "module": follower}[form]
    plan.track(given)
    for _ in range(2):
        plan.step()
    old = follower[2].weight
    new = nn.Parameter(old.detach() * 3)
    if form == "module":
        follower[2].weight = new
    else:
        given[2 if form == "list" else "2.weight"] = new
    before, left, weight = new.detach().clone(), old.detach().clone(), model[2].weight.detach().clone()
    with torch.no_grad():
        model[2].weight[0] *= 4
    weight[0] *= 4
    plan.step()
    assert torch.equal(old, left) and not torch.equal(new, before)
    torch.testing.assert_close(new.detach() / before, model[2].weight.detach() / weight, rtol=1e-12, atol=0)


def test_an_optimizer_over_masters_follows_them() -> None:
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    masters = [nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()]
    optimizer = torch.optim.Adam(masters, lr=1e-2)
    for master in masters:
        master.grad = torch.randn(master.shape, dtype=torch.float64, generator=generator(5))
    optimizer.step()
    plan.track(masters, master=True)
    products = [optimizer.state[master]["exp_avg"] * master.detach() for master in masters]
    plan.rescale(draw_log_scales(plan), optimizer)
    plan.step(optimizer)
    for master, product in zip(masters, products, strict=True):
        torch.testing.assert_close(optimizer.state[master]["exp_avg"] * master.detach(), product, rtol=1e-10, atol=0)


def test_masters_free_16_bit_weights_from_powers_of_two() -> None:
    model = network().bfloat16()
    plan = fxenorm.analyze(model, INPUTS[0].bfloat16())
    masters = [parameter.detach().float() for parameter in model.parameters()]
    before = masters[0].clone()
    tracked = plan.track(masters, master=True)
    plan.step()
    ratios = (masters[0] / before)[:, 0, 0, 0].log2()
    assert (ratios != ratios.round()).any()
    tracked.remove()
    weight = model[0].weight.detach().clone()
    plan.step()
    ratios = (model[0].weight / weight).float().flatten().log2()
    assert torch.equal(ratios, ratios.round())


def test_pruning_masks_follow_from_the_graph() -> None:
    model = network()
    for layer in (model[0], model[2]):
        prune.l1_unstructured(layer, "weight", amount=0.4)
    mask = model[0].weight_mask.clone()
    plan = fxenorm.analyze(model, INPUTS)
    assert "0.weight_orig" in plan.exponents and "0.weight_mask" not in plan.exponents
    before = outputs(model, INPUTS)
    plan.rescale(draw_log_scales(plan))
    plan.balance()
    assert relative_difference(before, outputs(model, INPUTS)) < 1e-10
    assert torch.equal(mask, model[0].weight_mask)
    prune.remove(model[0], "weight")
    assert relative_difference(before, outputs(model, INPUTS)) < 1e-10


def test_parametrizations_follow_from_the_graph() -> None:
    model = network()
    parametrizations.weight_norm(model[0])
    parametrizations.weight_norm(model[2])
    plan = fxenorm.analyze(model, INPUTS)
    assert plan.num_scales
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model(*INPUTS).square().mean().backward()
    optimizer.step()
    before, follower = outputs(model, INPUTS), copy.deepcopy(model)
    plan.track(follower)
    plan.rescale(draw_log_scales(plan), optimizer)
    plan.step(optimizer)
    assert relative_difference(before, outputs(model, INPUTS)) < 1e-10
    assert relative_difference(before, outputs(follower, INPUTS)) < 1e-10


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.zero_grad()
    model(*INPUTS).square().mean().backward()
    optimizer.step()


def momenta(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [optimizer.state[parameter]["exp_avg"].clone() for parameter in model.parameters()]


def test_state_reset_and_keep() -> None:
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    stepped(model, optimizer)
    before = momenta(model, optimizer)
    for call in (plan.step, plan.balance, lambda *a, **k: plan.rescale(draw_log_scales(plan), *a, **k)):
        call(optimizer, state="keep")
        assert all(torch.equal(a, b) for a, b in zip(before, momenta(model, optimizer), strict=True))
        with pytest.raises(OptionError, match="state='drop'"):
            call(optimizer, state="drop")
    plan.step(optimizer, state="reset")
    moved = {parameter for name, parameter in model.named_parameters() if name in plan.exponents}
    assert set(optimizer.state) == set(model.parameters()) - moved
    stepped(model, optimizer)
    history = torch.optim.LBFGS(model.parameters())
    history.step(lambda: model(*INPUTS).square().mean())
    plan.step(history, state="reset")
    assert not any(history.state.values())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_training_loop_that_forgets_the_optimizer_warns_once(set_to_none: bool) -> None:
    model = network()
    plan = fxenorm.analyze(model, INPUTS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):  # not trained, or trained once, or told so
        plan.step()
    stepped(model, optimizer)
    for _ in range(2):
        plan.step()
    optimizer.zero_grad(set_to_none=set_to_none)
    model(*INPUTS).square().mean().backward()
    plan.step(state="keep")
    with pytest.warns(FxenormWarning, match=r"plan\.step\(optimizer\)") as seen:
        plan.step()
    assert [warning.filename for warning in seen] == [__file__]
    plan.step()
    plan.step(optimizer)
