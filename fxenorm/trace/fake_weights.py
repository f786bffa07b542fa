"""The parameters and buffers of a model without values, made once for the several runs of one analysis."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["fake_weights", "fake_weights_shared"]

_last: ContextVar[list[_FakeWeights] | None] = ContextVar("fxenorm_fake_weights", default=None)


@contextlib.contextmanager
def fake_weights_shared() -> Iterator[None]:
    """Within it, runs of the same model share fake tensors, as long as none of the runs changes any."""
    token = _last.set([])
    try:
        yield
    finally:
        _last.reset(token)


def fake_weights(model: nn.Module) -> tuple[FakeTensorMode, dict[str, torch.Tensor]]:
    """Returns a mode, and by name the fake tensors in it of a model's parameters and buffers."""
    named = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    last = _last.get()
    if last and last[0].are_still(named):
        return last[0].mode, dict(last[0].tensors)
    made = _FakeWeights(named)
    if last is not None:
        last[:] = [made]
    return made.mode, dict(made.tensors)


class _FakeWeights:
    """Fake tensors, with the facts by which a change of one is seen."""

    def __init__(self, named: dict[str, torch.Tensor]) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.tensors = {name: self.mode.from_tensor(tensor) for name, tensor in named.items()}
        self._real = named
        self._facts = [_facts(tensor) for tensor in self.tensors.values()]

    def are_still(self, named: dict[str, torch.Tensor]) -> bool:
        """Whether they stand for these tensors, and are as they were made."""
        if self._real.keys() != named.keys() or any(self._real[name] is not tensor for name, tensor in named.items()):
            return False
        return self._facts == [_facts(tensor) for tensor in self.tensors.values()]


def _facts(fake: torch.Tensor) -> Any:
    """Returns what a run may change in a fake tensor: by an operator, by `.data`, by a backward pass, by an attribute."""
    graded = fake.is_leaf and fake.grad is not None
    return fake._version, fake.requires_grad, fake.shape, fake.stride(), fake.dtype, graded, len(vars(fake))
