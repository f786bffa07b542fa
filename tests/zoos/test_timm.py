"""timm models of several families: every operator has a rule or a stated barrier, and all scales are sound in both modes."""

from __future__ import annotations

import pytest

import fxenorm

pytest.importorskip("timm")

from ..helpers import TOLERANCE, draw_log_scales, relative_difference
from ..model_zoos import load
from ..torchvision_models import run

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = (
    "convit_tiny",  # gated positional attention
    "convnext_atto",  # layer scale
    "gernet_s",
    "mobilenetv3_small_050",
    "nf_regnet_b0",  # standardised weights
    "resnetv2_18",
    "test_maxvit",  # relative positions
    "test_vit",
)


@pytest.mark.parametrize("name", NAMES)
def test_soundness(name: str) -> None:
    loaded = load("timm", name)
    plan = fxenorm.analyze(loaded.model, loaded.example)
    assert plan.num_scales
    assert all(barrier.known for barrier in plan.barriers), [b for b in plan.barriers if not b.known]
    loaded.redraw()
    before = {mode: run(loaded.model, loaded.inputs, mode) for mode in plan.modes}
    plan.rescale(draw_log_scales(plan))
    for mode in plan.modes:
        assert relative_difference(before[mode], run(loaded.model, loaded.inputs, mode)) <= TOLERANCE


def test_an_lstm_is_a_barrier_with_a_reason() -> None:
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model("sequencer2d_s")
    plan = fxenorm.analyze(model, torch.zeros(1, 3, 224, 224, device="meta"), modes="eval")
    assert plan.num_scales
    held = [barrier for barrier in plan.barriers if barrier.operator.startswith("lstm")]
    assert held and all(barrier.known and "lstm" in barrier.reason for barrier in held)
