"""What the rules claim of an operator: its call as a graph, walked with free fields on its inputs and outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxenorm.field import FIXED, AnyField, Equations, ParameterFields, ParameterView, ScaleField, solve
from fxenorm.rules import find_rule
from fxenorm.symmetry.walk import Walk
from fxenorm.trace.inputs import Inputs
from fxenorm.trace.real_run import trace_by_real_run
from fxenorm.trace.traced_model import Placeholder, TracedModel

from .rule_cases.case import Case, Variant, flat, points

__all__ = ["Claims", "claims", "schemas", "traced_call"]


class _Call(nn.Module):
    """The row's call on parameters."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.call = case.call
        for position, x in enumerate(points(case, 0)):
            self.register_parameter(f"p{position}", nn.Parameter(x))

    def forward(self) -> Any:
        return self.call(*self._parameters.values())


@cache
def traced_call(case: Case) -> TracedModel:
    """The row as a graph, by the package's own tracer along a real run."""
    torch.default_generator.manual_seed(7)
    return trace_by_real_run(_Call(case), Inputs((), {}), "eval", "the operator harness")


def schemas(case: Case) -> set[str]:
    """Registry keys of the rules that the row's graph makes use of."""
    found = set()
    for node in traced_call(case).graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            rule = find_rule(node.target._schema.name, node.target._overloadname or "default")
            found |= {rule.operator} if rule else set()
    return found


def _graph_of(case: Case, variant: Variant) -> TracedModel | None:
    """The row's graph with its inputs replaced as the variant says; None where the operator has no such form."""
    traced = traced_call(case)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(traced.graph, copies)
    end = graph.output(output)
    end.meta["val"] = None
    placeholders = {copies[node].name: traced.placeholders[node.name] for node in copies if node.name in traced.placeholders}
    inputs = {item.name: node for node in graph.nodes if (item := placeholders.get(node.name)) and item.kind == "parameter"}
    for position, spread in enumerate(variant.spreads):
        if spread == "parameter" or f"p{position}" not in inputs:
            continue
        node = inputs[f"p{position}"]
        placeholders[node.name] = Placeholder("input", node.name)
        if spread == "zeros":
            _fill_with_zeros(graph, node)
        if isinstance(spread, tuple):
            _multiply(graph, node, spread, position, placeholders)
    if variant.form != "plain" and not _reform(graph, case, end, variant.form):
        return None
    return replace(traced, graph=graph, placeholders=placeholders)


def _fill_with_zeros(graph: fx.Graph, node: fx.Node) -> None:
    """Put zeros in the place of x."""
    users = list(node.users)
    last = max((n for n in graph.nodes if n.op == "placeholder"), key=list(graph.nodes).index)
    with graph.inserting_after(last):
        zeros = graph.call_function(torch.ops.aten.zeros_like.default, (node,))
    zeros.meta["val"] = node.meta["val"].new_empty(node.meta["val"].shape)
    for user in users:
        user.replace_input_with(node, zeros)


def _multiply(graph: fx.Graph, node: fx.Node, axes: tuple[int, ...], position: int, placeholders: dict[str, Placeholder]) -> None:
    """Put x * p in the place of x, where the parameter p has size 1 on all but the given axes."""
    value = node.meta["val"]
    with graph.inserting_after(node):
        factor = graph.placeholder(f"p{position}_factor")
    factor.meta["val"] = value.new_empty([size if axis in axes else 1 for axis, size in enumerate(value.shape)])
    placeholders[factor.name] = Placeholder("parameter", f"p{position}")
    users = list(node.users)
    last = max((n for n in graph.nodes if n.op == "placeholder"), key=list(graph.nodes).index)
    with graph.inserting_after(last):
        scaled = graph.call_function(torch.ops.aten.mul.Tensor, (node, factor))
    scaled.meta["val"] = value.new_empty(value.shape)
    for user in users:
        user.replace_input_with(node, scaled)


def _reform(graph: fx.Graph, case: Case, end: fx.Node, form: str) -> bool:
    """Turn the call of the row's operator into its in-place or out form, on a fresh tensor that is returned too."""
    node = end.args[0]
    node = node[0] if isinstance(node, (list, tuple)) and len(node) == 1 else node
    if not isinstance(node, fx.Node) or not isinstance(node.target, torch._ops.OpOverload):
        return False
    schema, value = node.target._schema, node.meta.get("val")
    rule = find_rule(schema.name, node.target._overloadname or "default")
    if rule is None or rule.operator != case.operator or not isinstance(value, torch.Tensor) or schema.is_mutable:
        return False
    packet = getattr(torch.ops.aten, schema.name.split("::")[1] + ("_" if form == "in-place" else ""), None)
    overloads = () if packet is None else packet.overloads()
    base = schema.overload_name
    with graph.inserting_before(node):
        if form == "in-place":
            first = node.args[0] if node.args else None
            if (base or "default") not in overloads or not isinstance(first, fx.Node):
                return False
            before = first.meta["val"]
            target = getattr(packet, base or "default")
            if before.shape != value.shape or before.dtype != value.dtype or not target._schema.arguments[0].alias_info:
                return False
            written = graph.call_function(torch.ops.aten.clone.default, (first,))
            node.args = (written, *node.args[1:])
        else:
            name = next((n for n in (f"{base}_out", "out") if n in overloads), None)
            target = getattr(packet, name) if name else None
            if (
                target is None
                or target._schema.arguments[-1].name != "out"
                or [a.name for a in target._schema.arguments[:-1]] != [a.name for a in schema.arguments]
            ):
                return False
            written = graph.call_function(torch.ops.aten.empty.memory_format, (list(value.shape),))
            node.kwargs = {**node.kwargs, "out": written}
    written.meta["val"] = value.new_empty(value.shape)
    node.target = target
    end.args = ([node, written],)
    return True


@dataclass(frozen=True)
class Claims:
    """The fields of one variant, over `free` free variables.

    Attributes:
        inputs, outputs: for every input and floating-point output the (entries, free) integer rows of its logarithmic
            factors; None for an input that carries nothing and for an output said to be all zero or infinite.
        free: number of free variables.
        offsets: for every input, what is added to it before it is multiplied, and taken away again.
    """

    inputs: tuple[np.ndarray | None, ...]
    outputs: tuple[np.ndarray | None, ...]
    free: int
    offsets: tuple[float, ...]


def claims(case: Case, variant: Variant) -> Claims | None:
    """What the rules say; None where the operator has no such form."""
    traced = _graph_of(case, variant)
    if traced is None:
        return None
    equations = Equations()
    shapes = {
        item.name: tuple(node.meta["val"].shape)
        for node in traced.graph.nodes
        if (item := traced.placeholders.get(node.name)) and item.kind == "parameter"
    }
    fields = ParameterFields(equations, shapes)
    walk = Walk(equations, fields, case.options, hold_outputs=False)
    walk.run(dataclasses.replace(traced, outputs=()))  # a form may have been given one more output
    outputs = [_settled(fields, value) for value in flat(walk.outputs) if value is not None]
    inputs = [
        None if spread in ("fixed", "zeros") or f"p{k}" not in shapes else _whole(fields, f"p{k}")
        for k, spread in enumerate(variant.spreads)
    ]
    solution = solve(equations)
    matrix = np.concatenate([solution.matrix.toarray(), np.zeros((1, solution.matrix.shape[1]), dtype=np.int64)])

    def rows(field: ScaleField | AnyField | None, shape: Sequence[int]) -> np.ndarray | None:
        if not isinstance(field, ScaleField):
            return None
        total = np.zeros((*shape, matrix.shape[1]), dtype=np.int64)
        for coefficient, ids in field.terms:
            assert FIXED == -1 and ids.ndim == len(shape), "ids must have one axis for each of the tensor's"
            total += coefficient * matrix[ids]
        return total.reshape(math.prod(shape), matrix.shape[1])

    return Claims(
        tuple(rows(field, case.shapes[k]) for k, field in enumerate(inputs)),
        tuple(rows(field, field.shape) for field in outputs),
        matrix.shape[1],
        tuple(0.0 if spread != "parameter" else fields.offsets.get(f"p{k}", 0.0) for k, spread in enumerate(variant.spreads)),
    )


def _settled(fields: ParameterFields, value: Any) -> Any:
    return fields.form(value, 0) if isinstance(value, ParameterView) else value


def _whole(fields: ParameterFields, name: str) -> ScaleField:
    """The field of a parameter, with its offset."""
    return fields.form(ParameterView(name, fields.shapes[name], offset=fields.offsets.get(name, 0.0)), 0)
