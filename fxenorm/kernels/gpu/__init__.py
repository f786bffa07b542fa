"""The executor for GPUs: Triton kernels, and the tables of tiles that they walk.

In come tensors in plain memory on one GPU; out go cycles in a handful of launches. It imports the files of `kernels` and the
reference executor, which does what the kernels do not cover; Triton itself is imported only by those who ask for it.
"""
