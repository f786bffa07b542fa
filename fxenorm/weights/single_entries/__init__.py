"""Single entries of the counted tensors, which decide for p = inf.

In: the program and matrices of an objective, log-scales, and how many entries of a channel, or above which value.
Out: the entries, with the exponents of each.
Imports: kernels, and the list of entries of `solve/max_balance/`.
"""
