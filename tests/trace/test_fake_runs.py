"""A run with fake values stands for `torch.export`: the same plan, in less time; where it cannot, `torch.export` takes over."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import fxenorm
from fxenorm.errors import ExampleInputsError
from fxenorm.trace import trace_model

from ..releases import RELEASE
from ..zoo import CASES
from ..zoo_base import Net


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("not today")


def facts(plan: fxenorm.Plan) -> dict[str, Any]:
    """All that a plan knows, stored or printed; the rows of the account, whose order is the graph's, by what they say."""
    stored = plan.to_dict()
    stored["symmetry"] = {key: value for key, value in stored["symmetry"].items() if key != "account"}
    return {**stored, "text": plan.describe(expand=True), "why": str(plan.why()), "fingerprint": plan.fingerprint}


@pytest.mark.parametrize("name", list(CASES)[::8])
def test_both_ways_lead_to_the_same_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    model = case.build().double()
    quick = fxenorm.analyze(model, case.inputs())
    monkeypatch.setattr("fxenorm.trace.tracer.trace_by_fake_run", refuse)
    monkeypatch.setattr("fxenorm.trace.tracer._calls_regions", lambda traced: True)  # else there is no second size
    slow = fxenorm.analyze(model, case.inputs())
    assert facts(quick) == facts(slow) and quick.tracer == "export"


def parts(**layers: nn.Module) -> dict[str, nn.Module]:
    """Two layers and one that tells the modes apart."""
    return {"a": nn.Linear(4, 6), "b": nn.Linear(6, 3), "drop": nn.Dropout(), **layers}


def plain(m: Any, x: Tensor) -> Any:
    return m.b(m.drop(m.a(x)).relu())


def branch(m: Any, x: Tensor) -> Any:
    return torch.cond(x.sum() > 0, lambda h: m.b(h.relu()), lambda h: -m.b(h.relu()), (m.drop(m.a(x)),))


def lengths(m: Any, x: Tensor) -> Any:
    h = m.drop(m.a(x)).relu()
    return m.b(h[h.sum(1) > 0])


def values(m: Any, x: Tensor) -> Any:
    return plain(m, x) if x.sum() < 1e9 else x


@pytest.mark.parametrize(
    ("forward", "exported", "tracer"),
    [(plain, False, "export"), (branch, True, "export"), (lengths, True, "export"), (values, True, "make_fx")],
)
def test_torch_export_is_called_only_where_it_must_be(
    forward: Callable[..., Any], exported: bool, tracer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    export = torch.export.export

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append("export")
        return export(*args, **kwargs)

    monkeypatch.setattr("torch.export.export", counted)
    stages: list[str] = []
    traced = trace_model(Net(forward, **parts()), torch.randn(5, 4), report=stages.append)
    assert [item.mode for item in traced] == ["eval", "train"] and {item.tracer for item in traced} == {tracer}
    assert bool(calls) == exported
    followed = ["following a real run in eval mode"] if tracer == "make_fx" else []
    assert stages == [
        "tracing in eval mode", *followed, "tracing at a second size", "tracing in train mode",
        *(stage.replace("eval", "train") for stage in followed),
    ]  # fmt: skip


def test_what_refuses_both_ways_has_the_reason_of_torch_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxenorm.trace.tracer.trace_by_export", refuse)
    (traced,) = trace_model(Net(values, **parts()), torch.randn(5, 4), modes="eval")
    assert traced.tracer == "make_fx" and any("not today" in note for note in traced.notes)


@dataclasses.dataclass
class Pair:
    left: Tensor
    right: Tensor


class Named(nn.Module):
    """Arguments of many kinds: by position and keyword, nested, one of them the name of an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4), torch.ones(4)

    def forward(self, x: Tensor, nested: dict[str, list[Tensor]], *rest: Tensor, mul: Tensor, **more: Tensor) -> Tensor:
        first = self.layer(x) * mul + nested["deep.key"][0] + nested["deep.key"][1]
        y: Tensor = (first + rest[0] + more["last"]) * self.scale
        return y


def test_tensors_keep_the_names_that_the_user_gave_them() -> None:
    a, b, c, d, e, f = torch.randn(6, 3, 4)
    (traced,) = trace_model(Named(), (a, {"deep.key": [b, c]}, d), example_kwargs={"mul": e, "last": f})
    names = [item.name for item in traced.placeholders.values() if item.kind == "input"]
    assert names == ["x", "nested_deep.key_0", "nested_deep.key_1", "rest_0", "mul", "more_last"]
    assert [item.name for item in traced.placeholders.values() if item.kind not in ("input", "parameter")] == ["scale"]
    assert {"x", "p_layer_weight", "p_layer_bias"} <= set(traced.placeholders)


class Resized(nn.Module):
    """Writes settings over: with equal values, or with one that its activations decide."""

    def __init__(self, decided: bool) -> None:
        super().__init__()
        self.a, self.b, self.decided = nn.Linear(4, 6), nn.Linear(6, 3), decided
        self.size, self.last, self.flag = (0, 4), (0.0, "x"), True

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        self.size, self.flag = (0, x.shape[1]), bool(x.shape[1])
        self.last = (h.mean().item() if self.decided else 0.0, "x")
        y: Tensor = self.b(h)
        return y


@pytest.mark.parametrize("decided", [False, True])
def test_a_setting_that_forward_writes_over_counts_only_where_its_value_changes(decided: bool) -> None:
    traced = trace_model(Resized(decided), torch.randn(5, 4))[0]
    left = [output.path for output in traced.outputs if not output.returned]
    assert left == (["self.last.0"] if decided else [])


class Chosen(nn.Module):
    """Tokens that two experts multiply, the first two by one and the rest by the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)
        self.experts = nn.Parameter(torch.randn(2, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.tensor([2, len(x)], dtype=torch.int32, device=x.device)
        y: Tensor = self.b(product()(self.a(x).relu(), self.experts, offs=ends).relu())
        return y


def product() -> Callable[..., Tensor]:
    """The product of tokens with their experts, by its name in this release."""
    names = ((torch.nn.functional, "grouped_mm"), (torch, "_grouped_mm"))
    return next(getattr(owner, name) for owner, name in names if hasattr(owner, name))


@pytest.mark.skipif(RELEASE < (2, 9), reason="torch before 2.9 has no grouped product on CPUs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_grouped_products_of_any_float_type_run_without_values(dtype: torch.dtype) -> None:
    """Before 2.15 torch runs them without values in bfloat16 alone, though real tensors may be of all three types."""
    plan = fxenorm.analyze(Chosen().to(dtype), torch.randn(4, 8, dtype=dtype), scales="exact")
    assert plan.tracer == "export" and plan.num_scales == 8 + 8 and plan.verify()


class _Asks(nn.Module):
    """Notes whether garbage is collected while forward runs; where `by_value`, only a run with real values can follow it."""

    def __init__(self, by_value: bool, fails: bool = False) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(3, 4), nn.Linear(4, 2)
        self.by_value, self.fails = by_value, fails

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3) -> (B, 2)."""
        x = self.into(x).relu()
        real = not isinstance(x, FakeTensor) and x.device.type != "meta"
        os.write(1, f"{real} {gc.isenabled()}\n".encode())  # a list would be put back as it was
        if self.fails or (self.by_value and bool(x.sum() < 0)):
            raise ValueError("no")
        return self.out(x)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(("by_value", "fails"), [(False, False), (True, False), (False, True)])
def test_garbage_waits_for_the_end_of_an_analysis_and_not_for_that_of_a_real_run(
    enabled: bool, by_value: bool, fails: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """And the switch is afterwards as it was."""
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ExampleInputsError) if fails else contextlib.nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fxenorm.analyze(_Asks(by_value, fails), torch.ones(2, 3))
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
    seen = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert any(real == "True" for real, _ in seen) == (by_value or fails) and len(seen) > 1
    assert all(collects == str(real == "True" and enabled) for real, collects in seen)


def written_in_place(m: Any, x: Tensor) -> Any:
    m.count.add_(1)
    return m.b(m.a(x).relu() * m.count)


def flagged(m: Any, x: Tensor) -> Any:
    m.a.weight.requires_grad_(False)
    return m.b(m.a(x).relu()) * (2.0 if m.b.weight.requires_grad else 3.0)


def marked(m: Any, x: Tensor) -> Any:
    seen = getattr(m.a.weight, "seen", 0)
    m.a.weight.seen = seen + 1
    return m.b(m.a(x).relu()) * float(seen)


def exchanged(m: Any, x: Tensor) -> Any:
    m.a.weight.data = m.a.weight.data * 2
    return m.b(m.a(x).relu())


def accumulated(m: Any, x: Tensor) -> Any:
    x.add_(1)
    return m.b(m.a(x).relu())


@pytest.mark.parametrize("forward", [plain, written_in_place, flagged, marked, exchanged, accumulated])
def test_each_run_of_an_analysis_begins_with_the_model_as_it_is(forward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs share the tensors without values, as long as none of them changes one."""
    model = Net(forward, **parts(count=nn.Buffer(torch.zeros(6, dtype=torch.float32))))
    inputs = torch.zeros(2, 4, dtype=torch.float32)

    def written() -> list[str]:
        graphs = [graph for one in trace_model(model, inputs) for graph in (one, one.second) if graph is not None]
        return [str(one.graph) for one in graphs]

    shared = written()
    monkeypatch.setattr("fxenorm.trace.tracer.fake_weights_shared", contextlib.nullcontext)
    assert written() == shared
