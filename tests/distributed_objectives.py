"""Objectives of sharded models against those of whole ones; what one process of `test_distributed` measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxenorm.objectives import Masses, Normalised, Term, Weights
from tests.distributed_harness import check, plan_for, refusal, sharded
from tests.distributed_models import ConvNet, Residual, batch, build, digest, distance, state_of


class Spring(Term):
    """Half the squared distance of the log-scales from 0.1, as a whole on each process, or as a part of so many."""

    lower_bound = 0.0

    def __init__(self, parts: int = 1) -> None:
        self.adds, self._share = parts > 1, 1.0 / parts

    def value_and_gradient(self, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """The value and its derivative."""
        away = log_scales - 0.1
        return self._share * away.square().sum() / 2, self._share * away

    def curvature_times(self, log_scales: Tensor, direction: Tensor) -> Tensor:
        """The direction."""
        return self._share * direction


class Silent(Spring):
    """The same, which does not say how its answers belong together."""

    adds: Any = None

    def __init__(self) -> None:
        self._share = 1.0


def gradients(model: nn.Module, kind: type[nn.Module]) -> Masses:
    """Squared gradients of a loss, spread as the parameters are."""
    model.zero_grad()
    model.eval()
    model(batch(kind)).square().mean().backward()
    given = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return Masses({name: one.detach().square() for name, one in given.items()}, power=-2)


def terms(model: nn.Module, kind: type[nn.Module], parts: int) -> dict[str, Any]:
    """By name a term on a model: of weights, of distributed masses, of ordinary ones, normalised, and of a user's own."""
    slopes = gradients(model, kind)
    sizes = {name: one.detach().square() for name, one in build(kind).named_parameters() if "weight" in name}
    return {
        "weights": Weights(p=6.0, biases="count", gains=False),
        "gradients": slopes + 0.3 * Weights(),
        "ordinary masses": Weights() + 2 * Masses(sizes, power=1.5),
        "normalised": Normalised(slopes) + 0.1 * Normalised(Weights()),
        "own": Weights() + Spring() + Spring(parts),
    }


@check
def objectives(folder: Path) -> dict[str, Any]:
    """`balance` by a term of shards against that of the whole: the report, the weights, the way back, and bits on all."""
    found: dict[str, Any] = {}
    world = torch.distributed.get_world_size()
    cases: list[tuple[type[nn.Module], dict[str, Any], tuple[str, ...]]] = [
        (ConvNet, {"batchnorm": "folded"}, ("gradients",)),
        (Residual, {}, ("weights", "ordinary masses", "normalised", "own")),
        (Residual, {"scales": "pow2"}, ("normalised",)),
    ]
    for kind, options, chosen in cases:
        named = terms(build(kind), kind, 1)
        for term in chosen:
            alone, model = build(kind), sharded(kind)
            whole, parts = plan_for(alone, kind, **options), plan_for(model, kind, **options)
            name = f"{kind.__name__} {options} {term}"
            own = terms(model, kind, world)[term]
            expected, result = whole.balance(objective=named[term]), parts.balance(objective=own)
            found[f"{name} log_scales"] = float((result.log_scales - expected.log_scales).abs().max())
            found[f"{name} moved"] = float(result.log_scales.abs().max())
            found[f"{name} converged"] = result.converged and expected.converged
            keys = ("norm_before", "norm_after", "objective_before", "objective_after", "imbalance_before")
            found[f"{name} reports"] = [abs(getattr(result, key) - getattr(expected, key)) for key in keys]
            found[f"{name} held"] = [str(item) for item in result.held] == [str(item) for item in expected.held]
            found[f"{name} weights"] = distance(state_of(model), state_of(alone))
            found[f"{name} bits"] = digest([result.log_scales, torch.tensor(result.objective_after)])
            parts.rescale(-result.log_scales)
            found[f"{name} undone"] = distance(state_of(model), state_of(build(kind)))
    return found


@check
def boxes_and_functions_of_objectives(folder: Path) -> dict[str, Any]:
    """A vertex of a box, a function to look at, and a term that does not say how its answers belong together."""
    alone, model = build(Residual), sharded(Residual)
    whole, parts = plan_for(alone, Residual), plan_for(model, Residual)
    slopes = (gradients(alone, Residual), gradients(model, Residual))
    at = torch.linspace(-0.5, 0.5, whole.num_scales, dtype=torch.float64)
    functions = [plan.objective(term) for plan, term in zip((whole, parts), slopes, strict=True)]
    values = [torch.cat([function.value_and_gradient(at)[1], function.curvature_times(at, at)]) for function in functions]
    given = {"maximise": True, "max_log_scale": 0.3}
    results = [plan.balance(objective=term, **given) for plan, term in zip((whole, parts), slopes, strict=True)]
    silent = refusal(lambda: parts.balance(objective=Silent()))
    return {
        "vertex": float((results[0].log_scales - results[1].log_scales).abs().max()),
        "function": float((values[0] - values[1]).abs().max() / values[0].abs().max()),
        "silent": silent,
    }
