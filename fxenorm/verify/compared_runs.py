"""Runs a plan's model before and after a rescaling and compares the outputs; the model is left as it was."""

from __future__ import annotations

import abc
import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import RescaleError
from ..trace.inputs import Inputs
from ..trace.modes import set_mode
from ..trace.outputs import OutputWatch
from ..trace.preserve import prepared
from ..trace.reachable import Leaf
from ..weights.tensors import named_tensors, tie_again
from .compared import compared_leaves, numbers_of
from .down_casts import DownCasts, coarsest, tolerance_of
from .other_memory import shell_of, shown
from .subject import Subject

__all__ = ["KINDS", "Runs"]

_Change = Callable[[nn.Module], None]
"""Writes other values into the tensors of a module that has the model's names."""


class Runs(abc.ABC):
    """Runs of a plan's model in one mode on one set of inputs.

    Args:
        subject: the plan's analysis, its model, and how a copy is rescaled.
        inputs: the arguments of forward.
        mode: "eval" or "train".
        seed: of the model's own randomness, the same in every run.

    Attributes:
        tolerance: the largest relative difference that rounding explains, by the coarsest type that the run rounds to.

    Raises:
        RescaleError: the model does not run in this way.
    """

    dtype: str
    """The type of the weights, in words."""

    def __init__(self, subject: Subject, inputs: Inputs, mode: str, seed: int) -> None:
        self._subject, self._mode, self._seed = subject, mode, seed
        self._inputs = inputs.map(self._as_argument)
        casts = DownCasts()
        first = self._numbers(casts=casts)
        # A time of day or a count of calls is no function of the weights.
        again = {path: value for path, _, value in (self._numbers() if any(kind != "tensor" for _, kind, _ in first) else [])}
        self._unsteady = frozenset(path for path, kind, value in first if kind != "tensor" and not _alike(value, again.get(path)))
        self._expected = self._steady(first)
        self.tolerance = tolerance_of(coarsest({*casts.found, *self._own_types()}))

    # ---------------------------------------------------------------- differences of the kinds

    @abc.abstractmethod
    def _model(self, change: _Change | None) -> contextlib.AbstractContextManager[nn.Module]:
        """Gives the model in the mode, with tensors that were changed, for the time of a ``with`` block."""

    def _as_argument(self, tensor: Tensor) -> Tensor:
        """Returns an argument in the type of the weights."""
        return _in_float64(tensor.detach())

    def _own_types(self) -> set[torch.dtype]:
        """Returns the types that the weights are rounded to before a run begins."""
        return {torch.float64}

    # ---------------------------------------------------------------- runs

    def _leaves(self, model: nn.Module) -> list[Leaf]:
        """Calls the model once; returns the leaves that the plan holds."""
        devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None})
        with torch.random.fork_rng(devices):
            torch.manual_seed(self._seed)
            try:
                # Tensors are cloned, since a model may write to its inputs.
                arguments = self._inputs.map(torch.clone)
                watch = OutputWatch(model)
                watch.before(arguments.args, arguments.kwargs)
                outputs = self._called(model, arguments)
                leaves = watch.after(arguments.args, arguments.kwargs, outputs)
            except Exception as error:  # a model may raise anything
                raise RescaleError(
                    f"the model does not run in {self.dtype} on the inputs {self._inputs} in {self._mode} mode: "
                    f"{type(error).__name__}: {error}. Pass inputs that it runs on: plan.verify(inputs)"
                ) from error
        held = compared_leaves(self._subject, leaves)
        if self._subject.analysis.options.outputs is None:
            held += [Leaf(f"inputs.{position}", tensor, "tensor") for position, tensor in enumerate(arguments.tensors())]
        return held

    def _called(self, model: nn.Module, arguments: Inputs) -> Any:
        """Returns the model's outputs; runs with gradients where it differentiates inside forward."""
        try:
            return model(*arguments.args, **arguments.kwargs)
        except RuntimeError as error:
            if torch.is_grad_enabled() or "does not require grad" not in str(error):
                raise
        arguments = self._inputs.map(torch.clone)
        with torch.enable_grad():
            outputs = model(*arguments.args, **arguments.kwargs)
        return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs)

    def _numbers(self, change: _Change | None = None, casts: DownCasts | None = None) -> list[tuple[str, str, Tensor]]:
        """Returns (path, kind, values in float64) of the held leaves; copied, for an output may be a part of the model."""
        with self._model(change) as model, torch.no_grad(), casts or contextlib.nullcontext():
            return [(leaf.path, leaf.kind, numbers_of(leaf).double().clone()) for leaf in self._leaves(model)]

    def _steady(self, numbers: Sequence[tuple[str, str, Tensor]]) -> list[Tensor]:
        """Returns the values without those in which two equal runs differ."""
        return [value for path, kind, value in numbers if kind == "tensor" or path not in self._unsteady]

    def difference(self, log_scales: Tensor) -> float:
        """Returns the largest change of an output under a rescaling, as `_difference`."""
        return self._difference(lambda module: self._subject.rescale(module, log_scales))

    def difference_of_one_rounding(self) -> float:
        """Returns the largest change of an output where each number that the plan moves goes up or down by its type's spacing."""
        return self._difference(self._round_once)

    def _round_once(self, module: nn.Module) -> None:
        """Multiplies each entry of the tensors that the plan moves by 1 plus or minus the spacing of its type."""
        generator = torch.Generator().manual_seed(self._seed + 2)
        tensors = named_tensors(module)
        with torch.no_grad():
            for name in self._subject.analysis.exponents:
                tensor = tensors[name]
                up = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8, device="cpu").to(tensor.device)
                spacing = torch.finfo(tensor.dtype).eps
                tensor.mul_(1 + spacing * (2 * up - 1).to(tensor.real.dtype if tensor.is_complex() else tensor.dtype))

    def _difference(self, change: _Change) -> float:
        """Returns the largest change of an output, relative to its largest entry; infinite where its shape changes."""
        found = self._steady(self._numbers(change))
        if [t.shape for t in found] != [t.shape for t in self._expected]:
            return float("inf")
        worst = 0.0
        for before, after in zip(self._expected, found, strict=True):
            if not before.numel() or torch.equal(before, after):
                continue
            # Entries that are not finite must stay what they are.
            finite = before.isfinite()
            if not torch.equal(finite, after.isfinite()):
                return float("inf")
            moved = (before - after)[finite].abs().amax() if finite.any() else before.new_zeros(())
            size = before[finite].abs().amax() if finite.any() else before.new_ones(())
            worst = max(worst, float(moved / size if size > 0 else moved))
        return worst

    # ---------------------------------------------------------------- one backward pass

    def slopes(self) -> tuple[Tensor, Tensor] | None:
        """Returns, by variable, the slope of a random function of the outputs, and the sum of its addends' sizes.

        The slope along variable k is the sum of a_ek (o + w_e) dL/dw_e over all entries e. None: the model has no derivative.
        """
        with self._model(None) as model, torch.enable_grad():
            tensors = named_tensors(model)
            moved = {name: tensors[name] for name in self._subject.analysis.exponents}
            try:
                for tensor in moved.values():
                    tensor.requires_grad_(True)
                loss = self._loss([numbers_of(leaf) for leaf in self._leaves(model) if leaf.kind == "tensor"])
                gradients = torch.autograd.grad(loss, list(moved.values()), allow_unused=True)
            except (RuntimeError, RescaleError):
                # In-place writes, custom functions or what has no gradient at all forbid a backward pass.
                return None
            return self._along_variables(moved, gradients)

    def loss(self, log_scales: Tensor) -> float:
        """Returns the function of the outputs that `slopes` differentiates, after a rescaling."""
        numbers = self._numbers(lambda module: self._subject.rescale(module, log_scales))
        return float(self._loss([value for _, kind, value in numbers if kind == "tensor"]))

    def _loss(self, outputs: Sequence[Tensor]) -> Tensor:
        """Returns a random linear function of the tensors among the outputs, 0-d."""
        generator = torch.Generator().manual_seed(self._seed + 1)
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        for tensor in outputs:
            draw = torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu").to(tensor.device)
            total = total + (tensor.double() * draw).nan_to_num(0.0, 0.0, 0.0).sum().cpu()
        return total

    def _along_variables(self, moved: dict[str, Tensor], gradients: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Returns the entries' derivatives summed along the variables, with signs and without, each (num_scales,)."""
        count = self._subject.num_scales
        total = torch.zeros(count + 1, dtype=torch.float64, device="cpu")
        size = total.clone()
        for (name, terms), gradient in zip(self._subject.analysis.exponents.items(), gradients, strict=True):
            if gradient is None:
                continue
            share = ((self._subject.symmetry.offsets.get(name, 0.0) + moved[name].detach()) * gradient).double().cpu()
            for coefficient, ids in terms:
                places = torch.where(ids < 0, count, ids).expand(share.shape).reshape(-1)
                total.index_add_(0, places, coefficient * share.reshape(-1))
                size.index_add_(0, places, abs(coefficient) * share.reshape(-1).abs())
        return total[:-1], size[:-1]


class _InPlace(Runs):
    """Runs the model itself: whatever holds its tensors, under whatever name, sees the rescaled ones.

    Each tensor of the model shows other memory for the time of a run, and is given its own memory back afterwards: nothing is
    ever written into that.
    """

    dtype = "float64"

    @contextlib.contextmanager
    def _model(self, change: _Change | None) -> Iterator[nn.Module]:
        """Gives the model with other memory behind its tensors; at exit all that forward can reach is as it was."""
        model = self._subject.model
        shell = shell_of(model, self._subject.symmetry.aliases, self._converted)
        if change is not None:
            change(shell)
        with prepared(model, self._mode), shown(named_tensors(model), named_tensors(shell)):
            yield model

    def _converted(self, tensor: Tensor) -> Tensor:
        """Returns a copy of a tensor in the type that is computed in."""
        return _in_float64(tensor.detach()).clone()


class _InPlaceAsItIs(_InPlace):
    """Runs the model itself in its own types: for models that do not run in float64."""

    dtype = "its own dtype"

    def _converted(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone()

    def _as_argument(self, tensor: Tensor) -> Tensor:
        return tensor.detach()

    def _own_types(self) -> set[torch.dtype]:
        return {tensor.dtype for tensor in self._subject.model.parameters()}


class _OnCopy(Runs):
    """Runs float64 copies of the model: for tensors whose memory cannot be exchanged."""

    dtype = "float64"

    @contextlib.contextmanager
    def _model(self, change: _Change | None) -> Iterator[nn.Module]:
        """Gives a changed float64 copy in the mode."""
        try:
            model = copy.deepcopy(self._subject.model).double()
            tie_again(model, self._subject.symmetry.aliases)
            set_mode(model, self._mode)
        except Exception as error:  # modules may hold anything, and refuse anything
            raise RescaleError(f"the model cannot be copied to float64 for a check: {type(error).__name__}: {error}") from error
        if change is not None:
            change(model)
        yield model


KINDS: tuple[type[Runs], ...] = (_InPlace, _InPlaceAsItIs, _OnCopy)
"""The ways to run a model, the one that says most first; the next is for models that do not run like that."""


def _in_float64(tensor: Tensor) -> Tensor:
    """Returns a floating-point or complex tensor in 64 bits a number; others as they are."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def _alike(value: Tensor, other: Tensor | None) -> bool:
    """Whether two values are the same bit for bit; NaN is like NaN."""
    return other is not None and value.shape == other.shape and torch.equal(value.nan_to_num(), other.nan_to_num())
