"""A plan is an ordinary object: it is copied, pickled, saved with its model, used from threads and in forked processes."""

from __future__ import annotations

import copy
import io
import os
import pickle
import pickletools
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import fxenorm
from fxenorm.errors import BindError, RescaleError

from ..helpers import draw_log_scales


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).double()


X = torch.randn(5, 8, dtype=torch.float64)


def saved(thing: Any) -> Any:
    """Through torch.save."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "torch.save": saved,
    **{f"pickle {protocol}": lambda thing, p=protocol: pickle.loads(pickle.dumps(thing, p)) for protocol in range(2, 6)},
}


@pytest.mark.parametrize("as_attribute", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_copied_plan_belongs_to_the_copied_model(way: str, as_attribute: bool) -> None:
    model = network()
    plan = fxenorm.analyze(model, X, p=3.0)
    plan.step()
    before = copy.deepcopy(model.state_dict())
    if as_attribute:
        model.plan = plan  # type: ignore[assignment]
        other_model = WAYS[way](model)
        other = other_model.plan
    else:
        other = WAYS[way](plan)
        other_model = other.model
    assert other.model is other_model and other_model is not model and isinstance(other, fxenorm.Plan)
    assert other.fingerprint == plan.fingerprint and str(other) == str(plan)
    y = other_model(X)
    other.rescale(draw_log_scales(other))
    other.step()
    other.balance()
    assert other.verify()
    torch.testing.assert_close(other_model(X), y)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    plan.balance()
    for one, two in zip(model.parameters(), other_model.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_a_shallow_copy_is_a_plan_of_the_same_model() -> None:
    plan = fxenorm.analyze(network(), X)
    assert copy.copy(plan).model is plan.model
    copy.copy(plan).step()


def test_what_is_tracked_is_copied_along() -> None:
    model = network()
    average = copy.deepcopy(model)
    plan = fxenorm.analyze(model, X)
    plan.track(average)
    other_model, other_average, other = copy.deepcopy((model, average, plan))
    y = other_average(X)
    other.balance()
    torch.testing.assert_close(other_average(X), y)
    for one, two in zip(other_model.parameters(), other_average.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), average.parameters(), strict=True))


@pytest.mark.parametrize("way", ["deepcopy", "pickle 5"])
def test_masters_of_16_bit_weights_stay_masters_in_a_copy(way: str) -> None:
    """So that the copied weights move by any factor, and not by powers of two."""
    model = network().bfloat16()
    masters = [parameter.detach().float() for parameter in model.parameters()]
    plan = fxenorm.analyze(model, X.bfloat16())
    plan.track(masters, master=True)
    other, twins = WAYS[way]((plan, masters))
    other.step()
    ratios = (twins[0] / masters[0]).log2().flatten()
    assert (ratios != ratios.round()).any() and torch.equal(other.model[0].weight, twins[0].bfloat16())


def test_an_averaged_model_of_a_model_with_its_plan() -> None:
    model = network()
    model.plan = fxenorm.analyze(model, X)  # type: ignore[assignment]
    average = AveragedModel(model)
    assert model.plan.verify()
    inner = average.module
    y = inner(X)
    inner.plan.balance()  # type: ignore[union-attr]
    torch.testing.assert_close(inner(X), y)


def test_a_pickle_names_public_names_only() -> None:
    plan = fxenorm.analyze(network(), X)
    for protocol in range(2, 6):
        names = [
            argument for operation, argument, _ in pickletools.genops(pickle.dumps(plan, protocol)) if isinstance(argument, str)
        ]
        ours = [name for name in names if name.startswith("fxenorm")]
        assert ours and all(name in ("fxenorm", "fxenorm plan_from_dict") or ("." in name and " " not in name) for name in ours)
        assert not any(name.startswith("fxenorm.") for name in names)


def test_a_half_rescaled_model_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = fxenorm.analyze(network(), X)
    monkeypatch.setattr(type(plan.rescaler.journal), "is_open", True)
    for way in (copy.deepcopy, pickle.dumps):
        with pytest.raises(RescaleError, match=r"plan\.repair\(\)"):
            way(plan)


SPAWNED = """
import pickle, sys, torch
with open(sys.argv[1], "rb") as file:
    plan = pickle.load(file)
plan.balance()
assert plan.verify() and plan.fingerprint == sys.argv[2]
"""


def test_a_plan_works_in_a_new_process(tmp_path: Any) -> None:
    plan = fxenorm.analyze(network(), X)
    path = tmp_path / "plan"
    path.write_bytes(pickle.dumps(plan))
    subprocess.run([sys.executable, "-c", SPAWNED, str(path), plan.fingerprint], check=True, timeout=120)


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_threads_take_turns(backend: str) -> None:
    model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU())], nn.Linear(64, 4)).double()
    x = torch.randn(5, 64, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    model(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand((parameter.shape[0],) + (1,) * (parameter.ndim - 1), dtype=torch.float64) + 0.5)
    y = model(x).detach()
    plan = fxenorm.analyze(model, x, backend=backend)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        scales = torch.randn(plan.num_scales, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        try:
            for _ in range(20):
                plan.rescale(scales, optimizer)
                plan.step(optimizer)
                plan.rescale(-scales, optimizer)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    torch.testing.assert_close(model(x), y, rtol=1e-9, atol=1e-9)


FORKED = """
import os, signal, sys, threading, warnings, torch, fxenorm
from torch import nn
warnings.simplefilter("ignore", DeprecationWarning)
torch.set_num_threads(2)
model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 512))
plan = fxenorm.analyze(model, torch.randn(2, 1024), backend=sys.argv[1])
plan.step(); plan.step(cycles=2)
inside = threading.Event()
def hold():
    with plan.rescaler.lock:
        inside.set()
        threading.Event().wait()
threading.Thread(target=hold, daemon=True).start()
inside.wait()  # another thread is in the middle of a call when the process forks
child = os.fork()
if child == 0:
    signal.alarm(60)
    plan.step(); plan.step(cycles=2); plan.balance(); float(plan.norm())
    assert torch.get_num_threads() == 2
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_a_plan_made_before_a_fork_steps_in_the_child(backend: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", FORKED, backend], check=True, timeout=120, env=environment)


DAMAGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "a half": lambda d: d["symmetry"]["exponents"]["0.bias"][0].__setitem__(0, 0.5),
    "zero": lambda d: d["symmetry"]["exponents"]["0.bias"][0].__setitem__(0, 0),
    "another coefficient": lambda d: d["symmetry"]["exponents"]["0.bias"][0].__setitem__(0, 2),
    "a huge coefficient": lambda d: d["symmetry"]["exponents"]["0.weight"][0].__setitem__(0, 2**40),
    "dropped": lambda d: d["symmetry"]["exponents"].pop("0.bias"),
    "a term dropped": lambda d: d["symmetry"]["exponents"]["0.weight"].pop(),
    "true": lambda d: d["symmetry"]["exponents"]["0.bias"][0].__setitem__(0, True),
    "another option": lambda d: d["options"].__setitem__("p", 3.0),
    "a huge length": lambda d: d["arrays"].__setitem__("length", 10**18),
    "a negative length": lambda d: d["arrays"].__setitem__("length", -1),
    "a huge shape": lambda d: d["symmetry"]["group_starts"].__setitem__(1, [10**15]),
    "no number of scales": lambda d: d["symmetry"].__setitem__("num_scales", 10**300),
    "another fingerprint": lambda d: d.__setitem__("fingerprint", "0" * 64),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_refused_with_one_error(damage: str) -> None:
    model = network()
    stored = copy.deepcopy(fxenorm.analyze(model, X).to_dict())
    DAMAGES[damage](stored)
    with pytest.raises(BindError, match="damaged"):
        fxenorm.Plan.from_dict(stored, model)
