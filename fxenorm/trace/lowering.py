"""Parts of a graph whose operators act below the usual ones (vmap's hidden axes, flex_attention), as plain operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from .flatten import copy_body
from .releases import functorch_levels

__all__ = ["lower_attention", "lower_regions"]

_OPENS = ("_vmap_increment_nesting", "_grad_increment_nesting", "_jvp_increment_nesting")
_CLOSES = ("_vmap_decrement_nesting", "_grad_decrement_nesting", "_jvp_decrement_nesting")


def recorded(function: Callable[..., Any], values: Sequence[Any]) -> fx.GraphModule:
    """Returns the plain operators that a call of `function` on fake values runs, below vmap and autograd."""
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = next(value.fake_mode for value in values if isinstance(value, torch._subclasses.FakeTensor))
    with mode, torch.no_grad(), functorch_levels():
        return make_fx(function, pre_dispatch=False, _allow_non_fake_inputs=True)(*values)


def lower_attention(module: fx.GraphModule, node: fx.Node) -> list[Any]:
    """Writes a call of flex_attention as its products and its softmax, in front of `node`; returns the results."""
    from torch._higher_order_ops.flex_attention import math_attention

    operands = [item for item in node.all_input_nodes if item.op != "get_attr" or item.meta.get("val") is not None]

    def run(*values: Any) -> Any:
        known = dict(zip(operands, values, strict=True))

        def of(item: fx.Node) -> Any:
            return known[item] if item in known else getattr(module, str(item.target))

        args: Any = fx.map_arg(node.args, of)
        return tuple(math_attention(*args[:7], *(tuple(extra) for extra in args[7:9])))

    body = recorded(run, [item.meta["val"] for item in operands])
    results = copy_body(module.graph, body, operands, like=node)
    return list(results)


def lower_regions(module: fx.GraphModule) -> None:
    """Replaces each part of a graph that runs under vmap by the plain operators on whole tensors that it stands for."""
    graph = module.graph
    region: list[fx.Node] = []
    depth = 0
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        depth += name in _OPENS
        if depth and node.op == "get_attr":
            region[0].prepend(node)  # a constant is an operand like others
        elif depth:
            region.append(node)
        depth -= name in _CLOSES
        if region and not depth:
            _lower(graph, region)
            module.meta["taken_apart"] = True
            region = []


def _lower(graph: fx.Graph, region: Sequence[fx.Node]) -> None:
    """Replaces one part of the graph, from the opening call to the closing one, by plain operators."""
    inside = set(region)
    operands = list(dict.fromkeys(source for node in region for source in node.all_input_nodes if source not in inside))
    results = [node for node in region if any(user not in inside for user in node.users)]

    def run(*values: Any) -> Any:
        known = dict(zip(operands, values, strict=True))
        for node in region:
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return tuple(known[node] for node in results)

    body = recorded(run, [_value(graph, item) for item in operands])
    with graph.inserting_before(region[0]):
        found = copy_body(graph, body, operands, like=region[-1])
    for node, new in zip(results, found, strict=True):
        node.replace_all_uses_with(new)
    for node in reversed(region):
        graph.erase_node(node)


def _value(graph: fx.Graph, node: fx.Node) -> Any:
    """Returns the fake value of a node, or the constant itself where it has none."""
    value = node.meta.get("val")
    return getattr(graph.owning_module, str(node.target), None) if value is None and node.op == "get_attr" else value
