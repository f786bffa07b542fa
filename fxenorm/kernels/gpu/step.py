"""Whole cycles of a plan on one GPU, in a handful of launches of the Triton kernels."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..backend import CycleTask
from ..factors import MOST_GROWTH
from ..layout import Coverage, MatrixForm, announce, likeness
from ..program import LINEAR_UP_TO, Keep, ScaleTarget
from ..reference.executor import EagerBackend
from ..rooms import SLACK, ends_of, most_room, reach_of
from .tables import COLUMNS, FactorPlaces, SumPlaces, tiles_of

__all__ = ["TritonStep"]

_AT_ONCE = 8
"""Rows that a kernel reads at a time, a bound by estimate: 8 x 256 entries in float64 are 16 KiB of registers."""

_MOST_LOG_WEIGHT = 200.0
"""The largest |logarithm| of a layer weight: with exp(200), the 4th powers of a float32 and their sums stay within 1e270."""

_MOST_COEFFICIENT = 8
"""The largest |exponent| of a term: a sum that counts as often as its exponent says is listed so many times."""

_POWERS = {math.inf: 0, 1.0: 1, 2.0: 2, 3.0: 3, 4.0: 4}
"""The kernels' names of the exponents that need no exponential; -1 for all others."""

_EAGER = EagerBackend()
Longs = NDArray[np.int64]


def launch(kernel: Any, grid: int, *arguments: Any, **constants: Any) -> None:
    """Launches a kernel once; not at all for an empty grid."""
    if grid:
        # Sums are those of the interpreter, bit by bit, and Triton has no default to warn about.
        kernel[(grid,)](*arguments, **constants, enable_fp_fusion=False)


class TritonStep:
    """See `CycleRunner`: Jacobi cycles on tensors that stay where they are.

    One cycle is one launch a type for the sums, one a type for the rooms of the variables, three for what lies
    between, and one a type for the products; another cycle reads the weights again: one a type and three. Nothing waits for
    the device but the making of the tables.

    Args:
        task: what is run, on one device.
    """

    def __init__(self, task: CycleTask) -> None:
        from . import kernels

        self._kernels: Any = kernels
        self._device, program = task.held.device, task.program
        self._program, self._tensors = program.to(self._device), list(task.tensors)
        self._coverage = Coverage(self._device, LINEAR_UP_TO, _MOST_LOG_WEIGHT, _MOST_COEFFICIENT)
        self._forms: dict[Hashable, MatrixForm | None] = {}
        self._places = FactorPlaces()
        self._announced = task.announced
        self._make_scale(task.targets)
        # What several cycles need beyond one comes behind what both need.
        self._fill_count = len(self._places.tiles)
        self._make_reduce(task)
        self._make_rooms(task.targets)
        self._make_factors()
        infinite = math.isinf(program.p)
        self._held = task.held.to(torch.int32)
        self._divisors = self._program.degree * (1.0 if infinite else program.p)
        self._settings = self._put([1.0 if infinite else program.p, task.limit, MOST_GROWTH])
        # One more for "fixed", which stays 0.
        self._log_scales = self._zeros(program.num_scales + 1)
        self._power = _POWERS.get(program.p, -1)

    @torch.no_grad()
    def run(self, factors: Sequence[Tensor | None], count: int, gate: Tensor | None = None) -> bool:
        """Runs some cycles; False, and nothing has changed, if they are to be done elsewhere.

        Args:
            factors: by what the counted tensors are multiplied before their norm is taken.
            count: how many cycles.
            gate: 0-d bool on the device: all variables stay at 0 where it is False.
        """
        if self._unsupported and count > 1:
            return False
        with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            announce(self._announced)
            held = self._held if gate is None else self._held | (~gate).to(self._held)
            self._find_rooms()
            self._take_factors(factors)
            for cycle in range(count):
                self._reduce(cycle > 0)
                self._settle(cycle == 0, cycle == count - 1, held)
                self._fill(self._fill_count if cycle == count - 1 else len(self._fill_tiles))
            for kind, tiles in self._scale_tiles:
                constants = {"TYPE": self._type(kind), "ROWS": _AT_ONCE, "COLUMNS": COLUMNS}
                launch(self._kernels.scale_tiles, len(tiles), tiles, self._factors, **constants)
        if self._unsupported_targets:
            _EAGER.apply(self._unsupported_targets, self._log_scales[:-1])
        return True

    def refusals(self, count: int) -> list[str]:
        """Returns why so many cycles are left to others.

        Args:
            count: how many.
        """
        return ["some tensors have no table, so that one cycle is all"] if self._unsupported and count > 1 else []

    def exchange(self, pairs: Sequence[tuple[ScaleTarget, ScaleTarget]]) -> bool:
        """Returns False: addresses are on the device, and are put there anew.

        Args:
            pairs: a target, and the one in its place.
        """
        return False

    def _find_rooms(self) -> None:
        """Finds how far the variables can go up and down."""
        for kind, tiles, ends in self._room_tiles:
            constants = {"TYPE": self._type(kind), "ROWS": _AT_ONCE, "COLUMNS": COLUMNS}
            arrays = (tiles, self._fill_terms, self._fill_ids, ends, self._rooms, self._program.num_scales)
            launch(self._kernels.find_rooms, len(tiles), *arrays, **constants)
        if self._rooms_elsewhere:
            found = _EAGER.rooms(self._rooms_elsewhere, self._program.num_scales, self._device)
            torch.minimum(self._rooms[:, :-1], found, out=self._rooms[:, :-1])

    def _reduce(self, rescaled: bool) -> None:
        """Sums the powers of all tiles; `rescaled`: after the cycles so far."""
        constants = {"POWER": self._power, "RESCALED": rescaled, "ROWS": _AT_ONCE, "COLUMNS": COLUMNS}
        buffers = (self._row_factors, self._factors, self._work, self._settings)
        for kind, tiles, weights in self._reduce_tiles:
            launch(self._kernels.reduce_tiles, len(tiles), tiles, weights, *buffers, TYPE=self._type(kind), **constants)

    def _settle(self, first: bool, last: bool, held: Tensor) -> None:
        """Turns the sums of all tiles into log-scales."""
        count, largest = self._program.num_scales, self._power == 0
        segments = len(self._starts) - 1
        arrays = (self._starts, self._positions, self._work, self._parts, segments)
        launch(self._kernels.combine, -(-segments // 16), *arrays, LARGEST=largest, SEGMENTS=16, LANES=64)
        launch(
            self._kernels.settle,
            -(-count // 32),
            *(self._slots, self._parts, self._extra, self._rooms, held, self._divisors),
            *(self._settings, self._log_scales, count),
            **{"FIRST": first, "LAST": last, "LARGEST": largest, "VARIABLES": 32, "LANES": 32},
        )

    def _fill(self, count: int) -> None:
        """Makes the factors of rows and columns; more of them are needed to go on than to end."""
        arrays = (self._fill_tiles, self._fill_terms, self._fill_ids, self._log_scales, self._factors)
        launch(self._kernels.fill_factors, count, *arrays, ENTRIES=1024)

    def _take_factors(self, factors: Sequence[Tensor | None]) -> None:
        """Takes the rows' folded norms as they are now, and what the reference executor sums."""
        if self._folded:
            given = [factor.reshape(-1) for _, index in self._folded if (factor := factors[index]) is not None]
            torch._foreach_copy_([view for view, _ in self._folded], given)
        if self._unsupported:
            rest = self._unsupported
            tensors = [self._tensors[index] for index in rest]
            sums = _EAGER.reduce(self._program.part(rest), tensors, [factors[index] for index in rest])
            torch.cat([sums.log_negative, sums.log_positive], out=self._extra)
            self._extra.exp_()

    def _make_scale(self, targets: Sequence[ScaleTarget]) -> None:
        """Makes the tiles of all targets."""
        self._unsupported_targets: list[ScaleTarget] = []
        self._scaled: dict[Hashable, tuple[int, int]] = {}
        entries = sum(target.tensor.numel() for target in targets)
        found: dict[torch.dtype, list[Longs]] = {}
        for target in targets:
            tensor = target.tensor
            if not target.terms or not tensor.numel():
                continue
            form = self._coverage.target_form(target, self._forms)
            if isinstance(form, str):
                self._unsupported_targets.append(target)
                continue
            key = (*likeness(target), target.power)
            if key not in self._scaled:
                self._scaled[key] = self._places.add(form, target.power)
            tiles = tiles_of(form, entries)
            found.setdefault(tensor.dtype, []).append(
                np.column_stack([_based(tensor, form, tiles), _factored(self._scaled[key], form, tiles)])
            )
        self._scale_tiles = [(kind, self._put(np.concatenate(parts))) for kind, parts in found.items()]

    def _make_reduce(self, task: CycleTask) -> None:
        """Makes the tiles of all counted tensors, and says where their sums arrive."""
        sums = SumPlaces(task.program.num_scales, repeated=math.isfinite(task.program.p))
        entries = sum(tensor.numel() for tensor in task.tensors)
        self._unsupported: list[int] = []
        folded: list[tuple[int, int, int]] = []
        rows = 0
        found: dict[torch.dtype, list[tuple[Longs, NDArray[np.float64]]]] = {}
        for index, (tensor, factor) in enumerate(zip(task.tensors, task.factors, strict=True)):
            if not tensor.numel() or not task.program.blocks[index].terms:
                continue
            form = self._coverage.counted_form(task.program, index, tensor, factor)
            if isinstance(form, str):
                self._unsupported.append(index)
                continue
            tiles = tiles_of(form, entries)
            folds = np.full(len(tiles), -1, dtype=np.int64)
            if factor is not None:
                folded.append((rows, form.rows, index))
                folds = rows + tiles[:, 0]
                rows += form.rows
            place = self._places.add(form, 1)
            parts = (_based(tensor, form, tiles), sums.add(form, tiles), folds, _factored(place, form, tiles))
            weights = np.full(len(tiles), math.exp(float(task.program.log_weights[index])))
            found.setdefault(tensor.dtype, []).append((np.column_stack(parts), weights))
        self._reduce_tiles = [
            (kind, self._put(np.concatenate([one for one, _ in parts])), self._put(np.concatenate([some for _, some in parts])))
            for kind, parts in found.items()
        ]
        self._row_factors = self._zeros(max(1, rows))
        self._folded = [(self._row_factors[first : first + size], index) for first, size, index in folded]
        self._place_sums(sums)

    def _place_sums(self, sums: SumPlaces) -> None:
        """Makes the work space of the sums."""
        slots, starts, positions = sums.segments()
        self._slots, self._starts, self._positions = self._put(slots), self._put(starts), self._put(positions)
        self._work, self._parts = self._zeros(max(1, sums.size)), self._zeros(max(1, len(starts) - 1))
        self._extra = self._zeros(2 * self._program.num_scales)

    def _make_rooms(self, targets: Sequence[ScaleTarget]) -> None:
        """Makes the tiles in which rooms are found, each with the variables of its rows and columns."""
        self._rooms_elsewhere: list[ScaleTarget] = []
        entries = sum(target.tensor.numel() for target in targets)
        found: dict[torch.dtype, list[Longs]] = {}
        ends: dict[torch.dtype, Tensor] = {}
        for target in targets:
            if not target.terms or not target.tensor.numel():
                continue
            form = self._coverage.target_form(target, self._forms)
            # Of float16 weights many entries are below the floor: those that matter are found elsewhere.
            apart = target.tensor.dtype == torch.float16 and target.keep != Keep.ENTRIES
            if isinstance(form, str) or apart:
                self._rooms_elsewhere.append(target)
                continue
            kind, tiles = target.tensor.dtype, tiles_of(form, entries)
            key = (*likeness(target), target.power)
            place = self._scaled[key]
            numbers = np.zeros((len(tiles), 8), dtype=np.int64)
            numbers[:, 0] = reach_of(target)
            numbers[:, 1] = target.keep != Keep.ENTRIES
            numbers[:, 2:4], numbers[:, 4] = self._places.ranges[place[0]], tiles[:, 0]
            numbers[:, 5:7], numbers[:, 7] = self._places.ranges[place[1]], tiles[:, 4] * form.width + tiles[:, 2]
            found.setdefault(kind, []).append(np.column_stack([_based(target.tensor, form, tiles), numbers]))
            if kind not in ends:
                kept, whole, largest = map(math.log, ends_of(target))
                ends[kind] = self._put([largest - SLACK, kept + SLACK, whole + SLACK, most_room(torch.float64)])
        self._room_tiles = [(kind, self._put(np.concatenate(parts)), ends[kind]) for kind, parts in found.items()]
        shape = (2, self._program.num_scales + 1)
        self._rooms = torch.full(shape, MOST_GROWTH, dtype=torch.float64, device=self._device)

    def _make_factors(self) -> None:
        """Puts on the device how log-scales become factors."""
        places = self._places
        self._fill_tiles = self._put(np.array(places.tiles, dtype=np.int64).reshape(-1, 5))
        self._fill_terms = self._put(np.array(places.terms, dtype=np.int64).reshape(-1, 2))
        self._fill_ids = self._put(np.concatenate([np.zeros(0, dtype=np.int32), *places.ids]))
        self._factors = self._zeros(max(1, places.size))

    def _put(self, values: Sequence[float] | NDArray[Any]) -> Tensor:
        """Returns an array as a tensor on the device."""
        array = np.ascontiguousarray(values) if isinstance(values, np.ndarray) else np.array(values, dtype=np.float64)
        return torch.from_numpy(array).to(self._device)

    def _zeros(self, size: int) -> Tensor:
        """Returns float64 zeros on the device."""
        return torch.zeros(size, dtype=torch.float64, device=self._device)

    def _type(self, kind: torch.dtype) -> Any:
        """Returns Triton's name of a type."""
        return getattr(self._kernels.tl, str(kind).removeprefix("torch."))


def _based(tensor: Tensor, form: MatrixForm, tiles: Longs) -> Longs:
    """Returns (tiles, 4): address, width, rows, columns."""
    address = tensor.data_ptr() + (tiles[:, 0] * form.width + tiles[:, 2]) * tensor.element_size()
    return np.column_stack([address, np.full(len(tiles), form.width), tiles[:, 1], tiles[:, 3]])


def _factored(place: tuple[int, int], form: MatrixForm, tiles: Longs) -> Longs:
    """Returns (tiles, 2): where the factors of each tile's rows and columns begin."""
    rows = np.full(len(tiles), -1) if place[0] < 0 else place[0] + tiles[:, 0]
    columns = np.full(len(tiles), -1) if place[1] < 0 else place[1] + tiles[:, 4] * form.width + tiles[:, 2]
    return np.column_stack([rows, columns])
