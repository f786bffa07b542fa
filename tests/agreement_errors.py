"""Errors of the second of two processes during and between the writes, and what agreements cost and decide."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

import fxenorm
from fxenorm.kernels import choice
from fxenorm.kernels.cpu import build
from tests.agreement_session import KINDS, Session, alike, close, outcome
from tests.agreement_ways import WAYS
from tests.distributed_models import Collectives, digest
from tests.weights.test_torn import stopping

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
                    if not whole and not session.plan.rescaler.journal.is_open:
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
            places = ["fxenorm.weights.targets.Targets.apply", "fxenorm.rescale.prepared_step.PreparedStep.run"]
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
        kept = fxenorm.kernels.reference.executor.EagerBackend.contributions

        def failing(self: Any, *arguments: Any, calls: list[int] = calls, kept: Any = kept) -> Tensor:
            calls[0] += 1
            if calls[0] == 2:
                raise torch.OutOfMemoryError("none left")
            return kept(self, *arguments)

        with ExitStack() as stack:
            if dist.get_rank() == 1:
                stack.enter_context(mock.patch.object(fxenorm.kernels.reference.executor.EagerBackend, "contributions", failing))
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
            names.append(session.plan.rescaler.open().backend.name)
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
        found["never"] = {"name": session.plan.rescaler.open().backend.name, "alike": all(bits)}
        found["never"]["warned"] = [str(item.message) for item in caught if item.category is fxenorm.FxenormWarning]
    return found
