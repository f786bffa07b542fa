"""Small networks around operators that transform, recur, sum over neighbours, branch or differentiate."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .zoo_base import TOKENS, VECTOR, Net

__all__ = ["NETWORKS"]

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

NETWORKS = {**FOURIER, **RECURRENT}
