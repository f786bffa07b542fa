"""What forward keeps from one call to the next: its values at analyze say nothing, and what is written there is held."""

from __future__ import annotations

import contextvars
import functools
import random
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxenorm

ZERO = torch.zeros(4, 8)
CONTEXT: contextvars.ContextVar[Tensor] = contextvars.ContextVar("memory", default=ZERO)
THREAD = threading.local()
SHARED: dict[str, Any] = {"memory": ZERO, "table": {}, "calls": 0}


class Holder:
    """An object of a class of one's own."""

    def __init__(self) -> None:
        self.memory = ZERO.clone()
        self.calls = 0


class Slotted:
    """An object without a dict."""

    __slots__ = ("memory",)

    def __init__(self) -> None:
        self.memory = ZERO.clone()


class Net(nn.Module):
    """Two layers, and a way to keep something between calls."""

    memory: Any = None
    shared = 0

    def __init__(self, keep: Callable[[Net, Tensor], Tensor], real: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.keep, self.real = nn.Linear(6, 8), nn.Linear(8, 3), keep, real
        self.memory = ZERO.clone()
        self.empty = None
        self.calls = 0
        self.items: Any = [ZERO.clone()]
        self.table: Any = {"memory": ZERO.clone()}
        self.ordered = OrderedDict(memory=ZERO.clone())
        self.line = deque([ZERO.clone()])
        self.holder, self.slotted = Holder(), Slotted()
        self.register_buffer("buffer", ZERO.clone())
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.real and h.sum() > 1e9:
            return self.last(h)
        return self.last(self.keep(self, h).relu())


def rebound(m: Net, h: Tensor) -> Tensor:
    out, m.memory = h + m.memory, h.detach()
    return out


def in_place(m: Net, h: Tensor) -> Tensor:
    out = h + m.memory
    m.memory.copy_(h.detach())
    return out


def through_data(m: Net, h: Tensor) -> Tensor:
    out = h + m.memory
    m.memory.data.copy_(h)
    return out


def in_a_list(m: Net, h: Tensor) -> Tensor:
    out, m.items[0] = h + m.items[0], h.detach()
    return out


def appended(m: Net, h: Tensor) -> Tensor:
    out = h + m.items[-1]
    m.items.append(h.detach())
    return out


def in_a_dict(m: Net, h: Tensor) -> Tensor:
    out, m.table["memory"] = h + m.table["memory"], h.detach()
    return out


def in_an_ordered_dict(m: Net, h: Tensor) -> Tensor:
    out, m.ordered["memory"] = h + m.ordered["memory"], h.detach()
    return out


def in_a_deque(m: Net, h: Tensor) -> Tensor:
    out = h + m.line.popleft()
    m.line.append(h.detach())
    return out


def in_a_helper(m: Net, h: Tensor) -> Tensor:
    out, m.holder.memory = h + m.holder.memory, h.detach()
    return out


def in_a_slot(m: Net, h: Tensor) -> Tensor:
    out, m.slotted.memory = h + m.slotted.memory, h.detach()
    return out


def in_a_global(m: Net, h: Tensor) -> Tensor:
    out, SHARED["memory"] = h + SHARED["memory"], h.detach()
    return out


def in_the_class(m: Net, h: Tensor) -> Tensor:
    out, Net.shared = h + Net.shared, h.detach()
    return out


def in_a_closure() -> Callable[[Net, Tensor], Tensor]:
    memory = ZERO.clone()

    def keep(m: Net, h: Tensor) -> Tensor:
        nonlocal memory
        out, memory = h + memory, h.detach()
        return out

    return keep


def in_a_function(m: Net, h: Tensor) -> Tensor:
    out = h + vars(in_a_function).get("memory", ZERO)
    in_a_function.memory = h.detach()  # type: ignore[attr-defined]
    return out


def in_the_context(m: Net, h: Tensor) -> Tensor:
    out = h + CONTEXT.get()
    CONTEXT.set(h.detach())
    return out


def in_the_thread(m: Net, h: Tensor) -> Tensor:
    out = h + vars(THREAD).get("memory", ZERO)
    THREAD.memory = h.detach()
    return out


def only_later(m: Net, h: Tensor) -> Tensor:
    out, m.empty = h if m.empty is None else h + m.empty, h.detach()
    return out


def buffer_rebound(m: Net, h: Tensor) -> Tensor:
    out, m.buffer = h + m.buffer, h.detach()
    return out


def buffer_in_place(m: Net, h: Tensor) -> Tensor:
    out = h + m.buffer
    m.buffer.copy_(h.detach())
    return out


def counted(m: Net, h: Tensor) -> Tensor:
    m.count += 1
    return h + m.count * 0.1


def a_running_sum(m: Net, h: Tensor) -> Tensor:
    m.memory = m.memory * 0.9 + 0.1
    return h + m.memory


def never_written(m: Net, h: Tensor) -> Tensor:
    return h + m.memory


WAYS = [
    rebound, in_place, through_data, in_a_list, appended, in_a_dict, in_an_ordered_dict, in_a_deque, in_a_helper, in_a_slot,
    in_a_global, in_the_class, in_a_closure, in_a_function, in_the_context, in_the_thread, only_later, buffer_rebound,
    buffer_in_place, counted, a_running_sum,
]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What is shared by all models is as at the start."""
    yield
    SHARED.update(memory=ZERO, table={}, calls=0)
    Net.shared = 0
    vars(in_a_function).clear()
    CONTEXT.set(ZERO)
    vars(THREAD).clear()


def calls(model: nn.Module, count: int) -> list[Tensor]:
    """The outputs of calls in a row."""
    torch.manual_seed(1)
    return [model(torch.randn(4, 6)).detach() for _ in range(count)]


def check_sound(make: Callable[[], nn.Module], clear: Callable[[], None] = lambda: None) -> fxenorm.Plan:
    """Three calls, with a rescaling before the second of them, give what they give without."""
    torch.manual_seed(0)
    model = make()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = fxenorm.analyze(model, torch.randn(4, 6))
    expected = calls(model, 4)
    clear()
    again = make()
    again.load_state_dict(state)
    torch.manual_seed(1)
    found = [again(torch.randn(4, 6)).detach()]
    plan.bind(again).rescale(torch.linspace(-1, 1, plan.num_scales))
    found += [again(torch.randn(4, 6)).detach() for _ in range(3)]
    for before, after in zip(expected, found, strict=True):
        torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)
    return plan


@pytest.mark.parametrize(
    ("way", "real"),
    [*((way, False) for way in WAYS), *((way, True) for way in (rebound, in_place, through_data, in_a_closure, buffer_rebound))],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_the_next_call_reads_is_held(way: Callable[..., Any], real: bool) -> None:
    def clear() -> None:
        SHARED["memory"], Net.shared = ZERO, 0
        vars(in_a_function).clear()
        CONTEXT.set(ZERO)
        vars(THREAD).clear()

    clear()
    plan = check_sound(lambda: Net(way() if way is in_a_closure else way, real), clear)
    assert plan.tracer == ("make_fx" if real else "export") and plan.num_scales == 0


def test_an_attribute_that_is_zero_at_analyze_may_be_filled_later() -> None:
    model, x = Net(never_written), torch.randn(4, 6)
    plan = fxenorm.analyze(model, x)
    model.memory = torch.randn(4, 8)
    expected = model(x).detach()
    plan.rescale(torch.ones(plan.num_scales))
    torch.testing.assert_close(model(x), expected)


def lazily_built(m: Net, h: Tensor) -> Tensor:
    if m.empty is None:
        m.empty = torch.arange(1.0, 9.0)
    return h * m.empty


def lazily_stored(m: Net, h: Tensor) -> Tensor:
    if 8 not in m.table:
        m.table[8] = torch.arange(1.0, 9.0)
    return h * m.table[8]


@pytest.mark.parametrize("way", [lazily_built, lazily_stored])
def test_constants_that_forward_keeps_cost_nothing(way: Callable[..., Any]) -> None:
    assert check_sound(lambda: Net(way)).num_scales == 8


# --- nothing is left behind -------------------------------------------------------------------------------------------------


@functools.lru_cache(None)
def positions(size: int) -> Tensor:
    return torch.arange(1.0, size + 1.0)


@functools.lru_cache(4)
def few_positions(size: int) -> Tensor:
    return torch.arange(1.0, size + 1.0)


def cached_in(table: dict[Any, Any], size: int) -> Tensor:
    if size not in table:
        table[size] = torch.arange(1.0, size + 1.0)
    return table[size]


class Lazy:
    """A helper with a value that is computed once."""

    @functools.cached_property
    def values(self) -> Tensor:
        return torch.arange(1.0, 9.0)

    @functools.lru_cache(None)  # noqa: B019
    def method(self, size: int) -> Tensor:
        return torch.arange(1.0, size + 1.0)


OUTSIDE: list[Tensor] = []
LAZY = Lazy()
CACHES: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "lru_cache": lambda m, h: h * positions(8),
    "bounded lru_cache": lambda m, h: h * few_positions(8),
    "cached property": lambda m, h: h * LAZY.values,
    "cached method": lambda m, h: h * LAZY.method(8),
    "dict of a module": lambda m, h: h * cached_in(SHARED["table"], 8),
    "list outside": lambda m, h: OUTSIDE.append(h) or h,  # type: ignore[func-returns-value]
    "set": lambda m, h: m.holder.__dict__.setdefault("seen", set()).add(h) or h,
    "partial": functools.partial(lambda table, m, h: h * cached_in(table, 8), {}),
    "object": types.SimpleNamespace(table={}).table.setdefault("f", lambda m, h: h * cached_in(m.holder.__dict__, 8)),
}


@pytest.mark.parametrize(("cache", "real"), [*((cache, False) for cache in CACHES), ("lru_cache", True), ("list outside", True)])
def test_no_fake_tensor_stays_behind(cache: str, real: bool) -> None:
    OUTSIDE.clear()
    positions.cache_clear()
    few_positions.cache_clear()
    for size in range(20, 24):  # full: what comes in takes another's place
        few_positions(size)
    model, x = Net(CACHES[cache], real), torch.randn(4, 6)
    before = model(x) if real else None
    plan = fxenorm.analyze(model, x)
    assert len(OUTSIDE) == (cache == "list outside" and real)
    output = model(x)
    assert type(output) is Tensor and isinstance(output.sum().item(), float)
    assert before is None or torch.equal(before, output)
    assert plan.tracer == ("make_fx" if real else "export")


def test_a_warm_cache_stays_right() -> None:
    positions.cache_clear()
    kept = positions(8)
    plan = fxenorm.analyze(Net(CACHES["lru_cache"]), torch.randn(4, 6))
    assert positions(8) is kept and plan.num_scales == 8


def test_generators_and_arrays_are_as_before() -> None:
    """Numbers come in pairs from some generators: the second one, which is kept, is a part of the state."""

    def drawn(m: Any) -> float:
        return m.draws.gauss(0.0, 1.0) + m.legacy.randn() + float(m.numbers.integers(9, dtype=np.uint32)) + m.array.sum()

    model: Any = Net(lambda m, h: h * (1 + drawn(m)) + m.write())
    model.draws, model.numbers, model.array = random.Random(1), np.random.default_rng(1), np.ones(3)
    model.legacy, model.generator = np.random.RandomState(1), torch.Generator()

    def write() -> float:
        model.array[:] = 7
        return float(torch.rand(1, generator=model.generator).numel())

    def states() -> tuple[Any, ...]:
        kind, keys, *pair = model.legacy.get_state()
        return model.draws.getstate(), model.numbers.bit_generator.state, kind, keys.tolist(), pair

    model.write = write
    for _ in range(2):  # before the first and before the second number of a pair
        before, torchs = states(), model.generator.get_state()
        with pytest.warns(fxenorm.FxenormWarning, match="some paths only"):
            fxenorm.analyze(model, torch.randn(4, 6))
        assert states() == before
        assert torch.equal(model.generator.get_state(), torchs) and (model.array == 1).all()
        drawn(model)


DRAWS: dict[str, Callable[[torch.Generator], Tensor]] = {
    "rand": lambda generator: torch.rand(8, generator=generator),
    "normal_": lambda generator: torch.empty(8).normal_(generator=generator),
    "bernoulli": lambda generator: torch.bernoulli(torch.full((8,), 0.5), generator=generator),
    "randperm": lambda generator: torch.randperm(8, generator=generator),
    "init": lambda generator: nn.init.uniform_(torch.empty(8), generator=generator),
}


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("draw", DRAWS)
def test_forward_may_draw_from_a_generator(draw: str, real: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    plan = fxenorm.analyze(Net(lambda m, h: h * DRAWS[draw](generator), real), torch.randn(4, 6))
    assert plan.tracer == ("make_fx" if real else "export") and plan.num_scales == (0 if real else 8)  # `real` reads the sum
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("other_way", [False, True])
def test_a_path_that_a_generator_chooses_is_the_one_that_runs(other_way: bool) -> None:
    drawn = torch.rand((), generator=torch.Generator().manual_seed(3)).item()
    generator, limit = torch.Generator(), drawn + (-1e-4 if other_way else 1e-4)

    def keep(model: Net, h: Tensor) -> Tensor:
        return h if torch.rand((), generator=generator.manual_seed(3)) < limit else h.sigmoid()

    plan = fxenorm.analyze(Net(keep), torch.randn(4, 6))
    assert plan.tracer == "make_fx" and plan.num_scales == (0 if other_way else 8)


class Factory(OrderedDict[str, Any]):
    """Makes a new object at each look, as the table of activations in transformers does."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()


FACTORY = Factory({"relu": nn.ReLU})


def test_a_table_that_makes_objects_holds_afterwards_what_it_held() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.system = nn.Linear(3, 4), random.SystemRandom()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return FACTORY["relu"](self.a(x))

    fxenorm.analyze(Looking(), torch.randn(2, 3))
    assert dict.__getitem__(FACTORY, "relu") is nn.ReLU


class Rewrites(nn.Module):
    """Computes a tensor into an attribute; `reads` says when it looks at the one that was there before."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.first, self.last, self.reads = nn.Linear(6, 8), nn.Linear(8, 3), reads
        self.weight = torch.ones(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        old = self.weight if self.reads == "always" or (self.reads == "in training" and self.training) else None
        self.weight = self.first.weight * 2
        h = nn.functional.linear(x, self.weight, self.first.bias).relu()
        return self.last(h if old is None else h + old.sum())


@pytest.mark.parametrize(("reads", "expected"), [("never", 8), ("always", 0), ("in training", 0)])
def test_what_every_call_overwrites_before_it_is_read_is_no_state(reads: str, expected: int) -> None:
    assert fxenorm.analyze(Rewrites(reads), torch.randn(4, 6)).num_scales == expected


@pytest.mark.parametrize("real", [False, True], ids=["export", "real run"])
def test_a_model_of_more_objects_than_are_looked_at_is_left_without_hooks(real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks of a trace that stay would slow the next trace down, for ever in a model of ten thousand layers."""
    monkeypatch.setattr("fxenorm.trace.state._MOST_OBJECTS", 1)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)))
    if real:
        model[3].forward = lambda x: model[4](x) if float(x.sum()) < 1e9 else x  # type: ignore[method-assign]
    own = [module.register_forward_hook(lambda *call: None) for module in model]
    before = [{name: dict(held) for name, held in vars(module).items() if "hooks" in name} for module in model.modules()]
    plan = fxenorm.analyze(model, torch.randn(2, 4))
    assert plan.tracer == ("make_fx" if real else "export")
    after = [{name: dict(held) for name, held in vars(module).items() if "hooks" in name} for module in model.modules()]
    assert before == after and len(own) == 20
    assert any("more objects than are looked at" in note for note in plan.symmetry.notes)
