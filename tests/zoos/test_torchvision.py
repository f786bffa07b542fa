"""One model of every torchvision classification family: analysed, at least the known number of scales, sound in both modes.

The same for all 80 models: ``python tools/coverage.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm

from ..classifiers import build, example
from ..helpers import (
    TOLERANCE,
    broken_errors,
    draw_log_scales,
    floors,
    outputs,
    randomise,
    randomness_off,
    relative_difference,
    tensors,
)

torchvision = pytest.importorskip("torchvision")

FAMILIES = {
    "AlexNet": "alexnet",
    "ConvNeXt": "convnext_tiny",
    "DenseNet": "densenet121",
    "EfficientNet": "efficientnet_b0",
    "EfficientNetV2": "efficientnet_v2_s",
    "GoogLeNet": "googlenet",
    "Inception": "inception_v3",
    "MaxVit": "maxvit_t",
    "MNASNet": "mnasnet0_5",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3": "mobilenet_v3_small",
    "RegNetX": "regnet_x_400mf",
    "RegNetY": "regnet_y_400mf",
    "ResNet": "resnet18",
    "ResNeXt": "resnext50_32x4d",
    "ShuffleNetV2": "shufflenet_v2_x0_5",
    "SqueezeNet": "squeezenet1_1",
    "Swin": "swin_t",
    "SwinV2": "swin_v2_t",
    "VGG": "vgg11_bn",
    "VisionTransformer": "vit_b_32",
}

HEAVY = ("alexnet", "inception_v3", "maxvit_t", "vgg11_bn")
"""Too slow in float64 for more than the rescaling and one control."""

EVAL_ONLY_SCALES = ("googlenet", "inception_v3")
"""Auxiliary heads read the trunk in train mode only, so that eval mode alone has more scales than both together."""


def change_between(before: Mapping[str, list[torch.Tensor]], model: nn.Module, inputs: tuple[torch.Tensor]) -> dict[str, float]:
    """By mode, how much the outputs differ from what they were."""
    return {mode: relative_difference(old, outputs(model, inputs, mode)) for mode, old in before.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str) -> None:
    name = FAMILIES[family]
    model = randomness_off(build(name).double())
    inputs = example(name, batch=2 if name in ("maxvit_t", "inception_v3") else 4)
    randomise(model, inputs, seed=1)
    plan: Any = fxenorm.analyze(model, inputs)

    assert plan.exact and set(plan.modes) == {"eval", "train"} and plan.tracer == "export"
    assert not [barrier for barrier in plan.barriers if not barrier.known], "every operator has a rule or a reason"
    if name not in EVAL_ONLY_SCALES:
        assert plan.num_scales >= floors()[name]

    before = {mode: outputs(model, inputs, mode) for mode in ("eval", "train")}
    plan.rescale(draw_log_scales(plan))
    assert max(change_between(before, model, inputs).values()) <= TOLERANCE

    for tensor, error in broken_errors(model, plan, inputs, count=1 if name in HEAVY else 4).items():
        assert error > 1e-7, f"control: {name} is dead at {tensor}, so that a wrong exponent there would go unseen"

    if name in HEAVY:
        return
    norm = plan.norm().item()
    plan.step(cycles=2)
    assert plan.norm().item() < norm
    assert max(change_between(before, model, inputs).values()) <= TOLERANCE


@pytest.mark.parametrize("name", EVAL_ONLY_SCALES)
def test_eval_mode_alone_reaches_the_floor(name: str) -> None:
    model = build(name)
    plan = fxenorm.analyze(model, example(name, batch=2, dtype=torch.float32), modes="eval")
    assert plan.modes == ("eval",)
    assert plan.num_scales >= floors()[name]


def test_floors_cover_every_classification_model() -> None:
    names = set(torchvision.models.list_models(module=torchvision.models))
    assert set(floors()) <= names and len(floors()) == 80
    assert set(FAMILIES.values()) <= set(floors())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_model_is_as_it_was(name: str) -> None:
    model = build(name)
    state = {key: value.clone() for key, value in tensors(model).items()}
    flags = [module.training for module in model.modules()]
    fxenorm.analyze(model, modes="eval")
    assert all(torch.equal(value, state[key]) for key, value in tensors(model).items())
    assert [module.training for module in model.modules()] == flags
