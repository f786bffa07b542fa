"""Finds the tensors that go along with a rescaling beside the model's own: optimizer state, copies of the weights, gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..kernels.program import Keep, ScaleTarget, TermTensors
from ..kernels.writes import Write
from ..optim.factor_pair import FactorPair, terms_of_factor
from ..optim.state import StateChoice, reset_state, state_tensors
from ..optim.wrappers import held_by

__all__ = ["Followers", "find_followers"]

Terms = Callable[[str, torch.device], TermTensors]
"""Exponents of a tensor, by name, on a device."""


@dataclass
class Followers:
    """Everything that goes along with a rescaling, found and checked; nothing has been written yet.

    Attributes:
        targets: tensors that are multiplied.
        factors: pairs whose means have to follow once they are multiplied.
        resets: optimizers and parameters whose state is dropped.
        repeatable: whether multiplying `targets` is all there is to it, and the same tensors stand in the same places next time,
            or gradients like those of now.
        owners: the tensors whose gradients follow where they have some; None: gradients do not follow.
    """

    targets: list[ScaleTarget] = field(default_factory=list)
    factors: list[FactorPair] = field(default_factory=list)
    resets: list[tuple[Sequence[Optimizer], list[Tensor]]] = field(default_factory=list)
    repeatable: bool = True
    owners: list[Tensor] | None = None

    @torch.no_grad()
    def after(self) -> list[Write]:
        """Returns the writes behind those of the targets; call it before these, of whose present values some are needed."""
        found: list[Write] = []
        for pair in self.factors:
            ratios = _Ratios(pair)
            found += [ratios, _FactorWrite(ratios, 0), _FactorWrite(ratios, 1)]
        return [*found, *(_Reset(optimizers, parameters) for optimizers, parameters in self.resets)]


class _Ratios(Write):
    """Finds by which factors the two factors of a pair have to follow: once both are multiplied, and before either follows."""

    def __init__(self, pair: FactorPair) -> None:
        super().__init__((), ())
        self.pair, self._means = pair, pair.means()
        self.found: tuple[Tensor, Tensor] | None = None

    def run(self) -> None:
        """Finds the ratios and counts as written."""
        self.forward()
        self.written = True

    def undo(self) -> None:
        """Forgets that it ran; no tensor was changed."""
        self.written = False

    def forward(self) -> None:
        """Finds the ratios, unless they are known."""
        if self.found is None:
            with torch.no_grad():
                self.found = self.pair.ratios(self._means)

    def backward(self) -> None:
        """Leaves everything as it is, since no tensor was changed."""


class _FactorWrite(Write):
    """Multiplies the rows (side 0) or the columns (side 1) of a pair of factors by their ratio."""

    def __init__(self, ratios: _Ratios, side: int) -> None:
        super().__init__((f"factor {side} of a second moment",), ((ratios.pair.rows, ratios.pair.columns)[side],))
        self._ratios, self._side = ratios, side

    def _ratio(self) -> Tensor:
        """Returns the ratio by which this side is multiplied."""
        if self._ratios.found is None:
            raise RuntimeError("the other factor has not been multiplied")
        return self._ratios.found[self._side]

    @torch.no_grad()
    def forward(self) -> None:
        """Multiplies the side by its ratio."""
        self.tensors[0].mul_(self._ratio())

    @torch.no_grad()
    def backward(self) -> None:
        """Divides the side by its ratio."""
        self.tensors[0].div_(self._ratio())


class _Reset(Write):
    """Drops state, after everything else; a second time does no harm, and nothing undoes it."""

    def __init__(self, optimizers: Sequence[Optimizer], parameters: Sequence[Tensor]) -> None:
        super().__init__((), ())
        self._optimizers, self._parameters = optimizers, parameters

    def forward(self) -> None:
        """Drops the state of the parameters."""
        reset_state(self._optimizers, self._parameters)

    def backward(self) -> None:
        """Raises: dropped state does not come back."""
        raise RuntimeError("dropped state does not come back")


def find_followers(
    terms: Terms,
    optimizers: Sequence[Optimizer],
    parameters: Mapping[str, Tensor],
    copies: Sequence[Mapping[str, Tensor]],
    twins: Sequence[Mapping[str, Tensor]] = (),
    *,
    offsets: Mapping[str, float],
    state: StateChoice,
    grads: bool,
) -> Followers:
    """Returns everything that follows the given parameters.

    Args:
        terms: exponents of a parameter on a device.
        optimizers: whose state follows; they may hold the parameters or the tensors of a copy (float32 masters).
        parameters: by name, the parameters that are rescaled.
        copies: by name, tensors that move as the parameters do.
        twins: by name, further parameters over the same memory as one of the parameters: their state and gradients follow too.
        offsets: by name of a parameter, the number that the model adds to it; see `ScaleTarget`.
        state: whether optimizer state is re-expressed, dropped or kept.
        grads: whether gradients follow.

    Raises:
        OptimizerError: an optimizer has no rule, or its state does not fit.
    """
    found = Followers(repeatable=state == "reexpress", owners=[] if grads else None)
    for tensors in copies:
        found.targets += [
            ScaleTarget(f"copy of {name}", tensor, terms(name, tensor.device), offset=offsets.get(name, 0.0), keep=Keep.LARGEST)
            for name, tensor in tensors.items()
        ]
    for tensors in (parameters, *twins, *copies):
        if state == "reset":
            found.resets.append((optimizers, list(tensors.values())))
            _add_state(found, terms, offsets, [one for one in optimizers if held_by(one) is not None], tensors)
        elif state == "reexpress":
            _add_state(found, terms, offsets, optimizers, tensors)
    if found.owners is not None:
        named = [item for tensors in (parameters, *twins, *copies) for item in tensors.items() if item[1].is_leaf]
        found.owners += [tensor for _, tensor in named]
        for name, tensor in named:
            if tensor.grad is not None:
                found.targets.append(_gradient(name, tensor.grad, terms(name, tensor.grad.device)))
                found.repeatable &= tensor.grad.layout == torch.strided
    return found


def _gradient(name: str, gradient: Tensor, exponents: TermTensors) -> ScaleTarget:
    """Returns a gradient as a target; of a sparse one (embeddings) its values, each with the exponents of its place."""
    if gradient.layout != torch.sparse_coo:
        return ScaleTarget(f"gradient of {name}", gradient, exponents, -1)
    places = gradient._indices()

    def held(ids: Tensor) -> Tensor:
        """Returns the ids at the places held; those that are constant along an axis have size 1 there."""
        return ids[tuple(places[axis] if ids.shape[axis] > 1 else torch.zeros_like(places[axis]) for axis in range(len(places)))]

    # The values share the gradient's memory, coalesced or not: what is linear may be multiplied before it is summed.
    at_places = tuple((coefficient, held(ids)) for coefficient, ids in exponents)
    return ScaleTarget(f"gradient of {name}", gradient._values(), at_places, -1)


def _add_state(
    found: Followers,
    terms: Terms,
    offsets: Mapping[str, float],
    optimizers: Sequence[Optimizer],
    tensors: Mapping[str, Tensor],
) -> None:
    """Adds the optimizer state that follows by its class's rule."""
    for state in state_tensors(optimizers, tensors):
        exponents = terms(state.parameter, state.tensor.device)
        if state.factor is not None:
            exponents = terms_of_factor(exponents, state.factor.axis, state.parameter)
            if state.factor.axis == -1 and state.other is not None:
                found.factors.append(FactorPair(state.tensor, state.other))
        found.repeatable &= state.factor is None and not state.in_list
        offset = offsets.get(state.parameter, 0.0) if state.position else 0.0
        found.targets.append(ScaleTarget(f"{state.key} of {state.parameter}", state.tensor, exponents, state.power, offset))
