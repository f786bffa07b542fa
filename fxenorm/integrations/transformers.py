"""A callback for the Trainer of Transformers that keeps the weights balanced while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ..errors import OptionError
from ..plan.analyze import analyze
from ..plan.plan import Plan
from ..rescale.attach import Attachment
from ..trace.unwrap import unwrap
from .first_inputs import FirstInputs
from .options import CallbackOptions, check_count, check_resume

_MISSING = False

if TYPE_CHECKING:

    class _TrainerCallback:
        """Stands for a class of Transformers, which may not be installed."""

    class _ExportableState:
        """Stands for a class of Transformers, which may not be installed."""
else:
    try:
        from transformers import TrainerCallback as _TrainerCallback
        from transformers.trainer_callback import ExportableState as _ExportableState
    except ImportError:
        _MISSING, _TrainerCallback, _ExportableState = True, type("_TrainerCallback", (), {}), type("_ExportableState", (), {})

__all__ = ["FxenormCallback"]

_TARGETS = ("labels", "label", "label_ids", "num_items_in_batch", "return_loss")


class FxenormCallback(_TrainerCallback, _ExportableState):
    """Rescales after every optimizer step that happened, from the optimizer's own hook, and logs the outcome.

    The plan is made in the first batch, from what the model gets there, without labels. ``fxenorm/norm`` and
    ``fxenorm/imbalance`` are added to what the Trainer logs of training and to ``state.log_history``. Callbacks are called in
    order: for a reporter to see them, put this one before it, ``trainer.callback_handler.callbacks.insert(0, callback)``.
    The step counter is part of the checkpoint, and a checkpoint of another graph is refused.

    Args:
        every: rescaled after each `every`-th step.
        log_every: steps between two logs, for which the Trainer is asked to log then; None: whenever it logs.
        track: copies of the model that follow every rescaling, as `Plan.track` takes them; an average that is not named here (or
            by ``callback.plan.track(average)``) mixes weights from before and after a rescaling.
        resume: "check": a checkpoint that was written with another plan, as with other options, is refused; "ignore": the count
            of a checkpoint is not taken up, and begins anew.
        options: of `fxenorm.analyze` and of `Plan.attach` (`start`, `stop`, `cycles`, `grads`, `state`, `record`).

    Attributes:
        plan: the plan, once there is one.

    Raises:
        ImportError: Transformers is not installed.
        OptionError: an option is unknown or has no valid value; in the first batch, the model's forward is not called.
    """

    def __init__(
        self,
        every: int = 1,
        log_every: int | None = None,
        *,
        track: Sequence[Any] = (),
        resume: Literal["check", "ignore"] = "check",
        **options: Any,
    ) -> None:
        if _MISSING:
            raise ImportError("fxenorm.integrations.transformers needs Transformers: pip install transformers accelerate")
        super().__init__()
        check_count("log_every", 1 if log_every is None else log_every)
        check_resume(resume)
        self._resume = resume
        self.plan: Plan | None = None
        self._log_every, self._track = log_every, tuple(track)
        self._given = {"every": every, **options}
        self._options = CallbackOptions(["log_every", "track", "resume"], self._given)
        self._model: nn.Module | None = None
        self._waiting: FirstInputs | None = None
        self._handle: Attachment | None = None
        self._stored: Mapping[str, Any] | None = None

    def state(self) -> dict[str, Any]:
        """Returns the callback's part of a checkpoint: its arguments, the step counter and the plan's fingerprint."""
        stored = self._handle.state_dict() if self._handle is not None else self._stored
        arguments = {"log_every": self._log_every, "resume": self._resume, **self._given}
        return {"args": arguments, "attributes": {"_stored": stored}}

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Waits for the first batch; where a run is resumed, takes up the content of its checkpoint."""
        self._detach()  # where the Trainer starts anew, as with a smaller batch, it does not say that it ended
        name = type(self).__name__
        saved = state.stateful_callbacks.get(name)
        resumed = state.global_step > 0 and isinstance(saved, Mapping)
        self._stored = saved["attributes"].get("_stored") if resumed else None
        if saved is None:
            state.stateful_callbacks[name] = self.state()  # the checkpoint was written without this callback
        self.plan, self._model = None, unwrap(model)
        self._waiting = FirstInputs(self._model, without=_TARGETS)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any) -> None:
        """Makes the plan and attaches it."""
        if self._waiting is None or self._model is None:
            return
        if self._waiting.arguments is None:
            raise OptionError(
                f"the forward of {type(self._model).__name__} was not called in the first batch, so its inputs are not known: "
                "this callback needs a model that the Trainer calls; else make a plan with fxenorm.analyze and use plan.attach"
            )
        inputs, self._waiting = self._waiting, None
        self.plan = analyze(self._model, inputs.arguments, example_kwargs=inputs.keywords, **self._options.of_analyze)
        for copy in self._track:
            self.plan.track(copy)
        handle = self.plan.attach(optimizer, **self._options.of_attach)
        # A resumed run goes on counting; without a count of its own, where the Trainer does.
        stored = self._stored if self._resume == "check" else None
        handle.load_state_dict(stored or {**handle.state_dict(), "steps": int(state.global_step)})
        self._handle = handle

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Asks the Trainer to log, every `log_every` steps."""
        if self._log_every is not None and state.global_step % self._log_every == 0:
            control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds the norm and the imbalance to the Trainer's logs of training."""
        due = self._log_every is None or state.global_step % self._log_every == 0
        if self.plan is not None and logs is not None and "loss" in logs and due:
            values = {"fxenorm/norm": float(self.plan.norm()), "fxenorm/imbalance": float(self.plan.imbalance())}
            logs.update(values)
            state.log_history[-1].update(values)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the hooks off the model and the optimizers."""
        self._detach()

    def _detach(self) -> None:
        """Takes the hooks off; their count of steps is kept."""
        if self._waiting is not None:
            self._waiting.remove()
        if self._handle is not None:
            self._stored = self._handle.state_dict()
            self._handle.remove()
        self._waiting = self._handle = None
