"""`Why`: the answer of `Plan.why` in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..analysis.analysis import Analysis
from ..analysis.held import Held
from .describe import layer_list, plural
from .why_rows import WhyLayer, WhyRow, layers_named, why_layers

__all__ = ["Why", "why"]

_MOST_LAYERS = 6
"""Names of other layers in a line: as many as fit one of 100 characters."""


@dataclass(frozen=True)
class Why:
    """Which channels of some layers are free, to which layers the others are tied, and what stops them; print it.

    Channels are counted at both ends: where a layer writes them and where another reads them. Of channels that depend on one
    another the first one met is free and the others are tied to it, so that over all layers the free ones add up to the number
    of scales (`Plan.account`).

    Attributes:
        layers: the totals of each layer.
        rows: all channel ends of these layers, by side and cause. Over all layers they are `Plan.account`.
        told: whether `layers` say what is held at the current weights; not on the meta device.

    Example:
        >>> import fxenorm, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> print(fxenorm.analyze(model).why("2"))
        2: 2 channels out, 8 in
          out  2 fixed by the output: a model output stays as it is
          in   8 carry the scales of 0 out: linear, in 2
          consumer of g0, with 0
    """

    layers: tuple[WhyLayer, ...]
    rows: tuple[WhyRow, ...] = field(repr=False)
    told: bool = True

    def __repr__(self) -> str:
        """Returns one line: the layers and their channel ends."""
        count = sum(row.channels for row in self.rows)
        return f"<fxenorm.Why of {plural(len(self.layers), 'layer')}, {plural(count, 'channel end')}: print it>"

    def __str__(self) -> str:
        """Returns a few lines for each layer; the groups of one that was asked for alone."""
        return "\n".join(line for layer in self.layers for line in self._lines(layer))

    def _lines(self, layer: WhyLayer) -> list[str]:
        """Returns all that is known of one layer."""
        lines = [f"{layer.layer}: {plural(layer.channels_out, 'channel')} out, {layer.channels_in:,} in"]
        if layer.note:
            lines = [f"{layer.layer}: {layer.note}"]
        for side, scales in (("out", layer.scales_out), ("in", layer.scales_in)):
            sentences = _sentences([row for row in self.rows if row.layer == layer.layer and row.side == side], scales)
            lines += [f"  {side if k == 0 else '':3}  {sentence}" for k, sentence in enumerate(sentences)]
        groups = [("producer of", layer.producer_of), ("consumer of", layer.consumer_of)] if len(self.layers) == 1 else []
        told = "; ".join(f"{words} {', '.join(names)}" for words, names in groups if names)
        if told:
            others = layer_list(layer.with_layers, _MOST_LAYERS)
            lines.append(f"  {told}" + (f", with {others}" if layer.with_layers else ""))
        lines += [f"  held now: {sentence}" for sentence in layer.held]
        unknown = not self.told and len(self.layers) == 1
        return [*lines, "  held now: not known, the weights are on the meta device"] if unknown else lines


def _sentences(rows: Sequence[WhyRow], scales: int) -> list[str]:
    """Returns the rows of one side of a layer in sentences; `scales`: how many free scales this side carries."""
    moving = sum(row.channels for row in rows if row.kind in ("free", "tied"))
    sharing = list(dict.fromkeys(_cause(row) for row in rows if row.kind == "tied" and row.tied_to in (row.own, "")))
    found = []
    if sharing:
        found.append(f"{moving:,} channels share {plural(scales, 'scale')}: {'; '.join(sharing)}")
    for row in rows:
        if row.kind == "free":
            found += [] if sharing else [f"{row.channels:,} free"]
        elif row.kind != "tied":
            found.append(f"{row.channels:,} fixed by {_who(row)}{_cause(row)}{f': {row.reason}' if row.reason else ''}")
        elif row.tied_to not in (row.own, ""):
            found.append(f"{row.channels:,} carry the scales of {row.tied_to}: {_cause(row)}")
    return found


def _who(row: WhyRow) -> str:
    """Returns the kind of what fixed channels, in words; "" for an operator."""
    return {"input": "the ", "output": "the ", "option": "an option, "}.get(row.kind, "")


def _cause(row: WhyRow) -> str:
    """Returns an operator with the user's line, as "sum, model.py:12"."""
    joint = " " if row.kind == "input" else ", "
    named = joint.join(filter(None, [row.operator, row.source or (row.module and f"in {row.module}")]))
    return f"{named} ({row.graph})" if row.graph else named


def why(analysis: Analysis, name: str | None, modules: Sequence[str], held: Sequence[Held] | None) -> Why:
    """Answers `Plan.why`.

    Args:
        analysis: the findings on the model.
        name: of a layer, a parameter or a module; None: all layers.
        modules: names of all modules of the model.
        held: what is held at the current weights; None: not known.

    Raises:
        OptionError: no layer is meant by this name.
        BindError: the plan was stored by a version that kept no account by layer.
    """
    layers, rows = why_layers(analysis, layers_named(name, analysis.symmetry, modules), held or ())
    return Why(layers, rows, held is not None)
