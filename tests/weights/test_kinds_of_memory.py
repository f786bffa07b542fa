"""Tensors that are not plain memory: they follow as plain ones do, or are refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import fxenorm
from fxenorm.kernels.memory import has_plain_memory
from fxenorm.trace import trace_model

from ..helpers import draw_log_scales

INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class Named(Tensor):
    """A subclass with memory of its own."""


def of_two(weight: Tensor) -> Tensor:
    """Two tensors that look like one and have no memory together."""
    return TwoTensor(weight.clone(), weight.clone())


def negative(weight: Tensor) -> Tensor:
    """A tensor that stands for the negative of what lies in memory."""
    return torch.complex(weight, -weight).conj().imag


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "of two": of_two,
    "negative": negative,
    "subclass": lambda weight: weight.clone().as_subclass(Named),
    "with gaps": lambda weight: torch.stack([weight, weight], -1)[..., 0],
    "reversed in memory": lambda weight: weight.mT.contiguous().mT,
}
CALLS: dict[str, Callable[[fxenorm.Plan], object]] = {
    "rescale": lambda plan: plan.rescale(draw_log_scales(plan)),
    "step": lambda plan: [plan.step(), plan.step()],
    "cycles": lambda plan: [plan.step(cycles=3), plan.step(cycles=3)],
    "balance": lambda plan: plan.balance(),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def plain(tensor: Tensor) -> Tensor:
    """The values as an ordinary tensor."""
    found = tensor.detach()
    return found.a if isinstance(found, TwoTensor) else torch.tensor(found.tolist())


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_any_kind_of_weight_keeps_the_function(kind: str, call: str, backend: str) -> None:
    model = network()
    with torch.no_grad():
        model[0].weight *= 5
    expected = model(INPUTS).detach()
    before = model[0].weight.detach().clone()
    model[0].weight = nn.Parameter(WEIGHTS[kind](before))
    plan = fxenorm.analyze(model, INPUTS, backend=backend)  # type: ignore[arg-type]
    CALLS[call](plan)
    torch.testing.assert_close(plain(model(INPUTS)), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain(model[0].weight), before)


def test_what_compiled_code_may_touch() -> None:
    weight = torch.randn(4, 4)
    for kind in ("of two", "negative", "subclass"):
        assert not has_plain_memory(WEIGHTS[kind](weight)), kind
    freed = weight.clone()
    freed.untyped_storage().resize_(0)
    for other in (weight.to_sparse(), weight.to("meta"), torch.complex(weight, weight).conj(), freed, weight.to_mkldnn()):
        assert not has_plain_memory(other)
    for other in (weight, nn.Parameter(weight), weight[:, ::2], weight.mT, torch.empty(0), nn.Buffer(weight)):
        assert has_plain_memory(other)


class Float8(nn.Module):
    """A weight in a type that is only ever converted."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8).to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype))


class Unmultiplied(Tensor):
    """A subclass whose products go to a copy, as those of quantised tensors do."""

    @classmethod
    def __torch_function__(cls, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:  # type: ignore[type-arg]
        if func is Tensor.mul_:
            return args[0].clone()
        return super().__torch_function__(func, types, args, kwargs or {})


def with_float8(dtype: torch.dtype) -> tuple[nn.Module, list[Tensor]]:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Float8(dtype), nn.ReLU(), nn.Linear(8, 3))
    return model, []


def with_class() -> tuple[nn.Module, list[Tensor]]:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].weight = nn.Parameter(torch.randn(8, 8).as_subclass(Unmultiplied), requires_grad=False)
    return model, []


def with_copy(copy: Callable[[Tensor], Tensor]) -> tuple[nn.Module, list[Tensor]]:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, [copy(parameter.detach().clone()) for parameter in model.parameters()]


UNWRITABLE: dict[str, Callable[[], tuple[nn.Module, list[Tensor]]]] = {
    "float8_e4m3fn": lambda: with_float8(torch.float8_e4m3fn),
    "float8_e5m2": lambda: with_float8(torch.float8_e5m2),
    "class": with_class,
    "copy of integers": lambda: with_copy(lambda tensor: tensor.to(torch.int32)),
    "copy of booleans": lambda: with_copy(lambda tensor: tensor > 0),
    "copy of float8": lambda: with_copy(lambda tensor: tensor.to(torch.float8_e4m3fn)),
    "sparse copy": lambda: with_copy(lambda tensor: tensor.to_sparse()),
    "compressed copy": lambda: with_copy(lambda tensor: tensor.to_sparse_csr() if tensor.ndim == 2 else tensor),
    "quantised copy": lambda: with_copy(lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)),
    "expanded copy": lambda: with_copy(lambda tensor: tensor[:1].expand(tensor.shape)),
}


@pytest.mark.parametrize("kind", UNWRITABLE)
@pytest.mark.parametrize("backend", ["compiled", "eager"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_multiplied_is_refused_before_the_first_write(kind: str, backend: str) -> None:
    torch.manual_seed(0)
    model, copy = UNWRITABLE[kind]()
    plan = fxenorm.analyze(model, INPUTS, backend=backend)  # type: ignore[arg-type]
    assert plan.num_scales
    if copy:
        plan.track(copy)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for call in ("rescale", *(("step", "balance") if copy else ())):
        with pytest.raises(fxenorm.errors.RescaleError, match="nothing was rescaled"):
            CALLS[call](plan)
        for parameter, old in zip(model.parameters(), before, strict=True):
            assert torch.equal(parameter.float(), old.float())


def test_the_tensors_that_a_wrapper_is_made_of_are_no_outputs_of_their_own() -> None:
    model = network()
    model[0].weight = nn.Parameter(of_two(model[0].weight.detach()))
    for _ in range(3):
        (traced,) = trace_model(model, INPUTS)
        assert [output.kind for output in traced.outputs] == ["tensor"]
        assert traced.tracer == "export"
