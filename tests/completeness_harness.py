"""The dimension of a network's true group of rescalings, measured from its outputs alone, without any analysis.

A vector a of logarithms of factors, one for each parameter entry, keeps the function iff the outputs do not change along it at
any parameters and inputs. Their derivative with respect to the log-parameters, stacked over random draws of both, has the
group's Lie algebra as its null space. Jumps are invisible to a derivative; there soundness decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from fxenorm.symmetry import Symmetry, find_symmetry
from fxenorm.trace import trace_model

from .helpers import in_mode, outputs, randomise, randomness_off, relative_difference, rescale_by_hand, tensors

__all__ = ["Found", "Measurement", "analysed", "claimed_dimension", "measure", "soundness"]

DRAWS = 12
THRESHOLD = 1e-8
"""A singular value below it (relative to the largest) is zero; none may lie within a factor of `GAP` of it."""
GAP = 1e3


@dataclass(frozen=True)
class Measurement:
    """What the outputs say.

    Attributes:
        dimension: of the group, over the entries that matter.
        live: by parameter name, which entries the outputs depend on at all.
    """

    dimension: int
    live: dict[str, torch.Tensor]


def _prepared(model: nn.Module) -> nn.Module:
    """In float64, without random stages, and with constants in norms so large that nearly free is not free."""
    model = randomness_off(model.double())
    for module in model.modules():
        for attribute in ("eps", "variance_epsilon"):
            if hasattr(module, attribute) and not isinstance(getattr(module, attribute), torch.Tensor):
                setattr(module, attribute, 0.1)
    return model


def _slopes(model: nn.Module, inputs: Sequence[Any], projections: int, seed: int, offsets: Mapping[str, float]) -> torch.Tensor:
    """Rows: derivatives of random combinations of all outputs with respect to the logarithms of all offset + parameter."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    logs = {
        # A complex parameter moves by real factors.
        name: torch.zeros(parameter.shape, dtype=parameter.dtype.to_real(), requires_grad=True)
        for name, parameter in parameters.items()
    }
    added = {name: offsets.get(name, 0.0) for name in parameters}
    scaled = {name: (added[name] + parameter) * logs[name].exp() - added[name] for name, parameter in parameters.items()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    leaves = tree_leaves(functional_call(model, {**scaled, **buffers}, tuple(inputs)))
    values = torch.cat([leaf.reshape(-1) for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()])
    random = torch.Generator().manual_seed(seed)
    count = min(projections, len(values))
    weights = torch.randn(count, len(values), generator=random, dtype=values.dtype)
    rows = []
    for weight in weights:
        grads = torch.autograd.grad(values, list(logs.values()), weight, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat([(torch.zeros_like(z) if g is None else g).reshape(-1) for g, z in zip(grads, logs.values(), strict=True)])
        )
    return torch.stack(rows)


def measure(
    build: Callable[[], nn.Module],
    inputs: Callable[[int], Sequence[Any]],
    modes: Sequence[str] = ("eval", "train"),
    offsets: Mapping[str, float] | None = None,
) -> Measurement:
    """The dimension of the group of rescalings that keep the outputs in all `modes`.

    Args:
        build: makes the network.
        inputs: makes inputs from a seed.
        modes: in which the function is to be kept.
        offsets: by name of a parameter, the number that the network adds to it before it uses it, as its author knows.

    Raises:
        AssertionError: the singular values leave no gap.
    """
    model = _prepared(build())
    total = sum(parameter.numel() for parameter in model.parameters())
    rows = []
    draw, equations = 0, 0
    while draw < DRAWS or equations < 3 * total:
        randomise(model, seed=100 + draw)
        for mode in modes:
            with in_mode(model, mode):
                count = max(8, 3 * total // (DRAWS * len(modes)) + 1)
                rows.append(_slopes(model, inputs(200 + draw), count, draw, offsets or {}))
            equations += len(rows[-1])
        draw += 1
    jacobian = torch.cat(rows)
    jacobian = jacobian / jacobian.norm(dim=1, keepdim=True).clamp_min(1e-300)
    # An entry matters if the outputs move with it at all, beyond rounding.
    size = jacobian.abs().amax(0)
    live = size > 1e-12
    kept = jacobian[:, live]
    singular = torch.linalg.svdvals(torch.linalg.qr(kept / kept.norm(dim=0), mode="r").R) if live.any() else torch.zeros(0)
    relative = singular / singular[0] if len(singular) else singular
    between = relative[(relative > THRESHOLD / GAP) & (relative < THRESHOLD * GAP)]
    assert not len(between), f"no gap in the singular values: {between.tolist()}"
    pieces = live.split([parameter.numel() for parameter in model.parameters()])
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return Measurement(
        int(live.sum()) - int((relative > THRESHOLD).sum()),
        {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)},
    )


@dataclass(frozen=True)
class Found:
    """A network and what the analysis finds."""

    model: nn.Module
    symmetry: Symmetry


def analysed(build: Callable[[], nn.Module], inputs: Sequence[Any], **options: Any) -> Found:
    """The network with random parameters and its symmetry."""
    model = randomise(_prepared(build()), seed=3)
    defaults = {"batchnorm": "affine", "biases": "scale", "exclude": (), "approximate": (), "on_unknown": "barrier"}
    return Found(model, find_symmetry(trace_model(model, tuple(inputs)), model, **{**defaults, **options}))


def claimed_dimension(found: Found, live: dict[str, torch.Tensor]) -> int:
    """Rank of the exponents on the entries that matter."""
    count = found.symmetry.num_scales
    blocks = []
    for name, terms in found.symmetry.exponents.items():
        shape = found.symmetry.shapes[name]
        rows = np.zeros((*shape, count + 1))
        for coefficient, ids in terms:
            rows += coefficient * np.eye(count + 1)[ids]
        kept = live[name].numpy() if name in live else np.ones(shape, dtype=bool)
        blocks.append(rows[kept][:, :count])
    return int(np.linalg.matrix_rank(np.concatenate(blocks))) if blocks and count else 0


@torch.no_grad()
def soundness(found: Found, inputs: Sequence[Any], mode: str, seed: int = 1) -> float:
    """Relative change of the outputs when all variables are drawn from (-1, 1); the tensors are put back."""
    saved = {name: tensor.clone() for name, tensor in tensors(found.model).items()}
    before = outputs(found.model, inputs, mode)
    random = torch.Generator().manual_seed(seed)
    log_scales = torch.rand(found.symmetry.num_scales, generator=random, dtype=torch.float64) * 2 - 1
    rescale_by_hand(found.model, found.symmetry.exponents, log_scales, offsets=found.symmetry.offsets)
    after = outputs(found.model, inputs, mode)
    for name, tensor in tensors(found.model).items():
        tensor.copy_(saved[name])
    return relative_difference(before, after)
