"""Executors: what each of them can be asked for, in which order, and where they are found by name.

To add one: a folder beside `reference`, `cpu` and `gpu` whose ``executor.py`` calls `register_backend`, a line in
``kernels/__init__.py`` that imports it, and its name in `BackendName` below. A class that extends
`fxenorm.kernels.reference.executor.EagerBackend` has an answer to everything from the start and replaces what it does faster;
`fxenorm.kernels.layout.Coverage` says which tensors kernels can take by their addresses. The tests of executors run over the
table, so a new one is tested without a test of its own.

The order of calls of a step is `cycles`, once while the tensors stay where they are, and `CycleRunner.run` at each step. Where
there is no runner, one cycle is `reduce`, and `apply_within` with the log-scales that follow; where that cannot be or answers
False it is `matrices`, `sums` by cycle, `rooms` and `apply`. `balance` asks for `matrices` and `objective_sums`, then these,
`sums` and `energies` by iteration, where p is large for the single entries of `ObjectiveSums`, then `rooms`, `rounded`, `leaving`
and `writes`. `rescale` asks for `overflowing` and `writes`.

What all executors promise:
- Weights, sums and log-scales are those of the reference executor, but for the last digits. The same input gives the same bits.
- Tensors that an executor does not cover are left to the reference executor, not refused.
- An answer False means that nothing has changed, but for a rounding of what was multiplied and divided again.
- Nothing is written that is not finite unless it was so before, and autograd learns of every write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import OptionError
from .program import ChannelSums, ReduceProgram, ScaleTarget
from .writes import Write

__all__ = [
    "BACKEND_NAMES",
    "Backend",
    "BackendName",
    "CycleRunner",
    "CycleTask",
    "FoundEntries",
    "ObjectiveSums",
    "get_backend",
    "reference_backend",
    "register_backend",
]

Ids = NDArray[np.int64]
Values = NDArray[np.float64]

FoundEntries = tuple[Ids, Ids, Values]
"""Single entries: (n, T) ids of variables by term, -1 for "fixed"; (n, T) the terms' coefficients; (n,) log |w| with the layer's
weight as a factor, of kernels for finite p the log of their p-norm. Two terms of an entry may be of one variable."""

BackendName = Literal["auto", "compiled", "eager", "triton"]
"""What `analyze(backend=...)` offers: "auto" and the names of the executors."""

BACKEND_NAMES: tuple[BackendName, ...] = get_args(BackendName)


@dataclass(frozen=True)
class CycleTask:
    """Jacobi cycles on tensors that stay where they are: all that an executor needs to run them.

    Attributes:
        program: the objective, on the CPU.
        tensors: the counted tensors, in the order of the program's blocks.
        factors: by counted tensor, by what its entries are multiplied before their norm is taken (a folded BatchNorm), or None.
        targets: what is multiplied; the model's tensors first.
        model_tensors: how many of the targets, from the first, are the model's tensors: autograd keeps count of their writes.
        counted: names of the targets that are counted.
        gradients: how many of the targets, from the last, are gradients: others may take their places.
        held: (K,) bool, on the device where log-scales live: variables that stay at 0.
        limit: the largest |log-scale|, a natural logarithm; may be infinite.
        reach: the largest sum of |exponents| of an entry of any target.
        powers_of_two: (K,) bool, where log-scales live: variables that move by whole octaves, cut towards 0; None: none.
        deadband: variables whose |log-scale| is smaller stay, a natural logarithm.
        groups: (K,) in the order in which a Gauss-Seidel cycle takes them, the group of each variable; None: all at once.
        growth: the largest natural logarithm of an entry's change; an executor that does not look at the room of every variable
            first gives up beyond it.
    """

    program: ReduceProgram
    tensors: Sequence[Tensor]
    factors: Sequence[Tensor | None]
    targets: Sequence[ScaleTarget]
    model_tensors: int
    counted: frozenset[str]
    held: Tensor
    limit: float
    reach: float
    powers_of_two: Tensor | None = None
    deadband: float = 0.0
    growth: float = math.log(1e6)
    gradients: int = 0
    groups: Ids | None = None

    @property
    def announced(self) -> list[Tensor]:
        """The tensors whose writes autograd keeps count of: the model's own, and gradients."""
        rest = self.targets[max(self.model_tensors, len(self.targets) - self.gradients) :]
        return [one.tensor for one in (*self.targets[: self.model_tensors], *rest) if not one.tensor.is_inference()]


class CycleRunner(Protocol):
    """The cycles that an executor has prepared for one task; it may hold addresses, so it serves while the tensors stay."""

    def run(self, factors: Sequence[Tensor | None], count: int, gate: Tensor | None = None) -> bool:
        """Runs some cycles and multiplies the targets; False where that is to be done elsewhere, and then nothing changes.

        Args:
            factors: as `CycleTask.factors`, with the values of now.
            count: how many cycles.
            gate: 0-d bool on the device: nothing moves where it is False, and nothing waits for it.
        """

    def refusals(self, count: int) -> list[str]:
        """Returns why `run` leaves so many cycles to others, each reason once; none where it runs them.

        Args:
            count: how many cycles.
        """

    def exchange(self, pairs: Sequence[tuple[ScaleTarget, ScaleTarget]]) -> bool:
        """Takes other tensors in the places of some targets; False: it does not, and has to be prepared anew.

        Args:
            pairs: a target, and the one in its place: of the same shape, strides, type and exponents. The task holds it already.
        """


class CurvatureProduct(Protocol):
    """A matrix of second derivatives, known by its products with vectors."""

    def product(self, vector: Tensor) -> Tensor:
        """Returns (K,) the matrix times a vector (K,)."""


class ObjectiveSums(Protocol):
    """The channel sums of matrices that were read once, at any log-scales; prepared once and asked many times."""

    def contributions(self, log_scales: Tensor | None = None) -> Tensor:
        """Returns (slots,) the same as `Backend.contributions` does, from matrices at hand."""

    def curvature(self, log_scales: Tensor, log_diagonal: Tensor, free: Tensor) -> CurvatureProduct:
        """Returns the Hessian at some log-scales, row k divided by p^2 exp(log_diagonal_k).

        Args:
            log_scales: (K,) where.
            log_diagonal: (K,) log(N + P) there.
            free: (K,) bool: variables that move; the others count as fixed.
        """

    def aggregate(self, log_scales: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Returns the objective as a function of one scalar a label: (E,) logs of its entries, and their exponents.

        Args:
            log_scales: (K,) where the scalars are 0.
            labels: (K,) int64 in 0 ... count; `count` is fixed.
            count: number of labels.
        """

    def entries_above(self, log_scales: Tensor, least: Tensor) -> Iterator[FoundEntries]:
        """Yields, some at a time, the single entries above a value after a rescaling; waits for the device.

        Args:
            log_scales: (K,) natural logarithms, on the CPU.
            least: (K,) values by variable, natural logarithms: an entry is to be above the least of those of its variables.
        """

    def largest_entries(self, log_scales: Tensor, count: int) -> Iterator[FoundEntries]:
        """Yields, some at a time, so many of the largest entries of each channel of each tensor.

        Args:
            log_scales: (K,) natural logarithms of a rescaling, on the CPU.
            count: how many of each position of each term.
        """


class Backend(Protocol):
    """An executor. None of its methods may wait for the device, unless it says so.

    Attributes:
        name: as in ``analyze(backend=...)``.
    """

    name: str

    def cycles(self, task: CycleTask) -> CycleRunner | None:
        """Prepares whole cycles; None where this executor does not cover all of the task."""

    def refusals(self, task: CycleTask) -> list[str]:
        """Returns why `cycles` prepares none, each reason once; for people, not for speed."""

    def matrices(self, program: ReduceProgram, tensors: Sequence[Tensor], factors: Sequence[Tensor | None]) -> list[Tensor]:
        """Reads the weights once: everything that `sums` and `energies` need for any number of log-scales."""

    def has_zeros(self, p: float, matrix: Tensor) -> bool:
        """Returns whether an entry of what `matrices` returns stands for a weight of zero; waits for the device."""

    def sums(self, program: ReduceProgram, matrices: Iterable[Tensor], log_scales: Tensor | None = None) -> ChannelSums:
        """Returns N and P of the weights as they would be after a rescaling by `log_scales`."""

    def contributions(self, program: ReduceProgram, matrices: Iterable[Tensor], log_scales: Tensor | None = None) -> Tensor:
        """Returns (slots,) the logarithms of the channel sums of each tensor by itself, in the order of ``program.slots``."""

    def objective_sums(self, program: ReduceProgram, matrices: Sequence[Tensor]) -> ObjectiveSums:
        """Prepares `contributions` and second derivatives of matrices that stay as they are."""

    def reduce(self, program: ReduceProgram, tensors: Sequence[Tensor], factors: Sequence[Tensor | None]) -> ChannelSums:
        """Returns N and P of the weights as they are: all that one cycle needs."""

    def energies(self, program: ReduceProgram, matrices: Iterable[Tensor], log_scales: Tensor | None = None) -> Tensor:
        """Returns (blocks,) log of each tensor's sum of |w|^p (of the largest |w| for p = inf), without layer weights."""

    def apply(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> None:
        """Multiplies every target in place by its factors."""

    def writes(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> list[Write]:
        """Returns the writes of `apply`, for `carry_out`; nothing is written yet."""

    def applies_within(self, device: torch.device) -> bool:
        """Whether `apply_within` can say yes to targets of that device; else it need not be asked."""

    def apply_within(self, targets: Sequence[ScaleTarget], log_scales: Tensor, counted: frozenset[str]) -> bool:
        """Does what `apply` does, unless an entry would leave its type's range; then nothing changes and the answer is False.

        Args:
            targets: everything that follows.
            log_scales: (K,) natural logarithms.
            counted: names of the targets of which sums have just been taken.
        """

    def rooms(self, targets: Sequence[ScaleTarget], num_scales: int, device: torch.device) -> Tensor:
        """Returns (2, K) >= 0, natural logarithms: how far each variable can go up and down with every entry in its type's range.

        Also where others go less far; see `Keep` for what else is kept.
        """

    def leaving(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> Tensor:
        """Returns (K,) bool: variables that move an entry out of its room; where there are none, `log_scales` do no harm."""

    def rounded(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> int:
        """Returns how many entries of targets with `Keep.DIGITS` lose digits; waits for the device."""

    def contraction(self, count: int, tails: Ids, heads: Ids, lengths: Values) -> tuple[Values, Ids, Values] | None:
        """Contracts the bottleneck cycles of a strongly connected graph; None where this executor has nothing faster than Python.

        Args:
            count: number of nodes n; the root is node 0.
            tails, heads, lengths: (m,) of the arcs.

        Returns:
            (n,) minus the potentials of the nodes; (n,) the nodes in a line; (n - 1,) the levels between neighbours in it.
        """

    def overflowing(self, targets: Sequence[ScaleTarget], log_scales: Tensor) -> Tensor:
        """Returns (K,) bool: variables that make an entry overflow; where there are none, nothing becomes infinite."""


_BACKENDS: dict[str, Callable[[], Backend]] = {}


def register_backend(name: str, factory: Callable[[], Backend], *, replace: bool = False) -> None:
    """Adds an executor to the table; called while its module is imported.

    Args:
        name: the name that `get_backend` finds it by.
        factory: returns the executor, or raises an OptionError where it does not work here.
        replace: whether an executor that has the name already gives way.

    Raises:
        OptionError: the name is taken and `replace` is False.
    """
    if name in _BACKENDS and not replace:
        raise OptionError(f"there is an executor {name!r} already")
    _BACKENDS[name] = factory


def reference_backend() -> Backend:
    """Returns the executor that covers everything, and by which all others are measured."""
    return get_backend("eager")


def get_backend(name: str) -> Backend:
    """Returns an executor of that name.

    Args:
        name: "eager"; "compiled" for CPUs and "triton" for GPUs, which hand what they cannot do to "eager"; "auto" takes
            "compiled" where there is a compiler, and else "eager" and says so once.

    Raises:
        OptionError: there is no executor of that name, or it does not work here.

    Example:
        >>> get_backend("eager").name
        'eager'
    """
    factory = _BACKENDS.get(name)
    if factory is None:
        raise OptionError(f"backend={name!r} is not a valid option: expected one of {sorted(_BACKENDS)}")
    return factory()
