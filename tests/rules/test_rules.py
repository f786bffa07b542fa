"""Every scale rule against its operator: sound on random rescalings, and as large as the measured law."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.field import ScaleField, times
from fxenorm.field.structure import flip
from fxenorm.rules import Call, Rule, derivatives, find_rule, iterate_rules, registry, sparse
from fxenorm.rules.laws import contract, passes, zero_field
from tests.releases import need_derivative, need_operator

from .. import rule_cases
from ..claimed_law import claims
from ..operator_harness import TOLERANCE, Case, Variant, errors_on_zeros, examine, schemas, traced_call
from ..rule_cases import CASES

MEASURED_POOLS = {
    "aten::max_pool2d_with_indices_backward",
    "aten::avg_pool2d_backward",
    "aten::_adaptive_avg_pool2d_backward",
    "aten::upsample_bilinear2d_backward",
}
HELD_DERIVATIVES = [
    f"aten::{name}_backward"
    for name in ("native_batch_norm", "native_group_norm", "glu", "nll_loss", "smooth_l1_loss", "huber_loss", "_fused_rms_norm")
]

# Rules without a row, and why.
WITHOUT_ROW = {
    "aten::_assert_async": "returns nothing",
    "aten::_assert_scalar": "returns nothing",
    "aten::_assert_tensor_metadata": "returns nothing",
    "aten::_has_compatible_shallow_copy_type": "returns a Python value; see test_a_question_about_types_imposes_nothing",
    "aten::_has_same_storage_numel": "returns a Python value that depends on shapes only",
    "aten::is_same_size": "returns a Python value that depends on shapes only",
    "aten::numel": "returns a Python value that depends on shapes only",
    "aten::size": "returns a Python value that depends on shapes only",
    "aten::sym_numel": "returns a Python value that depends on shapes only",
    "aten::sym_size": "returns a Python value that depends on shapes only",
    "aten::sym_stride": "returns a Python value that depends on shapes only",
    "aten::empty": "its values are undefined",
    "aten::empty_like": "its values are undefined",
    "aten::empty_permuted": "its values are undefined",
    "aten::empty_strided": "its values are undefined",
    "aten::new_empty": "its values are undefined",
    "aten::lift_fresh": "stands in front of constants only",
    "aten::is_nonzero": "taken apart by the tracer",
    "aten::equal": "no trace holds it: a value that reaches Python",
    "aten::allclose": "no trace holds it: a value that reaches Python",
    "aten::_grouped_mm": "bfloat16 only; see test_grouped_products",
    "transformers::grouped_mm_fallback": "of a library that is not needed here; see test_grouped_products",
    **dict.fromkeys(sparse.PATTERNS, "integers that do not depend on values"),
    **dict.fromkeys(sparse.COMPRESSED, "no trace along a run holds compressed rows; see the networks of test_completeness"),
    **dict.fromkeys(
        [name for name in derivatives.POOLS if name not in MEASURED_POOLS], "the rule is that of its siblings, which have rows"
    ),
    **dict.fromkeys(HELD_DERIVATIVES, "a barrier; the rule is mse_loss_backward's"),
    **dict.fromkeys(
        [f"aten::_scaled_dot_product_{kind}_attention" for kind in ("flash", "efficient", "cudnn")],
        "GPU only; the rule is that of scaled_dot_product_attention",
    ),
    "aten::_fused_rms_norm": "GPU only; the rule is rms_norm's",
    "aten::cudnn_batch_norm": "GPU only; the rule is batch_norm's",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rule(case: Case) -> None:
    need_derivative(case.operator)
    assert case.operator in schemas(case), f"the row's graph makes no use of {case.operator}"
    findings = examine(case)
    wrong = [str(f) for f in findings if f.verdict == "incorrect"]
    assert not wrong, "\n".join(wrong)
    on_zeros = {variant: error for variant, error in errors_on_zeros(case).items() if error > TOLERANCE}
    assert not on_zeros, "zeros carry any scale; what comes of them does not always"
    missing = [str(f) for f in findings if f.verdict == "missing"]
    if case.misses:
        assert missing, f"the row says that something is missed ({case.misses}), but everything is claimed"
    else:
        assert not missing, "\n".join(missing)


@pytest.mark.parametrize(
    "name",
    ["convolution_backward[pointwise]", "convolution_backward[groups]", "hardtanh_backward", "leaky_relu_backward", "bmm", "mul"],
)
def test_what_meets_zeros_alone_keeps_all_of_its_scales(name: str) -> None:
    """Zeros as a gradient, or as a factor: the results are zeros whatever the others are multiplied by."""
    case = next(case for case in CASES if case.name == name)
    found = claims(case, Variant(("zeros", *(tuple(range(len(shape))) for shape in case.shapes[1:]))))
    assert found.free == sum(math.prod(shape) for shape in case.shapes[1:])
    assert all(rows is None for rows in found.outputs)


@pytest.mark.parametrize("operator", [rule.operator for rule in iterate_rules()])
def test_every_rule_has_a_row(operator: str) -> None:
    assert (operator in {case.operator for case in CASES}) is not (operator in WITHOUT_ROW)


def _registered_by(path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The operators that a file of fxenorm/rules registers, by running it once more with an empty table."""
    spec = importlib.util.spec_from_file_location(f"fxenorm.rules.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_RULES", {})
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        return set(registry._RULES)


def test_rows_stand_in_the_file_that_has_the_name_of_their_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads fxenorm/rules/pooling.py finds its rows in tests/rule_cases/pooling.py, and no others there."""
    folder = Path(fxenorm.rules.__file__).parent
    sources = [path for path in folder.glob("*.py") if path.stem not in ("__init__", "registry")]
    homes = {operator: path.stem for path in sources for operator in _registered_by(path, monkeypatch)}
    assert homes.keys() == {rule.operator for rule in iterate_rules() if not rule.own}
    tables = {name: import_module(f"{rule_cases.__name__}.{name}").CASES for name in rule_cases.FAMILIES}
    assert {f"{name}: {row.name}" for name, rows in tables.items() for row in rows if homes[row.operator] != name} == set()
    assert tables.keys() == set(homes.values()) and all(tables.values())
    files = {path.stem for path in Path(rule_cases.__file__).parent.glob("*.py")}
    assert files - {"__init__", "case"} == tables.keys()


def test_no_row_is_for_an_operator_without_a_rule() -> None:
    rules = {rule.operator for rule in iterate_rules()}
    assert not {case.operator for case in CASES} - rules and not WITHOUT_ROW.keys() - rules


# Overloads for lists, dictionaries and named axes, which no trace holds.
NO_TRACE = {"aten::eq.Tensor_list", "aten::ne.Tensor_list", "aten::sort.Tensor", "aten::copy.Dict_Tensor", "aten::einsum.sublist"}


def _tensor_arguments(schema: Any) -> set[str]:
    return {a.name for a in schema.arguments[1:] if "Tensor" in str(a.type) and not a.is_out}


@pytest.mark.parametrize("rule", list(iterate_rules()), ids=lambda rule: rule.operator)
def test_every_tensor_argument_of_every_overload_is_in_a_row(rule: Rule) -> None:
    """A rule for all overloads of an operator must know all of their tensors."""
    if rule.operator in WITHOUT_ROW or rule.operator.count(".") or rule.family == "barrier":
        return
    seen: set[str] = set()
    for case in CASES:
        for node in traced_call(case).graph.nodes if case.operator == rule.operator else ():
            if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.name == rule.operator:
                seen |= _tensor_arguments(node.target._schema)
    namespace, name = rule.operator.split("::")
    packet = getattr(getattr(torch.ops, namespace), name)
    for overload in packet.overloads():
        schema = getattr(packet, overload)._schema
        found = find_rule(rule.operator, overload)
        named = f"{rule.operator}.{overload}" in NO_TRACE or "Dimname" in str(schema)
        if found is rule and not named and not any(a.is_out for a in schema.arguments):
            assert _tensor_arguments(schema) <= seen, f"{overload} reads tensors that no row has"


def test_rows_have_names_of_their_own() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("rule", list(iterate_rules()), ids=lambda rule: rule.operator)
def test_every_rule_states_its_law_and_names_an_operator(rule: Rule) -> None:
    assert rule.function.__doc__, f"the rule of {rule.operator} says no law"
    namespace, name = rule.operator.split("::")
    name, _, overload = name.partition(".")
    if namespace == "aten":
        need_operator(f"{namespace}::{name}")
        packet = getattr(torch.ops.aten, name)
        assert not overload or overload in packet.overloads()


@pytest.mark.parametrize(
    ("name", "overload", "operator"),
    [
        ("aten::relu_", "default", "aten::relu"),
        ("aten::__iand__", "Tensor", "aten::__and__"),
        ("aten::pow_", "Scalar", "aten::pow.Scalar"),
        ("aten::relu", "out", "aten::relu"),
        ("aten::where", "self_out", "aten::where.self"),
        ("aten::max", "out", "aten::max.out"),
        ("aten::max", "default", "aten::max.default"),
        ("aten::max", "names_dim", None),
        ("aten::made_up", "default", None),
    ],
)
def test_find_rule(name: str, overload: str, operator: str | None) -> None:
    found = find_rule(name, overload)
    assert (found.operator if found else None) == operator


def _grouped_product(x: torch.Tensor, w: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Rows up to ends[0] times w[0], the next ones up to ends[1] times w[1], ..."""
    starts = [0, *ends.tolist()]
    return torch.cat([x[a:b] @ w[e] for e, (a, b) in enumerate(pairwise(starts))])


def test_grouped_products() -> None:
    """A mixture of experts: the rule cannot know which rows meet which weight, and ties all experts' columns."""
    with torch.library._scoped_library("transformers", "FRAGMENT") as library:
        # Once another test has imported transformers, the operator is there.
        if not hasattr(torch.ops.transformers, "grouped_mm_fallback"):
            library.define("grouped_mm_fallback(Tensor input, Tensor weight, Tensor offs) -> Tensor")
            library.impl("grouped_mm_fallback", _grouped_product, "CompositeImplicitAutograd")

        def call(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return torch.ops.transformers.grouped_mm_fallback(x, w, torch.tensor([1, 3]))

        row = Case("transformers::grouped_mm_fallback", call, ((3, 4), (2, 4, 5)), misses="the experts are tied")
        assert row.operator in schemas(row)
        assert {finding.verdict for finding in examine(row)} <= {"correct", "missing"}
        # Rows, columns of all experts, and the summed axis between them.
        assert max(finding.claimed for finding in examine(row)) == 3 + 5 + 4 - 1


# --- deliberately wrong rules, one a family and more --------------------------------------------------------------------


def _lets_pass(call: Call) -> Any:
    return passes(call, next(iter(call.arguments)))


def _flipped(call: Call) -> Any:
    return flip(call.field("self"), [1])


def _squared(call: Call) -> Any:
    return times(call.field("self"), 2)


def _first_only(call: Call) -> Any:
    return ScaleField(call.out_shape, call.field("self").terms)


def _without_constancy(call: Call) -> Any:
    field = call.field("self")
    return ScaleField(call.out_shape, tuple((c, ids.take(0, axis=1)) for c, ids in field.terms))


def _first_products_only(call: Call) -> Any:
    first = contract(call, _at_first(call.field("self"), 1), "nJ", _at_first(call.field("mat2"), 0), "Jm", "nm")
    return ScaleField(call.out_shape, first.terms)


def _at_first(field: ScaleField, axis: int) -> ScaleField:
    return ScaleField(field.shape, tuple((c, ids.take([0], axis=axis)) for c, ids in field.terms))


def _out_and_in_swapped(call: Call) -> Any:
    return contract(call, call["input"], "nI", call["weight"], "IO", "nO")


def _affine_without_hold(call: Call) -> Any:
    return _lets_pass(call)


WRONG: dict[str, tuple[str, Callable[[Call], Any]]] = {
    "homogeneous: gelu as relu": ("aten::gelu", _lets_pass),
    "homogeneous: relu of degree 2": ("aten::relu", _squared),
    "barrier: softmax passes": ("aten::softmax", _lets_pass),
    "barrier: everything passes without a field": ("aten::tanh", zero_field),
    "structural: flip along another axis": ("aten::roll", _flipped),
    "structural: nothing moves": ("aten::flip", _first_only),
    "additive: the second term is forgotten": ("aten::add", _first_only),
    "multiplicative: the second factor is forgotten": ("aten::mul", _first_only),
    "multiplicative: a root is its argument": ("aten::sqrt", _first_only),
    "contraction: outputs and inputs swapped where there are as many": ("aten::linear", _out_and_in_swapped),
    "contraction: no constancy": ("aten::mm", _first_products_only),
    "reduction: no constancy": ("aten::mean", _without_constancy),
    "reduction: var of degree 1": ("aten::var", lambda call: find_rule("aten::mean", "dim").function(call)),  # type: ignore[union-attr]
    "normalising: the input is not held": ("aten::layer_norm", _affine_without_hold),
    "comparison: nothing is imposed": ("aten::gt", zero_field),
    "constant: a copy of its argument": ("aten::ones_like", _first_only),
}

SQUARE = Case("aten::linear", torch.nn.functional.linear, ((2, 4), (4, 4)))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rules_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, function = WRONG[name]
    rows = [SQUARE] if "swapped" in name else [case for case in CASES if case.operator == operator][:3]
    assert not any(finding.verdict == "incorrect" for row in rows for finding in examine(row))
    monkeypatch.setitem(registry._RULES, operator, Rule(operator, "wrong", function))
    assert any(finding.verdict == "incorrect" for row in rows for finding in examine(row))


@pytest.mark.parametrize("operator", ["aten::relu", "aten::linear", "aten::permute", "aten::mean", "aten::add", "aten::mul"])
def test_missing_laws_are_reported(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness also sees rules that claim too little."""
    barrier = find_rule("aten::tanh", "default")
    assert barrier is not None
    monkeypatch.setitem(registry._RULES, operator, Rule(operator, "timid", barrier.function))
    row = next(case for case in CASES if case.operator == operator)
    assert {finding.verdict for finding in examine(row)} == {"missing"}


def test_a_question_about_types_imposes_nothing() -> None:
    """nn.Module._apply asks it; a model may do so in forward."""

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x).relu()
            return self.b(h if torch._has_compatible_shallow_copy_type(h, self.a.weight) else 2 * h)

    assert fxenorm.analyze(Asks(), torch.randn(5, 4)).num_scales == 6
