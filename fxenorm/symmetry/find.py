"""From traced graphs to the group of rescalings: walk with the rules, solve the equations, number the variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..errors import UnsupportedOperatorError
from ..field import NEVER, Equations, Ids, ParameterFields, Solution, Term, solve
from ..rules import NO_RULE, RuleOptions, is_floating
from ..trace.layers import LayerNames
from ..trace.outputs import check_patterns
from ..trace.traced_model import TracedModel
from .account import ChannelAccount
from .count_ends import count_ends
from .express import Expander, FreeFields, coprime_signs, group_order, redundant_variables
from .flow import channels_of, flows_of, sites_of
from .folds import find_folds
from .graph.arguments import bound_arguments, operator_name
from .holding import hold_parameters, hold_unread
from .repeated_rows import ShortFields
from .symmetry import Barrier, OutputUse, Role, Symmetry
from .walk import Walk
from .walk.events import Origin
from .walk.own_rules import warn_of_uncounted

__all__ = ["find_symmetry"]

_Final = tuple[dict[str, tuple[Term, ...]], Ids, Expander]
"""(exponents of all parameters, starts of the groups, the way from raw variables to final ones)."""

_BY_BATCH = (
    'batchnorm="frozen" preserves the function in eval mode only, for in train mode a BatchNorm takes the statistics of its '
    'batch (modes="eval" asks for eval mode alone)'
)

_ROLE_ORDER: tuple[Role, ...] = ("weight", "gamma", "bias", "slope", "other")


def find_symmetry(
    traced: Sequence[TracedModel],
    model: nn.Module,
    *,
    batchnorm: str = "affine",
    biases: str = "scale",
    exclude: Sequence[str] = (),
    approximate: Sequence[str] = (),
    on_unknown: str = "barrier",
    outputs: Sequence[str] | None = None,
) -> Symmetry:
    """Finds all positive diagonal rescalings of a model that keep every traced graph's outputs.

    Args:
        traced: the model's graphs, one a mode.
        model: the module that was traced; only names, shapes and integer buffers are read.
        batchnorm, biases, exclude, approximate, on_unknown, outputs: see `fxenorm.analyze`.

    Returns:
        The symmetry, plain data without any graph.

    Raises:
        OptionError: a pattern in `outputs` names nothing.
        UnsupportedOperatorError: an operator without a rule was met and `on_unknown` is "error"; lists all of them.
    """
    by_batch = batchnorm == "frozen" and any(graph.mode == "train" and _takes_statistics(graph) for graph in traced)
    if by_batch:
        traced = [graph for graph in traced if graph.mode == "eval"]
    aliases = _aliases(traced)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if is_floating(p) and name not in aliases}
    check_patterns({graph.mode: graph.outputs for graph in traced}, outputs)
    walk = _walk(traced, model, shapes, RuleOptions(batchnorm, biases, frozenset(approximate)), outputs)
    held = hold_parameters(walk, traced, shapes, aliases, exclude)
    hold_unread(walk, [path for graph in traced for path in (graph, *graph.paths)])
    walk.facts.clear()
    short = ShortFields()
    found = _common_group(walk, traced, held, short)
    if on_unknown == "error":
        _refuse_unknown(found.barriers)
    roles = {name: next(role for role in _ROLE_ORDER if role in seen) for name, seen in walk.roles.items() if name in shapes}
    warn_of_uncounted(walk.unsaid, found.exponents, roles)
    account = count_ends(walk, found.free, found.exponents, found.num_scales, roles, found.origins, found.second)
    buffers = dict(model.named_buffers())
    moved = {name: tuple(buffers[name].shape) for name in sorted(walk.movable & found.exponents.keys())}
    return _as_symmetry(walk, traced, found, shapes, moved, roles, _inexact_reasons(walk, traced, by_batch), account)


@dataclass(frozen=True)
class _Found:
    """The group of rescalings, as the equations give it.

    Attributes:
        exponents: by parameter name, over final variables.
        starts: (groups + 1,) the first variable of each group, and the number of all.
        expander: the way from raw variables to final ones.
        barriers: the nodes that force variables to zero.
        by_output: by path, how many variables each output forces to zero.
        free: the fields of parameters by the solution that was taken.
        origins: number of origins that it knows of.
        second: the first origin of the second size if that was needed.
    """

    exponents: dict[str, tuple[Term, ...]]
    starts: Ids
    expander: Expander
    barriers: tuple[Barrier, ...]
    by_output: dict[str, int]
    free: FreeFields
    origins: int
    second: int | None = None

    @property
    def num_scales(self) -> int:
        """The dimension of the group, the number of final variables."""
        return int(self.starts[-1])


def _as_symmetry(
    walk: Walk,
    traced: Sequence[TracedModel],
    found: _Found,
    shapes: dict[str, tuple[int, ...]],
    moved: dict[str, tuple[int, ...]],
    roles: Mapping[str, Role],
    inexact_reasons: tuple[str, ...],
    account: ChannelAccount,
) -> Symmetry:
    """Returns the group with the calls that carry it, as plain data; `moved`: the shapes of moved buffers."""
    return Symmetry(
        num_scales=found.num_scales,
        exponents=found.exponents,
        group_starts=found.starts,
        shapes={**shapes, **moved},
        buffers=frozenset(moved),
        aliases=_aliases(traced),
        roles=roles,
        flows={mode: flows_of(events, found.expander, found.starts) for mode, events in walk.events.items()},
        sites=sites_of(walk.events, found.expander),
        channels=channels_of(walk.events, found.expander),
        barriers=found.barriers,
        folds=find_folds(traced),
        fixed_by_output=sum(found.by_output.values()),
        outputs=_outputs(found.by_output, walk.left_out),
        modes=tuple(dict.fromkeys(mode for graph in traced for mode in (graph.covers or (graph.mode,)))),
        tracer=traced[0].tracer if all(graph.tracer == "export" for graph in traced) else "make_fx",
        inexact_reasons=inexact_reasons,
        notes=tuple(dict.fromkeys(note for graph in traced for note in graph.notes)),
        second_sizes=_second_sizes(traced),
        offsets={name: offset for name in found.exponents if (offset := walk.parameters.offsets.get(name))},
        account=account,
    )


def _aliases(traced: Sequence[TracedModel]) -> dict[str, str]:
    """Returns, for every further name of a tensor, its first name."""
    return {alias: name for graph in traced for alias, name in graph.aliases.items()}


def _inexact_reasons(walk: Walk, traced: Sequence[TracedModel], by_batch: bool) -> tuple[str, ...]:
    """Returns, in sentences, why a rescaling does not leave the function as it is."""
    reasons = [*walk.inexact, *(reason for graph in traced for reason in graph.inexact)]
    return tuple(dict.fromkeys([*reasons, _BY_BATCH] if by_batch else reasons))


def _walk(
    traced: Sequence[TracedModel],
    model: nn.Module,
    shapes: dict[str, tuple[int, ...]],
    options: RuleOptions,
    outputs: Sequence[str] | None,
) -> Walk:
    """Walks all graphs over one set of equations."""
    equations = Equations()
    buffers = {name: tuple(b.shape) for name, b in model.named_buffers() if is_floating(b)}
    movable = _running_means(traced) if options.batchnorm == "frozen" else set()
    fields = ParameterFields(equations, {**shapes, **{name: buffers[name] for name in movable if name in buffers}})
    layers = LayerNames(model, _aliases(traced))
    walk = Walk(equations, fields, options, movable=movable, held_outputs=outputs, layers=layers)
    for graph in traced:
        walk.run(graph)
        for number, path in enumerate(graph.paths, start=2):
            walk.run(path, f"{graph.mode}, path {number}")
    return walk


def _common_group(walk: Walk, traced: Sequence[TracedModel], held: set[str], short: ShortFields) -> _Found:
    """Returns the group that holds at the first size and at the second.

    Where the second size takes nothing away, all is told as the first size shows it.
    """
    solution = solve(walk.equations)
    free = FreeFields(solution, short)
    final = _final_exponents(walk, free, held, short)
    seconds = [graph.second for graph in traced if graph.second is not None]
    origins, fields = len(walk.origins), len(walk.parameters.fields)
    first = _Found(*final, *_barriers(walk.origins, solution), free, origins)
    if not seconds:
        return first
    for graph in seconds:
        walk.run(graph, events="")
    common = solve(walk.equations)
    unchanged = _same(common.matrix, solution.matrix) or _rank(walk, FreeFields(common, short)) == first.num_scales
    if len(walk.parameters.fields) == fields and unchanged:
        return first
    barriers = _barriers(walk.origins, common, solution.labels, origins)
    free = FreeFields(common, short)
    return _Found(*_final_exponents(walk, free, held, short), *barriers, free, len(walk.origins), origins)


def _same(one: Any, other: Any) -> bool:
    """Whether two sparse matrices are equal."""
    return one.shape == other.shape and not (one != other).nnz


def _rank(walk: Walk, free: FreeFields) -> int:
    """Returns the number of independent scales that move a parameter."""
    return int(_free_columns(walk, free).size)


def _second_sizes(traced: Sequence[TracedModel]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Returns, by input tensor, by axis, its two sizes."""
    for graph in traced:
        if graph.second is not None and graph.inputs is not None and graph.second.inputs is not None:
            pairs = zip(graph.inputs.tensors(), graph.second.inputs.tensors(), strict=True)
            return tuple(tuple(zip(map(int, a.shape), map(int, b.shape), strict=True)) for a, b in pairs)
    return ()


def _takes_statistics(graph: TracedModel) -> bool:
    """Whether a BatchNorm that has running statistics uses those of the batch instead."""
    for path in (graph, *graph.paths):
        calls = (bound_arguments(node) for node in path.graph.nodes if "batch_norm" in operator_name(node))
        if any(call.get("running_mean") is not None and call.get("training", True) is not False for call in calls):
            return True
    return False


def _running_means(traced: Sequence[TracedModel]) -> set[str]:
    """Returns the names of the buffers that BatchNorms subtract."""
    names = set()
    for graph in traced:
        for node in graph.graph.nodes:
            if node.op == "call_function" and "batch_norm" in str(node.target) and len(node.args) > 3:
                source = node.args[3]
                known = graph.placeholders.get(getattr(source, "name", ""))
                if known is not None and known.kind == "buffer":
                    names.add(known.name)
    return names


def _barriers(
    origins: Sequence[Origin], solution: Solution, labels: Ids | None = None, first: int | None = None
) -> tuple[tuple[Barrier, ...], dict[str, int]]:
    """Returns the nodes that were the first to force variables (classes of tied ones) to zero, and by path the same of outputs.

    Counted are the classes of `labels`, which are those of the first size; origins from `first` on belong to the second size,
    where only what takes something away is listed.
    """
    _, representative = np.unique(solution.labels if labels is None else labels, return_index=True)
    origin = solution.zero_origin[representative]
    counts = np.bincount(origin[origin != NEVER], minlength=len(origins))
    found: list[Barrier] = []
    by_output: dict[str, int] = {}
    for number, (where, count) in enumerate(zip(origins, counts, strict=True)):
        second = first is not None and number >= first
        if where.operator == "output":
            by_output[where.node] = by_output.get(where.node, 0) + int(count)
        elif count or not (where.known or second):
            reason = (where.reason or "ties its inputs to what is fixed") + (", at the second size" if second else "")
            found.append(Barrier(where.operator, where.node, where.module, where.source, int(count), reason, where.known))
    return tuple(found), by_output


def _outputs(by_output: dict[str, int], left_out: dict[str, str]) -> tuple[OutputUse, ...]:
    """Returns the values that leave forward, held or not; a path that is held in one mode is held."""
    held = [OutputUse(path, True, count) for path, count in by_output.items()]
    return (*held, *(OutputUse(path, False, 0, reason) for path, reason in left_out.items() if path not in by_output))


def _refuse_unknown(barriers: Sequence[Barrier]) -> None:
    """Raises with the full list of operators without a rule."""
    unknown = [barrier for barrier in barriers if not barrier.known]
    if unknown:
        lines = [f"  {b.operator} at {b.node} ({b.source or 'source unknown'}), stops {b.variables} variables" for b in unknown]
        raise UnsupportedOperatorError(
            f"{NO_RULE}:\n" + "\n".join(lines) + '\nAdd a rule, or pass on_unknown="barrier" to hold what reaches them.'
        )


def _final_exponents(walk: Walk, free: FreeFields, held: set[str], short: ShortFields) -> _Final:
    """Returns the exponents of all parameters over final variables, the starts of the groups, and the way from raw ids there."""
    # A held parameter is zero everywhere, whatever sums of variables its terms have become.
    fields = {name: field for name, field in short.of(walk.parameters.fields).items() if name not in held}
    matrix = free.solution.matrix[:, _free_columns(walk, free)]
    matrix.eliminate_zeros()
    count = matrix.shape[1]
    second = Expander(matrix)
    exponents = {name: field.over(second).merged().terms for name, field in fields.items()}
    divisor, sign = coprime_signs(exponents, count)
    columns = matrix.tocsc()
    columns.sort_indices()
    first_seen = columns.indices[columns.indptr[:-1]].astype(np.int64) if count else np.zeros(0, dtype=np.int64)
    number, starts = group_order(exponents, count, first_seen)
    unit = np.ones(count, dtype=np.int64)
    unit[number] = divisor
    final = Expander(_renumber(matrix, sign, number), unit)
    merged = {name: field.over(final).merged().whole() for name, field in fields.items()}
    return {name: terms for name, terms in merged.items() if terms}, starts, final


def _free_columns(walk: Walk, free: FreeFields) -> Ids:
    """Returns the free variables that move parameters, each in a way that the others cannot."""
    raw = free.of(walk.parameters.fields)
    count = free.solution.matrix.shape[1]
    used = np.zeros(count, dtype=bool)
    for field in raw.values():
        for _, ids in field.terms:
            used[ids[ids >= 0]] = True
    used[redundant_variables(raw, count)] = False
    return np.flatnonzero(used)


def _renumber(matrix: Any, sign: Ids, number: Ids) -> Any:
    """Returns the columns in their final order, each with the sign that makes its first exponent positive."""
    from scipy.sparse import csr_array

    coo = matrix.tocoo()
    return csr_array((coo.data * sign[coo.col], (coo.row, number[coo.col])), shape=matrix.shape)
