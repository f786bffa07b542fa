"""`Rescaler`: one plan at work on one model, and what lasts from call to call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..analysis.analysis import Analysis
from ..analysis.held import FrozenChoice, check_frozen
from ..distributed.agreement import ELSEWHERE, LateAnswers, Statement
from ..distributed.dtensors import reshard
from ..distributed.ranks import Ranks, ranks_of
from ..optim.state import OptimizerLike, StateChoice, check_choice, owned_by, unwrap_optimizers
from ..weights.journal import Journal
from ..weights.open_weights import open_weights
from ..weights.shared.replicas import Replicas
from ..weights.targets import Targets
from ..weights.tensors import named_tensors
from ..weights.tracked import Tracked
from ..weights.weights import Weights
from .agreeing import Looked, meeting_of, statement_of
from .measures.history import History, measured
from .one_at_a_time import OneAtATime
from .prepared_step import PreparedStep
from .request import StepRequest
from .warnings.left_gradients import LeftGradients
from .warnings.warn_once import WarnOnce

__all__ = ["LastStep", "Rescaler"]


@dataclass
class LastStep:
    """The lookups of a step that the next one may use again.

    Attributes:
        prepared: everything that it has looked up; None: the next step looks it up anew.
        states: the ``state`` of each of its optimizers, by which a loaded state dict is noticed.
    """

    prepared: PreparedStep | None = None
    states: list[Any] = field(default_factory=list)


class Rescaler:
    """Opens a model's weights for each call, and remembers what has to last from call to call.

    A call takes `lock`, finishes what an interrupted one has left (`repair`), opens the weights (`open`), collects what follows
    (`targets`), agrees with other processes where there are any (`look_up_and_agree`), and writes through `journal`.

    Args:
        analysis: what was found, apart from any module.
        model: the module, without wrappers.
        group: the process group of DistributedDataParallel, each of whose members has a copy of the model; None: there is none.

    Attributes:
        tracked: the copies that follow.
        lock: lets one call of this plan run at a time.
        warnings: what was warned of already.
        left_gradients: notices gradients that no optimizer step has used.
        late_answers: what other processes said and a device has not told yet.
        journal: the writes that an interrupted call has left.
        last_step: what the last step has left for the next one.
        steps: how often `step` was called by itself, not by a hook, which counts its own.
        history: norm and imbalance at the times when they were recorded.
    """

    def __init__(self, analysis: Analysis, model: nn.Module, group: Any = None) -> None:
        self.analysis, self.model = analysis, model
        self.tracked: list[Tracked] = []
        self.lock = OneAtATime()
        self.warnings = WarnOnce()
        self.left_gradients = LeftGradients()
        self.late_answers = LateAnswers()
        self.journal = Journal()
        self.last_step = LastStep()
        self.steps = 0
        self.history = History(self.measured)
        self._moved: Tensor | None = None
        self._attached: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._replicas = None if group is None else Replicas(group, analysis.executor, self.warnings.without_kernels)

    @property
    def num_scales(self) -> int:
        """The number of scale variables, K."""
        return self.analysis.symmetry.num_scales

    # ---------------------------------------------------------------- other processes

    @property
    def group(self) -> Any:
        """The process group whose members have a copy each of the model, as given; None: nobody is known to have one."""
        return None if self._replicas is None else self._replicas.group

    def ranks(self) -> Ranks | None:
        """Returns the processes over which the model is spread now; None: this one holds all of it."""
        reshard(self.model)
        return ranks_of(self.model.parameters())

    def replicas(self) -> Replicas | None:
        """Returns the processes that have a copy each of the model; None: there are no others."""
        return self._replicas if self._replicas is not None and self._replicas.is_many else None

    def device(self) -> torch.device:
        """Returns where the model is, or its first parameter."""
        first = next(self.model.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    # ---------------------------------------------------------------- the way so far

    @property
    def position(self) -> Tensor:
        """(num_scales,) the sum of the rescalings by `rescale` and `balance` so far, float64 on the CPU; waits for the device."""
        if self._moved is None:
            return torch.zeros(self.num_scales, dtype=torch.float64, device="cpu")
        return self._moved.to("cpu", torch.float64, copy=True)

    def moved(self, log_scales: Tensor) -> None:
        """Notes that the model was rescaled by some (num_scales,) log-scales; nothing waits for the device."""
        given = log_scales.detach().to(torch.float64)
        self._moved = given.clone() if self._moved is None else self._moved + given.to(self._moved.device)

    # ---------------------------------------------------------------- the weights

    def repair(self) -> None:
        """Finishes what an interrupted call has left; raises a RescaleError where others have written since."""
        with self.lock:
            if self.journal.is_open:
                self.journal.repair(named_tensors(self.model))

    def parameters(self) -> dict[str, Tensor]:
        """Returns the model's parameters by all their names, once what an interrupted call may have left is finished."""
        self.repair()
        return dict(self.model.named_parameters(remove_duplicate=False))

    def open(self, flags: FrozenChoice = "auto") -> Weights:
        """Returns the model's tensors now, once what an interrupted call may have left is finished."""
        self.repair()
        return open_weights(self.analysis, self.model, self.tracked, self.journal, self.replicas(), flags)

    def open_together(self) -> Weights:
        """`open`, for what is read of the whole model: where one of several processes cannot, all raise.

        But for models on a device, for which nothing waits.
        """
        ranks = self.ranks()
        if ranks is None or ranks.device.type != "cpu":
            return self.open()
        error: BaseException | None = None
        try:
            weights = self.open()
        except BaseException as raised:  # whatever it is, the others wait
            error = raised
        ranks.tell(error, f"{ELSEWHERE}; its own message says why (rank {{}})")
        return weights

    def measured(self) -> tuple[Tensor, Tensor]:
        """Returns the norm and the imbalance now, 0-d tensors on the device, for which nothing waits."""
        with self.lock:
            return measured(self.open_together())

    def targets(
        self,
        optimizer: OptimizerLike,
        *,
        frozen: bool = False,
        grads: bool = False,
        state: StateChoice = "reexpress",
        within: bool = True,
        flags: FrozenChoice = "auto",
    ) -> tuple[Weights, Targets]:
        """Opens the weights and finds everything that follows a rescaling; raises before anything is written.

        Without frozen tensors this is in the basis of what is left of the variables, unless `within` is False.
        """
        check_choice(state)
        check_frozen(flags)
        optimizers = unwrap_optimizers(optimizer)
        weights = self.open(flags)
        weights = weights if frozen or not within else weights.within()
        targets = weights.targets(optimizers, frozen=frozen, grads=grads, state=state)
        if optimizers:
            self.warnings.parameters_without_optimizer(_unowned(weights, optimizers))
        return weights, targets

    def warn_of_gradients(self, request: StepRequest, optimizers: Sequence[Optimizer], weights: Weights) -> None:
        """Warns once of training without its optimizer, and once of gradients that no optimizer step has used."""
        if not optimizers and request.state != "keep" and not request.grads:
            self.warnings.optimizer_not_passed(_first_gradient(weights))
        if not request.in_hook and self.num_scales and self.left_gradients.are_left(optimizers, weights, follow=request.grads):
            self.warnings.accumulating()
        if not request.in_hook:
            self.warn_if_attached(optimizers, "plan.step")

    def attach_to(self, optimizers: Sequence[Optimizer]) -> None:
        """Notes that steps of these optimizers are followed by rescalings from now on; warns where they are already."""
        self.warn_if_attached(optimizers, "plan.attach")
        for one in optimizers:
            self._attached[one] = self._attached.get(one, 0) + 1

    def detach_from(self, optimizers: Sequence[Optimizer]) -> None:
        """Notes that a handle was removed from these optimizers."""
        for one in optimizers:
            self._attached[one] -= 1

    def warn_if_attached(self, optimizers: Sequence[Optimizer], call: str) -> None:
        """Warns once where the steps of one of these optimizers are followed by rescalings already."""
        if any(self._attached.get(one, 0) > 0 for one in optimizers):
            self.warnings.attached_twice(call)

    def look_up_and_agree(self, words: Sequence[str], look: Callable[[], Looked], optimizer: OptimizerLike = None) -> Looked:
        """Returns what a call looks up before it writes; on several processes on all of them, or it raises on all of them.

        Args:
            words: the method and its arguments.
            look: looks up, checks, and raises what is wrong.
            optimizer: as users pass it.

        Raises:
            AgreementError: another process met an error, or was asked for something else.
        """
        ranks, replicas = self.ranks(), self.replicas()
        if ranks is None and replicas is None:
            return look()
        found = None
        try:
            found = look()
            statement = statement_of(self.analysis, words, unwrap_optimizers(optimizer), found)
        except BaseException as error:  # whatever it is, the others wait
            statement = Statement(error=error)
        if ranks is not None:
            meeting_of(self.analysis, ranks).agree(statement)
        elif replicas is not None:
            replicas.agree(statement, self.device(), waits=True)
        if found is None:
            raise RuntimeError("an agreement on an error raises")
        return found


def _unowned(weights: Weights, optimizers: Sequence[Optimizer]) -> list[str]:
    """Returns the moved parameters that none of the optimizers holds, neither themselves nor as a tracked copy."""
    owned = owned_by(optimizers)
    skipped = weights.frozen | weights.analysis.symmetry.buffers
    if weights.flags == "move":
        skipped |= {name for name, tensor in weights.tensors.items() if not tensor.requires_grad}
    held_by = (weights.tensors, *weights.twins, *weights.copies)
    held = {name for one in held_by for name, tensor in one.items() if id(tensor) in owned}
    return [name for name in weights.tensors if name not in skipped and name not in held]


def _first_gradient(weights: Weights) -> Tensor | None:
    """Returns the gradient of the first parameter that has one."""
    owners = (tensor for name, tensor in weights.tensors.items() if name not in weights.analysis.symmetry.buffers)
    return next((tensor.grad for tensor in owners if tensor.grad is not None), None)
