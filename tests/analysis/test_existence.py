"""What has to be held so that the norm has a least value: enough, nothing in vain, and the same whatever basis is looked at."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import csr_array
from torch import Tensor, nn

import fxenorm
from fxenorm.analysis.attained.basis import Basis
from fxenorm.analysis.attained.channel_fields import ChannelFields
from fxenorm.analysis.attained.exponent_rows import exponent_rows
from fxenorm.analysis.attained.missing_equations import missing_equations
from fxenorm.analysis.attained.recession import falling_rows
from fxenorm.field import merge_entries
from fxenorm.kernels.program import build_program
from fxenorm.kernels.reference.executor import EagerBackend

from ..random_plans import Case, cases
from ..zoo_base import Net

Form = tuple[tuple[int, int], ...]
BACKEND = EagerBackend()


def entries_of(case: Case) -> np.ndarray:
    """(n, K) the exponents of the entries that are not zero, by definition."""
    rows = [np.zeros((0, case.num_scales))]
    for shape, terms, tensor in zip(case.shapes, case.terms, case.tensors, strict=True):
        found = np.zeros((*shape, case.num_scales + 1))
        for coefficient, ids in terms:
            np.add.at(found, (*np.indices(shape), np.broadcast_to(ids, shape)), coefficient)
        rows.append(found[tensor.numpy() != 0][:, :-1])
    return np.concatenate(rows)


def falls_for_ever(entries: np.ndarray, forms: list[Form]) -> bool:
    """Whether some direction that leaves the forms alone raises no entry and lowers one: a plain linear program."""
    count = entries.shape[1]
    zero = np.zeros((len(forms), count))
    for row, form in zip(zero, forms, strict=True):
        for variable, value in form:
            row[variable] = value
    if not len(entries):
        return False
    level = {"A_eq": zero, "b_eq": np.zeros(len(forms))} if forms else {}
    answer = linprog(entries.sum(0), A_ub=entries, b_ub=np.zeros(len(entries)), bounds=[(-1, 1)] * count, **level)
    return bool(answer.fun < -1e-7)


def unimodular(count: int, random: np.random.Generator) -> np.ndarray:
    """(count, count) a random integer matrix whose inverse has integers too."""
    found = np.eye(count, dtype=np.int64)
    for _ in range(2 * count):
        one, other = random.integers(0, count, 2)
        if one != other:
            found[:, one] += random.choice([-1, 1]) * found[:, other]
    return found[:, random.permutation(count)]


def held_forms(case: Case, fields: list[Any], basis: Basis | None = None) -> list[Form]:
    """What is held, as forms of the case's variables; worked out in a basis where one is given."""
    terms = case.terms if basis is None else [list(basis.terms(merge_entries(given))) for given in case.terms]
    program = build_program(list(zip(case.shapes, terms, case.log_weights, strict=True)), case.num_scales, case.p)
    matrices = BACKEND.matrices(program, case.tensors, [None] * len(case.tensors))
    nothing = np.zeros(case.num_scales, dtype=bool)
    found = missing_equations(
        exponent_rows(program, matrices).matrix(nothing), nothing, ChannelFields(fields, program, basis), basis is not None
    )
    forms = []
    for form, plain in found:
        if basis is None:
            forms.append(form if plain is None or len(form) == 1 else plain)
        else:
            assert plain is not None
            forms.append(plain)
    return sorted(forms)


@settings(deadline=None, max_examples=60)
@given(case=cases(infinite=False), seed=st.integers(0, 2**31))
def test_what_is_held_is_enough_and_nothing_is_held_in_vain(case: Case, seed: int) -> None:
    """Random integer systems of several variables an entry, with zeros among the weights; channels' fields are random forms."""
    assert_enough_and_not_in_vain(case, seed)


def assert_enough_and_not_in_vain(case: Case, seed: int) -> list[Form]:
    """Nothing falls for ever with what is held, and something does without any one of it; returns what is held."""
    random = np.random.default_rng(seed)
    entries, count = entries_of(case), case.num_scales
    order = random.permutation(count)
    fields: list[Any] = [((1, np.array([variable])),) for variable in order]
    fields += [((1, np.array([a])), (1, np.array([b]))) for a, b in random.integers(0, count, (2, 2)) if a != b]
    fields = [fields[place] for place in random.permutation(len(fields))]
    forms = held_forms(case, fields)
    assert not falls_for_ever(entries, forms)
    for form in forms:
        assert falls_for_ever(entries, [other for other in forms if other != form])
    return forms


@pytest.mark.parametrize(
    ("entries", "attained"),
    [
        ([(1, -2), (-1, 2)], True),
        ([(1, -2), (-2, 1)], False),  # both fall where both variables grow
        ([(2, -1), (-1, 2)], False),
        ([(1, -2), (-2, 1), (1, 1)], True),
        ([(2, -2), (-1, 1)], True),
        ([(1, -2), (-1, 1), (0, 1)], True),
        ([(1, -2), (-1, 1), (0, -1)], False),
        ([(2, 0), (-1, 0), (1, -2), (-1, 1)], True),
        ([(2, 0), (-1, 0), (1, -2), (-1, 2)], True),
    ],
)
def test_entries_of_two_variables_with_unlike_coefficients(entries: list[tuple[int, int]], attained: bool) -> None:
    """A square of one channel beside another channel, say: signs alone do not tell whether there is a minimum."""
    terms = [[(value, np.array([k])) for k, value in enumerate(entry) if value] for entry in entries]
    ones = [torch.ones(1, dtype=torch.float64) for _ in entries]
    case = Case(2, 2.0, [(1,)] * len(entries), terms, [0.0] * len(entries), ones)
    assert falls_for_ever(entries_of(case), []) is not attained
    for seed in range(3):
        assert bool(assert_enough_and_not_in_vain(case, seed)) is not attained


@pytest.mark.parametrize("seed", range(8))
def test_a_large_tensor_with_zeros_in_some_rows_counts_all_of_its_entries(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without zeros are looked at as one, the others entry by entry: what has to be held is what every entry says."""
    monkeypatch.setattr(sys.modules[exponent_rows.__module__], "_FEW", 8)
    random = np.random.default_rng(seed)
    outputs, inputs = np.arange(6)[:, None], np.arange(6, 11)[None]
    middle = torch.ones(6, 5, dtype=torch.float64)
    for row in random.choice(6, 2, replace=False):
        middle[row, torch.from_numpy(random.permutation(5)[:3])] = 0.0
    first, last = (torch.from_numpy(random.integers(0, 2, shape)).double() for shape in ((5, 1), (1, 6)))
    case = Case(
        11, 2.0, [(6, 5), (5, 1), (1, 6)], [[(1, outputs), (-1, inputs)], [(1, inputs.T)], [(-1, outputs.T)]], [0.0] * 3,
        [middle, first, last],
    )  # fmt: skip
    assert_enough_and_not_in_vain(case, seed)


@settings(deadline=None, max_examples=40)
@given(case=cases(infinite=False), seed=st.integers(0, 2**31))
def test_what_is_held_does_not_depend_on_the_basis(case: Case, seed: int) -> None:
    random = np.random.default_rng(seed)
    count = case.num_scales
    fields: list[Any] = [((1, np.array([variable])),) for variable in random.permutation(count)]
    basis = Basis(csr_array(unimodular(count, random)))
    assert held_forms(case, fields, basis) == held_forms(case, fields)


class OneSided(nn.Module):
    """The norm takes the scale of the first layer out, and nothing grows with it."""

    def __init__(self) -> None:
        super().__init__()
        self.m0, self.m1, self.m2 = nn.Linear(2, 3), nn.Linear(5, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.m0(x)
        h = h / h.norm(dim=-1, keepdim=True)
        return self.m2(self.m1(h.mT).mT)


class Gated(nn.Module):
    """d reads products of two layers' channels."""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.u, self.d = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.g(x).relu() * self.u(x))


class Cancelling(nn.Module):
    """What c reads is a sum of products and their mirror image: freezing or excluding it leaves sums of variables."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) * self.b(x)
        return self.d(self.c(h + h.flip(-1)))


def bare_chain() -> nn.Module:
    """Three layers without biases."""
    return nn.Sequential(*[nn.Linear(5, 5, bias=False) for _ in range(3)])


INPUTS = {OneSided: (4, 5, 2), Gated: (4, 3), Cancelling: (4, 3), bare_chain: (4, 5)}
FROZEN = [
    (OneSided, ()),
    (Gated, ("d",)),
    (Gated, ("g",)),
    (Cancelling, ("c.weight",)),
    (Cancelling, ("a",)),
    (bare_chain, ("1",)),
]
FROZEN += [(bare_chain, ("2",)), (Gated, ())]


def prepared(kind: Any, frozen: tuple[str, ...], **options: Any) -> tuple[nn.Module, Tensor, fxenorm.Plan, list[str]]:
    """A model in float64 far from balanced, its input, its plan, and the names of its frozen parameters."""
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(INPUTS[kind], dtype=torch.float64)
    first = next(model.parameters())
    first.data.mul_(7.0)
    plan = fxenorm.analyze(model, x, **options)
    names = [
        name for name, _ in model.named_parameters() if any(name == start or name.startswith(f"{start}.") for start in frozen)
    ]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    return model, x, plan, names


@pytest.mark.parametrize("how", ["step", "cycles", "balance", "gauss-seidel step", "gauss-seidel balance"])
@pytest.mark.parametrize(("kind", "frozen"), FROZEN)
def test_what_is_frozen_stays_and_the_rest_finds_the_same_least_norm(kind: Any, frozen: tuple[str, ...], how: str) -> None:
    solver = "gauss-seidel" if how.startswith("gauss") else "jacobi"
    model, x, plan, names = prepared(kind, frozen, solver=solver)
    y = model(x)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    if how.endswith("balance"):
        result = plan.balance()
        assert result.converged and result.norm_after == pytest.approx(float(plan.norm()), rel=1e-12)
    else:
        for _ in range(60):
            last = float(plan.norm())
            plan.step(cycles=3 if how == "cycles" else 1)
            assert float(plan.norm()) <= last * (1 + 1e-12)
    ends = how.endswith("balance")
    assert float(plan.imbalance()) < (1e-6 if ends else 1e-3)
    assert all(torch.equal(before[name], dict(model.named_parameters())[name]) for name in names)
    torch.testing.assert_close(model(x), y, rtol=1e-9, atol=1e-9)
    reference, _, other, _ = prepared(kind, frozen)
    least = other.balance()
    assert float(plan.norm()) == pytest.approx(least.norm_after, rel=1e-9 if ends else 1e-5)
    other.rescale(-least.log_scales)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=1e-12, atol=0)


def test_a_one_sided_scale_is_held_whatever_the_basis() -> None:
    model, _, plan, _ = prepared(OneSided, ())
    (held,) = plan.held
    assert held.count == 1 and "m0.weight" in held.tensors
    before = model.m0.weight.clone()  # type: ignore[union-attr, operator]
    plan.balance()
    assert torch.equal(before, model.m0.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "frozen"), [(Gated, ("d",)), (Cancelling, ("c.weight",)), (bare_chain, ("1",))])
def test_freezing_leaves_what_excluding_finds(kind: Any, frozen: tuple[str, ...]) -> None:
    """The directions that are left, and where the flag is taken back, all of them without a new trace."""
    model, x, plan, names = prepared(kind, frozen)
    excluded = fxenorm.analyze(kind().double(), x, exclude=list(frozen))
    held = plan.held
    assert plan.num_scales - sum(item.count for item in held) == excluded.num_scales
    assert all(set(item.tensors) <= set(names) and item.tensors for item in held)
    for name in frozen:
        assert not any(key == name or key.startswith(f"{name}.") for key in excluded.exponents)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    assert not plan.held


def test_what_is_excluded_stays_bit_for_bit() -> None:
    model, x, _, _ = prepared(Cancelling, ())
    model.float()
    plan = fxenorm.analyze(model, x.float(), exclude=["c.weight"])
    before = model.c.weight.clone()  # type: ignore[union-attr, operator]
    for seed in range(5):
        plan.rescale(torch.randn(plan.num_scales, generator=torch.Generator().manual_seed(seed)))
    assert "c.weight" not in plan.exponents and torch.equal(before, model.c.weight)  # type: ignore[arg-type]


def test_sums_are_held_where_a_column_is_zero() -> None:
    """The product's channel is the last that a direction moves: balance leaves that sum, and each factor may still move."""
    model, x, plan, _ = prepared(Gated, ())
    with torch.no_grad():
        model.d.weight[:, 2] = 0.0  # type: ignore[union-attr, operator, index]
    y = model(x)
    (held,) = plan.held
    assert held.coefficients == (1, 1) and "s2" in str(held)
    result = plan.balance()
    assert result.converged and str(held) in str(result)
    torch.testing.assert_close(model(x), y)
    u, g = model.u.weight[2].norm(), model.g.weight[2].norm()  # type: ignore[union-attr, index]
    torch.testing.assert_close(u, g, rtol=1e-6, atol=0)


def _two_products_and_a_chain(m: nn.Module, x: Tensor) -> Tensor:
    return m.d(m.u(x) * m.g(x)) + m.e(m.v(x) * m.h(x)) + m.c(m.a(x).relu())  # type: ignore[operator]


def test_everything_that_is_held_is_listed_whatever_it_is_held_for() -> None:
    """Sums for a frozen tensor, a sum for a column of zeros, and one variable for another, all at once."""
    torch.manual_seed(0)
    layers = {name: nn.Linear(4, 3) for name in "ugvha"} | {name: nn.Linear(3, 2) for name in "dec"}
    model, x = Net(_two_products_and_a_chain, **layers).double(), torch.randn(5, 4, dtype=torch.float64)
    plan = fxenorm.analyze(model, x)
    assert plan.num_scales == 15
    with torch.no_grad():
        model.e.weight[:, 2] = 0.0  # type: ignore[union-attr, operator, index]
        model.c.weight[:, 1] = 0.0  # type: ignore[union-attr, operator, index]
    model.d.requires_grad_(False)  # type: ignore[union-attr, operator]
    before, y = {name: p.detach().clone() for name, p in model.named_parameters()}, model(x)
    assert sorted((item.count, item.coefficients) for item in plan.held) == [(1, ()), *[(1, (1, 1))] * 4]
    assert plan.balance().converged
    torch.testing.assert_close(model(x), y)
    after = {name: parameter.detach() for name, parameter in model.named_parameters()}
    growth = {
        f"{name}.{row}": float(after[f"{name}.bias"][row] / before[f"{name}.bias"][row]) for name in "ugvha" for row in range(3)
    }
    assert torch.equal(after["d.weight"], before["d.weight"]) and growth["a.1"] == 1 != growth["a.0"]
    for one, other, rows in (("u", "g", range(3)), ("v", "h", [2])):
        for row in rows:
            assert growth[f"{one}.{row}"] != 1
            assert growth[f"{one}.{row}"] * growth[f"{other}.{row}"] == pytest.approx(1, rel=1e-9)


@given(st.lists(st.tuples(st.sampled_from([-2, -1, 1, 2]), st.lists(st.integers(-1, 3), min_size=3, max_size=3)), max_size=6))
def test_merged_terms_are_the_same_form(terms: list[tuple[int, list[int]]]) -> None:
    """No entry carries a variable twice afterwards, and what cancels is gone."""
    arrays = [(coefficient, np.array(ids)) for coefficient, ids in terms]

    def form(some: Any) -> np.ndarray:
        total = np.zeros((3, 5))
        for coefficient, ids in some:
            np.add.at(total, (np.arange(3), np.broadcast_to(ids, (3,))), coefficient)
        return total[:, :-1]

    merged = merge_entries(arrays)
    assert (form(merged) == form(arrays)).all()
    assert bool(merged) == bool(form(arrays).any())


@pytest.mark.parametrize(
    ("kind", "frozen", "options", "words"),
    [
        (bare_chain, (), {}, []),
        (bare_chain, (), {"balance_last": False}, ["5 balance_last=False"]),
        (bare_chain, ("0", "1"), {}, ["5 requires_grad=False"] * 2),
        (bare_chain, ("0", "1", "2"), {}, []),  # a model that trains nothing moves as a whole
        (Gated, ("d",), {}, ["6 requires_grad=False (in sums)"] * 2),
        (OneSided, (), {}, ["1 not attained"]),
    ],
)
def test_the_printed_plan_marks_what_is_held(
    kind: Any, frozen: tuple[str, ...], options: dict[str, Any], words: list[str]
) -> None:
    """In its table: groups held by an option, by flags, or for want of a minimum; no column where all move."""
    table = str(prepared(kind, frozen, **options)[2]).split("\n\n")[1].splitlines()
    assert table[0].split()[-1] == ("held" if words else "consumers")
    assert [line[table[0].rfind("held") :].strip() for line in table[2:] if line.endswith((")", "False", "attained"))] == words


def test_balance_says_once_why_nothing_moves() -> None:
    _, _, plan, _ = prepared(bare_chain, ("0", "1"))
    with pytest.warns(fxenorm.FxenormWarning, match=r"moved nothing.*requires_grad=False.*0\.weight, 1\.weight"):
        assert plan.balance().iterations == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.balance()


def test_a_form_that_may_neither_rise_nor_fall_stays() -> None:
    """Rows that come with their negatives fall along no direction, however many classes of variables there are."""
    random = np.random.default_rng(5)
    for _ in range(40):
        forms = np.zeros((8, 12), dtype=np.int64)
        for form in forms:
            form[random.choice(12, 2, replace=False)] = (1, -1)
        rows = np.concatenate([forms, -forms, np.eye(12, dtype=np.int64)[:2]])
        found = falling_rows(csr_array(rows))
        assert not found[:16].any()
        assert found.any() == falls_for_ever(rows.astype(np.float64), [])
