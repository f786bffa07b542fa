"""Models inside wrappers, rewritten models, and weights that are shared or computed: each with the count of the plain model."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fxenorm

from ..helpers import draw_log_scales, randomise, relative_difference


class Net(nn.Module):
    """conv - BatchNorm - ReLU - conv - ReLU - mean - linear: 7 + 6 scales."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(7)
        self.conv2 = nn.Conv2d(7, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv1(x)))
        return self.head(torch.relu(self.conv2(x)).mean((2, 3)))


SCALES = 7 + 6


def _net() -> nn.Module:
    return randomise(Net().double().eval(), seed=3)


def _images() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def check(model: nn.Module, count: int, x: torch.Tensor | None = None, **options: Any) -> Any:
    """The plan has `count` scales, and a random rescaling changes no output."""
    x = _images() if x is None else x
    plan = fxenorm.analyze(model, x, **options)
    assert plan.num_scales == count
    with torch.no_grad():
        before = [model(x)]
        plan.rescale(draw_log_scales(plan))
        assert relative_difference(before, [model(x)]) <= 1e-10
    return plan


def test_data_parallel() -> None:
    check(nn.DataParallel(_net()), SCALES)


def test_torch_compile() -> None:
    check(torch.compile(_net(), backend="eager"), SCALES)


def test_averaged_model() -> None:
    check(torch.optim.swa_utils.AveragedModel(_net()).eval(), SCALES)


def test_graph_module() -> None:
    plan = check(torch.fx.symbolic_trace(_net()), SCALES)
    assert set(plan.exponents) == {"bn.weight", "bn.bias", "conv2.weight", "conv2.bias", "head.weight"}


def test_graph_module_with_batch_norm_folded() -> None:
    from torch.fx.experimental.optimization import fuse

    plan = check(fuse(_net()), SCALES)
    assert "conv1.weight" in plan.exponents


@pytest.mark.parametrize("training", [False, True])
def test_module_of_an_exported_program(training: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(_net().train(training), (_images(),)).module()
        flags = [module.training for module in exported.modules()]
        plan = check(exported, SCALES)
        assert [module.training for module in exported.modules()] == flags
        assert plan.verify(_images())


@pytest.mark.filterwarnings("ignore")
def test_peft_lora() -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    config = peft.LoraConfig(r=2, target_modules=["2"], lora_dropout=0.0)
    wrapped = randomise(peft.get_peft_model(model, config).double().eval())
    base = {name: p.detach().clone() for name, p in wrapped.named_parameters() if not p.requires_grad}
    x = torch.randn(5, 3, dtype=torch.float64)
    plan = fxenorm.analyze(wrapped, x)
    assert plan.num_scales == 9 + 8 + 2  # two hidden layers and the rank
    plan.step()
    assert all(torch.equal(dict(wrapped.named_parameters())[name], value) for name, value in base.items())
    check(wrapped, 9 + 8 + 2, x)


# --- shared and derived weights -----------------------------------------------------------------------------------------


class Chain(nn.Module):
    """first - shared - shared - shared - last: y = x + d along the chain, one d for all; the head and first close it."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(3, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(6, 2, bias=False)
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        for _ in range(self.times):
            x = torch.relu(self.shared(x))
        return self.last(x)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_shared_layer_in_a_chain(times: int) -> None:
    # Each channel's scale, and one factor of the shared weight that first and last undo.
    count = 6 + 6 if times == 1 else 6 + 1
    check(Chain(times).double(), count, torch.randn(4, 3, dtype=torch.float64))


class TiedEmbedding(nn.Module):
    """embedding - linear - the embedding as head: the embedding's width is free against the layer, with the opposite behind."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(11, 6), nn.Linear(6, 6, bias=False)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.layer(self.embedding(tokens))))


def test_a_tied_embedding() -> None:
    # E[v, i] * e[i]: the layer's columns undo e, its rows too.
    check(TiedEmbedding().double(), 6, torch.arange(10).reshape(2, 5))


class Standardised(nn.Module):
    """Weight standardisation: (w - mean) / std row by row is left alone by a factor of the row; the gain carries the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.rand(6, 1) + 0.5)
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = self.weight - self.weight.mean(1, keepdim=True)
        weight = self.gain * centred / centred.norm(dim=1, keepdim=True)
        return self.last(torch.relu(x @ weight.T))


def test_weight_standardisation() -> None:
    # The gain against the next layer, and each row's own scale, which nothing reads.
    check(randomise(Standardised().double()), 6 + 6, torch.randn(4, 5, dtype=torch.float64))


def test_weight_norm() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 6)), nn.ReLU(), nn.Linear(6, 3)).double()
    check(model, 6 + 6, torch.randn(4, 5, dtype=torch.float64))


class FusedAttention(nn.Module):
    """One weight for q, k and v in blocks: q <-> k and v -> o channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(y.transpose(1, 2).flatten(2))


def test_fused_qkv() -> None:
    check(randomise(FusedAttention().double()), 8 + 8 + 8, torch.randn(2, 5, 8, dtype=torch.float64))


# --- entries that are never read ----------------------------------------------------------------------------------------


class Positions(nn.Module):
    """A table of positions of which the inputs read the beginning, in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.table = how, nn.Parameter(torch.randn(12, 6))
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        if self.how == "slice":
            rows = self.table[:length]
        elif self.how == "index":
            rows = self.table[torch.arange(length)]
        elif self.how == "transposed":
            rows = self.table.T[:, :length].T
        elif self.how == "embedding":
            rows = nn.functional.embedding(torch.arange(length), self.table)
        else:
            rows = self.table.split([length, 12 - length])[0]
        return self.last(torch.relu(self.first(x) + rows))


@pytest.mark.parametrize("how", ["slice", "index", "transposed", "embedding", "split"])
def test_rows_that_are_never_read_follow_those_that_are(how: str) -> None:
    """Rows that carry one scale a channel: the unread ones carry it too, so that longer inputs see the same function."""
    model = randomise(Positions(how).double())
    plan = check(model, 6, torch.randn(2, 5, 3, dtype=torch.float64))
    x = torch.randn(2, 12, 3, dtype=torch.float64)
    with torch.no_grad():
        before = [model(x)]
        plan.rescale(draw_log_scales(plan, seed=5))
        assert relative_difference(before, [model(x)]) <= 1e-10


class Gains(nn.Module):
    """Each position has a gain of its own, between two layers along the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Parameter(torch.randn(9, 1)), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix((x * self.table[: x.shape[1]]).transpose(1, 2))


def test_rows_that_are_never_read_stay_where_the_others_differ() -> None:
    model = randomise(Gains().double())
    unread = model.table[5:].detach().clone()
    check(model, 5, torch.randn(2, 5, 3, dtype=torch.float64))
    assert torch.equal(model.table[5:], unread)


class GainsByMode(Gains):
    """The gains of other rows in eval mode, or of all rows in train mode too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        if how == "all":
            self.other, self.last = nn.Parameter(torch.randn(9, 1)), nn.Linear(9, 2)

    def forward(self, x: torch.Tensor) -> Any:
        if self.how == "all" and self.training:
            return self.last((self.table * self.other)[:, 0])
        first = 2 if self.how == "others" and not self.training else 0
        return self.mix((x * self.table[first : first + x.shape[1]]).transpose(1, 2))


@pytest.mark.parametrize(("how", "expected"), [("others", 2), ("all", 5 + 9 + 4)])
def test_rows_that_one_mode_alone_reads_are_read(how: str, expected: int) -> None:
    """Rows two apart meet one input of the layer behind; where train mode reads all rows, no row is left out."""
    model = randomise(GainsByMode(how).double()).eval()
    unread = model.table[7:].detach().clone()
    check(model, expected, torch.randn(2, 5, 3, dtype=torch.float64))
    assert torch.equal(model.table[7:], unread) is (how == "others")
