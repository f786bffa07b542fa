"""Rows of the Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .case import Case

A = torch.ops.aten
X, HALF = (2, 3, 4), (2, 3, 5)
CUT = "what a shorter length cuts off is free, and is tied to the rest"
WINDOW = torch.tensor([0.2, 0.7, 1.0, 0.6], dtype=torch.float64)
PARTS = "the window's entries, and with them the samples or frames, may follow a geometric progression"


def _complex(x: Tensor) -> Tensor:
    """Complex numbers whose parts move together, so that none is without effect where a transform to real numbers drops one."""
    return torch.complex(x, 0.5 * x)


def _of_real(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: getattr(torch.fft, name)(x)  # type: ignore[no-any-return]


def _of_complex(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: getattr(torch.fft, name)(_complex(x))  # type: ignore[no-any-return]


CASES = (
    *(
        Case(f"aten::fft_{kind}{n}", _of_real(kind + n), (X,))
        for kind in ("fft", "ifft", "rfft", "ihfft")
        for n in ("", "2", "n")
    ),
    *(
        Case(f"aten::fft_{kind}{n}", _of_complex(kind + n), (X,), "complex" * (kind == "fft"))
        for kind in ("fft", "irfft", "hfft")
        for n in ("", "2", "n")
        if kind + n != "fft"
    ),
    Case("aten::fft_fft", lambda x: torch.fft.fft(_complex(x)), (X,), "complex"),
    Case("aten::fft_rfft", lambda x: torch.fft.rfft(x, dim=1), (X,), "axis"),
    Case("aten::fft_rfft", lambda x: torch.fft.rfft(x, n=6, norm="ortho"), (X,), "longer"),
    Case("aten::fft_rfft", lambda x: torch.fft.rfft(x, n=2), (X,), "shorter", misses=CUT),
    Case("aten::fft_irfft", lambda x: torch.fft.irfft(_complex(x), n=5, dim=1), (X,), "axis and length"),
    Case("aten::fft_fftn", lambda x: torch.fft.fftn(x, dim=(0, -1)), (X,), "axes"),
    Case("aten::fft_fftn", lambda x: torch.fft.fftn(x, s=(4, 4)), (X,), "lengths alone"),
    Case("aten::fft_rfft2", lambda x: torch.fft.rfft2(x, dim=(0, 1)), (X,), "axes"),
    Case("aten::_fft_r2c", lambda x: A._fft_r2c(x, [1], 0, True), (X,)),
    Case("aten::_fft_c2c", lambda x: A._fft_c2c(_complex(x), [1, 2], 0, True), (X,)),
    Case("aten::_fft_c2r", lambda x: A._fft_c2r(_complex(x), [1], 0, 5), (X,)),
    Case("aten::fft_fftshift", lambda x: torch.fft.fftshift(x, dim=2), (HALF,)),
    Case("aten::fft_fftshift", torch.fft.fftshift, (HALF,), "all axes"),
    Case("aten::fft_ifftshift", lambda x: torch.fft.ifftshift(x, dim=(1, 2)), (HALF,)),
    Case("aten::fft_fftfreq", lambda x: x * torch.fft.fftfreq(3, dtype=x.dtype), ((2, 3),)),
    Case("aten::fft_rfftfreq", lambda x: x * torch.fft.rfftfreq(4, dtype=x.dtype), ((2, 3),)),
    Case("aten::stft", lambda x: torch.stft(x, 4, 2, window=WINDOW, return_complex=True), ((2, 12),)),
    Case("aten::stft", lambda x: torch.stft(x, 4, 3, window=WINDOW, return_complex=True, center=False), ((10,),), "one signal"),
    Case("aten::stft", lambda x, w: torch.stft(x, 4, 2, window=w, return_complex=True), ((2, 10), (4,)), "window", misses=PARTS),
    Case(
        "aten::istft",
        lambda x: torch.istft(_complex(x), 4, 2, window=WINDOW),
        ((2, 3, 5),),
    ),
    Case(
        "aten::istft",
        lambda x, w: torch.istft(_complex(x), 4, 2, window=w),
        ((3, 5), (4,)),
        "window",
        positive=True,
        misses=PARTS,
        refuses_zeros=1,
    ),
)
