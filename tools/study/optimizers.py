"""SGD and AdamW in which every network of a stack has a learning rate of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import fxenorm

from .configuration import Configuration
from .networks.build import layers_of
from .networks.stack import Stack, StackedLinear


class _WithRates(Optimizer):
    """Keeps a rate a run; the first axis of a parameter holds the runs, each with an equal share."""

    rates: Tensor

    def rate_of(self, parameter: Tensor) -> Tensor:
        """The rates, shaped to multiply a parameter."""
        share = parameter.shape[0] // len(self.rates) if len(self.rates) > 1 else parameter.shape[0]
        return self.rates.repeat_interleave(share).view(-1, *[1] * (parameter.ndim - 1)).to(parameter.dtype)


class StackedSGD(_WithRates):
    """PyTorch's SGD with momentum and a decay that is coupled, or decoupled: w <- w - rate (v + decay w).

    Args:
        params: parameters or groups; a group may set weight_decay.
        momentum, weight_decay, decoupled: as in `Configuration`.
    """

    def __init__(self, params: Iterable[Any], momentum: float, weight_decay: float, decoupled: bool) -> None:
        super().__init__(params, {"momentum": momentum, "weight_decay": weight_decay, "decoupled": decoupled})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update; `closure` is not called."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                change, rate, decay = parameter.grad, self.rate_of(parameter), group["weight_decay"]
                if group["momentum"]:
                    state = self.state[parameter]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    change = state["momentum_buffer"].mul_(group["momentum"]).add_(change)
                if decay and group["decoupled"]:
                    parameter.mul_(1 - rate * decay)
                elif decay:  # into the buffer, or into the gradient, which the next step throws away
                    change.add_(parameter, alpha=decay)
                parameter.addcmul_(change, rate, value=-1)


class StackedAdamW(_WithRates):
    """PyTorch's AdamW, with its default betas and eps.

    Args:
        params: parameters or groups; a group may set weight_decay.
        weight_decay: as in `Configuration`.
    """

    def __init__(self, params: Iterable[Any], weight_decay: float) -> None:
        super().__init__(params, {"weight_decay": weight_decay, "betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update; `closure` is not called."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                grad, rate, state = parameter.grad, self.rate_of(parameter), self.state[parameter]
                if grad is None:
                    continue
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
                state["step"] += 1
                parameter.mul_(1 - rate * group["weight_decay"])
                state["exp_avg"].lerp_(grad, 1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second)
                root = state["exp_avg_sq"].sqrt().div_((1 - second ** state["step"]) ** 0.5).add_(group["eps"])
                parameter.addcdiv_(state["exp_avg"] * (rate / (1 - first ** state["step"])), root, value=-1)


def _groups(of: Configuration, model: nn.Module) -> list[dict[str, Any]]:
    """The parameters that decay and those that do not."""
    layers = [m for m in model.modules() if isinstance(m, StackedLinear)] if isinstance(model, Stack) else layers_of(model)
    matrices = {id(layer.weight) for layer in layers}
    if of.decay_on == "matrices":
        decays = [p for p in model.parameters() if id(p) in matrices]
    else:
        decays = list(model.parameters()) if of.decay_on == "all" else []
    chosen = {id(p) for p in decays}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": decays, "weight_decay": of.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(of: Configuration, model: nn.Module) -> Optimizer:
    """The optimizer of a network, PyTorch's own where that is possible, or of a stack.

    Args:
        of: the configuration of one of the runs: method, momentum, decay.
        model: a network or a stack.
    """
    stacked = isinstance(model, Stack)
    groups = _groups(of, model)
    if of.method.optimizer == "adamw":
        if not stacked:
            return torch.optim.AdamW(groups, lr=of.rate)
        fxenorm.register_optimizer(StackedAdamW, {"exp_avg": -1, "exp_avg_sq": -2})
        return StackedAdamW(groups, of.weight_decay)
    if not stacked and not of.decoupled:
        return torch.optim.SGD(groups, lr=of.rate, momentum=of.momentum)
    fxenorm.register_optimizer(StackedSGD, {"momentum_buffer": -1} if of.momentum else {})
    return StackedSGD(groups, of.momentum, of.weight_decay, of.decoupled)


def set_rates(optimizer: Optimizer, rates: Tensor) -> None:
    """Gives every run its rate.

    Args:
        optimizer: one of `make_optimizer`.
        rates: (runs,).
    """
    if isinstance(optimizer, _WithRates):
        optimizer.rates = rates
        return
    for group in optimizer.param_groups:
        group["lr"] = float(rates[0])
