"""Sums of matrices that were read once, as `balance` asks for them again and again: all tensors in one compiled call.

In: a program and its matrices. Out: channel sums, second derivatives and totals at any log-scales.
Imports: the vocabulary of kernels and the reference executor.
"""
