"""`Plan.attach`: rescaling from the optimizer's own step hook, so that every trainer and wrapper that steps it works."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..analysis.held import FrozenChoice, check_frozen
from ..errors import BindError, FxenormError, OptimizerError, OptionError
from ..optim.state import OptimizerLike, StateChoice, check_choice, owned_by, unwrap_optimizers
from ..optim.wrappers import held_by
from ..text.describe import changed_options
from .agreeing import Looked
from .cycles import LOOKS_EVERY
from .nothing import say_if_nothing_moves
from .request import StepRequest
from .rescaler import Rescaler
from .step import step

__all__ = ["AttachOptions", "Attachment"]


@dataclass(frozen=True)
class AttachOptions:
    """The options of `Plan.attach`, unchecked; for their meaning see there.

    Attributes:
        every, start, stop, cycles, grads, state, agree_every, frozen, record: see `Plan.attach`.
    """

    every: int = 1
    start: int = 0
    stop: int | None = None
    cycles: int = 1
    grads: bool = False
    state: StateChoice = "reexpress"
    agree_every: int = 1
    frozen: FrozenChoice = "auto"
    record: int | None = None

    def check(self) -> None:
        """Raises an OptionError where an option is not valid."""
        for name in ("every", "start", "stop", "cycles", "agree_every", "record"):
            value, least = getattr(self, name), 0 if name in ("start", "stop") else 1
            if not ((value is None and name in ("stop", "record")) or (type(value) is int and value >= least)):
                raise OptionError(f"{name}={value!r} is not valid: expected an integer >= {least}")
        if type(self.grads) is not bool:
            raise OptionError(f"grads={self.grads!r} is not valid: expected True or False")
        check_choice(self.state)
        check_frozen(self.frozen)

    def words(self) -> tuple[str, ...]:
        """Returns the options in words that processes compare."""
        names = ("every", "start", "stop", "cycles", "agree_every", "grads", "state", "frozen", "record")
        return tuple(f"{name}={getattr(self, name)!r}" for name in names)


class Attachment:
    """The handle that `Plan.attach` returns; as a context manager, it is removed at the end of the block.

    A step counts when every optimizer that holds a moved parameter has stepped once more. Steps that a GradScaler skips do
    not count: it calls the hooks of fused optimizers all the same, but then says on the device whether it skipped, so from
    there on the count lives on the device too, and log-scales are multiplied by 0 or 1 there.

    Args:
        rescaler: what rescales.
        optimizer: one, a sequence, or a wrapper with ``.optimizer``.
        options: when and how it rescales.

    Example:
        >>> import fxenorm, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = fxenorm.analyze(model)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with plan.attach(optimizer, every=2) as handle:
        ...     print(handle)
        <fxenorm.Attachment to SGD: rescales after every 2 steps>
        >>> handle
        <fxenorm.Attachment to SGD: removed>
    """

    def __init__(self, rescaler: Rescaler, optimizer: OptimizerLike, options: AttachOptions) -> None:
        self._rescaler, self._options = rescaler, options
        rescaler.look_up_and_agree(("attach", *options.words()), lambda: self._look(optimizer), optimizer)
        self._followed = unwrap_optimizers(optimizer)
        self._optimizers = _hooked(self._followed)
        self._rounds = 0
        self._skipped: Tensor | None = None
        self._stepped: set[int] = set()
        # Of the round that is going on: False once a real step happened, else the product of the scaler's flags.
        self._idle: Tensor | bool = True
        # A compiled optimizer step would trace the hook too. Torch loads its compiler with the first optimizer, so this is free.
        hook: Any = torch.compiler.disable(self._after_step)  # type: ignore[no-untyped-call]
        self._hooks = [one.register_step_post_hook(hook) for one in self._optimizers]
        rescaler.attach_to(self._optimizers)

    def _look(self, optimizer: OptimizerLike) -> Looked:
        """Raises here what would go wrong in the hook; returns what is multiplied."""
        self._options.check()
        followed = unwrap_optimizers(optimizer)
        optimizers = _hooked(followed)
        if not optimizers:
            raise OptimizerError("attach needs an optimizer, or a sequence of them: there is no step to hook into otherwise")
        _refuse_steps_in_backward(optimizers)
        # A model that is frozen as a whole for now is looked at once it is trained.
        if not self._rests():
            say_if_nothing_moves(self._rescaler, "attach", self._options.frozen)
            return Looked(*self._rescaler.targets(followed, state=self._options.state, flags=self._options.frozen))
        weights = self._rescaler.open()
        return Looked(weights, weights.no_targets())

    def __repr__(self) -> str:
        """Returns one line: the optimizers and when it rescales; it waits for nothing."""
        names = ", ".join(type(optimizer).__name__ for optimizer in self._optimizers)
        every = "each step" if self._options.every == 1 else f"every {self._options.every} steps"
        return f"<fxenorm.Attachment to {names}: {f'rescales after {every}' if self._hooks else 'removed'}>"

    def __enter__(self) -> Attachment:
        """Returns the handle itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the hooks off at the end of the block."""
        self.remove()

    @property
    def steps(self) -> int:
        """The number of optimizer steps counted so far; waits for the device where a GradScaler drives a fused optimizer.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> handle = plan.attach(optimizer)
            >>> model(torch.ones(2, 4)).sum().backward()
            >>> optimizer.step()
            >>> handle.steps
            1
        """
        return self._rounds - (0 if self._skipped is None else int(self._skipped))

    def remove(self) -> None:
        """Takes the hooks off the optimizers; a second call does nothing.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> handle = plan.attach(torch.optim.SGD(model.parameters(), lr=0.1))
            >>> handle.remove()
            >>> handle
            <fxenorm.Attachment to SGD: removed>
        """
        for hook in self._hooks:
            hook.remove()
        if self._hooks:
            self._rescaler.detach_from(self._optimizers)
        self._hooks = []

    def state_dict(self) -> dict[str, Any]:
        """Returns a checkpoint's state: the count, who has stepped since, and the plan's fingerprint; waits as `steps` does.

        Of those who have stepped it says too whether a GradScaler has skipped all of these steps; and whether a scaler's flags
        are counted on the device, so that a run that goes on takes the same code, to the same bits.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> handle = plan.attach(torch.optim.SGD(model.parameters(), lr=0.1))
            >>> handle.state_dict()["steps"]
            0
        """
        members = [number for number, optimizer in enumerate(self._optimizers) if id(optimizer) in self._stepped]
        return {
            "fingerprint": self._rescaler.analysis.fingerprint,
            "steps": self.steps,
            "stepped": members,
            "idle": bool(self._idle),
            "counts_on_device": self._skipped is not None,
            "options": changed_options(self._rescaler.analysis.options),
        }

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint.

        Args:
            stored: what `state_dict` returned.

        Raises:
            BindError: it belongs to a plan with other parameters, exponents or options, or is no such state.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> handle = plan.attach(torch.optim.SGD(model.parameters(), lr=0.1))
            >>> handle.load_state_dict({**handle.state_dict(), "steps": 10})
            >>> handle.steps
            10
        """
        steps, members = stored.get("steps"), stored.get("stepped", [])
        if type(steps) is not int or steps < 0 or any(number not in range(len(self._optimizers)) for number in members):
            raise BindError("this is no state of an attached plan with these optimizers: expected what state_dict() returned")
        if stored.get("fingerprint") != self._rescaler.analysis.fingerprint:
            raise BindError(_other_plan(stored.get("options"), changed_options(self._rescaler.analysis.options)))
        self._rounds, self._skipped, self._idle = steps, None, bool(stored.get("idle", not members))
        if stored.get("counts_on_device", False):
            # Not that of an optimizer's first parameter: its first group may be empty.
            device = next(self._rescaler.model.parameters()).device
            self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._stepped = {id(self._optimizers[number]) for number in members}

    # ---------------------------------------------------------------- the hook

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        """Counts, and rescales when it is time."""
        if _is_within_another_step(optimizer):
            return
        if _captures():
            raise OptimizerError(
                "optimizer.step() is being captured in a CUDA graph, and replaying it calls no hooks: take the plan off with "
                "handle.remove() and call plan.step(optimizer) after each replay"
            )
        flag = getattr(optimizer, "found_inf", None)
        if not isinstance(flag, Tensor):
            self._idle = False
        elif self._idle is not False:
            skipped = (flag != 0).reshape(())
            self._idle = skipped if self._idle is True else self._idle.to(skipped.device) & skipped
        self._stepped.add(id(optimizer))
        owners = self._owners()
        if not owners <= self._stepped:
            return
        idle, self._idle, self._stepped = self._idle, True, set()
        self._rounds += 1
        if isinstance(idle, Tensor):
            # Added to a tensor that is made where the flag is: copying a zero there would wait for the device.
            earlier = torch.zeros((), dtype=torch.int64, device=idle.device) if self._skipped is None else self._skipped
            self._skipped = earlier.to(idle.device) + idle
        # With several optimizers, one may still hold gradients of the weights as they were: one that the scaler skipped last.
        grads = self._options.grads or len(owners) > 1
        if self._skipped is None:
            if self._is_due(self._rounds):
                self._step(grads, None)
        else:
            gate = self._is_due_on_device(self._rounds - self._skipped)
            self._step(grads, gate & ~idle.to(gate.device) if isinstance(idle, Tensor) else gate)
        if self._options.record is not None and self._rounds % self._options.record == 0:
            self._rescaler.history.record(self._rounds if self._skipped is None else self._rounds - self._skipped)

    def _step(self, grads: bool, gate: Tensor | None) -> None:
        """Rescales; a model that is frozen as a whole for now is no inference model here, and is left as it is."""
        rests, options = self._rests(), self._options
        given = (options.cycles, grads, options.state, options.agree_every, options.frozen)
        looks_far = (self._rounds // options.every) % LOOKS_EVERY == 0
        request = StepRequest(self._followed, *given, in_hook=True, rests=rests, looks_far=looks_far)
        if not rests or self._rescaler.replicas() is not None or self._rescaler.ranks() is not None:
            step(self._rescaler, request, gate)

    def _rests(self) -> bool:
        """Whether no parameter requires a gradient, where that matters."""
        return self._options.frozen != "move" and not any(one.requires_grad for one in self._rescaler.model.parameters())

    def _owners(self) -> set[int]:
        """Returns the ids of the optimizers without whose step a round is not over: those that hold a parameter of the model."""
        if len(self._optimizers) == 1:
            return {id(self._optimizers[0])}
        try:
            moved = self._rescaler.open(self._options.frozen).moved_ids()
        except FxenormError:
            # The step meets the same, and tells other processes of it.
            return {id(optimizer) for optimizer in self._optimizers}
        owners = {id(optimizer) for optimizer in self._optimizers if owned_by([optimizer]) & moved}
        return owners or {id(optimizer) for optimizer in self._optimizers}

    def _is_due(self, count: int) -> bool:
        """Whether the count-th step is followed by a rescaling."""
        options, after = self._options, count - self._options.start
        return after > 0 and after % options.every == 0 and (options.stop is None or count <= options.stop)

    def _is_due_on_device(self, count: Tensor) -> Tensor:
        """Whether the count-th step is due, as a 0-d bool on the device; reads nothing."""
        options, after = self._options, count - self._options.start
        due = (after > 0) & (after % options.every == 0)
        return due if options.stop is None else due & (count <= options.stop)


def _hooked(followed: Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    """Returns the optimizers that are hooked into: wrappers call those in them, whose hooks are enough."""
    return tuple(one for one in followed if held_by(one) is None)


def _other_plan(then: object, now: str) -> str:
    """Returns the message about the state of another plan; what its options were, if they are known and differ."""
    if isinstance(then, str) and then != now:
        cause = f"its options of fxenorm.analyze were {then}, and now are {now}"
    elif isinstance(then, str):
        cause = "its options were the same, but the model's graph or its parameters have changed since"
    else:
        cause = "the model's graph, its parameters or the options of fxenorm.analyze have changed since"
    return (
        f"the checkpoint was written with another plan: {cause}. Analyse the same model with the same options, or attach without "
        'this state (resume="ignore" in a callback)'
    )


def _is_within_another_step(optimizer: Optimizer) -> bool:
    """Whether a step of this optimizer that has just ended was called by another one, as by ``super().step()``.

    Torch calls the hooks at the end of both.
    """
    found, frame, file = 0, sys._getframe(), Optimizer.profile_hook_step.__code__.co_filename
    while frame.f_back is not None and found < 2:
        frame = frame.f_back
        # What torch puts around the step of every class.
        if frame.f_code.co_name == "wrapper" and frame.f_code.co_filename == file:
            found += frame.f_locals.get("self") is optimizer
    return found == 2


def _captures() -> bool:
    """Whether a CUDA graph is being captured."""
    ready: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return ready and torch.cuda.is_current_stream_capturing()


def _refuse_steps_in_backward(optimizers: Sequence[Optimizer]) -> None:
    """Raises where optimizers are stepped parameter by parameter during the backward pass."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if getattr(parameter, "_post_accumulate_grad_hooks", None):
                    raise OptimizerError(
                        f"a parameter of shape {tuple(parameter.shape)} has a post-accumulate-grad hook: an optimizer that steps "
                        "during the backward pass would be followed by a rescaling before that pass is over. Step after it"
                    )
