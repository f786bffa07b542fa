"""The reference executor, in plain PyTorch: what every other one is measured by, and what it hands its rest to.

In come a program and tensors on any device; out go channel sums, second derivatives, rooms and writes. It imports the files of
`kernels` alone, and no other executor.
"""
