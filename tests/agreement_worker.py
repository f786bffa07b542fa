"""What one of the two processes of `test_agreement` does: every case in turn, its findings written as JSON.

Run by ``python -m tests.agreement_worker FOLDER RANK``. The second process differs from the first in one thing at a time; what
should come of it is said in `test_agreement`. Whoever waits for the other in vain meets gloo's time-out, an error of its own.
"""

from __future__ import annotations

import copy
import datetime
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fxenorm
from fxenorm.kernels import build, choice
from tests.distributed_models import Collectives, digest, full
from tests.test_torn import stopping

INPUTS = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
KINDS = ("ddp", "fsdp")
SYMMETRY: list[fxenorm.Plan] = []


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 4)).double()
    with torch.no_grad():
        model[0].weight *= 5
    return model


class Session:
    """A model on both processes, after one step of training."""

    def __init__(self, kind: str, backend: str = "eager", **options: Any) -> None:
        self.kind, self.net = kind, net()
        self.model: nn.Module = self.net
        if kind == "ddp":
            self.model = DistributedDataParallel(self.net)
        else:
            fully_shard(self.net)
        self.plan = fxenorm.analyze(net(), INPUTS, backend=backend, **options).bind(self.model)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        self.train()

    def train(self, seed: int = 0) -> None:
        """One step of training, on other data on each process."""
        self.optimizer.zero_grad()
        self.model(INPUTS + seed + dist.get_rank()).square().sum().backward()
        self.optimizer.step()

    def tensors(self) -> list[Tensor]:
        """Weights and state, as they lie on this process."""
        state = [value for parameter in self.net.parameters() for value in self.optimizer.state.get(parameter, {}).values()]
        return [getattr(tensor, "to_local", lambda t=tensor: t)().detach() for tensor in (*self.net.parameters(), *state)]

    def bits(self) -> str:
        """A hash of them."""
        return digest(self.tensors())

    def outputs(self) -> Tensor:
        """What the whole model computes; all processes have to ask."""
        weights = {name: full(parameter) for name, parameter in self.net.named_parameters()}
        with torch.no_grad():
            return torch.func.functional_call(net(), weights, INPUTS)

    def products(self) -> list[Tensor]:
        """What no rescaling changes: first moments times weights."""
        found = [(parameter, self.optimizer.state[parameter]["exp_avg"]) for parameter in self.net.parameters()]
        return [full(parameter) * full(moment) for parameter, moment in found]


def alike(session: Session) -> bool:
    """Whether both processes have the same bits; of a sharded model, whether it goes on."""
    if session.kind == "fsdp":
        return True
    bits: list[Any] = [None, None]
    dist.all_gather_object(bits, session.bits())
    return bits[0] == bits[1]


def outcome(call: Callable[[], Any]) -> str:
    """The type and the text of what a call raises; empty for nothing."""
    try:
        call()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return ""


# ---------------------------------------------------------------- one thing is different on the second process

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
def agree_every(session: Session, stack: ExitStack) -> dict[str, Any]:
    return {"agree_every": 3}


@way
def out_of_memory(session: Session, stack: ExitStack) -> dict[str, Any]:
    failing = mock.Mock(side_effect=torch.OutOfMemoryError("none left"))
    stack.enter_context(mock.patch("fxenorm.plan.snapshot.find_followers", failing))
    session.plan._last_step = None  # else nothing is looked up
    return {}


@way
def interrupted(session: Session, stack: ExitStack) -> dict[str, Any]:
    failing = mock.Mock(side_effect=KeyboardInterrupt)
    stack.enter_context(mock.patch("fxenorm.plan.snapshot.find_followers", failing))
    session.plan._last_step = None
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
    for name in ("broken_state", "flags", "out_of_memory"):
        for method in ("balance", "rescale"):
            with ExitStack() as stack:
                if second:
                    WAYS[name](session, stack)
                note(f"{method} {name}", calls[method])
    note("in the end", lambda: (plan.step(optimizer), calls["rescale"](), calls["balance"]()))
    found["in the end"]["alike"] = alike(session)
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


# ---------------------------------------------------------------- errors in the middle of the writes

CALLS: dict[str, Callable[[Session], Any]] = {
    "step": lambda session: session.plan.step(session.optimizer),
    "cycles": lambda session: session.plan.step(session.optimizer, cycles=2),
    "balance": lambda session: session.plan.balance(session.optimizer),
    "rescale": lambda session: session.plan.rescale(torch.linspace(-1, 1, session.plan.num_scales), session.optimizer),
    "hook": lambda session: hook(session),
}


def hook(session: Session) -> None:
    """The plan's own hook, called as an optimizer's step calls it."""
    with session.plan.attach(session.optimizer) as handle:
        handle._after_step(session.optimizer)


@dataclass
class Torn:
    """What came of errors at all writes of one call.

    Attributes:
        writes: how many there are.
        said: what the processes raised.
        broken: where something was not as it should be.
    """

    writes: int = 0
    said: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)


def close(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors agree to rounding."""
    return all(torch.allclose(one, other, rtol=1e-9, atol=1e-12) for one, other in zip(some, others, strict=True))


def injected(folder: Path) -> dict[str, Any]:
    """An error at every write of the second process: the models are whole, and equal after plan.repair()."""
    found: dict[str, Any] = {}
    rank = dist.get_rank()
    for kind, backend in (("ddp", "eager"), ("ddp", "compiled"), ("fsdp", "eager")):
        session = Session(kind, backend)
        saved = [tensor.clone() for tensor in session.tensors()]
        expected, invariants = session.outputs(), session.products()
        for name, call in CALLS.items():
            torn = Torn()

            def start_again(session: Session = session, saved: list[Tensor] = saved) -> None:
                with torch.no_grad():
                    for tensor, value in zip(session.tensors(), saved, strict=True):
                        tensor.copy_(value)

            start_again()
            with stopping(10**9, "before", 1) as count:
                call(session)
            torn.writes = count[0]
            reached = [tensor.clone() for tensor in session.tensors()]
            counts = [torch.zeros(1), torch.zeros(1)]
            dist.all_gather(counts, torch.tensor([float(torn.writes)]))
            for place in range(1, int(counts[1]) + 1):
                for times in (1, 3, 10**9):
                    start_again()
                    at_fault = rank == 1
                    with stopping(place if at_fault else 10**9, "before", times):
                        torn.said.add(outcome(lambda call=call, session=session: call(session)).split(":")[0])
                    where = f"{place} {times}"
                    local = [parameter.detach() for parameter in session.net.parameters()] if kind == "ddp" else []
                    whole = not local or close([session.outputs()], [expected])
                    if not whole and not session.plan._journal.is_open:
                        torn.broken.append(f"{where} torn")
                    session.plan.repair()
                    if not close(session.tensors(), reached):
                        torn.broken.append(f"{where} other weights than without an error")
                    if times == 1 and session.bits() != digest(reached):
                        torn.broken.append(f"{where} other bits than without an error")
                    if not close([session.outputs(), *session.products()], [expected, *invariants]):
                        torn.broken.append(f"{where} another function")
            found[f"{kind} {backend} {name}"] = {**vars(torn), "said": sorted(torn.said)}
    return found


def before_the_writes(folder: Path) -> dict[str, Any]:
    """An error on the second process after all have agreed, and before its first write."""
    found: dict[str, Any] = {}
    for kind, backend in (("ddp", "eager"), ("ddp", "compiled"), ("fsdp", "eager")):
        for resumed in ("repair", "step", "written since"):
            session = Session(kind, backend)
            expected = Session(kind, backend)
            expected.plan.step(expected.optimizer)
            failing = mock.Mock(side_effect=torch.OutOfMemoryError("none left"))
            places = ["fxenorm.plan.snapshot.Snapshot.apply", "fxenorm.plan.fast_step.PreparedStep.run"]
            with ExitStack() as stack:
                if dist.get_rank() == 1:
                    for place in places:
                        stack.enter_context(mock.patch(place, failing))
                said = outcome(lambda session=session: session.plan.step(session.optimizer))
            name = f"{kind} {backend} {resumed}"
            if resumed == "written since":
                session.train()
                again = outcome(lambda session=session: session.plan.step(session.optimizer))
                found[name] = {"said": said, "again": again}
                continue
            if resumed == "repair":
                session.plan.repair()
            else:
                expected.plan.step(expected.optimizer)
                session.plan.step(session.optimizer)
            found[name] = {"said": said, "same": session.bits() == expected.bits(), "alike": alike(session)}
    return found


def in_the_middle(folder: Path) -> dict[str, Any]:
    """An error on the second process between two collectives of one call."""
    found: dict[str, Any] = {}
    for name, call in {"cycles": lambda s: s.plan.step(s.optimizer, cycles=3), "balance": CALLS["balance"]}.items():
        session = Session("fsdp")
        expected = session.outputs()
        calls = [0]
        kept = fxenorm.kernels.eager.EagerBackend.contributions

        def failing(self: Any, *arguments: Any, calls: list[int] = calls, kept: Any = kept) -> Tensor:
            calls[0] += 1
            if calls[0] == 2:
                raise torch.OutOfMemoryError("none left")
            return kept(self, *arguments)

        with ExitStack() as stack:
            if dist.get_rank() == 1:
                stack.enter_context(mock.patch.object(fxenorm.kernels.eager.EagerBackend, "contributions", failing))
            said = outcome(lambda call=call, session=session: call(session))
        found[name] = {"said": said, "whole": close([session.outputs()], [expected])}
    return found


# ---------------------------------------------------------------- collectives, agree_every, executors


def collectives(folder: Path) -> dict[str, Any]:
    """How many collectives steps make."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        session = Session(kind)
        for every in (1, 3):
            session.plan.step(session.optimizer, agree_every=every)
            names = []
            for _ in range(6):
                with Collectives() as seen:
                    session.plan.step(session.optimizer, agree_every=every)
                names.append(seen.names)
            found[f"{kind} {every}"] = names
            found[f"{kind} {every} alike"] = alike(session)
            # From here on every step agrees again.
            for _ in range(3):
                session.plan.step(session.optimizer, agree_every=1)
    return found


def missed(folder: Path) -> dict[str, Any]:
    """With agree_every, an error between two agreements is told at the next one."""
    session = Session("ddp")
    said = []
    for step in range(3):
        with ExitStack() as stack:
            if step == 1 and dist.get_rank() == 1:
                WAYS["broken_state"](session, stack)
            said.append(outcome(lambda: session.plan.step(session.optimizer, agree_every=2)))
    return {"said": said}


@contextmanager
def own_kernels(ready: Callable[[], bool]) -> Iterator[None]:
    """Within it this process has the compiled kernels when a function says so."""
    real = build.kernels()
    real.wait()

    class Late:
        """In the place of `Kernels`."""

        failure = note = ""
        warned = False

        @property
        def library(self) -> Any:
            return real.library if ready() else None

        def poll(self) -> bool:
            return ready()

        def wait(self, seconds: float = 0.0) -> bool:
            return ready()

    late = Late()
    with mock.patch.object(choice, "kernels", lambda: late):
        yield


def executors(folder: Path) -> dict[str, Any]:
    """Replicas of which the second has no compiler, or has its kernels later: executors by step, and the weights' bits."""
    found: dict[str, Any] = {}
    now = [0]
    arrival = 30 if dist.get_rank() == 1 else 10
    with own_kernels(lambda: now[0] >= arrival):
        session = Session("ddp", "auto")
        names, bits = [], []
        for step in range(50):
            now[0] = step
            session.train(step)
            session.plan.step(session.optimizer)
            names.append(session.plan._snapshot().backend.name)
            bits.append(alike(session))
        found["late"] = {"names": names, "alike": all(bits)}
    failing = copy.copy(build.kernels())
    if dist.get_rank() == 1:
        failing.library, failing.failure = None, "no compiler is here"
    with mock.patch.object(choice, "kernels", lambda: failing), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session = Session("ddp", "auto")
        bits = []
        for step in range(100):
            session.train(step)
            session.plan.step(session.optimizer)
            bits.append(alike(session))
        found["never"] = {"name": session.plan._snapshot().backend.name, "alike": all(bits)}
        found["never"]["warned"] = [str(item.message) for item in caught if item.category is fxenorm.FxenormWarning]
    return found


CASES = (differences, other_calls, hooks, injected, before_the_writes, in_the_middle, collectives, missed, executors)


def main(folder: Path, rank: int, chosen: list[str]) -> None:
    """Runs every case."""
    torch.set_num_threads(1)
    build.kernels().wait()
    limit = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    found: dict[str, Any] = {}
    for case in CASES:
        if chosen and case.__name__ not in chosen:
            continue
        try:
            found[case.__name__] = case(folder)
        except BaseException:
            found[case.__name__] = {"error": traceback.format_exc()}
            break
    (folder / f"rank {rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
