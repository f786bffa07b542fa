"""The eager executor against the definition, and what writing in place must keep."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fxenorm.errors import OptionError
from fxenorm.kernels import backend
from fxenorm.kernels.backend import get_backend
from fxenorm.kernels.factors import exact_exp2, log2_factors, most_growth
from fxenorm.kernels.program import Keep, ScaleTarget, build_program, term_tensors
from fxenorm.kernels.reference.channel_sums import power_matrix, resized
from fxenorm.kernels.reference.executor import EagerBackend
from fxenorm.kernels.rooms import are_far_from_ends
from fxenorm.kernels.terms import split_repeats

from ..random_plans import Case, cases

BACKEND = EagerBackend()
K = 8


def target(
    tensor: torch.Tensor, terms: list[tuple[int, np.ndarray]], num_scales: int, power: int = 1, offset: float = 0.0
) -> ScaleTarget:
    """A tensor to rescale."""
    return ScaleTarget("tensor", tensor, term_tensors(terms, tensor.ndim, num_scales), power, offset)


def factors(terms: list[tuple[int, np.ndarray]], log_scales: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """exp(sum of coefficient * log_scales[id]), entry by entry."""
    padded = np.append(log_scales, 0.0)
    return np.exp(sum((c * np.broadcast_to(padded[ids], shape) for c, ids in terms), np.zeros(shape)))


def assert_logs(actual: torch.Tensor, expected: np.ndarray) -> None:
    """Logarithms agree, -inf where the value is 0."""
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(actual.numpy(), np.log(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("default_dtype")
@settings(deadline=None, max_examples=80)
@given(case=cases(offsets=True), seed=st.integers(0, 2**32 - 1))
def test_sums_are_those_of_the_definition(case: Case, seed: int) -> None:
    program, none = case.program(), [None] * len(case.tensors)
    matrices = BACKEND.matrices(program, case.tensors, none)
    log_scales = np.random.default_rng(seed).uniform(-1, 1, case.num_scales)
    for scales, sums in (
        (None, BACKEND.reduce(program, case.tensors, none)),
        (log_scales, BACKEND.sums(program, matrices, torch.from_numpy(log_scales))),
    ):
        oracle = case.oracle(scales)
        assert_logs(sums.log_negative, oracle.negative)
        assert_logs(sums.log_positive, oracle.positive)
        given_scales = None if scales is None else torch.from_numpy(scales)
        assert_logs(BACKEND.energies(program, matrices, given_scales), np.array(oracle.energies))
        np.testing.assert_array_equal(program.degree.numpy(), oracle.degree)


@settings(deadline=None, max_examples=80)
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_axes_are_split_where_ids_come_in_runs(case: Case, seed: int) -> None:
    """The same sums as with one axis, from a view of the tensor; every term is as small as it can be."""
    random = np.random.default_rng(seed)
    for index, shape in enumerate(case.shapes):
        runs = random.integers(1, 4, len(shape))
        for axis, run in enumerate(runs):
            shape = (*shape[:axis], shape[axis] * int(run), *shape[axis + 1 :])
            longer = [(c, ids.repeat(run, axis) if ids.shape[axis] > 1 else ids) for c, ids in case.terms[index]]
            case.terms[index] = longer
        case.shapes[index] = shape
        case.tensors[index] = torch.from_numpy(random.normal(size=shape))
    finer = [split_repeats(shape, terms) for shape, terms in zip(case.shapes, case.terms, strict=True)]
    tensors = [tensor.view(shape) for tensor, (shape, _) in zip(case.tensors, finer, strict=True)]
    blocks = [(shape, terms, weight) for (shape, terms), weight in zip(finer, case.log_weights, strict=True)]
    program, none = build_program(blocks, case.num_scales, case.p), [None] * len(tensors)
    sums, oracle = BACKEND.reduce(program, tensors, none), case.oracle()
    assert_logs(sums.log_negative, oracle.negative)
    assert_logs(sums.log_positive, oracle.positive)
    for block in program.blocks:
        for _, ids in block.terms:
            for axis, size in enumerate(ids.shape):
                assert size == 1 or (ids.diff(dim=axis) != 0).any()


def test_runs_of_channels_and_groups() -> None:
    pixels = np.repeat(np.arange(3), 4)[None, :]
    assert split_repeats((5, 12), [(-1, pixels)])[0] == (5, 3, 4)
    reads = np.repeat(np.arange(6).reshape(2, 3), 4, axis=0)
    shape, terms = split_repeats((8, 3), [(1, np.arange(10, 18)[:, None]), (-1, reads)])
    assert shape == (2, 4, 3) and [ids.shape for _, ids in terms] == [(2, 4, 1), (2, 1, 3)]


@pytest.mark.usefixtures("default_dtype")
@settings(deadline=None, max_examples=60)
@given(case=cases(offsets=True), seed=st.integers(0, 2**32 - 1), power=st.sampled_from([1, -1, -2]))
def test_apply_multiplies_every_entry(case: Case, seed: int, power: int) -> None:
    """With what the model adds to it, which is taken away again."""
    log_scales = np.random.default_rng(seed).uniform(-1, 1, case.num_scales)
    targets = [
        target(tensor.clone(), terms, case.num_scales, power, case.offset(index, power))
        for index, (tensor, terms) in enumerate(zip(case.tensors, case.terms, strict=True))
    ]
    BACKEND.apply(targets, torch.from_numpy(log_scales))
    for scaled, tensor, terms in zip(targets, case.tensors, case.terms, strict=True):
        factor, offset = factors(terms, power * log_scales, tuple(tensor.shape)), scaled.offset
        expected = (tensor.numpy() + offset) * factor - offset
        np.testing.assert_allclose(scaled.tensor.numpy(), expected, rtol=1e-13, atol=1e-14 * abs(offset) * factor.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_near_1_are_not_lost_beside_an_offset(dtype: torch.dtype) -> None:
    """There and back again is where it was, to a rounding of the weight itself, not of offset + weight."""
    weight, ids = (torch.randn(50, dtype=torch.float64) * 1e-4).to(dtype), np.zeros(1, dtype=np.int64)
    start, small = weight.clone(), torch.tensor([1e-5], dtype=torch.float64)
    for scales in (small, -small):
        BACKEND.apply([target(weight, [(1, ids)], 1, offset=1.0)], scales)
        eps = torch.finfo(dtype).eps
        change = weight.double().log1p() - start.double().log1p()
        torch.testing.assert_close(change, (small if scales is small else 0 * small).expand(50), rtol=0, atol=1e-3 * eps)


@pytest.mark.parametrize(("p", "other"), [(4.0, 1.0), (1.0, 3.0), (12.0, 2.0), (2.0, 12.0), (16.0, 8.0)])
def test_a_matrix_is_had_for_another_exponent_too(p: float, other: float) -> None:
    """Powers up to p = 4, logarithms beyond."""
    ids = np.arange(3)[:, None]
    block = build_program([((3, 4), [(1, ids)], 0.0)], 3, p).blocks[0]
    weight = torch.tensor([[1.0, -2.0, 0.0, 0.5]] * 3, dtype=torch.float64)
    wide = {exponent: power_matrix(exponent, replace(block, kernel_axes=()), weight, None) for exponent in (p, other)}
    torch.testing.assert_close(resized(p, other, wide[p]), wide[other], rtol=1e-12, atol=0)


def test_row_factors_weight_the_entries() -> None:
    weight, factor = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)
    ids = np.arange(3)[:, None]
    program = build_program([((3, 4), [(1, ids)], 0.0)], 3, 3.0)
    sums = BACKEND.reduce(program, [weight], [factor])
    torch.testing.assert_close(sums.log_positive.exp(), ((weight * factor).abs() ** 3).sum(1))


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("p", [2.0, 64.0])
def test_powers_do_not_leave_the_range(p: float) -> None:
    weight = torch.tensor([[1e-30], [1e25]], dtype=torch.float32)
    program = build_program([((2, 1), [(1, np.arange(2)[:, None])], -2000.0)], 2, p)
    sums = BACKEND.reduce(program, [weight], [None])
    torch.testing.assert_close(sums.log_positive, p * weight[:, 0].double().log() - 2000.0)


@given(st.lists(st.integers(-1022, 1023), min_size=1, max_size=50))
def test_powers_of_two_are_exact(integers: list[int]) -> None:
    exponents = torch.tensor(integers, dtype=torch.float64)
    assert exact_exp2(exponents).tolist() == [2.0**n for n in integers]
    small = torch.tensor([n % 120 - 60 for n in integers], dtype=torch.float32)
    assert exact_exp2(small).tolist() == [2.0**n for n in small.tolist()]
    log_scales = exponents * math.log(2.0)
    assert log2_factors(log_scales)[:-1].tolist() == integers
    torch.testing.assert_close(exact_exp2(exponents / 1100), torch.exp2(exponents / 1100))


LAYOUTS = {
    "contiguous": lambda: torch.randn(3, 5, 2, 2),
    "channels_last": lambda: torch.randn(3, 5, 2, 2).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(5, 3, 2, 2).transpose(0, 1),
    "part of a larger tensor": lambda: torch.randn(3, 11, 2, 2)[:, 1::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_memory_layout_is_written_in_place(layout: str, dtype: torch.dtype) -> None:
    tensor = LAYOUTS[layout]().to(dtype)
    before, address, strides, view = tensor.clone().double(), tensor.data_ptr(), tensor.stride(), tensor[1]
    log_scales = torch.linspace(-1, 1, K, dtype=torch.float64)
    terms = [(1, np.array([7, -1, 5]).reshape(3, 1, 1, 1)), (-1, np.arange(5).reshape(1, 5, 1, 1))]
    BACKEND.apply([target(tensor, terms, K)], log_scales)
    assert tensor.data_ptr() == address and tensor.stride() == strides and torch.equal(view, tensor[1])
    expected = (before * torch.from_numpy(factors(terms, log_scales.numpy(), tuple(tensor.shape)))).to(dtype)
    # rounded once: the nearest number of the type, but for ties that the factor's own last bit decides
    slack = torch.finfo(dtype).eps * (8 if dtype == torch.float64 else 1)
    assert ((tensor.double() - expected.double()).abs() <= slack * expected.double().abs()).all()
    assert (tensor != expected).float().mean() <= 0.02 or dtype == torch.float64
    program = build_program([((3, 5, 2, 2), terms, 0.0)], K, 2.0)
    sums = BACKEND.reduce(program, [tensor], [None])
    torch.testing.assert_close(sums.log_negative[:5].exp(), (tensor.double() ** 2).sum((0, 2, 3)))


def test_no_intermediate_overflow() -> None:
    """Both factors overflow the type, their product does not."""
    weight = torch.full((1, 1), 2.0, dtype=torch.float16)
    terms = [(1, np.zeros((1, 1), dtype=np.int64)), (-1, np.ones((1, 1), dtype=np.int64))]
    scales = torch.tensor([40.0, 39.0], dtype=torch.float64)
    assert not BACKEND.overflowing([target(weight, terms, 2)], scales).any()
    BACKEND.apply([target(weight, terms, 2)], scales)
    assert weight.item() == pytest.approx(2 * math.e, rel=1e-3)


@settings(deadline=None, max_examples=60)
@given(
    case=cases(offsets=True),
    seed=st.integers(0, 2**32 - 1),
    size=st.floats(0.1, 20.0),
    kept=st.lists(st.sampled_from(list(Keep)), min_size=8, max_size=8),
    power=st.sampled_from([1, -1, -2]),
)
@example(
    # A zero that moves by the square of a factor: that square must stay finite.
    case=Case(1, 0.7, [(1,)], [[(1, np.array([0])), (1, np.array([0]))]], [0.0], [torch.zeros(1, dtype=torch.float64)], [0.0]),
    seed=0,
    size=1.0,
    kept=[Keep.ENTRIES] * 8,
    power=1,
)
@example(
    # Beside an offset an entry's own last digit says nothing.
    case=Case(1, 0.7, [(1,)], [[(-1, np.array([0]))]], [0.0], [torch.tensor([1.1433], dtype=torch.float64)], [1.0]),
    seed=0,
    size=1.0,
    kept=[Keep.DIGITS] * 8,
    power=1,
)
def test_within_their_rooms_nothing_is_lost(case: Case, seed: int, size: float, kept: list[Keep], power: int) -> None:
    """Whatever some variables do within their rooms, and whatever is not flagged."""
    generator = np.random.default_rng(seed)
    log_scales = torch.from_numpy(generator.normal(size=case.num_scales) * size)
    given = [tensor.clamp(-1e4, 1e4).half() for tensor in case.tensors]

    def targets() -> list[ScaleTarget]:
        """The same tensors again."""
        members = enumerate(zip(given, case.terms, kept, strict=False))
        return [
            replace(target(tensor.clone(), terms, case.num_scales, power, 3e4 * case.offset(index, power)), keep=keep)
            for index, (tensor, terms, keep) in members
        ]

    up, down = BACKEND.rooms(targets(), case.num_scales, torch.device("cpu"))
    share = torch.from_numpy(generator.choice([0.3, 1.0], size=case.num_scales))
    inside = torch.where(log_scales > 0, share * up, -share * down)
    tries = [torch.minimum(torch.maximum(log_scales, -down), up), inside]
    if not BACKEND.leaving(targets(), log_scales).any():
        tries.append(log_scales)
    for scales in tries:
        moved = targets()
        assert not BACKEND.leaving(moved, scales).any()
        BACKEND.apply(moved, scales)
        for item, before in zip(moved, given, strict=True):
            assert item.tensor.isfinite().all()
            lost = (item.tensor.double() + item.offset == 0) & (before.double() + item.offset != 0)
            assert not lost.any()


@settings(deadline=None, max_examples=40)
@given(
    case=cases(offsets=True),
    types=st.lists(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), min_size=8, max_size=8),
    kept=st.lists(st.sampled_from(list(Keep)), min_size=8, max_size=8),
    powers=st.lists(st.sampled_from([1, -1, -2]), min_size=8, max_size=8),
)
def test_the_rooms_of_several_tensors_are_the_least_of_the_rooms_of_each(
    case: Case, types: list[torch.dtype], kept: list[Keep], powers: list[int]
) -> None:
    """Whatever their types, offsets, exponents and powers are, and what is to be kept of them."""
    targets = [
        replace(target(tensor.to(kind), terms, case.num_scales, power, case.offset(index, power)), keep=keep)
        for index, (tensor, terms, kind, keep, power) in enumerate(
            zip(case.tensors, case.terms, types, kept, powers, strict=False)
        )
    ]
    rooms = [BACKEND.rooms(some, case.num_scales, torch.device("cpu")) for some in (targets, *([one] for one in targets))]
    torch.testing.assert_close(rooms[0], torch.stack(rooms[1:]).amin(0), rtol=0, atol=0)


def test_the_largest_of_a_column_keeps_its_digits_as_the_largest_of_a_row_does() -> None:
    """Where the others of it are far below the largest of their rows: those may lose some."""
    weight = torch.tensor([[1.0, 1e-36], [1.0, 2e-36]], dtype=torch.float32)
    terms = [(1, np.array([[0], [1]])), (-1, np.array([[2, 3]]))]
    targets = [replace(target(weight, terms, 4), keep=Keep.LARGEST)]
    _, down = BACKEND.rooms(targets, 4, torch.device("cpu"))
    normal = math.log(2e-36 / torch.finfo(torch.float32).smallest_normal)
    assert float(down[1]) == pytest.approx(normal / 2, rel=1e-4) and float(down[0]) > normal
    for row in (0, 1):
        scales = torch.zeros(4, dtype=torch.float64)
        scales[row] = -(normal + 1.0)
        assert BACKEND.leaving(targets, scales).tolist() == [False, row == 1, False, False]


def leaves_its_type(target: ScaleTarget, log_scales: np.ndarray, names: set[int]) -> None:
    """By definition: adds the variables that make an entry grow beyond its type, and those whose factors are no float64.

    All factors > 1 of an entry are multiplied with each other, and all that are < 1.
    """
    padded, most = np.append(log_scales, 0.0), math.log(torch.finfo(target.tensor.dtype).max)
    sizes = target.tensor.double().abs().numpy()
    for entry in np.ndindex(*sizes.shape):
        ids = [int(ids.numpy()[tuple(np.minimum(entry, np.array(ids.shape) - 1))]) for _, ids in target.terms]
        changes = [target.power * c * padded[k] for (c, _), k in zip(target.terms, ids, strict=True)]
        grows = sizes[entry] > 0 and sum(changes) > 0 and math.log(sizes[entry]) + sum(changes) >= most
        grows = grows or sum(change for change in changes if change > 0) >= 690.0
        shrinks = sum(change for change in changes if change < 0) <= -690.0
        for k, change in zip(ids, changes, strict=True):
            if (grows and change > 0) or (shrinks and change < 0):
                names.add(k)


@settings(deadline=None, max_examples=100)
@given(
    case=cases(),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([3.0, 30.0, 300.0, 1000.0]),
    power=st.sampled_from([1, -1, -2]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_what_overflows_is_found_by_definition(case: Case, seed: int, size: float, power: int, dtype: torch.dtype) -> None:
    """Weights, and second moments that move by the power -2; up to three variables an entry."""
    log_scales = np.random.default_rng(seed).normal(size=case.num_scales) * size
    members = zip(case.tensors, case.terms, strict=True)
    targets = [target(tensor.clamp(-1e4, 1e4).to(dtype), terms, case.num_scales, power) for tensor, terms in members]
    expected: set[int] = set()
    for item in targets:
        leaves_its_type(item, log_scales, expected)
    found = BACKEND.overflowing(targets, torch.from_numpy(log_scales)).nonzero().flatten().tolist()
    assert found == sorted(expected - {case.num_scales})


def test_net_growth_decides_for_given_scales() -> None:
    weight = torch.ones(2, 2)
    terms = [(1, np.array([[0], [1]])), (-1, np.array([[0, 1]]))]
    assert BACKEND.overflowing([target(weight, terms, 2)], torch.tensor([100.0, 0.0])).tolist() == [True, False]
    assert not BACKEND.overflowing([target(weight, terms, 2)], torch.tensor([100.0, 100.0])).any()
    # Both factors are infinite, and the second one's inverse is 0: what they would make of 1 is no number.
    for find in (BACKEND.overflowing, BACKEND.leaving):
        assert find([target(weight, terms, 2)], torch.tensor([800.0, 800.0])).all()
    assert not are_far_from_ends([target(weight, terms, 2)], torch.tensor([800.0, 800.0], dtype=torch.float64))
    assert are_far_from_ends([target(weight, terms, 2)], torch.tensor([40.0, 40.0], dtype=torch.float64))


@pytest.mark.parametrize("keep", Keep)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_zeros_take_no_room(dtype: torch.dtype, keep: Keep) -> None:
    """What is zero stays zero however far its channels move."""
    terms, rooms = [(1, np.array([[0], [1]])), (-1, np.array([[2, 3]]))], []
    for smallest in (0.0, 0.5):
        weight = torch.tensor([[smallest, 0.5], [0.5, smallest]], dtype=dtype)
        rooms.append(BACKEND.rooms([replace(target(weight, terms, 4), keep=keep)], 4, torch.device("cpu")))
    torch.testing.assert_close(*rooms, rtol=0, atol=1e-9)
    assert (rooms[0] > 2.0).all()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(offsets=True), seed=st.integers(0, 2**32 - 1))
def test_large_tensors_are_read_and_scaled_in_parts(case: Case, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxenorm.kernels.parts._PART_ON_CPU", 5)
    program, none, oracle = case.program(), [None] * len(case.tensors), case.oracle()
    matrices = BACKEND.matrices(program, case.tensors, none)
    for sums in (BACKEND.reduce(program, case.tensors, none), BACKEND.sums(program, matrices)):
        assert_logs(sums.log_negative, oracle.negative)
        assert_logs(sums.log_positive, oracle.positive)
    log_scales = np.random.default_rng(seed).uniform(-1, 1, case.num_scales)
    for index, (tensor, terms) in enumerate(zip(case.tensors, case.terms, strict=True)):
        offset, factor = case.offset(index), factors(terms, log_scales, tuple(tensor.shape))
        expected = (offset + tensor.numpy()) * factor - offset
        BACKEND.apply([target(tensor, terms, case.num_scales, offset=offset)], torch.from_numpy(log_scales))
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-13, atol=1e-14 * abs(offset) * factor.max())


def test_backends_by_name() -> None:
    assert get_backend("eager").name == "eager"
    with pytest.raises(OptionError, match="cuda"):
        get_backend("cuda")


def test_a_name_of_an_executor_that_is_taken_is_replaced_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_BACKENDS", {"eager": EagerBackend})
    with pytest.raises(OptionError, match="there is an executor 'eager' already"):
        backend.register_backend("eager", EagerBackend)
    other = EagerBackend()
    backend.register_backend("eager", lambda: other, replace=True)
    assert get_backend("eager") is other


_FACTORS: dict[str, tuple[list[int], list[float], list[bool]]] = {
    "a square": ([2], [400.0], [True]),
    "a square that vanishes": ([2], [-400.0], [True]),
    "two that grow": ([1, 1], [400.0, 400.0], [True, True]),
    "two that cancel": ([2, -2], [400.0, 400.0], [True, True]),
    "two and one that makes up for them": ([1, 1, -1], [400.0, 400.0, 500.0], [True, True, False]),
    "a square and one that has no part": ([2, -1], [400.0, 1.0], [True, False]),
    "finite": ([2, -2], [300.0, 300.0], [False, False]),
}
"""Coefficients, log-scales, and the variables that make a product of factors infinite, or 0: by hand, the range ends at 690."""


@pytest.mark.parametrize("factors", _FACTORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["eager", "compiled"])
def test_zeros_never_become_nan(name: str, dtype: torch.dtype, factors: str) -> None:
    """0 times infinity is no number: such factors are flagged, whatever they multiply, and rooms end before them."""
    coefficients, numbers, expected = _FACTORS[factors]
    count, executor = len(numbers), get_backend(name)
    terms = [(coefficient, np.array([[k]])) for k, coefficient in enumerate(coefficients)]
    scales = torch.tensor(numbers, dtype=torch.float64)

    def zeros() -> list[ScaleTarget]:
        """A weight of zeros."""
        return [replace(target(torch.zeros(2, 3, dtype=dtype), terms, count), keep=Keep.ENTRIES)]

    assert executor.leaving(zeros(), scales).tolist() == expected
    assert executor.overflowing(zeros(), scales).tolist() == expected
    assert are_far_from_ends(zeros(), scales) is not any(expected)
    up, down = executor.rooms(zeros(), count, torch.device("cpu"))
    reach = sum(map(abs, coefficients))
    assert up.tolist() == down.tolist() == pytest.approx([690.0 / reach] * count, rel=1e-5)
    sign = torch.tensor(coefficients).sign()
    for inside in (up, -down, up * sign, -down * sign, *([] if any(expected) else [scales])):
        moved = zeros()
        assert not executor.leaving(moved, inside).any() and not executor.overflowing(moved, inside).any()
        for given_scales in (inside, -inside):
            executor.apply(moved, given_scales)
            assert (moved[0].tensor == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_below_the_most_growth_are_finite_and_not_0(dtype: torch.dtype) -> None:
    """In both types that factors may have; so are their inverses."""
    most = most_growth(dtype) / math.log(2.0)
    found = exact_exp2(torch.tensor([most, -most], dtype=dtype))
    assert found.isfinite().all() and (found >= torch.finfo(dtype).smallest_normal).all()
    assert found.reciprocal().isfinite().all() and (found.reciprocal() > 0).all()
