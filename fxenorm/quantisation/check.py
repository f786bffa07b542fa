"""`RoundingCheck`: lets a rescaling through only where a rounded model is not worse off after it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..bits import Bits
from ..errors import ExampleInputsError, OptionError
from ..rescale.measures.balance_result import BalanceResult
from ..trace.inputs import Inputs, is_meta
from ..trace.reachable import Leaf
from ..verify.compared import compared_leaves
from ..verify.other_memory import shell_of, shown
from ..verify.subject import Subject
from ..weights.tensors import named_tensors
from .rounded_outputs import observed_ranges, relative_error, rounded_outputs

__all__ = ["RoundingCheck", "checked_bits"]


def checked_bits(check: Any, bits: Any, worse_by: Any) -> Bits | None:
    """Returns the bits of a check; None: there is none.

    Raises:
        OptionError: one of the arguments is not valid.
    """
    number = isinstance(worse_by, (int, float)) and not isinstance(worse_by, bool)
    if not number or not 0 <= worse_by < math.inf:
        raise OptionError(f"worse_by={worse_by!r} is not valid: expected a number >= 0, as 0.1 for a tenth")
    if bits is not None and not isinstance(bits, Bits):
        raise OptionError(f"bits={bits!r} is not valid: expected fxenorm.Bits, as Bits(weights=8, activations=8)")
    if check is None:
        if bits is not None or worse_by:
            raise OptionError(f"{'bits' if bits is not None else 'worse_by'} belongs to a check: pass check=inputs of the model")
        return None
    return Bits() if bits is None else bits


@dataclass
class RoundingCheck:
    """Measures the error of a rounded model's outputs before a rescaling and, without a write, after it.

    Args:
        subject: the plan's analysis, its model, and how a copy is rescaled.
        inputs: the arguments of forward, on which ranges are observed and errors measured.
        bits: of the quantiser.
        worse_by: the share of the error by which it may grow.

    Attributes:
        before, after: the relative errors.

    Raises:
        OptionError: a pattern of `bits` fits no layer, or the model's weights are not all here.
        ExampleInputsError: the model does not run on the inputs, or its outputs are not finite.
    """

    subject: Subject
    inputs: Inputs
    bits: Bits
    worse_by: float
    before: float = math.nan
    after: float = math.nan

    def __post_init__(self) -> None:
        if is_meta(self.subject.model):
            raise OptionError("check= runs the model, and one on the meta device has no values: bind the plan to one that has")
        self.before = self.after = self._error(known=False)
        if not math.isfinite(self.before):
            raise ExampleInputsError("check= has inputs on which outputs are not finite, so that no error can be told")

    def _held(self, leaves: Any) -> list[Leaf]:
        """Returns the outputs that the plan holds."""
        return compared_leaves(self.subject, leaves)

    def _error(self, known: bool = True) -> float:
        """Returns the relative error of the outputs that rounding the model as it is now makes."""
        ranges, (expected,), layers = observed_ranges(self.subject.model, [self.inputs], self._held)
        if not known:
            self.bits.check(layers)
            if not expected:
                raise ExampleInputsError("check= has inputs on which the model returns no floating-point tensor to compare")
        return relative_error(rounded_outputs(self.subject.model, self.inputs, self._held, self.bits, ranges), expected)

    def permits(self, log_scales: Tensor) -> bool:
        """Returns whether the error grows by no more than the share, with the model rescaled for the time of two runs.

        Args:
            log_scales: (num_scales,) natural logarithms.

        Raises:
            RescaleError: the model's tensors cannot show other values.
        """
        model = self.subject.model
        shell = shell_of(model, self.subject.symmetry.aliases, lambda tensor: tensor.detach().clone())
        self.subject.rescale(shell, log_scales)
        with torch.no_grad(), shown(named_tensors(model), named_tensors(shell)):
            self.after = self._error()
        return self.after <= (1.0 + self.worse_by) * self.before

    def noted(self, result: BalanceResult) -> BalanceResult:
        """Returns a result with the bits and both errors."""
        return replace(result, bits=self.bits, rounding_before=self.before, rounding_after=self.after)
