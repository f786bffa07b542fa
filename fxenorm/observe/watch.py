"""Hooks that see the activations of a run and hand each to the statistics of its place; no activation is kept."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.analysis import Analysis
from .observation import Observation, named
from .observed_weight import Layout
from .operators.layer_calls import LayerCall
from .operators.operand_calls import OperandCalls, layout_of
from .places import Boundary, Place, channel_axis, floating_tensors, layers_of, owners_of, places_of
from .slopes import replaced
from .statistics import ChannelStatistics

__all__ = ["Watch"]

_SEVERAL = "several tensors of one shape pass there, and nothing tells which of them moves so"
_OTHER_SHAPE = "no tensor of the axes and channels that the analysis saw passes there"
_NOT_REACHED = "the module was not called with a floating-point tensor on any batch"
_MORE_CALLS = "the module is called more often than in the analysis"
_INSIDE = "it is computed inside a function transform, as vmap, where no values are seen"
_NO_AXIS = "its weights do not tell which axis holds the channels"
_NOT_READ = "no function multiplied an activation by this parameter on any batch"
_NEW_READ = (
    "the analysis met no such product of an activation with this parameter: it is made more often here, or the plan was stored "
    "by an older version (then analyze again)"
)
_OTHER_PART = "another part of the parameter is multiplied there than in the analysis"
_CHANNELS = "the number of its channels differs from batch to batch"


class Watch:
    """Observes a model while it runs inside ``with watch.hooks():``, at its modules and where functions read its weights.

    Args:
        analysis: of the plan.
        model: its model.
        level: of the quantile.
        slopes: whether derivatives by activations are summed up in backward passes.
    """

    def __init__(self, analysis: Analysis, model: nn.Module, level: float, slopes: bool = False) -> None:
        self._model, self._level, self._slopes = model, level, slopes
        self._places = places_of(analysis)
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._operands = OperandCalls(self.reading)
        self._layouts: dict[str, tuple[str, Layout | None]] = {}
        self._layers = layers_of(analysis, model)
        # Of their weights it is known where they are read, whatever goes into the modules.
        reads = {module for module, direction, _ in self._places if direction == "operand"}
        self._read = {owner for name in reads for owner in owners_of(name, analysis.symmetry)}
        self._calls: Counter[str] = Counter()
        self._running: dict[str, list[int]] = {}
        self._found: dict[tuple[Boundary, int], tuple[Place, ChannelStatistics]] = {}
        self._seen: set[Boundary] = set()
        self._reached: set[str] = set()
        self._skipped: dict[Boundary, str] = {}
        self._met: list[tuple[Tensor, ChannelStatistics, int]] = []

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Observes one forward pass; the hooks are off afterwards, whatever happens."""
        self._calls.clear()
        self._running.clear()
        self._met.clear()
        modules = dict(self._model.named_modules())
        paths = dict.fromkeys([*(module for module, _, _ in self._places), *self._layers])
        handles = []
        try:
            for path in paths:
                if path in modules:
                    handles.append(modules[path].register_forward_pre_hook(_before(self, path), with_kwargs=True))
                    handles.append(modules[path].register_forward_hook(_after(self, path), always_call=True))
            with self._operands.on(self._model) if self._read else contextlib.nullcontext():
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._met.clear()

    def reading(self, call: LayerCall, number: int) -> Tensor | None:
        """Notes the activation that a function multiplies by a parameter; returns what stands in for it, None: itself."""
        boundary = (call.parameter, "operand", number)
        places = self._places.get(boundary)
        if call.parameter not in self._layouts:
            self._layouts[call.parameter] = call.layer, layout_of(call, self._parameters[call.parameter])
        if places is None:
            self._skip(boundary, _NEW_READ)
        elif any(place.part != call.part and not place.reason for place in places):
            self._seen.add(boundary)
            self._skip(boundary, _OTHER_PART)
        else:
            self._note(boundary, call.activation)
        given = self.entering((call.activation,), {})
        return None if given is None else given[0][0]

    def read_layers(self) -> dict[str, tuple[str, Layout | None]]:
        """Returns, by name, the layers that functions alone make: the parameter that is the weight, and its layout."""
        return {layer: (name, layout) for name, (layer, layout) in self._layouts.items() if layer == name}

    def enter(self, path: str, module: nn.Module, values: Any) -> None:
        """Notes a call of a module with its arguments."""
        call = self._calls[path]
        self._reached.add(path)
        self._calls[path] += 1
        self._running.setdefault(path, []).append(call)
        self._note((path, "input", call), values)
        if path in self._layers:
            self._note_fixed((path, "input", call), module, values)

    def leave(self, path: str, output: Any) -> None:
        """Notes the result of the last call of a module that has not ended; None: it raised, or gave nothing."""
        call = self._running[path].pop()
        if output is not None:
            self._note((path, "output", call), output)
        for tensor, statistics, axis in self._met:
            statistics.add_slopes_of(tensor, axis)
        self._met.clear()

    def entering(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Returns the arguments that a module gets in the place of those it was called with; None: the same.

        Derivatives by an input are those by way of this module alone, so it gets a view of its own.
        """
        given = {id(one) for one in (*args, *kwargs.values())}
        views: dict[int, Tensor] = {}
        for tensor, statistics, axis in self._met:
            if id(tensor) in given and tensor.requires_grad:
                views[id(tensor)] = views.get(id(tensor), tensor.view_as(tensor))
            statistics.add_slopes_of(views.get(id(tensor), tensor), axis)
        self._met.clear()
        return replaced(args, kwargs, views) if views else None

    def _note(self, boundary: Boundary, values: Any) -> None:
        """Adds the activations at a boundary that carry variables."""
        places = self._places.get(boundary)
        if places is None:
            return
        self._seen.add(boundary)
        tensors = floating_tensors(values)
        for number, place in enumerate(places):
            fitting = [tensor for tensor in tensors if place.takes(tensor)]
            rivals = sum(other.takes(fitting[0]) for other in places) if fitting else 0
            if place.reason:
                self._skip(boundary, place.reason)
            elif len(fitting) == 1 and rivals == 1:
                self._add(boundary, number, place, fitting[0])
            else:
                self._skip(boundary, _SEVERAL if fitting else _OTHER_SHAPE)

    def _note_fixed(self, boundary: Boundary, module: nn.Module, values: Any) -> None:
        """Adds the input of a layer that carries no variable."""
        path, _, call = boundary
        known = [place[2] for place in self._places if place[:2] == boundary[:2]]
        tensors = floating_tensors(values)
        if boundary in self._places or not tensors:
            return
        axis = channel_axis(module, tensors[0], self._layers[path]) if len(tensors) == 1 else None
        if known and call > max(known):
            reason = _MORE_CALLS
        elif axis is not None and 0 <= axis < tensors[0].ndim:
            return self._add(boundary, 0, Place(axis, 0, tensors[0].shape[axis], ()), tensors[0])
        else:
            reason = _SEVERAL if len(tensors) > 1 else _NO_AXIS
        if path not in self._read:
            self._skip(boundary, reason)

    def _add(self, boundary: Boundary, number: int, place: Place, tensor: Tensor) -> None:
        """Adds one activation to the statistics of its place."""
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            self._skip(boundary, _INSIDE)
            return
        if (boundary, number) not in self._found:
            self._found[boundary, number] = place, ChannelStatistics(place.channels, self._level, tensor.device)
        known, statistics = self._found[boundary, number]
        if known.channels != place.channels:
            self._skip(boundary, _CHANNELS)
            return
        statistics.add(tensor, place.axis)
        if self._slopes:
            self._met.append((tensor, statistics, place.axis))

    def _skip(self, boundary: Boundary, reason: str) -> None:
        """Notes why nothing holds at a boundary: what was seen there in other batches is no whole either."""
        self._skipped.setdefault(boundary, reason)

    def results(self, outputs: int = 0) -> tuple[tuple[Observation, ...], dict[str, str]]:
        """Returns the observations, and by place the reasons for which others are missing.

        Args:
            outputs: number of entries of the outputs of all backward passes; 0: there was none.
        """
        found = []
        for (boundary, number), (place, statistics) in self._found.items():
            if boundary in self._skipped:
                continue
            if statistics.entries:
                values, slopes = statistics.results(), statistics.mean_slopes(outputs)
                found.append(Observation(*boundary, number, place.axis, statistics.entries, *values, place.terms, slopes))
            else:
                self._skipped[boundary] = _NOT_REACHED
        for boundary in self._places:
            if boundary not in self._seen:
                self._skipped.setdefault(boundary, _NOT_READ if boundary[1] == "operand" else _NOT_REACHED)
        for path in self._layers:
            if path not in self._reached and path not in self._read:
                self._skipped.setdefault((path, "input", 0), _NOT_REACHED)
        return tuple(found), {named(*boundary): reason for boundary, reason in self._skipped.items()}


def _before(watch: Watch, path: str) -> Any:
    """Returns the hook that sees the arguments of a module."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        watch.enter(path, module, (args, kwargs))
        return watch.entering(args, kwargs)

    return hook


def _after(watch: Watch, path: str) -> Any:
    """Returns the hook that sees the result of a module."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        watch.leave(path, output)

    return hook
