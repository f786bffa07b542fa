"""Optimizers of timm, Transformers and others that are Adam or SGD under other names; none of these libraries is imported.

A class is known by its module and name. Read off timm 1.0.31, Transformers 5.24, schedulefree 1.4.1, pytorch-optimizer 4.1.0 and
torch-optimizer 0.3.0. Not here, for its state follows no rescaling of single entries: what normalises or clips gradients by
the norm of a tensor before they are summed (Lars, Mars, NvNovoGrad), and what keeps preconditioners of matrices (Kron).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import OptimizerError
from ..registry import Factor, Follows, power_of_present, register


@register(
    "timm.optim.adamp.AdamP", "timm.optim.adamw.AdamWLegacy", "timm.optim.lamb.Lamb", "timm.optim.nadam.NAdamLegacy",
    "timm.optim.nadamw.NAdamW", "timm.optim.radam.RAdamLegacy",
)  # fmt: skip
def adam_by_another_name(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """Moments as Adam's. Lamb clips by the norm of all gradients, which acts on gradients of another size after a rescaling."""
    return power_of_present(state, {"exp_avg": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2})


@register("timm.optim.adabelief.AdaBelief")
def adabelief_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """The mean of gradients times 1 / D, their variance times 1 / D^2; exact up to eps, which is part of the variance."""
    return power_of_present(state, {"exp_avg": -1, "exp_avg_var": -2, "max_exp_avg_var": -2})


@register("timm.optim.adan.Adan")
def adan_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """Means of gradients and of their differences, and the last gradient, times 1 / D; the squares times 1 / D^2."""
    return power_of_present(state, {"exp_avg": -1, "exp_avg_diff": -1, "neg_pre_grad": -1, "exp_avg_sq": -2})


@register("timm.optim.adopt.Adopt", "timm.optim.laprop.LaProp")
def mean_of_normalised_gradients(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """Squares times 1 / D^2; the mean is of gradients over their own root mean square, which no rescaling changes."""
    return power_of_present(state, {"exp_avg": 0, "exp_avg_sq": -2})


@register("timm.optim.lion.Lion")
def lion_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """The mean of gradients times 1 / D."""
    return power_of_present(state, {"exp_avg": -1})


@register("timm.optim.sgdw.SGDW", "timm.optim.sgdp.SGDP")
def sgd_by_another_name(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """Momentum times 1 / D, as that of SGD."""
    return power_of_present(state, {"momentum_buffer": -1, "momentum": -1})


@register("timm.optim.muon.Muon")
def muon_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """Momentum as SGD's where it orthogonalises, elsewhere as Adam's; ``algo="adamuon"`` is refused.

    That one sums the squares of orthogonal updates, which no rescaling of single entries changes in a way of its own.
    """
    if state.get("use_muon") and "exp_avg_sq" in state:
        raise OptimizerError(
            "no rule says how the squares of orthogonal updates that timm's Muon keeps with algo='adamuon' follow a rescaling: "
            "nothing was rescaled. Pass state='reset' to drop the state of what is rescaled, or state='keep' to leave it"
        )
    return power_of_present(state, {"momentum_buffer": -1, "exp_avg": -1, "exp_avg_sq": -2})


@register("timm.optim.rmsprop_tf.RMSpropTF", contract="by definition")
def rmsprop_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """The mean square as RMSprop's, times 1 / D^2, together with the ones that it starts from."""
    return power_of_present(state, {"square_avg": -2, "grad_avg": -1, "momentum_buffer": 0})


@register("transformers.optimization.Adafactor", contract="by definition")
def adafactor_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """The second moments that rows and columns stand for times 1 / D^2; the mean of the steps stays."""
    rows = Factor(-2, axis=-1, other="exp_avg_sq_col", drops_axis=True)
    columns = Factor(-2, axis=-2, other="exp_avg_sq_row", drops_axis=True)
    return power_of_present(state, {"exp_avg_sq_row": rows, "exp_avg_sq_col": columns, "exp_avg_sq": -2, "exp_avg": 0})


@register(
    "schedulefree.adamw_schedulefree.AdamWScheduleFree", "schedulefree.radam_schedulefree.RAdamScheduleFree",
    "schedulefree.sgd_schedulefree.SGDScheduleFree", "schedulefree.wrap_schedulefree.ScheduleFreeWrapper",
    contract="by definition",
)  # fmt: skip
def schedule_free_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """The iterate z follows as the weights, and with it their average, which is made of both; squares times 1 / D^2."""
    return power_of_present(state, {"z": 1, "exp_avg_sq": -2})


@register(
    "timm.optim.lookahead.Lookahead", "torch_optimizer.lookahead.Lookahead", "pytorch_optimizer.optimizer.lookahead.Lookahead",
    contract="by definition",
)  # fmt: skip
def lookahead_state(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Follows]:
    """Slow weights, and a copy of the fast ones, follow as the weights; slow momentum as momentum."""
    slow: dict[str, Follows] = dict.fromkeys(("lookahead_slow_buff", "slow_param", "slow_params", "backup_params"), 1)
    return power_of_present(state, {**slow, "slow_momentum": -1})
