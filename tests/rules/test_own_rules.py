"""Rules that users register: replaced, refused, told where they fail, and with weights that count."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import FxenormWarning, OptionError
from fxenorm.rules.laws import barrier, contract, passes
from fxenorm.rules.registry import _RULES
from fxenorm.symmetry.walk.own_rules import warn_of_uncounted


@torch.library.custom_op("fxenorm_own::project", mutates_args=())
def project(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x w^T + b."""
    return x @ w.T + b


@project.register_fake
def _(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[0])


@torch.library.custom_op("fxenorm_own::bend", mutates_args=())
def bend(x: Tensor) -> Tensor:
    """A leaky absolute value."""
    return torch.where(x > 0, x, -0.1 * x)


@bend.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    """Two layers, the second of them an operator of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.w, self.b = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return project(bend(self.a(x)), self.w, self.b)


X = torch.randn(5, 6)


@pytest.fixture(autouse=True)
def without_rules() -> Iterator[None]:
    """The table as it was."""
    before = dict(_RULES)
    fxenorm.register_rule("fxenorm_own::bend")(lambda call: passes(call, "x"))
    yield
    _RULES.clear()
    _RULES.update(before)


def analysed() -> tuple[Net, fxenorm.Plan, list[str]]:
    torch.manual_seed(0)
    model = Net()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        plan = fxenorm.analyze(model, X)
    return model, plan, [str(one.message) for one in seen if issubclass(one.category, FxenormWarning)]


def with_bias(call: Any, found: Any) -> Any:
    """The output is held by the model, so the bias is too."""
    call.zero(call["b"])
    return found


def by_argument(call: Any) -> Any:
    return with_bias(call, contract(call, call["x"], "bi", call["w"], "oi", "bo"))


def by_field(call: Any) -> Any:
    return with_bias(call, contract(call, call.field("x"), "bi", call.field("w"), "oi", "bo"))


def said_before(call: Any) -> Any:
    call.roles["w"] = "gamma"
    return by_argument(call)


@pytest.mark.parametrize("rule", [by_argument, by_field, said_before])
def test_a_parameter_in_contract_counts(rule: Callable[[Any], Any]) -> None:
    fxenorm.register_rule("fxenorm_own::project")(rule)
    model, plan, said = analysed()
    assert not said and plan.num_scales == 8 and plan.exact and plan.verify(X)
    with torch.no_grad():
        model.a.weight.mul_(30)
        model.w.div_(30)
    result = plan.balance()
    assert result.converged and not result.held and result.iterations
    rows, columns = model.a.weight.norm(dim=1), model.w.norm(dim=0)
    torch.testing.assert_close(rows, columns, rtol=1e-4, atol=0)


def left_out(call: Any) -> Any:
    found = by_argument(call)
    call.roles["w"] = "other"
    return found


def by_hand(call: Any) -> Any:
    """As if `contract` had not said it."""
    found = by_argument(call)
    del call.roles["w"]
    return found


def test_a_rescaled_parameter_that_counts_in_no_norm_is_named() -> None:
    fxenorm.register_rule("fxenorm_own::project")(by_hand)
    _, plan, said = analysed()
    assert plan.num_scales == 8 and plan.verify(X)
    assert len(said) == 1 and "w ('w' of fxenorm_own::project)" in said[0] and "call.roles['w'] = 'weight'" in said[0]
    fxenorm.register_rule("fxenorm_own::project")(left_out)
    _, plan, said = analysed()
    assert not said and plan.num_scales == 8, "this one says that it is meant"
    assert "no counted weight" in str(plan.held[0])


@pytest.mark.parametrize(("count", "more"), [(10, ""), (12, " and 2 more")])
def test_ten_uncounted_parameters_are_named_and_the_others_counted(count: int, more: str) -> None:
    unsaid = {f"w{k}": ("lib::op", "w") for k in range(count)}
    with pytest.warns(FxenormWarning) as said:
        warn_of_uncounted(unsaid, [*unsaid, "moved by another rule"], dict.fromkeys(unsaid, "other"))
    listed = str(said[0].message).partition("what it uses them: ")[2].partition(". Say")[0]
    assert listed == "; ".join(f"w{k} ('w' of lib::op)" for k in range(10)) + more


def stopped(call: Any) -> Any:
    return barrier(call, "not now")


def test_a_rule_may_be_registered_again() -> None:
    fxenorm.register_rule("fxenorm_own::project")(by_argument)
    for scales in (0, 8, 0):
        fxenorm.register_rule("fxenorm_own::bend")((lambda call: passes(call, "x")) if scales else stopped)
        assert analysed()[1].num_scales == scales


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("aten::relu", "fxenorm's own"),
        ("fxenorm_own::nothing", "no operator is named"),
        ("fxenorm_own::projects", r"did you mean 'fxenorm_own::project'\?"),
        ("fxenorm_own::project.other", "no operator is named"),
        ("project", "expected"),
        ("::project", "expected"),
    ],
)
def test_what_cannot_have_a_rule_is_refused(name: str, words: str) -> None:
    before = dict(_RULES)
    with pytest.raises(OptionError, match=words):
        fxenorm.register_rule("fxenorm_own::project", name)(by_argument)
    assert before == _RULES


@pytest.mark.parametrize("name", ["fxenorm_own::project", "fxenorm_own::project.default"])
def test_names_with_and_without_an_overload(name: str) -> None:
    fxenorm.register_rule(name)(by_argument)
    assert analysed()[1].num_scales == 8


def wrong_name(call: Any) -> Any:
    wanted = "y"
    return call.field(wanted)  # this line


def wrong_argument(call: Any) -> Any:
    return contract(call, call["y"], "bi", call["w"], "oi", "bo")  # this line


def field_for_a_name(call: Any) -> Any:
    return passes(call, call["x"])  # this line


def wrong_role(call: Any) -> Any:  # this line
    call.roles["w"] = "wieght"
    return by_argument(call)


def wrong_shape(call: Any) -> Any:  # this line
    return call.field("x")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (wrong_name, "KeyError: 'y'"),
        (wrong_argument, "'y' is not the name of an argument"),
        (field_for_a_name, "a ScaleField is not the name of an argument"),
        (wrong_role, "'wieght' is not valid"),
        (wrong_shape, "a scale rule returned a field"),
    ],
)
def test_a_rule_that_fails_is_told_where(rule: Callable[[Any], Any], words: str) -> None:
    fxenorm.register_rule("fxenorm_own::project")(rule)
    with open(__file__, encoding="utf-8") as source:
        lines = source.read().splitlines()
    start = rule.__code__.co_firstlineno
    line = next(number for number in range(start, len(lines)) if "# this line" in lines[number - 1])
    torch.manual_seed(0)
    with pytest.warns(FxenormWarning, match=words) as seen:
        plan = fxenorm.analyze(Net(), X)
    told = [one for one in seen if "scale rule" in str(one.message)]
    assert {one.filename for one in told} == {__file__}
    text = str(told[0].message)
    assert f"{rule.__name__} ({__file__}:{line})" in text and "'x', 'w', 'b'" in text and "Please report" not in text
    assert plan.num_scales == 0 and plan.barriers[0].operator == "project.default"
