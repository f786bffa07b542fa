"""A Lightning callback that keeps the weights balanced while a Trainer trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.optim import Optimizer

from ..errors import OptionError
from ..plan.analyze import analyze
from ..plan.plan import Plan
from ..rescale.attach import Attachment
from .averages import Averages
from .first_inputs import FirstInputs, fitted
from .options import CallbackOptions, check_count, check_resume

if TYPE_CHECKING:
    _Callback = object
    _MISSING = False
else:
    try:
        from lightning.pytorch import Callback as _Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback as _Callback
        except ImportError:
            _Callback = None
    _MISSING, _Callback = _Callback is None, _Callback or object

__all__ = ["FxenormCallback"]


class FxenormCallback(_Callback):
    """Rescales after every optimizer step that happened, from the optimizer's own hook, and logs the outcome.

    The plan is made in the first batch, from the inputs that the module gets there, or before it from
    ``example_input_array``. What leaves that module's forward is preserved; what a training_step takes from inside it is not
    looked at. ``fxenorm/norm`` and ``fxenorm/imbalance`` go to the trainer's loggers and ``callback_metrics``. The step counter
    is part of the checkpoint, and a checkpoint of another graph is refused.

    Averages that other callbacks hold (StochasticWeightAveraging, EMAWeightAveraging, or any copy of the module in an attribute)
    follow every rescaling; else they would mix weights from before and after it.

    Args:
        module: name of the submodule to analyse, as "backbone"; None: the LightningModule if it defines ``forward``, else its
            only child with parameters.
        every: rescaled after each `every`-th step.
        log_every: steps between two logs; None: the Trainer's ``log_every_n_steps``.
        resume: "check": a checkpoint that was written with another plan, as with other options, is refused; "ignore": the count
            of a checkpoint is not taken up, and begins anew.
        prog_bar: whether both numbers are shown in the progress bar too.
        track: further copies of the analysed module, as `Plan.track` takes them.
        options: of `fxenorm.analyze` and of `Plan.attach` (`start`, `stop`, `cycles`, `grads`, `state`, `record`).

    Attributes:
        plan: the plan, once there is one.

    Raises:
        ImportError: Lightning is not installed.
        OptionError: an option is unknown or has no valid value; when training starts, `module` names no submodule, or is needed;
            in the first batch, the module's forward is not called.
    """

    def __init__(
        self,
        module: str | None = None,
        every: int = 1,
        log_every: int | None = None,
        *,
        track: Sequence[Any] = (),
        resume: Literal["check", "ignore"] = "check",
        prog_bar: bool = False,
        **options: Any,
    ) -> None:
        if _MISSING:
            raise ImportError("fxenorm.integrations.lightning needs Lightning: pip install lightning")
        super().__init__()
        _check(module, log_every, resume)
        self.plan: Plan | None = None
        self._name, self._log_every, self._track = module, log_every, tuple(track)
        self._resume, self._prog_bar = resume, prog_bar
        self._options = CallbackOptions(["module", "log_every", "track", "resume", "prog_bar"], {"every": every, **options})
        self._averages: Averages | None = None
        self._waiting: FirstInputs | None = None
        self._handle: Attachment | None = None
        self._optimizers: list[Optimizer] = []
        self._stored: Mapping[str, Any] | None = None
        self._logged = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forgets an earlier training; a checkpoint is loaded after this."""
        if stage == "fit" and trainer.global_step == 0:
            self.plan, self._stored, self._logged = None, None, 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Makes the plan from ``example_input_array``, or waits for the first batch."""
        target = self._target(pl_module)
        example: Any = pl_module.example_input_array if target is pl_module else None
        if example is None:
            self._waiting = FirstInputs(target)
        else:
            example = fitted(target, tuple(example) if isinstance(example, list) else example)
            self._begin(trainer, analyze(target, example, **self._options.of_analyze))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        """Makes the plan from the first batch; looks whether the optimizers are still the same."""
        if self._waiting is not None and self._waiting.arguments is not None:
            inputs, self._waiting = self._waiting, None
            target = self._target(pl_module)
            self._begin(trainer, analyze(target, inputs.arguments, example_kwargs=inputs.keywords, **self._options.of_analyze))
        elif self.plan is not None and [id(one) for one in trainer.optimizers] != [id(one) for one in self._optimizers]:
            self._stored = None if self._handle is None else self._handle.state_dict()
            self._begin(trainer, self.plan)
        if self._averages is not None:
            self._averages.look(trainer.callbacks)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the norm and the imbalance, every `log_every` steps."""
        if self._waiting is not None and self._waiting.arguments is None:
            raise OptionError(
                f"the forward of {type(self._target(pl_module)).__name__} was not called in the first batch, so its inputs are "
                f"not known: pass module=, one of {sorted(_children(pl_module))} that training_step calls, or set "
                "example_input_array"
            )
        step = trainer.global_step
        every = max(1, trainer.log_every_n_steps) if self._log_every is None else self._log_every
        if self.plan is not None and step % every == 0 and step != self._logged:
            self._logged = step
            values = {"fxenorm/norm": self.plan.norm().float(), "fxenorm/imbalance": self.plan.imbalance().float()}
            trainer.callback_metrics.update(values)
            # Not pl_module.log, which throws away values between two of the trainer's own logs.
            if self._prog_bar:
                pl_module.log_dict(values, prog_bar=True, logger=False, batch_size=1)
            for logger in trainer.loggers:
                logger.log_metrics({key: float(value) for key, value in values.items()}, step=step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Takes the hooks off the model and the optimizers."""
        self.teardown(trainer, pl_module, "fit")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Takes the hooks off the model and the optimizers."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Takes the hooks off; their count of steps is kept."""
        if self._waiting is not None:
            self._waiting.remove()
            self._waiting = None
        if self._handle is not None:
            self._stored = self._handle.state_dict()
            self._handle.remove()
            self._handle = None
        self._forget_averages()

    def state_dict(self) -> dict[str, Any]:
        """Returns the step counter and the plan's fingerprint; empty before the first batch."""
        return dict(self._handle.state_dict() if self._handle is not None else self._stored or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the counter for the plan that is made later."""
        self._stored = state_dict or None

    def _begin(self, trainer: Any, plan: Plan) -> None:
        """Attaches the plan to the trainer's optimizers."""
        if self._handle is not None:
            self._handle.remove()
        self.plan, self._optimizers = plan, list(trainer.optimizers)
        self._handle = plan.attach(self._optimizers, **self._options.of_attach)
        self._forget_averages()
        root = trainer.lightning_module
        path = next(name for name, module in root.named_modules() if module is self._target(root))
        self._averages = Averages(plan, root, path, self._track)
        self._averages.look(trainer.callbacks)
        if self._stored is not None and self._resume == "check":
            self._handle.load_state_dict(self._stored)
        self._stored = None

    def _forget_averages(self) -> None:
        """Stops the tracking of averages that callbacks hold."""
        if self._averages is not None:
            self._averages.remove()
            self._averages = None

    def _target(self, pl_module: Any) -> nn.Module:
        """Returns the module to analyse: the one that is named, else the LightningModule or its only child."""
        children = _children(pl_module)
        if self._name is not None:
            try:
                found: nn.Module = pl_module.get_submodule(self._name)
            except AttributeError as error:
                raise OptionError(
                    f"module={self._name!r} is no submodule of {type(pl_module).__name__}; it has {sorted(children)}"
                ) from error
            return found
        base = next(cls for cls in type(pl_module).__mro__ if cls.__name__ == "LightningModule")
        module: nn.Module = pl_module
        if getattr(type(pl_module), "forward", None) is not getattr(base, "forward", None):
            return module
        if len(children) == 1:
            module = next(iter(children.values()))
            return module
        raise OptionError(
            f"{type(pl_module).__name__} defines no forward and has {len(children)} children with parameters: pass module=, one "
            f"of {sorted(children)}"
        )


def _check(module: object, log_every: object, resume: object) -> None:
    """Raises an OptionError where one of the callback's own options is not valid."""
    check_count("log_every", 1 if log_every is None else log_every)
    check_resume(resume)
    if not (module is None or isinstance(module, str)):
        raise OptionError(f"module={module!r} is not valid: expected the name of a submodule, or None")


def _children(pl_module: Any) -> dict[str, nn.Module]:
    """Returns, by name, the children that have parameters."""
    return {name: child for name, child in pl_module.named_children() if any(True for _ in child.parameters())}
