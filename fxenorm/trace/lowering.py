"""Parts of a graph whose operators act below the usual ones (vmap's hidden axes, flex_attention), as plain operators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from .flatten import copy_body
from .releases import functorch_levels

__all__ = ["lower_attention", "lower_regions"]

_OPENS = ("_vmap_increment_nesting", "_grad_increment_nesting", "_jvp_increment_nesting", "_enter_dual_level")
_CLOSES = ("_vmap_decrement_nesting", "_grad_decrement_nesting", "_jvp_decrement_nesting", "_exit_dual_level")


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
    """Replaces each part of a graph that runs under vmap or on dual numbers by the plain operators that it stands for."""
    graph = module.graph
    region: list[fx.Node] = []
    depth = 0
    unpacked = [node for node in graph.nodes if _named(node, "_unpack_dual")]
    # The two numbers of the last one are read right behind it.
    last_of_duals = max([*unpacked[-1:], *unpacked[-1].users]) if unpacked else None
    duals = False
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if not depth and last_of_duals is not None and _named(node, "_make_dual"):
            duals = True
        depth += name in _OPENS
        if (depth or duals) and region and node.op == "get_attr":
            region[0].prepend(node)  # a constant is an operand like others
        elif depth or duals:
            region.append(node)
        depth -= name in _CLOSES
        duals = duals and node is not last_of_duals
        if region and not depth and not duals:
            _lower(graph, region)
            module.meta["taken_apart"] = True
            region = []


def _named(node: fx.Node, name: str) -> bool:
    """Whether a node calls the operator of torch of this name."""
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and node.target._opname == name


def _lower(graph: fx.Graph, region: Sequence[fx.Node]) -> None:
    """Replaces one part of the graph, from its first call to its last one, by plain operators."""
    inside = set(region)
    operands = list(dict.fromkeys(source for node in region for source in node.all_input_nodes if source not in inside))
    results = [node for node in region if any(user not in inside for user in node.users)]
    # A run with fake values does not record that forward enters the level at which its dual numbers live.
    level = torch.autograd.forward_ad.dual_level if _named(region[0], "_make_dual") else contextlib.nullcontext

    def run(*values: Any) -> Any:
        known = dict(zip(operands, values, strict=True))
        with level():
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
