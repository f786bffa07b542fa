"""How optimizer state follows its parameters; importing this registers the rules of torch's own classes and of some others.

In: optimizers, and the parameters that are rescaled. Out: the state tensors that follow, each with its power of D. Imports
nothing of fxenorm but `errors`.

No rule can make these exact:

- Coupled weight decay (``weight_decay`` of SGD, Adam, RMSprop and others) is part of the state. It is rescaled as if it were a
  gradient. Decoupled decay (AdamW) is exact, but it acts on a norm that a rescaling changes.
- Many recipes do not decay gamma and biases. Balancing can move norm from a decayed tensor into one that is not decayed. Then
  weight decay acts on less.
- ``eps`` and gradient clipping act on gradients of another size after a rescaling. The first steps of Adadelta are made of
  ``eps``. The steps of Rprop are clamped.
- The first Hessian of LBFGS is a multiple of the identity in any coordinates. The step sizes of Adafactor and Muon depend on
  norms of whole tensors.
- A learning rate acts on weights of another size after a rescaling: the update of SGD is divided by D, the update of Adam stays.
  Start with the learning rate that you have. A layer in front of a BatchNorm learns faster when its weights get smaller: half
  the norm, four times the effective learning rate.
"""

from __future__ import annotations

from . import rules  # noqa: F401  (they register themselves)
