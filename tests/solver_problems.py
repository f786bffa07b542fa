"""Objectives on which solvers are tested: chains, loops, gates, and their definition for autograd."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from fxenorm.analysis.attained.channel_fields import ChannelFields
from fxenorm.analysis.attained.exponent_rows import exponent_rows
from fxenorm.analysis.attained.missing_equations import missing_equations
from fxenorm.kernels.program import LINEAR_UP_TO
from fxenorm.kernels.reference.executor import EagerBackend
from fxenorm.solve.jacobi import solvable
from fxenorm.weights.objective import CurrentObjective

from .random_plans import Case

BACKEND = EagerBackend()


def problem_of(case: Case, groups: np.ndarray | None = None, held: np.ndarray | None = None) -> CurrentObjective:
    """A case, read once, with a cap on its log-scales."""
    program = case.program()
    mask = torch.zeros(case.num_scales, dtype=torch.bool) if held is None else torch.from_numpy(held)
    matrices = BACKEND.matrices(program, case.tensors, [None] * len(case.tensors))
    limit = torch.full((case.num_scales,), 300.0, dtype=torch.float64)
    return CurrentObjective(BACKEND, program, matrices, mask, limit, None if groups is None else torch.from_numpy(groups))


def chain(depth: int, width: int, kind: str = "dense", p: float = 2.0, bad_start: float = 0.0, seed: int = 0) -> CurrentObjective:
    """A fully connected chain; what has no finite optimum is held."""
    random = np.random.default_rng(seed)
    shapes, terms, tensors = [], [], []
    for layer in range(depth):
        out, into = (width if layer < depth - 1 else 7), (width if layer else 9)
        weight = random.normal(size=(out, into))
        if kind == "heavy":
            weight = random.standard_t(1.5, size=(out, into)) * np.exp(2 * random.normal(size=(out, into)))
        if kind == "sparse":
            weight *= random.random((out, into)) < 0.03
        weight *= np.exp(random.normal() + bad_start * random.normal(size=(out, 1)))
        ids = np.arange(layer * width, (layer + 1) * width)
        shapes.append((out, into))
        terms.append(
            [*([(1, ids[:, None])] if layer < depth - 1 else []), *([(-1, ids[None, :] - width)] if layer else [])],
        )
        tensors.append(torch.from_numpy(weight))
    count = (depth - 1) * width
    case = Case(count, p, shapes, terms, [0.0] * depth, tensors)
    problem = problem_of(case, np.repeat(np.arange(depth - 1), width))
    dead = ~solvable(*problem.log_sums()).numpy()
    rows = exponent_rows(problem.program, problem.matrices).matrix(dead)
    for form, _ in missing_equations(rows, dead, ChannelFields((), problem.program, None, dead)):
        ((variable, _),) = form
        dead[variable] = True
    return dataclasses.replace(problem, held=torch.from_numpy(dead))


def gated(p: float) -> CurrentObjective:
    """Layers with a shared stream, a weight that both reads and writes it, three variables an entry, and exponents of 2."""
    random, width = np.random.default_rng(3), 4
    stream, inner, gate = (np.arange(start, start + width) for start in (0, width, 2 * width))
    terms: list[list[tuple[int, np.ndarray]]] = [
        [(1, stream[:, None])],
        [(1, inner[:, None]), (-1, stream[None, :])],
        [(1, gate[:, None]), (-1, stream[None, :])],
        [(1, stream[:, None]), (-2, inner[None, :]), (-1, gate[None, :])],
        [(1, stream[:, None]), (-1, stream[None, :])],
        [(-1, stream[None, :])],
    ]
    tensors = [torch.from_numpy(random.normal(size=(width, width)) * np.exp(random.normal())) for _ in terms]
    weights = [0.0, 0.5, -0.5, 0.0, 1.0, 0.0]
    case = Case(3 * width, p, [(width, width)] * len(terms), terms, weights, tensors)
    return problem_of(case, np.repeat(np.arange(3), width))


def ring(weights: list[float], p: float) -> CurrentObjective:
    """Scalar layers in a loop: layer i reads variable i and writes variable i + 1."""
    count = len(weights)
    ids = [np.array([[k]]) for k in range(count)]
    terms = [[(1, ids[(k + 1) % count]), (-1, ids[k])] for k in range(count)]
    tensors = [torch.full((1, 1), weight, dtype=torch.float64) for weight in weights]
    return problem_of(Case(count, p, [(1, 1)] * count, terms, [0.0] * count, tensors))


def by_definition(problem: CurrentObjective, log_scales: torch.Tensor, matrices: Any = None) -> torch.Tensor:
    """F, entry by entry, for autograd."""
    padded = torch.nn.functional.pad(log_scales, (0, 1))
    total = log_scales.new_zeros(())
    for block, matrix, log_weight in zip(problem.program.blocks, problem.matrices, problem.program.log_weights, strict=True):
        power = matrix if problem.p <= LINEAR_UP_TO else matrix.exp()
        exponent = sum((c * padded[ids] for c, ids in block.terms), torch.zeros(()))
        total = total + log_weight.exp() * (power * (problem.p * exponent).exp()).sum()
    return total
