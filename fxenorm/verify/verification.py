"""`Plan.verify`, which checks the promise of a plan on the model itself: a rescaling leaves the outputs as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..analysis.groups import Group
from ..distributed.dtensors import is_distributed
from ..errors import RescaleError
from ..text.html import html_block, html_table
from ..text.table import Column
from ..trace.inputs import Inputs, is_meta
from .compared_runs import KINDS, Runs
from .down_casts import tolerance_of
from .subject import Subject

__all__ = ["Verification", "verify"]

_EXACT = tolerance_of(torch.float64)

_NOTED_SLOPE = 1e-8
"""A larger slope, relative to its addends, is no rounding: float64 rounds each addend by 1e-16, and forward loses some more."""

_ROUNDINGS = 100
"""A rescaling rounds the weights and all values behind them: up to this many times the change of one rounding of the weights."""


@dataclass(frozen=True)
class Verification:
    """The finding of `Plan.verify`; falsy where the outputs changed.

    Attributes:
        differences: by mode, over all sizes the largest change of an output entry, relative to the largest entry of its output.
        tolerances: by mode, the difference that rounding explains: 1e-10 where all is computed in float64, more where the model
            rounds to a coarser type (float32 1e-4, float16 0.02, bfloat16 0.1).
        at_fault: names of the groups whose variables change the outputs.
        dtypes: by mode, the type of the weights in the check: "float64", or "its own dtype" where the model runs in no other.
        checked: the inputs on which the model ran, in words: those given, and where there is one a second size of them.
        unchecked: sizes at which nothing was checked, with the reason.
        inexact_reasons: as `Plan.inexact_reasons`.
        amplified: by mode, the larger change under log-scales that are no powers of two, where the model amplifies their rounding
            so much; `differences` then holds that under powers of two, where nothing is rounded.

    Example:
        >>> import fxenorm
        >>> from torch import nn
        >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> result = plan.verify()
        >>> bool(result), sorted(result.differences), result.at_fault
        (True, ['eval', 'train'], ())
    """

    differences: Mapping[str, float]
    tolerances: Mapping[str, float]
    at_fault: tuple[str, ...] = ()
    dtypes: Mapping[str, str] = field(default_factory=dict)
    checked: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    inexact_reasons: tuple[str, ...] = ()
    amplified: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether the outputs stayed as they are in every mode, at every size."""
        return all(value <= self.tolerances[mode] for mode, value in self.differences.items())

    def _verdict(self) -> str:
        """Returns the finding in a few words; that of a failure does not begin with "verified"."""
        if self:
            return "verified: outputs unchanged"
        return "OUTPUTS CHANGED (the plan itself says that it is not exact)" if self.inexact_reasons else "OUTPUTS CHANGED"

    def __repr__(self) -> str:
        """Returns one line: the finding and the largest difference."""
        return f"<Verification: {self._verdict()}, largest difference {max(self.differences.values(), default=0.0):.2g}>"

    def __str__(self) -> str:
        """Returns one line a mode, the groups at fault, and the inputs that were checked."""
        lines = [self._verdict()]
        for mode, difference in self.differences.items():
            allowed = f"tolerance {self.tolerances[mode]:g}, {self.dtypes.get(mode, 'float64')}"
            lines.append(f"  {mode:5}  largest difference {difference:.2g} ({allowed})")
        return "\n".join([*lines, *(f"  {line}" for line in self._below())])

    def _below(self) -> list[str]:
        """Returns the groups at fault, and the inputs that were checked, in lines."""
        lines = [f"at fault: {', '.join(self.at_fault)}"] if self.at_fault else []
        lines += [
            f"{mode}: checked in powers of two; the model amplifies rounding: other log-scales change its outputs by {change:.2g}"
            for mode, change in self.amplified.items()
        ]
        lines += [f"checked on {inputs}" for inputs in self.checked]
        lines += [f"not checked: {sentence}" for sentence in self.unchecked]
        return [*lines, *(f"inexact: {reason}" for reason in self.inexact_reasons)]

    def _repr_html_(self) -> str:
        """Returns the text as a table for notebooks."""
        cells = [
            [mode, f"{difference:.2g}", f"{self.tolerances[mode]:g}", self.dtypes.get(mode, "float64")]
            for mode, difference in self.differences.items()
        ]
        columns = [Column("mode"), Column("largest difference", "right"), Column("tolerance", "right"), Column("dtype")]
        return html_block(self._verdict(), [html_table(columns, cells), self._below()])


def verify(subject: Subject, inputs: Inputs, *, seed: int = 0) -> Verification:
    """Checks a plan on its model, in every mode that it covers and at a second size of the inputs where one is known.

    All variables at once, drawn from uniform(-1, 1), must leave the outputs as they are. Where they do not, and one rounding of
    the weights changes the outputs as much, powers of two decide, which round nothing. The groups at fault are searched by the
    slopes of one backward pass where these are true derivatives, else by rescaling groups by halves.

    Args:
        subject: the plan's analysis, its model, and how a copy is rescaled.
        inputs: the arguments of forward.
        seed: of the log-scales, and of the model's own randomness, the same in both runs.

    Raises:
        RescaleError: the model is on the meta device, spread over processes, or does not run on the inputs.
    """
    if any(is_distributed(tensor) for tensor in subject.model.parameters()):
        raise RescaleError(
            "the model is spread over processes, and a check needs whole copies of it: verify a plan of the unsharded model, "
            "which has the same fingerprint"
        )
    if is_meta(subject.model):
        raise RescaleError("a model on the meta device has no values to verify: bind the plan to one that has (plan.bind)")
    generator = torch.Generator().manual_seed(seed)
    log_scales = 2 * torch.rand(subject.num_scales, generator=generator, dtype=torch.float64, device="cpu") - 1
    differences: dict[str, float] = {}
    tolerances: dict[str, float] = {}
    dtypes: dict[str, str] = {}
    amplified: dict[str, float] = {}
    guilty: dict[str, None] = {}
    checked: dict[str, None] = {}
    unchecked: dict[str, None] = {}
    for mode in subject.symmetry.modes:
        for runs in _all_runs(subject, inputs, mode, seed, checked, unchecked):
            scales, difference = log_scales, runs.difference(log_scales)
            if not difference <= runs.tolerance:
                scales = _told_from_rounding(runs, log_scales)
                if scales is not log_scales:
                    amplified[mode] = max(difference, amplified.get(mode, 0.0))
                    difference = runs.difference(scales)
            if not difference <= runs.tolerance:
                guilty.update(dict.fromkeys(group.name for group in _at_fault(subject, runs, scales)))
            # Of several sizes that one counts which comes out worst against its own tolerance.
            if mode not in differences or difference / runs.tolerance > differences[mode] / tolerances[mode]:
                differences[mode], tolerances[mode], dtypes[mode] = difference, runs.tolerance, runs.dtype
    return Verification(
        differences,
        tolerances,
        tuple(guilty),
        dtypes,
        tuple(checked),
        tuple(unchecked),
        subject.symmetry.inexact_reasons,
        amplified,
    )


def _told_from_rounding(runs: Runs, log_scales: Tensor) -> Tensor:
    """Returns log-scales under which a change of the outputs is no rounding, given that they change by more than the tolerance.

    Where the model amplifies rounding beyond the tolerance, powers of two round nothing. What rounding does not explain is a
    fault at the given log-scales, whatever powers of two do.
    """
    explained = _ROUNDINGS * runs.difference_of_one_rounding()
    if explained <= runs.tolerance:
        return log_scales
    powers = (2 * log_scales).round() * math.log(2)
    if runs.difference(log_scales) > explained and runs.difference(powers) <= runs.tolerance:
        return log_scales
    return powers


# ---------------------------------------------------------------- runs


def _all_runs(
    subject: Subject, inputs: Inputs, mode: str, seed: int, checked: dict[str, None], unchecked: dict[str, None]
) -> Iterator[Runs]:
    """Yields runs on the given inputs, and at a second size; notes the inputs that were checked and those that were not."""
    runs = _first_that_runs(subject, inputs, mode, seed)
    checked[str(inputs)] = None
    yield runs
    others = list(_other_sizes(subject, inputs))
    if not others:
        unchecked["a second size: the model was analysed at one size only, or on inputs of other axes"] = None
    refusal = None
    for other in others:
        try:
            again = type(runs)(subject, other, mode, seed)
        except RescaleError as error:
            refusal = refusal or f"{other}: {error}"
            continue
        checked[str(other)] = None
        yield again
        return
    if refusal is not None:
        unchecked[refusal] = None


def _first_that_runs(subject: Subject, inputs: Inputs, mode: str, seed: int) -> Runs:
    """Returns runs of the first kind that the model allows.

    Raises:
        RescaleError: it allows none; the reason is that of the first.
    """
    refusals = []
    for kind in KINDS:
        try:
            return kind(subject, inputs, mode, seed)
        except RescaleError as error:
            refusals.append(error)
    raise refusals[0]


def _other_sizes(subject: Subject, inputs: Inputs) -> Iterator[Inputs]:
    """Yields the inputs at the analysis's second size, and with the same axes grown, which keeps indices in them valid."""
    known, tensors = subject.symmetry.second_sizes, inputs.tensors()
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if [len(axes) for axes in known] != [len(shape) for shape in shapes] or any(t.layout is not torch.strided for t in tensors):
        return
    grown: dict[tuple[int, int, int], int] = {}
    for axes, shape in zip(known, shapes, strict=True):
        for (first, second), size in zip(axes, shape, strict=True):
            if first != second:
                grown.setdefault((first, second, size), (2 + len(grown)) * size)
    seconds = {key: key[1] if key[1] != key[2] else key[0] for key in grown}
    for choice in (seconds, grown):
        sizes = [
            tuple(choice.get((*axis, size), size) for axis, size in zip(axes, shape, strict=True))
            for axes, shape in zip(known, shapes, strict=True)
        ]
        if sizes != shapes and all(size for shape in sizes for size in shape):
            yield inputs.resized(sizes)


# ---------------------------------------------------------------- the groups at fault


def _at_fault(subject: Subject, runs: Runs, log_scales: Tensor) -> list[Group]:
    """Returns the groups that change the outputs, given that all of them together do."""
    known = _by_slopes(subject, runs) if runs.tolerance == _EXACT else []
    names = {group.name for group in known}
    rest = [group for group in subject.analysis.groups if group.name not in names]
    return known + _bisect(runs, log_scales, rest)


def _by_slopes(subject: Subject, runs: Runs) -> list[Group]:
    """Returns the groups that have a slope; none where the slopes are no derivatives, as in models that detach."""
    found = runs.slopes()
    if found is None or not subject.num_scales:
        return []
    total, size = found
    wrong = total.abs() > _NOTED_SLOPE * (size + size.amax() * 1e-12)
    if not wrong.any():
        return []
    step = 1e-5
    along = wrong.double()
    measured = (runs.loss(step * along) - runs.loss(-step * along)) / (2 * step)
    if not abs(measured - float(total @ along)) <= 1e-4 * float(total.abs() @ along):
        return []
    return [group for group in subject.analysis.groups if bool(wrong[group.variables.start : group.variables.stop].any())]


def _bisect(runs: Runs, log_scales: Tensor, groups: Sequence[Group]) -> list[Group]:
    """Returns the groups that change the outputs when they alone are rescaled."""
    if not groups:
        return []
    alone = torch.zeros_like(log_scales)
    for group in groups:
        alone[group.variables.start : group.variables.stop] = log_scales[group.variables.start : group.variables.stop]
    if runs.difference(alone) <= runs.tolerance:
        return []
    if len(groups) == 1:
        return list(groups)
    half = len(groups) // 2
    found = _bisect(runs, log_scales, groups[:half]) + _bisect(runs, log_scales, groups[half:])
    # Two halves that are harmless apart are at fault together.
    return found or list(groups)
