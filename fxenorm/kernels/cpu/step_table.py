"""The tables of one whole cycle for the compiled kernels: in which order tensors are read and scaled."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..backend import CycleTask
from ..layout import announce
from ..program import ReduceProgram, ScaleTarget
from .structures import StepArguments
from .tables import TYPES, ReduceTable, ScaleTable, reduce_signature

__all__ = ["StepTable"]

_PHASE_BYTES = 8 << 20
"""Bytes of weights that are read before the next are scaled: they stay in a last-level cache of 16 MiB until they are scaled,
which comes before the states that follow. Of 2 to 20 MiB, 8 took the least time on 32 MiB."""

_DEEPEST_ROOT = 6
"""Up to so many square roots in a row replace a power 1 / 2^n: six cost less than one exponential and one logarithm."""

_MOST_LIMIT = 700.0
"""A limit beyond this natural logarithm is none: exp(709) is the largest float64."""

_MOST_WAITS = 6
"""After cycles that failed one after the other, up to 2^6 - 2 are left to others before the kernels are tried again."""

_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.complex128)
"""Types of any factors. float16 has too little room around ordinary weights: what has been written would often have to be undone,
and would keep a rounding; only factors that are powers of two, which most steps have none of, are undone without one.
"""

Longs = NDArray[np.int64]


class StepTable:
    """One Jacobi cycle on tensors that stay where they are.

    Args:
        task: what is run, on the CPU.

    Attributes:
        reduce: the table of what is read.
        covers_all: whether the kernels can do all of it.
        refusals: why not, each reason once.
    """

    def __init__(self, task: CycleTask) -> None:
        signature = reduce_signature(task.tensors, task.factors)
        self.reduce = ReduceTable(task.program, task.tensors, task.factors, signature)
        self._scale = ScaleTable(task.targets, task.counted)
        self.refusals = _refusals(self.reduce, self._scale, task)
        self.covers_all = not self.refusals
        self._announced, self._stopped = task.announced, False
        self._failures, self._waits = 0, 0
        if self.covers_all:
            self._order(task.program, task.tensors)
            self._arrays = {**self._given(task), **self._buffers(task.program.num_scales)}
            self._arguments = self._argued(task)

    def run(self, library: ctypes.CDLL, factors: Sequence[Tensor | None]) -> bool:
        """Runs one cycle; False, and nothing changes but for a rounding, where a factor is too large or an entry has no room.

        Args:
            library: the compiled kernels.
            factors: by what the counted tensors are multiplied before their norm is taken.
        """
        if self._waits:
            # An entry without room stays where it is: trying each time would cost as much as what then has to be done.
            self._waits -= 1
            return False
        alive = self.reduce.take_factors(factors)
        arguments = self.prepared()
        # Where the last cycle went far or failed, this one writes nothing before all factors are known. The bits are the same.
        arguments.factors_first = int(self._stopped or self._arrays["largest"][0] > math.sqrt(arguments.bound))
        self._stopped = bool(library.fxenorm_step(ctypes.addressof(arguments)))
        del alive
        self._failures = min(self._failures + 1, _MOST_WAITS) if self._stopped else 0
        self._waits = max(0, 2**self._failures - 2)
        return not self._stopped

    def exchange(self, pairs: Sequence[tuple[ScaleTarget, ScaleTarget]], task: CycleTask) -> None:
        """Takes other tensors in the places of some targets: nothing but their addresses is new."""
        self._scale.exchange(pairs)
        self._announced = task.announced

    def prepared(self) -> StepArguments:
        """Returns what the kernels are given, and tells autograd that the targets are written."""
        announce(self._announced)
        self._arguments.threads = 1 if self.reduce.single_thread and self._scale.single_thread else torch.get_num_threads()
        return self._arguments

    def _order(self, program: ReduceProgram, tensors: Sequence[Tensor]) -> None:
        """Puts tiles and links into the order of the phases."""
        reduce, scale, count = self.reduce, self._scale, program.num_scales
        sizes = np.array([tensors[index].numel() * tensors[index].element_size() for index in reduce.members], dtype=np.int64)
        phase = np.unique((np.cumsum(sizes) - sizes) // _PHASE_BYTES, return_inverse=True)[1]
        count_of_phases = int(phase.max(initial=-1)) + 1
        settled = np.full(count + 1, -1, dtype=np.int64)
        for at, index in zip(phase.tolist(), reduce.members, strict=True):
            for _, ids in program.blocks[index].terms:
                settled[ids.reshape(-1).numpy()] = at
        settled[count] = -1
        ready = self._ready(settled, phase, tensors)
        order = np.argsort(settled[:-1], kind="stable")
        self._variables = np.ascontiguousarray(order[np.searchsorted(settled[order], 0) :])
        steps = range(-1, count_of_phases)
        tiles = [np.concatenate([scale.tiles[:0], *self._ready_tiles(np.flatnonzero(ready == at))]) for at in steps]
        self._scale_tiles = np.ascontiguousarray(np.concatenate(tiles[1:] or [scale.tiles[:0]]))
        first_use = self._first_use(ready, count_of_phases)
        links = [scale.links[first_use == at] for at in steps]
        self._factor_links = np.ascontiguousarray(np.concatenate(links[1:] or [scale.links[:0]]))
        ends = {
            "scale": np.cumsum([0, 0, *map(len, tiles[1:])]),
            "reduce": _ends(phase, reduce.matrices[:, 9], count_of_phases),
            "matrices": _ends(phase, np.arange(1, len(phase) + 1), count_of_phases),
            "links": _ends(phase, reduce.link_ends, count_of_phases),
            "variables": np.searchsorted(settled[self._variables], np.arange(count_of_phases + 2)),
            "factors": np.cumsum([0, *map(len, links[1:]), 0]),
        }
        self._phases = np.stack([part for end in ends.values() for part in (end[:-1], end[1:])], axis=1)
        self._phases = np.ascontiguousarray(self._phases, dtype=np.int64)

    def _ready_tiles(self, rows: Longs) -> Iterator[Longs]:
        """Yields the tiles of some targets: first those just read and still in the cache, from where the reading ended."""
        tiles, read = self._scale.tiles, self._scale.just_read[rows]
        for row in rows[read][::-1]:
            yield tiles[tiles[:, 0] == row][::-1]
        for row in rows[~read][::-1]:
            yield tiles[tiles[:, 0] == row]

    def _ready(self, settled: Longs, phase: Longs, tensors: Sequence[Tensor]) -> Longs:
        """Returns (targets,) the phase after which a tensor may be scaled; -1: nothing that it carries ever moves."""
        starts = np.array([tensors[index].data_ptr() for index in self.reduce.members], dtype=np.int64)
        bytes_of = np.array([tensors[index].numel() * tensors[index].element_size() for index in self.reduce.members])
        found = np.full(len(self._scale.members), -1, dtype=np.int64)
        for row, target in enumerate(self._scale.members):
            found[row] = max(int(settled[ids.reshape(-1).numpy()].max()) for _, ids in target.terms)
            if found[row] >= 0:
                # Tensors may share memory: nothing is written before all that lies there has been read.
                start, size = target.tensor.data_ptr(), target.tensor.numel() * target.tensor.element_size()
                shared = phase[(starts < start + size) & (starts + bytes_of > start)]
                found[row] = max(found[row], int(shared.max(initial=-1)))
        return found

    def _first_use(self, ready: Longs, count_of_phases: int) -> Longs:
        """Returns (links,) the phase at whose end a link's factors are needed; targets share them."""
        scale = self._scale
        first: dict[int, int] = {}
        for row, at in enumerate(ready.tolist()):
            for place in scale.matrices[row, 3:5].tolist():
                if place >= 0 and at >= 0:
                    first[place] = min(first.get(place, count_of_phases), at)
        return np.array([first.get(place, -1) for place in scale.links[:, 0].tolist()], dtype=np.int64)

    def _given(self, task: CycleTask) -> dict[str, NDArray[Any]]:
        """Returns by field of `StepArguments` the arrays that say what is to be done."""
        reduce, scale = self.reduce, self._scale
        denominators = (1.0 if math.isinf(task.program.p) else task.program.p) * task.program.degree.numpy()
        roots = np.log2(denominators)
        whole = (roots == np.round(roots)) & (roots >= 0) & (roots <= _DEEPEST_ROOT)
        octaves = torch.zeros_like(task.held) if task.powers_of_two is None else task.powers_of_two
        return {
            "matrices": reduce.matrices,
            "reduce_tiles": reduce.tiles,
            "links": reduce.links,
            "targets": scale.matrices,
            "scale_tiles": self._scale_tiles,
            "factor_links": self._factor_links,
            "phases": self._phases,
            "variables": self._variables,
            "held": task.held.numpy().astype(np.uint8),
            "octaves": octaves.numpy().astype(np.uint8),
            "exponents": np.ascontiguousarray(1.0 / denominators),
            "roots": np.where(whole, roots, -1).astype(np.int32),
            "powers": np.array(list(scale.exponents), dtype=np.int64),
        }

    def _buffers(self, count: int) -> dict[str, NDArray[Any]]:
        """Returns by field of `StepArguments` the arrays that the kernels write, for so many variables."""
        scale = self._scale
        return {
            "work": self.reduce.work,
            "sums": np.zeros(2 * count + 1),
            "power_table": np.ones((len(scale.exponents), count + 1)),
            "narrow_power_table": np.ones((len(scale.exponents), count + 1), dtype=np.float32),
            "factors": scale.factors,
            "narrow_factors": np.zeros(scale.factors.size, dtype=np.float32),
            "done": scale.done,
            "claimed": np.zeros(len(self._scale_tiles) + len(self.reduce.tiles), dtype=np.uint8),
            "largest": np.array([math.inf]),
        }

    def _argued(self, task: CycleTask) -> StepArguments:
        """Returns what the kernels are given; it points into the arrays that this table keeps."""
        count = task.program.num_scales
        return StepArguments(
            **{name: array.ctypes.data for name, array in self._arrays.items()},
            phase_count=len(self._phases),
            power_count=len(self._scale.exponents),
            variable_count=count,
            sum_count=2 * count + 1,
            scale_tile_count=len(self._scale_tiles),
            reduce_tile_count=len(self.reduce.tiles),
            has_float64=int(any(TYPES[target.tensor.dtype] == TYPES[torch.float64] for target in self._scale.members)),
            p=task.program.p,
            limit=math.exp(min(task.limit, _MOST_LIMIT)),
            bound=math.exp(task.growth / task.reach),
            band=math.exp(task.deadband),
        )


def _refusals(reduce: ReduceTable, scale: ScaleTable, task: CycleTask) -> list[str]:
    """Returns why the kernels cannot do all of a task, each reason once."""
    found = [*reduce.unsupported.values(), *scale.refusals]
    octaves = np.zeros(task.program.num_scales, dtype=bool) if task.powers_of_two is None else task.powers_of_two.numpy()
    by_octaves = np.append(octaves, True)
    for target in scale.members:
        if target.tensor.dtype not in _TYPES and not all(bool(by_octaves[ids.numpy()].all()) for _, ids in target.terms):
            found.append(f"it is of {target.tensor.dtype} and moves by more than powers of two")
    return list(dict.fromkeys(found))


def _ends(phase: Longs, ends: Longs, count_of_phases: int) -> Longs:
    """Returns (phases + 2,) where each phase begins in an array ordered by matrix; the last phase of all reads nothing."""
    last = np.searchsorted(phase, np.arange(count_of_phases), side="right") - 1
    total = np.concatenate([[0], ends[last]]) if count_of_phases else np.zeros(1, dtype=np.int64)
    return np.concatenate([total, total[-1:]])
