"""The factors that folding BatchNorms would give the weights in front of them.

In: the norms, and the model's tensors by name. Out: a factor for each folded weight. Imports only what `analysis` may import.
"""
