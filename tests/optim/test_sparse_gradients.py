"""Sparse gradients, as embeddings make them, follow where gradients are asked to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxenorm

from ..helpers import draw_log_scales, relative_difference


class Words(nn.Module):
    """An embedding with sparse gradients in front of two layers; words repeat, so that the gradients are not coalesced."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first, self.last = nn.Embedding(9, 4, sparse=True), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(torch.relu(self.words(ids)))))


IDS = torch.tensor([[1, 2, 2], [7, 1, 0]])


def trained() -> Words:
    """After a backward pass."""
    model = Words().double()
    model(IDS).square().mean().backward()
    return model


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("coalesced", [False, True])
def test_they_are_those_of_the_rescaled_weights(backend: str, coalesced: bool) -> None:
    model = trained()
    plan = fxenorm.analyze(model, IDS, backend=backend)
    weight = model.words.weight
    if coalesced:
        weight.grad = weight.grad.coalesce()
    assert weight.grad.is_sparse and weight.grad.is_coalesced() == coalesced
    plan.rescale(draw_log_scales(plan))
    plan.step()
    model.zero_grad()
    model(IDS).square().mean().backward()
    before = weight.grad.to_dense() * weight.detach()
    assert relative_difference([before], [weight.grad.to_dense()]) > 0.1
    plan.step(grads=True)
    torch.testing.assert_close(weight.grad.to_dense() * weight.detach(), before, rtol=1e-12, atol=0)
    followed = weight.grad.to_dense()
    model.zero_grad()
    model(IDS).square().mean().backward()
    torch.testing.assert_close(weight.grad.to_dense(), followed, rtol=1e-10, atol=1e-12)


def test_sparse_along_both_axes() -> None:
    model = trained()
    plan = fxenorm.analyze(model, IDS)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    for parameter in matrices:
        parameter.grad = parameter.grad.to_dense().to_sparse()
        assert parameter.grad.sparse_dim() == 2
    before = [parameter.grad.to_dense() * parameter.detach() for parameter in matrices]
    weights = [parameter.detach().clone() for parameter in matrices]
    plan.step(grads=True)
    for parameter, product, weight in zip(matrices, before, weights, strict=True):
        assert not torch.equal(parameter, weight)
        torch.testing.assert_close(parameter.grad.to_dense() * parameter.detach(), product, rtol=1e-12, atol=0)


def test_an_optimizer_for_them_beside_another_one() -> None:
    """With several optimizers the hook has gradients follow, for one of them may have yet to use its own."""
    model = trained()
    plan = fxenorm.analyze(model, IDS)
    dense = [*model.first.parameters(), *model.last.parameters()]
    optimizers = [torch.optim.SparseAdam([model.words.weight], lr=1e-3), torch.optim.Adam(dense, lr=1e-3)]
    handle = plan.attach(optimizers)
    for _ in range(8):
        model.zero_grad()
        model(IDS).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert handle.steps == 8 and float(plan.imbalance()) < 0.1
