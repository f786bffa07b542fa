"""The model's tensors at one call, wherever they live: read them, and multiply them.

In: an `Analysis`, a module, the copies that are tracked, and the processes that share the model.
Out: channel sums, the objective as the solvers see it, and everything that a rescaling multiplies.
Imports: analysis, solve, kernels, optim, distributed and what these import; never rescale or plan.
"""
