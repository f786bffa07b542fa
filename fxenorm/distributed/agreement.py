"""One agreement before a write: the digests of every process's next step, and errors told to all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import AgreementError, FxenormError
from .ranks import Ranks

__all__ = ["ELSEWHERE", "TOPICS", "Answer", "LateAnswers", "Meeting", "Statement", "settle"]

ELSEWHERE = "another process could not take part, so nothing was rescaled on any"

_DISAGREE = "the processes disagree about {}"
TOPICS = {
    "plan": (_DISAGREE, "Build the model and the plan alike everywhere"),
    "call": (_DISAGREE, "Make the same call with the same arguments on every process"),
    "tracked copies": (_DISAGREE, "Track the same copies on every process"),
    "optimizers": (_DISAGREE, "Pass the same optimizers everywhere, with state of the same kinds: load all checkpoints alike"),
    "flags": (_DISAGREE, "Set requires_grad of the same parameters everywhere"),
    "types": (_DISAGREE, "Give every parameter the same type and memory layout everywhere"),
    "free scales": (_DISAGREE, "Their weights, or what of them is zero, differ: load all of them from one checkpoint"),
    "log_scales": (
        "{} differ from process to process, which would tear the model apart",
        "Give every process the same, for example drawn from generators with one seed",
    ),
}
"""The facts that have to be equal: how a difference is said, and its remedy."""

_FAILED, _OPEN, _EXECUTOR, _DIGESTS = range(4)
_SHOWN = 5
"""Items of a difference in a message: enough to recognise the difference, few enough for one line a process."""


@dataclass(frozen=True)
class Statement:
    """The next step of one process, in words that others can compare.

    Attributes:
        topics: by topic of `TOPICS`, the statement in short items; a topic that is missing says nothing.
        error: why this process cannot take part; None: it can.
    """

    topics: Mapping[str, Sequence[str]] = field(default_factory=dict)
    error: BaseException | None = None

    @cached_property
    def digests(self) -> tuple[int, ...]:
        """By topic, a number below 2 ** 48, which a float64 holds exactly."""
        return tuple(_digest(self.topics.get(topic, ())) for topic in TOPICS)

    def notes(self, like: Tensor, *, is_open: Tensor | None = None, executor: int = 2) -> Tensor:
        """(3 + topics,) numbers >= 0 for all processes.

        Args:
            like: gives type and device; nothing is read from it.
            executor: how far this process's compiled kernels are: 0 never, 1 not yet, 2 here.
            is_open: 0-d, whether anything is to move; None: it is.
        """
        known = torch.tensor(
            [float(self.error is not None), 1.0, float(executor), *map(float, self.digests)],
            dtype=like.dtype,
            device="cpu",
            pin_memory=like.device.type == "cuda",
        ).to(like.device, non_blocking=True)
        if is_open is not None:
            known[_OPEN] = is_open.reshape(()).to(known)
        return known


@dataclass(frozen=True)
class Answer:
    """The statements of all processes, as numbers on the device on which they arrived.

    Attributes:
        board: (processes, notes).
    """

    board: Tensor

    @property
    def is_refused(self) -> Tensor:
        """0-d bool: whether a process cannot take part, or processes differ."""
        digests = self.board[:, _DIGESTS:]
        return (self.board[:, _FAILED] > 0).any() | (digests != digests[0]).any()

    @property
    def goes_on(self) -> Tensor:
        """0-d bool: whether anything is to move."""
        return ~self.is_refused & (self.board[:, _OPEN] > 0).all()

    @cached_property
    def rows(self) -> list[list[float]]:
        """The board as numbers; waits for the device."""
        rows: list[list[float]] = self.board.tolist()
        return rows

    @property
    def moves(self) -> bool:
        """`goes_on`, of an answer that was settled."""
        return all(row[_OPEN] > 0 for row in self.rows)

    @property
    def executor(self) -> int:
        """The least that the compiled kernels of any process are ready: 0 never, 1 not yet, 2 here."""
        return int(min(row[_EXECUTOR] for row in self.rows))

    @property
    def without_kernels(self) -> list[int]:
        """The places of the processes that never get compiled kernels."""
        return [place for place, row in enumerate(self.rows) if not row[_EXECUTOR]]


class Meeting:
    """Lets the processes of one model tell one another their next step, by one collective.

    Each fills a row of a board of zeros, and the boards are added up, so that every process sees all rows.

    Args:
        ranks: the processes.
        p: the norm's exponent; what decides between collectives must not depend on anything else.
        least: how many numbers travel behind the board at least. Calls that differ must not differ in size, or the
            collective itself fails; None: the board travels alone.
    """

    def __init__(self, ranks: Ranks, p: float = 2.0, least: int | None = None) -> None:
        self.ranks = ranks
        self._p, self._least = p, least

    def ask(self, statement: Statement, is_open: Tensor | None = None, executor: int = 2) -> Answer:
        """Tells and hears, and raises nothing; every process has to call it. For the arguments see `Statement.notes`."""
        return self.tell(statement.notes(_number(self.ranks), is_open=is_open, executor=executor))

    def tell(self, notes: Tensor) -> Answer:
        """Tells and hears as `ask` does, from the numbers that `Statement.notes` gave."""
        if self._least is None:
            return Answer(self.ranks.told(notes))
        _, board = self.ranks.combined(notes[:0], self._p, None, notes, self._least)
        return Answer(board)

    def agree(self, statement: Statement, is_open: Tensor | None = None, executor: int = 2) -> Answer:
        """`ask` and `settle`; waits for the device."""
        answer = self.ask(statement, is_open, executor)
        settle(self.ranks, answer, statement)
        return answer


def _number(ranks: Ranks) -> Tensor:
    """Returns an empty 0-d tensor of the type and device in which numbers travel."""
    kind = torch.float32 if ranks.device.type == "mps" else torch.float64
    return torch.empty((), dtype=kind, device=ranks.device)


def settle(ranks: Ranks, answer: Answer, statement: Statement) -> None:
    """Raises on every process where any cannot take part, or where they differ; reads the answer.

    Only then a second collective tells everybody's reasons.

    Raises:
        AgreementError: another process has an error, or processes differ. A process's own error is raised as it is.
    """
    failed, topics = _complaints(answer.rows)
    if not failed and not topics:
        return
    said = ranks.gather(_reasons(statement, topics))
    if statement.error is not None:
        raise statement.error
    raise _refusal(answer.rows, ranks.members, failed, topics, said)


def _complaints(rows: Sequence[Sequence[float]]) -> tuple[list[int], list[str]]:
    """Returns the places of processes with an error, and the topics about which the others differ."""
    failed = [place for place, row in enumerate(rows) if row[_FAILED] > 0]
    whole = [row[_DIGESTS:] for row in rows if not row[_FAILED] > 0]
    if all(row == whole[0] for row in whole):
        return failed, []
    topics = [topic for number, topic in enumerate(TOPICS) if any(row[number] != whole[0][number] for row in whole)]
    return failed, topics


def _reasons(statement: Statement, topics: Sequence[str]) -> dict[str, Any]:
    """Returns the reasons of one process, for the others to hear where something is wrong."""
    error = statement.error
    if error is not None:
        text = str(error) if isinstance(error, FxenormError) else (str(error).splitlines() or [""])[0]
        return {"error": f"{type(error).__name__}: {text}"}
    return {topic: tuple(statement.topics.get(topic, ())) for topic in topics}


def _refusal(
    rows: Sequence[Sequence[float]],
    members: Sequence[int],
    failed: Sequence[int],
    topics: Sequence[str],
    said: Sequence[Mapping[str, Any]] | None,
) -> AgreementError:
    """Returns the error of a process that is not at fault itself, or not alone.

    Args:
        rows: the notes of all processes.
        members: their ranks.
        failed, topics: see `_complaints`.
        said: by process, its `_reasons`; None: they are not known.
    """
    if failed:
        if said is None:
            ranks = ", ".join(str(members[place]) for place in failed)
            return AgreementError(f"{ELSEWHERE}; its own message says why (rank {ranks})")
        reasons = "; ".join(f"rank {members[place]}: {said[place].get('error', '')}" for place in failed)
        return AgreementError(f"{ELSEWHERE}: {reasons}")
    # Differences behind the first, in the order of `TOPICS`, may only follow from it.
    topic, number = topics[0], list(TOPICS).index(topics[0])
    opening, remedy = TOPICS[topic]
    alike: dict[float, list[int]] = {}
    for place, value in enumerate(row[_DIGESTS + number] for row in rows):
        alike.setdefault(value, []).append(place)
    sides = []
    for places in alike.values():
        side = ("rank " if len(places) == 1 else "ranks ") + ", ".join(str(members[place]) for place in places)
        sides.append(side if said is None else f"{side}: {_alone(said, places[0], topic)}")
    listed = "; ".join(sides)
    return AgreementError(f"{opening.format(_NAMES.get(topic, topic))} ({listed}): nothing was rescaled on any of them. {remedy}")


def _alone(said: Sequence[Mapping[str, Any]], place: int, topic: str) -> str:
    """Returns the items of a topic that one process states and not all do, in words."""
    shared = set.intersection(*(set(one[topic]) for one in said))
    items = [item for item in said[place][topic] if item not in shared]
    return (", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")) or "nothing more"


_NAMES = {
    "plan": "the plan",
    "call": "the call",
    "optimizers": "the optimizers",
    "tracked copies": "the tracked copies",
    "flags": "requires_grad",
    "types": "the tensors' types",
    "free scales": "which scales can move",
}


def _digest(items: Sequence[str]) -> int:
    """Returns a number below 2 ** 48 that stands for some texts; 0 for none."""
    if not items:
        return 0
    found = hashlib.sha256()
    for item in items:
        found.update(item.encode())
        found.update(b"\0")
    return int(found.hexdigest()[:12], 16)


class LateAnswers:
    """Answers that a step heard on a device, without waiting for it: errors in them are raised at the next step."""

    def __init__(self) -> None:
        self._pending: tuple[Tensor, Any, Sequence[int]] | None = None

    def note(self, answer: Answer, ranks: Ranks) -> None:
        """Keeps an answer that is still on its way."""
        board = answer.board
        copy = torch.empty(board.shape, dtype=board.dtype, device="cpu", pin_memory=board.device.type != "cpu")
        copy.copy_(board, non_blocking=True)
        event = torch.get_device_module(board.device.type).Event()
        event.record()
        self._pending = copy, event, ranks.members

    def raise_known(self) -> None:
        """Raises the error of an answer that has arrived since.

        Raises:
            AgreementError: see `settle`; it names the processes and topics alone.
        """
        if self._pending is not None and self._pending[1].query():
            (board, _, members), self._pending = self._pending, None
            failed, topics = _complaints(board.tolist())
            if failed or topics:
                raise _refusal(board.tolist(), members, failed, topics, None)
