"""Masses for `fxenorm.objectives.Masses`: from weights, gradients, the Fisher information and paths; the model stays as it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ExampleInputsError, OptionError
from .objectives.terms import Masses

__all__ = ["fisher", "gradients", "path", "weights"]

_AT_ONCE = 16
"""Samples whose gradients are held at once: so many times the memory of the parameters."""

_LINEAR = 1e-6
"""The relative difference from a linear function that rounding and the eps of norms may cause in a squared network."""


def weights(model: nn.Module, p: float) -> Masses:
    """Returns |w|^p of all floating-point parameters, which follow a rescaling by its p-th power.

    Unlike `fxenorm.objectives.Weights`, biases are among them, and so are parameters that no rescaling moves.

    Args:
        model: the module.
        p: the exponent, > 0.

    Raises:
        OptionError: p is not valid, or a parameter is not finite.

    Example:
        >>> weights(nn.Linear(4, 2), p=2)
        Masses(2 tensors, power=2)
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 < p < float("inf"):
        raise OptionError(f"p={p!r} is not valid: expected a finite number > 0")
    return Masses({name: one.detach().double().abs().pow(p) for name, one in _parameters(model).items()}, power=p)


def gradients(model: nn.Module, loss: Tensor | Callable[[nn.Module], Tensor]) -> Masses:
    """Returns the squared gradients of a loss, of which the sum is the squared gradient norm after a rescaling.

    Its minimum is the representative with the least gradient norm, at which a step of gradient descent lowers the loss least at
    first order; within a box it can be made large instead.

    Args:
        model: the module; ``.grad`` stays as it is.
        loss: a 0-d tensor that was computed from the model's parameters, or a function of the model that returns one.

    Raises:
        OptionError: the loss is no 0-d tensor, depends on no parameter, or a gradient is not finite.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> gradients(model, lambda model: model(torch.ones(3, 4)).square().mean())
        Masses(2 tensors, power=-2)
    """
    value = loss(model) if callable(loss) else loss
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise OptionError(f"the loss has {shape}: expected a tensor of one number")
    named = {name: one for name, one in _parameters(model).items() if one.requires_grad}
    if not value.requires_grad or not named:
        raise OptionError("the loss depends on no parameter that requires a gradient: compute it with gradients enabled")
    found = torch.autograd.grad(value.reshape(()), list(named.values()), retain_graph=True, allow_unused=True)
    squares = {
        name: torch.zeros_like(one, dtype=torch.float64) if gradient is None else gradient.detach().double().square()
        for (name, one), gradient in zip(named.items(), found, strict=True)
    }
    return Masses(squares, power=-2)


@torch.enable_grad()
def fisher(model: nn.Module, losses: Callable[[nn.Module], Tensor]) -> Masses:
    """Returns the mean over samples of squared gradients: the diagonal of the empirical Fisher information.

    Args:
        model: the module. What it draws or keeps in train mode (dropout, running statistics) is its own business: call
            ``model.eval()`` first for a fixed function.
        losses: a function of the model that returns (samples,) the loss of each sample.

    Raises:
        OptionError: the losses have another shape, depend on no parameter, or a gradient is not finite.

    Example:
        >>> model, x = nn.Linear(4, 2), torch.ones(3, 4)
        >>> fisher(model, lambda model: model(x).square().mean(1))
        Masses(2 tensors, power=-2)
    """
    named = {name: one.detach().requires_grad_() for name, one in _parameters(model).items() if one.requires_grad}
    # Buffers may be written in a forward pass.
    buffers = {name: one.detach().clone() for name, one in model.named_buffers()}
    given = {f"model.{name}": one for name, one in (*named.items(), *buffers.items())}
    values: Any = torch.func.functional_call(_Losses(model, losses), given)
    if not isinstance(values, Tensor) or values.ndim != 1 or not values.numel():
        shape = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
        raise OptionError(f"the losses have {shape}: expected one number a sample, (samples,)")
    if not values.requires_grad:
        raise OptionError("the losses depend on no parameter that requires a gradient")
    totals = {name: torch.zeros_like(one, dtype=torch.float64) for name, one in named.items()}
    chosen = torch.eye(values.numel(), dtype=values.dtype, device=values.device)
    for part in torch.split(chosen, _AT_ONCE):
        for name, slope in zip(named, _slopes(values, list(named.values()), part), strict=True):
            if slope is not None:
                totals[name] += slope.double().square().sum(0)
    return Masses({name: total / values.numel() for name, total in totals.items()}, power=-2)


def _slopes(values: Tensor, by: list[Tensor], chosen: Tensor) -> tuple[Tensor | None, ...]:
    """Returns by tensor the derivatives of some sums of the values, one after another along axis 0, in one backward pass."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        return torch.autograd.grad(values, by, chosen, retain_graph=True, allow_unused=True, is_grads_batched=True)


class _Losses(nn.Module):
    """A model and its losses as one module, whose parameters can be given to a call."""

    def __init__(self, model: nn.Module, losses: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self.model, self._losses = model, losses

    def forward(self) -> Tensor:
        """Returns the losses."""
        return self._losses(self.model)


@torch.enable_grad()
def path(model: nn.Module, example_inputs: Any) -> Masses:
    """Returns the diagonal of the path lifting: by weight, the sum over paths through it of the other squared weights' product.

    All parameters are squared and the inputs are ones; the derivative of the outputs' sum by the squared parameters is the
    answer, by one backward pass. In eval mode, float64; the model is left as it is. A BatchNorm multiplies by its squared gain
    over its running variance, and its running mean is left out. The model has to be linear on positive inputs, biases apart:
    layers, ReLU, pooling, sums, BatchNorm.

    Args:
        model: the module.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments, of which the shapes count.

    Raises:
        ExampleInputsError: the model does not run on them in float64.
        OptionError: the squared network is not linear, as with LayerNorm, attention or GELU, or nothing is finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> path(model, torch.ones(1, 4))
        Masses(4 tensors, power=-2)
    """
    named = {name: one.detach().double().square().requires_grad_() for name, one in _parameters(model).items()}
    biases = {name for name in named if name.rpartition(".")[2].endswith("bias")}
    buffers = _squared_buffers(model)
    arguments, keywords = _as_arguments(example_inputs)

    def total(given: Mapping[str, Tensor], size: float) -> Tensor:
        """Returns the sum of all outputs for inputs of one size."""
        fill = [torch.full_like(one, size, dtype=torch.float64) if _is_float(one) else one for one in arguments]
        filled = {k: torch.full_like(one, size, dtype=torch.float64) if _is_float(one) else one for k, one in keywords.items()}
        try:
            # Buffers may be written in a forward pass.
            own = {name: one.clone() for name, one in buffers.items()}
            outputs = torch.func.functional_call(model, {**given, **own}, tuple(fill), filled)
        except Exception as error:
            raise ExampleInputsError(f"the model does not run in float64 on the example inputs: {error}") from error
        tensors = [one for one in torch.utils._pytree.tree_leaves(outputs) if _is_float(one)]
        return (
            torch.stack([one.sum() for one in tensors]).sum() if tensors else torch.zeros((), dtype=torch.float64, device="cpu")
        )

    with _in_eval_mode(model):
        without = {name: torch.zeros_like(one) if name in biases else one.detach() for name, one in named.items()}
        once, twice = float(total(without, 1.0)), float(total(without, 2.0))
        if not abs(twice - 2 * once) <= _LINEAR * abs(twice) or not abs(twice) < float("inf"):
            raise OptionError(
                f"the squared network is not linear ({once:.6g} for inputs of 1, {twice:.6g} for 2), so it has no paths: it may "
                "hold a LayerNorm, attention or a bent activation"
            )
        outputs = total(named, 1.0)
    found = torch.autograd.grad(outputs, list(named.values()), allow_unused=True)
    slopes = zip(named.items(), found, strict=True)
    return Masses({name: torch.zeros_like(one.detach()) if slope is None else slope for (name, one), slope in slopes}, power=-2)


def _squared_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers of the squared network: of BatchNorms a mean of 0, and a variance that leaves 1 / (variance + eps)."""
    found = {name: one.detach().double() if _is_float(one) else one.detach() for name, one in model.named_buffers()}
    for path_of, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            prefix = f"{path_of}." if path_of else ""
            deviation = found[f"{prefix}running_var"] + module.eps
            found[f"{prefix}running_mean"] = torch.zeros_like(deviation)
            found[f"{prefix}running_var"] = deviation.square() - module.eps
    return found


def _as_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns example inputs as positional and keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)), {}


def _is_float(value: Any) -> bool:
    """Whether a value is a tensor of real floats."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """Returns the floating-point parameters by name, each once."""
    if not isinstance(model, nn.Module):
        raise OptionError(f"model={type(model).__name__} is not valid: expected a torch.nn.Module")
    return {name: one for name, one in model.named_parameters() if one.is_floating_point()}


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts all modules into eval mode, and each back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
