"""``frozen=``: which tensors each call leaves bit for bit, by the flags of the parameters and the choice."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.errors import FxenormWarning, OptionError

from ..helpers import generator, mlp, outputs, randomise, relative_difference, state_of

INPUTS = (torch.randn(6, 4, dtype=torch.float64, generator=generator(0)),)
CHOICES = ("auto", "hold", "move")
FLAGS: dict[str, tuple[str, ...]] = {
    "none frozen": (),
    "one frozen": ("2.weight",),
    "all frozen": ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"),
}


def network(frozen: tuple[str, ...]) -> nn.Sequential:
    """Three layers, some of whose parameters require no gradient."""
    model = randomise(mlp(4, 5, 6, 3).double(), seed=1)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return model


def step(plan: fxenorm.Plan, choice: Any) -> None:
    plan.step(frozen=choice)


def balance(plan: fxenorm.Plan, choice: Any) -> None:
    plan.balance(frozen=choice)


def attach(plan: fxenorm.Plan, choice: Any) -> None:
    """Rescales from the hook of an optimizer that changes nothing by itself."""
    optimizer = torch.optim.SGD(plan.model.parameters(), lr=0.0)
    with plan.attach(optimizer, frozen=choice):
        optimizer.step()


def stays(frozen: tuple[str, ...], choice: str, call: Callable[..., None]) -> bool:
    """Whether the frozen tensors have to stay: by definition of each choice."""
    if choice == "auto":
        # A hook belongs to training: there a model that is frozen as a whole rests.
        return len(frozen) < 6 or call is attach
    return choice == "hold"


@pytest.mark.parametrize("call", [step, balance, attach])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("frozen", FLAGS.values(), ids=FLAGS)
def test_each_call_leaves_the_frozen_tensors_that_the_choice_says(
    frozen: tuple[str, ...], choice: str, call: Callable[..., None]
) -> None:
    model = network(frozen)
    plan = fxenorm.analyze(model, INPUTS)
    before, values = state_of(model), outputs(model, INPUTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FxenormWarning)
        call(plan, choice)
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    held = set(frozen) if stays(frozen, choice, call) else set()
    # The last layer's bias carries no variable. All scales around a frozen weight are tied to one that may still move.
    assert held <= same and ("0.weight" not in same) == (len(held) < 6)
    assert set(frozen) - held - {"4.bias"} <= {name for name in before if name not in same}
    assert relative_difference(values, outputs(model, INPUTS)) < 1e-10


def test_a_model_that_is_held_as_a_whole_says_so() -> None:
    plan = fxenorm.analyze(network(FLAGS["all frozen"]), INPUTS)
    with pytest.warns(FxenormWarning, match=r"balance\(\) moved nothing, since all 11 scales are held.*requires_grad=False"):
        result = plan.balance(frozen="hold")
    assert sum(item.count for item in result.held) == plan.num_scales and not result.log_scales.any()


def test_consecutive_steps_with_other_choices_look_again() -> None:
    """Each step follows its own choice, whatever the one before it has looked up and kept."""
    reference, model = network(("2.weight",)), network(("2.weight",))
    expected, plan = fxenorm.analyze(reference, INPUTS), fxenorm.analyze(model, INPUTS)
    for choice in ("auto", "move", "move", "hold", "move", "auto"):
        before = model[2].weight.detach().clone()
        plan.step(frozen=choice)
        fxenorm.Plan.from_dict(expected.to_dict(), reference).step(frozen=choice)
        assert torch.equal(model[2].weight, before) == (choice != "move"), choice
        for one, other in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_moved_without_a_word_on_optimizers_that_never_train_them() -> None:
    """A frozen parameter has no optimizer: moving it asks for none."""
    model = network(("2.weight",))
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    model(*INPUTS).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FxenormWarning)
        fxenorm.analyze(model, INPUTS).step(optimizer, frozen="move")


def test_balance_of_a_frozen_model_is_that_of_a_trained_one() -> None:
    trained, frozen = network(()), network(("2.weight", "0.bias"))
    results = [
        fxenorm.analyze(trained, INPUTS).balance(),
        fxenorm.analyze(frozen, INPUTS).balance(frozen="move"),
    ]
    torch.testing.assert_close(results[0].log_scales, results[1].log_scales, rtol=1e-12, atol=1e-12)
    assert not results[1].held and not frozen[2].weight.requires_grad


@pytest.mark.parametrize("call", [step, balance, attach])
def test_an_unknown_choice_is_refused_before_anything_is_written(call: Callable[..., None]) -> None:
    model = network(())
    plan, before = fxenorm.analyze(model, INPUTS), state_of(model)
    with pytest.raises(OptionError, match=r"frozen='stay' is not a valid option: expected one of \('auto', 'hold', 'move'\)"):
        call(plan, "stay")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
