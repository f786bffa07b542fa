"""BatchNorms that could be folded into the layer in front of them: `batchnorm="folded"` counts these folds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from ..trace.traced_model import TracedModel
from .graph.arguments import bound_arguments
from .symmetry import NormFold

__all__ = ["find_folds"]

_LAYERS = {"linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution"}


def find_folds(traced: Sequence[TracedModel]) -> tuple[NormFold, ...]:
    """Finds the BatchNorms with running statistics that read the output of one linear or convolution layer, and nothing else.

    A layer or norm that is used twice is left out: it could not be folded.
    """

    graph = next((t for t in traced if t.mode == "eval"), traced[0])
    found: list[NormFold] = []
    uses: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        for source in node.all_input_nodes:
            known = graph.placeholders.get(source.name)
            if known is not None and known.kind == "parameter":
                uses[known.name] = uses.get(known.name, 0) + 1
        if node.target._schema.name == "aten::batch_norm":
            fold = _fold(graph, node)
            if fold is not None:
                found.append(fold)
    return tuple(f for f in found if all(uses[name] == 1 for name in (f.weight, f.bias, f.gamma, f.beta) if name))


def _fold(graph: TracedModel, norm: fx.Node) -> NormFold | None:
    """Returns the fold of one BatchNorm call, None where its input is not a layer's output alone."""
    values = bound_arguments(norm)
    layer = values["input"]
    if layer.op != "call_function" or not isinstance(layer.target, torch._ops.OpOverload) or len(layer.users) != 1:
        return None
    operator = layer.target._schema.name.split("::")[-1]
    mean, variance = (_name(graph, values[key], "buffer") for key in ("running_mean", "running_var"))
    if operator not in _LAYERS or mean is None or variance is None:
        return None
    arguments = bound_arguments(layer)
    weight = _name(graph, arguments["weight"], "parameter")
    if weight is None or (operator == "linear" and len(norm.meta["val"].shape) != 2):
        return None
    transposed = "conv_transpose" in operator or bool(arguments.get("transposed"))
    bias, gamma, beta = (_name(graph, value, "parameter") for value in (arguments["bias"], values["weight"], values["bias"]))
    if (bias is None) != (arguments["bias"] is None) or (gamma is None) != (values["weight"] is None):
        return None
    return NormFold(
        weight=weight,
        bias=bias,
        output_axis=1 if transposed else 0,
        gamma=gamma,
        beta=beta,
        mean=mean,
        variance=variance,
        eps=float(values["eps"]),
        transposed=transposed,
        groups=int(arguments.get("groups") or 1),
    )


def _name(graph: TracedModel, node: object, kind: str) -> str | None:
    """Returns the name of the parameter or buffer that `node` stands for."""
    known = graph.placeholders.get(getattr(node, "name", ""))
    return known.name if known is not None and known.kind == kind else None
