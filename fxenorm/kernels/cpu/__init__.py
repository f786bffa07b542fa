"""The executor for CPUs: C++ that the system's compiler makes once a machine, and the tables that say what it is to do.

In come tensors in plain memory; out go the same sums and products as from the reference executor, in one call or two. It imports
the files of `kernels` and the reference executor, which does what the compiled kernels do not cover.
"""
