"""One Jacobi cycle: every variable at once, from the same sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "at_limit",
    "clamped",
    "imbalance",
    "jacobi_step",
    "kept_of_a_cycle",
    "round_to_powers_of_two",
    "solvable",
    "truncate_to_powers_of_two",
]


def solvable(log_negative: Tensor, log_positive: Tensor, held: Tensor | None = None) -> Tensor:
    """(K,) bool: variables with N and P finite and above zero that are not held.

    Args:
        log_negative, log_positive: (K,) log N and log P.
        held: (K,) bool, or None.
    """
    good = log_negative.isfinite() & log_positive.isfinite()
    return good if held is None else good & ~held


def jacobi_step(
    log_negative: Tensor,
    log_positive: Tensor,
    degree: Tensor,
    p: float,
    held: Tensor | None = None,
    limit: Tensor | None = None,
) -> Tensor:
    """Returns the log-scales of one cycle: s_k = log(N_k / P_k) / (p A_k), which never raises the objective.

    With A_k = 2 this is the factor sqrt(R / L) of ENorm (Stock et al., ICLR 2019, section 3), R and L taken over all readers
    and writers of the channel. For p = inf, N and P are maxima and the p in the formula is 1.

    Args:
        log_negative: (K,) log N_k, natural.
        log_positive: (K,) log P_k.
        degree: (K,) A_k >= 2.
        p: the norm's exponent, > 0 or infinite.
        held: (K,) bool: variables that stay at 0.
        limit: the largest |s_k|, as `clamped` takes it; None: any.

    Returns:
        (K,) natural log-scales, 0 where a variable is held or its N or P is zero or not finite.

    Example:
        >>> four, one = torch.tensor([4.0]).log(), torch.tensor([1.0]).log()
        >>> bool(jacobi_step(four, one, torch.tensor([2.0]), p=2.0).exp().allclose(torch.tensor([2.0]).sqrt()))
        True
    """
    scale = 1.0 if math.isinf(p) else p
    step = torch.where(solvable(log_negative, log_positive, held), (log_negative - log_positive) / (scale * degree), 0.0)
    return step if limit is None else clamped(step, limit)


def kept_of_a_cycle(log_scales: Tensor, powers_of_two: Tensor | None, deadband: float) -> Tensor:
    """Returns what a step makes of a Jacobi cycle: whole octaves where asked for, and nothing within the dead band.

    A cycle with each s_k replaced by anything between 0 and s_k never raises the objective, whatever the others do: so neither
    needs a look at it.

    Args:
        log_scales: (K,) of a Jacobi cycle, natural logarithms.
        powers_of_two: (K,) bool: variables that move by whole octaves, cut towards 0; None: none.
        deadband: smaller moves than that wait.

    Returns:
        (K,) log-scales, each between 0 and the one given.

    Example:
        >>> kept_of_a_cycle(torch.tensor([4.1, 1.9, 1.01]).log(), torch.tensor([True, True, False]), 0.1).exp()
        tensor([4., 1., 1.])
    """
    kept = log_scales if powers_of_two is None else truncate_to_powers_of_two(log_scales, powers_of_two)
    return torch.where(kept.abs() < deadband, 0.0, kept) if deadband else kept


def clamped(log_scales: Tensor, limit: Tensor) -> Tensor:
    """(K,) log-scales within a limit.

    Args:
        log_scales: (K,).
        limit: (2, K) how far they may go up and down, both >= 0; or (K,) for both.
    """
    up, down = limit.unbind() if limit.ndim == 2 else (limit, limit)
    return torch.minimum(torch.maximum(log_scales, -down), up)


def at_limit(log_scales: Tensor, gap: Tensor, limit: Tensor) -> Tensor:
    """(K,) bool: the variables that have reached their limit and would go on.

    Args:
        log_scales: (K,).
        gap: (K,) log(N / P), which has the sign of the way that each would go.
        limit: as `clamped` takes it.
    """
    up, down = limit.unbind() if limit.ndim == 2 else (limit, limit)
    return ((log_scales >= up) & (gap > 0)) | ((log_scales <= -down) & (gap < 0))


def imbalance(log_negative: Tensor, log_positive: Tensor, p: float, held: Tensor | None = None) -> Tensor:
    """0-d: the largest |log(N_k / P_k)| / p (p = inf: without the division) over the variables that can move; 0 without any.

    Args:
        log_negative: (K,) log N_k, natural.
        log_positive: (K,) log P_k.
        p: the norm's exponent.
        held: (K,) bool: variables that do not count.
    """
    if not log_negative.numel():
        return log_negative.new_zeros(())
    difference = (log_negative - log_positive).abs() / (1.0 if math.isinf(p) else p)
    return torch.where(solvable(log_negative, log_positive, held), difference, 0.0).amax()


def round_to_powers_of_two(log_scales: Tensor, where: Tensor) -> Tensor:
    """Log-scales whose factors are powers of two in the masked places: the nearest, and 1 where |log2 s| < 0.5.

    Args:
        log_scales: (K,) natural logarithms.
        where: (K,) bool.
    """
    octaves = log_scales * math.log2(math.e)
    # Half octaves go away from zero, as "moved where |log2 s| >= 0.5" asks; torch.round would take 0.5 to 0.
    rounded = torch.sign(octaves) * (octaves.abs() + 0.5).floor()
    return torch.where(where, rounded * math.log(2.0), log_scales)


def truncate_to_powers_of_two(log_scales: Tensor, where: Tensor) -> Tensor:
    """Rounds as `round_to_powers_of_two`, but always towards 1, so that no factor is larger than asked for.

    Args:
        log_scales: (K,) natural logarithms.
        where: (K,) bool.
    """
    # A whole number of octaves comes back from natural logarithms a rounding error short.
    octaves = (log_scales * math.log2(math.e) * (1 + 1e-12)).trunc()
    return torch.where(where, octaves * math.log(2.0), log_scales)
