"""A small residual network and what the tests of the Triton kernels ask of it; used under the interpreter and on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxenorm
from fxenorm.kernels.gpu import step

__all__ = ["Launches", "Tower", "assert_same", "trained"]

Trained = tuple["Tower", torch.optim.Optimizer, fxenorm.Plan]


class Tower(nn.Module):
    """Residual blocks with BatchNorm, grouped and depthwise convolutions, and a head of several layers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(12) for _ in range(depth + 1)])
        self.blocks = nn.ModuleList(
            [layer for _ in range(depth) for layer in (nn.Conv2d(12, 24, 3, padding=1), nn.Conv2d(24, 12, 1, groups=4))]
        )
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.wide = nn.Linear(12, 300)
        self.head = nn.Linear(300, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.norms[0](self.stem(x)).relu()
        for index in range(len(self.norms) - 1):
            first, second = self.blocks[2 * index], self.blocks[2 * index + 1]
            x = (x + self.norms[index + 1](second(first(x).relu()))).relu()
        x = self.depthwise(x).relu().amax((2, 3))
        return self.head(self.wide(x.to(self.wide.weight.dtype)).relu().to(self.head.weight.dtype))


def trained(
    backend: str,
    *,
    depth: int = 1,
    optimizer: str = "sgd",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    second: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    **options: Any,
) -> Trained:
    """The network after a step of its optimizer, and its plan; `second` is the type of the head."""
    torch.manual_seed(0)
    model = Tower(depth)
    for norm in model.norms:
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    plan = fxenorm.analyze(model, torch.randn(2, 3, 8, 8), backend=backend, **options)
    model = model.to(device=device, dtype=dtype, memory_format=memory_format)
    if second is not None:
        model.wide.to(second)
        model.head.to(second)
    found = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    chosen: torch.optim.Optimizer = found if optimizer == "sgd" else torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(2, 3, 8, 8, dtype=dtype).to(device)
    model(x).square().sum().backward()
    chosen.step()
    return model, chosen, plan


def assert_same(one: Trained, other: Trained) -> None:
    """Parameters, buffers and optimizer state to a rounding or two of their types."""
    for a, b in zip(one[0].state_dict().values(), other[0].state_dict().values(), strict=True):
        _close(a, b)
    for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True):
        ours, theirs = one[1].state.get(a, {}), other[1].state.get(b, {})
        for key in ours:
            _close(ours[key], theirs[key])


def _close(a: torch.Tensor, b: torch.Tensor) -> None:
    """Two tensors."""
    if a.is_floating_point():
        rtol = 1e-11 if a.dtype == torch.float64 else 4 * torch.finfo(a.dtype).eps
        torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=1e-30)


class Launches(TorchDispatchMode):
    """Counts the launches of the kernels, and PyTorch's operators beside them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.names: list[str] = []
        self.operators: list[str] = []
        launch = step.launch

        def counted(kernel: Any, grid: int, *arguments: Any, **constants: Any) -> None:
            """One of them."""
            self.names += ["kernel"] if grid else []
            # The interpreter looks at its arguments with PyTorch's operators.
            with torch.utils._python_dispatch._disable_current_modes():
                launch(kernel, grid, *arguments, **constants)

        monkeypatch.setattr(step, "launch", counted)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Notes operators; views launch nothing."""
        if not getattr(function, "is_view", False):
            self.operators.append(str(function))
        return function(*args, **(kwargs or {}))
