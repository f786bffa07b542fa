"""Runs a model with rounded weights and activations, or predicts their noise, and asks by how much a rescaling changes it.

In: a plan's analysis and its model, inputs, and `Bits`.
Out: outputs, the relative error of outputs, whether a rescaling is allowed, and predictions.
Imports: bits, objectives, observe, text, verify, rescale, analysis, weights, trace and what these import; never plan.
"""
