"""`Prediction`: the output noise that rounding is predicted to make, by layer, now and at the optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..analysis.held import Held
from ..bits import Bits
from ..objectives.quantisers import Quantised
from ..text.html import html_block, html_table
from ..text.table import Column, table_lines

__all__ = ["LayerNoise", "PredictedRange", "Prediction", "layer_noises", "predicted_ranges", "share_words"]

_NONE, _LITTLE, _SOME = 0.001, 0.95, 0.8
"""Noise below the first share of the outputs does not matter; a noise that falls to more than the second of itself is within what
the prediction leaves out, and above the third the gain is small. A choice."""

_BEYOND = 0.3
"""Above this share of the outputs errors are no longer small, and predictions are too large: they rank and do not measure."""

_SHOWN = 20
"""Layers that are printed, those of the largest noise."""


@dataclass(frozen=True)
class PredictedRange:
    """The noise of one tensor that is rounded, as a share of the outputs: the root of their mean squares' ratio.

    Attributes:
        layer: path of the layer.
        kind: "weight", or "input" for the activation that it reads.
        call: of an input, which call of the layer in one forward pass.
        bits: how many.
        now: the noise at the current weights.
        best: the noise at the optimum of all together.

    Example:
        >>> import fxenorm, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = fxenorm.analyze(model)
        >>> prediction = plan.predict(plan.observe([torch.randn(16, 4)], derivatives=True), fxenorm.Bits(weights=4))
        >>> one = prediction.ranges[0]
        >>> one.layer, one.kind, one.bits, one.now >= 0
        ('0', 'weight', 4, True)
    """

    layer: str
    kind: str
    call: int
    bits: int
    now: float
    best: float


@dataclass(frozen=True)
class Prediction:
    """The relative output noise that some bits are predicted to make, now and after the best rescaling; print it.

    Each rounding error counts as independent noise of its own, small enough that the model is linear in it: good enough to rank
    settings and to tell which layers matter, before anything is rounded.

    Attributes:
        bits: of the quantiser.
        ranges: the tensors that are rounded, weights first, in graph order.
        now, best: the noise of all together, as shares of the outputs.
        log_scales: (num_scales,) the rescaling from the current weights to the optimum; ``plan.rescale`` takes it.
        held: the directions that stay at 0, with the reasons.
        converged: whether the optimum was found.

    Example:
        >>> import fxenorm, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = fxenorm.analyze(model)
        >>> prediction = plan.predict(plan.observe([torch.randn(16, 4)], derivatives=True), fxenorm.Bits(weights=4))
        >>> prediction.best <= prediction.now, len(prediction.ranges)
        (True, 4)
    """

    bits: Bits
    ranges: tuple[PredictedRange, ...]
    now: float
    best: float
    log_scales: Tensor
    held: tuple[Held, ...]
    converged: bool

    @property
    def verdict(self) -> str:
        """A sentence that says whether equalisation is worth it for this model and these bits.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> observations = plan.observe([torch.randn(16, 4)], derivatives=True)
            >>> plan.predict(observations, fxenorm.Bits(weights=16, activations=None)).verdict
            'Rounding is predicted to make hardly any noise: there is nothing to gain.'
        """
        if self.now < _NONE:
            return "Rounding is predicted to make hardly any noise: there is nothing to gain."
        if self.best > _LITTLE * self.now:
            return "Equalisation is predicted to change nothing that matters."
        if self.best > _SOME * self.now:
            return f"Equalisation is predicted to help a little: {1 - self.best / self.now:.0%} less noise."
        return f"Equalisation is predicted to be worth it: {self.now / self.best:.3g} times less noise."

    def to_dict(self) -> dict[str, Any]:
        """Returns the prediction as a JSON-compatible dict.

        Example:
            >>> import fxenorm, torch
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> prediction = plan.predict(plan.observe([torch.randn(16, 4)], derivatives=True))
            >>> sorted(prediction.to_dict())
            ['best', 'bits', 'converged', 'held', 'log_scales', 'now', 'ranges', 'verdict']
        """
        return {
            "bits": repr(self.bits),
            "now": self.now,
            "best": self.best,
            "verdict": self.verdict,
            "converged": self.converged,
            "ranges": [dict(vars(one)) for one in self.ranges],
            "held": [str(one) for one in self.held],
            "log_scales": self.log_scales.tolist(),
        }

    def _head(self) -> list[str]:
        """Returns the lines above the table."""
        lines = [
            self.verdict,
            f"predicted output noise: {share_words(self.now)} now, {share_words(self.best)} at the optimum ({self.bits!r})",
        ]
        if self.now > _BEYOND:
            lines.append(f"(above {_BEYOND:.0%} errors are not small: such numbers rank, and are too large)")
        if not self.converged:
            lines.append("(the optimum was not reached to its last digits)")
        return lines

    def _rows(self) -> list[tuple[str, ...]]:
        """Returns a row for each layer, of the largest noise now first."""
        return [(one.layer or "(model)", one.bits, *map(share_words, one.noises)) for one in layer_noises(self)]

    def _tail(self, rows: int) -> list[str]:
        """Returns the lines below the table."""
        lines = [f"and {rows - _SHOWN} more layers with less noise"] if rows > _SHOWN else []
        return lines + [f"held: {one}" for one in self.held[:8]]

    def __repr__(self) -> str:
        """Returns one line: the noise now and at the optimum."""
        return f"<fxenorm.Prediction: {share_words(self.now)} -> {share_words(self.best)} of the outputs, {self.bits!r}>"

    def __str__(self) -> str:
        """Returns the verdict, the noise of all, and the layers of the largest noise as a table."""
        rows = self._rows()
        return "\n".join([*self._head(), "", *table_lines(_COLUMNS, rows[:_SHOWN], None), *self._tail(len(rows))])

    def _repr_html_(self) -> str:
        """Returns the text as a table for notebooks."""
        rows = self._rows()
        verdict, *head = self._head()
        return html_block(verdict, [head, html_table(_COLUMNS, rows[:_SHOWN]), self._tail(len(rows))])


_COLUMNS = [
    Column("layer"),
    Column("bits"),
    Column("weight now", "right"),
    Column("best", "right"),
    Column("input now", "right"),
    Column("best", "right"),
]


@dataclass(frozen=True)
class LayerNoise:
    """The noise of a layer: `bits` of its weight and its input, and of both the noise now and at the optimum; None: in float."""

    layer: str
    bits: str
    noises: tuple[float | None, float | None, float | None, float | None]


def layer_noises(prediction: Prediction) -> list[LayerNoise]:
    """Returns the noise of each layer, the largest now first; all calls of a layer together."""
    found = []
    for layer in dict.fromkeys(one.layer for one in prediction.ranges):
        own = [one for one in prediction.ranges if one.layer == layer]
        weights, inputs = ([one for one in own if one.kind == kind] for kind in ("weight", "input"))
        bits = "/".join(str(part[0].bits) if part else "-" for part in (weights, inputs))
        noises = (_together(weights, "now"), _together(weights, "best"), _together(inputs, "now"), _together(inputs, "best"))
        found.append((_root(own, "now"), LayerNoise(layer, bits, noises)))
    return [row for _, row in sorted(found, key=lambda pair: -pair[0])]


def predicted_ranges(
    now: Sequence[Quantised], best: Sequence[Quantised], output_square: float
) -> tuple[tuple[PredictedRange, ...], float, float]:
    """Returns the noise of each tensor, and that of all together now and at the optimum.

    Args:
        now, best: all that is rounded, before and after the rescaling.
        output_square: the mean square of the outputs.
    """
    size = output_square if output_square > 0 else math.nan
    pairs = [[math.sqrt(float(one.noise().sum()) / size) for one in both] for both in zip(now, best, strict=True)]
    found = tuple(
        PredictedRange(one.layer, one.kind, one.call, one.bits, before, after)
        for one, (before, after) in zip(now, pairs, strict=True)
    )
    return found, _root(found, "now"), _root(found, "best")


def _root(ranges: Sequence[PredictedRange], name: str) -> float:
    """Returns the noise of several tensors together."""
    return math.sqrt(sum(getattr(one, name) ** 2 for one in ranges))


def _together(ranges: Sequence[PredictedRange], name: str) -> float | None:
    """Returns the noise of several tensors together; None where there are none."""
    return _root(ranges, name) if ranges else None


def share_words(noise: float | None) -> str:
    """Returns a share of the outputs in percent; None is a tensor that stays in float."""
    return "float" if noise is None else f"{100 * noise:.3g} %"
