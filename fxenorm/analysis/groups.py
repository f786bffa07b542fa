"""Groups: scale variables that the same parameters write and read, as users see them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..symmetry.repeated_rows import first_rows
from ..symmetry.symmetry import Site, Symmetry, Term

__all__ = [
    "Group",
    "Port",
    "build_groups",
    "group_name",
    "groups_of_each",
    "layer_of",
    "layers_of",
    "multiplies",
    "sites_of_groups",
    "term_axis",
]

_SUFFIXES = (".weight", ".bias", "_weight", "_bias")


@dataclass(frozen=True)
class Port:
    """A parameter's share in a group: the axis along which the group's variables lie, and their coefficient.

    Attributes:
        parameter: the parameter's name.
        axis: the axis of the parameter along which the variables lie.
        coefficient: the exponent's integer factor: positive for a producer, negative for a consumer.

    Example:
        >>> import fxenorm
        >>> from torch import nn
        >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> plan.groups[0].producers[0]
        Port(parameter='0.weight', axis=0, coefficient=1)
    """

    parameter: str
    axis: int
    coefficient: int


@dataclass(frozen=True)
class Group:
    """Scale variables with the same producers and consumers.

    Attributes:
        name: short and unique within the plan, as "g4".
        kind: how its layers (those whose parameters multiply) are connected; the first of these that holds:
            "attention": two layers scale their outputs in opposite directions, which cancels in their product;
            "gate": a consumer reads products of this group's channels with another group's;
            "residual": several layers produce it; "branch": one layer produces it, several consume it;
            "one-sided": no layer produces it, or none consumes it; "norm": it leads from a normalisation to one layer;
            "chain": it leads from one layer to one layer.
        variables: positions in ``log_scales``.
        producers: parameters that are multiplied by positive powers of the scales, in graph order.
        consumers: parameters that are multiplied by negative powers, in graph order.
        sites: the activations at module boundaries that carry the group, in graph order.
        depth: smallest depth of its producing layers in the pair graph.

    Example:
        >>> import fxenorm
        >>> from torch import nn
        >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> group = plan.groups[0]
        >>> group.kind, group.variables
        ('chain', range(0, 8))
        >>> [port.parameter for port in group.consumers]
        ['2.weight']
    """

    name: str
    kind: str
    variables: range
    producers: tuple[Port, ...]
    consumers: tuple[Port, ...]
    sites: tuple[Site, ...]
    depth: int

    def __repr__(self) -> str:
        """Returns one line: the name, the kind, the size, and a layer or two of each side."""
        ends = (_few([layer_of(port.parameter) for port in ports]) for ports in (self.producers, self.consumers))
        count = len(self.variables)
        return f"<Group {self.name}: {self.kind}, {count:,} channel{'s' * (count != 1)}, {' -> '.join(ends)}>"

    @property
    def label(self) -> str:
        """The group in words, as "g4 (conv2 out, 64 channels)".

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.groups[0].label
            'g0 (0 out, 8 channels)'
        """
        ports, side = (self.producers, "out") if self.producers else (self.consumers, "in")
        where = f"{layer_of(ports[0].parameter)} {side}, " if ports else ""
        return f"{self.name} ({where}{len(self.variables)} channel{'s' * (len(self.variables) != 1)})"


def layer_of(parameter_name: str) -> str:
    """Returns the layer that a parameter belongs to.

    Args:
        parameter_name: a fully qualified parameter name.

    Returns:
        The name without a trailing ".weight", ".bias", "_weight" or "_bias"; any other name is its own layer.

    Example:
        >>> [layer_of(name) for name in ("conv1.weight", "attn.in_proj_weight", "class_token", "weight")]
        ['conv1', 'attn.in_proj', 'class_token', 'weight']
    """
    for suffix in _SUFFIXES:
        if parameter_name.endswith(suffix) and len(parameter_name) > len(suffix):
            return parameter_name[: -len(suffix)]
    return parameter_name


def _few(layers: Iterable[str]) -> str:
    """Returns the first of some layers, and how many more there are: "conv1, +2"."""
    distinct = list(dict.fromkeys(layers))
    return ", ".join([*distinct[:1], *([f"+{len(distinct) - 1}"] if len(distinct) > 1 else [])]) or "-"


def layers_of(ports: Iterable[Port], symmetry: Symmetry) -> tuple[str, ...]:
    """Returns the distinct layers among `ports` whose parameter multiplies (role "weight" or "gamma"), in order."""
    return tuple(dict.fromkeys(layer_of(port.parameter) for port in ports if multiplies(symmetry, port.parameter)))


def multiplies(symmetry: Symmetry, name: str) -> bool:
    """Whether the parameter is used as a weight or as the gamma of a normalisation."""
    return symmetry.roles.get(name) in ("weight", "gamma")


def group_name(index: int) -> str:
    """Returns the name of the group at position `index`, as "g4"."""
    return f"g{index}"


def groups_of_each(arrays: Sequence[NDArray[np.int64]], symmetry: Symmetry) -> list[list[int]]:
    """Returns the groups that each array of variable ids meets, each list in order of first appearance."""
    found: list[list[int]] = [[] for _ in arrays]
    if not arrays or symmetry.num_scales == 0:
        return found
    # Repeated rows meet the same groups.
    arrays = [array if (first := first_rows(array)) is None else array[first] for array in arrays]
    sizes = [array.size for array in arrays]
    owner = np.repeat(np.arange(len(arrays)), sizes)
    ids = np.concatenate([np.asarray(array, dtype=np.int64).reshape(-1) for array in arrays])
    free = ids >= 0
    owner, ids = owner[free], ids[free]
    if not ids.size:
        return found
    starts = np.asarray(symmetry.group_starts)
    group = (np.searchsorted(starts, np.arange(symmetry.num_scales), side="right") - 1)[ids]
    # Channels of a group mostly lie side by side: keep one entry a run before the Python loop.
    first = np.ones(ids.size, dtype=bool)
    first[1:] = (owner[1:] != owner[:-1]) | (group[1:] != group[:-1])
    for position, number in zip(owner[first].tolist(), group[first].tolist(), strict=True):
        found[position].append(number)
    return [list(dict.fromkeys(numbers)) for numbers in found]


def term_axis(ids: NDArray[np.int64], coefficient: int) -> int:
    """Returns the axis of the parameter along which a term's ids vary; see `Port`."""
    varying = [axis for axis, size in enumerate(ids.shape) if size > 1]
    if varying:
        # A grouped convolution's input term is (O, I/g, 1, 1): the channels read lie on axis 1, axis 0 only selects the block.
        return ([axis for axis in varying if axis > 0] or varying)[-1]
    # One variable for the whole tensor: the axis is a matter of convention, outputs first.
    return 1 if coefficient < 0 and ids.ndim > 1 else 0


def build_groups(symmetry: Symmetry, depths: Mapping[str, int]) -> tuple[Group, ...]:
    """Builds the groups of a symmetry.

    Args:
        symmetry: the free scale variables and the parameters that they multiply.
        depths: by layer, its depth in the pair graph; layers that are missing have depth 0.

    Returns:
        One group per range of ``symmetry.group_starts``, in order.
    """
    count = len(symmetry.group_starts) - 1
    ports, sites = _ports(symmetry), sites_of_groups(symmetry)
    opposed, gated = _opposed_groups(symmetry, ports), _gated_groups(symmetry)
    starts = [int(start) for start in symmetry.group_starts]
    groups = []
    for index in range(count):
        producers = tuple(port for port in ports[index] if port.coefficient > 0)
        consumers = tuple(port for port in ports[index] if port.coefficient < 0)
        writers, readers = layers_of(producers, symmetry), layers_of(consumers, symmetry)
        if index in opposed:
            kind = "attention"
        elif index in gated:
            kind = "gate"
        elif not writers or not readers:
            kind = "one-sided"
        elif len(writers) > 1:
            kind = "residual"
        elif len(readers) > 1:
            kind = "branch"
        else:
            kind = "norm" if any(symmetry.roles.get(port.parameter) == "gamma" for port in producers) else "chain"
        depth = min((depths.get(layer, 0) for layer in writers or readers), default=0)
        variables = range(starts[index], starts[index + 1])
        groups.append(Group(group_name(index), kind, variables, producers, consumers, sites[index], depth))
    return tuple(groups)


def sites_of_groups(symmetry: Symmetry) -> list[tuple[Site, ...]]:
    """Returns, by group, the sites that carry it."""
    sites: list[list[Site]] = [[] for _ in range(len(symmetry.group_starts) - 1)]
    for site, groups in zip(symmetry.sites, groups_of_each([site.variables for site in symmetry.sites], symmetry), strict=True):
        for group in groups:
            sites[group].append(site)
    return [tuple(members) for members in sites]


def _ports(symmetry: Symmetry) -> list[tuple[Port, ...]]:
    """Returns, by group, its ports: parameters in the order in which the graph first reads them."""
    order: dict[str, int] = {}
    for flow in symmetry.flows.values():
        for node in flow:
            for use in node.parameters:
                order.setdefault(use.name, len(order))
    names = [name for name in symmetry.exponents if name not in symmetry.buffers]
    names.sort(key=lambda name: order.get(name, len(order)))
    terms: list[tuple[str, Term]] = [(name, term) for name in names for term in symmetry.exponents[name]]
    ports: list[dict[Port, None]] = [{} for _ in range(len(symmetry.group_starts) - 1)]
    for (name, (coefficient, ids)), numbers in zip(terms, groups_of_each([ids for _, (_, ids) in terms], symmetry), strict=True):
        port = Port(name, term_axis(ids, coefficient), coefficient)
        for number in numbers:
            ports[number][port] = None
    return [tuple(members) for members in ports]


def _opposed_groups(symmetry: Symmetry, ports: Sequence[Sequence[Port]]) -> set[int]:
    """Returns groups that a weight carries negatively on its output, while nothing that it reads carries them."""
    negative: dict[str, set[int]] = defaultdict(set)
    for index, members in enumerate(ports):
        for port in members:
            if port.coefficient < 0 and symmetry.roles.get(port.parameter) == "weight":
                negative[port.parameter].add(index)
    opposed: set[int] = set()
    for flow in symmetry.flows.values():
        for node in flow:
            candidates: set[int] = set()
            for use in node.parameters:
                if use.role == "weight" and use.name in negative:
                    candidates |= negative[use.name] & node.carried
            if candidates:
                opposed |= candidates.difference(*(flow[position].carried for position in node.inputs))
    return opposed


def _gated_groups(symmetry: Symmetry) -> set[int]:
    """Returns groups that share entries of a parameter with another group of the same sign on the same axis."""
    gated: set[int] = set()
    for name, terms in symmetry.exponents.items():
        if len(terms) < 2 or not multiplies(symmetry, name):
            continue
        sides: dict[tuple[bool, int], list[NDArray[np.int64]]] = defaultdict(list)
        for coefficient, ids in terms:
            sides[coefficient > 0, term_axis(ids, coefficient)].append(np.asarray(ids))
        for members in sides.values():
            if len(members) < 2:
                continue
            together = np.stack(np.broadcast_arrays(*members))
            shared = (together >= 0).sum(axis=0) > 1
            gated.update(*groups_of_each([together[:, shared]], symmetry))
    return gated
