"""Finds, in a traced graph, the calls that multiply an activation by a parameter whose layer is not called for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

from ...rules.weight_reads import COPIES, READERS, Operands, factors, operands_of
from ...trace.layers import LayerNames
from ...trace.names import storage_id
from ...trace.traced_model import Placeholder, module_path
from ..graph.arguments import is_item, operator_name, replaced
from ..graph.sizes import Sizes

__all__ = ["FoundRead", "WeightReads"]

_NEW = frozenset({"index", "index_select", "clone", "_to_copy"})
"""Those of the operators in `COPIES` that always make a new tensor."""

_CASTS = frozenset({"to", "type_as"})


@dataclass(frozen=True)
class FoundRead:
    """One read of a weight: the parameter, which read of it, and where the activation stands; see `WeightRead`.

    Attributes:
        part: where in the parameter the part begins that is read; None where that depends on the data.
    """

    parameter: str
    call: int
    part: int | None
    activation: fx.Node
    axis: int
    shape: tuple[int, ...]


class WeightReads:
    """Follows parameters through views, selections and casts to the calls that read them as weights, and numbers these.

    Args:
        sizes: of the graph.
        placeholders: what its placeholders stand for.
        layers: which module is called for which weight; None: reads are not looked for.
    """

    def __init__(self, sizes: Sizes, placeholders: Mapping[str, Placeholder], layers: LayerNames | None) -> None:
        self._sizes, self._placeholders, self._layers = sizes, placeholders, layers
        # By node, the parameter of which it shows entries, as the placeholder of it.
        self._shown: dict[fx.Node, fx.Node] = {}
        self._calls: Counter[str] = Counter()

    def follow(self, node: fx.Node) -> None:
        """Notes the parameter that a node shows."""
        if node.op in ("placeholder", "get_attr"):
            known = self._placeholders.get(node.name)
            if known is not None and known.kind == "parameter":
                self._shown[node] = node
        elif node.args and isinstance(node.args[0], fx.Node) and node.args[0] in self._shown and _shows(node):
            self._shown[node] = self._shown[node.args[0]]

    def of(self, node: fx.Node) -> Iterator[FoundRead]:
        """Yields the read that a call is, if it is one."""
        name = _packet(node)
        if self._layers is None or name not in READERS:
            return
        nodes = factors(name, node.args)
        for operands in operands_of(name, replaced(node.args, self._sizes.of)):
            source, weight = nodes[operands.activation], nodes[operands.weight]
            if weight in self._shown and source not in self._shown:
                parameter = self._placeholders[self._shown[weight].name].name
                if not self._layers.calls(module_path(node), parameter):
                    yield self._numbered(parameter, source, weight, operands)
                return

    def _numbered(self, parameter: str, source: fx.Node, weight: fx.Node, operands: Operands) -> FoundRead:
        """Returns the next read of a parameter."""
        number = self._calls[parameter]
        self._calls[parameter] += 1
        shape = tuple(int(size) for size in self._sizes.of(source).shape)
        try:
            shown, before = self._without_values(weight)
            part = before + int(shown.storage_offset())
        except Exception:  # whatever a view needs that it has not without values, as a number from a tensor
            part = None
        return FoundRead(parameter, number, part, source, len(shape) + operands.axis, shape)

    def _without_values(self, node: fx.Node) -> tuple[torch.Tensor, int]:
        """Returns a tensor as a node shows a parameter, and where in the parameter the tensor's memory begins.

        Fake values need not tell where in its memory a tensor begins.
        """
        value = self._sizes.of(node)
        if node.op != "call_function":
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta"), 0
        source: Any = node.args[0]
        viewed = source.args[0] if is_item(node) else source
        before, start = self._without_values(viewed)
        if is_item(node):
            found = self._viewed(source, before)[node.args[1]]
        elif _packet(node) in _NEW:
            found = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        elif _packet(node) in _CASTS:
            found = before.to(value.dtype)
        else:
            found = self._viewed(node, before)
        same = storage_id(found) == storage_id(before)
        return found, start if same else start + int(before.storage_offset())

    def _viewed(self, node: fx.Node, before: torch.Tensor) -> Any:
        """Returns the result of a view of a tensor without values."""
        others = replaced(node.args[1:], self._sizes.of)
        return node.target(before, *others, **dict(node.kwargs))  # type: ignore[operator]


def _packet(node: fx.Node) -> str:
    """Returns the name of the operator that a node calls, as "linear"; "" where it is none of ATen's."""
    return operator_name(node).partition("::")[2]


def _shows(node: fx.Node) -> bool:
    """Whether a call shows entries of its first argument and nothing else."""
    if is_item(node):
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return _packet(node) in COPIES or _views_first(node.target)


@cache
def _views_first(operator: torch._ops.OpOverload) -> bool:
    """Whether the operator's result is a view of its first argument."""
    schema = operator._schema
    given = schema.arguments[0].alias_info
    return given is not None and not given.is_write and any(one.alias_info is not None for one in schema.returns)
