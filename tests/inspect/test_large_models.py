"""Large models that people know, printed: one screen of 40 lines."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

import fxenorm
from fxenorm.inspect.printed.console import make_console
from fxenorm.inspect.printed.tables import show
from fxenorm.inspect.report import report


def resnet152() -> fxenorm.Plan:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model, x = torchvision.models.resnet152(), torch.empty(2, 3, 64, 64)
    return fxenorm.analyze(model, x, modes="eval")


def llama() -> fxenorm.Plan:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=32, **sizes)).eval()
    return fxenorm.analyze(model, example_kwargs={"input_ids": torch.arange(6)[None]}, modes="eval")


ROWS = {
    resnet152: ("36 × 256  layer3.{0..35}.bn1 -> .conv2", "layer3.{0..35}.bn3, layer3.0.downsample.1"),
    llama: ("32 × 48  model.layers.{0..31}.mlp.up_proj -> .down_proj", ".self_attn.{q_proj,k_proj,v_proj}"),
}


@pytest.mark.parametrize("build", [resnet152, llama])
def test_a_large_model_fits_on_one_screen(build) -> None:
    plan = build()
    for width, most in ((80, 40), (120, 34)):
        lines = plan.why().describe(width=width).splitlines()
        assert len(lines) <= most and max(map(len, lines)) <= width
    answer = report(plan, build.__name__)
    for width in (80, 120, 200):
        text = plan.describe(width=width)
        assert all(row in text for row in ROWS[build])
        assert sum(-(-max(1, len(line)) // width) for line in text.splitlines()) <= 40
        stream = io.StringIO()
        show(answer, Console(file=stream, width=width, force_terminal=True, color_system=None, highlight=False))
        lines = [line.rstrip() for line in stream.getvalue().splitlines()]
        assert len(lines) <= 40 and max(map(len, lines)) <= width
    stream = io.StringIO()
    show(answer, make_console(stream))
    assert len(stream.getvalue().splitlines()) <= 40 and "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("name", ["densenet121", "googlenet"])
def test_models_without_equal_blocks_are_at_most_60_lines(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    settings = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        model, x = torchvision.models.get_model(name, weights=None, **settings), torch.empty(2, 3, 64, 64)
    answer = report(fxenorm.analyze(model, x, modes="eval"), f"torchvision:{name}", "random weights")
    for width in (80, 120, 200):
        stream = io.StringIO()
        show(answer, Console(file=stream, width=width, force_terminal=True, color_system=None, highlight=False))
        assert sum(-(-max(1, len(line.rstrip())) // width) for line in stream.getvalue().splitlines()) <= 60
    stream = io.StringIO()
    show(answer, make_console(stream))
    assert len(stream.getvalue().splitlines()) <= 60
