"""Other paths of a forward pass that Python's or numpy's random numbers choose: no trace sees how they are chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .traced_model import TracedModel

__all__ = ["signature", "with_paths"]

SEEDS = range(8)
"""Seeds under which a model that draws random numbers is traced again. Of two paths of equal chance, 8 seeds miss one in 1 of 128
analyses; each costs a trace, and the plan says that it holds for the paths that were seen alone."""


SOME_PATHS = (
    "some paths only: forward draws random numbers from Python or numpy in {mode} mode, and {count} seeds gave {kinds}; "
    "what other numbers lead to is not covered"
)
ONE_PATH = (
    "forward draws random numbers from Python or numpy in {mode} mode, of which the graph shows nothing: {count} seeds gave one"
)


def with_paths(traced: TracedModel, trace: Callable[[int], TracedModel]) -> TracedModel:
    """`traced` with the other graphs that random numbers of Python or numpy lead to; as it is where forward draws none.

    Args:
        traced: the graph of a model.
        trace: traces the model again with a seed.
    """
    if not traced.drew:
        return traced
    found: dict[Any, TracedModel] = {}
    failed = 0
    for seed in SEEDS:
        try:
            other = trace(seed)
        except Exception:  # a path that cannot be followed is one that is not covered
            failed += 1
        else:
            found.setdefault(signature(other), other)
    # Made by another tracer, the first graph may differ in how arguments are written.
    alike = len(found) == 1 and all(_operators(other) == _operators(traced) for other in found.values())
    if alike and not failed:
        note = ONE_PATH.format(mode=traced.mode, count=len(SEEDS))
        return dataclasses.replace(traced, notes=(*traced.notes, note))
    kinds = f"{len(found)} different graphs" + (f", and {failed} could not be followed" if failed else "")
    reason = SOME_PATHS.format(mode=traced.mode, count=len(SEEDS), kinds=kinds)
    return dataclasses.replace(traced, paths=tuple(found.values()), inexact=(*traced.inexact, reason))


def _operators(traced: TracedModel) -> list[str]:
    """Returns the names of the operators that the graph calls, in order."""
    return [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]


def signature(traced: TracedModel) -> Any:
    """Returns a key that is equal for two graphs of one model and one tracer that are the same: calls, arguments, constants."""
    numbers = {node: position for position, node in enumerate(traced.graph.nodes)}

    def written(value: Any) -> str:
        return str(fx.node.map_aggregate(value, lambda part: f"%{numbers[part]}" if isinstance(part, fx.Node) else repr(part)))

    rows = []
    for node in traced.graph.nodes:
        known = traced.placeholders.get(node.name)
        if node.op in ("placeholder", "get_attr"):
            kind, name = (known.kind, known.name) if known is not None else ("", node.name)
            rows.append((kind, _values(known.value) if known is not None and kind == "constant" else name, ""))
        else:
            rows.append((str(node.target), written(node.args), written(node.kwargs)))
    return tuple(rows)


def _values(value: torch.Tensor | None) -> Any:
    """Returns the content of a constant in a form that can be compared: shape, dtype, bytes."""
    if value is None or value.is_meta or value.layout is not torch.strided:
        return "unknown"
    plain = value.detach().cpu().contiguous()
    return (
        tuple(plain.shape),
        str(plain.dtype),
        plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.dim() else repr(plain.item()),
    )
