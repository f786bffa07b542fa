"""fxenorm finds every way to rescale a PyTorch network without changing its function, and uses that freedom."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

# Names are resolved on first use (PEP 562), so that `fxenorm-inspect --help` need not wait for torch.
_HOMES = {
    "analyze": "fxenorm.plan.analyze",
    "balance_checkpoint": "fxenorm.checkpoint.balance_checkpoint",
    "canonical": "fxenorm.plan.canonical",
    "check_optimizer": "fxenorm.optim.check",
    "Plan": "fxenorm.plan.plan",
    "PredictedRange": "fxenorm.quantisation.prediction",
    "Prediction": "fxenorm.quantisation.prediction",
    "BalanceResult": "fxenorm.rescale.balance",
    "Attachment": "fxenorm.rescale.attach",
    "Barrier": "fxenorm.symmetry",
    "Bits": "fxenorm.bits",
    "CheckpointResult": "fxenorm.checkpoint.result",
    "Group": "fxenorm.analysis.groups",
    "Held": "fxenorm.analysis.held",
    "History": "fxenorm.rescale.measures.history",
    "Mappings": "fxenorm.analysis.mappings.result",
    "Observation": "fxenorm.observe.observation",
    "Observations": "fxenorm.observe.observations",
    "ObservedWeight": "fxenorm.observe.observed_weight",
    "Pair": "fxenorm.analysis.pairs",
    "Port": "fxenorm.analysis.groups",
    "Site": "fxenorm.symmetry",
    "Tracked": "fxenorm.weights.tracked",
    "Verification": "fxenorm.verify.verification",
    "Why": "fxenorm.text.why",
    "FxenormError": "fxenorm.errors",
    "FxenormWarning": "fxenorm.errors",
    "errors": "fxenorm",
    "masses": "fxenorm",
    "objectives": "fxenorm",
    "plan_from_dict": "fxenorm.plan.plan",
    "register_optimizer": "fxenorm.optim.registry",
    "register_rule": "fxenorm.rules",
    "supported_operators": "fxenorm.rules",
}

__all__ = [
    "Attachment",
    "BalanceResult",
    "Barrier",
    "Bits",
    "CheckpointResult",
    "FxenormError",
    "FxenormWarning",
    "Group",
    "Held",
    "History",
    "Mappings",
    "Observation",
    "Observations",
    "ObservedWeight",
    "Pair",
    "Plan",
    "Port",
    "PredictedRange",
    "Prediction",
    "Site",
    "Tracked",
    "Verification",
    "Why",
    "analyze",
    "balance_checkpoint",
    "canonical",
    "check_optimizer",
    "errors",
    "masses",
    "objectives",
    "plan_from_dict",
    "register_optimizer",
    "register_rule",
    "supported_operators",
]

if TYPE_CHECKING:
    from . import errors, masses, objectives
    from .analysis.groups import Group, Port
    from .analysis.held import Held
    from .analysis.mappings.result import Mappings
    from .analysis.pairs import Pair
    from .bits import Bits
    from .checkpoint.balance_checkpoint import balance_checkpoint
    from .checkpoint.result import CheckpointResult
    from .errors import FxenormError, FxenormWarning
    from .observe.observation import Observation
    from .observe.observations import Observations
    from .observe.observed_weight import ObservedWeight
    from .optim.check import check_optimizer
    from .optim.registry import register_optimizer
    from .plan.analyze import analyze
    from .plan.canonical import canonical
    from .plan.plan import Plan, plan_from_dict
    from .quantisation.prediction import PredictedRange, Prediction
    from .rescale.attach import Attachment
    from .rescale.balance import BalanceResult
    from .rescale.measures.history import History
    from .rules import register_rule, supported_operators
    from .symmetry import Barrier, Site
    from .text.why import Why
    from .verify.verification import Verification
    from .weights.tracked import Tracked


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'fxenorm' has no attribute {name!r}")
    try:
        return importlib.import_module(f"{home}.{name}") if home == "fxenorm" else getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from .errors import MissingTorchError

        raise MissingTorchError(f"fxenorm.{name} needs PyTorch, which is not installed: pip install torch") from None


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
