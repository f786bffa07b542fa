"""Operators that call functions of their own (cond, while_loop, scan, map) as plain operators.

A branch that the run chooses becomes ``where``: whatever is chosen, the result carries one field. A loop of unknown length
becomes its body, so often that its state has settled, and a choice among the states: the state carries the same field before
and after each round. A loop of known, short length is written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from .flatten import copy_body, inline_regions, replace_results
from .lowering import lower_attention

__all__ = ["flatten"]

aten = torch.ops.aten
_LONGEST = 2000
"""A loop of known length is written out up to this many nodes, a graph of a few hundred layers; a longer one is taken as of
unknown length, which gives up scales of its own for each step."""


class _NotPlain(Exception):
    """The call has a form that is not taken apart; it stays, and holds its arguments."""


def flatten(module: fx.GraphModule) -> None:
    """Brings a graph into the flat form, in place: regions inlined, branches and loops as plain operators, nested ones too."""
    for node in list(module.graph.nodes):
        for body in _bodies(module, node):
            flatten(body)
    inline_regions(module)
    for node in list(module.graph.nodes):
        expand = _EXPANDERS.get(getattr(node.target, "_name", "")) if node.op == "call_function" else None
        if expand is not None:
            _expand(module, node, expand)


def _expand(module: fx.GraphModule, node: fx.Node, expand: Callable[[_Call], list[Any]]) -> None:
    """Puts plain operators in the place of `node`, which stays as it is where that cannot be."""
    holders = [item for item in node.args if isinstance(item, fx.Node) and item.op == "get_attr"]
    graph = module.graph
    before = set(graph.nodes)
    try:
        with graph.inserting_before(node):
            results = expand(_Call(module, node))
    except (
        _NotPlain,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
    ):  # also: arguments that another release orders otherwise
        for made in reversed([item for item in graph.nodes if item not in before]):
            graph.erase_node(made)
        return
    module.meta["taken_apart"] = True
    replace_results(graph, node, results)
    for holder in holders:
        if not holder.users:
            graph.erase_node(holder)


def _bodies(module: fx.GraphModule, node: fx.Node) -> list[fx.GraphModule]:
    """Returns the graphs that a node hands to the operator it calls."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
        return []
    held = (getattr(module, str(item.target), None) for item in node.all_input_nodes if item.op == "get_attr")
    return [body for body in held if isinstance(body, fx.GraphModule)]


class _Call:
    """One call of a higher-order operator, and how to write plain nodes in front of it."""

    def __init__(self, module: fx.GraphModule, node: fx.Node) -> None:
        self.module, self.graph, self.node, self.args = module, module.graph, node, node.args

    def run(self, position: int, operands: Sequence[Any]) -> list[Any]:
        """Writes a copy of the body at `position` among the arguments, called with `operands`; returns its results."""
        holder = self.args[position]
        body = getattr(self.module, str(getattr(holder, "target", "")), None)
        if not isinstance(body, fx.GraphModule):
            raise _NotPlain
        results = copy_body(self.graph, body, operands)
        return list(results) if isinstance(results, (list, tuple)) else [results]

    def length(self, position: int) -> int:
        """Returns the number of nodes of the body at `position`."""
        return len(getattr(self.module, str(self.args[position].target)).graph.nodes)  # type: ignore[union-attr]

    def emit(self, target: Any, args: tuple[Any, ...], value: torch.Tensor, **kwargs: Any) -> fx.Node:
        """Writes a plain operator whose result looks like `value`."""
        made = self.graph.call_function(target, args, kwargs)
        made.meta = {key: item for key, item in self.node.meta.items() if key != "val"} | {"val": value}
        return made

    def choice(self, like: torch.Tensor) -> fx.Node:
        """Writes a truth value of which nothing is known."""
        return self.emit(aten.randint.default, (2, []), like.new_empty([], dtype=torch.bool), dtype=torch.bool)

    def either(self, a: Any, b: Any, condition: fx.Node | None = None) -> Any:
        """Writes a choice of `a` or `b`; by a condition, else whichever."""
        if a is b or (not isinstance(a, fx.Node) and not isinstance(b, fx.Node) and a == b):
            return a
        value = _tensor(a if isinstance(a, fx.Node) else b)
        _tensor(b if isinstance(b, fx.Node) else a)
        return self.emit(aten.where.self, (condition or self.choice(value), a, b), value)

    def unknown(self, state: Any) -> Any:
        """Writes an integer state of a loop, of which no value is known; others stay."""
        value = _tensor(state)
        if value.is_floating_point() or value.is_complex():
            return state
        return self.emit(aten.where.self, (self.choice(value), state, state), value)

    def step(self, xs: Any, at: int | fx.Node) -> fx.Node:
        """Writes the choice of one step of `xs`, the tensor that is looped over: step `at`, or an unknown one."""
        value = _tensor(xs)
        one = value.new_empty(value.shape[1:])
        if isinstance(at, int):
            return self.emit(aten.select.int, (xs, 0, at), one)
        return self.emit(aten.index.Tensor, (xs, [at]), one)

    def place(self, xs: Any) -> fx.Node:
        """Writes a place along the first axis of which nothing is known."""
        value = _tensor(xs)
        return self.emit(aten.randint.default, (value.shape[0], []), value.new_empty([], dtype=torch.int64))

    def stacked(self, steps: Sequence[Any]) -> fx.Node:
        """Writes the results of all steps along a new first axis."""
        value = _tensor(steps[0])
        return self.emit(aten.stack.default, (list(steps),), value.new_empty([len(steps), *value.shape]))

    def repeated(self, step: Any, length: int) -> fx.Node:
        """Writes the result of one step repeated for all steps, along a new first axis."""
        value = _tensor(step)
        one = self.emit(aten.unsqueeze.default, (step, 0), value.new_empty([1, *value.shape]))
        return self.emit(aten.expand.default, (one, [length, *value.shape]), value.new_empty([length, *value.shape]))


def _tensor(item: Any) -> torch.Tensor:
    """Returns the fake value of a node that stands for a tensor of known sizes."""
    value = item.meta.get("val") if isinstance(item, fx.Node) else None
    if not isinstance(value, torch.Tensor) or not all(isinstance(size, int) for size in value.shape):
        raise _NotPlain
    return value


def _cond(call: _Call) -> list[Any]:
    """Writes both branches, and a choice between their results."""
    condition, operands = call.args[0], call.args[3]
    first, second = (call.run(position, operands) for position in (1, 2))  # type: ignore[arg-type]
    known = isinstance(condition, fx.Node) and isinstance(condition.meta.get("val"), torch.Tensor)
    return [call.either(a, b, condition if known else None) for a, b in zip(first, second, strict=True)]  # type: ignore[arg-type]


def _loop(call: _Call, states: list[Any], round_of: Callable[[list[Any]], tuple[list[Any], list[Any]]]) -> tuple[list[Any], Any]:
    """Writes a loop of unknown length; returns any of its states, and any of the values that its rounds give out.

    Zero states carry any field until something is written to them; after as many rounds as there are states none changes.
    """
    found: list[Any] = states
    given: list[Any] = []
    states = [call.unknown(state) for state in states]
    for _ in range(len(states) + 1):
        states, outputs = round_of(states)
        found = [call.either(a, b) for a, b in zip(found, states, strict=True)]
        given = [call.either(a, b) for a, b in zip(given, outputs, strict=True)] if given else outputs
        states = [call.unknown(state) for state in states]
    return found, given


def _while_loop(call: _Call) -> list[Any]:
    """Writes a body that runs as long as a condition holds."""
    carried, additional = list(call.args[2]), list(call.args[3])  # type: ignore[arg-type]

    def round_of(states: list[Any]) -> tuple[list[Any], list[Any]]:
        call.run(0, [*states, *additional])  # the condition may compare what must then be held
        return call.run(1, [*states, *additional]), []

    return _loop(call, carried, round_of)[0]


def _scan(call: _Call) -> list[Any]:
    """Writes a state that meets one step after the other; each round gives something out."""
    init, xs, additional = (list(item) for item in call.args[1:4])  # type: ignore[arg-type]
    steps, count = _tensor(xs[0]).shape[0], len(init)
    if steps * call.length(0) <= _LONGEST:
        states = init
        given: list[list[Any]] = []
        for t in range(steps):
            results = call.run(0, [*states, *(call.step(x, t) for x in xs), *additional])
            states = results[:count]
            given.append(results[count:])
        return [*states, *(call.stacked(outputs) for outputs in zip(*given, strict=True))]

    def round_of(states: list[Any]) -> tuple[list[Any], list[Any]]:
        place = call.place(xs[0])
        results = call.run(0, [*states, *(call.step(x, place) for x in xs), *additional])
        return results[:count], results[count:]

    found, outputs = _loop(call, init, round_of)
    return [*found, *(call.repeated(item, steps) for item in outputs)]


def _map(call: _Call) -> list[Any]:
    """Writes the same function of every step."""
    xs, additional = (list(item) for item in call.args[1:3])  # type: ignore[arg-type]
    steps = _tensor(xs[0]).shape[0]
    if steps * call.length(0) <= _LONGEST:
        given = [call.run(0, [*(call.step(x, t) for x in xs), *additional]) for t in range(steps)]
        return [call.stacked(outputs) for outputs in zip(*given, strict=True)]
    place = call.place(xs[0])
    return [call.repeated(item, steps) for item in call.run(0, [*(call.step(x, place) for x in xs), *additional])]


def _associative_scan(call: _Call) -> list[Any]:
    """Writes running results of an associative function, one step after the other."""
    xs, additional = (list(item) for item in call.args[1:3])  # type: ignore[arg-type]
    steps = _tensor(xs[0]).shape[0]
    if steps * call.length(0) > _LONGEST:
        raise _NotPlain
    total = [call.step(x, 0) for x in xs]
    given: list[list[Any]] = [list(total)]
    for t in range(1, steps):
        total = call.run(0, [*total, *(call.step(x, t) for x in xs), *additional])
        given.append(total)
    return [call.stacked(outputs) for outputs in zip(*given, strict=True)]


def _flex_attention(call: _Call) -> list[Any]:
    """Writes the products, the score's own function and the softmax, one by one."""
    try:
        return lower_attention(call.module, call.node)
    except RuntimeError as error:
        raise _NotPlain from error


_EXPANDERS: dict[str, Callable[[_Call], list[Any]]] = {
    "cond": _cond,
    "while_loop": _while_loop,
    "scan": _scan,
    "map_impl": _map,
    "associative_scan": _associative_scan,
    "flex_attention": _flex_attention,
}
