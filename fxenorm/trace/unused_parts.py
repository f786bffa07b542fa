"""The parts of a model that a trace did not meet: inputs that were made up may leave a tower or a head out."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .traced_model import TracedModel

__all__ = ["unused_note", "unused_parts"]

_SHOWN = 10
"""Names in a note: enough to recognise the part of the model, few enough to read."""


def unused_parts(model: nn.Module, traced: Iterable[TracedModel]) -> dict[str, int]:
    """Returns, by path, the largest parts of a model of whose parameters no graph uses any, with the number of these."""
    used = set()
    for graph in traced:
        for path in (graph, *graph.paths):
            for node in path.graph.nodes:
                known = path.placeholders.get(node.name)
                if known is not None and known.kind == "parameter" and node.users:
                    used.add(known.name)
    found: dict[str, int] = {}
    _search(model, "", {id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False) if name in used}, found)
    return found


def _search(module: nn.Module, path: str, used: set[int], found: dict[str, int]) -> None:
    """Notes a module without used parameters, or looks into it."""
    parameters = list(module.parameters())
    if not parameters:
        return
    if path and not any(id(tensor) in used for tensor in parameters):
        found[path] = len(parameters)
        return
    own = [name for name, tensor in module.named_parameters(recurse=False) if id(tensor) not in used]
    found.update({f"{path}.{name}" if path else name: 1 for name in own})
    for name, child in module.named_children():
        _search(child, f"{path}.{name}" if path else name, used, found)


def unused_note(parts: dict[str, int]) -> str:
    """Returns a sentence that names the parts which the guessed inputs do not reach."""
    names = list(parts)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    count = sum(parts.values())
    return (
        f"the guessed inputs do not reach {', '.join(names[:_SHOWN])}{more}, with {count} of the parameters, so nothing there is "
        "scaled: pass example_inputs that reach them"
    )
