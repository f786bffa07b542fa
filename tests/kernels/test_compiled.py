"""The compiled executor against the eager one: same sums, same weights, same promises, whatever the threads and layouts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.errors import FxenormWarning
from fxenorm.kernels.choice import ExecutorChoice
from fxenorm.kernels.cpu import build
from fxenorm.kernels.cpu.executor import CompiledBackend
from fxenorm.kernels.layout import matrix_form
from fxenorm.kernels.program import ScaleTarget, build_program, term_tensors
from fxenorm.kernels.reference.executor import EagerBackend
from fxenorm.solve.max_balance.contraction import contracted

from ..executor_cases import assert_same_sums, assert_same_weights, network, trained

try:
    build.library()
except build.BuildError as error:
    pytest.skip(f"no compiler: {error}", allow_module_level=True)

EAGER = EagerBackend()
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def compiled() -> CompiledBackend:
    """A backend without tables."""
    return CompiledBackend()


def rows_and_columns(outputs: int, inputs: int) -> list[tuple[int, np.ndarray]]:
    """A layer's exponents."""
    return [(1, np.arange(outputs)[:, None, None, None]), (-1, outputs + np.arange(inputs)[None, :, None, None])]


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda tensor: tensor,
    "channels_last": lambda tensor: tensor.to(memory_format=torch.channels_last),
    "transposed": lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1),
    "with gaps": lambda tensor: torch.stack([tensor, tensor], dim=2)[:, :, 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.3, 1.0, 1.5, 2.0, 3.0, 4.0, 7.5, 12.0, 1000.0, math.inf])
@pytest.mark.parametrize("factor", [False, True])
def test_layers_of_several_tiles(layout: str, dtype: torch.dtype, p: float, factor: bool) -> None:
    weight = torch.randn(130, 70, 3, 3)
    weight[3], weight[:, 5] = 0.0, 0.0  # channels of zeros have no sum at all
    weight = LAYOUTS[layout](weight.to(dtype))
    terms = rows_and_columns(130, 70)
    program = build_program([((130, 70, 3, 3), terms, 0.3 if math.isfinite(p) else 0.0)], 200, p)
    factors = [torch.rand(130, 1, 1, 1, dtype=torch.float64) if factor else None]
    assert_same_sums(compiled().reduce(program, [weight], factors), EAGER.reduce(program, [weight], factors))
    log_scales = torch.linspace(-1, 1, 200, dtype=torch.float64)
    other = weight.clone()
    compiled().apply([ScaleTarget("w", weight, term_tensors(terms, 4, 200))], log_scales)
    EAGER.apply([ScaleTarget("w", other, term_tensors(terms, 4, 200))], log_scales)
    assert_same_weights(weight, other)


@pytest.mark.parametrize("p", [8.5, 12.0, 16.0, 100.3, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_entry_is_too_small_or_too_large_for_a_large_exponent(dtype: torch.dtype, p: float) -> None:
    """Rows and columns over the whole range of the type, denormal numbers included, some with zeros or what is not finite."""
    least, most = torch.finfo(dtype).smallest_normal / 8, torch.finfo(dtype).max / 8
    sizes = torch.linspace(math.log(least), math.log(most), 37 * 29, dtype=torch.float64).exp()
    weight = sizes[torch.randperm(37 * 29)].view(37, 29).to(dtype)
    weight[1], weight[:, 2], weight[3, 1], weight[4, 5] = 0.0, 0.0, math.inf, math.nan
    program = build_program([((37, 29), [(1, np.arange(37)[:, None]), (-1, 37 + np.arange(29)[None, :])], 0.7)], 66, p)
    ours, theirs = compiled().reduce(program, [weight], [None]), EAGER.reduce(program, [weight], [None])
    assert_same_sums(ours, theirs)
    assert int(ours.log_positive.isfinite().sum()) == 34


@pytest.mark.usefixtures("default_dtype")
def test_wide_layers_are_cut_into_columns() -> None:
    weight = torch.randn(9, 20_001)
    weight[4], weight[:, 7::40] = 0.0, 0.0
    terms = [(1, np.arange(9)[:, None]), (-1, 9 + np.arange(20_001)[None, :] % 40)]
    program = build_program([((9, 20_001), terms, 0.0)], 49, 2.0)
    assert_same_sums(compiled().reduce(program, [weight], [None]), EAGER.reduce(program, [weight], [None]))


@pytest.mark.usefixtures("default_dtype")
def test_groups_of_a_convolution_are_segments() -> None:
    weight = torch.randn(12, 5, 3, 3)
    inputs = 12 + (np.arange(12)[:, None] // 3) * 5 + np.arange(5)[None, :]
    terms = [(1, np.arange(12)[:, None, None, None]), (-1, inputs[:, :, None, None])]
    form = matrix_form(weight.shape, weight.stride(), term_tensors(terms, 4, 32))
    assert form is not None and form.segments.tolist() == [0, 3, 6, 9, 12] and form.width == 45
    program = build_program([(tuple(weight.shape), terms, 0.0)], 32, 2.0)
    backend = compiled()
    assert_same_sums(backend.reduce(program, [weight], [None]), EAGER.reduce(program, [weight], [None]))
    log_scales, other = torch.randn(32, dtype=torch.float64), weight.clone()
    backend.apply([ScaleTarget("w", weight, term_tensors(terms, 4, 32))], log_scales)
    EAGER.apply([ScaleTarget("w", other, term_tensors(terms, 4, 32))], log_scales)
    assert_same_weights(weight, other)


def test_a_large_graph_waits_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the kernels are there "auto" is eager, and Python would take longer for such a graph than the compiler."""

    def ring(arcs: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        tails = np.arange(arcs, dtype=np.int64) % 2
        return 2, tails, 1 - tails, np.linspace(0.0, 1.0, arcs)

    meanwhile = ExecutorChoice("auto").taken(False)
    large = ring(30_000)
    assert meanwhile.name == "eager" and meanwhile.contraction(*ring(10)) is None
    waited, wanted = meanwhile.contraction(*large), compiled().contraction(*large)
    assert waited is not None and wanted is not None
    assert all(np.array_equal(one, other) for one, other in zip(waited, wanted, strict=True))

    class Never:
        library = None

        def wait(self, seconds: float) -> bool:
            return False

    monkeypatch.setattr("fxenorm.kernels.choice.kernels", Never)
    assert meanwhile.contraction(*large) is None
    assert EAGER.contraction(*large) is None, "who asks for eager does not wait"


@pytest.mark.parametrize("seed", range(6))
def test_contraction_takes_the_steps_of_python(seed: int) -> None:
    """The same bits: potentials, and the line of nodes with its levels; also with ties."""
    random = np.random.default_rng(seed)
    count = (2, 5, 20, 60, 200, 400)[seed]
    ring = random.permutation(count)
    tails = np.concatenate([random.integers(0, count, 4 * count), ring])
    heads = np.concatenate([random.integers(0, count, 4 * count), np.roll(ring, 1)])
    lengths = 3 * random.normal(size=len(tails))
    lengths = lengths.round() if seed % 2 else lengths
    graph = count, tails, heads, lengths
    slow, fast = contracted(*graph), contracted(*graph, compiled().contraction)
    assert compiled().contraction(*graph) is not None and EAGER.contraction(*graph) is None
    assert np.array_equal(slow.potential, fast.potential)
    assert np.array_equal(slow.levels.places, fast.levels.places) and np.array_equal(slow.levels.least, fast.levels.least)
    apart = np.array([0]), np.array([1]), np.array([1.0])
    assert compiled().contraction(2, *apart) is None, "no way back: it gives up"


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_what_is_not_finite_shows_in_the_sums(value: float, p: float) -> None:
    weight = torch.randn(6, 7)
    weight[2, 3] = value
    program = build_program([((6, 7), [(1, np.arange(6)[:, None]), (-1, 6 + np.arange(7)[None])], 0.0)], 13, p)
    sums = compiled().reduce(program, [weight], [None])
    assert not sums.log_positive[2].isfinite() and not sums.log_negative[9].isfinite()
    assert sums.log_positive.isfinite().sum() == 5 and sums.log_negative.isfinite().sum() == 6


def test_all_16_bit_numbers() -> None:
    """Every value there is, times 1, comes back; times a factor it is rounded as PyTorch rounds it, ties (at 1.5) to even."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        for log_scale in (0.0, 0.1, -9.0, 5.0, math.log(1.5), math.log(0.75)):
            ours, theirs = values.clone(), values.clone()
            terms = term_tensors([(1, np.zeros(1, dtype=np.int64))], 1, 1)
            compiled().apply([ScaleTarget("w", ours, terms)], torch.tensor([log_scale], dtype=torch.float64))
            EAGER.apply([ScaleTarget("w", theirs, terms)], torch.tensor([log_scale], dtype=torch.float64))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
            if log_scale > -9.0:  # where two roundings in a row, to float32 and on, are one
                product = values.double() * math.exp(log_scale)
                torch.testing.assert_close(theirs, product.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_the_number_of_threads_changes_no_bit() -> None:
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            model = network()
            plan = fxenorm.analyze(model, torch.randn(2, 3, 8, 8), backend="compiled")
            plan.step()
            plan.step(cycles=3)
            found.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_step_sees_what_changed_since_the_last() -> None:
    (one, first, plan), (other, second, reference) = trained("compiled"), trained("eager")
    changes: list[Callable[[nn.Sequential, torch.optim.SGD], object]] = [
        lambda model, _: model[0].weight.requires_grad_(False),
        lambda model, _: model[0].weight.requires_grad_(True),
        lambda model, _: model.to(memory_format=torch.channels_last),
        lambda _, optimizer: optimizer.load_state_dict(optimizer.state_dict()),
        lambda _, optimizer: optimizer.state.clear(),
        lambda model, _: model.double(),
        lambda model, _: setattr(model[2], "weight", nn.Parameter(model[2].weight.detach() * 3)),
        lambda model, optimizer: optimizer.add_param_group({"params": [model[2].weight]}),
    ]
    for change in changes:
        for model, optimizer, its_plan in ((one, first, plan), (other, second, reference)):
            with torch.no_grad():
                change(model, optimizer)
                for parameter in model.parameters():
                    parameter[0] *= 2
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FxenormWarning)
                its_plan.step(optimizer)
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("cycles", [1, 3])
def test_channels_with_a_side_of_zeros_stay_and_the_others_move(cycles: int) -> None:
    """In the one call of a whole step too: one that zeros write, and one that zeros read."""
    sessions = [trained("compiled"), trained("eager")]
    for model, optimizer, plan in sessions:
        for step in range(2):  # from the second step on one call does it all
            with torch.no_grad():
                model[0].weight[1], model[2].weight[:, 2] = 0.0, 0.0
                before = [parameter.clone() for parameter in model.parameters()]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FxenormWarning)
                plan.step(optimizer, cycles=cycles)
            for row in (1, 2):
                assert torch.equal(model[0].bias[row], before[1][row]), step
            assert not torch.equal(model[0].bias[0], before[1][0])
    for one, other in zip(sessions[0][0].parameters(), sessions[1][0].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-30)


def test_tensors_that_have_moved_are_found_where_they_are() -> None:
    """By a backend that keeps its tables; what was there before is neither read nor written any more."""
    backend, terms = compiled(), [(1, np.arange(6)[:, None]), (-1, np.arange(6, 11)[None, :])]
    weight, factor = torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 1, dtype=torch.float64)
    program = build_program([((6, 5), terms, 0.0)], 11, 2.0)
    targets = [ScaleTarget("w", weight, term_tensors(terms, 2, 11))]
    scales = torch.rand(11, dtype=torch.float64)
    for number in range(3):
        left = weight.data
        weight.data = torch.randn(5, 6, dtype=torch.float64).T if number == 1 else torch.randn(6, 5, dtype=torch.float64)
        before, untouched = weight.clone(), left.clone()
        for factors in ([None], [factor], [2 * factor], [None]):
            assert_same_sums(backend.reduce(program, [weight], factors), EAGER.reduce(program, [weight], factors))
        backend.apply(targets, scales)
        expected = before * (scales[:6, None] - scales[None, 6:]).exp()
        torch.testing.assert_close(weight, expected, rtol=1e-14, atol=0)
        assert torch.equal(left, untouched)


def test_a_step_still_raises_before_it_writes() -> None:
    model, optimizer, plan = trained("compiled")
    plan.step(optimizer)
    before = model[0].weight.clone()
    model[2].weight = nn.Parameter(torch.randn(5, 5))
    with pytest.raises(fxenorm.BindError if hasattr(fxenorm, "BindError") else Exception, match="Nothing was rescaled"):
        plan.step(optimizer)
    assert torch.equal(model[0].weight, before)


def test_momentum_never_overflows() -> None:
    found = []
    for backend in ("compiled", "eager"):
        model, optimizer, plan = trained(backend)
        with torch.no_grad():
            model[2].weight.mul_(30.0)
            for parameter in model.parameters():
                optimizer.state[parameter]["momentum_buffer"].fill_(3e38)
        plan.step(optimizer)
        states = [optimizer.state[parameter]["momentum_buffer"] for parameter in model.parameters()]
        assert all(state.isfinite().all() for state in states)
        found.append([*model.parameters(), *states])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_autograd_notices_the_write() -> None:
    model, _, plan = trained("compiled")
    loss = model(torch.randn(2, 3, 8, 8)).square().sum()
    plan.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_empty_tensors_and_empty_plans() -> None:
    terms = [(1, np.zeros((0, 1), dtype=np.int64)), (-1, np.arange(3)[None])]
    program = build_program([((0, 3), terms, 0.0)], 3, 2.0)
    assert_same_sums(compiled().reduce(program, [torch.empty(0, 3)], [None]), EAGER.reduce(program, [torch.empty(0, 3)], [None]))
    compiled().apply([ScaleTarget("w", torch.empty(0, 3), term_tensors(terms, 2, 3))], torch.zeros(3, dtype=torch.float64))
    compiled().apply([], torch.zeros(0, dtype=torch.float64))
