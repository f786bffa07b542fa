"""`Method`, an arm of an experiment: a name, what it does before training and what it does after each step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..training import Training


@dataclass(frozen=True)
class Method:
    """Plain training; other arms derive from it, or only take other attributes.

    Attributes:
        name: under which tables list it.
        norm: what stands between the layers: "none", "batchnorm", "groupnorm" or "weightnorm".
        optimizer: "sgd" or "adamw".
        start: the start of this arm, in place of the cell's; empty: the cell's.
    """

    name: str
    norm: str = "none"
    optimizer: str = "sgd"
    start: str = ""

    def before_training(self, training: Training) -> None:
        """Called once, with the weights of the start in `training.model`; there is no optimizer yet."""

    def after_step(self, training: Training, step: int) -> None:
        """Called after each step of the optimizer, the first with step = 1."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data that tell this method from any other."""
        return {"kind": type(self).__name__, **told(self)}


def told(of: Any) -> dict[str, Any]:
    """The attributes of a dataclass that have not their default."""
    return {field.name: getattr(of, field.name) for field in dataclasses.fields(of) if getattr(of, field.name) != field.default}
