"""Checks the promise of a plan on the model itself: its outputs before and after a rescaling.

In: a plan's analysis, a module, inputs, and a function that rescales a copy.
Out: a `Verification`.
Imports: analysis, weights, text, trace and what these import; never rescale or plan.
"""
