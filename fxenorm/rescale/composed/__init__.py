"""`balance` for objectives that users compose.

In: a `Rescaler`, a term of `fxenorm.objectives`, and what was asked for.
Out: rescaled weights, all or none, and a `BalanceResult`.
Imports the rest of rescale, objectives and what these import; never plan.
"""
