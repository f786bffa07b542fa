"""The report of a checkpoint that was balanced."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..analysis.analysis import Analysis
from ..text.describe import plural
from .check import Checked
from .journal import ComponentReport

__all__ = ["CheckpointResult", "result_of"]


@dataclass(frozen=True)
class CheckpointResult:
    """The report of `balance_checkpoint`; print it.

    Attributes:
        target: where the balanced checkpoint stands.
        log_scales: (num_scales,) float64 on the CPU, natural logarithms; they are also in the file beside the target.
        components: how many there are; each was balanced by itself.
        converged: whether every component came to the tolerance, or within a power of two of it.
        norm_before, norm_after: of the counted tensors, as `fxenorm.Plan.norm`.
        imbalance_before, imbalance_after: as `fxenorm.Plan.imbalance`.
        held: how many scales stay at 0.
        rounded: how many entries powers of two have rounded.
        checked: which modules were run with the old and the new weights; None: none were asked for.

    Example:
        >>> import fxenorm, os, safetensors.torch, tempfile, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source, target = os.path.join(folder, "model.safetensors"), os.path.join(folder, "balanced.safetensors")
        ...     safetensors.torch.save_file(model.state_dict(), source)
        ...     result = fxenorm.balance_checkpoint(source, target, model)
        >>> result.converged, result.components, len(result.log_scales)
        (True, 1, 8)
    """

    target: Path
    log_scales: Tensor
    components: int
    converged: bool
    norm_before: float
    norm_after: float
    imbalance_before: float
    imbalance_after: float
    held: int
    rounded: int
    checked: Checked | None = None

    def __str__(self) -> str:
        """Returns norms and imbalance before and after, in a few lines."""
        lines = [
            f"balanced {self.target}: {self.log_scales.numel():,} scales in {self.components:,} components"
            + ("" if self.converged else ", NOT all converged"),
            f"  norm       {self.norm_before:.6g} -> {self.norm_after:.6g}",
            f"  imbalance  {self.imbalance_before:.3g} -> {self.imbalance_after:.3g}",
        ]
        if self.held:
            lines.append(f"  held       {self.held:,} scales")
        if self.rounded:
            lines.append(f"  rounded    {self.rounded:,} of the smallest entries, so outputs may differ in their last bits")
        if self.checked is not None:
            if self.checked.modules:
                lines.append(f"  checked    {plural(len(self.checked.modules), 'module')} on random inputs: outputs unchanged")
            lines += [f"  unchecked  {reason}" for reason in self.checked.unchecked]
        return "\n".join(lines)


def result_of(
    target: Path,
    analysis: Analysis,
    variables: Sequence[NDArray[Any]],
    by_index: Mapping[int, ComponentReport],
    checked: Checked | None,
) -> CheckpointResult:
    """Puts the reports of all components together."""
    reports = [by_index[index] for index in range(len(variables))]
    log_scales = torch.zeros(analysis.symmetry.num_scales, dtype=torch.float64, device="cpu")
    for ids, report in zip(variables, reports, strict=True):
        log_scales[torch.from_numpy(ids)] = torch.tensor(report.log_scales, dtype=torch.float64, device="cpu")
    p = analysis.options.p
    return CheckpointResult(
        target=target,
        log_scales=log_scales,
        components=len(reports),
        converged=all(report.converged for report in reports),
        norm_before=_norm([report.norm_before for report in reports], p),
        norm_after=_norm([report.norm_after for report in reports], p),
        imbalance_before=max((report.imbalance_before for report in reports), default=0.0),
        imbalance_after=max((report.imbalance_after for report in reports), default=0.0),
        held=sum(report.held for report in reports),
        rounded=sum(report.rounded for report in reports),
        checked=checked,
    )


def _norm(norms: Sequence[float], p: float) -> float:
    """Returns the p-norm of parts of which these are the p-norms."""
    largest = max(norms, default=0.0)
    if math.isinf(p) or largest == 0 or not math.isfinite(largest):
        return largest
    return float(largest * math.fsum((norm / largest) ** p for norm in norms) ** (1 / p))
