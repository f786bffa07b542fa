"""The tracer for regions and for sizes that depend on data: `torch.export`, non-strict, to the pre-dispatch ATen graph."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import torch
from torch import fx, nn

from ..collection import collection_paused
from ..errors import ExampleInputsError
from .eager_answers import eager_answers
from .escapes import ExportWatch
from .flatten import drop_idle
from .higher_order import flatten
from .inputs import Inputs
from .lowering import lower_regions
from .memory_of_calls import hold_what_is_kept, with_state
from .names import overlapping, tied_names
from .outputs import Output, OutputWatch, graph_values
from .preserve import prepared
from .reachable import Leaf
from .releases import refuse_computed_constants
from .source import SourceLines, annotate, note_lines
from .traced_model import Mode, Placeholder, TracedModel

__all__ = ["check_dtypes", "finish", "trace_by_export"]

_ONE_DTYPE = frozenset({"linear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "bmm", "addmm"})


def trace_by_export(model: nn.Module, inputs: Inputs, mode: Mode, seed: int | None = None, gradients: bool = True) -> TracedModel:
    """Traces `model` in `mode`; raises whatever `torch.export` or the model raises. The model is left as it was.

    Args:
        seed: of Python's, numpy's and torch's random numbers on the way; None: as they are.
        gradients: whether they are recorded on the way, as in training.
    """
    with collection_paused(), prepared(model, mode) as notes:
        notes.generators.begin(seed)
        # torch.export refuses outputs that are no known pytree (key-value caches). This hook runs after the user's own.
        watch, escaped = OutputWatch(model, raises=True), ExportWatch()
        left: list[tuple[Output, ...]] = []

        def flat_outputs(leaves: list[Leaf]) -> tuple[Any, ...]:
            values, outputs = graph_values(leaves, escaped.read)
            left[:] = [outputs]
            return values

        def begin() -> None:
            escaped.read.clear()
            note_lines(trace_by_export.__code__)

        watch.hook(flat_outputs, begin=begin)
        hold_what_is_kept(model, notes.state)
        with escaped, eager_answers(), contextlib.nullcontext() if gradients else torch.no_grad():
            program = torch.export.export(model, inputs.args, dict(inputs.kwargs), strict=False)

    graph = program.graph
    check_dtypes(graph, inputs)
    refuse_computed_constants(model, program)
    values: dict[str, Any] = {**program.constants, **dict(model.named_buffers(remove_duplicate=False))}
    aliases = tied_names(model)
    placeholders: dict[str, Placeholder] = {}
    kinds = {"PARAMETER": "parameter", "BUFFER": "buffer", "CONSTANT_TENSOR": "constant"}
    for spec, node in zip(program.graph_signature.input_specs, _placeholder_nodes(graph), strict=True):
        kind: Any = kinds.get(spec.kind.name, "input")
        target = str(spec.target) if kind != "input" else node.name
        name = aliases.get(target, target)
        value = values.get(name) if kind in ("buffer", "constant") else None
        placeholders[node.name] = Placeholder(kind, name, value)
    flatten(program.graph_module)
    lower_regions(program.graph_module)
    traced = finish(model, graph, mode, "export", placeholders, aliases, tuple(notes), left[0] if left else ())
    return with_state(dataclasses.replace(traced, drew=notes.drew), notes.state)


def check_dtypes(graph: fx.Graph, inputs: Inputs) -> None:
    """Raises if a layer multiplies tensors of different dtypes, which fake values let pass and real ones do not."""
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return
    for node in graph.nodes:
        if getattr(node.target, "_name", "") == "wrap_with_autocast":
            return
    for node in graph.nodes:
        if str(node.target).removeprefix("aten.").split(".")[0] not in _ONE_DTYPE:
            continue
        values = [source.meta.get("val") for source in node.all_input_nodes]
        dtypes = {value.dtype for value in values if isinstance(value, torch.Tensor)}
        if len(dtypes) > 1:
            found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise ExampleInputsError(
                f"The model does not run on inputs {inputs}: {node.target} would multiply tensors of different dtypes ({found}). "
                "Pass example_inputs of the model's dtype."
            )


def _name_constants(model: nn.Module, placeholders: dict[str, Placeholder]) -> None:
    """Calls a constant that is a tensor of the model, reached past its registration or never registered, by its name.

    The others get the names of `torch.export`, whichever tracer found them.
    """
    constants = {node: item for node, item in placeholders.items() if item.kind == "constant"}
    if not constants:
        return
    aliases = tied_names(model)
    parameters = {id(tensor): aliases.get(name, name) for name, tensor in model.named_parameters()}
    buffers = {id(tensor): aliases.get(name, name) for name, tensor in model.named_buffers()}
    plain = {
        id(value): f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    }
    lifted: dict[str, str] = {}
    for node, item in constants.items():
        if id(item.value) in parameters:
            placeholders[node] = Placeholder("parameter", parameters[id(item.value)])
        elif id(item.value) in buffers:
            placeholders[node] = Placeholder("buffer", buffers[id(item.value)], item.value)
        elif id(item.value) in plain:
            placeholders[node] = Placeholder("constant", plain[id(item.value)], item.value)
        elif item.name.startswith("_tensor_constant"):
            placeholders[node] = Placeholder("constant", lifted.setdefault(item.name, f"lifted_tensor_{len(lifted)}"), item.value)


def _placeholder_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Returns the placeholder nodes, in graph order."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def finish(
    model: nn.Module,
    graph: fx.Graph,
    mode: Mode,
    tracer: Any,
    placeholders: dict[str, Placeholder],
    aliases: dict[str, str],
    notes: tuple[str, ...] = (),
    outputs: tuple[Output, ...] = (),
) -> TracedModel:
    """Finishes the graph of either tracer: annotates the nodes, resolves get_attr nodes, looks for overlapping tensors."""
    drop_idle(graph)
    annotate(graph, SourceLines())
    for node in graph.nodes:
        if node.op == "get_attr" and node.name not in placeholders:
            value = functools.reduce(lambda owner, part: getattr(owner, part, None), node.target.split("."), graph.owning_module)
            tensor = value if isinstance(value, torch.Tensor) else None
            if node.meta["val"] is None:  # some releases leave constants without a fake value
                node.meta["val"] = tensor
            placeholders[node.name] = Placeholder("constant", node.target, tensor)
    _name_constants(model, placeholders)
    constants = {item.name: item.value for item in placeholders.values() if item.kind == "constant" and item.value is not None}
    own = [(name, tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name not in aliases]
    shared = overlapping([*own, *constants.items()])
    return TracedModel(graph, mode, tracer, placeholders, aliases, notes, shared, (mode,), outputs=outputs)
