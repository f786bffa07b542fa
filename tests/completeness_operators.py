"""Small networks around operators that transform, recur, sum over neighbours, branch or differentiate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .zoo_base import TOKENS, VECTOR, Net

__all__ = ["NETWORKS", "in_plain_python"]

SIGNAL = ((2, 2, 6),)


def _complex(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, dtype=torch.complex128))


# --- Fourier transforms -----------------------------------------------------------------------------------------------


def _spectral(weight: Tensor, x: Tensor) -> Tensor:
    """The lowest modes times a matrix each."""
    modes = weight.shape[2]
    low = torch.fft.rfft(x)[..., :modes]
    return torch.fft.irfft(F.pad(torch.einsum("bim,iom->bom", low, weight), (0, x.shape[-1] // 2 + 1 - modes)), n=x.shape[-1])


def _fourier_operator(m: Net, x: Tensor) -> Tensor:
    """Two layers of a Fourier neural operator."""
    h = m.lift(x)
    for weight, skip in ((m.w1, m.s1), (m.w2, m.s2)):
        h = F.relu(_spectral(weight, h) + skip(h))
    return m.project(h)


def _real_pairs(m: Net, x: Tensor) -> Tensor:
    """The same layer with a weight that is stored as pairs of real numbers, over two axes."""
    spectrum = torch.fft.rfft2(F.relu(m.a(x.unsqueeze(1))))
    mixed = torch.einsum("bixy,ioxy->boxy", spectrum, torch.view_as_complex(m.w))
    return m.b(torch.fft.irfft2(mixed, s=x.shape[1:]))


def _complex_weight(m: Net, x: Tensor) -> Tensor:
    """A complex layer between real ones, its weight of two real parts."""
    h = torch.complex(F.relu(m.a(x)), m.c(x))
    h = F.linear(h, torch.complex(m.re, m.im))
    return m.b(torch.cat([h.real, h.imag], -1))


def _filtered(m: Net, x: Tensor) -> Tensor:
    """Positions are mixed by a filter in the frequencies, their zero in the middle."""
    spectrum = torch.fft.fftshift(torch.fft.fft(F.relu(m.a(x)), dim=1), dim=1)
    return m.b(torch.fft.ifft(torch.fft.ifftshift(spectrum * m.f, dim=1), dim=1).real)


def _spectrogram(m: Net, x: Tensor) -> Tensor:
    """A short-time transform of each channel, and back."""
    window = torch.hann_window(4, dtype=x.dtype) + 0.1
    h = F.relu(m.a(x)).flatten(0, 1)
    frames = torch.stft(h, 4, 2, window=window, return_complex=True)
    return m.b(torch.istft(frames * m.gain, 4, 2, window=window, length=12).view(x.shape[0], -1, 12))


FOURIER = {
    "fourier_operator": (
        lambda: Net(
            _fourier_operator,
            lift=nn.Conv1d(2, 3, 1),
            w1=_complex(3, 2, 2),
            s1=nn.Conv1d(3, 2, 1),
            w2=_complex(2, 3, 2),
            s2=nn.Conv1d(2, 3, 1),
            project=nn.Conv1d(3, 1, 1),
        ),
        SIGNAL,
    ),
    "fourier_weight_in_pairs": (
        lambda: Net(_real_pairs, a=nn.Conv2d(1, 3, 1), w=nn.Parameter(torch.randn(3, 4, 3, 3, 2)), b=nn.Conv2d(4, 2, 1)),
        ((2, 3, 4),),
    ),
    "complex_layer": (
        lambda: Net(
            _complex_weight,
            a=nn.Linear(4, 5),
            c=nn.Linear(4, 5),
            re=nn.Parameter(torch.randn(3, 5)),
            im=nn.Parameter(torch.randn(3, 5)),
            b=nn.Linear(6, 2),
        ),
        VECTOR,
    ),
    "filter_in_frequencies": (
        lambda: Net(_filtered, a=nn.Linear(4, 6), f=_complex(5, 1), b=nn.Linear(6, 3)),
        TOKENS,
    ),
    "spectrogram": (
        lambda: Net(_spectrogram, a=nn.Conv1d(2, 3, 1), gain=nn.Parameter(torch.randn(3, 1)), b=nn.Conv1d(3, 2, 1)),
        ((1, 2, 12),),
    ),
}

# --- tables and recurrence --------------------------------------------------------------------------------------------


def _bags(mode: str, **options: bool) -> Callable[[Net, Tensor], Tensor]:
    """Bags of four rows of a table, chosen by the input."""

    def forward(m: Net, x: Tensor) -> Tensor:
        weights = m.s.expand(x.shape[0], -1) if options.get("weighted") else None
        return m.b(F.embedding_bag((x * 10).long().abs() % 7, m.word.weight, mode=mode, per_sample_weights=weights))

    return forward


def _table(mode: str, weighted: bool = False) -> Callable[[], nn.Module]:
    extra = {"s": nn.Parameter(torch.randn(1, 4))} if weighted else {}
    return lambda: Net(_bags(mode, weighted=weighted), word=nn.Embedding(7, 5), b=nn.Linear(5, 3), **extra)


def _fused(layer: Callable[[], nn.Module], width: int) -> Callable[[], nn.Module]:
    """A layer, a fused recurrence, a layer."""
    return lambda: Net(lambda m, x: m.b(m.r(m.a(x))[0]), a=nn.Linear(4, 3), r=layer(), b=nn.Linear(width, 2))


def _cells(m: Net, x: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[0], 5)
    for t in range(x.shape[1]):
        h = m.cell(x[:, t], h)
    return m.b(h)


def _learned_start(m: Net, x: Tensor) -> Tensor:
    """The first state comes from a layer; the last one is read too."""
    y, h = m.r(x, m.start(x.mean(1)).unsqueeze(0))
    return m.b(y) + m.c(h[0]).unsqueeze(1)


def _packed(m: Net, x: Tensor) -> Tensor:
    packed = nn.utils.rnn.pack_padded_sequence(m.a(x), torch.tensor([5, 3]), batch_first=True)
    return m.b(nn.utils.rnn.pad_packed_sequence(m.r(packed)[0], batch_first=True)[0])


RELU = {"nonlinearity": "relu", "batch_first": True}

RECURRENT = {
    "bags_summed": (_table("sum"), VECTOR),
    "bags_averaged": (_table("mean"), VECTOR),
    "bags_maximum": (_table("max"), VECTOR),
    "bags_weighted": (_table("sum", weighted=True), VECTOR),
    "rnn": (_fused(lambda: nn.RNN(3, 5, **RELU), 5), TOKENS),
    "rnn_of_two_layers": (_fused(lambda: nn.RNN(3, 4, num_layers=2, dropout=0.5, **RELU), 4), TOKENS),
    "rnn_of_two_directions": (_fused(lambda: nn.RNN(3, 3, num_layers=2, bidirectional=True, **RELU), 6), TOKENS),
    "rnn_without_biases": (_fused(lambda: nn.RNN(3, 5, bias=False, **RELU), 5), TOKENS),
    "rnn_from_a_learned_start": (
        lambda: Net(_learned_start, r=nn.RNN(4, 5, **RELU), start=nn.Linear(4, 5), b=nn.Linear(5, 2), c=nn.Linear(5, 2)),
        TOKENS,
    ),
    "rnn_of_packed_sequences": (
        lambda: Net(_packed, a=nn.Linear(4, 3), r=nn.RNN(3, 5, **RELU), b=nn.Linear(5, 2)),
        TOKENS,
    ),
    "rnn_cells": (lambda: Net(_cells, cell=nn.RNNCell(4, 5, nonlinearity="relu"), b=nn.Linear(5, 2)), TOKENS),
    "lstm": (_fused(lambda: nn.LSTM(3, 3, batch_first=True), 3), TOKENS),
    "lstm_with_a_projection": (_fused(lambda: nn.LSTM(3, 2, num_layers=2, proj_size=1, batch_first=True), 1), TOKENS),
    "gru": (_fused(lambda: nn.GRU(3, 2, bidirectional=True, batch_first=True), 4), TOKENS),
    "gru_cells": (lambda: Net(_cells, cell=nn.GRUCell(4, 5), b=nn.Linear(5, 2)), TOKENS),
}

# --- sparse products --------------------------------------------------------------------------------------------------


class Graph(nn.Module):
    """Two layers around a sum over the neighbours in a graph, which is a sparse buffer."""

    def __init__(self, gather: Callable[[Tensor, Tensor], Tensor], layout: torch.layout = torch.sparse_coo) -> None:
        super().__init__()
        links = torch.rand(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        links = torch.where(links > 0.6, links, 0.0)
        self.register_buffer("links", links.to_sparse() if layout is torch.sparse_coo else links.to_sparse_csr())
        self.gather, self.a, self.b = gather, nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.gather(self.links, F.relu(self.a(x))))


def _edges(x: Tensor) -> Tensor:
    """Edges and their weights from the input."""
    to, source = (x[:, :2] * 10).long().abs().t() % 9
    return torch.sparse_coo_tensor(torch.stack([to, source]), x[:, 3], (9, 9), check_invariants=False)


def _edges_of_constants(m: Net, x: Tensor) -> Tensor:
    """Links that forward writes down."""
    to, source = torch.arange(9).repeat(2), torch.cat([torch.arange(9), (torch.arange(9) + 1) % 9])
    links = torch.sparse_coo_tensor(torch.stack([to, source]), torch.ones(18, dtype=x.dtype), (9, 9), check_invariants=False)
    return m.b(torch.sparse.mm(links, F.relu(m.a(x))))


def _edges_of_a_real_run(m: Net, x: Tensor) -> Tensor:
    """Links in compressed rows, in a model whose path depends on its input."""
    if x.sum().item() > 1e9:
        return m.b(m.a(x))
    return m.b((x @ x.t()).relu().to_sparse_csr() @ F.relu(m.a(x)))


def _edges_in_rows(m: Net, x: Tensor) -> Tensor:
    """Two links a node in compressed rows, their weights from a layer of one output."""
    columns = torch.stack([torch.arange(9), (torch.arange(9) + 1) % 9], 1).sort(1)[0]
    links = torch.sparse_csr_tensor(
        torch.arange(0, 19, 2), columns.flatten(), m.e(x).repeat(2, 1)[:, 0], (9, 9), check_invariants=False
    )
    return m.b(links @ F.relu(m.a(x)))


SPARSE = {
    "sparse_mm": (lambda: Graph(torch.sparse.mm), VECTOR),
    "sparse_at": (lambda: Graph(torch.matmul), VECTOR),
    "sparse_rows_at": (lambda: Graph(torch.matmul, torch.sparse_csr), VECTOR),
    "sparse_rows_mean": (lambda: Graph(lambda g, h: torch.sparse.mm(g, h, "mean"), torch.sparse_csr), VECTOR),
    "sparse_transposed": (lambda: Graph(lambda g, h: torch.sparse.mm(g.t(), h)), VECTOR),
    "sparse_addmm": (lambda: Graph(lambda g, h: torch.sparse.addmm(h, g, h)), VECTOR),
    "sparse_to_dense": (lambda: Graph(lambda g, h: g.to_dense() @ h), VECTOR),
    "sparse_times_a_number": (lambda: Graph(lambda g, h: torch.sparse.mm(g * 2, h)), VECTOR),
    "sparse_of_the_inputs": (
        lambda: Net(lambda m, x: m.b(torch.sparse.mm(_edges(x), F.relu(m.a(x)))), a=nn.Linear(4, 5), b=nn.Linear(5, 2)),
        VECTOR,
    ),
    "sparse_of_constants": (lambda: Net(_edges_of_constants, a=nn.Linear(4, 5), b=nn.Linear(5, 2)), VECTOR),
    "sparse_rows_of_a_real_run": (lambda: Net(_edges_of_a_real_run, a=nn.Linear(4, 5), b=nn.Linear(5, 2)), VECTOR),
    "sparse_of_a_layer": (
        lambda: Net(_edges_in_rows, a=nn.Linear(4, 5), e=nn.Linear(4, 1), b=nn.Linear(5, 2)),
        VECTOR,
    ),
}

# --- branches, loops and hidden axes ----------------------------------------------------------------------------------


class Loops:
    """Branches and loops as torch's operators, or in plain Python: the same function, which is what is measured."""

    plain = False

    @classmethod
    def cond(cls, flag: Tensor, first: Any, second: Any, operands: tuple[Tensor, ...]) -> Any:
        if cls.plain:
            return first(*operands) if flag else second(*operands)
        return torch.cond(flag, first, second, operands)

    @classmethod
    def while_loop(cls, going: Any, body: Any, states: tuple[Tensor, ...]) -> Any:
        if not cls.plain:
            from torch._higher_order_ops.while_loop import while_loop

            return while_loop(going, body, states)
        while going(*states):
            states = body(*states)
        return states

    @classmethod
    def scan(cls, step: Any, state: Tensor, xs: Tensor) -> Tensor:
        if not cls.plain:
            from torch._higher_order_ops.scan import scan

            return scan(step, state, xs, dim=1)[1]  # type: ignore[no-any-return]
        given = []
        for x in xs.unbind(1):
            state, out = step(state, x)
            given.append(out)
        return torch.stack(given)

    @classmethod
    def map(cls, function: Any, xs: Tensor, *rest: Tensor) -> Tensor:
        if not cls.plain:
            from torch._higher_order_ops.map import map as map_over

            return map_over(function, xs, *rest)  # type: ignore[no-any-return]
        return torch.stack([function(x, *rest) for x in xs])


@contextlib.contextmanager
def in_plain_python() -> Iterator[None]:
    """Within it branches and loops run in plain Python, without being compiled first."""
    Loops.plain = True
    try:
        yield
    finally:
        Loops.plain = False


def _cond(first: Callable[[Net, Tensor], Tensor], second: Callable[[Net, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """One of two functions of an activation, by the sign of the input's sum."""

    def forward(m: Net, x: Tensor) -> Tensor:
        chosen = Loops.cond(x.sum() > 0, lambda h: first(m, h), lambda h: second(m, h), (F.relu(m.a(x)),))
        return m.o(chosen)

    return lambda: Net(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 5), c=nn.Linear(5, 5), o=nn.Linear(5, 2))


def _nested(m: Net, h: Tensor) -> Tensor:
    return Loops.cond(h[0, 0] > 0, lambda h: m.b(h).relu(), lambda h: h * 3, (h,))


def _while(m: Net, x: Tensor) -> Tensor:
    """A loop that ends by the input's values."""
    count = (x[0, 0].abs() * 3).long().clamp(1, 3)
    start = (torch.zeros_like(count), m.a(x))
    return m.o(Loops.while_loop(lambda i, h: i < count, lambda i, h: (i + 1, F.relu(m.b(h)) + h), start)[1])


def _while_from_zero(m: Net, x: Tensor) -> Tensor:
    """Two states, of which one begins at zero and is written from the other."""

    def body(i: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return i + 1, F.relu(m.b(h)), c + m.c(h)

    count = (x[0, 0].abs() * 3).long().clamp(2, 3)
    start = (torch.zeros_like(count), m.a(x), torch.zeros(x.shape[0], 5, dtype=x.dtype))
    return m.o(Loops.while_loop(lambda i, h, c: i < count, body, start)[2])


def _scan(m: Net, x: Tensor) -> Tensor:
    def step(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(m.a(t) + m.b(h))
        return h, h.clone()

    return m.o(Loops.scan(step, torch.zeros(x.shape[0], 5, dtype=x.dtype), x))


def _map(m: Net, x: Tensor) -> Tensor:
    return m.o(Loops.map(lambda row, w: F.relu(m.a(row)) * w, x, m.gain))


def _checkpointed(m: Net, x: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    return m.o(checkpoint(lambda h: F.relu(m.b(F.relu(m.a(h)))), x, use_reentrant=False))


def _vmapped(m: Net, x: Tensor) -> Tensor:
    return torch.func.vmap(lambda u, v: F.linear(F.relu(F.linear(x, u)), v))(m.u, m.v)


def _vmapped_with_a_constant(m: Net, x: Tensor) -> Tensor:
    """A tensor that is made behind the hidden axis: a constant of the graph between its operators."""

    def one(u: Tensor, v: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, u)) * torch.tensor([1.0, -2.0, 3.0, 1.0, 2.0], dtype=x.dtype, device=x.device), v)

    return torch.func.vmap(one)(m.u, m.v)


def _vmapped_twice(m: Net, x: Tensor) -> Tensor:
    """Experts and samples, each by a hidden axis, the experts in the last axis of the result."""
    one = torch.func.vmap(lambda row, u, v: v @ F.relu(u @ row), in_dims=(0, None, None))
    return torch.func.vmap(one, in_dims=(None, 0, 0), out_dims=-1)(x, m.u, m.v)


class Ensemble(nn.Module):
    """Three networks as one, their parameters stacked."""

    def __init__(self) -> None:
        super().__init__()
        members = [nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.LayerNorm(5, eps=0.1), nn.Linear(5, 2)) for _ in range(3)]
        stacked, _ = torch.func.stack_module_state(members)
        self.names = list(stacked)
        self.stacked = nn.ParameterList([nn.Parameter(value.detach()) for value in stacked.values()])
        self.member = [members[0]]

    def forward(self, x: Tensor) -> Tensor:
        def one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(self.member[0], parameters, (x,))  # type: ignore[no-any-return]

        return torch.func.vmap(one, in_dims=(0, None))(dict(zip(self.names, self.stacked, strict=True)), x)


def _pair() -> dict[str, nn.Module | nn.Parameter]:
    return {"u": nn.Parameter(torch.randn(3, 5, 4)), "v": nn.Parameter(torch.randn(3, 2, 5))}


def _layers(*names: str) -> dict[str, nn.Module]:
    sizes = {"a": (4, 5), "b": (5, 5), "c": (5, 5), "o": (5, 2), "q": (4, 6), "k": (4, 6), "v": (4, 6)}
    return {name: nn.Linear(*sizes[name]) for name in names}


BRANCHES = {
    "cond_of_two_scales": (_cond(lambda m, h: m.b(h), lambda m, h: m.b(2 * h)), VECTOR),
    "cond_of_two_layers": (_cond(lambda m, h: m.b(h), lambda m, h: m.c(h)), VECTOR),
    "cond_or_nothing": (_cond(lambda m, h: m.b(h).relu(), lambda m, h: h.clone()), VECTOR),
    "cond_or_zero": (_cond(lambda m, h: m.b(h), lambda m, h: torch.zeros_like(h)), VECTOR),
    "cond_in_cond": (_cond(_nested, lambda m, h: m.c(h)), VECTOR),
    "while_loop": (lambda: Net(_while, **_layers("a", "b", "o")), VECTOR),
    "while_loop_from_zero": (lambda: Net(_while_from_zero, **_layers("a", "b", "c", "o")), VECTOR),
    "scan": (lambda: Net(_scan, **_layers("a", "b", "o")), TOKENS),
    "map": (lambda: Net(_map, **_layers("a", "o"), gain=nn.Parameter(torch.randn(5))), TOKENS),
    "checkpointed": (lambda: Net(_checkpointed, **_layers("a", "b", "o")), VECTOR),
    "vmap": (lambda: Net(_vmapped, **_pair()), VECTOR),
    "vmap_with_a_constant": (lambda: Net(_vmapped_with_a_constant, **_pair()), VECTOR),
    "vmap_in_vmap": (lambda: Net(_vmapped_twice, **_pair()), VECTOR),
    "ensemble": (Ensemble, VECTOR),
}

# --- derivatives inside forward ---------------------------------------------------------------------------------------


def _gradient(
    u: Callable[[Net, Tensor], Tensor], out: Callable[[Net, Tensor, Tensor, Tensor], Any]
) -> Callable[[Net, Tensor], Any]:
    """A function of the input, of u(x) and of the derivative of its sum."""

    def forward(m: Net, x: Tensor) -> Any:
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            y = u(m, x)
            return out(m, x, y, torch.autograd.grad(y.sum(), x, create_graph=True)[0])

    return forward


def _mlp(m: Net, x: Tensor) -> Tensor:
    return m.o(F.relu(m.b(F.relu(m.a(x)))))


def _tanh(m: Net, x: Tensor) -> Tensor:
    return m.o(m.b(torch.tanh(m.a(x))))


def _squares(m: Net, x: Tensor) -> Tensor:
    """Smooth and homogeneous, so that a second derivative is there."""
    return m.o(F.relu(m.a(x)) ** 2)


def _fed_on(m: Net, x: Tensor, y: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    return y, m.q(F.relu(m.p(slope)))


def _second(m: Net, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    return torch.autograd.grad(slope.square().sum(), x, create_graph=True)[0]


def _convolutions(m: Net, x: Tensor) -> Tensor:
    return m.o(F.max_pool2d(F.leaky_relu(m.a(x), 0.1), 2))


def _normed(m: Net, x: Tensor) -> Tensor:
    return m.o(F.relu(m.b(m.n(m.a(x)))))


def _each_sample(m: Net, x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.grad(lambda row: m.o(F.relu(m.a(row))).sum()))(x)


DERIVATIVES = {
    "slope": (lambda: Net(_gradient(_mlp, lambda m, x, y, g: g), **_layers("a", "b", "o")), VECTOR),
    "value_and_slope": (lambda: Net(_gradient(_mlp, lambda m, x, y, g: (y, g)), **_layers("a", "b", "o")), VECTOR),
    "slope_through_tanh": (lambda: Net(_gradient(_tanh, lambda m, x, y, g: g), **_layers("a", "b", "o")), VECTOR),
    "slope_fed_on": (
        lambda: Net(_gradient(_mlp, _fed_on), **_layers("a", "b", "o"), p=nn.Linear(4, 5), q=nn.Linear(5, 2)),
        VECTOR,
    ),
    "second_slope": (lambda: Net(_gradient(_squares, _second), **_layers("a", "o")), VECTOR),
    "slope_of_convolutions": (
        lambda: Net(_gradient(_convolutions, lambda m, x, y, g: g), a=nn.Conv2d(2, 3, 2), o=nn.Conv2d(3, 1, 1)),
        ((1, 2, 5, 4),),
    ),
    "slope_of_a_norm": (
        lambda: Net(_gradient(_normed, lambda m, x, y, g: g), **_layers("a", "b", "o"), n=nn.LayerNorm(5)),
        VECTOR,
    ),
    "slope_of_each_sample": (lambda: Net(_each_sample, **_layers("a", "o")), VECTOR),
}

NETWORKS = {**FOURIER, **RECURRENT, **SPARSE, **BRANCHES, **DERIVATIVES}
