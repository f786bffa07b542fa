"""Nothing depends on torch's default dtype and device: not what the source says, and not what a plan does."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._device import _device_constructors

import fxenorm

PACKAGE = Path(fxenorm.__file__).parent
MAKERS = {function.__name__ for function in _device_constructors()} | {"complex", "frombuffer", "from_file"}
"""Functions of torch whose result depends on a default unless they are told dtype and device."""

OF_ANOTHER = ("_like",)
UNTYPED = {"Tensor", "FloatTensor", "DoubleTensor", "LongTensor", "Storage"}


def calls_of(source: str) -> Iterator[tuple[ast.Call, str]]:
    """Every call of a function of torch, with its name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id == "torch":
                yield node, node.func.attr


def depends_on_defaults(source: str) -> list[str]:
    """The calls that make a tensor without saying of which dtype and where."""
    found = []
    for call, name in calls_of(source):
        named = {keyword.arg for keyword in call.keywords}
        if name in UNTYPED or (name in MAKERS and not {"dtype", "device"} <= named):
            found.append(f"line {call.lineno}: torch.{name}")
        if name.endswith(OF_ANOTHER) and not (call.args and not isinstance(call.args[0], ast.Constant)):
            found.append(f"line {call.lineno}: torch.{name} of no tensor")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_tensor_is_told_its_dtype_and_device(path: Path) -> None:
    assert depends_on_defaults(path.read_text(encoding="utf-8")) == []


def test_the_reader_of_the_source_sees_what_it_must() -> None:
    assert depends_on_defaults("torch.zeros(3)") and depends_on_defaults("torch.zeros(3, dtype=torch.float32)")
    assert depends_on_defaults("torch.Tensor(3)") and depends_on_defaults("torch.tensor(1.0, device='cpu')")
    assert not depends_on_defaults("torch.zeros(3, dtype=torch.int64, device=x.device); torch.ones_like(x); x.new_zeros(3)")


class Net(nn.Module):
    """Convolutions, kernels of which are summed first, groups, a norm, a product of two branches: every kind of table."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        options = {"dtype": dtype, "device": "cpu"}
        self.first = nn.Conv2d(3, 8, 3, **options)
        self.norm = nn.BatchNorm2d(8, **options)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2, **options)
        self.gate = nn.Conv2d(8, 8, 3, **options)
        self.last = nn.Linear(8, 2, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.first(x)).relu()
        return self.last((self.grouped(h).relu() * self.gate(h)).mean((2, 3)))


def after(backend: str, p: float) -> list[torch.Tensor]:
    """All numbers after every call, from a start that does not depend on the default."""
    model = Net(torch.float32)
    random = torch.Generator(device="cpu").manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=random, dtype=torch.float64, device="cpu")
            parameter.copy_(drawn * 0.1 * 4 ** torch.rand(1, generator=random, dtype=torch.float64, device="cpu"))
    x = torch.randn(2, 3, 8, 8, generator=random, dtype=torch.float32, device="cpu")
    options = {"batchnorm": "folded" if math.isinf(p) else "affine", "backend": backend}
    plan = fxenorm.analyze(model, x, p=p, **options)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    model(x).square().sum().backward()
    optimizer.step()
    found = []
    for call in (
        *(lambda cycles=cycles: plan.step(optimizer, cycles=cycles) for cycles in (1, 3, 3)),
        lambda: plan.rescale([0.25] * plan.num_scales, optimizer),
        lambda: plan.balance(optimizer, max_iterations=3),
    ):
        call()
        found += [parameter.detach().clone() for parameter in model.parameters()]
        found += [state["momentum_buffer"].clone() for state in optimizer.state.values()]
        found += [plan.norm(), plan.imbalance(), plan.channel_imbalance(), *plan.layer_norms().values()]
    return found


@pytest.fixture(scope="module")
def known() -> dict[tuple[str, float], list[torch.Tensor]]:
    """What came out under the first default."""
    return {}


@pytest.mark.parametrize("backend", ["compiled", "eager"])
@pytest.mark.parametrize("p", [2.0, 1.5, math.inf])
def test_a_plan_does_the_same_under_every_default(
    default_dtype: torch.dtype, backend: str, p: float, known: dict[tuple[str, float], list[torch.Tensor]]
) -> None:
    found = after(backend, p)
    for one, other in zip(found, known.setdefault((backend, p), found), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_a_plan_works_under_another_default_device() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    y = model(x)
    torch.set_default_device("meta")
    try:
        plan = fxenorm.analyze(model, x)
        plan.step(cycles=3)
        plan.balance()
        plan.rescale([0.5] * plan.num_scales)
        assert plan.verify(x) and plan.held == () and plan.norm().device.type == "cpu"
    finally:
        torch.set_default_device(None)
        # Torch 2.9 fails to name the default device in a thread that once had another one.
        vars(torch._GLOBAL_DEVICE_CONTEXT).pop("device_context", None)
    torch.testing.assert_close(model(x), y)
