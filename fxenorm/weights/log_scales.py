"""Log-scales that users give: checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import RescaleError
from ..kernels.backend import Backend
from ..kernels.program import ScaleTarget

__all__ = ["checked_log_scales", "refuse_overflow"]


def checked_log_scales(log_scales: Tensor | Sequence[float], num_scales: int) -> Tensor:
    """Log-scales as a finite float tensor of shape (num_scales,); raises a RescaleError where they are not that."""
    try:
        scales = (
            log_scales.detach()
            if isinstance(log_scales, Tensor)
            else torch.as_tensor(log_scales, dtype=torch.float64, device="cpu")
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise RescaleError(f"log_scales must be a tensor or a sequence of {num_scales} floats: {error}") from error
    if tuple(scales.shape) != (num_scales,):
        raise RescaleError(f"log_scales has shape {tuple(scales.shape)}; this plan expects ({num_scales},)")
    if not scales.is_floating_point():
        raise RescaleError(f"log_scales has type {scales.dtype}: expected floats (natural logarithms)")
    broken = ~scales.isfinite()
    if bool(broken.any()):
        raise RescaleError(f"log_scales is not finite in {int(broken.sum())} places: nothing was rescaled")
    return scales


def refuse_overflow(backend: Backend, targets: Sequence[ScaleTarget], scales: Tensor) -> None:
    """Raises a RescaleError that names the first target with an entry that would leave its type's range."""
    for target in targets:
        if bool(backend.overflowing([target], scales).any()):
            raise RescaleError(
                f"log_scales (largest absolute value {float(scales.abs().max()):.3g}) would overflow {target.name!r} of type "
                f"{target.tensor.dtype}: nothing was rescaled; use smaller ones"
            )
