"""The reference executor: plain PyTorch, a few operators a tensor, any device, dtype and memory layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from ..backend import CycleRunner, CycleTask, FoundEntries, Ids, ObjectiveSums, Values, register_backend
from ..factors import beyond_factors, exact_exp2, log2_factors
from ..parts import Index, part_of, parts_of
from ..program import ChannelSums, ReduceProgram, ScaleTarget, as_float, float_dtype
from ..rooms import leaving, rooms, rounded
from ..writes import Write, carry_out
from .channel_sums import channel_sums, contributions, energy, has_zeros, power_matrix, streamed_contributions
from .curvature import Curvature, aggregate
from .entries import entries_above, largest_entries

__all__ = ["EagerBackend", "by_device"]


class EagerBackend:
    """See `Backend`. Sums run in float64 where the device has it."""

    name = "eager"

    def cycles(self, task: CycleTask) -> CycleRunner | None:
        """Returns None: there is nothing to prepare."""
        return None

    def refusals(self, task: CycleTask) -> list[str]:
        """Returns that plain PyTorch prepares nothing."""
        return ["plain PyTorch takes one tensor after the other"]

    def contraction(self, count: int, tails: Ids, heads: Ids, lengths: Values) -> tuple[Values, Ids, Values] | None:
        """Returns None: Python contracts as it does."""
        return None

    def applies_within(self, device: torch.device) -> bool:
        """Returns False: whether there is room is known by `rooms` alone."""
        return False

    def apply_within(self, targets: Sequence[ScaleTarget], log_scales: Tensor, counted: frozenset[str]) -> bool:
        """Returns False, and nothing changes; see `applies_within`."""
        return False

    @torch.no_grad()
    def matrices(self, program: ReduceProgram, tensors: Sequence[Tensor], factors: Sequence[Tensor | None]) -> list[Tensor]:
        """Returns by block |w|^p summed over the kernel axes; see `power_matrix`."""
        members = zip(program.blocks, tensors, factors, strict=True)
        return [power_matrix(program.p, block, tensor, factor) for block, tensor, factor in members]

    @torch.no_grad()
    def has_zeros(self, p: float, matrix: Tensor) -> bool:
        """Returns whether any entry stands for a weight of zero."""
        return has_zeros(p, matrix)

    @torch.no_grad()
    def reduce(self, program: ReduceProgram, tensors: Sequence[Tensor], factors: Sequence[Tensor | None]) -> ChannelSums:
        """Returns N and P of the weights as they are."""
        members = zip(program.blocks, tensors, factors, strict=True)
        parts = [
            part.to(program.slots.device)
            for block, tensor, factor in members
            for part in streamed_contributions(program.p, block, tensor, factor)
        ]
        return channel_sums(program, torch.cat(parts) if parts else program.offsets)

    @torch.no_grad()
    def sums(self, program: ReduceProgram, matrices: Iterable[Tensor], log_scales: Tensor | None = None) -> ChannelSums:
        """Returns N and P, after a rescaling by `log_scales` where given."""
        return channel_sums(program, self.contributions(program, matrices, log_scales))

    @torch.no_grad()
    def contributions(self, program: ReduceProgram, matrices: Iterable[Tensor], log_scales: Tensor | None = None) -> Tensor:
        """Returns (slots,) the logs of all blocks' channel sums, without coefficients and layer weights."""
        device = program.slots.device
        parts: list[Tensor] = []
        for position, matrix in enumerate(matrices):
            block = program.to(matrix.device).blocks[position]
            scales = None if log_scales is None else log_scales.to(matrix.device)
            parts.extend(part.to(device) for part in contributions(program.p, block, matrix, scales))
        return torch.cat(parts) if parts else program.offsets

    def objective_sums(self, program: ReduceProgram, matrices: Sequence[Tensor]) -> ObjectiveSums:
        """Returns the sums of matrices tensor by tensor."""
        return _EagerSums(self, program, matrices)

    @torch.no_grad()
    def energies(self, program: ReduceProgram, matrices: Iterable[Tensor], log_scales: Tensor | None = None) -> Tensor:
        """Returns by block the logarithm of its sum of |w|^p."""
        found = []
        for position, matrix in enumerate(matrices):
            block = program.to(matrix.device).blocks[position]
            scales = None if log_scales is None else log_scales.to(matrix.device)
            found.append(energy(program.p, block, matrix, scales).to(program.slots.device))
        return torch.stack(found) if found else program.log_weights

    def apply(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> None:
        """Multiplies every target in place; a factor is rounded once, and powers of two are exact."""
        carry_out(self.writes(targets, log_scales))

    @torch.no_grad()
    def writes(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> list[Write]:
        """Returns the writes of `apply`, one for each part of a target; nothing is written yet."""
        found: list[Write] = []
        exponents: dict[torch.device, Tensor] = {}
        for target in targets:
            tensor = target.tensor
            if not target.terms or not tensor.numel():
                continue
            log2_scales = exponents.get(tensor.device)
            if log2_scales is None:
                log2_scales = exponents.setdefault(tensor.device, log2_factors(log_scales.to(tensor.device)))
            if target.offset:
                changes = _by_part(target, log2_scales)
                found += [_AffineWrite(target, index, changes) for index in parts_of(tensor)]
                continue
            factors = _by_part(target, log2_scales, exact_exp2)
            found += [_PartWrite(target, index, factors) for index in parts_of(tensor)]
        return found

    @torch.no_grad()
    def rooms(self, targets: Sequence[ScaleTarget], num_scales: int, device: torch.device) -> Tensor:
        """Returns (2, K) natural logarithms by which each variable can go up and down."""
        return rooms(targets, num_scales, device)

    @torch.no_grad()
    def leaving(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> Tensor:
        """Returns (K,) the variables that carry an entry out of its room."""
        return leaving(targets, by_device(log_scales), log_scales.numel()).to(log_scales.device)

    @torch.no_grad()
    def rounded(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> int:
        """Returns how many entries lose digits that powers of two should leave."""
        return rounded(targets, by_device(log_scales))

    @torch.no_grad()
    def overflowing(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> Tensor:
        """Returns (K,) the variables that make an entry grow too far."""
        flagged = log_scales.new_zeros(log_scales.numel() + 1, dtype=float_dtype(log_scales.device))
        for target in targets:
            tensor = target.tensor
            if not target.terms or not tensor.numel():
                continue
            log2_scales = log2_factors(log_scales.to(tensor.device))
            limit = math.log2(torch.finfo(tensor.dtype).max)
            local = flagged.to(tensor.device)
            changes = _by_part(target, log2_scales)
            for index in parts_of(tensor):
                part = tensor[index]
                parts = [change(index) for change in changes]
                growth = sum(parts[1:], parts[0])
                axes = tuple(axis for axis in range(part.ndim) if growth.shape[axis] == 1)
                largest = as_float(part.abs().amax(axes, keepdim=True) if axes else part.abs(), part.device)
                largest = largest + abs(target.offset) if target.offset else largest
                bad = (largest.log2() + growth >= limit) & (growth > 0)
                too_large, too_small = beyond_factors(parts)
                bad = bad | too_large
                for (_, ids), change in zip(target.terms, parts, strict=True):
                    over = tuple(axis for axis in range(part.ndim) if change.shape[axis] != bad.shape[axis])
                    hit = (bad & (change > 0)) | (too_small & (change < 0))
                    hit = hit.amax(over, keepdim=True) if over else hit
                    local = local.index_add(0, part_of(ids, index).reshape(-1), hit.reshape(-1).to(local.dtype))
            flagged = local.to(flagged.device)
        return flagged[:-1] > 0


class _EagerSums:
    """See `ObjectiveSums`: nothing is prepared."""

    def __init__(self, backend: EagerBackend, program: ReduceProgram, matrices: Sequence[Tensor]) -> None:
        self._backend, self._program, self._matrices = backend, program, matrices

    def contributions(self, log_scales: Tensor | None = None) -> Tensor:
        """Returns (slots,) the logs of all blocks' channel sums."""
        return self._backend.contributions(self._program, self._matrices, log_scales)

    def curvature(self, log_scales: Tensor, log_diagonal: Tensor, free: Tensor) -> Curvature:
        """Returns the Hessian at some log-scales; see `Curvature`."""
        at = self.contributions(log_scales)
        return Curvature(self._program, self._matrices, log_scales, log_diagonal, free, at)

    def aggregate(self, log_scales: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Returns the objective as a function of one scalar a label; see `aggregate`."""
        return aggregate(self._program, self._matrices, log_scales, labels, count)

    def entries_above(self, log_scales: Tensor, least: Tensor) -> Iterator[FoundEntries]:
        """Yields the single entries above a value after a rescaling."""
        return entries_above(self._program, self._matrices, log_scales, least)

    def largest_entries(self, log_scales: Tensor, count: int) -> Iterator[FoundEntries]:
        """Yields the largest entries of each channel of each tensor."""
        return largest_entries(self._program, self._matrices, log_scales, count)


class _PartWrite(Write):
    """The product of one part of a target with its factors."""

    def __init__(self, target: ScaleTarget, index: Index, factors: Sequence[Callable[[Index], Tensor]]) -> None:
        super().__init__((target.name,), (target.tensor,))
        self._index, self._factors = index, factors

    def _product(self) -> Tensor:
        """Returns the product of the part's factors, in float64."""
        return math.prod((factor(self._index) for factor in self._factors[1:]), start=self._factors[0](self._index))

    def _multiply(self, product: Tensor) -> None:
        """Multiplies; the product is rounded once to the tensor's own type."""
        (tensor,) = self.tensors
        with torch.no_grad(), torch.inference_mode() if tensor.is_inference() else nullcontext():
            tensor[self._index].mul_(product)

    def forward(self) -> None:
        """Multiplies the part by its factors."""
        self._multiply(self._product())

    def backward(self) -> None:
        """Divides the part by its factors."""
        self._multiply(self._product().reciprocal())


class _AffineWrite(Write):
    """Entries w of one part of a target become w * f + o * (f - 1), worked out in float64 and rounded once.

    So factors near 1 are not lost beside the offset o.
    """

    def __init__(self, target: ScaleTarget, index: Index, changes: Sequence[Callable[[Index], Tensor]]) -> None:
        super().__init__((target.name,), (target.tensor,))
        self._index, self._changes, self._offset = index, changes, target.offset

    def _move(self, sign: int) -> None:
        """Moves the part by its factors (+1), or by their inverses (-1)."""
        (tensor,) = self.tensors
        with torch.no_grad(), torch.inference_mode() if tensor.is_inference() else nullcontext():
            part = tensor[self._index]
            growth = sign * sum((change(self._index) for change in self._changes[1:]), self._changes[0](self._index))
            wide = part.to(torch.promote_types(part.dtype, growth.dtype))
            part.copy_(wide * exact_exp2(growth) + self._offset * torch.expm1(growth * math.log(2.0)))

    def forward(self) -> None:
        """Multiplies the sum of offset and entry."""
        self._move(1)

    def backward(self) -> None:
        """Divides the sum of offset and entry."""
        self._move(-1)


def _by_part(
    target: ScaleTarget, log2_scales: Tensor, then: Callable[[Tensor], Tensor] | None = None
) -> list[Callable[[Index], Tensor]]:
    """Returns by term a function that gives, for a part of the target, log2 of its factors, or what `then` makes of it.

    All at once where a term's ids are few beside the tensor, else for each part anew: some terms have an id for each entry.
    """

    def prepared(coefficient: int, ids: Tensor) -> Callable[[Index], Tensor]:
        """Returns the function of one term."""

        def make(some: Tensor) -> Tensor:
            """Returns the values for some ids of the term."""
            change = target.power * coefficient * log2_scales[some]
            return change if then is None else then(change)

        if next(parts_of(ids)):
            return lambda index: make(part_of(ids, index))
        whole = make(ids)
        return lambda index: part_of(whole, index)

    return [prepared(coefficient, ids) for coefficient, ids in target.terms]


def by_device(log_scales: Tensor) -> Callable[[torch.device], Tensor]:
    """Returns a function that gives `log2_factors` of some log-scales by device, copied there once."""
    known: dict[torch.device, Tensor] = {}

    def on(device: torch.device) -> Tensor:
        """Returns the base-2 logarithms on that device."""
        if device not in known:
            known[device] = log2_factors(log_scales.to(device))
        return known[device]

    return on


register_backend("eager", EagerBackend)
