"""The entries of which terms are sums: all of a tensor, or what one of several processes holds of it.

In: counted tensors, or masses, with their exponents. Out: objectives over them, and what is counted of them.
Imports weights, analysis, kernels, distributed and what these import.
"""
