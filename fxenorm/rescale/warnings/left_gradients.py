"""Gradients that no optimizer step has used, while `step` moves the weights that they belong to: gradient accumulation."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...distributed.dtensors import is_distributed, local_part
from ...optim.wrappers import held_by
from ...weights.weights import Weights

__all__ = ["LeftGradients"]


class LeftGradients:
    """Notices that `step` was called between two backward passes of one optimizer step; asks no device for a value.

    Whether an optimizer has stepped is told by how often its parameters and its state were written to, and where that does
    not show, as with fused kernels and classes of users, by a hook of its step. One parameter stands for all of an optimizer.

    A gradient that is there without a step is no proof: a GradScaler may have skipped the step, and the gradient is thrown
    away. It then holds numbers that are not finite, which a GPU is asked for without waiting, so its answer comes at a later
    call. Where that cannot be asked, or another optimizer did step, the next backward pass is the proof: it adds to the gradient
    that was there when the weights moved, instead of making a new one.
    """

    def __init__(self) -> None:
        self._last: weakref.WeakKeyDictionary[Optimizer, _Seen] = weakref.WeakKeyDictionary()
        self._now: list[tuple[Optimizer, _Seen]] = []
        self._found = False
        self._asked: list[_Question] = []

    def are_left(self, optimizers: Sequence[Optimizer], weights: Weights, *, follow: bool) -> bool:
        """Whether this is so now; once it was, it is not looked for any more.

        Args:
            optimizers: given to `step`.
            weights: of the model, before the weights move.
            follow: whether the gradients move along.
        """
        if self._found:
            return False
        optimizers = [one for one in optimizers if held_by(one) is None]
        if any(question.answer() for question in self._asked):
            return self._give_up()
        self._asked = [question for question in self._asked if question.answer() is None]
        known = [(optimizer, self._last.get(optimizer)) for optimizer in optimizers]
        self._now = [(optimizer, _seen(optimizer, weights, before)) for optimizer, before in known]
        pairs = [(before, now) for (_, before), (_, now) in zip(known, self._now, strict=True)]
        stepped = [before is not None and now.stepped_since(before) for before, now in pairs]
        for optimizer, (before, now), moved in zip(optimizers, pairs, stepped, strict=True):
            gradient = now.gradient
            if before is None or now.parameter is not before.parameter or gradient is None:
                continue
            same = before.gradient is gradient
            changed = not same or now.written != before.written
            now.waits = not moved and not follow and (before.waits or changed)
            if follow:
                continue
            if before.waits and same and _added_once(gradient, before, now) and before.is_worth_keeping:
                return self._give_up()
            if now.waits and changed and _shows(optimizer, gradient):
                now.question = _Question(optimizer, gradient.device)
                if not any(stepped):
                    self._asked.append(now.question)
        return self._give_up() if any(question.answer() for question in self._asked) else False

    def _give_up(self) -> bool:
        """Returns True, and looks for nothing from here on."""
        self._found, self._asked, self._now = True, [], []
        self._last.clear()
        return True

    def note(self) -> None:
        """Remembers the present, once the weights have moved."""
        for optimizer, now in self._now:
            now.look_again(optimizer)
            self._last[optimizer] = now
        self._now = []


@dataclass(eq=False)
class _Seen:
    """One optimizer as it was at one call.

    Attributes:
        weights: of the model.
        parameters: those of the optimizer that move.
        parameter: one of them, with a gradient if any has one.
        steps: counts its steps, where nothing else tells of them.
        marks: how often its parameter and its state were written to.
        reference: to the gradient.
        written: how often that was written to, and this process's part of it.
        waits: whether it was there without a step when the weights moved.
        question: whether it then was worth keeping.
    """

    weights: weakref.ref[Weights]
    parameters: list[Tensor]
    parameter: Tensor | None
    steps: _Steps | None
    marks: tuple[int, ...] = ()
    reference: weakref.ref[Tensor] | None = None
    written: tuple[int, int] = (0, 0)
    waits: bool = False
    question: _Question | None = None

    @property
    def gradient(self) -> Tensor | None:
        """The gradient that was there, if it still exists."""
        return None if self.reference is None else self.reference()

    @property
    def is_worth_keeping(self) -> bool:
        """Whether the gradient was, as far as is known."""
        return self.question is None or self.question.answer() is not False

    def stepped_since(self, before: _Seen) -> bool:
        """Whether the optimizer has stepped; a parameter that was not looked at before counts as stepped."""
        return self.parameter is not before.parameter or self.marks != before.marks

    def look_again(self, optimizer: Optimizer) -> None:
        """Counts the writes once more."""
        if self.parameter is None:
            return
        state = optimizer.state.get(self.parameter)
        held = state.values() if isinstance(state, dict) else ()
        counts = [sum(_writes(value)) for value in (self.parameter, *held) if isinstance(value, Tensor)]
        self.marks = (*counts, 0 if self.steps is None else self.steps.count)
        gradient = self.parameter.grad
        self.reference = None if gradient is None else weakref.ref(gradient)
        self.written = (0, 0) if gradient is None else _writes(gradient)


class _Steps:
    """Counts an optimizer's steps from its own hook, as long as this object lives."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.count = 0
        itself = weakref.ref(self)

        def after(*_: object) -> None:
            counter = itself()
            if counter is not None:
                counter.count += 1

        hook: Any = torch.compiler.disable(after)  # type: ignore[no-untyped-call]
        weakref.finalize(self, optimizer.register_step_post_hook(hook).remove).atexit = False


class _Question:
    """Whether gradients are worth keeping: all finite, and not all zero.

    Args:
        optimizer: whose.
        device: those on this device are looked at.
    """

    @torch.no_grad()
    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        held = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        parts = [one._values() if one.layout == torch.sparse_coo else one for one in held if one.device == device]
        # A sum of squares could overflow; the largest entry is NaN where any is.
        largest = torch.stack([part.abs().amax().to(torch.float32) for part in parts if part.numel()]).amax()
        self._largest, self._event = largest, None
        if device.type == "cuda":
            self._largest = torch.empty((), dtype=largest.dtype, device="cpu", pin_memory=True)
            self._largest.copy_(largest, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def answer(self) -> bool | None:
        """None as long as the device has not answered."""
        if self._event is not None and not self._event.query():  # type: ignore[no-untyped-call]
            return None
        return 0 < float(self._largest) < float("inf")


def _seen(optimizer: Optimizer, weights: Weights, before: _Seen | None) -> _Seen:
    """An optimizer as it is now."""
    if before is not None and before.weights() is weights:
        parameters = before.parameters
    else:
        moved = weights.moved_ids()
        parameters = [one for group in optimizer.param_groups for one in group["params"] if id(one) in moved]
    known = [] if before is None or before.parameter is None else [before.parameter]
    parameter = next((one for one in parameters if one.grad is not None), next(iter([*known, *parameters]), None))
    if before is not None:
        steps = before.steps
    else:
        steps = None if _tells(optimizer) else _Steps(optimizer)
    made = _Seen(weakref.ref(weights), parameters, parameter, steps)
    made.look_again(optimizer)
    return made


def _tells(optimizer: Optimizer) -> bool:
    """Whether an optimizer's step counts as a write to its parameters."""
    step = inspect.unwrap(type(optimizer).step)
    return step.__module__.startswith("torch.optim.") and not any(group.get("fused") for group in optimizer.param_groups)


def _writes(tensor: Tensor) -> tuple[int, int]:
    """Returns the counts of writes: to a tensor, and to this process's part of it where that is another tensor."""
    part = local_part(tensor)
    if part.is_inference():
        return 0, 0
    return tensor._version, part._version if part is not tensor else 0


def _added_once(gradient: Tensor, before: _Seen, now: _Seen) -> bool:
    """Whether one backward pass added to a gradient, and nothing set it to zero."""
    whole, part = (new - old for new, old in zip(now.written, before.written, strict=True))
    # FSDP2 adds to this process's part, several writes at once; zero_grad writes to the whole.
    return whole == 0 and part > 0 if is_distributed(gradient) else whole == 1


def _shows(optimizer: Optimizer, gradient: Tensor) -> bool:
    """Whether values may be asked for, and a step would have been seen: replays of a captured step show nothing."""
    captured = any(group.get("capturable") for group in optimizer.param_groups)
    answers = gradient.device.type == "cpu" or (gradient.device.type == "cuda" and torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    return answers and not is_distributed(gradient) and not captured
