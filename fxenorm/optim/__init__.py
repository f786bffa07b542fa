"""How optimizer state follows its parameters; importing this registers the rules of torch's own classes and of some others."""

from __future__ import annotations

from . import adafactor, adagrad, adam, asgd, lbfgs, other_libraries, rprop, sgd  # noqa: F401  (they register their rules)
