"""Terms of a model that is spread over processes: each sums the entries that it holds, and the sums of all are added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...analysis.analysis import Analysis
from ...analysis.attained.basis import Basis
from ...analysis.counted import CountedTensors
from ...analysis.options import Options
from ...distributed.dtensors import is_distributed, local_part
from ...distributed.layout import layout_of, whole
from ...distributed.ranks import Ranks
from ...field import Term as FieldTerm
from ...kernels.backend import reference_backend
from ...kernels.program import build_program
from ...weights.objective import CurrentObjective
from ...weights.shared.spread import Spread
from ...weights.shared.sums import SharedSums
from ...weights.weights import Weights
from .items import Item, powers

__all__ = ["SpreadTensors"]


class SpreadTensors:
    """The tensors of one call, of which this process holds a part.

    Args:
        weights: the model's tensors, in the basis of what may move.
        ranks: the processes.
    """

    def __init__(self, weights: Weights, ranks: Ranks) -> None:
        self._weights, self._ranks = weights, ranks

    def _spread(self, analysis: Analysis) -> Spread:
        """Returns which part of the counted tensors is here."""
        weights = self._weights
        return Spread(analysis, weights.read, self._ranks, weights.failures, weights.device)

    def of_counted(self, counted: CountedTensors, options: Options) -> CurrentObjective:
        """Returns the norm of counted tensors over the places of the basis."""
        device, backend = self._weights.device, reference_backend()
        spread = self._spread(self._weights.analysis.counting(counted, options))
        program = spread.local.program.to(device)
        return CurrentObjective(
            backend,
            program,
            backend.matrices(program, *spread.gather()),
            torch.zeros_like(program.counted_negative),
            torch.full_like(program.degree, math.inf),
            whole=counted.program.to(device),
            positions=spread.local.positions,
            sums=spread.sums,
        )

    def items(self, plan: Analysis, counted: CountedTensors, options: Options, power: float) -> list[Item]:
        """Returns the entries of counted tensors to some power, over the plan's own variables, each as far as it is here."""
        spread = self._spread(plan.counting(counted, options))
        values, factors = spread.gather()
        held = zip(spread.local.positions.tolist(), zip(spread.local.layouts, values, factors, strict=True), strict=True)
        here, found = dict(held), []
        for place, item in enumerate(counted.tensors):
            # Every process knows of all tensors, whoever holds their entries.
            layout, value, factor = here.get(place, (whole(item.shape, False), _no_entries(), None))
            found.append(Item(item.shape, partial(powers, item, value, factor, power), item.terms, layout))
        return found

    def masses(self, name: str, tensor: Tensor, item: Item) -> Item:
        """Returns the masses of one tensor as far as they are here; of an ordinary one the first process counts all."""
        layout = layout_of(name, tensor, self._ranks.first_rank, self._ranks.rank)
        part = local_part(tensor) if is_distributed(tensor) else tensor
        return replace(item, masses=lambda: part.detach().to(self._weights.device, torch.float64), layout=layout)

    def placed(self, item: Item) -> Item:
        """Returns entries that every process has all of, so that the first counts them; the same where it is known who does."""
        if item.layout is not None:
            return item
        return replace(item, layout=whole(item.shape, self._ranks.rank == self._ranks.first_rank))

    def of_sizes(self, items: Sequence[Item], basis: Basis | None, sign: int, p: float) -> CurrentObjective:
        """Returns the sum of p-th powers of sizes over the places of the basis, with the sign times their exponents."""
        device, backend = self._weights.device, reference_backend()
        count = self._weights.analysis.symmetry.num_scales
        moving = [item for item in items if item.within(basis)]
        whole_program = build_program([(item.shape, _signed(item.within(basis), sign), 0.0) for item in moving], count, p)
        here = [place for place, item in enumerate(moving) if item.counts]
        tensors = [moving[place].masses() for place in here]
        blocks = [
            (tuple(tensor.shape), _signed(moving[place].here(basis), sign), 0.0)
            for place, tensor in zip(here, tensors, strict=True)
        ]
        program = replace(
            build_program(blocks, count, p),
            degree=whole_program.degree,
            counted_negative=whole_program.counted_negative,
            counted_positive=whole_program.counted_positive,
        ).to(device)
        reference = torch.zeros(2 * count, dtype=torch.float64, device=device)
        return CurrentObjective(
            backend,
            program,
            backend.matrices(program, tensors, [None] * len(tensors)),
            torch.zeros_like(program.counted_negative),
            torch.full_like(program.degree, math.inf),
            whole=whole_program.to(device),
            positions=torch.tensor(here, dtype=torch.int64, device="cpu"),
            sums=SharedSums(self._ranks, p, reference, self._weights.failures),
        )


def _signed(terms: Sequence[FieldTerm], sign: int) -> list[FieldTerm]:
    """Returns exponents times a sign."""
    return [(sign * coefficient, ids) for coefficient, ids in terms]


def _no_entries() -> Tensor:
    """Returns a tensor without entries."""
    return torch.zeros(0, dtype=torch.float64, device="cpu")
