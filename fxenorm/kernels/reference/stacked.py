"""Many small matrices of one kind as a single one, so that a deep model costs a few large operations and not many small ones."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..program import Block, ReduceProgram
from .channel_sums import has_two_sides, is_linear, is_narrow

__all__ = ["stacked"]

_LARGEST = 1 << 12
"""Entries of a matrix beyond which a call on it costs more than what surrounds the call: measured on one core."""

_FEWEST = 8
"""Matrices of one kind that are worth a copy: fewer save less than a copy costs; a bound by estimate."""


def stacked(program: ReduceProgram, matrices: Sequence[Tensor]) -> tuple[ReduceProgram, list[Tensor]]:
    """Returns the same objective with the small matrices of each kind as one tensor, their number its first axis.

    Args:
        program: the objective.
        matrices: as `Backend.matrices` returns them.

    Returns:
        A program and matrices of fewer blocks, in another order; the given ones where nothing can be stacked.
    """
    kinds: dict[Hashable, list[int]] = {}
    log_weights = program.log_weights.tolist()
    for number, (block, matrix) in enumerate(zip(program.blocks, matrices, strict=True)):
        kinds.setdefault(_kind(program.p, block, matrix, log_weights[number]) or number, []).append(number)
    parts = [[numbers] if len(numbers) >= _FEWEST else [[number] for number in numbers] for numbers in kinds.values()]
    chosen = [numbers for part in parts for numbers in part]
    if len(chosen) == len(program.blocks):
        return program, list(matrices)
    sizes = [block.slots for block in program.blocks]
    slots, offsets = torch.split(program.slots, sizes), torch.split(program.offsets, sizes)
    return (
        replace(
            program,
            blocks=tuple(_stack([program.blocks[number] for number in numbers]) for numbers in chosen),
            slots=torch.cat([_by_term(program.blocks[numbers[0]], [slots[number] for number in numbers]) for numbers in chosen]),
            offsets=torch.cat([_by_term(program.blocks[numbers[0]], [offsets[n] for n in numbers]) for numbers in chosen]),
            log_weights=program.log_weights[[numbers[0] for numbers in chosen]],
            _copies={},
            _parts={},
        ),
        [matrices[numbers[0]] if len(numbers) == 1 else torch.stack([matrices[n] for n in numbers]) for numbers in chosen],
    )


def _kind(p: float, block: Block, matrix: Tensor, log_weight: float) -> Hashable | None:
    """Returns a key that matrices to be stacked have in common; None: this one stays alone."""
    if not (is_linear(p) or math.isinf(p)) or is_narrow(matrix) or matrix.numel() > _LARGEST or not has_two_sides(block):
        return None
    terms = tuple((coefficient, tuple(ids.shape)) for coefficient, ids in block.terms)
    return (*block.shape,), tuple(matrix.shape), terms, block.kernel_axes, block.offset, log_weight, matrix.device


def _stack(blocks: Sequence[Block]) -> Block:
    """Returns blocks of one kind as one block."""
    first = blocks[0]
    if len(blocks) == 1:
        return first
    return replace(
        first,
        shape=(len(blocks), *first.shape),
        terms=tuple(
            (coefficient, torch.stack([block.terms[term][1] for block in blocks]))
            for term, (coefficient, _) in enumerate(first.terms)
        ),
        kernel_axes=tuple(axis + 1 for axis in first.kernel_axes),
        term_axes=tuple(tuple(axis + 1 for axis in axes) for axes in first.term_axes),
    )


def _by_term(block: Block, of_each: Sequence[Tensor]) -> Tensor:
    """Returns values of the contributions of blocks of one kind, in the order of those of their stack: term by term."""
    if len(of_each) == 1:
        return of_each[0]
    sizes = [ids.numel() for _, ids in block.terms]
    return torch.cat([part.reshape(-1) for part in torch.split(torch.stack(list(of_each)), sizes, 1)])
