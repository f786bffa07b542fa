"""`Plan.verify`: the promise of a plan, checked on the model itself: a rescaling leaves the outputs as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..distributed.dtensors import is_distributed
from ..errors import RescaleError
from ..trace.inputs import Inputs, is_meta
from ..trace.modes import set_mode
from ..trace.outputs import OutputWatch
from ..trace.reachable import Leaf
from ..trace.unwrap import unwrap
from .compared import compared_leaves, numbers_of
from .tensors import tie_again

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["Verification", "verify"]

TOLERANCE = 1e-10
"""Largest relative difference of outputs that float64 rounding explains."""


@dataclass(frozen=True)
class Verification:
    """What `Plan.verify` found; falsy where the outputs changed.

    Attributes:
        differences: by mode, the largest change of an output entry, relative to the largest entry of its output.
        slopes: by mode, over all variables the largest |d loss / d variable|, relative to the size of its addends; None where
            the model cannot be differentiated.
        at_fault: names of the groups whose variables change the outputs.
        tolerance: what counts as unchanged.
        inexact_reasons: as `Plan.inexact_reasons`.
    """

    differences: Mapping[str, float]
    slopes: Mapping[str, float | None]
    at_fault: tuple[str, ...]
    tolerance: float = TOLERANCE
    inexact_reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether the outputs stayed as they are in every mode."""
        return not self.at_fault and all(value <= self.tolerance for value in self.differences.values())

    def __str__(self) -> str:
        """One line a mode, and the groups at fault."""
        lines = [f"verified: {'outputs unchanged' if self else 'OUTPUTS CHANGED'} (tolerance {self.tolerance:g}, float64)"]
        for mode, difference in self.differences.items():
            slope = self.slopes.get(mode)
            lines.append(f"  {mode:5}  largest difference {difference:.2g}" + ("" if slope is None else f", slope {slope:.2g}"))
        if self.at_fault:
            lines.append("  at fault: " + ", ".join(self.at_fault))
        lines += [f"  inexact: {reason}" for reason in self.inexact_reasons]
        return "\n".join(lines)


def verify(plan: Plan, inputs: Inputs, *, seed: int = 0) -> Verification:
    """Checks a plan in float64 on copies of its model, in every mode that it covers.

    Two checks a mode: all variables at once drawn from uniform(-1, 1) must leave the outputs as they are, and by one backward
    pass the slope of a random function of the outputs along every variable must vanish. The second names the variables; where
    it is silent though the first fails (a jump), groups are rescaled by halves until the guilty ones are found.

    Args:
        plan: the plan.
        inputs: the arguments of forward.
        seed: of the log-scales, and of the model's own randomness, the same in both runs.

    Raises:
        RescaleError: the model is on the meta device, spread over processes, or cannot be copied or run in float64.
    """
    if any(is_distributed(tensor) for tensor in plan.model.parameters()):
        raise RescaleError(
            "the model is spread over processes, and a check needs whole copies of it: verify a plan of the unsharded model, "
            "which has the same fingerprint"
        )
    if is_meta(plan.model):
        raise RescaleError("a model on the meta device has no values to verify: bind the plan to one that has (plan.bind)")
    generator = torch.Generator().manual_seed(seed)
    log_scales = 2 * torch.rand(plan.num_scales, generator=generator, dtype=torch.float64, device="cpu") - 1
    differences: dict[str, float] = {}
    slopes: dict[str, float | None] = {}
    guilty: dict[str, None] = {}
    for mode in plan.modes:
        runner = _Runner(plan, inputs, mode, seed)
        differences[mode] = runner.difference(log_scales)
        slope = runner.slopes()
        slopes[mode] = None if slope is None else float(slope.amax()) if slope.numel() else 0.0
        wrong = [] if slope is None else _groups_of(plan, slope > 1e-8)
        if not wrong and not differences[mode] <= TOLERANCE:
            wrong = _bisect(runner.difference, log_scales, list(plan.groups))
        guilty.update(dict.fromkeys(wrong))
    return Verification(differences, slopes, tuple(guilty), TOLERANCE, plan.inexact_reasons)


class _Runner:
    """Runs float64 copies of a plan's model in one mode."""

    def __init__(self, plan: Plan, inputs: Inputs, mode: str, seed: int) -> None:
        self._plan, self._mode, self._seed = plan, mode, seed
        self._inputs = inputs.map(lambda t: t.detach().double() if t.is_floating_point() else t)
        self._unsteady: frozenset[str] = frozenset()
        with torch.no_grad():
            leaves = self._leaves(self._copy())
            if any(leaf.kind != "tensor" for leaf in leaves):
                # A time of day or a count of calls is no function of the weights.
                again = {leaf.path: numbers_of(leaf) for leaf in self._leaves(self._copy()) if leaf.kind != "tensor"}
                plain = [(leaf.path, numbers_of(leaf)) for leaf in leaves if leaf.kind != "tensor"]
                self._unsteady = frozenset(path for path, value in plain if not _alike(value, again.get(path)))
            self._expected = self._steady(leaves)

    def _copy(self) -> nn.Module:
        """A float64 copy in the mode."""
        try:
            model = copy.deepcopy(self._plan.model).double()
            tie_again(model, self._plan.symmetry.aliases)
            set_mode(model, self._mode)
            return model
        except (RuntimeError, TypeError, ValueError) as error:
            raise RescaleError(f"the model cannot be copied to float64 for a check: {error}") from error

    def _run(self, model: nn.Module) -> list[Tensor]:
        """The held outputs as tensors; the model's randomness is the same in every run."""
        return self._steady(self._leaves(model))

    def _steady(self, leaves: Sequence[Leaf]) -> list[Tensor]:
        """The leaves as tensors, without those that two equal runs give other values."""
        return [numbers_of(leaf) for leaf in leaves if leaf.kind == "tensor" or leaf.path not in self._unsteady]

    def _leaves(self, model: nn.Module) -> list[Leaf]:
        """What the plan holds of what leaves one call."""
        devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None})
        with torch.random.fork_rng(devices):
            torch.manual_seed(self._seed)
            try:
                # Tensors are cloned, since a model may write to its inputs.
                arguments = self._inputs.map(torch.clone)
                watch = OutputWatch(unwrap(model))
                watch.before(arguments.args, arguments.kwargs)
                outputs = self._called(model, arguments)
                leaves = watch.after(arguments.args, arguments.kwargs, outputs)
            except (RuntimeError, TypeError, ValueError) as error:
                raise RescaleError(
                    f"the model does not run in float64 on the inputs {self._inputs} in {self._mode} mode: {error}. "
                    "Pass inputs that it runs on: plan.verify(inputs)"
                ) from error
        held = compared_leaves(self._plan, leaves)
        if self._plan.options.outputs is None:
            held += [Leaf(f"inputs.{position}", tensor, "tensor") for position, tensor in enumerate(arguments.tensors())]
        return held

    def _called(self, model: nn.Module, arguments: Inputs) -> Any:
        """The model's outputs; with gradients where it differentiates inside forward."""
        try:
            return model(*arguments.args, **arguments.kwargs)
        except RuntimeError as error:
            if torch.is_grad_enabled() or "does not require grad" not in str(error):
                raise
        arguments = self._inputs.map(torch.clone)
        with torch.enable_grad():
            outputs = model(*arguments.args, **arguments.kwargs)
        return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs)

    def difference(self, log_scales: Tensor) -> float:
        """The largest relative change of an output under a rescaling; infinite where its shape changes."""
        model = self._copy()
        self._plan.bind(model).rescale(log_scales)
        with torch.no_grad():
            found = self._run(model)
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
            change = (before - after)[finite].abs().amax() if finite.any() else before.new_zeros(())
            size = before[finite].abs().amax() if finite.any() else before.new_ones(())
            worst = max(worst, float(change / size if size > 0 else change))
        return worst

    def slopes(self) -> Tensor | None:
        """(num_scales,) |sum of a_e (o + w_e) dL/dw_e| by variable, relative to the sum of |addends|; None: no derivative."""
        model = self._copy()
        tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        moved = {name: tensors[name] for name in self._plan.exponents}
        values = {name: tensor.detach().clone() for name, tensor in moved.items()}
        if not moved:
            return torch.zeros(0, dtype=torch.float64, device="cpu")
        for tensor in moved.values():
            tensor.requires_grad_(True)
        try:
            generator = torch.Generator().manual_seed(self._seed + 1)
            outputs = [t for t in self._run(model) if t.requires_grad]
            draws = (torch.randn(t.shape, generator=generator, dtype=t.dtype, device="cpu").to(t.device) for t in outputs)
            loss = sum((t * draw).sum() for t, draw in zip(outputs, draws, strict=True))
            if not isinstance(loss, Tensor):
                return torch.zeros(self._plan.num_scales, dtype=torch.float64, device="cpu")
            gradients = torch.autograd.grad(loss, list(moved.values()), allow_unused=True)
        except (RuntimeError, RescaleError):
            # In-place writes or custom functions may forbid a backward pass; the other check stands alone then.
            return None
        total = torch.zeros(self._plan.num_scales + 1, dtype=torch.float64, device="cpu")
        size = total.clone()
        for (name, terms), gradient in zip(self._plan.exponents.items(), gradients, strict=True):
            if gradient is None:
                continue
            share = ((self._plan.offsets.get(name, 0.0) + values[name]) * gradient).double().cpu()
            for coefficient, ids in terms:
                places = torch.where(ids < 0, self._plan.num_scales, ids).expand(share.shape).reshape(-1)
                total.index_add_(0, places, coefficient * share.reshape(-1))
                size.index_add_(0, places, abs(coefficient) * share.reshape(-1).abs())
        floor = size[:-1].amax() * 1e-12 if self._plan.num_scales else 0.0
        return total[:-1].abs() / (size[:-1] + floor).clamp(min=1e-300)


def _alike(value: Tensor, other: Tensor | None) -> bool:
    """Whether two values are the same bit for bit; NaN is like NaN."""
    return other is not None and value.shape == other.shape and torch.equal(value.nan_to_num(), other.nan_to_num())


def _groups_of(plan: Plan, mask: Tensor) -> list[str]:
    """Names of the groups in which any variable is set."""
    return [group.name for group in plan.groups if bool(mask[group.variables.start : group.variables.stop].any())]


def _bisect(difference: Callable[[Tensor], float], log_scales: Tensor, groups: Sequence[Any]) -> list[str]:
    """The groups that change the outputs when they alone are rescaled."""
    alone = torch.zeros_like(log_scales)
    for group in groups:
        alone[group.variables.start : group.variables.stop] = log_scales[group.variables.start : group.variables.stop]
    if difference(alone) <= TOLERANCE:
        return []
    if len(groups) == 1:
        return [groups[0].name]
    half = len(groups) // 2
    found = _bisect(difference, log_scales, groups[:half]) + _bisect(difference, log_scales, groups[half:])
    # Two halves that are harmless apart are at fault together.
    return found or [group.name for group in groups]
