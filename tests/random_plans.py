"""Random objectives by hypothesis, and the plain definition of N, P, A and F, one entry at a time."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st

from fxenorm.kernels.program import ReduceProgram, build_program

__all__ = ["Case", "Oracle", "cases"]


@dataclass
class Case:
    """Counted tensors with their exponents."""

    num_scales: int
    p: float
    shapes: list[tuple[int, ...]]
    terms: list[list[tuple[int, np.ndarray]]]
    log_weights: list[float]
    tensors: list[torch.Tensor]
    offsets: list[float] = field(default_factory=list)
    """By tensor, what is added to its entries; empty: nothing."""

    def program(self) -> ReduceProgram:
        """What an executor runs."""
        counted = list(zip(self.shapes, self.terms, self.log_weights, strict=True))
        return build_program(counted, self.num_scales, self.p, self.offsets)

    def offset(self, index: int, power: int = 1) -> float:
        """Of one tensor, or of what follows it by another power."""
        return self.offsets[index] if self.offsets and power == 1 else 0.0

    def oracle(self, log_scales: np.ndarray | None = None) -> Oracle:
        """The definition, after a rescaling."""
        return Oracle(self, np.zeros(self.num_scales) if log_scales is None else log_scales)


class Oracle:
    """The formulas of the objective and its cycle, entry by entry."""

    def __init__(self, case: Case, log_scales: np.ndarray) -> None:
        count = case.num_scales
        infinite = math.isinf(case.p)
        self.negative, self.positive = np.zeros(count), np.zeros(count)
        self.degree = np.full(count, 2.0)
        self.energies = []
        self.objective = 0.0
        members = zip(case.shapes, case.terms, case.log_weights, case.tensors, strict=True)
        for index, (shape, terms, log_weight, tensor) in enumerate(members):
            energy = 0.0
            full = [(coefficient, np.broadcast_to(ids, shape)) for coefficient, ids in terms]
            for entry in itertools.product(*(range(size) for size in shape)):
                exponents: dict[int, int] = {}
                for coefficient, ids in full:
                    if ids[entry] >= 0:
                        exponents[int(ids[entry])] = exponents.get(int(ids[entry]), 0) + coefficient
                exponents = {k: a for k, a in exponents.items() if a}
                shift = sum(a * log_scales[k] for k, a in exponents.items())
                size = abs(case.offset(index) + float(tensor[entry])) * math.exp(shift)
                power = size if infinite else size**case.p
                energy = max(energy, power) if infinite else energy + power
                for k, a in exponents.items():
                    side = self.positive if a > 0 else self.negative
                    side[k] = max(side[k], power) if infinite else side[k] + abs(a) * math.exp(log_weight) * power
                    self.degree[k] = max(self.degree[k], 2 * abs(a), sum(map(abs, exponents.values())))
            self.energies.append(energy)
            weighted = energy if infinite else math.exp(log_weight) * energy
            self.objective = max(self.objective, weighted) if infinite else self.objective + weighted


@st.composite
def cases(
    draw: st.DrawFn, exponents: tuple[int, ...] = (1, 2), infinite: bool = True, signed: bool = True, offsets: bool = False
) -> Case:
    """Objectives of up to four tensors of up to three axes, several variables an entry, collisions and zeros included."""
    count = draw(st.integers(1, 6))
    p = draw(st.sampled_from([0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 7.3, 12.0, *([math.inf] if infinite else [])]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes, all_terms, tensors = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
        terms = []
        for _ in range(draw(st.integers(1, 3))):
            form = tuple(size if draw(st.booleans()) else 1 for size in shape)
            ids = random.integers(-1, count, size=form)
            sign = draw(st.sampled_from([1, -1])) if signed else 1
            terms.append((sign * draw(st.sampled_from(exponents)), ids.astype(np.int64)))
        weights = random.normal(size=shape) * np.exp(random.normal(size=shape))
        weights[random.random(shape) < draw(st.sampled_from([0.0, 0.3]))] = 0.0
        shapes.append(shape)
        all_terms.append(terms)
        tensors.append(torch.from_numpy(weights))
    log_weights = [0.0 if math.isinf(p) else float(value) for value in random.normal(size=len(shapes))]
    added = [draw(st.sampled_from([0.0, 1.0, -0.3])) for _ in shapes] if offsets else []
    return Case(count, p, shapes, all_terms, log_weights, tensors, added)
