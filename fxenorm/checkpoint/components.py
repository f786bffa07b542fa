"""The parts of a plan that have nothing to do with one another: each can be balanced without the others' weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..analysis.analysis import Analysis
from ..analysis.groups import Group
from ..symmetry.symmetry import Term

__all__ = ["components", "names_in", "restricted"]


def components(analysis: Analysis) -> tuple[NDArray[np.int64], ...]:
    """Returns the connected components of the variables: two are connected where one tensor or one activation carries both.

    Args:
        analysis: the plan without its module.

    Returns:
        One array of ascending variables for each component, by its first variable. The objective is a sum of functions of one
        component each, so that balancing them one by one balances the whole.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = analysis.symmetry.num_scales
    if not count:
        return ()
    blocks = [*analysis.variables_of.values()]
    blocks += [_variables(item.terms) for item in analysis.counted.tensors]
    blocks += [_variables(terms) for terms in analysis.symmetry.channels]
    # A star for each block: its first variable is joined to all of them.
    joined = [block for block in blocks if block.size > 1]
    heads = np.concatenate([np.zeros(0, dtype=np.int64), *(np.full(block.size, block[0]) for block in joined)])
    ends = np.concatenate([np.zeros(0, dtype=np.int64), *joined])
    graph = coo_matrix((np.ones(heads.size, dtype=np.int8), (heads, ends)), shape=(count, count))
    number, labels = connected_components(graph, directed=False)
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(labels, minlength=number))[:-1])
    return tuple(sorted((np.asarray(part, dtype=np.int64) for part in parts), key=lambda part: int(part[0])))


def names_in(analysis: Analysis, variables: NDArray[np.int64]) -> tuple[str, ...]:
    """Returns the names of the tensors that balancing a component reads or writes, in the order of the exponents.

    Args:
        analysis: the plan without its module.
        variables: one of its `components`.
    """
    mask, firsts = _mask(analysis, variables), _firsts(analysis)
    found = dict.fromkeys(name for name, first in zip(analysis.variables_of, firsts.tensors, strict=True) if mask[first])
    for item, first in zip(analysis.counted.tensors, firsts.counted, strict=True):
        if item.fold is not None and mask[first]:
            fold = item.fold
            found.update(dict.fromkeys(filter(None, (fold.weight, fold.bias, fold.gamma, fold.beta, fold.mean, fold.variance))))
    return tuple(found)


def restricted(analysis: Analysis, variables: NDArray[np.int64]) -> Analysis:
    """Returns the plan of one component: a plan of its tensors alone, in the same order, with the same layer weights.

    Args:
        analysis: the plan without its module.
        variables: one of its `components`.

    Returns:
        A plan whose variable k is ``variables[k]``.
    """
    symmetry, mask, firsts = analysis.symmetry, _mask(analysis, variables), _firsts(analysis)
    names = names_in(analysis, variables)
    places = np.full(symmetry.num_scales + 1, -1, dtype=np.int64)  # the last one is that of -1
    places[variables] = np.arange(variables.size)
    exponents = {name: _moved(symmetry.exponents[name], places) for name in names if name in symmetry.exponents}
    part = dataclasses.replace(
        symmetry,
        num_scales=int(variables.size),
        exponents={name: terms for name, terms in exponents.items() if terms},
        group_starts=_group_starts(symmetry.group_starts, mask),
        shapes={name: symmetry.shapes[name] for name in names if name in symmetry.shapes},
        aliases={},
        offsets={name: offset for name, offset in symmetry.offsets.items() if name in exponents},
        channels=tuple(_moved(symmetry.channels[place], places) for place in np.flatnonzero(mask[firsts.channels])),
        flows={},
        sites=(),
        account=None,
        folds=tuple(fold for fold in symmetry.folds if fold.weight in names),
    )
    found = Analysis(part, analysis.options, _groups(analysis.groups, mask), ())
    found.executor = analysis.executor
    own = {id(analysis.counted.tensors[place].terms) for place in np.flatnonzero(mask[firsts.counted])}

    def renamed(terms: Sequence[Term]) -> tuple[Term, ...]:
        """Returns terms in the component's variables, without a look at those of others."""
        return _moved(terms, places) if id(terms) in own else ()

    found.__dict__["counted"] = analysis.counted.renamed(renamed, part.num_scales, analysis.options.p)
    found.__dict__["feeding_last"] = analysis.feeding_last[variables]
    return found


@dataclass(frozen=True)
class _Firsts:
    """The first variable of each thing that carries some, -1 where it carries none: all others are in the same component.

    Attributes:
        tensors: in the order of `Analysis.variables_of`.
        counted: of the counted tensors.
        channels: of the channels' fields.
    """

    tensors: NDArray[np.int64]
    counted: NDArray[np.int64]
    channels: NDArray[np.int64]


def _firsts(analysis: Analysis) -> _Firsts:
    """Returns them, worked out once for a plan."""

    def of(blocks: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Returns the first of each block of ascending variables."""
        return np.array([ids[0] if ids.size else -1 for ids in blocks], dtype=np.int64)

    def make() -> _Firsts:
        """Works them out."""
        counted = (_variables(item.terms) for item in analysis.counted.tensors)
        return _Firsts(of(analysis.variables_of.values()), of(counted), of(map(_variables, analysis.symmetry.channels)))

    found: _Firsts = analysis.remembered(("first variables",), make)
    return found


def _mask(analysis: Analysis, variables: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns (K + 1,) bool: the given variables; the last place is that of -1."""
    mask = np.zeros(analysis.symmetry.num_scales + 1, dtype=bool)
    mask[variables] = True
    return mask


def _variables(terms: Iterable[Term]) -> NDArray[np.int64]:
    """Returns the variables of some terms, ascending."""
    ids = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(np.asarray(ids).reshape(-1) for _, ids in terms)]))
    return ids[ids >= 0]


def _moved(terms: Iterable[Term], places: NDArray[np.int64]) -> tuple[Term, ...]:
    """Returns terms in other variables, without those that are fixed everywhere."""
    moved = ((coefficient, places[np.asarray(ids)]) for coefficient, ids in terms)
    return tuple((coefficient, ids) for coefficient, ids in moved if (ids >= 0).any())


def _group_starts(starts: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns where the groups of the remaining variables start; a group without any is none."""
    sizes = np.add.reduceat(mask[:-1].astype(np.int64), np.asarray(starts[:-1])) if len(starts) > 1 else np.zeros(0, np.int64)
    return np.concatenate([[0], np.cumsum(sizes[sizes > 0])]).astype(np.int64)


def _groups(groups: Iterable[Group], mask: NDArray[np.bool_]) -> tuple[Group, ...]:
    """Returns the groups of the remaining variables, which keep their names."""
    found, start = [], 0
    for group in groups:
        size = int(mask[group.variables.start : group.variables.stop].sum())
        if size:
            found.append(dataclasses.replace(group, variables=range(start, start + size), sites=()))
            start += size
    return tuple(found)
