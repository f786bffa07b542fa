"""Holds the findings on a model, apart from any module: groups, pairs, counted tensors, and the plan as JSON.

In: a `Symmetry` and the options of `fxenorm.analyze`.
Out: `Analysis`, plain data that every plan of the same symmetry and options shares.
Imports: symmetry, kernels (programs and index tensors), distributed, optim and what these import; never weights.
"""
