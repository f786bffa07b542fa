"""The opt-in executor for GPUs: hand-written Triton kernels, a handful of launches whatever the number of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import OptionError, warn_user
from ..backend import CycleRunner, CycleTask, register_backend
from ..program import ScaleTarget
from ..reference.executor import EagerBackend
from ..writes import Write
from .step import TritonStep

__all__ = ["TritonBackend"]


class TritonBackend(EagerBackend):
    """See `Backend`. Cycles of `Plan.step` with the Jacobi solver run in Triton kernels (`TritonStep`); all else is done eagerly.

    That is: `balance`, `rescale`, ``grads=True``, tracked copies, ``biases="count"`` on folded norms, Gauss-Seidel and powers of
    two (16-bit weights, unless ``scales="exact"``); models on CPUs too, with a warning. Tensors with gaps in memory, or whose
    exponents are no rows and columns, are done eagerly beside the kernels.

    Raises:
        OptionError: Triton is not installed.
    """

    name = "triton"

    def __init__(self) -> None:
        try:
            import triton

            from . import kernels
        except ImportError as error:
            raise OptionError(
                f"backend='triton' needs Triton, which cannot be imported ({error}): `pip install triton`, or take backend='auto'"
            ) from error
        # Under TRITON_INTERPRET=1 the kernels run on the host, and addresses must be the host's.
        compiled = isinstance(kernels.settle, triton.JITFunction)
        self._device_type = "cuda" if compiled else "cpu"
        self._warned = False

    def serves(self, device: torch.device) -> bool:
        """Whether the kernels run on tensors of that device."""
        return device.type == self._device_type

    def cycles(self, task: CycleTask) -> CycleRunner | None:
        """Prepares whole cycles in a handful of launches; None where the kernels do not run on that device."""
        if task.groups is not None or task.powers_of_two is not None or task.deadband:  # see `refusals`
            return None
        return TritonStep(task) if self.serves(task.held.device) else None

    def refusals(self, task: CycleTask) -> list[str]:
        """Returns why the kernels do not run whole cycles of a task."""
        if task.groups is not None:
            return ["the kernels take all groups at once"]
        if task.powers_of_two is not None or task.deadband:
            return ["the kernels know neither powers of two nor a dead band"]
        return [] if self.serves(task.held.device) else [f"the model is on {task.held.device}"]

    @torch.no_grad()
    def writes(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> list[Write]:
        """Returns the writes of the reference executor; warns once where a target is on a device without these kernels."""
        elsewhere = {target.tensor.device.type for target in targets} - {self._device_type}
        if elsewhere and not self._warned:
            self._warned = True
            warn_user(
                f"backend='triton' runs on {self._device_type} tensors, and some of this model's are on "
                f"{' and '.join(sorted(elsewhere))}: they are rescaled in plain PyTorch. backend='auto' takes what is fast there"
            )
        return super().writes(targets, log_scales)


register_backend("triton", TritonBackend)
