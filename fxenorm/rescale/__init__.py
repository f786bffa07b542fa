"""The calls that move weights: the step, the prepared step, `balance`, the hook of an optimizer, and what they warn of.

In: an `Analysis`, a module, optimizers, and how many cycles or which log-scales.
Out: nothing but the weights, the optimizer state and the copies, all of them multiplied or none.
Imports: weights, text and what these import; never plan.
"""
