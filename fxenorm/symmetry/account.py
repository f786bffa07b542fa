"""The account of a model's channel ends: free, fixed or tied away, each with the node that made it so. Plain data, no graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

__all__ = ["KINDS", "AccountRow", "ChannelAccount", "EndShare", "Kind", "WeightSide"]

Kind = Literal["input", "output", "barrier", "option", "tied"]
"""Why a channel end is not free: fixed by an input, an output, a barrier or an option, or tied away."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class AccountRow:
    """The channel ends that one node fixed, or tied away.

    Attributes:
        kind: see `Kind`.
        count: number of channel ends.
        operator, node, module, source: where; for inputs, outputs and options, `operator` names which of these, `node` the path.
        reason: why, in words; "" where the operator only ties channels.
        graph: "in train mode", "at another size", "on another path": where only that graph shows it; "" in the first.
    """

    kind: Kind
    count: int
    operator: str
    node: str
    module: str
    source: str
    reason: str = ""
    graph: str = ""

    @property
    def place(self) -> str:
        """The module and the source line, "" for an option.

        Example:
            >>> AccountRow("tied", 8, "index_add.default", "index_add", "conv1", "model.py:12, in forward").place
            'conv1, model.py:12'
        """
        return ", ".join(filter(None, [self.module, self.source.partition(", in ")[0]])) or self.node


@dataclass(frozen=True)
class EndShare:
    """Channel ends on one side of a weight that have the same fate.

    Attributes:
        count: number of channel ends.
        row: position in the account's rows of the node that fixed or tied them, -1 where they are free.
        tied_to: position in the account's sides of the weight on whose channels they depend, -1 where none is known.
    """

    count: int
    row: int = -1
    tied_to: int = -1


@dataclass(frozen=True)
class WeightSide:
    """The channel ends on one side of a weight.

    Of ends that depend on one another the first one met is free and the later ones are tied away: at the weight that writes the
    channels, as a rule.

    Attributes:
        parameter: the weight.
        side: whether it reads or writes these channels; a weight that no contraction uses as it is (a gain) writes them.
        scales: number of free scales that they carry, the rank of their forms.
        shares: all ends, by fate.
    """

    parameter: str
    side: Literal["input", "output"]
    scales: int
    shares: tuple[EndShare, ...]

    @property
    def total(self) -> int:
        """Number of channel ends on this side, free or not."""
        return sum(share.count for share in self.shares)


@dataclass(frozen=True)
class ChannelAccount:
    """Every channel end of a model's weights: free, fixed or tied away.

    A channel end is (counted weight, input or output axis, index), at the weight's first use in a contraction; its form is the
    field there. Where another axis has positions of its own (stacked experts, groups), there is one for each of these. A weight
    that no contraction uses as it is (the gain of a norm, a weight that is standardised first) has one for each index of its
    axes, with the weight's own field; one for each entry where its entries move by themselves. Counted is what multiplies.

    Attributes:
        total: number of channel ends.
        free: the rank of their forms; `num_scales` less `uncounted`.
        uncounted: scales that move only tensors which are not counted.
        rows: fixed: forms that are 0, with the node that first made them so. Tied away: the other forms less their rank, with the
            node whose equation first made one depend on those before.
        sides: the same ends by weight; () in plans that were stored by older versions.

    Example:
        >>> row = AccountRow("input", 4, "input", "x", "", "")
        >>> account = ChannelAccount(12, 8, 0, (row,))
        >>> account.fixed("input"), account.tied
        (4, 0)
        >>> print(account)
        Channel ends 12: 8 free, 4 fixed by inputs, 0 by outputs, 0 by barriers, 0 by options, 0 tied away
    """

    total: int
    free: int
    uncounted: int
    rows: tuple[AccountRow, ...] = field(repr=False)
    sides: tuple[WeightSide, ...] = field(default=(), repr=False)

    def fixed(self, kind: Kind | None = None) -> int:
        """Returns the number of ends fixed by inputs, outputs, barriers or options; None: by any of these."""
        return sum(row.count for row in self.rows if (row.kind != "tied" if kind is None else row.kind == kind))

    @property
    def tied(self) -> int:
        """The number of channel ends that are tied away."""
        return self.fixed("tied")

    def by_operator(self, *kinds: Kind) -> tuple[tuple[str, str, int, tuple[str, ...]], ...]:
        """(operator, graph, count, places) of the rows of some kinds, those with the most ends first."""
        found: dict[tuple[str, str], tuple[int, dict[str, None]]] = {}
        for row in self.rows:
            if row.kind in kinds:
                key = (row.operator.split(".")[0], row.graph)
                count, places = found.get(key, (0, {}))
                found[key] = (count + row.count, places | {row.place: None})
        ordered = sorted(found.items(), key=lambda item: -item[1][0])
        return tuple((*key, count, tuple(places)) for key, (count, places) in ordered)

    def __str__(self) -> str:
        """Returns the sum, and the operators that fix or tie most."""
        return "\n".join(self.lines())

    def lines(self, most: int = 4) -> list[str]:
        """Returns the sum in one line; in a second the operators that fix or tie most, at most `most` of each."""
        sums = ", ".join(
            f"{self.fixed(kind):,} {'fixed ' if kind == 'input' else ''}by {kind}s" for kind in KINDS if kind != "tied"
        )
        lines = [f"Channel ends {self.total:,}: {self.free:,} free, {sums}, {self.tied:,} tied away"]
        fixed = self._named(self.by_operator("barrier", "option"), most)
        tied = self._named(self.by_operator("tied"), most)
        told = [text for text in (fixed and f"fixed by {fixed}", tied and f"tied by {tied}") if text]
        if told:
            lines.append("  " + "; ".join(told))
        if self.uncounted:
            lines.append(f"  {self.uncounted:,} scales more move only tensors that are not counted")
        return lines

    @staticmethod
    def _named(operators: Iterable[tuple[str, str, int, tuple[str, ...]]], most: int) -> str:
        """ "index_add 8 (model.py:12)", joined by commas."""
        every = list(operators)
        words = []
        for operator, graph, count, places in every[:most]:
            where = places[0] if len(places) == 1 else f"{len(places)} places"
            told = ", ".join(filter(None, [where, graph]))
            words.append(f"{operator} {count:,}" + (f" ({told})" if told else ""))
        if len(every) > most:
            words.append(f"{len(every) - most} more")
        return ", ".join(words)
