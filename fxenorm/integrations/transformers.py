"""A callback for the Trainer of Transformers that keeps the weights balanced while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import OptionError
from ..plan.analyze import analyze
from ..plan.attach import Attachment
from ..plan.plan import Plan
from ..trace.unwrap import unwrap
from .first_inputs import FirstInputs

if TYPE_CHECKING:
    _TrainerCallback = object
    _MISSING = False
else:
    try:
        from transformers import TrainerCallback as _TrainerCallback
    except ImportError:
        _TrainerCallback = None
    _MISSING, _TrainerCallback = _TrainerCallback is None, _TrainerCallback or object

__all__ = ["FxenormCallback"]

_TARGETS = ("labels", "label", "label_ids", "num_items_in_batch", "return_loss")


class FxenormCallback(_TrainerCallback):
    """Rescales after every optimizer step that happened, from the optimizer's own hook, and logs what came of it.

    The plan is made in the first batch, from what the model gets there, without labels. ``fxenorm/norm`` and
    ``fxenorm/imbalance`` are added to the Trainer's logs and ``state.log_history`` wherever it logs. Callbacks are called in
    order: for a reporter to see them, put this one before it, ``trainer.callback_handler.callbacks.insert(0, callback)``.

    Args:
        every: rescaled after each `every`-th step.
        options: of `fxenorm.analyze`.

    Attributes:
        plan: the plan, once there is one.

    Raises:
        ImportError: Transformers is not installed.
        OptionError: `every` is not a positive integer.
    """

    def __init__(self, every: int = 1, **options: Any) -> None:
        if _MISSING:
            raise ImportError("fxenorm.integrations.transformers needs Transformers: pip install transformers accelerate")
        super().__init__()
        if type(every) is not int or every < 1:
            raise OptionError(f"every={every!r} is not valid: expected an integer >= 1")
        self.plan: Plan | None = None
        self._every, self._options = every, options
        self._model: nn.Module | None = None
        self._waiting: FirstInputs | None = None
        self._handle: Attachment | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Waits for the first batch."""
        self._model = unwrap(model)
        self._waiting = FirstInputs(self._model, without=_TARGETS)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any) -> None:
        """Makes the plan and attaches it."""
        if self._waiting is None or self._waiting.arguments is None or self._model is None:
            return
        inputs, self._waiting = self._waiting, None
        self.plan = analyze(self._model, inputs.arguments, example_kwargs=inputs.keywords, **self._options)
        self._handle = self.plan.attach(optimizer, every=self._every)
        # A resumed run goes on counting where the Trainer does.
        self._handle.load_state_dict({**self._handle.state_dict(), "steps": int(state.global_step)})

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds to what the Trainer logs of training."""
        if self.plan is not None and logs is not None and "loss" in logs:
            values = {"fxenorm/norm": float(self.plan.norm()), "fxenorm/imbalance": float(self.plan.imbalance())}
            logs.update(values)
            state.log_history[-1].update(values)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the hooks off."""
        if self._waiting is not None:
            self._waiting.remove()
        if self._handle is not None:
            self._handle.remove()
        self._waiting = self._handle = None
