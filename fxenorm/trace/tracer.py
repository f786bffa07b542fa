"""`trace_model`: from a model to one flat graph a mode."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator
from torch.nn.parameter import is_lazy

from ..errors import ExampleInputsError, OptionError, TraceError, warn_user
from .exported import trace_by_export
from .fake_weights import fake_weights_shared
from .guess import candidates, choose, further
from .inputs import Inputs, given_inputs, is_meta
from .modes import depends_on_mode
from .offloaded import without_offloading
from .overwritten import drop_holds_of_what_is_overwritten
from .paths import with_paths
from .real_run import trace_by_fake_run, trace_by_real_run
from .reasons import needs_values, reason, runs_on
from .releases import default_device
from .second_size import with_second_size
from .traced_model import Mode, TracedModel
from .unused_parts import unused_note, unused_parts
from .unwrap import unwrap
from .whole_tensors import whole_tensors

__all__ = ["trace_model"]

_MOST_FURTHER = 12
"""Inputs with optional arguments that are tried: each costs a run with fake values, and the likeliest come first."""


def trace_model(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    example_kwargs: dict[str, Any] | None = None,
    modes: Literal["both", "train", "eval"] = "both",
    report: Callable[[str], None] | None = None,
) -> list[TracedModel]:
    """Turns a model into a flat graph of ATen operators, one for each mode in which it behaves differently.

    The model is left as it was: parameters, buffers, flags, hooks and torch's random numbers.

    Args:
        model: the module; wrappers (see `unwrap`) are looked through. It may be on any device, "meta" included.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; None: guessed.
        example_kwargs: further keyword arguments.
        modes: "both", "train" or "eval".
        report: called with the name of each stage when it begins.

    Returns:
        One traced model a mode, eval first. With "both" there is only one if nothing in the model reads the mode (it
        covers both) or if it cannot be traced in train mode (it covers eval, and a warning says so). The first has a
        second graph at another size of the inputs, where the model runs at one.

    Raises:
        OptionError: `model` is not a module or `modes` none of the three words.
        ExampleInputsError: the model does not run on the inputs, or no guess runs.
        TraceError: no tracer could follow the model, or it has lazy parameters without a shape.

    Example:
        >>> traced, = trace_model(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
        >>> [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
        ['aten.linear.default', 'aten.relu.default']
        >>> traced.covers
        ('eval', 'train')
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if modes not in ("both", "train", "eval"):
        raise OptionError(f'modes must be "both", "train" or "eval", got {modes!r}.')
    # Tensors made on the way, made-up inputs among them, must be ordinary ones wherever the call comes from.
    inner = unwrap(model)
    if isinstance(inner, torch.jit.ScriptModule):
        raise TraceError(
            "the model is a TorchScript module, whose operators no tracer sees: analyse the module that it was made of, and move "
            "the plan over with plan.bind(scripted)"
        )
    with (
        torch.inference_mode(False),
        _ordinary_device(inner),
        without_offloading(inner),
        whole_tensors(inner),
        fake_weights_shared(),
    ):
        traced = _trace_modes(inner, example_inputs, example_kwargs, modes, _each_once(report or (lambda stage: None)))
    inexact = dict.fromkeys(reason for graph in traced for reason in graph.inexact)
    if inexact:
        warn_user(f"The plan is not exact: {'; '.join(inexact)}.")
    return traced


def _each_once(report: Callable[[str], None]) -> Callable[[str], None]:
    """Returns `report` for stages that may begin several times in a row, of which it hears once."""
    last: list[str] = []

    def say(stage: str) -> None:
        if last != [stage]:
            last[:] = [stage]
            report(stage)

    return say


def _ordinary_device(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Lets new tensors have values: under ``with torch.device("meta")`` forward would mix them with its weights."""
    if default_device().type == "meta" and not is_meta(model):
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        return device if isinstance(device, contextlib.AbstractContextManager) else contextlib.nullcontext()
    return contextlib.nullcontext()


def _trace_modes(
    model: nn.Module, example_inputs: Any, example_kwargs: dict[str, Any] | None, modes: str, say: Callable[[str], None]
) -> list[TracedModel]:
    """`trace_model` after its options are checked."""
    lazy = [name for name, tensor in model.named_parameters() if is_lazy(tensor)]
    if lazy:
        raise TraceError(
            f"{lazy[0]} has no shape yet ({len(lazy)} such parameters of lazy modules): run the model once on real data first."
        )
    first: Mode = "train" if modes == "train" else "eval"
    inputs = given_inputs(example_inputs, example_kwargs)
    if inputs is None:
        say("guessing example inputs")
        inputs, traced = _guess(model, _on_meta(model, Inputs((), example_kwargs or {})).kwargs, first, say)
    else:
        inputs = _on_meta(model, inputs).map(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)
        traced = _trace(model, inputs, first, say)
    traced = _along_paths(model, _at_second_size(model, dataclasses.replace(traced, inputs=inputs), say))
    if modes != "both":
        return _finished(model, [traced])
    if not depends_on_mode(model):
        return _finished(model, [dataclasses.replace(traced, covers=("eval", "train"))])
    try:
        return _finished(model, [traced, _along_paths(model, _trace(model, inputs, "train", say))])
    except (ExampleInputsError, TraceError) as error:
        warn_user(
            f"The model could not be traced in train mode, so only eval mode is covered: {error} "
            'Pass modes="eval" to silence this, or example inputs on which the model runs in train mode.'
        )
        return _finished(model, [traced])


def _finished(model: nn.Module, traced: list[TracedModel]) -> list[TracedModel]:
    """Returns the graphs after the last steps, which need all of them: some holds dropped, unused parts noted."""
    drop_holds_of_what_is_overwritten(traced)
    first, *others = traced
    if first.inputs is not None and first.inputs.guessed:
        unused = unused_parts(model, traced)
        if unused:
            first = dataclasses.replace(first, notes=(*first.notes, unused_note(unused)))
    return [first, *others]


def _at_second_size(model: nn.Module, traced: TracedModel, say: Callable[[str], None]) -> TracedModel:
    """Returns `traced` with a graph at another size of the inputs."""

    def trace(inputs: Inputs, seed: int) -> TracedModel:
        return _trace_again(model, traced, inputs, seed)

    say("tracing at a second size")
    return with_second_size(traced, trace)


def _along_paths(model: nn.Module, traced: TracedModel) -> TracedModel:
    """Returns `traced` with the graphs of other paths that random numbers choose."""
    return with_paths(traced, lambda seed: _trace_again(model, traced, traced.inputs or Inputs(), seed))


def _trace_again(model: nn.Module, traced: TracedModel, inputs: Inputs, seed: int) -> TracedModel:
    """Returns one more trace in the same mode, on other inputs or under other random numbers."""
    if traced.tracer != "export":
        return _follow(model, inputs, traced.mode, "", seed)
    try:
        return trace_by_fake_run(model, inputs, traced.mode, seed)
    except Exception as error:  # only torch.export lets some models run without values
        if not needs_values(error) and not _calls_regions(traced):
            raise
    return _export(model, inputs, traced.mode, seed)


def _calls_regions(traced: TracedModel) -> bool:
    """Whether the model has branches, loops or hidden axes: graphs inside its graph."""
    module = traced.graph.owning_module
    taken_apart = isinstance(module, fx.GraphModule) and module.meta.get("taken_apart", False)
    return taken_apart or any(isinstance(node.target, HigherOrderOperator) for node in traced.graph.nodes)


def _on_meta(model: nn.Module, inputs: Inputs) -> Inputs:
    """Returns the same inputs, without values where the model is on the meta device."""
    return inputs.map(lambda tensor: torch.empty_like(tensor, device="meta")) if is_meta(model) else inputs


def _guess(model: nn.Module, kwargs: Mapping[str, Any], mode: Mode, say: Callable[[str], None]) -> tuple[Inputs, TracedModel]:
    """Inputs on which the model runs, and its trace on them."""
    ladder = candidates(model, kwargs)
    first = next(ladder)
    # Mostly the first rung runs, and then a trial run before the trace would be wasted.
    try:
        say(f"tracing in {mode} mode")
        found = first, _without_values(model, first, mode)
    except Exception:  # the trial runs below find out why
        inputs = choose(model, itertools.chain([first], ladder), mode)
        found = inputs, _trace(model, inputs, mode, say)
    return _reaching_more(model, kwargs, mode, say, found)


def _reaching_more(
    model: nn.Module, kwargs: Mapping[str, Any], mode: Mode, say: Callable[[str], None], found: tuple[Inputs, TracedModel]
) -> tuple[Inputs, TracedModel]:
    """`found`, or inputs that give optional arguments too, where these reach parts of the model that it leaves out."""
    unused = unused_parts(model, [found[1]])
    layers = [layer for path in unused for layer in _layers_in(model, path)]
    for inputs in itertools.islice(further(model, kwargs, layers), _MOST_FURTHER) if layers else ():
        if runs_on(model, inputs, mode, confirm=False) is None:
            traced = _trace(model, inputs, mode, say)
            if sum(unused_parts(model, [traced]).values()) < sum(unused.values()):
                return inputs, traced
    return found


def _layers_in(model: nn.Module, path: str) -> list[nn.Module]:
    """Returns the modules in a part of a model; none where the part is a parameter."""
    part: Any = model
    for name in path.split("."):
        part = part._modules.get(name)
        if part is None:
            return []
    return list(part.modules())


def _trace(model: nn.Module, inputs: Inputs, mode: Mode, say: Callable[[str], None]) -> TracedModel:
    """Traces the model in one mode; in train mode a batch of one that fails is tried again as a batch of two."""
    say(f"tracing in {mode} mode")
    try:
        return dataclasses.replace(_trace_once(model, inputs, mode, say), inputs=inputs)
    except (ExampleInputsError, TraceError):
        repeated = inputs.repeated() if mode == "train" else None
        if repeated is None:
            raise
        if runs_on(model, repeated, mode) is not None:
            raise
    return dataclasses.replace(_trace_once(model, repeated, mode, say), inputs=repeated)


def _trace_once(model: nn.Module, inputs: Inputs, mode: Mode, say: Callable[[str], None]) -> TracedModel:
    """Traces without values, else along a real run."""
    try:
        return _without_values(model, inputs, mode)
    except ExampleInputsError:
        raise
    except Exception as error:  # torch.export raises anything; the reason is told below
        refusal = error
    meta = is_meta(model) or any(tensor.is_meta for tensor in inputs.tensors())
    failure = runs_on(model, inputs, mode)
    if failure is not None and not (meta and needs_values(failure)):
        raise ExampleInputsError(
            f"The model does not run on the {'guessed' if inputs.guessed else 'given'} inputs {inputs} in {mode} mode: "
            f"{reason(failure)}. Pass example_inputs that the model runs on{inputs.hint()}"
        ) from failure
    if meta:
        raise TraceError(
            f"torch.export cannot follow the model in {mode} mode: {reason(refusal)}. The other tracer follows a real run, "
            "which a model or inputs on the meta device do not allow: pass a model with weights, on the CPU or a GPU."
        ) from refusal
    say(f"following a real run in {mode} mode")
    try:
        return _follow(model, inputs, mode, reason(refusal))
    except Exception as error:
        raise TraceError(
            f"No tracer could follow the model in {mode} mode.\n  torch.export: {reason(refusal)}\n"
            f"  make_fx along a real run: {error}\n"
            "Pass other example_inputs, or call the part of the model that computes with tensors only."
        ) from refusal


def _without_values(model: nn.Module, inputs: Inputs, mode: Mode) -> TracedModel:
    """Traces along a run with fake values, the quicker way; by `torch.export` where that fails or the model calls regions."""
    with contextlib.suppress(Exception):  # the model's own errors come again below
        traced = trace_by_fake_run(model, inputs, mode)
        if not _calls_regions(traced):
            return traced
    return _export(model, inputs, mode)


def _export(model: nn.Module, inputs: Inputs, mode: Mode, seed: int | None = None) -> TracedModel:
    """Traces by `torch.export`; without gradients where an operator has none on this device (flex_attention on CPUs)."""
    try:
        return trace_by_export(model, inputs, mode, seed)
    except NotImplementedError:
        return trace_by_export(model, inputs, mode, seed, gradients=False)


def _follow(model: nn.Module, inputs: Inputs, mode: Mode, refusal: str, seed: int | None = None) -> TracedModel:
    """Traces along a real run; where that cannot be, as for a derivative inside forward, along one below autograd."""
    try:
        return trace_by_real_run(model, inputs, mode, refusal, seed)
    except Exception as error:
        first = reason(error)
    try:
        return trace_by_real_run(model, inputs, mode, refusal, seed, derivatives=True)
    except Exception as error:
        raise RuntimeError(f"{first}\n  the same below autograd: {reason(error)}") from error
