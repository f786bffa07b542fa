"""The path that is analysed is the path that the model takes when it runs: nobody learns that a trace is going on."""

from __future__ import annotations

import functools
import operator
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.compiler import is_compiling as compiling_by_name

import fxenorm
from fxenorm.errors import FxenormWarning
from fxenorm.trace import trace_model
from fxenorm.trace.modes import depends_on_mode

from ..releases import is_exporting as exporting_by_name

QUESTIONS: dict[str, Callable[[], Any]] = {
    "compiler.is_exporting": lambda: torch.compiler.is_exporting(),
    "compiler.is_compiling": lambda: torch.compiler.is_compiling(),
    "imported is_exporting": lambda: exporting_by_name(),
    "imported is_compiling": lambda: compiling_by_name(),
    "compiler.is_dynamo_compiling": lambda: torch.compiler.is_dynamo_compiling(),
    "_dynamo.is_compiling": lambda: torch._dynamo.is_compiling(),
    "_dynamo.external_utils": lambda: torch._dynamo.external_utils.is_compiling(),
    "_utils.is_compiling": lambda: torch._utils.is_compiling(),
    "jit.is_tracing": lambda: torch.jit.is_tracing(),
    "jit.is_scripting": lambda: torch.jit.is_scripting(),
    "jit state": lambda: torch._C._get_tracing_state() is not None,
    "onnx": lambda: torch.onnx.is_in_onnx_export(),
    "fx": lambda: torch.fx._symbolic_trace.is_fx_tracing(),
    "by map": lambda: any(map(lambda ask: ask(), [exporting_by_name, torch.compiler.is_compiling])),
}
if not hasattr(torch.compiler, "is_exporting"):  # torch 2.6: the question came with 2.7
    del QUESTIONS["compiler.is_exporting"]


class Asking(nn.Module):
    """Returns its features only where it is not traced."""

    def __init__(self, ask: Callable[[], Any], needs_values: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.ask, self.needs_values = nn.Linear(6, 8), nn.Linear(8, 3), ask, needs_values

    def forward(self, x: torch.Tensor) -> Any:
        h = self.a(x).relu()
        if self.ask():
            return (self.b(h),)
        if self.needs_values and bool(h.sum() < -1):
            h = 2 * h
        return self.b(h), h


@pytest.mark.filterwarnings("ignore:.*is_compiling. is deprecated")
@pytest.mark.parametrize("needs_values", [False, True])
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_model_that_asks_whether_it_is_traced_is_analysed_as_it_runs(question: str, needs_values: bool) -> None:
    model, x = Asking(QUESTIONS[question], needs_values), torch.randn(4, 6)
    plan = fxenorm.analyze(model, x)
    assert plan.num_scales == 0  # the features are an output
    assert plan.tracer == ("make_fx" if needs_values else "export")
    assert not QUESTIONS[question]()


def test_torch_answers_truly_outside_a_trace() -> None:
    heard = []

    class Listening(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heard.append(exporting_by_name())
            return x.relu()

    trace_model(Listening(), torch.randn(2, 3))
    assert not any(heard)
    heard.clear()
    torch.export.export(Listening(), (torch.randn(2, 3),), strict=False)
    assert all(heard)


def test_an_error_inside_a_trace_leaves_the_answers_true() -> None:
    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError

    code = exporting_by_name.__code__
    with pytest.raises(fxenorm.FxenormError):
        fxenorm.analyze(Failing(), torch.randn(2, 3))
    assert exporting_by_name.__code__ is code


GENERATOR = np.random.default_rng(0)


class Dice:
    """A generator in a helper object."""

    def __init__(self) -> None:
        self.generators = {"mine": random.Random(3)}

    def __call__(self) -> float:
        return self.generators["mine"].random()


DRAWS: dict[str, Callable[[], Callable[[], float]]] = {
    "python": lambda: random.random,
    "numpy": lambda: np.random.rand,
    "numpy's generator in a global": lambda: lambda: GENERATOR.random(),
    "numpy's generator in a closure": lambda: np.random.default_rng(1).random,
    "an object's": Dice,
    "torch": lambda: lambda: torch.rand(()).item(),
    "a tensor of torch": lambda: lambda: torch.rand(3).sort().values[1],
    "torch's generator in a closure": lambda: functools.partial(_of_torch, torch.Generator()),
}


def _of_torch(generator: torch.Generator) -> float:
    return torch.empty(()).uniform_(generator=generator).item()


class Drawn(nn.Module):
    """A random choice between two layers."""

    def __init__(self, draw: Callable[[], float], only_train: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.draw, self.only_train = draw, only_train

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        other = (self.training or not self.only_train) and self.draw() < 0.5
        return self.c((self.b if other else self.a)(x).relu())


@pytest.mark.parametrize("only_train", [False, True])
@pytest.mark.parametrize("name", DRAWS)
def test_all_paths_that_random_numbers_took_are_covered_and_the_plan_is_not_exact(name: str, only_train: bool) -> None:
    torch.manual_seed(0)
    model, x = Drawn(DRAWS[name](), only_train).double(), torch.randn(4, 6, dtype=torch.float64)
    states = random.getstate(), GENERATOR.bit_generator.state
    with pytest.warns(FxenormWarning, match="some paths only") as caught:
        plan = fxenorm.analyze(model, x)
    assert len(caught) == 1 and (random.getstate(), GENERATOR.bit_generator.state) == states
    assert not plan.exact and any("some paths only" in reason for reason in plan.inexact_reasons)
    assert plan.num_scales == 8 and {pair.producer for pair in plan.pairs} == {"a", "b"}
    before = [layer(x).relu() @ model.c.weight.T for layer in (model.a, model.b)]
    plan.rescale(torch.linspace(-1, 1, 8, dtype=torch.float64))
    after = [layer(x).relu() @ model.c.weight.T for layer in (model.a, model.b)]
    assert all(torch.allclose(u, v, rtol=1e-10, atol=1e-12) for u, v in zip(before, after, strict=True))


def test_random_numbers_that_change_no_graph_leave_the_plan_exact() -> None:
    class Idle(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            random.random()
            return super().forward(x)

    plan = fxenorm.analyze(nn.Sequential(Idle(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 6))
    assert plan.exact and plan.num_scales == 8 and "random numbers" in str(plan)


def test_random_numbers_of_torch_that_are_read_and_choose_no_path_leave_the_plan_exact() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * (1 + torch.rand(()).item()))

    plan = fxenorm.analyze(nn.Sequential(Scaled(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 6))
    assert plan.exact and plan.num_scales == 8


# --- code that cannot be read ----------------------------------------------------------------------------------------

BY_MODE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.first(x)
        return self.last(h.sigmoid() if {flag} else h.relu())
"""


def made_by_exec(flag: str, **names: Any) -> nn.Module:
    """A network whose class has no source that can be looked up."""
    space: dict[str, Any] = {"nn": nn, **names}
    exec(BY_MODE.format(flag=flag), space)
    return space["Net"]()  # type: ignore[no-any-return]


def made_by_types() -> nn.Module:
    """A network whose class is made without a class statement."""

    def fill(space: dict[str, Any]) -> None:
        space["forward"] = lambda self, x: self.last(self.first(x).sigmoid() if self.training else self.first(x).relu())

    model: Any = types.new_class("Net", (nn.Module,), {}, fill)()
    model.first, model.last = nn.Linear(4, 6), nn.Linear(6, 3)
    return model  # type: ignore[no-any-return]


class Dynamic(nn.Module):
    """Reads the flag under a name that is made while it runs."""

    def __init__(self, read: Any) -> None:
        super().__init__()
        self.first, self.last, self.read = nn.Linear(4, 6), nn.Linear(6, 3), read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.last(h.sigmoid() if self.read(self) else h.relu())


UNREADABLE = {
    "exec": lambda: made_by_exec("self.training"),
    "exec in the name of torch": lambda: made_by_exec("self.training", __name__="torch.nn.modules.own"),
    "exec, vars": lambda: made_by_exec("vars(self)['train' + 'ing']"),
    "new_class": made_by_types,
    "getattr of a made name": lambda: Dynamic(lambda module: getattr(module, "".join(["train", "ing"]))),
    "attrgetter": lambda: Dynamic(operator.attrgetter("training")),
    "__dict__": lambda: Dynamic(lambda module: module.__dict__["".join(["train", "ing"])]),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_both_modes_are_traced_where_code_cannot_be_read(name: str) -> None:
    model = UNREADABLE[name]()
    plan = fxenorm.analyze(model, torch.randn(3, 4))
    assert plan.modes == ("eval", "train") and plan.num_scales == 0
    assert fxenorm.analyze(model, torch.randn(3, 4), modes="eval").num_scales == 6


def test_code_that_can_be_read_and_names_no_flag_is_traced_once() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    assert not depends_on_mode(model) and not depends_on_mode(Dynamic(lambda module: False))
