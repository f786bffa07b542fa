"""How optimizer state follows its parameters; importing this registers the rules of torch's own classes and of some others.

In: optimizers, and the parameters that are rescaled. Out: the state tensors that follow, each with its power of D. Imports
nothing of fxenorm but `errors`.
"""

from __future__ import annotations

from . import rules  # noqa: F401  (they register themselves)
