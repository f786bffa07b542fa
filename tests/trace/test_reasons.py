"""A model that runs is analysed, or the reason why it is not is the true one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import FxenormError, OptionError, TraceError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:flex_attention called:UserWarning")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


X = torch.ones(4, 6)


@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload"])
def test_offloaded_weights_are_no_obstacle(way: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, other = net(), net()
    if way == "cpu_offload":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    before = model(X)
    plan = fxenorm.analyze(model, X)
    assert plan.num_scales == 8 and plan.fingerprint == fxenorm.analyze(other, X).fingerprint
    assert torch.equal(model(X), before) and all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("inputs", [X, None])
def test_a_default_device_without_values_changes_nothing(inputs: Tensor | None) -> None:
    with torch.device("meta"):
        assert fxenorm.analyze(net_outside := MODEL, inputs).num_scales == 8
    assert not any(parameter.is_meta for parameter in net_outside.parameters())


def test_new_tensors_of_forward_have_values_inside_a_meta_context() -> None:
    class Adds(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) + torch.ones(3) * float(x.sum() > 0)

    model = Adds(*net())
    with torch.device("meta"):
        assert fxenorm.analyze(model, X).num_scales == 8


MODEL = net()


def test_a_scripted_model_says_what_to_do_and_that_works() -> None:
    model = net()
    scripted = torch.jit.script(model)
    with pytest.raises(TraceError, match=r"TorchScript.*plan\.bind\(scripted\)"):
        fxenorm.analyze(scripted, X)
    before = scripted(X)
    fxenorm.analyze(model, X).bind(scripted).rescale(torch.linspace(-1, 1, 8))
    torch.testing.assert_close(scripted(X), before)


def test_a_part_that_is_scripted_is_no_fault_of_the_inputs() -> None:
    model = net()
    model[1] = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    try:
        fxenorm.analyze(model, X)
    except FxenormError as error:
        assert "does not run" not in str(error)


def test_attention_that_has_no_gradient_here_is_no_fault_of_the_inputs() -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).view(2, 4, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
            out: Tensor = flex.flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + i - j)
            return self.o(out.transpose(1, 2).reshape(2, 4, 8))

    model, x = Attends(), torch.randn(2, 4, 6)
    with torch.no_grad():
        model(x)
    try:
        fxenorm.analyze(model, x)
    except FxenormError as error:
        assert "does not run" not in str(error)


@pytest.mark.parametrize("call", ["parameters", "model"])
def test_the_calls_of_the_original_are_answered_with_the_right_ones(call: str) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments: Any = (model.named_parameters(), optimizer) if call == "parameters" else (model, optimizer)
    with pytest.raises(OptionError, match=r"plan = fxenorm\.analyze\(model, c=1\).*plan\.step\(optimizer\).*Coming from ENorm"):
        fxenorm.analyze(*arguments, c=1)
    assert "## Coming from ENorm" in (Path(__file__).parents[2] / "README.md").read_text()
