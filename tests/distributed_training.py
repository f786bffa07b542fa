"""Training on several processes against training on one; what one process of `test_distributed` measures."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import fxenorm
from tests.distributed_harness import check, optimizer_for, plan_for, sharded
from tests.distributed_models import (
    Collectives,
    ConvNet,
    Perceptron,
    Transformer,
    batch,
    build,
    digest,
    distance,
    state_of,
    train,
)

STEPS = 20


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


@check
def scaler(folder: Path) -> dict[str, Any]:
    """A GradScaler whose third step meets an infinity on the first process: it does not count anywhere."""
    found: dict[str, Any] = {}
    for fused in (False, True):
        model = sharded(Perceptron, 8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        handle = plan_for(model, Perceptron, 8).attach(optimizer)
        skipped = []
        for step in range(4):
            before = digest(state_of(model).values())
            optimizer.zero_grad()
            loss = model(batch(Perceptron, step)).square().mean()
            scaler.scale(loss * math.inf if step == 2 and dist.get_rank() == 0 else loss).backward()
            scaler.step(optimizer)
            scaler.update()
            skipped.append(before == digest(state_of(model).values()))
        found[f"fused {fused} skipped"], found[f"fused {fused} steps"] = skipped, handle.steps
    return found


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
