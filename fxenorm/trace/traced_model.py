"""The tracer's answer: one flat ATen graph of a model in one mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import fx

from .inputs import Inputs
from .outputs import Output

__all__ = ["Mode", "Placeholder", "TracedModel", "call_number", "module_path", "source_line"]

Mode = Literal["eval", "train"]


@dataclass(frozen=True)
class Placeholder:
    """The tensor that a placeholder or get_attr node of the graph stands for.

    Attributes:
        kind: ``"parameter"`` and ``"buffer"`` belong to the model, ``"input"`` is one of the example inputs, ``"constant"``
            is a tensor that the forward pass made out of Python numbers, ``"state"`` any other tensor, such as a plain
            attribute: floating-point values in it may be others at the next call.
        name: the fully qualified name; for a tensor reached by several names the first of them in registration order.
        value: the tensor itself, for buffers, constants and state (possibly on the meta device); None otherwise, and for state
            that forward replaces.
    """

    kind: Literal["parameter", "buffer", "input", "constant", "state"]
    name: str
    value: torch.Tensor | None = None


@dataclass(frozen=True)
class TracedModel:
    """A model as one flat graph of ATen operators.

    Every node carries ``meta["val"]`` (fake tensors, or Python values), ``meta["module"]`` (path of the module that was
    running, "" for the root), ``meta["call"]`` (which call of it, from 0) and ``meta["source"]`` (the user's source line, ""
    where unknown).

    Attributes:
        graph: placeholder, get_attr, call_function and output nodes only; regions under ``no_grad`` or autocast are inlined.
        mode: the mode that the model was in.
        tracer: ``"export"``, made without values, along a run with fake ones or by `torch.export`; or ``"make_fx"``, made along
            a real run: it holds for one path of the given inputs only.
        placeholders: by node name, the tensor that each placeholder and get_attr node stands for.
        aliases: every further name of a parameter or buffer -> its first name.
        notes: losses on the way, in sentences for the user.
        shared_storage: names of distinct parameters, buffers and constants whose entries overlap in memory, one tuple a
            block: they are no aliases, and scaling one of them would scale a part of another.
        covers: the modes that this graph stands for: `mode`, and the other one too where the trace in the other mode was
            skipped because no module behaves differently there.
        inputs: the example inputs, given or guessed.
        paths: graphs of the same mode and inputs along other paths that random numbers took.
        second: the graph at another size of the inputs, where the model runs at one.
        drew: whether forward drew random numbers from Python or numpy, which no trace sees.
        inexact: why the graphs do not cover all that the model can do, in sentences.
        outputs: what leaves forward, by path, with the position of its node among the graph's outputs; empty where the graph
            was made by hand.
    """

    graph: fx.Graph
    mode: Mode
    tracer: Literal["export", "make_fx"]
    placeholders: Mapping[str, Placeholder]
    aliases: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shared_storage: tuple[tuple[str, ...], ...] = ()
    covers: tuple[Mode, ...] = ()
    inputs: Inputs | None = None
    paths: tuple[TracedModel, ...] = ()
    second: TracedModel | None = None
    drew: bool = False
    inexact: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ()


def module_path(node: fx.Node) -> str:
    """Path of the module that was running when `node` was recorded ("" for the root)."""
    return str(node.meta.get("module", ""))


def call_number(node: fx.Node) -> int:
    """Returns which call of that module in one forward pass recorded `node`, from 0."""
    return int(node.meta.get("call", 0))


def source_line(node: fx.Node) -> str:
    """Returns the user's source line of `node` as ``file.py:41, in forward``, or "" where it is unknown."""
    return str(node.meta.get("source", ""))
