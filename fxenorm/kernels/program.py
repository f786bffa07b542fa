"""The data that an executor runs: the counted tensors of a plan as index tensors, and the tensors that a rescaling multiplies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .terms import Collisions, Ids, Terms, collisions, cycle_degrees, joint_shape, normalise

__all__ = [
    "LINEAR_UP_TO",
    "Block",
    "ChannelSums",
    "Keep",
    "ReduceProgram",
    "ScaleTarget",
    "TermTensors",
    "as_float",
    "build_program",
    "float_dtype",
    "term_tensors",
]

LINEAR_UP_TO = 4.0
"""Up to this p sums are taken of |w|^p itself, beyond it logarithms are added: 1e-45, the smallest float32, and its rescaled
products have a 4th power in the range of float64, and no 8th.
"""

TermTensors = tuple[tuple[int, Tensor], ...]
"""Terms on a device: (coefficient, ids), where "fixed" is ``num_scales``, one past the last variable."""


@dataclass(frozen=True)
class ChannelSums:
    """N and P of the objective, as natural logarithms, so that no power over- or underflows.

    Attributes:
        log_negative: (num_scales,) log N_k: entries with a negative exponent of variable k.
        log_positive: (num_scales,) log P_k: entries with a positive one. -inf where there is nothing.
    """

    log_negative: Tensor
    log_positive: Tensor


class Keep(Enum):
    """The part of a tensor that rescalings of our own keep, beside that nothing becomes infinite.

    ENTRIES: what is not zero stays so (optimizer state, gradients, 16-bit weights that are rewritten from a wider copy).
    LARGEST: the largest of each row and column keeps all its digits too, so that less is lost of others than is rounded there.
    DIGITS: all entries keep the digits that they have under powers of two; in float16 all but those that are smaller than
        2 ** -11 of the largest of their row.
    """

    ENTRIES = "entries"
    LARGEST = "largest"
    DIGITS = "digits"


@dataclass(frozen=True)
class ScaleTarget:
    """A tensor that follows a rescaling: entry e is multiplied by exp(power * sum of coefficient * log_scales[id]).

    With an offset o, entry w becomes (o + w) * factor - o.

    Attributes:
        name: what it is, for messages.
        tensor: written in place.
        terms: exponents, on the tensor's device.
        power: +1 for parameters, -1 for gradients and first moments, -2 for second moments.
        offset: what the model adds to the tensor before it multiplies; 0 for all that is no position (gradients, moments, steps).
        owner: the distributed tensor of which it is this process's part; None: it is no part.
        keep: what is not to be lost of it.
    """

    name: str
    tensor: Tensor
    terms: TermTensors
    power: int = 1
    offset: float = 0.0
    owner: Tensor | None = None
    keep: Keep = Keep.ENTRIES


@dataclass(frozen=True)
class Block:
    """One counted tensor.

    Attributes:
        shape: the tensor's.
        terms: its exponents in normal form; every variable in at most one term an entry, but for `collided`.
        kernel_axes: axes along which no exponent varies (the kernel of a convolution); summed first.
        term_axes: by term, the further axes that its channel sums run over.
        collided: flat positions, after summing `kernel_axes`, that are left out of the terms' sums; None: none.
        collided_rows: index into `collided`, one for each net exponent that is counted instead.
        offset: what is added to each entry before its power is taken.
    """

    shape: tuple[int, ...]
    terms: TermTensors
    kernel_axes: tuple[int, ...]
    term_axes: tuple[tuple[int, ...], ...]
    collided: Tensor | None = None
    collided_rows: Tensor | None = None
    offset: float = 0.0

    @property
    def slots(self) -> int:
        """Returns how many contributions the block yields."""
        return sum(ids.numel() for _, ids in self.terms) + (0 if self.collided_rows is None else self.collided_rows.numel())


@dataclass(frozen=True)
class ReduceProgram:
    """All counted tensors of a plan.

    Every block yields one contribution for each position of each term, then one for each row of `collided_rows`; `slots` and
    `offsets` say where these go: slot k is N_k, slot num_scales + k is P_k, the last one is thrown away.

    Attributes:
        num_scales: number of variables K.
        p: the exponent of the norm.
        blocks: one a counted tensor.
        slots: (contributions,) int64.
        offsets: (contributions,) float64: log(|coefficient| * layer weight), 0 where p is infinite.
        log_weights: (blocks,) float64: log of the layer weights, 0 where p is infinite.
        degree: (K,) float64: A_k, the larger of 2 max |a_ek| and the largest sum of |a_ej| among entries that carry k.
        counted_negative, counted_positive: (K,) bool: whether any counted entry carries k with that sign.
    """

    num_scales: int
    p: float
    blocks: tuple[Block, ...]
    slots: Tensor
    offsets: Tensor
    log_weights: Tensor
    degree: Tensor
    counted_negative: Tensor
    counted_positive: Tensor
    _copies: dict[torch.device, ReduceProgram] = field(default_factory=dict, repr=False, compare=False)
    _parts: dict[tuple[int, ...], ReduceProgram] = field(default_factory=dict, repr=False, compare=False)

    def part(self, positions: Sequence[int]) -> ReduceProgram:
        """Returns the same with some of the blocks only, in their order; made once for each choice."""
        key = tuple(positions)
        known = self._parts.get(key)
        if known is None:
            sizes = [block.slots for block in self.blocks]
            slots, offsets = torch.split(self.slots, sizes), torch.split(self.offsets, sizes)
            known = replace(
                self,
                blocks=tuple(self.blocks[position] for position in key),
                slots=torch.cat([slots[position] for position in key]),
                offsets=torch.cat([offsets[position] for position in key]),
                log_weights=self.log_weights[list(key)],
                _copies={},
                _parts={},
            )
            self._parts[key] = known
        return known

    def to(self, device: torch.device) -> ReduceProgram:
        """Returns the same program with its tensors on `device`; made once a device."""
        if self.slots.device == device:
            return self
        known = self._copies.get(device)
        if known is None:
            known = ReduceProgram(
                num_scales=self.num_scales,
                p=self.p,
                blocks=tuple(_moved(block, device) for block in self.blocks),
                slots=self.slots.to(device),
                offsets=as_float(self.offsets, device),
                log_weights=as_float(self.log_weights, device),
                degree=as_float(self.degree, device),
                counted_negative=self.counted_negative.to(device),
                counted_positive=self.counted_positive.to(device),
            )
            self._copies[device] = known
        return known


def as_float(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns `tensor` on `device`, in float64 where the device has it."""
    return tensor.to(device=device, dtype=float_dtype(device))


def float_dtype(device: torch.device) -> torch.dtype:
    """Returns the dtype of sums and log-scales: float64, but for Apple's GPUs, which lack it."""
    return torch.float32 if device.type == "mps" else torch.float64


def term_tensors(terms: Sequence[tuple[int, Ids]], ndim: int, num_scales: int) -> TermTensors:
    """Returns terms in normal form as index tensors on the CPU, "fixed" mapped to `num_scales`."""
    return tuple(
        (coefficient, torch.from_numpy(np.where(ids < 0, num_scales, ids).copy())) for coefficient, ids in normalise(terms, ndim)
    )


def build_program(
    counted: Sequence[tuple[tuple[int, ...], Sequence[tuple[int, Ids]], float]],
    num_scales: int,
    p: float,
    added: Sequence[float] | None = None,
) -> ReduceProgram:
    """Returns the program for tensors given as (shape, terms, log of the layer weight).

    Args:
        counted: the counted tensors.
        num_scales: number of variables.
        p: the exponent of the norm, > 0 or infinite.
        added: by counted tensor, what is added to its entries before powers are taken; None: nothing.

    Returns:
        The program, on the CPU.
    """
    blocks: list[Block] = []
    slots: list[Ids] = []
    offsets: list[NDArray[np.float64]] = []
    degree = np.full(num_scales, 2, dtype=np.int64)
    finite = math.isfinite(p)
    for (shape, given, log_weight), offset in zip(counted, added or [0.0] * len(counted), strict=True):
        terms = normalise(given, len(shape))
        met = collisions(terms, len(shape))
        cycle_degrees(terms, len(shape), met, degree)
        places, logs = _slots_of(terms, met, num_scales)
        slots += places
        offsets += [some + log_weight if finite else np.zeros(some.size) for some in logs]
        blocks.append(_block(shape, terms, met, num_scales, offset))
    all_slots = np.concatenate(slots) if slots else np.zeros(0, dtype=np.int64)
    present = np.zeros(2 * num_scales + 1, dtype=bool)
    present[all_slots] = True
    return ReduceProgram(
        num_scales=num_scales,
        p=p,
        blocks=tuple(blocks),
        slots=torch.from_numpy(all_slots),
        offsets=torch.from_numpy(np.concatenate(offsets) if offsets else np.zeros(0)),
        log_weights=torch.from_numpy(np.array([log_weight if finite else 0.0 for _, _, log_weight in counted], dtype=np.float64)),
        degree=torch.from_numpy(degree).to(torch.float64),
        counted_negative=torch.from_numpy(present[:num_scales].copy()),
        counted_positive=torch.from_numpy(present[num_scales:-1].copy()),
    )


def _slots_of(terms: Terms, met: Collisions | None, num_scales: int) -> tuple[list[Ids], list[NDArray[np.float64]]]:
    """Returns where the contributions of a block go, and log |coefficient|: term by term, then those of collisions."""
    places, logs = [], []
    for coefficient, ids in terms:
        flat = ids.reshape(-1)
        places.append(np.where(flat < 0, 2 * num_scales, flat + (num_scales if coefficient > 0 else 0)))
        logs.append(np.full(flat.size, math.log(abs(coefficient))))
    if met is not None:
        places.append(met.ids + np.where(met.coefficients > 0, num_scales, 0))
        logs.append(np.log(np.abs(met.coefficients)))
    return places, logs


def _block(shape: tuple[int, ...], terms: Terms, met: Collisions | None, num_scales: int, offset: float) -> Block:
    """Returns a counted tensor with what its sums run over."""
    axes, joint = range(len(shape)), joint_shape(terms, len(shape))
    return Block(
        shape=tuple(shape),
        terms=term_tensors(terms, len(shape), num_scales),
        kernel_axes=tuple(axis for axis in axes if joint[axis] == 1),
        term_axes=tuple(tuple(axis for axis in axes if joint[axis] != ids.shape[axis]) for _, ids in terms),
        collided=None if met is None else torch.from_numpy(met.entries),
        collided_rows=None if met is None else torch.from_numpy(met.rows),
        offset=offset,
    )


def _moved(block: Block, device: torch.device) -> Block:
    """Returns `block` with its index tensors on `device`."""
    return replace(
        block,
        terms=tuple((coefficient, ids.to(device)) for coefficient, ids in block.terms),
        collided=None if block.collided is None else block.collided.to(device),
        collided_rows=None if block.collided_rows is None else block.collided_rows.to(device),
    )
