"""Brings a traced graph into the flat form: nested regions inlined, idle nodes dropped."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

from torch import fx

__all__ = ["copy_body", "drop_idle", "inline_regions", "replace_results"]

# Position of the body among the operands; in front of it stand switches that do not change the mathematics.
_BODY_POSITION = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4, "tag_activation_checkpoint": 0, "wrap": 0}

_IDLE = frozenset(
    {"_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_assert_tensor_metadata.default", "_assert_scalar.default"}
    | {"lazy_load_decompositions"}
)


def inline_regions(module: fx.GraphModule) -> None:
    """Replaces every region under ``no_grad``, autocast or checkpointing by its body, in place, nested ones included."""
    graph = module.graph
    for node in list(graph.nodes):
        name = getattr(node.target, "_name", "") if node.op == "call_function" else ""
        position = _BODY_POSITION.get(name)
        if position is None or len(node.args) <= position:
            continue
        holder = node.args[position]
        body = getattr(module, str(holder.target), None) if isinstance(holder, fx.Node) and holder.op == "get_attr" else None
        if not isinstance(body, fx.GraphModule):
            continue
        inline_regions(body)
        _inline(graph, node, body, list(node.args[position + 1 :]))
        if not holder.users:
            graph.erase_node(holder)


def copy_body(graph: fx.Graph, body: fx.GraphModule, operands: Sequence[Any], like: fx.Node | None = None) -> Any:
    """Copies a body, called with `operands`, to where `graph` inserts; returns its results.

    Args:
        like: the node whose source line and module the copies take, where they have none of their own.
    """
    values: dict[fx.Node, Any] = {}
    inputs = iter(operands)
    for inner in body.graph.nodes:
        if inner.op == "placeholder":
            values[inner] = next(inputs)
        elif inner.op == "output":
            return fx.map_arg(inner.args[0], values.__getitem__)
        else:
            values[inner] = copy = graph.node_copy(inner, values.__getitem__)
            if inner.op == "get_attr":
                _bring(graph.owning_module, copy, functools.reduce(getattr, str(inner.target).split("."), body))
            if like is not None:
                copy.meta = {**like.meta, "val": inner.meta.get("val")}
    return ()


def _bring(owner: fx.GraphModule | None, node: fx.Node, value: Any) -> None:
    """Copies to `owner` a tensor, or the body of a further call, that a body holds itself."""
    if owner is not None and getattr(owner, str(node.target), None) is not value:
        name = f"_of_body_{len(vars(owner)) + len(owner._modules)}_{str(node.target).replace('.', '_')}"
        if isinstance(value, fx.GraphModule):
            owner.add_module(name, value)
        else:
            owner.__dict__[name] = value
        node.target = name


def _inline(graph: fx.Graph, node: fx.Node, body: fx.GraphModule, operands: list[Any]) -> None:
    """Copies `body` in front of `node`, which calls it with `operands`, and removes `node`."""
    with graph.inserting_before(node):
        results = copy_body(graph, body, operands)
    replace_results(graph, node, results)


def replace_results(graph: fx.Graph, node: fx.Node, results: Any) -> None:
    """Gives the users of `node` its `results` and removes it."""
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
    if not node.users:
        graph.erase_node(node)
    elif isinstance(results, fx.Node):
        node.replace_all_uses_with(results)
        graph.erase_node(node)


def drop_idle(graph: fx.Graph) -> None:
    """Removes the nodes that compute nothing: switches of gradients and autocast, and checks of shapes and dtypes."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and getattr(node.target, "__name__", "") in _IDLE:
            graph.erase_node(node)
