"""Reads the entries of a term from a model's weights, or from masses that a user gives, into parts of an objective."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..analysis.analysis import Analysis
from ..analysis.attained.basis import Basis
from ..analysis.counted import CountedTensor, CountedTensors, count_tensors
from ..errors import OptionError
from ..field import Term as FieldTerm
from ..kernels.backend import Backend, reference_backend
from ..kernels.program import ReduceProgram, build_program
from ..kernels.terms import split_repeats
from ..observe.observation import Observation
from ..weights.objective import CurrentObjective
from ..weights.weights import Weights as ModelWeights
from .entries.items import Item, counted_entries, log_still, powers
from .entries.spread import SpreadTensors
from .observed_terms import Migration
from .own import Sharing, own_part
from .parts import Exponentials, Normal, Part
from .quantisers import inputs_of_layers
from .terms import Key, Masses, Normalised, Weights, summands

__all__ = ["Source"]


class Source:
    """Reads terms at the current weights, over the places of a basis.

    Args:
        analysis: the plan without its module.
        weights: the model's tensors, in the basis of what may move.
    """

    def __init__(self, analysis: Analysis, weights: ModelWeights) -> None:
        self._plan, self._weights = analysis, weights
        self._basis: Basis | None = None if weights.analysis is analysis else weights.analysis.basis
        self._spread = None if weights.ranks is None else SpreadTensors(weights, weights.ranks)

    def parts(self, term: Any) -> list[Part]:
        """Returns the parts of a term; raises an OptionError where it does not fit the model."""
        found = [(weight, part) for weight, one in summands(term) for part in self._parts_of(one)]
        return [part.weighted(math.log(weight)) for weight, part in found]

    def _parts_of(self, term: Any) -> list[Part]:
        """Returns the parts of one summand, without its weight."""
        return self._of_migration(term) if isinstance(term, Migration) else [self._part(term)]

    def _part(self, term: Any) -> Part:
        """Returns the part of one summand, without its weight."""
        if isinstance(term, Weights):
            return self._of_weights(term)
        if isinstance(term, Masses):
            return self._of_masses(term)
        if isinstance(term, Normalised):
            inner = [(weight, self._part(one)) for weight, one in summands(term.term)]
            found = Normal([part.weighted(math.log(weight)) for weight, part in inner if isinstance(part, Exponentials)])
            if not found.count:
                raise OptionError(f"{term!r} has no entry above zero: there is nothing to even out")
            return found
        weights = self._weights
        size = 1 if weights.ranks is None else weights.ranks.size
        return own_part(term, self._plan.symmetry.num_scales, self._basis, weights.device, Sharing(weights.sums, size))

    # ---------------------------------------------------------------- weights

    def _of_weights(self, term: Weights) -> Exponentials:
        """Returns the norm of the counted tensors under the term's options."""
        plan, count = self._plan, self._plan.symmetry.num_scales
        options = term.options(plan.options)
        counted = count_tensors(plan.symmetry, options, plan.depths)
        if not term.gains:
            counted = self._without_gains(counted, options.p)
        moving = counted if self._basis is None else counted.in_basis(self._basis, count, options.p)
        if self._spread is not None:
            return self._exponentials(
                self._spread.of_counted(moving, options), self._spread.items(plan, counted, options, options.p), options.p
            )
        program = moving.program.to(self._weights.device)
        backend = self._weights.backend
        matrices = backend.matrices(program, *moving.gather(self._weights.tensors_for(moving)))
        return self._exponentials(self._objective(backend, program, matrices), self._items(counted, options.p), options.p)

    def _without_gains(self, counted: CountedTensors, p: float) -> CountedTensors:
        """Returns counted tensors without the gains of normalisations."""
        symmetry = self._plan.symmetry
        gains = [item for item in counted.tensors if item.fold is None and _is_gain(item, symmetry.roles)]
        return counted.without(gains, symmetry.num_scales, p)

    def _exponentials(self, objective: CurrentObjective, items: Sequence[Item], power: float) -> Exponentials:
        """Returns a sum, with what does not move of some entries and with what is counted of them."""
        count, sums = self._plan.symmetry.num_scales, self._weights.sums
        entries = partial(counted_entries, items, power, count, self._basis, sums)
        return Exponentials(replace(objective, groups=self._groups()), log_still(items, self._basis, sums), cache(entries))

    def _groups(self) -> Tensor:
        """(K,) the group of each variable."""
        analysis = self._weights.analysis
        return analysis.on_device("solver groups", analysis.solver_groups, self._weights.device).to(torch.int64)

    def _items(self, counted: CountedTensors, p: float) -> list[Item]:
        """Returns the entries of the counted tensors, to be counted and where they do not move."""
        values, factors = counted.gather_whole(self._weights.tensors_for(counted))
        found = []
        for item, value, factor in zip(counted.tensors, values, factors, strict=True):
            found.append(Item(item.shape, partial(powers, item, value, factor, p), item.terms))
        return found

    # ---------------------------------------------------------------- activations

    def _of_migration(self, term: Migration) -> list[Part]:
        """Returns the ranges of activations, and the weights."""
        if math.isinf(term.p):
            raise OptionError("Migration(p=inf) is no sum: pass it alone to plan.balance, without maximise, or a finite p")
        q, r = term.powers
        weights = self._of_weights(Weights(p=r, c=1.0, biases="scale", gains=False))
        return [self._of_sizes(self._ranges(term), q).weighted(-math.log(q)), weights.weighted(-math.log(r))]

    def largest(self, term: Migration) -> CurrentObjective:
        """Returns ranges of activations and weights as an objective of exponent infinity."""
        plan = self._plan
        options = replace(plan.options, p=math.inf, c=1.0, biases="scale")
        counted = self._without_gains(count_tensors(plan.symmetry, options, plan.depths), options.p)
        items = self._items(counted, 1.0) if self._spread is None else self._spread.items(plan, counted, options, 1.0)
        return self._read([*items, *self._ranges(term)], 1, math.inf)

    def _ranges(self, term: Migration) -> list[Item]:
        """Returns the largest absolute values of the activations that layers read, each activation once."""
        seen: dict[Any, Observation] = {}
        for one in inputs_of_layers(term.observations):
            # Layers that read the same activation have observed the same.
            exponents = tuple((coefficient, ids.tobytes()) for coefficient, ids in one.terms)
            seen.setdefault((one.minimum.numpy().tobytes(), one.maximum.numpy().tobytes(), exponents), one)
        items = [(torch.maximum(one.maximum, -one.minimum).clamp(min=0.0), one.terms) for one in seen.values()]
        return [Item(tuple(size.shape), partial(size.to, self._weights.device), terms) for size, terms in items]

    # ---------------------------------------------------------------- masses

    def _of_masses(self, term: Masses) -> Exponentials:
        """Returns the sum of a user's masses."""
        power = float(term.power)
        items = [self._item(key, tensor) for key, tensor in term.tensors.items()]
        sizes = [replace(item, masses=partial(_root, item, 1 / abs(power))) for item in items]
        return self._of_sizes(sizes, power)

    def _of_sizes(self, sizes: Sequence[Item], power: float) -> Exponentials:
        """Returns the sum of powers of some entries."""
        items = [replace(item, masses=partial(_root, item, abs(power))) for item in self._placed(sizes)]
        return self._exponentials(self._read(sizes, int(math.copysign(1, power)), abs(power)), items, power)

    def _placed(self, items: Sequence[Item]) -> Sequence[Item]:
        """Returns the parts of entries that this process holds."""
        return items if self._spread is None else [self._spread.placed(item) for item in items]

    def _read(self, sizes: Sequence[Item], sign: int, p: float) -> CurrentObjective:
        """Returns entries as an objective of exponent p, which grow with their exponents, or shrink where the sign is -1."""
        sizes = self._placed(sizes)
        if self._spread is not None:
            return self._spread.of_sizes(sizes, self._basis, sign, p)
        blocks, tensors = [], []
        for item in sizes:
            if terms := item.within(self._basis):
                shape, finer = split_repeats(item.shape, [(sign * coefficient, ids) for coefficient, ids in terms])
                blocks.append((shape, finer, 0.0))
                tensors.append(item.masses().reshape(shape))
        program = build_program(blocks, self._plan.symmetry.num_scales, p).to(self._weights.device)
        backend = reference_backend()
        return self._objective(backend, program, backend.matrices(program, tensors, [None] * len(tensors)))

    def _item(self, key: Key, masses: Tensor) -> Item:
        """Returns the masses of one tensor or site with its exponents; raises an OptionError where they do not fit."""
        symmetry = self._plan.symmetry
        if isinstance(key, str):
            name = symmetry.aliases.get(key, key)
            if name not in symmetry.shapes:
                near = difflib.get_close_matches(key, symmetry.shapes, 3)
                hint = f"; the nearest are {', '.join(near)}" if near else ""
                raise OptionError(f"the masses of {key!r} belong to no parameter of the model{hint}")
            shape, terms = tuple(symmetry.shapes[name]), tuple(symmetry.exponents.get(name, ()))
        else:
            shape, terms = self._site(key)
        if tuple(masses.shape) != shape:
            raise OptionError(f"the masses of {key!r} have shape {tuple(masses.shape)}: expected {shape}")
        device = self._weights.device
        item = Item(shape, lambda: masses.detach().to(device, torch.float64), terms)
        return item if self._spread is None else self._spread.masses(str(key), masses, item)

    def _site(self, key: Any) -> tuple[tuple[int, ...], tuple[FieldTerm, ...]]:
        """Returns the shape of an activation's masses, and their exponents."""
        if not isinstance(key, tuple) or len(key) not in (2, 3) or key[1] not in ("input", "output", "operand"):
            raise OptionError(
                f"the masses of {key!r} have no valid name: expected a parameter's, or (module, 'input' or 'output'), or "
                "(parameter, 'operand'), and the axis where there are several"
            )
        sites = [site for group in self._plan.groups for site in group.sites if (site.module, site.direction) == key[:2]]
        sites = [site for site in sites if len(key) == 2 or site.axis == key[2]]
        found = {(site.axis, site.coefficient, np.asarray(site.variables).tobytes()): site for site in sites}
        if len(found) != 1:
            axes = sorted({site.axis for site in sites})
            why = f"carries scales along axes {axes}, or at several calls" if found else "carries no scale"
            raise OptionError(f"the masses of {key!r} cannot be placed: that activation {why}")
        site = next(iter(found.values()))
        variables = np.asarray(site.variables, dtype=np.int64)
        return (variables.size,), ((site.coefficient, variables),)

    def _objective(self, backend: Backend, program: ReduceProgram, matrices: Sequence[Tensor]) -> CurrentObjective:
        """Returns a sum as the solvers see it."""
        return CurrentObjective(
            backend,
            program,
            matrices,
            torch.zeros_like(program.counted_negative),
            torch.full_like(program.degree, math.inf),
        )


def _is_gain(item: CountedTensor, roles: Mapping[str, str]) -> bool:
    """Whether a counted tensor is the gain of a normalisation, also of one that a model spells out as a product with a vector."""
    role = roles.get(item.parameter)
    return role == "gamma" or (role == "weight" and len(item.shape) == 1)


def _root(item: Item, power: float) -> Tensor:
    """Returns the entries of a tensor to some power."""
    return item.masses().pow(power)
