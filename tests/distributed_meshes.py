"""Meshes that fit, and all that is refused; what one process of `test_distributed` measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import fxenorm
from tests.distributed_harness import check, optimizer_for, plan_for, refusal, shard, sharded
from tests.distributed_models import (
    Collectives,
    Perceptron,
    Sequence,
    batch,
    build,
    digest,
    distance,
    full,
    state_of,
    train,
)
from tests.releases import MULTIPLIES_PARTIAL_SUMS


@check
def meshes(folder: Path) -> dict[str, Any]:
    """Tensor parallelism in one dimension; with fully_shard and with replicas in two."""
    found: dict[str, Any] = {}
    world = dist.get_world_size()
    styles: dict[str, Any] = {"up": ColwiseParallel(), "middle": RowwiseParallel()}
    models: dict[str, nn.Module] = {}
    models["tensor parallel"] = parallelize_module(build(Perceptron, 8), init_device_mesh("cpu", (world,)), styles)
    if world == 4:
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        both = parallelize_module(build(Perceptron, 8), grid["tensor"], styles)
        models["both"] = shard(both, grid["data"])
        models["replicas"] = sharded(Perceptron, 8, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards")))
        grid = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("stages", "copies", "shards"))
        models["part of the world"] = sharded(Perceptron, 8, mesh=grid["copies", "shards"])
    alone = build(Perceptron, 8)
    optimizer = optimizer_for("AdamW", alone)
    batches = [batch(Perceptron, seed) for seed in range(5)]
    plan = plan_for(alone, Perceptron, 8)
    train(alone, plan, optimizer, batches)
    trained = state_of(alone, optimizer)
    expected = plan.balance(optimizer)
    for name, model in models.items():
        optimizer = optimizer_for("AdamW", model)
        bound = plan.bind(model)
        train(model, bound, optimizer, batches)
        found[f"{name} distance"] = distance(state_of(model, optimizer), trained)
        with Collectives() as collectives:
            bound.step(optimizer)
        found[f"{name} collectives"] = collectives.names
        result = bound.balance(optimizer)
        found[f"{name} norm"] = abs(result.norm_after - expected.norm_after)
        found[f"{name} bits"] = digest([result.log_scales, *state_of(model).values()])
    traced = parallelize_module(build(Perceptron, 8), init_device_mesh("cpu", (world,)), styles)
    found["fingerprint"] = fxenorm.analyze(traced, batch(Perceptron)).fingerprint == plan.fingerprint
    return found


@check
def sequence_parallel(folder: Path) -> dict[str, Any]:
    """Norms see a part of each sequence: their gradients, and SGD's momentum, are sums that nobody has added up yet."""
    alone, whole = build(Sequence), batch(Sequence)
    model = parallelize_module(
        build(Sequence),
        init_device_mesh("cpu", (dist.get_world_size(),)),
        {
            "first": SequenceParallel(),
            "up": ColwiseParallel(input_layouts=Shard(1)),
            "down": RowwiseParallel(output_layouts=Shard(1)),
            "second": SequenceParallel(),
            "last": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        },
    )
    momentum = 0.9 if MULTIPLIES_PARTIAL_SUMS else 0.0
    part = whole.chunk(dist.get_world_size(), 1)[dist.get_rank()]
    states = []
    for one, inputs in ((alone, whole), (model, part)):
        plan, optimizer = plan_for(one, Sequence), torch.optim.SGD(one.parameters(), lr=0.02, momentum=momentum)
        for _ in range(3):
            optimizer.zero_grad()
            one(inputs).square().mean().backward()
            optimizer.step()
            plan.step(optimizer, grads=True)
        gradients = {f"gradient of {name}": full(parameter.grad) for name, parameter in one.named_parameters()}
        states.append({**state_of(one, optimizer), **gradients})
    partial = any(place.is_partial() for p in model.parameters() for place in p.grad.placements)
    return {"distance": distance(states[1], states[0]), "partial": partial}


@check
def refusals(folder: Path) -> dict[str, Any]:
    """Errors on all processes, before anything is written on any."""
    found: dict[str, Any] = {}
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))

    model = build(Perceptron, 8)
    plan = plan_for(model, Perceptron, 8)
    partial = DTensor.from_local(model.middle.weight.detach().clone(), mesh, [Partial()])
    model.middle.weight = nn.Parameter(partial)
    before = digest([model.up.weight, model.down.weight, model.middle.weight.to_local()])
    found["partial"] = [
        refusal(call) for call in (plan.step, plan.balance, plan.norm, lambda: plan.rescale(torch.ones(plan.num_scales)))
    ]
    found["partial unchanged"] = before == digest([model.up.weight, model.down.weight, model.middle.weight.to_local()])

    if world == 4:
        apart = build(Perceptron, 8)
        for name, ranks in (("up", [0, 1] if rank < 2 else [2, 3]), ("middle", [0, 2] if rank % 2 == 0 else [1, 3])):
            grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
            axis = grid["columns" if name == "up" else "rows"]
            assert axis.mesh.tolist() == ranks
            layer = apart.get_submodule(name)
            layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), axis, [Shard(0)]))
        found["meshes"] = refusal(plan.bind(apart).step)

    # One process alone has something that does not fit.
    model = sharded(Perceptron, 8)
    plan, optimizer = plan.bind(model), optimizer_for("AdamW", model)
    train(model, plan, optimizer, [batch(Perceptron)])
    good = optimizer.state[model.down.weight]["exp_avg"]
    before = digest(state_of(model, optimizer).values())
    calls = {
        "step": lambda: plan.step(optimizer),
        "cycles": lambda: plan.step(optimizer, cycles=2),
        "balance": lambda: plan.balance(optimizer),
        "rescale": lambda: plan.rescale(torch.ones(plan.num_scales), optimizer),
    }
    for name, call in calls.items():
        if rank == world - 1:
            optimizer.state[model.down.weight]["exp_avg"] = torch.zeros(2, 2)
        found[f"one {name}"] = refusal(call)
        optimizer.state[model.down.weight]["exp_avg"] = good
    if world > 1:
        model.up.bias.requires_grad_(rank < world - 1)
        found["flags"] = refusal(lambda: plan.step(optimizer))
        model.up.bias.requires_grad_(True)
        found["other scales"] = refusal(lambda: plan.rescale(torch.full((plan.num_scales,), float(rank))))
    with torch.no_grad():
        largest = model.up.bias.to_local()[:1].clone()
        model.up.bias.to_local()[:1].fill_(1e300)  # of the first channel that each process holds
    found["overflow"] = refusal(lambda: plan.rescale(100.0 * (torch.arange(plan.num_scales) == 0)))
    with torch.no_grad():
        model.up.bias.to_local()[:1].copy_(largest)
    adafactor = torch.optim.Adafactor(model.parameters())
    adafactor.state[model.up.weight] = {"row_var": torch.zeros(8, 1), "col_var": torch.zeros(1, 6)}
    found["adafactor"] = refusal(lambda: plan.step(adafactor))
    found["unchanged"] = before == digest(state_of(model, optimizer).values())
    plan.step(optimizer)  # and it goes on

    flat = FullyShardedDataParallel(build(Perceptron, 8), device_id=torch.device("cpu"))
    found["flat"] = [refusal(lambda: fxenorm.analyze(flat, batch(Perceptron))), refusal(lambda: plan.bind(flat))]
    inner = build(Perceptron, 8)
    earlier = plan.bind(inner)
    FullyShardedDataParallel(inner, device_id=torch.device("cpu"))
    found["flat"].append(refusal(earlier.step))
    return found
