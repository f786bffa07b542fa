"""The second tracer: `make_fx` along a run with real values, for models whose path depends on data."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from .escapes import RealRunWatch
from .exported import finish
from .inputs import Inputs
from .names import tied_names
from .outputs import Output, OutputWatch, graph_values
from .preserve import RunGuard, prepared
from .traced_model import Mode, Placeholder, TracedModel

__all__ = ["run_for_real", "trace_by_real_run"]

ONE_PATH = (
    "torch.export refused this model in {mode} mode, so it was traced along one run of the given inputs: "
    "the result holds for the path that these inputs took ({reason})."
)


@contextlib.contextmanager
def _ready(model: nn.Module, inputs: Inputs, mode: Mode) -> Iterator[tuple[Callable[..., Any], RunGuard, list[str]]]:
    """Yields a forward call in `mode` on tensors to be given, its guard, which undoes writes at exit, and notes."""
    guard = RunGuard([*model.parameters(), *inputs.tensors()])
    with prepared(model, mode) as notes, torch.no_grad():
        try:
            with guard:
                yield lambda tensors, args, kwargs: functional_call(model, tensors, args, kwargs), guard, notes
        finally:
            guard.restore()


def run_for_real(model: nn.Module, inputs: Inputs, mode: Mode) -> None:
    """Runs the model once, changes nothing, and raises what it raises."""
    with _ready(model, inputs, mode) as (forward, _, _):
        forward({name: buffer.clone() for name, buffer in model.named_buffers()}, inputs.args, dict(inputs.kwargs))


def trace_by_real_run(model: nn.Module, inputs: Inputs, mode: Mode, reason: str) -> TracedModel:
    """Traces `model` in `mode` along a real run; `reason` says why `torch.export` could not. The model is left as it was."""
    from torch.fx.experimental.proxy_tensor import make_fx

    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    copies = {name: buffer.clone() for name, buffer in buffers.items()}
    names = [*parameters, *copies]
    leaves = inputs.tensors()

    outputs: list[Output] = []

    with _ready(model, inputs, mode) as (forward, guard, drawn):
        watch = OutputWatch(model)
        if not isinstance(model, torch.jit.ScriptModule):
            watch.hook(lambda leaves: None)

        def run(tensors: list[torch.Tensor], arguments: list[torch.Tensor]) -> tuple[Any, ...]:
            remaining = iter(arguments)
            call = inputs.map(lambda _: next(remaining))
            _record_source_lines()
            watch.leaves = None
            with RealRunWatch():
                output = forward(dict(zip(names, tensors, strict=True)), call.args, dict(call.kwargs))
            if watch.leaves is None:  # a scripted module calls no hooks
                watch.after((), {}, output)
            values, outputs[:] = graph_values(watch.leaves or ())
            return values

        _record_module_paths(model)
        module = make_fx(run, pre_dispatch=True, _error_on_data_dependent_ops=False)(
            [*parameters.values(), *copies.values()], leaves
        )

    graph = module.graph
    _refuse_lost_values(graph, guard)
    outputs = [_unseen(output, graph, watch) for output in outputs]
    placeholders: dict[str, Placeholder] = {}
    aliases = tied_names(model)
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    for position, node in enumerate(nodes):
        if position < len(parameters):
            placeholders[node.name] = Placeholder("parameter", aliases.get(names[position], names[position]))
        elif position < len(names):
            name = aliases.get(names[position], names[position])
            placeholders[node.name] = Placeholder("buffer", name, buffers[names[position]])
        else:
            placeholders[node.name] = Placeholder("input", node.name)
    _share_fake_mode(graph)
    notes = (ONE_PATH.format(mode=mode, reason=reason), *drawn)
    return finish(model, graph, mode, "make_fx", placeholders, aliases, notes, tuple(outputs))


def _record_source_lines() -> None:
    """Asks the tracer at work to note the user's line on every node: older releases of `make_fx` have no argument for it."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    mode = get_proxy_mode()
    if mode is not None:
        mode.tracer.record_stack_traces = True


def _record_module_paths(model: nn.Module) -> None:
    """Hooks that write the running module's path on every node; `preserved` takes them off again."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    running: list[str] = []
    last: list[fx.Node] = []

    def mark() -> None:
        """Gives every node since the last mark the path of the module on top."""
        mode = get_proxy_mode()
        if mode is None:
            return
        root = mode.tracer.graph._root
        node = last[0]._next if last else root._next
        while node is not root:
            node.meta.setdefault("module", running[-1] if running else "")
            node = node._next
        last[:] = [root._prev]

    def entering(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            mark()
            running.append(path)

        return hook

    def leaving(module: nn.Module, args: Any, output: Any) -> None:
        mark()
        if running:
            running.pop()

    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # these take no hooks
            module.register_forward_pre_hook(entering(path), prepend=True)
            module.register_forward_hook(leaving, always_call=True)


def _refuse_lost_values(graph: fx.Graph, guard: RunGuard) -> None:
    """Raises if a tensor that the run computed came back as a constant: the graph would not show what it depends on."""
    for node in graph.nodes:
        value = getattr(graph.owning_module, node.target, None) if node.op == "get_attr" else None
        if not isinstance(value, torch.Tensor) or any("lift_fresh" in str(user.target) for user in node.users):
            continue
        if torch._C._functorch.is_functorch_wrapped_tensor(value) or guard.made(value):
            raise RuntimeError(f"a computed tensor of shape {tuple(value.shape)} left the graph and came back as a constant")


def _unseen(output: Output, graph: fx.Graph, watch: OutputWatch) -> Output:
    """The output; where it is a tensor that nobody knew and no operator of the graph made, as one that cannot be searched."""
    node = None if output.position is None else graph.output_node().args[0][output.position]  # type: ignore[index]
    value = getattr(graph.owning_module, str(node.target), None) if isinstance(node, fx.Node) and node.op == "get_attr" else None
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or watch.knew(value):
        return output
    return dataclasses.replace(output, kind="unsearched", reason="it was computed where no tracer looks, as in another thread")


def _share_fake_mode(graph: fx.Graph) -> None:
    """Rewrites the fake values, of which make_fx gives each a mode of its own, in one mode, so that they can be combined."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode() as fake:

        def rewrite(value: Any) -> Any:
            if not isinstance(value, FakeTensor) or value.fake_mode is fake or value.layout is not torch.strided:
                return value
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)

        for node in graph.nodes:
            node.meta["val"] = tree_map(rewrite, node.meta.get("val"))
