"""The outputs of a model with rounded weights and activations, and how far they are from those of the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..bits import Bits
from ..errors import ExampleInputsError
from ..trace.inputs import Inputs
from ..trace.outputs import OutputWatch
from ..trace.preserve import RunGuard, prepared
from ..trace.reachable import Leaf
from .rounded_run import Ranges, RoundedRun

__all__ = ["Held", "observed_ranges", "relative_error", "rounded_outputs"]

Held = Callable[[Sequence[Leaf]], Sequence[Leaf]]
"""Picks the outputs that count."""


def observed_ranges(model: nn.Module, batches: Sequence[Inputs], held: Held) -> tuple[Ranges, list[list[Tensor]], list[str]]:
    """Returns the ranges of all inputs of layers over some batches, the outputs of each, and the names of the layers.

    Args:
        model: the module, which is left as it was.
        batches: the arguments of forward.
        held: picks the outputs.

    Raises:
        ExampleInputsError: the model does not run on a batch.
    """
    run = RoundedRun()
    outputs = [_outputs(model, batch, held, run) for batch in batches]
    return run.ranges, outputs, list(run.layers)


def rounded_outputs(model: nn.Module, inputs: Inputs, held: Held, bits: Bits, ranges: Ranges) -> list[Tensor]:
    """Returns the outputs of a model, rounded to some bits by observed ranges, which is left as it was.

    Raises:
        ExampleInputsError: the model does not run on the inputs.
    """
    return _outputs(model, inputs, held, RoundedRun(bits, ranges))


def _outputs(model: nn.Module, inputs: Inputs, held: Held, run: RoundedRun) -> list[Tensor]:
    """Returns the floating-point outputs of one run in eval mode, in float64; what forward writes is undone."""
    copies = {id(tensor): tensor.detach().clone() for tensor in inputs.tensors()}
    arguments = inputs.map(lambda tensor: copies[id(tensor)])  # one that is given twice stays one
    guard = RunGuard([*model.parameters(), *model.buffers()])
    with prepared(model, "eval"), torch.no_grad():
        try:
            watch = OutputWatch(model)
            watch.before(arguments.args, arguments.kwargs)
            with guard, run.on(model):
                outputs = model(*arguments.args, **arguments.kwargs)
            leaves = held(watch.after(arguments.args, arguments.kwargs, outputs))
            tensors = [leaf.value for leaf in leaves if leaf.kind == "tensor" and leaf.value.is_floating_point()]
            return [tensor.to_dense().to(torch.float64, copy=True) for tensor in tensors]
        except Exception as error:  # a model may raise anything
            raise ExampleInputsError(
                f"the model does not run on inputs {inputs} with layers observed ({type(error).__name__}: {error})"
            ) from error
        finally:
            guard.restore()


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Returns the root of the squared differences over that of the squares expected; infinite where shapes differ."""
    if [one.shape for one in found] != [one.shape for one in expected]:
        return float("inf")
    wrong = sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True))
    size = sum(float(one.square().sum()) for one in expected)
    if size == 0.0:
        return 0.0 if wrong == 0.0 else float("inf")
    return float((wrong / size) ** 0.5)
