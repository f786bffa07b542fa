"""The answer to ``--bits``: the noise that rounding is predicted to make in the outputs."""

from __future__ import annotations

from inspect import signature
from typing import Any

from ...bits import Bits
from ...plan.plan import Plan
from ...quantisation.prediction import Prediction
from ...trace import known_inputs
from ..arguments.readers import BitWidths

__all__ = ["predicted", "prediction_content"]

Json = dict[str, Any]


def predicted(plan: Plan, widths: BitWidths) -> Prediction:
    """Returns the noise that some bits are predicted to make on the inputs of the analysis.

    Raises:
        FxenormError: the model does not run on them, or its outputs have no derivatives.
    """
    inputs = known_inputs(plan.model, plan.example)
    batch: Any = inputs.args
    if inputs.kwargs:
        batch = dict(signature(plan.model.forward).bind(*inputs.args, **inputs.kwargs).arguments)
    weights, activations, per = widths
    bits = Bits(weights, activations, per)  # type: ignore[arg-type]  # the reader takes no other words
    return plan.predict(plan.observe([batch], derivatives=True), bits)


def prediction_content(found: Prediction) -> tuple[Json, list[str]]:
    """Returns a prediction, as JSON and in lines."""
    return {key: value for key, value in found.to_dict().items() if key != "log_scales"}, str(found).splitlines()
