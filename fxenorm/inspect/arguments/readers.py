"""Readers of single values on the command line; each raises argparse's error, which says what was expected."""

from __future__ import annotations

import argparse
import contextlib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .input_spec import InputSpec

__all__ = ["read_band", "read_bits", "read_count", "read_exponent", "read_input", "read_layer_weight", "read_limit"]

BitWidths = tuple[int | None, int | None, str | int]
"""Bits of weights and of activations, None for float, and which entries of a weight share a range."""


def read_input(text: str) -> InputSpec:
    """Reads ``--input``, as "2x3x32x32" or "mask=2x7:bool"."""
    from .input_spec import parse_input

    try:
        return parse_input(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_exponent(text: str) -> float:
    """Reads ``--p``: a number above 0, or inf."""
    value = _number(text)
    if value is not None and value > 0:
        return value
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0.1 to 1000, or inf")


def read_layer_weight(text: str) -> float | str | tuple[str, float]:
    """Reads ``--c``: a number above 0, "adaptive", or one layer's weight, as "fc1=2"."""
    if text == "adaptive":
        return text
    layer, equals, number = text.rpartition("=")
    value = _number(number)
    if value is not None and 0 < value < math.inf and (layer or not equals):
        return (layer, value) if equals else value
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number > 0, adaptive, or LAYER=NUMBER")


def read_limit(text: str) -> float:
    """Reads ``--max-log-scale``: a finite number above 0."""
    value = _number(text)
    if value is not None and 0 < value < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number > 0, a natural logarithm")


def read_band(text: str) -> float:
    """Reads ``--deadband``: a number from 0 to 1."""
    value = _number(text)
    if value is not None and 0 <= value <= 1:
        return value
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to 1, a natural logarithm")


def read_bits(text: str) -> BitWidths:
    """Reads ``--bits``: "8/8", "4/8/channel", "4/-/128"; as (weights, activations, what shares a range)."""
    widths, per = text.split("/")[:2], "/".join(text.split("/")[2:]) or "tensor"
    fits = len(widths) == 2 and all(one == "-" or (one.isdecimal() and 2 <= int(one) <= 24) for one in widths)
    if not fits or widths == ["-", "-"] or not (per in ("tensor", "channel") or (per.isdecimal() and int(per) > 0)):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected WEIGHTS/ACTIVATIONS, each from 2 to 24 or - for float, and /tensor, /channel or a group size"
        )
    weights, activations = (None if one == "-" else int(one) for one in widths)
    return weights, activations, int(per) if per.isdecimal() else per


def read_count(text: str) -> int:
    """Reads ``--jobs``, the number of processes: a positive integer."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: expected a positive integer")


def _number(text: str) -> float | None:
    """Returns a text as a number; None where it is none."""
    with contextlib.suppress(ValueError):
        return float(text)
    return None
