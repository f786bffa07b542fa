"""Fourier transforms: linear along the transformed axes, so the field is constant there; the other axes pass by position."""

from __future__ import annotations

from typing import Any

from ..field import AnyField, ScaleField, product, times
from ..field.structure import roll
from .call import Call, Field
from .laws import move
from .registry import family, scale_rule

_KINDS = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")


def transformed_axes(call: Call) -> list[int]:
    """Returns the axes along which the call transforms: those named, else the last ones that have a length, else its default."""
    rank = len(call.shape("self"))
    axes = call["dim"]
    if isinstance(axes, int):
        return [axis % rank for axis in [axes]]
    if axes:
        return [axis % rank for axis in axes]
    lengths = call["s"]
    return list(range(rank - len(lengths) if lengths else 0, rank))


def transform(call: Call) -> Any:
    """y[k] = sum_j exp(..) x[j]: every result sees all positions of the axis."""
    if isinstance(call["self"], AnyField):
        return AnyField(call.out_shape)
    return ScaleField(call.out_shape, call.constant(call.field("self"), transformed_axes(call)).terms)


family("contraction", transform, [f"aten::fft_{kind}{n}" for kind in _KINDS for n in ("", "2", "n")])
family("contraction", transform, ["aten::_fft_r2c", "aten::_fft_c2r", "aten::_fft_c2c"])


@scale_rule("aten::fft_fftshift", "aten::fft_ifftshift", family="structural")
def shift(call: Call) -> Field:
    """The zero frequency moves to the middle, or back."""
    shape = call.shape("self")
    axes = transformed_axes(call)
    halves = [shape[axis] // 2 for axis in axes]
    there, back = (halves, [-half for half in halves])
    if call.operator == "aten::fft_ifftshift":
        there, back = back, there
    return move(call, call["self"], shape, lambda f: roll(f, there, axes), lambda f: roll(f, back, axes))


@scale_rule("aten::fft_fftfreq", "aten::fft_rfftfreq", family="constant")
def frequencies(call: Call) -> ScaleField:
    """The frequencies of a transform: constants."""
    return ScaleField(call.out_shape)


def _window(call: Call) -> ScaleField:
    """Returns the one factor of the whole window; none where there is no window."""
    if call["window"] is None:
        return ScaleField(())
    constant = call.constant(call.field("window"), [0])
    return ScaleField((), tuple((c, ids.reshape(())) for c, ids in constant.terms))


def _windowed(call: Call, axes: list[int], degree: int) -> Any:
    """Constant along `axes` of the input; times the window's factor to the power `degree`. Axes in front pass."""
    window = times(_window(call), degree)
    if isinstance(call["self"], AnyField):
        return AnyField(call.out_shape)
    field = call.constant(call.field("self"), axes)
    kept = min(axes)
    missing = len(call.out_shape) - kept
    terms = tuple((c, ids.reshape((*ids.shape[:kept], *(1,) * missing))) for c, ids in field.terms)
    return product(call.out_shape, ScaleField(call.out_shape, terms), window)


@scale_rule("aten::stft", family="contraction")
def stft(call: Call) -> Any:
    """y[.., k, t] = sum_j window[j] x[.., t hop + j] exp(..): constant along the samples."""
    return _windowed(call, [len(call.shape("self")) - 1], 1)


@scale_rule("aten::istft", family="contraction")
def istft(call: Call) -> Any:
    """The overlapping frames, each times the window, over the sum of the window's squares: one factor over times and window."""
    rank = len(call.shape("self"))
    # The real and the imaginary part may stand along a last axis.
    pairs = 0 if call.fakes["self"].is_complex() else 1
    return _windowed(call, list(range(rank - 2 - pairs, rank)), -1)
