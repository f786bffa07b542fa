"""Other paths of a forward pass that random numbers choose, of Python, numpy or torch: no trace sees how they are chosen."""

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
    "some paths only: forward draws random numbers from {source} in {mode} mode, and {count} seeds gave {kinds}; "
    "what other numbers lead to is not covered"
)
_READS = frozenset({"item", "_local_scalar_dense", "is_nonzero", "equal"})
"""Operators that hand a value to Python."""

ONE_PATH = (
    "forward draws random numbers from Python or numpy in {mode} mode, of which the graph shows nothing: {count} seeds gave one"
)


def with_paths(traced: TracedModel, trace: Callable[[int], TracedModel]) -> TracedModel:
    """`traced` with the other graphs that random numbers lead to; as it is where forward draws none that Python sees.

    Args:
        traced: the graph of a model.
        trace: traces the model again with a seed.
    """
    if not traced.drew and not _reads_random_numbers(traced):
        return traced
    # Numbers of torch that Python reads and hands back differ under each seed, though the path is the same.
    key = signature if traced.drew else _calls
    found: dict[Any, TracedModel] = {}
    failed = 0
    for seed in SEEDS:
        try:
            other = trace(seed)
        except Exception:  # a path that cannot be followed is one that is not covered
            failed += 1
        else:
            found.setdefault(key(other), other)
    # Made by another tracer, the first graph may differ in how arguments are written.
    same = _operators if traced.drew else _calls
    alike = len(found) == 1 and all(same(other) == same(traced) for other in found.values())
    if alike and not failed and not traced.drew:
        return traced
    if alike and not failed:
        note = ONE_PATH.format(mode=traced.mode, count=len(SEEDS))
        return dataclasses.replace(traced, notes=(*traced.notes, note))
    kinds = f"{len(found)} different graphs" + (f", and {failed} could not be followed" if failed else "")
    source = "Python or numpy" if traced.drew else "torch and reads them"
    reason = SOME_PATHS.format(source=source, mode=traced.mode, count=len(SEEDS), kinds=kinds)
    return dataclasses.replace(traced, paths=tuple(found.values()), inexact=(*traced.inexact, reason))


def _operators(traced: TracedModel) -> tuple[str, ...]:
    """Returns the names of the operators that the graph calls, in order."""
    return tuple(str(node.target) for node in traced.graph.nodes if node.op == "call_function")


def _calls(traced: TracedModel) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Returns the operators that the graph calls, in order, and which nodes each reads; numbers and constants are left out."""
    numbers = {node: position for position, node in enumerate(traced.graph.nodes)}
    return tuple(
        (str(node.target), tuple(numbers[source] for source in node.all_input_nodes))
        for node in numbers
        if node.op not in ("placeholder", "get_attr")
    )


def _reads_random_numbers(traced: TracedModel) -> bool:
    """Whether Python read a value that was computed from torch's random numbers alone, as to leave a layer out by chance.

    A value that depends on the inputs too chooses a path of these inputs, of which the plan says that it is one.
    """
    random: set[fx.Node] = set()
    given: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if node.op == "placeholder" and traced.placeholders[node.name].kind == "input":
            given.add(node)
        if node.op != "call_function":
            continue
        operator = node.target if isinstance(node.target, torch._ops.OpOverload) else None
        name = "" if operator is None else operator._opname
        if not (name.endswith("_like") or name.startswith("new_") or given.isdisjoint(node.all_input_nodes)):
            given.add(node)
        drawn = operator is not None and torch.Tag.nondeterministic_seeded in operator.tags
        if drawn or not random.isdisjoint(node.all_input_nodes):
            random.add(node)
        if name in _READS and node in random and node not in given:
            return True
    return False


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
