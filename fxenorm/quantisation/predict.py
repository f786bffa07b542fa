"""Predicts the noise of rounded models, now and at the optimum; nothing is rounded and nothing is written."""

from __future__ import annotations

from ..bits import Bits
from ..objectives.observed_terms import PredictedNoise
from ..objectives.quantisers import quantisers_of
from ..observe.observations import Observations
from ..rescale.composed.minimise import Request, minimum_of
from ..rescale.rescaler import Rescaler
from .prediction import Prediction, predicted_ranges

__all__ = ["predict"]

_TOLERANCE, _MOST = 1e-6, 1000


def predict(rescaler: Rescaler, observations: Observations, bits: Bits) -> Prediction:
    """Returns the noise that is predicted; see `fxenorm.Plan.predict`.

    Args:
        rescaler: of the plan.
        observations: at the current weights, with derivatives.
        bits: of the quantiser.
    """
    term = PredictedNoise(observations, bits)
    result = minimum_of(rescaler, Request(term, False, None, _TOLERANCE, _MOST, "keep", "auto"))
    there = observations.rescaled(result.log_scales)
    now, best = (quantisers_of(one, bits) for one in (observations, there))
    ranges, before, after = predicted_ranges(now, best, observations.output_square or 0.0)
    return Prediction(bits, ranges, before, after, result.log_scales, result.held, result.converged)
