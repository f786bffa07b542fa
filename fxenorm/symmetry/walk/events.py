"""The notes of a walk: the origins of equations, and the calls that carry fields."""

from __future__ import annotations

from dataclasses import dataclass

from ...field import ScaleField

__all__ = ["Event", "Origin", "WeightRead"]


@dataclass(frozen=True)
class Origin:
    """The place that equations come from: a node of a graph, or an option.

    Attributes:
        operator, node, module, source: where.
        reason: why the inputs are held, "" where the operator only ties fields together.
        known: False for an operator without a rule.
        call: which call of the module in one forward pass, from 0.
    """

    operator: str
    node: str
    module: str
    source: str
    reason: str = ""
    known: bool = True
    call: int = 0


@dataclass(frozen=True)
class WeightRead:
    """The activation that a function multiplies by a parameter, where no layer is called for it.

    Attributes:
        parameter: the weight.
        call: which such read of it in one forward pass, from 0.
        part: the place in the parameter of the first entry that is read.
        axis: the activation's axis that is summed.
        shape: of the activation.
        field: of the activation; None where slices of it are picked by the data, so that none holds for all.
    """

    parameter: str
    call: int
    part: int
    axis: int
    shape: tuple[int, ...]
    field: ScaleField | None


@dataclass
class Event:
    """One operator call, as pairs and sites need it.

    Attributes:
        origin: the call.
        inputs: positions of the events whose outputs it reads.
        outputs: the fields of its outputs (kept as they are: ids of size 1 along constant axes).
        picked: the fields, by slice, of outputs that show slices picked by an index which depends on the data.
        reads: the weight that the call reads, where it is no layer's own call.
        roles: by parameter name, how the call uses it.
    """

    origin: Origin
    inputs: tuple[int, ...]
    outputs: tuple[ScaleField, ...]
    roles: tuple[tuple[str, str], ...]
    picked: tuple[ScaleField, ...] = ()
    reads: tuple[WeightRead, ...] = ()
