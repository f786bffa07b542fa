"""The walk over a traced graph: rules turn the fields of each operator's inputs into that of its output, and into equations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from ...errors import warn_user
from ...field import AnyField, Equations, ParameterFields, ParameterView, ScaleField
from ...field.overlay import Patchwork, filled
from ...field.picked import Picked
from ...rules import NO_RULE, Call, Rule, RuleOptions, barrier, is_floating
from ...rules.laws import zero_field
from ...trace.hold import HOLD
from ...trace.layers import LayerNames
from ...trace.outputs import Output
from ...trace.traced_model import Placeholder, TracedModel, call_number, module_path, source_line
from ..graph.arguments import flat, is_item, nodes_in, operator_name, replaced
from ..graph.facts import GraphFacts
from ..graph.known_values import known_zeros
from ..graph.memory import Memory
from ..graph.output_ends import OutputEnds
from ..graph.storage import written_arguments
from .calls import Calls
from .causes import Causes
from .events import Event, Origin, WeightRead
from .own_rules import check_roles, failure_of_own_rule
from .picks import PickedCall, Picks
from .weight_reads import FoundRead, WeightReads
from .writes import Writes
from .zero_sources import NOBODY, ZeroSources

__all__ = ["Walk"]


_GATHERS = frozenset({"aten::index", "aten::index_select"})
_MOVES = frozenset({"aten::transpose", "aten::permute", "aten::view", "aten::reshape", "aten::unsqueeze", "aten::to", "aten::t"})


_OVERWRITE = frozenset({"aten::copy_", "aten::fill_", "aten::zero_"})
"""Operators that overwrite a tensor without a look at its former values."""

_LARGEST_CONSTANT = 1_000_000
"""Entries of a constant that are looked at for zeros: to compare a million takes a few milliseconds."""


@dataclass
class Walk:
    """Walks graphs of one model over one set of equations and parameter fields.

    Attributes:
        equations, parameters: shared by all graphs of the model.
        options: the options that rules may depend on.
        origins: by the number that equations carry.
        events: by mode (and path, where random numbers choose one), the calls that depend on a model input or read a parameter.
        roles: by parameter name, all roles seen.
        inexact: sentences that say how far laws are not exact, in order.
        movable: names of buffers that carry a field.
        held_outputs: fnmatch patterns of the outputs that are held; None: all but caches.
        left_out: by path, why an output is not held.
        hold_outputs: whether model outputs are forced to zero; off only where the law of a single operator is looked at.
        outputs: the outputs' fields, kept where they are not held.
        unsaid: by parameter name, the operator and the argument of a user's rule that does not say as what it uses it.
        causes: who made fields zero that no equation makes so, and which origins belong to which graph.
        facts: by identity of a graph, the facts about it; kept for who follows the graph once more.
        layers: which module is called for which weight; None: calls of functions on weights are not told.
    """

    equations: Equations
    parameters: ParameterFields
    options: RuleOptions
    origins: list[Origin] = field(default_factory=list)
    events: dict[str, list[Event]] = field(default_factory=dict)
    roles: dict[str, set[str]] = field(default_factory=dict)
    inexact: dict[str, None] = field(default_factory=dict)
    movable: set[str] = field(default_factory=set)
    held_outputs: Sequence[str] | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    hold_outputs: bool = True
    outputs: list[Any] = field(default_factory=list)
    unsaid: dict[str, tuple[str, str]] = field(default_factory=dict)
    causes: Causes = field(default_factory=Causes)
    facts: dict[int, GraphFacts] = field(default_factory=dict)
    layers: LayerNames | None = None

    def origin(self, origin: Origin) -> int:
        """Numbers a new origin; returns its number."""
        self.origins.append(origin)
        return len(self.origins) - 1

    def facts_of(self, traced: TracedModel) -> GraphFacts:
        """Returns the facts about a graph, which are built when they are first asked for."""
        if id(traced) not in self.facts:
            self.facts[id(traced)] = GraphFacts.of(traced)
        return self.facts[id(traced)]

    def run(self, traced: TracedModel, events: str | None = None) -> None:
        """Walks one graph and keeps its calls under `events` (default: its mode); "" keeps none."""
        kept = None if events == "" else self.events.setdefault(events or traced.mode, [])
        self.causes.runs.append((traced.mode, len(self.origins)))
        _GraphWalk(self, traced, kept).run()


class _GraphWalk:
    """The state of the walk over one graph: the current field of every node."""

    def __init__(self, walk: Walk, traced: TracedModel, events: list[Event] | None) -> None:
        self.walk = walk
        self.traced = traced
        facts = walk.facts_of(traced)
        self.storage, self.known, self.sizes, self.bound = facts.storage, facts.known, facts.sizes, facts.calls
        # Their memory may be written without an operator.
        self.handed_out: set[fx.Node] = set()
        self.memory = Memory(traced.graph, self.storage, self.sizes)
        self.writes = Writes(self.memory, walk.equations, self._again)
        self.picks = Picks(traced.graph, self.storage, self.sizes, self.known, self._probe)
        self.origin_of: dict[fx.Node, int] = {}
        self.zeros = ZeroSources(self._given)
        self.constants: dict[fx.Node, Any] = {}
        self.values: dict[fx.Node, Any] = {}
        self.active: set[fx.Node] = set()
        # Parameters that a node is made of, as long as no model input is mixed in.
        self.made_of: dict[fx.Node, tuple[str, ...]] = {}
        # The parameter of which a node shows entries and nothing else.
        self.part_of: dict[fx.Node, str] = {}
        self.calls = Calls(facts, walk.parameters, walk.options, self.active, self.part_of, self.writes.without_values)
        self.reads = WeightReads(self.sizes, traced.placeholders, walk.layers)
        self.event_of: dict[fx.Node, int] = {}
        self.events = events
        self.ends = OutputEnds(traced, self.storage, walk.held_outputs)
        # Fields are dropped after their last user; events keep those that sites need.
        users = [node for node in traced.graph.nodes if node.op == "output" or node in self.ends.live]
        self.last_use = {source: node for node in users for source in node.all_input_nodes}

    def run(self) -> None:
        """Goes through the graph, node by node."""
        ends = self.ends
        for node in self.traced.graph.nodes:
            if self.events is not None:
                self.reads.follow(node)
            if node.op in ("placeholder", "get_attr"):
                self._start(node)
            elif node.op == "output":
                self._finish(node, ends)
            elif node in ends.live:
                self._step(node)
        # These hold this object, which without them goes as soon as it is done: no collection has to find it.
        del self.calls, self.writes, self.picks, self.zeros

    # --- ends ----------------------------------------------------------------------------------------------------

    def _start(self, node: fx.Node) -> None:
        """Gives a placeholder its first value: a parameter, a constant of zeros, or a tensor that stays as it is."""
        value = self.sizes.of(node)
        known = self.traced.placeholders.get(node.name)
        if not isinstance(value, torch.Tensor):
            self.values[node] = value
            return
        shape = tuple(value.shape)
        self.values[node] = ScaleField(shape)
        if known is None or known.kind != "parameter":
            self.zeros.start(node)
        if known is None or known.kind == "input":
            self.active.add(node)
        elif value.layout is not torch.strided:
            return  # neither a sparse parameter nor a sparse buffer is rescaled
        elif is_floating(value) and (known.kind == "parameter" or known.name in self.walk.movable):
            self.values[node] = ParameterView(known.name, shape)
            self.made_of[node] = (known.name,)
            self.part_of[node] = known.name
        elif known.kind == "constant" and is_floating(value) and _carries_any(known.value):
            self.values[node] = AnyField(shape)

    def _given(self, node: fx.Node) -> int:
        """Numbers a model input or a constant as an origin."""
        known = self.traced.placeholders.get(node.name)
        kind, name = ("input", node.name) if known is None else (known.kind, known.name)
        number = self.walk.origin(Origin(kind, name, "", ""))
        self.walk.causes.given.add(number)
        return number

    def _finish(self, node: fx.Node, ends: OutputEnds) -> None:
        """Holds the outputs of the graph, or keeps their fields where they are not held."""
        if not self.walk.hold_outputs:
            self.walk.outputs += [self._current(source) for source in nodes_in(node.args[0])]
            return
        for output, source in ends.held:
            self._hold_output(output, source)
        self.walk.left_out.update(ends.left_out)
        self.walk.inexact.update(dict.fromkeys(ends.unsearched))

    def _hold_output(self, output: Output, source: fx.Node) -> None:
        """Requires that a value which leaves forward stays as it is."""
        if output.kind == "read":
            origin = Origin("item", source.name, module_path(source), source_line(source), "its value reaches Python")
        else:
            origin = Origin("output", output.path, "", "", "a model output stays as it is")
        number = self.walk.origin(origin)
        for value in flat(self._current(source)):
            self._force(value, number)
        for name in self.made_of.get(source, ()):
            self.walk.roles.setdefault(name, set()).add("other")

    def _force(self, value: Any, origin: int) -> None:
        """Forces the field of one value to zero."""
        if isinstance(value, ParameterView):
            self.walk.parameters.give(value, ScaleField(value.shape), origin)
        elif isinstance(value, ScaleField):
            self.walk.equations.require_zero(value, origin)

    def _current(self, node: fx.Node) -> Any:
        """Returns the node's value as of now: parameters that got a field meanwhile show it."""
        value = self._kept(node)
        return self._looked(value) if isinstance(value, Picked) else value

    def _kept(self, node: fx.Node) -> Any:
        """Returns the node's value as of now, that of slices which an unknown index picked by slice."""
        if self.writes.written(node):
            return self._looked(self.writes.current(node))
        value = self.values.get(node)
        if isinstance(value, Picked):
            return value.looked(self.walk.parameters)
        if value is None and isinstance(self.sizes.of(node), int):
            return self.sizes.of(node)
        return self._looked(value)

    def _reader(self, node: fx.Node, kept: Mapping[fx.Node, Any]) -> Callable[[fx.Node], Any]:
        """Returns how the call reads its arguments: constants beside activations show that their zeros carry any field.

        Args:
            node: the call.
            kept: by argument, its value as it is kept.
        """
        values = [value.value if isinstance(value, Picked) else value for value in kept.values()]
        # A parameter times a mask stays a parameter, which takes its form from its next use.
        as_it_is = node not in self.active or any(isinstance(value, ParameterView) for value in flat(values))

        def read(source: fx.Node) -> Any:
            value = kept[source]
            value = self._looked(value) if isinstance(value, Picked) else value
            return value if as_it_is else self._with_zeros(source, value)

        return read

    def _with_zeros(self, node: fx.Node, value: Any) -> Any:
        """Returns the node's value; that of a constant carries any field where it is known to be 0 or infinite."""
        constant = node not in self.active and not self.made_of.get(node) and isinstance(value, ScaleField) and value.is_zero
        if not constant:
            return value
        if node not in self.constants:
            states = known_zeros(self.known, node, value.shape)
            self.constants[node] = value if states is None else filled(Patchwork(value.shape, (), states), self.walk.equations)
        return self.constants[node]

    def _looked(self, value: Any) -> Any:
        """Returns the value, where parameters that have a field show it and slices that an index picked carry the same."""
        if isinstance(value, ScaleField):
            return value
        if isinstance(value, (list, tuple)):
            return [self._looked(item) for item in value]
        if isinstance(value, Picked):
            value = value.looked(self.walk.parameters).everywhere(self.walk.equations)
        return self.walk.parameters.look(value) if isinstance(value, ParameterView) else value

    # --- one operator --------------------------------------------------------------------------------------------

    def _step(self, node: fx.Node) -> None:
        """Gives a node of the graph its value."""
        sources = node.all_input_nodes
        if any(source in self.active for source in sources):
            self.active.add(node)
            # Expert weights picked by a router are still weights, though which of them depends on the input.
            first, name = node.args[0] if node.args else None, operator_name(node)
            if name in _GATHERS and isinstance(first, fx.Node) and first not in self.active:
                self.made_of[node] = self.made_of.get(first, ())
            elif name in _MOVES and isinstance(first, fx.Node) and first in self.made_of:
                self.made_of[node] = self.made_of[first]
        else:
            self.made_of[node] = tuple(dict.fromkeys(name for source in sources for name in self.made_of.get(source, ())))
        if isinstance(node.target, torch._ops.OpOverload):
            self.values[node] = self._call(node)
        elif not self._item(node):
            self.values[node] = self._unknown(node)
        self._drop(node)

    def _item(self, node: fx.Node) -> bool:
        """Gives a node its value where it takes one output of a call that has several; whether it does."""
        source, position = node.args if is_item(node) else (None, None)
        if not isinstance(source, fx.Node) or not isinstance(position, int):
            return False
        holder = self._current(source) if self.writes.written(source) else self.values.get(source)
        if not isinstance(holder, (list, tuple)):
            return False
        value = holder[position]
        self.values[node] = value if isinstance(value, Picked) else self._looked(value)
        self.zeros.item(node, source, position)
        if source in self.part_of:
            self.part_of[node] = self.part_of[source]
        self._record(node, "getitem", ())
        return True

    def _drop(self, node: fx.Node) -> None:
        """Forgets the fields of nodes that nothing reads any more."""
        for source in node.all_input_nodes:
            if self.last_use.get(source) is node and len(self.storage.members(source)) == 1:
                self.values.pop(source, None)

    def _again(self, node: fx.Node, source: Any, equations: Equations) -> Any:
        """Returns the value of a view once more, from the value of the node that it was made from."""
        if not isinstance(node.target, torch._ops.OpOverload):
            return source[node.args[1]]
        if written_arguments(node):
            return source
        viewed = self.memory.source(node)
        arguments = {
            key: replaced(value, lambda other: source if other is viewed else self._current(other))
            for key, value in self.bound.of(node).arguments.items()
        }
        rule, call = self.calls.of(node, arguments, equations, self.origin_of[node])
        if rule is None:
            return zero_field(call)
        return self._apply_open(rule, call, node) if self._is_open(node) else self._apply(rule, call)

    def _probe(self, node: fx.Node, arguments: Mapping[str, Any], count: int) -> Any:
        """Returns the answer of a call's rule on fields of at most `count` variables; None where it imposes anything."""
        equations = Equations(count)
        rule, call = self.calls.of(node, arguments, equations, self.origin_of[node])
        if rule is None or rule.own:
            return None
        try:
            found = rule.function(call)
        except Exception:  # whatever it is, the call is not followed
            return None
        imposed = equations.ties or equations.zeros or equations.sums or equations.count != count or call.barrier or call.inexact
        return None if imposed else found

    def _is_open(self, node: fx.Node) -> bool:
        """Whether a shape of the call depends on the data."""
        return any(map(self.sizes.is_open, (node, *node.all_input_nodes)))

    def _call(self, node: fx.Node) -> Any:
        """Returns the value of an ATen call: bind its arguments, ask its rule, write where it writes, record it."""
        origin = self._numbered(node)
        rule, call, picked = self._bind(node, origin)
        result = self._ask(node, rule, call)
        self._note_reasons(node, rule, call)
        read = call.tensors()
        if rule is None or rule.family != "constant":
            _note_uses(call, read, result)
        if picked is not None:
            result = picked.wrap(result)
            self.picks.follow(node, result)
        result = self._written(node, result, origin)
        self.values[node] = result
        self._note_part(node, rule)
        self._follow_zeros(node, origin, any(_may_move(value) for _, value in read))
        self._record(node, self.walk.origins[origin].operator, tuple(self._uses(node, call)), origin)
        return result

    def _numbered(self, node: fx.Node) -> int:
        """Numbers the call as an origin of equations."""
        call = self.bound.of(node)
        origin = self.walk.origin(_place(f"{call.operator.split('::')[-1]}.{call.overload}", node))
        self.origin_of[node] = origin
        return origin

    def _bind(self, node: fx.Node, origin: int) -> tuple[Rule | None, Call, PickedCall | None]:
        """Returns the rule, the call with the fields of its arguments, and how it is followed slice by slice, if it is."""
        kept = {source: self._kept(source) for source in node.all_input_nodes}
        read = self._reader(node, kept)
        picked = None if self.writes.written(node) else self.picks.call(node, kept, read, origin)
        if picked is None:
            unread, bound = _unread(node), self.bound.of(node).arguments
            arguments = {key: replaced(value, read) for key, value in bound.items() if key not in unread}
        else:
            arguments = picked.arguments
        rule, call = self.calls.of(node, arguments, self.walk.equations, origin)
        if picked is not None and rule is not None:
            rule, call = picked.on_slices(rule, call)
        return rule, call, picked

    def _ask(self, node: fx.Node, rule: Rule | None, call: Call) -> Any:
        """Returns the fields of the call's outputs: by its rule, or as a barrier."""
        if operator_name(node) == HOLD:
            self.handed_out.add(node)
            return barrier(call, self.bound.of(node).arguments["reason"])
        if rule is not None:
            return self._apply_open(rule, call, node) if self._is_open(node) else self._apply(rule, call)
        if all(isinstance(value, ScaleField) and value.is_zero for _, value in call.tensors()):
            # Harmless here, yet a model with other parameters in front would be stopped: it is listed.
            call.barrier = NO_RULE if node in self.active and call.tensors() else None
            return zero_field(call)
        return barrier(call, NO_RULE)

    def _note_reasons(self, node: fx.Node, rule: Rule | None, call: Call) -> None:
        """Notes why the call holds its arguments, and how far its rule is not exact."""
        if call.barrier:
            known = rule is not None or operator_name(node) == HOLD
            self.walk.origins[call.origin] = replace(self.walk.origins[call.origin], reason=call.barrier, known=known)
        self.walk.inexact.update(dict.fromkeys(call.inexact))
        if call.inexact and rule is not None and rule.family == "normalising":
            self.walk.causes.by_option.add(call.origin)

    def _note_part(self, node: fx.Node, rule: Rule | None) -> None:
        """Notes the parameter of which the result shows entries and nothing else."""
        if rule is None or rule.family != "structural":
            return
        parts = {self.part_of.get(source) for source in node.all_input_nodes if is_floating(self.sizes.of(source))}
        if len(parts) == 1 and None not in parts:
            self.part_of[node] = parts.pop()  # type: ignore[assignment]

    def _apply(self, rule: Rule, call: Call) -> Any:
        """Returns the rule's answer; a rule that fails on unforeseen arguments becomes a barrier, with a warning."""
        try:
            found = rule.function(call)
            if rule.own:
                check_roles(call)
            return _only_floating(found, call.output)
        except Exception as error:  # whatever it is, the model can be analysed without this rule
            where = self.walk.origins[call.origin]
            if rule.own:
                call.roles.clear()
                warn_user(failure_of_own_rule(rule, call, error, where.node, where.source))
                return barrier(call, f"its rule failed: {type(error).__name__}: {error}")
            warn_user(
                f"the scale rule of {where.operator} failed at {where.node} ({where.source or 'source unknown'}) and was "
                f"replaced by a barrier, which holds what reaches it: {type(error).__name__}: {error}. Please report this"
            )
            return barrier(call, f"its rule failed: {type(error).__name__}: {error}")

    def _apply_open(self, rule: Rule, call: Call, node: fx.Node) -> Any:
        """Returns the rule's answer where sizes depend on the data: for numbers in their place, constant along such axes."""
        try:
            result = _only_floating(rule.function(call), call.output)
        except Exception:  # the numbers in place of the sizes need not fit together
            return barrier(call, "a shape depends on the data") if call.tensors() else zero_field(call)
        fake = node.meta["val"]
        if isinstance(result, (list, tuple)):
            return [self._same_everywhere(call, value, part) for value, part in zip(result, fake, strict=True)]
        return self._same_everywhere(call, result, fake)

    def _same_everywhere(self, call: Call, value: Any, fake: Any) -> Any:
        """Returns the field, constant along the axes of unknown length."""
        axes = self.sizes.unknown_axes(fake)
        return call.constant(value, axes) if axes and isinstance(value, ScaleField) else value

    def _uses(self, node: fx.Node, call: Call) -> Iterator[tuple[str, str]]:
        """Gives (parameter name, role) for every parameter that the call reads."""
        for key, sources in self.bound.of(node).nodes.items():
            for position, source in enumerate(sources):
                made = self.made_of.get(source)
                if not made:
                    continue
                # Weights and biases may stand in one list: a rule names their roles one by one.
                said = call.roles.get(f"{key}[{position}]", call.roles.get(key))
                role = said or "other"
                for name in made:
                    if call.own and said is None:
                        self.walk.unsaid.setdefault(name, (call.operator, key))
                    yield name, role

    def _follow_zeros(self, node: fx.Node, origin: int, moving: bool) -> None:
        """Notes who made the result zero, and the arguments; `moving`: an argument is not zero for certain."""
        sources = [source for source in node.all_input_nodes if not self.made_of.get(source)]
        sources.sort(key=lambda other: other not in self.active)
        source, along = self.zeros.read(sources), self.zeros.along(sources)
        if source is not None:
            self.walk.causes.held_by[origin] = source
        if along is not None:
            self.walk.causes.held_along[origin] = along
        elif node not in self.active and not self.made_of.get(node):
            self.walk.causes.given.add(origin)
        barrier = moving and self.walk.origins[origin].reason != ""
        self.zeros.step(node, self.values[node], origin, source, barrier, lambda: self._zeros_by_entry(node, origin))
        for target, _ in written_arguments(node):
            self.zeros.write(self.storage.members(target), node)

    def _zeros_by_entry(self, node: fx.Node, origin: int) -> Any:
        """Returns the origin of each zero of the result, where these are several: the call's rule moves their numbers."""
        sources = [source for source in node.all_input_nodes if is_floating(self.sizes.of(source))]
        if any(isinstance(self._kept(source), Picked) for source in sources):
            return None
        values = [self._current(source) for source in sources]
        if not self.zeros.differ(sources) or not all(isinstance(value, (ScaleField, AnyField)) for value in values):
            return None

        def shown(source: fx.Node) -> Any:
            value = self._current(source)
            return self.zeros.as_field(source, value.shape) if isinstance(value, ScaleField) else value

        arguments = {key: replaced(value, shown) for key, value in self.bound.of(node).arguments.items()}
        rule, call = self.calls.of(node, arguments, Equations(NOBODY + 1), origin)
        if rule is None or rule.own or rule.family not in ("structural", "reduction", "homogeneous") or self._is_open(node):
            return None
        try:
            return rule.function(call)
        except Exception:  # whatever it is, the account can name one of them for all entries
            return None

    def _unknown(self, node: fx.Node) -> Any:
        """Returns the value of a call of something that is no ATen operator: its arguments are held."""
        output = self.sizes.of(node)
        values = [value for source in node.all_input_nodes for value in flat(self._current(source))]
        moving = [v for v in values if _may_move(v)]
        name = str(getattr(node.target, "__name__", node.target))
        if moving:
            inner = isinstance(node.target, torch._ops.HigherOrderOperator)
            reason = f"{NO_RULE}, which calls functions of its own" if inner else NO_RULE
            origin = self.walk.origin(replace(_place(name, node), reason=reason, known=False))
            for value in moving:
                self._force(value, origin)
            self.origin_of[node] = origin
        result = [ScaleField(tuple(v.shape)) if isinstance(v, torch.Tensor) else v for v in flat(output)]
        self.values[node] = result if isinstance(output, (list, tuple)) else result[0] if result else None
        uses = tuple((used, "other") for source in node.all_input_nodes for used in self.made_of.get(source, ()))
        if node in self.origin_of:
            self._follow_zeros(node, self.origin_of[node], True)
        else:
            self.zeros.step(node, self.values[node], None, self.zeros.read(node.all_input_nodes), False, lambda: None)
        self._record(node, name, uses)
        return self.values[node]

    # --- writes --------------------------------------------------------------------------------------------------

    def _written(self, node: fx.Node, result: Any, origin: int) -> Any:
        """Writes the results of a call to the arguments that it writes to; returns the result as later readers see it."""
        for target, position in written_arguments(node):
            value = result[position] if isinstance(result, (list, tuple)) and position is not None else result
            seen = self._write(target, value, node, origin)
            if not isinstance(result, (list, tuple)):
                result = seen
        return result

    def _write(self, target: fx.Node, new: Any, node: fx.Node, origin: int) -> Any:
        """`node` writes a tensor of field `new` into `target`; returns the field that later readers of the memory see."""
        if self.picks.follows(target):
            return new
        fake = self.sizes.of(target)
        if not is_floating(fake) or not isinstance(new, (ScaleField, AnyField, ParameterView)):
            return new
        kept = self._outlives(target)
        if kept:
            return self._write_to_kept(target, kept, new, origin)
        if self.handed_out and not self.handed_out.isdisjoint(self.storage.members(target)):
            self._force(new, origin)
            new = ScaleField(tuple(fake.shape))
        if not isinstance(new, ParameterView) and self.writes.write(
            target, new, lambda base: self._settled(base, origin), origin
        ):
            return new
        shared = [member for member in self.storage.read_later(target, node) if member in self.values]
        if not shared:
            self.values[target] = new
            return new
        return self._write_to_shared(target, shared, new, origin)

    def _outlives(self, target: fx.Node) -> list[Placeholder]:
        """Returns the parameters, buffers, attributes and inputs that lie in the memory of a node."""
        members = (member for member in self.storage.members(target) if member.op in ("placeholder", "get_attr"))
        owners = [self.traced.placeholders[member.name] for member in members if member.name in self.traced.placeholders]
        return [owner for owner in owners if owner.kind in ("parameter", "buffer", "state", "input")]

    def _write_to_kept(self, target: fx.Node, kept: Sequence[Placeholder], new: Any, origin: int) -> ScaleField:
        """Holds a write to memory that the model keeps from one call to the next, or hands back to the caller."""
        reader = "the caller" if kept[0].kind == "input" else "the next call"
        self._reason(origin, f"writes to the {kept[0].kind} {kept[0].name}, which {reader} reads")
        self._force(new, origin)
        for owner in kept:
            if owner.name in self.walk.parameters.shapes:
                view = self.walk.parameters.look(ParameterView(owner.name, self.walk.parameters.shapes[owner.name]))
                self._force(view, origin)
        return ScaleField(tuple(self.sizes.of(target).shape))

    def _write_to_shared(self, target: fx.Node, shared: Sequence[fx.Node], new: Any, origin: int) -> Any:
        """Writes to memory that is read later through other nodes, where it is not known which part of it each sees."""
        old = self._current(target)
        if self.writes.written(target):
            self._reason(origin, "writes through a view")
            self._force(new, origin)
            self.writes.hold(target, origin)
            return ScaleField(tuple(self.sizes.of(target).shape))
        if isinstance(new, AnyField):
            # Zeros carry whatever the memory carries.
            return old
        if isinstance(old, ScaleField) and not isinstance(new, ParameterView):
            self.walk.equations.require_equal(new, old, origin)
            return old
        self._reason(origin, "writes through a view")
        self._force(new, origin)
        for member in [target, *shared]:
            self.values[member] = _zeros_like(self.values[member])
        return ScaleField(tuple(self.sizes.of(target).shape))

    def _settled(self, node: fx.Node, origin: int) -> Any:
        """Returns the field of a node, where a parameter gets one."""
        value = self._current(node)
        return self.walk.parameters.form(value, origin) if isinstance(value, ParameterView) else value

    def _reason(self, origin: int, reason: str) -> None:
        """Notes why the origin holds its arguments, unless a reason is there."""
        where = self.walk.origins[origin]
        self.walk.origins[origin] = replace(where, reason=where.reason or reason, known=True)

    # --- events --------------------------------------------------------------------------------------------------

    def _record(self, node: fx.Node, operator: str, uses: tuple[tuple[str, str], ...], origin: int | None = None) -> None:
        """Notes the call for pairs and sites."""
        for name, role in uses:
            self.walk.roles.setdefault(name, set()).add(role)
        if self.events is None:
            return
        found_reads = list(self.reads.of(node))
        if node not in self.active:
            return
        where = _place(operator, node) if origin is None else self.walk.origins[origin]
        inputs = tuple(dict.fromkeys(self.event_of[source] for source in node.all_input_nodes if source in self.event_of))
        outputs = tuple(value for value in flat(self.values.get(node)) if isinstance(value, ScaleField))
        found = (value.value for value in flat(self.values.get(node)) if isinstance(value, Picked))
        picked = tuple(value for value in found if isinstance(value, ScaleField))
        self.event_of[node] = len(self.events)
        reads = tuple(self._read(found) for found in found_reads)
        self.events.append(Event(where, inputs, outputs, tuple(dict.fromkeys(uses)), picked, reads))

    def _read(self, found: FoundRead) -> WeightRead:
        """Returns a read of a weight with the field of the activation, in which zeros stay as they are."""
        value = self._kept(found.activation)
        shown: ScaleField | None = value if isinstance(value, ScaleField) else ScaleField(found.shape)
        if found.part is None or isinstance(value, Picked):
            shown = None
        return WeightRead(found.parameter, found.call, found.part or 0, found.axis, found.shape, shown)


def _place(operator: str, node: fx.Node) -> Origin:
    """Returns a call of an operator as an origin of equations."""
    return Origin(operator, node.name, module_path(node), source_line(node), call=call_number(node))


def _may_move(value: Any) -> bool:
    """Whether the value is not left as it is for certain."""
    return isinstance(value, ParameterView) or (isinstance(value, ScaleField) and not value.is_zero)


def _note_uses(call: Call, read: Sequence[tuple[str, Any]], result: Any) -> None:
    """Parameters of which the result is no view any more: their values, offset included, matter from here on."""
    views = [value for _, value in read if isinstance(value, ParameterView)]
    passed = {value.name for value in flat(result) if isinstance(value, ParameterView)} if views else set()
    for view in views:
        if view.name not in passed:
            call.uses(view)


def _unread(node: fx.Node) -> tuple[str, ...]:
    """Returns the names of the arguments whose values the call does not look at."""
    return ("self",) if operator_name(node) in _OVERWRITE else ()


def _only_floating(result: Any, output: Any) -> Any:
    """Tensors of integers and booleans carry no scale, whatever a rule says."""
    if isinstance(output, (list, tuple)) and isinstance(result, (list, tuple)):
        return [_only_floating(r, o) for r, o in zip(result, output, strict=True)]
    if isinstance(output, torch.Tensor):
        shape = tuple(output.shape)
        if not is_floating(output):
            return ScaleField(shape)
        if not isinstance(result, (ScaleField, AnyField, ParameterView)) or tuple(result.shape) != shape:
            found = getattr(result, "shape", type(result).__name__)
            raise RuntimeError(f"a scale rule returned a field of shape {found} for an output of shape {shape}")
    return result


def _carries_any(value: torch.Tensor | None) -> bool:
    """Whether a constant is known to hold nothing but 0 and infinities."""
    if value is None or value.is_meta or value.numel() > _LARGEST_CONSTANT:
        return False
    value = value.detach()
    return bool(((value == 0) | torch.isinf(value)).all())


def _zeros_like(value: Any) -> Any:
    """Fields of the same shapes that are left as they are."""
    if isinstance(value, (list, tuple)):
        return [_zeros_like(item) for item in value]
    return ScaleField(tuple(value.shape)) if isinstance(value, (ScaleField, AnyField, ParameterView)) else value
