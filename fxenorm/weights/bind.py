"""Whether a plan fits a module."""

from __future__ import annotations

from torch import nn

from ..distributed.dtensors import refuse_flat_parameters
from ..errors import BindError
from ..symmetry.symmetry import Symmetry
from ..trace.unwrap import unwrap
from .tensors import differences

__all__ = ["check_fits"]


def check_fits(model: nn.Module, symmetry: Symmetry) -> None:
    """Raises unless a module has the parameter names, shapes and ties of the analysed one.

    Raises:
        BindError: it has not, or it is no module; at most ten differences are listed.
        RescaleError: FSDP1 has flattened the module's parameters.
    """
    if not isinstance(model, nn.Module):
        raise BindError(f"expected a torch.nn.Module, got {type(model).__name__}")
    refuse_flat_parameters(model)
    found = differences(unwrap(model), symmetry)
    if found:
        raise BindError(
            "the plan was made for a model with other parameters; call fxenorm.analyze on this one:\n  " + "\n  ".join(found)
        )
