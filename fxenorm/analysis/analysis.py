"""`Analysis`: the part of a plan that does not depend on the module, shared by every plan that `bind` makes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..distributed.ranks import LINEAR_UP_TO
from ..distributed.replicas import is_one_of_many
from ..kernels.backend import Backend
from ..kernels.choice import ExecutorChoice
from ..kernels.program import ReduceProgram, TermTensors, as_float, term_tensors
from ..kernels.terms import collisions, degrees, normalise
from ..symmetry.symmetry import Symmetry
from .attained.basis import Basis
from .counted import CountedTensors, count_tensors
from .group_order import GroupOrder, group_order
from .groups import Group, build_groups, layer_of
from .held import Mask
from .options import Options
from .pair_graph import last_layers, layer_depths, pair_graph
from .pairs import Pair, build_pairs

__all__ = ["Analysis"]

_REMEMBERED = 12
"""Answers that are kept: each set of flags in use has up to four (free, movable, a basis for each), so three may take turns."""


class Analysis:
    """Symmetry, options and all that follows from these two; index tensors are made once a device.

    Args:
        symmetry: the graph half's answer.
        options: the options of `analyze`.
        groups, pairs: where they are known already (a stored plan).
    """

    def __init__(
        self,
        symmetry: Symmetry,
        options: Options,
        groups: tuple[Group, ...] | None = None,
        pairs: tuple[Pair, ...] | None = None,
    ) -> None:
        self.symmetry = symmetry
        self.options = options
        self.pairs = build_pairs(symmetry) if pairs is None else pairs
        self.groups = build_groups(symmetry, self.depths) if groups is None else groups
        self.executor = ExecutorChoice(options.backend)
        self._terms: dict[tuple[str, torch.device], TermTensors] = {}
        self._orders: dict[torch.device, GroupOrder] = {}
        self._arrays: dict[tuple[str, bytes, torch.device], Tensor] = {}
        self._remembered: dict[tuple[Any, ...], Any] = {}
        self.basis: Basis | None = None
        """Where the variables are places of a basis of another plan's."""
        self.parts: dict[Any, Any] = {}
        """The answers that depend on a process's part of the model; see `fxenorm.weights.shared.shards`."""

    @property
    def backend(self) -> Backend:
        """The executor to use now; among processes that do not tell one another, the compiler is waited for."""
        return self.executor.current(wait=is_one_of_many())

    @cached_property
    def exponents(self) -> dict[str, list[tuple[int, Tensor]]]:
        """By parameter and moved buffer: (coefficient, ids), ids broadcastable to the tensor, -1 = fixed."""
        return {
            name: [(coefficient, torch.from_numpy(np.array(ids, dtype=np.int64))) for coefficient, ids in terms]
            for name, terms in self.symmetry.exponents.items()
        }

    @cached_property
    def depths(self) -> dict[str, int]:
        """By layer, its depth in the pair graph."""
        return layer_depths(pair_graph(self.symmetry, self.pairs))

    @cached_property
    def counted(self) -> CountedTensors:
        """The tensors whose norm is taken, with their program."""
        return count_tensors(self.symmetry, self.options, self.depths)

    def prepare(self) -> None:
        """Works out now all that the first step needs, and checks the options against the model.

        Raises:
            OptionError: the dict `c` names a layer that is not counted.
        """
        _ = self.counted

    @cached_property
    def least_message(self) -> int:
        """The least number of numbers that processes send when they begin to speak of a call.

        Two for each channel of each tensor: this does not depend on the options, so that plans which differ understand one
        another. A variable has at least two channels, and four numbers.
        """
        return max(2 * sum(sum(shape, start=1) for shape in self.symmetry.shapes.values()), 4 * self.symmetry.num_scales)

    @property
    def asks_apart(self) -> bool:
        """Whether processes agree in a collective of its own: sums may travel in two ways, and folded BatchNorms first in one."""
        return bool(self.counted.folded_names) and LINEAR_UP_TO < self.options.p < math.inf

    @cached_property
    def variables_of(self) -> dict[str, NDArray[np.int64]]:
        """By tensor name, the variables that it carries."""
        found = {}
        for name, given in self.symmetry.exponents.items():
            terms = normalise(given, len(self.symmetry.shapes[name]))
            ids = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(ids.reshape(-1) for _, ids in terms)]))
            found[name] = ids[ids >= 0]
        return found

    @cached_property
    def reach(self) -> NDArray[np.int64]:
        """(K,) the largest sum of |exponents| among all entries, counted or not, that carry a variable; at least 2."""
        reach = np.full(self.symmetry.num_scales, 2, dtype=np.int64)
        for name, given in self.symmetry.exponents.items():
            ndim = len(self.symmetry.shapes[name])
            terms = normalise(given, ndim)
            if sum(abs(coefficient) for coefficient, _ in terms) > 2:
                degrees(terms, ndim, collisions(terms, ndim), reach)
        return reach

    @cached_property
    def feeding_last(self) -> Mask:
        """(K,) the variables that ``balance_last=False`` holds."""
        none = np.zeros(self.symmetry.num_scales, dtype=bool)
        return none if self.options.balance_last else self._feeding_last()

    def in_basis(self, basis: Basis) -> Analysis:
        """Returns the plan with the places of a basis as its variables; the one that was made for an equal basis, if any."""
        matrix = basis.matrix
        key = ("basis", matrix.indptr.tobytes(), matrix.indices.tobytes(), matrix.data.tobytes())
        found: Analysis = self.remembered(key, lambda: self._in_basis(basis))
        return found

    def _in_basis(self, basis: Basis) -> Analysis:
        """Makes the plan for `in_basis`."""
        symmetry = self.symmetry
        terms = {name: basis.terms(given) for name, given in symmetry.exponents.items()}
        exponents = {name: found for name, found in terms.items() if found}
        offsets = {name: offset for name, offset in symmetry.offsets.items() if name in exponents}
        moved = dataclasses.replace(symmetry, exponents=exponents, offsets=offsets, channels=())
        analysis = Analysis(moved, self.options, self.groups, self.pairs)
        analysis.basis = basis
        analysis.__dict__["least_message"] = self.least_message
        analysis.__dict__["counted"] = self.counted.in_basis(basis, symmetry.num_scales, self.options.p)
        return analysis

    def counting(self, counted: CountedTensors, options: Options) -> Analysis:
        """Returns the same variables with other counted tensors.

        Args:
            counted: over these variables.
            options: of which they were made.
        """
        analysis = Analysis(self.symmetry, options, self.groups, self.pairs)
        analysis.basis = self.basis
        analysis.__dict__["counted"] = counted
        return analysis

    def remembered(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Returns the value for a key; makes and keeps it if there is none, and forgets the oldest of many."""
        known = self._remembered.pop(key, None)
        self._remembered[key] = found = make() if known is None else known
        while len(self._remembered) > _REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return found

    @property
    def most_log_scale(self) -> float | None:
        """`max_log_scale` for the variables of this plan's basis, so that those of the plan itself stay within it."""
        most = self.options.max_log_scale
        return most if most is None or self.basis is None else most / self.basis.growth

    def to_plan(self, log_scales: Tensor) -> Tensor:
        """Returns (K,) log-scales of the plan's own variables, from those of this basis."""
        return log_scales if self.basis is None else self.basis.to_plan(log_scales)

    @cached_property
    def solver_groups(self) -> NDArray[np.int64]:
        """(K,) by variable, the place of its group in the order of the pair graph."""
        order = sorted(range(len(self.groups)), key=lambda index: (self.groups[index].depth, index))
        places = np.zeros(self.symmetry.num_scales, dtype=np.int64)
        for place, index in enumerate(order):
            places[self.groups[index].variables.start : self.groups[index].variables.stop] = place
        return places

    @cached_property
    def _group_order(self) -> GroupOrder:
        """The groups as Gauss-Seidel takes them, on the CPU."""
        return group_order(self.counted.program, self.solver_groups)

    def group_order(self, program: ReduceProgram) -> GroupOrder:
        """Returns the groups as Gauss-Seidel takes them, for a copy of the program on its device; made once a device."""
        device = program.slots.device
        known = self._orders.get(device)
        if known is None:
            known = self._orders[device] = self._group_order.to(program)
        return known

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tensors' names, shapes and exponents and of the options."""
        digest = hashlib.sha256()
        digest.update(json.dumps({name: list(shape) for name, shape in self.symmetry.shapes.items()}).encode())
        for name, terms in self.symmetry.exponents.items():
            for coefficient, ids in terms:
                array = np.ascontiguousarray(ids, dtype="<i8")
                digest.update(f"{name} {coefficient} {array.shape}".encode())
                digest.update(array.tobytes())
        if self.symmetry.offsets:
            digest.update(json.dumps(dict(sorted(self.symmetry.offsets.items()))).encode())
        values = sorted((key, repr(value)) for key, value in self.options.of_fingerprint().items() if key != "c")
        c = self.options.c
        digest.update(json.dumps([values, repr(sorted(c.items())) if isinstance(c, dict) else repr(c)]).encode())
        return digest.hexdigest()

    def terms(self, name: str, device: torch.device) -> TermTensors:
        """Returns the exponents of a tensor on a device, for the executors; made once a device."""
        known = self._terms.get((name, device))
        if known is None:
            terms = term_tensors(self.symmetry.exponents[name], len(self.symmetry.shapes[name]), self.symmetry.num_scales)
            known = tuple((coefficient, ids.to(device)) for coefficient, ids in terms)
            self._terms[name, device] = known
        return known

    def on_device(self, purpose: str, values: NDArray[np.bool_] | NDArray[np.int64], device: torch.device) -> Tensor:
        """Returns a (K,) array on a device, copied once for each of its values: masks follow flags that seldom change."""
        key = (purpose, values.tobytes(), device)
        known = self._arrays.get(key)
        if known is None:
            for old in [other for other in self._arrays if other[0] == purpose and other[2] == device]:
                del self._arrays[old]
            tensor = torch.from_numpy(values.copy())
            known = tensor.to(device) if values.dtype == np.bool_ else as_float(tensor, device)
            self._arrays[key] = known
        return known

    def mask_of(self, names: list[str]) -> Mask:
        """Returns (K,) bool: the variables that any of the named tensors carries."""
        mask = np.zeros(self.symmetry.num_scales, dtype=bool)
        for name in names:
            mask[self.variables_of[name]] = True
        return mask

    def group_mask(self, names: list[str]) -> Mask:
        """Returns (K,) bool: the variables of every group that one of the named tensors carries."""
        mask = self.mask_of(names)
        for group in self.groups:
            part = slice(group.variables.start, group.variables.stop)
            mask[part] = mask[part].any()
        return mask

    def _feeding_last(self) -> Mask:
        """Returns (K,) bool: the variables by whose negative powers a last layer's weight is multiplied."""
        last = last_layers(self.symmetry)
        mask = np.zeros(self.symmetry.num_scales, dtype=bool)
        for name, terms in self.symmetry.exponents.items():
            if layer_of(name) in last and self.symmetry.roles.get(name) == "weight":
                for coefficient, ids in normalise(terms, len(self.symmetry.shapes[name])):
                    if coefficient < 0:
                        mask[ids[ids >= 0]] = True
        return mask
