"""Fields of parameters: made at the first use, in the form that it asks for."""

from __future__ import annotations

import math

import pytest

from fxenorm.field import Equations, ParameterFields, ParameterView, ScaleField, Step, solve
from fxenorm.field import structure as S


def _parameters(shape: tuple[int, ...]) -> tuple[Equations, ParameterFields]:
    equations = Equations()
    return equations, ParameterFields(equations, {"w": shape})


def test_a_parameter_takes_the_form_of_its_first_use_through_views() -> None:
    equations, parameters = _parameters((2, 3))
    step = Step(lambda f: S.permute(f, (1, 0)), lambda f: S.permute(f, (1, 0)))
    view = ParameterView("w", (2, 3)).then((3, 2), step)
    wanted = equations.fresh((3, 2), [0])
    parameters.give(view, wanted, origin=0)
    assert parameters.fields["w"].terms[0][1].shape == (1, 3)
    seen = parameters.look(view)
    assert isinstance(seen, ScaleField) and seen.terms[0][1].shape == (3, 1)
    assert not equations.ties and not equations.sums


def test_a_second_use_becomes_equations() -> None:
    equations, parameters = _parameters((3,))
    first, second = equations.fresh((3,)), equations.fresh((3,))
    parameters.give(ParameterView("w", (3,)), first, origin=0)
    parameters.give(ParameterView("w", (3,)), second, origin=1)
    assert solve(equations).matrix.shape[1] == 3


def test_a_view_without_inverse_asks_for_the_whole_parameter() -> None:
    equations, parameters = _parameters((4,))
    view = ParameterView("w", (4,)).then((2,), Step(lambda f: S.take_slice(f, 0, slice(0, 2)), None))
    parameters.give(view, ScaleField((2,)), origin=0)
    assert parameters.fields["w"].terms[0][1].size == 4
    assert solve(equations).matrix.shape[1] == 2


@pytest.mark.parametrize(
    ("shape", "forms"),
    [
        ((1000, 2000), [(1, 2000), (1000, 1)]),
        ((2, 40_000), [(1, 40_000), (2, 1)]),
        ((40_000, 1, 2), [(1, 1, 2), (40_000, 1, 1)]),
        ((3, 150, 200), [(1, 1, 200), (1, 150, 1), (3, 1, 1)]),
        ((256, 256), [(256, 256)]),
        ((1, 70_000), [(1, 70_000)]),
    ],
)
def test_large_parameters_get_one_variable_a_position_on_each_axis(shape: tuple[int, ...], forms: list[tuple[int, ...]]) -> None:
    """One an entry would be too many, unless there is one axis alone, whose entries are its positions."""
    equations, parameters = _parameters(shape)
    field = parameters.form(ParameterView("w", shape), origin=0)
    assert sorted(ids.shape for _, ids in field.terms) == forms
    assert equations.count == sum(math.prod(form) for form in forms)
    with pytest.raises(KeyError):
        parameters.form(ParameterView("v", (2,)), origin=0)


def test_a_factor_that_leaves_the_range_of_floats_is_not_known() -> None:
    """A number that is added behind it then has no offset of its own."""
    view = ParameterView("w", (2,))
    added = view.multiplied(4.0).plus(2.0)
    assert added is not None and (added.offset, added.factor) == (0.5, 4.0)
    for factor in (1e200, 1e-200):
        twice = view.multiplied(factor).multiplied(factor)
        assert twice.factor is None and twice.plus(1.0) is None and twice.multiplied(2.0).factor is None
    assert view.multiplied(1e-300).multiplied(1e-8).plus(1e8) is None, "an offset beyond the range"


def test_a_parameter_that_is_met_with_two_offsets_is_held_from_its_first_use_on() -> None:
    equations, parameters = _parameters((3,))
    first, second = (ParameterView("w", (3,), offset=offset) for offset in (1.0, 2.0))
    assert not parameters.form(first, origin=0).is_zero
    parameters.use(second, origin=1)
    assert solve(equations).zero_origin.tolist() == [1, 1, 1]
    assert parameters.fields["w"].is_zero and parameters.form(second, origin=2).is_zero
