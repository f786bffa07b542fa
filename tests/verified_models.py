"""Small models whose plans are right though a check can easily call them wrong, by the reason."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

__all__ = ["HARD", "HELD_OTHERWISE", "VECTORS", "Two", "plain"]

Call = Callable[["Two", Tensor], Any]


class Two(nn.Module):
    """Two layers and a forward of one's own."""

    def __init__(self, call: Call, first: nn.Module | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        self.a = first or nn.Linear(5, 8)
        self.o = last or nn.Linear(8, 3)
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


class Straight(torch.autograd.Function):
    """The sign, whose gradient is said to be 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Doubled(torch.autograd.Function):
    """relu with a gradient that is none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * gradient + 1


def _no_grad(model: Two, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = model.a(x).relu()
    return model.o(h)


def _inference(model: Two, x: Tensor) -> Tensor:
    with torch.inference_mode():
        h = model.a(x).relu()
    return model.o(h.clone())


def _detached_divisor(model: Two, x: Tensor) -> Tensor:
    h = model.a(x).relu()
    return model.o(h / (h.detach().abs().mean() + 0.0))


def _stopped_norm(model: Two, x: Tensor) -> Tensor:
    h = model.a(x)
    return model.o(h / h.norm(dim=-1, keepdim=True).detach())


def _straight_through(model: Two, x: Tensor) -> Tensor:
    h = model.a(x).relu()
    gate = h + (torch.where(h > 0, h, 0) - h).detach()
    return model.o(gate)


def _sign(model: Two, x: Tensor) -> Tensor:
    h = model.a(x)
    return model.o(h * Straight.apply(h))


def _through(dtype: torch.dtype) -> Call:
    return lambda model, x: model.o(model.a(x).relu().to(dtype).to(x.dtype))


def _all_in(dtype: torch.dtype) -> Call:
    """Inputs and weights are cast before each product, as under autocast."""

    def call(model: Two, x: Tensor) -> Tensor:
        layers = (model.a, model.o)
        (w, b), (v, c) = ((layer.weight.to(dtype), layer.bias.to(dtype)) for layer in layers)
        return F.linear(F.linear(x.to(dtype), w, b).relu(), v, c).to(x.dtype)

    return call


def _autocast(model: Two, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model.o(model.a(x).relu()).float()


def _float32_alone(model: Two, x: Tensor) -> Tensor:
    return model.o(model.a(x.float()).relu())


def _checks_dtype(model: Two, x: Tensor) -> Tensor:
    assert x.dtype == torch.float32, "float32 only"
    return model.o(model.a(x).relu())


def _refuses_dtype(model: Two, x: Tensor) -> Tensor:
    table = {torch.float32: 1.0}
    return model.o(model.a(x).relu() * table[x.dtype])


def _into_float32(model: Two, x: Tensor) -> Tensor:
    """Written into a buffer that is made in float32."""
    h = torch.zeros(len(x), 8, dtype=torch.float32, device=x.device)
    h[:] = model.a(x).relu()
    return model.o(h.to(x.dtype))


def _float32_softmax(model: Two, x: Tensor) -> Tensor:
    h = model.a(x).relu()
    weights = F.softmax(x @ x.mT, dim=-1, dtype=torch.float32).to(h.dtype)
    return model.o(weights @ h)


def _ones(model: Two, x: Tensor) -> Tensor:
    return model.o(model.a(x).relu()) + F.linear(torch.ones(len(x), 3), torch.ones(3, 3))


def _normed(model: Two, x: Tensor) -> Tensor:
    """A norm that computes in float32, as Gemma's does."""
    h = x.float()
    h = (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
    return model.o(model.a(h * 2).relu())


def _in_threes(model: Two, x: Tensor) -> Tensor:
    """Refined three times, in float32, as optical flow is."""
    h = model.a(x).relu()
    for _ in range(3):
        h = (0.5 * h.float() + 0.25 * h.float().roll(1, 0)).to(x.dtype)
    return model.o(h)


def _plain(model: Two, x: Tensor) -> Tensor:
    return model.o(model.a(x).relu())


def _closure() -> nn.Module:
    """The last layer is reached by a function that another one's copy would keep."""
    model = Two(lambda model, x: model.last(model.a(x).relu()))
    model.last = lambda h: model.o(h)
    return model


def _closure_over_weight() -> nn.Module:
    model = Two(lambda model, x: model.last(model.a(x).relu()))
    weight, bias = model.o.weight, model.o.bias
    model.last = lambda h: F.linear(h, weight, bias)
    return model


def _bound_method() -> nn.Module:
    model = Two(_plain)
    model.forward = types.MethodType(lambda self, x: model.o(model.a(x).relu()), model)  # type: ignore[method-assign]
    return model


def _weights_in_a_list() -> nn.Module:
    model = Two(lambda model, x: F.linear(F.linear(x, *model.held[:2]).relu(), *model.held[2:]))
    model.held = [model.a.weight, model.a.bias, model.o.weight, model.o.bias]
    return model


def _old_weight_norm(grad: bool) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still in many models
        model = Two(_plain, first=nn.utils.weight_norm(nn.Linear(5, 8)))
    with torch.set_grad_enabled(grad):
        model(torch.randn(4, 5))
    return model


def _pruned(again: bool) -> nn.Module:
    model = Two(_plain)
    prune.l1_unstructured(model.a, "weight", amount=0.3)
    if again:
        prune.random_unstructured(model.o, "weight", amount=2)
        model(torch.randn(4, 5))
    return model


def _parametrized() -> nn.Module:
    class Masked(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w * (torch.arange(w.numel(), device=w.device).reshape(w.shape) % 3 > 0)

    model = Two(_plain)
    parametrize.register_parametrization(model.a, "weight", Masked())
    return model


def _padded() -> nn.Module:
    """Row 0 has no gradient, and is not zero."""
    model = Two(_plain, first=nn.Embedding(11, 8, padding_idx=0))
    with torch.no_grad():
        model.a.weight[0] = torch.randn(8)
    return model


def _half_frozen_embedding() -> nn.Module:
    return Two(_plain, first=nn.Embedding(11, 8).requires_grad_(False))


def _hooked() -> nn.Module:
    """A hook of the gradient stops it."""
    model = Two(_plain)
    model.a.weight.register_hook(torch.zeros_like)
    return model


def _keeps_activations() -> nn.Module:
    """A tensor with a history in an attribute, which cannot be copied."""
    model = Two(lambda model, x: model.o(model.a(x).relu()))
    model.seen = model.a(torch.randn(2, 5))
    return model


def _uncopyable() -> nn.Module:
    model = Two(_plain)
    model.stream = (number for number in range(3))
    return model


def _recurrent() -> nn.Module:
    """The recurrent layer keeps a list of its weights."""
    rnn = nn.RNN(5, 8, nonlinearity="relu", batch_first=True)
    return Two(lambda model, x: model.o(model.a(x[:, None])[0][:, 0]), first=rnn)


def _tied() -> nn.Module:
    model = Two(lambda model, x: model.o(model.b(model.a(x).relu()).relu()))
    model.b = nn.Linear(8, 8)
    model.c = model.b
    return model


def _counts() -> nn.Module:
    """A buffer that each call replaces, and one that it writes to."""

    def call(model: Two, x: Tensor) -> Tensor:
        model.calls = model.calls + 1
        model.total += x.detach().abs().sum().float()
        return model.o(model.a(x).relu())

    model = Two(call)
    model.register_buffer("calls", torch.zeros((), dtype=torch.int64))
    model.register_buffer("total", torch.zeros(()))
    return model


def _in(dtype: torch.dtype) -> nn.Module:
    return Two(_plain).to(dtype)


VECTORS, TOKENS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 3, 7], [10, 0, 2]])


def _two(call: Call) -> Callable[[], nn.Module]:
    return lambda: Two(call)


def plain() -> nn.Module:
    """Two layers with relu between them."""
    return Two(_plain)


TWO: dict[str, Call] = {
    "detach": lambda model, x: model.o(model.a(x).relu().detach()),
    "detach of one branch": lambda model, x: model.o(model.a(x).relu() + 2 * model.a(x).relu().detach()),
    "detach of the outputs": lambda model, x: model.o(model.a(x).relu()).detach(),
    "data": lambda model, x: model.o(model.a(x).relu().data),
    "no_grad": _no_grad,
    "inference_mode": _inference,
    "detached divisor": _detached_divisor,
    "detached norm": _stopped_norm,
    "straight-through": _straight_through,
    "a gradient that is none": lambda model, x: model.o(Doubled.apply(model.a(x))),
    "a sign with a gradient": _sign,
    "float32 cast": _through(torch.float32),
    "float16 cast": _through(torch.float16),
    "bfloat16 cast": _through(torch.bfloat16),
    "all in float32": _all_in(torch.float32),
    "all in bfloat16": _all_in(torch.bfloat16),
    "autocast": _autocast,
    "float32 alone": _float32_alone,
    "checks its type": _checks_dtype,
    "a table of types": _refuses_dtype,
    "written into float32": _into_float32,
    "softmax in float32": _float32_softmax,
    "constants in float32": _ones,
    "refined in float32": _in_threes,
    "norm in float32": _normed,
    "writes in place": lambda model, x: model.o(model.a(x).relu_().mul_(2)),
}

HARD: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    **{name: (_two(call), VECTORS) for name, call in TWO.items()},
    "closure over a submodule": (_closure, VECTORS),
    "closure in float64": (lambda: _closure().double(), VECTORS.double()),
    "a forward of its own": (_bound_method, VECTORS),
    "old weight_norm before a run": (lambda: _old_weight_norm(True), VECTORS),
    "old weight_norm before a no_grad run": (lambda: _old_weight_norm(False), VECTORS),
    "weight_norm": (lambda: Two(_plain, first=parametrizations.weight_norm(nn.Linear(5, 8))), VECTORS),
    "prune": (lambda: _pruned(False), VECTORS),
    "prune twice": (lambda: _pruned(True), VECTORS),
    "a parametrization": (_parametrized, VECTORS),
    "padding_idx": (_padded, TOKENS),
    "frozen embedding": (_half_frozen_embedding, TOKENS),
    "a hook of the gradient": (_hooked, VECTORS),
    "keeps activations": (_keeps_activations, VECTORS),
    "cannot be copied": (_uncopyable, VECTORS),
    "recurrent": (_recurrent, VECTORS),
    "reused": (_tied, VECTORS),
    "buffers that calls write": (_counts, VECTORS),
    "bfloat16": (lambda: _in(torch.bfloat16), VECTORS.bfloat16()),
    "float16": (lambda: _in(torch.float16), VECTORS.half()),
}

HELD_OTHERWISE: dict[str, Callable[[], nn.Module]] = {
    "closure over a weight": _closure_over_weight,
    "weights in a list": _weights_in_a_list,
}
"""The plan of two plain layers holds for these too, as soon as a check rescales the very tensors that they hold."""
