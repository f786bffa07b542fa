"""Objectives that users compose: convex functions of the log-scales, for ``plan.balance(objective=...)``.

In: a term, or a sum of terms with weights, and a model's `Weights`. Out: the same as a function that solvers minimise, and where
it has a minimum. Imports observe, bits, weights, analysis, kernels, solve and what these import; never rescale or plan.
"""

from .observed_terms import Migration, PredictedNoise
from .own import OwnTerm
from .terms import Masses, Normalised, Scaled, Sum, Term, Weights

__all__ = ["Masses", "Migration", "Normalised", "OwnTerm", "PredictedNoise", "Scaled", "Sum", "Term", "Weights"]
