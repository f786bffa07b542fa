"""Runs a model with rounded weights and activations, and asks by how much a rescaling changes the error that this makes.

In: a plan's analysis and its model, inputs, and `Bits`.
Out: outputs, the relative error of outputs, and whether a rescaling is allowed.
Imports: bits, verify, rescale, analysis, weights, trace and what these import; never plan.
"""
