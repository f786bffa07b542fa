"""Turns a plan into a JSON-compatible dict and back: everything that `analyze` found out, and no weights."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import BindError, FxenormError
from ..symmetry.symmetry import Barrier, FlowNode, NormFold, OutputUse, ParameterUse, Role, Site, Symmetry
from ..version import __version__
from .account_json import account_from_dict, account_to_dict
from .groups import Group, Port, sites_of_groups
from .options import Options
from .pairs import Pair

__all__ = ["FORMAT", "from_dict", "known_ids", "to_dict"]

FORMAT = 1
"""Raised by one whenever a dict of the older form can no longer be read."""

Json = dict[str, Any]

_LARGEST_COEFFICIENT = 1 << 16
"""Far above what models have (a power of a power), and far below what makes exp(coefficient * log-scale) meaningless."""

_MOST_IDS = 1 << 31
"""More ids than this no stored plan holds: it is the size of the largest array that a damaged length may ask for."""


def to_dict(symmetry: Symmetry, options: Options, groups: Sequence[Group], pairs: Sequence[Pair]) -> Json:
    """Returns a plan's data as nested dicts, lists, strings and finite numbers.

    Args:
        symmetry: the graph half's answer.
        options: those of the plan.
        groups: the plan's groups.
        pairs: the plan's pairs.

    Returns:
        A dict that ``json.dumps`` takes; all variable ids lie in one compressed block under "arrays".
    """
    arrays = _ArrayWriter()
    stored_groups = [
        [
            group.name,
            group.kind,
            group.variables.start,
            group.variables.stop,
            _ports(group.producers),
            _ports(group.consumers),
            group.depth,
        ]
        for group in groups
    ]
    return {
        "format": FORMAT,
        "fxenorm": __version__,
        "options": {field.name: _plain(getattr(options, field.name)) for field in dataclasses.fields(options)},
        "symmetry": _stored_symmetry(symmetry, arrays),
        "groups": stored_groups,
        "pairs": [[pair.producer, pair.consumer, pair.group, pair.channels, list(pair.operators)] for pair in pairs],
        "arrays": arrays.packed(),
    }


def _stored_symmetry(symmetry: Symmetry, arrays: _ArrayWriter) -> Json:
    """Returns a symmetry as plain data; its ids go to `arrays`."""
    stored: Json = {
        "num_scales": symmetry.num_scales,
        "exponents": {
            name: [[int(coefficient), arrays.add(ids)] for coefficient, ids in terms]
            for name, terms in symmetry.exponents.items()
        },
        "group_starts": arrays.add(symmetry.group_starts),
        "shapes": {name: list(shape) for name, shape in symmetry.shapes.items()},
        "buffers": sorted(symmetry.buffers),
        "aliases": dict(symmetry.aliases),
        "roles": dict(symmetry.roles),
        "flows": {mode: [_flow_row(node) for node in flow] for mode, flow in symmetry.flows.items()},
        "sites": [
            [
                *(site.module, site.direction, site.axis, arrays.add(site.variables), int(site.coefficient)),
                *(site.call, site.tensor, site.ndim, site.whole, *([site.part] if site.part else ())),
            ]
            for site in symmetry.sites
        ],
        "barriers": [dataclasses.asdict(barrier) for barrier in symmetry.barriers],
        "folds": [dataclasses.asdict(fold) for fold in symmetry.folds],
        "fixed_by_output": symmetry.fixed_by_output,
        "modes": list(symmetry.modes),
        "tracer": symmetry.tracer,
        "inexact_reasons": list(symmetry.inexact_reasons),
        "notes": list(symmetry.notes),
        "second_sizes": [[list(sizes) for sizes in axes] for axes in symmetry.second_sizes],
        "outputs": [[use.path, use.held, use.variables, use.reason] for use in symmetry.outputs],
        "channels": [[[int(coefficient), arrays.add(ids)] for coefficient, ids in terms] for terms in symmetry.channels],
    }
    if symmetry.account is not None:
        stored["account"] = account_to_dict(symmetry.account)
    if symmetry.offsets:
        stored["offsets"] = dict(symmetry.offsets)
    return stored


def from_dict(stored: Mapping[str, Any]) -> tuple[Symmetry, Options, tuple[Group, ...], tuple[Pair, ...]]:
    """Returns the data of a plan that `to_dict` stored.

    Args:
        stored: a dict that `to_dict` made, possibly after a trip through JSON.

    Returns:
        The symmetry, the options, the groups and the pairs.

    Raises:
        BindError: `stored` is not such a dict, is of another format, or is damaged.
    """
    if not isinstance(stored, Mapping) or "format" not in stored:
        raise BindError(f"not a stored plan: expected the dict that Plan.to_dict() returns, got {_shown(stored)}")
    if stored["format"] != FORMAT:
        raise BindError(
            f"the plan was stored in format {stored['format']!r} by fxenorm {stored.get('fxenorm', '?')}; this is fxenorm "
            f"{__version__}, which reads format {FORMAT}: run fxenorm.analyze again"
        )
    try:
        symmetry = _symmetry(stored["symmetry"], _array_reader(stored["arrays"]))
        options = Options(**{name: _restored(value) for name, value in stored["options"].items()})
        groups = _groups(stored["groups"], symmetry)
        pairs = tuple(
            Pair(producer, consumer, group, channels, tuple(operators))
            for producer, consumer, group, channels, operators in stored["pairs"]
        )
    except BindError:
        raise
    except (
        *(KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, MemoryError, RecursionError, zlib.error),
        FxenormError,
    ) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise BindError(f"the stored plan is damaged ({detail}): run fxenorm.analyze again") from error
    return symmetry, options, groups, pairs


class _ArrayWriter:
    """Collects id arrays into one block; an array that occurs again is stored once."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.int64]] = []
        self._offsets: dict[bytes, int] = {}
        self._length = 0

    def add(self, array: NDArray[np.int64]) -> list[Any]:
        """Adds an array to the block; returns [offset in the block, shape]."""
        flat = np.ascontiguousarray(array, dtype="<i8").reshape(-1)
        key = flat.tobytes()
        offset = self._offsets.setdefault(key, self._length)
        if offset == self._length:
            self._parts.append(flat)
            self._length += flat.size
        return [offset, list(np.shape(array))]

    def packed(self) -> Json:
        """Returns the block as text: differences of neighbours (ids mostly count upwards), compressed."""
        block = np.concatenate(self._parts) if self._parts else np.zeros(0, dtype="<i8")
        differences = np.diff(block, prepend=0).astype("<i8")
        return {"length": self._length, "deltas": base64.b64encode(zlib.compress(differences.tobytes(), 6)).decode("ascii")}


def _array_reader(packed: Mapping[str, Any]) -> Callable[[Sequence[Any]], NDArray[np.int64]]:
    """Returns a function from [offset, shape] to the array."""
    length = packed["length"]
    if type(length) is not int or not 0 <= length <= _MOST_IDS:
        raise ValueError(f"length {length!r}: expected an integer from 0 to {_MOST_IDS}")
    try:
        # No more than the stated length is unpacked: a few damaged bytes could stand for any number of zeros.
        unpacked = zlib.decompressobj().decompress(base64.b64decode(packed["deltas"], validate=True), 8 * length + 8)
        differences = np.frombuffer(unpacked, dtype="<i8")
    except binascii.Error as error:
        raise BindError(f"the stored plan is damaged (the block of variable ids: {error}): run fxenorm.analyze again") from error
    block = np.cumsum(differences, dtype=np.int64)
    if block.size != length:
        raise BindError(f"the stored plan is damaged ({length} ids expected, {block.size} found): run fxenorm.analyze again")

    def read(entry: Sequence[Any]) -> NDArray[np.int64]:
        offset, shape = entry
        size = math.prod(shape)
        if not 0 <= offset <= block.size - size:
            raise ValueError(f"ids {offset} to {offset + size} lie outside the block of {block.size}")
        array: NDArray[np.int64] = block[offset : offset + size].reshape(shape).copy()
        return array

    return read


def _symmetry(stored: Mapping[str, Any], read: Callable[[Sequence[Any]], NDArray[np.int64]]) -> Symmetry:
    """Returns the stored symmetry, checked for ids and sizes that would index out of bounds later."""
    num_scales = int(stored["num_scales"])
    shapes = {name: tuple(shape) for name, shape in stored["shapes"].items()}
    exponents = _exponents(stored["exponents"], read, num_scales, shapes)
    starts = read(stored["group_starts"])
    if starts.ndim != 1 or not starts.size or starts[0] != 0 or starts[-1] != num_scales or np.any(np.diff(starts) < 0):
        raise ValueError(f"the groups do not cover the {num_scales} variables")
    strange = set(stored["roles"].values()) - set(get_args(Role))
    if strange:
        raise ValueError(f"unknown roles {sorted(map(str, strange))}")
    return Symmetry(
        num_scales=num_scales,
        exponents=exponents,
        group_starts=starts,
        shapes=shapes,
        buffers=frozenset(stored["buffers"]),
        aliases=dict(stored["aliases"]),
        roles=dict(stored["roles"]),
        flows={mode: tuple(_flow_node(row) for row in rows) for mode, rows in stored["flows"].items()},
        sites=tuple(
            Site(module, direction, axis, known_ids(read(entry), num_scales, module), _coefficient(coefficient), *_place(place))
            for module, direction, axis, entry, coefficient, *place in stored["sites"]
        ),
        barriers=tuple(Barrier(**values) for values in stored["barriers"]),
        folds=tuple(NormFold(**values) for values in stored["folds"]),
        fixed_by_output=int(stored["fixed_by_output"]),
        modes=tuple(stored["modes"]),
        tracer=stored["tracer"],
        inexact_reasons=tuple(stored["inexact_reasons"]),
        notes=tuple(stored["notes"]),
        # Plans that were stored before a second size was looked at have none.
        second_sizes=tuple(tuple((int(first), int(second)) for first, second in axes) for axes in stored.get("second_sizes", ())),
        offsets=_offsets(stored.get("offsets", {}), exponents),
        outputs=tuple(OutputUse(*row) for row in stored.get("outputs", ())),
        account=account_from_dict(stored["account"]) if "account" in stored else None,
        # Plans that were stored by earlier versions have none.
        channels=tuple(
            tuple((_coefficient(coefficient), known_ids(read(entry), num_scales, "channels")) for coefficient, entry in terms)
            for terms in stored.get("channels", ())
        ),
    )


def _exponents(
    stored: Mapping[str, Any],
    read: Callable[[Sequence[Any]], NDArray[np.int64]],
    num_scales: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[tuple[int, NDArray[np.int64]], ...]]:
    """Returns the stored exponents, whose ids must be variables and broadcast to their tensors."""
    exponents = {
        name: tuple((_coefficient(coefficient), known_ids(read(entry), num_scales, name)) for coefficient, entry in terms)
        for name, terms in stored.items()
    }
    for name, terms in exponents.items():
        for _, ids in terms:
            if np.broadcast_shapes(ids.shape, shapes[name]) != shapes[name]:
                raise ValueError(f"ids of shape {ids.shape} do not broadcast to {name!r} of shape {shapes[name]}")
    return exponents


def _offsets(stored: Mapping[str, Any], exponents: Mapping[str, Any]) -> dict[str, float]:
    """Returns the stored offsets: finite numbers other than 0, of tensors that move."""
    found = {name: float(value) for name, value in stored.items()}
    strange = [name for name, value in found.items() if name not in exponents or value == 0 or not math.isfinite(value)]
    if strange:
        raise ValueError(f"offsets that cannot be: {', '.join(map(repr, strange))}")
    return found


def _coefficient(value: Any) -> int:
    """Returns a stored coefficient, which must be an integer other than 0 of a size that models have."""
    if type(value) is not int or not 0 < abs(value) <= _LARGEST_COEFFICIENT:
        raise ValueError(f"coefficient {value!r}: expected an integer from 1 to {_LARGEST_COEFFICIENT}, or its negative")
    return value


def known_ids(ids: NDArray[np.int64], num_scales: int, name: str) -> NDArray[np.int64]:
    """Returns `ids`, each of which must be -1 or a variable; raises a ValueError that names the tensor where one is not."""
    if ids.size and (ids.min() < -1 or ids.max() >= num_scales):
        raise ValueError(f"ids of {name!r} reach from {ids.min()} to {ids.max()}, with {num_scales} variables")
    return ids


def _place(stored: Sequence[Any]) -> tuple[int, int, int, bool, int]:
    """Returns a site's call, tensor, axes, whether it is whole, and part; older plans have none of these, or all but the last."""
    call, tensor, ndim, whole, part = ((*stored, 0) if len(stored) == 4 else stored) or (0, 0, 0, True, 0)
    if any(type(number) is not int or number < 0 for number in (call, tensor, ndim, part)) or type(whole) is not bool:
        raise ValueError(f"the place {list(stored)!r} of a site: expected integers >= 0, and true or false")
    return call, tensor, ndim, whole, part


def _flow_row(node: FlowNode) -> list[Any]:
    """Returns a flow node as a list, fields in their order."""
    uses = [[use.name, use.role] for use in node.parameters]
    return [node.name, node.operator, node.module, node.source, list(node.inputs), sorted(node.carried), uses]


def _flow_node(row: Sequence[Any]) -> FlowNode:
    """Returns the flow node of a list that `_flow_row` made."""
    name, operator, module, source, inputs, carried, uses = row
    return FlowNode(name, operator, module, source, tuple(inputs), frozenset(carried), tuple(ParameterUse(*use) for use in uses))


def _ports(ports: Iterable[Port]) -> list[list[Any]]:
    """Returns ports as lists, fields in their order."""
    return [[port.parameter, port.axis, port.coefficient] for port in ports]


def _groups(stored: Sequence[Any], symmetry: Symmetry) -> tuple[Group, ...]:
    """Returns the stored groups; their sites are looked up again, which is as fast as reading them."""
    groups = []
    for row, sites in zip(stored, sites_of_groups(symmetry), strict=True):
        name, kind, start, stop, producers, consumers, depth = row
        ports = (tuple(Port(*port) for port in producers), tuple(Port(*port) for port in consumers))
        groups.append(Group(name, kind, range(start, stop), *ports, sites, depth))
    return tuple(groups)


def _plain(value: Any) -> Any:
    """Returns an option's value in JSON: infinities, which JSON lacks, are spelt out."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _restored(value: Any) -> Any:
    """Returns the value that `_plain` stored; sequences come back as tuples."""
    if isinstance(value, list):
        return tuple(_restored(item) for item in value)
    if isinstance(value, Mapping):
        if set(value) == {"$float"}:
            return float(value["$float"])
        return {key: _restored(item) for key, item in value.items()}
    return value


def _shown(value: object) -> str:
    """Returns a short description of something that is no stored plan."""
    if isinstance(value, Mapping):
        return f"a dict with keys {sorted(map(str, value))[:8]}"
    return f"{type(value).__name__}"
