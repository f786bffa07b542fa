"""Values that pass the dispatcher by: no scale is claimed through them, and analyze never ends by a signal."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm

SETUP = """
import copy, ctypes, torch, numpy as np, fxenorm
from torch import nn
torch.manual_seed(0)
def loop(source, target):
    u = (ctypes.c_float * source.numel()).from_address(source.data_ptr())
    v = (ctypes.c_float * target.numel()).from_address(target.data_ptr())
    for i in range(source.numel()): v[i] = max(u[i] + 1, 0.)
    return target
class Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h): return loop(h, torch.empty_like(h))
    @staticmethod
    def backward(ctx, g): return g
class Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h): return h.clamp(min=0)
    @staticmethod
    def backward(ctx, g): return g
@torch.library.custom_op("fxenorm_test::opaque", mutates_args=())
def opaque(h: torch.Tensor) -> torch.Tensor: return torch.from_numpy(np.maximum(h.numpy(), .3))
ARRAY = np.zeros((4, 8), "float32")
def through_array(h):
    t = torch.from_numpy(ARRAY); t.copy_(h); np.maximum(ARRAY, .3, out=ARRAY); return t
def cleared(h):
    s = h.untyped_storage(); ctypes.memset(s.data_ptr(), 0, s.nbytes() // 2); return h
def rewritten(h):
    a = h.numpy(); np.maximum(a, .3, out=a); return h
def later(h):
    view = h[:, :4]; h.data_ptr(); view.mul_(1); loop(h, h); return torch.cat([view, h[:, 4:]], 1)
"""

WAYS = {
    "data_ptr": "h.data_ptr() and loop(h, torch.empty_like(h))",
    "in place by address": "loop(h, h)",
    "storage": "cleared(h)",
    "view by address": "later(h)",
    "autograd.Function": "Kernel.apply(h)",
    "apply_": "h.clone().apply_(lambda v: max(v, .3))",
    "map_": "h.clone().map_(h, lambda u, v: max(v, .3))",
    "map2_": "h.clone().map2_(h, h, lambda u, v, w: max(v, .3))",
    "numpy": "torch.from_numpy(np.maximum(h.numpy(), .3))",
    "numpy in place": "rewritten(h)",
    "asarray": "torch.from_numpy(np.maximum(np.asarray(h), .3))",
    "dlpack": "torch.from_numpy(np.maximum(np.from_dlpack(h), .3))",
    "array outside": "through_array(h)",
    "tolist": "torch.tensor(h.tolist()).clamp(min=.3)",
    "custom operator": "torch.ops.fxenorm_test.opaque(h)",
    "deepcopy": "copy.deepcopy(h).clamp(min=.3)",
    "storage to list": "torch.tensor(h.storage().tolist()).view(4, 8).clamp(min=.3)",
    "set_": "(torch.empty(0).set_(h.untyped_storage(), 0, (4, 8)) + 1).relu()",
    "visible Function": "Plain.apply(h)",
}

CHECK = """
class Net(nn.Module):
    def __init__(s): super().__init__(); s.a, s.b = nn.Linear(6, 8), nn.Linear(8, 3)
    def forward(s, x):
        h = s.a(x){detach}
        return s.b({way})
def check(name):
    model, x = Net(), torch.randn(4, 6)
    before = model(x).detach().clone()
    try: plan = fxenorm.analyze(model, x)
    except fxenorm.errors.TraceError as error:
        print(name, "| refused |", str(error).splitlines()[0]); return
    plan.rescale(torch.linspace(-1, 1, plan.num_scales))
    print(name, "|", plan.num_scales, "|", (model(x) - before).abs().max().item() < 1e-5, flush=True)
check({name!r})
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: a signal ends that one only."""
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def answers() -> dict[str, list[str]]:
    code = SETUP
    for name, way in WAYS.items():
        code += CHECK.format(name=name, way=way, detach="" if "Function" in name else ".detach()")
    done = run(code)
    lines: dict[str, Any] = {line.split(" | ")[0]: line.split(" | ")[1:] for line in done.stdout.splitlines() if " | " in line}
    assert done.returncode == 0, (lines.keys(), done.stderr[-2000:])
    return lines


@pytest.mark.parametrize("way", WAYS)
def test_no_scale_is_claimed_where_memory_is_read_past_the_dispatcher(answers: dict[str, list[str]], way: str) -> None:
    found = answers[way]
    if way == "visible Function":
        assert found == ["8", "True"]
    elif way in ("storage to list", "set_"):
        assert found[0] == "refused" or found == ["0", "True"]
    else:
        assert found == ["0", "True"]


class _Aligned(nn.Module):
    """Asks where its hidden layer lies, by a function that some module is said to hold."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.namespace: dict[str, Any] = {"__name__": module}
        exec("def _can_use_grouped_mm(h): return h.data_ptr() % 16 == 0", self.namespace)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return self.b(torch.relu(h) if self.namespace["_can_use_grouped_mm"](h) else h.clamp(min=0))


@pytest.mark.parametrize(
    ("module", "tracer", "scales"), [("transformers.integrations.moe", "export", 8), ("other", "make_fx", 0)]
)
def test_who_looks_at_the_alignment_alone_holds_nothing(module: str, tracer: str, scales: int) -> None:
    """Where transformers chooses between two ways to compute the same; other code may do anything with an address."""
    plan = fxenorm.analyze(_Aligned(module), torch.randn(4, 6))
    assert (plan.tracer, plan.num_scales) == (tracer, scales)
