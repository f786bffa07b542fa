"""Ways in which values leave forward: by return in any kind of object, as Python numbers, in attributes and arguments."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextvars
import dataclasses
import functools
import itertools
import math
import operator
import queue
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

IN, FEATURES, HIDDEN, OUT = 4, 8, 6, 3


class Leaving(nn.Module):
    """Features, which `leave` lets out in some way, and behind them a hidden layer, whose channels stay free."""

    shared: list[Any] = []  # noqa: RUF012  (a list of the class is one of the ways)

    def __init__(self, leave: Callable[[Leaving, Tensor, Any, Any], Any], by_value: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(IN, FEATURES), nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, OUT)
        self.extra = nn.Linear(FEATURES, 2)
        self.leave, self.by_value = leave, by_value
        self.drop = nn.Dropout(0.0)  # the two modes differ, so both are traced
        self.register_buffer("seen", torch.zeros(FEATURES))
        self.losses: list[Any] = []
        self.store: dict[str, Any] = {}
        self.helper = types.SimpleNamespace()
        self.calls = 0

    def forward(self, x: Tensor, into: Any = None) -> Any:
        f = self.drop(self.a(x).relu())
        y = self.c(self.b(f).relu())
        if self.by_value and y.sum() > 1e30:  # what torch.export refuses
            y = -y
        left = self.leave(self, f, y, into)
        return y if left is None else (y, left)


class Slots:
    __slots__ = ("__hidden", "other")

    def __init__(self, value: Any) -> None:
        self.__hidden = value


class SlotsBelow(Slots):
    __slots__ = ()


class Box:
    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value

    @property
    def doubled(self) -> Any:
        return self.value * 2


class Iterable:
    """Makes its items when they are asked for."""

    def __init__(self, value: Any) -> None:
        self.make = lambda: value

    def __iter__(self) -> Iterator[Any]:
        yield self.make()


class MyDict(dict):
    pass


@dataclasses.dataclass
class Data:
    value: Any


Named = collections.namedtuple("Named", "value")


def done(future: Any, value: Any) -> Any:
    future.set_result(value)
    return future


def module_with(value: Tensor, buffer: bool) -> nn.Module:
    module = nn.Module()
    if buffer:
        module.register_buffer("value", value)
    else:
        module.value = value
    return module


def generator(model: Leaving, f: Tensor) -> Iterator[Tensor]:
    yield model.extra(f)  # runs a part of the model, which nobody has run before


async def coroutine(f: Tensor) -> Tensor:
    return f


def cycle(f: Tensor) -> list[Any]:
    first: list[Any] = []
    first.append({"back": first, "value": f})
    return first


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def attached(y: Tensor, f: Tensor) -> Tensor:
    z = y * 2
    z.features = f  # type: ignore[attr-defined]
    return z


def remembered(f: Tensor) -> Any:
    @functools.lru_cache
    def size(value: Tensor) -> int:
        return value.ndim

    size(f)
    return size


def put(waiting: Any, value: Any) -> Any:
    waiting.put(value)
    return waiting


def in_context(f: Tensor) -> contextvars.Context:
    context = contextvars.Context()
    context.run(contextvars.ContextVar[Any]("features").set, f)
    return context


def of_class(f: Tensor) -> type:
    return type("Result", (), {"value": f, "__module__": "user"})


def with_property(f: Tensor) -> Any:
    """An object that hands out what its class shares with this function."""

    class Result:
        @property
        def value(self) -> Tensor:
            return f

    return Result()


def keyworded(value: Any = None, *, key: Any = None) -> Any:
    return value


Leave = Callable[[Leaving, Tensor, Tensor], Any]
RETURNED: dict[str, Leave] = {
    "nothing around it": lambda model, f, y: f,
    "dict": lambda model, f, y: {"f": f},
    "dict.values": lambda model, f, y: {"f": f}.values(),
    "dict.items": lambda model, f, y: {"f": f}.items(),
    "keys of a dict": lambda model, f, y: {f: 1},
    "dict of its own class": lambda model, f, y: MyDict(f=f),
    "mappingproxy": lambda model, f, y: types.MappingProxyType({"f": f}),
    "ChainMap": lambda model, f, y: collections.ChainMap({}, {"f": f}),
    "UserList": lambda model, f, y: collections.UserList([f]),
    "set": lambda model, f, y: {f},
    "deque": lambda model, f, y: collections.deque([f]),
    "queue": lambda model, f, y: put(queue.Queue(), f),
    "SimpleQueue": lambda model, f, y: put(queue.SimpleQueue(), f),
    "namedtuple": lambda model, f, y: Named(f),
    "dataclass": lambda model, f, y: Data(f),
    "SimpleNamespace": lambda model, f, y: types.SimpleNamespace(f=f),
    "attribute of an object": lambda model, f, y: Box(f),
    "slots": lambda model, f, y: Slots(f),
    "slots of a base class": lambda model, f, y: SlotsBelow(f),
    "attribute of a class": lambda model, f, y: of_class(f),
    "attribute of the object's class": lambda model, f, y: of_class(f)(),
    "property of a class made in forward": lambda model, f, y: with_property(f),
    "attribute of a tensor": lambda model, f, y: attached(y, f),
    "array of objects": lambda model, f, y: np.array([None, Box(f)], dtype=object),
    "list iterator": lambda model, f, y: iter([y, f]),
    "dict iterator": lambda model, f, y: iter({"f": f}.values()),
    "reversed": lambda model, f, y: reversed([f]),
    "enumerate": lambda model, f, y: enumerate([f]),
    "map": lambda model, f, y: map(lambda value: value * 2, [f]),
    "zip": lambda model, f, y: zip([y], [f], strict=True),
    "filter": lambda model, f, y: filter(None.__ne__, [f]),
    "chain": lambda model, f, y: itertools.chain([y], [f]),
    "islice of an endless one": lambda model, f, y: itertools.islice(itertools.repeat(f), 3),
    "generator expression": lambda model, f, y: (value for value in (y, f)),
    "object that iterates": lambda model, f, y: Iterable(f),
    "coroutine": lambda model, f, y: coroutine(f),
    "closure": lambda model, f, y: lambda: f,
    "default argument": lambda model, f, y: lambda value=f: value,
    "partial": lambda model, f, y: functools.partial(keyworded, f),
    "keyword of a partial": lambda model, f, y: functools.partial(keyworded, key=f),
    "bound method": lambda model, f, y: Box(f).get,
    "bound method of a list": lambda model, f, y: [f].__getitem__,
    "bound method of the tensor": lambda model, f, y: f.square,
    "methodcaller": lambda model, f, y: operator.methodcaller("append", f),
    "what a cached function was called with": lambda model, f, y: remembered(f),
    "cell": lambda model, f, y: types.CellType(f),
    "weak reference": lambda model, f, y: (weakref.ref(model.store.setdefault("kept", Box(f))),),
    "future": lambda model, f, y: done(concurrent.futures.Future(), f),
    "future of torch": lambda model, f, y: done(torch.futures.Future(), f),
    "fork": lambda model, f, y: torch.jit.fork(torch.mul, f, 2),
    "context": lambda model, f, y: in_context(f),
    "exception": lambda model, f, y: ValueError(f),
    "attribute of a module": lambda model, f, y: module_with(f, buffer=False),
    "buffer of a module": lambda model, f, y: module_with(f, buffer=True),
    "distribution": lambda model, f, y: torch.distributions.Normal(f, 1.0, validate_args=False),
    "packed sequence": lambda model, f, y: nn.utils.rnn.pack_sequence([f]),
    "cyclic": lambda model, f, y: cycle(f),
    "deeply nested": lambda model, f, y: nested(f, 3000),
}
"""By name, what is returned beside the output: from each of them the features, or a function of all of them, can be had."""

NUMBERS: dict[str, Leave] = {
    "item": lambda model, f, y: f.square().mean().item(),
    "arithmetic of item": lambda model, f, y: 2 * f.square().mean().item() + 1,
    "round": lambda model, f, y: round(f.mean().item(), 2),
    "tolist": lambda model, f, y: f[0].tolist(),
    "float": lambda model, f, y: float(f.mean()),
    "int": lambda model, f, y: int(f.mean() * 100),
    "bool": lambda model, f, y: bool(f.mean() > 0.1),
    "complex": lambda model, f, y: complex(f.mean()),
    "math": lambda model, f, y: math.sqrt(f.mean()),
    "numpy": lambda model, f, y: f.detach().numpy(),
    "asarray": lambda model, f, y: np.asarray(f.detach()),
    "memoryview": lambda model, f, y: memoryview(f.detach().numpy()),
    "bytes": lambda model, f, y: f.detach().numpy().tobytes(),
    "format string": lambda model, f, y: f"{f.mean().item():.3f}",
    "format of a tensor": lambda model, f, y: f"{f.mean():.3f}",
    "str of a tensor": lambda model, f, y: str(f.mean()),
    "repr": lambda model, f, y: repr(f),
    "numbers in a list in a dict": lambda model, f, y: {"stats": [f.mean().item(), f.amax().item()]},
}
"""By name, what Python has of the features in the end."""


def _into_list(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    model.losses.append(f.mean())


def _into_attribute(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    model.aux = f.square().mean()


def _into_child(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    model.b.aux = (f,)


def _into_dict(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    model.store["aux"] = f


def _into_helper(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    model.helper.aux = {"aux": f}


def _into_class(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    type(model).shared[:] = [f]


def _into_closure(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    model.aux = lambda: f


def _into_buffer(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    model.seen = f.detach().mean(0)


def _into_argument(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    into.append(f)


def _number(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    model.aux = f.mean().item()


def _float(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    model.aux = float(f.mean())


LEFT: dict[str, tuple[Callable[..., Any], str]] = {
    "attribute": (_into_attribute, "self.aux"),
    "attribute of a child": (_into_child, "self.b.aux.0"),
    "list": (_into_list, "self.losses.0"),
    "dict": (_into_dict, "self.store.aux"),
    "helper object": (_into_helper, "self.helper.aux.aux"),
    "list of the class": (_into_class, "self.shared.0"),
    "closure": (_into_closure, "self.aux.f.value"),
    "buffer": (_into_buffer, "self.seen"),
    "list that was passed": (_into_argument, "inputs.1.0"),
    "number": (_number, "self.aux"),
    "float": (_float, "self.aux"),
}
"""By name, how forward leaves something of the features behind, and the path of it."""


def _overwritten(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    model.aux = f
    model.aux = None


def _of_weights(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    model.reg = model.a.weight.square().sum() + torch.sigmoid(model.b.weight).sum()


def _counter(model: Leaving, f: Tensor, y: Tensor, into: Any) -> None:
    model.calls += 1


NOT_LEFT: dict[str, Callable[..., Any]] = {
    "overwritten by the same forward": _overwritten,
    "computed from weights only": _of_weights,
    "count of calls": _counter,
}
"""By name, what is no output."""

UNSEARCHABLE: dict[str, Leave] = {
    "endless": lambda model, f, y: itertools.repeat(f),
    "waits": lambda model, f, y: asyncio.sleep(10, f),
    "raw memory": lambda model, f, y: f.untyped_storage(),
    "compiled": lambda model, f, y: torch.Event(),
    "never done": lambda model, f, y: torch.futures.Future(),
    "raises": lambda model, f, y: _Raises(),
}
"""By name, what cannot be searched."""


class _Raises:
    def __iter__(self) -> Iterator[Any]:
        raise OSError("nothing to read")
