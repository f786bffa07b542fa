"""Derives by layer which channels are free, tied or fixed, and who did it, from the account of channel ends. Plain data."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..analysis.analysis import Analysis
from ..analysis.groups import Group, layer_of
from ..analysis.held import Held
from ..analysis.pairs import short_operator
from ..errors import BindError, OptionError
from ..symmetry.account import AccountRow, ChannelAccount, EndShare, WeightSide
from ..symmetry.symmetry import Symmetry

__all__ = ["WhyLayer", "WhyRow", "layers_named", "why_layers"]

_SIDES = {"output": "out", "input": "in"}


@dataclass(frozen=True)
class WhyRow:
    """Channels on one side of a layer that have the same fate.

    Attributes:
        layer: the layer.
        parameter: its weight.
        side: "out" where the weight writes these channels, "in" where it reads them.
        kind: "free"; "tied" to channels that were met before; or fixed, by "input", "output", "barrier" or "option".
        channels: how many.
        operator: what tied or fixed them, as "sum"; "input", "output" or the option's name where no operator did.
        source: the line of your code, as "model.py:12"; of inputs and outputs, their name; "" where only torch's own code ran.
        module: path of the module that was running.
        reason: why, in words; "" of ties.
        tied_to: the side of the layer whose scales they carry, as "stem out"; this side itself where channels share scales.
        graph: "in train mode", "at another size", "on another path": where only that graph shows it; "" in the first.
    """

    layer: str
    parameter: str
    side: str
    kind: str
    channels: int
    operator: str = ""
    source: str = ""
    module: str = ""
    reason: str = ""
    tied_to: str = ""
    graph: str = ""

    @property
    def own(self) -> str:
        """This side of the layer, as "stem out"."""
        return f"{self.layer} {self.side}"


@dataclass(frozen=True)
class WhyLayer:
    """The totals of one layer.

    Attributes:
        layer: the layer.
        channels_out, scales_out: the channels that it writes, and how many free scales these carry.
        channels_in, scales_in: the same of the channels that it reads.
        producer_of, consumer_of: names of the groups that it writes and reads.
        with_layers: the other layers of these groups.
        held: what stays as it is at the current weights, one sentence a group and reason.
        note: why no channel of it is counted; "" where some are.
    """

    layer: str
    channels_out: int
    scales_out: int
    channels_in: int
    scales_in: int
    producer_of: tuple[str, ...] = ()
    consumer_of: tuple[str, ...] = ()
    with_layers: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    note: str = ""


def layers_named(name: str | None, symmetry: Symmetry, modules: Iterable[str]) -> tuple[str, ...]:
    """Returns the layers that a name means.

    Args:
        name: a layer, a parameter, or a module, which means all layers in it; None: all layers of the model.
        symmetry: it has the parameters' names.
        modules: names of all modules of the model.

    Raises:
        OptionError: the name means no layer; the message lists the nearest names.
    """
    parameters = [parameter for parameter in symmetry.shapes if parameter not in symmetry.buffers]
    layers = tuple(dict.fromkeys(layer_of(parameter) for parameter in parameters))
    if name is None or name == "":
        return layers
    if not isinstance(name, str):
        raise OptionError(f"layer={name!r} is not valid: expected the name of a layer, a parameter or a module")
    aliases = {layer_of(alias): layer_of(first) for alias, first in symmetry.aliases.items()} | dict(symmetry.aliases)
    if name in parameters or name in aliases:
        name = layer_of(aliases.get(name, name))
    found = tuple(layer for layer in layers if layer == name or layer.startswith(name + "."))
    if found:
        return found
    modules = list(modules)
    if name in modules:
        raise OptionError(f"{name} has no parameters, so no channels of its own: ask for the layer in front of it or behind it")
    near = difflib.get_close_matches(name, dict.fromkeys([*layers, *parameters, *aliases, *filter(None, modules)]), 4, 0.5)
    told = f"; the nearest are: {', '.join(near)}" if near else f"; the layers begin with: {', '.join(layers[:4])}"
    raise OptionError(f"the model has no layer, parameter or module {name!r}{told}")


def why_layers(
    analysis: Analysis, layers: Sequence[str], held: Sequence[Held]
) -> tuple[tuple[WhyLayer, ...], tuple[WhyRow, ...]]:
    """Returns totals and rows of some layers.

    Args:
        analysis: the findings on the model.
        layers: names of layers.
        held: what is held at the current weights.

    Raises:
        BindError: the plan was stored by a version that kept no account by layer.
    """
    account = analysis.symmetry.account
    if account is None or (account.total and not account.sides):
        raise BindError("the plan was stored by a version that kept no account by layer: run fxenorm.analyze again")
    sides: dict[str, list[WeightSide]] = {layer: [] for layer in layers}
    for side in account.sides:
        if layer_of(side.parameter) in sides:
            sides[layer_of(side.parameter)].append(side)
    ordered = [side for own in sides.values() for side in sorted(own, key=lambda side: side.side == "input")]
    rows = [row for side in ordered for row in _rows(side, account)]
    return tuple(_totals(layer, sides[layer], analysis, held) for layer in layers), tuple(rows)


def _rows(side: WeightSide, account: ChannelAccount) -> Iterator[WhyRow]:
    """Yields the rows of one side of a weight, the free channels first."""
    layer, where = layer_of(side.parameter), _SIDES[side.side]
    for share in sorted(side.shares, key=lambda share: share.row):
        if share.row < 0:
            yield WhyRow(layer, side.parameter, where, "free", share.count)
            continue
        cause = account.rows[share.row]
        yield WhyRow(
            layer, side.parameter, where, cause.kind, share.count, short_operator(cause.operator), _source(cause),
            cause.module, cause.reason, _tied_to(share, account), cause.graph,
        )  # fmt: skip


def _source(cause: AccountRow) -> str:
    """Returns the user's line; of an input or output its name."""
    name = cause.node if cause.kind in ("input", "output") and cause.node != cause.operator else ""
    return cause.source.partition(", in ")[0] or name


def _tied_to(share: EndShare, account: ChannelAccount) -> str:
    """Returns the side of a layer on which a share depends, "" where none is known."""
    if share.tied_to < 0:
        return ""
    side = account.sides[share.tied_to]
    return f"{layer_of(side.parameter)} {_SIDES[side.side]}"


def _totals(layer: str, sides: Sequence[WeightSide], analysis: Analysis, held: Sequence[Held]) -> WhyLayer:
    """Returns the totals of one layer; of several weights, their sums."""
    symmetry = analysis.symmetry
    parameters = [name for name in symmetry.shapes if layer_of(name) == layer]
    channels, scales = ({where: 0 for where in _SIDES} for _ in range(2))
    for side in sides:
        channels[side.side] += side.total
        scales[side.side] += side.scales
    producer_of = _groups_of(layer, analysis.groups, "producers")
    consumer_of = _groups_of(layer, analysis.groups, "consumers")
    variables = {int(k) for name in parameters for k in analysis.variables_of.get(name, ())}
    others = dict.fromkeys(
        layer_of(port.parameter) for group in (*producer_of, *consumer_of) for port in (*group.producers, *group.consumers)
    )
    others.pop(layer, None)
    return WhyLayer(
        layer,
        channels["output"],
        scales["output"],
        channels["input"],
        scales["input"],
        tuple(group.name for group in producer_of),
        tuple(group.name for group in consumer_of),
        tuple(others),
        tuple(_held(item, variables) for item in held if variables.intersection(item.variables)),
        "" if sides else _uncounted(parameters, symmetry),
    )


def _groups_of(layer: str, groups: Sequence[Group], side: str) -> list[Group]:
    """Returns the groups that have the layer on one side."""
    return [group for group in groups if any(layer_of(port.parameter) == layer for port in getattr(group, side))]


def _held(item: Held, variables: set[int]) -> str:
    """Returns how many of a layer's scales are held, in a sentence."""
    if item.coefficients:
        return str(item)
    count = len(variables.intersection(item.variables))
    return f"{item.group}: {count:,} scale{'s' * (count != 1)} held, {item.reason}"


def _uncounted(parameters: Sequence[str], symmetry: Symmetry) -> str:
    """Returns why a layer has no channel ends."""
    if not any(name in symmetry.roles for name in parameters):
        return "no output depends on it"
    return "nothing is multiplied by it: what is added or passed on follows the layers around it"
