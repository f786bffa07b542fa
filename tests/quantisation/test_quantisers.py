"""The quantisers of tools/quantise.py: the own rounding and torchao's give the same numbers where both can say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quantisation import cli, networks, quantisers
from quantisation.measuring import PREDICTED, SETTINGS, Kept, Run, runs_of
from quantisation.networks import DepthwiseNet, Transformer
from quantisation.quantisers import QUANTISERS, Own
from torch import Tensor, nn

from fxenorm import Bits
from fxenorm.quantisation.rounded_outputs import relative_error

from ..helpers import generator

pytest.importorskip("sklearn", reason="the extra demo brings it")


def net_and_images(net: str) -> tuple[nn.Module, Tensor]:
    """A net with random weights, and images; the activations of its layers fall below 0 and do not."""
    torch.manual_seed(0)
    if net == "transformer":
        return Transformer(16, 2, 24, 1).eval(), torch.randn(12, 16, 4, generator=generator(0))
    model, images = DepthwiseNet(6, 2), torch.randn(12, 1, 16, 16, generator=generator(0))
    model(images)
    return model.eval().folded(), images


def test_results_of_the_own_rounding_keep_their_names() -> None:
    run = Run("depthwise", "trained", 0, "nothing", "W8 tensor")
    assert run.key == '[1, "depthwise", "trained", 0, "nothing", "W8 tensor"]'
    keys = {Run("depthwise", "trained", 0, "nothing", "W8 tensor", name).key for name in QUANTISERS}
    assert len(keys) == len(QUANTISERS)


@pytest.mark.parametrize("net", networks.NETS)
def test_a_quantiser_is_asked_only_for_what_it_expresses(net: str) -> None:
    found = {name: {run.setting for run in runs_of(net, [0], quantiser=name)} for name in QUANTISERS}
    assert found["own"] == {*SETTINGS, *PREDICTED}
    assert found["pt2e"] == {*SETTINGS} - {"W8A8 tensor, from 0"}
    assert found["torchao"] == ({*SETTINGS} - {"W4 tensor", "W8A8 tensor, from 0"} if net == "transformer" else set())
    assert {run.method for run in runs_of(net, [0], methods=["p = 2"])} == {"p = 2"}


class Coarser(Own):
    """Rounds weights to a bit less than asked for."""

    def logits(self, bits: Bits, images: Tensor) -> Tensor:
        return super().logits(Bits((bits.weights or 0) - 1, bits.activations, bits.per, symmetric=bits.symmetric), images)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command on a net of a fraction of the size with one method, for some arguments."""
    monkeypatch.setitem(networks.NETS, "depthwise", lambda: DepthwiseNet(4, 1))
    given = ["depthwise", "--seeds", "1", "--epochs", "1", "--methods", "nothing", "--settings", "W4 tensor", "W4 channel"]
    given += ["--networks", str(tmp_path), "--results", str(tmp_path / "results.jsonl")]
    return lambda *more: cli.main([*given, *more])


def test_the_command_shows_who_rounded_beside_the_own_rounding(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(QUANTISERS, "pt2e", Coarser)
    monkeypatch.setattr(quantisers, "is_installed", lambda: True)
    assert command() == 0
    assert "rounded by" not in capsys.readouterr().out
    assert command("--quantiser", "pt2e") == 0
    out = capsys.readouterr().out
    assert "rounded by pt2e" in out and "Error by pt2e over that of the own rounding" in out and "(2 runs)" in out
    kept = Kept(tmp_path / "results.jsonl")
    assert len(kept.results) == 8
    for run in runs_of("depthwise", [0], ["W4 tensor", "W4 channel"], methods=["nothing"]):
        other = Run(run.net, run.start, run.seed, run.method, run.setting, "pt2e")
        assert kept[other]["error"] > kept[run]["error"]


@pytest.mark.parametrize("name", sorted({*QUANTISERS} - {"own"}))
def test_without_torchao_the_command_says_so(
    name: str, command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantisers, "is_installed", lambda: False)
    assert command("--quantiser", name) == 1
    assert "pip install torchao" in capsys.readouterr().err and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- torchao itself

EXPRESSED = {
    name: [(net, setting) for net in networks.NETS for setting in SETTINGS if kind.expresses(net, SETTINGS[setting])]
    for name, kind in QUANTISERS.items()
}


@pytest.mark.filterwarnings("ignore")  # torchao warns of itself
@pytest.mark.parametrize(("net", "setting"), EXPRESSED["pt2e"])
def test_an_exported_model_is_rounded_to_the_same_numbers(net: str, setting: str) -> None:
    pytest.importorskip("torchao.quantization.pt2e", reason="torchao is no dependency")
    model, images = net_and_images(net)
    both = [QUANTISERS[name](model, images).logits(SETTINGS[setting], images) for name in ("own", "pt2e")]
    exact = model(images).detach().double()
    assert relative_error([both[0]], [exact]) > 2e-5
    # Weights become the same numbers; of activations a few lie between two numbers, and go to one or the other.
    assert relative_error([both[1]], [both[0]]) < (1e-6 if SETTINGS[setting].activations is None else 2e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("setting", ["W8 tensor", "W8 channel", "W4 channel"])
def test_weights_of_torchao_differ_by_the_half_step_that_its_range_is_shorter(setting: str) -> None:
    """Its numbers go from -2^(b-1) to 2^(b-1) - 1: the largest entry alone lies between two of them."""
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is no dependency")
    bits = SETTINGS[setting]
    layer = nn.Sequential(nn.Linear(32, 16, bias=False))
    with torch.no_grad():
        layer[0].weight.copy_(torch.randn(16, 32, generator=generator(1)))
    weight = layer[0].weight.detach().clone()
    torchao.quantize_(layer, quantisers.configuration(bits))
    found = layer[0].weight.dequantize()
    half = 2.0 ** (bits.weights - 1)
    largest = weight.abs().amax() if bits.per == "tensor" else weight.abs().amax(1, keepdim=True)
    step = largest / (half - 0.5)
    mine = (weight / step).round().clamp(-half, half - 1) * step
    off = ((found - mine).abs() / step).round(decimals=3)
    assert bool((off[weight.abs() < largest.expand_as(weight)] == 0).all()) and float(off.max()) <= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("setting", [setting for _, setting in EXPRESSED["torchao"]])
def test_a_model_of_linear_layers_errs_alike_by_torchao(setting: str) -> None:
    pytest.importorskip("torchao.quantization", reason="torchao is no dependency")
    model, images = net_and_images("transformer")
    exact = model(images).detach().double()
    errors = [
        relative_error([QUANTISERS[name](model, images).logits(SETTINGS[setting], images)], [exact])
        for name in ("own", "torchao")
    ]
    assert 0.4 < errors[1] / errors[0] < 2.5
