"""The ends of a graph: which outputs are held, and which nodes lead there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from ...rules import find_rule
from ...trace.hold import HOLD
from ...trace.outputs import Output, chosen
from ...trace.traced_model import TracedModel
from .arguments import flat
from .storage import Storage, written_arguments

__all__ = ["OutputEnds"]

CACHE = "a cache that is fed back"
NOT_NAMED = "not named in outputs="
CONSTANT = "it depends on no input"

_READS = frozenset({"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal"})


class OutputEnds:
    """The ends of one graph.

    Args:
        traced: the graph.
        storage: its shared memory.
        patterns: which outputs are held; None: all but caches.

    Attributes:
        held: every held output that has a node, with the node.
        left_out: by path, why an output is not held.
        unsearched: sentences about objects that were returned and may hold more than was found.
        live: the nodes that lead to held outputs or do more than compute; the others impose nothing.
    """

    def __init__(self, traced: TracedModel, storage: Storage, patterns: Sequence[str] | None) -> None:
        end = traced.graph.output_node()
        values = list(end.args[0]) if isinstance(end.args[0], (tuple, list)) else [end.args[0]]
        outputs = traced.outputs or tuple(Output(str(position), "tensor", position) for position in range(len(values)))
        if sum(output.position is not None for output in outputs) != len(values):
            raise RuntimeError(f"{len(values)} outputs in the graph, {len(outputs)} found behind forward")
        self.held: list[tuple[Output, fx.Node]] = []
        self.left_out: dict[str, str] = {}
        self.unsearched: list[str] = []
        active = _active(traced)
        for output, hold in zip(outputs, chosen(outputs, patterns), strict=True):
            nodes = [] if output.position is None else [n for n in flat(values[output.position]) if isinstance(n, fx.Node)]
            if not hold:
                self.left_out[output.path] = CACHE if patterns is None else NOT_NAMED
            elif patterns is None and not output.returned and output.kind == "tensor" and active.isdisjoint(nodes):
                self.left_out[output.path] = CONSTANT  # as weight_norm leaves the weight that it made
            elif output.kind == "unsearched":
                self.unsearched.append(f"{output.path!r} of what forward returns cannot be searched for tensors: {output.reason}")
            else:
                self.held += [(output, node) for node in nodes]
        self.live = _live(traced, storage, {node for _, node in self.held})


def _active(traced: TracedModel) -> set[fx.Node]:
    """Returns the nodes that depend on a model input."""
    active: set[fx.Node] = set()
    for node in traced.graph.nodes:
        starts = node.op == "placeholder" and traced.placeholders[node.name].kind == "input"
        if starts or not active.isdisjoint(node.all_input_nodes):
            active.add(node)
    return active


def _live(traced: TracedModel, storage: Storage, held: set[fx.Node]) -> set[fx.Node]:
    """Returns the nodes that lead to held outputs or do more than compute; goes backwards, as a write knows its later readers."""
    live: set[fx.Node] = set()
    for node in reversed(traced.graph.nodes):
        if node.op != "output" and (node in live or node in held or _does_more(node, traced.tracer, storage, live | held)):
            live.add(node)
            live.update(node.all_input_nodes)
    return live


def _does_more(node: fx.Node, tracer: str, storage: Storage, read: set[fx.Node]) -> bool:
    """Whether a node matters though no output needs it.

    It checks or keeps a value, writes memory that is read behind it or outlives the call, has effects that are not known, or
    Python read its value and may have taken a branch by it.
    """
    if node.op != "call_function":
        return node.op != "output"
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", "") != "getitem"
    name = node.target._schema.name
    if name == HOLD or name.startswith("aten::_assert"):
        return True
    if find_rule(name, node.target._overloadname or "default") is None and not _only_computes(node.target):
        return True
    written = [member for target, _ in written_arguments(node) for member in storage.members(target)]
    if written:
        return any(member in read or member.op != "call_function" for member in written)
    return tracer == "make_fx" and name in _READS


def _only_computes(operator: torch._ops.OpOverload) -> bool:
    """Whether an operator, though no rule knows it, is one of torch's own that returns tensors and writes nothing."""
    schema = operator._schema
    returns_tensors = bool(schema.returns) and all(isinstance(item.type, torch.TensorType) for item in schema.returns)
    return operator.namespace in ("aten", "prims") and returns_tensors and not schema.is_mutable
