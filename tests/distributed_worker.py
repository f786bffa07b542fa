"""What one process of `test_distributed` does: every check of one world size, its findings written as JSON.

Run by ``python -m torch.distributed.run --nproc-per-node N distributed_worker.py FOLDER``. Checks measure and compare; what the
numbers should be is said in `test_distributed`.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import fxenorm
from fxenorm.errors import FxenormError
from tests.distributed_models import (
    Allocations,
    Collectives,
    ConvNet,
    Perceptron,
    Residual,
    Transformer,
    batch,
    build,
    digest,
    distance,
    full,
    state_of,
    train,
)

Check = Callable[[Path], dict[str, Any]]
CHECKS: dict[str, Check] = {}
STEPS = 20


def check(function: Check) -> Check:
    """Decorator: one of the checks."""
    CHECKS[function.__name__] = function
    return function


def sharded(kind: type[nn.Module], *args: Any, mesh: Any = None) -> nn.Module:
    """The model of `build`, its children and itself under fully_shard."""
    model = build(kind, *args)
    options = {} if mesh is None else {"mesh": mesh}
    children = [child for child in model.children() if next(child.parameters(), None) is not None and kind is not Transformer]
    for child in children:
        fully_shard(child, **options)
    return fully_shard(model, **options)


def optimizer_for(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW."""
    if name == "SGD":
        return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)


PLANS: dict[Any, fxenorm.Plan] = {}


def plan_for(model: nn.Module, kind: type[nn.Module], *args: Any, **options: Any) -> fxenorm.Plan:
    """A plan on the model, from one analysis of an ordinary one: the options tried here do not change what is found."""
    key = (kind, *args)
    if key not in PLANS:
        PLANS[key] = fxenorm.analyze(build(kind, *args), batch(kind))
    known = PLANS[key]
    return fxenorm.Plan(known.symmetry, dataclasses.replace(known.options, **options), model)


def refusal(call: Callable[[], Any]) -> str:
    """The type and text of the error that a call raises; empty for none."""
    try:
        call()
    except FxenormError as error:
        return f"{type(error).__name__}: {error}"
    return ""


# ------------------------------------------------------------------------------------------------ training


def _training(kind: type[nn.Module]) -> dict[str, Any]:
    """DDP and FSDP2 runs against the run of an ordinary model, with the same batches on every process."""
    found: dict[str, Any] = {}
    batches = [batch(kind, seed) for seed in range(STEPS)]
    for name, attach in (("SGD", True), ("AdamW", False)):
        alone = build(kind)
        optimizer = optimizer_for(name, alone)
        start = state_of(alone)
        train(alone, plan_for(alone, kind), optimizer, batches, attach=attach)
        expected = state_of(alone, optimizer)
        found[f"{name} moved"] = distance(state_of(alone), start)
        for wrapper in ("ddp", "fsdp"):
            model = DistributedDataParallel(build(kind)) if wrapper == "ddp" else sharded(kind)
            optimizer = optimizer_for(name, model)
            plan = plan_for(model, kind)
            train(model, plan, optimizer, batches, attach=attach)
            reached = state_of(model, optimizer)
            found[f"{name} {wrapper} distance"] = distance(reached, expected)
            found[f"{name} {wrapper} bits"] = digest([*reached.values(), plan.norm(), plan.imbalance()])
    return found


@check
def convolutions(folder: Path) -> dict[str, Any]:
    return _training(ConvNet)


@check
def transformer(folder: Path) -> dict[str, Any]:
    return _training(Transformer)


@check
def different_batches(folder: Path) -> dict[str, Any]:
    """DDP with other batches on each process: running statistics differ, the weights must not."""
    found: dict[str, Any] = {}
    for batchnorm in ("affine", "folded"):
        model = DistributedDataParallel(build(ConvNet))
        optimizer = optimizer_for("AdamW", model)
        plan = plan_for(model, ConvNet, batchnorm=batchnorm)
        train(model, plan, optimizer, [batch(ConvNet, 10 * seed + dist.get_rank()) for seed in range(5)])
        # Buffers are broadcast when a forward pass begins, so after it every process has its own.
        parameters = dict(model.module.named_parameters())
        state = [value for p in parameters.values() for value in optimizer.state[p].values()]
        found[f"{batchnorm} weights"] = digest([*parameters.values(), *state, plan.norm(), plan.imbalance()])
        found[f"{batchnorm} statistics"] = digest(model.buffers())
        with Collectives() as collectives:
            plan.step(optimizer)
        found[f"{batchnorm} collectives"] = collectives.names
        result = plan.balance(optimizer)
        found[f"{batchnorm} balanced"] = digest([*parameters.values(), result.log_scales])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        unwrapped = build(ConvNet)
        plan_for(unwrapped, ConvNet, batchnorm="folded").step(optimizer_for("SGD", unwrapped))
    found["warned"] = [str(item.message) for item in caught if item.category is fxenorm.errors.FxenormWarning]
    return found


# ------------------------------------------------------------------------------------------------ the plan on shards


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
    plan = fxenorm.Plan.from_dict(PLANS[ConvNet,].to_dict(), model)
    fully_shard(model)
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
    for shard in (False, True):
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
        if shard:
            fully_shard(model)
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
    for count, choice in ((1, {}), (3, {}), (1, {"p": math.inf}), (2, {"p": 12.0}), (1, {"batchnorm": "folded"})):
        alone, model = build(ConvNet), sharded(ConvNet)
        whole, parts = plan_for(alone, ConvNet, **choice), plan_for(model, ConvNet, **choice)
        optimizers = [optimizer_for("AdamW", one) for one in (alone, model)]
        for one, optimizer, plan in zip((alone, model), optimizers, (whole, parts), strict=True):
            one(batch(ConvNet)).square().mean().backward()
            optimizer.step()
            with Collectives() as collectives, warnings.catch_warnings():
                warnings.simplefilter("ignore", fxenorm.errors.FxenormWarning)  # the model of one process alone
                plan.step(optimizer, cycles=count, grads=True)
        name = f"{choice} x {count}"
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
        fully_shard(layer)
    fully_shard(model)
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


# ------------------------------------------------------------------------------------------------ meshes


def _parallel(model: nn.Module, mesh: Any, styles: dict[str, Any]) -> nn.Module:
    """Tensor parallelism."""
    return parallelize_module(model, mesh, styles)


@check
def meshes(folder: Path) -> dict[str, Any]:
    """Tensor parallelism in one dimension; with fully_shard and with replicas in two."""
    found: dict[str, Any] = {}
    world = dist.get_world_size()
    styles = {"up": ColwiseParallel(), "middle": RowwiseParallel()}
    models: dict[str, nn.Module] = {}
    models["tensor parallel"] = _parallel(build(Perceptron, 8), init_device_mesh("cpu", (world,)), styles)
    if world == 4:
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        both = _parallel(build(Perceptron, 8), grid["tensor"], styles)
        models["both"] = fully_shard(both, mesh=grid["data"])
        models["replicas"] = sharded(Perceptron, 8, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards")))
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
    traced = _parallel(build(Perceptron, 8), init_device_mesh("cpu", (world,)), styles)
    found["fingerprint"] = fxenorm.analyze(traced, batch(Perceptron)).fingerprint == plan.fingerprint
    return found


# ------------------------------------------------------------------------------------------------ refusals


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


# ------------------------------------------------------------------------------------------------ checkpoints


class _Run:
    """Training by AdamW with a plan attached."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.optimizer = model, torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.handle = plan_for(model, ConvNet).attach(self.optimizer, every=2)

    def run(self, steps: range) -> None:
        """Some steps."""
        for step in steps:
            self.optimizer.zero_grad()
            self.model(batch(ConvNet, step)).square().mean().backward()
            self.optimizer.step()

    def save(self, folder: Path) -> None:
        """A distributed checkpoint."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        checkpoint.save({"model": model, "optimizer": optimizer, "plan": self.handle.state_dict()}, checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        """A distributed checkpoint, of any number of processes."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        state = {"model": model, "optimizer": optimizer, "plan": self.handle.state_dict()}
        checkpoint.load(state, checkpoint_id=folder)
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.handle.load_state_dict(state["plan"])


@check
def checkpoints(folder: Path) -> dict[str, Any]:
    """Saved in the middle and resumed: by as many processes, and by more than saved it."""
    found: dict[str, Any] = {}
    world = dist.get_world_size()
    alone = _Run(build(ConvNet))
    alone.run(range(20))
    run = _Run(sharded(ConvNet))
    run.run(range(9))
    run.save(folder / f"of {world}")
    run.run(range(9, 20))
    expected = state_of(run.model, run.optimizer)
    found["distance"] = distance(expected, state_of(alone.model, alone.optimizer))
    for size in (1, 2, 4):
        if (folder / f"of {size}").exists():
            resumed = _Run(sharded(ConvNet))
            resumed.load(folder / f"of {size}")
            resumed.run(range(9, 20))
            reached = state_of(resumed.model, resumed.optimizer)
            found[f"from {size}"] = distance(reached, expected)
            found[f"steps from {size}"] = resumed.handle.steps
            if size == world:
                found["same bits"] = digest(reached.values()) == digest(expected.values())
    return found


def main(folder: Path) -> None:
    """Runs every check, or those that are named."""
    torch.set_num_threads(1)
    warnings.simplefilter("error", fxenorm.errors.FxenormWarning)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=100))
    found: dict[str, Any] = {}
    for name in sys.argv[2:] or CHECKS:
        begun = time.monotonic()
        try:
            found[name] = CHECKS[name](folder)
            found[name]["seconds"] = time.monotonic() - begun
        except Exception:
            # Others may wait for this process in vain, so the run is over.
            found[name] = {"error": traceback.format_exc()}
            break
    path = folder / f"world {dist.get_world_size()} rank {dist.get_rank()}.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    if not any("error" in result for result in found.values()):
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
