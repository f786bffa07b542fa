"""On a GPU that is not there (fake tensors): a step neither reads a value back nor copies anything between host and device."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fxenorm
from fxenorm.plan.plan import Plan

from ..helpers import generator
from ..releases import RELEASE

pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
    pytest.mark.skipif(RELEASE < (2, 12) and not torch.cuda.is_available(), reason="fake tensors ask for a real GPU before 2.12"),
]
"""Addresses decide whether what one step looked up serves the next."""

IMAGES = torch.randn(2, 3, 8, 8, generator=generator(1))


class Crossings(TorchDispatchMode):
    """Notes every operator with tensors on both sides. Reading a value of a fake tensor raises by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)]
        # A number wrapped as a 0-d CPU tensor is passed by value; a result says where it went.
        if {tensor.device.type for tensor in tensors if tensor.ndim or tensor.device.type != "cpu"} == {"cpu", "cuda"}:
            self.seen.append(str(function))
        return found


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 2)]
    return nn.Sequential(*layers)


def moved(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose parameters, gradients and buffers are fake, on a device that exists in name only."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device="cuda"))
                module._parameters[name].grad = torch.empty(parameter.shape, dtype=dtype, device="cuda")
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                kind = dtype if buffer.is_floating_point() else buffer.dtype
                module._buffers[name] = torch.empty(buffer.shape, dtype=kind, device="cuda")
    return model


def plan_and_copy(backend: str, **options: Any) -> tuple[Plan, nn.Module]:
    """A plan, and the module to move. What is worked out once for all devices is worked out here."""
    model = network()
    plan = fxenorm.analyze(model, IMAGES, backend=backend, **options)
    plan.step(torch.optim.SGD(model.parameters(), lr=0.1))
    return plan, copy.deepcopy(model)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"p": 1.0},
    {"p": math.inf, "batchnorm": "folded"},
    {"scales": "pow2"},
    {"batchnorm": "folded", "biases": "count"},
    {"max_log_scale": 0.1},
    {"balance_last": False},
]
CALLS: dict[str, dict[str, Any]] = {"plain": {}, "grads": {"grads": True}, "cycles": {"cycles": 2}, "keep": {"state": "keep"}}


def fake_gpu() -> FakeTensorMode:
    """Inside, all new tensors are fake."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_step_on_the_gpu_stays_there(options: dict[str, Any], call: str) -> None:
    plan, model = plan_and_copy("eager", **options)
    with fake_gpu():
        model = moved(model, torch.float32)
        plan = plan.bind(model)
        optimizer = torch.optim.AdamW(model.parameters(), capturable=True)
        optimizer.step()
        plan.step(optimizer, **CALLS[call])
        plan.norm(), plan.imbalance(), plan.history.record()  # the first time, indices are copied to the device
        versions = [parameter._version for parameter in model.parameters()]
        with Crossings() as crossings:
            for _ in range(3):
                plan.step(optimizer, **CALLS[call])
                norm, imbalance = plan.norm(), plan.imbalance()
                plan.history.record(torch.ones((), dtype=torch.int64, device="cuda"))
        assert [parameter._version for parameter in model.parameters()] != versions
        assert norm.device.type == imbalance.device.type == "cuda"
    assert not crossings.seen


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_every_type_and_with_every_backend(backend: str, dtype: torch.dtype) -> None:
    plan, model = plan_and_copy(backend)
    with fake_gpu():
        model = moved(model, dtype)
        plan = plan.bind(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer.step()
        plan.step(optimizer)
        with Crossings() as crossings:
            plan.step(optimizer)
    assert not crossings.seen


OPTIMIZERS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"momentum": 0.9, "foreach": True}),
    (torch.optim.Adam, {"amsgrad": True, "capturable": True}),
    (torch.optim.NAdam, {"capturable": True}),
    (torch.optim.RAdam, {"capturable": True}),
    (torch.optim.Adamax, {"capturable": True}),
    (torch.optim.RMSprop, {"centered": True, "capturable": True}),
    (torch.optim.Adadelta, {"capturable": True}),
    (torch.optim.Rprop, {"capturable": True}),
    (torch.optim.ASGD, {"capturable": True}),
    (torch.optim.Adagrad, {}),
]


@pytest.mark.parametrize(("cls", "settings"), OPTIMIZERS, ids=lambda value: getattr(value, "__name__", ""))
def test_whatever_the_optimizer(cls: type[torch.optim.Optimizer], settings: dict[str, Any]) -> None:
    plan, model = plan_and_copy("eager")
    with fake_gpu():
        model = moved(model, torch.float32)
        plan = plan.bind(model)
        optimizer = cls(model.parameters(), lr=1e-2, **settings)  # type: ignore[call-arg]
        optimizer.step()
        plan.step(optimizer)
        with Crossings() as crossings:
            plan.step(optimizer)
    assert not crossings.seen


def test_the_count_of_a_scaler_that_skips_lives_on_the_device() -> None:
    """A scaler hands its flag to fused optimizers on the device, and the hook makes of it what it can there."""
    plan, model = plan_and_copy("eager")
    with fake_gpu():
        model = moved(model, torch.float32)
        plan = plan.bind(model)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        handle = plan.attach(optimizer, every=3, start=2, stop=9)

        def scaler_step() -> None:
            optimizer.grad_scale, optimizer.found_inf = torch.ones((), device="cuda"), torch.zeros((), device="cuda")
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf

        scaler_step()
        with Crossings() as crossings:
            for _ in range(4):
                scaler_step()
        assert not crossings.seen
        with pytest.raises(DataDependentOutputException):
            _ = handle.steps
