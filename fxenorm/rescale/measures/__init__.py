"""Numbers of a plan over time, and pictures of them and of what `balance` did.

In: the weights at one call, as `Weights`, or numbers by layer.
Out: device tensors, numbers, and figures of matplotlib.
Imports: picture, text, weights, solve, bits and errors; of the rest of rescale `foreseen` alone knows balance, which it
carries out without a write.
"""
