"""Terms made of observations on sharded models against whole ones; what one process of `test_distributed` measures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fxenorm
from fxenorm.distributed.dtensors import is_distributed
from fxenorm.objectives import Migration, PredictedNoise, Weights
from tests.distributed_harness import check, plan_for, refusal, sharded
from tests.distributed_models import Perceptron, Residual, batch, build, digest, distance, full


def terms(observations: Any) -> dict[str, Any]:
    """By name a term of observations, which every process has as a whole."""
    noise = PredictedNoise(observations, fxenorm.Bits(weights=4, per="channel"))
    return {
        "noise": noise,
        "noise and weights": 0.3 * noise + 1e-3 * Weights(p=6.0),
        "migration": Migration(observations, p=6.0),
        "largest": Migration(observations, p=math.inf),
    }


@check
def observations(folder: Path) -> dict[str, Any]:
    """`balance` by predicted noise and by ranges, of shards and of the whole; what is stale is so on all processes."""
    found: dict[str, Any] = {}
    chosen = {"shards": ("noise", "migration", "largest"), "tensor parallel": ("noise and weights", "largest")}
    for kind, name in ((Residual, "shards"), (Perceptron, "tensor parallel")):
        alone = build(kind)
        whole = plan_for(alone, kind)
        seen = whole.observe([batch(kind, 7)], derivatives=True)
        for term in chosen[name]:
            expected_term = terms(seen)[term]
            alone, model = build(kind), _spread(kind)
            whole, parts = plan_for(alone, kind), plan_for(model, kind)
            expected, result = whole.balance(objective=expected_term), parts.balance(objective=expected_term)
            label = f"{name} {term}"
            found[f"{label} log_scales"] = float((result.log_scales - expected.log_scales).abs().max())
            found[f"{label} moved"] = float(result.log_scales.abs().max())
            found[f"{label} converged"] = result.converged and expected.converged
            found[f"{label} weights"] = distance(
                {n: full(one) for n, one in model.named_parameters()}, {n: one.detach() for n, one in alone.named_parameters()}
            )
            found[f"{label} bits"] = digest([result.log_scales])
        # The observations have followed.
        found[f"{name} predicted"] = abs(parts.predict(seen).now - whole.predict(seen).now)
        with torch.no_grad():
            # On one process alone: the entries of the others are as they were.
            last = next(one for one in model.parameters() if is_distributed(one)).to_local()
            last.mul_(1.5 if dist.get_rank() == 0 else 1.0)
        found[f"{name} stale"] = refusal(lambda plan=parts, given=seen: plan.balance(objective=Migration(given)))
        wrong = object() if dist.get_rank() == dist.get_world_size() - 1 else seen
        found[f"{name} wrong"] = refusal(lambda plan=parts, given=wrong: plan.follow(given))
    return found


def _spread(kind: type[nn.Module]) -> nn.Module:
    """A model under fully_shard, or under tensor parallelism."""
    if kind is not Perceptron:
        return sharded(kind)
    styles: dict[str, Any] = {"up": ColwiseParallel(), "middle": RowwiseParallel()}
    return parallelize_module(build(kind), init_device_mesh("cpu", (dist.get_world_size(),)), styles)
