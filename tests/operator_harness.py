"""The per-operator harness: does a scale rule claim what is true, and all of it?

A row (`Case`) is one operator call on tensors with a different size on every axis. The call is traced once; then every input
carries scales in each of the ways in which it can (see `variants_of`), the walk and the rules give the fields of inputs and
outputs, and

- soundness: op(exp(field in) x) must be exp(field out) op(x) for random values of all free variables;
- completeness: the number of free variables must be the dimension of the null space of the derivative of that law,
  measured without any rule (see `Measured`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .claimed_law import Claims, claims, schemas, traced_call
from .measured_law import measured
from .rule_cases.case import Case, Spread, Variant, is_floating, points, real, values_of

__all__ = [
    "TOLERANCE",
    "Case",
    "Finding",
    "Variant",
    "errors_on_zeros",
    "examine",
    "main",
    "schemas",
    "traced_call",
    "variants_of",
    "verdict_of",
]

TOLERANCE = 1e-10

Verdict = Literal["correct", "incorrect", "missing"]


@dataclass(frozen=True)
class Finding:
    """What the harness found for one variant of one row."""

    case: Case
    variant: Variant
    verdict: Verdict
    error: float
    claimed: int
    measured: int | None

    def __str__(self) -> str:
        return (
            f"{self.case.name} {self.variant.spreads} {self.variant.form}: {self.verdict}"
            f" (error {self.error:.1e}, claims {self.claimed} of {self.measured})"
        )


def _error(case: Case, variant: Variant, claimed: Claims) -> float:
    """Largest violation of op(scaled x) = scaled op(x) over several points and random values of the free variables."""
    worst = 0.0
    kinds = ("away from zero", "away from zero", "ties", "near zero", "large")
    for seed, kind in enumerate(kinds):
        s = np.random.default_rng(seed).uniform(-1, 1, claimed.free)
        x = points(case, seed, kind)
        x = [torch.zeros_like(value) if how == "zeros" else value for value, how in zip(x, variant.spreads, strict=True)]
        scaled = [
            value if rows is None else _moved(value, torch.from_numpy(np.exp(rows @ s)).reshape(value.shape), offset)
            for value, rows, offset in zip(x, claimed.inputs, claimed.offsets, strict=True)
        ]
        before, after = values_of(case, x), values_of(case, scaled)
        if variant.form != "plain":
            before, after = before * 2, after * 2
        fields = iter(claimed.outputs)
        for old, new in zip(before, after, strict=True):
            rows = next(fields) if isinstance(old, torch.Tensor) else None
            if not is_floating(old):
                same = torch.equal(old, new) if isinstance(old, torch.Tensor) else old == new
                worst = max(worst, 0.0 if same else math.inf)
            elif rows is None:
                free = bool(((old == 0) | torch.isinf(old) | torch.isnan(old)).all())  # 0 / 0 is no number, whatever the scales
                worst = max(worst, 0.0 if free and torch.equal(torch.nan_to_num(old), torch.nan_to_num(new)) else math.inf)
            elif rows.shape[0] != old.numel():
                # The number of entries depends on the values: only one field for all of them can be compared.
                alike = bool(len(rows)) and bool((rows == rows[:1]).all())
                worst = max(worst, _difference(old * float(np.exp(rows[0] @ s)), new) if alike else math.inf)
            else:
                worst = max(worst, _difference(real(old * torch.from_numpy(np.exp(rows @ s)).reshape(old.shape)), real(new)))
    return worst


def _moved(value: torch.Tensor, factor: torch.Tensor, offset: float) -> torch.Tensor:
    """(offset + x) * factor - offset; without an offset zeros keep their signs."""
    return (value + offset) * factor - offset if offset else value * factor


def _difference(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """Largest difference relative to the largest entry; NaN and infinities must be in the same places."""
    if wanted.shape != found.shape:
        return math.inf
    finite = torch.isfinite(wanted) & torch.isfinite(found)
    if not torch.equal(torch.nan_to_num(wanted[~finite]), torch.nan_to_num(found[~finite])):
        return math.inf
    if not finite.any():
        return 0.0
    wanted, found = wanted[finite], found[finite]
    largest = wanted.abs().max().item()
    difference = (wanted - found).abs().max().item()
    return difference / largest if largest else (0.0 if difference == 0 else math.inf)


def variants_of(case: Case) -> list[Variant]:
    """All inputs as parameters; all as activations, entry by entry; each alone as an activation beside parameters, entry by
    entry and along one axis at a time; and the in-place and out forms of the first two."""
    count = len(case.shapes)
    parameters: list[Spread] = ["parameter"] * count
    whole: list[Spread] = [tuple(range(len(shape))) for shape in case.shapes]
    found = [Variant(tuple(parameters)), Variant(tuple(whole))]
    for k, shape in enumerate(case.shapes):
        if count > 1:
            found.append(Variant((*parameters[:k], whole[k], *parameters[k + 1 :])))
        for axis in range(len(shape)):
            if len(shape) > 1:
                found.append(Variant((*parameters[:k], (axis,), *parameters[k + 1 :])))
    found += [Variant(tuple(spreads), form) for form in ("in-place", "out") for spreads in (parameters, whole) if count]
    return list(dict.fromkeys(found))


def errors_on_zeros(case: Case) -> dict[str, float]:
    """By variant, the error where one input after the other is zeros that the graph shows, beside activations or parameters."""
    count = len(case.shapes)
    whole: list[Spread] = [tuple(range(len(shape))) for shape in case.shapes]
    parameters: list[Spread] = ["parameter"] * count
    variants = [Variant((*whole[:k], "zeros", *whole[k + 1 :])) for k in range(count)]
    variants += [Variant(("zeros", *parameters[1:]))] if count > 1 else []
    found = {str(variant.spreads): (variant, claims(case, variant)) for variant in variants}
    errors = {}
    for name, (variant, claimed) in found.items():
        if claimed is not None and not (case.refuses_zeros and variant.spreads[case.refuses_zeros] == "zeros"):
            errors[name] = _error(case, variant, claimed)
    return errors


def examine(case: Case) -> list[Finding]:
    """All findings for a row."""
    law, masks = measured(case)
    findings = []
    for variant in variants_of(case):
        claimed = claims(case, variant)
        if claimed is None:
            continue
        error = _error(case, variant, claimed)
        dimension: int | None = law.dimension(variant.spreads)
        if case.dimension is not None:
            entrywise = all(
                s == "parameter" or s == tuple(range(len(x))) for s, x in zip(variant.spreads, case.shapes, strict=True)
            )
            dimension = case.dimension if entrywise else None
        rank = _rank(case, claimed, masks)
        wrong = error > TOLERANCE or (dimension is not None and rank > dimension)
        verdict: Verdict = "incorrect" if wrong else "missing" if dimension is not None and rank < dimension else "correct"
        findings.append(Finding(case, variant, verdict, error, rank, dimension))
    return findings


def _rank(case: Case, claimed: Claims, masks: Sequence[torch.Tensor]) -> int:
    """Dimension of what is claimed, entries that are always 0 or infinite left out."""
    blocks = [rows for rows in claimed.inputs if rows is not None]
    values = values_of(case, points(case, 0))
    floating = [k for k, value in enumerate(v for v in values if isinstance(v, torch.Tensor)) if is_floating(value)]
    for position, mask in zip(floating, masks, strict=True):
        rows = claimed.outputs[position]
        if rows is not None:
            blocks.append(rows[mask.reshape(-1).numpy()])
    if not blocks or not claimed.free:
        return 0
    return int(np.linalg.matrix_rank(np.concatenate(blocks).astype(np.float64)))


# --- the table --------------------------------------------------------------------------------------------------------


def verdict_of(cases: Sequence[Case]) -> tuple[str, str]:
    """The worst verdict over the rows of one operator, and what is missed or wrong."""
    findings = [finding for case in cases for finding in examine(case)]
    wrong = [str(finding) for finding in findings if finding.verdict == "incorrect"]
    if wrong:
        return "incorrect", wrong[0]
    missing = [finding for finding in findings if finding.verdict == "missing"]
    reasons = dict.fromkeys(finding.case.misses or str(finding) for finding in missing)
    return ("missing", "; ".join(reasons)) if missing else ("correct", "")


def main(patterns: Sequence[str]) -> int:
    """Print one line an operator: its family, the verdict and the reason. Returns the number of incorrect rules."""
    from fnmatch import fnmatchcase

    from fxenorm.rules import iterate_rules

    from .rule_cases import CASES

    incorrect = 0
    for rule in iterate_rules():
        if patterns and not any(fnmatchcase(rule.operator, pattern) for pattern in patterns):
            continue
        cases = [case for case in CASES if case.operator == rule.operator]
        verdict, reason = verdict_of(cases) if cases else ("no row", "")
        incorrect += verdict == "incorrect"
        print(f"{rule.operator:45} {rule.family:15} {verdict:10} {reason}")
    return incorrect


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
