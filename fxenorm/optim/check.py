"""`check_optimizer`: a rule for state against an optimizer that is fed the same history again, rescaled."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptimizerError, OptionError
from .factor_pair import FactorPair
from .registry import Contract, Factor, Follows, Steps, find_rule
from .state import StateTensor, state_tensors, strange_keys, unnamed_keys, unwrap_optimizers
from .wrappers import held_by, own_state, rules_for

__all__ = ["OptimizerCheck", "check_optimizer"]

_TOLERANCE = 1e-6
"""Relative to the largest entry. A right rule leaves rounding of float64 over some twenty steps; a wrong power of D = exp(normal)
changes entries by a good part of themselves."""

_SHAPES = ((4, 3), (5,), (2, 3, 3, 2))
"""A matrix, a vector, and the weight of a convolution with axes of equal size: a rule must not tell axes by their sizes."""

_STEPS = 5
"""Enough that moments differ from the last gradient, and that bias corrections and running maxima have acted."""

_UPDATES = "(updates)"


@dataclass(frozen=True)
class OptimizerCheck:
    """The findings of `check_optimizer`; falsy where the rule is wrong. Print it.

    Attributes:
        optimizer: the class.
        contract: the promise of its rule.
        at_fault: by state key, the mistake; "(updates)" stands for a mistake in no key of the state.
        keys: the keys of the state, with the power of D by which each follows, 0 where it stays.
    """

    optimizer: str
    contract: Contract
    at_fault: Mapping[str, str]
    keys: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether the rule holds: no mistake was found."""
        return not self.at_fault

    def __str__(self) -> str:
        """Returns the verdict, and one line a key."""
        if self.at_fault:
            lines = [f"the rule for {self.optimizer} is WRONG ({self.contract})"]
            return "\n".join([*lines, *(f"  {key}: {mistake}" for key, mistake in self.at_fault.items())])
        how = "its keys fit the state; no history says more of such a rule" if self.contract == "by definition" else "checked"
        lines = [f"the rule for {self.optimizer} holds ({self.contract}): {how}"]
        return "\n".join([*lines, *(f"  {key}: D ** {power}" for key, power in self.keys.items())])


def check_optimizer(
    optimizer_factory: Callable[[Iterable[nn.Parameter]], Any], *, shapes: Sequence[Sequence[int]] = _SHAPES, seed: int = 0
) -> OptimizerCheck:
    """Checks the rule by which an optimizer's state follows a rescaling, as `register_optimizer` was told it.

    A rule with the contract "re-expressed" is held against a fresh optimizer that is fed the rescaled gradients; "covariant",
    against later updates of a run that was never rescaled. Of "by definition" it is only checked that the rule's keys and the
    state's are the same. Weight decay is set to 0 and eps to 1e-30, for no rule makes these exact.

    Args:
        optimizer_factory: makes the optimizer (a wrapper, too) for some parameters: a class, or
            ``lambda parameters: MyOptimizer(parameters, lr=0.1)``.
        shapes: of the parameters, for optimizers that take matrices only.
        seed: of the weights, the gradients and D.

    Returns:
        What was found; falsy where the rule is wrong, with the state keys at fault.

    Raises:
        OptimizerError: the optimizer has no rule.
        OptionError: `optimizer_factory` makes no optimizer.

    Example:
        >>> print(check_optimizer(torch.optim.Adam))
        the rule for Adam holds (re-expressed): checked
          exp_avg: D ** -1
          exp_avg_sq: D ** -2
    """
    run = _Run(optimizer_factory, shapes, seed)
    find_rule(run.optimizers[0])
    run.feed(_STEPS)
    keys, at_fault = _fitting(run)
    name = type(run.made).__name__
    contract = find_rule(run.optimizers[0]).contract if len(run.optimizers) == 1 else "by definition"
    if not at_fault and contract != "by definition":
        check = _against_history if contract == "re-expressed" else _against_later_updates
        at_fault = check(lambda: _Run(optimizer_factory, shapes, seed), keys)
    powers = {key: follows if isinstance(follows, int) else follows.power for key, follows in keys.items()}
    return OptimizerCheck(name, contract, at_fault, powers)


class _Run:
    """An optimizer with parameters of its own, and gradients that are the same in every run."""

    def __init__(self, factory: Callable[[Iterable[nn.Parameter]], Any], shapes: Sequence[Sequence[int]], seed: int) -> None:
        self._random = torch.Generator(device="cpu").manual_seed(seed)
        values = [self._draw(shape) for shape in shapes]
        self.parameters = [nn.Parameter(value) for value in values]
        if not callable(factory):
            raise OptionError(f"optimizer_factory={factory!r} is not valid: expected a function of parameters, or a class")
        self.made = factory(self.parameters)
        try:
            self.optimizers = unwrap_optimizers(self.made)
        except OptimizerError as error:
            raise OptionError(f"optimizer_factory made no optimizer: {error}") from error
        if callable(getattr(self.made, "train", None)):
            self.made.train()  # schedule-free optimizers step in train mode only
        for group in self.optimizers[0].param_groups:
            inexact = {"weight_decay": 0.0, "eps": 1e-30}
            group.update({key: value for key, value in inexact.items() if type(group.get(key)) is float})
        self.names = {str(number): parameter for number, parameter in enumerate(self.parameters)}
        # A product of factors for rows and for columns, as in the layers of a network.
        self.factors = [self._separable(shape) for shape in shapes]
        self.ones = [torch.ones_like(factor) for factor in self.factors]
        self._gradients = [[self._draw(shape) * 0.01 for shape in shapes] for _ in range(3 * _STEPS)]
        self._done = 0

    def _draw(self, shape: Sequence[int]) -> Tensor:
        """Returns normal numbers in float64, the next of this run's generator."""
        return torch.randn(tuple(shape), generator=self._random, dtype=torch.float64, device="cpu")

    def _separable(self, shape: Sequence[int]) -> Tensor:
        """Returns D of one parameter, a product of factors along its first and its last two axes."""
        found = torch.ones(tuple(shape), dtype=torch.float64, device="cpu")
        for axis in range(len(shape)):
            if axis in (len(shape) - 1, len(shape) - 2, 0):
                found = found * self._draw([size if place == axis else 1 for place, size in enumerate(shape)]).exp()
        return found

    def feed(self, steps: int, factors: Sequence[Tensor] | None = None) -> None:
        """Steps with the next gradients, each divided by its factor."""
        for _ in range(steps):
            gradients = [one / by for one, by in zip(self._gradients[self._done], factors or self.ones, strict=True)]

            def set_gradients(gradients: Sequence[Tensor] = gradients) -> Tensor:
                """Sets the gradients, as a backward pass would; returns a loss of 0."""
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    sparse = isinstance(self.optimizers[0], torch.optim.SparseAdam)
                    parameter.grad = gradient.to_sparse() if sparse else gradient.clone()
                return torch.zeros((), dtype=torch.float64, device="cpu")

            set_gradients()
            closure = inspect.signature(self.made.step).parameters.get("closure")
            if closure is not None and closure.default is closure.empty:
                self.made.step(set_gradients)
            else:
                self.made.step()
            self._done += 1

    @torch.no_grad()
    def rescale(self, *, instead: Mapping[str, int] | None = None) -> None:
        """Has the state follow by its rule, or by other powers of D where `instead` names them."""
        found = state_tensors(self.optimizers, self.names)
        rows = [one for one in found if one.factor is not None and one.factor.axis == -1]
        pairs = [FactorPair(one.tensor, one.other) for one in rows if one.other is not None]
        means = [pair.means() for pair in pairs]
        powers = {(one.parameter, one.key): one for one in found}
        for one in found:
            one.tensor.mul_(self._factor(one) ** (instead or {}).get(one.key, one.power))
        for name, parameter in self.names.items():
            for key, power in (instead or {}).items():
                value = self.optimizers[0].state[parameter].get(key)
                if (name, key) not in powers and isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.mul_(self.factors[int(name)] ** power)
        for pair, before in zip(pairs, means, strict=True):
            pair.follow(before)

    def _factor(self, one: StateTensor) -> Tensor:
        """D of a tensor of state."""
        factor = self.factors[int(one.parameter)]
        if one.factor is None:
            return factor
        row, column = factor[..., :1], factor[..., :1, :]
        corner = factor[..., :1, :1].sqrt()
        return row / corner if one.factor.axis == -1 else column / corner

    def held(self, number: int) -> dict[str, Tensor]:
        """Returns the tensors of one parameter's state."""
        state = self.optimizers[0].state.get(self.parameters[number], {})
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _fitting(run: _Run) -> tuple[dict[str, int | Steps | Factor], dict[str, str]]:
    """Returns (by key, how it follows; by key, the misfit between the rule and the state)."""
    keys: dict[str, int | Steps | Factor] = {}
    at_fault: dict[str, str] = {}
    for optimizer in run.optimizers:
        rules = rules_for(optimizer, run.optimizers)
        for key in strange_keys(optimizer, rules[0].keys if rules and held_by(optimizer) is None else frozenset()):
            at_fault[key] = "no state has this key"
        for parameter in run.parameters:
            state = own_state(optimizer).get(parameter, {})
            powers: dict[str, Follows] = {key: how for rule in reversed(rules) for key, how in rule.follows(state, {}).items()}
            keys.update((key, how) for key, how in powers.items() if isinstance(how, (int, Steps, Factor)))
            for key in unnamed_keys(parameter, state, powers):
                at_fault[key] = "the rule says nothing of this float tensor of the parameter's shape (0: it stays)"
    if not at_fault:
        try:
            state_tensors(run.optimizers, run.names)
        except OptimizerError as error:
            wrong = next((key for key in keys if repr(key) in str(error)), _UPDATES)
            at_fault[wrong] = str(error)
    return keys, at_fault


def _against_history(make: Callable[[], _Run], keys: Mapping[str, Any]) -> dict[str, str]:
    """Returns, by key, the difference from a fresh optimizer which was fed the rescaled gradients."""
    old, fresh = make(), make()
    old.feed(_STEPS)
    before = [{key: value.clone() for key, value in old.held(number).items()} for number in range(len(old.parameters))]
    old.rescale()
    fresh.feed(_STEPS, fresh.factors)
    at_fault: dict[str, str] = {}
    for number, factor in enumerate(old.factors):
        expected = fresh.held(number)
        for key, value in old.held(number).items():
            if key in at_fault or _near(value, expected[key]):
                continue
            shown = before[number][key]
            fits = [k for k in range(-4, 5) if shown.shape == factor.shape and _near(shown * factor**k, expected[key])]
            right = f"; D ** {fits[0]} would be right" if fits else ", and no power of D would be right"
            at_fault[key] = f"follows as D ** {_power(keys, key)}, which is not what rescaled gradients give{right}"
    if at_fault:
        return at_fault
    for one, other in zip(old.parameters, fresh.parameters, strict=True):
        one.data.copy_(other.data)
    for run in (old, fresh):
        run.feed(2, run.factors)
    if all(_near(one.detach(), other.detach()) for one, other in zip(old.parameters, fresh.parameters, strict=True)):
        return {}
    return {_UPDATES: "later updates differ though the state agrees: gradients are remembered outside the state of parameters"}


def _against_later_updates(make: Callable[[], _Run], keys: Mapping[str, Any]) -> dict[str, str]:
    """Returns, by key, the reason why later updates are not D times those of a run that was never rescaled."""
    if _is_covariant(make):
        return {}
    for key in keys:
        right = [power for power in range(-4, 5) if power != _power(keys, key) and _is_covariant(make, {key: power})]
        if right:
            wrong = f"follows as D ** {_power(keys, key)}, with which later updates do not follow the weights"
            return {key: f"{wrong}; D ** {right[0]} would be right"}
    return {_UPDATES: "later updates are not D times those of a run that was never rescaled"}


def _is_covariant(make: Callable[[], _Run], instead: Mapping[str, int] | None = None) -> bool:
    """Whether later updates are D times those of a run that was never rescaled."""
    untouched, run = make(), make()
    for one in (untouched, run):
        one.feed(_STEPS)
        for number, parameter in enumerate(one.parameters):
            # Squares of steps begin with multiples of eps, which follow nothing.
            for key, value in one.held(number).items():
                if key == "acc_delta" and value.shape == parameter.shape:
                    value.copy_(parameter.detach().square() * 1e-2)
    start = [copy.deepcopy(parameter.detach()) for parameter in run.parameters]
    run.rescale(instead=instead)
    with torch.no_grad():
        for parameter, factor in zip(run.parameters, run.factors, strict=True):
            parameter.mul_(factor)
    untouched.feed(_STEPS)
    run.feed(_STEPS, run.factors)
    return all(
        _near(mine.detach() / factor - old, other.detach() - old)
        for mine, other, old, factor in zip(run.parameters, untouched.parameters, start, run.factors, strict=True)
    )


def _power(keys: Mapping[str, Any], key: str) -> int:
    """Returns the power of D by which a key follows."""
    follows = keys.get(key, 0)
    return follows if isinstance(follows, int) else int(follows.power)


def _near(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree, relative to the largest entry."""
    if one.shape != other.shape:
        return False
    difference = (one - other).abs().max() if one.numel() else torch.zeros((), dtype=torch.float64, device="cpu")
    return bool(difference <= _TOLERANCE * other.abs().max()) if one.numel() else True
