"""What the tests of the whole share: random weights, outputs in both modes, differences, and rescaling done by hand."""

from __future__ import annotations

import csv
import importlib.util
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

Inputs = Sequence[Any]
TOLERANCE = 1e-10
"""Largest relative change of a float64 output that a sound rescaling may cause."""

_CONVOLUTIONS_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def generator(seed: int) -> torch.Generator:
    """A seeded CPU generator, so that no test depends on the order of the others."""
    return torch.Generator().manual_seed(seed)


def _relu(width: int) -> list[nn.Module]:
    """What stands between two layers of `mlp` where nothing else is asked for."""
    return [nn.ReLU()]


def load_tool(name: str) -> ModuleType:
    """A file of tools/ as a module: "bench", "mutants/table", ..."""
    path = Path(__file__).parents[1] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def mlp(
    *widths: int,
    bias: bool = True,
    between: Callable[[int], list[nn.Module]] = _relu,
    named: bool = False,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Linear layers of these widths, the input's first.

    Between two of them stand the modules that `between` makes for their common width. `named` calls the layers fc1, relu1, fc2,
    ..., as `hand_made.chain` does. With a `seed`, all weights and biases are drawn from a standard normal distribution.
    """
    layers: dict[str, nn.Module] = {}
    for number, (before, after) in enumerate(pairwise(widths), start=1):
        layers[f"fc{number}"] = nn.Linear(before, after, bias=bias, dtype=torch.float32)
        if number < len(widths) - 1:
            layers |= {f"{type(module).__name__.lower()}{number}": module for module in between(after)}
    model = nn.Sequential(OrderedDict(layers)) if named else nn.Sequential(*layers.values())
    if seed is not None:
        random = generator(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float32))
    return model.to(dtype)


def magnitudes(shape: Sequence[int], random: torch.Generator) -> torch.Tensor:
    """Values of both signs, none of them near zero: |x| uniform in (0.5, 1.5)."""
    signs = torch.randint(0, 2, tuple(shape), generator=random).to(torch.float64) * 2 - 1
    return signs * (torch.rand(tuple(shape), generator=random, dtype=torch.float64) + 0.5)


def _fan_in(module: nn.Module, parameter: nn.Parameter) -> int:
    """Number of products that one output of the layer sums."""
    if isinstance(module, _CONVOLUTIONS_TRANSPOSED):
        return max(1, parameter.numel() // (parameter.shape[1] * module.groups))
    return max(1, parameter.numel() // parameter.shape[0])


def _draw_parameter(module: nn.Module, name: str, parameter: nn.Parameter, random: torch.Generator) -> torch.Tensor:
    """A draw that keeps activations near 1: weights over sqrt(fan in), everything else of order 1."""
    shape = parameter.shape
    if parameter.ndim >= 2 and "weight" in name:
        if isinstance(module, nn.Embedding):
            return torch.randn(shape, generator=random, dtype=torch.float64)
        gain = math.sqrt(2 / _fan_in(module, parameter))
        return torch.randn(shape, generator=random, dtype=torch.float64) * gain
    if parameter.ndim == 1 and "bias" in name:
        return torch.randn(shape, generator=random, dtype=torch.float64) * 0.3
    return magnitudes(shape, random)


@torch.no_grad()
def randomise(model: nn.Module, inputs: Inputs | None = None, *, seed: int = 0) -> nn.Module:
    """Re-draws every parameter with mixed signs (zero-initialised heads too) and all BatchNorm statistics; returns the model.

    With `inputs`, the running statistics are first measured on them and then disturbed (mean by a third of the
    deviation, variance by a factor in (0.5, 2)), so that a deep network neither saturates its gates nor dies.
    """
    random = generator(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.copy_(_draw_parameter(module, name, parameter, random))
    norms = [module for module in model.modules() if isinstance(module, _BATCH_NORMS) and module.track_running_stats]
    if inputs is not None and norms:
        _measure_statistics(model, norms, inputs)
    for norm in norms:
        size = norm.running_var.shape
        if inputs is None:
            norm.running_var.fill_(1.0)
        norm.running_var.clamp_(min=0.05)
        norm.running_mean += 0.3 * norm.running_var.sqrt() * torch.randn(size, generator=random, dtype=torch.float64)
        norm.running_var *= 0.5 + 1.5 * torch.rand(size, generator=random, dtype=torch.float64)
    for module in model.modules():
        if type(module).__name__ == "FrozenBatchNorm2d":
            module.weight.copy_(magnitudes(module.weight.shape, random))
            module.bias.copy_(0.3 * magnitudes(module.bias.shape, random))
            module.running_mean.copy_(0.3 * magnitudes(module.bias.shape, random))
            module.running_var.copy_(magnitudes(module.bias.shape, random).abs())
    return model


def _measure_statistics(model: nn.Module, norms: Sequence[nn.Module], inputs: Inputs) -> None:
    """One pass in train mode that sets the running statistics to those of `inputs`."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with in_mode(model, "train"):
        model(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def randomness_off(model: nn.Module) -> nn.Module:
    """Sets every dropout and stochastic depth probability to zero; returns the model."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
        for attribute in ("dropout", "attention_dropout", "drop_rate", "dropout_prob"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    return model


@contextmanager
def in_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """The whole model in "train" or "eval" mode; every module's own flag is put back afterwards."""
    flags = {module: module.training for module in model.modules()}
    model.train(mode == "train")
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@torch.no_grad()
def outputs(model: nn.Module, inputs: Inputs, mode: str = "eval") -> list[torch.Tensor]:
    """All tensors that the model returns, in order; buffers (running statistics) are put back afterwards."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with in_mode(model, mode):
        result = [leaf.clone() for leaf in tree_leaves(model(*inputs)) if isinstance(leaf, torch.Tensor)]
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    assert result, "the model returned no tensor"
    return result


def relative_difference(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """Largest difference over each output's largest entry; refuses degenerate outputs, which could hide a change."""
    assert len(before) == len(after)
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        assert torch.isfinite(old).all(), "the outputs before are not finite: the test itself is broken"
        largest = old.abs().max().item()
        assert largest > 0, "an output is all zero: the test itself is broken"
        difference = (old.double() - new.double()).abs().max().item()
        worst = max(worst, math.inf if math.isnan(difference) else difference / largest)
    return worst


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name."""
    return {**dict(model.named_buffers()), **dict(model.named_parameters())}


def log_factors(terms: Any, log_scales: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The definition: entry e of a tensor is multiplied by exp(this), the sum of coefficient times log_scales[id], id -1 = 0."""
    padded = torch.cat([log_scales.double().cpu(), torch.zeros(1, dtype=torch.float64)])
    total = torch.zeros(tuple(shape), dtype=torch.float64)
    for coefficient, ids in terms:
        total = total + coefficient * padded[torch.as_tensor(ids, dtype=torch.int64).cpu()]
    assert total.shape == tuple(shape), "exponents must broadcast to the tensor and not beyond"
    return total


@torch.no_grad()
def rescale_by_hand(
    model: nn.Module,
    exponents: Mapping[str, Any],
    log_scales: torch.Tensor,
    only: Callable[[str], bool] = lambda name: True,
    offsets: Mapping[str, float] | None = None,
) -> None:
    """What `plan.rescale` must do, entry by entry; `only` picks the tensors that follow (a wrong plan on purpose)."""
    named = tensors(model)
    for name, terms in exponents.items():
        if only(name):
            offset, factor = (offsets or {}).get(name, 0.0), log_factors(terms, log_scales, named[name].shape).exp()
            named[name].add_(offset).mul_(factor.to(named[name])).sub_(offset)


def draw_log_scales(plan: Any, *, seed: int = 1) -> torch.Tensor:
    """One value in (-1, 1) for every variable of the plan."""
    return torch.rand(plan.num_scales, generator=generator(seed), dtype=torch.float64) * 2 - 1


def soundness_error(model: nn.Module, plan: Any, inputs: Inputs, mode: str = "eval", *, seed: int = 1) -> float:
    """Relative change of the outputs under one random rescaling of all variables; the model's tensors are put back."""
    before = outputs(model, inputs, mode)
    saved = {name: tensor.detach().clone() for name, tensor in tensors(model).items()}
    plan.rescale(draw_log_scales(plan, seed=seed))
    after = outputs(model, inputs, mode)
    with torch.no_grad():
        for name, tensor in tensors(model).items():
            tensor.copy_(saved[name])
    return relative_difference(before, after)


def broken_errors(model: nn.Module, plan: Any, inputs: Inputs, *, count: int = 8, seed: int = 2) -> dict[str, float]:
    """Control: rescales one tensor without its partners, for a few tensors; by name, how much the outputs change.

    A value near zero says that the network is dead at that tensor, so that a wrong exponent there would go unseen.
    """
    names = sorted(plan.exponents)
    chosen = torch.randperm(len(names), generator=generator(seed))[:count].tolist()
    before = outputs(model, inputs)
    log_scales = draw_log_scales(plan, seed=seed)
    errors = {}
    for name in (names[index] for index in chosen):
        tensor = tensors(model)[name]
        saved = tensor.detach().clone()
        rescale_by_hand(model, plan.exponents, log_scales, lambda other, name=name: other == name, plan.offsets)
        errors[name] = relative_difference(before, outputs(model, inputs))
        with torch.no_grad():
            tensor.copy_(saved)
    return errors


def gradients_along_scales(model: nn.Module, plan: Any, inputs: Inputs, mode: str = "eval", *, seed: int = 3) -> torch.Tensor:
    """The per-scale check: for a random loss L, each variable's sum of exponent * (o + w) * dL/dw, relative to that of sizes.

    Zero for every variable of a sound plan; the variables at fault are those where it is not. Parameters only.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.zero_grad(set_to_none=True)
    with in_mode(model, mode):
        leaves = [leaf for leaf in tree_leaves(model(*inputs)) if isinstance(leaf, torch.Tensor)]
        random = generator(seed)
        loss = sum((leaf * torch.randn(leaf.shape, generator=random, dtype=leaf.dtype)).sum() for leaf in leaves)
        loss.backward()
    total = torch.zeros(plan.num_scales + 1, dtype=torch.float64)
    scale = torch.zeros_like(total)
    named = dict(model.named_parameters())
    for name, terms in plan.exponents.items():
        if name not in named or named[name].grad is None:
            continue
        offset = getattr(plan, "offsets", {}).get(name, 0.0)
        product = ((offset + named[name].detach()) * named[name].grad).double()
        for coefficient, ids in terms:
            index = torch.as_tensor(ids, dtype=torch.int64).broadcast_to(product.shape).reshape(-1) % (plan.num_scales + 1)
            total.index_add_(0, index, coefficient * product.reshape(-1))
            scale.index_add_(0, index, abs(coefficient) * product.reshape(-1).abs())
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return (total / scale.clamp_min(1e-300))[:-1].abs()


def objective(model: nn.Module, plan: Any, names: Sequence[str], p: float, weights: Mapping[str, float] | None = None) -> float:
    """F at the current weights, by definition: the sum of weight times |w|^p over the named parameters."""
    named = tensors(model)
    return sum((weights or {}).get(name, 1.0) * named[name].detach().double().abs().pow(p).sum().item() for name in names)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in tensors(model).items()}


def assert_same_state(model: nn.Module, state: Mapping[str, torch.Tensor], names: Sequence[str] | None = None) -> None:
    """Bit for bit the same tensors."""
    named = tensors(model)
    for name in names if names is not None else state:
        assert torch.equal(named[name], state[name]), f"{name} was changed"


def assert_finite(model: nn.Module) -> None:
    """No NaN and no inf anywhere in the model."""
    for name, tensor in tensors(model).items():
        assert torch.isfinite(tensor).all(), f"{name} holds NaN or inf"


def floors() -> dict[str, int]:
    """By torchvision classification model, a number of scale variables (eval mode) that must be reached."""
    path = Path(__file__).parent / "data" / "scale_counts_floor.csv"
    with path.open(newline="") as file:
        return {row["model"]: int(row["num_scales_at_least"]) for row in csv.DictReader(file)}
