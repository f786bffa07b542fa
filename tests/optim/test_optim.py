"""Which optimizer state follows, by class; what cannot be known raises before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from fxenorm.errors import OptimizerError
from fxenorm.optim.registry import find_rule, register_optimizer
from fxenorm.optim.state import owned_by, state_tensors, unwrap_optimizers


class Wrapper:
    """What Accelerate and Lightning put around an optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


class OptimizerWrapper(torch.optim.Optimizer):
    """A wrapper that is an optimizer itself."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


class OwnInit(torch.optim.SGD):
    """SGD with a default."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1, momentum=0.9)


class OwnStep(torch.optim.SGD):
    """Not SGD any more."""

    def step(self, closure: Any = None) -> None:
        """Does nothing."""


class OwnGroup(torch.optim.SGD):
    """Feeds other gradients."""

    def _init_group(self, *arguments: Any) -> bool:
        return False


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(2, 3))


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer after one step."""
    for group in optimizer.param_groups:
        for member in group["params"]:
            member.grad = torch.ones_like(member)
    optimizer.step()
    return optimizer


def test_wrappers_and_sequences_are_looked_through() -> None:
    one, two = torch.optim.SGD([parameter()], lr=0.1), torch.optim.SGD([parameter()], lr=0.1)
    assert unwrap_optimizers(None) == ()
    assert unwrap_optimizers(one) == (one,)
    assert unwrap_optimizers(Wrapper(OptimizerWrapper(one))) == (one,)
    assert unwrap_optimizers([one, Wrapper(two), (one,)]) == (one, two)
    assert owned_by([one, two]) == {id(p) for o in (one, two) for p in o.param_groups[0]["params"]}


@pytest.mark.parametrize("wrong", ["sgd", torch.optim.SGD, 3, [None, 4], {"optimizer": None}])
def test_what_is_no_optimizer_is_refused(wrong: Any) -> None:
    with pytest.raises(OptimizerError, match=r"torch\.optim\.Optimizer"):
        unwrap_optimizers(wrong)


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "foreach": True},
        {"momentum": 0.9, "fused": True},
    ],
)
def test_momentum_follows_as_a_gradient(settings: dict[str, Any]) -> None:
    weight = parameter()
    optimizer = torch.optim.SGD([weight], lr=0.1, **settings)
    assert state_tensors([optimizer], {"w": weight}) == []
    stepped(optimizer)
    (found,) = state_tensors([optimizer], {"w": weight})
    assert (found.parameter, found.key, found.power) == ("w", "momentum_buffer", -1)
    assert found.tensor is optimizer.state[weight]["momentum_buffer"]
    optimizer.load_state_dict(optimizer.state_dict())
    (again,) = state_tensors([optimizer], {"w": weight})
    assert again.tensor is optimizer.state[weight]["momentum_buffer"], "looked up afresh"


def test_state_that_is_absent_or_none() -> None:
    weight, other = parameter(), parameter()
    optimizer = stepped(torch.optim.SGD([weight], lr=0.1))
    assert state_tensors([optimizer], {"w": weight, "other": other}) == []
    assert other not in optimizer.state, "no state is made by looking"


def test_the_count_of_steps_of_a_scalar_is_no_moment_of_it() -> None:
    """A temperature or a gate has no axes, and neither has the count."""
    scalar = nn.Parameter(torch.tensor(2.0))
    optimizer = stepped(torch.optim.Adam([scalar]))
    found = {item.key: item.power for item in state_tensors([optimizer], {"scale": scalar})}
    assert found == {"exp_avg": -1, "exp_avg_sq": -2} and optimizer.state[scalar]["step"].shape == scalar.shape


class Shampoo(torch.optim.Optimizer):
    """No rule knows it, whatever its keys are called."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for member in group["params"]:
                self.state[member].setdefault("momentum_buffer", torch.zeros_like(member)).add_(member.grad)


def test_classes_without_a_rule_raise_with_the_choices() -> None:
    optimizer = stepped(Shampoo([parameter()]))
    with pytest.raises(OptimizerError, match=r"Shampoo.*state='reset'.*state='keep'.*register_optimizer.*torch\.optim\.SGD"):
        state_tensors([optimizer], {})


def test_the_nearest_classes_with_a_rule_are_named() -> None:
    class AdamP(torch.optim.Optimizer):
        pass

    class Zzz(torch.optim.Optimizer):
        pass

    with pytest.raises(OptimizerError, match=r"\d+ classes, .*timm\.optim\.adamp\.AdamP.* among them") as caught:
        find_rule(AdamP([parameter()], {}))
    assert len(str(caught.value).partition("There are")[2]) < 200
    with pytest.raises(OptimizerError, match=r"classes, torch\.optim\.SGD, torch\.optim\.AdamW among them"):
        find_rule(Zzz([parameter()], {}))


def test_a_function_that_fails_is_the_rule_that_is_named() -> None:
    class Odd(torch.optim.Optimizer):
        pass

    weight = parameter()
    optimizer = Odd([weight], {})
    optimizer.state[weight] = {"m": torch.zeros_like(weight)}
    register_optimizer(Odd, lambda state, group: {"m": -1 if state["z"] else 0})
    with pytest.raises(OptimizerError, match=r"the rule for Odd failed on a state of 'm': KeyError: 'z': nothing was rescaled"):
        state_tensors([optimizer], {"w": weight})


def test_subclasses() -> None:
    plain = torch.optim.SGD([parameter()], lr=0.1)
    rule = find_rule(plain)
    for _ in range(2):  # torch wraps the step of a class when its first instance is made
        assert find_rule(OwnInit([parameter()])) is rule
    StepLR(plain, 1)  # wraps the step of the instance
    assert find_rule(plain) is rule
    for cls, method in ((OwnStep, "step"), (OwnGroup, "_init_group")):
        with pytest.raises(OptimizerError, match=rf"{cls.__name__}.*SGD.*{method}"):
            find_rule(cls([parameter()], lr=0.1))


@pytest.mark.parametrize("broken", [torch.ones(3, 2), torch.ones(()), torch.ones(2, 3).to_sparse()])
def test_state_of_another_form_raises(broken: torch.Tensor) -> None:
    weight = parameter()
    optimizer = stepped(torch.optim.SGD([weight], lr=0.1, momentum=0.9))
    optimizer.state[weight]["momentum_buffer"] = broken
    with pytest.raises(OptimizerError, match=r"momentum_buffer.*layers\.w.*\(2, 3\)"):
        state_tensors([optimizer], {"layers.w": weight})
