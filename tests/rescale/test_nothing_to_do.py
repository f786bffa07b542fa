"""Where a plan can move nothing, its first call says so once, with the reason; callbacks too."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.errors import FxenormWarning
from fxenorm.rescale.nothing import is_quantised

X = torch.randn(3, 6)


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(layers or (nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))))


def only_its_head() -> nn.Module:
    model = chain()
    model[0].requires_grad_(False)
    return model


class Rounded(nn.Module):
    """Rounds its activations in its graph, as a converted model does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.fake_quantize_per_tensor_affine(self.a(x).relu(), 0.1, 0, 0, 255)
        return self.b(h)


class Quantised(nn.Module):
    """Holds a layer that a library for quantisation made."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.quant, self.b = nn.Linear(6, 8), QuantLayer(), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.quant(self.a(x)))


class QuantLayer(nn.Module):
    """Rounds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x * 10) / 10


QuantLayer.__module__ = "torchao.quantization.linear"

CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "its only layer": (lambda: chain(nn.Linear(6, 3)), {}, "no channel is free, fixed by the model's outputs: 3 channels"),
    "barriers": (lambda: chain(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)), {}, "fixed by gelu: 8 channels"),
    "frozen": (only_its_head, {}, r"all 8 scales are held: 8 of them requires_grad=False.*0\.weight"),
    "balance_last": (chain, {"balance_last": False}, "balance_last=False"),
    "excluded": (chain, {"exclude": ["0"]}, "fixed by exclude"),
    "rounded": (Rounded, {}, "quantised already.*before it is quantised"),
    "quantised": (Quantised, {}, "quantised already.*before it is quantised"),
}


@contextmanager
def said() -> Iterator[list[str]]:
    found: list[str] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield found
    found += [str(one.message) for one in seen if issubclass(one.category, FxenormWarning) and one.filename == __file__]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(X).sum().backward()
    return optimizer


@pytest.mark.parametrize("call", ["step", "step(optimizer)", "balance", "attach"])
@pytest.mark.parametrize("name", CASES)
def test_it_is_said_once_with_the_reason(name: str, call: str) -> None:
    build, options, reason = CASES[name]
    torch.manual_seed(0)
    model = build()
    plan, optimizer = fxenorm.analyze(model, X, **options), optimizer_of(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with said() as found:
        for _ in range(3):
            if call == "attach":
                with plan.attach(optimizer):
                    pass
            elif call == "balance":
                plan.balance()
            else:
                plan.step(*([optimizer] if "optimizer" in call else []))
    assert len(found) == 1 and found[0].startswith(f"{call.split('(')[0]}() moved nothing"), found
    with pytest.warns(FxenormWarning, match=reason):
        plan.bind(model).step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_nothing_is_said_where_something_moves() -> None:
    for model in (chain(), chain(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))):
        plan = fxenorm.analyze(model, X)
        optimizer = optimizer_of(model)
        with said() as found:
            for _ in range(2):
                plan.step(optimizer)
                plan.balance()
            with plan.attach(optimizer):
                optimizer.step()
        assert not found and not is_quantised(model)


def test_a_model_that_is_frozen_as_a_whole_for_now_waits_in_silence() -> None:
    model = chain()
    optimizer = optimizer_of(model)
    plan = fxenorm.analyze(model, X)
    model.requires_grad_(False)
    with said() as found, plan.attach(optimizer):
        optimizer.step()
    assert not found


def test_the_trainers_say_it(tmp_path: Any) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from fxenorm.integrations.lightning import FxenormCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.enc, self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 3)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.head(self.enc(batch[0])).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X.repeat(4, 1)), 4)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        lightning.Trainer(
            max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, callbacks=[FxenormCallback("enc")],
        ).fit(Module(), data)  # fmt: skip
    told = [str(one.message) for one in seen if issubclass(one.category, FxenormWarning)]
    assert len(told) == 1 and "fixed by the model's outputs: 8 channels" in told[0]


@pytest.mark.parametrize("how", ["dynamic", "static"])
def test_layers_of_torchs_own_quantisation(how: str) -> None:
    """No tracer may follow them; then the error says what to do."""
    from torch.ao import quantization

    model = chain().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "dynamic":
            converted = quantization.quantize_dynamic(model, {nn.Linear})
        else:
            model.qconfig = quantization.get_default_qconfig("fbgemm")  # type: ignore[assignment]
            prepared = quantization.prepare(nn.Sequential(quantization.QuantStub(), model))
            prepared(X)
            converted = quantization.convert(prepared)
        assert is_quantised(converted)
        with pytest.raises((fxenorm.errors.TraceError, FxenormWarning), match="quantised already"):
            plan = fxenorm.analyze(converted, X)
            warnings.simplefilter("error")
            plan.step()
