"""The answer of the symmetry stage: the free scale variables and each tensor's exponents. Plain data, no graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .account import ChannelAccount

__all__ = ["Barrier", "Exponents", "FlowNode", "NormFold", "OutputUse", "ParameterUse", "Role", "Site", "Symmetry", "Term"]

Term = tuple[int, NDArray[np.int64]]
"""(coefficient, variable ids); the ids broadcast to the tensor's shape, -1 = fixed."""

Exponents = Mapping[str, tuple[Term, ...]]
"""By tensor name: entry e is multiplied by exp(sum of coefficient * log_scales[id])."""

Role = Literal["weight", "gamma", "bias", "slope", "other"]
"""How an operator uses a parameter: "weight" and "gamma" (of a normalisation) multiply, "bias" is added,
"slope" is PReLU's, "other" is everything else."""


@dataclass(frozen=True)
class ParameterUse:
    """A parameter (or moved buffer) that an operator reads, and its role there."""

    name: str
    role: Role


@dataclass(frozen=True)
class FlowNode:
    """One operator of the graph, reduced to the needs of pairs and drawings.

    Attributes:
        name: the node's name in the graph.
        operator: the ATen operator, as "relu.default".
        module: path of the module that was running.
        source: the user's source line.
        inputs: positions in the same list of the nodes whose activations it reads.
        carried: ids of the groups that its output carries.
        parameters: the parameters it reads, directly or through views.
    """

    name: str
    operator: str
    module: str
    source: str
    inputs: tuple[int, ...]
    carried: frozenset[int]
    parameters: tuple[ParameterUse, ...]


@dataclass(frozen=True)
class Site:
    """One axis of one activation along which scale variables lie, at the boundary of a module or at the read of a weight.

    Where a function multiplies an activation by a parameter, as ``F.linear(x, layer.weight)`` or ``x @ self.weight``, and no
    linear layer or convolution is called for it, the activation has a site under the parameter's name, also where none of its
    channels carries a variable.

    Sites that differ in no more than variables and coefficient belong to one activation, whose factor is the product of theirs.

    Attributes:
        module: path of the module; of an operand, name of the parameter.
        direction: whether the activation enters or leaves the module, or is the operand beside the parameter.
        axis: the axis of the activation.
        variables: (size of the axis,) the variable of each position, -1 = fixed.
        coefficient: the integer by which these variables enter.
        call: which call of the module in one forward pass, from 0; of an operand, which such read of the parameter.
        tensor: which of the activations there that move in different ways, from 0 in graph order.
        ndim: number of axes of the activation; 0 in a plan that was stored without it.
        whole: whether sites show all that the activation moves by; False where variables lie along two axes at once.
        part: of an operand, the place in the parameter of the first entry that is read; 0 where all of it is.

    Example:
        >>> import fxenorm
        >>> from torch import nn
        >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> plan.groups[0].sites[0]
        <Site 0 output, axis 1: 8 channels, 8 free>
    """

    module: str
    direction: Literal["input", "output", "operand"]
    axis: int
    variables: NDArray[np.int64]
    coefficient: int
    call: int = 0
    tensor: int = 0
    ndim: int = 0
    whole: bool = True
    part: int = 0

    def __repr__(self) -> str:
        """Returns one line: the module or parameter, the call if it is no first one, the axis, how many channels are free."""
        free, call = int((self.variables >= 0).sum()), f" of call {self.call}" if self.call else ""
        size = self.variables.size
        return f"<Site {self.module} {self.direction}{call}, axis {self.axis}: {size:,} channels, {free:,} free>"


@dataclass(frozen=True)
class Barrier:
    """A node that forces variables to zero.

    Attributes:
        operator, node, module, source: where.
        variables: number of variables that this node was the first to force to zero.
        reason: a sentence: the law that is missing, or that there is no rule.
        known: False for an operator that has no rule.

    Example:
        >>> import fxenorm
        >>> from torch import nn
        >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)))
        >>> plan.barriers[0].reason
        'gelu is not homogeneous'
    """

    operator: str
    node: str
    module: str
    source: str
    variables: int
    reason: str
    known: bool = True

    def __repr__(self) -> str:
        """Returns one line: the operator, where it stands, and how many variables it holds."""
        where = ", ".join(filter(None, [self.module, self.source.partition(", in ")[0]])) or self.node
        return (
            f"<Barrier {self.operator.split('.')[0]} at {where}: holds {self.variables:,} variable{'s' * (self.variables != 1)}>"
        )


@dataclass(frozen=True)
class NormFold:
    """A BatchNorm that could be folded into the layer in front of it.

    Attributes:
        weight, bias: parameter names of that layer (bias None where it has none).
        output_axis: axis of `weight` that holds the output channels (for grouped transposed convolutions
            see `groups`: output channel = group * shape[1] + position on axis 1).
        gamma, beta, mean, variance: names of the norm's tensors (gamma and beta None without affine).
        eps: the norm's eps.
        transposed: the layer is a transposed convolution (weight (in, out/groups, ...)).
        groups: its groups.
    """

    weight: str
    bias: str | None
    output_axis: int
    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    eps: float
    transposed: bool = False
    groups: int = 1


@dataclass(frozen=True)
class OutputUse:
    """One value that leaves forward.

    Attributes:
        path: its place in the returned value ("logits", "0.1"), in the model ("self.aux") or in its arguments ("inputs.0").
        held: whether it stays as it is under every rescaling.
        variables: number of variables fixed first because it carries them.
        reason: why it is not held, "" where it is.
    """

    path: str
    held: bool
    variables: int
    reason: str = ""

    @property
    def name(self) -> str:
        """The entry of the returned value, or the attribute or argument, that it belongs to: "past_key_values", "self.aux"."""
        parts = self.path.split(".")
        return ".".join(parts[: 2 if parts[0] == "inputs" else None]) if parts[0] in ("self", "inputs") else parts[0]


@dataclass(frozen=True)
class Symmetry:
    """The group of positive diagonal rescalings of a model.

    Attributes:
        num_scales: its dimension.
        exponents: by canonical parameter and moved-buffer name; only tensors that carry at least one variable.
        group_starts: (number of groups + 1,) group g holds the variables group_starts[g] ... group_starts[g + 1] - 1;
            variables with the same producers and consumers form a group.
        shapes: by name, the shape of every parameter of the model and of every moved buffer, in registration order.
        buffers: names in `exponents` that are buffers.
        aliases: every further name of a tensor -> its canonical name.
        roles: by parameter name, the role that decides whether it is counted: "weight" beats "gamma" beats "bias" beats the rest.
        flows: by mode, the operators in graph order.
        sites: every module boundary that carries variables, and every read of a weight by a function, in graph order.
        barriers: in graph order, only those with variables > 0 and those without a rule.
        folds: BatchNorms that can be folded.
        fixed_by_output: number of variables fixed first because a model output carries them.
        modes: the modes in which the function is preserved.
        tracer: "export" or "make_fx" (see `TracedModel`).
        inexact_reasons: why rescaling is not exact, in sentences ("" never occurs; empty = exact).
        notes: other sentences for the user.
        second_sizes: by input tensor, by axis, its size in the example and at the second size that was seen; () without one.
        offsets: by name of a tensor in `exponents`, the number o, not 0, that the model adds to it: offset + entry is multiplied,
            so that the entry moves as (o + w) * factor - o.
        outputs: the values that leave forward, in order, the held ones first; empty in plans that were stored by older versions.
        account: the channel ends, free, fixed or tied away; None in plans that were stored by older versions.
        channels: in graph order, the fields of the activations that layers read and write, as terms; none where all are held.
    """

    num_scales: int
    exponents: Exponents
    group_starts: NDArray[np.int64]
    shapes: Mapping[str, tuple[int, ...]]
    buffers: frozenset[str]
    aliases: Mapping[str, str]
    roles: Mapping[str, Role]
    flows: Mapping[str, tuple[FlowNode, ...]]
    sites: tuple[Site, ...]
    barriers: tuple[Barrier, ...]
    folds: tuple[NormFold, ...]
    fixed_by_output: int
    modes: tuple[str, ...]
    tracer: str
    inexact_reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    second_sizes: tuple[tuple[tuple[int, int], ...], ...] = ()
    offsets: Mapping[str, float] = field(default_factory=dict)
    outputs: tuple[OutputUse, ...] = ()
    channels: tuple[tuple[Term, ...], ...] = ()
    account: ChannelAccount | None = None

    def __repr__(self) -> str:
        """Returns one line: the dimension and the number of groups and tensors."""
        groups, tensors = len(self.group_starts) - 1, len(self.exponents)
        return f"<Symmetry: {self.num_scales:,} scales in {groups:,} groups, {tensors:,} tensors move>"
