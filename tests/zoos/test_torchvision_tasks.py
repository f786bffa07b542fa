"""torchvision's models for detection, segmentation, video, optical flow and quantisation (in float): a sample of each family."""

from __future__ import annotations

import pytest

import fxenorm

pytest.importorskip("torchvision")

from ..helpers import TOLERANCE, draw_log_scales, relative_difference
from ..model_zoos import load
from ..torchvision_models import run

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": "make_fx",
    "lraspp_mobilenet_v3_large": "export",
    "mc3_18": "export",
    "raft_small": "export",
    "quantized_shufflenet_v2_x0_5": "export",
}


@pytest.mark.parametrize("name", NAMES)
def test_soundness(name: str) -> None:
    loaded = load("torchvision", name)
    plan = fxenorm.analyze(loaded.model, loaded.example, modes="both" if "train" in loaded.modes else "eval")
    assert plan.num_scales and plan.tracer == NAMES[name]
    assert all(barrier.known for barrier in plan.barriers), [b for b in plan.barriers if not b.known]
    loaded.redraw()
    before = {mode: run(loaded.model, loaded.inputs, mode) for mode in loaded.modes}
    plan.rescale(draw_log_scales(plan))
    for mode in loaded.modes:
        assert relative_difference(before[mode], run(loaded.model, loaded.inputs, mode)) <= TOLERANCE


def test_the_check_sees_a_wrong_plan() -> None:
    """Control: one producer rescaled without its consumers changes the detections."""
    loaded = load("torchvision", "fasterrcnn_mobilenet_v3_large_320_fpn")
    loaded.redraw()
    before = run(loaded.model, loaded.inputs, "eval")
    for name in ("backbone.fpn.layer_blocks.0.0.weight", "roi_heads.box_head.fc6.weight"):
        parameter = dict(loaded.model.named_parameters())[name]
        parameter.data.mul_(1.5)
        after = run(loaded.model, loaded.inputs, "eval")
        assert before[0].shape != after[0].shape or relative_difference(before, after) > 1e-6
        parameter.data.div_(1.5)
