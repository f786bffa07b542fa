"""The parts of a prepared step: gradients that are new tensors each time, and the path that each way of training takes.

In: the targets of a step and their owners. Out: targets that stand in their places. Imports `kernels` alone.
"""
