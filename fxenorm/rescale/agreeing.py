"""How the processes of one model agree: what they compare before a call writes, and log-scales that are the same on all."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..analysis.analysis import Analysis
from ..distributed.agreement import ELSEWHERE, Meeting, Statement
from ..distributed.ranks import Ranks
from ..distributed.replicas import agreed_values
from ..weights.shared.replicas import Replicas
from ..weights.targets import Targets
from ..weights.weights import Weights

__all__ = ["Looked", "Solved", "agreed_scales", "meeting_of", "statement_of"]

T = TypeVar("T")


class Looked(NamedTuple):
    """The tensors, targets and log-scales that a call has looked up and checked before it writes.

    Attributes:
        weights: the model's tensors.
        targets: everything that is multiplied.
        log_scales: (num_scales,) where they were given.
    """

    weights: Weights
    targets: Targets
    log_scales: Tensor | None = None


def meeting_of(analysis: Analysis, ranks: Ranks) -> Meeting:
    """Returns the meeting of the processes over which a model is spread."""
    return Meeting(ranks, analysis.options.p, analysis.least_message)


def statement_of(analysis: Analysis, words: Sequence[str], optimizers: Sequence[Optimizer], found: Looked) -> Statement:
    """Returns what this process says of a call.

    Args:
        analysis: the plan without its module.
        words: the method and its arguments.
        optimizers: whose state follows.
        found: what was looked up.
    """
    weights = found.weights
    options = dataclasses.fields(analysis.options)
    own = analysis.symmetry.exponents
    followers = ((target.name.partition(" of ")[0], target.power) for target in found.targets.tensors if target.name not in own)
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
            "tracked copies": _words_of_copies(weights),
            "flags": _words_of_flags(weights),
            "types": _words_of_types(weights),
            "log_scales": log_scales,
        }
    )


def _said_of_log_scales(log_scales: Tensor) -> str:
    """Returns a hash of log-scales and the largest of them, by which people can tell two apart."""
    values = log_scales.detach().to("cpu", torch.float64).contiguous()
    largest = float(values.abs().amax()) if values.numel() else 0.0
    return f"{hashlib.sha256(values.numpy().tobytes()).hexdigest()[:12]} (largest {largest:.6g})"


def _words_of_flags(weights: Weights) -> tuple[str, ...]:
    """Says which of the parameters are frozen, in words that processes compare."""
    buffers = weights.analysis.symmetry.buffers
    named = [item for tensors in (weights.read, *weights.twins) for item in tensors.items()]
    frozen = sorted({name for name, tensor in named if name not in buffers and not tensor.requires_grad})
    trains = any(parameter.requires_grad for parameter in weights.model.parameters())
    return (*(f"{name} is frozen" for name in frozen), *(() if trains else ("nothing is trained",)))


def _words_of_types(weights: Weights) -> tuple[str, ...]:
    """Says the tensors' types and strides, in words that processes compare: sums in another order differ in their last digits."""
    return tuple(f"{name} is {tensor.dtype} with strides {tensor.stride()}" for name, tensor in weights.read.items())


def _words_of_copies(weights: Weights) -> tuple[str, ...]:
    """Says the tracked copies, in words that processes compare."""
    found = []
    for given in weights.given:
        digest = hashlib.sha256(repr([(name, tensor.dtype) for name, tensor in given.items()]).encode())
        found.append(f"a copy of {len(given)} tensors ({digest.hexdigest()[:8]})")
    return (*found, *(f"{name} is rewritten from a copy" for name in sorted(weights.mastered)))


@dataclass(frozen=True)
class Solved(Generic[T]):
    """Log-scales that a solver has found, and the report on them.

    Attributes:
        weights: in whose basis they are.
        log_scales: (its variables,).
        result: what is reported.
    """

    weights: Weights
    log_scales: Tensor
    result: T


def agreed_scales(weights: Weights, solve: Callable[[], Solved[T]]) -> Solved[T]:
    """Returns what was solved for, with the same log-scales on every process; errors of one are raised on all.

    Replicas take those of the first of them. Processes over which a model is spread have solved together.

    Args:
        weights: the model's tensors.
        solve: solves, and may raise.
    """
    if weights.replicas is not None:
        return _of_the_first(weights, weights.replicas, solve)
    error: BaseException | None = None
    try:
        found = solve()
    except BaseException as raised:  # whatever it is, the others wait
        error = raised
    weights.others.tell(next(iter(weights.failures), error), f"{ELSEWHERE}; its own message says why (rank {{}})")
    return found


def _of_the_first(weights: Weights, replicas: Replicas, solve: Callable[[], Solved[T]]) -> Solved[T]:
    """Takes the log-scales of the first process, by one broadcast, once all have found some in the same basis."""
    try:
        found = solve()
        basis = found.weights.analysis.fingerprint[:8]
        statement = Statement({"free scales": (f"{found.log_scales.numel()} in basis {basis}",)})
    except BaseException as error:  # whatever it is, the others wait
        statement = Statement(error=error)
    replicas.agree(statement, weights.device, waits=True)
    agreed = agreed_values(replicas.group, {"log_scales": found.log_scales})
    return replace(found, log_scales=agreed["log_scales"])
