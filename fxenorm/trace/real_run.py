"""The tracer along a run: `make_fx` with fake values, or with real ones for models whose path depends on data."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from ..collection import collection_paused, collection_resumed
from .eager_answers import eager_answers
from .escapes import ExportWatch, RealRunWatch
from .exported import check_dtypes, finish
from .fake_weights import fake_weights
from .higher_order import flatten
from .inputs import Inputs
from .lowering import lower_regions
from .memory_of_calls import hold_what_is_kept, with_state
from .names import tied_names
from .outputs import Output, OutputWatch, graph_values
from .preserve import Notes, RunGuard, prepared
from .source import note_lines
from .traced_model import Mode, Placeholder, TracedModel

__all__ = ["run_for_real", "trace_by_fake_run", "trace_by_real_run"]

ONE_PATH = (
    "torch.export refused this model in {mode} mode, so it was traced along one run of the given inputs: "
    "the result holds for the path that these inputs took ({reason})."
)


@contextlib.contextmanager
def _ready(
    model: nn.Module, inputs: Inputs, mode: Mode, gradients: bool = False
) -> Iterator[tuple[Callable[..., Any], RunGuard, Notes]]:
    """Yields a forward call in `mode` on tensors to be given, its guard, which undoes writes at exit, and notes."""
    guard = RunGuard([*model.parameters(), *inputs.tensors()])
    with collection_resumed(), prepared(model, mode) as notes, contextlib.nullcontext() if gradients else torch.no_grad():
        try:
            with guard:
                yield lambda tensors, args, kwargs: functional_call(model, tensors, args, kwargs), guard, notes
        finally:
            guard.restore()


def run_for_real(model: nn.Module, inputs: Inputs, mode: Mode) -> None:
    """Runs the model once, changes nothing, and raises the model's own errors."""
    inputs = inputs.map(_unflagged)
    with _ready(model, inputs, mode, gradients=True) as (forward, _, _):
        forward({name: buffer.clone() for name, buffer in model.named_buffers()}, inputs.args, dict(inputs.kwargs))


def trace_by_real_run(
    model: nn.Module, inputs: Inputs, mode: Mode, reason: str, seed: int | None = None, derivatives: bool = False
) -> TracedModel:
    """Traces `model` in `mode` along a real run; `reason` says why `torch.export` could not. The model is left as it was.

    Args:
        seed: of Python's, numpy's and torch's random numbers on the way; None: as they are.
        derivatives: take the trace below autograd and vmap: the operators of a backward pass inside forward are in it.
    """
    copies = {name: buffer.clone() for name, buffer in model.named_buffers()}
    tensors = {**dict(model.named_parameters()), **copies}
    inputs = inputs.map(_unflagged)
    with _ready(model, inputs, mode, derivatives) as (forward, guard, drawn):
        drawn.generators.begin(seed)
        hold_what_is_kept(model, drawn.state)
        graph, outputs = _recorded(model, forward, tensors, inputs, RealRunWatch(), below=derivatives)
    _share_fake_mode(graph)
    _refuse_lost_values(graph, guard.made)
    _take_apart(graph)
    _refuse_lost_values(graph, guard.made)
    notes = (ONE_PATH.format(mode=mode, reason=reason), *drawn)
    aliases = tied_names(model)
    traced = finish(model, graph, mode, "make_fx", _placeholders(model, graph, inputs, aliases), aliases, notes, outputs)
    return with_state(dataclasses.replace(traced, drew=drawn.drew), drawn.state)


def trace_by_fake_run(model: nn.Module, inputs: Inputs, mode: Mode, seed: int | None = None) -> TracedModel:
    """Traces `model` along a run with fake values, in half the time of `torch.export`.

    Raises whatever the model raises, also where it needs a value. The model is left as it was.

    Args:
        seed: of Python's, numpy's and torch's random numbers on the way; None: as they are.
    """
    from torch._subclasses.fake_tensor import FakeTensor

    try:
        graph, outputs, notes = _fake_run(model, inputs, mode, seed, plain=True)
    except Exception:  # `NotPlain`, or an error of the model's own, which comes again
        graph, outputs, notes = _fake_run(model, inputs, mode, seed, plain=False)
    check_dtypes(graph, inputs)
    _refuse_lost_values(graph, lambda tensor: isinstance(tensor, FakeTensor))
    _take_apart(graph)
    _refuse_lost_values(graph, lambda tensor: isinstance(tensor, FakeTensor))
    aliases = tied_names(model)
    traced = finish(model, graph, mode, "export", _placeholders(model, graph, inputs, aliases), aliases, tuple(notes), outputs)
    return with_state(dataclasses.replace(traced, drew=notes.drew), notes.state)


def _fake_run(
    model: nn.Module, inputs: Inputs, mode: Mode, seed: int | None, plain: bool
) -> tuple[fx.Graph, tuple[Output, ...], Notes]:
    """Returns the graph of a run with fake values, its outputs and notes; `plain`: for models of plain operators alone."""
    inputs = inputs.map(_unflagged)  # a mode that is shared knows tensors again, which a run may have changed
    with collection_paused(), prepared(model, mode) as notes:
        notes.generators.begin(seed)
        hold_what_is_kept(model, notes.state)
        fake, tensors = fake_weights(model)
        arguments = inputs.map(fake.from_tensor)
        forward = functools.partial(functional_call, model)
        with fake:
            graph, outputs = _recorded(model, forward, tensors, arguments, ExportWatch(), plain=plain)
    _rewrite_fake_values(graph, fake)
    return graph, outputs, notes


def _recorded(
    model: nn.Module,
    forward: Callable[..., Any],
    tensors: dict[str, torch.Tensor],
    inputs: Inputs,
    escapes: RealRunWatch | ExportWatch,
    below: bool = False,
    plain: bool = False,
) -> tuple[fx.Graph, tuple[Output, ...]]:
    """Returns the graph and the outputs of one forward call; `below`: recorded below autograd and vmap."""
    from torch.fx.experimental.proxy_tensor import make_fx

    from .recorder import recorded_plainly

    real = isinstance(escapes, RealRunWatch)
    watch = OutputWatch(model, raises=not real)
    outputs: list[Output] = []
    if not isinstance(model, torch.jit.ScriptModule):
        watch.hook(lambda leaves: None)

    def run(values: list[torch.Tensor], arguments: list[torch.Tensor]) -> tuple[Any, ...]:
        remaining = iter(arguments)
        call = inputs.map(lambda _: next(remaining))
        note_lines(run.__code__)
        watch.leaves = None
        with escapes, eager_answers():
            output = forward(dict(zip(tensors, values, strict=True)), call.args, dict(call.kwargs))
        if watch.leaves is None:  # a scripted module calls no hooks
            watch.after((), {}, output)
        left, outputs[:] = graph_values(watch.leaves or (), getattr(escapes, "read", ()))
        return left

    _record_module_paths(model)
    if plain:
        graph = recorded_plainly(run, list(tensors.values()), inputs.tensors())
    else:
        record = make_fx(run, pre_dispatch=not below, _error_on_data_dependent_ops=not real)
        graph = record(list(tensors.values()), inputs.tensors()).graph
    nodes = (node for node in graph.nodes if node.op == "placeholder")
    for node, tensor in zip(nodes, [*tensors.values(), *inputs.tensors()], strict=True):
        node.meta["sparse"] = tensor if tensor.layout is torch.sparse_coo else None
    return graph, tuple(_unseen(output, graph, watch) for output in outputs)


def _placeholders(model: nn.Module, graph: fx.Graph, inputs: Inputs, aliases: dict[str, str]) -> dict[str, Placeholder]:
    """Returns, by node name, the tensor that each placeholder stands for: parameters first, then buffers, then inputs.

    Gives the nodes the names that `torch.export` gives them, as far as these are free.
    """
    known = [Placeholder("parameter", aliases.get(name, name)) for name, _ in model.named_parameters()]
    known += [Placeholder("buffer", aliases.get(name, name), buffer) for name, buffer in model.named_buffers()]
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    names = [f"{item.kind[0]}_{item.name.replace('.', '_')}" for item in known] + inputs.names(model.forward)
    for node, name in zip(nodes, names, strict=True):
        node._rename(name)
    known += [Placeholder("input", name) for name in names[len(known) :]]
    return {node.name: item for node, item in zip(nodes, known, strict=True)}


def _take_apart(graph: fx.Graph) -> None:
    """Writes branches, loops and hidden axes as plain operators, in place."""
    module = graph.owning_module
    if isinstance(module, fx.GraphModule):
        flatten(module)
        lower_regions(module)


def _unflagged(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the same values as another tensor, so that a model may ask for its gradient without a trace left behind."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _record_module_paths(model: nn.Module) -> None:
    """Hooks that write the running module's path and the number of its call on every node; `preserved` takes them off again."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    running: list[tuple[str, int]] = []
    called: Counter[str] = Counter()
    last: list[fx.Node] = []

    def mark() -> None:
        """Gives every node since the last mark the path of the module on top, and the number of its call."""
        mode = get_proxy_mode()
        if mode is None:
            return
        root = mode.tracer.graph._root
        # A loop's body is recorded into a graph of its own, in between.
        node = last[0]._next if last and last[0].graph is mode.tracer.graph else root._next
        while node is not root:
            path, call = running[-1] if running else ("", 0)
            node.meta.setdefault("module", path)
            node.meta.setdefault("call", call)
            node = node._next
        last[:] = [root._prev]

    def entering(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            mark()
            if not path:
                called.clear()  # a new run of the whole model
            running.append((path, called[path]))
            called[path] += 1

        return hook

    def leaving(module: nn.Module, args: Any, output: Any) -> None:
        mark()
        if running:
            running.pop()

    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # these take no hooks
            module.register_forward_pre_hook(entering(path), prepend=True)
            module.register_forward_hook(leaving, always_call=True)


def _refuse_lost_values(graph: fx.Graph, made: Callable[[torch.Tensor], bool]) -> None:
    """Raises if a tensor that the run computed came back as a constant: the graph would not show where it comes from."""
    for node in graph.nodes:
        value = getattr(graph.owning_module, node.target, None) if node.op == "get_attr" else None
        if not isinstance(value, torch.Tensor) or any("lift_fresh" in str(user.target) for user in node.users):
            continue
        if value._is_zerotensor():  # the derivative of a constant, whatever the inputs are
            continue
        if torch._C._functorch.is_functorch_wrapped_tensor(value) or made(value):
            raise RuntimeError(f"a computed tensor of shape {tuple(value.shape)} left the graph and came back as a constant")


def _unseen(output: Output, graph: fx.Graph, watch: OutputWatch) -> Output:
    """Returns the output; a tensor that nobody knew and no operator of the graph made becomes one that cannot be searched."""
    node = None if output.position is None else graph.output_node().args[0][output.position]  # type: ignore[index]
    value = getattr(graph.owning_module, str(node.target), None) if isinstance(node, fx.Node) and node.op == "get_attr" else None
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or watch.knew(value):
        return output
    return dataclasses.replace(output, kind="unsearched", reason="it was computed where no tracer looks, as in another thread")


def _share_fake_mode(graph: fx.Graph) -> None:
    """Rewrites the fake values, of which make_fx gives each a mode of its own, in one mode, so that they can be combined."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as fake:
        _rewrite_fake_values(graph, fake)
        for node in graph.nodes:
            if node.meta.get("sparse") is not None:
                node.meta["val"] = fake.from_tensor(node.meta.pop("sparse"))
            elif node.meta["val"] is None and isinstance(node.target, torch._ops.OpOverload):
                node.meta["val"] = _fake_result(node, fake)


def _rewrite_fake_values(graph: fx.Graph, fake: Any) -> None:
    """Rewrites in the mode `fake` the fake values of other modes, as torch 2.6 gives to writes into tensors of the module."""
    from torch._subclasses.fake_tensor import FakeTensor

    def rewrite(value: Any) -> Any:
        if not isinstance(value, FakeTensor) or value.fake_mode is fake or value.layout is not torch.strided:
            return value
        with fake:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)

    for node in graph.nodes:
        node.meta["val"] = tree_map(rewrite, node.meta.get("val"))


def _fake_result(node: fx.Node, fake: Any) -> Any:
    """Returns the fake value of a call for which make_fx gives none: its result is sparse, or is computed from sparse tensors."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: _fake_value(source, fake))
    try:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # it returns nothing, or cannot be run without values: the rules will do without
        return None


def _fake_value(node: fx.Node, fake: Any) -> Any:
    """Returns the fake value of a node, of a constant too, to which torch 2.6 gives none."""
    value = node.meta.get("val")
    constant = getattr(node.graph.owning_module, str(node.target), None) if value is None and node.op == "get_attr" else None
    plain = isinstance(constant, torch.Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(constant)
    return fake.from_tensor(constant) if plain else value
