"""The operators of a run at which layers and functions read a model's weights.

In: a model that runs. Out: each call with its operands, which may be exchanged. Imports: rules, trace, observed_weight.
"""
