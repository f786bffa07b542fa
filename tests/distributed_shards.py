"""Plans of sharded models against plans of whole ones; what one process of `test_distributed` measures."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxenorm
from tests.distributed_harness import check, optimizer_for, plan_for, refusal, shard, sharded
from tests.distributed_models import (
    Allocations,
    Collectives,
    ConvNet,
    Residual,
    Transformer,
    Upsampling,
    batch,
    build,
    digest,
    distance,
    full,
    state_of,
)


@check
def analysis(folder: Path) -> dict[str, Any]:
    """Of a sharded model: the same plan, without a word to other processes, and the model is left alone."""
    found: dict[str, Any] = {}
    for kind in (ConvNet, Transformer):
        model = sharded(kind)
        before = [(id(p), p.requires_grad) for p in model.parameters()]
        hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
        with Collectives() as collectives:
            plan = fxenorm.analyze(model, batch(kind))
        found[f"{kind.__name__} collectives"] = collectives.names
        found[f"{kind.__name__} fingerprint"] = plan.fingerprint
        found[f"{kind.__name__} same"] = plan.fingerprint == plan_for(build(kind), kind).fingerprint
        found[f"{kind.__name__} left alone"] = before == [(id(p), p.requires_grad) for p in model.parameters()] and hooks == [
            len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()
        ]
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(build(ConvNet))
    found["synced"] = fxenorm.analyze(synced, batch(ConvNet)).fingerprint == found["ConvNet fingerprint"]
    # The plan of a model that is sharded afterwards needs no new look.
    model = build(ConvNet)
    plan = fxenorm.Plan.from_dict(plan_for(model, ConvNet).to_dict(), model)
    shard(model)
    plan.step()
    found["verify"] = refusal(lambda: plan.verify(batch(ConvNet)))
    return found


@check
def balance(folder: Path) -> dict[str, Any]:
    """`balance` of shards against `balance` of the whole; outputs stay, also where a root still shows gathered weights."""
    found: dict[str, Any] = {}
    options: list[dict[str, Any]] = [
        {},
        {"p": math.inf},
        {"p": 12.0},
        {"batchnorm": "folded", "biases": "count"},
        {"scales": "pow2", "c": 1.3},
    ]
    inputs = batch(ConvNet)
    for choice in options:
        alone, model = build(ConvNet), sharded(ConvNet)
        whole, parts = plan_for(alone, ConvNet, **choice), plan_for(model, ConvNet, **choice)
        model.eval()
        with torch.no_grad():
            outputs = model(inputs)  # leaves the root's weights gathered
        expected, result = whole.balance(), parts.balance()
        with torch.no_grad():
            name = str(choice)
            found[f"{name} outputs"] = float((model(inputs) - outputs).abs().max())
        found[f"{name} log_scales"] = float((result.log_scales - expected.log_scales).abs().max())
        found[f"{name} converged"] = result.converged
        found[f"{name} reports"] = [
            abs(getattr(result, key) - getattr(expected, key))
            for key in ("norm_before", "norm_after", "imbalance_before", "imbalance_after")
        ]
        for plan in (whole, parts):
            plan.history.record()
        found[f"{name} reports"] += [
            abs(one - other) for one, other in zip(parts.history.rows()[0], whole.history.rows()[0], strict=True)
        ]
        found[f"{name} held"] = [str(item) for item in result.held] == [str(item) for item in expected.held]
        found[f"{name} layer norms"] = distance(parts.layer_norms(), whole.layer_norms())
        found[f"{name} weights"] = distance(state_of(model), state_of(alone))
        found[f"{name} bits"] = digest([result.log_scales, parts.norm(), parts.imbalance(), parts.channel_imbalance()])
        parts.rescale(-result.log_scales)
        found[f"{name} undone"] = distance(state_of(model), state_of(build(ConvNet)))
    return found


@check
def dead_and_pruned(folder: Path) -> dict[str, Any]:
    """Channels that lead nowhere are found across shards, and overflow on one process holds the channel on all."""
    pair: list[tuple[Any, dict[str, Tensor], list[str]]] = []
    for cut in (False, True):
        model = build(Residual)
        with torch.no_grad():
            model.up.weight[1] = 0  # nothing writes this channel but hidden unit 9, which nothing writes:
            model.write.weight[1, :9] = 0
            model.read.weight[9] = 0
            model.up.weight[7] = 0  # only hidden unit 2 writes this one, and reads nothing else
            model.write.weight[7, [0, 1, *range(3, 10)]] = 0
            model.read.weight[2, [*range(7), 8]] = 0
            model.write.weight[[*range(7), 8], 2] = 0
            model.down.weight[:, 4] *= 1e-120  # this channel would have to grow by more than its bias can
            model.read.weight[:, 4] *= 1e-120
            model.up.bias[4] = 1e280
        if cut:
            shard(model)
        plan = plan_for(model, Residual)
        result = plan.balance()
        pair.append((result, state_of(model), [str(item) for item in plan.held]))
    (expected, whole, held), (result, parts, held_together) = pair
    return {
        "held": [str(item) for item in expected.held],
        "same": [str(item) for item in result.held] == [str(item) for item in expected.held] and held == held_together,
        "log_scales": float((result.log_scales - expected.log_scales).abs().max()),
        "weights": distance(parts, whole),
        "bits": digest([result.log_scales]),
    }


@check
def cycles(folder: Path) -> dict[str, Any]:
    """Several cycles at once against the same in one process, and how often processes talk."""
    found: dict[str, Any] = {}
    found["groups"] = len(plan_for(build(ConvNet), ConvNet).groups)
    counted = {"batchnorm": "folded", "biases": "count"}
    cases: list[tuple[type[nn.Module], int, dict[str, Any]]] = [
        (ConvNet, 1, {}),
        (ConvNet, 3, {}),
        (ConvNet, 1, {"p": math.inf}),
        (ConvNet, 2, {"p": 12.0}),
        (ConvNet, 1, counted),
        (ConvNet, 2, {"scales": "pow2"}),
        (ConvNet, 1, {"solver": "gauss-seidel"}),
        (Upsampling, 1, {}),
        (Upsampling, 2, counted),
    ]
    for kind, count, choice in cases:
        alone, model = build(kind), sharded(kind)
        whole, parts = plan_for(alone, kind, **choice), plan_for(model, kind, **choice)
        optimizers = [optimizer_for("AdamW", one) for one in (alone, model)]
        for one, optimizer, plan in zip((alone, model), optimizers, (whole, parts), strict=True):
            one(batch(kind)).square().mean().backward()
            optimizer.step()
            with Collectives() as collectives, warnings.catch_warnings():
                warnings.simplefilter("ignore", fxenorm.errors.FxenormWarning)  # the model of one process alone
                plan.step(optimizer, cycles=count, grads=True)
        name = f"{kind.__name__} {choice} x {count}"
        found[f"{name} collectives"] = collectives.names
        gradients = [{n: full(p.grad) for n, p in one.named_parameters()} for one in (alone, model)]
        found[f"{name} gradients"] = distance(gradients[1], gradients[0])
        found[f"{name} distance"] = distance(state_of(model, optimizers[1]), state_of(alone, optimizers[0]))
    return found


@check
def tracked(folder: Path) -> dict[str, Any]:
    """Copies of a sharded model follow, a module or tensors by name, and one that lies otherwise is refused."""
    alone, model = build(ConvNet), sharded(ConvNet)
    states = []
    for one, other in ((alone, build(ConvNet)), (model, sharded(ConvNet))):
        plan = plan_for(one, ConvNet)
        named = {name: parameter.detach() * 1.5 for name, parameter in one.named_parameters()}
        plan.track(named)
        plan.track(other)
        plan.step()
        plan.balance()
        states.append({**state_of(other), **{f"{name} by name": full(tensor) for name, tensor in named.items()}})
    mixed = plan_for(alone, ConvNet)
    mixed.track(model)
    return {"distance": distance(states[1], states[0]), "mixed": refusal(mixed.step)}


@check
def memory(folder: Path) -> dict[str, Any]:
    """What `step` allocates beside what is there, in bytes."""
    width, layers = 256, 6
    model = nn.Sequential(*[part for _ in range(layers) for part in (nn.Linear(width, width, bias=False), nn.ReLU())]).double()
    plan = fxenorm.analyze(model, torch.zeros(2, width, dtype=torch.float64))
    for layer in model:
        shard(layer)
    shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, width, dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    plan.step(optimizer)
    parts = [p.to_local() for p in model.parameters()]
    with Allocations(parts) as seen:
        plan.step(optimizer)
    return {
        "peak": seen.peak,
        "largest": seen.largest,
        "shard": sum(part.numel() * part.element_size() for part in parts),
        "largest part": max(part.numel() * part.element_size() for part in parts),
        "whole weight": width * width * 8,
        "vectors": 2 * plan.num_scales * 8,
    }
