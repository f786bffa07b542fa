"""Finds the variables that `step` and `balance` may move: all but those that must stay for a minimum to exist.

In: an `Analysis`, the names of frozen tensors, the exponents of the counted entries that are not zero.
Out: a basis of the variables that may move, and the held ones with the reasons.
Imports: analysis, field and symmetry.
"""
