"""What the processes of one model compare before a call of a plan writes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..analysis.analysis import Analysis
from ..distributed.agreement import Meeting, Statement
from ..distributed.ranks import Ranks
from ..kernels.program import ScaleTarget
from ..weights.weights import Snapshot

__all__ = ["Looked", "meeting_of", "statement_of"]


class Looked(NamedTuple):
    """What a call has looked up and checked before it writes.

    Attributes:
        snapshot: the model's tensors.
        targets: what follows a rescaling.
        log_scales: (num_scales,) where they were given.
    """

    snapshot: Snapshot
    targets: list[ScaleTarget]
    log_scales: Tensor | None = None


def meeting_of(analysis: Analysis, ranks: Ranks) -> Meeting:
    """How the processes agree over which a model is spread."""
    return Meeting(ranks, analysis.options.p, analysis.least_message)


def statement_of(analysis: Analysis, words: Sequence[str], optimizers: Sequence[Optimizer], found: Looked) -> Statement:
    """Returns what this process says of a call.

    Args:
        analysis: the plan without its module.
        words: the method and its arguments.
        optimizers: whose state follows.
        found: what was looked up.
    """
    snapshot = found.snapshot
    options = dataclasses.fields(analysis.options)
    own = analysis.symmetry.exponents
    followers = ((target.name.partition(" of ")[0], target.power) for target in found.targets if target.name not in own)
    kinds = {f"{kind} to the power {power}" for kind, power in followers if kind not in ("copy", "gradient")}
    log_scales = () if found.log_scales is None else (_said_of_log_scales(found.log_scales),)
    return Statement(
        {
            "plan": (
                *(f"{field.name}={getattr(analysis.options, field.name)!r}" for field in options),
                f"fingerprint {analysis.fingerprint[:12]}",
            ),
            "call": tuple(words),
            "optimizers": (*(type(optimizer).__qualname__ for optimizer in optimizers), *sorted(kinds)),
            "tracked copies": snapshot.said_of_copies(),
            "flags": snapshot.said_of_flags(),
            "types": snapshot.said_of_types(),
            "log_scales": log_scales,
        }
    )


def _said_of_log_scales(log_scales: Tensor) -> str:
    """A hash of numbers, with one by which people can tell them apart."""
    values = log_scales.detach().to("cpu", torch.float64).contiguous()
    largest = float(values.abs().amax()) if values.numel() else 0.0
    return f"{hashlib.sha256(values.numpy().tobytes()).hexdigest()[:12]} (largest {largest:.6g})"
