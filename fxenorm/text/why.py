"""`Why`: the answer of `Plan.why` in words."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..analysis.analysis import Analysis
from ..analysis.held import Held
from .describe import layer_list, plural
from .html import html_block, html_table
from .table import TOGETHER, Column, broken
from .why_rows import WhyLayer, WhyRow, layers_named, why_layers
from .why_words import Block, blocks_of, layer_sentences, sentence_words

__all__ = ["MOST_LINES", "Why", "why"]

MOST_LINES = 40
"""Lines of an answer about many layers that are few enough: one screen, a choice."""

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
        """Returns the text of `describe`."""
        return self.describe()

    def describe(self, *, expand: bool = False, width: int | None = None) -> str:
        """Puts the answer into sentences, as printing it does; the groups only of a layer that was asked for alone.

        Layers about which the same sentences hold, but for names and numbers, share them: ``layers.{0..31}.up``.

        Args:
            expand: whether each layer is told by itself, and every name is written out.
            width: of the text, in characters; None: the terminal's, 100 where there is none. A name is never broken, so
                that a line with a longer name is longer.

        Returns:
            Text of several lines.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> print(plan.why().describe(expand=True).splitlines()[0])
            0: 8 channels out, 4 in
        """
        width = width or shutil.get_terminal_size((100, 24)).columns
        whole = expand or len(self.layers) == 1
        blocks = self._blocks(whole)
        lines = [line for block in blocks for line in _lines(block, width, whole)]
        return "\n".join([*lines, *self._below(blocks, whole)])

    def _repr_html_(self) -> str:
        """Returns the text of `describe` as a table for notebooks."""
        whole = len(self.layers) == 1
        blocks = self._blocks(whole)
        cells = [
            [
                *_of_side(block, "", whole),
                *("\n".join(_of_side(block, side, whole)) for side in ("out", "in")),
                "\n".join(_of_side(block, "held", whole)),
            ]
            for block in blocks
        ]
        columns = [Column("layer", "text"), Column("out", "text"), Column("in", "text"), Column("held now", "text")]
        if not any(row[3] for row in cells):
            columns, cells = columns[:3], [row[:3] for row in cells]
        count = sum(row.channels for row in self.rows)
        title = f"Why: {plural(len(self.layers), 'layer')}, {plural(count, 'channel end')}"
        return html_block(title, [html_table(columns, cells), self._below(blocks, whole)])

    def _blocks(self, whole: bool) -> tuple[Block, ...]:
        """Returns the layers in blocks, unless each is to stay by itself."""
        by_layer: dict[str, list[WhyRow]] = {}
        for row in self.rows:
            by_layer.setdefault(row.layer, []).append(row)
        told = [(layer.layer, layer_sentences(layer, by_layer.get(layer.layer, ()))) for layer in self.layers]
        return blocks_of(told, None if whole else MOST_LINES)

    def _below(self, blocks: Sequence[Block], whole: bool) -> list[str]:
        """Returns the lines below all blocks."""
        lines = self._alone(self.layers[0]) if len(self.layers) == 1 else []
        if not whole and any(sentence.is_relative for block in blocks for sentence in block.sentences):
            lines.append("(A leading dot: in the module of the layer itself.)")
        if len(blocks) < len(self.layers):
            lines.append(f"({len(self.layers):,} layers, one by one: plan.why().describe(expand=True))")
        return lines

    def _alone(self, layer: WhyLayer) -> list[str]:
        """Returns what is said of a layer that was asked for alone: its groups, and whether the weights are known."""
        lines = []
        groups = [("producer of", layer.producer_of), ("consumer of", layer.consumer_of)]
        told = "; ".join(f"{words} {', '.join(names)}" for words, names in groups if names)
        if told:
            others = layer_list(layer.with_layers, _MOST_LAYERS)
            lines.append(f"  {told}" + (f", with {others}" if layer.with_layers else ""))
        return lines if self.told else [*lines, "  held now: not known, the weights are on the meta device"]


def _lines(block: Block, width: int, whole: bool) -> list[str]:
    """Returns the sentences of one block as lines."""
    lines = [line for heading in _of_side(block, "", whole) for line in broken(heading, width).split("\n")]
    for side in ("out", "in", "held"):
        for place, words in enumerate(_of_side(block, side, whole)):
            label = "  held now: " if side == "held" else f"  {'' if place else side:3}  "
            first, *more = broken(words, width - len(label)).split("\n")
            lines += [f"{label}{first}", *(" " * len(label) + line for line in more)]
    return lines


def _of_side(block: Block, side: str, whole: bool) -> list[str]:
    """Returns the sentences about one side of a block's layers; those of side "" are its heading."""
    words = [sentence_words(sentence, not whole) for sentence in block.sentences if sentence.side == side]
    count = len(block.layers)
    return [f"{text} ({count:,}{TOGETHER}layers)" for text in words] if side == "" and count > 1 else words


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
