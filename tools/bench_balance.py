"""How `balance` gets to the optimum: iterations, passes and seconds by model, from weights as they are and badly scaled.

python tools/bench_balance.py                       # all cases, a Markdown table
python tools/bench_balance.py chain16 llama --json  # some of them, JSON
python tools/bench_balance.py --brevitas            # p = inf beside Brevitas, which has to be installed
python tools/bench_balance.py --check               # in float64: the gradient there, L-BFGS beside it, and the same from 5 starts
python tools/bench_balance.py --check -p inf        # in float64 and float32: the same weights from 5 starts, residual and passes
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.solve.max_balance.residual import residual_at
from fxenorm.weights.objective import CurrentObjective

Made = tuple[nn.Module, Any]
"""A model and example inputs."""


class Llama(nn.Module):
    """A tiny decoder: RMSNorm, rotary attention with fewer key heads than heads, and gated layers."""

    def __init__(self, width: int = 32, heads: int = 4, key_heads: int = 2, inner: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.heads, self.key_heads = heads, key_heads
        size = width // heads
        self.embed = nn.Embedding(50, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.RMSNorm(width),
                    "q": nn.Linear(width, width, bias=False),
                    "k": nn.Linear(width, key_heads * size, bias=False),
                    "v": nn.Linear(width, key_heads * size, bias=False),
                    "o": nn.Linear(width, width, bias=False),
                    "norm2": nn.RMSNorm(width),
                    "gate": nn.Linear(width, inner, bias=False),
                    "up": nn.Linear(width, inner, bias=False),
                    "down": nn.Linear(inner, width, bias=False),
                }
            )
            for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, 50, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, 50) scores."""
        x = self.embed(tokens)
        batch, length, width = x.shape
        size = width // self.heads
        angles = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(size // 2) * 2.0 / size)[None, :]
        cos, sin = (part.to(x.dtype) for part in (angles.cos(), angles.sin()))

        def rotated(t: Tensor) -> Tensor:
            one, two = t.chunk(2, -1)
            return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)

        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            y = block["norm1"](x)
            q, k, v = (block[name](y).unflatten(-1, (-1, size)).transpose(1, 2) for name in "qkv")
            repeats = self.heads // self.key_heads
            k, v = rotated(k).repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
            mixed = nn.functional.scaled_dot_product_attention(rotated(q), k, v, is_causal=True)
            x = x + block["o"](mixed.transpose(1, 2).reshape(batch, length, width))
            y = block["norm2"](x)
            x = x + block["down"](nn.functional.silu(block["gate"](y)) * block["up"](y))
        return self.head(self.norm(x))


class UNet(nn.Module):
    """Two levels down and up with joined skips, no normalisation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()

        def block(into: int, out: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(into, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1), nn.ReLU())

        self.down1, self.down2, self.middle = block(3, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.lift2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.lift1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up2, self.up1 = block(4 * width, 2 * width), block(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2, H, W)."""
        one = self.down1(x)
        two = self.down2(self.pool(one))
        y = self.up2(torch.cat([two, self.lift2(self.middle(self.pool(two)))], 1))
        return self.head(self.up1(torch.cat([one, self.lift1(y)], 1)))


def chain(depth: int, width: int = 64, kind: str = "dense") -> Made:
    """A fully connected net without biases; heavy-tailed or 97 % sparse weights where asked for."""
    widths = [32, *([width] * (depth - 1)), 10]
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(widths):
        layer = nn.Linear(into, out, bias=False)
        with torch.no_grad():
            if kind == "heavy":
                layer.weight.copy_(
                    torch.distributions.StudentT(1.5).sample(layer.weight.shape) * torch.randn_like(layer.weight).exp()
                )
            if kind == "sparse":
                layer.weight.mul_(torch.rand_like(layer.weight) < 0.03)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]), torch.zeros(2, 32)


def vision(name: str) -> Made:
    """A torchvision model."""
    import torchvision

    return getattr(torchvision.models, name)(), torch.zeros(2, 3, 64, 64)


NORMALISED = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121")

VISION = ("resnet18", "resnet50", "densenet121", "mobilenet_v3_large", "vgg16")
"""The models that are compared with Brevitas."""

ONE_ANSWER = ("chain4x512", "chain64", "chain256x16", "densenet121", "resnet18", "unet", "llama")
"""The models on which p = inf is shown to have one answer from every start."""

CASES: dict[str, Callable[[], Made]] = {
    **{f"chain{depth}": lambda depth=depth: chain(depth) for depth in (4, 16, 64, 256)},
    **{f"chain{depth}x{width}": lambda depth=depth, width=width: chain(depth, width) for depth, width in ((4, 512), (256, 16))},
    "chain16-heavy": lambda: chain(16, kind="heavy"),
    "chain64-heavy": lambda: chain(64, kind="heavy"),
    "chain16-sparse": lambda: chain(16, 256, kind="sparse"),
    "chain64-sparse": lambda: chain(64, 256, kind="sparse"),
    "unet": lambda: (UNet(), torch.zeros(1, 3, 16, 16)),
    "llama": lambda: (Llama(), torch.zeros(1, 8, dtype=torch.int64)),
    **{name: lambda name=name: vision(name) for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    **{name: lambda name=name: vision(name) for name in ("vgg16", "densenet121", "mobilenet_v3_large")},
}
"""By name, a function that makes the model."""


def random_rescaling(plan: fxenorm.Plan, size: float, seed: int = 0) -> None:
    """Multiplies every channel that balance can bring back by exp(size * normal)."""
    scales = size * torch.randn(plan.num_scales, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for item in plan.held:
        scales[list(item.variables)] = 0.0
    plan.rescale(scales)


def problem_of(plan: fxenorm.Plan) -> tuple[CurrentObjective, Tensor]:
    """The objective at the current weights, and which variables it holds."""
    _, problem, left = plan.rescaler.open().within_now()
    return problem, torch.from_numpy(left.held)


def value_and_gradient(problem: CurrentObjective, held: Tensor, scales: Tensor) -> tuple[float, Tensor]:
    """log F after a rescaling, and its derivatives: p (P - N) / F."""
    log_negative, log_positive = problem.log_sums(scales)
    value = problem.log_objective(scales)
    slope = problem.p * ((log_positive - value).exp() - (log_negative - value).exp())
    return float(value), torch.where(held, 0.0, slope)


def lbfgs(problem: CurrentObjective, held: Tensor, max_iterations: int = 3000) -> float:
    """The least log F that scipy's L-BFGS finds from the weights as they are."""
    from scipy.optimize import minimize

    def work(values: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = value_and_gradient(problem, held, torch.from_numpy(values.copy()))
        return value, slope.numpy()

    options = {"maxiter": max_iterations, "maxfun": 2 * max_iterations, "ftol": 1e-16, "gtol": 1e-11, "maxcor": 30}
    return float(minimize(work, np.zeros(held.numel()), jac=True, method="L-BFGS-B", options=options).fun)


def largest_difference(model: nn.Module, expected: dict[str, Tensor]) -> float:
    """The largest relative difference of any entry of the model's tensors."""
    most = 0.0
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            away = (tensor - expected[name]).abs_()
            most = max(most, float((away / expected[name].abs().clamp(min=1e-30)).max()))
    return most


def check(name: str, batchnorm: str = "affine", p: float = 2.0) -> list[dict[str, Any]]:
    """One row: what must hold at the optimum, in float64."""
    torch.manual_seed(0)
    model, inputs = CASES[name]()
    plan = fxenorm.analyze(model, inputs, p=p, batchnorm=batchnorm)
    model.double()
    problem, held = problem_of(plan)
    start = time.perf_counter()
    other = lbfgs(problem, held)
    seconds = time.perf_counter() - start
    del problem
    result = plan.balance(tol=1e-6)
    problem, held = problem_of(plan)
    value, slope = value_and_gradient(problem, held, torch.zeros(plan.num_scales, dtype=torch.float64))
    del problem
    plan.balance(tol=1e-9)
    expected = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    iterations, converged, apart = result.iterations, result.converged, 0.0
    for seed in range(5):
        random_rescaling(plan, 3.0 if seed == 4 else 1.0, seed)
        result = plan.balance(tol=1e-6)
        iterations, converged = max(iterations, result.iterations), converged and result.converged and result.passes <= 3
        apart = max(apart, largest_difference(model, expected))
    return [
        {
            "model": name,
            "batchnorm": batchnorm,
            "converged": converged,
            "most iterations": iterations,
            "gradient of log F": f"{float(slope.abs().max()):.1e}",
            "log F": f"{value:.10g}",
            "minus L-BFGS's": f"{value - other:.1e}",
            "its seconds": round(seconds, 1),
            "weights from 5 starts apart": f"{apart:.1e}",
        }
    ]


def one_answer(name: str, batchnorm: str = "affine", p: float = math.inf) -> list[dict[str, Any]]:
    """Two rows, one a type: how far the weights of p = inf are apart that are reached from 5 rescalings of the start."""
    rows = []
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        model, inputs = CASES[name]()
        plan = fxenorm.analyze(model, inputs, p=p, batchnorm=batchnorm)
        model.to(dtype)
        results = [plan.balance()]
        problem, held = problem_of(plan)
        written = residual_at(problem, torch.zeros_like(problem.degree), held)
        del problem
        expected = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        apart = 0.0
        for seed in range(5):
            random_rescaling(plan, 1.0, seed)
            results.append(plan.balance())
            apart = max(apart, largest_difference(model, expected))
        rows.append(
            {
                "model": name,
                "batchnorm": batchnorm,
                "dtype": str(dtype).removeprefix("torch."),
                "converged": all(result.converged for result in results),
                "weights from 5 starts apart": f"{apart:.1e}",
                "residual": f"{max(result.residual for result in results if result.residual is not None):.1e}",
                "of the weights as written": f"{written:.1e}",
                "passes": max(result.passes for result in results),
            }
        )
    return rows


def measure(name: str, batchnorm: str = "affine", p: float = 2.0) -> list[dict[str, Any]]:
    """Two rows: from the weights as they are, and after every channel was multiplied by lognormal(3)."""
    torch.manual_seed(0)
    model, inputs = CASES[name]()
    plan = fxenorm.analyze(model, inputs, p=p, batchnorm=batchnorm)
    rows = []
    for start in ("as made", "lognormal(3)"):
        if start != "as made":
            random_rescaling(plan, 3.0)
        begun = time.perf_counter()
        result = plan.balance(tol=1e-6)
        rows.append(
            {
                "model": name,
                "batchnorm": batchnorm,
                "start": start,
                "scales": plan.num_scales,
                "converged": result.converged,
                "iterations": result.iterations,
                "passes": result.passes,
                "seconds": round(time.perf_counter() - begun, 2),
                "norm": f"{result.norm_before:.6g} -> {result.norm_after:.8g}",
                "imbalance": f"{result.imbalance_before:.1e} -> {result.imbalance_after:.1e}",
                "held": sum(len(item.variables) for item in result.held),
            }
        )
    return rows


def beside_brevitas(name: str, rounds: int = 3) -> list[dict[str, Any]]:
    """One row: seconds of analysis and p = inf, and of Brevitas' preprocessing with 20 sweeps of equalisation, in turns."""
    from brevitas.graph.quantize import preprocess_for_quantize

    seconds: dict[str, list[float]] = {"fxenorm": [], "Brevitas": []}
    for _ in range(rounds):
        torch.manual_seed(0)
        model, inputs = CASES[name]()
        other = copy.deepcopy(model.eval())
        begun = time.perf_counter()
        fxenorm.analyze(model, inputs, p=math.inf, batchnorm="folded").balance()
        seconds["fxenorm"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        preprocess_for_quantize(other, equalize_iters=20)
        seconds["Brevitas"].append(time.perf_counter() - begun)
    own, theirs = min(seconds["fxenorm"]), min(seconds["Brevitas"])
    times = {key: " ".join(f"{value:.2f}" for value in found) for key, found in seconds.items()}
    return [{"model": name, **times, "times as fast": f"{theirs / own:.2f}", "load": f"{os.getloadavg()[0]:.1f}"}]


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"some of: {', '.join(CASES)}; all without any")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of a Markdown table")
    parser.add_argument("--batchnorm", help="as in fxenorm.analyze; without it affine, and folded too where that differs")
    parser.add_argument("--check", action="store_true", help="what must hold at the optimum instead of times")
    parser.add_argument("--brevitas", action="store_true", help="analysis and p = inf beside Brevitas' equalisation")
    parser.add_argument("-p", type=float, default=2.0, help="the norm's exponent")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.models) - set(CASES))
    if unknown:
        parser.error(f"unknown models: {', '.join(unknown)}; there are {', '.join(CASES)}")
    header = False
    starts = given.check and math.isinf(given.p)
    given.models = given.models or list(VISION if given.brevitas else ONE_ANSWER if starts else CASES)
    for name in given.models:
        both = ["folded"] if starts else ["affine", "folded"]
        kinds = [given.batchnorm] if given.batchnorm else both if name in NORMALISED else ["affine"]
        found = ((one_answer if starts else check if given.check else measure)(name, kind, given.p) for kind in kinds)
        for row in itertools.chain.from_iterable([beside_brevitas(name)] if given.brevitas else found):
            if given.json:
                print(json.dumps(row), flush=True)
                continue
            if not header:
                print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
                header = True
            print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
