"""Run by `test_triton.py` in a process of its own, under Triton's interpreter: the kernels against the eager executor."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxenorm
from fxenorm.errors import FxenormWarning
from fxenorm.kernels.backend import CycleTask
from fxenorm.kernels.gpu import step, tables
from fxenorm.kernels.gpu.step import TritonStep
from fxenorm.kernels.program import ScaleTarget, term_tensors
from fxenorm.kernels.reference.executor import EagerBackend
from fxenorm.solve.jacobi import jacobi_step

from .random_plans import Case, cases
from .triton_models import Launches, Tower, assert_same, trained

EAGER = EagerBackend()
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="session")
def _numbers() -> Iterator[None]:
    """Lets the interpreters of Triton 3.2 to 3.5 (torch 2.6 to 2.9) work with NumPy 2.4: its arrays are no numbers."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patched = interpreter._patch_lang_tensor

    def patch_once_more(tensor: Any, *scope: Any) -> None:
        patched(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    with pytest.MonkeyPatch.context() as patch:
        if len(inspect.signature(patched).parameters) == 1:  # later ones do it themselves
            patch.setattr(interpreter, "_patch_lang_tensor", patch_once_more)
        yield


@pytest.fixture
def small_tiles() -> Iterator[None]:
    """Even tiny tensors take several tiles, segments and programs."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            *((tables, "COLUMNS", 4), (step, "COLUMNS", 4), (step, "_AT_ONCE", 2)),
            *((tables, "_ROWS", 2), (tables, "_SEGMENT", 3), (tables, "_FILLED", 5)),
        ):
            patch.setattr(module, name, value)
        yield


def in_order(tensor: torch.Tensor, order: list[int]) -> torch.Tensor:
    """The same values with the axes in another order in memory."""
    chosen = [axis for axis in order if axis < tensor.ndim]
    return tensor.permute(chosen).contiguous().permute([chosen.index(axis) for axis in range(tensor.ndim)])


class Side:
    """Weights and their momentum."""

    def __init__(self, case: Case, dtype: torch.dtype, order: list[int], size: float) -> None:
        self.case = case
        self.weights = [in_order(tensor.to(dtype, copy=True), order) for tensor in case.tensors]
        self.momentum = [torch.full_like(tensor, size) for tensor in self.weights]
        pairs = list(zip(case.terms, self.weights, strict=True))
        terms = [term_tensors(given, tensor.ndim, case.num_scales) for given, tensor in pairs]
        members = enumerate(zip(self.weights, terms, strict=True))
        own = [ScaleTarget(str(index), *item, offset=case.offset(index)) for index, item in members]
        state = [ScaleTarget("momentum", *item, power=-1) for item in zip(self.momentum, terms, strict=True)]
        self.targets = own + state
        self.none = [None] * len(self.weights)

    def eagerly(self, count: int, held: torch.Tensor, limit: float) -> None:
        """Some cycles by definition."""
        program, total = self.case.program(), torch.zeros(self.case.num_scales, dtype=torch.float64)
        up, down = EAGER.rooms(self.targets, self.case.num_scales, torch.device("cpu")).clamp(max=limit)
        matrices = EAGER.matrices(program, self.weights, self.none)
        for _ in range(count):
            sums = EAGER.sums(program, matrices, total)
            total = total + jacobi_step(sums.log_negative, sums.log_positive, program.degree, program.p, held)
            total = torch.minimum(torch.maximum(total, -down), up)
        EAGER.apply(self.targets, total)

    def by_kernels(self, count: int, held: torch.Tensor, limit: float, gate: torch.Tensor | None = None) -> bool:
        """The same in Triton; False if that is not for the kernels."""
        task = CycleTask(
            *(self.case.program(), self.weights, self.none, self.targets),
            model_tensors=len(self.weights),
            counted=frozenset(map(str, range(len(self.weights)))),
            held=held,
            limit=limit,
            reach=float(max(2, sum(abs(coefficient) for terms in self.case.terms for coefficient, _ in terms))),
        )
        return TritonStep(task).run(self.none, count, gate)


@pytest.mark.usefixtures("small_tiles")
@settings(max_examples=60)
@given(
    case=cases(offsets=True),
    dtype=st.sampled_from([torch.float64, torch.float32, *HALF]),
    order=st.permutations(range(3)),
    hold=st.lists(st.booleans(), min_size=6, max_size=6),
    limit=st.sampled_from([math.inf, 0.1]),
    count=st.sampled_from([1, 1, 3]),
    spoiled=st.sampled_from([None, None, math.inf, math.nan]),
    grown=st.booleans(),
)
def test_cycles_are_the_eager_ones(
    case: Case,
    dtype: torch.dtype,
    order: list[int],
    hold: list[bool],
    limit: float,
    count: int,
    spoiled: float | None,
    grown: bool,
) -> None:
    """Several variables an entry, zeros, collisions, weights that are not finite, momentum that has no room to grow."""
    same_in_both(
        case, dtype, order, torch.tensor(hold[: case.num_scales]), limit, count, size=1e30 if grown else 1.0, spoiled=spoiled
    )


def same_in_both(
    case: Case,
    dtype: torch.dtype,
    order: list[int],
    held: torch.Tensor,
    limit: float,
    count: int,
    *,
    size: float,
    spoiled: float | None,
) -> int:
    """Runs some cycles with the kernels and by definition; how many weights the kernels moved."""
    if spoiled is not None and dtype not in HALF:
        case.tensors[0].view(-1)[0] = spoiled
    size = min(size, torch.finfo(dtype).max / 3)
    ours, theirs = Side(case, dtype, order, size), Side(case, dtype, order, size)
    before = [tensor.clone() for tensor in ours.weights]
    ran = ours.by_kernels(count, held, limit)
    assert ran or count > 1
    moved = sum(int((one != other).sum()) for one, other in zip(ours.weights, before, strict=True))
    if ran:
        theirs.eagerly(count, held, limit)
    info = torch.finfo(dtype)
    for one, other in zip(ours.weights + ours.momentum, theirs.weights + theirs.momentum, strict=True):
        rtol = 1e-11 if dtype == torch.float64 else 2 * info.eps
        denormal = info.smallest_normal * info.eps
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=denormal, equal_nan=True)
        assert spoiled is not None or bool(one.isfinite().all())
    return moved


def two_sided(seed: int, p: float) -> Case:
    """A loop of two tensors, so that every variable has something on both sides, in groups, with fixed channels."""
    random = np.random.default_rng(seed)
    some, others = random.permutation(6).reshape(2, 3)
    shapes, terms = [(8, 3, 5), (6, 9)], []
    for rows, columns, shape in ((some, others, (8, 3, 5)), (others, some, (6, 9))):
        first = random.choice([*rows, -1], size=(shape[0], *(1 for _ in shape[1:])))
        second = random.choice([*columns, -1], size=(1, *shape[1:-1], 1) if len(shape) > 2 else (1, shape[1]))
        if len(shape) > 2:
            # The other columns of a second group.
            second = np.repeat(np.stack([second[0], np.roll(second[0], 1)]), 4, axis=0)
        first.reshape(-1)[:3], second.reshape(-1)[:3] = rows, columns
        terms.append([(int(random.choice([1, 2])), first.astype(np.int64)), (-1, second.astype(np.int64))])
    tensors = [torch.from_numpy(random.normal(size=shape) * np.exp(2 * random.normal(size=shape))) for shape in shapes]
    log_weights = [0.0 if math.isinf(p) else float(value) for value in random.normal(size=2)]
    return Case(6, p, shapes, terms, log_weights, tensors)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("count", [1, 2])
def test_a_gate_on_the_device_holds_everything_or_nothing(count: int) -> None:
    held = torch.zeros(6, dtype=torch.bool)
    plain, opened, closed = (Side(two_sided(0, 2.0), torch.float32, [0, 1, 2], 1.0) for _ in range(3))
    before = [tensor.clone() for tensor in closed.weights]
    assert plain.by_kernels(count, held, math.inf)
    assert opened.by_kernels(count, held, math.inf, torch.tensor(True))
    assert closed.by_kernels(count, held, math.inf, torch.tensor(False))
    assert all(map(torch.equal, closed.weights, before)) and not all(map(torch.equal, plain.weights, before))
    assert all(map(torch.equal, opened.weights, plain.weights)) and all(map(torch.equal, opened.momentum, plain.momentum))


CHOICES = [(math.inf, 1.0, None), (0.1, 1.0, None), (math.inf, 1e38, None), (math.inf, 1.0, math.inf), (math.inf, 1.0, math.nan)]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("p", "limit", "size", "spoiled"),
    [(p, *choice) for p in (2.0, math.inf) for choice in CHOICES] + [(p, *CHOICES[0]) for p in (1.0, 1.5, 3.0, 4.0, 12.0)],
)
def test_what_moves_moves_as_far(p: float, limit: float, size: float, spoiled: float | None) -> None:
    """Every variable can move here: by as much as the eager executor's, unless held."""
    for number, dtype in enumerate([torch.float64, torch.float32, *HALF]):
        count = 1 if number % 2 or p == 12.0 else 2
        held = torch.tensor([number == 1, False, False, False, number == 3, False])
        big = size if dtype != torch.float64 else size**8
        case = two_sided(number, p)
        moved = same_in_both(case, dtype, [0, 2, 1] if number > 1 else [0, 1, 2], held, limit, count, size=big, spoiled=spoiled)
        assert moved > 0 or size > 1.0 or spoiled is not None


OPTIONS: list[dict[str, Any]] = [
    {},
    {"p": 1.0, "biases": "count"},
    {"p": 4.0, "c": 1.3},
    {"p": 2.5},
    {"p": math.inf, "batchnorm": "folded"},
    {"batchnorm": "folded"},
    {"max_log_scale": 0.05},
    {"balance_last": False},
]


@pytest.mark.parametrize("number", range(len(OPTIONS)), ids=lambda number: str(OPTIONS[number]))
def test_models(number: int) -> None:
    """With all options, in both memory formats by turns."""
    options, memory_format = OPTIONS[number], (torch.channels_last, torch.contiguous_format)[number % 2]
    found = [trained(backend, memory_format=memory_format, **options) for backend in ("triton", "eager")]
    for model, optimizer, plan in found:
        plan.step(optimizer)
        with torch.no_grad():
            model.blocks[0].weight[::2] *= 3.0
        plan.step(optimizer, cycles=2)
    assert_same(*found)


@pytest.mark.parametrize("dtype", [torch.float64, *HALF])
def test_types(dtype: torch.dtype) -> None:
    """16-bit weights move by generic factors only where that is asked for; a part of the model in another type."""
    found = [trained(backend, dtype=dtype, scales="exact") for backend in ("triton", "eager")]
    for _, optimizer, plan in found:
        plan.step(optimizer)
    assert_same(*found)


def test_powers_of_two_are_left_to_the_eager_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    _, optimizer, plan = trained("triton", scales="pow2")
    with Launches(monkeypatch) as launches:
        plan.step(optimizer)
    assert not launches.names and launches.operators
    _, optimizer, plan = trained("triton")
    with Launches(monkeypatch) as launches:
        plan.step(optimizer)
    assert launches.names


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize(("optimizer", "cycles"), [("sgd", 1), ("sgd", 3), ("adam", 1)])
def test_launches_do_not_grow_with_the_model(monkeypatch: pytest.MonkeyPatch, depth: int, optimizer: str, cycles: int) -> None:
    """Three of its own and three a type, each further cycle three and one a type; and nothing else that PyTorch would launch."""
    _, chosen, plan = trained("triton", depth=depth, optimizer=optimizer)
    plan.step(chosen)
    with Launches(monkeypatch) as launches:
        plan.step(chosen, cycles=cycles)
    assert len(launches.names) == 6 + 4 * (cycles - 1)
    assert not launches.operators


def test_two_types_take_three_launches_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [trained(backend, second=torch.float64) for backend in ("triton", "eager")]
    with Launches(monkeypatch) as launches:
        for _, optimizer, plan in found:
            plan.step(optimizer)
    assert len(launches.names) == 9
    assert_same(*found)


def test_tensors_with_gaps_are_done_eagerly_beside_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [trained(backend) for backend in ("triton", "eager")]
    with Launches(monkeypatch) as launches:
        for model, optimizer, plan in found:
            weight = model.blocks[0].weight
            weight.data = torch.cat([weight.data, weight.data], dim=1)[:, : weight.shape[1]]
            plan.step(optimizer)
    assert launches.names
    assert_same(*found)


def test_what_is_replaced_is_looked_up_anew() -> None:
    found = [trained(backend) for backend in ("triton", "eager")]
    for model, optimizer, plan in found:
        plan.step(optimizer)
        model.blocks[1].weight = nn.Parameter(model.blocks[1].weight.detach() * 2)
        optimizer.param_groups[0]["params"] = list(model.parameters())
        plan.step(optimizer)
        plan.balance(optimizer)
    assert_same(*found)


def test_autograd_knows_what_was_written() -> None:
    model, optimizer, plan = trained("triton")
    plan.step(optimizer)
    loss = model(torch.randn(2, 3, 8, 8)).square().sum()
    plan.step(optimizer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_interpreter_does_not_serve_gpus() -> None:
    backend = fxenorm.kernels.gpu.executor.TritonBackend()
    assert backend.serves(torch.device("cpu")) and not backend.serves(torch.device("cuda"))


def test_the_function_is_kept() -> None:
    model, optimizer, plan = trained("triton", dtype=torch.float64)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = model(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: pytest.fail(f"a {FxenormWarning.__name__}"))
        plan.step(optimizer)
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)
    assert isinstance(model, Tower)
