"""The rules of state, one file a family of optimizers; importing this registers them.

In: one parameter's state and its group. Out: the powers of D by which its tensors follow. Imports `optim.registry` alone.
"""

from . import adafactor, adagrad, adam, asgd, lbfgs, other_libraries, rprop, sgd  # noqa: F401  (they register their rules)
