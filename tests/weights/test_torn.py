"""A model is never torn: an error or a signal in the middle of the writes leaves all of them done, or none."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import RescaleError
from fxenorm.kernels.writes import Write, carry_out

from ..helpers import draw_log_scales
from ..interrupted_for_real import interrupt

INPUTS = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Session:
    """A model with momentum, a copy that follows, and one weight that compiled code leaves to the eager executor."""

    def __init__(self, backend: str, optimizer: str = "Adam") -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).double()
        self.model[2].weight = nn.Parameter(torch.randn(7, 8, 2, dtype=torch.float64)[..., 0])
        self.plan = fxenorm.analyze(self.model, INPUTS, backend=backend)  # type: ignore[arg-type]
        self.optimizer = getattr(torch.optim, optimizer)(self.model.parameters(), lr=1e-3)
        self.average = copy.deepcopy(self.model)
        self.plan.track(self.average)
        for _ in range(2):
            self.optimizer.zero_grad()
            self.model(INPUTS).square().sum().backward()
            self.optimizer.step()
        with torch.no_grad():
            for model in (self.model, self.average):
                model[0].weight *= 5
        self.expected, self.invariants = self.outputs(), self.state_times_weights()

    def outputs(self) -> list[Tensor]:
        with torch.no_grad():
            return [self.model(INPUTS), self.average(INPUTS)]

    def state_times_weights(self) -> list[Tensor]:
        """What no rescaling changes, of the model and of the state that follows it."""
        found = []
        for parameter, state in self.optimizer.state.items():
            for key, power in {"exp_avg": 1, "exp_avg_sq": 2}.items():
                if key in state:
                    found.append(state[key] * parameter.detach() ** power)
            if "row_var" in state:
                rows, columns = state["row_var"], state["col_var"]
                found.append(rows * columns / rows.mean(-2, keepdim=True) * parameter.detach() ** 2)
        return found

    def is_whole(self) -> bool:
        """Whether everything is as before, or everything is rescaled."""
        now = [*self.outputs(), *self.state_times_weights()]
        return all(
            torch.allclose(one, other, rtol=1e-9, atol=1e-12)
            for one, other in zip(now, [*self.expected, *self.invariants], strict=True)
        )

    def hook(self) -> None:
        """The plan's own hook, called as an optimizer's step calls it."""
        with self.plan.attach(self.optimizer) as handle:
            handle._after_step(self.optimizer)


CALLS: dict[str, Callable[[Session], Any]] = {
    "step": lambda session: session.plan.step(session.optimizer),
    "later step": lambda session: session.plan.step(session.optimizer),
    "cycles": lambda session: session.plan.step(session.optimizer, cycles=2),
    "balance": lambda session: session.plan.balance(session.optimizer),
    "rescale": lambda session: session.plan.rescale(draw_log_scales(session.plan), session.optimizer),
    "hook": lambda session: session.hook(),
}


class Stop(BaseException):
    """No error that anything expects."""


@contextmanager
def stopping(place: int, moment: str, times: int) -> Iterator[list[int]]:
    """Raises at some write, before or after it, once or each time from there on; tells how many writes there were."""
    count = [0]
    original = {kind: kind.forward for kind in every_kind(Write) if "forward" in vars(kind)}
    backward = {kind: kind.backward for kind in every_kind(Write) if "backward" in vars(kind)}

    def wrapped(function: Callable[[Any], None]) -> Callable[[Any], None]:
        def run(self: Any) -> None:
            count[0] += 1
            stops = place <= count[0] < place + times
            if stops and moment == "before":
                raise Stop
            function(self)
            if stops:
                raise Stop

        return run

    for kind, function in original.items():
        kind.forward = wrapped(function)  # type: ignore[method-assign]
    for kind, function in backward.items():
        kind.backward = wrapped(function)  # type: ignore[method-assign]
    try:
        yield count
    finally:
        for kind, function in original.items():
            kind.forward = function  # type: ignore[method-assign]
        for kind, function in backward.items():
            kind.backward = function  # type: ignore[method-assign]


def every_kind(kind: type) -> Iterator[type]:
    for below in kind.__subclasses__():
        if below.__name__ != "_Onwards":
            yield below
        yield from every_kind(below)


@pytest.mark.parametrize("backend", ["compiled", "eager"])
@pytest.mark.parametrize(("call", "optimizer"), [*((call, "Adam") for call in CALLS), ("step", "Adafactor")])
def test_an_error_at_any_write_leaves_all_or_nothing(backend: str, call: str, optimizer: str) -> None:
    session = Session(backend, optimizer)
    if call == "later step":
        session.plan.step(session.optimizer)
    saved = copy.deepcopy((session.model.state_dict(), session.optimizer.state_dict(), session.average.state_dict()))

    def start_again() -> None:
        for part, state in zip((session.model, session.optimizer, session.average), saved, strict=True):
            part.load_state_dict(copy.deepcopy(state))
        session.plan.rescaler.last_step.prepared = session.plan.rescaler.last_step.prepared if call == "later step" else None

    with stopping(10**9, "before", 1) as count:
        CALLS[call](session)
    assert session.is_whole() and count[0] >= 2
    for place in range(1, count[0] + 1):
        for moment, times in (("before", 1), ("after", 1), ("before", 10**9), ("after", 2)):
            start_again()
            with pytest.raises(Stop), stopping(place, moment, times):
                CALLS[call](session)
            if times == 1:
                assert session.is_whole(), (place, moment)
                assert not session.plan.rescaler.journal.is_open
            session.plan.repair()
            assert session.is_whole(), (place, moment, times)
    start_again()
    with pytest.raises(Stop), stopping(2, "before", 10**9):
        CALLS[call](session)
    CALLS[call](session)
    assert session.is_whole()


@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_tensors_that_others_wrote_since_are_left_alone_and_named(backend: str) -> None:
    session = Session(backend)
    with pytest.raises(Stop), stopping(2, "before", 10**9):
        session.plan.rescale(draw_log_scales(session.plan), session.optimizer)
    with torch.no_grad():
        session.model[4].weight.fill_(0.5)
    with pytest.raises(RescaleError, match=r"4\.weight"):
        session.plan.step(session.optimizer)
    assert bool((session.model[4].weight == 0.5).all())
    session.plan.step(session.optimizer)
    replaced = Session(backend)
    with pytest.raises(Stop), stopping(2, "before", 10**9):
        replaced.plan.rescale(draw_log_scales(replaced.plan), replaced.optimizer)
    replaced.model[4].weight = nn.Parameter(torch.ones(3, 7, dtype=torch.float64))
    with pytest.raises(RescaleError, match=r"4\.weight"):
        replaced.plan.repair()
    assert bool((replaced.model[4].weight == 1).all())


def test_finishing_that_fails_again_is_told_and_kept() -> None:
    session = Session("eager")
    with pytest.raises(Stop), stopping(2, "before", 10**9):
        session.plan.step(session.optimizer)

    def out_of_memory(self: Any) -> None:
        raise MemoryError("none left")

    kind = type(session.plan.rescaler.journal._left[-1])  # type: ignore[index]
    forward = kind.forward
    kind.forward = out_of_memory  # type: ignore[method-assign]
    try:
        with pytest.raises(RescaleError, match="none left"):
            session.plan.norm()
    finally:
        kind.forward = forward  # type: ignore[method-assign]
    session.plan.norm()
    assert session.is_whole()


@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_real_signals_leave_the_model_whole(backend: str) -> None:
    found = interrupt(12, backend=backend, seed=0)
    assert found.signals == 12 and found.torn == 0


class _Done(Write):
    """One operation on a tensor, and the one that takes it back."""

    def __init__(self, tensor: torch.Tensor, forward: Callable[[], object], backward: Callable[[], object]) -> None:
        super().__init__(["tensor"], [tensor])
        self._ways = forward, backward

    def forward(self) -> None:
        self._ways[0]()

    def backward(self) -> None:
        self._ways[1]()


def _stopped() -> None:
    raise ValueError("stopped")


def test_writes_are_undone_from_the_last_to_the_first() -> None:
    """Of two writes to one tensor the second must be taken back before the first."""
    tensor = torch.tensor([3.0, 5.0])
    twice = _Done(tensor, lambda: tensor.mul_(2), lambda: tensor.div_(2))
    more = _Done(tensor, lambda: tensor.add_(1), lambda: tensor.sub_(1))
    with pytest.raises(ValueError, match="stopped") as raised:
        carry_out([twice, more, _Done(tensor, _stopped, _stopped)])
    assert tensor.tolist() == [3.0, 5.0] and not (twice.written or more.written)
    assert not hasattr(raised.value, "unfinished") and not hasattr(raised.value, "carried_out")


def test_where_one_write_cannot_be_undone_the_others_are_and_it_is_told() -> None:
    one, other = torch.ones(1), torch.ones(1)
    stuck = _Done(one, lambda: one.mul_(2), _stopped)
    free = _Done(other, lambda: other.mul_(2), lambda: other.div_(2))
    for writes in ([stuck, free], [free, stuck]):
        one.fill_(1.0)
        stuck.written = free.written = False
        with pytest.raises(ValueError, match="stopped") as raised:
            carry_out([*writes, _Done(other, _stopped, _stopped)])
        assert (one.item(), other.item()) == (2.0, 1.0) and stuck.written and not free.written
        assert [write.written for write in raised.value.unfinished] == [write.written for write in writes] + [False]
