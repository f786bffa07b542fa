"""torchvision's models for all tasks but classification, with small inputs: detection, segmentation, video, flow, quantizable."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .helpers import in_mode, randomise


def task(name: str) -> str:
    """Name of the part of torchvision.models that the model comes from, as "detection"; "" for classification."""
    from torchvision import models

    for part in ("detection", "segmentation", "video", "optical_flow", "quantization"):
        if name in models.list_models(module=getattr(models, part)):
            return part
    return ""


def build(name: str) -> nn.Module:
    """The model without weights to download; detectors for small images, reporting whatever they find."""
    from torchvision import models

    kind = task(name)
    options: dict[str, Any] = {"weights": None}
    if kind in ("detection", "segmentation"):
        options["weights_backbone"] = None
    if kind == "detection":
        score, number = (
            ("box_score_thresh", "box_detections_per_img") if "rcnn" in name else ("score_thresh", "detections_per_img")
        )
        options |= {score: 0.0, number: 20}
        if not name.startswith("ssd"):
            options |= {"min_size": 64, "max_size": 96}
    if kind == "quantization":
        options["quantize"] = False
    if "googlenet" in name or "inception" in name:
        options["init_weights"] = False  # the slow default warns
    model = models.get_model(name, **options)
    if kind == "optical_flow":
        # Its grid of coordinates is float32 whatever the model is; with it the model runs in no other precision.
        plain = model.forward

        def forward(*args: Any, **keywords: Any) -> Any:
            with _DoubleForFloat():
                return plain(*args, **keywords)

        model.forward = forward
    return model


class _DoubleForFloat(TorchFunctionMode):
    """``.float()`` gives float64: some models do a part of their work in float32 whatever they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0].double() if func is torch.Tensor.float else func(*args, **(kwargs or {}))


def example(name: str) -> tuple[Any, ...]:
    """Seeded inputs in float64."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    kind = task(name)
    if kind == "detection":
        side = 320 if name.startswith("ssd") else 96
        return ([draw(3, side, side).sigmoid()],)
    if kind == "video":
        large = name.startswith(("mvit", "s3d"))
        return (draw(1 if large else 2, 3, *((16, 224, 224) if large else (8, 64, 64))),)
    if kind == "optical_flow":
        return draw(1, 3, 128, 128), draw(1, 3, 128, 128)
    side = 299 if "inception" in name else 64
    return (draw(2, 3, side, side),)


def modes(name: str) -> tuple[str, ...]:
    """The modes in which the model runs on these inputs alone and, as it is drawn here, without randomness."""
    return ("eval",) if task(name) in ("detection", "optical_flow") else ("eval", "train")


@torch.no_grad()
def redraw(name: str, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Random weights under which the outputs are neither empty nor without bound."""
    if task(name) != "detection" or name.startswith("ssdlite"):
        randomise(model, inputs if "train" in modes(name) else None, seed=1)
        return
    random = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(2, *parameter.shape, generator=random, dtype=parameter.dtype)
        # Deep backbones with frozen norms grow from layer to layer unless their weights are small.
        parameter.mul_((0.6 if parameter.ndim == 4 and "resnet" in name else 1.0) * (1 + 0.3 * noise[0])).add_(0.02 * noise[1])


@torch.no_grad()
def run(model: nn.Module, inputs: tuple[Any, ...], mode: str, **keywords: Any) -> list[torch.Tensor]:
    """All floating-point tensors that the model returns; its own randomness is seeded and its buffers are put back."""
    from torch.utils._pytree import tree_leaves

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[]), in_mode(model, mode), _DoubleForFloat():
        torch.manual_seed(0)
        output = model(*inputs, **keywords)
    for name, buffer in model.named_buffers():
        # A table that the first run makes stays.
        if name in buffers and buffer.shape == buffers[name].shape:
            buffer.copy_(buffers[name])
    leaves = tree_leaves(dict(output) if hasattr(output, "keys") else output)
    found = [leaf.clone() for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.numel()]
    assert found, "the model returned nothing: the test itself is broken"
    return found
