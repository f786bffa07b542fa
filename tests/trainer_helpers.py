"""What the tests of trainers share: the digits, a small network, and a record of what happened to its weights when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.data import DataLoader, TensorDataset

import fxenorm.rescale.attach

__all__ = ["Timeline", "digits", "loader", "network"]


def digits() -> TensorDataset:
    """800 of scikit-learn's handwritten digits."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(images[:800], dtype=torch.float32) / 16, torch.tensor(labels[:800]))


def loader(batch_size: int = 16) -> DataLoader[Any]:
    """The digits in batches."""
    return DataLoader(digits(), batch_size=batch_size)


def network() -> nn.Sequential:
    """48 hidden channels in two layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))


class Timeline:
    """Forward and backward passes of a network, optimizer steps and rescalings, in the order in which they happen.

    Args:
        model: whose.
        monkeypatch: with which the rescaling in the hook is watched.

    Attributes:
        events: "forward", "backward", "step", "rescale".
        rescaled: by rescaling, the largest factor by which a weight of the first layer changed.
    """

    def __init__(self, model: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.rescaled: list[float] = []
        self._model = model
        self._seen = self._weights()
        model.register_forward_hook(self._forward)
        real_step = fxenorm.rescale.attach.step

        def step(*arguments: Any, **options: Any) -> None:
            before = self._weights()
            real_step(*arguments, **options)
            self.events.append("rescale")
            self.rescaled.append(float((self._weights()[0] / before[0] - 1).abs().max()))

        monkeypatch.setattr(fxenorm.rescale.attach, "step", step)

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Notes the optimizer's steps from now on; to be called before anything is attached."""
        optimizer.register_step_post_hook(lambda *_: self.events.append("step"))

    def _weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._model.parameters()]

    def _forward(self, model: nn.Module, inputs: Any, output: Tensor) -> None:
        if isinstance(output, FakeTensor) or not output.requires_grad:
            return  # the analysis
        self.events.append("forward")
        self._seen = self._weights()
        output.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self.events.append("backward")
        for now, seen in zip(self._weights(), self._seen, strict=True):
            assert torch.equal(now, seen), "no weight may change between a forward pass and its backward pass"
