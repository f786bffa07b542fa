"""Steps with a copy that follows: kept from one to the next as plain ones are, and every change of the copy is seen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm

from ..helpers import generator


class Followed:
    """A network, and a copy of its parameters as a module, a dict or a list."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
        self.plan = fxenorm.analyze(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        names = dict(self.model.named_parameters())
        copies: dict[str, Any] = {
            "module": copy.deepcopy(self.model),
            "dict": {name: value.detach().clone() for name, value in names.items()},
            "list": [value.detach().clone() for value in names.values()],
        }
        self.copy = copies[kind]
        self.handle = self.plan.track(self.copy)

    def tensors(self) -> list[Tensor]:
        """The copy's."""
        if isinstance(self.copy, nn.Module):
            return list(self.copy.parameters())
        return list(self.copy.values()) if isinstance(self.copy, dict) else list(self.copy)

    def train(self, inputs: Tensor) -> None:
        """One optimizer step, and the copy moved a part of the way."""
        self.optimizer.zero_grad()
        self.model(inputs).square().mean().backward()
        self.optimizer.step()
        with torch.no_grad():
            for averaged, parameter in zip(self.tensors(), self.model.parameters(), strict=True):
                averaged.lerp_(parameter.to(averaged), 0.3)

    def step(self, number: int) -> None:
        """Trains and rescales."""
        self.train(torch.randn(3, 4, generator=generator(number)))
        self.plan.step(self.optimizer)


def replaced(followed: Followed) -> None:
    if isinstance(followed.copy, nn.Module):
        followed.copy[2].weight = nn.Parameter(followed.copy[2].weight.detach() * 2)
    else:
        key = "2.weight" if isinstance(followed.copy, dict) else 2
        followed.copy[key] = followed.copy[key] * 2


def other_data(followed: Followed) -> None:
    for tensor in followed.tensors():
        tensor.data = tensor.data.clone()


def wider(followed: Followed) -> None:
    if isinstance(followed.copy, nn.Module):
        followed.copy.double()
        return
    for key in list(followed.copy) if isinstance(followed.copy, dict) else range(len(followed.copy)):
        followed.copy[key] = followed.copy[key].double()


def nothing(followed: Followed) -> None:
    """Steps go on as before."""


@pytest.mark.parametrize("kind", ["module", "dict", "list"])
@pytest.mark.parametrize("change", [nothing, replaced, other_data, wider])
def test_a_copy_follows_whatever_becomes_of_it(kind: str, change: Callable[[Followed], None]) -> None:
    followed, inputs = Followed(kind), torch.randn(5, 4, generator=generator(9))
    for number in range(5):
        if number == 3:
            change(followed)
        followed.train(inputs)
        averages = dict(zip(dict(followed.model.named_parameters()), followed.tensors(), strict=True))
        dtype = followed.tensors()[0].dtype
        before = torch.func.functional_call(followed.model, averages, inputs.to(dtype))
        own = followed.model[2].weight.detach().clone()
        followed.plan.step(followed.optimizer)
        assert not torch.equal(own, followed.model[2].weight)
        averages = dict(zip(dict(followed.model.named_parameters()), followed.tensors(), strict=True))
        torch.testing.assert_close(torch.func.functional_call(followed.model, averages, inputs.to(dtype)), before)


@pytest.mark.parametrize("kind", ["module", "dict", "list"])
def test_a_copy_that_is_removed_stays_as_it_is(kind: str) -> None:
    followed = Followed(kind)
    followed.step(0)
    followed.step(1)
    followed.handle.remove()
    before = [tensor.detach().clone() for tensor in followed.tensors()]
    followed.plan.step(followed.optimizer)
    assert all(torch.equal(one, other) for one, other in zip(before, followed.tensors(), strict=True))


@pytest.mark.parametrize("kind", ["module", "dict", "list"])
def test_a_copy_with_other_shapes_is_refused_before_anything_is_written(kind: str) -> None:
    followed = Followed(kind)
    followed.step(0)
    if isinstance(followed.copy, nn.Module):
        followed.copy[2].weight = nn.Parameter(torch.ones(3, 3))
    else:
        followed.copy["2.weight" if kind == "dict" else 2] = torch.ones(3, 3)
    before = followed.model[2].weight.detach().clone()
    with pytest.raises(fxenorm.errors.BindError):
        followed.plan.step(followed.optimizer)
    assert torch.equal(before, followed.model[2].weight)
