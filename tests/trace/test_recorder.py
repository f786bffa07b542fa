"""The recorder of plain models: the graph of make_fx, or a refusal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from fxenorm.trace import trace_model
from fxenorm.trace.flatten import drop_idle
from fxenorm.trace.recorder import NotPlain, recorded_plainly


class Calls(nn.Module):
    """Calls a function on a parameter and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(4, 6, dtype=torch.float32))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.plain = torch.ones(6, dtype=torch.float32)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def without_gradients(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.abs().amax()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return nn.functional.linear(x, model.weight) / scale


def made_and_written(model: Any, x: Tensor) -> Tensor:
    kept = torch.empty(x.shape[0], 1, dtype=x.dtype, device=x.device).bernoulli_(0.5)
    like = torch.zeros_like(x)
    like[:, 0] = 1
    return x * kept.div_(0.5) + torch.arange(6, device=x.device) * like + torch.randn(6, dtype=x.dtype)


def constants(model: Any, x: Tensor) -> Tensor:
    return x * torch.tensor([2.0] * 6) + model.plain * model.plain - torch.tensor(1.0)


def counted(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    model.steps.add_(1)
    return x.to(x.device).to(torch.float64), model.steps


def parts(model: Any, x: Tensor) -> list[Tensor]:
    first, second, third = x.chunk(3, dim=1)
    largest, where = x.max(dim=1)
    return [first, *second.unbind(1), third[..., 1:], largest, where, x.view(-1)[2:5].unsqueeze(0), x[[0, 1]], model.weight]


def read_in_place(model: Any, x: Tensor) -> Tensor:
    y = x + 1
    y[0].mul_(2)
    y.t().add_(1)
    return y.relu_() @ model.weight.t().contiguous()


PLAIN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{one.__name__: (lambda one=one: Calls(one), (2, 6)) for one in (without_gradients, made_and_written, constants, counted)},
    **{one.__name__: (lambda one=one: Calls(one), (2, 6)) for one in (parts, read_in_place)},
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
    "lstm": (lambda: nn.LSTM(4, 8, 2, batch_first=True), (2, 5, 4)),
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), (2, 3, 32, 32)),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(weights=None), (2, 3, 32, 32)),
    "swin_t": (lambda: torchvision.models.swin_t(weights=None), (2, 3, 64, 64)),
    "convnext_tiny": (lambda: torchvision.models.convnext_tiny(weights=None), (2, 3, 32, 32)),
}  # fmt: skip


def with_both(model: nn.Module, shape: tuple[int, ...], recorder: Any) -> fx.Graph:
    """Returns the graph that one of the two recorders makes of a run with fake values."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        tensors = {name: fake.from_tensor(one) for name, one in (*model.named_parameters(), *model.named_buffers())}
        x = fake.from_tensor(torch.zeros(shape, dtype=torch.float32))

        def run(values: list[Tensor], inputs: list[Tensor]) -> tuple[Any, ...]:
            return tuple(tree_leaves(functional_call(model, dict(zip(tensors, values, strict=True)), tuple(inputs))))

        graph: fx.Graph = recorder(run, list(tensors.values()), [x])
    drop_idle(graph)
    return graph


def by_make_fx(run: Any, tensors: list[Tensor], inputs: list[Tensor]) -> fx.Graph:
    graph: fx.Graph = make_fx(run, pre_dispatch=True)(tensors, inputs).graph
    return graph


def written(graph: fx.Graph) -> list[Any]:
    """Returns all that a rule can see of each node, with the nodes numbered."""
    numbers = {node: number for number, node in enumerate(graph.nodes)}

    def value(one: Any) -> Any:
        if isinstance(one, Tensor):
            known = getattr(one, "constant", None) is not None
            return type(one), tuple(one.shape), one.stride(), one.dtype, one.device, known
        return [value(item) for item in one] if isinstance(one, (list, tuple)) else one

    def line(node: fx.Node) -> Any:
        target = "" if node.op == "placeholder" else str(node.target)
        name = "" if node.op == "placeholder" else node.name
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: f"%{numbers[source]}")
        return node.op, name, target, str(args), str(kwargs), value(node.meta.get("val"))

    return [line(node) for node in graph.nodes]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_graph_is_that_of_make_fx(name: str, mode: str) -> None:
    make, shape = PLAIN[name]
    model = make().train(mode == "train")
    assert written(with_both(model, shape, recorded_plainly)) == written(with_both(model, shape, by_make_fx))


def branch(model: Any, x: Tensor) -> Any:
    return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


def mapped(model: Any, x: Tensor) -> Any:
    return torch.func.vmap(lambda row: row * model.weight)(x)


def derived(model: Any, x: Tensor) -> Any:
    return torch.func.jvp(lambda x: x.sin(), (x,), (x,))[1]


def read(model: Any, x: Tensor) -> Any:
    return x * torch.tensor(2.0).item()


def reshaped(model: Any, x: Tensor) -> Any:
    y = x + 1
    z = y * 2
    return z + y.unsqueeze_(0)


def elsewhere(model: Any, x: Tensor) -> Any:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(x * 2))
    thread.start()
    thread.join()
    return found[0] + 1


def sparse(model: Any, x: Tensor) -> Any:
    return (x * model.weight[:2]).to_sparse()


@pytest.mark.parametrize("function", [branch, mapped, derived, read, reshaped, elsewhere, sparse])
def test_what_only_make_fx_can_record_is_refused(function: Any) -> None:
    with pytest.raises((NotPlain, NotImplementedError, AssertionError)):  # the last two by torch itself
        with_both(Calls(function), (2, 6), recorded_plainly)


@pytest.mark.parametrize("function", [branch, mapped, derived, reshaped])
def test_a_model_that_is_refused_is_traced_all_the_same(function: Any) -> None:
    model = Calls(function)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    graphs = trace_model(model, torch.randn(2, 6, dtype=torch.float32))
    assert any(node.op == "call_function" for node in graphs[0].graph.nodes)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
