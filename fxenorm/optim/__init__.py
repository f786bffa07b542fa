"""How each optimizer's state follows its parameters; importing this registers the rules for torch's own classes."""

from __future__ import annotations

from . import adafactor, adagrad, adam, asgd, lbfgs, rprop, sgd  # noqa: F401  (they register their rules)
