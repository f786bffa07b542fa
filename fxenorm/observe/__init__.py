"""Activations, observed once on data: their ranges by channel, which follow every later rescaling by known factors.

In: an `Analysis`, its model, and a loader of batches.
Out: `Observations`, plain data that is apart from the model.
Imports: weights, analysis, trace and what these import; never rescale or plan.
"""

from .observation import Observation
from .observations import Observations
from .observed_weight import ObservedWeight

__all__ = ["Observation", "Observations", "ObservedWeight"]
