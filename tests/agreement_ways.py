"""Calls of which one thing is different on the second of two processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

import fxenorm
from tests.agreement_session import INPUTS, KINDS, Session, alike, close, net, outcome
from tests.distributed_harness import plan_for, sharded
from tests.distributed_models import Upsampling, digest

Change = Callable[[Session, ExitStack], dict[str, Any]]
WAYS: dict[str, Change] = {}


def way(function: Change) -> Change:
    """Decorator: changes one thing on the second process, until the stack is closed; returns other arguments of the call."""
    WAYS[function.__name__] = function
    return function


@way
def broken_state(session: Session, stack: ExitStack) -> dict[str, Any]:
    state = session.optimizer.state[session.net[2].weight]
    stack.callback(state.update, exp_avg=state["exp_avg"])
    state["exp_avg"] = torch.zeros(2, 2)
    return {}


@way
def flags(session: Session, stack: ExitStack) -> dict[str, Any]:
    session.net[0].weight.requires_grad_(False)
    stack.callback(session.net[0].weight.requires_grad_, True)
    return {}


@way
def all_flags(session: Session, stack: ExitStack) -> dict[str, Any]:
    session.net.requires_grad_(False)
    stack.callback(session.net.requires_grad_, True)
    return {}


@way
def cycles(session: Session, stack: ExitStack) -> dict[str, Any]:
    return {"cycles": 2}


@way
def wrong_cycles(session: Session, stack: ExitStack) -> dict[str, Any]:
    return {"cycles": 0}


@way
def no_optimizer(session: Session, stack: ExitStack) -> dict[str, Any]:
    return {"optimizer": None, "state": "keep"}


@way
def wrong_optimizer(session: Session, stack: ExitStack) -> dict[str, Any]:
    return {"optimizer": "Adam"}


@way
def other_optimizer(session: Session, stack: ExitStack) -> dict[str, Any]:
    return {"optimizer": torch.optim.SGD(session.net.parameters(), lr=0.1)}


@way
def state_reset(session: Session, stack: ExitStack) -> dict[str, Any]:
    return {"state": "reset"}


@way
def state_keep(session: Session, stack: ExitStack) -> dict[str, Any]:
    return {"state": "keep"}


@way
def no_state(session: Session, stack: ExitStack) -> dict[str, Any]:
    kept = session.optimizer.state
    stack.callback(setattr, session.optimizer, "state", kept)
    session.optimizer.state = type(kept)(dict)
    return {}


@way
def grads(session: Session, stack: ExitStack) -> dict[str, Any]:
    return {"grads": True}


@way
def track(session: Session, stack: ExitStack) -> dict[str, Any]:
    named = {name: parameter.detach().clone() for name, parameter in session.net.named_parameters()}
    stack.callback(session.plan.track(named).remove)
    return {}


@way
def other_strides(session: Session, stack: ExitStack) -> dict[str, Any]:
    kept = session.net[2].weight
    stack.callback(setattr, session.net[2], "weight", kept)
    whole = torch.ones(16, 17, dtype=torch.float64).T if session.kind == "ddp" else kept.detach().clone().float()
    session.net[2].weight = nn.Parameter(whole)
    session.optimizer.state[session.net[2].weight] = session.optimizer.state[kept]
    stack.callback(session.optimizer.state.pop, session.net[2].weight)
    return {}


@way
def agree_every(session: Session, stack: ExitStack) -> dict[str, Any]:
    return {"agree_every": 3}


@way
def out_of_memory(session: Session, stack: ExitStack) -> dict[str, Any]:
    failing = mock.Mock(side_effect=torch.OutOfMemoryError("none left"))
    stack.enter_context(mock.patch("fxenorm.weights.weights.find_followers", failing))
    session.plan.rescaler.last_step.prepared = None  # else nothing is looked up
    return {}


@way
def interrupted(session: Session, stack: ExitStack) -> dict[str, Any]:
    failing = mock.Mock(side_effect=KeyboardInterrupt)
    stack.enter_context(mock.patch("fxenorm.weights.weights.find_followers", failing))
    session.plan.rescaler.last_step.prepared = None
    return {}


@way
def replaced_weight(session: Session, stack: ExitStack) -> dict[str, Any]:
    kept = session.net[2].weight
    stack.callback(setattr, session.net[2], "weight", kept)
    session.net[2].weight = nn.Parameter(torch.ones(3, 3, dtype=torch.float64))
    return {}


OPTIONS: dict[str, dict[str, Any]] = {
    "excluded": {"exclude": ["2.*"]},
    "c": {"c": 2.0},
    "p": {"p": 3.0},
    "infinite p": {"p": float("inf")},
    "solver": {"solver": "gauss-seidel"},
    "scales": {"scales": "pow2"},
    "limit": {"max_log_scale": 0.1},
}


def one_difference(kind: str, name: str, session: Session) -> dict[str, Any]:
    """The findings of one way in which the second process differs."""
    rank = dist.get_rank()
    arguments: dict[str, Any] = {"optimizer": session.optimizer}
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        plan = session.plan
        if rank == 1 and name in WAYS:
            arguments.update(WAYS[name](session, stack))
        if rank == 1 and name in OPTIONS:
            plan = fxenorm.analyze(net(), INPUTS, backend="eager", **OPTIONS[name]).bind(session.model)
        before = session.bits()
        found["said"] = outcome(lambda: plan.step(**arguments))
        found["unchanged"] = session.bits() == before
    found["goes on"] = outcome(lambda: session.plan.step(session.optimizer))
    found["moved"] = session.bits() != before
    found["alike"] = alike(session)
    return found


def differences(folder: Path) -> dict[str, Any]:
    """Each way in which the second process may differ in a step."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        session = Session(kind)
        for name in (*WAYS, *OPTIONS):
            session.train()
            found[f"{kind} {name}"] = one_difference(kind, name, session)
    return found


def other_calls(folder: Path) -> dict[str, Any]:
    """balance, rescale and attach with one thing different on the second process."""
    return {f"{kind} {name}": found for kind in KINDS for name, found in other_calls_on(kind).items()}


def other_calls_on(kind: str) -> dict[str, Any]:
    """`other_calls` on one kind of model."""
    second, session = dist.get_rank() == 1, Session(kind)
    plan, optimizer = session.plan, session.optimizer
    ones = torch.ones(plan.num_scales, dtype=torch.float64)
    calls: dict[str, Callable[[], Any]] = {
        "log_scales": lambda: plan.rescale(2 * ones if second else ones, optimizer),
        "wrong log_scales": lambda: plan.rescale(ones[1:] if second else ones, optimizer),
        "rescale without": lambda: plan.rescale(ones, None if second else optimizer),
        "overflow": lambda: plan.rescale(1e3 * ones if second else ones, optimizer),
        "tolerance": lambda: plan.balance(optimizer, tol=1e-3 if second else 1e-6),
        "balance or step": lambda: plan.balance(optimizer) if second else plan.step(optimizer),
        "balance or rescale": lambda: plan.balance(optimizer) if second else plan.rescale(ones, optimizer),
        "attach every": lambda: plan.attach(optimizer, every=2 if second else 1),
        "attach wrong": lambda: plan.attach(optimizer, every=0 if second else 1),
        "balance": lambda: plan.balance(optimizer),
        "rescale": lambda: plan.rescale(ones, optimizer),
    }
    found: dict[str, Any] = {}

    def note(name: str, call: Callable[[], Any]) -> None:
        """What comes of one call."""
        before = session.bits()
        found[name] = {"said": outcome(call), "unchanged": session.bits() == before}

    for name in [*calls][:-2]:
        note(name, calls[name])
    with ExitStack() as stack:
        if second:
            WAYS["replaced_weight"](session, stack)
        for name in ("norm", "imbalance", "layer_norms", "channel_imbalance"):
            # Replicas need no word for these.
            if kind == "fsdp":
                note(f"read {name} replaced_weight", getattr(plan, name))
    for name in ("broken_state", "flags", "out_of_memory"):
        for method in ("balance", "rescale"):
            with ExitStack() as stack:
                if second:
                    WAYS[name](session, stack)
                note(f"{method} {name}", calls[method])
    note("in the end", lambda: (plan.step(optimizer), calls["rescale"](), calls["balance"]()))
    found["in the end"]["alike"] = alike(session)
    return found


def other_weights(folder: Path) -> dict[str, Any]:
    """balance of replicas whose weights differ, in what is zero of them, or by a little."""
    found: dict[str, Any] = {}
    for name, factor in {"zeros": 0.0, "a little": 1.01}.items():
        session = Session("ddp")
        if dist.get_rank() == 1:
            with torch.no_grad():
                session.net[2].weight[:, 3] *= factor
        start, before = session.outputs(), session.bits()
        results: list[Any] = []
        said = outcome(lambda session=session, results=results: results.append(session.plan.balance(session.optimizer)))
        found[name] = {"said": said, "unchanged": session.bits() == before, "whole": close([session.outputs()], [start])}
        found[name]["log_scales"] = digest(result.log_scales for result in results)
    return found


def folded(folder: Path) -> dict[str, Any]:
    """Folded BatchNorms that have to be put together before sums are formed: they travel first, and what is said with them."""
    found: dict[str, Any] = {}
    second = dist.get_rank() == 1
    for p in (2.0, float("inf"), 12.0):
        options: dict[str, Any] = {"batchnorm": "folded", "biases": "count", "p": p}
        model = sharded(Upsampling)
        plan, other = plan_for(model, Upsampling, **options), plan_for(model, Upsampling, p=p)
        failing = mock.Mock(side_effect=torch.OutOfMemoryError("none left"))
        calls: dict[str, Callable[[], Any]] = {
            "cycles": lambda plan=plan: plan.step(cycles=2 if second else 1),
            "plan": lambda plan=plan, other=other: (other if second else plan).step(),
            "out_of_memory": lambda plan=plan: plan.step(cycles=2),
            "well": lambda plan=plan: plan.step(cycles=2),
        }
        for name, call in calls.items():
            before = digest(parameter.to_local() for parameter in model.parameters())
            with ExitStack() as stack:
                if second and name == "out_of_memory":
                    stack.enter_context(mock.patch("fxenorm.weights.weights.find_followers", failing))
                said = outcome(call)
            unchanged = digest(parameter.to_local() for parameter in model.parameters()) == before
            found[f"p={p} {name}"] = {"said": said, "unchanged": unchanged}
    return found


def hooks(folder: Path) -> dict[str, Any]:
    """The hook of an attached plan, with the whole model frozen on the second process, and with an error there."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        for name in ("all_flags", "broken_state", "out_of_memory"):
            session = Session(kind)
            with session.plan.attach(session.optimizer) as handle, ExitStack() as stack:
                if dist.get_rank() == 1:
                    WAYS[name](session, stack)
                before = session.bits()
                said = outcome(lambda handle=handle, session=session: handle._after_step(session.optimizer))
                found[f"{kind} {name}"] = {"said": said, "unchanged": session.bits() == before}
    return found
