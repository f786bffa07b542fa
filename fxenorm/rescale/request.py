"""The arguments of a step, checked once and carried as one value."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer

from ..analysis.held import FrozenChoice, check_frozen
from ..errors import OptionError
from ..optim.state import OptimizerLike, StateChoice, check_choice, unwrap_optimizers

__all__ = ["StepRequest"]


@dataclass(frozen=True)
class StepRequest:
    """The arguments of one step, checked once; see `fxenorm.Plan.step`.

    Attributes:
        optimizer, cycles, grads, state, agree_every, frozen: see there.
        in_hook: whether it is made by the hook of an optimizer's step, where no gradient can be left over.
        rests: whether nothing is to move this time, since the whole model is frozen.
        looks_far: whether it is the turn of a step that looks for what single cycles leave.
    """

    optimizer: OptimizerLike
    cycles: int
    grads: bool
    state: StateChoice
    agree_every: int = 1
    frozen: FrozenChoice = "auto"
    in_hook: bool = False
    rests: bool = False
    looks_far: bool = False

    def checked(self) -> tuple[Optimizer, ...]:
        """Returns the optimizers; raises an OptionError or OptimizerError where an argument is not valid."""
        for name, value in (("cycles", self.cycles), ("agree_every", self.agree_every)):
            if type(value) is not int or value < 1:
                raise OptionError(f"{name}={value!r} is not valid: expected an integer >= 1")
        check_choice(self.state)
        check_frozen(self.frozen)
        return unwrap_optimizers(self.optimizer)

    @property
    def repeats(self) -> bool:
        """Whether the same tensors are multiplied every time, but for gradients: what a reset drops is looked up anew."""
        return self.state == "reexpress"

    def words(self) -> tuple[str, ...]:
        """Returns the request in words that processes compare."""
        words = [
            "step in a hook" if self.in_hook else "step",
            *(f"{name}={getattr(self, name)!r}" for name in ("cycles", "grads", "state", "agree_every", "frozen")),
        ]
        words += [text for text, said in (("with the whole model frozen", self.rests), ("looking far", self.looks_far)) if said]
        return tuple(words)
