"""The pair graph as text for Graphviz: a node for each layer, an arrow for each pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...plan.plan import Plan

__all__ = ["dot_text"]


def dot_text(plan: Plan, name: str) -> str:
    """Returns the pair graph in the language of Graphviz.

    Args:
        plan: its pairs become arrows, from the producer to the consumer, with group and channels beside them.
        name: of the graph.

    Example:
        >>> import fxenorm, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> print(dot_text(fxenorm.analyze(model), "small"))
        digraph "small" {
          node [shape=box];
          "0";
          "2";
          "0" -> "2" [label="g0 (8)"];
        }
    """
    graph = plan.to_networkx()
    lines = [f"digraph {_quoted(name)} {{", "  node [shape=box];"]
    lines += [f"  {_quoted(layer)};" for layer in graph.nodes]
    for producer, consumer, facts in graph.edges(data=True):
        label = _quoted(f"{facts['group']} ({facts['channels']})")
        lines.append(f"  {_quoted(producer)} -> {_quoted(consumer)} [label={label}];")
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    """Returns a text in quotation marks; Graphviz reads a backslash in front of a mark, and of letters, as a sign of its own."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
