"""The arms by name; a further arm is an object of a class that derives from `method.Method`, handed to `register`.

In: a name. Out: the method. It imports fxenorm.
"""

from __future__ import annotations

from .balancing import BalancedOnce, Displacement, PlanStep, released
from .method import Method
from .objectives import Objective

__all__ = ["METHODS", "BalancedOnce", "Displacement", "Method", "Objective", "PlanStep", "register", "released"]

METHODS: dict[str, Method] = {}
"""All arms, by name; the first is the one to which the others are compared."""


def register(*methods: Method) -> None:
    """Adds arms under their names.

    Raises:
        ValueError: there is an arm of that name already.
    """
    for method in methods:
        if method.name in METHODS:
            raise ValueError(f"there is a method {method.name!r} already")
        METHODS[method.name] = method


register(
    Method("plain"),
    Method("BatchNorm", norm="batchnorm"),
    Method("GroupNorm", norm="groupnorm"),
    Method("WeightNorm", norm="weightnorm"),
    PlanStep("plan.step"),
    PlanStep("plan.step, c=1.2", c=1.2),
    PlanStep("plan.step, c adaptive", c="adaptive"),
    PlanStep("plan.step, every 10", every=10),
    PlanStep("plan.step, every epoch", every=0),
    PlanStep("BatchNorm, plan.step affine", norm="batchnorm"),
    PlanStep("BatchNorm, plan.step skip", norm="batchnorm", options=(("batchnorm", "skip"),)),
    BalancedOnce("balanced once"),
    BalancedOnce("balanced once, from layers", start="layers"),
    BalancedOnce("balanced once, from channels", start="channels"),
    Method("AdamW", optimizer="adamw"),
    BalancedOnce("AdamW, balanced once", optimizer="adamw"),
    BalancedOnce("AdamW, balanced once, from channels", optimizer="adamw", start="channels"),
    PlanStep("AdamW, plan.step", optimizer="adamw"),
    PlanStep("AdamW, plan.step, gains fixed", optimizer="adamw", options=(("exclude", "*norm*"),)),
    PlanStep("plan.step, momentum kept", state="keep"),
    PlanStep("plan.step, momentum reset", state="reset"),
    Displacement("plan.step, momentum as displacement"),
    Objective("least gradient, once", objective="gradient"),
    Objective("least gradient, every 100", objective="gradient", every=100),
    Objective("teleport, once", objective="gradient", bound=0.3, maximise=True),
    Objective("teleport, every 100", objective="gradient", bound=0.3, maximise=True, every=100),
    Objective("Fisher AM/GM, once", objective="fisher", bound=3.0),
    Objective("Fisher AM/GM, every 100", objective="fisher", bound=3.0, every=100),
    Objective("path AM/GM, once", objective="path"),
    Objective("path AM/GM, every 100", objective="path", every=100),
)
