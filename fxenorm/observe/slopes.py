"""`Slopes`: the squared derivatives of a model's outputs by its weights and activations, summed up batch by batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import OptionError
from ..trace.inputs import Inputs
from ..trace.outputs import OutputWatch, chosen

__all__ = ["Slopes"]


class Slopes:
    """Runs a model, and backwards from random signs of all entries of its outputs.

    The square of the derivative of sum r_o y_o by v has, over random signs r_o, the mean sum (dy_o / dv)^2: one backward pass
    tells all derivatives, those by an activation sample by sample. The signs are the same at each observation.

    Args:
        model: the module; its parameters are not touched, and get no ``.grad``.
        wanted: the names of the parameters whose derivatives are kept.
        outputs: patterns of the outputs that count, as `fxenorm.analyze` takes them.
        passes: backward passes a batch, each with signs of its own.

    Attributes:
        entries: number of entries of all outputs so far, times `passes`.
        squares: the sum of the squares of these entries, times `passes`.
    """

    def __init__(self, model: nn.Module, wanted: Sequence[str], outputs: Sequence[str] | None, passes: int) -> None:
        self._wanted, self._outputs, self._passes = frozenset(wanted), outputs, passes
        self._random = torch.Generator(device="cpu").manual_seed(0)
        # Shares the memory of the model's own, and is no parameter of it: hooks of these stay silent.
        self._parameters = {name: _leaf(one) for name, one in model.named_parameters() if one.is_floating_point()}
        self._sums: dict[str, Tensor] = {}
        self.entries = 0
        self.squares = 0.0

    def run(self, model: nn.Module, inputs: Inputs, hooks: contextlib.AbstractContextManager[None]) -> None:
        """Runs the model on one batch, forwards within `hooks`, and backwards.

        Raises:
            OptionError: no output depends on the weights or on the inputs by a derivative.
        """
        leaves: list[Tensor] = []

        def entering(leaf: Any) -> Any:
            """Returns an argument as one by which there is a derivative, and that may be written."""
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf
            leaves.append(_leaf(leaf))
            return leaves[-1].clone()

        with _differentiable(model):
            args, kwargs = tree_map(entering, (inputs.args, dict(inputs.kwargs)))
            watch = OutputWatch(model)
            watch.before(args, kwargs)
            with hooks:
                returned = torch.func.functional_call(model, self._parameters, args, kwargs)
            # Recurrent layers keep their parameters in a list too, which are others meanwhile: what is left there is no output.
            left = [leaf for leaf in watch.after(args, kwargs, returned) if leaf.returned]
            held = chosen(left, self._outputs)
            tensors = [leaf.value for leaf, hit in zip(left, held, strict=True) if hit and leaf.kind == "tensor"]
            self._backward([one for one in tensors if one.is_floating_point()], leaves)

    def _backward(self, outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
        """Adds up the squared derivatives of some outputs; those by activations go to the hooks on these."""
        smooth = [one for one in outputs if one.requires_grad]
        if not smooth:
            raise OptionError(
                "derivatives=True: no output of the model depends on its weights or inputs by a derivative; it may run without "
                "gradients (torch.no_grad) or return whole numbers"
            )
        for number in range(self._passes):
            signs = [self._signs(one) for one in smooth]
            by = [*self._parameters.values(), *leaves]
            again = number + 1 < self._passes
            found = torch.autograd.grad(smooth, by, signs, retain_graph=again, allow_unused=True)
            for name, gradient in zip(self._parameters, found, strict=False):
                if name in self._wanted and gradient is not None:
                    square = gradient.detach().to(torch.float64).square().cpu()
                    self._sums[name] = self._sums[name] + square if name in self._sums else square
        self.entries += self._passes * sum(one.numel() for one in outputs)
        totals = [one.detach().to(torch.float64).square().sum() for one in outputs]
        self.squares += self._passes * sum(float(total) for total in totals)

    def _signs(self, output: Tensor) -> Tensor:
        """Returns 1 or -1 for each entry of an output."""
        drawn = torch.randint(0, 2, tuple(output.shape), generator=self._random, dtype=torch.int64, device="cpu")
        return (2 * drawn - 1).to(device=output.device, dtype=output.dtype)

    def of(self, name: str) -> Tensor | None:
        """Returns the mean squared derivative by a parameter, float64 on the CPU; None: none has reached it."""
        return self._sums[name] / self.entries if name in self._sums else None


def _leaf(tensor: Tensor) -> Tensor:
    """Returns a tensor with the same values, by which there is a derivative."""
    return (tensor.detach().clone() if tensor.is_inference() else tensor.detach()).requires_grad_()


@contextlib.contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Within it gradients are recorded; recurrent layers run without cuDNN, which has no backward pass in eval mode."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext():
        yield


def replaced(args: tuple[Any, ...], kwargs: Mapping[str, Any], others: Mapping[int, Tensor]) -> tuple[Any, dict[str, Any]]:
    """Returns arguments with other tensors in the place of some, by their ids; what lies deeper in them stays."""
    return tuple(others.get(id(one), one) for one in args), {name: others.get(id(one), one) for name, one in kwargs.items()}
